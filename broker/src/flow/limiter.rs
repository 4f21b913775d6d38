//! One token bucket for messages and one for bytes, and what happened at them.
//!
//! A bucket fills with the rate up to the burst. Whoever comes while it holds something is let pass and pays in full,
//! if need be on credit: so a message that is larger than the burst passes too, and the ones behind it wait the longer.
//! Nothing but the clock and the order of the calls decides.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use gantry_proto::ids::Millis;

use super::Subject;
use crate::config::RateLimits;

/// A thousandth of a message or byte: a rate of one a second gives one of these a millisecond.
const UNIT: i64 = 1000;
/// How often people are told that a limit holds something up, in milliseconds.
const TELL_MS: u64 = 60_000;

/// Which of the two rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Messages a second.
    Messages,
    /// Bytes a second.
    Bytes,
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Messages => "messages",
            Self::Bytes => "bytes",
        })
    }
}

/// A rate is used up for now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{subject} {name} has used up its {limit} {measure} a second: try again in {retry_ms} ms, or raise {}{}",
    subject.attribute(),
    if *measure == Measure::Bytes { ".bytes" } else { "" }
)]
pub struct Limited {
    /// Whose rate it is.
    pub subject: Subject,
    /// Its name.
    pub name: String,
    /// What is counted.
    pub measure: Measure,
    /// How many of them may pass in a second.
    pub limit: u64,
    /// When one more may pass, if nobody else is faster.
    pub retry_ms: u64,
}

/// What may pass now: at least one message, whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Messages.
    pub messages: usize,
    /// Bytes.
    pub bytes: usize,
}

/// What is left of one rate, in [`UNIT`]s; negative while something was let pass on credit.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: i64,
    rate: i64,
    full: i64,
}

impl Bucket {
    /// A full one; `None` without a limit.
    fn new(rate: u64, burst_ms: u32) -> Option<Self> {
        let rate = i64::try_from(rate).ok().filter(|rate| *rate > 0)?;
        // At least one message or byte must fit.
        let full = rate.saturating_mul(i64::from(burst_ms)).max(UNIT);
        Some(Self { level: full, rate, full })
    }

    fn refill(&mut self, ms: u64) {
        let ms = i64::try_from(ms).unwrap_or(i64::MAX);
        self.level = self.level.saturating_add(self.rate.saturating_mul(ms)).min(self.full);
    }

    fn pay(&mut self, count: u64) {
        let cost = i64::try_from(count).unwrap_or(i64::MAX).saturating_mul(UNIT);
        self.level = self.level.saturating_sub(cost);
    }

    /// Milliseconds until there is one, and until as many more are there as wait already.
    fn wait_ms(&self, waiting: u64) -> Option<u64> {
        let lacks = UNIT.saturating_sub(self.level);
        if lacks <= 0 {
            return None;
        }
        let others = i64::try_from(waiting).unwrap_or(i64::MAX).saturating_mul(UNIT);
        let ms = lacks.saturating_add(others).saturating_add(self.rate - 1) / self.rate;
        Some(u64::try_from(ms).unwrap_or(0).max(1))
    }

    fn room(bucket: Option<Self>) -> usize {
        bucket.map_or(usize::MAX, |bucket| usize::try_from(bucket.level / UNIT).unwrap_or(0))
    }
}

#[derive(Debug)]
struct State {
    limits: RateLimits,
    messages: Option<Bucket>,
    bytes: Option<Bucket>,
    /// When the buckets were filled last.
    at: Millis,
    /// When people were told last, and what happened since.
    told: Option<Millis>,
    untold: u64,
}

/// The buckets of one topic or group.
#[derive(Debug)]
pub struct Limiter {
    subject: Subject,
    name: String,
    /// Guards the buckets.
    state: Mutex<State>,
    /// Requests that were refused or made to wait.
    limited: AtomicU64,
    /// Requests that wait until something may pass.
    waiting: AtomicU64,
}

