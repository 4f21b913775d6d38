//! One consume queue: where in the log the n-th message of a queue is.
//!
//! ```text
//!  0                8        12               20
//!  +----------------+--------+----------------+
//!  | phy offset i64 | size   | tags code i64  |   entry n starts at byte n * 20
//!  +----------------+--------+----------------+
//! ```
//!
//! Entries lie in files of fixed length, named after their first byte (`00000000000006000000`). A blank
//! entry (size `0x7FFF_FFFF`) stands for a message that is gone: before the first entry of a queue that
//! was restarted, or where a damaged record was passed over.
//!
//! New entries wait in memory and are written in runs. After a crash the files may lack the newest
//! entries, or hold ones that were never made durable: recovery cuts each queue at the checkpoint's
//! log position and dispatch rebuilds the rest from the log.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use gantry_proto::ids::{PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{TopicKind, TopicName};

use super::disk::{Disk, DiskFile, Map, Volume, offset_path, parse_offset_name};

/// Bytes of one entry.
pub const ENTRY_BYTES: u64 = 20;
const BLANK_SIZE: u32 = 0x7FFF_FFFF;
/// Unwritten entries are written once they fill this many bytes.
const PENDING_MAX: usize = 16 * 1024;
/// Bytes at the end of a file in which its last entry lies: a whole number of entries, more than a page.
const TAIL_BYTES: usize = 410 * 20;

/// Queue files that are made durable one by one; when there are more, the whole file system is.
pub(super) const SYNCS_MAX: usize = 64;

/// Why an entry was not added, or not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum PushError {
    /// It is in memory; the next flush tries again.
    #[error("cannot write the consume queue; the entry stays in memory: {0}")]
    Write(#[from] io::Error),
    /// A record's number is not protected by every peer's checksum: a changed bit must not have the queue filled
    /// with blanks up to it.
    #[error(
        "the record says that it is message {at} of its queue, which can hold no more than {highest} there: it is \
         damaged, and only in the log"
    )]
    Beyond {
        /// The record's number.
        at: u64,
        /// The highest one that it can have.
        highest: u64,
    },
}

/// Where one message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueEntry {
    /// Its number in the queue.
    pub at: QueueOffset,
    /// Where its record starts in the log.
    pub phy: PhyOffset,
    /// Length of the record in bytes.
    pub size: u32,
    /// Hash of its tag, or the due time in the schedule topic.
    pub tags_code: i64,
}

impl QueueEntry {
    /// Whether it stands for a message that is gone.
    pub const fn is_blank(&self) -> bool {
        self.size == BLANK_SIZE
    }

    fn encode(&self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.phy.to_wire().to_be_bytes());
        bytes[8..12].copy_from_slice(&self.size.to_be_bytes());
        bytes[12..].copy_from_slice(&self.tags_code.to_be_bytes());
        bytes
    }

    /// `None` for bytes that no entry was written to.
    pub(super) fn decode(at: QueueOffset, bytes: &[u8]) -> Option<Self> {
        let (phy, rest) = bytes.split_first_chunk::<8>()?;
        let (size, rest) = rest.split_first_chunk::<4>()?;
        let (tags_code, _) = rest.split_first_chunk::<8>()?;
        let phy = PhyOffset::from_wire(i64::from_be_bytes(*phy))?;
        let size = u32::from_be_bytes(*size);
        let written = size > 0 && size <= BLANK_SIZE;
        written.then_some(Self { at, phy, size, tags_code: i64::from_be_bytes(*tags_code) })
    }
}

/// One queue of one topic.
#[derive(Debug)]
pub struct Queue {
    topic: TopicName,
    kind: TopicKind,
    id: QueueId,
    /// The number the next appended message gets. Changed only under the log's tail lock.
    next: AtomicU64,
    min: AtomicU64,
    max: AtomicU64,
    /// Whether entries may be missing on the disk, and someone knows.
    dirty: AtomicBool,
    /// The first entry that this process made itself.
    own: AtomicU64,
    /// Guards the files and the unwritten entries.
    files: Mutex<Files>,
}

