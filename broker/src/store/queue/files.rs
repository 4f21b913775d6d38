//! The files of one queue: which are open, what waits to be written, and what is not durable yet.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use gantry_proto::ids::{PhyOffset, QueueOffset};

use super::super::disk::{Disk, DiskFile, Map, Volume, offset_path, parse_offset_name};
use super::{BLANK_SIZE, ENTRY_BYTES, QueueEntry};

/// Unwritten entries are written once they fill this many bytes.
const PENDING_MAX: usize = 16 * 1024;
/// Bytes at the end of a file in which its last entry lies: a whole number of entries, more than a page.
const TAIL_BYTES: usize = 410 * 20;
/// What a disk writes as a whole.
const SECTOR_BYTES: u64 = 512;
/// Queue files that are made durable one by one; when there are more, the whole file system is.
pub(in crate::store) const SYNCS_MAX: usize = 64;

/// What all queues of a store share.
#[derive(Clone, Debug)]
pub(in crate::store) struct Shared {
    pub disk: Arc<dyn Disk>,
    /// Their file system, if it can be made durable as a whole.
    pub volume: Option<Arc<dyn Volume>>,
    /// Length of a queue file in bytes; rounded up to whole entries.
    pub file_bytes: u64,
    /// Files that are open.
    pub open: Arc<AtomicUsize>,
    /// Files that may stay open when they are not in use.
    pub open_max: usize,
}

impl Shared {
    /// Whether so many files are open that those to come are made durable together.
    fn is_crowded(&self) -> bool {
        self.volume.is_some() && self.open.load(Ordering::Relaxed) >= SYNCS_MAX
    }
}

#[derive(Debug)]
pub(super) struct Files {
    pub(super) shared: Shared,
    pub(super) dir: PathBuf,
    pub(super) file_bytes: u64,
    /// Opened files, by first byte, in order. Files not listed here are opened when needed.
    pub(super) open: Vec<Arc<QueueFile>>,
    pub(super) pending: Vec<u8>,
    /// Number of the first pending entry.
    pub(super) pending_at: u64,
    /// First bytes of the files written since the last sync.
    pub(super) unsynced: Vec<u64>,
    /// A flush failed: what it was for may be gone, though the next one would succeed. No checkpoint may count
    /// on these files any more.
    pub(super) sync_failed: bool,
    /// Whether a file was made whose name is not durable yet.
    pub(super) unnamed: bool,
    /// Where the last entry's record is: gaps repeat it so that positions never fall.
    pub(super) last_phy: PhyOffset,
    /// The end of the log at which the last entry is still one; zero when that is not known.
    pub(super) last_end: PhyOffset,
}

#[derive(Debug)]
pub(super) struct QueueFile {
    start: u64,
    file: Arc<dyn DiskFile>,
    map: OnceLock<Map>,
    open: Arc<AtomicUsize>,
}

impl Drop for QueueFile {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Files {
    fn starts(&self) -> io::Result<Vec<u64>> {
        let listed = self.shared.disk.list(&self.dir)?;
        Ok(listed.iter().filter_map(|(name, _)| parse_offset_name(name)).collect())
    }

    /// Number of the first entry of the first file, and of the one after the last written entry.
    pub(super) fn bounds(&mut self) -> io::Result<(u64, u64)> {
        let starts = self.starts()?;
        let Some(first) = starts.first().copied() else { return Ok((0, 0)) };
        for start in starts.iter().rev().copied() {
            let base = start / ENTRY_BYTES;
            let file = self.file(start)?;
            let written = if let Some(written) = self.written_in(&file)? {
                written
            } else {
                let entries = file.file.length()?.min(self.file_bytes) / ENTRY_BYTES;
                let map = file.map()?;
                partition_point(entries, |n| decode_in(map, n, QueueOffset::ZERO).is_some())
            };
            self.open.clear();
            if written > 0 || start == first {
                return Ok((first / ENTRY_BYTES, base + written));
            }
        }
        Ok((0, 0))
    }

