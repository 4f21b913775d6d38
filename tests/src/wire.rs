//! Requests to a broker over a connection of one's own: for what the client crate has no words for.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use gantry_client::proto::remoting::frame::{FRAME_LIMIT, Frame, Serialize};
use gantry_client::proto::remoting::header::OwnedCommand;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A way to a broker, one request at a time. It connects when it is first asked, and anew after each failure.
#[derive(Debug)]
pub struct Wire {
    address: SocketAddr,
    timeout: Duration,
    stream: Option<TcpStream>,
    opaque: i32,
}

impl Wire {
    /// A way to `address`. A connection, and each answer, may take `timeout`.
    pub const fn to(address: SocketAddr, timeout: Duration) -> Self {
        Self { address, timeout, stream: None, opaque: 0 }
    }

    /// Closes the connection without a word.
    pub fn hang_up(&mut self) {
        self.stream = None;
    }

    /// The answer to a request. After an error nobody knows whether the broker has got it.
    pub async fn ask(&mut self, request: OwnedCommand) -> io::Result<OwnedCommand> {
        // Given up half-way, the connection is of no use any more: it goes back when the answer is whole.
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => tokio::time::timeout(self.timeout, TcpStream::connect(self.address)).await??,
        };
        stream.set_nodelay(true)?;
        self.opaque = self.opaque.wrapping_add(1);
        let request = OwnedCommand { opaque: self.opaque, ..request };
        let reply = tokio::time::timeout(self.timeout, exchange(&mut stream, &request)).await??;
        self.stream = Some(stream);
        Ok(reply)
    }
}

async fn exchange(stream: &mut TcpStream, request: &OwnedCommand) -> io::Result<OwnedCommand> {
    let invalid = |why: &dyn ToString| io::Error::new(io::ErrorKind::InvalidData, why.to_string());
    let mut bytes = Vec::new();
    request.encode(&mut bytes, Serialize::Json).map_err(|error| invalid(&error))?;
    stream.write_all(&bytes).await?;
    let mut input = Vec::with_capacity(4096);
    loop {
        if let Some(frame) = Frame::cut(&input, FRAME_LIMIT).map_err(|error| invalid(&error))? {
            let command = OwnedCommand::decode(&frame).map_err(|error| invalid(&error))?;
            let len = frame.len;
            if command.opaque == request.opaque && command.flag & 1 == 1 {
                return Ok(command);
            }
            // A notice of the broker's.
            input.drain(..len);
            continue;
        }
        if stream.read_buf(&mut input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
