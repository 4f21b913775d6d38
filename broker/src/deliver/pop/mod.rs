//! Popping: a group's clients take messages of a topic without owning queues, and acknowledge each message.
//!
//! What was popped is *in flight* until it is acknowledged. The [`table`] of messages in flight is a
//! projection of the log: each pop and each ack is a record (`record.rs`) that is as safe as the policy promises
//! before it is answered. So a receipt handle stays valid over a crash, and an answered ack is kept. There is no
//! revive topic that could lag: one task sleeps until the next invisible time ends.
//!
//! A message that is not acknowledged in time is **stored again** in the retry topic `%RETRY%group_topic`, with one
//! more in its reconsume times; popped too often, in the group's dead-letter topic. Giving it again from where it lies
//! would be cheaper, but clients read the reconsume times from the message itself, whose bytes cannot change in the
//! log; the group's offset would stand still behind one bad message; and retention would eat it while it waits. A
//! copy has the count in its own bytes, lets the offset go on, and has the whole retention before it. It is what
//! Apache does, so that either broker finds the other's retries. Copy and record of the move are one append: a crash
//! between the two repeats a delivery and loses none.
//!
//! Messages popped **in order** stay where they are: their queue waits for them, and they are given again from there
//! with their count in the answer, where clients look for it then. With the order of keys ([`record::Delivery::ByKey`]) only the
//! messages of the same key wait: those of other keys behind them are given meanwhile (`select.rs`).
//!
//! Members that **subscribe differently** lose nothing: what one of them does not want and another does is *left* in the
//! queue for that one, and the group's offset stands at it. What is left does not hold the log: as any message that nobody
//! gets, it goes when its retention is over.
//!
//! Bounds: messages in flight over all groups (`limits.popped`) and for each queue ([`QUEUE_MAX`]), messages of a queue that are
//! left ([`table::LEFT_MAX`]), and queues that
//! groups pop from (`groups.max_offsets`).

#[cfg(test)]
mod keys_tests;
#[cfg(test)]
mod left_tests;
#[cfg(test)]
mod model_tests;
mod projection;
pub mod record;
mod revive;
mod select;
mod settle;
mod snapshot;
pub mod table;
mod take;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tier_tests;
mod turns;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_proto::ids::{PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, NameError, TopicName, topics as topic_names};
use gantry_proto::record::EncodeError;

use crate::deliver::polls::Polls;
use crate::deliver::scaling::Scaling;
use crate::groups::Groups;
use crate::groups::offsets::{Key, Offsets};
use crate::metrics::Metrics;
use crate::state;
use crate::store::retain::Hold;
use crate::store::{AppendError, Batch, Poisoned, Store};
use crate::topics::Topics;

pub use projection::PopProjection;
use projection::Shared;
use record::Change;
pub use settle::{Ack, Acked, Refused, Renewal, Renewed};
pub use table::Standing;
use table::Table;
pub use take::{Found, Outcome, PopRequest, PoppedQueue, Seen, Start, Wanted};
use turns::{LeftPlaces, Turns};

/// Messages in flight of one queue for one group, at the most.
pub const QUEUE_MAX: usize = 10_000;

/// The longest invisible time, in milliseconds: 12 hours, as in Apache's proxy.
pub const INVISIBLE_MS_MAX: u32 = 12 * 3600 * 1000;

/// Why nothing can be popped, acknowledged or put off now.
#[derive(Debug, thiserror::Error)]
pub enum PopError {
    /// Too much is in flight.
    #[error(
        "{in_flight} messages are popped and not acknowledged, the limit is {max}: acknowledge some, or raise limits.popped"
    )]
    Full {
        /// Messages in flight.
        in_flight: usize,
        /// The bound.
        max: usize,
    },
    /// Groups pop from too many queues.
    #[error(
        "groups pop from {max} queues, which is the limit: delete unused groups or raise groups.max_offsets"
    )]
    TooManyQueues {
        /// The bound.
        max: usize,
    },
    /// Refused messages could not be stored.
    #[error(
        "group {group} cannot pop from topic {topic}: the name of their retry topic would be wrong ({why})"
    )]
    RetryName {
        /// The group.
        group: GroupName,
        /// The topic.
        topic: TopicName,
        /// What is wrong.
        why: NameError,
    },
    /// The store refused the record.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The record cannot be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The log failed before the record was kept.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
    /// The state topic's queue cannot be opened.
    #[error("the queue of {} cannot be opened", topic_names::STATE)]
    StateQueue(#[source] io::Error),
}

/// What popping needs of its neighbours.
#[derive(Debug)]
pub struct Neighbours {
    /// The open store.
    pub store: Arc<Store>,
    /// Retry and dead-letter topics are made here.
    pub topics: Arc<Topics>,
    /// The groups' limits.
    pub groups: Arc<Groups>,
    /// The groups' offsets follow what is done.
    pub offsets: Arc<Offsets>,
    /// What may not be given yet while the number of queues changes.
    pub scaling: Arc<Scaling>,
    /// Whoever waits for an orderly queue is woken here.
    pub polls: Arc<Polls>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Most messages in flight.
    pub in_flight_max: usize,
    /// Most queues that groups pop from.
    pub queues_max: usize,
}

