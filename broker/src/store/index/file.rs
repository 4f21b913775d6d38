//! One file of the key index: its format, and how keys are written to it, found in it and cut off.
//!
//! ```text
//!  0                8                16               24               32       36       40
//!  +----------------+----------------+----------------+----------------+--------+--------+
//!  | begin time i64 | end time i64   | begin phy i64  | end phy i64    | slots  | next   |  header
//!  +--------+-------+----------------+----------------+----------------+--------+--------+
//!  | newest | …                                         hash slots × i32                  |
//!  +--------+----------------+--------+--------+-----------------------------------------+
//!  | hash   | phy i64        | secs   | before | …       entries × 20                    |
//!  +--------+----------------+--------+--------+-----------------------------------------+
//! ```
//!
//! `next` is the number the next entry gets (entry 0 is unused), `slots` how many slots are in use,
//! `secs` seconds since the begin time, `before` the entry that was the slot's newest until then. Files
//! are named `yyyyMMddHHmmssSSS` after the time they were made.
//!
//! A run of keys is written entries first, then slots, then the header: after a crash slots may name
//! entries at or beyond `next`; those are skipped by following `before`, the next start puts the slots right,
//! and dispatch adds the keys again (records below the header's end phy are known already).

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use gantry_proto::ids::{Millis, PhyOffset};

use super::super::disk::{DiskFile, Map};

const HEADER_BYTES: u64 = 40;
const SLOT_BYTES: u64 = 4;
const ENTRY_BYTES: u64 = 20;
/// Entries looked at for one query, so that a crowded slot cannot stall the broker.
const CHAIN_MAX: usize = 1_000_000;
/// Unwritten entries in a row behind which no start looks for more of a run that a crash ended.
const UNWRITTEN_MAX: u32 = 1024;
/// Slots of a page: what is written when one of them changes.
const PAGE_SLOTS: u32 = 1024;
/// Slots that are written at once at the most.
const GROUP_SLOTS: u32 = 64 * PAGE_SLOTS;

/// Sizes of the index files. Fixed for the life of the store.
#[derive(Clone, Copy, Debug)]
pub struct IndexOptions {
    /// Hash slots of a file.
    pub slots: u32,
    /// Entries of a file.
    pub entries: u32,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self { slots: 5_000_000, entries: 20_000_000 }
    }
}

impl IndexOptions {
    /// Length of a file in bytes.
    pub(in crate::store) fn file_bytes(self) -> u64 {
        HEADER_BYTES + u64::from(self.slots) * SLOT_BYTES + u64::from(self.entries) * ENTRY_BYTES
    }

    /// Where entry `number` starts.
    pub(in crate::store) fn entry_at(self, number: u32) -> u64 {
        HEADER_BYTES + u64::from(self.slots) * SLOT_BYTES + u64::from(number) * ENTRY_BYTES
    }
}

/// A slot and its newest entry.
type Newest = (u32, u32);

/// One key of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub hash: u32,
    pub phy: PhyOffset,
    pub store_at: Millis,
}

/// What a file says of itself; drawn above.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::store) struct Header {
    pub begin_at: i64,
    pub end_at: i64,
    pub begin_phy: i64,
    pub end_phy: i64,
    pub slots: u32,
    pub next: u32,
}

/// One entry of a file; drawn above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Entry {
    pub hash: u32,
    pub phy: i64,
    pub secs: u32,
    pub before: u32,
}

impl Entry {
    /// Entry `number` of the file; `None` behind its end.
    pub fn read(map: &[u8], options: IndexOptions, number: u32) -> Option<Self> {
        let at = options.entry_at(number);
        let high = u64::from(u32_at(map, at + 4)?);
        Some(Self {
            hash: u32_at(map, at)?,
            phy: (high << 32 | u64::from(u32_at(map, at + 8)?)).cast_signed(),
            secs: u32_at(map, at + 12)?,
            before: u32_at(map, at + 16)?,
        })
    }
}

