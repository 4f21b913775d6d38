//! Looks at queues for a pop: what it gets of each, what is left there for others, and where the next pop goes on.
//!
//! A message that the member that asks does not want is passed over, unless others of its group want it: then it is
//! *left*, and given to whoever of them asks. Where there is an order of keys, a message whose key is in flight is left
//! until that is done. At most [`LEFT_MAX`] messages of a queue are left; what would be one more ends the look. The
//! oldest of those left for others are then stored again in the retry topic, so that others do not wait for one member.

use std::collections::BTreeSet;
use std::sync::Arc;

use gantry_proto::ids::{Millis, QueueId, QueueOffset};
use gantry_proto::names::{TopicKind, TopicName};
use gantry_proto::receipt::PoppedFrom;
use gantry_proto::record::{Properties, RecordView};

use super::record::{Delivery, OFFSETS_MAX, OrderKey};
use super::table::{LEFT_MAX, Taking, View};
use super::take::{PopRequest, Start, Wanted};
use super::turns::by_priority;
use super::{PopError, Pops, QUEUE_MAX};
use crate::deliver::filter::{Filter, Verdict};
use crate::deliver::pull::{BYTES_MAX, LOOKS_MAX, Looks, scan_of};
use crate::groups::offsets::Key;
use crate::groups::{attributes, start, tiers};
use crate::store::{Queue, QueueEntry};

/// Of a hundred pops, so many look at the retry topic before all others: it must not wait for an empty topic.
const RETRY_FIRST_PERCENT: u32 = 20;
/// The queue of retry topics.
const RETRY_QUEUE: QueueId = QueueId::ZERO;

/// Offsets from the first message of a queue in one answer to the last: clients acknowledge many with a bit for each.
const SPAN_MAX: u64 = 32_768;

/// A message that is taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Picked {
    pub(super) entry: QueueEntry,
    /// How often it was popped from here before.
    pub(super) count: u32,
    /// Of those that were not: what they must keep their order with.
    pub(super) order_key: OrderKey,
}

/// What is to be taken from one queue.
#[derive(Debug)]
pub(super) struct Pick {
    pub(super) key: Key,
    pub(super) from: PoppedFrom,
    pub(super) queue: Option<Arc<Queue>>,
    /// Where the messages end that the group may see.
    end: QueueOffset,
    /// How the queue was found.
    pub(super) view: Option<View>,
    /// Where the group's next pop begins.
    pub(super) next: QueueOffset,
    /// What is taken, in the order of the queue.
    pub(super) picked: Vec<Picked>,
    /// Those of it that were popped already.
    again: Vec<QueueOffset>,
    /// Those of it that were left.
    were_left: Vec<QueueOffset>,
    /// What is left of the rest.
    pub(super) left: Vec<(QueueOffset, OrderKey)>,
    /// Messages that were left, and are gone.
    pub(super) gone: Vec<QueueOffset>,
}

impl Pick {
    pub(super) fn taking(&self, delivery: Delivery) -> Taking {
        Taking {
            next: self.next,
            new: self.picked.len() - self.again.len(),
            again: self.again.clone(),
            left: self.were_left.clone(),
            leaves: self.left.len(),
            begins: false,
            keys: (delivery == Delivery::ByKey).then(|| {
                // Those that were popped already have none here.
                let new = self.picked.iter().map(|picked| picked.order_key);
                let new = new.filter(|key| *key != OrderKey::NONE);
                new.chain(self.left.iter().map(|(_, key)| *key)).collect()
            }),
        }
    }

    /// Whether a message is near enough to those that are taken.
    fn is_near(&self, at: QueueOffset) -> bool {
        let spans = |other: QueueOffset| other.since(at).max(at.since(other)) < SPAN_MAX;
        self.picked.iter().all(|picked| spans(picked.entry.at))
    }

    /// Whether the log must know of it.
    fn changes(&self) -> bool {
        !self.picked.is_empty() || !self.gone.is_empty()
    }
}

