//! What the preloaded library and the tests say to each other: the control file and the journal. Both sides
//! compile this file; neither links the other.
//!
//! **The control file** is an array of 64-bit little-endian words that the library maps and the tests write
//! with `pwrite`; a word is seen whole or not at all where it matters (see *twice*).
//!
//! ```text
//! word      0  magic
//!           1  length of the store's path      2..130    the path: absolute, without links
//!         130  length of the journal's path    131..259  the path; length 0: no journal
//!         260  offset of the wall clock in ms, i64, twice
//!         262  bytes by which the store may still grow, i64, i64::MAX: no limit, twice
//!         264  bytes by which it has grown since the limit was set, i64      (written by the library)
//!         512  RULES_MAX rules of 32 words each:
//!              0 armed   1 action   2 operations, one bit each   3 first match that counts, from 1
//!              4 how many matches   5 action's value   6 action's bytes   7 length of the text
//!              8 matches so far   9 times it took effect                      (written by the library)
//!              10..32 the text that a path must contain
//! ```
//!
//! *Twice*: the tests write the first copy, then the second; the library reads until both agree.
//!
//! **The journal** is a sequence of entries; a process that was killed may leave a part of one at the end.
//!
//! ```text
//!  0         4      5       6          8            10       16       24
//!  +---------+------+-------+----------+------------+--------+--------+--------+------+--------+-------+
//!  | size    | kind | 0     | path len | second len | 0      | a      | b      | path | second | bytes |
//!  | u32     | u8   | u8    | u16      | u16        | 48 bit | u64    | u64    |      |        |       |
//!  +---------+------+-------+----------+------------+--------+--------+--------+------+--------+-------+
//! ```
//!
//! `size` counts everything. Paths are relative to the store. An entry is written before its operation, under
//! a lock that both share, and [`Kind::Undo`] behind it when the operation failed: so only the last entry can
//! be in doubt. A sync has two entries, around it: it counts from the second on, for what was there before the
//! first.

/// First word of a control file.
pub const MAGIC: u64 = 0x3154_4C55_4146_5447;
/// Words of a control file.
pub const WORDS: usize = RULES + RULES_MAX * RULE_WORDS;
/// Rules that one control file holds.
pub const RULES_MAX: usize = 64;
/// Words of the store's path; the length, then the path.
pub const STORE: usize = 1;
/// Words of the journal's path; the length, then the path.
pub const JOURNAL: usize = 130;
/// Longest path in bytes.
pub const PATH_MAX: usize = 1024;
/// Milliseconds that are added to the wall clock, twice.
pub const CLOCK: usize = 260;
/// Bytes by which the store may grow, twice.
pub const LIMIT: usize = 262;
/// Bytes by which it has grown.
pub const GROWN: usize = 264;
/// The first rule.
pub const RULES: usize = 512;
/// Words of one rule.
pub const RULE_WORDS: usize = 32;

/// Words of a rule, from its first.
pub mod rule {
    /// 1: the rule holds.
    pub const ARMED: usize = 0;
    /// An [`Action`](super::Action)'s code.
    pub const ACTION: usize = 1;
    /// One bit for each [`Op`](super::Op).
    pub const OPS: usize = 2;
    /// The first match that counts, from 1.
    pub const FIRST: usize = 3;
    /// How many matches count from there on.
    pub const TIMES: usize = 4;
    /// The action's errno or microseconds.
    pub const VALUE: usize = 5;
    /// The action's bytes.
    pub const BYTES: usize = 6;
    /// Length of the text; the text is at [`TEXT`].
    pub const TEXT_LEN: usize = 7;
    /// Matches so far.
    pub const SEEN: usize = 8;
    /// Times it took effect.
    pub const FIRED: usize = 9;
    /// The text that a path must contain.
    pub const TEXT: usize = 10;
    /// Its longest length in bytes.
    pub const TEXT_MAX: usize = (super::RULE_WORDS - TEXT) * 8;
}

/// An operation on the store that a rule can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// Opening what is there.
    Open,
    /// Making a file.
    Create,
    /// Writing bytes.
    Write,
    /// Reserving blocks.
    Allocate,
    /// Making a range zero (a hole).
    Zero,
    /// Setting a file's length.
    Truncate,
    /// `fdatasync` of a file.
    SyncData,
    /// `fsync` of a file.
    SyncFile,
    /// `fsync` of a directory.
    SyncDir,
    /// `syncfs`: of everything; its path is that of the directory it is asked for by.
    SyncAll,
    /// Renaming; either path may match.
    Rename,
    /// Removing a file or a directory.
    Unlink,
    /// Making a directory.
    Mkdir,
}

impl Op {
    /// Its bit in [`rule::OPS`].
    pub const fn bit(self) -> u64 {
        1 << self as u8
    }
}

/// What happens instead of an operation, or beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It fails; a write after this many bytes were written.
    Fail {
        /// The system's error number.
        errno: i32,
        /// What a write still writes; nothing else looks at it.
        after_bytes: u64,
    },
    /// The process kills itself before it.
    KillBefore,
    /// The process kills itself when it has succeeded.
    KillAfter,
    /// The process kills itself when this many bytes of a write were written; before anything else.
    KillWithin {
        /// What is still written.
        bytes: u64,
    },
    /// It waits so long first.
    Delay {
        /// Microseconds.
        micros: u64,
    },
    /// It waits until the rule is disarmed.
    Stall,
}