/// What all queues of a store share.
#[derive(Clone, Debug)]
pub(super) struct Shared {
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
struct Files {
    shared: Shared,
    dir: PathBuf,
    file_bytes: u64,
    /// Opened files, by first byte, in order. Files not listed here are opened when needed.
    open: Vec<Arc<QueueFile>>,
    pending: Vec<u8>,
    /// Number of the first pending entry.
    pending_at: u64,
    /// First bytes of the files written since the last sync.
    unsynced: Vec<u64>,
    /// A flush failed: what it was for may be gone, though the next one would succeed. No checkpoint may count
    /// on these files any more.
    sync_failed: bool,
    /// Whether a file was made whose name is not durable yet.
    unnamed: bool,
    /// Where the last entry's record is: gaps repeat it so that positions never fall.
    last_phy: PhyOffset,
    /// The end of the log at which the last entry is still one; zero when that is not known.
    last_end: PhyOffset,
}

#[derive(Debug)]
struct QueueFile {
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

impl Queue {
    /// Opens the queue as its files say.
    pub(super) fn open(shared: &Shared, dir: PathBuf, topic: TopicName, id: QueueId) -> io::Result<Self> {
        let mut files = Files {
            dir,
            file_bytes: shared.file_bytes.div_ceil(ENTRY_BYTES) * ENTRY_BYTES,
            shared: shared.clone(),
            open: Vec::new(),
            pending: Vec::new(),
            pending_at: 0,
            unsynced: Vec::new(),
            sync_failed: false,
            unnamed: false,
            last_phy: PhyOffset::ZERO,
            last_end: PhyOffset::ZERO,
        };
        let (first, end) = files.bounds()?;
        files.pending_at = end;
        if files.last_end == PhyOffset::ZERO
            && let Some(last) = end.checked_sub(1).filter(|last| *last >= first)
            && let Some(entry) = files.read(last)?
        {
            files.note_last(&entry);
        }
        Ok(Self {
            kind: topic.kind(),
            topic,
            id,
            next: AtomicU64::new(end),
            min: AtomicU64::new(first),
            max: AtomicU64::new(end),
            dirty: AtomicBool::new(false),
            own: AtomicU64::new(end),
            files: Mutex::new(files),
        })
    }

    /// The topic's name.
    pub fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// What the topic is for.
    pub fn kind(&self) -> TopicKind {
        self.kind
    }

    /// The queue's number in its topic.
    pub fn id(&self) -> QueueId {
        self.id
    }

    /// The first message that is still there.
    pub fn min(&self) -> QueueOffset {
        QueueOffset::new(self.min.load(Ordering::Acquire))
    }

    /// The number after the last visible message.
    pub fn max(&self) -> QueueOffset {
        QueueOffset::new(self.max.load(Ordering::Acquire))
    }

    /// The entry `at`, unless it is outside `min..max` or blank.
    pub fn entry(&self, at: QueueOffset) -> Option<QueueEntry> {
        let mut found = Vec::with_capacity(1);
        self.entries(at, 1, &mut found);
        found.pop().filter(|entry| !entry.is_blank())
    }

    /// Appends at most `limit` entries from `from` on to `out`, in order, blanks included. Nothing when
    /// `from` is outside `min..max`.
    pub fn entries(&self, from: QueueOffset, limit: usize, out: &mut Vec<QueueEntry>) {
        let (min, max) = (self.min().get(), self.max().get());
        if from.get() < min || from.get() >= max {
            return;
        }
        let end = max.min(from.get().saturating_add(limit as u64));
        let mut files = self.lock();
        let mut at = from.get();
        while at < end {
            let before = at;
            if let Err(error) = files.read_run(&mut at, end, out) {
                tracing::error!(topic = %self.topic, queue = %self.id, at, %error, "cannot read consume queue");
                return;
            }
            if at == before {
                return;
            }
        }
    }