/// Popping before the store is open.
#[derive(Debug)]
pub struct Unstarted(Arc<Shared>);

/// Pops, acks and what becomes of messages that are not acknowledged.
#[derive(Debug)]
pub struct Pops {
    shared: Arc<Shared>,
    with: Neighbours,
    /// Serialises what is decided and appended: reservations are taken back in the order in which they were made.
    writer: Mutex<Batch>,
    /// First byte behind the newest record that was appended.
    logged_end: AtomicU64,
    /// Whose turn it is where queues stand for priorities.
    turns: Turns,
    /// Where looks at messages that were left go on.
    left_places: LeftPlaces,
    /// Keeps the log from the first message in flight on.
    hold: Mutex<Option<Hold>>,
}

/// Reads the snapshot in the directory `config`. The projection goes to the store; the rest starts when that is open.
pub fn load(
    config: &Path,
    polls: Arc<Polls>,
    metrics: Arc<Metrics>,
) -> io::Result<(PopProjection, Unstarted)> {
    let (projection, shared) = PopProjection::load(config, polls, metrics)?;
    Ok((projection, Unstarted(shared)))
}

impl Unstarted {
    /// Begins with what the recovered store has told the table.
    pub fn start(self, with: Neighbours) -> Arc<Pops> {
        let end = |key: &Key| {
            let queue = with.store.find_queue(key.topic.as_str(), key.queue);
            queue.map_or(QueueOffset::ZERO, |queue| queue.max())
        };
        let clamped = {
            let mut table = self.0.table();
            table.clamp_due(with.store.clock().now());
            table.touch_all();
            table.clamp(end)
        };
        for (key, end) in &clamped {
            tracing::warn!(
                group = %key.group, topic = %key.topic, queue = %key.queue, %end,
                "messages were popped beyond the end of their queue, which lost its newest messages; they are forgotten"
            );
        }
        let pops = Pops {
            shared: self.0,
            with,
            writer: Mutex::default(),
            logged_end: AtomicU64::new(0),
            turns: Turns::default(),
            left_places: LeftPlaces::default(),
            hold: Mutex::default(),
        };
        pops.hold_log();
        Arc::new(pops)
    }
}

impl Pops {
    /// Where the group is in a queue, if it pops from it.
    pub fn standing(&self, key: &Key) -> Option<Standing> {
        self.table().standing(key)
    }

    /// Messages in flight of all groups.
    pub fn in_flight(&self) -> usize {
        self.table().in_flight()
    }

    /// The retry topics that groups have for a topic.
    pub fn retry_topics_of(&self, topic: &TopicName) -> Vec<TopicName> {
        let groups = self.table().groups_of(topic);
        groups.iter().filter_map(|group| TopicName::pop_retry(group, topic).ok()).collect()
    }

    /// Whether the group pops from any queue.
    pub fn knows_group(&self, group: &GroupName) -> bool {
        self.table().knows_group(group)
    }

    /// Forgets a topic that was deleted.
    pub async fn remove_topic(&self, topic: &TopicName) -> Result<(), PopError> {
        if self.table().groups_of(topic).is_empty() {
            return Ok(());
        }
        self.log(&[Change::ForgetTopic(topic.clone())]).await
    }

    /// Forgets a group that was deleted.
    pub async fn remove_group(&self, group: &GroupName) -> Result<(), PopError> {
        if !self.table().knows_group(group) {
            return Ok(());
        }
        self.log(&[Change::ForgetGroup(group.clone())]).await
    }

    async fn log(&self, changes: &[Change]) -> Result<(), PopError> {
        let end = self.append(&mut self.writer(), changes)?;
        self.with.store.drive();
        Ok(self.with.store.dispatched(end).await?)
    }

    /// Appends one record; [`Store::drive`] is left to the caller.
    fn append(&self, writer: &mut Batch, changes: &[Change]) -> Result<PhyOffset, PopError> {
        writer.clear();
        self.append_with(writer, changes)
    }

    /// The same behind the records that the batch holds already.
    fn append_with(&self, writer: &mut Batch, changes: &[Change]) -> Result<PhyOffset, PopError> {
        let store = &self.with.store;
        let queue = store.queue(&TopicName::state(), QueueId::ZERO).map_err(PopError::StateQueue)?;
        let body = record::encode(changes);
        writer.push(&queue, &state::draft(&body, store.clock().now()))?;
        let end = store.append(writer)?.end;
        self.logged_end.store(end.get(), Ordering::Release);
        Ok(end)
    }

    /// Where the newest record ends: whoever waits for it knows what was decided so far.
    fn logged_end(&self) -> PhyOffset {
        PhyOffset::new(self.logged_end.load(Ordering::Acquire))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.shared.table()
    }

    fn writer(&self) -> MutexGuard<'_, Batch> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
