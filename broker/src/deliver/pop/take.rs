//! Takes messages for a pop: looks at the queues, decides, logs what was taken, and reads it.
//!
//! Looking takes no lock for long. Whether the queues are still as they were found is asked again when what is taken is
//! logged; if another pop was faster, the queues are looked at once more.

use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicKind, TopicName};
use gantry_proto::receipt::PoppedFrom;

use super::record::{Change, Delivery, Lease, Popped};
use super::table::{Table, View};
use super::{PopError, Pops, QUEUE_MAX};
use crate::deliver::filter::{Filter, Verdict};
use crate::deliver::pull::{BYTES_MAX, Looks, scan_of};
use crate::groups::offsets::{self, Key};
use crate::state;
use crate::store::{Batch, LogRuns, Queue, QueueEntry, ReadError};

/// Looks of one request: others were faster, or nothing matched so far.
const LOOKS_MAX: usize = 16;
/// Of a hundred pops, so many look at the retry topic before all others: it must not wait for an empty topic.
const RETRY_FIRST_PERCENT: u32 = 20;
/// The queue of retry topics.
const RETRY_QUEUE: QueueId = QueueId::ZERO;

/// Which queues of the topic are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// One.
    Queue(QueueId),
    /// All of them, so many.
    All(u32),
}

/// Where a group begins in a queue that it has never consumed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the first message.
    First,
    /// With the last one.
    Last,
}

/// What a pop asks for.
#[derive(Clone, Debug)]
pub struct PopRequest {
    /// Who.
    pub group: GroupName,
    /// Of which topic.
    pub topic: TopicName,
    /// Of which of its queues.
    pub wanted: Wanted,
    /// Messages, at the most.
    pub messages_max: usize,
    /// For how long nobody else gets them, in milliseconds.
    pub invisible_ms: u32,
    /// Where a new group begins.
    pub start: Start,
    /// Which messages are wanted.
    pub filter: Filter,
    /// In order or not.
    pub delivery: Delivery,
    /// Id of the request, if it is one for messages in order.
    pub attempt: Option<Arc<str>>,
}

impl PopRequest {
    /// The retry topic that is popped from as well; none for a pop from a retry topic.
    pub fn retry_topic(&self) -> Result<Option<TopicName>, PopError> {
        if self.topic.kind() == TopicKind::Retry {
            return Ok(None);
        }
        let name = TopicName::pop_retry(&self.group, &self.topic);
        name.map(Some).map_err(|why| PopError::RetryName {
            group: self.group.clone(),
            topic: self.topic.clone(),
            why,
        })
    }
}

/// Messages of one queue in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoppedQueue {
    /// Of which topic.
    pub from: PoppedFrom,
    /// The queue.
    pub queue: QueueId,
    /// Offset of each message, and how often it was popped from there before.
    pub messages: Vec<(QueueOffset, u32)>,
}

/// What was taken.
#[derive(Debug)]
pub struct Found {
    /// When.
    pub popped_at: Millis,
    /// From where.
    pub queues: Vec<PoppedQueue>,
    /// The messages, queue by queue.
    pub messages: LogRuns,
    /// Messages that are left.
    pub rest: u64,
    /// The answer may be given when the log is safe up to here.
    pub end: PhyOffset,
}

/// What became of a pop.
#[derive(Debug)]
pub enum Outcome {
    /// There are messages.
    Found(Found),
    /// There are none for now.
    Nothing {
        /// Messages that are in the queues, but kept back by others.
        rest: u64,
    },
    /// None was found so far: pop again at once.
    Again,
}

/// What is to be taken from one queue.
#[derive(Debug)]
struct Pick {
    key: Key,
    from: PoppedFrom,
    queue: Option<Arc<Queue>>,
    /// How the queue was found.
    view: Option<View>,
    /// Where the group's next pop begins.
    next: QueueOffset,
    /// What is taken, and how often it was before: first what was popped already.
    entries: Vec<(QueueEntry, u32)>,
    /// How many of them were popped already.
    again: usize,
}

impl Pick {
    fn again(&self) -> Vec<QueueOffset> {
        self.entries.iter().take(self.again).map(|(entry, _)| entry.at).collect()
    }

    fn fresh(&self) -> usize {
        self.entries.len() - self.again
    }
}

/// What one look at all queues has found.
#[derive(Debug, Default)]
struct Plan {
    picks: Vec<Pick>,
    messages: usize,
    bytes: usize,
    rest: u64,
    /// A queue has more than was looked at.
    is_cut: bool,
    /// A queue has messages that were not taken for want of room: so many are in flight, and so many may be.
    full: Option<(usize, usize)>,
}