/// What one look at all queues has found.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) picks: Vec<Pick>,
    pub(super) messages: usize,
    bytes: usize,
    pub(super) rest: u64,
    /// A queue has more than was looked at.
    pub(super) is_cut: bool,
    /// Not all messages that were left were looked at.
    pub(super) left_is_cut: bool,
    /// A queue has messages that another pop might take at once.
    pub(super) more: bool,
    /// A queue has messages that were not taken for want of room: so many are in flight, and so many may be.
    pub(super) full: Option<(usize, usize)>,
}

impl Plan {
    fn is_full(&self, request: &PopRequest, size: usize) -> bool {
        self.messages >= request.messages_max || (self.bytes + size > BYTES_MAX && self.messages > 0)
    }

    fn add(&mut self, pick: &mut Pick, picked: Picked) {
        self.messages += 1;
        self.bytes += picked.entry.size as usize;
        pick.picked.push(picked);
    }
}

/// What becomes of a message that nobody has got yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is given.
    Given(OrderKey),
    /// It is left where it is.
    Left(OrderKey),
    /// Nobody wants it, or it is gone.
    Passed,
}

/// Decides what becomes of messages in one look at one queue.
struct Judge<'a> {
    request: &'a PopRequest,
    from: PoppedFrom,
    /// Keys that must wait.
    closed: BTreeSet<OrderKey>,
    looks: Looks<'a>,
}

impl<'a> Judge<'a> {
    fn new(request: &'a PopRequest, from: PoppedFrom, view: Option<&View>) -> Self {
        let closed = view.map(|view| view.closed.clone()).unwrap_or_default();
        Self { request, from, closed, looks: Looks::new(&request.filter, None) }
    }

    /// Whether an entry alone does not tell what becomes of its message.
    fn needs_properties(&self) -> bool {
        let is_choosy = self.request.others.is_some() || self.from == PoppedFrom::Retry;
        self.request.delivery == Delivery::ByKey || (is_choosy && !matches!(self.request.filter, Filter::All))
    }

    /// Of what is at an entry that was never given.
    fn of(&mut self, pops: &Pops, queue: &Queue, entry: &QueueEntry) -> Fate {
        if entry.is_blank() {
            return Fate::Passed;
        }
        if !self.needs_properties() {
            return match self.request.filter.by_entry(entry.tags_code) {
                Verdict::Wanted => Fate::Given(OrderKey::NONE),
                Verdict::Unwanted => Fate::Passed,
                Verdict::Open => {
                    let looks = &mut self.looks;
                    let is_wanted = pops.read_at(queue, entry, |record| looks.at(record)) == Some(true);
                    if is_wanted { Fate::Given(OrderKey::NONE) } else { Fate::Passed }
                }
            };
        }
        let is_unwanted = |filter: &Filter| filter.by_entry(entry.tags_code) == Verdict::Unwanted;
        let is_others = self.request.others.as_ref().is_some_and(|others| !is_unwanted(others));
        if self.from == PoppedFrom::Topic && !is_others && is_unwanted(&self.request.filter) {
            return Fate::Passed;
        }
        let fate = pops.read_at(queue, entry, |record| {
            let properties = RecordView::parse(record).ok()?.properties();
            Some(self.by_properties(properties, record.len()))
        });
        fate.flatten().unwrap_or(Fate::Passed)
    }

    fn by_properties(&mut self, properties: Properties<'_>, size: usize) -> Fate {
        let order_key = match self.request.delivery {
            Delivery::ByKey => OrderKey::of_message(properties.sharding_key()),
            Delivery::Concurrent | Delivery::Orderly => OrderKey::NONE,
        };
        let takes = self.request.filter.takes(properties);
        self.looks.count(properties, if takes { 0 } else { size });
        if takes {
            let must_wait = self.request.delivery == Delivery::ByKey && self.closed.contains(&order_key);
            return if must_wait { Fate::Left(order_key) } else { Fate::Given(order_key) };
        }
        let others = self.request.others.as_ref();
        if others.is_some_and(|others| others.takes(properties)) {
            return Fate::Left(OrderKey::NONE);
        }
        // What is retried was wanted once: whoever wants it may only be away.
        if self.from == PoppedFrom::Retry { Fate::Left(OrderKey::NONE) } else { Fate::Passed }
    }

