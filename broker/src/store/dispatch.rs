//! Feeds new records to the projections.
//!
//! There is no dispatcher thread: whoever moves the visible mark runs [`Dispatcher::run`]. If another
//! thread has the projections, to dispatch or to flush them, that one is left a note and applies the new
//! records before it goes.

use std::sync::{Arc, PoisonError};

use gantry_proto::ids::{Millis, PhyOffset};
use gantry_proto::names::{TopicKind, TopicName};
use gantry_proto::record::{HotProperties, RecordView, TransactionFlag};

use super::append::Log;
use super::dedup::DedupWindow;
use super::flush::StopOnPanic;
use super::index::KeyIndex;
use super::projection::{ApplyError, Dispatched, Projection};
use super::queue::{Queue, QueueEntry};
use super::queues::Queues;
use super::replay::{Replay, Step, Trust};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// Delay of each level, in milliseconds; level 1 is the first.
pub type DelayLevels = Arc<[u64]>;

/// The store's own projections: shared with readers, with locks of their own.
#[derive(Clone, Debug)]
pub struct Folds {
    /// All consume queues.
    pub queues: Arc<Queues>,
    /// The key index.
    pub index: Arc<KeyIndex>,
    /// The dedup window.
    pub dedup: Arc<DedupWindow>,
    /// What the schedule topic's due times are made of.
    pub delay_levels: DelayLevels,
}

impl Folds {
    /// The entry that lists a record in its queue.
    pub(super) fn entry(&self, queue: &Queue, view: &RecordView<'_>) -> QueueEntry {
        self.entry_of(queue, view, &view.properties().scan())
    }

    fn entry_of(&self, queue: &Queue, view: &RecordView<'_>, hot: &HotProperties<'_>) -> QueueEntry {
        QueueEntry {
            at: view.queue_offset(),
            phy: view.phy_offset(),
            size: view.total_size(),
            tags_code: listed_tags_code(queue.kind(), view, hot, &self.delay_levels),
        }
    }
}

/// The tags code of a record's queue entry: the due time in the schedule topic, the tag's hash everywhere else.
pub(super) fn listed_tags_code(
    kind: TopicKind,
    view: &RecordView<'_>,
    hot: &HotProperties<'_>,
    delay_levels: &[u64],
) -> i64 {
    if kind == TopicKind::Schedule
        && let Some(level) = hot.delay_level
        && let Some(last) = delay_levels.len().checked_sub(1)
    {
        let number = usize::try_from(level.saturating_sub(1)).unwrap_or(0).min(last);
        let delay = delay_levels.get(number).copied().unwrap_or(0);
        return view.store_at().plus(delay).get();
    }
    hot.tags_code()
}

/// Whether a queue lists the record: half messages and rollbacks are in none.
pub(super) fn is_listed(view: &RecordView<'_>) -> bool {
    match view.sys_flag().transaction() {
        TransactionFlag::None | TransactionFlag::Commit => true,
        TransactionFlag::Prepared | TransactionFlag::Rollback => false,
    }
}

/// The projections and how far they are.
pub struct Dispatcher {
    /// The note: something became visible. Whoever lets go of `state` looks at it afterwards.
    wanted: AtomicBool,
    folds: Folds,
    /// Held by the thread that dispatches or flushes.
    state: Mutex<State>,
}

/// Who gets a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// Everybody.
    All,
    /// Only projections that lag: queues, index and dedup window have had it. A queue that lacks it now was removed
    /// since, and must not come back.
    Lagging,
}

/// How far the projections are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Applied {
    /// Every record below was applied.
    pub at: PhyOffset,
    /// Store time of the last of them.
    pub store_at: Millis,
    /// Entries that all queues have ever had for them.
    pub queue_entries: u64,
}

/// What is dispatched from, and to.
pub(super) struct State {
    at: PhyOffset,
    last_store_at: Millis,
    projections: Vec<Box<dyn Projection>>,
    /// Whether the index has much to write.
    index_is_full: bool,
    /// The queue of the record before: most records follow one of their own queue.
    last_queue: Option<Arc<Queue>>,
    /// Whether entries of queues could not be written since the last flush, which was told.
    unwritten: bool,
}

