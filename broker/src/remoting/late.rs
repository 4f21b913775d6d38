//! Refusals that pass by themselves, told a little later.
//!
//! Official producers send again at once what was refused as busy, two or three times. Told at once they would have
//! failed within a millisecond; told when there is room again, the next attempt succeeds and the client sends as fast as
//! it may. Nothing but the answer is kept, and the message not at all.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// The longest time that a refusal is kept back: three attempts of a client fit into its usual limit of 3 s.
const DELAY_MAX: Duration = Duration::from_millis(250);
/// Refusals of one connection that are kept back; further ones are told at once.
const LATE_MAX: usize = 1024;

/// The refusals of one connection that are kept back.
#[derive(Debug, Default)]
pub(super) struct Late {
    answers: BTreeMap<(Instant, u64), Vec<u8>>,
    next: u64,
}

impl Late {
    /// Whether there is room for one more.
    pub(super) fn has_room(&self) -> bool {
        self.answers.len() < LATE_MAX
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.answers.len()
    }

    /// Keeps an encoded answer back for so many milliseconds, but not for long.
    pub(super) fn put(&mut self, now: Instant, ms: u64, answer: Vec<u8>) {
        self.next = self.next.wrapping_add(1);
        let due = now + Duration::from_millis(ms).min(DELAY_MAX);
        self.answers.insert((due, self.next), answer);
    }

    /// When the first one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.answers.first_key_value().map(|((due, _), _)| *due)
    }

    /// Moves those that are due to the end of `out`.
    pub(super) fn take_due(&mut self, now: Instant, out: &mut Vec<u8>) {
        while let Some(entry) = self.answers.first_entry()
            && entry.key().0 <= now
        {
            out.append(&mut entry.remove());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_come_in_the_order_of_their_times_and_soon() {
        let (mut late, now) = (Late::default(), Instant::now());
        late.put(now, 3_600_000, vec![3]);
        late.put(now, 20, vec![1]);
        late.put(now, 20, vec![2]);
        assert_eq!(late.next_due(), Some(now + Duration::from_millis(20)));
        let mut out = Vec::new();
        late.take_due(now + Duration::from_millis(19), &mut out);
        assert!(out.is_empty());
        late.take_due(now + Duration::from_millis(20), &mut out);
        assert_eq!(out, [1, 2]);
        late.take_due(now + DELAY_MAX, &mut out);
        assert_eq!((out, late.next_due()), (vec![1, 2, 3], None));
    }

    #[test]
    fn only_so_many_are_kept_back() {
        let (mut late, now) = (Late::default(), Instant::now());
        while late.has_room() {
            late.put(now, 1, vec![0]);
        }
        assert_eq!(late.len(), LATE_MAX);
    }
}
