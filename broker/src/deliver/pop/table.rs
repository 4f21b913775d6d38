//! The messages that are in flight: popped, and neither acknowledged nor stored again.
//!
//! For each queue that a group pops from: everything below `next` was popped, passed over, or *left*: for other members,
//! who want it, or until those of its key before it are done. What is not in flight of the rest is done. So the
//! group's offset is the first message in flight or left, or `next`.
//!
//! The table is a fold over the records of `record`: only [`Table::apply`] changes what a snapshot keeps. What is on
//! its way to the log ([`Hand`], reservations) lies beside it and is forgotten by a restart, as its records are.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use gantry_proto::ids::{Millis, QueueOffset};
use gantry_proto::names::{GroupName, TopicName};

use super::INVISIBLE_MS_MAX;
use super::record::{Change, Counted, Delivery, Lease, OrderKey, Popped};
use crate::groups::offsets::Key;

mod view;

pub use view::{LEFT_MAX, Load, Standing, Taking, View};

/// What is on its way to the log for a message in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hand {
    /// Nothing.
    Free,
    /// Its ack.
    Acking,
    /// Another lease, or its next delivery.
    Renewing,
    /// Its copy.
    Moving,
}

/// One message in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// For how long.
    pub lease: Lease,
    /// How it was popped.
    pub delivery: Delivery,
    /// Whether the lease's end counts as an attempt.
    pub counted: Counted,
    /// How often it was popped so far.
    pub deliveries: u32,
    /// When the last of all leases ends, or would have, that were given for it.
    pub last_end: Millis,
    /// What it must keep its order with.
    pub order_key: OrderKey,
    /// Id of the request that popped it, where there is an order of keys.
    pub attempt: OrderKey,
    /// When something is to be done about it.
    due: Millis,
    hand: Hand,
}

/// What becomes of an ack, or of a change of the invisible time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// The handle holds the message.
    Held,
    /// The message was acknowledged before, or it is on the way.
    Done,
    /// The log does not show the pop, or another lease, yet: wait for it.
    Coming,
    /// The message was never popped.
    NotPopped,
    /// The message was popped again, or put off, since.
    Superseded,
    /// The invisible time is over, and the message was stored again.
    Over,
}

#[derive(Debug)]
struct QueueState {
    key: Key,
    /// Whether the log knows it. Before that nothing but a reservation is here.
    is_logged: bool,
    next: QueueOffset,
    in_flight: BTreeMap<QueueOffset, InFlight>,
    /// Messages were stored again for the end of a lease at this time: it was that late once.
    over_until: Millis,
    /// Those in flight that were popped in some order.
    ordered: usize,
    /// Messages below `next` that nobody has got yet.
    left: BTreeMap<QueueOffset, OrderKey>,
    /// Those of them that are on their way to being something else.
    taken: BTreeSet<QueueOffset>,
    /// Id of the last request that asked for order.
    attempt: Option<Arc<str>>,
    /// Pops on their way to the log; while there are none, the next two say what `next` and `in_flight` do.
    staged: u32,
    /// Those of them that keep the order of keys.
    staged_by_key: u32,
    /// Those of them with which the group begins anew.
    staged_begins: u32,
    /// Keys of messages on their way to being in flight or left, and of how many.
    closing: BTreeMap<OrderKey, u32>,
    /// `next` as it will be.
    reserved_next: QueueOffset,
    /// Messages that will be in flight besides.
    reserved: usize,
    /// Messages that will be left besides.
    reserved_left: usize,
}

impl QueueState {
    fn committed(&self) -> QueueOffset {
        let in_flight = self.in_flight.first_key_value().map(|(first, _)| *first);
        let left = self.left.first_key_value().map(|(first, _)| *first);
        in_flight.into_iter().chain(left).min().unwrap_or(self.next)
    }

    fn insert(&mut self, offset: QueueOffset, entry: InFlight) -> Option<InFlight> {
        self.ordered += usize::from(entry.delivery.is_ordered());
        let before = self.in_flight.insert(offset, entry);
        self.ordered -= usize::from(before.is_some_and(|before| before.delivery.is_ordered()));
        before
    }

