//! The command line of `side-by-side`, and how much is measured.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::Serialize;

/// Measures Gantry and Apache RocketMQ 5.5.0 in turn with the same load generator, `gantry bench`.
#[derive(Clone, Debug, Parser)]
#[command(name = "side-by-side", max_term_width = 110)]
pub struct Options {
    /// Rounds of each shape; their median is reported.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Seconds of each measured phase.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Messages a second of the open loop: what both brokers can hold.
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// What to measure, like `send,transaction`; everything without it.
    #[arg(long, value_name = "PART", value_enum, value_delimiter = ',')]
    pub only: Vec<Part>,
    /// When an answer means that a message is kept; both without it.
    #[arg(long, value_name = "POLICY", value_enum, value_delimiter = ',')]
    pub policy: Vec<Policy>,
    /// A smoke run of about a minute: one short round, small stores, policy disk unless --policy says otherwise.
    #[arg(long)]
    pub quick: bool,
    /// Leaves out the start on 5 GiB stores after SIGKILL.
    #[arg(long)]
    pub skip_recovery: bool,
    /// Measures Gantry alone.
    #[arg(long)]
    pub skip_apache: bool,
    /// Where stores are made and removed again: on the disk that is to be measured.
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    pub dir: PathBuf,
    /// Flags of Apache's JVM, divided by blanks.
    #[arg(long, value_name = "FLAGS", default_value = "-Xms1g -Xmx1g", allow_hyphen_values = true)]
    pub apache_jvm: String,
    /// A property of Apache's `broker.conf`; can be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    pub apache_set: Vec<String>,
    /// How to print: the tables of the README, or every run as JSON.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Markdown)]
    pub output: Format,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Sends, 64 in flight.
    Send,
    /// Sends, one in flight.
    Single,
    /// Sends on a fixed schedule.
    OpenLoop,
    /// Sends of 32 messages each.
    Batch,
    /// Reading a topic from its first message on.
    Drain,
    /// Transactions, 64 in flight, all committed.
    Transaction,
    /// Memory and CPU time of Gantry when nothing is to be done.
    Idle,
    /// From the start of the process until it is ready, on an empty store.
    Start,
    /// The same on a large store after SIGKILL under load.
    Recovery,
}

impl Part {
    /// What both brokers are measured in, in the order of the report.
    pub const SHAPES: [Self; 6] =
        [Self::Send, Self::Single, Self::OpenLoop, Self::Batch, Self::Drain, Self::Transaction];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Single => "single",
            Self::OpenLoop => "open-loop",
            Self::Batch => "batch",
            Self::Drain => "drain",
            Self::Transaction => "transaction",
            Self::Idle => "idle",
            Self::Start => "start",
            Self::Recovery => "recovery",
        }
    }
}

/// When an answer means that a message is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// The operating system has it: `memory`, `ASYNC_FLUSH`.
    Memory,
    /// The disk has it: `disk`, `SYNC_FLUSH`.
    Disk,
}

impl Policy {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Memory, Self::Disk];

    /// Gantry's `--policy`.
    pub const fn gantry(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }

    /// Apache's `flushDiskType`.
    pub const fn apache(self) -> &'static str {
        match self {
            Self::Memory => "ASYNC_FLUSH",
            Self::Disk => "SYNC_FLUSH",
        }
    }
}

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables.
    Markdown,
    /// One document.
    Json,
}

/// How much of everything.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Scale {
    /// Rounds of each shape.
    pub rounds: u32,
    /// Seconds of a measured phase.
    pub seconds: u64,
    /// Messages a second in the open loop.
    pub rate: u32,
    /// Sends to a new broker before anything is measured, for Apache's JIT compiler.
    pub first_sends: u64,
    /// Transactions before those that are measured, on the same new broker.
    pub first_transactions: u64,
    /// Messages of the topic that is drained, half as many again as warm-up.
    pub drain: u64,
    /// Seconds over which idle CPU time is measured.
    pub idle_seconds: u64,
    /// Starts of Gantry on empty stores.
    pub starts: u32,
    /// Starts of Apache's broker on empty stores, which take seconds each.
    pub apache_starts: u32,
    /// Bytes of bodies in the store that is recovered.
    pub recovery_bytes: u64,
    /// How often Gantry is killed under load and started again.
    pub kills: u32,
    /// How often Apache's broker is.
    pub apache_kills: u32,
}

impl Options {
    /// Whether a part is to be measured.
    pub fn wants(&self, part: Part) -> bool {
        (self.only.is_empty() || self.only.contains(&part)) && !(self.skip_recovery && part == Part::Recovery)
    }

    /// The policies to measure.
    pub fn policies(&self) -> Vec<Policy> {
        match (self.policy.is_empty(), self.quick) {
            (true, false) => Policy::ALL.to_vec(),
            (true, true) => vec![Policy::Disk],
            (false, _) => self.policy.clone(),
        }
    }

    /// How much of everything.
    pub const fn scale(&self) -> Scale {
        if self.quick {
            return Scale {
                rounds: 1,
                seconds: 1,
                rate: self.rate,
                first_sends: 5_000,
                first_transactions: 2_000,
                drain: 50_000,
                idle_seconds: 2,
                starts: 3,
                apache_starts: 0,
                recovery_bytes: 256 << 20,
                kills: 1,
                apache_kills: 0,
            };
        }
        Scale {
            rounds: self.rounds,
            seconds: self.seconds,
            rate: self.rate,
            first_sends: 200_000,
            first_transactions: 60_000,
            drain: 1_000_000,
            idle_seconds: 10,
            starts: 10,
            apache_starts: 3,
            recovery_bytes: 5 << 30,
            kills: 3,
            apache_kills: 1,
        }
    }
}

impl Scale {
    /// How long idle CPU time is measured.
    pub const fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_seconds)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
        for part in Part::value_variants() {
            assert_eq!(part.to_possible_value().unwrap().get_name(), part.name());
        }
    }

    #[test]
    fn parts_are_chosen_and_left_out() {
        let parse = |line: &str| Options::try_parse_from(line.split_whitespace());
        let all = parse("side-by-side --skip-recovery").unwrap();
        assert!(all.wants(Part::Send) && all.wants(Part::Idle) && !all.wants(Part::Recovery));
        let some = parse("side-by-side --only send,open-loop --policy disk").unwrap();
        assert!(some.wants(Part::OpenLoop) && !some.wants(Part::Drain));
        assert_eq!(some.policies(), [Policy::Disk]);
        assert!(parse("side-by-side --only nothing").is_err());
        assert!(parse("side-by-side --apache-jvm -Xmx4g --apache-set a=b").is_ok());
    }
}
