//! How far each delay level has been delivered: a fold over the log.
//!
//! A delivered copy carries, in the field for a half message's position, where its waiting record starts; that is
//! how the fold knows what was delivered, so that a crash right after the append delivers nothing twice. Position 0
//! is written as 1: zero means "none" there, and no record starts at 1.
//!
//! A message that was recalled has no copy: a state record names it, `phy u64, level u32`.
//!
//! `config/delayOffset.json` is Apache's file with three members of ours:
//!
//! ```text
//! { "dataVersion":{"counter":7,"stateVersion":0,"timestamp":1700000000000},
//!   "gantryDelivered":{1:4096},       position of the newest delivered record of each level
//!   "gantryRecalled":{8192:1},        position and level of recalled messages that are not passed over yet
//!   "gantryPosition":81920,           the log position up to which this holds
//!   "offsetTable":{1:3} }             first record of each level that was not delivered
//! ```
//!
//! Apache drops our members when it writes the file: then its offsets hold for the whole log so far.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::json;
use gantry_proto::names::{TopicKind, topics};
use gantry_proto::reader::Reader;
use gantry_proto::record::{HotProperties, RecordView};

use super::levels::Levels;
use super::task::Alarm;
use crate::clock::Clock;
use crate::state::{self, StateKind};
use crate::store::layout::{load_json, replace_json};
use crate::store::{ApplyError, Dispatched, Projection, Save};

/// Without deliveries the file is written when its position has fallen this far behind.
const POSITION_LAG_MAX: u64 = 16 * 1024 * 1024;
/// Later than every position: the file stands for the whole log.
const WHOLE_LOG: u64 = i64::MAX.unsigned_abs();

/// One delay level.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LevelState {
    /// First waiting record of which the log shows no delivery.
    pub(super) cursor: QueueOffset,
    /// Position of the newest waiting record whose delivery the log shows.
    pub(super) delivered: PhyOffset,
    /// Delivered or passed over, but the log does not show it yet; in order.
    pub(super) in_flight: VecDeque<Passed>,
    /// Next record to deliver; `None` before the first look.
    pub(super) next: Option<QueueOffset>,
}

/// A message that was delivered, or passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// The mark of its record.
    pub(super) mark: PhyOffset,
    /// Its number.
    pub(super) at: QueueOffset,
    /// Whether a copy will say so.
    pub(super) has_copy: bool,
}

/// A message with a delay level that was recalled, by its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recalled {
    /// The queue in which it waits.
    pub(super) queue: QueueId,
    /// Whether the log has it.
    pub(super) is_logged: bool,
}

/// All levels, by the queue in which their messages wait.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    pub(super) levels: BTreeMap<QueueId, LevelState>,
    /// What was recalled and is not passed over yet.
    pub(super) recalled: BTreeMap<PhyOffset, Recalled>,
    /// Changes with each recall.
    pub(super) recalls: u64,
    version: u64,
    dirty: bool,
    /// The log was cut below the file's position: what it says may be too much.
    pub(super) log_was_cut: bool,
    /// Earliest due time among the records that have come since the last look.
    arrived: Option<Millis>,
}

impl Cursors {
    /// Takes in one record.
    pub(super) fn apply(&mut self, view: &RecordView<'_>, hot: &HotProperties<'_>, levels: &Levels) {
        if TopicKind::of(view.topic()) == TopicKind::Schedule {
            self.levels.entry(view.queue_id()).or_default();
            let level = hot.delay_level.and_then(|asked| levels.level(asked));
            let due = view.store_at().plus(level.map_or(0, |level| levels.delay_ms(level)));
            self.arrived = Some(self.arrived.map_or(due, |earlier| earlier.min(due)));
        } else if let Some((queue, waited_at)) = delivered_from(view, hot) {
            let level = self.levels.entry(queue).or_default();
            if level.delivered < waited_at {
                level.delivered = waited_at;
                self.dirty = true;
            }
            self.settle(queue);
        } else if let Some((mark, queue)) = recalled_by(view)
            && self.levels.get(&queue).is_none_or(|level| level.delivered < mark)
        {
            self.recalled.insert(mark, Recalled { queue, is_logged: true });
            self.recalls += 1;
            self.dirty = true;
        }
    }

    /// Moves a level's cursor over what the log shows to be delivered, and over what has no copy.
    pub(super) fn settle(&mut self, queue: QueueId) {
        let Some(level) = self.levels.get_mut(&queue) else { return };
        while let Some(passed) = level.in_flight.front().copied() {
            if passed.has_copy && passed.mark > level.delivered {
                return;
            }
            level.in_flight.pop_front();
            level.cursor = level.cursor.max(passed.at + 1);
            if !passed.has_copy {
                self.recalled.remove(&passed.mark);
                self.dirty = true;
            }
        }
    }
}

/// Body of the state record that recalls the message marked `mark`.
pub(super) fn recall_body(mark: PhyOffset, queue: QueueId) -> Vec<u8> {
    let mut body = state::body_of(StateKind::Recalled);
    body.extend_from_slice(&mark.get().to_be_bytes());
    body.extend_from_slice(&(queue.get() + 1).to_be_bytes());
    body
}

