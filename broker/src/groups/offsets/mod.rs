//! Where each group stands in each queue.
//!
//! An offset is a fold over the records of the state topic (drawn in [`record`]) on top of
//! `config/consumerOffset.json` (drawn in `table.rs`). [`Offsets::commit`] returns once its record is kept
//! as the store's policy says; [`Offsets::note`] returns at once and is logged within a second, many
//! changes in one record. Nothing moves an offset back but [`Offsets::reset`].
//!
//! Bounds: at most `max_offsets` (group, topic, queue) entries of about 100 bytes; what waits to be
//! logged is part of them.

#[cfg(test)]
mod model_tests;
pub mod record;
mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use gantry_proto::ids::{PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicName, topics};
use gantry_proto::record::EncodeError;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::state::{self, StateKind};
use crate::store::layout::{load_json, replace_json};
use crate::store::{AppendError, ApplyError, Batch, Dispatched, Poisoned, Projection, Save, Store};

pub use record::{Change, Key};
use table::{Standing, Table};

/// How long noted offsets wait for others to share their record.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// The file is written each time the notes were logged this often, when something changed.
const SAVE_EVERY_NOTES: u32 = 5;
/// Without changes the file is written when its position has fallen this far behind, so that a restart
/// need not read more than this for our sake.
const POSITION_LAG_MAX: u64 = 16 * 1024 * 1024;

/// Why an offset was not kept.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// No such message was ever stored.
    #[error("offset {offset} of {topic} queue {queue} lies beyond its end {end}: commit what was consumed")]
    BeyondEnd {
        /// The topic.
        topic: TopicName,
        /// Its queue.
        queue: QueueId,
        /// What was committed.
        offset: QueueOffset,
        /// The end of the queue.
        end: QueueOffset,
    },
    /// The table of offsets is full.
    #[error("{max} offsets are kept, which is the limit: delete unused groups or raise groups.max_offsets")]
    Full {
        /// The bound.
        max: usize,
    },
    /// The store refused the record.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The log failed before the record was kept.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
    /// The record cannot be written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The state topic's queue cannot be opened.
    #[error("the queue of {} cannot be opened", topics::STATE)]
    StateQueue(#[source] io::Error),
}

/// The offsets as read from the file, to be handed to the store and then to [`Offsets::new`].
#[derive(Clone, Debug)]
pub struct OffsetTable(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    /// Guards all offsets. Held for map operations only.
    table: Mutex<Table>,
    /// First byte of the log that is not applied. Never ahead of `table`.
    position: AtomicU64,
    /// `position` as it stands in the file; the lock is held while the file is written.
    saved: Mutex<u64>,
    /// Resets that no consumer follows, to spare every pull the lock.
    resets: AtomicU64,
    wake: Notify,
    /// Who is told of changes.
    told: OnceLock<Told>,
}

struct Told(Box<dyn Fn(&Key) + Send + Sync>);

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Told")
    }
}

impl OffsetTable {
    /// Reads `consumerOffset.json` in `config_dir`.
    pub fn open(config_dir: &Path, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let path = config_dir.join("consumerOffset.json");
        let (table, position) = match load_json(&path, Table::decode)? {
            // Apache's file stands for the whole log so far; the store sets the position to its end.
            Some((table, position)) => (table, position.unwrap_or(PhyOffset::new(i64::MAX.unsigned_abs()))),
            // Position 0 would mean "as the checkpoint says", but without the file all records count.
            None => (Table::default(), PhyOffset::new(1)),
        };
        let resets = AtomicU64::new(table.resets() as u64);
        Ok(Self(Arc::new(Shared {
            path,
            clock,
            table: Mutex::new(table),
            position: AtomicU64::new(position.get()),
            saved: Mutex::new(position.get()),
            resets,
            wake: Notify::new(),
            told: OnceLock::new(),
        })))
    }

    /// The fold over the log that keeps this table current; the store owns it.
    pub fn projection(&self) -> Box<dyn Projection> {
        Box::new(OffsetsProjection(Arc::clone(&self.0)))
    }
}

