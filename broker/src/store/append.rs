//! The log's tail: records get their places here, one append at a time, and wait to be written.
//!
//! [`Log::append`] copies finished records behind the end of the log into memory ("staged"); inside
//! its lock it only assigns offsets, copies and seals. [`Log::write_staged`] moves what is staged to
//! the files with one positional write for each run; whoever comes first writes for all.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use gantry_proto::ids::{Millis, PhyOffset, QueueOffset};
use gantry_proto::record::{self, EncodeError, RecordDraft};

use super::disk::{Disk, Space};
use super::queue::Queue;
use super::segments::Segments;
use super::watermark::{Marks, Poisoned};
use crate::clock::CORRECTION_MAX_MS;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Bytes that always stay free behind the last record of a file, for the blank record.
const BLANK_BYTES: u64 = 8;
/// Bytes of a buffer that are kept when it is empty.
const KEPT_BYTES: usize = 4 * 1024 * 1024;
/// A write of more than this is not followed by prepared blocks: writing twice would cost more than it saves.
const PREPARE_BELOW: usize = 64 * 1024;

/// Records to append together, one behind the other in one file. Reusable.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    items: Vec<Item>,
    placed: Vec<Placed>,
}

#[derive(Debug)]
struct Item {
    queue: Arc<Queue>,
    from: usize,
    size: u32,
}

/// Where an appended record went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its first byte in the log.
    pub phy: PhyOffset,
    /// Its number in its queue.
    pub queue_offset: QueueOffset,
    /// Its length in bytes.
    pub size: u32,
}

/// What [`Log::append`] says of a whole batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// First byte behind the batch: what to wait for.
    pub end: PhyOffset,
    /// The store time that its records carry.
    pub store_at: Millis,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a record for `queue`. Its offsets and store time are filled in by the append.
    pub fn push(&mut self, queue: &Arc<Queue>, draft: &RecordDraft<'_>) -> Result<(), EncodeError> {
        let from = self.bytes.len();
        draft.encode_into(&mut self.bytes)?;
        let size = u32::try_from(self.bytes.len() - from).unwrap_or(u32::MAX);
        self.items.push(Item { queue: Arc::clone(queue), from, size });
        Ok(())
    }

    /// Where each record went, in the order of [`push`](Self::push); empty before the append.
    pub fn placed(&self) -> &[Placed] {
        &self.placed
    }

    /// Whether there is nothing to append.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Makes the batch empty again, keeping a moderate amount of memory for the next use.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(256 * 1024);
        self.items.clear();
        self.placed.clear();
    }
}

/// Why an append was refused. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The records do not fit one file.
    #[error(
        "{size} bytes of records do not fit a log file, which takes {limit}: send smaller messages or batches"
    )]
    TooLarge {
        /// Bytes of all records.
        size: u64,
        /// The most a file takes.
        limit: u64,
    },
    /// The reserve kept for recovery is touched, or the disk is full.
    #[error(
        "the disk of {dir} has {available} bytes left, {reserve} are kept in reserve: free space or lower the retention"
    )]
    DiskFull {
        /// The log's directory.
        dir: PathBuf,
        /// Bytes still free.
        available: u64,
        /// Bytes kept in reserve.
        reserve: u64,
    },
    /// The disk is fuller than messages may make it.
    #[error(
        "the disk of {dir} is {used:.1} % full, messages are refused from {limit:.0} % on: free space or lower the retention"
    )]
    Crowded {
        /// The log's directory.
        dir: PathBuf,
        /// Used share in percent.
        used: f64,
        /// Share in percent from which on messages are refused.
        limit: f64,
    },
    /// The system has no room for the log's file.
    #[error(
        "no space can be reserved for the log in {dir}: free space, or raise the quota or limit of file sizes"
    )]
    NoRoom {
        /// The log's directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Writing or flushing has fallen behind.
    #[error(
        "{staged} bytes wait to be written, the limit is {limit}: the disk is slower than the senders, try again in 50 ms or raise --max-unwritten"
    )]
    Behind {
        /// Bytes not yet written.
        staged: u64,
        /// The most that may wait.
        limit: u64,
    },
    /// A write or flush failed earlier; the log takes no more writes.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

