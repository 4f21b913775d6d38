//! The loop of the tasks that deliver what is due: rounds, and sleep in between until something may be due.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use gantry_proto::ids::{Millis, PhyOffset};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock::{HOLD_SLEEP_MAX, SLEEP_MAX};
use crate::store::Store;

/// Pause after an append was refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(200);

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

/// Wakes the task when something is due before it wakes by itself.
#[derive(Debug)]
pub(super) struct Alarm {
    wake: Notify,
    /// Until when the task sleeps.
    sleeps_until: AtomicI64,
}

impl Default for Alarm {
    fn default() -> Self {
        Self { wake: Notify::new(), sleeps_until: AtomicI64::new(i64::MAX) }
    }
}

impl Alarm {
    /// Something that is due then has come.
    pub(super) fn due(&self, at: Millis) {
        if at.get() < self.sleeps_until.load(Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }
}

/// Who delivers.
pub(super) trait Rounds {
    /// Delivers what is due now, or some of it.
    fn round(&self) -> NextRound;

    /// When there is something to do.
    fn wanted_at(&self) -> Option<Millis>;

    /// Rung by whoever takes in what waits.
    fn alarm(&self) -> &Alarm;

    /// The log.
    fn store(&self) -> &Store;
}

/// Goes round after round until `stop`.
pub(super) async fn run(task: Arc<impl Rounds>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let next = task.round();
        let (sleep, until) = match next {
            NextRound::Pause => (REFUSED_PAUSE, Millis::MAX),
            NextRound::At(due) => {
                let sleep = Duration::from_millis(due.since(task.store().clock().now()));
                (sleep.min(SLEEP_MAX), due)
            }
            NextRound::Idle => (HOLD_SLEEP_MAX, Millis::MAX),
            NextRound::Behind(end) => {
                tokio::select! {
                    () = stop.cancelled() => return,
                    shown = task.store().dispatched(end) => if shown.is_err() { return },
                }
                continue;
            }
            NextRound::Stopped => return,
        };
        let alarm = task.alarm();
        alarm.sleeps_until.store(until.get(), Ordering::SeqCst);
        // Something may have come since `round` looked, and woken nobody.
        if next != NextRound::Pause && task.wanted_at().is_some_and(|at| at < until) {
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = alarm.wake.notified() => {}
            () = tokio::time::sleep(sleep) => {}
        }
    }
}
