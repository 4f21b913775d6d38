//! A broker on a store that goes with it.

use std::path::PathBuf;
use std::time::Duration;

use gantry_benches::failure::Failure;
use gantry_benches::load::{Load, Measured};
use gantry_benches::peer::{Kind, Peer, Policy, Server, pause, resume};
use gantry_benches::process::cpu_percent;
use gantry_benches::stop;
use tempfile::TempDir;

use crate::options::Options;

/// After a run a broker goes on so long: what it still has to do for the run is not the next run's.
pub const SETTLE: Duration = Duration::from_millis(700);
/// A broker is at rest when it used less than so much of a core for so long: longer than brokers put work off.
const REST_PERCENT: f64 = 5.0;
const REST_LOOK: Duration = Duration::from_secs(6);
/// How often is looked for that.
const REST_LOOKS: u32 = 5;

/// A broker on a store that goes with it.
pub struct Seat {
    /// Which broker.
    pub kind: Kind,
    /// The broker; declared before the store, so that it ends first.
    pub server: Box<dyn Server>,
    _store: TempDir,
}

impl Seat {
    /// Starts a broker on an empty store.
    pub fn start(kind: Kind, peer: &dyn Peer, policy: Policy, options: &Options) -> Result<Self, Failure> {
        stop::check()?;
        let (store, path) = store_in(options)?;
        let server = peer.start(&path, policy)?;
        stop::check()?;
        Ok(Self { kind, server, _store: store })
    }

    /// Runs a load; what earlier ones left in memory to be written is no part of it.
    pub fn measure(&self, load: &Load) -> Result<Measured, Failure> {
        rustix::fs::sync();
        let measured = self.server.run(load)?;
        stop::sleep(SETTLE)?;
        Ok(measured)
    }

    /// Waits until it has nothing left to do, or not much for a broker that is never idle.
    pub fn rest(&self) -> Result<(), Failure> {
        for _ in 0..REST_LOOKS {
            if cpu_percent(&self.server.pids(), REST_LOOK)? < REST_PERCENT {
                break;
            }
        }
        Ok(())
    }

    /// Lets it run for `work` only.
    pub fn awake<T>(&self, work: impl FnOnce(&Self) -> Result<T, Failure>) -> Result<T, Failure> {
        resume(self.server.as_ref())?;
        let done = work(self);
        // One that is gone cannot be paused; why it is gone was said by what failed before.
        pause(self.server.as_ref()).and(done)
    }

    /// Whether its processes are there and not dead.
    pub fn is_alive(&self) -> bool {
        self.server.pids().iter().all(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().next());
            state.is_some_and(|state| state != "Z" && state != "X")
        })
    }
}

/// A directory for a store, and for what a broker writes beside it.
pub fn store_in(options: &Options) -> Result<(TempDir, PathBuf), Failure> {
    let dir = tempfile::Builder::new().prefix("gantry-bench-").tempdir_in(&options.dir);
    let dir = dir.map_err(Failure::system("making a directory for a store, see --dir"))?;
    let path = dir.path().join("store");
    Ok((dir, path))
}
