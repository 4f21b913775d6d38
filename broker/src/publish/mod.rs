//! The way of a message into the log, one for all edges.
//!
//! [`Publisher::send`] checks topic, sizes and queue, decides what the message is (plain, delayed, half,
//! a retry), asks the dedup window and appends. It neither waits nor writes: the caller drives the store
//! after a batch of sends and answers when [`Sent::end`] is settled.

mod batch;
mod place;
pub mod reply;
mod resend;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::error::DecodeError;
use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{TopicKind, TopicName};
use gantry_proto::record::{
    EncodeError, HotProperties, Properties, PropertiesBuf, RecordDraft, SysFlag, TransactionFlag, UniqKeys,
    keys,
};

use crate::clock::Clock;
use crate::deliver::retry::{DirectRetry, Retries, SendBackError, make_dead};
use crate::flow::{Flow, Limited, Subject, Toll};
use crate::routes::drain::{Drain, Leaving};
use crate::store::dedup::DedupTopic;
use crate::store::{AppendError, Batch, Queue, ReadError, Store};
use crate::timer::{self, Levels, TimerError};
use crate::topics::kinds::MessageType;
use crate::topics::{Topic, TopicError, Topics};
use crate::transaction::{BeginError, Transactions};
use resend::Again;

/// Region that clients are told, as the peer's default.
pub const REGION: &str = "DefaultRegion";
/// Bytes of properties that the broker may add to a message.
const ADDED_PROPERTIES: usize = 128;

/// A message as it came in.
#[derive(Clone, Debug)]
pub struct Incoming<'a> {
    /// The group of producers that sends it.
    pub producers: &'a str,
    /// The topic that the client names.
    pub topic: &'a str,
    /// Template of a topic that does not exist yet.
    pub default_topic: &'a str,
    /// Queues that it shall have.
    pub default_queues: i32,
    /// The queue; negative: any.
    pub queue_id: i32,
    /// The client's flags, as they came.
    pub sys_flag: SysFlag,
    /// The user's own flag.
    pub flag: i32,
    /// When the client made the message.
    pub born_at: Millis,
    /// The client's address.
    pub born_host: SocketAddr,
    /// The address under which this broker can be asked for the message.
    pub store_host: SocketAddr,
    /// Encoded properties.
    pub properties: Properties<'a>,
    /// The body, or the items of a batch.
    pub body: &'a [u8],
    /// How often it was consumed in vain.
    pub reconsume_times: i32,
    /// The most attempts, if the client says so.
    pub reconsume_max: Option<i32>,
}

/// Memory that sends of one connection reuse.
#[derive(Debug, Default)]
pub struct Scratch {
    batch: Batch,
    properties: PropertiesBuf,
    /// The id of the message sent last, as the client gave it or as it was made here.
    pub uniq_key: String,
    /// Ids of a batch's messages.
    ids: Vec<u8>,
    /// Messages of a batch that are to be stored.
    new: Vec<batch::New>,
    /// What became of each message of the last batch.
    pub sent: Vec<Sent>,
}

/// What became of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// First byte behind its record: the answer may be given once this is settled.
    pub end: PhyOffset,
    /// Whether the client wants to wait for that.
    pub waits: bool,
    /// Where its record is.
    pub phy: PhyOffset,
    /// The queue that the client is told.
    pub queue_id: QueueId,
    /// The number in it; of a half, in the half queue.
    pub queue_offset: QueueOffset,
    /// When a message that waits is due: it can be recalled until then.
    pub due: Option<Millis>,
}

