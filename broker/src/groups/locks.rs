//! Queue locks: which member of a group may consume a queue in order.
//!
//! A lock is a lease. It is not stored: after a restart every consumer locks again, and what it has not
//! committed is delivered once more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_proto::ids::{Millis, QueueId};
use gantry_proto::names::{GroupName, TopicName};

use crate::clock::Clock;

/// Locks that may be held at the same time, over all groups.
const LOCKS_MAX: usize = 1_000_000;

/// A queue of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueKey {
    /// The topic.
    pub topic: TopicName,
    /// The queue in it.
    pub queue: QueueId,
}

#[derive(Debug)]
struct Lock {
    client: Arc<str>,
    renewed: Millis,
}

type GroupLocks = HashMap<QueueKey, Lock>;

/// All locks of all groups.
#[derive(Debug)]
pub struct Locks {
    clock: Arc<dyn Clock>,
    lease_ms: u64,
    max: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    groups: HashMap<GroupName, GroupLocks>,
    /// Locks in `groups`, expired ones included.
    held: usize,
}

impl Locks {
    /// No locks; each will hold for `lease` after it was last renewed.
    pub fn new(clock: Arc<dyn Clock>, lease: Duration) -> Self {
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        Self { clock, lease_ms, max: LOCKS_MAX, table: Mutex::default() }
    }

    /// Locks the queues for `client`, or renews its locks; returns those that it holds now. A queue
    /// that another live member holds is left out, as is every new one while the table is full.
    pub fn lock_batch(&self, group: &GroupName, client: &str, queues: Vec<QueueKey>) -> Vec<QueueKey> {
        let now = self.clock.now();
        let mut table = self.lock();
        if table.held + queues.len() > self.max {
            table.drop_expired(now, self.lease_ms);
        }
        let Table { groups, held } = &mut *table;
        let locks = groups.entry(group.clone()).or_default();
        let client: Arc<str> = Arc::from(client);
        let mut granted = Vec::with_capacity(queues.len());
        for key in queues {
            match locks.get_mut(&key) {
                Some(lock) if lock.client == client || lock.expired(now, self.lease_ms) => {
                    *lock = Lock { client: Arc::clone(&client), renewed: now };
                    granted.push(key);
                }
                None if *held < self.max => {
                    locks.insert(key.clone(), Lock { client: Arc::clone(&client), renewed: now });
                    *held += 1;
                    granted.push(key);
                }
                // Another member holds it, or there is no room.
                _ => {}
            }
        }
        if locks.is_empty() {
            groups.remove(group);
        }
        granted
    }

    /// Gives up those of the queues that `client` holds.
    pub fn unlock_batch(&self, group: &GroupName, client: &str, queues: &[QueueKey]) {
        let mut table = self.lock();
        let Table { groups, held } = &mut *table;
        let Some(locks) = groups.get_mut(group) else { return };
        for key in queues {
            if locks.get(key).is_some_and(|lock| &*lock.client == client) {
                locks.remove(key);
                *held -= 1;
            }
        }
        if locks.is_empty() {
            groups.remove(group);
        }
    }

    /// The member that holds the queue now.
    pub fn holder(&self, group: &str, key: &QueueKey) -> Option<Arc<str>> {
        let now = self.clock.now();
        let table = self.lock();
        let lock = table.groups.get(group)?.get(key)?;
        (!lock.expired(now, self.lease_ms)).then(|| Arc::clone(&lock.client))
    }

    /// Whether any member of the group holds any queue: the group consumes in order.
    pub fn is_ordered(&self, group: &str) -> bool {
        let now = self.clock.now();
        let table = self.lock();
        table
            .groups
            .get(group)
            .is_some_and(|locks| locks.values().any(|lock| !lock.expired(now, self.lease_ms)))
    }

    /// Forgets all locks of a group that was deleted.
    pub fn remove_group(&self, group: &str) {
        let mut table = self.lock();
        if let Some(locks) = table.groups.remove(group) {
            table.held -= locks.len();
        }
    }

    /// Forgets all locks on a topic that was deleted.
    pub fn remove_topic(&self, topic: &str) {
        self.lock().retain(|key, _| key.topic != topic);
    }

