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
    let mut waited_for = None;
    while !stop.is_cancelled() {
        let mut next = task.round();
        // The log shows all that it has, so what is missing will not come by waiting for it.
        if let NextRound::Behind(end) = next
            && waited_for.replace(end) == Some(end)
        {
            next = NextRound::Pause;
        }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::fixture;

    struct Stuck {
        store: Arc<Store>,
        alarm: Alarm,
        rounds: AtomicUsize,
    }

    impl Rounds for Stuck {
        fn round(&self) -> NextRound {
            self.rounds.fetch_add(1, Ordering::SeqCst);
            NextRound::Behind(self.store.max_offset())
        }

        fn wanted_at(&self) -> Option<Millis> {
            Some(Millis::ZERO)
        }

        fn alarm(&self) -> &Alarm {
            &self.alarm
        }

        fn store(&self) -> &Store {
            &self.store
        }
    }

    /// Regression: what was taken and not given back kept the task going round without a pause.
    #[tokio::test(start_paused = true)]
    async fn a_task_that_waits_for_what_is_there_pauses() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = fixture::store(dir.path(), fixture::clock(), Vec::new());
        let stuck = Arc::new(Stuck { store, alarm: Alarm::default(), rounds: AtomicUsize::new(0) });
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(Arc::clone(&stuck), stop.clone()));
        tokio::time::sleep(REFUSED_PAUSE * 5).await;
        stop.cancel();
        task.await.expect("it ends");
        assert!((5..=8).contains(&stuck.rounds.load(Ordering::SeqCst)));
    }
}