impl Pops {
    /// Takes messages. What is found must be given as the answer when the log is safe up to its `end`; the caller
    /// [drives](crate::store::Store::drive) the store. `memory` is used for the messages.
    pub fn pop(&self, request: &PopRequest, memory: LogRuns) -> Result<Outcome, PopError> {
        let retry = request.retry_topic()?;
        for _ in 0..LOOKS_MAX {
            let now = self.with.store.clock().now();
            let plan = self.look(request, retry.as_ref(), now)?;
            if plan.picks.is_empty() {
                if let Some((in_flight, max)) = plan.full {
                    return Err(PopError::Full { in_flight, max });
                }
                return Ok(Outcome::Nothing { rest: plan.rest });
            }
            let Some(end) = self.take(request, now, &plan)? else { continue };
            if plan.messages > 0 {
                let found = self.read(&plan, now, end, memory);
                let rest = plan.rest;
                return Ok(if found.messages.is_empty() {
                    Outcome::Again
                } else {
                    Outcome::Found(Found { rest, ..found })
                });
            }
            if !plan.is_cut {
                return Ok(Outcome::Nothing { rest: plan.rest });
            }
        }
        Ok(Outcome::Again)
    }

    /// Whether a pop might find something. To be asked when one that found nothing is about to wait: what came since
    /// woke nobody.
    pub fn has_news(&self, request: &PopRequest) -> bool {
        let Ok(retry) = request.retry_topic() else { return false };
        let now = self.with.store.clock().now();
        sources(request, retry.as_ref(), false).into_iter().any(|(topic, id, _)| {
            let Some(queue) = self.with.store.find_queue(topic.as_str(), id) else { return false };
            let key = Key { group: request.group.clone(), topic, queue: id };
            let view = self.table().look(&key, request.delivery, request.attempt.as_deref(), now);
            match view {
                Some(view) => {
                    let is_open = !view.blocked && view.in_flight < QUEUE_MAX;
                    !view.again.is_empty() || is_open && queue.max() > view.next.max(queue.min())
                }
                None => queue.max() > queue.min(),
            }
        })
    }

    /// Messages that a pop of these queues would find, without taking them.
    pub fn peek(&self, request: &PopRequest, memory: LogRuns) -> Result<Found, PopError> {
        let retry = request.retry_topic()?;
        let now = self.with.store.clock().now();
        let plan = self.look(request, retry.as_ref(), now)?;
        let found = self.read(&plan, now, PhyOffset::ZERO, memory);
        Ok(Found { rest: plan.rest + found.messages.messages() as u64, ..found })
    }

    fn look(&self, request: &PopRequest, retry: Option<&TopicName>, now: Millis) -> Result<Plan, PopError> {
        let mut plan = Plan::default();
        let retry_first = fastrand::u32(..100) < RETRY_FIRST_PERCENT;
        for (topic, queue, from) in sources(request, retry, retry_first) {
            let key = Key { group: request.group.clone(), topic, queue };
            if let Some(to) = self.with.offsets.pending_reset(&key) {
                self.begin_at(&key, to)?;
            }
            self.look_at(request, key, from, now, &mut plan)?;
        }
        Ok(plan)
    }

    /// Looks at one queue.
    fn look_at(
        &self,
        request: &PopRequest,
        key: Key,
        from: PoppedFrom,
        now: Millis,
        plan: &mut Plan,
    ) -> Result<(), PopError> {
        let queue = self.with.store.find_queue(key.topic.as_str(), key.queue);
        let (min, max) =
            queue.as_ref().map_or((QueueOffset::ZERO, QueueOffset::ZERO), |queue| (queue.min(), queue.max()));
        let (view, rooms) = {
            let table = self.table();
            let view = table.look(&key, request.delivery, request.attempt.as_deref(), now);
            if view.is_none() && table.queues() >= self.with.queues_max {
                return Err(PopError::TooManyQueues { max: self.with.queues_max });
            }
            let taken = view.as_ref().map_or(0, |view| view.in_flight);
            let rooms = [(table.remembered(), self.with.in_flight_max), (taken, QUEUE_MAX)];
            (view, rooms)
        };
        let committed = self.with.offsets.get(key.group.as_str(), key.topic.as_str(), key.queue);
        let begin = match (&view, committed) {
            // Whoever pulls for the group may be further.
            (Some(view), committed) => view.next.max(committed.unwrap_or_default()),
            (None, Some(committed)) => committed,
            (None, None) if request.start == Start::Last && from == PoppedFrom::Topic => max.back(1),
            (None, None) => min,
        };
        let next = begin.max(min);
        let mut pick = Pick { key, from, queue, view, next, entries: Vec::new(), again: 0 };
        let is_blocked = pick.view.as_ref().is_some_and(|view| view.blocked);
        if !is_blocked {
            pick_again(request, &mut pick, plan);
            self.pick_new(request, &mut pick, rooms, plan);
        }
        plan.rest += max.since(pick.next);
        let known = pick.view.as_ref().map(|view| view.next);
        // A new group's place is fixed by its first look: later it would be after what came meanwhile.
        let is_fixed = known.is_none() && request.start == Start::Last && from == PoppedFrom::Topic;
        if !pick.entries.is_empty() || known.map_or(pick.next > begin || is_fixed, |known| pick.next > known)
        {
            plan.picks.push(pick);
        }
        Ok(())
    }

