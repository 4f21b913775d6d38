//! A queue as a pop finds it, and what pops take of it that are on their way to the log.

use std::collections::BTreeSet;

use gantry_proto::ids::{Millis, QueueOffset};
use gantry_proto::names::TopicKind;

use super::{Hand, InFlight, QueueState, Table};
use crate::deliver::pop::record::{Delivery, OrderKey};
use crate::groups::offsets::Key;

/// Messages of a queue that are left while those behind them are given, at the most.
pub const LEFT_MAX: usize = 1024;

/// One queue as a pop finds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The first message that nobody of the group has got, but for those left.
    pub next: QueueOffset,
    /// Messages that may be popped again where they are, and how often they were popped before.
    pub again: Vec<(QueueOffset, u32)>,
    /// Messages that were left, and may be popped as far as keys decide.
    pub left: Vec<(QueueOffset, OrderKey)>,
    /// Keys of messages in flight, which keep those of the same key back.
    pub closed: BTreeSet<OrderKey>,
    /// Whether the queue's messages in flight keep all others back.
    pub blocked: bool,
}

/// How much of a queue is on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Messages in flight.
    pub in_flight: usize,
    /// Messages that were left.
    pub left: usize,
}

/// Where a group is in a queue that it pops from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The first message that nobody has got, but for those left.
    pub next: QueueOffset,
    /// Messages in flight.
    pub in_flight: usize,
    /// Messages that were left: for other members, or until those of their key before them are done.
    pub left: usize,
    /// When the one of those in flight was popped that was popped, or put off, first.
    pub oldest: Option<Millis>,
}

/// What one pop takes of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taking {
    /// The queue's `next` afterwards.
    pub next: QueueOffset,
    /// Messages that come to be in flight.
    pub new: usize,
    /// Messages that are in flight already.
    pub again: Vec<QueueOffset>,
    /// Those of the new ones that were left.
    pub left: Vec<QueueOffset>,
    /// Messages that come to be left.
    pub leaves: usize,
    /// Whether the group begins anew there, so that nobody gets what was left before.
    pub begins: bool,
    /// Keys of all that is new in these, where the order is theirs.
    pub keys: Option<Vec<OrderKey>>,
}

impl Table {
    /// A queue as a pop finds it at `now`; `None` when the group has never popped from it.
    pub fn look(&self, key: &Key, delivery: Delivery, attempt: Option<&str>, now: Millis) -> Option<View> {
        let state = self.state(key)?;
        let mut view = View { next: state.reserved_next, ..View::default() };
        match delivery {
            Delivery::Concurrent => {}
            Delivery::Orderly => view.blocked = state.staged > 0,
            Delivery::ByKey => {
                view.blocked = state.staged > state.staged_by_key;
                view.closed = state.closing.keys().copied().collect();
            }
        }
        // Without anything in order there is nothing to look for among many.
        let is_plain = delivery == Delivery::Concurrent && state.ordered == 0;
        let mut again = Vec::new();
        for (offset, entry) in state.in_flight.iter().filter(|_| !is_plain) {
            let is_repeated = state.is_repeated(entry, attempt);
            // Not its lease's end: that may be far ahead if the clock was set back since.
            let is_open = entry.hand == Hand::Free && (is_repeated || entry.due <= now);
            if entry.delivery.is_ordered() && is_open {
                let before = entry.deliveries.saturating_sub(u32::from(is_repeated));
                again.push((*offset, entry.order_key, before));
                continue;
            }
            match (delivery, entry.delivery) {
                (Delivery::Concurrent, _) => {}
                (Delivery::ByKey, Delivery::ByKey) => {
                    view.closed.insert(entry.order_key);
                }
                _ => view.blocked = true,
            }
        }
        if view.blocked {
            return Some(view);
        }
        let is_free = |key: &OrderKey| !view.closed.contains(key);
        view.again = again.iter().filter(|(_, key, _)| is_free(key)).map(|(at, _, n)| (*at, *n)).collect();
        let left = state.left.iter().filter(|(offset, key)| is_free(key) && !state.taken.contains(*offset));
        view.left = left.map(|(offset, key)| (*offset, *key)).collect();
        Some(view)
    }

    /// How much of a queue is on its way, with what will be.
    pub fn load(&self, key: &Key) -> Load {
        let load = |state: &QueueState| Load {
            in_flight: state.in_flight.len() + state.reserved,
            left: state.left.len() + state.reserved_left,
        };
        self.state(key).map(load).unwrap_or_default()
    }

