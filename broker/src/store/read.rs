//! Reading: records by their place, messages by their queue's entries, and what to do when an entry is damaged.
//!
//! What this process wrote, or checked when it started, is served as it lies there while it is recent. Queue
//! entries from before the start and the records they name are checked: the files may have been damaged while
//! nobody looked. An entry that does not lead to its message is looked for in the log and written anew.

use std::io;
use std::ops::Deref;

use gantry_proto::ids::{Millis, PhyOffset, QueueOffset};
use gantry_proto::record::{RecordView, is_message_of, is_sealed};

use super::Store;
use super::disk::Map;
use super::dispatch::is_listed;
use super::queue::{Queue, QueueEntry};
use super::replay::{Replay, Step, Trust};

/// Bytes behind the written end whose records are served without checking their checksum again.
const RECENT_BYTES: u64 = 64 * 1024 * 1024;

/// Entries that are looked back over for one that can be believed.
const LOOK_BACK: u64 = 100_000;

/// Why bytes of the log cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The position was cleaned away.
    #[error("log position {at} is gone, the log starts at {min}")]
    Gone {
        /// What was asked for.
        at: PhyOffset,
        /// Where the log starts.
        min: PhyOffset,
    },
    /// The position was not written yet, or no record starts there.
    #[error("no record starts at log position {at}")]
    Nothing {
        /// What was asked for.
        at: PhyOffset,
    },
    /// The record's checksum does not match.
    #[error("the record at log position {at} is damaged ({what}); it is not served")]
    Damaged {
        /// Where it starts.
        at: PhyOffset,
        /// What did not check out.
        what: String,
    },
    /// The file cannot be mapped.
    #[error("cannot read the log at {at}")]
    Io {
        /// What was asked for.
        at: PhyOffset,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Bytes of the log, shared with the file's map.
#[derive(Clone, Debug)]
pub struct LogSlice {
    map: Map,
    from: usize,
    to: usize,
}

impl Deref for LogSlice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.map.get(self.from..self.to).unwrap_or_default()
    }
}

impl AsRef<[u8]> for LogSlice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

/// Messages of the log on their way to a client: neighbours lie in one run, and nothing is copied.
#[derive(Debug, Default)]
pub struct LogRuns {
    maps: Vec<Map>,
    /// Number of its map, first byte, and first byte behind it.
    runs: Vec<(usize, usize, usize)>,
    messages: usize,
    bytes: usize,
}

impl LogRuns {
    /// Messages in it.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Bytes of them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// The bytes, run by run.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.runs.iter().filter_map(|(map, from, to)| self.maps.get(*map)?.get(*from..*to))
    }

    /// Makes it empty, and lets go of the log's files.
    pub fn clear(&mut self) {
        self.maps.clear();
        self.runs.clear();
        (self.messages, self.bytes) = (0, 0);
    }

    /// Adds a message that lies in the newest of the maps.
    fn push(&mut self, from: usize, to: usize) {
        let newest = self.maps.len().saturating_sub(1);
        self.messages += 1;
        self.bytes += to - from;
        match self.runs.last_mut() {
            Some((map, _, end)) if *map == newest && *end == from => *end = to,
            _ => self.runs.push((newest, from, to)),
        }
    }
}

/// Reads messages of one queue one after the other. What was found out about the log for one serves the next.
#[derive(Debug)]
pub struct Messages<'a> {
    store: &'a Store,
    queue: &'a Queue,
    written: PhyOffset,
    /// Where the file of the newest map begins.
    file: Option<PhyOffset>,
    /// What was read.
    pub runs: LogRuns,
}

impl<'a> Messages<'a> {
    /// Goes on with messages of another queue.
    pub fn turn_to(&mut self, queue: &'a Queue) {
        self.queue = queue;
    }

    /// Adds the message of an entry, as [`Store::message`] gives it; `false` when it is gone.
    pub fn add(&mut self, entry: &QueueEntry) -> Result<bool, ReadError> {
        self.add_if(entry, |_| true)
    }

    /// Adds the message of an entry, as [`Store::message`] gives it, if its record is `wanted`; `false` when it
    /// is not, or gone.
    pub fn add_if(
        &mut self,
        entry: &QueueEntry,
        wanted: impl FnOnce(&[u8]) -> bool,
    ) -> Result<bool, ReadError> {
        if let Some((from, to)) = self.find(entry)
            && let Some(bytes) = self.runs.maps.last().and_then(|map| map.get(from..to))
            && self.is_sound(entry, bytes)
        {
            let wanted = wanted(bytes);
            if wanted {
                self.runs.push(from, to);
            }
            return Ok(wanted);
        }
        let Some(slice) = self.store.message(self.queue, entry)? else { return Ok(false) };
        if !wanted(&slice) {
            return Ok(false);
        }
        self.runs.maps.push(slice.map);
        self.file = None;
        self.runs.push(slice.from, slice.to);
        Ok(true)
    }