    /// How many entries a file holds, if the last of them lies where the file system says that its bytes end, as
    /// it does unless something else was written there. Notes where that one's record is.
    fn written_in(&mut self, file: &QueueFile) -> io::Result<Option<u64>> {
        let Some(data) = file.file.next_data(0)? else { return Ok(Some(0)) };
        let end = data.end.min(self.file_bytes).next_multiple_of(ENTRY_BYTES);
        let mut bytes = [0; TAIL_BYTES];
        let from = end.saturating_sub(TAIL_BYTES as u64);
        let read = file.file.read_at(from, &mut bytes)?;
        let tail = bytes.get(..read).unwrap_or_default();
        let written =
            partition_point(read as u64 / ENTRY_BYTES, |n| decode_in(tail, n, QueueOffset::ZERO).is_some());
        let Some(last) = written.checked_sub(1).filter(|_| data.start == 0) else { return Ok(None) };
        let before = last.checked_sub(1).and_then(|before| decode_in(tail, before, QueueOffset::ZERO));
        if let Some(entry) = decode_in(tail, last, QueueOffset::ZERO)
            && (before.is_some() || !lies_in_two_sectors(from + last * ENTRY_BYTES))
        {
            self.note_last(&entry);
        }
        Ok(Some(from / ENTRY_BYTES + written))
    }

    pub(super) fn note_last(&mut self, entry: &QueueEntry) {
        self.last_phy = entry.phy;
        self.last_end = if entry.is_blank() { entry.phy + 1 } else { entry.phy + u64::from(entry.size) };
    }

    fn file(&mut self, start: u64) -> io::Result<Arc<QueueFile>> {
        match self.open.binary_search_by_key(&start, |file| file.start) {
            Ok(at) => Ok(Arc::clone(&self.open[at])),
            Err(at) => {
                let path = offset_path(&self.dir, start);
                let file = if self.shared.is_crowded() {
                    // It may be made just now.
                    self.unnamed = true;
                    self.shared.disk.open_unsynced(&path, self.file_bytes)?
                } else {
                    self.shared.disk.open(&path, self.file_bytes)?
                };
                let len = file.length()?;
                if len < self.file_bytes {
                    tracing::error!(path = %path.display(), len, expected = self.file_bytes, "a file of a consume queue is cut short; what it lacks is looked for in the log");
                    // Its last byte gives it its length.
                    file.write_at(self.file_bytes - 1, &[0])?;
                }
                let open = Arc::clone(&self.shared.open);
                let others = open.fetch_add(1, Ordering::Relaxed);
                let file = Arc::new(QueueFile { start, file, map: OnceLock::new(), open });
                if others < self.shared.open_max {
                    self.open.insert(at, Arc::clone(&file));
                }
                Ok(file)
            }
        }
    }

    fn locate(&self, at: u64) -> (u64, u64) {
        let byte = at * ENTRY_BYTES;
        (byte - byte % self.file_bytes, byte % self.file_bytes)
    }

    /// Reads entries `at..end` as far as one file or the pending run reaches, moving `at` on.
    pub(super) fn read_run(&mut self, at: &mut u64, end: u64, out: &mut Vec<QueueEntry>) -> io::Result<()> {
        if *at >= self.pending_at {
            while *at < end
                && let Some(entry) = decode_in(&self.pending, *at - self.pending_at, QueueOffset::new(*at))
            {
                out.push(entry);
                *at += 1;
            }
            return Ok(());
        }
        let (start, byte) = self.locate(*at);
        let file = self.file(start)?;
        let map = file.map()?;
        let here = (self.file_bytes - byte) / ENTRY_BYTES;
        let stop = end.min(*at + here).min(self.pending_at);
        let first = *at - byte / ENTRY_BYTES;
        while *at < stop {
            let Some(entry) = decode_in(map, *at - first, QueueOffset::new(*at)) else { break };
            out.push(entry);
            *at += 1;
        }
        Ok(())
    }

