//! Flow control: how much topics take, producers send and consumers get in a second.
//!
//! Rates are attributes of topics (`gantry.rate`, `.bytes`, `.burst`) and groups (the same for what a group consumes,
//! `gantry.produce.rate…` for what producers of that name send), and the broker's defaults. Whoever asks while a rate is
//! used up is told which one, its value, and when to come back ([`Limited`]); what becomes of the request is the edge's
//! matter: sends are refused, pulls wait.
//!
//! Nothing is kept for what has no limit. With limits the buckets are in memory only: a restart begins with full ones.

mod limiter;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use dashmap::DashMap;
use gantry_proto::ids::Millis;

use crate::clock::Clock;
pub use crate::config::rates::OwnRates;
use crate::config::{FlowConfig, RateLimits};
pub use limiter::{Limited, Limiter, Measure, Room};

/// Topics or groups with buckets of their own; more of a kind share one.
const LIMITERS_MAX: usize = 100_000;
/// The name under which those are.
const OTHERS: &str = "(others)";

/// What has a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// What a topic takes.
    Topic,
    /// What the producers of a group send.
    Producers,
    /// What the consumers of a group get.
    Consumers,
}

impl Subject {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Topic, Self::Producers, Self::Consumers];

    /// The attribute of the topic or group that sets its rate.
    pub const fn attribute(self) -> &'static str {
        match self {
            Self::Topic | Self::Consumers => "gantry.rate",
            Self::Producers => "gantry.produce.rate",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Topic => "topic",
            Self::Producers => "producer group",
            Self::Consumers => "consumer group",
        })
    }
}

/// All limits of one kind.
#[derive(Debug, Default)]
struct Kind {
    /// Whether the broker's default limits anything.
    has_default: AtomicBool,
    limiters: DashMap<String, Arc<Limiter>>,
}

/// The limits of all topics and groups.
#[derive(Debug)]
pub struct Flow {
    clock: Arc<dyn Clock>,
    /// What holds where attributes say nothing.
    defaults: RwLock<FlowConfig>,
    kinds: [Kind; 3],
}

/// What has to pay for a send.
#[derive(Debug, Default)]
pub struct Toll {
    limiters: [Option<Arc<Limiter>>; 2],
    now: Millis,
}

impl Toll {
    /// These messages were stored.
    pub fn pay(&self, messages: usize, bytes: usize) {
        for limiter in self.limiters.iter().flatten() {
            limiter.pay(messages as u64, bytes as u64, self.now);
        }
    }
}

impl Flow {
    /// Limits with these defaults.
    pub fn new(defaults: FlowConfig, clock: Arc<dyn Clock>) -> Self {
        let flow = Self { clock, defaults: RwLock::default(), kinds: Default::default() };
        flow.set_defaults(defaults);
        flow
    }

    /// Goes on with other defaults.
    pub fn set_defaults(&self, defaults: FlowConfig) {
        *self.defaults.write().unwrap_or_else(PoisonError::into_inner) = defaults;
        for subject in Subject::ALL {
            let limits = self.default_of(subject).is_limit();
            self.kind(subject).has_default.store(limits, Ordering::Relaxed);
        }
    }

    /// Whether producer groups are limited that say nothing themselves.
    pub fn limits_producers(&self) -> bool {
        self.kind(Subject::Producers).has_default.load(Ordering::Relaxed)
    }

    /// The buckets of `name`, which says `own` itself; `None` when nothing limits it.
    pub fn limiter(&self, subject: Subject, name: &str, own: &OwnRates) -> Option<Arc<Limiter>> {
        let kind = self.kind(subject);
        if own.is_empty() && !kind.has_default.load(Ordering::Relaxed) {
            return None;
        }
        let limits = own.over(&self.default_of(subject));
        if !limits.is_limit() {
            return None;
        }
        if let Some(limiter) = kind.limiters.get(name) {
            limiter.adjust(limits);
            return Some(Arc::clone(&limiter));
        }
        let (name, limits) = if kind.limiters.len() < LIMITERS_MAX {
            (name, limits)
        } else {
            (OTHERS, self.default_of(subject))
        };
        let make = || Arc::new(Limiter::new(subject, name, limits, self.clock.now()));
        Some(Arc::clone(&kind.limiters.entry(name.to_owned()).or_insert_with(make)))
    }

