//! Gantry, as it comes.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use gantry_tests::harness;

use super::{Peer, Policy, Server, rocketmq};
use crate::failure::Failure;
use crate::load::{self, Load};
use crate::store;

/// Gantry.
#[derive(Clone, Copy, Debug)]
pub struct Gantry;

#[derive(Debug)]
struct Running {
    process: harness::Gantry,
    took: Duration,
}

/// The harness is made for tests and panics when something is wrong with the broker.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    panic::catch_unwind(AssertUnwindSafe(work)).map_err(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        Failure::Peer(text.unwrap_or_else(|| "gantry does not start, see above".to_owned()))
    })
}

impl Peer for Gantry {
    fn provide(&self) -> Result<(), Failure> {
        caught(harness::binary).map(|_| ())
    }

    fn can(&self, load: &Load) -> bool {
        rocketmq::can(load)
    }

    fn start(&self, store: &Path, policy: Policy) -> Result<Box<dyn Server>, Failure> {
        let since = Instant::now();
        let process = caught(|| harness::Gantry::start_on(store, &["--policy", policy.name()]))?;
        Ok(Box::new(Running { process, took: since.elapsed() }))
    }
}

impl Running {
    fn name_server(&self) -> String {
        self.process.name_server().to_string()
    }
}

impl Server for Running {
    fn pids(&self) -> Vec<u32> {
        vec![self.process.pid()]
    }

    fn took(&self) -> Duration {
        self.took
    }

    fn store(&self) -> &Path {
        self.process.store()
    }

    fn create_topic(&self, topic: &str, queues: u32) -> Result<(), Failure> {
        rocketmq::create_topic(&self.name_server(), topic, queues)
    }

    fn generator(&self, load: &Load) -> Result<Command, Failure> {
        rocketmq::generator(&self.name_server(), self.process.pid(), self.store(), load)
    }

    fn first_send(&self) -> Result<(), Failure> {
        rocketmq::first_send(&self.name_server())
    }

    /// Without the dedup window: it holds the last ids, at most some megabytes in all, however many messages there are.
    fn store_bytes(&self) -> io::Result<u64> {
        let window = self.process.store().join("dedup");
        Ok(store::content_bytes(self.process.store())?.saturating_sub(store::content_bytes(&window)?))
    }

    fn pending_timers(&self) -> Option<Result<u64, Failure>> {
        Some(rocketmq::pending_timers(&self.name_server()))
    }

    fn waiting_consumer(&self, topic: &str) -> Option<Result<load::Running, Failure>> {
        Some(rocketmq::waiting_consumer(&self.name_server(), self.process.pid(), topic))
    }
}
