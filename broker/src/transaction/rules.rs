//! Times and bounds of transactions, and what follows from them for one half message.

use std::time::Duration;

use gantry_proto::ids::Millis;

use super::table::OpenHalf;
use crate::config::{Config, TransactionConfig};

/// Times and bounds of transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Times of the back-checks.
    pub checks: TransactionConfig,
    /// Age at which an unanswered half is parked even if nobody could be asked, in milliseconds. Default 72 h.
    pub age_ms_max: u64,
    /// Most back-checks sent in a second. Default 1000.
    pub checks_per_second: usize,
    /// Most open halves; beyond it new ones are refused. Default 1 000 000 (about 400 bytes of memory each).
    pub open_max: usize,
    /// Ended transactions whose end is still remembered, to answer late requests. Default 65 536.
    pub recent_max: usize,
    /// Longest wait for a half that is stored but not yet taken in.
    pub dispatch_wait: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            checks: TransactionConfig::default(),
            age_ms_max: 72 * 3_600_000,
            checks_per_second: 1_000,
            open_max: 1_000_000,
            recent_max: 65_536,
            dispatch_wait: Duration::from_secs(3),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Rules {
    /// What the configuration says; the rest as by default.
    pub fn new(config: &Config) -> Self {
        Self { checks: config.transaction, open_max: config.limits.open_halves, ..Self::default() }
    }

    /// Time from check number `checks` to the next, in milliseconds: 1, 2, 4, 8 … intervals up to the
    /// longest.
    pub fn interval_after(&self, checks: u32) -> u64 {
        let interval = millis(self.checks.check_interval);
        let longest = millis(self.checks.check_interval_max).max(interval);
        let times = 1_u64.checked_shl(checks.saturating_sub(1)).unwrap_or(u64::MAX);
        interval.saturating_mul(times).min(longest)
    }

    /// Time between two tries to find somebody to ask, in milliseconds.
    pub(super) fn retry_ms(&self) -> u64 {
        millis(self.checks.check_interval)
    }

    /// When a half may be checked first.
    pub(super) fn earliest_due(&self, half: &OpenHalf) -> Millis {
        half.stored.plus(half.immunity_ms.unwrap_or(millis(self.checks.timeout)))
    }

    /// When a half is due for its next check, or to be parked: at the greatest age whatever else holds.
    pub(super) fn next_due(&self, half: &OpenHalf) -> Millis {
        let due = if half.checks == 0 {
            self.earliest_due(half)
        } else {
            half.checked.max(half.stored).plus(self.interval_after(half.checks))
        };
        due.min(half.stored.plus(self.age_ms_max.saturating_add(1)))
    }

    /// Whether nobody is asked any more about this half.
    pub(super) fn is_spent(&self, half: &OpenHalf, now: Millis) -> bool {
        half.checks >= self.checks.max_checks || now.since(half.stored) > self.age_ms_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_doubles_up_to_the_longest() {
        let checks = TransactionConfig {
            check_interval: Duration::from_millis(10),
            check_interval_max: Duration::from_millis(100),
            ..TransactionConfig::default()
        };
        let rules = Rules { checks, ..Rules::default() };
        let intervals: Vec<_> = (1..=7).map(|checks| rules.interval_after(checks)).collect();
        assert_eq!(intervals, [10, 20, 40, 80, 100, 100, 100]);
        assert_eq!(rules.interval_after(u32::MAX), 100);
    }
}