    /// Whether no more of what was left may be looked at. Those popped in order must not be overtaken by what comes
    /// behind them: for them only the steps of filters count, so that large messages do not keep the queue back.
    fn has_left_enough(&self) -> bool {
        match self.request.delivery {
            Delivery::Orderly => self.looks.have_all_steps(),
            Delivery::Concurrent | Delivery::ByKey => self.looks.are_enough(),
        }
    }

    /// Lets it look at as much again.
    fn refresh(&mut self) {
        self.looks = Looks::new(&self.request.filter, None);
    }

    /// Whether the member may get a message again that was popped by any of its group: others' it would drop.
    fn takes_again(&mut self, properties: Properties<'_>, size: usize) -> bool {
        let is_ours = self.request.filter.takes(properties);
        self.looks.count(properties, if is_ours { 0 } else { size });
        if self.request.delivery != Delivery::ByKey {
            return is_ours;
        }
        let order_key = OrderKey::of_message(properties.sharding_key());
        if !is_ours {
            self.closed.insert(order_key);
        }
        !self.closed.contains(&order_key)
    }
}

impl Pops {
    pub(super) fn look(
        &self,
        request: &PopRequest,
        retry: Option<&TopicName>,
        turn: Option<QueueId>,
        now: Millis,
    ) -> Result<Plan, PopError> {
        let mut plan = Plan::default();
        let retry_first = fastrand::u32(..100) < RETRY_FIRST_PERCENT;
        for (topic, queue, from) in sources(request, retry, retry_first, turn) {
            let key = Key { group: request.group.clone(), topic, queue };
            if let Some(to) = self.with.offsets.pending_reset(&key) {
                self.begin_at(&key, to)?;
            }
            self.look_at(request, key, from, now, &mut plan)?;
        }
        Ok(plan)
    }

    /// Where the messages of a queue end for the group: with `max`, or before that, where it comes after another group.
    pub(super) fn end_of(&self, key: &Key, max: QueueOffset) -> QueueOffset {
        let group = self.with.groups.get(key.group.as_str());
        let end = group.and_then(|group| tiers::end(&group, &self.with.offsets, &key.topic, key.queue));
        end.map_or(max, |end| end.min(max))
    }

    /// Where a group begins as the broker says. With the first message when that cannot be found out: nothing is lost then.
    fn place(&self, queue: &Queue, begin: attributes::Start) -> QueueOffset {
        start::place(&self.with.store, queue, begin).unwrap_or_else(|error| {
            tracing::error!(%error, "a queue cannot be searched by time; a new group begins with its first message");
            queue.min()
        })
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
        let end = self.end_of(&key, max);
        let (view, load, remembered) = {
            let table = self.table();
            let view = table.look(&key, request.delivery, request.attempt.as_deref(), now);
            if view.is_none() && table.queues() >= self.with.queues_max {
                return Err(PopError::TooManyQueues { max: self.with.queues_max });
            }
            (view, table.load(&key), table.remembered(&key))
        };
        let start = if from == PoppedFrom::Topic { request.start } else { request.retry_start };
        let committed = self.with.offsets.get(key.group.as_str(), key.topic.as_str(), key.queue);
        let begin = match (&view, committed) {
            // Whoever pulls for the group may be further.
            (Some(view), committed) => view.next.max(committed.unwrap_or_default()),
            (None, Some(committed)) => committed,
            (None, None) => match (start, &queue) {
                (Start::Last, _) => max.back(1),
                (Start::Told(start), Some(queue)) => self.place(queue, start),
                (Start::First | Start::Told(_), _) => min,
            },
        };
        let next = begin.max(min);
        let mut pick = Pick {
            key,
            from,
            queue,
            end,
            view,
            next,
            picked: Vec::new(),
            again: Vec::new(),
            were_left: Vec::new(),
            left: Vec::new(),
            gone: Vec::new(),
        };
        let is_blocked = pick.view.as_ref().is_some_and(|view| view.blocked);
        if !is_blocked {
            let mut judge = Judge::new(request, from, pick.view.as_ref());
            let is_through =
                self.pick_again(&mut judge, &mut pick, plan) && self.pick_left(&mut judge, &mut pick, plan);
            if is_through {
                let on_its_way = load.in_flight + load.left;
                let rooms = [(remembered, self.with.in_flight_max), (on_its_way, QUEUE_MAX)];
                self.pick_new(&mut judge, &mut pick, (rooms, LEFT_MAX.saturating_sub(load.left)), plan);
            }
            // What is taken in order keeps the rest back until the log shows it.
            let is_open = !request.delivery.is_ordered() || pick.picked.is_empty();
            plan.more |= is_open && (!is_through || pick.next < end);
        }
        // Clients count offsets from the first one on.
        pick.picked.sort_by_key(|picked| picked.entry.at);
        plan.rest += end.since(pick.next) + load.left.saturating_sub(pick.were_left.len()) as u64;
        let known = pick.view.as_ref().map(|view| view.next);
        // A new group's place is fixed by its first look: later it would be after what came meanwhile.
        let is_fixed = known.is_none() && start != Start::First;
        if pick.changes() || known.map_or(pick.next > begin || is_fixed, |known| pick.next > known) {
            plan.picks.push(pick);
        }
        Ok(())
    }