    pub(super) fn read(&mut self, at: u64) -> io::Result<Option<QueueEntry>> {
        let mut out = Vec::with_capacity(1);
        let mut from = at;
        self.read_run(&mut from, at + 1, &mut out)?;
        Ok(out.pop())
    }

    /// Reads an entry that is to be believed before anything is known of its file: not one whose beginning may have been
    /// lost with the sector before, when the power failed. It would name a place far too early in the log.
    pub(super) fn read_whole(&mut self, at: u64) -> io::Result<Option<QueueEntry>> {
        let entry = self.read(at)?;
        let begins_elsewhere = at < self.pending_at && lies_in_two_sectors(self.locate(at).1);
        if entry.is_some() && begins_elsewhere && self.read(at.saturating_sub(1))?.is_none() {
            return Ok(None);
        }
        Ok(entry)
    }

    /// The first of the entries `first..last` that is not `before`. Damaged ones count as the next sound one does: what
    /// lies behind them is not given up for them, and their messages are looked for in the log when they are asked for.
    pub(super) fn partition(
        &mut self,
        first: u64,
        last: u64,
        mut before: impl FnMut(&QueueEntry) -> bool,
    ) -> io::Result<u64> {
        let (mut low, mut high) = (first, last);
        while low < high {
            let middle = low + (high - low) / 2;
            let mut at = middle;
            let mut sound = self.read_whole(at)?;
            while sound.is_none() && at + 1 < high {
                at += 1;
                sound = self.read_whole(at)?;
            }
            match sound {
                Some(entry) if before(&entry) => low = at + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    pub(super) fn push(&mut self, entry: &QueueEntry) -> io::Result<()> {
        self.pending.extend_from_slice(&entry.encode());
        self.note_last(entry);
        if self.pending.len() >= PENDING_MAX { self.write_pending() } else { Ok(()) }
    }

    /// The highest number that the record at `phy` can have. What is missing before it was in the log between the
    /// last entry's record and this one, and a message, also one of a batch, takes more bytes than an entry: so the
    /// blanks take no more bytes than that stretch of the log. The first entry may begin anywhere in a file that can
    /// be named.
    pub(super) fn highest(&self, max: u64, phy: PhyOffset) -> u64 {
        if max == 0 {
            return (i64::MAX as u64 - self.file_bytes) / ENTRY_BYTES;
        }
        max.saturating_add(phy.get().saturating_sub(self.last_phy.get()) / ENTRY_BYTES)
    }

    pub(super) fn fill_gap(&mut self, max: u64, at: u64) -> io::Result<()> {
        // Only the file that the entry lies in needs its earlier slots filled.
        let from = if max == 0 {
            self.write_pending()?;
            let start = self.locate(at).0 / ENTRY_BYTES;
            self.pending_at = start;
            start
        } else {
            max
        };
        let mut filled = Ok(());
        for missing in from..at {
            let blank = QueueEntry {
                at: QueueOffset::new(missing),
                phy: self.last_phy,
                size: BLANK_SIZE,
                tags_code: 0,
            };
            filled = filled.and(self.push(&blank));
        }
        filled
    }

    pub(super) fn write_pending(&mut self) -> io::Result<()> {
        let pending = std::mem::take(&mut self.pending);
        let mut written = 0;
        while written < pending.len() {
            let (start, byte) = self.locate(self.pending_at);
            let room = usize::try_from(self.file_bytes - byte).unwrap_or(usize::MAX);
            let run = &pending[written..pending.len().min(written.saturating_add(room))];
            let result = self.file(start).and_then(|file| file.file.write_at(byte, run));
            if let Err(error) = result {
                // What was not written stays pending: a later flush tries again.
                self.pending = pending[written..].to_vec();
                return Err(error);
            }
            if self.unsynced.last() != Some(&start) {
                self.unsynced.push(start);
            }
            written += run.len();
            self.pending_at += run.len() as u64 / ENTRY_BYTES;
        }
        self.pending = pending;
        self.pending.clear();
        if self.pending.capacity() > PENDING_MAX / 4 && written < PENDING_MAX / 8 {
            self.pending = Vec::new();
        }
        Ok(())
    }

    pub(super) fn check_sync(&self) -> io::Result<()> {
        if self.sync_failed {
            return Err(io::Error::other(
                "an earlier flush of this consume queue failed: restart the broker, which builds it again",
            ));
        }
        Ok(())
    }

    /// Closes the files when there are many in all queues together; they are opened again when they are needed.
    pub(super) fn close_some(&mut self) {
        if self.shared.open.load(Ordering::Relaxed) > self.shared.open_max / 4 * 3 {
            self.open.clear();
        }
    }

    /// Makes written entries durable. After a failure never again: the system may have dropped what it could
    /// not write, and a second flush would succeed without it. No checkpoint is saved then, so the next start
    /// builds the entries again from the log.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.check_sync()?;
        for start in std::mem::take(&mut self.unsynced) {
            let synced = self.file(start).and_then(|file| file.file.sync());
            self.sync_failed = synced.is_err();
            synced?;
        }
        Ok(())
    }

    /// Changes an entry in its file.
    pub(super) fn overwrite(&mut self, at: u64, entry: &QueueEntry) -> io::Result<()> {
        let (start, byte) = self.locate(at);
        self.file(start)?.file.write_at(byte, &entry.encode())?;
        self.unsynced.push(start);
        Ok(())
    }

    /// Removes every entry from number `keep` on.
    pub(super) fn cut(&mut self, keep: u64) -> io::Result<()> {
        let byte = keep * ENTRY_BYTES;
        self.open.clear();
        // From the end: a crash on the way leaves no hole.
        for start in self.starts()?.into_iter().rev() {
            if start >= byte {
                self.shared.disk.remove(&offset_path(&self.dir, start))?;
            } else if start + self.file_bytes > byte {
                let file = self.shared.disk.open(&offset_path(&self.dir, start), self.file_bytes)?;
                file.zero_from(byte - start)?;
            }
        }
        self.unsynced.clear();
        Ok(())
    }

    /// Removes files that end at or before entry `min`, but never the last.
    pub(super) fn remove_before(&mut self, min: u64) -> io::Result<()> {
        let starts = self.starts()?;
        for start in starts.iter().take(starts.len().saturating_sub(1)).copied() {
            if start + self.file_bytes <= min * ENTRY_BYTES {
                self.open.retain(|file| file.start != start);
                self.unsynced.retain(|unsynced| *unsynced != start);
                self.shared.disk.remove(&offset_path(&self.dir, start))?;
            }
        }
        Ok(())
    }
}

impl QueueFile {
    fn map(&self) -> io::Result<&Map> {
        if let Some(map) = self.map.get() {
            return Ok(map);
        }
        let map = self.file.map()?;
        Ok(self.map.get_or_init(|| map))
    }
}

/// Whether the entry at `byte` of a file begins in one sector and ends in the next.
const fn lies_in_two_sectors(byte: u64) -> bool {
    byte % SECTOR_BYTES > SECTOR_BYTES - ENTRY_BYTES
}

fn decode_in(bytes: &[u8], n: u64, at: QueueOffset) -> Option<QueueEntry> {
    let from = usize::try_from(n.checked_mul(ENTRY_BYTES)?).ok()?;
    QueueEntry::decode(at, bytes.get(from..from.checked_add(20)?)?)
}

/// The first of `0..count` for which `holds` is false.
pub(in crate::store) fn partition_point(count: u64, holds: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) { low = middle + 1 } else { high = middle }
    }
    low
}
