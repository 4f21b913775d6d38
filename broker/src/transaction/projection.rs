//! Feeds the table of open transactions from the log, and remembers it between starts.
//!
//! The snapshot `config/gantryTransactions.json` says where the log stood and which halves were open then, so
//! a start costs as much as there are open halves, not as much as there is log:
//!
//! ```text
//! { "position": 123456,
//!   "halves": [[phy, half queue offset, phy of the transaction's first half,
//!                UNIQ_KEY, CRC-32 of the body, checks, time of the last], …],
//!   "needs_op": [half queue offset, …],
//!   "half_max": 17, "op": 12, "op_max": 15,    ends of the two queues, first op record that may count
//!   "redriven": [[phy of the parked copy, phy of the new half], …] }
//! ```
//!
//! It is replaced as a whole. Without it (first start, store of an Apache broker), or when the log was
//! cut below its position, the table is made from the log, starting at the first half that is not done.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicKind, TopicName};
use gantry_proto::reader::Reader;
use gantry_proto::record::{HotProperties, RecordView, Text, TransactionFlag};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::rules::Rules;
use super::table::{OpenHalf, Remains, Remembered, Table};
use crate::metrics::Metrics;
use crate::state::{self, StateKind};
use crate::store::layout::{load_json, replace_json};
use crate::store::{ApplyError, Dispatched, Projection, Save};

/// Tag of an op record: the halves that its body names are done.
pub(super) const OP_TAG: &str = "d";
/// Without changes the snapshot is written when its position has fallen this far behind.
const POSITION_LAG_MAX: u64 = 16 * 1024 * 1024;
/// Re-driven copies that are remembered; beyond it the oldest are forgotten.
const REDRIVEN_MAX: usize = 10_000;

/// What the services and the projection share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<SharedState>,
    /// Wakes the check task when a deadline comes before the one it sleeps for.
    pub(super) wake: Notify,
    /// Until when the check task sleeps.
    pub(super) sleeps_until: AtomicI64,
    /// How far the log has been applied; [`NO_BASE`] while the halves from before are unknown.
    position: AtomicU64,
}

/// Later than every position: no record is applied, the log is read at the start instead.
const NO_BASE: u64 = u64::MAX;

/// Guarded by one lock: the table, and what goes with it.
#[derive(Debug)]
pub(super) struct SharedState {
    pub(super) table: Table,
    /// Parked copies that were put back, and the new half of each.
    pub(super) redriven: BTreeMap<PhyOffset, PhyOffset>,
    /// The log was cut below the snapshot: the group's offsets may say too much as well.
    pub(super) log_was_cut: bool,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, SharedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the log has been applied.
    pub(super) fn position(&self) -> PhyOffset {
        PhyOffset::new(self.position.load(Ordering::SeqCst))
    }

    /// Whether the halves from before [`Shared::position`] are known.
    pub(super) fn has_base(&self) -> bool {
        self.position.load(Ordering::SeqCst) != NO_BASE
    }

    /// The table now knows everything below `end`.
    pub(super) fn set_position(&self, end: PhyOffset) {
        self.position.store(end.get(), Ordering::SeqCst);
    }

    /// Wakes the check task if it would sleep beyond the next deadline.
    pub(super) fn wake_if_earlier(&self, next: Option<Millis>) {
        if next.is_some_and(|next| next.get() < self.sleeps_until.load(Ordering::SeqCst)) {
            self.wake.notify_one();
        }
    }
}

impl SharedState {
    pub(super) fn note_redriven(&mut self, parked: PhyOffset, half: PhyOffset) {
        self.redriven.insert(parked, half);
        while self.redriven.len() > REDRIVEN_MAX {
            self.redriven.pop_first();
        }
    }

    /// Takes in one record.
    pub(super) fn apply(&mut self, view: &RecordView<'_>, hot: &HotProperties<'_>) -> Result<(), ApplyError> {
        let malformed = |what: &str| ApplyError::Malformed { at: view.phy_offset(), what: what.to_owned() };
        match TopicKind::of(view.topic()) {
            TopicKind::Half if view.queue_id() == QueueId::ZERO => {
                let half = open_half(view, hot)
                    .ok_or_else(|| malformed("a half message names its UNIQ_KEY and topic"))?;
                if view.prepared_offset() > PhyOffset::ZERO {
                    self.note_redriven(view.prepared_offset(), half.at);
                }
                self.table.open(half);
            }
            TopicKind::Op if hot.tags == Some(OP_TAG.into()) => {
                self.table.close_by_op(view.queue_offset(), op_offsets(view.body()));
            }
            TopicKind::CheckMaxTime => {
                let key = hot.uniq_key.map(Text::as_str).unwrap_or_default();
                self.table.close_by_parked(view.phy_offset(), view.prepared_offset(), key, view.body_crc());
            }
            TopicKind::State => {
                if let Some((StateKind::Checks, payload)) = state::parse(view.body()) {
                    for (at, checks) in parse_checks(payload) {
                        self.table.note_checks(at, checks, view.store_at());
                    }
                }
            }
            _ if view.sys_flag().transaction() == TransactionFlag::Commit => {
                let key = hot.uniq_key.map(Text::as_str).unwrap_or_default();
                self.table.close_by_copy(view.phy_offset(), view.prepared_offset(), key, view.body_crc());
            }
            _ => {}
        }
        Ok(())
    }
}

