//! Changes of the number of queues while a topic is in use: consumers first, and nothing is left behind.
//!
//! **Fewer queues.** Those beyond are sealed ([`topics::scale`](crate::topics::scale)): producers leave them, consumers
//! read on. When every group that has offsets in them has read them to their ends, and no producer may go by the old route
//! any more, and what they sent by it can be seen, the read number follows the write number and the members are told. A group that has committed nothing in a
//! sealed queue by then has nothing to do there, unless that was empty when it was sealed: from then on its place is
//! there, at the end. A topic that no group has ever read keeps its sealed queues until their
//! messages are too old; so does one that a broadcasting group reads, for ten times the grace: how far its
//! members are is not known here.
//!
//! **More queues.** Before they can be written, each group that has offsets in the topic gets one in each new queue: its
//! end, which in a new one is 0. So whoever learns late of a queue misses nothing of it, wherever new groups start.
//!
//! **In order** (`gantry.scale=ordered`). Keys move between queues that are alike modulo the smaller number. Of the pair,
//! one is read first, the *leader*: the sealed one, or the one that was there before. A message in the other is given to
//! a group only when all older ones in its leaders were committed by that group ([`Scaling::limit`]). One that has
//! committed nothing there yet counts as having read nothing of it, until the grace is over. That is asked anew
//! with each look and counts messages of producers with an old route as well, so the order of a key that one producer
//! sends holds throughout. It ends as above; with more queues, when the grace is over and all groups have passed what
//! was in the leaders then.
//!
//! Only the numbers, the mode and what is under way are stored, with the topic; the rest follows from offsets and queues
//! and is found again after a crash.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_proto::ids::{PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicKind, TopicName};
use gantry_proto::remoting::body::heartbeat::MessageModel;
use gantry_proto::remoting::body::topic::TopicConfig;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::polls::Polls;
use crate::groups::members::Members;
use crate::groups::offsets::{CommitError, Key, Offsets};
use crate::store::{Queue, Store};
use crate::topics::scale::{Change, Haste, ScaleMode};
use crate::topics::{Topic, TopicError, Topics};

/// How often changes under way are looked at.
const ROUND: Duration = Duration::from_millis(200);
/// So many times the grace a broadcasting group keeps a sealed queue.
const BLIND_GRACES: u32 = 10;
/// So long after the grace, what was let in before its end is in the log.
const MARGIN: Duration = Duration::from_secs(2);

/// Why the number of queues was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ScaleError {
    /// The topic cannot be so.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The groups' offsets in the new queues could not be kept.
    #[error("the groups' offsets in the new queues are not kept, so there are none")]
    Offsets(#[from] CommitError),
}

/// What changes of queues need of their neighbours.
#[derive(Debug)]
pub struct Neighbours {
    /// The open store.
    pub store: Arc<Store>,
    /// The topics.
    pub topics: Arc<Topics>,
    /// Where groups stand.
    pub offsets: Arc<Offsets>,
    /// Who is told.
    pub members: Arc<Members>,
    /// Whoever waits for a message that may be given now is woken here.
    pub polls: Arc<Polls>,
    /// How long producers may go by a route from before a change.
    pub grace: Duration,
}

/// Changes of the number of queues.
#[derive(Debug)]
pub struct Scaling {
    with: Neighbours,
    /// Topics that may have a change under way. Held while a topic is declared, too: a look in between would miss it.
    under_way: Mutex<BTreeMap<TopicName, UnderWay>>,
    /// Whether some topic is changed in order, to spare every look the lock.
    in_order: AtomicBool,
    /// Changes that are done.
    settles: AtomicU64,
    wake: Notify,
}

/// What is known of a change besides what the topic says.
#[derive(Clone, Copy, Debug, Default)]
struct UnderWay {
    /// The end of the log when the grace and [`MARGIN`] were over.
    passed_at: Option<PhyOffset>,
}

impl Scaling {
    /// Goes on with what is under way.
    pub fn new(with: Neighbours) -> Self {
        let all = with.topics.all();
        let changing: Vec<_> = all.into_iter().filter(|topic| topic.change.is_some()).collect();
        let in_order = changing.iter().any(|topic| topic.scale == ScaleMode::Ordered);
        let under_way = changing.iter().map(|topic| (topic.name.clone(), UnderWay::default())).collect();
        Self {
            with,
            under_way: Mutex::new(under_way),
            in_order: AtomicBool::new(in_order),
            settles: AtomicU64::new(0),
            wake: Notify::new(),
        }
    }

