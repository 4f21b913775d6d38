//! Takes messages for a pop: looks at the queues, decides, logs what was taken, and reads it.
//!
//! Looking takes no lock for long. Whether the queues are still as they were found is asked again when what is taken is
//! logged; if another pop was faster, the queues are looked at once more.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicKind, TopicName};
use gantry_proto::receipt::PoppedFrom;

use super::record::{Change, Delivery, Lease, OFFSETS_MAX, Popped};
use super::select::{Pick, Picked, Plan, sources};
use super::table::Taking;
use super::{PopError, Pops};
use crate::deliver::filter::Filter;
use crate::deliver::polls::ANY_QUEUE;
use crate::groups::attributes;
use crate::groups::offsets::{self, Key};
use crate::state;
use crate::store::{Batch, LogRuns, ReadError};

/// Looks of one request: others were faster, or nothing matched so far.
const LOOKS_MAX: usize = 16;
/// Those of them that a request may take for messages that were left.
const LEFT_LOOKS_MAX: usize = 4;

/// Which queues of the topic are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// One.
    Queue(QueueId),
    /// All of them, so many.
    All(u32),
    /// All of them, so many, the highest first.
    ByPriority(u32),
}

/// Where a group begins in a queue that it has never consumed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the first message.
    First,
    /// With the last one.
    Last,
    /// Where the broker says.
    Told(attributes::Start),
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
    /// Where it begins in its retry topic.
    pub retry_start: Start,
    /// Which messages are wanted.
    pub filter: Filter,
    /// What other members of the group want, if that is something else: it is left for them.
    pub others: Option<Filter>,
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
    /// Whether another pop might find some now.
    pub more: bool,
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

/// What a pop that finds nothing has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How often messages in flight have come to be given again, or not to keep others back.
    stirs: u64,
    /// Offsets that operators set.
    resets: u64,
    /// Changes of the numbers of queues that were done.
    settles: u64,
    /// Ends of the queues, as the group may see them.
    ends: u64,
}

