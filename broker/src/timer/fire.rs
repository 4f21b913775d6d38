//! Delivers timer messages when they are due, and keeps the log from being held by those that are due late.
//!
//! One task: it sleeps until the first timer near is due, or until more are to be brought near, and is woken when an
//! earlier one comes. What is due is stored again under its real topic and queue, many messages in one append. A copy
//! that could not be stored is tried again.
//!
//! A log file that retention would remove, were it not for timers in it, is given free: its pending timers are stored
//! anew at the end of the log (*rolled*), a few at a time. So a timer of 40 days costs the log as much as a message that
//! is sent again each time the retention time is over.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_proto::ids::{Millis, PhyOffset, QueueId};
use gantry_proto::names::{TopicName, topics};
use gantry_proto::record::{PropertiesBuf, RecordDraft, RecordView, keys};
use tokio_util::sync::CancellationToken;

use super::aside::Aside;
use super::copy::{self, DeliverError};
use super::cursors::mark_of;
use super::due::due_of;
use super::index::{Bounds, Place, Standing};
use super::recall::push_end;
use super::task::{self, Alarm, NextRound, Rounds};
use super::wheel::{Shared, WheelProjection};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::store::disk::RealDisk;
use crate::store::replay::Replay;
use crate::store::retain::Hold;
use crate::store::{AppendError, Batch, LogSlice, Queue, ReadError, Store};

/// Messages delivered in one append.
const RUN_MESSAGES_MAX: usize = 256;
/// Bytes delivered in one append, about.
const RUN_BYTES_MAX: usize = 256 * 1024;
/// Appends in one round; then others have their turn, a stop among them.
const RUNS_MAX: usize = 64;
/// Deliveries that the log does not show yet; more wait for it.
const TAKEN_MAX: usize = 8192;
/// Timers rolled in one append, and the time between two, in milliseconds.
const ROLL_RUN: usize = 256;
pub(super) const ROLL_EVERY_MS: u64 = 50;
/// A timer that was rolled is not rolled again before so long, in milliseconds.
const ROLL_AGAIN_MS: u64 = 3_600_000;
/// When none could be rolled, it is tried again after so long.
const ROLL_REST_MS: u64 = 60_000;
/// Timers to be rolled that are looked up at once, and the slots that are read for it.
const ROLL_LOOKUP: usize = 8192;
const ROLL_SLOTS: usize = 64;
/// Room for what the broker adds to the properties.
const ADDED_PROPERTIES: usize = 96;

/// The timers before the store is open.
#[derive(Debug)]
pub struct UnstartedWheel {
    shared: Arc<Shared>,
}

/// Delivers timer messages.
#[derive(Debug)]
pub struct Wheel {
    pub(super) shared: Arc<Shared>,
    pub(super) store: Arc<Store>,
    /// Keeps the log from the first timer that waits on.
    hold: Hold,
    /// What is to be rolled, and when the last run of it was.
    rolling: Mutex<Rolling>,
    /// What is tried again later.
    aside: Mutex<Aside>,
}

#[derive(Debug, Default)]
struct Rolling {
    places: VecDeque<Place>,
    last: Option<Millis>,
    /// They are of the last slot of a turn.
    ends_turn: bool,
    /// In this turn through the slots some were rolled.
    has_rolled: bool,
    /// Nothing is rolled before.
    rests_until: Option<Millis>,
}

/// What came of a timer that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The append ends its wait.
    Ended,
    /// It waits on.
    Left,
}

/// Opens the time index of the store in the directory `store`. The projection goes to the store; the rest starts when that
/// is open.
pub fn load_wheel(
    store: &Path,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
) -> std::io::Result<(WheelProjection, UnstartedWheel)> {
    let (projection, shared) =
        WheelProjection::load(store, Arc::new(RealDisk), Bounds::default(), clock, metrics)?;
    Ok((projection, UnstartedWheel { shared }))
}