    /// Forgets locks whose lease ran out. To be called now and then.
    pub fn sweep(&self) {
        let now = self.clock.now();
        let mut table = self.lock();
        for lock in table.groups.values_mut().flat_map(HashMap::values_mut) {
            lock.renewed = lock.renewed.min(now); // the clock may have been set back
        }
        table.drop_expired(now, self.lease_ms);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lock {
    fn expired(&self, now: Millis, lease_ms: u64) -> bool {
        now.since(self.renewed) >= lease_ms
    }
}

impl Table {
    fn drop_expired(&mut self, now: Millis, lease_ms: u64) {
        self.retain(|_, lock| !lock.expired(now, lease_ms));
    }

    fn retain(&mut self, keep: impl Fn(&QueueKey, &Lock) -> bool) {
        for locks in self.groups.values_mut() {
            locks.retain(|key, lock| keep(key, lock));
        }
        self.groups.retain(|_, locks| !locks.is_empty());
        self.held = self.groups.values().map(HashMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn key(queue: u32) -> QueueKey {
        QueueKey { topic: TopicName::internal("T"), queue: QueueId::new(queue) }
    }

    fn locks() -> (Arc<ManualClock>, Locks, GroupName) {
        let clock = Arc::new(ManualClock::new(Millis::new(1_000_000)));
        let locks = Locks::new(clock.clone(), Duration::from_secs(60));
        (clock, locks, GroupName::internal("g"))
    }

    #[test]
    fn a_queue_has_one_holder_until_its_lease_ends() {
        let (clock, locks, group) = locks();
        assert_eq!(locks.lock_batch(&group, "a", vec![key(0), key(1)]), vec![key(0), key(1)]);
        assert_eq!(locks.lock_batch(&group, "b", vec![key(1), key(2)]), vec![key(2)]);
        clock.advance(59_999);
        assert_eq!(locks.lock_batch(&group, "a", vec![key(0)]), vec![key(0)]);
        clock.advance(1);
        assert_eq!(locks.lock_batch(&group, "b", vec![key(0), key(1)]), vec![key(1)]);
        assert_eq!(locks.holder("g", &key(0)).as_deref(), Some("a"));
        assert_eq!(locks.holder("g", &key(2)), None);
    }

    #[test]
    fn a_clock_that_was_set_back_prolongs_no_lease_for_long() {
        let (clock, locks, group) = locks();
        locks.lock_batch(&group, "a", vec![key(0)]);
        clock.set(Millis::new(500_000));
        locks.sweep();
        clock.advance(60_000);
        assert_eq!(locks.lock_batch(&group, "b", vec![key(0)]), vec![key(0)]);
    }

    #[test]
    fn only_the_holder_unlocks() {
        let (_, locks, group) = locks();
        locks.lock_batch(&group, "a", vec![key(0)]);
        locks.unlock_batch(&group, "b", &[key(0)]);
        assert!(locks.is_ordered("g"));
        locks.unlock_batch(&group, "a", &[key(0)]);
        assert!(!locks.is_ordered("g"));
        assert_eq!(locks.lock().held, 0);
    }

    #[test]
    fn groups_do_not_see_each_other() {
        let (_, locks, group) = locks();
        let other = GroupName::internal("h");
        locks.lock_batch(&group, "a", vec![key(0)]);
        assert_eq!(locks.lock_batch(&other, "b", vec![key(0)]), vec![key(0)]);
        locks.remove_group("g");
        assert_eq!(locks.holder("h", &key(0)).as_deref(), Some("b"));
        locks.remove_topic("T");
        assert_eq!(locks.holder("h", &key(0)), None);
        assert_eq!(locks.lock().held, 0);
    }

    #[test]
    fn a_full_table_drops_what_expired_and_refuses_the_rest() {
        let (clock, mut locks, group) = locks();
        locks.max = 2;
        assert_eq!(locks.lock_batch(&group, "a", vec![key(0), key(1), key(2)]), vec![key(0), key(1)]);
        assert_eq!(locks.lock_batch(&group, "b", vec![key(3)]), vec![]);
        clock.advance(60_000);
        assert_eq!(locks.lock_batch(&group, "b", vec![key(3)]), vec![key(3)]);
        assert_eq!(locks.lock().held, 1);
        clock.advance(60_000);
        locks.sweep();
        assert!(locks.lock().groups.is_empty());
    }
}
