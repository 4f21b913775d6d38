//! The load generator: `gantry bench` as a process of its own, the same for both brokers.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gantry_tests::harness;
use serde::{Deserialize, Serialize};

use crate::broker::Broker;
use crate::failure::Failure;
use crate::stop;

/// How often a load that runs is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// What a run found out; fields as `gantry bench --output json` prints them.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Measured {
    /// Messages that were sent, committed or read.
    pub messages: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Why the first one did.
    pub first_error: Option<String>,
    /// Length of the measured phase.
    pub seconds: f64,
    /// Throughput.
    pub messages_per_second: f64,
    /// Time of an operation.
    pub latency_ms: Latency,
    /// What the broker's process used.
    pub broker: Used,
}

/// Percentiles in milliseconds.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 99 of 100 are faster.
    pub p99: f64,
    /// 999 of 1000 are faster.
    #[serde(rename = "p99.9")]
    pub p99_9: f64,
}

/// What a process used in the measured phase.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Used {
    /// CPU time.
    pub cpu_seconds: f64,
    /// CPU time by messages; none when no message came through.
    pub cpu_seconds_per_million: Option<f64>,
    /// Most anonymous memory.
    pub rss_anon_peak_mib: f64,
}

/// A `gantry` command that runs. Dropping it is SIGKILL.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
}

impl Running {
    /// Starts `gantry` with `arguments` against a broker.
    pub fn start(broker: &Broker, arguments: &str) -> Result<Self, Failure> {
        stop::check()?;
        let mut command = Command::new(harness::binary());
        command.args(arguments.split_whitespace()).args(["--name-server", &broker.name_server()]);
        command.args(["--output", "json"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let child = command.spawn().map_err(Failure::system("starting the load generator"))?;
        Ok(Self { child, command: arguments.to_owned() })
    }

    /// Waits until it ends; what it printed. The report of a run must fit into a pipe.
    fn finish(mut self) -> Result<(String, String), Failure> {
        let waiting = Failure::system("waiting for the load generator");
        let status = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status,
                Ok(None) => stop::sleep(LOOK)?,
                Err(error) => return Err(waiting(error)),
            }
        };
        let mut output = String::new();
        if let Some(stdout) = &mut self.child.stdout {
            stdout.read_to_string(&mut output).map_err(Failure::system("reading the load generator"))?;
        }
        Ok((output, status.to_string()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may be gone already
        let _ = self.child.wait();
    }
}

/// Runs `gantry bench` with `arguments` against a broker. Operations that failed are in the result.
pub fn bench(broker: &Broker, arguments: &str) -> Result<Measured, Failure> {
    let running = Running::start(broker, &format!("bench {arguments} --broker-pid {}", broker.pid()))?;
    let command = running.command.clone();
    let (output, status) = running.finish()?;
    stop::check()?;
    serde_json::from_str(&output).map_err(|_| Failure::Load { command, status })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let report = r#"{"bench":"produce","size":128,"batch":1,"rate":null,"label":null,"messages":10,"errors":0,
            "first_error":null,"seconds":1.0,"messages_per_second":10.0,"mb_per_second":0.1,
            "latency_ms":{"p50":1.0,"p90":2.0,"p99":3.0,"p99.9":4.0,"max":5.0},
            "broker":{"cpu_seconds":0.1,"cpu_seconds_per_million":10000.0,"rss_anon_peak_mib":7.5}}"#;
        let measured: Measured = serde_json::from_str(report).unwrap();
        assert_eq!((measured.messages, measured.latency_ms.p99_9.to_string()), (10, "4".to_owned()));
        assert_eq!(measured.broker.cpu_seconds_per_million, Some(10_000.0));
    }
}
