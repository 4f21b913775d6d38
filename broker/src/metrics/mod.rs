//! What the services count: plain atomics, read by whoever shows them.

pub mod histogram;
pub mod history;
pub mod rates;

use std::sync::atomic::{AtomicU64, Ordering};

use gantry_proto::ids::Millis;

pub use histogram::Histogram;
use history::{History, Totals};
use rates::Rates;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn bump(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// The number is now `n`.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// One more.
    pub fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less; each belongs to an [`up`](Self::up) before it.
    pub fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All numbers of one broker.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Messages stored for producers.
    pub messages_in: Counter,
    /// Bytes of their records.
    pub bytes_in: Counter,
    /// Messages given to consumers.
    pub messages_out: Counter,
    /// Bytes of their records.
    pub bytes_out: Counter,
    /// Pulls that were answered with messages.
    pub pulls_found: Counter,
    /// Pulls that found none.
    pub pulls_missed: Counter,
    /// Sends that were answered from the dedup window.
    pub dedup_hits: Counter,
    /// Requests refused because a bound was hit.
    pub refused: Counter,
    /// Sends refused because a rate was used up.
    pub sends_limited: Counter,
    /// Sends refused because too much waited to be written to the log.
    pub sends_behind: Counter,
    /// Times that a pull or a pop was made to wait because a rate was used up.
    pub pulls_limited: Counter,
    /// Times that a connection was not read from because too much of it was under way.
    pub connections_paused: Counter,
    /// Open connections.
    pub connections: Gauge,
    /// Pulls that wait for a message.
    pub waiting_polls: Gauge,
    /// Half messages without an end.
    pub open_halves: Gauge,
    /// Messages that were popped and are not acknowledged.
    pub popped_in_flight: Gauge,
    /// Popped messages that were not acknowledged in time and were stored again.
    pub pops_retried: Counter,
    /// Popped messages that became dead letters.
    pub pops_dead: Counter,
    /// Registered clients, counted once for each group.
    pub members: Gauge,
    /// Clients that were silent too long and were dropped.
    pub members_expired: Counter,
    /// Times that the members of a group began to subscribe differently.
    pub subscription_conflicts: Counter,
    /// Messages handed to other members of a group, because the one that asked does not subscribe to them.
    pub handed_over: Counter,
    /// Notices that a client's full outbox did not take.
    pub notices_dropped: Counter,
    /// Offsets acknowledged to consumers.
    pub offsets_committed: Counter,
    /// Offsets refused because they lie beyond the end of their queue.
    pub offsets_beyond_end: Counter,
    /// Offsets that an operator moved.
    pub offsets_reset: Counter,
    /// Timer messages that wait.
    pub timers_pending: Gauge,
    /// Timer messages that came, those that were stored anew among them.
    pub timers_taken: Counter,
    /// Timer messages that were delivered.
    pub timers_delivered: Counter,
    /// How long after their time they were there for consumers, in milliseconds.
    pub timer_lateness: Histogram,
    /// What the counters were.
    pub history: History,
    /// How topics and groups grow.
    pub rates: Rates,
}

impl Metrics {
    /// The counters of which a history is kept.
    pub fn totals(&self) -> Totals {
        Totals {
            messages_in: self.messages_in.get(),
            messages_out: self.messages_out.get(),
            pulls_found: self.pulls_found.get(),
            pulls_missed: self.pulls_missed.get(),
            timers_taken: self.timers_taken.get(),
            timers_delivered: self.timers_delivered.get(),
        }
    }

    /// Notes the counters for rates. To be called every ten seconds or so.
    pub fn sample(&self, now: Millis) {
        self.history.sample(now, self.totals());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_grow_and_gauges_move() {
        let metrics = Metrics::default();
        metrics.messages_in.add(3);
        metrics.messages_in.bump();
        metrics.connections.up();
        metrics.connections.up();
        metrics.connections.down();
        assert_eq!((metrics.messages_in.get(), metrics.connections.get()), (4, 1));
        metrics.connections.set(9);
        assert_eq!(metrics.connections.get(), 9);
    }
}