impl Shared {
    fn tell(&self, changes: &[Change]) {
        let Some(Told(told)) = self.told.get() else { return };
        for change in changes {
            if let Change::Advance(key, _) | Change::Reset(key, _) = change {
                told(key);
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, changes: &[Change]) {
        let mut table = self.table();
        for change in changes {
            table.apply(change);
        }
        self.resets.store(table.resets() as u64, Ordering::Release);
    }

    /// Writes the file when something changed, or when its position is too far behind.
    fn save(&self) -> io::Result<()> {
        let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
        let (position, file) = {
            let mut table = self.table();
            let position = self.position.load(Ordering::Acquire);
            if !table.is_dirty() && position.saturating_sub(*saved) < POSITION_LAG_MAX {
                return Ok(());
            }
            (position, table.encode(Some(PhyOffset::new(position)), self.clock.now()))
        };
        if let Err(error) = replace_json(&self.path, &file) {
            self.table().mark_dirty();
            return Err(error);
        }
        *saved = position;
        Ok(())
    }
}

#[derive(Debug)]
struct OffsetsProjection(Arc<Shared>);

impl Projection for OffsetsProjection {
    fn name(&self) -> &'static str {
        "offsets"
    }

    fn position(&self) -> PhyOffset {
        PhyOffset::new(self.0.position.load(Ordering::Acquire))
    }

    fn apply(&mut self, record: &Dispatched<'_>) -> Result<(), ApplyError> {
        let at = record.view.phy_offset();
        let mut result = Ok(());
        if record.view.topic() == topics::STATE
            && let Some((StateKind::Offsets, payload)) = state::parse(record.view.body())
        {
            match record::decode(payload) {
                Ok(changes) => {
                    self.0.apply(&changes);
                    self.0.tell(&changes);
                }
                Err(error) => result = Err(ApplyError::Malformed { at, what: error.to_string() }),
            }
        }
        let end = at + u64::from(record.view.total_size());
        self.0.position.store(end.get(), Ordering::Release);
        result
    }

    fn save(&mut self) -> Option<Save> {
        let shared = Arc::clone(&self.0);
        Some(Box::new(move || shared.save()))
    }

    fn truncate(&mut self, end: PhyOffset) -> io::Result<()> {
        // Offsets that were cut off cannot be told from others here; `Offsets::new` sets back those
        // that now lie beyond the end of their queue.
        self.0.position.store(end.get(), Ordering::Release);
        self.0.table().mark_dirty();
        // At once: a file of Apache's would count for records that follow now, too.
        self.0.save()
    }
}

/// Where each group stands in each queue.
#[derive(Debug)]
pub struct Offsets {
    shared: Arc<Shared>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    max: usize,
    /// Serialises records of the state topic: what waits is taken and appended in one step, so that
    /// nothing noted before a reset is logged behind it.
    writer: Mutex<Batch>,
    /// First byte behind the newest record that was appended.
    logged_end: AtomicU64,
    /// One group begins at a time: what two members found as the end of a queue may differ.
    beginning: tokio::sync::Mutex<()>,
}

impl Offsets {
    /// The offsets in `table`, which the recovered `store` has brought up to its end. `max` bounds the
    /// number of entries.
    pub fn new(table: &OffsetTable, store: Arc<Store>, metrics: Arc<Metrics>, max: usize) -> Self {
        let shared = Arc::clone(&table.0);
        let end = |topic: &TopicName, queue| {
            store.find_queue(topic.as_str(), queue).map_or(QueueOffset::ZERO, |queue| queue.max())
        };
        let clamped = shared.table().clamp(end);
        for (key, offset) in &clamped {
            tracing::warn!(
                group = %key.group, topic = %key.topic, queue = %key.queue, %offset,
                "the offset lay beyond the end of its queue, which lost its newest messages; it is set to the end"
            );
        }
        // Before anything is sent: at the next start there may be so many messages that the old offset looks right.
        if !clamped.is_empty()
            && let Err(error) = shared.save()
        {
            tracing::error!(%error, "cannot write consumerOffset.json; offsets that were set back may come back at the next start");
        }
        let (writer, logged_end) = (Mutex::default(), AtomicU64::new(0));
        Self { shared, store, metrics, max, writer, logged_end, beginning: tokio::sync::Mutex::default() }
    }

