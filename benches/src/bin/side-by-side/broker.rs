//! The two brokers that are measured, as processes that end with their handles.

use std::path::Path;
use std::time::{Duration, Instant};

use gantry_tests::apache::Apache;
use gantry_tests::harness::{self, Gantry};
use gantry_tests::java;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::failure::Failure;
use crate::options::{Options, Policy};
use crate::stop;

/// Which broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// This one.
    Gantry,
    /// Apache RocketMQ 5.5.0.
    Apache,
}

impl Kind {
    /// Its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gantry => "Gantry",
            Self::Apache => "Apache",
        }
    }
}

#[derive(Debug)]
enum Process {
    Gantry(Box<Gantry>),
    Apache(Apache),
}

/// Builds what a broker is started from, if need be: that is no part of its start.
fn provide(kind: Kind) -> Result<(), Failure> {
    match kind {
        Kind::Gantry => harness::binary().to_owned(),
        Kind::Apache => java::apache(java::APACHE).map_err(Failure::Apache)?,
    };
    Ok(())
}

/// A broker that runs, with its name server. Dropping it is SIGKILL.
#[derive(Debug)]
pub struct Broker {
    process: Process,
    took: Duration,
}

impl Broker {
    /// Starts one on a store that the caller removes, as it comes but for the policy. For Apache the settings
    /// of [`Options`] count too.
    pub fn start(kind: Kind, store: &Path, policy: Policy, options: &Options) -> Result<Self, Failure> {
        stop::check()?;
        provide(kind)?;
        let since = Instant::now();
        let process = match kind {
            Kind::Gantry => {
                Process::Gantry(Box::new(Gantry::start_on(store, &["--policy", policy.gantry()])))
            }
            Kind::Apache => {
                let flush = format!("flushDiskType={}", policy.apache());
                // Its own default; the tests make smaller files.
                let mut settings = vec!["mappedFileSizeCommitLog=1073741824", &flush];
                settings.extend(options.apache_set.iter().map(String::as_str));
                let jvm: Vec<_> = options.apache_jvm.split_whitespace().collect();
                Process::Apache(
                    Apache::start_version(java::APACHE, store, &jvm, &settings).map_err(Failure::Apache)?,
                )
            }
        };
        let broker = Self { process, took: since.elapsed() };
        stop::check()?;
        Ok(broker)
    }

    /// Which broker this is.
    pub const fn kind(&self) -> Kind {
        match &self.process {
            Process::Gantry(_) => Kind::Gantry,
            Process::Apache(_) => Kind::Apache,
        }
    }

    /// From before its process was made until it was ready.
    pub const fn took(&self) -> Duration {
        self.took
    }

    /// Address of its name server.
    pub fn name_server(&self) -> String {
        match &self.process {
            Process::Gantry(gantry) => gantry.name_server().to_string(),
            Process::Apache(apache) => apache.name_server().to_owned(),
        }
    }

    /// Id of its process.
    pub fn pid(&self) -> u32 {
        match &self.process {
            Process::Gantry(gantry) => gantry.pid(),
            Process::Apache(apache) => apache.pid(),
        }
    }

    /// Takes all CPU time from it (SIGSTOP), so that the other one has the machine for itself.
    pub fn pause(&self) -> Result<(), Failure> {
        self.signal(Signal::STOP)
    }

    /// The end of a [`pause`](Self::pause).
    pub fn resume(&self) -> Result<(), Failure> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(Failure::Process(self.pid()))?;
        kill_process(pid, signal).map_err(|_| Failure::Process(self.pid()))
    }
}
