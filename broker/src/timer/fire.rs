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
use std::time::Duration;

use gantry_proto::ids::{Millis, PhyOffset, QueueId};
use gantry_proto::names::{TopicName, topics};
use gantry_proto::record::{PropertiesBuf, RecordDraft, RecordView, keys};
use tokio_util::sync::CancellationToken;

use super::copy::{self, DeliverError};
use super::cursors::mark_of;
use super::due::due_of;
use super::index::{Bounds, Place, Standing};
use super::recall::push_end;
use super::wheel::{Shared, WheelProjection};
use crate::clock::{Clock, HOLD_SLEEP_MAX, SLEEP_MAX};
use crate::metrics::Metrics;
use crate::store::disk::RealDisk;
use crate::store::replay::Replay;
use crate::store::retain::Hold;
use crate::store::{AppendError, Batch, LogSlice, ReadError, Store};

/// Messages delivered in one append.
const RUN_MESSAGES_MAX: usize = 256;
/// Bytes delivered in one append, about.
const RUN_BYTES_MAX: usize = 256 * 1024;
/// Appends in one round; then others have their turn, a stop among them.
const RUNS_MAX: usize = 64;
/// Deliveries that the log does not show yet; more wait for it.
const TAKEN_MAX: usize = 8192;
/// Pause after an append was refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(200);
/// Timers rolled in one append, and the time between two, in milliseconds.
const ROLL_RUN: usize = 256;
const ROLL_EVERY_MS: u64 = 50;
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
}

#[derive(Debug, Default)]
struct Rolling {
    places: VecDeque<Place>,
    last: Option<Millis>,
}

