//! What a run of the lab came to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::fault::Fault;
use super::plan::Round;
use super::stage::percentiles;
use crate::checker::Counts;

/// What one round came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// How often each of its faults struck.
    pub injections: BTreeMap<Fault, u64>,
    /// What the load did in it.
    pub counts: Counts,
    /// How long each start took until it was ready.
    pub ready: Vec<Duration>,
    /// Starts that were killed before they were ready.
    pub starts_killed: u32,
    /// The most anonymous memory that the broker had, in bytes.
    pub memory: u64,
    /// What was wrong.
    pub violations: Vec<String>,
}

/// Sums over rounds.
#[derive(Clone, Debug, Default)]
struct Tally {
    rounds: u64,
    injections: u64,
    counts: Counts,
    ready: Vec<Duration>,
    starts_killed: u64,
    memory: u64,
    violations: u64,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome, injections: u64) {
        self.rounds += 1;
        self.injections += injections;
        self.counts.add(&outcome.counts);
        self.ready.extend(&outcome.ready);
        self.starts_killed += u64::from(outcome.starts_killed);
        self.memory = self.memory.max(outcome.memory);
        self.violations += outcome.violations.len() as u64;
    }

    fn cells(&self) -> [String; 15] {
        let [median, _, longest] = percentiles(&self.ready);
        let counts = &self.counts;
        let millis = |time: Duration| format!("{:.0} ms", time.as_secs_f64() * 1000.0);
        [
            self.rounds.to_string(),
            self.injections.to_string(),
            counts.acknowledged.to_string(),
            counts.ended.to_string(),
            counts.commits.to_string(),
            counts.recognised.to_string(),
            counts.redelivered.to_string(),
            counts.popped.to_string(),
            counts.popped_again.to_string(),
            counts.dead.to_string(),
            format!("{} + {}", self.ready.len(), self.starts_killed),
            millis(median),
            millis(longest),
            format!("{} MiB", self.memory >> 20),
            self.violations.to_string(),
        ]
    }

    fn json(&self) -> Value {
        let [median, _, longest] = percentiles(&self.ready);
        json!({
            "rounds": self.rounds,
            "injections": self.injections,
            "sent": self.counts.sent,
            "acknowledged": self.counts.acknowledged,
            "transactions_ended": self.counts.ended,
            "recalled": self.counts.recalled,
            "checks": self.counts.checks,
            "offsets_committed": self.counts.commits,
            "resent": self.counts.resent,
            "resends_recognised": self.counts.recognised,
            "redelivered": self.counts.redelivered,
            "popped": self.counts.popped,
            "popped_again": self.counts.popped_again,
            "popped_done": self.counts.popped_done,
            "dead_letters": self.counts.dead,
            "seen": self.counts.seen,
            "starts": self.ready.len(),
            "starts_killed": self.starts_killed,
            "start_median_ms": median.as_secs_f64() * 1000.0,
            "start_max_ms": longest.as_secs_f64() * 1000.0,
            "memory_max_bytes": self.memory,
            "violations": self.violations,
        })
    }
}

const COLUMNS: [&str; 15] = [
    "rounds",
    "injections",
    "acknowledged",
    "transactions",
    "offsets committed",
    "resends recognised",
    "redelivered",
    "popped",
    "popped again",
    "dead letters",
    "starts + killed",
    "start, median",
    "start, max",
    "memory, max",
    "violations",
];

/// What a run came to so far.
#[derive(Clone, Debug)]
pub struct Report {
    seed: u64,
    took: Duration,
    all: Tally,
    faults: BTreeMap<Fault, Tally>,
    /// Violations, with the command that repeats their round.
    found: Vec<(String, Vec<String>)>,
}

impl Report {
    /// An empty report of a run with this seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, took: Duration::ZERO, all: Tally::default(), faults: BTreeMap::new(), found: Vec::new() }
    }

    /// Adds a round; `again` is the command that repeats it.
    pub fn add(&mut self, round: &Round, outcome: &Outcome, again: &str) {
        for fault in &round.faults {
            let injections = outcome.injections.get(fault).copied().unwrap_or_default();
            self.faults.entry(*fault).or_default().add(outcome, injections);
        }
        self.all.add(outcome, outcome.injections.values().sum());
        if !outcome.violations.is_empty() {
            self.found.push((again.to_owned(), outcome.violations.clone()));
        }
    }

    /// How long the run took so far.
    pub const fn took(&mut self, took: Duration) {
        self.took = took;
    }

    /// Whether nothing was wrong.
    pub const fn is_clean(&self) -> bool {
        self.found.is_empty()
    }

    /// As Markdown. Rounds with two faults count in both rows, and once in the last.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = writeln!(text, "Seed {}, {:.0?}.\n", self.seed, self.took);
        let _ = writeln!(text, "| fault | {} |", COLUMNS.join(" | "));
        let _ = writeln!(text, "| --- |{}", " ---: |".repeat(COLUMNS.len()));
        for (fault, tally) in &self.faults {
            let _ = writeln!(text, "| {fault} | {} |", tally.cells().join(" | "));
        }
        let _ = writeln!(text, "| all | {} |", self.all.cells().join(" | "));
        for (again, violations) in &self.found {
            let _ = writeln!(text, "\n`{again}`\n");
            for violation in violations {
                let _ = writeln!(text, "- {violation}");
            }
        }
        text
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let faults: BTreeMap<_, _> =
            self.faults.iter().map(|(fault, tally)| (fault.name(), tally.json())).collect();
        let found: Vec<_> = self
            .found
            .iter()
            .map(|(again, violations)| json!({ "again": again, "violations": violations }))
            .collect();
        json!({
            "seed": self.seed,
            "seconds": self.took.as_secs_f64(),
            "all": self.all.json(),
            "faults": faults,
            "violations": found,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Choice, Pace};
    use super::*;

    #[test]
    fn a_round_with_two_faults_counts_once_in_all() {
        let choice =
            Choice { seed: 1, faults: vec![Fault::Kill, Fault::Reconnect], policy: None, pace: Pace::Full };
        let round =
            (0..1000).map(|number| choice.round(number)).find(|round| round.faults.len() == 2).unwrap();
        let outcome = Outcome {
            injections: BTreeMap::from([(Fault::Kill, 2), (Fault::Reconnect, 3)]),
            violations: vec!["a violation".to_owned()],
            ..Outcome::default()
        };
        let mut report = Report::new(1);
        report.add(&round, &outcome, "the command");
        assert!(!report.is_clean());
        let json = report.json();
        assert_eq!(json["all"]["rounds"], 1);
        assert_eq!(json["all"]["injections"], 5);
        assert_eq!(json["faults"]["reconnect"]["injections"], 3);
        let text = report.markdown();
        assert!(text.contains("`the command`") && text.contains("- a violation"), "{text}");
        let columns = |line: &str| line.matches('|').count();
        let rows: Vec<_> = text.lines().filter(|line| line.starts_with('|')).map(columns).collect();
        assert_eq!(rows, [17; 5]);
    }
}
