//! What the tests ask for: the control file, as the hooks see it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::format::{self, Action, Op, PATH_MAX, RULE_WORDS, RULES, RULES_MAX, WORDS, rule};
use crate::paths::Path;
use crate::sys::{self, Errno};

/// While an operation waits to be released, it looks so often.
const STALL_LOOK_MICROS: u64 = 2000;

/// The mapped control file.
pub struct Control(pub &'static [AtomicU64; WORDS]);

/// What the rules say about one operation, after every wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes ahead.
    Pass,
    /// It fails, a write after so many bytes.
    Fail { errno: Errno, after_bytes: u64 },
    /// The process ends before it.
    KillBefore,
    /// The process ends after it.
    KillAfter,
    /// The process ends after so many bytes of a write.
    KillWithin { bytes: u64 },
}

impl Control {
    fn word(&self, at: usize) -> u64 {
        self.0.get(at).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// A value that the tests change while the broker runs.
    fn twice(&self, at: usize) -> i64 {
        loop {
            // The second copy is read first, as it is written last.
            let second = self.word(at + 1);
            let first = self.word(at);
            if first == second {
                return first.cast_signed();
            }
            std::hint::spin_loop();
        }
    }

    /// A path, behind its length.
    pub fn path(&self, at: usize) -> Option<Path> {
        let len = usize::try_from(self.word(at)).ok()?;
        let mut bytes = [0; PATH_MAX];
        for (number, part) in bytes.chunks_exact_mut(8).enumerate() {
            part.copy_from_slice(&self.word(at + 1 + number).to_le_bytes());
        }
        Path::of(bytes.get(..len)?)
    }

    /// Milliseconds that the wall clock is off.
    pub fn clock_offset(&self) -> i64 {
        self.twice(format::CLOCK)
    }

    /// Bytes that the store may still grow by; `None`: without limit.
    pub fn room(&self) -> Option<i64> {
        let limit = self.twice(format::LIMIT);
        (limit != i64::MAX).then(|| limit.saturating_sub(self.word(format::GROWN).cast_signed()).max(0))
    }

    /// Notes that the store has grown by `bytes`, or has shrunk.
    pub fn grew(&self, bytes: i64) {
        if let Some(word) = self.0.get(format::GROWN) {
            word.fetch_add(bytes.cast_unsigned(), Ordering::AcqRel);
        }
    }

    /// Counts the operation for every rule that it meets, waits where a rule says so, and gives what the
    /// first other rule wants.
    pub fn judge(&self, op: Op, path: &Path, second: Option<&Path>) -> Verdict {
        let mut verdict = Verdict::Pass;
        for number in 0..RULES_MAX {
            let at = RULES + number * RULE_WORDS;
            if self.word(at + rule::ARMED) != 1 || self.word(at + rule::OPS) & op.bit() == 0 {
                continue;
            }
            if !self.meets(at, path) && !second.is_some_and(|second| self.meets(at, second)) {
                continue;
            }
            if let Some(action) = self.count(at) {
                match action {
                    Action::Delay { micros } => sys::sleep(micros),
                    Action::Stall => {
                        while self.word(at + rule::ARMED) == 1 {
                            sys::sleep(STALL_LOOK_MICROS);
                        }
                    }
                    _ if verdict != Verdict::Pass => {}
                    Action::Fail { errno, after_bytes } => verdict = Verdict::Fail { errno, after_bytes },
                    Action::KillBefore => verdict = Verdict::KillBefore,
                    Action::KillAfter => verdict = Verdict::KillAfter,
                    Action::KillWithin { bytes } => verdict = Verdict::KillWithin { bytes },
                }
            }
        }
        verdict
    }

    fn meets(&self, at: usize, path: &Path) -> bool {
        let Ok(len) = usize::try_from(self.word(at + rule::TEXT_LEN)) else { return false };
        let mut text = [0; rule::TEXT_MAX];
        for (number, part) in text.chunks_exact_mut(8).enumerate() {
            part.copy_from_slice(&self.word(at + rule::TEXT + number).to_le_bytes());
        }
        let text = text.get(..len).unwrap_or_default();
        text.is_empty() || path.bytes().windows(text.len()).any(|part| part == text)
    }

    /// Counts a match of the rule at `at`; gives its action when this one counts.
    fn count(&self, at: usize) -> Option<Action> {
        let seen = self.0.get(at + rule::SEEN)?.fetch_add(1, Ordering::AcqRel) + 1;
        let before = seen.checked_sub(self.word(at + rule::FIRST))?;
        if before >= self.word(at + rule::TIMES) {
            return None;
        }
        let words = [rule::ACTION, rule::VALUE, rule::BYTES].map(|word| self.word(at + word));
        let action = Action::decode(words)?;
        self.0.get(at + rule::FIRED)?.fetch_add(1, Ordering::AcqRel);
        Some(action)
    }
}