    fn remove(&mut self, offset: QueueOffset) -> Option<InFlight> {
        let entry = self.in_flight.remove(&offset)?;
        self.ordered -= usize::from(entry.delivery.is_ordered());
        Some(entry)
    }

    /// Drops a message that was left; returns whether it was.
    fn remove_left(&mut self, offset: QueueOffset) -> bool {
        self.taken.remove(&offset);
        self.left.remove(&offset).is_some()
    }

    fn settle(&mut self) {
        if self.staged == 0 {
            (self.reserved_next, self.reserved, self.reserved_left) = (self.next, 0, 0);
            (self.staged_by_key, self.staged_begins) = (0, 0);
            self.closing.clear();
        }
    }
}

/// What a snapshot keeps of one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Whose, and where.
    pub key: Key,
    /// Everything below was popped or passed over.
    pub next: QueueOffset,
    /// Id of the last request that asked for order.
    pub attempt: Option<Arc<str>>,
    /// The messages in flight.
    pub in_flight: Vec<(QueueOffset, InFlight)>,
    /// Messages that were stored again before a lease ended, and when that is.
    pub moved: Vec<(QueueOffset, Millis)>,
    /// Messages that were left.
    pub left: Vec<(QueueOffset, OrderKey)>,
    /// How late it was when messages were stored again.
    pub over_until: Millis,
}

/// All messages in flight.
#[derive(Debug, Default)]
pub struct Table {
    slots: HashMap<Key, u64>,
    queues: BTreeMap<u64, QueueState>,
    next_slot: u64,
    /// When, queue and offset of what is to be looked at.
    due: BTreeSet<(Millis, u64, QueueOffset)>,
    in_flight: usize,
    /// Messages that were left, of all queues.
    left: usize,
    /// Messages that were stored again although a lease that was given for them has not ended; by queue and offset.
    moved: BTreeMap<(u64, QueueOffset), Millis>,
    /// The same by time.
    moved_until: BTreeSet<(Millis, u64, QueueOffset)>,
    /// Queues whose committed offset may have moved.
    touched: BTreeSet<u64>,
    /// Queues whose last message that kept others back is done, or in which messages were left for others.
    freed: Vec<Key>,
    /// Queues with as many messages left as may be.
    overfull: BTreeSet<u64>,
}

impl Table {
    /// Messages in flight or left, with those that are remembered for a while, and those of one queue that will be.
    pub fn remembered(&self, key: &Key) -> usize {
        let coming = self.state(key).map_or(0, |state| state.reserved + state.reserved_left);
        self.in_flight + self.left + self.moved.len() + coming
    }

    /// Messages in flight.
    pub const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Queues that groups pop from.
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// What an ack with this lease means at `now`.
    pub fn judge(&self, key: &Key, offset: QueueOffset, lease: &Lease, now: Millis) -> Judged {
        let Some((slot, state)) = self.slots.get(key).and_then(|slot| Some((*slot, self.queues.get(slot)?)))
        else {
            return Judged::NotPopped;
        };
        if let Some(entry) = state.in_flight.get(&offset) {
            return match entry.hand {
                // The new one's handle may be out already.
                Hand::Renewing if entry.lease != *lease => Judged::Coming,
                _ if entry.lease != *lease => Judged::Superseded,
                Hand::Free => Judged::Held,
                Hand::Acking => Judged::Done,
                Hand::Renewing | Hand::Moving => Judged::Superseded,
            };
        }
        let is_left = state.left.contains_key(&offset);
        let is_taken = state.taken.contains(&offset);
        if offset >= state.reserved_next || lease.popped_at > now || (is_left && !is_taken) {
            return Judged::NotPopped;
        }
        if offset >= state.next || is_taken {
            return Judged::Coming;
        }
        // What is gone before its lease ends was acknowledged, unless it was put off first, or the clock was ahead.
        let was_moved = self.moved.contains_key(&(slot, offset)) || lease.ends() <= state.over_until;
        if lease.ends() > now && !was_moved { Judged::Done } else { Judged::Over }
    }

