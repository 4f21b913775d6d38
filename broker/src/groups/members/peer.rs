//! The way to reach a client, and what it is told.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use gantry_proto::ids::{PhyOffset, QueueOffset};
use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::remoting::codes::Language;
use tokio::sync::mpsc;

/// Notices that may wait for one client.
const OUTBOX_MAX: usize = 1024;

/// What the broker tells a client unasked; each edge encodes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Members or subscriptions of the consumer group changed: divide the queues anew.
    MembersChanged {
        /// The group.
        group: GroupName,
    },
    /// What became of this half message?
    CheckTransaction(Box<CheckRequest>),
}

/// What a producer is asked about a half message. The message itself, which may be long, is read when the
/// edge sends the request: [`Transactions::check_message`](crate::transaction::Transactions::check_message).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckRequest {
    /// The half's number in the half queue; the answer repeats it.
    pub half_queue_offset: QueueOffset,
    /// Where the half starts in the log; the answer repeats it.
    pub half_phy: PhyOffset,
    /// The message id that the producer knows.
    pub uniq_key: String,
    /// The transaction's id.
    pub transaction_id: String,
    /// The offset message id of the half.
    pub offset_msg_id: String,
    /// Where the message goes when it is committed.
    pub real_topic: TopicName,
}

/// A client's connection, as its edge registered it: the way to reach the client.
pub struct Peer {
    /// Number of the connection, never used twice by this process.
    pub connection: u64,
    /// The client's address.
    pub address: SocketAddr,
    /// What the client calls itself; unique in its groups.
    pub client_id: Arc<str>,
    /// What the client is written in.
    pub language: Language,
    /// The client's protocol version.
    pub version: i32,
    outbox: mpsc::Sender<Notice>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({} at {} on {})", self.client_id, self.address, self.connection)
    }
}

impl Peer {
    /// The queue between services and a connection: notices wait here until the edge sends them.
    pub fn outbox() -> (mpsc::Sender<Notice>, mpsc::Receiver<Notice>) {
        mpsc::channel(OUTBOX_MAX)
    }

    /// The client `client_id` on a connection whose edge reads the other end of `outbox`.
    pub fn new(
        connection: u64,
        address: SocketAddr,
        client_id: &str,
        (language, version): (Language, i32),
        outbox: mpsc::Sender<Notice>,
    ) -> Self {
        Self { connection, address, client_id: Arc::from(client_id), language, version, outbox }
    }

    /// Hands a notice to the connection. `false`: it is closed, or so far behind that its outbox is full.
    pub fn notify(&self, notice: Notice) -> bool {
        self.outbox.try_send(notice).is_ok()
    }
}
