//! The store: one commit log, everything else folded from it.
//!
//! [`Store::open`] takes the directory's lock, recovers and starts the flusher. [`Store::append`]
//! stages records, [`Store::drive`] gets them written and dispatched, [`Store::settled`] waits until
//! the flush policy's promise holds for them. The directory is drawn in [`layout`].

pub mod append;
pub mod checkpoint;
pub mod dedup;
pub mod disk;
pub mod dispatch;
mod flush;
pub mod gaps;
pub mod index;
pub mod inspect;
pub mod layout;
pub mod projection;
pub mod queue;
pub mod queues;
mod read;
pub mod recover;
pub mod replay;
pub mod retain;
pub mod segments;
pub mod watermark;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use gantry_proto::ids::{Millis, PhyOffset, QueueId};
use gantry_proto::names::TopicName;

pub use append::{AppendError, Appended, Batch, Placed};
pub use projection::{ApplyError, Dispatched, Projection, Save};
pub use queue::{Queue, QueueEntry};
pub use read::{LogRuns, LogSlice, Messages, ReadError};
pub use recover::Recovered;
pub use watermark::Poisoned;

use crate::clock::Clock;
use crate::sync::Mutex;
use crate::sync::thread::{self, JoinHandle};
use append::{Log, LogLimits};
use checkpoint::{CheckpointError, PeerCheckpoint, Positions};
use dedup::{DedupOptions, DedupWindow};
use disk::{DirLock, Disk};
use dispatch::{DelayLevels, Dispatcher, Folds};
use flush::FlushSignal;
use gaps::{Gap, Judge};
use index::{IndexOptions, KeyIndex};
use layout::Layout;
use queues::Queues;
use retain::{Hold, Holds, Retention};
use segments::{Segments, SegmentsError};

/// A checkpoint is due when the log has grown so much since the last one: recovery reads no more than about
/// this, and what waits for a checkpoint in memory stays small.
const CHECKPOINT_BYTES: u64 = 32 * 1024 * 1024;
/// Under the policy `disk` blocks of the log are written with zeroes in steps of this many bytes.
const PREPARE_STEP: u64 = 256 * 1024;

/// What an acknowledged append survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushPolicy {
    /// The end of the process: the bytes are in the page cache.
    Memory,
    /// A power loss: the bytes are on the disk.
    Disk,
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// What an acknowledged append survives.
    pub policy: FlushPolicy,
    /// Length of a log file in bytes. Fixed for the life of the store.
    pub segment_bytes: u64,
    /// Length of a consume queue file in bytes. Fixed for the life of the store.
    pub queue_file_bytes: u64,
    /// The most bytes that may wait to be written before appends are refused.
    pub staged_bytes_max: u64,
    /// Disk blocks are reserved in steps of this many bytes.
    pub allocate_step: u64,
    /// Bytes of the disk that appends leave free, for recovery and metadata.
    pub reserve_bytes: u64,
    /// Delay of each level in milliseconds.
    pub delay_levels: DelayLevels,
    /// Sizes of the key index.
    pub index: IndexOptions,
    /// Bounds of the dedup window.
    pub dedup: DedupOptions,
    /// When old messages go.
    pub retention: Retention,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            policy: FlushPolicy::Disk,
            segment_bytes: 1024 * 1024 * 1024,
            queue_file_bytes: 300_000 * queue::ENTRY_BYTES,
            staged_bytes_max: 32 * 1024 * 1024,
            allocate_step: 16 * 1024 * 1024,
            reserve_bytes: 64 * 1024 * 1024,
            delay_levels: Arc::from([]),
            index: IndexOptions::default(),
            dedup: DedupOptions::default(),
            retention: Retention::default(),
        }
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the store {0} is in use by another process: stop that one, or choose another --store")]
    Locked(PathBuf),
    /// A newer program wrote it, or its checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The log's files are not what they must be.
    #[error(transparent)]
    Segments(#[from] SegmentsError),
    /// Reading or writing the directory failed.
    #[error("cannot use {path} as a store: check that it exists, may be written and has free space")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// An open store. Dropping it without [`close`](Self::close) leaves the abort marker, as a crash would.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    policy: FlushPolicy,
    log: Arc<Log>,
    folds: Folds,
    holds: Holds,
    retention: Retention,
    dispatcher: Arc<Dispatcher>,
    signal: Arc<FlushSignal>,
    flusher: Mutex<Option<JoinHandle<()>>>,
    /// Log position and state of the last saved checkpoint; saves one that would say the same.
    saved: Mutex<Option<Positions>>,
    /// Held while a checkpoint is taken: two at a time would write the same files.
    checkpointing: Mutex<()>,
    closed: AtomicBool,
    recovered: Recovered,
    /// Gaps of the log.
    gaps: Vec<Gap>,
    _lock: DirLock,
}