impl UnstartedWheel {
    /// Makes the index from the log if it has to be, and takes over.
    pub fn start(self, store: Arc<Store>) -> std::io::Result<Arc<Wheel>> {
        let hold = store.hold(PhyOffset::ZERO);
        let wheel =
            Wheel { shared: self.shared, hold, store, rolling: Mutex::default(), aside: Mutex::default() };
        if wheel.shared.log_was_cut.load(Ordering::SeqCst) || wheel.shared.index.is_damaged() {
            wheel.read_log()?;
        }
        wheel.shared.is_live.store(true, Ordering::SeqCst);
        Ok(Arc::new(wheel))
    }
}

impl Rounds for Wheel {
    /// Delivers what is due now, at most [`RUNS_MAX`] appends of it.
    fn round(&self) -> NextRound {
        let next = self.fire();
        self.hold.advance(self.shared.needed_from());
        match next {
            NextRound::At(_) | NextRound::Idle => self.roll(next),
            other => other,
        }
    }

    fn wanted_at(&self) -> Option<Millis> {
        let index = &self.shared.index;
        [index.first_due(), index.next_load(), self.aside().first()].into_iter().flatten().min()
    }

    fn alarm(&self) -> &Alarm {
        &self.shared.alarm
    }

    fn store(&self) -> &Store {
        &self.store
    }
}

impl Wheel {
    /// Timers that wait.
    pub fn pending(&self) -> u64 {
        self.shared.index.pending()
    }

    /// When the first of the timers that are due soon is due.
    pub fn first_due(&self) -> Option<Millis> {
        self.shared.index.first_due()
    }

