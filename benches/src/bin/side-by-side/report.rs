//! The tables of the README.

use std::fmt::{self, Write as _};

use serde::Serialize;

use crate::alone::Figure;
use crate::broker::Kind;
use crate::machine::Machine;
use crate::options::{Part, Policy, Scale};
use crate::shapes::Run;
use crate::stats;

/// Broker CPU time per message that Gantry may use at most, by Apache's.
const CPU_MAX: f64 = 0.25;

/// All that was found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// How much.
    pub scale: Scale,
    /// Whether this was `--quick`, with a cold JVM.
    pub smoke: bool,
    /// Flags of Apache's JVM.
    pub apache_jvm: String,
    /// Both brokers in turn.
    pub runs: Vec<Run>,
    /// One broker at a time.
    pub figures: Vec<Figure>,
}

/// Medians of one broker's rounds of one shape.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// In the order of [`COLUMNS`].
    values: [f64; 6],
    errors: u64,
}

const COLUMNS: [&str; 6] =
    ["messages/s", "p50 ms", "p99 ms", "p99.9 ms", "CPU s per million", "RssAnon peak MiB"];
const THROUGHPUT: usize = 0;
const P99: usize = 2;
const CPU: usize = 4;
/// Digits behind the point.
const DIGITS: [usize; 6] = [0, 3, 3, 3, 2, 1];

impl Report {
    /// Whether there is anything to print.
    pub const fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.figures.is_empty()
    }

    /// The most memory that Gantry had in any shape.
    pub fn memory_peak(&self) -> Option<Figure> {
        let runs = self.runs.iter().filter(|run| run.broker == Kind::Gantry);
        let peak = runs.map(|run| run.measured.broker.rss_anon_peak_mib).max_by(f64::total_cmp)?;
        Some(Figure::new("anonymous memory, most in any shape", "MiB", peak, 150.0))
    }

    fn row(&self, part: Part, policy: Policy, broker: Kind) -> Option<Row> {
        let runs: Vec<_> = self
            .runs
            .iter()
            .filter(|run| (run.part, run.policy, run.broker) == (part, policy, broker))
            .map(|run| &run.measured)
            .collect();
        if runs.is_empty() {
            return None;
        }
        let of = |value: fn(&crate::load::Measured) -> f64| {
            stats::median(&runs.iter().map(|run| value(run)).collect::<Vec<_>>())
        };
        let values = [
            of(|run| run.messages_per_second),
            of(|run| run.latency_ms.p50),
            of(|run| run.latency_ms.p99),
            of(|run| run.latency_ms.p99_9),
            of(|run| run.broker.cpu_seconds_per_million.unwrap_or(f64::NAN)),
            of(|run| run.broker.rss_anon_peak_mib),
        ];
        Some(Row { values, errors: runs.iter().map(|run| run.errors).sum() })
    }

    /// Gantry's medians by Apache's.
    fn ratios(&self, part: Part, policy: Policy) -> Option<[f64; 6]> {
        let gantry = self.row(part, policy, Kind::Gantry)?;
        let apache = self.row(part, policy, Kind::Apache)?;
        Some(std::array::from_fn(|at| gantry.values[at] / apache.values[at]))
    }

    fn summary(&self, text: &mut String) -> fmt::Result {
        let all: Vec<_> = Policy::ALL
            .into_iter()
            .flat_map(|policy| Part::SHAPES.map(|part| (policy, part)))
            .filter_map(|(policy, part)| Some((policy, part, self.ratios(part, policy)?)))
            .collect();
        if all.is_empty() {
            return Ok(());
        }
        writeln!(text, "### Gantry by Apache\n")?;
        writeln!(
            text,
            "| policy | shape | CPU per message (≤ 0.25) | throughput (≥ 1) | p99 (≤ 1) | missed |"
        )?;
        writeln!(text, "| --- | --- | ---: | ---: | ---: | --- |")?;
        for (policy, part, ratios) in all {
            let (cpu, throughput, p99) = (ratios[CPU], ratios[THROUGHPUT], ratios[P99]);
            let name = policy.gantry();
            let missed = missed(part, cpu, throughput, p99);
            writeln!(
                text,
                "| {name} | {} | {cpu:.2} | {throughput:.2} | {p99:.2} | {missed} |",
                shape_name(part, &self.scale)
            )?;
        }
        writeln!(text)
    }

    fn details(&self, policy: Policy, text: &mut String) -> fmt::Result {
        let parts: Vec<_> =
            Part::SHAPES.into_iter().filter(|part| self.row(*part, policy, Kind::Gantry).is_some()).collect();
        if parts.is_empty() {
            return Ok(());
        }
        writeln!(text, "### Policy {} and {}\n", policy.gantry(), policy.apache())?;
        writeln!(text, "| shape | | {} | errors |", COLUMNS.join(" | "))?;
        writeln!(text, "| --- | --- |{} ---: |", " ---: |".repeat(COLUMNS.len()))?;
        for part in parts {
            let mut name = shape_name(part, &self.scale);
            for broker in [Kind::Gantry, Kind::Apache] {
                let Some(row) = self.row(part, policy, broker) else { continue };
                let values =
                    cells(row.values.iter().zip(DIGITS).map(|(value, digits)| number(*value, digits)));
                writeln!(text, "| {name} | {} | {values} | {} |", broker.name(), row.errors)?;
                name.clear();
            }
            if let Some(ratios) = self.ratios(part, policy) {
                let values = cells(ratios.iter().map(|ratio| number(*ratio, 2)));
                writeln!(text, "| | ratio | {values} | |")?;
            }
        }
        writeln!(text)
    }

    fn alone(&self, text: &mut String) -> fmt::Result {
        if self.figures.is_empty() {
            return Ok(());
        }
        writeln!(text, "### Memory, idle CPU, start\n")?;
        writeln!(text, "| figure | unit | Gantry | limit | missed | Apache |")?;
        writeln!(text, "| --- | --- | ---: | ---: | --- | ---: |")?;
        for Figure { name, unit, gantry, limit, apache } in &self.figures {
            let missed = if limit.is_some_and(|limit| *gantry > limit) { "yes" } else { "" };
            let limit = limit.map(|limit| format!("≤ {limit}")).unwrap_or_default();
            let apache = apache.map(|apache| number(apache, 0)).unwrap_or_default();
            let gantry = number(*gantry, if *unit == "ms" { 0 } else { 2 });
            writeln!(text, "| {name} | {unit} | {gantry} | {limit} | {missed} | {apache} |")?;
        }
        writeln!(text)
    }

    fn write(&self, text: &mut String) -> fmt::Result {
        let Machine { cores, processor, memory_gib, kernel } = &self.machine;
        let Scale { rounds, seconds, .. } = self.scale;
        writeln!(
            text,
            "{cores} cores ({processor}), {memory_gib} GiB, Linux {kernel}. Medians of {rounds} round(s) of \
             {seconds} s; Apache's JVM with {}.\n",
            self.apache_jvm
        )?;
        if self.smoke {
            writeln!(
                text,
                "**A smoke run: too short, and Apache's JVM is cold. Nothing here can be compared.**\n"
            )?;
        }
        self.summary(text)?;
        for policy in Policy::ALL {
            self.details(policy, text)?;
        }
        self.alone(text)
    }

    /// The tables, as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        self.write(&mut text).expect("writing to a string does not fail");
        text.trim_end().to_owned()
    }
}

