//! Slots of the time index: which there are, and the facts in them.
//!
//! ```text
//!  0      1          4           8                    16
//!  +------+----------+-----------+--------------------+
//!  | 1    | due u24  | key u32   | phy u64            |   a timer: due, in ms from the slot's start
//!  +------+----------+-----------+--------------------+
//!  | 2    | number u56           | at u64             |   fact `number`, a timer, is done: the record at `at` says so
//!  +------+----------------------+--------------------+
//! ```
//!
//! Facts stand in the order of the log: `phy` and `at` never fall. So a timer is found by its position with a search
//! by halves.

use gantry_proto::ids::{Millis, PhyOffset};

/// Bytes of one fact.
pub(super) const FACT_BYTES: usize = 16;
/// Longer waits go to slots of an hour, shorter ones to slots of a minute.
const MINUTE_SLOTS_UP_TO_MS: u64 = 30 * 60 * 1000;

/// How much time a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Width {
    /// One minute.
    Minute,
    /// One hour.
    Hour,
}

impl Width {
    pub(super) const ALL: [Self; 2] = [Self::Minute, Self::Hour];

    /// In milliseconds.
    pub(super) const fn ms(self) -> i64 {
        match self {
            Self::Minute => 60_000,
            Self::Hour => 3_600_000,
        }
    }

    /// That of the slot for a timer that is due so much later than it came. Slots that many short timers go through
    /// must be small: what is done stays in their files until all is.
    pub(super) const fn for_wait(ms: u64) -> Self {
        if ms <= MINUTE_SLOTS_UP_TO_MS { Self::Minute } else { Self::Hour }
    }

    /// The width of so many milliseconds.
    pub(super) fn from_ms(ms: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|width| width.ms() == ms)
    }
}

/// Which slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SlotKey {
    /// First millisecond.
    pub start: i64,
    /// How long it is.
    pub width: Width,
}

impl SlotKey {
    /// The slot of this width for what is due at `due`.
    pub(super) fn of(due: Millis, width: Width) -> Self {
        Self { start: due.get().saturating_sub(due.get().rem_euclid(width.ms())), width }
    }

    /// The last millisecond.
    pub(super) const fn last(self) -> Millis {
        Millis::new(self.start.saturating_add(self.width.ms() - 1))
    }
}

/// A timer's place in the order of deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// When it is due.
    pub due: Millis,
    /// Where its waiting record starts.
    pub phy: PhyOffset,
}

/// One fact of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    /// A timer.
    Timer {
        /// When and where.
        place: Place,
        /// Hash of its topic and id.
        key: u32,
    },
    /// A timer is done.
    Done {
        /// The number of its fact.
        number: u64,
        /// The record that says so.
        at: PhyOffset,
    },
}

const TIMER: u8 = 1;
const DONE: u8 = 2;
const NUMBER_MASK: u64 = (1 << 56) - 1;

impl Fact {
    /// Its bytes in a slot that starts at `start`.
    pub(super) fn encode(&self, start: i64) -> [u8; FACT_BYTES] {
        let (head, at) = match self {
            Self::Timer { place, key } => {
                let due = place.due.get().saturating_sub(start).cast_unsigned() & 0xFF_FFFF;
                (u64::from(TIMER) << 56 | due << 32 | u64::from(*key), place.phy)
            }
            Self::Done { number, at } => (u64::from(DONE) << 56 | number & NUMBER_MASK, *at),
        };
        (u128::from(head) << 64 | u128::from(at.get())).to_be_bytes()
    }

    /// Reads a fact; `None` when it is none.
    pub(super) fn decode(bytes: [u8; FACT_BYTES], start: i64) -> Option<Self> {
        let words = u128::from_be_bytes(bytes);
        let head = u64::try_from(words >> 64).ok()?;
        let at = PhyOffset::new(u64::try_from(words & u128::from(u64::MAX)).ok()?);
        match u8::try_from(head >> 56).ok()? {
            TIMER => {
                let due = i64::try_from(head >> 32 & 0xFF_FFFF).ok()?;
                let key = u32::try_from(head & u64::from(u32::MAX)).ok()?;
                Some(Self::Timer {
                    place: Place { due: Millis::new(start.saturating_add(due)), phy: at },
                    key,
                })
            }
            DONE => Some(Self::Done { number: head & NUMBER_MASK, at }),
            _ => None,
        }
    }

    /// The record that it comes from.
    pub(super) const fn at(&self) -> PhyOffset {
        match self {
            Self::Timer { place, .. } => place.phy,
            Self::Done { at, .. } => *at,
        }
    }
}