/// The bounds of a log.
#[derive(Clone, Copy, Debug)]
pub struct LogLimits {
    /// The most bytes that may wait to be written.
    pub staged_bytes_max: u64,
    /// Disk blocks are reserved in steps of this many bytes.
    pub allocate_step: u64,
    /// Behind the end of the log, blocks are written with zeroes in steps of this many bytes before records come to
    /// them; 0: never. Saves each flush writing the file system's metadata.
    pub prepare_step: u64,
    /// Bytes of the disk that appends leave free.
    pub reserve_bytes: u64,
    /// Used share of the disk above which no new messages are taken, 0.0 to 1.0.
    pub refuse_ratio: f64,
}

/// The commit log while it is written.
#[derive(Debug)]
pub struct Log {
    segments: Segments,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    marks: Marks,
    limits: LogLimits,
    /// The end of the log and the bytes not yet written. The one place where offsets are assigned.
    tail: Mutex<Tail>,
    /// Whether the disk was too full for messages when it was looked at last.
    crowded: AtomicBool,
    /// Whether the log's next bytes had no room when they were last asked for.
    refusing: AtomicBool,
    /// Held while anything is written to the files.
    writer: Mutex<Writer>,
    /// What was written last. Dispatch reads it from here: it is in the processor's cache, and the file's map has
    /// no pages for it yet.
    newest: Mutex<Arc<Staged>>,
}

#[derive(Debug, Default)]
struct Writer {
    /// A buffer to stage into, while the other one is written.
    spare: Staged,
    /// First byte whose block was not prepared.
    prepared: u64,
}

#[derive(Debug)]
struct Tail {
    end: u64,
    /// First byte without reserved disk blocks.
    allocated: u64,
    staged: Staged,
    last_store_at: Millis,
}

/// Bytes that were appended together, as runs: a run ends where a file ends.
#[derive(Debug, Default)]
pub(super) struct Staged {
    bytes: Vec<u8>,
    /// Where each run starts: its place in the log, its place in `bytes`.
    runs: Vec<(u64, usize)>,
}

impl Staged {
    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.runs.clear();
    }

    fn runs(&self) -> impl Iterator<Item = (u64, Range<usize>)> {
        self.runs.iter().enumerate().map(|(number, &(at, from))| {
            let to = self.runs.get(number + 1).map_or(self.bytes.len(), |next| next.1);
            (at, from..to)
        })
    }

    /// Where in it the bytes of the log's file from `at` on are; `None` when it has them not.
    pub(super) fn place_of(&self, at: PhyOffset) -> Option<Range<usize>> {
        self.runs().find_map(|(start, run)| {
            let from = run.start.checked_add(usize::try_from(at.get().checked_sub(start)?).ok()?)?;
            (from < run.end).then_some(from..run.end)
        })
    }

    /// The bytes in [that place](Self::place_of).
    pub(super) fn bytes_of(&self, place: Range<usize>) -> &[u8] {
        self.bytes.get(place).unwrap_or_default()
    }
}

impl Log {
    /// The log behind `segments`, which end at `end`; everything below `flushed` is on the disk.
    pub fn new(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        segments: Segments,
        limits: LogLimits,
        flushed: PhyOffset,
        end: PhyOffset,
    ) -> Self {
        let marks = Marks::default();
        marks.flushed.advance(flushed);
        for mark in [&marks.written, &marks.visible, &marks.dispatched] {
            mark.advance(end);
        }
        let tail = Tail {
            end: end.get(),
            allocated: end.get(),
            staged: Staged::default(),
            last_store_at: Millis::ZERO,
        };
        let log = Self {
            segments,
            disk,
            dir,
            marks,
            limits,
            tail: Mutex::new(tail),
            crowded: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            writer: Mutex::default(),
            newest: Mutex::default(),
        };
        log.look_at_disk();
        log
    }

    /// The files.
    pub fn segments(&self) -> &Segments {
        &self.segments
    }