/// Whether a record may mean something to the table: told without its lock.
fn concerns(view: &RecordView<'_>) -> bool {
    match TopicKind::of(view.topic()) {
        TopicKind::Half | TopicKind::Op | TopicKind::CheckMaxTime | TopicKind::State => true,
        _ => view.sys_flag().transaction() == TransactionFlag::Commit,
    }
}

/// The half message in a record of the half topic; `None` when it lacks what makes it one.
pub(super) fn open_half(view: &RecordView<'_>, hot: &HotProperties<'_>) -> Option<OpenHalf> {
    let properties = view.properties();
    Some(OpenHalf {
        at: view.phy_offset(),
        queue_offset: view.queue_offset(),
        size: view.total_size(),
        first: view.phy_offset(),
        key: Arc::from(hot.uniq_key?.as_str()),
        group: GroupName::internal(hot.producer_group.unwrap_or_default()),
        topic: TopicName::storable(hot.real_topic?).ok()?,
        body_crc: view.body_crc(),
        born: view.born_at(),
        stored: view.store_at(),
        immunity_ms: properties.check_immunity_secs().map(|secs| secs.saturating_mul(1000)),
        checks: properties.check_times().unwrap_or(0),
        checked: Millis::ZERO,
    })
}

/// The half queue offsets in an op record's body: decimal, each followed by `,`.
pub(super) fn op_offsets(body: &[u8]) -> impl Iterator<Item = QueueOffset> + '_ {
    body.split(|byte| *byte == b',')
        .filter_map(|text| std::str::from_utf8(text).ok()?.trim().parse().ok().map(QueueOffset::new))
}

/// Body of a state record with the check counts of these halves: `phy u64, checks u32` each.
pub(super) fn checks_body(checks: &[(PhyOffset, u32)]) -> Vec<u8> {
    let mut body = state::body_of(StateKind::Checks);
    for (at, count) in checks {
        body.extend_from_slice(&at.get().to_be_bytes());
        body.extend_from_slice(&count.to_be_bytes());
    }
    body
}

fn parse_checks(payload: &[u8]) -> impl Iterator<Item = (PhyOffset, u32)> + '_ {
    let mut reader = Reader::new(payload);
    std::iter::from_fn(move || {
        let at = reader.u64("half").ok()?;
        Some((PhyOffset::new(at), reader.u32("checks").ok()?))
    })
}

/// The table's side towards the log.
#[derive(Debug)]
pub struct TransactionProjection {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
    path: PathBuf,
    /// Something was applied since the last `finish_batch`.
    touched: bool,
    /// The table has changed since the snapshot was written.
    dirty: Arc<AtomicBool>,
    /// Position in the snapshot.
    saved: PhyOffset,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Snapshot {
    position: u64,
    /// Position, number, first position, key, CRC of the body, checks, time of the last check.
    halves: Vec<(u64, u64, u64, String, u32, u32, i64)>,
    needs_op: Vec<u64>,
    half_max: u64,
    op: u64,
    op_max: u64,
    redriven: Vec<(u64, u64)>,
}

impl Snapshot {
    fn new(position: PhyOffset, remains: &Remains, redriven: &BTreeMap<PhyOffset, PhyOffset>) -> Self {
        let plain = |half: &Remembered| {
            let (at, queue_offset, first) = (half.at.get(), half.queue_offset.get(), half.first.get());
            let (key, body_crc) = (half.key.to_string(), half.body_crc);
            (at, queue_offset, first, key, body_crc, half.checks, half.checked.get())
        };
        Self {
            position: position.get(),
            halves: remains.halves.iter().map(plain).collect(),
            needs_op: remains.needs_op.iter().map(|half| half.get()).collect(),
            half_max: remains.half_max.get(),
            op: remains.op.get(),
            op_max: remains.op_max.get(),
            // A half that is only staged may never be written; once it is, its record says so.
            redriven: redriven
                .iter()
                .filter(|(_, half)| **half < position)
                .map(|(parked, half)| (parked.get(), half.get()))
                .collect(),
        }
    }