    /// Whether the lease holds the message, and nothing is on its way to the log for it.
    pub fn is_held(&self, key: &Key, offset: QueueOffset, lease: &Lease) -> bool {
        let entry = self.state(key).and_then(|state| state.in_flight.get(&offset));
        entry.is_some_and(|entry| entry.lease == *lease && entry.hand == Hand::Free)
    }

    /// A message that was [due](Self::take_due) under this lease could not be stored again: it is due still.
    pub fn put_back(&mut self, key: &Key, offset: QueueOffset, lease: &Lease) {
        let entry = self.state(key).and_then(|state| state.in_flight.get(&offset));
        let is_ours =
            |entry: &InFlight| entry.lease == *lease && matches!(entry.hand, Hand::Free | Hand::Moving);
        if entry.is_some_and(is_ours) {
            self.set_hand(key, offset, Hand::Free);
        }
    }

    /// Notes what is on its way to the log for a message in flight.
    pub fn set_hand(&mut self, key: &Key, offset: QueueOffset, hand: Hand) {
        let Some(slot) = self.slots.get(key).copied() else { return };
        let Some(entry) = self.queues.get_mut(&slot).and_then(|state| state.in_flight.get_mut(&offset))
        else {
            return;
        };
        entry.hand = hand;
        if hand == Hand::Free {
            self.due.insert((entry.due, slot, offset));
        } else {
            self.due.remove(&(entry.due, slot, offset));
        }
    }

    /// At most `limit` messages whose lease is over at `now`. They are not given again.
    pub fn take_due(&mut self, now: Millis, limit: usize) -> Vec<(Key, QueueOffset, InFlight)> {
        let mut taken = Vec::new();
        while taken.len() < limit
            && let Some((due, slot, offset)) = self.due.first().copied()
            && due <= now
        {
            self.due.pop_first();
            let Some(state) = self.queues.get(&slot) else { continue };
            let Some(entry) = state.in_flight.get(&offset) else { continue };
            taken.push((state.key.clone(), offset, *entry));
        }
        taken
    }

    /// Forgets what was only remembered until `now`.
    pub fn forget_moved(&mut self, now: Millis) {
        while let Some((until, slot, offset)) = self.moved_until.first().copied()
            && until <= now
        {
            self.moved_until.pop_first();
            self.moved.remove(&(slot, offset));
        }
    }

    /// When the next lease is over.
    pub fn next_due(&self) -> Option<Millis> {
        self.due.first().map(|(due, _, _)| *due)
    }

    /// The clock was set back: no lease takes longer from `now` on than it was given for.
    pub fn clamp_due(&mut self, now: Millis) {
        for (slot, state) in &mut self.queues {
            state.over_until = state.over_until.min(now.plus(u64::from(INVISIBLE_MS_MAX)));
            for (offset, entry) in &mut state.in_flight {
                self.due.remove(&(entry.due, *slot, *offset));
                entry.due = entry.due.min(now.plus(u64::from(entry.lease.invisible_ms)));
                // Also of those that were due before: they must be told once more when they are.
                if entry.hand == Hand::Free {
                    self.due.insert((entry.due, *slot, *offset));
                }
            }
        }
    }

