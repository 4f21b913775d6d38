//! Feeds the table of messages in flight from the log, and remembers it between starts.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_proto::ids::PhyOffset;
use gantry_proto::names::topics;
use tokio::sync::Notify;

use super::table::Table;
use super::{record, snapshot};
use crate::deliver::polls::{ANY_QUEUE, Polls};
use crate::groups::offsets::Key;
use crate::metrics::Metrics;
use crate::state::{self, StateKind};
use crate::store::layout::{load_json, replace_json};
use crate::store::{ApplyError, Dispatched, Projection, Save};

/// Without changes the snapshot is written when its position has fallen this far behind.
const POSITION_LAG_MAX: u64 = 16 * 1024 * 1024;

/// What the service and the projection share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Guards the table. Held for map operations only.
    table: Mutex<Table>,
    /// First byte of the log that is not applied; never ahead of the table.
    position: AtomicU64,
    /// Wakes the task that looks after leases and offsets.
    pub(super) wake: Notify,
    /// Counts what may let a pop find something beside new messages.
    pub(super) stirs: AtomicU64,
}

impl Shared {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A queue may have something for a pop that found nothing: one that waits looks again.
    pub(super) fn stir(&self, polls: &Polls, key: &Key) {
        self.stirs.fetch_add(1, Ordering::SeqCst);
        for queue in [key.queue, ANY_QUEUE] {
            polls.pass_on(&(key.topic.clone(), queue), &key.group);
        }
    }

    /// How far the log has been applied.
    pub(super) fn position(&self) -> PhyOffset {
        PhyOffset::new(self.position.load(Ordering::Acquire))
    }
}

/// The table's side towards the log.
#[derive(Debug)]
pub struct PopProjection {
    shared: Arc<Shared>,
    polls: Arc<Polls>,
    metrics: Arc<Metrics>,
    path: PathBuf,
    /// Something was applied since the last `finish_batch`.
    touched: bool,
    /// The table has changed since the snapshot was written.
    dirty: Arc<AtomicBool>,
    /// Position in the snapshot.
    saved: PhyOffset,
}

impl PopProjection {
    /// Reads the snapshot in the directory `config`, if there is one.
    pub(super) fn load(
        config: &Path,
        polls: Arc<Polls>,
        metrics: Arc<Metrics>,
    ) -> io::Result<(Self, Arc<Shared>)> {
        let path = config.join("gantryPop.json");
        let (position, kept) = match load_json(&path, snapshot::decode) {
            Ok(Some(snapshot)) => snapshot,
            // Nobody has popped yet: there is nothing before the checkpoint.
            Ok(None) => (PhyOffset::ZERO, Vec::new()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%error, "the snapshot of popped messages is damaged; they are read from the log instead");
                (PhyOffset::new(1), Vec::new())
            }
            Err(error) => return Err(error),
        };
        let shared = Arc::new(Shared {
            table: Mutex::new(Table::restore(kept)),
            position: AtomicU64::new(position.get()),
            wake: Notify::new(),
            stirs: AtomicU64::new(0),
        });
        let dirty = Arc::default();
        let projection = Self {
            shared: Arc::clone(&shared),
            polls,
            metrics,
            path,
            touched: false,
            dirty,
            saved: position,
        };
        Ok((projection, shared))
    }
}

impl Projection for PopProjection {
    fn name(&self) -> &'static str {
        "pop"
    }

    fn position(&self) -> PhyOffset {
        self.shared.position()
    }

    fn apply(&mut self, record: &Dispatched<'_>) -> Result<(), ApplyError> {
        let at = record.view.phy_offset();
        let mut result = Ok(());
        if record.view.topic() == topics::STATE
            && let Some((StateKind::Pop, payload)) = state::parse(record.view.body())
        {
            match record::decode(payload) {
                Ok(changes) => {
                    let mut table = self.shared.table();
                    for change in &changes {
                        table.apply(change);
                    }
                    self.touched = true;
                    self.dirty.store(true, Ordering::SeqCst);
                }
                Err(error) => result = Err(ApplyError::Malformed { at, what: error.to_string() }),
            }
        }
        // Last: who sees the position finds the record's effect in the table.
        let end = at + u64::from(record.view.total_size());
        self.shared.position.store(end.get(), Ordering::Release);
        result
    }

    fn save(&mut self) -> Option<Save> {
        let position = self.shared.position();
        let is_dirty = self.dirty.load(Ordering::SeqCst);
        // Without a file, or with one that is far behind, a start would read more than it must.
        let lags = self.saved > PhyOffset::ZERO && position.since(self.saved) >= POSITION_LAG_MAX;
        if !is_dirty && !lags {
            return None;
        }
        let kept = self.shared.table().kept();
        self.dirty.store(false, Ordering::SeqCst);
        self.saved = position;
        let (dirty, path) = (Arc::clone(&self.dirty), self.path.clone());
        Some(Box::new(move || {
            replace_json(&path, &snapshot::encode(position, &kept))
                .inspect_err(|_| dirty.store(true, Ordering::SeqCst))
        }))
    }

    fn truncate(&mut self, end: PhyOffset) -> io::Result<()> {
        // What was cut off cannot be told from the rest here; when the queues are known, the service forgets what
        // lies beyond their ends.
        self.shared.position.store(end.get(), Ordering::Release);
        self.dirty.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn finish_batch(&mut self) {
        if !std::mem::take(&mut self.touched) {
            return;
        }
        let (freed, in_flight) = {
            let mut table = self.shared.table();
            (table.take_freed(), table.in_flight())
        };
        self.metrics.popped_in_flight.set(in_flight as u64);
        for key in &freed {
            self.shared.stir(&self.polls, key);
        }
        self.shared.wake.notify_one();
    }
}