/// Whole facts in `bytes`, each with its number; `first` is that of the first.
pub(super) fn facts(bytes: &[u8], start: i64, first: u64) -> impl Iterator<Item = (u64, Option<Fact>)> + '_ {
    let chunks = bytes.as_chunks::<FACT_BYTES>().0.iter();
    chunks.zip(first..).map(move |(bytes, number)| (number, Fact::decode(*bytes, start)))
}

/// Which facts of a slot are timers that are done: one bit each.
#[derive(Clone, Debug, Default)]
pub(super) struct DoneSet(Vec<u64>);

impl DoneSet {
    /// Notes it; `false` when it was noted before.
    pub(super) fn insert(&mut self, number: u64) -> bool {
        let word = usize::try_from(number / 64).unwrap_or(usize::MAX);
        if word >= self.0.len() {
            self.0.resize(word.saturating_add(1), 0);
        }
        let Some(bits) = self.0.get_mut(word) else { return false };
        let before = *bits;
        *bits |= 1 << (number % 64);
        before != *bits
    }

    /// Whether it was noted.
    pub(super) fn contains(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64).unwrap_or(usize::MAX);
        self.0.get(word).is_some_and(|bits| bits >> (number % 64) & 1 == 1)
    }
}

/// One slot, as far as it is in memory.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// Names its file.
    pub serial: u64,
    /// Facts it has.
    pub facts: u64,
    /// Facts in the file. The others follow them in `buffer`.
    pub written: u64,
    /// Facts that are not in the file yet.
    pub buffer: Vec<u8>,
    /// Timers that are not done.
    pub pending: u64,
    /// No timer that is not done lies before.
    pub oldest: PhyOffset,
    /// Checksum of all facts.
    pub crc: u32,
    /// Facts that are durable in the file.
    pub synced: u64,
    /// Which timers are done, once somebody had to know.
    pub done: Option<DoneSet>,
}

impl Slot {
    /// An empty one.
    pub(super) fn new(serial: u64) -> Self {
        Self { serial, oldest: PhyOffset::new(u64::MAX), ..Self::default() }
    }

    /// Adds a fact; its number.
    pub(super) fn push(&mut self, fact: &Fact, start: i64) -> u64 {
        let bytes = fact.encode(start);
        let mut crc = crc32fast::Hasher::new_with_initial(self.crc);
        crc.update(&bytes);
        self.crc = crc.finalize();
        self.buffer.extend_from_slice(&bytes);
        self.facts += 1;
        self.facts - 1
    }

    /// The first `facts` of them are in the file.
    pub(super) fn wrote(&mut self, facts: u64) {
        let more = facts.min(self.facts).saturating_sub(self.written);
        let bytes = usize::try_from(more).unwrap_or(usize::MAX).saturating_mul(FACT_BYTES);
        self.buffer.drain(..bytes.min(self.buffer.len()));
        self.written += more;
        if self.buffer.is_empty() {
            self.buffer = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slot_begins_at_a_round_time() {
        let key = SlotKey::of(Millis::new(7_300_123), Width::Hour);
        assert_eq!((key.start, key.last()), (7_200_000, Millis::new(10_799_999)));
        assert_eq!(SlotKey::of(Millis::new(-1), Width::Minute).start, -60_000);
        assert_eq!(SlotKey::of(Millis::MAX, Width::Hour).last(), Millis::MAX);
        assert_eq!(Width::for_wait(MINUTE_SLOTS_UP_TO_MS + 1), Width::Hour);
    }

    proptest! {
        #[test]
        fn facts_survive(due in 0..3_600_000_i64, phy: u64, key: u32, number in 0..NUMBER_MASK) {
            let start = 1_700_000_000_000 / 3_600_000 * 3_600_000;
            let place = Place { due: Millis::new(start + due), phy: PhyOffset::new(phy) };
            for fact in [Fact::Timer { place, key }, Fact::Done { number, at: place.phy }] {
                prop_assert_eq!(Fact::decode(fact.encode(start), start), Some(fact));
            }
        }

        #[test]
        fn any_bytes_are_read(bytes: [u8; FACT_BYTES], start: i64) {
            let _ = Fact::decode(bytes, start);
        }

        #[test]
        fn a_set_holds_what_was_put_in(numbers in prop::collection::vec(0..500_u64, 0..50)) {
            let mut set = DoneSet::default();
            for (at, number) in numbers.iter().enumerate() {
                prop_assert_eq!(set.insert(*number), !numbers[..at].contains(number));
            }
            prop_assert!((0..600).all(|number| set.contains(number) == numbers.contains(&number)));
        }
    }
}
