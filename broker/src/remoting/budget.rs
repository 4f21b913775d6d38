//! What answers that clients do not read may cost all together.
//!
//! Each connection has a bound of its own; a thousand of them at their bounds are more than a machine has. While
//! what waits on all connections exceeds the budget, each of them prepares no more than one answer at a time.
//! What a connection keeps for its next use is bounded in the same way, and given back when it has been at rest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of answers that may wait on all connections before each has to do with little.
const BUDGET_BYTES: usize = 64 * 1024 * 1024;
/// Bytes that a connection may have waiting while the budget is spent; an answer may exceed them.
const SHARE_BYTES: usize = 16 * 1024;

/// Bytes that the buffers of one kind may keep while they are empty, on all connections.
const KEPT_BYTES: usize = 16 * 1024 * 1024;
/// Bytes that an empty buffer may keep at the least, and at the most.
const KEPT_BYTES_EACH: (usize, usize) = (4 * 1024, 256 * 1024);

/// More connections than this keep no buffers between two uses.
const CROWD: usize = 512;

/// Bytes of answers that wait on all connections.
#[derive(Debug, Default)]
pub struct Budget {
    used: AtomicUsize,
    /// Connections that have a part.
    shares: AtomicUsize,
}

/// One connection's part of them. Given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    counted: usize,
}

impl Share {
    /// A part of nothing.
    pub fn new(budget: &Arc<Budget>) -> Self {
        budget.shares.fetch_add(1, Ordering::Relaxed);
        Self { budget: Arc::clone(budget), counted: 0 }
    }

    /// Bytes that a buffer of this connection may keep while it is empty.
    pub fn keep(&self) -> usize {
        let (least, most) = KEPT_BYTES_EACH;
        (KEPT_BYTES / self.budget.shares.load(Ordering::Relaxed).max(1)).clamp(least, most)
    }

    /// This connection has so many bytes waiting.
    pub fn set(&mut self, bytes: usize) {
        if bytes > self.counted {
            self.budget.used.fetch_add(bytes - self.counted, Ordering::Relaxed);
        } else if bytes < self.counted {
            self.budget.used.fetch_sub(self.counted - bytes, Ordering::Relaxed);
        }
        self.counted = bytes;
    }

    /// Whether there are so many connections that their buffers are better given back at once.
    pub fn is_crowded(&self) -> bool {
        self.budget.shares.load(Ordering::Relaxed) > CROWD
    }

    /// How many bytes may wait here, given a connection's own bound.
    pub fn limit(&self, own: usize) -> usize {
        if self.budget.used.load(Ordering::Relaxed) < BUDGET_BYTES { own } else { own.min(SHARE_BYTES) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
        self.budget.shares.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spent_budget_leaves_each_a_small_share() {
        let budget = Arc::new(Budget::default());
        let (mut greedy, other) = (Share::new(&budget), Share::new(&budget));
        greedy.set(BUDGET_BYTES - 1);
        assert_eq!(other.limit(1 << 25), 1 << 25);
        greedy.set(BUDGET_BYTES);
        assert_eq!((other.limit(1 << 25), other.limit(100)), (SHARE_BYTES, 100));
        greedy.set(5);
        assert_eq!(budget.used.load(Ordering::Relaxed), 5);
        greedy.set(BUDGET_BYTES);
        drop(greedy);
        assert_eq!((other.limit(1 << 25), budget.used.load(Ordering::Relaxed)), (1 << 25, 0));
    }
    #[test]
    fn many_connections_keep_little_each() {
        let budget = Arc::new(Budget::default());
        let mut shares: Vec<_> = (0..2000).map(|_| Share::new(&budget)).collect();
        let (least, most) = KEPT_BYTES_EACH;
        assert_eq!((shares[0].keep(), shares[0].is_crowded()), (KEPT_BYTES / 2000, true));
        shares.truncate(64);
        assert_eq!((shares[0].keep(), shares[0].is_crowded()), (most, false));
        shares.extend((0..10_000).map(|_| Share::new(&budget)));
        assert_eq!(shares[0].keep(), least);
    }
}
