//! Going off line: whether this broker takes messages, and whether clients are routed to it.
//!
//! ```text
//!            begin(grace)            grace is over             leave
//!  serving ---------------> announced ----------> sealed ---------------> left
//!     ^                         |                    |                      |
//!     +-------------------------+------ resume ------+----------------------+
//! ```
//!
//! | phase | routes | messages of producers | all else: pulls, pops, acks, offsets, retries, ends of transactions |
//! | --- | --- | --- | --- |
//! | serving | read and write | taken | taken |
//! | announced | read only | taken: clients learn of it within 30 s, when they ask for routes again | taken |
//! | sealed | read only | refused with the code on which clients go to another broker | taken |
//! | left | none | refused | taken |
//!
//! `config/gantryDrain.json` holds it, replaced before a change is acknowledged; without the file the broker serves:
//!
//! ```text
//! { "step":"draining", "since":1700000000000, "graceMs":45000 }
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_proto::ids::Millis;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::foreign::PERM_WRITE;
use crate::clock::Clock;
use crate::store::layout::{load_json, replace_json};

/// Time in which messages are still taken, where the operator does not say another: clients ask for routes every 30 s.
pub const GRACE: Duration = Duration::from_secs(45);
/// Longest time in which messages are still taken after the routes say otherwise.
pub const GRACE_MAX: Duration = Duration::from_secs(24 * 3600);
/// What [`Saved::sealed_at`] says of a broker that is not going.
const NEVER: i64 = i64::MAX;

/// Where a broker is between serving and gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It serves.
    Serving,
    /// Routes say that it takes no messages; it still does, until this time.
    Announced {
        /// When it stops to take messages.
        until: Millis,
    },
    /// It takes no messages of producers, and waits until consumers have those it has.
    Sealed,
    /// No route names it.
    Left,
}

/// A message was not taken, because the broker is going.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{broker} is being taken off line and takes no new messages: send to another broker")]
pub struct Leaving {
    /// This broker.
    broker: String,
}

/// Why the phase did not change.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// It must be told to drain first.
    #[error("{broker} serves: drain it before it leaves")]
    Serves {
        /// This broker.
        broker: String,
    },
    /// Messages are still taken.
    #[error(
        "{broker} takes messages for another {left_ms} ms, because clients may not know yet: let it leave then"
    )]
    TooEarly {
        /// This broker.
        broker: String,
        /// How long yet.
        left_ms: u64,
    },
    /// The file was not written; nothing changed.
    #[error("cannot write {}: check free space and permissions, then try again", path.display())]
    Save {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Step {
    #[default]
    Serving,
    Draining,
    Left,
}

/// What the file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Saved {
    step: Step,
    /// When it came to that; milliseconds since the epoch.
    since: i64,
    grace_ms: u64,
}

impl Saved {
    fn sealed_at(&self) -> i64 {
        match self.step {
            Step::Serving => NEVER,
            Step::Draining => Millis::new(self.since).plus(self.grace_ms).get(),
            // Not since when: the clock may be set back.
            Step::Left => i64::MIN,
        }
    }
}

/// Whether this broker is going, and how far it is.
#[derive(Debug)]
pub struct Drain {
    broker: String,
    path: PathBuf,
    clock: Arc<dyn Clock>,
    /// Held while the file is written.
    saved: Mutex<Saved>,
    /// From when on no messages are taken: all that a send looks at.
    sealed_at: AtomicI64,
    changed: watch::Sender<u64>,
}