    /// Picks messages that nobody of the group has got.
    fn pick_new(&self, request: &PopRequest, pick: &mut Pick, rooms: [(usize, usize); 2], plan: &mut Plan) {
        let Some(queue) = &pick.queue else { return };
        if pick.next >= queue.max() {
            return;
        }
        // What is given again comes first, all of it.
        let is_left = pick.view.as_ref().is_some_and(|view| view.again.len() > pick.again)
            && request.delivery == Delivery::Orderly;
        let wanted = request.messages_max.saturating_sub(plan.messages);
        if wanted == 0 || is_left || plan.bytes >= BYTES_MAX {
            return;
        }
        if let Some(full) = rooms.into_iter().find(|(taken, max)| taken >= max) {
            plan.full = Some(full);
            return;
        }
        let wanted = rooms.into_iter().fold(wanted, |wanted, (taken, max)| wanted.min(max - taken));
        let everything = Filter::All;
        // What is retried was wanted once.
        let filter = if pick.from == PoppedFrom::Topic { &request.filter } else { &everything };
        let mut entries = Vec::new();
        self.with.store.entries(queue, pick.next, scan_of(filter, wanted), &mut entries);
        let (mut new, mut looks) = (0, Looks::new(filter, None));
        for entry in entries {
            let verdict = if entry.is_blank() { Verdict::Unwanted } else { filter.by_entry(entry.tags_code) };
            if verdict != Verdict::Unwanted {
                let is_over = plan.bytes + entry.size as usize > BYTES_MAX && plan.messages > 0;
                if new >= wanted || is_over || looks.are_enough() {
                    break;
                }
                if verdict == Verdict::Wanted || self.is_wanted(queue, &entry, &mut looks) {
                    new += 1;
                    plan.messages += 1;
                    plan.bytes += entry.size as usize;
                    pick.entries.push((entry, 0));
                }
            }
            pick.next = entry.at + 1;
        }
        plan.is_cut |= pick.next < queue.max();
    }

    /// Whether the properties of a message are such as are wanted. One that cannot be read is not.
    fn is_wanted(&self, queue: &Queue, entry: &QueueEntry, looks: &mut Looks<'_>) -> bool {
        match self.with.store.message(queue, entry) {
            Ok(record) => record.is_some_and(|record| looks.at(&record)),
            Err(error) => {
                tracing::error!(topic = %queue.topic(), queue = %queue.id(), at = %entry.at, %error, "a message cannot be popped; it is passed over");
                false
            }
        }
    }

    /// Logs what is taken. `None` when a queue is no longer as it was found.
    fn take(&self, request: &PopRequest, now: Millis, plan: &Plan) -> Result<Option<PhyOffset>, PopError> {
        let mut writer = self.writer();
        {
            let mut table = self.table();
            let attempt = request.attempt.as_deref();
            let is_as_found = |pick: &Pick| {
                let view = table.look(&pick.key, request.delivery, attempt, now);
                let state = |view: &View| (view.next, view.blocked, view.again.clone());
                view.as_ref().map(state) == pick.view.as_ref().map(state)
            };
            if !plan.picks.iter().all(is_as_found) {
                return Ok(None);
            }
            plan.picks.iter().for_each(|pick| reserve(&mut table, pick));
        }
        let lease = Lease { popped_at: now, invisible_ms: request.invisible_ms };
        let popped = |pick: &Pick| {
            Change::Popped(Popped {
                key: pick.key.clone(),
                next: pick.next,
                lease,
                delivery: request.delivery,
                attempt: request.attempt.clone(),
                offsets: pick.entries.iter().map(|(entry, _)| entry.at).collect(),
            })
        };
        let changes: Vec<_> = plan.picks.iter().map(popped).collect();
        match self.append(&mut writer, &changes) {
            Ok(end) => Ok(Some(end)),
            Err(error) => {
                let mut table = self.table();
                for pick in &plan.picks {
                    let before = pick.view.as_ref().map_or(QueueOffset::ZERO, |view| view.next);
                    table.unreserve(&pick.key, before, pick.fresh(), &pick.again());
                }
                Err(error)
            }
        }
    }

