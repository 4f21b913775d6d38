//! NATS with `JetStream`: the server from its Go module, loaded by NATS's Go client.
//!
//! A topic is a stream in files, its queues are subjects of the stream. `memory` is the default: an answer means that
//! the operating system has the message. `disk` is `sync_interval: always`: each message is synced before its answer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use gantry_tests::ports;

use super::daemon::Daemon;
use super::driver::{self, Driver};
use super::{Peer, Policy, Server};
use crate::failure::Failure;
use crate::load::{Client, Load, Running as RunningLoad, What};

/// The server's version.
const VERSION: &str = "v2.15.2";
/// What its log says once it takes requests.
const READY: &str = "Server is ready";
/// Stream of the first message after a start.
const FIRST: &str = "first-send";

/// NATS with `JetStream`.
#[derive(Clone, Copy, Debug)]
pub struct Nats;

#[derive(Debug)]
struct Running {
    process: Daemon,
    url: String,
    store: PathBuf,
}

fn server() -> PathBuf {
    Driver::Nats.dir().join("target").join(format!("nats-server-{VERSION}"))
}

/// The server's configuration.
fn configuration(store: &Path, port: u16, policy: Policy) -> String {
    let sync = match policy {
        Policy::Memory => "",
        Policy::Disk => "  sync_interval: always\n",
    };
    format!("listen: \"127.0.0.1:{port}\"\njetstream {{\n  store_dir: \"{}\"\n{sync}}}\n", store.display())
}

impl Peer for Nats {
    fn provide(&self) -> Result<(), Failure> {
        Driver::Nats.build()?;
        let server = server();
        if server.exists() {
            return Ok(());
        }
        let dir = Driver::Nats.dir();
        driver::go(&dir, &["install", &format!("github.com/nats-io/nats-server/v2@{VERSION}")])?;
        let moved = fs::rename(dir.join("target").join("nats-server"), server);
        moved.map_err(Failure::system("installing nats-server"))
    }

    fn can(&self, load: &Load) -> bool {
        load.client == Client::Best
            && matches!(load.what, What::Produce | What::Consume { .. })
            && load.delay.is_none()
    }

    fn start(&self, store: &Path, policy: Policy) -> Result<Box<dyn Server>, Failure> {
        let port = ports::free().map_err(Failure::system("looking for free ports"))?.broker;
        let settings = store.with_extension("conf");
        let text = configuration(store, port, policy);
        fs::write(&settings, text).map_err(Failure::system("writing the configuration of NATS"))?;
        let process = Daemon::start(Command::new(server()).arg("-c").arg(settings), READY)?;
        let url = format!("nats://127.0.0.1:{port}");
        Ok(Box::new(Running { process, url, store: store.to_owned() }))
    }
}

impl Running {
    fn driver(&self, command: &str) -> Command {
        let mut driver = Command::new(Driver::Nats.dir().join("target").join("driver"));
        driver.args([command, &self.url]);
        driver
    }
}

/// Runs a command that takes no time.
fn done(driver: &mut Command, doing: &'static str) -> Result<(), Failure> {
    let status = driver.stdin(Stdio::null()).status().map_err(Failure::system(doing))?;
    if status.success() { Ok(()) } else { Err(Failure::Peer(format!("{doing} in NATS failed, see above"))) }
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
        done(self.driver("topic").args([topic, &queues.to_string()]), "creating a stream")
    }

    fn generator(&self, load: &Load) -> Result<Command, Failure> {
        let mut driver = self.driver("load");
        driver.arg(driver::document(load)?);
        Ok(driver)
    }

    fn first_send(&self) -> Result<(), Failure> {
        done(self.driver("first").arg(FIRST), "sending a first message")
    }

    fn waiting_consumer(&self, topic: &str) -> Option<Result<RunningLoad, Failure>> {
        let mut driver = self.driver("wait");
        driver.arg(topic);
        Some(RunningLoad::start(driver, self.pids()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_disk_policy_syncs_each_message() {
        let text = |policy| configuration(Path::new("/store"), 1, policy);
        assert!(text(Policy::Disk).contains("sync_interval: always"));
        assert!(!text(Policy::Memory).contains("sync_interval"));
    }
}
