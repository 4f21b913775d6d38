//! Rates over the last seconds and totals of the last days, from samples of the counters.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use gantry_proto::ids::Millis;

const DAY_MS: i64 = 24 * 3600 * 1000;
/// Samples closer than this are not kept.
const SPACING_MS: u64 = 5_000;
/// Samples older than this are of no use.
const REACH_MS: u64 = 620_000;

/// The counters at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Messages stored for producers.
    pub messages_in: u64,
    /// Messages given to consumers.
    pub messages_out: u64,
    /// Pulls that were answered with messages.
    pub pulls_found: u64,
    /// Pulls that found none.
    pub pulls_missed: u64,
    /// Timer messages that came.
    pub timers_taken: u64,
    /// Timer messages that were delivered.
    pub timers_delivered: u64,
}

/// Totals at the start of two days, counted in UTC from the start of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mornings {
    /// When the day before today began.
    pub yesterday: Totals,
    /// When today began.
    pub today: Totals,
}

/// What the counters were.
#[derive(Debug, Default)]
pub struct History {
    /// Guards the samples.
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    samples: VecDeque<(Millis, Totals)>,
    day: Option<i64>,
    mornings: Mornings,
}

impl History {
    /// Notes the counters. To be called every ten seconds or so; at most one in five seconds is kept.
    pub fn sample(&self, now: Millis, totals: Totals) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let day = now.get().div_euclid(DAY_MS);
        match inner.day.replace(day) {
            Some(before) if day == before + 1 => {
                inner.mornings = Mornings { yesterday: inner.mornings.today, today: totals };
            }
            Some(before) if day > before => inner.mornings = Mornings { yesterday: totals, today: totals },
            _ => {}
        }
        if inner.samples.back().is_some_and(|(at, _)| now.since(*at) < SPACING_MS) {
            return;
        }
        inner.samples.push_back((now, totals));
        while inner.samples.front().is_some_and(|(at, _)| now.since(*at) > REACH_MS) {
            inner.samples.pop_front();
        }
    }

    /// What the counters were about `ms` ago, and how long ago exactly; the oldest known when the process
    /// is younger. `None` when nothing was noted yet.
    pub fn before(&self, now: Millis, ms: u64) -> Option<(Totals, u64)> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let old_enough = inner.samples.iter().rev().find(|(at, _)| now.since(*at) >= ms);
        let (at, totals) = old_enough.or(inner.samples.front())?;
        Some((*totals, now.since(*at)))
    }

    /// Totals at the start of yesterday and of today.
    pub fn mornings(&self) -> Mornings {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).mornings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(messages_in: u64) -> Totals {
        Totals { messages_in, ..Totals::default() }
    }

    #[test]
    fn the_past_is_looked_up_by_age() {
        let history = History::default();
        let now = Millis::new(1_000_000);
        assert_eq!(history.before(now, 10_000), None);
        for step in 0..100 {
            history.sample(now.plus(step * 10_000), totals(step));
        }
        let now = now.plus(99 * 10_000);
        assert_eq!(history.before(now, 10_000), Some((totals(98), 10_000)));
        assert_eq!(history.before(now, 60_000), Some((totals(93), 60_000)));
        assert_eq!(history.before(now, 600_000), Some((totals(39), 600_000)));
        // Older samples are dropped.
        assert_eq!(history.before(now, u64::MAX), Some((totals(37), 620_000)));
        assert!(history.inner.lock().unwrap().samples.len() < 70);
    }

    #[test]
    fn samples_in_quick_succession_are_not_kept() {
        let history = History::default();
        for ms in 0..100 {
            history.sample(Millis::new(ms), totals(1));
        }
        assert_eq!(history.inner.lock().unwrap().samples.len(), 1);
    }

    #[test]
    fn days_begin_at_midnight() {
        let history = History::default();
        let sample =
            |day: i64, hour: i64, n| history.sample(Millis::new(day * DAY_MS + hour * 3_600_000), totals(n));
        sample(0, 5, 10);
        assert_eq!(history.mornings(), Mornings::default());
        sample(1, 0, 30);
        assert_eq!(history.mornings(), Mornings { yesterday: totals(0), today: totals(30) });
        sample(1, 12, 40);
        sample(2, 1, 50);
        assert_eq!(history.mornings(), Mornings { yesterday: totals(30), today: totals(50) });
        sample(9, 1, 60);
        assert_eq!(history.mornings(), Mornings { yesterday: totals(60), today: totals(60) });
    }
}
