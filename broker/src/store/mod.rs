//! The store: one commit log, everything else folded from it.
//!
//! [`Store::open`] takes the directory's lock, recovers and starts the flusher. [`Store::append`]
//! stages records, [`Store::drive`] gets them written and dispatched, [`Store::settled`] waits until
//! the flush policy's promise holds for them. What opening takes is in `open`. The directory is drawn in [`layout`].

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
mod open;
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
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};

use gantry_proto::ids::{Millis, PhyOffset, QueueId};
use gantry_proto::names::TopicName;

pub use append::{AppendError, Appended, Batch, Placed};
pub use open::{OpenError, StoreOptions};
pub use projection::{ApplyError, Dispatched, Projection, Save, Targets};
pub use queue::{Queue, QueueEntry};
pub use read::{LogRuns, LogSlice, Messages, ReadError};
pub use recover::Recovered;
pub use watermark::Poisoned;

use crate::clock::Clock;
use crate::sync::Mutex;
use crate::sync::thread::JoinHandle;
use append::Log;
use checkpoint::{PeerCheckpoint, Positions};
use dedup::DedupWindow;
use disk::{DirLock, Disk};
use dispatch::{Dispatcher, Folds};
use flush::FlushSignal;
use gaps::Gap;
use index::KeyIndex;
use layout::Layout;
use queues::Queues;
use retain::{Hold, Holds, Retention};

/// A checkpoint is due when the log has grown so much since the last one: recovery reads no more than about
/// this, and what waits for a checkpoint in memory stays small.
const CHECKPOINT_BYTES: u64 = 64 * 1024 * 1024;

/// What an acknowledged append survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushPolicy {
    /// The end of the process: the bytes are in the page cache.
    Memory,
    /// A power loss: the bytes are on the disk.
    Disk,
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
    targets: OnceLock<Arc<dyn Targets>>,
    recovered: Recovered,
    /// Gaps of the log.
    gaps: Vec<Gap>,
    _lock: DirLock,
}

impl Store {
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

    /// First byte that not every projection has applied.
    pub fn dispatched_offset(&self) -> PhyOffset {
        self.log.marks().dispatched.get()
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

    /// Retention would remove the log before this, were it not for a hold.
    pub fn retention_wants(&self) -> PhyOffset {
        self.holds.wanted()
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

    /// The queue for a message that waited for the queue `id`, made when it is not there yet: that one, unless it is no
    /// longer written.
    pub fn target(&self, topic: &TopicName, id: QueueId) -> io::Result<Arc<Queue>> {
        let id = self.targets.get().map_or(id, |targets| targets.target(topic, id));
        self.queue(topic, id)
    }

    /// Asks `targets` from now on; only the first call counts.
    pub fn set_targets(&self, targets: Arc<dyn Targets>) {
        // A second one would be a mistake of the caller's that harms nothing.
        let _ = self.targets.set(targets);
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
        let _alone = self.checkpointing.lock().unwrap_or_else(PoisonError::into_inner);
        // A checkpoint counts the entries of all queues. Killed before the next one, the store would take those that
        // are removed for damage and list them again.
        self.checkpoint(EntryCount::Unknown)?;
        self.dispatcher.remove_topic(&self.log, topic)?;
        self.checkpoint(EntryCount::Known)
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
        self.checkpoint(EntryCount::Known)
    }

    /// Only while `checkpointing` is held.
    fn checkpoint(&self, count: EntryCount) -> io::Result<()> {
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
            queue_entries: (durable == applied.at && count == EntryCount::Known)
                .then_some(applied.queue_entries),
            projections,
            gaps: self.gaps.iter().filter(|gap| gap.to > min.get()).copied().collect(),
            boot: self.disk.boot(),
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

/// Whether a checkpoint says how many entries the queues have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EntryCount {
    Known,
    Unknown,
}

fn stopped(failure: &Poisoned) -> io::Error {
    io::Error::other(failure.to_string())
}

#[cfg(test)]
pub(crate) mod fault_disk;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod gap_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