    /// How far writing, flushing and dispatching have got.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Store time of the newest record; zero before the first append.
    pub fn last_store_at(&self) -> Millis {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).last_store_at
    }

    /// Bytes that wait to be written.
    pub fn staged_bytes(&self) -> u64 {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).staged.bytes.len() as u64
    }

    /// Gives the batch's records their places and stages them. The store time is `now`, or that of the
    /// record before if the clock went back a little.
    pub fn append(&self, batch: &mut Batch, now: Millis) -> Result<Appended, AppendError> {
        let size = batch.bytes.len() as u64;
        let limit = self.segments.segment_bytes() - BLANK_BYTES;
        if size > limit {
            return Err(AppendError::TooLarge { size, limit });
        }
        if let Some(failure) = self.marks.failure() {
            return Err(failure.clone().into());
        }
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let staged = tail.staged.bytes.len() as u64;
        if staged > 0 && staged + size > self.limits.staged_bytes_max {
            return Err(AppendError::Behind { staged, limit: self.limits.staged_bytes_max });
        }
        let room = self.room(tail.end);
        let start = if size + BLANK_BYTES > room { tail.end + room } else { tail.end };
        if start + size > tail.allocated {
            self.allocate(&mut tail, start, size)?;
        }
        if start > tail.end {
            tail.end_file(room);
        }
        let store_at =
            if tail.last_store_at.since(now) > CORRECTION_MAX_MS { now } else { now.max(tail.last_store_at) };
        tail.last_store_at = store_at;
        tail.stage(batch, store_at);
        Ok(Appended { end: PhyOffset::new(tail.end), store_at })
    }

    /// Bytes from `end` to the end of its file.
    fn room(&self, end: u64) -> u64 {
        let bytes = self.segments.segment_bytes();
        bytes - end % bytes
    }

    /// Looks how full the disk is, for [`check_room`](Self::check_room).
    pub fn look_at_disk(&self) {
        self.note_space(self.space());
    }

    /// Whether there is room for new messages. Costs nothing unless the disk was too full at the last look;
    /// then it is looked at again.
    pub fn check_room(&self) -> Result<(), AppendError> {
        if !self.crowded.load(Ordering::Relaxed) {
            return Ok(());
        }
        let space = self.space();
        self.note_space(space);
        if space.used_ratio() <= self.limits.refuse_ratio {
            return Ok(());
        }
        let (used, limit) = (space.used_ratio() * 100.0, self.limits.refuse_ratio * 100.0);
        Err(AppendError::Crowded { dir: self.dir.clone(), used, limit })
    }

    /// Free space; plenty when the system does not say.
    fn space(&self) -> Space {
        self.disk.space(&self.dir).unwrap_or(Space { total: 0, available: u64::MAX })
    }

    fn note_space(&self, space: Space) {
        let crowded = space.used_ratio() > self.limits.refuse_ratio;
        if crowded == self.crowded.swap(crowded, Ordering::Relaxed) {
            return;
        }
        let (available, total) = (space.available, space.total);
        if crowded {
            tracing::error!(
                available,
                total,
                "the disk is too full: no new messages are taken until there is room"
            );
        } else {
            tracing::info!(available, total, "the disk has room again: messages are taken");
        }
    }

    /// Reserves disk blocks so that `start..start + size` can be written.
    fn allocate(&self, tail: &mut Tail, start: u64, size: u64) -> Result<(), AppendError> {
        let reserved = self.try_allocate(start, size);
        let refused = reserved.is_err();
        if refused != self.refusing.swap(refused, Ordering::Relaxed) {
            if let Err(error) = &reserved {
                let cause = std::error::Error::source(error).map(ToString::to_string);
                tracing::error!(%error, cause, at = start, "the log has no room: the broker takes no more messages for now");
            } else {
                tracing::info!(at = start, "the log has room again");
            }
        }
        tail.allocated = start + reserved?;
        Ok(())
    }

    /// Reserves a step of blocks from `start` on; gives its length.
    fn try_allocate(&self, start: u64, size: u64) -> Result<u64, AppendError> {
        let space = self.space();
        self.note_space(space);
        let step = self.limits.allocate_step.max(size).min(self.room(start));
        if space.available < step.saturating_add(self.limits.reserve_bytes) {
            let (available, reserve) = (space.available, self.limits.reserve_bytes);
            return Err(AppendError::DiskFull { dir: self.dir.clone(), available, reserve });
        }
        let at = start % self.segments.segment_bytes();
        self.segments
            .find_or_create(PhyOffset::new(start))
            .and_then(|segment| segment.file().allocate(at, step))
            .map_err(|source| AppendError::NoRoom { dir: self.dir.clone(), source })?;
        Ok(step)
    }

    /// What was written last.
    pub(super) fn newest(&self) -> Arc<Staged> {
        Arc::clone(&self.newest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes everything staged so far and moves the written mark. A failure stops the log.
    pub fn write_staged(&self) -> Result<PhyOffset, Poisoned> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut staged = std::mem::take(&mut writer.spare);
        let (end, allocated) = {
            let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::swap(&mut tail.staged, &mut staged);
            (tail.end, tail.allocated)
        };
        if let Some(failure) = self.marks.failure() {
            return Err(failure.clone());
        }
        for (at, run) in staged.runs() {
            if let Err(error) = self.write_run(at, staged.bytes_of(run)) {
                tracing::error!(%error, at, "a write to the commit log failed; the broker takes no more messages");
                self.marks.poison(error);
                break;
            }
        }
        if let Some(failure) = self.marks.failure() {
            return Err(failure.clone());
        }
        let written = staged.bytes.len();
        writer.spare = if written > 0 { self.keep(staged) } else { staged };
        if end > writer.prepared && written > 0 && written <= PREPARE_BELOW {
            writer.prepared = self.prepare(end, allocated);
        }
        let end = PhyOffset::new(end);
        self.marks.written.advance(end);
        Ok(end)
    }

    /// Keeps what was just written for dispatch, and gives the buffer of what was written before that.
    fn keep(&self, written: Staged) -> Staged {
        let written = Arc::new(written);
        let before = {
            let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *newest, written)
        };
        // Somebody may still read it.
        let mut before = Arc::try_unwrap(before).unwrap_or_default();
        before.clear();
        before
    }

    /// Prepares blocks from `end` on, at most up to `allocated`, and gives the first byte behind them. Only whoever
    /// holds the writer may: what is appended meanwhile is written after the zeroes.
    fn prepare(&self, end: u64, allocated: u64) -> u64 {
        let step = self.limits.prepare_step;
        if step == 0 {
            return u64::MAX;
        }
        let to = (end - end % step).saturating_add(step).min(allocated).min(end + self.room(end));
        if let Some(segment) = self.segments.find(PhyOffset::new(end))
            && let Some(len) = to.checked_sub(end).and_then(|len| usize::try_from(len).ok())
            // Nothing depends on it. A disk that fails says so when a record is written or flushed.
            && let Err(error) = segment.file().prepare(end - segment.start().get(), len)
        {
            tracing::debug!(%error, at = end, "blocks of the commit log cannot be prepared");
        }
        to
    }

    fn write_run(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let segment = self.segments.find_or_create(PhyOffset::new(at))?;
        segment.file().write_at(at - segment.start().get(), bytes)
    }

    /// Makes everything written so far durable and moves the flushed mark. A failure stops the log:
    /// a flush that failed is never tried again, for the bytes it was for may be gone.
    pub fn flush(&self) -> Result<PhyOffset, Poisoned> {
        if let Some(failure) = self.marks.failure() {
            return Err(failure.clone());
        }
        let (from, to) = (self.marks.flushed.get(), self.marks.written.get());
        let mut at = from;
        while at < to {
            // A file that is not found was dropped by retention meanwhile.
            let Some(segment) = self.segments.find(at) else { break };
            if let Err(error) = segment.file().sync() {
                tracing::error!(%error, path = %segment.path().display(), "a flush of the commit log failed; the broker takes no more messages");
                self.marks.poison(error);
                return self.marks.failure().map_or(Ok(from), |failure| Err(failure.clone()));
            }
            at = segment.start() + self.segments.segment_bytes();
        }
        self.marks.flushed.advance(to);
        Ok(to)
    }
}

impl Tail {
    /// Closes the file with a blank record over its last `room` bytes.
    fn end_file(&mut self, room: u64) {
        self.open_run();
        record::blank(u32::try_from(room).unwrap_or(u32::MAX), &mut self.staged.bytes);
        self.end += room;
        let from = self.staged.bytes.len();
        self.staged.runs.push((self.end, from));
    }

    fn open_run(&mut self) {
        if self.staged.runs.is_empty() {
            self.staged.runs.push((self.end, 0));
        }
    }

    fn stage(&mut self, batch: &mut Batch, store_at: Millis) {
        self.open_run();
        let base = self.staged.bytes.len();
        self.staged.bytes.extend_from_slice(&batch.bytes);
        batch.placed.clear();
        for item in &batch.items {
            let queue_offset = item.queue.assign();
            let phy = PhyOffset::new(self.end);
            let from = base + item.from;
            if let Some(record) = self.staged.bytes.get_mut(from..from + item.size as usize) {
                record::seal(record, queue_offset, phy, store_at);
            }
            self.end += u64::from(item.size);
            batch.placed.push(Placed { phy, queue_offset, size: item.size });
        }
    }
}
