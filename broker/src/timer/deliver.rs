//! Delivers waiting messages when they are due.
//!
//! One task for all levels: it sleeps until the first head is due and is woken when an earlier one comes. What is due
//! is stored again under its real topic and queue, many messages in one append, in the order of each level. A copy
//! that could not be stored is tried again, and those behind it wait.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{TopicName, topics};
use gantry_proto::record::{RecallHandle, RecordView};
use tokio_util::sync::CancellationToken;

use super::copy::{self, DeliverError};
use super::cursors::{LevelState, Passed, Recalled, Shared, TimerProjection, mark_of, recall_body};
use super::levels::Levels;
use super::recall::{CANDIDATES_MAX, RecallError, is_named};
use super::task::{self, Alarm, NextRound, Rounds};
use crate::clock::{CORRECTION_MAX_MS, Clock};
use crate::state;
use crate::store::replay::Replay;
use crate::store::retain::Hold;
use crate::store::{AppendError, Batch, Queue, QueueEntry, ReadError, Store};

/// Messages delivered in one append.
const RUN_MESSAGES_MAX: usize = 256;
/// Bytes delivered in one append, about.
const RUN_BYTES_MAX: u64 = 256 * 1024;
/// Deliveries of a level that the log does not show yet; more wait for it.
const IN_FLIGHT_MAX: usize = 4096;
/// Recalled messages that are not passed over yet; more are refused.
const RECALLED_MAX: usize = 100_000;

/// The timer before the store is open.
#[derive(Debug)]
pub struct Unstarted {
    shared: Arc<Shared>,
}

/// Delivers messages of all delay levels.
#[derive(Debug)]
pub struct Timer {
    shared: Arc<Shared>,
    store: Arc<Store>,
    /// Keeps the log from the first undelivered message on.
    hold: Hold,
}

/// What became of a wish to recall a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    /// It is recalled once that is in the log.
    Now,
    /// It was recalled before.
    Before,
    /// It is too late.
    Delivered,
}

/// Reads the cursors in the directory `config`. The projection goes to the store; the rest starts when that is open.
pub fn load(
    config: &Path,
    levels: Levels,
    clock: Arc<dyn Clock>,
) -> io::Result<(TimerProjection, Unstarted)> {
    let (projection, shared) = TimerProjection::load(config, levels, clock)?;
    Ok((projection, Unstarted { shared }))
}

impl Unstarted {
    /// Finds out where each level stands.
    pub fn start(self, store: Arc<Store>) -> Arc<Timer> {
        let timer = Timer { shared: self.shared, hold: store.hold(PhyOffset::ZERO), store };
        if timer.shared.lock().log_was_cut {
            timer.read_log();
        }
        let mut cursors = timer.shared.lock();
        for queue in timer.store.topic_queues(TopicName::schedule().as_str()) {
            cursors.levels.entry(queue.id()).or_default();
        }
        drop(cursors);
        Arc::new(timer)
    }
}

impl Rounds for Timer {
    fn round(&self) -> NextRound {
        self.deliver_all()
    }

    fn wanted_at(&self) -> Option<Millis> {
        self.next_due()
    }

    fn alarm(&self) -> &Alarm {
        &self.shared.alarm
    }

    fn store(&self) -> &Store {
        &self.store
    }
}

impl Timer {
    /// The delay levels.
    pub fn levels(&self) -> &Levels {
        &self.shared.levels
    }