    /// Where the group stands: the first message that it has not consumed. `None`: it never said.
    pub fn get(&self, group: &str, topic: &str, queue: QueueId) -> Option<QueueOffset> {
        self.shared.table().get(group, topic, queue)
    }

    /// Where the group stands, as a crash would not take it back.
    pub fn kept(&self, group: &str, topic: &str, queue: QueueId) -> Option<QueueOffset> {
        self.shared.table().kept(group, topic, queue)
    }

    /// Has `told` told of each queue in which a group's [kept](Self::kept) offset has changed. It runs where records are
    /// dispatched: it must be quick. Only the first one counts.
    pub fn tell_changes(&self, told: impl Fn(&Key) + Send + Sync + 'static) {
        // A second one would be a broker that is put together twice.
        let _ = self.shared.told.set(Told(Box::new(told)));
    }

    /// Whether [`get`](Self::get) gives an offset that a crash could take back.
    pub fn is_only_noted(&self, group: &str, topic: &str, queue: QueueId) -> bool {
        self.shared.table().is_only_noted(group, topic, queue)
    }

    /// Returns once everything that was noted before is kept.
    pub async fn settle(&self) -> Result<(), CommitError> {
        self.log_waiting()?;
        let end = PhyOffset::new(self.logged_end.load(Ordering::Acquire));
        self.finish(end).await
    }