impl std::fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dispatcher").finish_non_exhaustive()
    }
}

impl Dispatcher {
    /// A dispatcher that starts at `at`.
    pub fn new(folds: Folds, projections: Vec<Box<dyn Projection>>, at: PhyOffset) -> Self {
        let state = State {
            at,
            last_store_at: Millis::ZERO,
            projections,
            index_is_full: false,
            last_queue: None,
            unwritten: false,
        };
        Self { wanted: AtomicBool::new(false), folds, state: Mutex::new(state) }
    }

    /// Applies every visible record that was not applied yet, here or on the thread that is at it.
    pub fn run(&self, log: &Log) {
        self.wanted.store(true, Ordering::SeqCst);
        while self.wanted.load(Ordering::SeqCst) {
            let mut state = match self.state.try_lock() {
                Ok(state) => state,
                Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(std::sync::TryLockError::WouldBlock) => return,
            };
            self.wanted.store(false, Ordering::SeqCst);
            self.catch_up(&mut state, log);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `work` have the projections, then applies what became visible meanwhile: whoever came to do that
    /// has left a note and gone.
    pub(super) fn with<T>(&self, log: &Log, work: impl FnOnce(&mut State) -> T) -> T {
        let done = work(&mut self.lock());
        if self.wanted.load(Ordering::SeqCst) {
            self.run(log);
        }
        done
    }

    fn catch_up(&self, state: &mut State, log: &Log) {
        let limit = log.marks().visible.get();
        if state.at >= limit {
            return;
        }
        let _stop = StopOnPanic(log);
        let mut replay = Replay::of_own(log);
        while state.at < limit {
            match replay.step(state.at, limit, Trust::OwnWrites) {
                Step::Record(view, next) => {
                    self.apply(state, view, Audience::All);
                    state.at = next;
                }
                Step::NextFile(next) => state.at = next,
                Step::End => break,
                Step::Damaged(what) => {
                    tracing::error!(at = %state.at, what, "the log holds a damaged record that was just written");
                    log.marks().poison(std::io::Error::other(what));
                    break;
                }
            }
        }
        for projection in &mut state.projections {
            projection.finish_batch();
        }
        log.marks().dispatched.advance(state.at);
    }

    /// Applies one record to everything that is to have it.
    fn apply(&self, state: &mut State, view: RecordView<'_>, audience: Audience) {
        let hot = view.properties().scan();
        let queue = match audience {
            Audience::All => self.queue_of(state, &view),
            Audience::Lagging => None,
        };
        if let Some(queue) = &queue {
            let entry = self.folds.entry_of(queue, &view, &hot);
            let pushed = self.folds.queues.push(queue, entry);
            // Once, not for each of the thousands that follow while the disk is full.
            if let Err(error) = pushed
                && !(error.is_write() && std::mem::replace(&mut state.unwritten, true))
            {
                tracing::error!(%error, topic = %queue.topic(), queue = %queue.id(), at = %view.phy_offset(), "a record has no entry on the disk");
            }
        }
        state.last_store_at = view.store_at();
        let end = view.phy_offset() + u64::from(view.total_size());
        let record = Dispatched { view, hot, queue: queue.as_ref() };
        for projection in &mut state.projections {
            // By its end: position 1 asks for the record at 0, too.
            if projection.position() >= end {
                continue;
            }
            if let Err(error) = projection.apply(&record) {
                report(projection.name(), &record, &error);
            }
        }
        if audience == Audience::Lagging {
            return;
        }
        self.folds.dedup.apply(&record);
        if self.folds.index.apply(&record) {
            state.index_is_full = true;
        }
        if queue.is_some() {
            state.last_queue = queue;
        }
    }

    /// The queue that lists the record. It is taken from the state where it was the last one's, too.
    fn queue_of(&self, state: &mut State, view: &RecordView<'_>) -> Option<Arc<Queue>> {
        if !is_listed(view) {
            return None;
        }
        let id = view.queue_id();
        let last = state.last_queue.take();
        if last.as_ref().is_some_and(|last| last.id() == id && last.topic().as_str() == view.topic()) {
            return last;
        }
        if let Some(queue) = self.folds.queues.find(view.topic(), id) {
            return Some(queue);
        }
        let topic = TopicName::storable(view.topic());
        let opened = topic
            .map_err(|error| std::io::Error::other(error.to_string()))
            .and_then(|topic| self.folds.queues.get_or_open(&topic, id));
        match opened {
            Ok(queue) => Some(queue),
            Err(error) => {
                tracing::error!(%error, at = %view.phy_offset(), "a record names no queue that can exist; it is only in the log");
                None
            }
        }
    }

    /// Drops a topic's queues. Nothing is dispatched meanwhile: a record that follows must find the topic's
    /// new queue, not the one that the record before was in.
    pub(super) fn remove_topic(&self, log: &Log, topic: &str) -> std::io::Result<()> {
        self.with(log, |state| {
            state.last_queue = None;
            self.folds.queues.remove_topic(topic)
        })
    }

    /// Applies a record found by recovery.
    pub(super) fn replay(&self, view: RecordView<'_>, next: PhyOffset, audience: Audience) {
        let mut state = self.lock();
        self.apply(&mut state, view, audience);
        state.at = next;
    }

    /// Starts from `at`. Part of recovery: nobody else dispatches yet.
    pub(super) fn seek(&self, at: PhyOffset) {
        self.lock().at = at;
    }

    /// Has every projection that is beyond `at` forget what is. Part of recovery.
    pub(super) fn truncate(&self, at: PhyOffset) -> std::io::Result<()> {
        let mut state = self.lock();
        let mut beyond = state.projections.iter_mut().filter(|projection| projection.position() > at);
        beyond.try_for_each(|projection| projection.truncate(at))
    }

    /// Tells every projection that recovery is through.
    pub(super) fn finish_replay(&self) {
        for projection in &mut self.lock().projections {
            projection.finish_batch();
        }
    }

    /// Whether a checkpoint is due before its time, for the memory that waits for it.
    pub(super) fn is_full(&self, log: &Log) -> bool {
        self.with(log, |state| state.index_is_full)
    }

    /// Each projection's name and position.
    pub(super) fn positions(&self, log: &Log) -> Vec<(&'static str, PhyOffset)> {
        self.with(log, |state| {
            state.projections.iter().map(|projection| (projection.name(), projection.position())).collect()
        })
    }

    /// Makes everything applied so far durable. Returns how much that was when it began.
    pub(super) fn flush(&self, log: &Log) -> std::io::Result<Applied> {
        let before = self.with(log, |state| {
            state.index_is_full = false;
            let queue_entries = self.folds.queues.entries_ever();
            Applied { at: state.at, store_at: state.last_store_at, queue_entries }
        });
        self.folds.queues.flush()?;
        if self.with(log, |state| std::mem::take(&mut state.unwritten)) {
            tracing::info!("entries of consume queues that could not be written are on the disk now");
        }
        self.folds.index.write()?;
        self.folds.dedup.write()?;
        let saves: Vec<_> = self.with(log, |state| {
            state.projections.iter_mut().filter_map(|projection| projection.save()).collect()
        });
        saves.into_iter().try_for_each(|save| save())?;
        Ok(before)
    }

    /// Tells every projection that the log begins at `min` now.
    pub(super) fn raise_min(&self, log: &Log, min: PhyOffset) -> std::io::Result<()> {
        self.with(log, |state| {
            state.projections.iter_mut().try_for_each(|projection| projection.raise_min(min))
        })
    }
}

fn report(projection: &str, record: &Dispatched<'_>, error: &ApplyError) {
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    tracing::error!(projection, at = %record.view.phy_offset(), %error, cause, "a projection could not apply a record");
}