impl Drain {
    /// Reads `gantryDrain.json` in `config_dir`; `broker` is this broker's name.
    pub fn open(config_dir: &Path, broker: &str, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let path = config_dir.join("gantryDrain.json");
        let saved: Saved = load_json(&path, |bytes| serde_json::from_slice(bytes).ok())?.unwrap_or_default();
        if saved.step != Step::Serving {
            tracing::warn!(
                step = ?saved.step,
                "this broker was being taken off line when it stopped, and goes on with it: \
                 `gantry broker resume` takes it back"
            );
        }
        Ok(Self {
            broker: broker.to_owned(),
            path,
            clock,
            sealed_at: AtomicI64::new(saved.sealed_at()),
            changed: watch::Sender::new(0),
            saved: Mutex::new(saved),
        })
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        let saved = *self.lock();
        let until = Millis::new(saved.sealed_at());
        match saved.step {
            Step::Serving => Phase::Serving,
            Step::Draining if self.clock.now() < until => Phase::Announced { until },
            Step::Draining => Phase::Sealed,
            Step::Left => Phase::Left,
        }
    }

    /// When the broker began to drain, left, or was taken back; zero when nothing of that ever happened.
    pub fn since(&self) -> Millis {
        Millis::new(self.lock().since)
    }

    /// When it stops to take messages, or did; `None` while it serves.
    pub fn sealed_at(&self) -> Option<Millis> {
        let sealed_at = self.sealed_at.load(Ordering::Acquire);
        (sealed_at != NEVER).then(|| Millis::new(sealed_at))
    }

    /// Whether routes name this broker.
    pub fn is_routed(&self) -> bool {
        self.lock().step != Step::Left
    }

    /// A topic's permission bits as routes tell them.
    pub fn perm(&self, perm: i32) -> i32 {
        if self.sealed_at.load(Ordering::Acquire) == NEVER { perm } else { perm & !PERM_WRITE }
    }

    /// Refuses a new message when the broker takes none any more.
    pub fn check(&self) -> Result<(), Leaving> {
        let sealed_at = self.sealed_at.load(Ordering::Acquire);
        if sealed_at == NEVER || self.clock.now().get() < sealed_at {
            return Ok(());
        }
        Err(Leaving { broker: self.broker.clone() })
    }

    /// Begins to go: routes say at once that no messages are taken, and `grace` later none are. One that goes already
    /// gets this grace instead, counted from when it began; one that has left stays so.
    pub fn begin(&self, grace: Duration) -> Result<Phase, DrainError> {
        let grace_ms = u64::try_from(grace.min(GRACE_MAX).as_millis()).unwrap_or(u64::MAX);
        self.change(|saved, now| match saved.step {
            Step::Serving => {
                *saved = Saved { step: Step::Draining, since: now.get(), grace_ms };
                Ok(())
            }
            Step::Draining => {
                saved.grace_ms = grace_ms;
                Ok(())
            }
            Step::Left => Ok(()),
        })
    }

    /// Leaves the routes. To have left already is a success.
    pub fn leave(&self) -> Result<Phase, DrainError> {
        let broker = || self.broker.clone();
        self.change(|saved, now| {
            let sealed_at = Millis::new(saved.sealed_at());
            match saved.step {
                Step::Serving => Err(DrainError::Serves { broker: broker() }),
                Step::Draining if now < sealed_at => {
                    Err(DrainError::TooEarly { broker: broker(), left_ms: sealed_at.since(now) })
                }
                Step::Draining => {
                    *saved = Saved { step: Step::Left, since: now.get(), ..*saved };
                    Ok(())
                }
                Step::Left => Ok(()),
            }
        })
    }

    /// Serves again. To serve already is a success.
    pub fn resume(&self) -> Result<Phase, DrainError> {
        self.change(|saved, now| {
            if saved.step != Step::Serving {
                *saved = Saved { step: Step::Serving, since: now.get(), ..*saved };
            }
            Ok(())
        })
    }