    /// Picks what may be given again where it is. Returns whether what comes behind it may be picked, too: what is
    /// given again comes first, all of it that the member wants.
    fn pick_again(&self, judge: &mut Judge<'_>, pick: &mut Pick, plan: &mut Plan) -> bool {
        let (Some(view), Some(queue)) = (&pick.view, &pick.queue) else { return true };
        let request = judge.request;
        for (offset, count) in &view.again {
            if plan.messages >= request.messages_max || plan.is_full(request, 1) {
                return request.delivery == Delivery::Concurrent;
            }
            if !pick.is_near(*offset) || judge.looks.are_enough() {
                return false;
            }
            let Some(entry) = queue.entry(*offset) else { continue };
            // Whoever had it may want other messages than this member, whose client would drop it.
            if request.others.is_some() {
                let takes = self.read_at(queue, &entry, |record| {
                    let properties = RecordView::parse(record).ok()?.properties();
                    Some(judge.takes_again(properties, record.len()))
                });
                match (takes.flatten(), request.delivery) {
                    (Some(false), Delivery::Orderly) => return false,
                    (Some(false), _) => continue,
                    _ => {}
                }
            }
            plan.messages += 1;
            plan.bytes += entry.size as usize;
            pick.picked.push(Picked { entry, count: *count, order_key: OrderKey::NONE });
            pick.again.push(*offset);
        }
        true
    }

