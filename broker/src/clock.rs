//! The only source of time in the broker. Tests drive hours of timers in milliseconds with
//! [`ManualClock`].

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gantry_proto::ids::Millis;

/// A clock that goes back by up to this many milliseconds is being corrected: what was noted before still
/// holds. One that goes back further had been set wrong.
pub const CORRECTION_MAX_MS: u64 = 10 * 60 * 1000;

/// The longest sleep until a time of the clock: it may be set meanwhile, and nobody tells.
pub const SLEEP_MAX: Duration = Duration::from_secs(1);

/// The longest sleep of a task that keeps log from being removed: what has come since may go without it.
pub const HOLD_SLEEP_MAX: Duration = Duration::from_secs(10);

/// Says what time it is.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The current time. It may step back when the operator sets the machine's clock.
    fn now(&self) -> Millis;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Millis {
        // A machine set before 1970 reads as 1970: timers then fire early, nothing is lost.
        let passed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Millis::new(i64::try_from(passed.as_millis()).unwrap_or(i64::MAX))
    }
}

/// A clock that moves only when it is told to.
#[derive(Debug, Default)]
pub struct ManualClock {
    now: AtomicI64,
}

impl ManualClock {
    /// A clock that stands at `now`.
    pub fn new(now: Millis) -> Self {
        Self { now: AtomicI64::new(now.get()) }
    }

    /// Jumps to `now`, forward or back.
    pub fn set(&self, now: Millis) {
        self.now.store(now.get(), Ordering::SeqCst);
    }

    /// Moves forward by `ms` milliseconds.
    pub fn advance(&self, ms: u64) {
        let step = i64::try_from(ms).unwrap_or(i64::MAX);
        self.now.fetch_add(step, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Millis {
        Millis::new(self.now.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_stands_still_until_told() {
        let clock = ManualClock::new(Millis::new(5));
        assert_eq!(clock.now(), Millis::new(5));
        clock.advance(10);
        assert_eq!(clock.now(), Millis::new(15));
        clock.set(Millis::new(3));
        assert_eq!(clock.now(), Millis::new(3));
    }

    #[test]
    fn the_system_clock_is_past_the_year_2020() {
        assert!(SystemClock.now() > Millis::new(1_577_836_800_000));
    }
}