    /// The number the next message gets, moved on by one. Only under the log's tail lock.
    pub(super) fn assign(&self) -> QueueOffset {
        let at = self.next.load(Ordering::Relaxed);
        self.next.store(at + 1, Ordering::Relaxed);
        QueueOffset::new(at)
    }

    /// Whether this process made the entry itself. Others were read from files that may be damaged.
    pub(super) fn is_trusted(&self, at: QueueOffset) -> bool {
        at.get() >= self.own.load(Ordering::Relaxed)
    }

    /// Writes a damaged entry anew, as a blank one when its message is gone.
    pub(super) fn mend(&self, at: QueueOffset, entry: Option<&QueueEntry>) -> io::Result<()> {
        let mut files = self.lock();
        let number = at.get();
        if number >= files.pending_at || number >= self.max.load(Ordering::Relaxed) {
            return Ok(());
        }
        let blank = match number.checked_sub(1).map(|before| files.read(before)).transpose()?.flatten() {
            Some(before) => QueueEntry { at, phy: before.phy, size: BLANK_SIZE, tags_code: 0 },
            None => QueueEntry { at, phy: PhyOffset::ZERO, size: BLANK_SIZE, tags_code: 0 },
        };
        files.overwrite(number, entry.unwrap_or(&blank))
    }

    /// Whether nothing was ever appended.
    pub fn is_empty(&self) -> bool {
        self.next.load(Ordering::Relaxed) == 0
    }

    /// Adds the entry of a dispatched record. One that is there already changes nothing; a gap before
    /// it (a damaged record, a queue that was restarted) is filled with blanks. A later record with a number
    /// that is taken begins the queue again from there: its topic was deleted and made anew. A number that is
    /// [beyond belief](PushError::Beyond) adds nothing.
    pub(super) fn push(&self, entry: QueueEntry) -> Result<(), PushError> {
        let at = entry.at.get();
        let mut files = self.lock();
        let (first, last) = (self.min.load(Ordering::Relaxed), self.max.load(Ordering::Relaxed));
        if at < last {
            let known = if first < last { files.read(at.max(first))? } else { None };
            if known.is_some_and(|known| known.phy >= entry.phy) {
                return Ok(());
            }
            self.begin_again(&mut files, at)?;
        }
        let max = self.max.load(Ordering::Relaxed);
        let mut filled = Ok(());
        if at > max {
            let highest = files.highest(max, entry.phy);
            if at > highest {
                return Err(PushError::Beyond { at, highest });
            }
            filled = files.fill_gap(max, at);
            if max == 0 {
                self.min.store(at, Ordering::Release);
            }
        }
        let written = filled.and(files.push(&entry));
        drop(files);
        // Also when it could not be written: then it is in memory, and the next flush tries again.
        self.max.store(at + 1, Ordering::Release);
        self.next.fetch_max(at + 1, Ordering::Relaxed);
        Ok(written?)
    }

    /// Forgets every entry from number `at` on, and those before it that are gone anyway.
    fn begin_again(&self, files: &mut Files, at: u64) -> io::Result<()> {
        files.write_pending()?;
        files.cut(at)?;
        files.pending_at = at;
        self.min.fetch_min(at, Ordering::Release);
        self.max.store(at, Ordering::Release);
        self.own.fetch_min(at, Ordering::Relaxed);
        Ok(())
    }

    /// Notes that there is something to [`flush`](Self::flush). Returns whether that is news.
    pub(super) fn mark_dirty(&self) -> bool {
        !self.dirty.load(Ordering::SeqCst) && !self.dirty.swap(true, Ordering::SeqCst)
    }

    /// Writes the entries that are only in memory and makes all of them durable.
    pub(super) fn flush(&self) -> io::Result<()> {
        // First: an entry that comes meanwhile marks it again.
        self.dirty.store(false, Ordering::SeqCst);
        let mut files = self.lock();
        files.write_pending()?;
        files.sync()
    }

