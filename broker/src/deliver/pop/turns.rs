//! Priorities without starving: whose turn it is in topics whose queues stand for priorities.
//!
//! A pop looks at the highest queue first. One in [`LOW_EVERY`] looks at another queue before all others, each in its
//! turn: of a group's `LOW_EVERY` times n pops from a topic of n queues, at least one begins with each queue. So the first
//! message of the lowest queue waits at most for so many pops, however much comes with higher priorities.
//!
//! Where more messages are left in a queue than one pop may look at, the next one goes on where it ended.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use gantry_proto::ids::{QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicName};

use crate::groups::offsets::Key;

/// One in so many pops begins with the queue whose turn it is.
pub const LOW_EVERY: u32 = 8;
/// Groups and topics whose turns are known, and queues in which looks go on; with more of them all begin anew.
const KNOWN_MAX: usize = 4096;

/// How often groups have popped by priority.
#[derive(Debug, Default)]
pub struct Turns {
    /// Held for map operations only.
    pops: Mutex<HashMap<(GroupName, TopicName), u32>>,
}

impl Turns {
    /// The queue that the next pop begins with although others are higher; mostly none. The topic has `queues` queues.
    pub fn next(&self, group: &GroupName, topic: &TopicName, queues: u32) -> Option<QueueId> {
        let mut pops = self.pops.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (group.clone(), topic.clone());
        if pops.len() >= KNOWN_MAX && !pops.contains_key(&key) {
            pops.clear();
        }
        let pop = pops.entry(key).or_default();
        *pop = pop.wrapping_add(1);
        let (turn, is_low) = (*pop / LOW_EVERY, (*pop).is_multiple_of(LOW_EVERY));
        turn.checked_rem(queues).filter(|_| is_low).map(QueueId::new)
    }
}

/// Where looks at messages that were left in a queue go on, of queues where the last one did not get to the end.
#[derive(Debug, Default)]
pub struct LeftPlaces {
    /// Held for map operations only.
    places: Mutex<HashMap<Key, QueueOffset>>,
}

impl LeftPlaces {
    /// Where the next look begins, if not with the first message.
    pub fn get(&self, key: &Key) -> Option<QueueOffset> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    /// The next look begins here.
    pub fn set(&self, key: &Key, at: QueueOffset) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= KNOWN_MAX && !places.contains_key(key) {
            places.clear();
        }
        places.insert(key.clone(), at);
    }

    /// The next look begins with the first message.
    pub fn forget(&self, key: &Key) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// The queues of a topic, the highest first, but for the one whose turn it is.
pub fn by_priority(queues: u32, turn: Option<QueueId>) -> Vec<QueueId> {
    let others = (0..queues).rev().map(QueueId::new).filter(|id| Some(*id) != turn);
    turn.into_iter().chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_queue_has_its_turn() {
        let turns = Turns::default();
        let (group, other) = (GroupName::internal("g"), GroupName::internal("h"));
        let topic = TopicName::internal("T");
        let mut first = Vec::new();
        for _ in 0..LOW_EVERY * 4 {
            // Who else pops changes nothing.
            turns.next(&other, &topic, 4);
            first.extend(turns.next(&group, &topic, 4).map(QueueId::get));
        }
        first.sort_unstable();
        assert_eq!(first, [0, 1, 2, 3]);
        assert!((0..LOW_EVERY).all(|_| turns.next(&group, &topic, 0).is_none()));
    }

    #[test]
    fn the_highest_queue_comes_first() {
        let ids = |turn: Option<u32>| -> Vec<u32> {
            by_priority(4, turn.map(QueueId::new)).into_iter().map(QueueId::get).collect()
        };
        assert_eq!(ids(None), [3, 2, 1, 0]);
        assert_eq!(ids(Some(1)), [1, 3, 2, 0]);
    }

    #[test]
    fn the_table_is_bounded() {
        let turns = Turns::default();
        let group = GroupName::internal("g");
        for n in 0..KNOWN_MAX + 2 {
            turns.next(&group, &TopicName::internal(&format!("T{n}")), 4);
        }
        assert_eq!(turns.pops.lock().unwrap().len(), 2);
    }
}
