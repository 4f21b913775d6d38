//! When refused messages of a group come again: its retry policy in the form of Apache's `groupRetryPolicy`.
//!
//! Entry n of a customized policy is the delay before the n-th retry, and the last entry counts for all further ones. That is how Apache's
//! gRPC clients read it; its proxy skips the first two entries, which are there to line up with the delay levels, and its broker
//! reads none. A customized policy without a list is the broker's own: delay levels, from the third on.

use std::sync::Arc;

use gantry_proto::remoting::body::group::{GroupRetryPolicy, RetryPolicyType};

/// Delays of one customized policy.
pub const DELAYS_MAX: usize = 100;
/// The longest delay: 40 days, in milliseconds.
pub const DELAY_MS_MAX: u64 = 40 * 24 * 3600 * 1000;
/// The largest factor of an exponential policy.
pub const MULTIPLIER_MAX: u64 = 1000;

/// When refused messages of a group come again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Schedule {
    /// By the broker's delay levels, from the third on.
    #[default]
    Levels,
    /// After these delays in milliseconds, one after the other; the last one again and again. There is one at least.
    Listed(Arc<[u64]>),
    /// After growing delays, in milliseconds.
    Growing {
        /// Before the first retry.
        initial: u64,
        /// The longest.
        max: u64,
        /// How many times as long each is as the one before.
        multiplier: u64,
    },
}

/// Why a retry policy cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// A type that does not exist.
    #[error("there is no retry policy of the type {0:?}: take CUSTOMIZED or EXPONENTIAL")]
    Type(String),
    /// A list that is empty or too long.
    #[error("the retry policy lists {0} delays: list 1 to {DELAYS_MAX}")]
    Count(usize),
    /// A delay that cannot be.
    #[error("the retry policy has a delay of {0} ms: choose from 0 to {DELAY_MS_MAX} (40 days)")]
    Delay(i64),
    /// Growing delays that cannot be.
    #[error(
        "the retry policy grows from {initial} to {max} ms by {multiplier}: begin with 1 ms or more, end with as much or more, and take a multiplier from 1 to {MULTIPLIER_MAX}"
    )]
    Growth {
        /// Before the first retry, in milliseconds.
        initial: i64,
        /// The longest, in milliseconds.
        max: i64,
        /// The factor.
        multiplier: i64,
    },
}

impl Schedule {
    /// What the policy says.
    pub fn of(policy: &GroupRetryPolicy) -> Result<Self, ScheduleError> {
        match (&policy.kind, &policy.customized_retry_policy, &policy.exponential_retry_policy) {
            (RetryPolicyType::Other(kind), ..) => Err(ScheduleError::Type(kind.clone())),
            (RetryPolicyType::Customized, Some(listed), _) => {
                if listed.next.is_empty() || listed.next.len() > DELAYS_MAX {
                    return Err(ScheduleError::Count(listed.next.len()));
                }
                listed.next.iter().map(|ms| delay(*ms)).collect::<Result<_, _>>().map(Self::Listed)
            }
            (RetryPolicyType::Exponential, _, Some(growing)) => {
                let (initial, max) = (delay(growing.initial)?, delay(growing.max)?);
                let multiplier = u64::try_from(growing.multiplier).unwrap_or(0);
                if initial == 0 || max < initial || !(1..=MULTIPLIER_MAX).contains(&multiplier) {
                    let (initial, max, multiplier) = (growing.initial, growing.max, growing.multiplier);
                    return Err(ScheduleError::Growth { initial, max, multiplier });
                }
                Ok(Self::Growing { initial, max, multiplier })
            }
            _ => Ok(Self::Levels),
        }
    }

    /// How long a message waits that was refused `before` times before, in milliseconds; `None`: as its delay level says.
    pub fn delay_ms(&self, before: i32) -> Option<u64> {
        let before = u32::try_from(before).unwrap_or(0);
        match self {
            Self::Levels => None,
            Self::Listed(delays) => {
                delays.get(usize::try_from(before).unwrap_or(usize::MAX)).or_else(|| delays.last()).copied()
            }
            Self::Growing { initial, max, multiplier } => {
                Some(initial.saturating_mul(multiplier.saturating_pow(before)).min(*max))
            }
        }
    }
}

fn delay(ms: i64) -> Result<u64, ScheduleError> {
    u64::try_from(ms).ok().filter(|ms| *ms <= DELAY_MS_MAX).ok_or(ScheduleError::Delay(ms))
}

#[cfg(test)]
mod tests {
    use gantry_proto::remoting::body::group::{CustomizedRetryPolicy, ExponentialRetryPolicy};

    use super::*;

    fn listed(next: &[i64]) -> GroupRetryPolicy {
        let customized_retry_policy = Some(CustomizedRetryPolicy { next: next.to_vec() });
        GroupRetryPolicy { customized_retry_policy, ..GroupRetryPolicy::default() }
    }

    fn growing(initial: i64, max: i64, multiplier: i64) -> GroupRetryPolicy {
        GroupRetryPolicy {
            customized_retry_policy: None,
            exponential_retry_policy: Some(ExponentialRetryPolicy { initial, max, multiplier }),
            kind: RetryPolicyType::Exponential,
        }
    }

    fn delays(policy: &GroupRetryPolicy) -> Vec<Option<u64>> {
        let schedule = Schedule::of(policy).unwrap();
        [-1, 0, 1, 2, 3, i32::MAX].map(|before| schedule.delay_ms(before)).to_vec()
    }

    #[test]
    fn listed_delays_follow_each_other_and_the_last_one_stays() {
        let expected = [10, 10, 0, 1_000, 1_000, 1_000].map(Some);
        assert_eq!(delays(&listed(&[10, 0, 1_000])), expected);
    }

    #[test]
    fn growing_delays_grow_up_to_the_longest() {
        assert_eq!(delays(&growing(5, 30, 2)), [5, 5, 10, 20, 30, 30].map(Some));
        assert_eq!(delays(&growing(5, 5, 1)), [5; 6].map(Some));
    }

    #[test]
    fn without_delays_the_levels_count() {
        let apaches = GroupRetryPolicy::default();
        assert_eq!(delays(&apaches), [None; 6]);
        let without = GroupRetryPolicy { kind: RetryPolicyType::Exponential, ..apaches };
        assert_eq!(delays(&without), [None; 6]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_sentence() {
        let text = |policy: &GroupRetryPolicy| Schedule::of(policy).unwrap_err().to_string();
        assert!(text(&listed(&[])).contains("lists 0 delays"));
        assert!(text(&listed(&[1; 101])).contains("lists 101 delays"));
        assert!(text(&listed(&[5, -1])).contains("a delay of -1 ms"));
        assert!(text(&growing(5, 3_456_000_001, 2)).contains("a delay of 3456000001 ms"));
        for (initial, max, multiplier) in [(0, 5, 2), (5, 4, 2), (5, 6, 0), (5, 6, 1001)] {
            assert!(
                text(&growing(initial, max, multiplier)).contains("grows from"),
                "{initial} {max} {multiplier}"
            );
        }
        let kind = RetryPolicyType::Other("LINEAR".to_owned());
        assert!(text(&GroupRetryPolicy { kind, ..GroupRetryPolicy::default() }).contains("\"LINEAR\""));
    }
}