    /// Creates a topic or changes it, as an operator says; consumers are ready for new queues before producers see them.
    pub async fn declare(&self, config: TopicConfig, haste: Haste) -> Result<Arc<Topic>, ScaleError> {
        let before = self.with.topics.get(&config.topic_name).filter(|topic| topic.kind == TopicKind::User);
        if let Some(before) = &before {
            self.prepare(before, &config, haste).await?;
        }
        let topic = {
            let mut under_way = self.under_way();
            // From now on every look asks, so that none is given too early while the topic changes.
            self.in_order.store(true, Ordering::SeqCst);
            let declared = self.with.topics.declare_with(config, haste);
            if let Ok(topic) = &declared
                && topic.change.is_some()
            {
                let is_same = before.as_ref().is_some_and(|before| before.change == topic.change);
                let known = under_way.entry(topic.name.clone()).or_default();
                *known = if is_same { *known } else { UnderWay::default() };
            }
            self.ask_less(&under_way);
            declared?
        };
        if before.is_some_and(|before| numbers(&before) != numbers(&topic)) {
            tracing::info!(
                topic = %topic.name, read = topic.read_queues(), write = topic.write_queues(),
                "the topic has other numbers of queues"
            );
            self.with.members.announce(&topic.name);
        }
        self.wake.notify_one();
        Ok(topic)
    }

    /// Gives each group of the topic an offset in the queues that are new to readers, and in those that are empty and are
    /// to be sealed: pops of an empty queue leave none, and a late message of a producer would be nobody's.
    async fn prepare(&self, before: &Topic, config: &TopicConfig, haste: Haste) -> Result<(), ScaleError> {
        let asked = |number: i32| u32::try_from(number).unwrap_or(0);
        let new =
            before.read_queues()..asked(config.read_queue_nums).min(crate::topics::QUEUES_MAX.unsigned_abs());
        let sealed = match haste {
            Haste::Wait => asked(config.write_queue_nums)..before.read_queues(),
            Haste::Force => 0..0,
        };
        let is_empty = |queue: &QueueId| {
            let found = self.with.store.find_queue(before.name.as_str(), *queue);
            found.is_none_or(|queue| queue.max() == queue.min())
        };
        let sealed = sealed.map(QueueId::new).filter(is_empty);
        let queues: Vec<_> = sealed.chain(new.map(QueueId::new)).collect();
        if queues.is_empty() {
            return Ok(());
        }
        let mut noted = false;
        for group in self.groups(&before.name) {
            for queue in queues.iter().copied() {
                let key = Key { group: group.clone(), topic: before.name.clone(), queue };
                if self.with.offsets.get(group.as_str(), before.name.as_str(), queue).is_none() {
                    self.with.offsets.note(key, self.end_of(&before.name, queue))?;
                    noted = true;
                }
            }
        }
        if noted {
            self.with.offsets.settle().await?;
        }
        Ok(())
    }

    /// Where in the log messages begin that a group may not have yet of this queue, because older ones of queues that are
    /// read before it are left. `None`: it may have all there are.
    pub fn limit(&self, key: &Key) -> Option<PhyOffset> {
        if !self.in_order.load(Ordering::SeqCst) {
            return None;
        }
        let topic = self.with.topics.get(key.topic.as_str())?;
        let leaders = topic.leaders(key.queue);
        let group = key.group.as_str();
        if leaders.is_empty()
            || key.group.is_system()
            || self.with.members.model_of(group) == Some(MessageModel::Broadcasting)
        {
            return None;
        }
        // What comes after this look at the leaders may come to them as well.
        let end = self.with.store.dispatched_offset();
        let left = leaders.into_iter().filter_map(|leader| self.first_left(group, &topic, leader));
        Some(left.fold(end, PhyOffset::min))
    }

    /// How many changes are done: what they kept back may be had now.
    pub fn settles(&self) -> u64 {
        self.settles.load(Ordering::SeqCst)
    }

    /// Where the first message lies that a group has not committed in a queue; `None` when it has all. One that has never
    /// committed anything there may be about to, until the grace is over, and then has nothing to do there.
    fn first_left(&self, group: &str, topic: &Topic, id: QueueId) -> Option<PhyOffset> {
        let queue = self.with.store.find_queue(topic.name.as_str(), id)?;
        let now = self.with.store.clock().now();
        let is_fresh = || topic.change.is_some_and(|change| change.is_fresh(now, self.with.grace));
        let at = match self.with.offsets.get(group, topic.name.as_str(), id) {
            Some(at) => at.max(queue.min()),
            None if is_fresh() => queue.min(),
            None => return None,
        };
        if at >= queue.max() { None } else { queue.entry(at).map(|entry| entry.phy) }
    }

