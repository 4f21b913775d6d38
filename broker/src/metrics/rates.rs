//! How much came into each topic and how far each group went: over the last minute, hour and day.
//!
//! Nothing is counted where messages pass. What grows is looked at every ten seconds or so, and what it grew by is summed
//! up. So the numbers begin with the process, and a reset to a later message counts as if all before were consumed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gantry_proto::ids::Millis;

/// Things of which the growth is kept, at the most: some hundred bytes each.
pub const KEYS_MAX: usize = 10_000;

/// The spans, with the distance of their samples; all in milliseconds.
const SPANS: [(u64, u64); 3] = [(60_000, 5_000), (3_600_000, 300_000), (86_400_000, 3_600_000)];

/// What grows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Growing {
    /// Messages of a topic.
    Topic(String),
    /// Messages of a topic that a group has consumed, as `topic@group`.
    Group(String),
    /// Messages that producers sent to the broker.
    Stored,
    /// Messages that the broker gave to consumers.
    Given,
}

/// How much something grew in one span.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Growth {
    /// By how much.
    pub sum: u64,
    /// The same for each second.
    pub per_second: f64,
}

/// How much something grew lately.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Recent {
    /// In the last minute.
    pub minute: Growth,
    /// In the last hour.
    pub hour: Growth,
    /// In the last day.
    pub day: Growth,
}

/// What became of everything that grows.
#[derive(Debug, Default)]
pub struct Rates {
    /// Guards the samples; held for map operations only.
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    series: HashMap<Growing, Series>,
    /// When all were looked at last; `None` before the first time.
    sampled: Option<Millis>,
}

/// One thing's growth.
#[derive(Debug)]
struct Series {
    /// What it was when it was looked at last.
    last: u64,
    /// How much it grew since it is known.
    total: u64,
    /// Total at some times of each span, oldest first, at least one; the first may be older than the span.
    spans: [VecDeque<(Millis, u64)>; 3],
}

impl Series {
    fn new(at: Millis, from: u64) -> Self {
        Self { last: from, total: 0, spans: std::array::from_fn(|_| VecDeque::from([(at, 0)])) }
    }

    fn look(&mut self, now: Millis, current: u64) {
        self.total += current.saturating_sub(self.last);
        self.last = current;
        for (samples, (span, distance)) in self.spans.iter_mut().zip(SPANS) {
            // At rest one sample is kept, and moves along.
            let only = samples.len() == 1;
            match samples.back_mut() {
                Some((at, total)) if *total == self.total && only => *at = now,
                Some((at, total)) if *total == self.total || now.since(*at) < distance => {}
                _ => samples.push_back((now, self.total)),
            }
            while samples.get(1).is_some_and(|(at, _)| now.since(*at) >= span) {
                samples.pop_front();
            }
        }
    }

    fn recent(&self, now: Millis) -> Recent {
        let growth = |samples: &VecDeque<(Millis, u64)>| {
            let Some((at, before)) = samples.front() else { return Growth::default() };
            let (sum, ms) = (self.total - before, now.since(*at));
            let number = |n: u64| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
            let per_second = if ms == 0 { 0.0 } else { number(sum) * 1000.0 / number(ms) };
            Growth { sum, per_second }
        };
        let [minute, hour, day] = &self.spans;
        Recent { minute: growth(minute), hour: growth(hour), day: growth(day) }
    }
}

impl Rates {
    /// Looks at everything there is. What is new since the last time began at 0; what is not there any more is
    /// forgotten. Beyond [`KEYS_MAX`] nothing new is taken in.
    pub fn sample(&self, now: Millis, all: impl IntoIterator<Item = (Growing, u64)>) {
        let mut table = self.table();
        let mut before = std::mem::take(&mut table.series);
        for (key, current) in all.into_iter().take(KEYS_MAX) {
            let mut series = before.remove(&key).unwrap_or_else(|| match table.sampled {
                // Where a group began nobody knows: its first offset is no growth.
                Some(at) if matches!(key, Growing::Topic(_)) => Series::new(at, 0),
                _ => Series::new(now, current),
            });
            series.look(now, current);
            table.series.insert(key, series);
        }
        table.sampled = Some(now);
    }

    /// How much something grew lately, which is `current` now; `None` when it is not known.
    pub fn recent(&self, now: Millis, key: &Growing, current: u64) -> Option<Recent> {
        let mut table = self.table();
        let series = table.series.get_mut(key)?;
        series.look(now, current);
        Some(series.recent(now))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> Growing {
        Growing::Topic(name.to_owned())
    }

    fn at(seconds: u64) -> Millis {
        Millis::new(1_000_000_000_000).plus(seconds * 1000)
    }

    #[test]
    fn growth_is_told_for_each_span() {
        let rates = Rates::default();
        // 10 a second for two hours, which began with 500.
        for step in 0..=720 {
            rates.sample(at(step * 10), [(topic("T"), 500 + step * 100)]);
        }
        let recent = rates.recent(at(7200), &topic("T"), 72_500).unwrap();
        assert_eq!(recent.minute, Growth { sum: 600, per_second: 10.0 });
        assert_eq!(recent.hour, Growth { sum: 36_000, per_second: 10.0 });
        assert_eq!(recent.day, Growth { sum: 72_000, per_second: 10.0 });
        // An hour of rest, in which it was not looked at.
        let recent = rates.recent(at(10_800), &topic("T"), 72_500).unwrap();
        assert_eq!((recent.minute.sum, recent.day.sum), (0, 72_000));
        assert_eq!(rates.recent(at(10_800), &topic("U"), 1), None);
    }

    #[test]
    fn what_is_new_began_at_nothing_except_groups() {
        let rates = Rates::default();
        let group = Growing::Group("T@g".to_owned());
        rates.sample(at(0), []);
        rates.sample(at(10), [(topic("T"), 50), (group.clone(), 50)]);
        assert_eq!(rates.recent(at(10), &topic("T"), 60).unwrap().minute.sum, 60);
        assert_eq!(rates.recent(at(10), &group, 60).unwrap().minute.sum, 10);
        // A reset to an earlier message is no growth.
        assert_eq!(rates.recent(at(11), &group, 0).unwrap().minute.sum, 10);
        rates.sample(at(20), [(topic("T"), 60)]);
        assert_eq!(rates.recent(at(20), &group, 60), None, "it is gone");
    }

    #[test]
    fn so_many_are_kept_and_few_samples_of_each() {
        let rates = Rates::default();
        for step in 0..3 {
            let all = (0..KEYS_MAX as u64 + 5).map(|number| (topic(&number.to_string()), step));
            rates.sample(at(step * 10), all);
        }
        assert_eq!(rates.table().series.len(), KEYS_MAX);
        let rates = Rates::default();
        for step in 0..20_000 {
            rates.sample(at(step * 10), [(topic("T"), step)]);
        }
        let table = rates.table();
        let samples: usize = table.series[&topic("T")].spans.iter().map(VecDeque::len).sum();
        assert!(samples < 60, "{samples}");
    }
}