    fn remains(&self) -> Remains {
        let typed = |(at, queue_offset, first, key, body_crc, checks, checked): &_| Remembered {
            at: PhyOffset::new(*at),
            queue_offset: QueueOffset::new(*queue_offset),
            first: PhyOffset::new(*first),
            key: Arc::from(String::as_str(key)),
            body_crc: *body_crc,
            checks: *checks,
            checked: Millis::new(*checked),
        };
        Remains {
            halves: self.halves.iter().map(typed).collect(),
            needs_op: self.needs_op.iter().copied().map(QueueOffset::new).collect(),
            half_max: QueueOffset::new(self.half_max),
            op: QueueOffset::new(self.op),
            op_max: QueueOffset::new(self.op_max),
        }
    }
}

impl TransactionProjection {
    /// Reads the snapshot in the directory `config`, if there is one.
    pub(super) fn load(
        config: &Path,
        rules: Rules,
        metrics: Arc<Metrics>,
    ) -> io::Result<(Self, Arc<Shared>)> {
        let path = config.join("gantryTransactions.json");
        let snapshot = match load_json(&path, |bytes| serde_json::from_slice::<Snapshot>(bytes).ok()) {
            Ok(snapshot) => snapshot,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%error, "the transactions' snapshot is damaged; they are read from the log instead");
                None
            }
            Err(error) => return Err(error),
        };
        let position = snapshot.as_ref().map_or(NO_BASE, |snapshot| snapshot.position);
        let saved = PhyOffset::new(snapshot.as_ref().map_or(0, |snapshot| snapshot.position));
        let dirty = Arc::new(AtomicBool::new(snapshot.is_none()));
        let snapshot = snapshot.unwrap_or_default();
        let redriven = snapshot.redriven.iter().map(|&(from, to)| (PhyOffset::new(from), PhyOffset::new(to)));
        let state = SharedState {
            table: Table::with_snapshot(rules, &snapshot.remains()),
            redriven: redriven.collect(),
            log_was_cut: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            wake: Notify::new(),
            sleeps_until: AtomicI64::new(i64::MAX),
            position: AtomicU64::new(position),
        });
        Ok((Self { shared: Arc::clone(&shared), metrics, path, touched: false, dirty, saved }, shared))
    }
}

impl Projection for TransactionProjection {
    fn name(&self) -> &'static str {
        "transactions"
    }

    fn position(&self) -> PhyOffset {
        self.shared.position()
    }

    fn apply(&mut self, record: &Dispatched<'_>) -> Result<(), ApplyError> {
        let applied = if concerns(&record.view) {
            self.touched = true;
            self.dirty.store(true, Ordering::SeqCst);
            self.shared.lock().apply(&record.view, &record.hot)
        } else {
            Ok(())
        };
        // Last: who sees the position finds the record's effect in the table.
        self.shared.set_position(record.view.phy_offset() + u64::from(record.view.total_size()));
        applied
    }

    fn save(&mut self) -> Option<Save> {
        let position = self.shared.position();
        let is_dirty = self.dirty.load(Ordering::SeqCst);
        if !self.shared.has_base() || !is_dirty && position.since(self.saved) < POSITION_LAG_MAX {
            return None; // nothing new, or nothing to say before the log has been read
        }
        let snapshot = {
            let mut state = self.shared.lock();
            let remains = state.table.remains();
            Snapshot::new(position, &remains, &state.redriven)
        };
        self.dirty.store(false, Ordering::SeqCst);
        self.saved = position;
        let (dirty, path) = (Arc::clone(&self.dirty), self.path.clone());
        Some(Box::new(move || {
            let bytes = serde_json::to_vec(&snapshot).map_err(io::Error::other);
            let written = bytes.and_then(|bytes| replace_json(&path, &bytes));
            written.inspect_err(|_| dirty.store(true, Ordering::SeqCst))
        }))
    }

    fn truncate(&mut self, end: PhyOffset) -> io::Result<()> {
        if self.shared.has_base() && self.shared.position() > end {
            // What closed since `end` is no longer in the log, but the snapshot has forgotten it.
            let mut state = self.shared.lock();
            let rules = *state.table.rules();
            *state = SharedState { table: Table::new(rules), redriven: BTreeMap::new(), log_was_cut: true };
            self.shared.position.store(NO_BASE, Ordering::SeqCst);
            self.dirty.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    fn finish_batch(&mut self) {
        if std::mem::take(&mut self.touched) {
            let (next, open) = {
                let mut state = self.shared.lock();
                (state.table.next_due(), state.table.len())
            };
            self.metrics.open_halves.set(open as u64);
            self.shared.wake_if_earlier(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_snapshot_does_not_know_of_halves_that_are_only_staged() {
        let redriven = [(10, 100), (20, 200)].map(|(from, to)| (PhyOffset::new(from), PhyOffset::new(to)));
        let snapshot = Snapshot::new(PhyOffset::new(200), &Remains::default(), &BTreeMap::from(redriven));
        assert_eq!(snapshot.redriven, [(10, 100)]);
    }

    #[test]
    fn an_op_body_lists_queue_offsets() {
        let offsets: Vec<_> = op_offsets(b"0,1,17,x,-3,").map(QueueOffset::get).collect();
        assert_eq!(offsets, [0, 1, 17]);
    }

    proptest! {
        #[test]
        fn check_counts_survive(checks in prop::collection::vec((any::<u64>(), any::<u32>()), 0..20)) {
            let checks: Vec<_> = checks.into_iter().map(|(at, n)| (PhyOffset::new(at), n)).collect();
            let body = checks_body(&checks);
            let (kind, payload) = state::parse(&body).expect("a kind that we know");
            prop_assert_eq!(kind, StateKind::Checks);
            prop_assert_eq!(parse_checks(payload).collect::<Vec<_>>(), checks);
        }

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = op_offsets(&bytes).count();
            let _ = parse_checks(&bytes).count();
        }
    }
}
