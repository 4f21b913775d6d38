//! The key index: from a hash of `topic#key` to the records that carry the key.
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
//! Applied keys wait in memory and are written in large runs, so that a slot page is written once for
//! many keys. A run is written entries first, then slots, then the header: after a crash slots may name
//! entries at or beyond `next`; those are skipped by following `before`, the next start puts the slots right,
//! and dispatch adds the keys again (records below the header's end phy are known already).

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use gantry_proto::ids::{Millis, PhyOffset};
use gantry_proto::record::{HotProperties, JavaHash, RecordView};

use super::disk::{Disk, DiskFile, Map};
use super::projection::Dispatched;

const HEADER_BYTES: u64 = 40;
const SLOT_BYTES: u64 = 4;
const ENTRY_BYTES: u64 = 20;
/// Keys that may wait in memory before the index asks to be written.
pub const PENDING_WANTED: usize = 64 * 1024;
/// Keys that may wait in memory at all; beyond it they are written by whoever brings them.
const PENDING_MAX: usize = 4 * PENDING_WANTED;
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
    pub(super) fn file_bytes(self) -> u64 {
        HEADER_BYTES + u64::from(self.slots) * SLOT_BYTES + u64::from(self.entries) * ENTRY_BYTES
    }

    /// Where entry `number` starts.
    pub(super) fn entry_at(self, number: u32) -> u64 {
        HEADER_BYTES + u64::from(self.slots) * SLOT_BYTES + u64::from(number) * ENTRY_BYTES
    }
}

/// A slot and its newest entry.
type Newest = (u32, u32);

/// One key of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    hash: u32,
    phy: PhyOffset,
    store_at: Millis,
}

/// The index of a store.
#[derive(Debug)]
pub struct KeyIndex {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: IndexOptions,
    /// Keys not yet written. Held for a moment only.
    pending: Mutex<Pending>,
    /// Held while a run is written.
    files: Mutex<Vec<IndexFile>>,
}

#[derive(Debug, Default)]
struct Pending {
    keys: Vec<Key>,
    /// Keys that are being written just now.
    writing: Arc<Vec<Key>>,
    /// First byte of the log whose keys were not added.
    position: PhyOffset,
}

/// What a file says of itself; drawn above.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Header {
    pub begin_at: i64,
    pub end_at: i64,
    pub begin_phy: i64,
    pub end_phy: i64,
    pub slots: u32,
    pub next: u32,
}

/// One entry of a file; drawn above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
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

/// Where the hash of a record's entry comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyKind {
    /// The client's message id.
    Id,
    /// One of the user's keys.
    Key,
    /// The tag; brokers before 5.4 did not index it.
    Tag,
}

/// Hands out the hashes under which a record is found, in the order of its entries.
pub(super) fn key_hashes(view: &RecordView<'_>, hot: &HotProperties<'_>, mut add: impl FnMut(KeyKind, u32)) {
    let topic = JavaHash::new().push(view.topic()).push("#");
    if let Some(uniq_key) = hot.uniq_key {
        add(KeyKind::Id, index_hash(topic.push(uniq_key).finish()));
    }
    for key in hot.split_keys() {
        add(KeyKind::Key, index_hash(topic.push(key).finish()));
    }
    if let Some(tags) = hot.tags {
        add(KeyKind::Tag, index_hash(topic.push("T#").push(tags).finish()));
    }
}

/// Whether a file of the index directory has a name and a length of an index file.
pub(super) fn is_index_file(name: &str, len: u64, options: IndexOptions) -> bool {
    len == options.file_bytes() && name.len() == 17 && name.bytes().all(|byte| byte.is_ascii_digit())
}

/// The newest entry of `slot` below `next`, as the file's slots and chains say; 0 for none.
pub(super) fn newest_in(map: &[u8], options: IndexOptions, slot: u32, next: u32) -> u32 {
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
pub(super) fn slot_in(map: &[u8], slot: u32) -> u32 {
    u32_at(map, HEADER_BYTES + u64::from(slot) * SLOT_BYTES).unwrap_or(0)
}

#[derive(Debug)]
struct IndexFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    map: OnceLock<Map>,
    header: Header,
}