    /// How often this changed since the start, and when it does again.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn change(
        &self,
        step: impl FnOnce(&mut Saved, Millis) -> Result<(), DrainError>,
    ) -> Result<Phase, DrainError> {
        let mut saved = self.lock();
        let mut next = *saved;
        step(&mut next, self.clock.now())?;
        if next != *saved {
            let bytes = serde_json::to_vec(&next).expect("numbers and names are JSON");
            replace_json(&self.path, &bytes)
                .map_err(|cause| DrainError::Save { path: self.path.clone(), cause })?;
            *saved = next;
            self.sealed_at.store(next.sealed_at(), Ordering::Release);
            self.changed.send_modify(|changes| *changes += 1);
            tracing::info!(step = ?next.step, grace_ms = next.grace_ms, "an operator changed whether this broker serves");
        }
        drop(saved);
        Ok(self.phase())
    }

    fn lock(&self) -> MutexGuard<'_, Saved> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::clock::ManualClock;
    use crate::fixture::{NOW, clock};

    fn open(dir: &TempDir, clock: &Arc<ManualClock>) -> Drain {
        Drain::open(dir.path(), "broker-a", Arc::clone(clock) as _).unwrap()
    }

    #[test]
    fn a_broker_goes_step_by_step_and_comes_back() {
        let (dir, clock) = (TempDir::new().unwrap(), clock());
        let drain = open(&dir, &clock);
        let changes = drain.changes();
        assert_eq!((drain.phase(), drain.perm(7), drain.is_routed()), (Phase::Serving, 7, true));
        assert!(matches!(drain.leave(), Err(DrainError::Serves { .. })));

        let until = NOW.plus(45_000);
        assert_eq!(drain.begin(GRACE).unwrap(), Phase::Announced { until });
        assert!(changes.has_changed().unwrap());
        assert_eq!((drain.perm(7), drain.check()), (5, Ok(())));
        let early = drain.leave().unwrap_err().to_string();
        assert!(early.contains("for another 45000 ms"), "{early}");

        clock.advance(45_000);
        assert_eq!(drain.phase(), Phase::Sealed);
        let refused = drain.check().unwrap_err().to_string();
        assert!(refused.ends_with("send to another broker"), "{refused}");
        assert_eq!(drain.leave().unwrap(), Phase::Left);
        assert_eq!((drain.is_routed(), drain.check().is_err()), (false, true));
        assert_eq!((drain.leave().unwrap(), drain.begin(GRACE).unwrap()), (Phase::Left, Phase::Left));

        assert_eq!(drain.resume().unwrap(), Phase::Serving);
        assert_eq!((drain.perm(7), drain.check(), drain.is_routed()), (7, Ok(()), true));
        assert_eq!(drain.resume().unwrap(), Phase::Serving);
        assert_eq!(*changes.borrow(), 3);
    }

    #[test]
    fn a_restart_changes_nothing() {
        let (dir, clock) = (TempDir::new().unwrap(), clock());
        open(&dir, &clock).begin(GRACE).unwrap();
        assert!(matches!(open(&dir, &clock).phase(), Phase::Announced { .. }));
        clock.advance(50_000);
        let drain = open(&dir, &clock);
        assert_eq!((drain.phase(), drain.check().is_err(), drain.since()), (Phase::Sealed, true, NOW));
        drain.leave().unwrap();
        let drain = open(&dir, &clock);
        assert_eq!((drain.phase(), drain.perm(6)), (Phase::Left, 4));
        drain.resume().unwrap();
        assert_eq!(open(&dir, &clock).phase(), Phase::Serving);
    }

    #[test]
    fn the_grace_can_be_cut_short() {
        let (dir, clock) = (TempDir::new().unwrap(), clock());
        let drain = open(&dir, &clock);
        drain.begin(GRACE).unwrap();
        assert_eq!(drain.begin(Duration::ZERO).unwrap(), Phase::Sealed);
        assert_eq!(drain.begin(Duration::MAX).unwrap(), Phase::Announced { until: NOW.plus(86_400_000) });
    }

    #[test]
    fn what_is_not_written_does_not_hold() {
        let (dir, clock) = (TempDir::new().unwrap(), clock());
        let drain = open(&dir, &clock);
        std::fs::create_dir_all(dir.path().join("gantryDrain.json")).unwrap();
        assert!(matches!(drain.begin(GRACE), Err(DrainError::Save { .. })));
        assert_eq!((drain.phase(), drain.check()), (Phase::Serving, Ok(())));
    }
}
