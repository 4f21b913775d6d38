//! One generation of the dedup window: its entries in the order in which they came, and a table that finds them.
//!
//! What is in the file is not kept in memory: the table's slots name entries by their number.
//!
//! ```text
//!  31                     bits        0
//!  +----------------------+-----------+
//!  | as much of the hash  | number + 1|   one slot; 0 is a free one. bits: as many as the largest number needs
//!  +----------------------+-----------+
//! ```
//!
//! A slot whose part of the hash is right is compared with its entry, in memory or in the mapped file; the part
//! sees to it that this is hardly ever in vain. Slots are searched one after the other from where the upper half
//! of the hash points; at most two thirds of them are taken.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset};

use super::super::disk::{DiskFile, Map};
use super::{DedupKey, ENTRY_BYTES};

/// Entries of a generation, at the most, whatever is configured.
const ROOM_MAX: u32 = 1 << 30;
/// Entries whose slots are loaded together when the table is made.
const AT_ONCE: usize = 64;

/// One of the window's two generations.
#[derive(Debug, Default)]
pub(super) struct Generation {
    /// Tells it from the others of this process.
    pub serial: u64,
    /// Store time of its first entry, as far as this process knows.
    pub began: Option<Millis>,
    /// Entries it takes.
    room: u32,
    slots: Vec<u32>,
    /// Slots taken.
    ids: usize,
    file: Option<EntryFile>,
    /// Entries that the file holds. The others follow them.
    written: usize,
    unwritten: Vec<(DedupKey, PhyOffset)>,
}

/// The file of a generation.
#[derive(Clone, Debug)]
pub(super) struct EntryFile {
    pub path: PathBuf,
    pub file: Arc<dyn DiskFile>,
    map: Map,
}

impl EntryFile {
    pub(super) fn new(path: PathBuf, file: Arc<dyn DiskFile>) -> io::Result<Self> {
        let map = file.map()?;
        Ok(Self { path, file, map })
    }

    /// Where the id of its first entry was stored; `None` when nothing is written in it.
    pub(super) fn first(&self) -> Option<PhyOffset> {
        self.entry(0).map(|(_, phy)| phy)
    }

    fn entry(&self, number: usize) -> Option<(DedupKey, PhyOffset)> {
        self.map.as_chunks::<16>().0.get(number).and_then(decode)
    }
}

fn decode(entry: &[u8; 16]) -> Option<(DedupKey, PhyOffset)> {
    let entry = u128::from_be_bytes(*entry);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the entry")]
    let (hash, phy) = ((entry >> 64) as u64, entry as u64);
    Some((DedupKey(hash), PhyOffset::new(phy.checked_sub(1)?)))
}

fn encode<'a>(entries: impl IntoIterator<Item = &'a (DedupKey, PhyOffset)>, bytes: &mut Vec<u8>) {
    for (key, phy) in entries {
        bytes.extend_from_slice(&key.0.to_be_bytes());
        bytes.extend_from_slice(&(phy.get() + 1).to_be_bytes());
    }
}

impl Generation {
    /// An empty one for at most `room` entries.
    pub(super) fn new(serial: u64, room: u32) -> Self {
        Self { serial, room: room.clamp(1, ROOM_MAX), ..Self::default() }
    }

    /// What `file` holds.
    pub(super) fn load(serial: u64, file: EntryFile, room: u32) -> Self {
        // Entries are written without gaps.
        let entries = file.map.as_chunks::<16>().0;
        let written = entries.partition_point(|entry| decode(entry).is_some());
        let limit = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        // One that was made under other bounds keeps what it has, and takes what its file has room for.
        let room = room.min(limit(entries.len())).max(limit(written));
        let written = written.min(ROOM_MAX as usize);
        let mut loaded = Self { file: Some(file), written, ..Self::new(serial, room) };
        loaded.fill();
        loaded
    }

    /// Makes the table anew.
    fn fill(&mut self) {
        self.slots = Vec::new();
        self.ids = 0;
        for from in (0..self.len()).step_by(AT_ONCE) {
            let block = from..self.len().min(from + AT_ONCE);
            self.touch(block.clone().filter_map(|number| Some(self.entry(number)?.0)));
            for number in block {
                if let Some((key, _)) = self.entry(number) {
                    self.point(key, number);
                }
            }
        }
    }

    /// Brings the slots of these ids into the processor's cache: all loads are under way at once, while a search
    /// would wait for each.
    pub(super) fn touch(&self, keys: impl Iterator<Item = DedupKey>) {
        let Some(mask) = self.slots.len().checked_sub(1) else { return };
        let slots = keys.filter_map(|key| self.slots.get(first_slot(key, mask)));
        std::hint::black_box(slots.fold(0, |all, slot| all ^ slot));
    }