/// If `view` is such a record: the mark and the queue in which the message waits.
fn recalled_by(view: &RecordView<'_>) -> Option<(PhyOffset, QueueId)> {
    if view.topic() != topics::STATE {
        return None;
    }
    let (StateKind::Recalled, payload) = state::parse(view.body())? else { return None };
    let mut reader = Reader::new(payload);
    let mark = PhyOffset::new(reader.u64("mark").ok()?);
    Some((mark, QueueId::new(reader.u32("level").ok()?.checked_sub(1)?)))
}

/// If `view` is a delivered copy: the queue in which it waited and where its waiting record starts.
fn delivered_from(view: &RecordView<'_>, hot: &HotProperties<'_>) -> Option<(QueueId, PhyOffset)> {
    let level = hot.delay_level.and_then(|level| u32::try_from(level).ok())?.checked_sub(1)?;
    let waited_at = view.prepared_offset();
    let is_copy = waited_at > PhyOffset::ZERO && hot.real_topic == Some(view.topic());
    is_copy.then_some((QueueId::new(level), waited_at))
}

/// What a delivered copy says of the record at `phy`.
pub(super) fn mark_of(phy: PhyOffset) -> PhyOffset {
    phy.max(PhyOffset::new(1))
}

/// What the deliverer and the projection share.
#[derive(Debug)]
pub(super) struct Shared {
    cursors: Mutex<Cursors>,
    pub(super) levels: Levels,
    /// How far the log has been applied.
    position: AtomicU64,
    /// Wakes the deliverer.
    pub(super) alarm: Alarm,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Cursors> {
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far the log has been applied.
    pub(super) fn position(&self) -> PhyOffset {
        PhyOffset::new(self.position.load(Ordering::SeqCst))
    }
}

/// The cursors' side towards the log.
#[derive(Debug)]
pub struct TimerProjection {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    path: PathBuf,
    /// Position in the file.
    saved: PhyOffset,
}

impl TimerProjection {
    /// Reads `delayOffset.json` in the directory `config`.
    pub(super) fn load(
        config: &Path,
        levels: Levels,
        clock: Arc<dyn Clock>,
    ) -> io::Result<(Self, Arc<Shared>)> {
        let path = config.join("delayOffset.json");
        let (cursors, position) = match load_json(&path, decode)? {
            Some((cursors, position)) => (cursors, position.unwrap_or(PhyOffset::new(WHOLE_LOG))),
            // Without the file every record counts. Nothing is delivered by a record at 0.
            None => (Cursors::default(), PhyOffset::new(1)),
        };
        let shared = Arc::new(Shared {
            cursors: Mutex::new(cursors),
            levels,
            position: AtomicU64::new(position.get()),
            alarm: Alarm::default(),
        });
        Ok((Self { shared: Arc::clone(&shared), clock, path, saved: position }, shared))
    }
}

impl Projection for TimerProjection {
    fn name(&self) -> &'static str {
        "timer"
    }

    fn position(&self) -> PhyOffset {
        self.shared.position()
    }

    fn apply(&mut self, record: &Dispatched<'_>) -> Result<(), ApplyError> {
        // Most messages were never delayed: the lock is only for those that were.
        if record.hot.delay_level.is_some_and(|level| level > 0) || record.view.topic() == topics::STATE {
            self.shared.lock().apply(&record.view, &record.hot, &self.shared.levels);
        }
        let end = record.view.phy_offset() + u64::from(record.view.total_size());
        self.shared.position.store(end.get(), Ordering::SeqCst);
        Ok(())
    }

    fn save(&mut self) -> Option<Save> {
        let position = self.shared.position();
        let bytes = {
            let mut cursors = self.shared.lock();
            if !cursors.dirty && position.since(self.saved) < POSITION_LAG_MAX && self.saved <= position {
                return None;
            }
            cursors.dirty = false;
            cursors.version += 1;
            encode(&cursors, position, self.clock.now())
        };
        self.saved = position;
        let (shared, path) = (Arc::clone(&self.shared), self.path.clone());
        Some(Box::new(move || replace_json(&path, &bytes).inspect_err(|_| shared.lock().dirty = true)))
    }

    fn truncate(&mut self, end: PhyOffset) -> io::Result<()> {
        let mut cursors = self.shared.lock();
        cursors.log_was_cut = self.shared.position() != PhyOffset::new(WHOLE_LOG);
        cursors.dirty = true;
        self.shared.position.store(end.get(), Ordering::SeqCst);
        Ok(())
    }

    fn finish_batch(&mut self) {
        let arrived = self.shared.lock().arrived.take();
        if let Some(due) = arrived {
            self.shared.alarm.due(due);
        }
    }
}

