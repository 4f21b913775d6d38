//! Apache RocketMQ: its name server and broker from Maven Central, in one JVM.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use gantry_tests::{apache, java};

use super::{Peer, Policy, Server, Settings, rocketmq};
use crate::failure::Failure;
use crate::load::{self, Load};

/// One version of Apache's broker.
#[derive(Clone, Debug)]
pub struct Apache {
    version: &'static str,
    jvm: Vec<String>,
    set: Vec<String>,
}

#[derive(Debug)]
struct Running {
    process: apache::Apache,
    took: Duration,
}

impl Apache {
    /// That version, with these settings.
    pub fn new(version: &'static str, settings: &Settings) -> Self {
        Self { version, jvm: settings.apache_jvm.clone(), set: settings.apache_set.clone() }
    }
}

const fn flush(policy: Policy) -> &'static str {
    match policy {
        Policy::Memory => "flushDiskType=ASYNC_FLUSH",
        Policy::Disk => "flushDiskType=SYNC_FLUSH",
    }
}

impl Peer for Apache {
    fn provide(&self) -> Result<(), Failure> {
        java::apache(self.version).map(|_| ()).map_err(Failure::Peer)
    }

    fn settings(&self) -> String {
        let set = if self.set.is_empty() { String::new() } else { format!(", {}", self.set.join(", ")) };
        format!("JVM with {}{set}; name server and broker in one process", self.jvm.join(" "))
    }

    fn can(&self, load: &Load) -> bool {
        rocketmq::can(load)
    }

    fn start(&self, store: &Path, policy: Policy) -> Result<Box<dyn Server>, Failure> {
        let since = Instant::now();
        // Its own default; the tests make smaller files.
        let mut settings = vec!["mappedFileSizeCommitLog=1073741824", flush(policy)];
        settings.extend(self.set.iter().map(String::as_str));
        let jvm: Vec<_> = self.jvm.iter().map(String::as_str).collect();
        let process = apache::Apache::start_version(self.version, store, &jvm, &settings);
        Ok(Box::new(Running { process: process.map_err(Failure::Peer)?, took: since.elapsed() }))
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
        rocketmq::create_topic(self.process.name_server(), topic, queues)
    }

    fn generator(&self, load: &Load) -> Result<Command, Failure> {
        rocketmq::generator(self.process.name_server(), self.process.pid(), self.store(), load)
    }

    fn first_send(&self) -> Result<(), Failure> {
        rocketmq::first_send(self.process.name_server())
    }

    fn waiting_consumer(&self, topic: &str) -> Option<Result<load::Running, Failure>> {
        Some(rocketmq::waiting_consumer(self.process.name_server(), self.process.pid(), topic))
    }
}