impl Store {
    /// Opens the store in `dir`, making it when there is none, and brings `projections` up to its end.
    pub fn open(
        dir: &Path,
        options: &StoreOptions,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        projections: Vec<Box<dyn Projection>>,
    ) -> Result<Self, OpenError> {
        let layout = Layout::new(dir);
        let io = |source| OpenError::Io { path: dir.to_path_buf(), source };
        let lock = DirLock::take(&layout.lock()).map_err(io)?.ok_or_else(|| OpenError::Locked(dir.into()))?;
        let positions = checkpoint::load(&layout)?;
        let clean = !layout.abort().exists();
        let known =
            positions.as_ref().is_some_and(|known| known.segment_bytes == Some(options.segment_bytes));
        let segments = Segments::open(Arc::clone(&disk), layout.commit_log(), options.segment_bytes, known)?;
        let folds = open_folds(&disk, &layout, options).map_err(io)?;
        let positions = match positions {
            None => begin_store(disk.as_ref(), &layout, &segments, &folds).map_err(io)?,
            known => known,
        };
        if clean {
            // After a crash it is there still.
            disk.replace(&layout.abort(), std::process::id().to_string().as_bytes()).map_err(io)?;
        }

        let from = replay_from(&layout, &segments, &folds, positions.as_ref(), &projections, clean);
        let whole = queues_are_whole(&folds.queues, positions.as_ref()).map_err(io)?;
        let from = if whole { from } else { segments.min() };
        give_up_queues(disk.as_ref(), &layout, positions.as_ref(), from).map_err(io)?;
        let dispatcher = Dispatcher::new(folds.clone(), projections, from);
        let judge = Judge::new(positions.as_ref(), clean, options.policy, clock.now());
        let recovered = recover::run(&segments, &folds, &dispatcher, from, &judge).map_err(io)?;
        let gaps = judge.after(from, recovered.end, &recovered.gaps);
        let recovered = Recovered { clean, ..recovered };
        report_lost(&recovered, positions.as_ref());

        let limits = LogLimits {
            staged_bytes_max: options.staged_bytes_max,
            allocate_step: options.allocate_step,
            prepare_step: match options.policy {
                FlushPolicy::Disk => PREPARE_STEP,
                FlushPolicy::Memory => 0,
            },
            reserve_bytes: options.reserve_bytes,
            refuse_ratio: options.retention.disk_refuse_ratio,
        };
        let flushed = recovered.from.min(recovered.end);
        let log = Log::new(Arc::clone(&disk), dir.to_path_buf(), segments, limits, flushed, recovered.end);
        let store = Self {
            layout,
            disk,
            clock,
            policy: options.policy,
            log: Arc::new(log),
            folds,
            holds: Holds::default(),
            retention: options.retention,
            dispatcher: Arc::new(dispatcher),
            signal: Arc::default(),
            flusher: Mutex::new(None),
            saved: Mutex::new(None),
            checkpointing: Mutex::new(()),
            closed: AtomicBool::new(false),
            recovered,
            gaps,
            _lock: lock,
        };
        store.settle_names().map_err(io)?;
        match options.policy {
            // What was found is answered for from now on: a resend finds it and is acknowledged.
            FlushPolicy::Disk => drop(store.log.flush().map_err(|failure| io(stopped(&failure)))?),
            FlushPolicy::Memory => store.signal.request(),
        }
        store.start_flusher().map_err(io)?;
        Ok(store)
    }