    /// Writes the entries that are only in memory. The caller makes the file system durable, and tells when that
    /// [failed](Self::note_failed_sync).
    pub(super) fn write(&self) -> io::Result<()> {
        self.dirty.store(false, Ordering::SeqCst);
        let mut files = self.lock();
        files.check_sync()?;
        files.write_pending()?;
        files.unsynced.clear();
        files.unnamed = false;
        files.close_some();
        Ok(())
    }

    /// What was written last may be gone, though the next sync would succeed.
    pub(super) fn note_failed_sync(&self) {
        self.lock().sync_failed = true;
    }

    /// Whether it has files that only a sync of the whole file system makes durable.
    pub(super) fn is_unnamed(&self) -> bool {
        self.lock().unnamed
    }

    /// Forgets every entry of a record that does not end at or below `end`.
    pub(super) fn truncate(&self, end: PhyOffset) -> io::Result<()> {
        let mut files = self.lock();
        let (first, last) = (self.min.load(Ordering::Relaxed), self.max.load(Ordering::Relaxed));
        if files.pending.is_empty() && files.last_end > PhyOffset::ZERO && files.last_end <= end {
            self.next.store(last, Ordering::Relaxed);
            return Ok(());
        }
        files.write_pending()?;
        let keep = files.partition(first, last, |entry| {
            entry.is_blank() && entry.phy < end || entry.phy + u64::from(entry.size) <= end
        })?;
        if keep < last {
            files.cut(keep)?;
        }
        // With nothing left the log decides again where the queue begins: a crash in the middle of a cut may
        // have left files whose predecessors are gone.
        let keep = if keep == first && first < last { 0 } else { keep };
        if keep == 0 {
            self.min.store(0, Ordering::Release);
        }
        files.pending_at = keep;
        (files.last_phy, files.last_end) = (PhyOffset::ZERO, PhyOffset::ZERO);
        if let Some(at) = keep.checked_sub(1).filter(|at| *at >= first)
            && let Some(entry) = files.read(at)?
        {
            files.note_last(&entry);
        }
        self.max.store(keep, Ordering::Release);
        self.own.fetch_min(keep, Ordering::Relaxed);
        self.next.store(keep, Ordering::Relaxed);
        Ok(())
    }

    /// Moves the first visible entry to the first one at or behind `log_min`, and removes files that
    /// only hold earlier ones.
    pub(super) fn raise_min(&self, log_min: PhyOffset) -> io::Result<()> {
        if log_min == PhyOffset::ZERO {
            return Ok(());
        }
        let mut files = self.lock();
        files.write_pending()?;
        let (first, last) = (self.min.load(Ordering::Relaxed), self.max.load(Ordering::Relaxed));
        let min = files.partition(first, last, |entry| entry.phy < log_min)?;
        self.min.store(min, Ordering::Release);
        files.remove_before(min)
    }

    /// The first entry for which `before` is false; `before` must hold for a prefix.
    pub fn partition(&self, before: impl FnMut(&QueueEntry) -> bool) -> io::Result<QueueOffset> {
        let (first, last) = (self.min().get(), self.max().get());
        self.lock().partition(first, last, before).map(QueueOffset::new)
    }

