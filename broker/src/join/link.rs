//! A connection to a name server: one question after the other.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use gantry_proto::error::DecodeError;
use gantry_proto::remoting::codes::{Language, RequestCode, V5_5_0};
use gantry_proto::remoting::frame::{FRAME_LIMIT, Frame, FrameError, Serialize};
use gantry_proto::remoting::header::{EncodeError, ExtWrite, Head, OwnedCommand, encode_frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long connecting may take, and each answer.
pub(super) const WITHIN: Duration = Duration::from_secs(5);
/// Bytes of the input buffer that are kept.
const KEPT_BYTES: usize = 64 * 1024;

/// What went wrong with a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("it cannot be connected to: is it running?")]
    Connect(#[source] io::Error),
    #[error("it closed the connection")]
    Closed,
    #[error("the connection to it broke")]
    Io(#[from] io::Error),
    #[error("what it sends is no frame of RocketMQ's protocol: is this the port of a name server?")]
    Frame(#[from] FrameError),
    #[error("what it sends has no header of RocketMQ's protocol: is this the port of a name server?")]
    Header(#[from] DecodeError),
    #[error("it does not answer within {} s", WITHIN.as_secs())]
    Silent,
    #[error("the request cannot be written")]
    Encode(#[from] EncodeError),
}

#[derive(Debug)]
pub(super) struct Link {
    stream: TcpStream,
    input: BytesMut,
    asked: i32,
}

impl Link {
    /// Connects to the first of these addresses that answers.
    pub(super) async fn open(addresses: &[SocketAddr]) -> Result<Self, LinkError> {
        let connected = tokio::time::timeout(WITHIN, TcpStream::connect(addresses)).await;
        let stream = connected.map_err(|_| LinkError::Silent)?.map_err(LinkError::Connect)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, input: BytesMut::new(), asked: 0 })
    }

    /// This side's address and the other's.
    pub(super) fn ends(&self) -> Result<(SocketAddr, SocketAddr), LinkError> {
        let unmapped = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Ok((unmapped(self.stream.local_addr()?), unmapped(self.stream.peer_addr()?)))
    }

    /// Asks and waits for the answer, whatever it is.
    pub(super) async fn ask(
        &mut self,
        code: RequestCode,
        header: &impl ExtWrite,
        body: &[u8],
    ) -> Result<OwnedCommand, LinkError> {
        self.asked = self.asked.wrapping_add(1);
        let opaque = self.asked;
        let head = Head { version: V5_5_0, ..Head::request(code, opaque).language(Language::Rust) };
        let mut out = Vec::with_capacity(body.len() + 512);
        encode_frame(&mut out, Serialize::Json, &head, header, body.len())?;
        out.extend_from_slice(body);
        let answered = async {
            self.stream.write_all(&out).await?;
            loop {
                let command = self.next().await?;
                if command.flag & 1 != 0 && command.opaque == opaque {
                    return Ok(command);
                }
            }
        };
        tokio::time::timeout(WITHIN, answered).await.unwrap_or(Err(LinkError::Silent))
    }

    /// Waits until the connection ends. What the server asks meanwhile is for brokers that have replicas. May be
    /// dropped and begun again.
    pub(super) async fn ended(&mut self) -> LinkError {
        loop {
            match self.next().await {
                Ok(command) => tracing::debug!(code = command.code, "a name server's request is ignored"),
                Err(error) => return error,
            }
        }
    }

    async fn next(&mut self) -> Result<OwnedCommand, LinkError> {
        loop {
            if let Some(frame) = Frame::cut(&self.input, FRAME_LIMIT)? {
                let command = OwnedCommand::decode(&frame)?;
                let len = frame.len;
                self.input.advance(len);
                if self.input.is_empty() && self.input.capacity() > KEPT_BYTES {
                    self.input = BytesMut::new();
                }
                return Ok(command);
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(LinkError::Closed);
            }
        }
    }
}
