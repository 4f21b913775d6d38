//! The way to reach a client, and what it is told.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::remoting::codes::Language;
use tokio::sync::mpsc;

use super::calls::{Call, CallAnswer, CallError, Calls};

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
    /// Consumers that keep their offsets themselves go on elsewhere.
    ResetOffsets(Arc<OffsetReset>),
    /// The call with this number waits to be sent: [`Outbox::take_call`] gives it.
    Call {
        /// The number that pairs the answer with it.
        opaque: i32,
    },
}

/// Where the members of a broadcasting group are to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetReset {
    /// The group.
    pub group: GroupName,
    /// The topic.
    pub topic: TopicName,
    /// The time that the operator named.
    pub timestamp: Millis,
    /// The next message of each queue.
    pub offsets: Vec<(QueueId, QueueOffset)>,
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
    outbox: Outbox,
}

/// The way from services to a connection: notices, and calls that wait for an answer. Clones are the same.
#[derive(Clone, Debug)]
pub struct Outbox {
    notices: mpsc::Sender<Notice>,
    calls: Arc<Calls>,
}

impl Outbox {
    /// The call to send now; `None` when nobody waits for its answer any more.
    pub fn take_call(&self, opaque: i32) -> Option<Call> {
        self.calls.take(opaque)
    }

    /// Hands the client's answer to who waits for it; `false` when nobody does, then it is not made.
    pub fn answer(&self, opaque: i32, answer: impl FnOnce() -> CallAnswer) -> bool {
        self.calls.answer(opaque, answer)
    }

    /// The connection ended: tells those who wait for answers.
    pub fn close(&self) {
        self.calls.close();
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({} at {} on {})", self.client_id, self.address, self.connection)
    }
}

impl Peer {
    /// The queue between services and a connection: notices wait here until the edge sends them.
    pub fn outbox() -> (Outbox, mpsc::Receiver<Notice>) {
        let (notices, received) = mpsc::channel(OUTBOX_MAX);
        (Outbox { notices, calls: Arc::default() }, received)
    }

    /// The client `client_id` on a connection whose edge reads the other end of `outbox`.
    pub fn new(
        connection: u64,
        address: SocketAddr,
        client_id: &str,
        (language, version): (Language, i32),
        outbox: Outbox,
    ) -> Self {
        Self { connection, address, client_id: Arc::from(client_id), language, version, outbox }
    }

    /// Hands a notice to the connection. `false`: it is closed, or so far behind that its outbox is full.
    pub fn notify(&self, notice: Notice) -> bool {
        self.outbox.notices.try_send(notice).is_ok()
    }

    /// Asks the client something and waits for its answer. Dropping the future gives up: what was not sent yet is
    /// not sent.
    pub async fn call(&self, call: Call, within: Duration) -> Result<CallAnswer, CallError> {
        let mut begun = self.outbox.calls.begin(call)?;
        if !self.notify(Notice::Call { opaque: begun.opaque }) {
            return Err(self.outbox.calls.unheard());
        }
        match tokio::time::timeout(within, &mut begun.answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(CallError::Gone),
            Err(_) => Err(CallError::Silent(within)),
        }
    }
}
