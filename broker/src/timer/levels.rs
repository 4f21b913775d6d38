//! Delay levels: fixed delays, numbered from 1. And the longest delay that a message may ask for itself.

use std::sync::Arc;

use gantry_proto::ids::QueueId;

use crate::config::TimerConfig;

/// The delay of each level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Levels {
    delays_ms: Arc<[u64]>,
    max_delay_ms: u64,
}

/// One delay level. Its messages wait in a queue of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u32);

impl Level {
    /// Its number, from 1.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The queue of the schedule topic in which its messages wait.
    pub const fn queue(self) -> QueueId {
        QueueId::new(self.0 - 1)
    }
}

impl Levels {
    /// The levels that the configuration names.
    pub fn new(config: &TimerConfig) -> Self {
        let millis = |delay: &std::time::Duration| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        Self {
            delays_ms: config.delay_levels.iter().map(millis).collect(),
            max_delay_ms: millis(&config.max_delay),
        }
    }

    /// The longest delay that a timer message may ask for, in milliseconds.
    pub fn max_delay_ms(&self) -> u64 {
        self.max_delay_ms
    }

    /// Number of levels.
    pub fn count(&self) -> usize {
        self.delays_ms.len()
    }

    /// The level that a message asks for: `None` for 0 and less, the last one for more than there are.
    pub fn level(&self, asked: i32) -> Option<Level> {
        let last = u32::try_from(self.delays_ms.len()).ok()?;
        let asked = u32::try_from(asked).ok()?.min(last);
        (asked > 0).then_some(Level(asked))
    }

    /// The level whose messages wait so many milliseconds.
    pub fn lasting(&self, delay_ms: u64) -> Option<Level> {
        self.all().find(|level| self.delay_ms(*level) == delay_ms)
    }

    /// The shortest level whose messages wait at least so many milliseconds, or the longest one; `None` when there are no levels.
    pub fn lasting_at_least(&self, delay_ms: u64) -> Option<Level> {
        let long = self.all().filter(|level| self.delay_ms(*level) >= delay_ms);
        long.min_by_key(|level| self.delay_ms(*level))
            .or_else(|| self.all().max_by_key(|level| self.delay_ms(*level)))
    }

    /// All levels, shortest number first.
    pub fn all(&self) -> impl Iterator<Item = Level> + use<> {
        let last = u32::try_from(self.delays_ms.len()).unwrap_or(u32::MAX);
        (1..=last).map(Level)
    }

    /// How long a message of this level waits, in milliseconds.
    pub fn delay_ms(&self, level: Level) -> u64 {
        self.delays_ms.get(level.queue().get() as usize).copied().unwrap_or(0)
    }

    /// All delays in milliseconds, level 1 first.
    pub fn delays_ms(&self) -> Arc<[u64]> {
        Arc::clone(&self.delays_ms)
    }
}

impl Default for Levels {
    fn default() -> Self {
        Self::new(&TimerConfig::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_beyond_the_last_is_the_last() {
        let levels = Levels::default();
        assert_eq!(levels.count(), 18);
        assert_eq!(levels.level(0), None);
        assert_eq!(levels.level(-1), None);
        assert_eq!(levels.level(1).map(Level::queue), Some(QueueId::ZERO));
        assert_eq!(levels.level(99).map(Level::number), Some(18));
        assert_eq!(levels.level(3).map(|level| levels.delay_ms(level)), Some(10_000));
        assert_eq!(levels.all().count(), 18);
        let number = |level: Option<Level>| level.map(Level::number);
        assert_eq!(number(levels.lasting(30_000)), Some(4));
        assert_eq!(number(levels.lasting(30_001)), None);
        assert_eq!(number(levels.lasting_at_least(30_001)), Some(5));
        assert_eq!(number(levels.lasting_at_least(u64::MAX)), Some(18));
    }
}