impl KeyIndex {
    /// Opens the files that are there. Files of another length are left alone and reported: the index
    /// is not worth refusing to start for.
    pub(super) fn open(disk: Arc<dyn Disk>, dir: PathBuf, options: IndexOptions) -> io::Result<Self> {
        let mut files = Vec::new();
        for (name, len) in disk.list(&dir)? {
            if !is_index_file(&name, len, options) {
                tracing::warn!(
                    name,
                    len,
                    expected = options.file_bytes(),
                    "not an index file of this store; it is left alone"
                );
                continue;
            }
            let path = dir.join(name);
            let file = disk.open(&path, len)?;
            files.push(IndexFile::open(path, file)?);
        }
        // Not that of the last file: a crash may have left it without a header.
        let position = files.iter().map(|file: &IndexFile| file.header.end_phy).max().unwrap_or(0);
        let pending =
            Pending { position: PhyOffset::from_wire(position).unwrap_or_default(), ..Pending::default() };
        Ok(Self { disk, dir, options, pending: Mutex::new(pending), files: Mutex::new(files) })
    }

    /// Adds the keys of one record; `true` when enough wait to be worth writing.
    pub(super) fn apply(&self, record: &Dispatched<'_>) -> bool {
        let (view, hot) = (&record.view, &record.hot);
        let mut pending = self.pending();
        if view.phy_offset() < pending.position {
            return false;
        }
        key_hashes(view, hot, |_, hash| {
            pending.keys.push(Key { hash, phy: view.phy_offset(), store_at: view.store_at() });
        });
        let waiting = pending.keys.len();
        drop(pending);
        if waiting >= PENDING_MAX
            && let Err(error) = self.write()
        {
            tracing::error!(%error, waiting, "cannot write the key index; queries by key miss these messages until a restart");
            self.pending().keys.clear();
        }
        waiting >= PENDING_WANTED
    }

