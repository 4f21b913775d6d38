//! The load: what is asked of a load generator, and what it reports.
//!
//! A load generator is a process of its own. It connects, makes the warm-up, measures, and prints lines to
//! standard output (everything else to standard error):
//!
//! ```text
//! measuring              optional: the measured phase begins now
//! { … }                  the report, one JSON document, at the end
//! ```
//!
//! With the line `measuring`, CPU time and memory of the broker are taken by whoever reads these lines, from
//! that line until the report begins. A generator that takes them itself (as `gantry bench` does) leaves the line
//! out and gives a field `broker`. See [`Measured`] for the other fields.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::process::Watch;
use crate::stop;

/// How often a load that runs is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// A generator that goes on so long after what it was asked for hangs.
const GRACE: Duration = Duration::from_secs(120);
/// The longest report that is read; histograms and series of an hour stay far below.
const REPORT_BYTES_MAX: u64 = 64 << 20;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Messages are sent.
    Produce,
    /// Timer messages are sent and waited for: the time of an operation is how late one comes. What does not come, comes
    /// early or comes twice is an error.
    Timers,
    /// Messages are sent as parts of transactions that are committed at once.
    Transaction,
    /// The topic is read from its first message on, by so many groups at the same time; what each of them reads
    /// counts. The extent is [`Extent::Messages`].
    Consume {
        /// Groups, at least 1.
        groups: u32,
    },
}

/// How much is measured, after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Extent {
    /// So many messages; of every group when groups read.
    Messages(u64),
    /// As many as fit into so many milliseconds.
    Millis(u64),
}

/// Who makes the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Client {
    /// The best client there is: Gantry's for the RocketMQ protocol, a peer's own otherwise.
    Best,
    /// The benchmark classes that Apache RocketMQ ships, with its own client.
    OfficialJava,
}

/// One load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// What is done.
    pub what: What,
    /// Topic; it exists already, see [`crate::peer::Server::create_topic`].
    pub topic: String,
    /// Queues (partitions) of the topic.
    pub queues: u32,
    /// Bytes of a body.
    pub size: u32,
    /// Messages of a request; of a pull at most.
    pub batch: u32,
    /// Requests under way at once, over all connections. A client that batches by itself has so many *messages*
    /// under way times [`batch`](Self::batch).
    pub in_flight: u32,
    /// Connections, used in turn.
    pub connections: u32,
    /// Microseconds for which a connection may stay awake for an answer, where the client can be told.
    pub busy_wait: Option<u16>,
    /// When messages are due that are timer messages, like `5s..15s`: spread over these times from when they are sent.
    pub delay: Option<String>,
    /// Messages a second on a fixed timetable. Latency then counts from the time at which a message was due, so
    /// that a pause is charged for all that had to wait. Without it: a request follows as soon as one is done.
    pub rate: Option<u32>,
    /// Messages before the measured phase; of every group when groups read.
    pub warmup: u64,
    /// How much is measured.
    pub extent: Extent,
    /// Who makes the load.
    pub client: Client,
}

impl Load {
    /// Sends of 128 B to a topic of 8 queues: 64 in flight over one connection, 4 seconds.
    pub fn produce(topic: &str) -> Self {
        Self {
            what: What::Produce,
            topic: topic.to_owned(),
            queues: 8,
            size: 128,
            batch: 1,
            in_flight: 64,
            connections: 1,
            busy_wait: None,
            delay: None,
            rate: None,
            warmup: 0,
            extent: Extent::Millis(4000),
            client: Client::Best,
        }
    }
}

/// What a run found out: the report that a load generator prints. Fields that are not named here are allowed.
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
    /// Time of an operation: of a request, of a transaction from its half message until its end is answered, of
    /// a pull. Clients that batch by themselves: of a message.
    pub latency_ms: Latency,
    /// The same in full: pairs of microseconds and how many operations took so long, rising, without zeroes.
    #[serde(default)]
    pub histogram_us: Vec<(f64, u64)>,
    /// Messages over time.
    #[serde(default)]
    pub series: Option<Series>,
    /// What the broker's processes used in the measured phase.
    #[serde(default)]
    pub broker: Option<Used>,
    /// What the load generator used.
    #[serde(default)]
    pub client: Option<Used>,
}

/// Percentiles in milliseconds; not a number where a generator does not know them.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(default)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 9 of 10 are faster.
    pub p90: f64,
    /// 99 of 100 are faster.
    pub p99: f64,
    /// 999 of 1000 are faster.
    #[serde(rename = "p99.9")]
    pub p99_9: f64,
    /// 9999 of 10000 are faster.
    #[serde(rename = "p99.99")]
    pub p99_99: f64,
    /// The slowest.
    pub max: f64,
}

impl Default for Latency {
    fn default() -> Self {
        let none = f64::NAN;
        Self { p50: none, p90: none, p99: none, p99_9: none, p99_99: none, max: none }
    }
}