    /// Moves the group forward without waiting; the change is logged within a second. A smaller offset
    /// than known changes nothing, one beyond the end of the queue is refused and counted.
    pub fn note(&self, key: Key, offset: QueueOffset) -> Result<(), CommitError> {
        let mut table = self.shared.table();
        match table.to_note(&key, offset, self.max) {
            Standing::Settled | Standing::Overruled => return Ok(()),
            Standing::Full => return Err(CommitError::Full { max: self.max }),
            Standing::Ahead => {}
        }
        self.check_end(&key, offset)?;
        let first = table.note(key, offset);
        drop(table);
        if first {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    /// Moves the group forward and returns once that is kept. A smaller offset than known changes
    /// nothing, as does any while the consumers do not follow a reset yet.
    pub async fn commit(&self, key: Key, offset: QueueOffset) -> Result<(), CommitError> {
        let (end, committed) = {
            // Held from the look to the append: a reset in between would be undone.
            let mut writer = self.writer();
            let standing = self.shared.table().to_commit(&key, offset, self.max);
            match standing {
                Standing::Settled => return Ok(()),
                Standing::Full => return Err(CommitError::Full { max: self.max }),
                Standing::Overruled => (PhyOffset::new(self.logged_end.load(Ordering::Acquire)), 0),
                Standing::Ahead => {
                    self.check_end(&key, offset)?;
                    (self.append(&mut writer, &[Change::Advance(key, offset)])?, 1)
                }
            }
        };
        self.finish(end).await?;
        self.metrics.offsets_committed.add(committed);
        Ok(())
    }

    /// Places where a group begins, kept on return: all of them or, after a crash, none. Where it has an offset nothing is
    /// changed.
    pub async fn begin(&self, mut places: Vec<(Key, QueueOffset)>) -> Result<(), CommitError> {
        let _one = self.beginning.lock().await;
        let end = {
            let mut writer = self.writer();
            {
                let table = self.shared.table();
                places.retain(|(key, _)| table.lacks(std::iter::once(key)) > 0);
                if !places.is_empty() && table.len() + places.len() > self.max {
                    return Err(CommitError::Full { max: self.max });
                }
            }
            let changes: Vec<_> =
                places.into_iter().map(|(key, offset)| Change::Advance(key, offset)).collect();
            let mut end = PhyOffset::new(self.logged_end.load(Ordering::Acquire));
            if !changes.is_empty() {
                end = self.append(&mut writer, &changes)?;
            }
            end
        };
        self.finish(end).await
    }

    /// An operator sets offsets, forward or back, and they are kept on return. The next pull of each
    /// queue is told ([`take_reset`](Self::take_reset)); until one follows what consumers commit is ignored.
    pub async fn reset(&self, offsets: Vec<(Key, QueueOffset)>) -> Result<(), CommitError> {
        let logged = self.log_resets(&offsets);
        // Of many resets some may be logged when the others are refused.
        let end = logged.inspect_err(|_| self.store.drive())?;
        self.finish(end).await?;
        self.metrics.offsets_reset.add(offsets.len() as u64);
        Ok(())
    }

    fn log_resets(&self, offsets: &[(Key, QueueOffset)]) -> Result<PhyOffset, CommitError> {
        let mut writer = self.writer();
        {
            let table = self.shared.table();
            let new = table.lacks(offsets.iter().map(|(key, _)| key));
            if new > 0 && table.len() + new > self.max {
                return Err(CommitError::Full { max: self.max });
            }
        }
        let mut end = PhyOffset::ZERO;
        for chunk in offsets.chunks(record::CHANGES_MAX) {
            let keys = || chunk.iter().map(|(key, _)| key);
            let waiting = self.shared.table().begin_reset(keys());
            let changes: Vec<_> =
                chunk.iter().map(|(key, offset)| Change::Reset(key.clone(), *offset)).collect();
            end = match self.append(&mut writer, &changes) {
                Ok(end) => end,
                Err(error) => {
                    self.shared.table().cancel_reset(keys(), waiting);
                    self.shared.wake.notify_one();
                    return Err(error);
                }
            };
        }
        Ok(end)
    }

    /// Sets offsets like [`reset`](Self::reset), for a group that no consumer is using: nobody is told.
    pub async fn set(&self, offsets: Vec<(Key, QueueOffset)>) -> Result<(), CommitError> {
        let set = offsets.clone();
        self.reset(offsets).await?;
        for (key, offset) in &set {
            self.take_reset(key, *offset);
        }
        Ok(())
    }

    /// The offset that an operator set for this queue, once: a pull from elsewhere that gets it must tell
    /// its consumer to go there. The next pull shows that the consumer went.
    pub fn take_reset(&self, key: &Key, from: QueueOffset) -> Option<QueueOffset> {
        if self.shared.resets.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut table = self.shared.table();
        let idle = !table.is_waiting();
        let offset = table.take_reset(key, from);
        self.shared.resets.store(table.resets() as u64, Ordering::Release);
        if idle && table.is_waiting() {
            self.shared.wake.notify_one();
        }
        offset
    }

    /// The offset that an operator set for this queue and that consumers do not follow yet. To be followed with
    /// [`take_reset`](Self::take_reset) from there.
    pub fn pending_reset(&self, key: &Key) -> Option<QueueOffset> {
        if self.shared.resets.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.shared.table().pending_reset(key)
    }

    /// Offsets that operators set and that consumers do not follow yet, of all groups.
    pub fn pending_resets(&self) -> u64 {
        self.shared.resets.load(Ordering::Acquire)
    }

    /// Forgets a topic that was deleted, for all groups.
    pub async fn remove_topic(&self, topic: &TopicName) -> Result<(), CommitError> {
        if self.shared.table().groups_of_topic(topic.as_str()).is_empty() {
            return Ok(());
        }
        self.log_waiting()?;
        let end = self.append(&mut self.writer(), &[Change::ForgetTopic(topic.clone())])?;
        self.finish(end).await
    }

    /// Forgets a group that was deleted.
    pub async fn remove_group(&self, group: &GroupName) -> Result<(), CommitError> {
        if self.shared.table().topics_of_group(group.as_str()).is_empty() {
            return Ok(());
        }
        self.log_waiting()?;
        let end = self.append(&mut self.writer(), &[Change::ForgetGroup(group.clone())])?;
        self.finish(end).await
    }

    /// Every offset of a group, ordered by topic and queue.
    pub fn of_group(&self, group: &str) -> Vec<(TopicName, QueueId, QueueOffset)> {
        self.shared.table().of_group(group)
    }

    /// Topics in which the group has an offset, in order.
    pub fn topics_of_group(&self, group: &str) -> Vec<TopicName> {
        self.shared.table().topics_of_group(group).into_iter().collect()
    }

    /// How far groups are: their offsets added up over the queues of each topic, at most `max` sums.
    pub fn sums(&self, max: usize) -> Vec<(GroupName, TopicName, u64)> {
        self.shared.table().sums(max)
    }

    /// Names under which members that broadcast keep offsets, in no order.
    pub fn broadcasters(&self) -> Vec<GroupName> {
        self.shared.table().groups().filter(|name| name.broadcast_member().is_some()).cloned().collect()
    }

    /// Groups that have an offset in the topic, in order.
    pub fn groups_of_topic(&self, topic: &str) -> Vec<GroupName> {
        self.shared.table().groups_of_topic(topic).into_iter().collect()
    }

    /// All offsets in the form of `consumerOffset.json` without our own members.
    pub fn to_json(&self) -> Vec<u8> {
        let now = self.shared.clock.now();
        let mut table = self.shared.table();
        let dirty = table.is_dirty();
        let file = table.encode(None, now);
        if dirty {
            table.mark_dirty();
        }
        file
    }

    /// Logs what is noted, within a second, and writes the file, until `stop`; then both once more.
    /// Sleeps while there is nothing to do.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = 0;
        loop {
            if rounds == 0 {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = self.shared.wake.notified() => {}
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(NOTE_EVERY) => {}
            }
            if let Err(error) = self.log_waiting() {
                tracing::error!(%error, "cannot log consumer offsets; they wait for the next attempt");
            }
            rounds += 1;
            if rounds >= SAVE_EVERY_NOTES {
                rounds = 0;
                self.save().await;
            }
        }
        if let Err(error) = self.log_waiting() {
            tracing::error!(%error, "cannot log the consumer offsets of the last second; what was consumed in it comes again");
        }
        self.save().await;
    }

    /// Appends everything that is noted, without waiting until it is kept.
    pub fn log_waiting(&self) -> Result<(), CommitError> {
        let mut writer = self.writer();
        let waiting = self.shared.table().take_waiting();
        for (at, chunk) in waiting.chunks(record::CHANGES_MAX).enumerate() {
            if let Err(error) = self.append(&mut writer, chunk) {
                let left = waiting.get(at * record::CHANGES_MAX..).unwrap_or_default();
                self.shared.table().keep_waiting(left);
                self.shared.wake.notify_one();
                return Err(error);
            }
        }
        drop(writer);
        if !waiting.is_empty() {
            self.store.drive();
        }
        Ok(())
    }

    async fn save(&self) {
        let shared = Arc::clone(&self.shared);
        let saved = tokio::task::spawn_blocking(move || shared.save()).await;
        match saved {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "cannot write consumerOffset.json; the log has the offsets");
            }
            Err(error) => tracing::error!(%error, "writing consumerOffset.json was interrupted"),
        }
    }

