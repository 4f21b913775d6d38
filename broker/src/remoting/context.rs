//! What a handler is given and what it gives back.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use gantry_proto::ids::Millis;
use gantry_proto::remoting::codes::{Language, ResponseCode};
use gantry_proto::remoting::header::{ExtFields, ExtWrite, OwnedCommand};
use gantry_proto::remoting::request::HeaderError;

use super::budget::Budget;
use super::pace::Alone;
use crate::clock::Clock;
use crate::config::Config;
use crate::deliver::expressions::Expressions;
use crate::deliver::polls::Polls;
use crate::deliver::pop::Pops;
use crate::deliver::retry::Retries;
use crate::deliver::scaling::Scaling;
use crate::flow::Flow;
use crate::groups::Groups;
use crate::groups::locks::Locks;
use crate::groups::members::{Members, Outbox};
use crate::groups::modes::Modes;
use crate::groups::offsets::Offsets;
use crate::join::Join;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::routes::{Drain, Embedded};
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::timer::{Timer, Wheel};
use crate::topics::Topics;
use crate::transaction::Transactions;

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Number of the connection, unique for the life of the process.
    pub connection: u64,
    /// The client's address.
    pub remote: SocketAddr,
    /// The address under which the client reached this broker.
    pub local: SocketAddr,
    /// What the client is written in, as this request says.
    pub language: Language,
    /// The client's version, as this request says.
    pub version: i32,
    /// Where notices and calls for this client go.
    pub outbox: Outbox,
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Response code; 0 is success.
    pub code: i32,
    /// What to tell people.
    pub remark: Option<String>,
    /// Header fields.
    pub ext: ExtFields<'static>,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// Success without anything to say.
    pub fn ok() -> Self {
        Self::default()
    }

    /// Success with a body.
    pub fn body(body: Vec<u8>) -> Self {
        Self { body, ..Self::default() }
    }

    /// Success with header fields.
    pub fn header(header: &impl ExtWrite) -> Self {
        // The owned form of a header is only needed off the hot path.
        Self { ext: OwnedCommand::reply(0, 0, header).ext, ..Self::default() }
    }

    /// The same, with a body.
    #[must_use]
    pub fn with_body(self, body: Vec<u8>) -> Self {
        Self { body, ..self }
    }

    /// A refusal: its code, and a sentence that says what to do.
    pub fn refused(code: ResponseCode, why: impl Into<String>) -> Self {
        Self { code: code.into(), remark: Some(why.into()), ..Self::default() }
    }
}

/// A header that cannot be read is refused with what is wrong with it.
impl From<HeaderError> for Reply {
    fn from(error: HeaderError) -> Self {
        Self::refused(ResponseCode::SystemError, error.to_string())
    }
}

/// The reply of a handler that may stop at a refusal (`?`).
pub fn settle(handle: impl FnOnce() -> Result<Reply, Reply>) -> Reply {
    handle().unwrap_or_else(|refused| refused)
}

/// An error and its causes as one sentence.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |sentence, cause| format!("{sentence}: {cause}"))
}

/// A client's text as it may stand in a sentence: cut to 255 characters.
pub fn short(text: &str) -> &str {
    text.char_indices().nth(255).and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

/// An answer that is there, or one that is still being worked on.
pub enum Handled {
    /// Here it is.
    Now(Reply),
    /// It comes.
    Later(Pin<Box<dyn Future<Output = Reply> + Send>>),
}

impl Handled {
    /// An answer that `work` will give.
    pub fn later(work: impl Future<Output = Reply> + Send + 'static) -> Self {
        Self::Later(Box::pin(work))
    }
}

impl From<Reply> for Handled {
    fn from(reply: Reply) -> Self {
        Self::Now(reply)
    }
}

impl std::fmt::Debug for Handled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Now(reply) => f.debug_tuple("Now").field(reply).finish(),
            Self::Later(_) => f.write_str("Later"),
        }
    }
}

/// Everything a handler may call.
#[derive(Debug)]
pub struct Services {
    /// What the operator set.
    pub config: Arc<Config>,
    /// The port that the broker listens on.
    pub broker_port: u16,
    /// When the process started.
    pub started_at: Millis,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The log and everything folded from it.
    pub store: Arc<Store>,
    /// Topics.
    pub topics: Arc<Topics>,
    /// Consumer groups.
    pub groups: Arc<Groups>,
    /// Whether groups pull or pop.
    pub modes: Arc<Modes>,
    /// Who is alive.
    pub members: Arc<Members>,
    /// Consumer offsets.
    pub offsets: Arc<Offsets>,
    /// Queue locks of orderly consumers.
    pub locks: Arc<Locks>,
    /// Names and addresses.
    pub routes: Arc<Embedded>,
    /// Whether this broker is going off line.
    pub drain: Arc<Drain>,
    /// The registrations with other name servers.
    pub join: Arc<Join>,
    /// Half messages.
    pub transactions: Arc<Transactions>,
    /// Messages with delay levels.
    pub timer: Arc<Timer>,
    /// Timer messages.
    pub wheel: Arc<Wheel>,
    /// Retries and dead letters.
    pub retries: Arc<Retries>,
    /// Popped messages.
    pub pops: Arc<Pops>,
    /// Changes of the number of queues.
    pub scaling: Arc<Scaling>,
    /// The way into the log.
    pub publisher: Publisher,
    /// Rates of topics and groups.
    pub flow: Arc<Flow>,
    /// Waiting pulls.
    pub polls: Arc<Polls>,
    /// The filters in use.
    pub expressions: Arc<Expressions>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Bytes of answers that wait on all connections.
    pub outbound: Arc<Budget>,
    /// Which connection stored something last.
    pub alone: Alone,
    /// The accepting tasks; they stop first.
    pub listeners: Shutdown,
    /// The connections; they stop next.
    pub connections: Shutdown,
    /// Requests that run beside their connection, and background services.
    pub shutdown: Shutdown,
}

impl Services {
    /// The address under which a client can ask this broker for a message it sent.
    pub fn store_host(&self, caller: &Caller) -> SocketAddr {
        SocketAddr::new(caller.local.ip(), self.broker_port)
    }
}
