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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gantry_proto::ids::{PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{TopicKind, TopicName};

mod files;

use files::Files;
pub(super) use files::{SYNCS_MAX, Shared, partition_point};

/// Bytes of one entry.
pub const ENTRY_BYTES: u64 = 20;
const BLANK_SIZE: u32 = 0x7FFF_FFFF;

/// Why an entry was not added, or not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum PushError {
    /// It is in memory; the next flush tries again.
    #[error("cannot write the consume queue; this entry and those that follow stay in memory for now: {0}")]
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

impl PushError {
    /// Whether the entry is in memory and only the disk lacks it.
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Write(_))
    }
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
            && let Some(entry) = files.read_whole(last)?
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

#[cfg(test)]
mod tests;