impl Limiter {
    /// Full buckets.
    pub fn new(subject: Subject, name: &str, limits: RateLimits, now: Millis) -> Self {
        let state = State {
            limits,
            messages: Bucket::new(limits.messages, limits.burst_ms),
            bytes: Bucket::new(limits.bytes, limits.burst_ms),
            at: now,
            told: None,
            untold: 0,
        };
        Self {
            subject,
            name: name.to_owned(),
            state: Mutex::new(state),
            limited: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What may pass in a second.
    pub fn limits(&self) -> RateLimits {
        self.lock().limits
    }

    /// Requests that were refused or made to wait.
    pub fn limited(&self) -> u64 {
        self.limited.load(Ordering::Relaxed)
    }

    /// Goes on with other limits. What is owed stays owed.
    pub fn adjust(&self, limits: RateLimits) {
        let mut state = self.lock();
        if state.limits == limits {
            return;
        }
        let change = |old: Option<Bucket>, rate| {
            let new = Bucket::new(rate, limits.burst_ms)?;
            Some(Bucket { level: old.map_or(new.full, |old| old.level.min(new.full)), ..new })
        };
        state.messages = change(state.messages, limits.messages);
        state.bytes = change(state.bytes, limits.bytes);
        state.limits = limits;
    }

    /// Whether something may pass at `now`, and how much. Nothing is taken: [`pay`](Self::pay) for what passes.
    pub fn admit(&self, now: Millis) -> Result<Room, Limited> {
        let mut state = self.lock();
        state.refill(now);
        let waiting = self.waiting.load(Ordering::Relaxed);
        for (measure, bucket, limit) in [
            (Measure::Messages, state.messages, state.limits.messages),
            (Measure::Bytes, state.bytes, state.limits.bytes),
        ] {
            if let Some(retry_ms) = bucket.and_then(|bucket| bucket.wait_ms(waiting)) {
                self.limited.fetch_add(1, Ordering::Relaxed);
                self.tell(&mut state, measure, limit, now);
                let (subject, name) = (self.subject, self.name.clone());
                return Err(Limited { subject, name, measure, limit, retry_ms });
            }
        }
        Ok(Room { messages: Bucket::room(state.messages), bytes: Bucket::room(state.bytes) })
    }

    /// This passed at `now`.
    pub fn pay(&self, messages: u64, bytes: u64, now: Millis) {
        let mut state = self.lock();
        state.refill(now);
        if let Some(bucket) = &mut state.messages {
            bucket.pay(messages);
        }
        if let Some(bucket) = &mut state.bytes {
            bucket.pay(bytes);
        }
    }

    /// One more request waits until something may pass: the next ones wait behind it.
    pub fn wait(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// A request that waited does so no more.
    pub fn leave(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether nothing is owed and nobody waits: a new one would be the same.
    pub fn is_idle(&self, now: Millis) -> bool {
        let mut state = self.lock();
        state.refill(now);
        let full = |bucket: Option<Bucket>| bucket.is_none_or(|bucket| bucket.level >= bucket.full);
        full(state.messages)
            && full(state.bytes)
            && state.untold == 0
            && self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Says what happened since people were told last, when that is long enough ago.
    pub fn tell_rest(&self, now: Millis) {
        let mut state = self.lock();
        if state.untold > 0 && !state.was_just_told(now) {
            let limits = state.limits;
            let (subject, name, limited) = (self.subject, &self.name, state.untold);
            tracing::warn!(
                %subject, name, messages = limits.messages, bytes = limits.bytes, limited,
                "requests were held or refused since this limit was last told of"
            );
            (state.told, state.untold) = (Some(now), 0);
        }
    }

    /// One line for each limit and period, however many requests it concerns.
    fn tell(&self, state: &mut State, measure: Measure, limit: u64, now: Millis) {
        state.untold += 1;
        if state.was_just_told(now) {
            return;
        }
        let (subject, name, limited) = (self.subject, &self.name, state.untold);
        tracing::warn!(
            %subject, name, %measure, limit, limited,
            "a rate is used up; requests are held or refused until it allows more"
        );
        (state.told, state.untold) = (Some(now), 0);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn was_just_told(&self, now: Millis) -> bool {
        self.told.is_some_and(|told| now >= told && now.since(told) < TELL_MS)
    }

    fn refill(&mut self, now: Millis) {
        // A clock that was set back adds nothing, and is gone by from where it is now.
        let passed = if now > self.at { now.since(self.at) } else { 0 };
        self.at = now;
        for bucket in [&mut self.messages, &mut self.bytes].into_iter().flatten() {
            bucket.refill(passed);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixture::NOW;

    fn limiter(messages: u64, bytes: u64, burst_ms: u32) -> Limiter {
        Limiter::new(Subject::Topic, "T", RateLimits { messages, bytes, burst_ms }, NOW)
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let limiter = limiter(10, 0, 1000);
        for _ in 0..10 {
            limiter.admit(NOW).unwrap();
            limiter.pay(1, 1 << 40, NOW);
        }
        let limited = limiter.admit(NOW).unwrap_err();
        assert_eq!((limited.retry_ms, limited.limit, limited.measure), (100, 10, Measure::Messages));
        assert_eq!(
            limited.to_string(),
            "topic T has used up its 10 messages a second: try again in 100 ms, or raise gantry.rate"
        );
        assert!(limiter.admit(NOW.plus(99)).is_err());
        assert_eq!(limiter.admit(NOW.plus(100)).map(|room| room.messages), Ok(1));
        assert_eq!(limiter.admit(NOW.plus(3_600_000)).map(|room| room.messages), Ok(10));
        assert_eq!(limiter.limited(), 2);
    }

    #[test]
    fn what_is_larger_than_the_burst_passes_on_credit() {
        let limiter = limiter(0, 1000, 100);
        assert_eq!(limiter.admit(NOW), Ok(Room { messages: usize::MAX, bytes: 100 }));
        limiter.pay(1, 2000, NOW);
        let limited = limiter.admit(NOW).unwrap_err();
        assert_eq!((limited.retry_ms, limited.measure), (1901, Measure::Bytes));
        assert!(limited.to_string().ends_with("raise gantry.rate.bytes"), "{limited}");
        assert!(limiter.admit(NOW.plus(1901)).is_ok());
    }

    #[test]
    fn who_waits_is_counted_in() {
        let limiter = limiter(10, 0, 100);
        limiter.pay(1, 0, NOW);
        assert_eq!(limiter.admit(NOW).unwrap_err().retry_ms, 100);
        limiter.wait();
        limiter.wait();
        assert_eq!(limiter.admit(NOW).unwrap_err().retry_ms, 300);
        limiter.leave();
        assert_eq!(limiter.admit(NOW).unwrap_err().retry_ms, 200);
        assert!(!limiter.is_idle(NOW.plus(5000)));
    }

    #[test]
    fn other_limits_hold_at_once_and_debts_stay() {
        let limiter = limiter(10, 0, 1000);
        limiter.pay(20, 0, NOW);
        limiter.adjust(RateLimits { messages: 1000, bytes: 5, burst_ms: 1000 });
        assert_eq!(limiter.admit(NOW).unwrap_err().retry_ms, 11);
        limiter.adjust(RateLimits { messages: 0, bytes: 5, burst_ms: 1000 });
        assert_eq!(limiter.admit(NOW), Ok(Room { messages: usize::MAX, bytes: 5 }));
        assert!(limiter.is_idle(NOW));
    }

    #[test]
    fn a_clock_that_is_set_back_neither_gives_nor_blocks() {
        let limiter = limiter(10, 0, 100);
        limiter.pay(1, 0, NOW);
        let before = Millis::new(NOW.get() - 3_600_000);
        assert_eq!(limiter.admit(before).unwrap_err().retry_ms, 100);
        assert!(limiter.admit(before.plus(100)).is_ok());
    }

    proptest! {
        #![proptest_config(crate::fixture::cases(200))]

        /// In any time no more passes than the burst, what the rate gives, and one message on credit.
        #[test]
        fn no_more_passes_than_is_allowed(
            rate in 1_u64..10_000,
            burst_ms in 1_u32..5_000,
            steps in prop::collection::vec((0_u64..500, 1_u64..40), 1..200),
        ) {
            let limiter = limiter(rate, 0, burst_ms);
            let (mut now, mut passed, mut largest) = (NOW, 0, 0);
            for (ms, count) in steps {
                now = now.plus(ms);
                match limiter.admit(now) {
                    Ok(room) => {
                        prop_assert!(room.messages >= 1);
                        limiter.pay(count, 0, now);
                        passed += count;
                        largest = largest.max(count);
                    }
                    Err(limited) => {
                        prop_assert!(limiter.admit(now.plus(limited.retry_ms)).is_ok());
                        now = now.plus(limited.retry_ms);
                    }
                }
                let time = now.since(NOW) + u64::from(burst_ms);
                prop_assert!(passed <= rate * time / 1000 + 1 + largest, "{passed} in {time} ms");
            }
        }

        /// Any numbers are taken.
        #[test]
        fn nothing_overflows(rate in any::<u64>(), burst in any::<u32>(), count in any::<u64>(), ms in any::<u32>()) {
            let limiter = limiter(rate, rate, burst);
            for _ in 0..3 {
                limiter.pay(count, count, NOW);
                limiter.wait();
                if let Err(limited) = limiter.admit(NOW.plus(u64::from(ms))) {
                    prop_assert!(limited.retry_ms > 0);
                }
            }
        }
    }
}
