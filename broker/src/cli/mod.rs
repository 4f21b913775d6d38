//! The command line: one file per command.
//!
//! Commands reach a broker through the client crate, as any program would; only `serve` is the broker itself,
//! and `store` reads the files of one that does not run.
//! Data goes to standard output, everything else to standard error. Exit code 0 is done, 1 refused or not
//! found, 2 usage; a failure ends with what to try.

mod args;
mod bench;
mod broker;
mod consume;
mod group;
mod message;
mod output;
mod produce;
mod retry;
mod scale;
mod serve;
mod store;
mod topic;
mod txn;

use std::error::Error;
use std::future::Future;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gantry_client::MessageQueue;
use gantry_proto::ids::QueueId;
use gantry_proto::names::{BrokerName, TopicName};
use gantry_proto::remoting::body::queues;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::ServeArgs;
use output::Failure;

/// A transactional message broker that RocketMQ clients talk to.
#[derive(Debug, Parser)]
#[command(name = "gantry", version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the broker and its name service.
    Serve(ServeArgs),
    /// Create, list, describe and delete topics.
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// Create, change, list, describe, move and delete consumer groups.
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Send the lines of a file or of standard input.
    Produce(produce::Produce),
    /// Print messages, one a line.
    Consume(consume::Consume),
    /// Look for stored messages, see what happened to them, take them back, have them processed.
    #[command(subcommand)]
    Message(message::MessageCommand),
    /// List transactions, end them, put expired ones back.
    #[command(subcommand)]
    Txn(txn::TxnCommand),
    /// Look how a broker stands, take it off line and back.
    #[command(subcommand)]
    Broker(broker::BrokerCommand),
    /// Look at a store that no broker runs on.
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Measure a broker: Gantry or Apache RocketMQ.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// Runs the command line; exit code 0 is done, 1 refused or not found, 2 usage.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => return serve::run(&args),
        Command::Topic(command) => block_on(topic::run(command)),
        Command::Group(command) => block_on(group::run(command)),
        Command::Produce(args) => block_on(produce::run(args)),
        Command::Consume(args) => block_on(consume::run(args)),
        Command::Message(command) => block_on(message::run(command)),
        Command::Txn(command) => block_on(txn::run(command)),
        Command::Broker(command) => block_on(broker::run(command)),
        Command::Store(command) => {
            log_to_stderr("warn");
            store::run(command)
        }
        Command::Bench(command) => {
            log_to_stderr("warn");
            bench::run(command)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Runs a command on one thread: it waits for a server most of the time.
fn block_on(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    log_to_stderr("warn");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        Failure::Refused(format!("cannot start: {error}; check the limits of this process (`ulimit -a`)"))
    })?;
    runtime.block_on(command)
}

/// Ends with the first SIGINT or SIGTERM; never, when these cannot be caught.
async fn interrupted() {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else { return std::future::pending().await };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// A queue as bodies name it; `None` when it cannot be one.
fn queue(wire: &queues::MessageQueue) -> Option<MessageQueue> {
    Some(MessageQueue {
        topic: TopicName::storable(&wire.topic).ok()?,
        broker: BrokerName::storable(&wire.broker_name).ok()?,
        id: QueueId::from_wire(wire.queue_id)?,
    })
}

/// Reports a failure and its causes.
fn fail(code: u8, error: &dyn Error) -> ExitCode {
    eprintln!("error: {}", output::text(error));
    ExitCode::from(code)
}

/// Events go to standard error, as much as `GANTRY_LOG` says, otherwise those of `level` and above.
fn log_to_stderr(level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("GANTRY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_can_be_read_is_read_and_the_rest_is_a_usage_error() {
        let parse = |line: &str| Cli::try_parse_from(line.split_whitespace());
        for line in [
            "gantry topic create T --queues 4 --perm rw --attribute message.type=FIFO",
            "gantry topic delete T --yes --output json",
            "gantry topic set T --attribute gantry.rate=5 --remove-attribute gantry.rate.bytes --perm r",
            "gantry group describe G --name-server h:1",
            "gantry group create G --attribute gantry.start=last --retry 5s..2h*3",
            "gantry group set G --retry 1s,10s,1m",
            "gantry group reset G --topic T --to last --member m --yes",
            "gantry group set G --retries 3 --attribute gantry.start=last --remove-attribute a",
            "gantry produce T --key k --key l --tag t --property a=b --delay 3 --rate 10/s",
            "gantry produce T --deliver-in 40d",
            "gantry produce T --deliver-at 2026-01-31T23:59:59Z",
            "gantry message recall HANDLE --output json",
            "gantry message query T --from 2026-01-31T23:59:59Z --to 1800000000000 --max 3",
            "gantry message query T --key k --from 0",
            "gantry message query T --offset-id 7F000001000000020000000000000000",
            "gantry message trace --id ID --topic T --output json",
            "gantry message push 7F000001000000020000000000000000 --group G --client C",
            "gantry group reset G --topic T --to first --queue 1 --broker b --yes",
            "gantry group reset G --topic T --offset 7 --yes",
            "gantry group clone-offset A B --topic T --yes",
            "gantry consume T --group G --from last --max 3 --output json",
            "gantry txn list --expired --group G",
            "gantry txn rollback ID --yes",
            "gantry broker status broker-a --output json",
            "gantry broker drain 127.0.0.1:10911 --grace 0 --timeout 1m --leave-behind --yes",
            "gantry store verify --store DIR --index-slots 100 --findings 5 --output json",
            "gantry bench produce --threads 2 --in-flight 64 --size 128 --messages 1000 --rate 500/s",
            "gantry bench consume --topic T --in-flight 8",
            "gantry bench transaction --duration 2s --broker-pid 1",
            "gantry bench produce --delay 10m..40d --messages 1000",
            "gantry bench timers --delay 5s..15s --messages 1000 --rate 500/s",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
        for line in [
            "gantry",
            "gantry launch",
            "gantry produce",
            "gantry produce T --delay 19",
            "gantry produce T --property a",
            "gantry produce T --delay 1 --deliver-in 1s",
            "gantry produce T --deliver-at soon",
            "gantry message recall",
            "gantry message query T --id a --key b",
            "gantry message query T --offset-id nothing",
            "gantry message trace",
            "gantry message push 7F000001000000020000000000000000 --group G",
            "gantry group reset G --topic T --yes",
            "gantry group reset G --topic T --to first --offset 1",
            "gantry group clone-offset A",
            "gantry consume T --from yesterday",
            "gantry consume T --max 0",
            "gantry topic create T --queues 0",
            "gantry group set G",
            "gantry topic set T",
            "gantry group set G --attribute gantry.start",
            "gantry group set G --retry soon",
            "gantry group reset G --topic T --yes",
            "gantry bench produce --messages 10 --duration 2s",
            "gantry bench produce --rate 0",
            "gantry broker drain",
            "gantry broker drain broker-a --grace soon",
            "gantry store verify --findings many",
            "gantry store verify --policy disk",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