/// Why a send was refused. Nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The topic is unknown, protected or cannot be made.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The broker is going off line.
    #[error(transparent)]
    Leaving(#[from] Leaving),
    /// The topic takes no messages.
    #[error("topic {topic} is not writable: change its permission, or send elsewhere")]
    NotWritable {
        /// The topic.
        topic: TopicName,
    },
    /// The topic has no such queue.
    #[error("topic {topic} has {queues} queues, there is no queue {asked}: refresh the route")]
    NoSuchQueue {
        /// The topic.
        topic: TopicName,
        /// Queues it has.
        queues: u32,
        /// The queue that was asked for.
        asked: i32,
    },
    /// The queue is sealed or gone, and the message belongs into an order of which this broker cannot say where it goes on.
    #[error(
        "queue {queue} of topic {topic} takes no more messages, {queues} queues do: refresh the route and send again"
    )]
    Sealed {
        /// The topic.
        topic: TopicName,
        /// The queue that was asked for.
        queue: QueueId,
        /// Queues that are written.
        queues: u32,
    },
    /// The topic is for messages of another type, and checks them.
    #[error("topic {topic} takes messages of type {takes}, this one is {found}: send it to another topic")]
    Type {
        /// The topic.
        topic: TopicName,
        /// What it takes.
        takes: MessageType,
        /// What the message is.
        found: MessageType,
    },
    /// The body is too long.
    #[error("the body is {size} bytes, the limit is {limit}: send less or raise --max-message-size")]
    BodyTooLarge {
        /// Bytes of the body.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// A retry topic takes no batches.
    #[error("{topic} takes no batches: send the messages one by one")]
    BatchNotAllowed {
        /// The topic.
        topic: TopicName,
    },
    /// The batch cannot be read.
    #[error("the batch is damaged: {0}")]
    BadBatch(#[from] DecodeError),
    /// The batch is empty.
    #[error("the batch holds no message: send at least one")]
    EmptyBatch,
    /// The record format has no room for it.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The transaction cannot begin.
    #[error(transparent)]
    Begin(#[from] BeginError),
    /// The retry cannot be taken.
    #[error(transparent)]
    Retry(#[from] SendBackError),
    /// The message cannot wait as it asks to.
    #[error(transparent)]
    Timer(#[from] TimerError),
    /// A rate is used up.
    #[error(transparent)]
    Limited(#[from] Limited),
    /// The log refused it.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// A file of the queue cannot be opened.
    #[error("cannot open the queue's files")]
    Queue(#[from] io::Error),
    /// The first send of the same id cannot be read.
    #[error("the first send of this message cannot be read")]
    Earlier(#[from] ReadError),
}

/// Puts messages into the log.
#[derive(Debug)]
pub struct Publisher {
    store: Arc<Store>,
    clock: Arc<dyn Clock>,
    topics: Arc<Topics>,
    transactions: Arc<Transactions>,
    retries: Arc<Retries>,
    drain: Arc<Drain>,
    flow: Arc<Flow>,
    levels: Levels,
    /// Most bytes of a body, or of a batch.
    body_bytes_max: usize,
    cluster: String,
    /// How long producers may go by a route from before a change of the number of queues.
    scale_grace: Duration,
    /// Ids for messages that come without one.
    uniq_keys: UniqKeys,
}

impl Publisher {
    /// A publisher over its neighbours.
    #[expect(clippy::too_many_arguments, reason = "each is a neighbour or a setting; it is called once")]
    pub fn new(
        store: Arc<Store>,
        clock: Arc<dyn Clock>,
        topics: Arc<Topics>,
        transactions: Arc<Transactions>,
        retries: Arc<Retries>,
        drain: Arc<Drain>,
        flow: Arc<Flow>,
        levels: Levels,
        body_bytes_max: usize,
        (cluster, scale_grace): (String, Duration),
        address: std::net::IpAddr,
    ) -> Self {
        let uniq_keys = UniqKeys::new(address, std::process::id(), fastrand::u32(..));
        Self {
            store,
            clock,
            topics,
            transactions,
            retries,
            drain,
            flow,
            levels,
            body_bytes_max,
            cluster,
            scale_grace,
            uniq_keys,
        }
    }

    /// Appends one message.
    pub fn send(&self, incoming: &Incoming<'_>, scratch: &mut Scratch) -> Result<Sent, SendError> {
        self.check_size(incoming.body.len())?;
        let named =
            self.topics.resolve_for_send(incoming.topic, incoming.default_topic, incoming.default_queues)?;
        let toll = self.toll(&named, incoming.producers)?;
        let hot = incoming.properties.scan();
        let (topic, dead) = match named.kind {
            TopicKind::Retry => {
                match self.retries.direct(&named.name, incoming.reconsume_times, incoming.reconsume_max)? {
                    DirectRetry::Retry => (named, false),
                    DirectRetry::Dead(name) => {
                        let unknown = || TopicError::NotExist(name.to_string());
                        (self.topics.get(name.as_str()).ok_or_else(unknown)?, true)
                    }
                }
            }
            _ => (named, false),
        };
        self.check_type(&topic, incoming.properties, &hot)?;
        let queue_id = self.pick_queue(&topic, incoming.queue_id, dead, incoming.properties, &hot)?;
        let mut properties = std::mem::take(&mut scratch.properties);
        self.fill_properties(&mut properties, incoming, &hot, dead, &mut scratch.uniq_key);
        let sent = self.store_one(&topic, queue_id, incoming, &hot, dead, &mut properties, scratch);
        scratch.properties = properties;
        scratch.batch.clear();
        if sent.is_ok() {
            toll.pay(1, incoming.body.len());
        }
        sent
    }

    /// Whether the rates of a topic and of who sends to it let one more message pass. Those of the system, retries among
    /// them, have none: what they refuse would be lost.
    fn toll(&self, topic: &Topic, producers: &str) -> Result<Toll, Limited> {
        if topic.kind != TopicKind::User {
            return Ok(Toll::default());
        }
        let taking = self.flow.limiter(Subject::Topic, topic.name.as_str(), &topic.rates);
        let sending = if self.flow.limits_producers() || self.retries.groups.limits_producers() {
            let group = self.retries.groups.get(producers);
            let own = group.map(|group| group.settings.produce).unwrap_or_default();
            self.flow.limiter(Subject::Producers, producers, &own)
        } else {
            None
        };
        if taking.is_none() && sending.is_none() || self.topics.is_system(topic.name.as_str()) {
            return Ok(Toll::default());
        }
        self.flow.admit([taking, sending])
    }

    /// Decides where the record goes and appends it, unless it was appended before.
    fn store_one(
        &self,
        topic: &Topic,
        queue_id: QueueId,
        incoming: &Incoming<'_>,
        hot: &HotProperties<'_>,
        dead: bool,
        properties: &mut PropertiesBuf,
        scratch: &mut Scratch,
    ) -> Result<Sent, SendError> {
        let is_half = hot.is_half() && incoming.reconsume_times == 0;
        let level = hot.delay_level.and_then(|level| self.levels.level(level)).filter(|_| !dead);
        let timer = self.timer_of(hot, properties, level.is_some() || dead)?;
        let mut due = None;
        let mut sys_flag = incoming.sys_flag.with_transaction(TransactionFlag::None);
        let queue = if is_half {
            let half = self.transactions.begin(
                topic.name.as_str(),
                queue_id,
                incoming.sys_flag,
                properties.view(),
            )?;
            *properties = half.properties;
            sys_flag = half.sys_flag;
            half.queue
        } else if let Some(level) = level {
            let (name, id) = timer::retarget(properties, level, topic.name.as_str(), queue_id);
            due = Some(self.clock.now().plus(self.levels.delay_ms(level)));
            self.store.queue(&name, id)?
        } else if let Some(at) = timer {
            let (name, id) = timer::retarget_timer(properties, at, topic.name.as_str(), queue_id);
            due = Some(at);
            self.store.queue(&name, id)?
        } else {
            self.queue_of(topic, queue_id)?
        };
        if timer.is_some() {
            timer::check_room(properties)?;
        }
        let draft = draft(incoming, &queue, sys_flag, properties.as_bytes(), incoming.body, incoming.flag);
        scratch.batch.clear();
        scratch.batch.push(&queue, &draft)?;
        let key = Self::dedup_topic(topic).map(|topic| topic.key(&scratch.uniq_key));
        let mut admission = key.map(|key| (key, self.store.dedup().admit()));
        if let Some((key, admission)) = &admission
            && let Some(earlier) = admission.earlier(*key)
            // Who sends it again after a rollback wants to try again: a second transaction shows nothing twice.
            && !(is_half && self.transactions.was_rolled_back(earlier))
        {
            let again = Again { topic, uniq_key: &scratch.uniq_key, body: incoming.body, is_half };
            if let Some(sent) = self.answer_again(earlier, &again)? {
                return Ok(Sent { waits: hot.waits_for_store(), ..sent });
            }
        }
        // A resend of what was stored before was answered above. What consumers send back stays with its broker.
        if topic.kind != TopicKind::Retry && !dead {
            self.drain.check()?;
        }
        self.store.check_room()?;
        let appended = self.store.append(&mut scratch.batch)?;
        let Some(placed) = scratch.batch.placed().first().copied() else {
            return Err(SendError::EmptyBatch);
        };
        if let Some((key, admission)) = &mut admission {
            admission.stored(*key, placed.phy);
        }
        Ok(Sent {
            end: appended.end,
            waits: hot.waits_for_store(),
            phy: placed.phy,
            queue_id,
            queue_offset: placed.queue_offset,
            due,
        })
    }

    /// When the message is due, if it asks for a time of its own. What a timer noted in it before goes.
    fn timer_of(
        &self,
        hot: &HotProperties<'_>,
        properties: &mut PropertiesBuf,
        has_level: bool,
    ) -> Result<Option<Millis>, TimerError> {
        if !hot.is_timer() && hot.bad_timer.is_none() && hot.timer_out_ms.is_none() {
            return Ok(None);
        }
        if has_level {
            timer::forget_asked(properties);
        }
        let due = if has_level {
            None
        } else {
            timer::asked(hot, properties.view(), self.clock.now(), self.levels.max_delay_ms())?
        };
        timer::forget_timer(properties);
        Ok(due)
    }

    fn check_size(&self, size: usize) -> Result<(), SendError> {
        let limit = self.body_bytes_max;
        if size > limit { Err(SendError::BodyTooLarge { size, limit }) } else { Ok(()) }
    }

    fn queue_of(&self, topic: &Topic, id: QueueId) -> io::Result<Arc<Queue>> {
        self.store.queue(&topic.name, id)
    }

    /// The stored properties: the client's, and what the broker adds to every message.
    fn fill_properties(
        &self,
        out: &mut PropertiesBuf,
        incoming: &Incoming<'_>,
        hot: &HotProperties<'_>,
        dead: bool,
        uniq_key: &mut String,
    ) {
        out.assign(incoming.properties, ADDED_PROPERTIES);
        if hot.pop_ck.is_some() {
            out.remove(keys::POP_CK);
        }
        uniq_key.clear();
        if let Some(key) = hot.uniq_key {
            uniq_key.push_str(key.as_str());
        } else {
            self.uniq_keys.next_into(self.clock.now(), uniq_key);
            out.push(keys::UNIQ_KEY, uniq_key);
        }
        if dead {
            make_dead(out);
        }
        if !hot.has_region {
            out.push(keys::MSG_REGION, REGION);
        }
        if !hot.has_trace_on {
            out.push(keys::TRACE_ON, "true");
        }
        if !hot.has_cluster {
            out.push(keys::CLUSTER, &self.cluster);
        }
    }

    /// What makes the keys under which resends are found; `None` where they are not looked for.
    fn dedup_topic(topic: &Topic) -> Option<DedupTopic> {
        let wanted = topic.kind == TopicKind::User && topic.dedup;
        wanted.then(|| DedupTopic::new(topic.name.as_str()))
    }
}

fn draft<'a>(
    incoming: &Incoming<'_>,
    queue: &'a Queue,
    sys_flag: SysFlag,
    properties: &'a [u8],
    body: &'a [u8],
    flag: i32,
) -> RecordDraft<'a> {
    RecordDraft {
        topic: queue.topic().as_str(),
        queue_id: queue.id(),
        flag,
        sys_flag,
        born_at: incoming.born_at,
        born_host: incoming.born_host,
        store_host: incoming.store_host,
        reconsume_times: incoming.reconsume_times,
        prepared_offset: PhyOffset::ZERO,
        body,
        properties,
        append_crc: true,
    }
}