    /// Entries it has, those that newer ones have replaced among them.
    fn len(&self) -> usize {
        self.written + self.unwritten.len()
    }

    /// Different ids it knows.
    pub(super) fn ids(&self) -> usize {
        self.ids
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.room as usize
    }

    /// Where the id of its first entry was stored.
    pub(super) fn first(&self) -> Option<PhyOffset> {
        self.entry(0).map(|(_, phy)| phy)
    }

    /// Where the id was stored.
    pub(super) fn find(&self, key: DedupKey) -> Option<PhyOffset> {
        let slot = self.slots.get(self.slot_of(key)?).copied()?;
        self.entry(self.number_in(slot)?).map(|(_, phy)| phy)
    }

    /// Notes that the id was stored at `phy`, in place of where it was before. A full generation must not be
    /// given more.
    pub(super) fn put(&mut self, key: DedupKey, phy: PhyOffset) {
        let number = self.len();
        self.unwritten.push((key, phy));
        self.point(key, number);
    }

    /// Forgets what was stored at or beyond `end`, in the file too: the log will have other records there, and at a
    /// later start an entry that has outlived its record would stand before one that is newer. Gives the path of
    /// a file that has nothing left; what there is of the generation is then unwritten.
    pub(super) fn forget_from(&mut self, end: PhyOffset) -> io::Result<Option<PathBuf>> {
        let beyond = |number: &usize| self.entry(*number).is_some_and(|(_, phy)| phy >= end);
        let Some(first) = (0..self.len()).find(beyond) else { return Ok(None) };
        let kept: Vec<_> = (first..self.len())
            .filter_map(|number| self.entry(number))
            .filter(|(_, phy)| *phy < end)
            .collect();
        let mut gone = None;
        if first >= self.written {
            self.unwritten.truncate(first - self.written);
            self.unwritten.extend(kept);
        } else if first == 0 {
            // Its name is that of a place which another generation may begin at.
            gone = self.file.take().map(|file| file.path);
            (self.written, self.unwritten) = (0, kept);
        } else if let Some(file) = &self.file {
            let (from, mut bytes) = (first as u64 * ENTRY_BYTES, Vec::new());
            encode(&kept, &mut bytes);
            file.file.write_at(from, &bytes)?;
            file.file.zero_from(from + bytes.len() as u64)?;
            file.file.sync()?;
            (self.written, self.unwritten) = (first + kept.len(), Vec::new());
        }
        self.fill();
        Ok(gone)
    }

    fn point(&mut self, key: DedupKey, number: usize) {
        if self.slots.is_empty() {
            // Zeroed memory that nobody has touched costs nothing.
            self.slots = vec![0; (self.room as usize * 3 / 2).next_power_of_two()];
        }
        let bits = self.number_mask();
        let Some(at) = self.slot_of(key) else { return };
        let Some(slot) = self.slots.get_mut(at) else { return };
        self.ids += usize::from(*slot == 0);
        *slot = low(key) & !bits | (u32::try_from(number + 1).unwrap_or(u32::MAX) & bits);
    }

    /// Place of the slot that names the id, or of the free one that would.
    fn slot_of(&self, key: DedupKey) -> Option<usize> {
        let mask = self.slots.len().checked_sub(1)?;
        let bits = self.number_mask();
        let mut at = first_slot(key, mask);
        for _ in 0..self.slots.len() {
            let slot = *self.slots.get(at)?;
            if slot == 0 {
                return Some(at);
            }
            if (slot ^ low(key)) & !bits == 0 {
                let entry = self.number_in(slot).and_then(|number| self.entry(number));
                if entry.is_some_and(|(found, _)| found == key) {
                    return Some(at);
                }
            }
            at = (at + 1) & mask;
        }
        None
    }

    fn number_mask(&self) -> u32 {
        // Numbers are kept one higher.
        u32::MAX >> self.room.leading_zeros()
    }

    fn number_in(&self, slot: u32) -> Option<usize> {
        (slot & self.number_mask()).checked_sub(1).map(|number| number as usize)
    }

    fn entry(&self, number: usize) -> Option<(DedupKey, PhyOffset)> {
        match number.checked_sub(self.written) {
            Some(behind) => self.unwritten.get(behind).copied(),
            None => self.file.as_ref()?.entry(number),
        }
    }

    /// Its file, if it has one.
    pub(super) fn file(&self) -> Option<&EntryFile> {
        self.file.as_ref()
    }

