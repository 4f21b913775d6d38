//! How a connection waits: what it does on its own thread instead of waking another one.
//!
//! Two things cost more than the work itself when requests come one by one: handing the flush to the flusher
//! thread and back, and letting this thread fall asleep until the next request. `Alone` and `FlushHere` say when a
//! connection had better flush itself; `Spin` when it had better look for its next request a moment longer. Both
//! judge by what was the case lately, so that a broker without such a client pays nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Requests of one read, at the most, that are flushed on the connection's thread, or behind which it spins.
const FEW: usize = 8;
/// Reads in a row for which a connection must have been the only one that stored anything.
const ALONE_READS: u32 = 8;
/// A flush that takes longer would keep others on this thread waiting.
const FLUSH_MAX: Duration = Duration::from_micros(500);
/// After a slow flush so many reads are left to the flusher.
const SLOW_READS: u32 = 64;

/// How long a connection looks for its next request before it sleeps.
pub(super) const SPIN_MAX: Duration = Duration::from_micros(20);
/// What a request that came in time is worth, up to [`SCORE_MAX`]; one that did not costs [`MISS`]. So about nine of
/// ten must come in time: looking in vain costs more than a wake-up.
const SCORE_MAX: u32 = 32;
const MISS: u32 = 8;
/// Reads after which a connection that does not spin tries whether it should; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: u32 = 32;
const PAUSE_MAX: u32 = 8192;

/// Which connection stored something last, of all.
#[derive(Debug, Default)]
pub struct Alone(AtomicU64);

impl Alone {
    /// Notes that `connection` stored something; whether it did the last time too.
    fn is_again(&self, connection: u64) -> bool {
        self.0.load(Ordering::Relaxed) == connection
            || self.0.swap(connection, Ordering::Relaxed) == connection
    }
}

/// Whether one connection flushes on its own thread.
#[derive(Debug, Default)]
pub(super) struct FlushHere {
    /// Reads in a row without another connection's.
    alone: u32,
    /// Reads that are still left to the flusher.
    slow: u32,
}

impl FlushHere {
    /// Whether what was stored by the read just handled, of so many requests, is to be flushed here.
    pub(super) fn decide(&mut self, everyone: &Alone, connection: u64, requests: usize) -> bool {
        self.alone = if everyone.is_again(connection) { self.alone.saturating_add(1) } else { 0 };
        if self.slow > 0 {
            self.slow -= 1;
            return false;
        }
        requests <= FEW && self.alone >= ALONE_READS
    }

    /// Notes how long the flush took.
    pub(super) fn took(&mut self, time: Duration) {
        if time > FLUSH_MAX {
            self.slow = SLOW_READS;
        }
    }
}

/// Whether one connection looks for its next request before it sleeps.
#[derive(Debug)]
pub(super) struct Spin {
    score: u32,
    /// Reads until the next try.
    pause: u32,
    next_pause: u32,
    /// Whether everything that was read is answered, and it was little.
    ready: bool,
}

impl Default for Spin {
    fn default() -> Self {
        Self { score: 0, pause: PAUSE_MIN, next_pause: PAUSE_MIN, ready: false }
    }
}

impl Spin {
    /// Notes that so many requests were read.
    pub(super) fn read(&mut self, requests: usize) {
        self.ready = (1..=FEW).contains(&requests);
        if self.score > 0 || !self.ready {
            return;
        }
        self.pause = self.pause.saturating_sub(1);
        if self.pause == 0 {
            self.score = 1;
        }
    }

    /// Whether to look for the next request now. Once for each read.
    pub(super) fn begins(&mut self) -> bool {
        std::mem::take(&mut self.ready) && self.score > 0
    }

    /// Notes that the request came in time.
    pub(super) fn hit(&mut self) {
        self.score = (self.score + 1).min(SCORE_MAX);
        if self.score == SCORE_MAX {
            self.next_pause = PAUSE_MIN;
        }
    }

    /// Notes that it did not.
    pub(super) fn miss(&mut self) {
        self.score = self.score.saturating_sub(MISS);
        if self.score == 0 {
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(PAUSE_MAX);
        }
    }
}

/// Stays awake for `time`, while the runtime looks for what arrives and others take their turns.
pub(super) async fn look_for(time: Duration) {
    let began = Instant::now();
    // Bounded for clocks that stand still until nobody is awake.
    for _ in 0..1000 {
        if began.elapsed() >= time {
            return;
        }
        tokio::task::yield_now().await;
        std::thread::yield_now(); // who asks may be on this core
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_alone_for_a_while_flushes_few_requests_itself() {
        let (everyone, mut flush) = (Alone::default(), FlushHere::default());
        let decided: Vec<bool> = (0..12).map(|_| flush.decide(&everyone, 1, 1)).collect();
        assert_eq!(decided.iter().filter(|here| **here).count(), 4);
        assert!(decided[11] && !flush.decide(&everyone, 1, FEW + 1));
        assert!(!FlushHere::default().decide(&everyone, 2, 1));
        assert!(!flush.decide(&everyone, 1, 1), "another connection stored something");
    }

    #[test]
    fn a_slow_flush_leaves_the_next_ones_to_the_flusher() {
        let (everyone, mut flush) = (Alone::default(), FlushHere::default());
        let decide = |flush: &mut FlushHere| flush.decide(&everyone, 1, 1);
        while !decide(&mut flush) {}
        flush.took(FLUSH_MAX * 2);
        assert_eq!((0..100).take_while(|_| !decide(&mut flush)).count(), SLOW_READS as usize);
    }

    /// Of so many reads, how many were followed by a spin, when so many of a hundred requests come in time.
    fn spins(reads: u32, hits_of_100: u32) -> u32 {
        let mut spin = Spin::default();
        let mut spun = 0;
        for number in 0..reads {
            spin.read(1);
            if spin.begins() {
                spun += 1;
                if number * 37 % 100 < hits_of_100 { spin.hit() } else { spin.miss() }
            }
            assert!(!spin.begins(), "once for each read");
        }
        spun
    }

    #[test]
    fn spinning_goes_on_where_requests_come_at_once_and_ends_where_they_do_not() {
        assert!(spins(10_000, 100) > 9_900);
        assert!(spins(10_000, 97) > 9_000);
        assert!(spins(10_000, 0) < 12);
        assert!(spins(100_000, 50) < 1_000);
    }

    #[test]
    fn nothing_is_looked_for_behind_many_requests() {
        let mut spin = Spin::default();
        for _ in 0..1000 {
            spin.read(FEW + 1);
            assert!(!spin.begins());
        }
    }
}