    /// Removes all files. The queue must not be used afterwards.
    pub(super) fn remove(&self) -> io::Result<()> {
        let mut files = self.lock();
        files.pending.clear();
        files.cut(0)
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    fn starts(&self) -> io::Result<Vec<u64>> {
        let listed = self.shared.disk.list(&self.dir)?;
        Ok(listed.iter().filter_map(|(name, _)| parse_offset_name(name)).collect())
    }

    /// Number of the first entry of the first file, and of the one after the last written entry.
    fn bounds(&mut self) -> io::Result<(u64, u64)> {
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
        if let Some(entry) = decode_in(tail, last, QueueOffset::ZERO) {
            self.note_last(&entry);
        }
        Ok(Some(from / ENTRY_BYTES + written))
    }

    fn note_last(&mut self, entry: &QueueEntry) {
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
    fn read_run(&mut self, at: &mut u64, end: u64, out: &mut Vec<QueueEntry>) -> io::Result<()> {
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

    fn read(&mut self, at: u64) -> io::Result<Option<QueueEntry>> {
        let mut out = Vec::with_capacity(1);
        let mut from = at;
        self.read_run(&mut from, at + 1, &mut out)?;
        Ok(out.pop())
    }

    /// The first of the entries `first..last` that is not `before`. Damaged ones count as the next sound one does: what
    /// lies behind them is not given up for them, and their messages are looked for in the log when they are asked for.
    fn partition(
        &mut self,
        first: u64,
        last: u64,
        mut before: impl FnMut(&QueueEntry) -> bool,
    ) -> io::Result<u64> {
        let (mut low, mut high) = (first, last);
        while low < high {
            let middle = low + (high - low) / 2;
            let mut at = middle;
            let mut sound = self.read(at)?;
            while sound.is_none() && at + 1 < high {
                at += 1;
                sound = self.read(at)?;
            }
            match sound {
                Some(entry) if before(&entry) => low = at + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    fn push(&mut self, entry: &QueueEntry) -> io::Result<()> {
        self.pending.extend_from_slice(&entry.encode());
        self.note_last(entry);
        if self.pending.len() >= PENDING_MAX { self.write_pending() } else { Ok(()) }
    }

    /// The highest number that the record at `phy` can have. What is missing before it was in the log between the
    /// last entry's record and this one, and a message, also one of a batch, takes more bytes than an entry: so the
    /// blanks take no more bytes than that stretch of the log. The first entry may begin anywhere in a file that can
    /// be named.
    fn highest(&self, max: u64, phy: PhyOffset) -> u64 {
        if max == 0 {
            return (i64::MAX as u64 - self.file_bytes) / ENTRY_BYTES;
        }
        max.saturating_add(phy.get().saturating_sub(self.last_phy.get()) / ENTRY_BYTES)
    }

    fn fill_gap(&mut self, max: u64, at: u64) -> io::Result<()> {
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

    fn write_pending(&mut self) -> io::Result<()> {
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

    fn check_sync(&self) -> io::Result<()> {
        if self.sync_failed {
            return Err(io::Error::other(
                "an earlier flush of this consume queue failed: restart the broker, which builds it again",
            ));
        }
        Ok(())
    }

    /// Closes the files when there are many in all queues together; they are opened again when they are needed.
    fn close_some(&mut self) {
        if self.shared.open.load(Ordering::Relaxed) > self.shared.open_max / 4 * 3 {
            self.open.clear();
        }
    }

    /// Makes written entries durable. After a failure never again: the system may have dropped what it could
    /// not write, and a second flush would succeed without it. No checkpoint is saved then, so the next start
    /// builds the entries again from the log.
    fn sync(&mut self) -> io::Result<()> {
        self.check_sync()?;
        for start in std::mem::take(&mut self.unsynced) {
            let synced = self.file(start).and_then(|file| file.file.sync());
            self.sync_failed = synced.is_err();
            synced?;
        }
        Ok(())
    }

    /// Changes an entry in its file.
    fn overwrite(&mut self, at: u64, entry: &QueueEntry) -> io::Result<()> {
        let (start, byte) = self.locate(at);
        self.file(start)?.file.write_at(byte, &entry.encode())?;
        self.unsynced.push(start);
        Ok(())
    }

    /// Removes every entry from number `keep` on.
    fn cut(&mut self, keep: u64) -> io::Result<()> {
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
    fn remove_before(&mut self, min: u64) -> io::Result<()> {
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

fn decode_in(bytes: &[u8], n: u64, at: QueueOffset) -> Option<QueueEntry> {
    let from = usize::try_from(n.checked_mul(ENTRY_BYTES)?).ok()?;
    QueueEntry::decode(at, bytes.get(from..from.checked_add(20)?)?)
}

/// The first of `0..count` for which `holds` is false.
pub(super) fn partition_point(count: u64, holds: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests;