/// Messages that were done in each interval from the start of the measured phase on.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Series {
    /// Length of an interval, 100 to 250.
    pub interval_ms: u64,
    /// Messages of each; the last one may be shorter.
    pub messages: Vec<u64>,
}

/// What processes used in the measured phase.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Used {
    /// CPU time.
    pub cpu_seconds: f64,
    /// CPU time by messages; none when no message came through.
    pub cpu_seconds_per_million: Option<f64>,
    /// Most anonymous memory.
    pub rss_anon_peak_mib: f64,
}

/// A load generator that runs. Dropping it is SIGKILL.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// What it was asked for, for messages.
    what: String,
    output: Receiver<Line>,
    /// Processes of the broker.
    pids: Vec<u32>,
}

/// What comes out of a load generator.
#[derive(Debug)]
enum Line {
    Measuring,
    Report(String),
}

impl Running {
    /// Starts a load generator against a broker with these processes. Its standard input and output are taken.
    pub fn start(mut command: Command, pids: Vec<u32>) -> Result<Self, Failure> {
        stop::check()?;
        let words = [command.get_program()].into_iter().chain(command.get_args());
        let what: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        let what = what.join(" ");
        let doing = Failure::system("starting the load generator");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(doing)?;
        let (sender, output) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || read(stdout, &sender));
        }
        Ok(Self { child, what, output, pids })
    }

    /// Waits until it ends, at most `within`; what it found out. Operations that failed are in the result.
    pub fn finish(mut self, within: Duration) -> Result<Measured, Failure> {
        let end = Instant::now() + within + GRACE;
        let mut watch = None;
        let report = loop {
            match self.output.recv_timeout(LOOK) {
                Ok(Line::Measuring) => watch = Some(Watch::start(&self.pids)?),
                Ok(Line::Report(text)) => break text,
                Err(RecvTimeoutError::Timeout) if Instant::now() < end => stop::check()?,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Failure::Load {
                        command: self.what.clone(),
                        status: "its time is over".to_owned(),
                    });
                }
                Err(RecvTimeoutError::Disconnected) => break String::new(),
            }
        };
        let used = watch.map(Watch::stop).transpose()?;
        let status = self.child.wait().map_err(Failure::system("waiting for the load generator"))?;
        stop::check()?;
        let mut measured: Measured = serde_json::from_str(&report)
            .map_err(|_| Failure::Load { command: self.what.clone(), status: status.to_string() })?;
        if measured.broker.is_none() {
            measured.broker = used.map(|used| used.by(measured.messages));
        }
        Ok(measured)
    }
}

/// Reads what a generator prints. The report is everything from a line that begins with `{` on.
fn read(stdout: ChildStdout, to: &mpsc::Sender<Line>) {
    let mut lines = BufReader::new(stdout);
    loop {
        let mut line = String::new();
        match lines.read_line(&mut line) {
            Ok(1..) if line.trim() == "measuring" => {
                let _ = to.send(Line::Measuring); // nobody waits any more: it is being killed
            }
            Ok(1..) if line.starts_with('{') => {
                let rest = lines.by_ref().take(REPORT_BYTES_MAX).read_to_string(&mut line);
                if rest.is_ok() {
                    let _ = to.send(Line::Report(line)); // as above
                }
                return;
            }
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may be gone already
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{"bench":"produce","size":128,"messages":10,"errors":0,"first_error":null,
        "seconds":1.0,"messages_per_second":10.0,"mb_per_second":0.1,
        "latency_ms":{"p50":1.0,"p90":2.0,"p99":3.0,"p99.9":4.0,"p99.99":4.5,"max":5.0},
        "histogram_us":[[1000.5,9],[5000,1]],"series":{"interval_ms":100,"messages":[4,6]}}"#;

    fn shell(script: &str) -> Result<Measured, Failure> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Running::start(command, vec![std::process::id()]).unwrap().finish(Duration::from_secs(60))
    }

    #[test]
    fn a_report_is_read_with_what_the_broker_used() {
        let measured = shell(&format!("echo something; echo measuring; echo '{REPORT}'")).unwrap();
        assert_eq!((measured.messages, measured.latency_ms.p99_99.to_string()), (10, "4.5".to_owned()));
        assert_eq!(measured.histogram_us, [(1000.5, 9), (5000.0, 1)]);
        assert!(measured.broker.unwrap().rss_anon_peak_mib > 0.0);
        assert!(shell(&format!("echo '{REPORT}'")).unwrap().broker.is_none());
    }

    #[test]
    fn what_a_generator_does_not_know_is_no_number() {
        let latency: Latency = serde_json::from_str(r#"{"mean":1.5,"max":2.0}"#).unwrap();
        assert!(latency.p50.is_nan() && latency.max > 1.0);
    }

    #[test]
    fn a_generator_without_a_report_is_named() {
        let failure = shell("echo measuring; exit 3").unwrap_err().to_string();
        assert!(failure.contains("sh -c") && failure.contains("exit status: 3"), "{failure}");
    }
}
