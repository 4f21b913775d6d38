//! The brokers that are compared: what each must offer.
//!
//! ```text
//! Kind ── peer() ─▶ Peer: a broker that can be started, many times and on many stores
//!                     └─ start(store, policy) ─▶ Server: processes that run; dropping it is SIGKILL
//!                                                  ├─ create_topic, run(load) ─▶ Measured
//!                                                  └─ pids: their CPU time and memory are measured, and they
//!                                                     are paused while another one is measured
//! ```
//!
//! Everything that a peer needs beside its store (logs, generated configuration) lies in a directory that goes
//! with its `Server`, or beside the store, whose parent directory is removed afterwards. What cannot be installed
//! or does not start is a [`Failure::Peer`]: it is one line of the report, and the others are measured all the same.
//!
//! A restart after SIGKILL is: drop the server, [`Peer::start`] on the same store.

mod apache;
mod daemon;
mod driver;
mod gantry;
mod kafka;
mod nats;
mod rocketmq;

use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::ValueEnum;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::load::{Extent, Load, Measured, Running};
use crate::store;

/// A load that is not limited by time may take so long.
const WITHIN: Duration = Duration::from_secs(600);

/// Which broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// This one.
    Gantry,
    /// Apache RocketMQ 5.5.0.
    Apache,
    /// Apache RocketMQ 5.4.0: the fair one for transactions and what comes after them, because 5.5.0 can keep a
    /// core busy long after some.
    #[value(name = "apache-5.4.0")]
    #[serde(rename = "apache-5.4.0")]
    Apache540,
    /// Apache Kafka.
    Kafka,
    /// NATS with `JetStream`.
    Nats,
}

impl Kind {
    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gantry => "Gantry",
            Self::Apache => "Apache 5.5.0",
            Self::Apache540 => "Apache 5.4.0",
            Self::Kafka => "Kafka 4.3.1",
            Self::Nats => "NATS 2.15.2",
        }
    }

    /// How to start it.
    pub fn peer(self, settings: &Settings) -> Box<dyn Peer> {
        match self {
            Self::Gantry => Box::new(gantry::Gantry),
            Self::Apache => Box::new(apache::Apache::new("5.5.0", settings)),
            Self::Apache540 => Box::new(apache::Apache::new("5.4.0", settings)),
            Self::Kafka => Box::new(kafka::Kafka),
            Self::Nats => Box::new(nats::Nats),
        }
    }
}

/// What of peers can be chosen on the command line.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Flags of the JVM of Apache's broker.
    pub apache_jvm: Vec<String>,
    /// Properties (`KEY=VALUE`) of Apache's `broker.conf`.
    pub apache_set: Vec<String>,
}

/// When an answer means that a message is kept. Each peer uses its equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The operating system has it: a process can die, the machine cannot. `memory`, `ASYNC_FLUSH`.
    Memory,
    /// The disk has it, with fdatasync or fsync before the answer. `disk`, `SYNC_FLUSH`.
    Disk,
}

impl Policy {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Memory, Self::Disk];

    /// Its name in tables and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }
}

/// A broker that can be started.
pub trait Peer {
    /// Installs or builds what it is started from, if need be: that is no part of its start. Called before the
    /// first start. Errors say what is missing on this machine.
    fn provide(&self) -> Result<(), Failure>;

    /// What a reader of the report must know of its settings, in one line; empty for none.
    fn settings(&self) -> String {
        String::new()
    }

    /// Whether it has what a load asks for. What it does not is left out of the report.
    fn can(&self, load: &Load) -> bool;

    /// Starts it on a store (a directory that need not exist), as it comes but for the policy, and waits until it
    /// takes requests. The caller removes the store.
    fn start(&self, store: &Path, policy: Policy) -> Result<Box<dyn Server>, Failure>;
}

/// A broker that runs, with all that belongs to it (name server, controller). Dropping it is SIGKILL.
pub trait Server {
    /// Its processes. CPU time and memory of all of them count.
    fn pids(&self) -> Vec<u32>;

    /// From before the first process was made until it took requests.
    fn took(&self) -> Duration;

    /// Directory of its store.
    fn store(&self) -> &Path;

    /// Creates a topic with so many queues (partitions), or does nothing when it is there, and waits until
    /// clients find it.
    fn create_topic(&self, topic: &str, queues: u32) -> Result<(), Failure>;

    /// A load generator for a load that [`Peer::can`] do; its topic is there. Standard input and output are
    /// taken by the caller: see [`crate::load`] for what it prints.
    fn generator(&self, load: &Load) -> Result<Command, Failure>;

    /// Sends one message, again until it is acknowledged, as soon as that is possible: the end of "start to first
    /// send". Without an own implementation the broker's being ready counts.
    fn first_send(&self) -> Result<(), Failure> {
        Ok(())
    }

    /// Runs a load to its end.
    fn run(&self, load: &Load) -> Result<Measured, Failure> {
        let within = match load.extent {
            Extent::Millis(millis) => Duration::from_millis(millis),
            Extent::Messages(_) => WITHIN,
        };
        self.begin(load)?.finish(within)
    }

    /// Begins a load, and leaves it to the caller.
    fn begin(&self, load: &Load) -> Result<Running, Failure> {
        self.create_topic(&load.topic, load.queues)?;
        Running::start(self.generator(load)?, self.pids())
    }

    /// A consumer that waits for messages of a topic, once it runs; `None` where there is none to measure with.
    fn waiting_consumer(&self, _topic: &str) -> Option<Result<Running, Failure>> {
        None
    }

    /// How many timer messages wait; `None` where nobody asks.
    fn pending_timers(&self) -> Option<Result<u64, Failure>> {
        None
    }

    /// Bytes that the store has on the disk, without what is only allocated. See [`store::content_bytes`].
    fn store_bytes(&self) -> io::Result<u64> {
        store::content_bytes(self.store())
    }
}

/// Takes all CPU time from a broker (SIGSTOP), so that another one has the machine for itself.
pub fn pause(server: &dyn Server) -> Result<(), Failure> {
    signal(server, Signal::STOP)
}

/// The end of a [`pause`].
pub fn resume(server: &dyn Server) -> Result<(), Failure> {
    signal(server, Signal::CONT)
}

fn signal(server: &dyn Server, signal: Signal) -> Result<(), Failure> {
    for id in server.pids() {
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or(Failure::Process(id))?;
        kill_process(pid, signal).map_err(|_| Failure::Process(id))?;
    }
    Ok(())
}