    /// Looks at changes under way until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let changing: Vec<_> = self.under_way().keys().cloned().collect();
            for name in &changing {
                self.look_after(name);
            }
            let nap = async {
                if changing.is_empty() {
                    self.wake.notified().await;
                } else {
                    tokio::time::sleep(ROUND).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = nap => {}
            }
        }
    }

    /// Ends a topic's change if it is done; wakes whoever may go on.
    pub(super) fn look_after(&self, name: &TopicName) {
        let topic = self.with.topics.get(name.as_str());
        let Some((topic, change)) = topic.and_then(|topic| topic.change.map(|change| (topic, change))) else {
            let mut under_way = self.under_way();
            // It may have been declared meanwhile.
            if self.with.topics.get(name.as_str()).is_none_or(|topic| topic.change.is_none()) {
                under_way.remove(name);
            }
            self.ask_less(&under_way);
            return;
        };
        if !self.is_done(&topic, change) {
            if topic.scale == ScaleMode::Ordered {
                self.with.polls.wake_topic(name, topic.read_queues().max(topic.write_queues()));
            }
            return;
        }
        match self.with.topics.settle(name, change) {
            Ok(settled) => {
                let queues = settled.map_or(0, |settled| settled.read_queues());
                tracing::info!(topic = %name, queues, "the change of the topic's queues is done");
                // Before they are woken: who comes to wait now sees it, or is woken.
                self.settles.fetch_add(1, Ordering::SeqCst);
                self.with.polls.wake_topic(name, topic.read_queues());
                self.with.members.announce(name);
            }
            Err(error) => {
                tracing::error!(topic = %name, %error, "the topic's read number cannot follow; it is tried again");
            }
        }
    }

    fn is_done(&self, topic: &Topic, change: Change) -> bool {
        let now = self.with.store.clock().now();
        if change.is_fresh(now, self.with.grace + MARGIN) {
            return false;
        }
        // Producers that go by the old route are refused by now; what they sent before is in the log, but the queues have
        // what can be seen only.
        let passed_at = {
            let mut under_way = self.under_way();
            let known = under_way.entry(topic.name.clone()).or_default();
            *known.passed_at.get_or_insert_with(|| self.with.store.max_offset())
        };
        let is_blind = change.is_fresh(now, self.with.grace * BLIND_GRACES);
        self.with.store.dispatched_offset() >= passed_at
            && self.is_drained(topic, is_blind)
            && self.is_passed(topic, change, passed_at)
    }

    /// Whether all groups have what is in the sealed queues.
    fn is_drained(&self, topic: &Topic, is_blind: bool) -> bool {
        let sealed = (topic.write_queues()..topic.read_queues()).map(QueueId::new);
        let name = topic.name.as_str();
        let queues: Vec<Arc<Queue>> = sealed
            .filter_map(|id| self.with.store.find_queue(name, id))
            .filter(|queue| queue.max() > queue.min())
            .collect();
        if queues.is_empty() {
            return true;
        }
        let groups = self.groups(&topic.name);
        let has = |group: &GroupName, queue: &Arc<Queue>| {
            self.with.offsets.get(group.as_str(), name, queue.id()).is_none_or(|at| at >= queue.max())
        };
        let broadcasts = |group: &GroupName| {
            self.with.members.model_of(group.as_str()) == Some(MessageModel::Broadcasting)
        };
        !groups.is_empty()
            && queues.iter().all(|queue| groups.iter().all(|group| has(group, queue)))
            && !(is_blind && self.with.members.groups_subscribing(name).iter().any(broadcasts))
    }

    /// With more queues, in order: whether all groups have what was in the leaders when the log ended at `passed_at`.
    fn is_passed(&self, topic: &Topic, change: Change, passed_at: PhyOffset) -> bool {
        if topic.scale != ScaleMode::Ordered || topic.write_queues() <= change.from {
            return true;
        }
        let groups = self.groups(&topic.name);
        (0..change.from).map(QueueId::new).all(|leader| {
            let left = |group: &GroupName| self.first_left(group.as_str(), topic, leader);
            groups.iter().filter_map(left).all(|left| left >= passed_at)
        })
    }

    /// Groups with offsets in the topic, but for the system's own.
    fn groups(&self, topic: &TopicName) -> BTreeSet<GroupName> {
        let all = self.with.offsets.groups_of_topic(topic.as_str()).into_iter();
        all.filter(|group| !group.is_system()).collect()
    }

    fn end_of(&self, topic: &TopicName, queue: QueueId) -> QueueOffset {
        self.with.store.find_queue(topic.as_str(), queue).map_or(QueueOffset::ZERO, |queue| queue.max())
    }

    fn ask_less(&self, under_way: &BTreeMap<TopicName, UnderWay>) {
        let in_order = under_way.keys().any(|name| {
            let topic = self.with.topics.get(name.as_str());
            topic.is_some_and(|topic| topic.change.is_some() && topic.scale == ScaleMode::Ordered)
        });
        self.in_order.store(in_order, Ordering::SeqCst);
    }

    fn under_way(&self) -> MutexGuard<'_, BTreeMap<TopicName, UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn numbers(topic: &Topic) -> (u32, u32) {
    (topic.read_queues(), topic.write_queues())
}