    /// Applies what the log says.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Popped(popped) => self.apply_popped(popped),
            Change::Acked(key, offsets) => self.apply_done(key, offsets, |_| false),
            // The copy was made when the last lease ended: another one of it may live on.
            Change::Moved(key, offsets) => {
                self.note_over(key, offsets);
                self.apply_done(key, offsets, |entry| entry.last_end > entry.lease.ends());
            }
            Change::Renewed(key, offset, lease, counted) => {
                let Some(slot) = self.slots.get(key).copied() else { return };
                let state = self.queues.get_mut(&slot).expect("each slot has its queue");
                let Some(entry) = state.in_flight.get_mut(offset) else { return };
                self.due.remove(&(entry.due, slot, *offset));
                let new = InFlight::new(*lease, entry.delivery, *counted, entry.deliveries);
                let last_end = new.last_end.max(entry.last_end);
                *entry = InFlight { last_end, order_key: entry.order_key, attempt: entry.attempt, ..new };
                self.due.insert((entry.due, slot, *offset));
            }
            Change::Begun(key, next) => {
                let slot = self.slot(key);
                self.clear(slot);
                let state = self.queues.get_mut(&slot).expect("each slot has its queue");
                (state.next, state.attempt, state.is_logged) = (*next, None, true);
                state.staged = state.staged.saturating_sub(1);
                state.staged_begins = state.staged_begins.saturating_sub(1);
                state.settle();
                self.touched.insert(slot);
                self.freed.push(key.clone());
            }
            Change::ForgetTopic(topic) => self.forget(|key| key.topic == *topic),
            Change::ForgetGroup(group) => self.forget(|key| key.group == *group),
        }
    }

    fn note_over(&mut self, key: &Key, offsets: &[QueueOffset]) {
        let Some(state) = self.slots.get(key).and_then(|slot| self.queues.get_mut(slot)) else { return };
        let due = offsets.iter().filter_map(|offset| state.in_flight.get(offset)).map(|entry| entry.due);
        state.over_until = due.fold(state.over_until, Millis::max);
    }

    fn apply_popped(&mut self, popped: &Popped) {
        let slot = self.slot(&popped.key);
        let state = self.queues.get_mut(&slot).expect("each slot has its queue");
        (state.next, state.is_logged) = (state.next.max(popped.next), true);
        let id = OrderKey::of(popped.attempt.as_deref());
        let is_last = popped.attempt.is_some() && popped.attempt == state.attempt;
        // With so many left a look may have ended that may go on now.
        let was_full = state.left.len() >= LEFT_MAX;
        let (mut new, mut was_left) = (0, false);
        for (offset, order_key) in &popped.messages {
            if state.remove_left(*offset) {
                self.left -= 1;
                was_left = true;
            }
            let before = state.in_flight.get(offset).copied();
            if let Some(before) = before {
                self.due.remove(&(before.due, slot, *offset));
            } else {
                new += 1;
                state.open(*order_key);
            }
            let is_repeated = |before: &InFlight| match before.delivery {
                Delivery::ByKey => popped.attempt.is_some() && before.attempt == id,
                Delivery::Concurrent | Delivery::Orderly => is_last,
            };
            let deliveries =
                before.map_or(0, |before| before.deliveries.saturating_sub(u32::from(is_repeated(&before))));
            let entry =
                InFlight::new(popped.lease, popped.delivery, Counted::Yes, deliveries.saturating_add(1));
            // The record names the keys of those that were not in flight before.
            let order_key = before.map_or(*order_key, |before| before.order_key);
            let attempt = if popped.delivery == Delivery::ByKey { id } else { OrderKey::NONE };
            state.insert(*offset, InFlight { order_key, attempt, ..entry });
            self.due.insert((entry.due, slot, *offset));
        }
        for (offset, order_key) in &popped.left {
            let is_new = !state.in_flight.contains_key(offset);
            if is_new && state.left.insert(*offset, *order_key).is_none() {
                self.left += 1;
            }
            state.open(*order_key);
        }
        if popped.delivery == Delivery::ByKey {
            state.staged_by_key = state.staged_by_key.saturating_sub(1);
        }
        if state.left.len() >= LEFT_MAX {
            self.overfull.insert(slot);
        }
        if popped.delivery == Delivery::Orderly {
            state.attempt.clone_from(&popped.attempt);
        }
        state.reserved = state.reserved.saturating_sub(new);
        state.reserved_left = state.reserved_left.saturating_sub(popped.left.len());
        state.staged = state.staged.saturating_sub(1);
        state.settle();
        // While it was on its way others found nothing.
        let is_open = state.in_flight.is_empty() || popped.delivery == Delivery::ByKey;
        let has_room = was_full && was_left;
        if (popped.delivery.is_ordered() && is_open) || !popped.left.is_empty() || has_room {
            self.freed.push(popped.key.clone());
        }
        self.in_flight += new;
        self.touched.insert(slot);
    }

    fn apply_done(&mut self, key: &Key, offsets: &[QueueOffset], is_remembered: impl Fn(&InFlight) -> bool) {
        let Some(slot) = self.slots.get(key).copied() else { return };
        let state = self.queues.get_mut(&slot).expect("each slot has its queue");
        let (mut was_orderly, mut was_by_key, mut was_left) = (false, false, false);
        for offset in offsets {
            if let Some(entry) = state.remove(*offset) {
                self.due.remove(&(entry.due, slot, *offset));
                self.in_flight -= 1;
                was_orderly |= entry.delivery.is_ordered();
                was_by_key |= entry.delivery == Delivery::ByKey;
                if is_remembered(&entry) {
                    self.moved.insert((slot, *offset), entry.last_end);
                    self.moved_until.insert((entry.last_end, slot, *offset));
                }
            } else if state.remove_left(*offset) {
                self.left -= 1;
                was_left = true;
            }
        }
        if was_by_key || was_left || (was_orderly && state.in_flight.is_empty()) {
            self.freed.push(key.clone());
        }
        self.touched.insert(slot);
    }

    fn forget(&mut self, gone: impl Fn(&Key) -> bool) {
        let slots: Vec<_> = self.slots.iter().filter(|(key, _)| gone(key)).map(|(_, slot)| *slot).collect();
        for slot in slots {
            self.clear(slot);
            if let Some(state) = self.queues.remove(&slot) {
                self.slots.remove(&state.key);
            }
        }
    }

    fn clear(&mut self, slot: u64) {
        let Some(state) = self.queues.get_mut(&slot) else { return };
        for (offset, entry) in std::mem::take(&mut state.in_flight) {
            self.due.remove(&(entry.due, slot, offset));
            self.in_flight -= 1;
        }
        self.left -= state.left.len();
        state.left.clear();
        state.taken.clear();
        state.ordered = 0;
    }

    /// Each queue whose committed offset may have moved since the last call, with that offset.
    pub fn take_touched(&mut self) -> Vec<(Key, QueueOffset)> {
        let touched = std::mem::take(&mut self.touched);
        let states = touched.iter().filter_map(|slot| self.queues.get(slot));
        states.map(|state| (state.key.clone(), state.committed())).collect()
    }

    /// Has [`take_touched`](Self::take_touched) give every queue.
    pub fn touch_all(&mut self) {
        self.touched = self.queues.keys().copied().collect();
    }

    /// Whether there is something for [`take_touched`](Self::take_touched).
    pub fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Queues with messages that were kept back, and are no longer.
    pub fn take_freed(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.freed)
    }

    /// Groups that pop from the topic.
    pub fn groups_of(&self, topic: &TopicName) -> BTreeSet<GroupName> {
        self.slots.keys().filter(|key| key.topic == *topic).map(|key| key.group.clone()).collect()
    }

    /// Whether the group pops from any queue.
    pub fn knows_group(&self, group: &GroupName) -> bool {
        self.slots.keys().any(|key| key.group == *group)
    }

    /// The first message in flight of each queue that has some.
    pub fn oldest(&self) -> Vec<(Key, QueueOffset)> {
        let first = |state: &QueueState| Some((state.key.clone(), *state.in_flight.first_key_value()?.0));
        self.queues.values().filter_map(first).collect()
    }

    /// What a snapshot must keep.
    pub fn kept(&self) -> Vec<Kept> {
        let moved = |slot: u64| {
            let range = (slot, QueueOffset::ZERO)..=(slot, QueueOffset::new(u64::MAX));
            self.moved.range(range).map(|((_, offset), until)| (*offset, *until)).collect()
        };
        let kept = |(slot, state): (&u64, &QueueState)| Kept {
            key: state.key.clone(),
            next: state.next,
            attempt: state.attempt.clone(),
            in_flight: state.in_flight.iter().map(|(offset, entry)| (*offset, *entry)).collect(),
            moved: moved(*slot),
            left: state.left.iter().map(|(offset, key)| (*offset, *key)).collect(),
            over_until: state.over_until,
        };
        self.queues.iter().filter(|(_, state)| state.is_logged).map(kept).collect()
    }

    /// The table that a snapshot has kept.
    pub fn restore(kept: Vec<Kept>) -> Self {
        let mut table = Self::default();
        for queue in kept {
            let slot = table.slot(&queue.key);
            let mut left = 0;
            let state = table.queues.get_mut(&slot).expect("each slot has its queue");
            (state.next, state.attempt, state.is_logged) = (queue.next, queue.attempt, true);
            state.over_until = queue.over_until;
            for (offset, entry) in queue.in_flight {
                if offset < queue.next && state.insert(offset, entry).is_none() {
                    table.due.insert((entry.due, slot, offset));
                    table.in_flight += 1;
                }
            }
            for (offset, order_key) in queue.left {
                if offset < queue.next && !state.in_flight.contains_key(&offset) {
                    left += usize::from(state.left.insert(offset, order_key).is_none());
                }
            }
            state.settle();
            table.left += left;
            if left >= LEFT_MAX {
                table.overfull.insert(slot);
            }
            for (offset, until) in queue.moved {
                table.moved.insert((slot, offset), until);
                table.moved_until.insert((until, slot, offset));
            }
        }
        table
    }

    /// Forgets what lies beyond the end of its queue: the log lost its newest messages. Returns the queues.
    pub fn clamp(&mut self, end: impl Fn(&Key) -> QueueOffset) -> Vec<(Key, QueueOffset)> {
        let mut clamped = Vec::new();
        for (slot, state) in &mut self.queues {
            let end = end(&state.key);
            if state.next <= end {
                continue;
            }
            for (offset, entry) in state.in_flight.split_off(&end) {
                self.due.remove(&(entry.due, *slot, offset));
                self.in_flight -= 1;
                state.ordered -= usize::from(entry.delivery.is_ordered());
            }
            self.left -= state.left.split_off(&end).len();
            state.next = end;
            state.settle();
            clamped.push((state.key.clone(), end));
        }
        clamped
    }

    fn state(&self, key: &Key) -> Option<&QueueState> {
        self.queues.get(self.slots.get(key)?)
    }

    fn slot(&mut self, key: &Key) -> u64 {
        match self.slots.entry(key.clone()) {
            MapEntry::Occupied(found) => *found.get(),
            MapEntry::Vacant(free) => {
                let slot = self.next_slot;
                self.next_slot += 1;
                free.insert(slot);
                let state = QueueState {
                    key: key.clone(),
                    is_logged: false,
                    next: QueueOffset::ZERO,
                    in_flight: BTreeMap::new(),
                    over_until: Millis::ZERO,
                    ordered: 0,
                    left: BTreeMap::new(),
                    taken: BTreeSet::new(),
                    attempt: None,
                    staged: 0,
                    staged_by_key: 0,
                    staged_begins: 0,
                    closing: BTreeMap::new(),
                    reserved_next: QueueOffset::ZERO,
                    reserved: 0,
                    reserved_left: 0,
                };
                self.queues.insert(slot, state);
                slot
            }
        }
    }
}

impl InFlight {
    /// A message under this lease.
    pub fn new(lease: Lease, delivery: Delivery, counted: Counted, deliveries: u32) -> Self {
        let end = lease.ends();
        let (order_key, attempt) = (OrderKey::NONE, OrderKey::NONE);
        Self {
            lease,
            delivery,
            counted,
            deliveries,
            last_end: end,
            order_key,
            attempt,
            due: end,
            hand: Hand::Free,
        }
    }
}