/// What of the aims a shape misses. The rate of an open loop is given: there Gantry must only keep it.
fn missed(part: Part, cpu: f64, throughput: f64, p99: f64) -> String {
    let hundredths = |ratio: f64| (ratio * 100.0).round() / 100.0;
    let throughput_min = if part == Part::OpenLoop { 0.99 } else { 1.0 };
    let mut missed = Vec::new();
    if hundredths(cpu) > CPU_MAX {
        missed.push("CPU");
    }
    if hundredths(throughput) < throughput_min {
        missed.push("throughput");
    }
    if hundredths(p99) > 1.0 {
        missed.push("p99");
    }
    missed.join(", ")
}

fn shape_name(part: Part, scale: &Scale) -> String {
    match part {
        Part::Send => "send, 64 in flight".to_owned(),
        Part::Single => "send, 1 in flight".to_owned(),
        Part::OpenLoop => format!("send, open loop, {}/s", scale.rate),
        Part::Batch => "send, batches of 32".to_owned(),
        Part::Drain => "drain".to_owned(),
        Part::Transaction => "transaction, 64 in flight".to_owned(),
        other => other.name().to_owned(),
    }
}

fn number(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { "-".to_owned() }
}

fn cells(values: impl Iterator<Item = String>) -> String {
    values.collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::load::{Latency, Measured, Used};
    use crate::options::Options;

    fn run(broker: Kind, round: u32, messages_per_second: f64, cpu: f64) -> Run {
        let measured = Measured {
            messages: 1,
            errors: 0,
            first_error: None,
            seconds: 1.0,
            messages_per_second,
            latency_ms: Latency { p50: 1.0, p99: 2.0, p99_9: 3.0 },
            broker: Used { cpu_seconds: 1.0, cpu_seconds_per_million: Some(cpu), rss_anon_peak_mib: 10.0 },
        };
        Run { part: Part::Send, policy: Policy::Disk, broker, round, measured }
    }

    fn report() -> Report {
        let machine =
            Machine { cores: 2, processor: "P".to_owned(), memory_gib: 4, kernel: "6.1.0".to_owned() };
        let runs = vec![
            run(Kind::Gantry, 1, 300.0, 4.0),
            run(Kind::Apache, 1, 100.0, 20.0),
            run(Kind::Gantry, 2, 100.0, 4.0),
            run(Kind::Apache, 2, 100.0, 20.0),
            run(Kind::Gantry, 3, 200.0, 4.0),
            run(Kind::Apache, 3, 100.0, 20.0),
        ];
        let scale = Options::parse_from(["side-by-side"]).scale();
        let figures = vec![Figure::new("start", "ms", 120.0, 100.0)];
        Report { machine, scale, smoke: false, apache_jvm: "-Xmx1g".to_owned(), runs, figures }
    }

    #[test]
    fn tables_show_medians_and_their_ratios() {
        let text = report().markdown();
        for line in [
            "2 cores (P), 4 GiB, Linux 6.1.0. Medians of 3 round(s) of 4 s; Apache's JVM with -Xmx1g.",
            "| disk | send, 64 in flight | 0.20 | 2.00 | 1.00 |  |",
            "| send, 64 in flight | Gantry | 200 | 1.000 | 2.000 | 3.000 | 4.00 | 10.0 | 0 |",
            "| | ratio | 2.00 | 1.00 | 1.00 | 1.00 | 0.20 | 1.00 | |",
            "| start | ms | 120 | ≤ 100 | yes |  |",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis missing in\n{text}");
        }
        assert!(!text.contains("Policy memory"), "{text}");
        assert_eq!(report().memory_peak().map(|peak| peak.gantry.to_string()), Some("10".to_owned()));
    }

    #[test]
    fn aims_are_judged_as_they_are_printed() {
        assert_eq!(missed(Part::Send, 0.254, 0.996, 1.004), "");
        assert_eq!(missed(Part::Send, 0.26, 0.99, 1.01), "CPU, throughput, p99");
        assert_eq!(missed(Part::OpenLoop, 0.1, 0.99, 0.5), "");
    }
}