    /// Whether a send may pass that concerns these, and what is to be paid for it when it has.
    pub fn admit(&self, limiters: [Option<Arc<Limiter>>; 2]) -> Result<Toll, Limited> {
        if limiters.iter().all(Option::is_none) {
            return Ok(Toll::default());
        }
        let now = self.clock.now();
        for limiter in limiters.iter().flatten() {
            limiter.admit(now)?;
        }
        Ok(Toll { limiters, now })
    }

    /// Limits that made requests wait or refused them, with how many, the most first; `most` of them at the most.
    pub fn busiest(&self, most: usize) -> Vec<(Subject, Arc<Limiter>)> {
        let mut all: Vec<_> = Subject::ALL
            .into_iter()
            .flat_map(|subject| {
                let limiters = self.kind(subject).limiters.iter();
                limiters.map(move |limiter| (subject, Arc::clone(&limiter))).collect::<Vec<_>>()
            })
            .filter(|(_, limiter)| limiter.limited() > 0)
            .collect();
        all.sort_by(|(_, left), (_, right)| {
            right.limited().cmp(&left.limited()).then_with(|| left.name().cmp(right.name()))
        });
        all.truncate(most);
        all
    }

    /// Forgets what is not in use. Those that limited something stay, for people to see, while there is room.
    pub fn sweep(&self) {
        let now = self.clock.now();
        for kind in &self.kinds {
            let crowded = kind.limiters.len() > LIMITERS_MAX / 2;
            kind.limiters.retain(|_, limiter| {
                limiter.tell_rest(now);
                let unused = Arc::strong_count(limiter) == 1 && limiter.is_idle(now);
                !unused || (limiter.limited() > 0 && !crowded)
            });
        }
    }

    fn kind(&self, subject: Subject) -> &Kind {
        let [topics, producers, consumers] = &self.kinds;
        match subject {
            Subject::Topic => topics,
            Subject::Producers => producers,
            Subject::Consumers => consumers,
        }
    }

    fn default_of(&self, subject: Subject) -> RateLimits {
        let defaults = *self.defaults.read().unwrap_or_else(PoisonError::into_inner);
        match subject {
            Subject::Topic => defaults.topic,
            Subject::Producers => defaults.producer,
            Subject::Consumers => defaults.consumer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn own(rate: &str) -> OwnRates {
        OwnRates::read(&[("gantry.rate".to_owned(), rate.to_owned())].into(), "gantry.rate")
    }

    #[test]
    fn nothing_is_kept_without_a_limit() {
        let flow = Flow::new(FlowConfig::default(), fixture::clock());
        for subject in Subject::ALL {
            assert!(flow.limiter(subject, "x", &OwnRates::default()).is_none());
            assert!(flow.limiter(subject, "x", &own("0")).is_none());
            assert!(flow.kind(subject).limiters.is_empty());
        }
        flow.admit([None, None]).unwrap().pay(1, 1);
    }

    #[test]
    fn defaults_and_attributes_are_one_limit_that_can_be_changed() {
        let clock = fixture::clock();
        let flow = Flow::new(FlowConfig::default(), Arc::clone(&clock) as _);
        let topic = |own: &OwnRates| flow.limiter(Subject::Topic, "T", own);
        let none = OwnRates::default();
        let limit = |messages| RateLimits { messages, ..RateLimits::default() };
        flow.set_defaults(FlowConfig { topic: limit(5), ..FlowConfig::default() });
        assert_eq!(topic(&none).unwrap().limits().messages, 5);
        assert_eq!(topic(&own("7")).unwrap().limits().messages, 7);
        assert!(topic(&own("0")).is_none());
        assert!(flow.limiter(Subject::Consumers, "G", &none).is_none() && !flow.limits_producers());

        // Both must let it pass, and both are paid.
        let pair = || [topic(&own("1000")), flow.limiter(Subject::Producers, "P", &own("1"))];
        flow.admit(pair()).unwrap().pay(1, 10);
        let limited = flow.admit(pair()).unwrap_err();
        assert_eq!((limited.subject, limited.retry_ms), (Subject::Producers, 1000));
        let busiest = flow.busiest(5);
        assert_eq!(busiest.len(), 1);
        assert_eq!((busiest[0].1.name(), busiest[0].1.limited()), ("P", 1));
        drop(busiest);

        clock.advance(10_000);
        flow.sweep();
        assert_eq!(flow.kind(Subject::Topic).limiters.len(), 0);
        assert_eq!(
            flow.kind(Subject::Producers).limiters.len(),
            1,
            "people can still see that it held something up"
        );
    }
}
