//! `gantry bench`: measures a broker, Gantry or Apache RocketMQ, with what every client has.
//!
//! ```text
//! worker thread 1..T, each with its own runtime and connections
//!   lane 1..N: take an operation of the schedule ─▶ do it ─▶ record how long it took
//! ```
//!
//! Without `--rate` the loop is closed: a lane begins its next operation when the last one is done. With it the
//! loop is open: every operation is meant to start at a time fixed beforehand, and its latency counts from that
//! time, so that a server that stalls is charged for everything that had to wait.

mod consume;
mod load;
mod process;
mod produce;
mod report;
mod timers;
mod transaction;

use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand};
use gantry_client::{Client, ClientOptions};
use gantry_proto::names::TopicName;
use gantry_proto::remoting::body::topic::TopicConfig;

use super::args::{Printing, Target, rate, size, span};
use super::output::Failure;
use load::{Extent, Plan, Tally, Worker};
use report::{Setup, Watched};

/// How long one request may take; a server that flushes each message to a slow disk needs its time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a new topic may take until the name server knows it.
const ROUTE_WITHIN: Duration = Duration::from_secs(10);
/// Messages of a run that does not say how many.
const MESSAGES: u64 = 100_000;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Send messages.
    Produce(produce::Produce),
    /// Drain a topic from its first message on.
    Consume(consume::Consume),
    /// Send half messages and end their transactions.
    Transaction(transaction::Transaction),
    /// Send timer messages, and see how late they come.
    Timers(timers::Timers),
}

/// What every measurement has.
#[derive(Clone, Debug, Args)]
struct Common {
    /// Topic to use.
    #[arg(long, value_name = "TOPIC", default_value = "gantry-bench")]
    topic: String,
    /// Worker threads; each has at least one connection of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Connections of all threads together, used in turn; as many as there are threads without it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    connections: Option<u32>,
    /// Requests in flight at once, of all threads together.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    in_flight: u32,
    /// Microseconds for which a connection may stay awake for an answer, where most come in that time.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50)]
    busy_wait: u16,
    /// Messages at the start that are not measured.
    #[arg(long, value_name = "N", default_value_t = 0)]
    warmup: u64,
    /// Process of the broker on this machine: its CPU time and memory are measured.
    #[arg(long, value_name = "PID")]
    broker_pid: Option<u32>,
    /// What the report says of the run, like the broker's name and flush policy.
    #[arg(long, value_name = "TEXT")]
    label: Option<String>,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// What is sent, and how fast.
#[derive(Clone, Debug, Args)]
struct Load {
    /// Queues of the topic, if it does not exist yet.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(i32).range(1..=65_536))]
    queues: i32,
    /// Bytes of a message's body.
    #[arg(long, value_name = "BYTES", default_value = "128", value_parser = size)]
    size: usize,
    /// Messages to send; 100000 without this and --duration.
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    messages: Option<u64>,
    /// How long to send, like `30s`.
    #[arg(long, value_name = "TIME", value_parser = span)]
    duration: Option<Duration>,
    /// Messages a second, on a fixed schedule; latency then counts from the time at which a message was due.
    /// Without it a message is sent as soon as another one is done.
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<f64>,
    /// Producer group.
    #[arg(long, value_name = "GROUP", default_value = "gantry-bench")]
    group: String,
}

impl Load {
    /// The warm-up, if there is one, and the measured phase.
    fn plans(&self, warmup: u64, batch: u64) -> (Option<Plan>, Plan) {
        let extent = match (self.messages, self.duration) {
            (_, Some(duration)) => Extent::Time(duration),
            (messages, None) => Extent::Messages(messages.unwrap_or(MESSAGES)),
        };
        let plan = |extent| Plan { extent, batch, rate: self.rate };
        ((warmup > 0).then(|| plan(Extent::Messages(warmup))), plan(extent))
    }

    /// The body of every message: no zeroes, which a file system might leave out.
    fn body(&self) -> Bytes {
        (0..self.size).map(|at| b'a' + u8::try_from(at % 26).unwrap_or_default()).collect()
    }
}

impl Common {
    /// Threads with their clients: for each at least `least`, and a multiple of it. `give` makes of a client what
    /// the lanes of its thread share.
    fn workers<W>(
        &self,
        least: u32,
        mut give: impl AsyncFnMut(&Client) -> Result<W, Failure>,
    ) -> Result<Vec<Worker<W>>, Failure> {
        let threads = u32::from(self.threads).min(self.in_flight);
        let options = ClientOptions::new(&*self.target.name_server)
            .timeout(REQUEST_TIMEOUT)
            .busy_wait(Duration::from_micros(self.busy_wait.into()));
        let connections = self.connections.unwrap_or(threads);
        (0..threads)
            .map(|number| {
                let connections = share(connections, threads, number).max(1).next_multiple_of(least);
                Worker::start(&options, connections, share(self.in_flight, threads, number), &mut give)
            })
            .collect()
    }

    /// Warms up, then sends what is measured with `send`, and reports.
    fn measure(
        &self,
        load: &Load,
        setup: &Setup,
        mut send: impl FnMut(Plan) -> (Tally, Duration),
    ) -> Result<(), Failure> {
        let (warmup, plan) = load.plans(self.warmup, setup.batch);
        if let Some(warmup) = warmup {
            send(warmup);
        }
        let watched = Watched::start(self)?;
        let (tally, took) = send(plan);
        watched.report(self, setup, &tally, took)
    }

    fn topic(&self) -> Result<TopicName, Failure> {
        TopicName::parse(&self.topic).map_err(|error| Failure::Usage(error.to_string()))
    }

    /// Creates the topic if it is not there, and waits until it can be found.
    async fn provide_topic(&self, client: &Client, queues: i32) -> Result<(), Failure> {
        let admin = client.admin();
        if admin.topic_config(&self.topic).await?.is_none() {
            let config = TopicConfig {
                topic_name: self.topic.clone(),
                read_queue_nums: queues,
                write_queue_nums: queues,
                ..TopicConfig::default()
            };
            admin.create_topic(&config).await?;
        }
        let known = async {
            while admin.topic_route(&self.topic).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(ROUTE_WITHIN, known).await.map_err(|_| {
            let (topic, target) = (&self.topic, &self.target.name_server);
            Failure::Refused(format!(
                "{target} does not know topic {topic} yet; check that its broker registers there"
            ))
        })
    }
}

/// What one of `among` gets of `all`.
const fn share(all: u32, among: u32, number: u32) -> u32 {
    all / among + (number < all % among) as u32
}

/// Runs `gantry bench`.
pub fn run(command: BenchCommand) -> Result<(), Failure> {
    match command {
        BenchCommand::Produce(args) => produce::run(&args),
        BenchCommand::Consume(args) => consume::run(&args),
        BenchCommand::Transaction(args) => transaction::run(&args),
        BenchCommand::Timers(args) => timers::run(&args),
    }
}