    /// Makes durable what the directories hold that cannot be built again. A process that was killed between
    /// making a file and syncing its directory has left a name that only memory has; it looks like any other.
    fn settle_names(&self) -> io::Result<()> {
        let layout = &self.layout;
        match layout.root().parent().filter(|above| !above.as_os_str().is_empty()) {
            // A directory of somebody else, that one may pass through but not list.
            Some(above) => self.disk.sync_names(above).or_else(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => Ok(()),
                _ => Err(error),
            })?,
            None => self.disk.sync_names(Path::new("."))?,
        }
        for dir in [layout.root().to_path_buf(), layout.commit_log(), layout.config(), layout.dedup()] {
            self.disk.sync_names(&dir)?;
        }
        Ok(())
    }

    fn start_flusher(&self) -> io::Result<()> {
        let (policy, log, dispatcher, signal) =
            (self.policy, Arc::clone(&self.log), Arc::clone(&self.dispatcher), Arc::clone(&self.signal));
        let thread = thread::Builder::new()
            .name("flush".to_owned())
            .spawn(move || flush::run(policy, &log, &dispatcher, &signal))?;
        *self.flusher.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// The store directory.
    pub fn dir(&self) -> &Path {
        self.layout.root()
    }

    /// The paths of the store.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The clock that stamps records.
    pub fn clock(&self) -> &dyn Clock {
        self.clock.as_ref()
    }

    /// What was found when the store was opened.
    pub fn recovered(&self) -> &Recovered {
        &self.recovered
    }

    /// What an acknowledged append survives.
    pub fn policy(&self) -> FlushPolicy {
        self.policy
    }

    /// First byte of the log that is still there.
    pub fn min_offset(&self) -> PhyOffset {
        self.log.segments().min()
    }

    /// First byte behind the last written record.
    pub fn max_offset(&self) -> PhyOffset {
        self.log.marks().written.get()
    }

    /// First byte behind the last record that consumers may see.
    pub fn visible_offset(&self) -> PhyOffset {
        self.log.marks().visible.get()
    }

    /// Bytes that every projection has yet to apply.
    pub fn dispatch_behind_bytes(&self) -> u64 {
        self.max_offset().since(self.log.marks().dispatched.get())
    }

    /// The log underneath, for retention and inspection.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// All consume queues.
    pub fn queues(&self) -> &Queues {
        &self.folds.queues
    }

    /// The key index.
    pub fn index(&self) -> &KeyIndex {
        &self.folds.index
    }

    /// The dedup window.
    pub fn dedup(&self) -> &DedupWindow {
        &self.folds.dedup
    }

    /// Keeps the log from `at` on until the hold is dropped or moved on.
    pub fn hold(&self, at: PhyOffset) -> Hold {
        self.holds.hold(at)
    }

    /// Whether there is room for new messages. What goes with messages that were taken (offsets, ends of
    /// transactions, deliveries of delayed ones) may go on where this says no, down to the reserve.
    pub fn check_room(&self) -> Result<(), AppendError> {
        self.log.check_room()
    }

    /// One round of housekeeping: a checkpoint when something is new, expired ids, retention. Blocks on
    /// the disk; to be called every few seconds, and sooner when [`wants_checkpoint`](Self::wants_checkpoint).
    pub fn keep_house(&self) -> io::Result<()> {
        let now = self.clock.now();
        self.log.look_at_disk();
        self.folds.dedup.expire(now);
        self.save_checkpoint()?;
        retain::clean(self, &self.holds, &self.retention, now).map(|_| ())
    }

    /// Where recovery would start now.
    fn checkpointed(&self) -> PhyOffset {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.recovered.from.min(self.recovered.end);
        saved.as_ref().map_or(before, |saved| saved.start(&["queues"]))
    }

    /// Whether much memory waits for a checkpoint, or recovery would take long.
    pub fn wants_checkpoint(&self) -> bool {
        self.log.marks().dispatched.get().since(self.checkpointed()) > CHECKPOINT_BYTES
            || self.dispatcher.is_full(&self.log)
    }

    fn raise_min(&self) -> io::Result<()> {
        let min = self.min_offset();
        self.folds.queues.each(|queue| queue.raise_min(min))?;
        self.folds.index.raise_min(min)?;
        self.dispatcher.raise_min(&self.log, min)
    }

    /// The queue, made when it is not there yet.
    pub fn queue(&self, topic: &TopicName, id: QueueId) -> io::Result<Arc<Queue>> {
        self.folds.queues.get_or_open(topic, id)
    }

    /// The queue, if it was ever asked for.
    pub fn find_queue(&self, topic: &str, id: QueueId) -> Option<Arc<Queue>> {
        self.folds.queues.find(topic, id)
    }

    /// All queues of a topic.
    pub fn topic_queues(&self, topic: &str) -> Vec<Arc<Queue>> {
        self.folds.queues.of_topic(topic)
    }

    /// Topics that have queues on the disk or were asked for.
    pub fn topics_on_disk(&self) -> Vec<TopicName> {
        self.folds.queues.topics()
    }

    /// Drops a topic's consume queues. Its records stay in the log until that is cleaned.
    pub fn remove_topic(&self, topic: &str) -> io::Result<()> {
        self.dispatcher.remove_topic(&self.log, topic)?;
        // The checkpoint counts the entries of all queues.
        self.save_checkpoint()
    }

    /// Gives the batch's records their places. They are written by the next [`drive`](Self::drive).
    pub fn append(&self, batch: &mut Batch) -> Result<Appended, AppendError> {
        self.log.append(batch, self.clock.now())
    }

    /// Gets appended records written (policy `memory`) or asks the flusher to (policy `disk`), and
    /// dispatches what became visible. To be called after one or several appends.
    pub fn drive(&self) {
        match self.policy {
            FlushPolicy::Disk => self.signal.request(),
            FlushPolicy::Memory => {
                // A failure stops the log; whoever waits for the records is told by `settled`.
                if let Ok(written) = self.log.write_staged() {
                    self.log.marks().visible.advance(written);
                    self.dispatcher.run(&self.log);
                    self.signal.request();
                }
            }
        }
    }

    /// [`drive`](Self::drive) that under the policy `disk` writes and flushes on the calling thread too, which waits for
    /// the disk. Saves a sender whom nobody shares the flush with the way to the flusher and back.
    pub fn drive_here(&self) {
        match self.policy {
            // A failure stops the log; whoever waits for the records is told by `settled`.
            FlushPolicy::Disk => drop(flush::flush_all(&self.log, &self.dispatcher)),
            FlushPolicy::Memory => self.drive(),
        }
    }

    /// Writes what is staged, so that it can be read; it becomes visible as the policy says.
    pub fn write_through(&self) {
        // A failure stops the log, and whoever reads finds out there.
        let _ = self.log.write_staged();
    }

    /// Waits until the flush policy's promise holds for every byte below `end`.
    pub async fn settled(&self, end: PhyOffset) -> Result<(), Poisoned> {
        self.log.marks().wait(&self.log.marks().visible, end).await
    }

    /// Whether the policy's promise holds for every byte below `end` already.
    pub fn is_settled(&self, end: PhyOffset) -> bool {
        self.log.marks().visible.get() >= end
    }

    /// Waits until every projection has applied every record below `end`.
    pub async fn dispatched(&self, end: PhyOffset) -> Result<(), Poisoned> {
        self.log.marks().wait(&self.log.marks().dispatched, end).await
    }

    /// [`append`](Self::append), [`drive`](Self::drive) and [`settled`](Self::settled).
    pub async fn append_settled(&self, batch: &mut Batch) -> Result<Appended, AppendError> {
        let appended = self.append(batch)?;
        self.drive();
        self.settled(appended.end).await?;
        Ok(appended)
    }

    /// The failure that stopped the log, if one did.
    pub fn failure(&self) -> Option<&Poisoned> {
        self.log.marks().failure()
    }

    /// Bytes that wait to be written.
    pub fn staged_bytes(&self) -> u64 {
        self.log.staged_bytes()
    }

    /// Makes everything durable that is not, and saves how far that is. Does nothing when nothing is new.
    pub fn save_checkpoint(&self) -> io::Result<()> {
        let _alone = self.checkpointing.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the projections: their files should not outlive the records they name.
        self.log.flush().map_err(|failure| stopped(&failure))?;
        let applied = self.dispatcher.flush(&self.log)?;
        // After the projections: what they have applied must not be more than what the disk has.
        let flushed = self.log.flush().map_err(|failure| stopped(&failure))?;
        let durable = applied.at.min(flushed);
        let mut projections: BTreeMap<String, u64> = self
            .dispatcher
            .positions(&self.log)
            .into_iter()
            .map(|(name, position)| (name.to_owned(), position.min(durable).get()))
            .collect();
        projections.insert("queues".to_owned(), durable.get());
        let min = self.min_offset();
        let positions = Positions {
            format: checkpoint::FORMAT,
            flushed: flushed.get(),
            segment_bytes: Some(self.log.segments().segment_bytes()),
            queue_entries: (durable == applied.at).then_some(applied.queue_entries),
            projections,
            gaps: self.gaps.iter().filter(|gap| gap.to > min.get()).copied().collect(),
        };
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        if saved.as_ref() == Some(&positions) {
            return Ok(());
        }
        let peer = PeerCheckpoint {
            physic_msg_time: applied.store_at,
            logics_msg_time: applied.store_at,
            index_msg_time: Millis::ZERO,
            logics_phy: durable,
        };
        checkpoint::save(self.disk.as_ref(), &self.layout, &positions, &peer)?;
        *saved = Some(positions);
        Ok(())
    }

    /// Writes and flushes everything, saves the checkpoint and removes the abort marker. Appends must
    /// have ended.
    pub fn close(&self) -> io::Result<()> {
        if self.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.stop_flusher();
        self.log.write_staged().map_err(|failure| stopped(&failure))?;
        let flushed = self.log.flush().map_err(|failure| stopped(&failure))?;
        self.log.marks().visible.advance(flushed);
        self.dispatcher.run(&self.log);
        self.save_checkpoint()?;
        self.disk.remove(&self.layout.abort())
    }

    fn stop_flusher(&self) {
        self.signal.stop();
        let thread = self.flusher.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the flusher thread panicked");
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.stop_flusher();
    }
}