    /// Where in the newest map the record lies that an entry names. `None` when that takes a closer look.
    fn find(&mut self, entry: &QueueEntry) -> Option<(usize, usize)> {
        let segments = self.store.log.segments();
        let inside =
            |start: PhyOffset| entry.phy >= start && entry.phy.since(start) < segments.segment_bytes();
        let start = if let Some(start) = self.file.filter(|start| inside(*start)) {
            start
        } else {
            let segment = segments.find(entry.phy)?;
            self.runs.maps.push(segment.map().ok()?.clone());
            *self.file.insert(segment.start())
        };
        if entry.phy + u64::from(entry.size) > self.written {
            return None;
        }
        let from = usize::try_from(entry.phy.since(start)).ok()?;
        Some((from, from.checked_add(entry.size as usize)?))
    }

    fn is_sound(&self, entry: &QueueEntry, bytes: &[u8]) -> bool {
        if self.queue.is_trusted(entry.at) {
            return self.written.since(entry.phy) <= RECENT_BYTES || is_sealed(bytes, entry.phy);
        }
        is_sealed(bytes, entry.phy)
            && is_message_of(bytes, self.queue.topic().as_str(), self.queue.id(), entry.at)
    }
}

impl Store {
    /// `size` bytes of the log from `at` on: a record, as a queue entry names it. Its checksum is
    /// checked unless it was written recently.
    pub fn read(&self, at: PhyOffset, size: u32) -> Result<LogSlice, ReadError> {
        let (slice, written) = self.unchecked(at, size)?;
        if written.since(at) > RECENT_BYTES {
            check_whole(&slice, at)?;
        }
        Ok(slice)
    }

    /// `size` bytes of the log from `at` on, as they lie there, and the end of what is written.
    fn unchecked(&self, at: PhyOffset, size: u32) -> Result<(LogSlice, PhyOffset), ReadError> {
        let written = self.max_offset();
        let Some(segment) = self.log.segments().find(at) else {
            let min = self.min_offset();
            return Err(if at < min { ReadError::Gone { at, min } } else { ReadError::Nothing { at } });
        };
        if at + u64::from(size) > written {
            return Err(ReadError::Nothing { at });
        }
        let map = segment.map().map_err(|source| ReadError::Io { at, source })?;
        let from = usize::try_from(at.since(segment.start())).unwrap_or(usize::MAX);
        let slice = LogSlice { map: map.clone(), from, to: from.saturating_add(size as usize) };
        if slice.len() != size as usize {
            return Err(ReadError::Nothing { at });
        }
        Ok((slice, written))
    }

    /// The whole record that starts at `at`.
    pub fn record_at(&self, at: PhyOffset) -> Result<LogSlice, ReadError> {
        let min = self.min_offset();
        let written = self.max_offset();
        let segment = self.log.segments().find(at).ok_or(ReadError::Gone { at, min })?;
        let map = segment.map().map_err(|source| ReadError::Io { at, source })?;
        let offset =
            |position: PhyOffset| usize::try_from(position.since(segment.start())).unwrap_or(usize::MAX);
        let (from, end) = (offset(at), offset(written).min(map.len()));
        let rest = map.get(from..end).ok_or(ReadError::Nothing { at })?;
        let view = RecordView::parse(rest).map_err(|_| ReadError::Nothing { at })?;
        let to = from.saturating_add(view.total_size() as usize);
        let slice = LogSlice { map: map.clone(), from, to };
        check_whole(&slice, at)?;
        Ok(slice)
    }

    /// Store time of the message an entry points to; `None` when it is gone or damaged.
    pub fn store_time(&self, entry: &QueueEntry) -> Option<Millis> {
        let slice = self.read(entry.phy, entry.size).ok()?;
        RecordView::parse(&slice).ok().map(|view| view.store_at())
    }

    /// The first message of `queue` stored at or after `at`; the queue's end when there is none. A lost message
    /// before it may be given instead, never one behind it.
    pub fn find_by_time(&self, queue: &Queue, at: Millis) -> io::Result<QueueOffset> {
        queue.partition(|entry| self.stored_by(entry).is_none_or(|stored| stored < at))
    }

    /// Store time of an entry's message or, when that is lost, of the next sound record behind the place that its
    /// entry names: times never fall along the log, so a search by halves goes on to the right side. `None` for
    /// what lies before the log.
    fn stored_by(&self, entry: &QueueEntry) -> Option<Millis> {
        if entry.phy < self.min_offset() {
            return None;
        }
        if !entry.is_blank()
            && let Some(stored) = self.store_time(entry)
        {
            return Some(stored);
        }
        let end = self.visible_offset();
        let mut replay = Replay::new(self.log().segments());
        let mut at = entry.phy;
        loop {
            at = match replay.step(at, end, Trust::Nothing) {
                Step::Record(view, _) => return Some(view.store_at()),
                Step::NextFile(next) => next,
                Step::End | Step::Damaged(_) => replay.resync(at, end)?,
            };
        }
    }