impl Action {
    /// The words [`rule::ACTION`], [`rule::VALUE`] and [`rule::BYTES`].
    pub fn encode(self) -> [u64; 3] {
        match self {
            Self::Fail { errno, after_bytes } => [1, u64::from(errno.unsigned_abs()), after_bytes],
            Self::KillBefore => [2, 0, 0],
            Self::KillAfter => [3, 0, 0],
            Self::KillWithin { bytes } => [4, 0, bytes],
            Self::Delay { micros } => [5, micros, 0],
            Self::Stall => [6, 0, 0],
        }
    }

    /// The other way round; `None` for words that no action has.
    pub fn decode([code, value, bytes]: [u64; 3]) -> Option<Self> {
        Some(match code {
            1 => Self::Fail { errno: i32::try_from(value).ok()?, after_bytes: bytes },
            2 => Self::KillBefore,
            3 => Self::KillAfter,
            4 => Self::KillWithin { bytes },
            5 => Self::Delay { micros: value },
            6 => Self::Stall,
            _ => return None,
        })
    }
}

/// Bytes before an entry's paths.
pub const HEADER: usize = 32;

/// What a journal entry tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A process begins. What was under way in the one before is not any more.
    Start = 1,
    /// A file comes to be.
    Create = 2,
    /// A directory comes to be.
    Mkdir = 3,
    /// `path` becomes `second`.
    Rename = 4,
    /// A file's name or an empty directory goes.
    Unlink = 5,
    /// The entry's bytes are written at `a`.
    Write = 6,
    /// `b` bytes from `a` on become zero; the length stays.
    Zero = 7,
    /// The length becomes `a`.
    Truncate = 8,
    /// Sync number `a` begins, of a file or directory; `b` is 1 when it is of all of them.
    SyncBegin = 9,
    /// Sync number `a` has ended; `b` is 1 when it succeeded.
    SyncEnd = 10,
    /// The operation of the entry before did not happen.
    Undo = 11,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        const ALL: [Kind; 11] = [
            Kind::Start,
            Kind::Create,
            Kind::Mkdir,
            Kind::Rename,
            Kind::Unlink,
            Kind::Write,
            Kind::Zero,
            Kind::Truncate,
            Kind::SyncBegin,
            Kind::SyncEnd,
            Kind::Undo,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One entry of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What it tells.
    pub kind: Kind,
    /// See [`Kind`].
    pub a: u64,
    /// See [`Kind`].
    pub b: u64,
    /// Relative to the store; empty for the store itself, and where none is needed.
    pub path: &'a [u8],
    /// A rename's new path.
    pub second: &'a [u8],
    /// A write's bytes.
    pub bytes: &'a [u8],
}

impl<'a> Entry<'a> {
    /// An entry about `path`.
    pub fn new(kind: Kind, path: &'a [u8], a: u64, b: u64) -> Self {
        Self { kind, a, b, path, second: &[], bytes: &[] }
    }

    /// The first bytes of the entry; the paths and bytes follow. `None` when a part is too long.
    pub fn header(&self) -> Option<[u8; HEADER]> {
        let size = HEADER + self.path.len() + self.second.len() + self.bytes.len();
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&u32::try_from(size).ok()?.to_le_bytes());
        header[4] = self.kind as u8;
        header[6..8].copy_from_slice(&u16::try_from(self.path.len()).ok()?.to_le_bytes());
        header[8..10].copy_from_slice(&u16::try_from(self.second.len()).ok()?.to_le_bytes());
        header[16..24].copy_from_slice(&self.a.to_le_bytes());
        header[24..].copy_from_slice(&self.b.to_le_bytes());
        Some(header)
    }

    /// The first entry of `journal` and its size; `None` at the end, or when the rest is not a whole entry.
    pub fn read(journal: &'a [u8]) -> Option<(Self, usize)> {
        let (header, _) = journal.split_first_chunk::<HEADER>()?;
        let [s0, s1, s2, s3, kind, _, p0, p1, t0, t1, ..] = *header;
        let size = usize::try_from(u32::from_le_bytes([s0, s1, s2, s3])).ok()?;
        let rest = journal.get(HEADER..size)?;
        let (path, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes([p0, p1])))?;
        let (second, bytes) = rest.split_at_checked(usize::from(u16::from_le_bytes([t0, t1])))?;
        let word = |at: usize| header.get(at..)?.first_chunk().copied().map(u64::from_le_bytes);
        let entry = Self { kind: Kind::of(kind)?, a: word(16)?, b: word(24)?, path, second, bytes };
        Some((entry, size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_they_were_written() {
        let entry = Entry {
            kind: Kind::Rename,
            a: 7,
            b: u64::MAX,
            path: b"config/a.tmp",
            second: b"config/a",
            bytes: b"0123",
        };
        let mut journal = entry.header().unwrap().to_vec();
        for part in [entry.path, entry.second, entry.bytes] {
            journal.extend_from_slice(part);
        }
        assert_eq!(Entry::read(&journal), Some((entry, journal.len())));
        for cut in 0..journal.len() {
            assert_eq!(Entry::read(&journal[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn actions_are_read_as_they_were_written() {
        let all = [
            Action::Fail { errno: 28, after_bytes: 100 },
            Action::KillBefore,
            Action::KillAfter,
            Action::KillWithin { bytes: 9 },
            Action::Delay { micros: 5000 },
            Action::Stall,
        ];
        for action in all {
            assert_eq!(Action::decode(action.encode()), Some(action));
        }
        assert_eq!(Action::decode([7, 0, 0]), None);
    }
}