    /// Delivers until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        task::run(self, stop).await;
    }

    /// Delivers everything that is due now, once.
    pub fn deliver_due(&self) {
        self.deliver_all();
    }

    fn deliver_all(&self) -> NextRound {
        let queues: Vec<_> = self.shared.lock().levels.keys().copied().collect();
        let mut next = NextRound::Idle;
        for id in queues {
            let Some(queue) = self.store.find_queue(TopicName::schedule().as_str(), id) else { continue };
            match self.deliver_level(&queue) {
                Ok(NextRound::At(due)) => {
                    next = match next {
                        NextRound::Idle => NextRound::At(due),
                        NextRound::At(earlier) => NextRound::At(earlier.min(due)),
                        NextRound::Pause | NextRound::Behind(_) | NextRound::Stopped => next,
                    };
                }
                Ok(NextRound::Idle) => {}
                Ok(blocked) => next = blocked,
                Err(DeliverError::Append(AppendError::Poisoned(_))) => return NextRound::Stopped,
                Err(error) => {
                    tracing::warn!(%error, level = id.get() + 1, "due messages could not be delivered; tried again");
                    next = NextRound::Pause;
                }
            }
        }
        self.release_log();
        next
    }

    /// Delivers what is due in one level.
    fn deliver_level(&self, queue: &Arc<Queue>) -> Result<NextRound, DeliverError> {
        let mut entries = Vec::with_capacity(RUN_MESSAGES_MAX);
        loop {
            let from = self.next_of(queue);
            entries.clear();
            self.store.entries(queue, from, RUN_MESSAGES_MAX, &mut entries);
            let Some(head) = entries.first() else { return Ok(NextRound::Idle) };
            let now = self.store.clock().now();
            let head_due = self.due(queue, head, now);
            if head_due > now {
                return Ok(NextRound::At(head_due));
            }
            if self
                .shared
                .lock()
                .levels
                .get(&queue.id())
                .is_some_and(|level| level.in_flight.len() >= IN_FLIGHT_MAX)
            {
                return Ok(NextRound::Pause);
            }
            let due = entries.iter().take_while(|entry| self.due(queue, entry, now) <= now).count();
            entries.truncate(due);
            self.deliver_run(queue, &entries)?;
        }
    }

    /// Stores copies of these messages, as many as fit one append. Recalled ones are passed over.
    fn deliver_run(&self, queue: &Arc<Queue>, entries: &[QueueEntry]) -> Result<(), DeliverError> {
        let (recalls, recalled) = self.recalled_among(entries);
        let mut batch = Batch::new();
        let mut bytes = 0;
        let mut done = Vec::with_capacity(entries.len());
        for entry in entries {
            bytes += u64::from(entry.size) + 64;
            if bytes > RUN_BYTES_MAX && !done.is_empty() {
                break;
            }
            let mark = mark_of(entry.phy);
            let has_copy = !entry.is_blank() && !recalled.contains(&mark);
            if has_copy {
                self.push_copy(&mut batch, queue, entry)?;
            }
            done.push(Passed { mark, at: entry.at, has_copy });
        }
        let Some(last) = done.last().copied() else { return Ok(()) };
        // Noted first: the projection may see the copies before `append` returns.
        {
            let mut cursors = self.shared.lock();
            if cursors.recalls != recalls {
                return Ok(()); // one of these may have been recalled meanwhile: once more
            }
            let level = cursors.levels.entry(queue.id()).or_default();
            level.in_flight.extend(done.iter().copied());
            level.next = Some(last.at + 1);
            if batch.is_empty() {
                cursors.settle(queue.id());
                return Ok(());
            }
        }
        if let Err(error) = self.store.append(&mut batch) {
            let mut cursors = self.shared.lock();
            let level = cursors.levels.entry(queue.id()).or_default();
            let kept = level.in_flight.len().saturating_sub(done.len());
            level.in_flight.truncate(kept);
            level.next = done.first().map(|first| first.at);
            return Err(error.into());
        }
        self.store.drive();
        Ok(())
    }

    /// Which of these were recalled, and how many recalls there were by then.
    fn recalled_among(&self, entries: &[QueueEntry]) -> (u64, HashSet<PhyOffset>) {
        let cursors = self.shared.lock();
        let marks = entries.iter().map(|entry| mark_of(entry.phy));
        (cursors.recalls, marks.filter(|mark| cursors.recalled.contains_key(mark)).collect())
    }

    /// Takes a message of a level back that has not been delivered. `None`: there is none under the handle. Safe when it
    /// returns.
    pub(super) async fn recall(&self, handle: &RecallHandle) -> Result<Option<()>, RecallError> {
        let key = &handle.uniq_key;
        let places =
            self.store.index().find(topics::SCHEDULE, key, Millis::ZERO, Millis::MAX, CANDIDATES_MAX)?;
        for phy in places {
            let Ok(record) = self.store.record_at(phy) else { continue };
            let Ok(view) = RecordView::parse(&record) else { continue };
            let hot = view.properties().scan();
            let delay = self.shared.levels.delays_ms().get(view.queue_id().get() as usize).copied();
            let Some(due) = delay.map(|delay| view.store_at().plus(delay)) else { continue };
            if view.topic() != topics::SCHEDULE || !is_named(handle, &hot, due) {
                continue;
            }
            match self.note_recall(mark_of(phy), view.queue_id(), view.queue_offset())? {
                Noted::Delivered => {}
                Noted::Before => return Ok(Some(())),
                Noted::Now => {
                    let end = self.append_recall(mark_of(phy), view.queue_id())?;
                    self.store.settled(end).await?;
                    self.store.dispatched(end).await?;
                    return Ok(Some(()));
                }
            }
        }
        Ok(None)
    }

    fn note_recall(&self, mark: PhyOffset, queue: QueueId, at: QueueOffset) -> Result<Noted, RecallError> {
        let mut cursors = self.shared.lock();
        let cursors = &mut *cursors;
        if let Some(before) = cursors.recalled.get(&mark) {
            return if before.is_logged { Ok(Noted::Before) } else { Err(RecallError::Busy) };
        }
        let level = cursors.levels.entry(queue).or_default();
        if level.delivered >= mark || level.cursor > at || level.next.is_some_and(|next| next > at) {
            return Ok(Noted::Delivered);
        }
        if cursors.recalled.len() >= RECALLED_MAX {
            return Err(RecallError::TooMany { limit: RECALLED_MAX });
        }
        cursors.recalled.insert(mark, Recalled { queue, is_logged: false });
        cursors.recalls += 1;
        Ok(Noted::Now)
    }

    fn append_recall(&self, mark: PhyOffset, queue: QueueId) -> Result<PhyOffset, RecallError> {
        let append = || -> Result<PhyOffset, DeliverError> {
            let states = self.store.queue(&TopicName::state(), QueueId::ZERO)?;
            let body = recall_body(mark, queue);
            let mut batch = Batch::new();
            let draft = state::draft(&body, self.store.clock().now());
            batch.push(&states, &draft).map_err(|error| io::Error::other(error.to_string()))?;
            Ok(self.store.append(&mut batch)?.end)
        };
        let end = append().inspect_err(|_| {
            self.shared.lock().recalled.remove(&mark);
        })?;
        self.store.drive();
        Ok(end)
    }

    /// Adds the copy of one waiting message. A damaged one is reported and passed over.
    fn push_copy(&self, batch: &mut Batch, queue: &Queue, entry: &QueueEntry) -> Result<(), DeliverError> {
        let record = match self.store.message(queue, entry) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(()),
            Err(ReadError::Io { source, .. }) => return Err(source.into()),
            Err(error) => {
                tracing::error!(%error, level = queue.id().get() + 1, offset = %entry.at, "a delayed message cannot be read; it is lost");
                return Ok(());
            }
        };
        let Ok(view) = RecordView::parse(&record) else {
            tracing::error!(at = %entry.phy, "a delayed message is no record; it is lost");
            return Ok(());
        };
        copy::push(&self.store, batch, &view, entry.phy, view.properties().without_crc())
    }

    /// When a waiting message is due. A time that is further off than the level's delay allows is one from a
    /// clock that was set back since: due now.
    fn due(&self, queue: &Queue, entry: &QueueEntry, now: Millis) -> Millis {
        if entry.is_blank() {
            return now;
        }
        let level = queue.id().get() as usize;
        let delay = self.shared.levels.delays_ms().get(level).copied().unwrap_or(u64::MAX);
        let due = Millis::new(entry.tags_code);
        if due > now.plus(delay).plus(CORRECTION_MAX_MS) { now } else { due }
    }

    /// How many messages wait in all levels.
    pub fn waiting(&self) -> u64 {
        let schedule = TopicName::schedule();
        let levels = self.shared.levels.all();
        let queues = levels.filter_map(|level| self.store.find_queue(schedule.as_str(), level.queue()));
        queues.map(|queue| queue.max().since(self.next_of(&queue))).sum()
    }

    /// When the first message of all is due.
    fn next_due(&self) -> Option<Millis> {
        let now = self.store.clock().now();
        let queues: Vec<_> = self.shared.lock().levels.keys().copied().collect();
        queues
            .into_iter()
            .filter_map(|id| self.store.find_queue(TopicName::schedule().as_str(), id))
            .filter_map(|queue| queue.entry(self.next_of(&queue)).map(|entry| self.due(&queue, &entry, now)))
            .min()
    }

    /// The next message of a level; on the first call found by what the log shows to be delivered.
    fn next_of(&self, queue: &Queue) -> QueueOffset {
        let mut cursors = self.shared.lock();
        let level = cursors.levels.entry(queue.id()).or_default();
        match level.next {
            Some(next) if next >= queue.min() => next,
            Some(_) => queue.min(),
            None => {
                let next = first_undelivered(queue, level);
                level.cursor = next;
                level.next = Some(next);
                // What lies before was passed over.
                let passed = queue.entry(next).map(|entry| mark_of(entry.phy));
                cursors.recalled.retain(|mark, message| {
                    message.queue != queue.id() || passed.is_some_and(|passed| *mark >= passed)
                });
                next
            }
        }
    }

    /// Lets go of log before the first message whose delivery the log does not show.
    fn release_log(&self) {
        let position = self.shared.position();
        let mut oldest = position;
        let cursors: Vec<_> =
            self.shared.lock().levels.iter().map(|(queue, level)| (*queue, level.cursor)).collect();
        for (id, cursor) in cursors {
            let queue = self.store.find_queue(TopicName::schedule().as_str(), id);
            if let Some(entry) = queue.and_then(|queue| queue.entry(cursor.max(queue.min()))) {
                oldest = oldest.min(entry.phy);
            }
        }
        self.hold.advance(oldest);
    }

    /// Finds from the whole log what was delivered: the cursors of the file say too much.
    fn read_log(&self) {
        let mut cursors = self.shared.lock();
        for level in cursors.levels.values_mut() {
            *level = LevelState::default();
        }
        cursors.recalled.clear();
        let (from, end) = (self.store.min_offset(), self.store.max_offset());
        Replay::new(self.store.log().segments()).each(from, end, |view| {
            cursors.apply(view, &view.properties().scan(), &self.shared.levels);
        });
    }
}

/// The first entry from the cursor on that lies behind the newest delivered record.
fn first_undelivered(queue: &Queue, level: &LevelState) -> QueueOffset {
    let mut at = level.cursor.max(queue.min());
    let mut entries = Vec::new();
    loop {
        entries.clear();
        queue.entries(at, 1000, &mut entries);
        match entries.iter().find(|entry| mark_of(entry.phy) > level.delivered) {
            Some(entry) => return entry.at,
            None if entries.is_empty() => return at,
            None => at += entries.len() as u64,
        }
    }
}
