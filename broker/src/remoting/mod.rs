//! The remoting edge: frames of RocketMQ's own protocol on TCP.
//!
//! `connection` reads, `dispatch` finds the handler, one file per family decodes, calls one service
//! function and encodes. The hot families (`send`, `pull`, `transaction`) write straight into the
//! connection's output; a handler of any other is a function `(services, request, caller) -> Handled`.

mod ack;
mod assignment;
mod beside;
pub mod budget;
mod connection;
mod consumer;
pub mod context;
mod dispatch;
mod drain;
#[cfg(test)]
mod edge_tests;
#[cfg(test)]
mod flow_tests;
mod group;
pub mod lanes;
mod late;
mod lock;
mod member;
mod offset;
mod outbound;
pub mod pace;
mod pop;
mod progress;
mod pull;
pub mod query;
pub mod rates;
mod refusal;
mod reply;
#[cfg(test)]
mod reply_tests;
pub mod route;
mod send;
mod status;
mod timer;
mod topic;
mod transaction;
mod upkeep;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gantry_proto::remoting::codes::Language;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use connection::{Closed, Connection};
use context::{Caller, Services};
use lanes::Seats;

use crate::groups::members::Peer;
use crate::routes::Registry as _;

static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// Accepts connections until the broker stops, and gives each its seat.
pub async fn listen(services: Arc<Services>, listener: TcpListener, seats: Seats) {
    let stop = services.listeners.token().clone();
    let limit = services.config.limits.connections;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: give the others a moment to end.
                tracing::error!(%error, "cannot accept a connection; is the limit of open files too low?");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if seats.taken() >= limit {
            tracing::warn!(%remote, limit, "a connection was refused: as many are open as limits.connections allows");
            continue;
        }
        // The event loop that it belongs to is that of its lane, not of this task.
        let stream = match stream.into_std() {
            Ok(stream) => stream,
            Err(error) => {
                tracing::error!(%remote, %error, "a connection cannot be handed to its lane");
                continue;
            }
        };
        let connections = services.connections.clone();
        let services = Arc::clone(&services);
        seats.spawn(&connections, "connection", serve(services, stream, remote));
    }
}

async fn serve(services: Arc<Services>, stream: std::net::TcpStream, remote: SocketAddr) {
    // Answers are written whole; waiting for more to fill a packet would only delay them.
    let ready = stream.set_nodelay(true).and_then(|()| stream.local_addr());
    match ready.and_then(|local| Ok((TcpStream::from_std(stream)?, local))) {
        Ok((stream, local)) => serve_stream(services, stream, remote, local).await,
        Err(error) => tracing::info!(%remote, %error, "a connection was gone before it was served"),
    }
}

/// Serves one connection between `remote` and `local`, whatever carries its bytes, until one side ends it.
pub async fn serve_stream<S>(services: Arc<Services>, stream: S, remote: SocketAddr, local: SocketAddr)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let open = Open::note(&services, number);
    let (outbox, notices) = Peer::outbox();
    let caller = Caller {
        connection: number,
        remote: unmapped(remote),
        local: unmapped(local),
        language: Language::Other,
        version: 0,
        outbox,
    };
    let stop = services.connections.token().clone();
    let connection = Connection::new(Arc::clone(&services), caller);
    let closed = connection.run(stream, notices, stop).await;
    drop(open);
    match closed {
        Closed::ByPeer | Closed::Stopping => tracing::debug!(%remote, why = %closed, "connection closed"),
        Closed::Frame(_) | Closed::Header(_) => {
            tracing::warn!(%remote, why = %closed, "connection closed: the client does not speak this protocol");
        }
        Closed::Idle(_) | Closed::Slow(_) | Closed::Io(_) => {
            tracing::info!(%remote, why = %closed, "connection closed");
        }
    }
}

/// What others know of a connection; forgotten when it is dropped, also by a panic.
struct Open {
    services: Arc<Services>,
    number: u64,
}

impl Open {
    fn note(services: &Arc<Services>, number: u64) -> Self {
        services.metrics.connections.up();
        Self { services: Arc::clone(services), number }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.services.members.connection_closed(self.number);
        self.services.routes.connection_closed(self.number);
        self.services.metrics.connections.down();
    }
}

/// An IPv4 address that came through an IPv6 socket, as the IPv4 address it is.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