/// Whether a file of the index directory has a name and a length of an index file.
pub(in crate::store) fn is_index_file(name: &str, len: u64, options: IndexOptions) -> bool {
    len == options.file_bytes() && has_name(name)
}

/// Whether a file was made, and the process ended before it had its length: nothing was ever in it.
pub(in crate::store) fn is_unborn(name: &str, len: u64) -> bool {
    len == 0 && has_name(name)
}

fn has_name(name: &str) -> bool {
    name.len() == 17 && name.bytes().all(|byte| byte.is_ascii_digit())
}

/// The newest entry of `slot` below `next`, as the file's slots and chains say; 0 for none.
pub(in crate::store) fn newest_in(map: &[u8], options: IndexOptions, slot: u32, next: u32) -> u32 {
    let mut number = slot_in(map, slot);
    for _ in 0..CHAIN_MAX {
        if number < next {
            return number;
        }
        // Left by a run that a crash ended: its entry says what was there before.
        number = u32_at(map, options.entry_at(number) + 16).unwrap_or(0).min(number.saturating_sub(1));
    }
    0
}

/// What `slot` holds.
pub(in crate::store) fn slot_in(map: &[u8], slot: u32) -> u32 {
    u32_at(map, HEADER_BYTES + u64::from(slot) * SLOT_BYTES).unwrap_or(0)
}

/// An open file.
#[derive(Debug)]
pub(super) struct IndexFile {
    pub path: PathBuf,
    pub header: Header,
    file: Arc<dyn DiskFile>,
    map: OnceLock<Map>,
}

impl IndexFile {
    /// Opens `file`, which may be new: blank.
    pub fn open(path: PathBuf, file: Arc<dyn DiskFile>) -> io::Result<Self> {
        let mut opened = Self { path, header: Header::default(), file, map: OnceLock::new() };
        opened.header = Header::decode(opened.map()?);
        opened.header.next = opened.header.next.max(1);
        Ok(opened)
    }

    fn map(&self) -> io::Result<&Map> {
        if let Some(map) = self.map.get() {
            return Ok(map);
        }
        let map = self.file.map()?;
        Ok(self.map.get_or_init(|| map))
    }

    /// Appends keys; there is room for them.
    pub fn add(&mut self, options: IndexOptions, keys: &[Key]) -> io::Result<()> {
        let mut header = self.header;
        if header.next == 1
            && header.begin_at == 0
            && let Some(first) = keys.first()
        {
            header.begin_at = first.store_at.get();
            header.begin_phy = first.phy.to_wire();
        }
        let (before, changed) = self.chain(options, keys)?;
        let mut entries = Vec::with_capacity(keys.len() * 20);
        for (key, before) in keys.iter().zip(before) {
            if before == 0 {
                header.slots += 1;
            }
            let secs = key.store_at.get().saturating_sub(header.begin_at).max(0) / 1000;
            entries.extend_from_slice(&key.hash.to_be_bytes());
            entries.extend_from_slice(&key.phy.to_wire().to_be_bytes());
            entries.extend_from_slice(&i32::try_from(secs).unwrap_or(i32::MAX).to_be_bytes());
            entries.extend_from_slice(&before.to_be_bytes());
            header.next += 1;
            header.end_at = key.store_at.get();
            header.end_phy = key.phy.to_wire();
        }
        self.file.write_at(options.entry_at(self.header.next), &entries)?;
        self.file.sync()?;
        self.write_slots(options, &changed)?;
        // After a power loss a header must not count entries that no slot leads to.
        self.file.sync()?;
        self.file.write_at(0, &header.encode())?;
        self.file.sync()?;
        self.header = header;
        Ok(())
    }