fn decode(bytes: &[u8]) -> Option<(Cursors, Option<PhyOffset>)> {
    let file = json::parse(bytes).ok()?;
    let mut cursors = Cursors {
        version: file.pointer("/dataVersion/counter").and_then(serde_json::Value::as_u64).unwrap_or(0),
        ..Cursors::default()
    };
    let numbers = |member: &str| {
        let entries = file.get(member).and_then(serde_json::Value::as_object).into_iter().flatten();
        let number = |(level, value): (&String, &serde_json::Value)| {
            let queue = level.parse::<u32>().ok()?.checked_sub(1)?;
            Some((QueueId::new(queue), u64::try_from(value.as_i64()?).ok()?))
        };
        entries.filter_map(number).collect::<Vec<_>>()
    };
    for (queue, cursor) in numbers("offsetTable") {
        cursors.levels.entry(queue).or_default().cursor = QueueOffset::new(cursor);
    }
    for (queue, delivered) in numbers("gantryDelivered") {
        cursors.levels.entry(queue).or_default().delivered = PhyOffset::new(delivered);
    }
    let entries = file.get("gantryRecalled").and_then(serde_json::Value::as_object).into_iter().flatten();
    let recalled = entries.filter_map(|(mark, level)| {
        let queue = QueueId::new(u32::try_from(level.as_u64()?).ok()?.checked_sub(1)?);
        Some((PhyOffset::new(mark.parse().ok()?), Recalled { queue, is_logged: true }))
    });
    cursors.recalled = recalled.collect();
    let position = file.get("gantryPosition").and_then(serde_json::Value::as_u64).map(PhyOffset::new);
    if position.is_none() {
        // Apache has delivered without telling: only its offsets count.
        cursors.levels.values_mut().for_each(|level| level.delivered = PhyOffset::ZERO);
    }
    Some((cursors, position))
}

fn encode(cursors: &Cursors, position: PhyOffset, now: Millis) -> Vec<u8> {
    let numbers = |value: &dyn Fn(&LevelState) -> u64| {
        let mut text = String::new();
        for (queue, level) in &cursors.levels {
            let comma = if text.is_empty() { "" } else { "," };
            // Writing into a string cannot fail.
            let _ = write!(text, "{comma}\n\t\t{}:{}", u64::from(queue.get()) + 1, value(level));
        }
        text
    };
    let (offsets, delivered) =
        (numbers(&|level| level.cursor.get()), numbers(&|level| level.delivered.get()));
    let mut recalled = String::new();
    for (mark, message) in cursors.recalled.iter().filter(|(_, message)| message.is_logged) {
        let comma = if recalled.is_empty() { "" } else { "," };
        let _ = write!(recalled, "{comma}\n\t\t{mark}:{}", u64::from(message.queue.get()) + 1);
    }
    let version =
        format!("\n\t\t\"counter\":{},\n\t\t\"stateVersion\":0,\n\t\t\"timestamp\":{now}", cursors.version);
    format!(
        "{{\n\t\"dataVersion\":{{{version}\n\t}},\n\t\"gantryDelivered\":{{{delivered}\n\t}},\n\t\"gantryRecalled\":{{{recalled}\n\t}},\n\t\"gantryPosition\":{position},\n\t\"offsetTable\":{{{offsets}\n\t}}\n}}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn apaches_file_is_read() {
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/store/config/delayOffset.json");
        let (cursors, position) = decode(&std::fs::read(sample).expect("the sample")).expect("its form");
        let read: Vec<_> =
            cursors.levels.iter().map(|(queue, level)| (queue.get(), level.cursor.get())).collect();
        assert_eq!(read, [(0, 3), (2, 1), (17, 0)]);
        assert_eq!((position, cursors.version), (None, 22));
    }

    proptest! {
        #[test]
        fn the_file_round_trips(
            levels in prop::collection::btree_map(0_u32..64, (0_u64..1 << 60, 0_u64..1 << 60), 0..20),
            recalled in prop::collection::btree_map(0_u64..1 << 60, 0_u32..64, 0..20),
            position in 0_u64..1 << 60,
        ) {
            let state = |(cursor, delivered)| LevelState {
                cursor: QueueOffset::new(cursor),
                delivered: PhyOffset::new(delivered),
                ..LevelState::default()
            };
            let levels = levels.into_iter().map(|(queue, at)| (QueueId::new(queue), state(at))).collect();
            let recalled: BTreeMap<_, _> = recalled
                .into_iter()
                .map(|(mark, queue)| {
                    (PhyOffset::new(mark), Recalled { queue: QueueId::new(queue), is_logged: true })
                })
                .collect();
            let unlogged = Recalled { queue: QueueId::ZERO, is_logged: false };
            let mut cursors = Cursors { levels, recalled: recalled.clone(), version: 9, ..Cursors::default() };
            cursors.recalled.insert(PhyOffset::new(1 << 61), unlogged);
            let bytes = encode(&cursors, PhyOffset::new(position), Millis::new(5));
            let (read, at) = decode(&bytes).expect("our own form");
            prop_assert_eq!(&read.levels, &cursors.levels);
            prop_assert_eq!(&read.recalled, &recalled);
            prop_assert_eq!((at, read.version), (Some(PhyOffset::new(position)), 9));
        }

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }
}
