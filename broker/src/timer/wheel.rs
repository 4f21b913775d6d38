//! Timer messages as a fold over the log: what waits goes into the time index (`index`), and what is
//! done comes out of it.
//!
//! A timer is a record of `rmq_sys_wheel_timer`, with its due time, real topic and queue as properties. It is done by
//! any of these, which name it in the field for a half message's position (position 0 is written as 1: zero means
//! "none" there):
//!
//! - a delivered copy, in the real topic or, when that cannot be, in a dead-letter topic;
//! - a record of the same topic with `TIMER_DEL_UNIQKEY`: it was recalled, or can no longer be read;
//! - a record of the same topic with `TIMER_ROLL_TIMES`: the same timer, stored anew before its log file goes.
//!
//! So a crash right after the append delivers nothing twice. Apache writes the same three and leaves the position out:
//! then due time and id say which timer is meant.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use gantry_proto::ids::{Millis, PhyOffset};
use gantry_proto::names::topics;
use gantry_proto::record::{HotProperties, RecordView, Text, TransactionFlag};

use super::cursors::mark_of;
use super::due::{due_of, key_of};
use super::index::{Bounds, Place, TimeIndex};
use super::task::Alarm;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::store::disk::Disk;
use crate::store::{ApplyError, Dispatched, Projection, Save};

/// The index is saved when its position has fallen so far behind.
const POSITION_LAG_MAX: u64 = 16 * 1024 * 1024;
/// Or when so many facts are new.
const UNSAVED_MAX: usize = 16 * 1024;
/// Or when something is new and the last save was so long ago, in milliseconds.
const SAVE_EVERY_MS: u64 = 60_000;

/// What the deliverer and the projection share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) index: TimeIndex,
    /// How far the log has been applied.
    position: AtomicU64,
    /// The position that a start would find.
    saved: AtomicU64,
    /// Wakes the deliverer.
    pub(super) alarm: Alarm,
    /// Records come from clients, not from recovery.
    pub(super) is_live: AtomicBool,
    /// The log was cut below what the index has.
    pub(super) log_was_cut: AtomicBool,
    metrics: Arc<Metrics>,
}

impl Shared {
    /// How far the log has been applied.
    pub(super) fn position(&self) -> PhyOffset {
        PhyOffset::new(self.position.load(Ordering::SeqCst))
    }

    pub(super) fn set_position(&self, at: PhyOffset) {
        self.position.store(at.get(), Ordering::SeqCst);
    }

    /// Forgets everything: the index is to be made from the whole log.
    pub(super) fn forget(&self) -> io::Result<()> {
        self.saved.store(0, Ordering::SeqCst);
        self.index.reset()
    }

    /// No start needs log before this.
    pub(super) fn needed_from(&self) -> PhyOffset {
        let saved = self.saved.load(Ordering::SeqCst);
        let from = if saved == 0 { self.position() } else { PhyOffset::new(saved) };
        self.index.oldest().map_or(from, |oldest| oldest.min(from))
    }

    /// Takes in one record; when the timer in it is due, if it is one. `now`: for how late a delivery is.
    pub(super) fn apply(
        &self,
        view: &RecordView<'_>,
        hot: &HotProperties<'_>,
        now: Millis,
    ) -> Result<Option<Millis>, ApplyError> {
        let Some(due) = due_of(hot) else { return Ok(None) };
        if view.topic() == topics::TIMER {
            return self.apply_waiting(view, hot, due);
        }
        let is_copy = hot.real_topic == Some(view.topic()) && hot.delay_level.is_none_or(|level| level <= 0);
        if !is_copy {
            return Ok(None);
        }
        let is_closed = match view.prepared_offset() {
            PhyOffset::ZERO if view.properties().timer_dequeued_at().is_some() => self.close_by_key(
                due,
                key_of(view.topic(), hot.uniq_key.map_or("", Text::as_str)),
                view.phy_offset(),
            )?,
            PhyOffset::ZERO => false,
            waited_at => self.close(due, waited_at, view.phy_offset())?,
        };
        if is_closed && self.is_live.load(Ordering::Relaxed) {
            self.metrics.timers_delivered.bump();
            self.metrics.timer_lateness.record(now.since(due));
        }
        Ok(None)
    }

    /// A record of the timer topic.
    fn apply_waiting(
        &self,
        view: &RecordView<'_>,
        hot: &HotProperties<'_>,
        due: Millis,
    ) -> Result<Option<Millis>, ApplyError> {
        let properties = view.properties();
        let (at, named) = (view.phy_offset(), view.prepared_offset());
        let topic = hot.real_topic.unwrap_or_default();
        if let Some(recalled) = properties.timer_recalls() {
            if named > PhyOffset::ZERO {
                self.close(due, named, at)?;
            } else {
                // Apache may put the topic before the id.
                let bare = recalled.strip_prefix(topic).and_then(|rest| rest.strip_prefix(['+', '_']));
                let id = bare.unwrap_or(recalled);
                self.close_by_key(due, key_of(topic, id), at)?;
            }
            return Ok(None);
        }
        if !matches!(view.sys_flag().transaction(), TransactionFlag::None | TransactionFlag::Commit) {
            return Ok(None);
        }
        let key = key_of(topic, hot.uniq_key.map_or("", Text::as_str));
        if properties.timer_roll_times().unwrap_or(0) > 0 {
            if named > PhyOffset::ZERO {
                self.close(due, named, at)?;
            } else {
                self.close_by_key(due, key, at)?;
            }
        }
        self.index.add(Place { due, phy: at }, key, due.since(view.store_at()));
        if self.is_live.load(Ordering::Relaxed) {
            self.metrics.timers_taken.bump();
        }
        Ok(Some(due))
    }

