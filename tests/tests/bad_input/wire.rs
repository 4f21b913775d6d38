//! One raw connection: any bytes out, whole commands back.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::frame::{FRAME_LIMIT, Frame, Serialize};
use gantry_proto::remoting::header::{ExtWrite, OwnedCommand};

/// How long the broker may take to answer or to close.
pub const WITHIN: Duration = Duration::from_secs(30);

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    Command(OwnedCommand),
    /// The broker closed the connection.
    Closed,
    /// Nothing, for as long as the caller waits.
    Silence,
}

/// A raw connection.
pub struct Wire {
    stream: TcpStream,
    input: Vec<u8>,
    form: Serialize,
    opaque: i32,
}

impl Wire {
    pub fn to(address: SocketAddr) -> Self {
        Self::in_form(address, Serialize::Json)
    }

    pub fn in_form(address: SocketAddr, form: Serialize) -> Self {
        let stream = TcpStream::connect_timeout(&address, WITHIN).expect("the broker accepts");
        stream.set_nodelay(true).expect("a socket option");
        stream.set_write_timeout(Some(WITHIN)).expect("a socket option");
        Self { stream, input: Vec::new(), form, opaque: 0 }
    }

    /// Writes bytes; an error means that the broker has closed already, which the next read tells.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Tells the broker that nothing more will come.
    pub fn end_of_input(&self) {
        let _ = self.stream.shutdown(Shutdown::Write); // it may have closed already
    }

    /// The next command, the end, or nothing within `within`.
    pub fn hear_within(&mut self, within: Duration) -> Heard {
        let deadline = Instant::now() + within;
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some(frame) = Frame::cut(&self.input, FRAME_LIMIT).expect("the broker writes frames") {
                let command = OwnedCommand::decode(&frame).expect("the broker writes commands");
                let len = frame.len;
                self.input.drain(..len);
                return Heard::Command(command);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Heard::Silence;
            }
            self.stream.set_read_timeout(Some(left)).expect("a socket option");
            match self.stream.read(&mut chunk) {
                Ok(0) => return Heard::Closed,
                Ok(read) => self.input.extend_from_slice(&chunk[..read]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Heard::Silence;
                }
                Err(_) => return Heard::Closed,
            }
        }
    }

    /// The next command or the end; panics when neither comes.
    pub fn hear(&mut self) -> Heard {
        let heard = self.hear_within(WITHIN);
        assert_ne!(heard, Heard::Silence, "expected an answer or the end within {WITHIN:?}");
        heard
    }

    /// Expects that the broker closes without another word.
    pub fn expect_closed(&mut self, after: &str) {
        let heard = self.hear();
        assert_eq!(heard, Heard::Closed, "expected the end of the connection after {after}");
    }

    /// Sends a command without waiting for its answer; gives its number.
    pub fn post(&mut self, command: &OwnedCommand) -> i32 {
        self.opaque += 1;
        let numbered = OwnedCommand { opaque: self.opaque, ..command.clone() };
        let mut bytes = Vec::new();
        encode(&numbered, &mut bytes, self.form);
        self.write(&bytes);
        self.opaque
    }

    /// The answer to a command.
    pub fn ask(&mut self, command: &OwnedCommand) -> OwnedCommand {
        let opaque = self.post(command);
        match self.hear() {
            Heard::Command(reply) => {
                assert!(reply.flag & 1 == 1 && reply.opaque == opaque, "expected a reply, found {reply:?}");
                reply
            }
            heard => panic!("expected an answer to {command:?}, found {heard:?}"),
        }
    }

    /// The answer to a request with typed fields.
    pub fn request(&mut self, code: impl Into<i32>, header: &impl ExtWrite, body: &[u8]) -> OwnedCommand {
        self.ask(&OwnedCommand::request(code, header).body(body.to_vec()))
    }
}

/// Appends the frame of `command`; the binary form has no room for large codes, they go out as JSON.
pub fn encode(command: &OwnedCommand, out: &mut Vec<u8>, form: Serialize) {
    let fits = i16::try_from(command.code).is_ok();
    command.encode(out, if fits { form } else { Serialize::Json }).expect("an encodable command");
}

/// Expects a refusal with `code` and a sentence that holds `words`.
#[track_caller]
pub fn expect_refused(reply: &OwnedCommand, code: ResponseCode, words: &str) {
    let remark = reply.remark.as_deref().unwrap_or_default();
    assert!(
        reply.code == code.code() && remark.contains(words),
        "expected {code} with {words:?} in the sentence, found {}: {remark:?}",
        ResponseCode::from(reply.code)
    );
}

/// Expects some refusal that says why in a sentence.
#[track_caller]
pub fn expect_some_refusal(reply: &OwnedCommand, what: &str) {
    let remark = reply.remark.as_deref().unwrap_or_default();
    assert!(reply.code != 0, "expected that {what} is refused, found success");
    assert!(remark.contains(' '), "expected a sentence about {what}, found {}: {remark:?}", reply.code);
}