/// What the task does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextRound {
    /// Looks again at this time.
    At(Millis),
    /// Looks again after a pause: an append was refused, or reading failed.
    Pause,
    /// Looks again when the log shows what was delivered up to here.
    Behind(PhyOffset),
    /// Waits for a message.
    Idle,
    /// The log takes no more records.
    Stopped,
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
        let wheel = Wheel { shared: self.shared, hold, store, rolling: Mutex::default() };
        if wheel.shared.log_was_cut.load(Ordering::SeqCst) || wheel.shared.index.is_damaged() {
            wheel.read_log()?;
        }
        wheel.shared.is_live.store(true, Ordering::SeqCst);
        Ok(Arc::new(wheel))
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
        while !stop.is_cancelled() {
            let next = self.round();
            let (sleep, until) = match next {
                NextRound::Pause => (REFUSED_PAUSE, Millis::MAX),
                NextRound::At(due) => {
                    let sleep = Duration::from_millis(due.since(self.store.clock().now()));
                    (sleep.min(SLEEP_MAX), due)
                }
                NextRound::Idle => (HOLD_SLEEP_MAX, Millis::MAX),
                NextRound::Behind(end) => {
                    tokio::select! {
                        () = stop.cancelled() => return,
                        shown = self.store.dispatched(end) => if shown.is_err() { return },
                    }
                    continue;
                }
                NextRound::Stopped => return,
            };
            self.shared.sleeps_until.store(until.get(), Ordering::SeqCst);
            // A timer may have come since `round` looked, and woken nobody.
            if next != NextRound::Pause && self.wanted_at().is_some_and(|at| at < until) {
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    /// Delivers what is due now, once.
    pub fn deliver_due(&self) {
        self.round();
    }

    /// Delivers what is due now, at most [`RUNS_MAX`] appends of it.
    pub(super) fn round(&self) -> NextRound {
        let next = self.fire();
        self.hold.advance(self.shared.needed_from());
        match next {
            NextRound::At(_) | NextRound::Idle => self.roll(next),
            other => other,
        }
    }

    fn fire(&self) -> NextRound {
        for _ in 0..RUNS_MAX {
            let now = self.store.clock().now();
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

    /// When the task has something to do.
    fn wanted_at(&self) -> Option<Millis> {
        let index = &self.shared.index;
        [index.first_due(), index.next_load()].into_iter().flatten().min()
    }

    /// Stores copies of these messages, as many as fit one append. The others wait again.
    fn deliver(&self, due: &[Place], now: Millis) -> Result<(), DeliverError> {
        self.end_in_one_append(due, |batch, place, view| {
            let stored = view.properties().without_crc();
            let mut properties = PropertiesBuf::copy_of(stored, ADDED_PROPERTIES);
            properties.set(keys::TIMER_ENQUEUE_MS, &view.store_at().to_string());
            properties.set(keys::TIMER_DEQUEUE_MS, &now.to_string());
            copy::push(&self.store, batch, view, place.phy, properties.view())
        })
    }

    /// Reads the records of taken timers and lets `push` add to one append what ends their wait; those for which there is
    /// no room, or all if the append fails, wait again.
    fn end_in_one_append(
        &self,
        taken: &[Place],
        push: impl Fn(&mut Batch, Place, &RecordView<'_>) -> Result<(), DeliverError>,
    ) -> Result<(), DeliverError> {
        let mut batch = Batch::new();
        let (mut bytes, mut done) = (0, 0);
        let mut pushed = Ok(());
        for place in taken {
            pushed = self.read(*place).and_then(|record| {
                bytes += record.as_ref().map_or(0, |record| record.len());
                match record.as_deref().map(RecordView::parse) {
                    Some(Ok(view)) => push(&mut batch, *place, &view),
                    _ => push_end(&self.store, &mut batch, *place, None),
                }
            });
            if pushed.is_err() {
                break;
            }
            done += 1;
            if bytes > RUN_BYTES_MAX {
                break;
            }
        }
        let (ended, others) = taken.split_at(done.min(taken.len()));
        self.shared.index.give_back(others);
        if ended.is_empty() {
            return pushed;
        }
        if let Err(error) = self.store.append(&mut batch) {
            self.shared.index.give_back(ended);
            return Err(error.into());
        }
        self.store.drive();
        pushed
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
        rolling.last = Some(now);
        match self.roll_some(&mut rolling.places, wanted) {
            Ok(()) => again,
            Err(DeliverError::Append(AppendError::Poisoned(_))) => NextRound::Stopped,
            Err(error) => {
                tracing::warn!(%error, "timer messages could not be stored anew; tried again");
                NextRound::Pause
            }
        }
    }

    fn roll_some(&self, places: &mut VecDeque<Place>, wanted: PhyOffset) -> Result<(), DeliverError> {
        let index = &self.shared.index;
        if places.is_empty() {
            let position = self.shared.position();
            for _ in 0..ROLL_SLOTS {
                let old = index.older_than(wanted, position, ROLL_LOOKUP)?;
                places.extend(old.places);
                if !old.more || !places.is_empty() {
                    break;
                }
            }
        }
        let mut taken = Vec::new();
        while taken.len() < ROLL_RUN
            && let Some(place) = places.pop_front()
        {
            if index.take(place)? == Standing::Taken {
                taken.push(place);
            }
        }
        if taken.is_empty() {
            return Ok(());
        }
        let queue = self.store.queue(&TopicName::timer(), QueueId::ZERO)?;
        self.end_in_one_append(&taken, |batch, place, view| {
            let stored = view.properties();
            let mut properties = PropertiesBuf::copy_of(stored.without_crc(), ADDED_PROPERTIES);
            let times = stored.timer_roll_times().unwrap_or(0).saturating_add(1);
            properties.set(keys::TIMER_ROLL_TIMES, &times.to_string());
            let draft = RecordDraft {
                prepared_offset: mark_of(place.phy),
                append_crc: true,
                ..RecordDraft::from_view(view, properties.as_bytes())
            };
            match batch.push(&queue, &draft) {
                Ok(()) => Ok(()),
                // No room for one property more: better early than lost.
                Err(_) => copy::push(&self.store, batch, view, place.phy, stored.without_crc()),
            }
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