    /// Path of its file, if it has one.
    pub(super) fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }

    /// The first of the entries that are in no file, and how many there are.
    pub(super) fn unwritten(&self) -> Option<(PhyOffset, usize)> {
        self.unwritten.first().map(|(_, phy)| (*phy, self.unwritten.len()))
    }

    /// Encodes at most `count` unwritten entries, from the one with the number `from` among them on. Returns the
    /// place in the file.
    pub(super) fn encode(&self, from: usize, count: usize, bytes: &mut Vec<u8>) -> u64 {
        encode(self.unwritten.iter().skip(from).take(count), bytes);
        (self.written + from) as u64 * ENTRY_BYTES
    }

    /// Its entries will be in `file`.
    pub(super) fn set_file(&mut self, file: EntryFile) {
        self.file = Some(file);
    }

    /// The first `count` unwritten entries are in the file now.
    pub(super) fn wrote(&mut self, count: usize) {
        let rest = self.unwritten.split_off(count.min(self.unwritten.len()));
        self.written += self.unwritten.len();
        self.unwritten = rest;
    }
}

/// Where the search for an id begins.
fn first_slot(key: DedupKey, mask: usize) -> usize {
    usize::try_from(key.0 >> 32).unwrap_or(usize::MAX) & mask
}

/// The half of the hash that slots keep a part of; the other half says where they are.
#[expect(clippy::cast_possible_truncation, reason = "that half")]
fn low(key: DedupKey) -> u32 {
    key.0 as u32
}

#[cfg(test)]
mod tests {
    use super::super::super::disk::{Disk as _, RealDisk};
    use super::*;

    fn key(number: u64) -> DedupKey {
        DedupKey::new("T", &number.to_string())
    }

    fn file(dir: &Path, room: u64) -> EntryFile {
        let path = dir.join("g");
        let file = RealDisk.open(&path, room * ENTRY_BYTES).expect("a file");
        EntryFile::new(path, file).expect("a map")
    }

    fn write(generation: &mut Generation, file: &EntryFile) {
        let (mut bytes, count) = (Vec::new(), generation.unwritten().map_or(0, |(_, count)| count));
        let at = generation.encode(0, count, &mut bytes);
        file.file.write_at(at, &bytes).expect("written");
        generation.set_file(file.clone());
        generation.wrote(count);
    }

    #[test]
    fn entries_are_found_in_memory_in_the_file_and_loaded_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = file(dir.path(), 1000);
        let mut generation = Generation::new(1, 1000);
        for number in 0..1000 {
            if number == 400 || number == 777 {
                write(&mut generation, &file);
            }
            generation.put(key(number), PhyOffset::new(number * 10));
        }
        assert!(generation.is_full());
        let known = |generation: &Generation| {
            (0..1000).all(|number| generation.find(key(number)) == Some(PhyOffset::new(number * 10)))
                && (1000..9000).all(|number| generation.find(key(number)).is_none())
        };
        assert!(known(&generation));
        assert_eq!((generation.ids(), generation.unwritten().map(|(_, count)| count)), (1000, Some(223)));
        write(&mut generation, &file);
        assert!(known(&generation));
        assert!(known(&Generation::load(2, file.clone(), 1000)));
        assert!(known(&Generation::load(2, file, 10)), "a smaller bound forgets nothing");
    }

    #[test]
    fn the_newest_of_one_id_counts_until_it_is_cut_off() {
        let mut generation = Generation::new(1, 10);
        for at in [5, 50, 500] {
            generation.put(key(1), PhyOffset::new(at));
        }
        generation.put(key(2), PhyOffset::new(600));
        assert_eq!((generation.find(key(1)), generation.ids()), (Some(PhyOffset::new(500)), 2));
        assert_eq!(generation.forget_from(PhyOffset::new(60)).expect("nothing is written"), None);
        assert_eq!((generation.find(key(1)), generation.find(key(2))), (Some(PhyOffset::new(50)), None));
    }

    #[test]
    fn equal_parts_of_a_hash_are_told_apart() {
        let mut generation = Generation::new(1, 6);
        for number in 0..6 {
            // The same slot and the same part of the hash: only the lowest bits differ.
            generation.put(DedupKey(7 << 32 | number), PhyOffset::new(number));
        }
        for number in 0..6 {
            assert_eq!(generation.find(DedupKey(7 << 32 | number)), Some(PhyOffset::new(number)));
        }
        assert_eq!(generation.find(DedupKey(7 << 32 | 6)), None);
    }
}