    fn check_end(&self, key: &Key, offset: QueueOffset) -> Result<(), CommitError> {
        let queue = self.store.find_queue(key.topic.as_str(), key.queue);
        let end = queue.map_or(QueueOffset::ZERO, |queue| queue.max());
        if offset <= end {
            return Ok(());
        }
        self.metrics.offsets_beyond_end.bump();
        Err(CommitError::BeyondEnd { topic: key.topic.clone(), queue: key.queue, offset, end })
    }

    /// Logs changes in one append, as many records as it takes.
    fn append(&self, writer: &mut Batch, changes: &[Change]) -> Result<PhyOffset, CommitError> {
        let queue = self.store.queue(&TopicName::state(), QueueId::ZERO).map_err(CommitError::StateQueue)?;
        writer.clear();
        for chunk in changes.chunks(record::CHANGES_MAX) {
            let body = record::encode(chunk);
            writer.push(&queue, &state::draft(&body, self.shared.clock.now()))?;
        }
        let end = self.store.append(writer)?.end;
        self.logged_end.store(end.get(), Ordering::Release);
        Ok(end)
    }

    /// Gets records below `end` written and returns once they are kept and applied.
    async fn finish(&self, end: PhyOffset) -> Result<(), CommitError> {
        self.store.drive();
        self.store.dispatched(end).await?;
        // The file follows within seconds.
        self.shared.wake.notify_one();
        Ok(())
    }

    fn writer(&self) -> MutexGuard<'_, Batch> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
