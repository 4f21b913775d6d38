//! The command line of `compare`.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use gantry_benches::peer::{Kind, Policy, Settings};
use serde::Serialize;

/// Measures Gantry and other brokers in turn, each with the same load and equal durability, and writes one report.
#[derive(Clone, Debug, Parser)]
#[command(name = "compare", max_term_width = 110)]
pub struct Options {
    /// How much is measured.
    #[arg(long, value_name = "SET", value_enum, default_value_t = Set::Default)]
    pub set: Set,
    /// Brokers to measure, like `gantry,apache`; all that can be installed without it.
    #[arg(long, value_name = "PEER", value_enum, value_delimiter = ',')]
    pub peers: Vec<Kind>,
    /// What to measure, like `send,transaction`; everything without it.
    #[arg(long, value_name = "PART", value_enum, value_delimiter = ',')]
    pub only: Vec<Part>,
    /// When an answer means that a message is kept; both without it.
    #[arg(long, value_name = "POLICY", value_enum, value_delimiter = ',')]
    pub policy: Vec<Policy>,
    /// Rounds of each shape, whose median is reported, instead of what the set says.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: Option<u32>,
    /// Seconds of each measured phase, instead of what the set says.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: Option<u64>,
    /// Messages a second of the open loop: what the brokers can hold.
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// Writes every run and figure as JSON, with histograms and series.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Writes the report as one HTML page with plots.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Where stores are made and removed again: on the disk that is to be measured.
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    pub dir: PathBuf,
    /// Leaves out the start on large stores after SIGKILL.
    #[arg(long)]
    pub skip_recovery: bool,
    /// Leaves out Apache's broker in all versions.
    #[arg(long)]
    pub skip_apache: bool,
    /// Flags of the JVM of Apache's broker, divided by blanks.
    #[arg(long, value_name = "FLAGS", default_value = "-Xms1g -Xmx1g", allow_hyphen_values = true)]
    pub apache_jvm: String,
    /// A property of Apache's `broker.conf`; can be given again.
    #[arg(long, value_name = "KEY=VALUE")]
    pub apache_set: Vec<String>,
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Set {
    /// Some minutes: shows that everything works. The JVMs are cold, nothing can be compared.
    Quick,
    /// What the targets need three times, the other shapes once.
    Default,
    /// Hours: everything under both policies, five times.
    Full,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// What the machine could do at best.
    Limits,
    /// Bytes on the disk of a message.
    Store,
    /// Sends, 64 in flight.
    Send,
    /// Sends, one in flight.
    Single,
    /// Sends on a fixed timetable.
    OpenLoop,
    /// Sends of 32 messages each.
    Batch,
    /// Reading a topic from its first message on.
    Drain,
    /// The same by five groups at the same time.
    FanOut,
    /// Sends, 8 and 1,024 in flight.
    InFlight,
    /// Sends of 1 KiB.
    Size,
    /// Sends over 2, 200 and 2,000 connections.
    Connections,
    /// Sends by the benchmark classes that Apache RocketMQ ships.
    Official,
    /// Sends to 1, 8, 100 and 10,000 queues.
    Queues,
    /// Transactions, 64 in flight, all committed.
    Transaction,
    /// Many timer messages that wait: how late those come that are due, and what the others cost.
    Timers,
    /// Memory and CPU time when nothing is to be done, before and after a load.
    Idle,
    /// From the start of the process until it is ready and until it acknowledged a first message.
    Start,
    /// The same on a large store after SIGKILL under load.
    Recovery,
}

impl Part {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

impl Options {
    /// Whether a part is to be measured.
    pub fn wants(&self, part: Part) -> bool {
        (self.only.is_empty() || self.only.contains(&part)) && !(self.skip_recovery && part == Part::Recovery)
    }

    /// Whether a part is to be measured of a broker. Of two versions of Apache's the older one is there for what
    /// the newer one does not do fairly.
    pub fn wants_of(&self, part: Part, kind: Kind) -> bool {
        if part == Part::Timers && kind != Kind::Gantry {
            return false;
        }
        let spare = kind == Kind::Apache540 && self.kinds().contains(&Kind::Apache);
        self.wants(part) && (!spare || matches!(part, Part::Transaction | Part::Idle))
    }

    /// The policies to measure.
    pub fn policies(&self) -> Vec<Policy> {
        match (self.policy.is_empty(), self.set) {
            (true, Set::Quick) => vec![Policy::Memory],
            (true, Set::Default | Set::Full) => Policy::ALL.to_vec(),
            (false, _) => self.policy.clone(),
        }
    }

    /// The brokers to measure.
    pub fn kinds(&self) -> Vec<Kind> {
        let left_out = |kind: &Kind| match kind {
            Kind::Apache => self.skip_apache,
            // Seconds for each start, and nothing that a smoke run would show.
            Kind::Apache540 => self.skip_apache || self.peers.is_empty() && self.set == Set::Quick,
            _ => false,
        };
        let chosen = if self.peers.is_empty() { Kind::value_variants() } else { &self.peers };
        chosen.iter().copied().filter(|kind| !left_out(kind)).collect()
    }

    /// What of the brokers was chosen.
    pub fn settings(&self) -> Settings {
        Settings {
            apache_jvm: self.apache_jvm.split_whitespace().map(str::to_owned).collect(),
            apache_set: self.apache_set.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
        assert_eq!(Part::OpenLoop.name(), "open-loop");
    }

    #[test]
    fn parts_and_brokers_are_chosen_and_left_out() {
        let parse = |line: &str| Options::try_parse_from(line.split_whitespace());
        let all = parse("compare --skip-recovery").unwrap();
        assert!(all.wants(Part::Send) && all.wants(Part::Idle) && !all.wants(Part::Recovery));
        assert!(!all.wants_of(Part::Send, Kind::Apache540) && all.wants_of(Part::Idle, Kind::Apache540));
        let some = parse("compare --only send,open-loop --policy disk --peers gantry,apache-5.4.0").unwrap();
        assert!(some.wants(Part::OpenLoop) && !some.wants(Part::Drain));
        assert!(some.wants_of(Part::Send, Kind::Apache540));
        assert_eq!(
            (some.policies(), some.kinds()),
            (vec![Policy::Disk], vec![Kind::Gantry, Kind::Apache540])
        );
        assert!(!parse("compare --skip-apache").unwrap().kinds().contains(&Kind::Apache540));
        assert!(parse("compare --only nothing").is_err());
        assert!(parse("compare --apache-jvm -Xmx4g --apache-set a=b").is_ok());
    }
}