    /// Forgets the entries of records at or beyond `end`, and puts the slots right that name such entries, or ones
    /// of a run that a crash ended: once other entries have these numbers, the slots would lead to them.
    pub fn cut(&mut self, options: IndexOptions, end: PhyOffset) -> io::Result<()> {
        let map = self.map()?.clone();
        let entry = |number| Entry::read(&map, options, number).filter(|_| number < options.entries);
        let (before, mut next) = (self.header.next, self.header.next);
        // From the end: a damaged entry in the middle costs no more than itself.
        while next > 1 && entry(next - 1).is_some_and(|last| last.phy >= end.to_wire()) {
            next -= 1;
        }
        let mut header = Header { next, ..self.header };
        let mut changed: std::collections::BTreeMap<u32, u32> = std::collections::BTreeMap::new();
        let (mut number, mut unwritten) = (next, 0);
        while unwritten < UNWRITTEN_MAX
            && let Some(left) = entry(number)
        {
            let slot = left.hash % options.slots;
            if number >= before && left == Entry::default() {
                unwritten += 1;
            } else if slot_in(&map, slot) >= next && !changed.contains_key(&slot) {
                let newest = newest_in(&map, options, slot, next);
                header.slots -= u32::from(number < before && newest == 0).min(header.slots);
                changed.insert(slot, newest);
            }
            number += 1;
        }
        if let Some(last) = entry(next - 1).filter(|_| next > 1 && next < before) {
            header.end_phy = last.phy;
            // Only seconds are known; no later record is in the file.
            header.end_at = header.begin_at.saturating_add(i64::from(last.secs) * 1000 + 999);
        }
        if next < before {
            tracing::warn!(path = %self.path.display(), keys = before - next, "the log was cut; keys behind its end are dropped");
            self.file.write_at(0, &header.encode())?;
            self.file.sync()?;
        }
        if !changed.is_empty() {
            self.write_slots(options, &changed.into_iter().collect::<Vec<_>>())?;
            self.file.sync()?;
        }
        self.header = header;
        Ok(())
    }

    /// What the entries of `keys` find in their slots: the entry before each, in their order; and the newest entry of
    /// every slot that changes, by slot.
    fn chain(&self, options: IndexOptions, keys: &[Key]) -> io::Result<(Vec<u32>, Vec<Newest>)> {
        // Sorted by slot instead of looked up one by one: the slots lie all over the file.
        let slots = keys.iter().map(|key| key.hash % options.slots);
        // As one number each: pairs take twice as long to sort.
        let mut sorted: Vec<u64> = slots
            .zip(self.header.next..)
            .map(|(slot, number)| u64::from(slot) << 32 | u64::from(number))
            .collect();
        sorted.sort_unstable();
        #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
        let mut changed: Vec<Newest> =
            sorted.into_iter().map(|both| ((both >> 32) as u32, both as u32)).collect();
        let mut before = vec![0; keys.len()];
        let mut last: Option<(u32, u32)> = None;
        for &(slot, number) in &changed {
            let newest = match last {
                Some((same, newest)) if same == slot => newest,
                _ => self.newest(options, slot)?,
            };
            if let Some(place) = before.get_mut((number - self.header.next) as usize) {
                *place = newest;
            }
            last = Some((slot, number));
        }
        // Of entries with one slot the last is the newest.
        changed.reverse();
        changed.dedup_by_key(|(slot, _)| *slot);
        changed.reverse();
        Ok((before, changed))
    }

    /// The newest entry of a slot.
    fn newest(&self, options: IndexOptions, slot: u32) -> io::Result<u32> {
        Ok(newest_in(self.map()?, options, slot, self.header.next))
    }