    /// Where the group is in a queue that it pops from.
    pub fn standing(&self, key: &Key) -> Option<Standing> {
        let state = self.state(key).filter(|state| state.is_logged)?;
        Some(Standing {
            next: state.next,
            in_flight: state.in_flight.len(),
            left: state.left.len(),
            oldest: state.in_flight.values().map(|entry| entry.lease.popped_at).min(),
        })
    }

    /// Notes a pop on its way to the log.
    pub fn reserve(&mut self, key: &Key, taking: &Taking) {
        let slot = self.slot(key);
        let state = self.queues.get_mut(&slot).expect("each slot has its queue");
        state.staged += 1;
        state.staged_begins += u32::from(taking.begins);
        state.reserved_next = taking.next;
        state.reserved += taking.new;
        state.reserved_left += taking.leaves;
        state.taken.extend(&taking.left);
        if let Some(keys) = &taking.keys {
            state.staged_by_key += 1;
            for key in keys {
                *state.closing.entry(*key).or_default() += 1;
            }
        }
        for offset in &taking.again {
            self.set_hand(key, *offset, Hand::Renewing);
        }
    }

    /// Takes a reservation back that was refused by the log. No other one has come since; `before` is what `next`
    /// was.
    pub fn unreserve(&mut self, key: &Key, before: QueueOffset, taking: &Taking) {
        let slot = self.slot(key);
        let state = self.queues.get_mut(&slot).expect("each slot has its queue");
        state.staged = state.staged.saturating_sub(1);
        state.staged_begins = state.staged_begins.saturating_sub(u32::from(taking.begins));
        state.reserved_next = before;
        state.reserved = state.reserved.saturating_sub(taking.new);
        state.reserved_left = state.reserved_left.saturating_sub(taking.leaves);
        for offset in &taking.left {
            state.taken.remove(offset);
        }
        if let Some(keys) = &taking.keys {
            state.staged_by_key = state.staged_by_key.saturating_sub(1);
            for key in keys {
                state.open(*key);
            }
        }
        state.settle();
        if !state.is_logged && state.staged == 0 {
            self.queues.remove(&slot);
            self.slots.remove(key);
            return;
        }
        for offset in &taking.again {
            self.set_hand(key, *offset, Hand::Free);
        }
    }

    /// At most `limit` of the oldest messages of queues that have as many left as may be: they are to be stored again,
    /// to make room. They are not given until they are [put back](Self::put_left_back).
    pub fn take_overfull(&mut self, limit: usize) -> Vec<(Key, QueueOffset)> {
        let mut taken = Vec::new();
        for slot in std::mem::take(&mut self.overfull) {
            let Some(state) = self.queues.get_mut(&slot) else { continue };
            // Stored again in its own topic a message would be left again, and so on.
            if state.key.topic.kind() == TopicKind::Retry {
                continue;
            }
            // Those that wait for others of their key must stay where they are.
            let free =
                state.left.iter().filter(|(at, key)| **key == OrderKey::NONE && !state.taken.contains(*at));
            let offsets: Vec<_> = free.map(|(offset, _)| *offset).take(limit).collect();
            state.taken.extend(&offsets);
            taken.extend(offsets.into_iter().map(|offset| (state.key.clone(), offset)));
        }
        taken
    }

    /// Whether a message that was [taken](Self::take_overfull) is still to be stored again: by now it may be gone, or the
    /// group begins anew.
    pub fn is_to_move(&self, key: &Key, offset: QueueOffset) -> bool {
        self.state(key).is_some_and(|state| {
            state.staged_begins == 0 && state.left.contains_key(&offset) && state.taken.contains(&offset)
        })
    }

    /// Messages that were left could not be stored again.
    pub fn put_left_back(&mut self, messages: &[(Key, QueueOffset)]) {
        for (key, offset) in messages {
            let Some(slot) = self.slots.get(key).copied() else { continue };
            let Some(state) = self.queues.get_mut(&slot) else { continue };
            state.taken.remove(offset);
            self.overfull.insert(slot);
        }
    }
}

impl QueueState {
    /// One message of a key less is on its way to being in flight or left.
    pub(super) fn open(&mut self, key: OrderKey) {
        if let Some(count) = self.closing.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.closing.remove(&key);
            }
        }
    }

    /// Whether the request asks once more for what it has got already.
    fn is_repeated(&self, entry: &InFlight, attempt: Option<&str>) -> bool {
        attempt.is_some()
            && match entry.delivery {
                Delivery::ByKey => entry.attempt == OrderKey::of(attempt),
                Delivery::Concurrent | Delivery::Orderly => attempt == self.attempt.as_deref(),
            }
    }
}