    /// An operator has set where the group goes on.
    fn begin_at(&self, key: &Key, to: QueueOffset) -> Result<(), PopError> {
        let mut writer = self.writer();
        // Another pop may have been faster.
        if self.with.offsets.pending_reset(key) != Some(to) {
            return Ok(());
        }
        let before = {
            let mut table = self.table();
            let before = table.look(key, Delivery::Concurrent, None, Millis::ZERO).map(|view| view.next);
            table.reserve(key, to, 0, &[]);
            before
        };
        if let Err(error) = self.append_begin(&mut writer, key, to) {
            self.table().unreserve(key, before.unwrap_or_default(), 0, &[]);
            return Err(error);
        }
        self.with.offsets.take_reset(key, to);
        tracing::info!(group = %key.group, topic = %key.topic, queue = %key.queue, %to, "the group pops from where an operator set it");
        Ok(())
    }

    /// In one append: a crash must not have the reset followed twice.
    fn append_begin(&self, writer: &mut Batch, key: &Key, to: QueueOffset) -> Result<PhyOffset, PopError> {
        let store = &self.with.store;
        let queue = store.queue(&TopicName::state(), QueueId::ZERO).map_err(PopError::StateQueue)?;
        let followed = offsets::record::encode(&[offsets::Change::Followed(key.clone())]);
        writer.clear();
        writer.push(&queue, &state::draft(&followed, store.clock().now()))?;
        self.append_with(writer, &[Change::Begun(key.clone(), to)])
    }

    /// Reads what was taken. A message that cannot be read is passed over here; it stays in flight until its lease
    /// ends, and is told then.
    fn read(&self, plan: &Plan, popped_at: Millis, end: PhyOffset, memory: LogRuns) -> Found {
        let mut queues = Vec::new();
        let mut reading = None;
        let mut memory = Some(memory);
        for pick in &plan.picks {
            let Some(queue) = pick.queue.as_deref() else { continue };
            let messages = reading
                .get_or_insert_with(|| self.with.store.messages(queue, memory.take().unwrap_or_default()));
            messages.turn_to(queue);
            let mut read = Vec::with_capacity(pick.entries.len());
            for (entry, count) in &pick.entries {
                match messages.add(entry) {
                    Ok(true) => read.push((entry.at, *count)),
                    Ok(false) => {}
                    Err(error @ ReadError::Gone { .. }) => {
                        tracing::debug!(topic = %queue.topic(), queue = %queue.id(), at = %entry.at, %error, "a popped message was just cleaned away");
                    }
                    Err(error) => {
                        tracing::error!(topic = %queue.topic(), queue = %queue.id(), at = %entry.at, %error, "a popped message cannot be served");
                    }
                }
            }
            if !read.is_empty() {
                queues.push(PoppedQueue { from: pick.from, queue: queue.id(), messages: read });
            }
        }
        let messages = reading.map_or_else(LogRuns::default, |messages| messages.runs);
        Found { popped_at, queues, messages, rest: 0, end }
    }
}

/// Picks what may be given again where it is.
fn pick_again(request: &PopRequest, pick: &mut Pick, plan: &mut Plan) {
    let (Some(view), Some(queue)) = (&pick.view, &pick.queue) else { return };
    for (offset, count) in &view.again {
        if plan.messages >= request.messages_max || plan.bytes >= BYTES_MAX {
            return;
        }
        if let Some(entry) = queue.entry(*offset) {
            plan.messages += 1;
            plan.bytes += entry.size as usize;
            pick.entries.push((entry, *count));
            pick.again += 1;
        }
    }
}

fn reserve(table: &mut Table, pick: &Pick) {
    table.reserve(&pick.key, pick.next, pick.fresh(), &pick.again());
}

/// The queues that a pop looks at, in order: those of the topic from a random one on, and the retry queue before or
/// behind them.
fn sources(
    request: &PopRequest,
    retry: Option<&TopicName>,
    retry_first: bool,
) -> Vec<(TopicName, QueueId, PoppedFrom)> {
    let from = if request.topic.kind() == TopicKind::Retry { PoppedFrom::Retry } else { PoppedFrom::Topic };
    let ids: Vec<QueueId> = match request.wanted {
        Wanted::Queue(id) => vec![id],
        Wanted::All(count) => {
            let first = if count == 0 { 0 } else { fastrand::u32(..count) };
            (0..count).map(|number| QueueId::new((first + number) % count)).collect()
        }
    };
    let mut sources: Vec<_> = ids.into_iter().map(|id| (request.topic.clone(), id, from)).collect();
    if let Some(retry) = retry {
        let at = if retry_first { 0 } else { sources.len() };
        sources.insert(at, (retry.clone(), RETRY_QUEUE, PoppedFrom::Retry));
    }
    sources
}