    /// The message of an entry of `queue`. An entry from before the start is not believed: the record must be
    /// whole and say that it is this queue's message. `Ok(None)` when the message itself is gone.
    pub fn message(&self, queue: &Queue, entry: &QueueEntry) -> Result<Option<LogSlice>, ReadError> {
        let found = if queue.is_trusted(entry.at) {
            self.read(entry.phy, entry.size)
        } else {
            self.read_checked(queue, entry)
        };
        match found {
            Err(error @ (ReadError::Damaged { .. } | ReadError::Nothing { .. })) => {
                tracing::error!(topic = %queue.topic(), queue = %queue.id(), at = %entry.at, %error, "an entry of a consume queue leads to no message; the log is searched for it");
                match self.mend(queue, entry.at) {
                    Some(entry) => self.read(entry.phy, entry.size).map(Some),
                    None => Ok(None),
                }
            }
            found => found.map(Some),
        }
    }

    /// Messages of `queue` to come, into the memory of `runs`.
    pub fn messages<'a>(&'a self, queue: &'a Queue, mut runs: LogRuns) -> Messages<'a> {
        runs.clear();
        Messages { store: self, queue, written: self.max_offset(), file: None, runs }
    }

    /// The record that an entry names, if it is whole and the message that the entry is for.
    fn read_checked(&self, queue: &Queue, entry: &QueueEntry) -> Result<LogSlice, ReadError> {
        let (slice, _) = self.unchecked(entry.phy, entry.size)?;
        let view = check_whole(&slice, entry.phy)?;
        if is_of(&view, queue) && view.queue_offset() == entry.at {
            Ok(slice)
        } else {
            Err(ReadError::Nothing { at: entry.phy })
        }
    }

    /// Appends at most `limit` entries of `queue` from `from` on to `out`, as [`Queue::entries`] does. Where the
    /// queue's files hold none although they must, the log is searched for it.
    pub fn entries(&self, queue: &Queue, from: QueueOffset, limit: usize, out: &mut Vec<QueueEntry>) {
        // Asked before the entries: one that comes in between is not missing.
        let max = queue.max();
        let before = out.len();
        queue.entries(from, limit, out);
        if out.len() > before || from >= max || from < queue.min() {
            return;
        }
        tracing::error!(topic = %queue.topic(), queue = %queue.id(), at = %from, "a consume queue is damaged; the log is searched for the message");
        self.mend(queue, from);
        queue.entries(from, limit, out);
    }

    /// Finds message `at` of `queue` in the log and writes its entry anew; a blank one when the message is gone.
    fn mend(&self, queue: &Queue, at: QueueOffset) -> Option<QueueEntry> {
        let found = self.find_message(queue, at);
        if let Err(error) = queue.mend(at, found.as_ref()) {
            tracing::error!(%error, topic = %queue.topic(), queue = %queue.id(), %at, "cannot write consume queue");
        }
        if found.is_none() {
            tracing::error!(topic = %queue.topic(), queue = %queue.id(), %at, "a message is lost: no undamaged record in the log holds it; consumers pass it over");
        }
        found
    }

    /// Reads the log from the message before `at` on.
    fn find_message(&self, queue: &Queue, at: QueueOffset) -> Option<QueueEntry> {
        let end = self.visible_offset();
        let mut replay = Replay::new(self.log().segments());
        let mut from = self.place_before(queue, at);
        loop {
            from = match replay.step(from, end, Trust::Nothing) {
                Step::Record(view, next) => {
                    if is_of(&view, queue) && is_listed(&view) {
                        if view.queue_offset() == at {
                            return Some(self.folds.entry(queue, &view));
                        }
                        if view.queue_offset() > at {
                            return None;
                        }
                    }
                    next
                }
                Step::NextFile(next) => next,
                Step::End | Step::Damaged(_) => replay.resync(from, end)?,
            };
        }
    }

    /// Where the nearest earlier message of the queue lies that can be believed; the log's start without one.
    fn place_before(&self, queue: &Queue, at: QueueOffset) -> PhyOffset {
        let first = queue.min().get().max(at.get().saturating_sub(LOOK_BACK));
        let mut earlier = (first..at.get()).rev().filter_map(|number| queue.entry(QueueOffset::new(number)));
        let sound = earlier.find(|entry| self.read_checked(queue, entry).is_ok());
        sound.map_or(self.min_offset(), |entry| entry.phy + u64::from(entry.size))
    }
}

/// Checks that the bytes are the whole record that lies at `at`.
fn check_whole(slice: &LogSlice, at: PhyOffset) -> Result<RecordView<'_>, ReadError> {
    let damaged = |what: String| ReadError::Damaged { at, what };
    let view = RecordView::parse(slice).map_err(|error| damaged(error.to_string()))?;
    if view.phy_offset() != at {
        return Err(damaged(format!("it says that it lies at {}", view.phy_offset())));
    }
    if view.total_size() as usize != slice.len() {
        return Err(damaged(format!("it has {} bytes, not {}", view.total_size(), slice.len())));
    }
    view.check().map_err(|error| damaged(error.to_string()))?;
    Ok(view)
}

fn is_of(view: &RecordView<'_>, queue: &Queue) -> bool {
    view.queue_id() == queue.id() && view.topic() == queue.topic().as_str()
}