    /// Delivers until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        task::run(self, stop).await;
    }

    /// Delivers what is due now, once.
    pub fn deliver_due(&self) {
        self.round();
    }

    fn fire(&self) -> NextRound {
        for _ in 0..RUNS_MAX {
            let now = self.store.clock().now();
            let again = self.aside().take(now);
            self.shared.index.give_back(&again);
            if let Err(error) = self.shared.index.load(now) {
                tracing::warn!(%error, "the time index cannot be read; tried again");
                return NextRound::Pause;
            }
            if self.shared.index.taken() >= TAKEN_MAX {
                return NextRound::Behind(self.store.max_offset());
            }
            let due = self.shared.index.take_due(now, RUN_MESSAGES_MAX);
            if due.is_empty() {
                match self.wanted_at() {
                    Some(at) if at <= now => {}
                    Some(at) => return NextRound::At(at),
                    None => return NextRound::Idle,
                }
                continue;
            }
            match self.deliver(&due, now) {
                Ok(()) => {}
                Err(DeliverError::Append(AppendError::Poisoned(_))) => return NextRound::Stopped,
                Err(error) => {
                    tracing::warn!(%error, "due timer messages could not be delivered; tried again");
                    return NextRound::Pause;
                }
            }
        }
        NextRound::At(self.store.clock().now())
    }

    /// Stores copies of these messages, as many as fit one append. The others wait again.
    fn deliver(&self, due: &[Place], now: Millis) -> Result<(), DeliverError> {
        self.end_in_one_append(due, |batch, place, view| {
            let stored = view.properties().without_crc();
            let mut properties = PropertiesBuf::copy_of(stored, ADDED_PROPERTIES);
            properties.set(keys::TIMER_ENQUEUE_MS, &view.store_at().to_string());
            properties.set(keys::TIMER_DEQUEUE_MS, &now.to_string());
            copy::push(&self.store, batch, view, place.phy, properties.view())?;
            Ok(Step::Ended)
        })?;
        Ok(())
    }

    /// Reads the records of taken timers and lets `push` add to one append what ends their wait. Those that it leaves, for
    /// which there is no room, or all if the append fails, wait again. How many ended.
    fn end_in_one_append(
        &self,
        taken: &[Place],
        push: impl Fn(&mut Batch, Place, &RecordView<'_>) -> Result<Step, DeliverError>,
    ) -> Result<usize, DeliverError> {
        let mut batch = Batch::new();
        let mut bytes = 0;
        let (mut ended, mut left, mut rest) = (Vec::with_capacity(taken.len()), Vec::new(), taken);
        let mut pushed = Ok(());
        while let [place, others @ ..] = rest
            && bytes <= RUN_BYTES_MAX
        {
            let step = self.read(*place).and_then(|record| {
                bytes += record.as_ref().map_or(0, |record| record.len());
                match record.as_deref().map(RecordView::parse) {
                    Some(Ok(view)) => push(&mut batch, *place, &view),
                    _ => push_end(&self.store, &mut batch, *place, None).map(|()| Step::Ended),
                }
            });
            match step {
                Ok(Step::Ended) => ended.push(*place),
                Ok(Step::Left) => left.push(*place),
                Err(DeliverError::Io(error)) if self.set_aside(*place, &error) => {}
                Err(error) => {
                    pushed = Err(error);
                    break;
                }
            }
            rest = others;
        }
        left.extend(rest);
        self.shared.index.give_back(&left);
        if ended.is_empty() {
            return pushed.map(|()| 0);
        }
        if let Err(error) = self.store.append(&mut batch) {
            self.shared.index.give_back(&ended);
            return Err(error.into());
        }
        self.store.drive();
        pushed.map(|()| ended.len())
    }

    /// Leaves a timer to later; `false` when too many were left already.
    fn set_aside(&self, place: Place, error: &std::io::Error) -> bool {
        let mut aside = self.aside();
        if aside.is_empty() {
            tracing::warn!(%error, due = %place.due, at = %place.phy, "a timer message cannot be read, or its queue not be opened: tried again, and the others go on");
        }
        aside.put(place, self.store.clock().now())
    }

    fn aside(&self) -> MutexGuard<'_, Aside> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record of a timer; `None` when there is none any more, or it is not what the index says. That is reported.
    fn read(&self, place: Place) -> Result<Option<LogSlice>, DeliverError> {
        let record = match self.store.record_at(place.phy) {
            Ok(record) => record,
            Err(ReadError::Io { source, .. }) => return Err(source.into()),
            Err(error) => {
                tracing::error!(%error, due = %place.due, "a timer message cannot be read; it is lost");
                return Ok(None);
            }
        };
        let is_it = RecordView::parse(&record).is_ok_and(|view| {
            view.topic() == topics::TIMER && due_of(&view.properties().scan()) == Some(place.due)
        });
        if is_it {
            return Ok(Some(record));
        }
        tracing::error!(at = %place.phy, due = %place.due, "the time index names a record that is no timer: restart the broker to make the index again");
        self.shared.index.note_damage();
        Ok(None)
    }

    fn rolling(&self) -> MutexGuard<'_, Rolling> {
        self.rolling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a few timers anew whose log file retention wants to remove; then, or if there are none, `next`.
    fn roll(&self, next: NextRound) -> NextRound {
        let now = self.store.clock().now();
        let wanted = self.store.retention_wants();
        if self.shared.index.oldest().is_none_or(|oldest| oldest >= wanted) {
            return next;
        }
        let again = NextRound::At(match next {
            NextRound::At(at) => at.min(now.plus(ROLL_EVERY_MS)),
            _ => now.plus(ROLL_EVERY_MS),
        });
        let mut rolling = self.rolling();
        if rolling.last.is_some_and(|last| now >= last && now.since(last) < ROLL_EVERY_MS) {
            return again;
        }
        let rests = rolling.rests_until.filter(|until| now < *until && until.since(now) <= ROLL_REST_MS);
        if let Some(until) = rests {
            return match next {
                NextRound::At(at) => NextRound::At(at.min(until)),
                _ => NextRound::At(until),
            };
        }
        rolling.last = Some(now);
        match self.roll_some(&mut rolling, wanted, now) {
            Ok(()) => again,
            Err(DeliverError::Append(AppendError::Poisoned(_))) => NextRound::Stopped,
            Err(error) => {
                tracing::warn!(%error, "timer messages could not be stored anew; tried again");
                NextRound::Pause
            }
        }
    }

    fn roll_some(&self, rolling: &mut Rolling, wanted: PhyOffset, now: Millis) -> Result<(), DeliverError> {
        let index = &self.shared.index;
        let queue = self.store.queue(&TopicName::timer(), QueueId::ZERO)?;
        if rolling.places.is_empty() {
            let position = self.shared.position();
            for _ in 0..ROLL_SLOTS {
                let old = index.older_than(wanted, position, ROLL_LOOKUP)?;
                rolling.places.extend(old.places);
                rolling.ends_turn = old.is_last;
                if !old.more || !rolling.places.is_empty() {
                    break;
                }
            }
            if rolling.places.is_empty() {
                return Ok(());
            }
        }
        let mut taken = Vec::new();
        while taken.len() < ROLL_RUN
            && let Some(place) = rolling.places.pop_front()
        {
            match index.take(place) {
                Ok(Standing::Taken) => taken.push(place),
                Ok(Standing::Busy | Standing::Gone) => {}
                Err(error) => {
                    index.give_back(&taken);
                    return Err(error.into());
                }
            }
        }
        if !taken.is_empty() {
            rolling.has_rolled |= self.roll_taken(&queue, &taken, now)? > 0;
        }
        if rolling.places.is_empty() && rolling.ends_turn && !std::mem::take(&mut rolling.has_rolled) {
            rolling.rests_until = Some(now.plus(ROLL_REST_MS));
        }
        Ok(())
    }

    /// Stores these timers anew.
    #[cfg(test)]
    pub(super) fn roll_places(&self, places: &[Place]) -> Result<(), DeliverError> {
        let mut rolling = Rolling { places: places.iter().copied().collect(), ..Rolling::default() };
        self.roll_some(&mut rolling, self.store.max_offset(), self.store.clock().now())
    }

    /// Stores these timers anew; how many of them.
    fn roll_taken(&self, queue: &Arc<Queue>, taken: &[Place], now: Millis) -> Result<usize, DeliverError> {
        self.end_in_one_append(taken, |batch, place, view| {
            let stored = view.properties();
            let times = stored.timer_roll_times().unwrap_or(0);
            // Where the timers alone are more than the log may be, or the disk is full, rolling makes no room.
            if times > 0 && now.since(view.store_at()) < ROLL_AGAIN_MS {
                return Ok(Step::Left);
            }
            let mut properties = PropertiesBuf::copy_of(stored.without_crc(), ADDED_PROPERTIES);
            properties.set(keys::TIMER_ROLL_TIMES, &times.saturating_add(1).to_string());
            let draft = RecordDraft {
                prepared_offset: mark_of(place.phy),
                append_crc: true,
                ..RecordDraft::from_view(view, properties.as_bytes())
            };
            if batch.push(queue, &draft).is_err() {
                // No room for one property more: better early than lost.
                copy::push(&self.store, batch, view, place.phy, stored.without_crc())?;
            }
            Ok(Step::Ended)
        })
    }

    /// Makes the index from the whole log.
    fn read_log(&self) -> std::io::Result<()> {
        self.shared.forget()?;
        let (from, end) = (self.store.min_offset(), self.store.max_offset());
        let now = self.store.clock().now();
        Replay::new(self.store.log().segments()).each(from, end, |view| {
            if let Err(error) = self.shared.apply(view, &view.properties().scan(), now) {
                tracing::error!(at = %view.phy_offset(), %error, "a record of a timer cannot be used");
            }
        });
        self.shared.set_position(end);
        Ok(())
    }
}