    /// Writes the keys that wait. Durable when it returns.
    pub(super) fn write(&self) -> io::Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = {
            let mut pending = self.pending();
            let keys = Arc::new(std::mem::take(&mut pending.keys));
            pending.writing = Arc::clone(&keys);
            keys
        };
        let result = self.write_keys(&mut files, &keys);
        let mut pending = self.pending();
        pending.writing = Arc::default();
        if result.is_err() {
            let mut again = keys.to_vec();
            again.append(&mut pending.keys);
            pending.keys = again;
        }
        result
    }

    fn write_keys(&self, files: &mut Vec<IndexFile>, mut keys: &[Key]) -> io::Result<()> {
        while let Some(first) = keys.first() {
            let full = files.last().is_none_or(|file| file.header.next >= self.options.entries);
            if full {
                let file = self.create(files.last(), first)?;
                files.push(file);
            }
            let Some(file) = files.last_mut() else { return Ok(()) };
            let room = self.options.entries.saturating_sub(file.header.next) as usize;
            let (now, later) = keys.split_at(room.min(keys.len()));
            file.add(self.options, now)?;
            keys = later;
        }
        Ok(())
    }

    fn create(&self, last: Option<&IndexFile>, first: &Key) -> io::Result<IndexFile> {
        let mut name = file_name(first.store_at);
        // Names must grow, and no two files may share one.
        if let Some(last) = last.and_then(|last| last.path.file_name()).and_then(|name| name.to_str())
            && last >= name.as_str()
        {
            name = format!("{:017}", last.parse::<u64>().unwrap_or(0).saturating_add(1));
        }
        let path = self.dir.join(name);
        let file = self.disk.open(&path, self.options.file_bytes())?;
        let mut made = IndexFile::open(path, file)?;
        if let Some(last) = last {
            made.header.begin_at = last.header.end_at;
            made.header.begin_phy = last.header.end_phy;
            made.header.end_at = last.header.end_at;
            made.header.end_phy = last.header.end_phy;
        }
        Ok(made)
    }

    /// Positions of records that may carry `key` (equal hashes, newest first) stored in `from..=to`, at
    /// most `limit`. The caller must look at the records.
    pub fn find(
        &self,
        topic: &str,
        key: &str,
        from: Millis,
        to: Millis,
        limit: usize,
    ) -> io::Result<Vec<PhyOffset>> {
        let hash = index_hash(JavaHash::new().push(topic).push("#").push(key).finish());
        let mut found = Vec::new();
        let matches = |key: &Key| key.hash == hash && key.store_at >= from && key.store_at <= to;
        {
            let pending = self.pending();
            let waiting = pending.writing.iter().chain(&pending.keys).rev();
            found.extend(waiting.filter(|key| matches(key)).map(|key| key.phy).take(limit));
        }
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        for file in files.iter().rev() {
            if found.len() >= limit || file.header.end_at < from.get() {
                break;
            }
            file.find(self.options, hash, from, to, limit, &mut found)?;
        }
        // A run may have been written between the two looks.
        found.dedup();
        Ok(found)
    }

    /// Store time and position of the newest indexed record.
    pub fn newest(&self) -> (Millis, PhyOffset) {
        let pending = self.pending();
        if let Some(key) = pending.keys.last().or(pending.writing.last()) {
            return (key.store_at, key.phy);
        }
        drop(pending);
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.last().map_or((Millis::ZERO, PhyOffset::ZERO), |file| {
            (Millis::new(file.header.end_at), PhyOffset::from_wire(file.header.end_phy).unwrap_or_default())
        })
    }

    /// Forgets every key at or beyond `end`.
    pub(super) fn truncate(&self, end: PhyOffset) -> io::Result<()> {
        let mut pending = self.pending();
        pending.keys.retain(|key| key.phy < end);
        // Records that are written from here on are new, whatever the files have.
        pending.position = pending.position.min(end);
        drop(pending);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(last) = files.last_mut() {
            last.cut(self.options, end)?;
            if last.header.next > 1 {
                break;
            }
            // Nothing is left, or it was only just made when a crash came.
            self.disk.remove(&last.path)?;
            files.pop();
        }
        Ok(())
    }

    /// Removes files that only name records before `log_min`, but never the newest.
    pub(super) fn raise_min(&self, log_min: PhyOffset) -> io::Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        while files.len() > 1 && files.first().is_some_and(|file| file.header.end_phy < log_min.to_wire()) {
            let first = files.remove(0);
            self.disk.remove(&first.path)?;
        }
        Ok(())
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl IndexFile {
    fn open(path: PathBuf, file: Arc<dyn DiskFile>) -> io::Result<Self> {
        let mut opened = Self { path, file, map: OnceLock::new(), header: Header::default() };
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
    fn add(&mut self, options: IndexOptions, keys: &[Key]) -> io::Result<()> {
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
    fn cut(&mut self, options: IndexOptions, end: PhyOffset) -> io::Result<()> {
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
        let mut changed: Vec<Newest> = slots.zip(self.header.next..).collect();
        changed.sort_unstable();
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

    fn find(
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

/// The peer's absolute value: `i32::MIN`, which has none, becomes 0.
fn index_hash(hash: i32) -> u32 {
    hash.checked_abs().unwrap_or(0).cast_unsigned()
}

fn u32_at(bytes: &[u8], at: u64) -> Option<u32> {
    let at = usize::try_from(at).ok()?;
    bytes.get(at..)?.first_chunk::<4>().map(|chunk| u32::from_be_bytes(*chunk))
}

/// `yyyyMMddHHmmssSSS` in UTC.
fn file_name(at: Millis) -> String {
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

#[cfg(test)]
mod tests;