    /// Writes the pages of slots in which something changed, those next to each other at once.
    fn write_slots(&self, options: IndexOptions, changed: &[Newest]) -> io::Result<()> {
        let map = self.map()?;
        let page_of = |slot: u32| slot / PAGE_SLOTS;
        let mut bytes = Vec::new();
        let follows = |left: &Newest, right: &Newest| page_of(right.0) - page_of(left.0) <= 1;
        let runs = changed
            .chunk_by(follows)
            .flat_map(|run| run.chunk_by(|left, right| left.0 / GROUP_SLOTS == right.0 / GROUP_SLOTS));
        for run in runs {
            let (Some((first, _)), Some((last, _))) = (run.first(), run.last()) else { continue };
            let start = page_of(*first) * PAGE_SLOTS;
            let end = options.slots.min((page_of(*last) + 1) * PAGE_SLOTS);
            let from = HEADER_BYTES + u64::from(start) * SLOT_BYTES;
            let at = usize::try_from(from).unwrap_or(usize::MAX);
            bytes.clear();
            let len = (end - start) as usize * 4;
            bytes.extend_from_slice(map.get(at..at.saturating_add(len)).unwrap_or_default());
            for (slot, number) in run {
                let within = (*slot - start) as usize * 4;
                if let Some(place) = bytes.get_mut(within..within + 4) {
                    place.copy_from_slice(&number.to_be_bytes());
                }
            }
            self.file.write_at(from, &bytes)?;
        }
        Ok(())
    }

    /// Adds to `found` what [`KeyIndex::find`](super::KeyIndex::find) looks for, newest first, up to `limit`.
    pub fn find(
        &self,
        options: IndexOptions,
        hash: u32,
        from: Millis,
        to: Millis,
        limit: usize,
        found: &mut Vec<PhyOffset>,
    ) -> io::Result<()> {
        let map = self.map()?;
        let mut number = self.newest(options, hash % options.slots)?;
        for _ in 0..CHAIN_MAX {
            if number == 0 || found.len() >= limit {
                break;
            }
            let Some(entry) = Entry::read(map, options, number) else { break };
            // Stored whole seconds only: the message may be up to one second younger.
            let stored = Millis::new(self.header.begin_at).plus(u64::from(entry.secs) * 1000);
            if stored.plus(999) < from {
                break;
            }
            if entry.hash == hash && stored <= to {
                found.push(PhyOffset::new(entry.phy.cast_unsigned()));
            }
            if entry.before >= number {
                break;
            }
            number = entry.before;
        }
        Ok(())
    }
}

impl Header {
    /// Reads the start of a file.
    pub fn decode(map: &[u8]) -> Self {
        let long = |at: u64| {
            let (high, low) = (u32_at(map, at).unwrap_or(0), u32_at(map, at + 4).unwrap_or(0));
            (u64::from(high) << 32 | u64::from(low)).cast_signed()
        };
        Self {
            begin_at: long(0),
            end_at: long(8),
            begin_phy: long(16),
            end_phy: long(24),
            slots: u32_at(map, 32).unwrap_or(0),
            next: u32_at(map, 36).unwrap_or(0),
        }
    }

    fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40);
        for long in [self.begin_at, self.end_at, self.begin_phy, self.end_phy] {
            bytes.extend_from_slice(&long.to_be_bytes());
        }
        bytes.extend_from_slice(&self.slots.to_be_bytes());
        bytes.extend_from_slice(&self.next.to_be_bytes());
        bytes
    }
}

fn u32_at(bytes: &[u8], at: u64) -> Option<u32> {
    let at = usize::try_from(at).ok()?;
    bytes.get(at..)?.first_chunk::<4>().map(|chunk| u32::from_be_bytes(*chunk))
}

/// `yyyyMMddHHmmssSSS` in UTC.
pub(super) fn file_name(at: Millis) -> String {
    let ms = at.get().max(0);
    let (days, of_day) = (ms / 86_400_000, ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60);
    format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}{:03}", of_day % 1000)
}

/// Year, month and day of a day number since 1970-01-01, by counting eras of 400 years that start in
/// March (the usual proleptic Gregorian arithmetic).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, of_year - (153 * shifted + 2) / 5 + 1)
}