impl Pops {
    /// Takes messages. What is found must be given as the answer when the log is safe up to its `end`; the caller
    /// [drives](crate::store::Store::drive) the store. `memory` is used for the messages.
    pub fn pop(&self, request: &PopRequest, memory: LogRuns) -> Result<Outcome, PopError> {
        let retry = request.retry_topic()?;
        let turn = match request.wanted {
            Wanted::ByPriority(queues) => self.turns.next(&request.group, &request.topic, queues),
            Wanted::Queue(_) | Wanted::All(_) => None,
        };
        for look in 1..=LOOKS_MAX {
            let now = self.with.store.clock().now();
            let plan = self.look(request, retry.as_ref(), turn, now)?;
            let is_left_cut =
                plan.left_is_cut && look < LEFT_LOOKS_MAX && request.delivery != Delivery::Orderly;
            if plan.picks.is_empty() {
                if is_left_cut {
                    continue;
                }
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
                    Outcome::Found(Found { rest, more: plan.more, ..found })
                });
            }
            if !plan.is_cut && !is_left_cut {
                return Ok(Outcome::Nothing { rest: plan.rest });
            }
            if request.delivery.is_ordered() {
                // What was just looked past keeps the queue back until the log shows it.
                self.with.store.drive();
            }
        }
        Ok(Outcome::Again)
    }

    /// Whether a pop would find something, or would have to look further to know.
    pub fn has_some(&self, request: &PopRequest) -> Result<bool, PopError> {
        let retry = request.retry_topic()?;
        let plan = self.look(request, retry.as_ref(), None, self.with.store.clock().now())?;
        Ok(plan.messages > 0 || (plan.is_cut && !plan.picks.is_empty()))
    }

    /// What tells whether a pop that found nothing might find something by now. To be asked before it looks and again
    /// when it waits: what came in between woke nobody.
    pub fn seen(&self, request: &PopRequest) -> Seen {
        let retry = request.retry_topic().ok().flatten();
        // Read first: who changes it has changed the table before.
        let stirs = self.shared.stirs.load(Ordering::SeqCst);
        let resets = self.with.offsets.pending_resets();
        let settles = self.with.scaling.settles();
        let end = |(topic, id, _): (TopicName, QueueId, _)| {
            let queue = self.with.store.find_queue(topic.as_str(), id);
            let key = Key { group: request.group.clone(), topic, queue: id };
            queue.map_or(0, |queue| self.end_of(&key, queue.max()).get())
        };
        let ends = sources(request, retry.as_ref(), false, None).into_iter().map(end);
        Seen { stirs, resets, settles, ends: ends.fold(0, u64::wrapping_add) }
    }

    /// Somebody who was woken for messages of these queues leaves some: the next one of the group that waits looks.
    pub fn pass_on(&self, request: &PopRequest) {
        let polls = &self.with.polls;
        if !polls.is_empty() {
            each_place(request, |place| polls.pass_on(place, &request.group));
        }
    }

    /// Members of the group want other things than before: all that wait look again.
    pub fn wake_group(&self, request: &PopRequest) {
        each_place(request, |place| self.with.polls.wake_group(place, &request.group));
    }

    /// Messages that a pop of these queues would find, without taking them.
    pub fn peek(&self, request: &PopRequest, memory: LogRuns) -> Result<Found, PopError> {
        let retry = request.retry_topic()?;
        let now = self.with.store.clock().now();
        let plan = self.look(request, retry.as_ref(), None, now)?;
        let found = self.read(&plan, now, PhyOffset::ZERO, memory);
        Ok(Found { rest: plan.rest + found.messages.messages() as u64, ..found })
    }

    /// Logs what is taken. `None` when a queue is no longer as it was found.
    fn take(&self, request: &PopRequest, now: Millis, plan: &Plan) -> Result<Option<PhyOffset>, PopError> {
        let mut writer = self.writer();
        {
            let mut table = self.table();
            let attempt = request.attempt.as_deref();
            let is_as_found =
                |pick: &Pick| table.look(&pick.key, request.delivery, attempt, now) == pick.view;
            if !plan.picks.iter().all(is_as_found) {
                return Ok(None);
            }
            plan.picks.iter().for_each(|pick| table.reserve(&pick.key, &pick.taking(request.delivery)));
        }
        let lease = Lease { popped_at: now, invisible_ms: request.invisible_ms };
        let changes_of = |pick: &Pick| {
            let message = |picked: &Picked| (picked.entry.at, picked.order_key);
            let popped = Change::Popped(Popped {
                key: pick.key.clone(),
                next: pick.next,
                lease,
                delivery: request.delivery,
                attempt: request.attempt.clone(),
                messages: pick.picked.iter().map(message).collect(),
                left: pick.left.clone(),
            });
            let gone =
                pick.gone.chunks(OFFSETS_MAX).map(|gone| Change::Acked(pick.key.clone(), gone.to_vec()));
            std::iter::once(popped).chain(gone.collect::<Vec<_>>())
        };
        let changes: Vec<_> = plan.picks.iter().flat_map(changes_of).collect();
        match self.append(&mut writer, &changes) {
            Ok(end) => Ok(Some(end)),
            Err(error) => {
                let mut table = self.table();
                for pick in &plan.picks {
                    let before = pick.view.as_ref().map_or(QueueOffset::ZERO, |view| view.next);
                    table.unreserve(&pick.key, before, &pick.taking(request.delivery));
                }
                Err(error)
            }
        }
    }

    /// An operator has set where the group goes on.
    pub(super) fn begin_at(&self, key: &Key, to: QueueOffset) -> Result<(), PopError> {
        let mut writer = self.writer();
        // Another pop may have been faster.
        if self.with.offsets.pending_reset(key) != Some(to) {
            return Ok(());
        }
        let (before, taking) = {
            let mut table = self.table();
            let view = table.look(key, Delivery::Concurrent, None, Millis::ZERO);
            let (before, left) = view.map(|view| (view.next, view.left)).unwrap_or_default();
            // Nobody gets them any more.
            let left = left.into_iter().map(|(offset, _)| offset).collect();
            let taking = Taking { next: to, left, begins: true, ..Taking::default() };
            table.reserve(key, &taking);
            (before, taking)
        };
        if let Err(error) = self.append_begin(&mut writer, key, to) {
            self.table().unreserve(key, before, &taking);
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
            let mut read = Vec::with_capacity(pick.picked.len());
            for Picked { entry, count, .. } in &pick.picked {
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
        Found { popped_at, queues, messages, rest: 0, more: false, end }
    }
}

/// Calls `at` for each place where pops of what the request asks for may wait.
fn each_place(request: &PopRequest, mut at: impl FnMut(&(TopicName, QueueId))) {
    let queues = match request.wanted {
        Wanted::Queue(id) => id.get()..id.get().saturating_add(1),
        Wanted::All(count) | Wanted::ByPriority(count) => 0..count,
    };
    let places = queues.map(QueueId::new).chain([ANY_QUEUE]).map(|id| (request.topic.clone(), id));
    let retry = request.retry_topic().ok().flatten().map(|retry| (retry, ANY_QUEUE));
    places.chain(retry).for_each(|place| at(&place));
}