fn open_folds(disk: &Arc<dyn Disk>, layout: &Layout, options: &StoreOptions) -> io::Result<Folds> {
    let queues = Queues::open(Arc::clone(disk), layout.root(), options.queue_file_bytes)?;
    let index = KeyIndex::open(Arc::clone(disk), layout.index(), options.index)?;
    let dedup = DedupWindow::open(Arc::clone(disk), layout.dedup(), options.dedup)?;
    Ok(Folds {
        queues: Arc::new(queues),
        index: Arc::new(index),
        dedup: Arc::new(dedup),
        delay_levels: Arc::clone(&options.delay_levels),
    })
}

fn stopped(failure: &Poisoned) -> io::Error {
    io::Error::other(failure.to_string())
}

/// The first checkpoint of a store that has nothing yet: from now on it is known what was never on the disk.
fn begin_store(
    disk: &dyn Disk,
    layout: &Layout,
    segments: &Segments,
    folds: &Folds,
) -> io::Result<Option<Positions>> {
    if !segments.all().is_empty() || !folds.queues.topics().is_empty() {
        return Ok(None);
    }
    let positions = Positions::of_new(segments.segment_bytes());
    checkpoint::save_positions(disk, layout, &positions)?;
    Ok(Some(positions))
}

/// Where recovery must start so that every projection gets what it lacks.
fn replay_from(
    layout: &Layout,
    segments: &Segments,
    folds: &Folds,
    positions: Option<&Positions>,
    projections: &[Box<dyn Projection>],
    clean: bool,
) -> PhyOffset {
    let from = match positions {
        // Projections at zero rely on the checkpoint; the others keep a position of their own.
        // Without any queue files there is nothing that the checkpoint could speak of.
        Some(_) if folds.queues.topics().is_empty() => PhyOffset::ZERO,
        Some(positions) => positions.start(&["queues"]),
        None => recover::start_of_peer(layout, segments, &folds.queues, clean),
    };
    let own =
        projections.iter().map(|projection| projection.position()).filter(|at| *at > PhyOffset::ZERO).min();
    // One that lacks its file says 1: all records count, the one at 0 among them.
    let own = own.map(|own| if own == PhyOffset::new(1) { PhyOffset::ZERO } else { own });
    own.map_or(from, |own| from.min(own)).max(segments.min())
}