    /// What was left, in the order in which it is looked at: from where the last look ended, if that did not get to
    /// the end.
    fn in_turn(&self, pick: &Pick) -> Vec<(QueueOffset, OrderKey)> {
        let all = pick.view.as_ref().map(|view| view.left.clone()).unwrap_or_default();
        let Some(place) = self.left_places.get(&pick.key) else { return all };
        // Those that wait for others of their key come in their order.
        let (mut turning, mut all): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(_, order_key)| *order_key == OrderKey::NONE);
        let first = turning.partition_point(|(offset, _)| *offset < place);
        turning.rotate_left(first);
        all.extend(turning);
        all
    }

    /// Picks messages that were left. Returns whether what comes behind them may be picked, too.
    fn pick_left(&self, judge: &mut Judge<'_>, pick: &mut Pick, plan: &mut Plan) -> bool {
        let Some(queue) = pick.queue.clone() else { return true };
        let all = self.in_turn(pick);
        for (number, (offset, _)) in all.iter().enumerate() {
            let offset = *offset;
            let Some(entry) = queue.entry(offset).filter(|entry| entry.at >= queue.min()) else {
                pick.gone.push(offset);
                continue;
            };
            // Those left for others are not read, as far as their entries tell.
            if judge.request.filter.by_entry(entry.tags_code) == Verdict::Unwanted {
                continue;
            }
            let is_far = !pick.is_near(offset);
            if is_far || plan.is_full(judge.request, entry.size as usize) {
                return false;
            }
            if judge.has_left_enough() {
                plan.left_is_cut = true;
                if judge.request.delivery == Delivery::Orderly {
                    return false;
                }
                // The next look goes on here. Those behind do not wait for it, but for those of their keys.
                self.left_places.set(&pick.key, offset);
                let rest = all.get(number..).unwrap_or_default().iter().map(|(_, order_key)| *order_key);
                judge.closed.extend(rest.filter(|order_key| *order_key != OrderKey::NONE));
                judge.refresh();
                return true;
            }
            if let Fate::Given(order_key) = judge.of(self, &queue, &entry) {
                plan.add(pick, Picked { entry, count: 0, order_key });
                pick.were_left.push(offset);
            }
        }
        self.left_places.forget(&pick.key);
        judge.refresh();
        true
    }

    /// Picks messages that nobody of the group has got.
    fn pick_new(
        &self,
        judge: &mut Judge<'_>,
        pick: &mut Pick,
        (rooms, left_max): ([(usize, usize); 2], usize),
        plan: &mut Plan,
    ) {
        let Some(queue) = pick.queue.clone().filter(|_| pick.next < pick.end) else { return };
        if plan.is_full(judge.request, 0) {
            return;
        }
        // What was left and is taken now has had its room before.
        let free = |(taken, max): &(usize, usize)| max.saturating_sub(*taken);
        let mut room = rooms.iter().map(free).min().unwrap_or_default();
        if room == 0 {
            plan.full = rooms.into_iter().find(|(taken, max)| taken >= max);
            return;
        }
        let wanted = judge.request.messages_max.saturating_sub(plan.messages);
        let scan = if judge.needs_properties() { LOOKS_MAX } else { scan_of(&judge.request.filter, wanted) };
        let mut entries = Vec::new();
        self.with.store.entries(&queue, pick.next, scan, &mut entries);
        entries.truncate(entries.partition_point(|entry| entry.at < pick.end));
        let below = self.with.scaling.limit(&pick.key);
        for entry in entries {
            if below.is_some_and(|below| entry.phy >= below) {
                // It is not for this group yet, and whoever may go on then is woken.
                return;
            }
            if judge.looks.are_enough() {
                break;
            }
            let fate = judge.of(self, &queue, &entry);
            let left_room = left_max.saturating_sub(pick.left.len()).min(OFFSETS_MAX);
            match fate {
                Fate::Passed => {}
                Fate::Left(_) if room == 0 || left_room == 0 => break,
                Fate::Left(order_key) => {
                    pick.left.push((entry.at, order_key));
                    room -= 1;
                }
                Fate::Given(order_key) => {
                    let is_full = plan.is_full(judge.request, entry.size as usize);
                    if room == 0 || is_full || !pick.is_near(entry.at) {
                        break;
                    }
                    plan.add(pick, Picked { entry, count: 0, order_key });
                    room -= 1;
                }
            }
            pick.next = entry.at + 1;
        }
        plan.is_cut |= pick.next < pick.end;
    }

    /// What `look` finds in the record of an entry. `None` when it cannot be read.
    fn read_at<T>(&self, queue: &Queue, entry: &QueueEntry, look: impl FnOnce(&[u8]) -> T) -> Option<T> {
        match self.with.store.message(queue, entry) {
            Ok(record) => record.map(|record| look(&record)),
            Err(error) => {
                tracing::error!(topic = %queue.topic(), queue = %queue.id(), at = %entry.at, %error, "a message cannot be popped; it is passed over");
                None
            }
        }
    }
}

/// The queues that a pop looks at, in order: those of the topic from a random one on or by priority, and the retry queue before or
/// behind them.
pub(super) fn sources(
    request: &PopRequest,
    retry: Option<&TopicName>,
    retry_first: bool,
    turn: Option<QueueId>,
) -> Vec<(TopicName, QueueId, PoppedFrom)> {
    let from = if request.topic.kind() == TopicKind::Retry { PoppedFrom::Retry } else { PoppedFrom::Topic };
    let ids: Vec<QueueId> = match request.wanted {
        Wanted::Queue(id) => vec![id],
        Wanted::All(count) => {
            let first = if count == 0 { 0 } else { fastrand::u32(..count) };
            (0..count).map(|number| QueueId::new((first + number) % count)).collect()
        }
        Wanted::ByPriority(count) => by_priority(count, turn),
    };
    let mut sources: Vec<_> = ids.into_iter().map(|id| (request.topic.clone(), id, from)).collect();
    if let Some(retry) = retry {
        let at = if retry_first { 0 } else { sources.len() };
        sources.insert(at, (retry.clone(), RETRY_QUEUE, PoppedFrom::Retry));
    }
    sources
}