    /// The record at `at` says that the timer marked `waited_at` is done.
    fn close(&self, due: Millis, waited_at: PhyOffset, at: PhyOffset) -> io::Result<bool> {
        let closed = self.index.close(Place { due, phy: waited_at }, at)?;
        if closed || waited_at != mark_of(PhyOffset::ZERO) {
            return Ok(closed);
        }
        self.index.close(Place { due, phy: PhyOffset::ZERO }, at)
    }

    fn close_by_key(&self, due: Millis, key: u32, at: PhyOffset) -> io::Result<bool> {
        let mut closed = false;
        for place in self.index.find_by_key(due, key)? {
            closed |= self.index.close(place, at)?;
        }
        Ok(closed)
    }
}

/// The timers' side towards the log.
#[derive(Debug)]
pub struct WheelProjection {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    /// Earliest due time among the timers that have come since the last look.
    arrived: Option<Millis>,
    /// When the index was saved last.
    saved_at: Millis,
    /// Something was applied since the last `finish_batch`.
    touched: bool,
}

impl WheelProjection {
    /// Opens the index of the store in `store`.
    pub(super) fn load(
        store: &Path,
        disk: Arc<dyn Disk>,
        bounds: Bounds,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> io::Result<(Self, Arc<Shared>)> {
        let (index, saved) = TimeIndex::open(disk, &store.join("timers"), bounds)?;
        let position = saved.unwrap_or_else(|| {
            // Without the index every record counts; the checkpoint knows where to begin when no timer was ever listed.
            let listed = store.join("consumequeue").join(topics::TIMER).exists();
            if listed { PhyOffset::new(1) } else { PhyOffset::ZERO }
        });
        let shared = Arc::new(Shared {
            index,
            position: AtomicU64::new(position.get()),
            saved: AtomicU64::new(saved.map_or(0, PhyOffset::get)),
            alarm: Alarm::default(),
            is_live: AtomicBool::new(false),
            log_was_cut: AtomicBool::new(false),
            metrics,
        });
        let saved_at = clock.now();
        let projection = Self { shared: Arc::clone(&shared), clock, arrived: None, saved_at, touched: true };
        Ok((projection, shared))
    }
}

impl Projection for WheelProjection {
    fn name(&self) -> &'static str {
        "timers"
    }

    fn position(&self) -> PhyOffset {
        self.shared.position()
    }

    fn apply(&mut self, record: &Dispatched<'_>) -> Result<(), ApplyError> {
        let end = record.view.phy_offset() + u64::from(record.view.total_size());
        // Most messages have nothing to do with timers.
        let applied = if record.hot.timer_out_ms.is_some() {
            self.touched = true;
            self.shared.apply(&record.view, &record.hot, self.clock.now())
        } else {
            Ok(None)
        };
        self.shared.set_position(end);
        match applied {
            Ok(None) => Ok(()),
            Ok(Some(due)) => {
                self.arrived = Some(self.arrived.map_or(due, |earliest| earliest.min(due)));
                Ok(())
            }
            Err(error) => {
                self.shared.index.note_damage();
                Err(error)
            }
        }
    }

    fn save(&mut self) -> Option<Save> {
        let (position, unsaved) = (self.shared.position(), self.shared.index.unsaved());
        let saved = self.shared.saved.load(Ordering::SeqCst);
        let now = self.clock.now();
        let is_due = if saved == 0 {
            // A start without the file reads the whole log, once queues say that there are timers.
            unsaved > 0
        } else {
            unsaved >= UNSAVED_MAX
                || position.get().saturating_sub(saved) >= POSITION_LAG_MAX
                || unsaved > 0 && (now.since(self.saved_at) >= SAVE_EVERY_MS || now < self.saved_at)
        };
        if !is_due {
            return None;
        }
        self.saved_at = now;
        let capture = self.shared.index.capture(position);
        let shared = Arc::clone(&self.shared);
        Some(Box::new(move || {
            shared.index.save(&capture)?;
            if !shared.index.is_damaged() {
                shared.saved.fetch_max(position.get(), Ordering::SeqCst);
            }
            Ok(())
        }))
    }

    fn truncate(&mut self, end: PhyOffset) -> io::Result<()> {
        self.shared.log_was_cut.store(true, Ordering::SeqCst);
        self.shared.set_position(end);
        Ok(())
    }

    fn finish_batch(&mut self) {
        if let Some(due) = self.arrived.take() {
            self.shared.alarm.due(due);
        }
        if std::mem::take(&mut self.touched) {
            self.shared.metrics.timers_pending.set(self.shared.index.pending());
        }
    }
}