/// Whether the queue files hold as many entries for the log below the checkpoint as they did when it was saved.
fn queues_are_whole(queues: &Queues, positions: Option<&Positions>) -> io::Result<bool> {
    let Some((positions, expected)) = positions.and_then(|known| Some((known, known.queue_entries?))) else {
        return Ok(true);
    };
    let end = positions.start(&["queues"]);
    queues.each(|queue| queue.truncate(end))?;
    let found = queues.entries_ever();
    if found != expected {
        tracing::error!(
            found,
            expected,
            "the files of the consume queues are damaged; all are built again from the log"
        );
    }
    Ok(found == expected)
}

/// Notes that the queue files hold nothing from `from` on, before recovery makes it so: if that is killed, the
/// next start must neither rely on more nor take them for damaged.
fn give_up_queues(
    disk: &dyn Disk,
    layout: &Layout,
    positions: Option<&Positions>,
    from: PhyOffset,
) -> io::Result<()> {
    let Some(positions) = positions.filter(|known| known.start(&["queues"]) > from) else { return Ok(()) };
    let mut left = Positions { queue_entries: None, ..positions.clone() };
    left.projections.insert("queues".to_owned(), from.get());
    checkpoint::save_positions(disk, layout, &left)
}

/// Tells when the log ends before the place up to which it once was on the disk.
fn report_lost(recovered: &Recovered, positions: Option<&Positions>) {
    let flushed = PhyOffset::new(positions.map_or(0, |known| known.flushed));
    if recovered.end < flushed {
        tracing::error!(end = %recovered.end, %flushed, "the commit log ends before what was flushed to the disk: messages that were acknowledged are lost");
    }
}

#[cfg(test)]
mod fault_disk;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod gap_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
