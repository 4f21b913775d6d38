//! Apache Kafka: broker and controller in one JVM (`KRaft`), from Maven Central, loaded by Kafka's own client.
//!
//! As it comes, but for what a single node needs, and
//! - `disk`: `log.flush.interval.messages=1`, so that a request is answered after its records are on the disk. Kafka
//!   flushes each partition by itself; what came in one request is flushed together;
//! - on a new store the controller does not give up the broker while it is paused (`broker.session.timeout.ms`). On
//!   one that was used it has to: it takes no broker back before it has given up the one that was killed.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use gantry_tests::ports;

use super::daemon::Daemon;
use super::driver::{self, Driver};
use super::{Peer, Policy, Server};
use crate::failure::Failure;
use crate::load::{Client, Load, Running as RunningLoad};

/// As much heap as Apache RocketMQ gets, and what Kafka's start script gives the collector.
const JVM: [&str; 6] = [
    "-Xms1g",
    "-Xmx1g",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
];
const LOG: [&str; 2] = [
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
];
const CLIENT_JVM: [&str; 2] = ["-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"];
/// What its log says once it takes requests.
const READY: &str = "Kafka Server started";
/// Any: a cluster of one.
const CLUSTER: &str = "Z2FudHJ5LWJlbmNoLWthZg";
/// Each producer is a thread of its own in Kafka's client.
const CONNECTIONS_MAX: u32 = 200;

/// Apache Kafka.
#[derive(Clone, Copy, Debug)]
pub struct Kafka;

#[derive(Debug)]
struct Running {
    process: Daemon,
    address: String,
    store: PathBuf,
    /// Guards the topics that are there: asking for them starts a JVM.
    topics: Mutex<HashSet<String>>,
}

/// Whether a store was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    New,
    Used,
}

/// `server.properties`.
fn properties(path: &Path, store: Store, client: u16, controller: u16, policy: Policy) -> String {
    let session = match store {
        Store::New => "broker.session.timeout.ms=86400000\n",
        Store::Used => "",
    };
    let flush = match policy {
        Policy::Memory => "",
        Policy::Disk => "log.flush.interval.messages=1\n",
    };
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         controller.listener.names=CONTROLLER\n\
         listeners=PLAINTEXT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{client}\n\
         log.dirs={}\n\
         offsets.topic.replication.factor=1\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         {session}{flush}",
        path.display()
    )
}

/// A store as Kafka's tool makes it, made once: that is no part of a start.
fn formatted() -> PathBuf {
    Driver::Kafka.dir().join("target").join("formatted")
}

fn format() -> Result<(), Failure> {
    let store = formatted();
    if store.join("meta.properties").exists() {
        return Ok(());
    }
    let settings = store.with_extension("properties");
    let text = properties(&store, Store::New, 9092, 9093, Policy::Memory);
    let scratch = fs::write(&settings, text).and_then(|()| tempfile::tempdir());
    let scratch = scratch.map_err(Failure::system("preparing a store of Kafka"))?;
    let mut command = Driver::Kafka.java(&scratch.path().join("store"), &[], "kafka.tools.StorageTool")?;
    command.args(["format", "-t", CLUSTER, "-c"]).arg(settings).stdin(Stdio::null());
    let output = command.output().map_err(Failure::system("starting Kafka's storage tool"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Failure::Peer(format!("Kafka's storage tool failed: {said}")))
}

/// Makes an empty store, or leaves one that is there as it is.
fn provide_store(store: &Path) -> io::Result<Store> {
    if store.join("meta.properties").exists() {
        return Ok(Store::Used);
    }
    fs::create_dir_all(store)?;
    for entry in fs::read_dir(formatted())? {
        let entry = entry?;
        fs::copy(entry.path(), store.join(entry.file_name()))?;
    }
    Ok(Store::New)
}

impl Peer for Kafka {
    fn provide(&self) -> Result<(), Failure> {
        Driver::Kafka.build()?;
        format()
    }

    fn settings(&self) -> String {
        format!("JVM with {}; broker and controller in one process", JVM.join(" "))
    }

    fn can(&self, load: &Load) -> bool {
        load.client == Client::Best && load.connections <= CONNECTIONS_MAX
    }

    fn start(&self, store: &Path, policy: Policy) -> Result<Box<dyn Server>, Failure> {
        let state = provide_store(store).map_err(Failure::system("preparing a store of Kafka"))?;
        let ports = ports::free().map_err(Failure::system("looking for free ports"))?;
        let settings = store.with_extension("properties");
        let text = properties(store, state, ports.broker, ports.name, policy);
        fs::write(&settings, text).map_err(Failure::system("writing server.properties"))?;
        let flags: Vec<_> = JVM.iter().chain(&LOG).copied().collect();
        let mut server = Driver::Kafka.java(store, &flags, "kafka.Kafka")?;
        let process = Daemon::start(server.arg(settings), READY)?;
        Ok(Box::new(Running {
            process,
            address: format!("127.0.0.1:{}", ports.broker),
            store: store.to_owned(),
            topics: Mutex::default(),
        }))
    }
}

impl Running {
    fn driver(&self, command: &str) -> Result<Command, Failure> {
        let mut driver = Driver::Kafka.java(&self.store, &CLIENT_JVM, "gantry.kafka.Driver")?;
        driver.args([command, &self.address]);
        Ok(driver)
    }
}

impl Server for Running {
    fn pids(&self) -> Vec<u32> {
        vec![self.process.pid()]
    }

    fn took(&self) -> Duration {
        self.process.took()
    }

    fn store(&self) -> &Path {
        &self.store
    }

    fn create_topic(&self, topic: &str, queues: u32) -> Result<(), Failure> {
        let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if topics.contains(topic) {
            return Ok(());
        }
        let mut driver = self.driver("topic")?;
        let status = driver.args([topic, &queues.to_string()]).stdin(Stdio::null()).status();
        if !status.map_err(Failure::system("creating a topic"))?.success() {
            return Err(Failure::Peer(format!("Kafka did not create topic {topic}, see above")));
        }
        topics.insert(topic.to_owned());
        Ok(())
    }

    fn generator(&self, load: &Load) -> Result<Command, Failure> {
        let mut driver = self.driver("load")?;
        driver.arg(driver::document(load)?);
        if load.batch > 1 {
            // The client's own default, which makes its batches; single messages do not wait for company.
            driver.arg("linger.ms=5");
        }
        Ok(driver)
    }

    fn waiting_consumer(&self, topic: &str) -> Option<Result<RunningLoad, Failure>> {
        let waiting = self.driver("wait").and_then(|mut driver| {
            driver.arg(topic);
            RunningLoad::start(driver, self.pids())
        });
        Some(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_disk_policy_flushes_before_the_answer() {
        let text = |policy| properties(Path::new("/store"), Store::New, 1, 2, policy);
        assert!(text(Policy::Disk).contains("\nlog.flush.interval.messages=1\n"));
        assert!(!text(Policy::Memory).contains("log.flush"));
        assert!(text(Policy::Memory).contains("\nlog.dirs=/store\n"));
    }

    #[test]
    fn a_broker_that_was_killed_is_given_up_when_it_is_started_again() {
        let text = |store| properties(Path::new("/store"), store, 1, 2, Policy::Memory);
        assert!(text(Store::New).contains("\nbroker.session.timeout.ms="));
        assert!(!text(Store::Used).contains("session.timeout"));
    }
}
