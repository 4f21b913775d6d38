//! What was found out, and how it is shown.
//!
//! ```text
//! Report ─▶ sections: tables of medians and ratios, targets ─▶ Markdown
//!       │                                                   └▶ HTML ◀─ plot: SVG
//!       └─▶ JSON: every run
//! ```

mod html;
mod plot;
mod table;
mod targets;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use gantry_benches::failure::Failure;
use gantry_benches::load::Measured;
use gantry_benches::peer::{Kind, Policy};
use gantry_benches::stop;
use serde::Serialize;

use crate::alone::Figure;
use crate::limits::Limit;
use crate::machine::Machine;
use crate::options::{Options, Set};
use crate::plan::{Scale, Shape, thousands};
use crate::rounds::{Run, doing};
use crate::stats;
use table::{Table, number, short};
use targets::SEND;

/// All that was found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// How much was measured.
    pub set: Set,
    /// The same in numbers.
    pub scale: Scale,
    /// How long it took.
    pub minutes: f64,
    /// The brokers, with what must be known of their settings.
    pub brokers: Vec<(Kind, String)>,
    /// What could not be measured.
    pub failures: Vec<Failed>,
    /// Limits of the machine.
    pub limits: Vec<Limit>,
    /// All brokers in turn.
    pub runs: Vec<Run>,
    /// One broker at a time.
    pub figures: Vec<Figure>,
}

/// What could not be measured.
#[derive(Clone, Debug, Serialize)]
pub struct Failed {
    /// Of which broker.
    pub broker: Kind,
    /// What was tried.
    pub doing: String,
    /// What came of it.
    pub why: String,
}

/// Medians of one broker's rounds of one shape.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// In the order of [`COLUMNS`]; not a number where there is none.
    values: [f64; COLUMNS.len()],
    errors: u64,
}

/// Columns of a shape, and how many digits they have behind the point.
const COLUMNS: [(&str, usize); 8] = [
    ("messages/s", 0),
    ("p50 ms", 3),
    ("p99 ms", 3),
    ("p99.9 ms", 3),
    ("p99.99 ms", 3),
    ("max ms", 3),
    ("CPU s per million", 2),
    ("RssAnon peak MiB", 1),
];
const THROUGHPUT: usize = 0;
const P50: usize = 1;
const P99: usize = 2;
const CPU: usize = 6;

/// A part of the report.
struct Section {
    heading: String,
    text: String,
    table: Table,
}

impl Report {
    /// Nothing yet.
    pub fn new(options: &Options) -> Self {
        Self {
            machine: Machine::look(),
            set: options.set,
            scale: options.scale(),
            minutes: 0.0,
            brokers: Vec::new(),
            failures: Vec::new(),
            limits: Vec::new(),
            runs: Vec::new(),
            figures: Vec::new(),
        }
    }

    /// Whether there is anything to print.
    pub const fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.figures.is_empty() && self.failures.is_empty() && self.limits.is_empty()
    }

    /// A broker can be measured.
    pub fn broker(&mut self, kind: Kind, settings: String) {
        self.brokers.push((kind, settings));
    }

    /// Something could not be measured: the run goes on, unless somebody wants it to end.
    pub fn failed(&mut self, broker: Kind, doing: &str, failure: &Failure) -> Result<(), Failure> {
        // What was stopped has not failed by itself.
        stop::check()?;
        let why = failure.to_string();
        eprintln!("{} FAILED, {doing}: {why}", broker.name());
        self.failures.push(Failed { broker, doing: doing.to_owned(), why });
        Ok(())
    }

    /// Whether a broker failed in what begins like this.
    pub fn has_failed(&self, broker: Kind, doing: &str) -> bool {
        self.failures.iter().any(|failed| failed.broker == broker && failed.doing.starts_with(doing))
    }

    /// Whether a broker can hold the rate of an open loop, as far as its sends without one say. Otherwise all that
    /// would be measured is how long the queue became: that is a line of the report.
    pub fn holds(&mut self, shape: &Shape, policy: Policy, broker: Kind) -> bool {
        let sends = self.median(SEND, policy, THROUGHPUT, Some(broker));
        let (Some(due), Some(sends)) = (shape.load.rate, sends) else { return true };
        if sends >= f64::from(due) {
            return true;
        }
        let doing = doing(shape, policy);
        if !self.has_failed(broker, &doing) {
            let why = format!("it sends {} without a timetable", rate(sends));
            eprintln!("{}, {doing}: {why}", broker.name());
            self.failures.push(Failed { broker, doing, why });
        }
        false
    }

    /// Takes a run.
    pub fn run(&mut self, run: Run) {
        let Measured { messages_per_second, latency_ms, broker, errors, first_error, .. } = &run.measured;
        eprintln!(
            "{} {} round {} {}: {messages_per_second:.0} messages/s, p50 {} ms, p99 {} ms, \
             {} CPU s per million, {errors} errors",
            run.policy.name(),
            run.shape,
            run.round,
            run.broker.name(),
            number(latency_ms.p50, 3),
            number(latency_ms.p99, 3),
            number(broker.and_then(|used| used.cpu_seconds_per_million).unwrap_or(f64::NAN), 2),
        );
        if let Some(why) = first_error {
            eprintln!("  the first error: {why}");
        }
        self.runs.push(run);
    }

    /// Takes a figure of a broker.
    pub fn figure(&mut self, name: &str, unit: &'static str, limit: Option<f64>, broker: Kind, value: f64) {
        eprintln!("{}, {name}: {value:.2} {unit}", broker.name());
        let known = self.figures.iter().any(|figure| figure.name == name);
        if !known {
            self.figures.push(Figure { name: name.to_owned(), unit, limit, values: Vec::new() });
        }
        if let Some(figure) = self.figures.iter_mut().find(|figure| figure.name == name) {
            figure.values.push((broker, value));
        }
    }

    /// A figure of a broker.
    fn figure_of(&self, name: &str, broker: Kind) -> Option<f64> {
        let figure = self.figures.iter().find(|figure| figure.name == name)?;
        figure.values.iter().find(|(kind, _)| *kind == broker).map(|(_, value)| *value)
    }

    fn runs_of(&self, shape: &str, policy: Policy, broker: Kind) -> Vec<&Measured> {
        let wanted = |run: &&Run| run.shape == shape && (run.policy, run.broker) == (policy, broker);
        self.runs.iter().filter(wanted).map(|run| &run.measured).collect()
    }

    fn row(&self, shape: &str, policy: Policy, broker: Kind) -> Option<Row> {
        let runs = self.runs_of(shape, policy, broker);
        if runs.is_empty() {
            return None;
        }
        let of = |value: fn(&Measured) -> f64| {
            stats::median(&runs.iter().map(|run| value(run)).collect::<Vec<_>>())
        };
        let values = [
            of(|run| run.messages_per_second),
            of(|run| run.latency_ms.p50),
            of(|run| run.latency_ms.p99),
            of(|run| run.latency_ms.p99_9),
            of(|run| run.latency_ms.p99_99),
            of(|run| run.latency_ms.max),
            of(|run| run.broker.and_then(|used| used.cpu_seconds_per_million).unwrap_or(f64::NAN)),
            of(|run| run.broker.map_or(f64::NAN, |used| used.rss_anon_peak_mib)),
        ];
        Some(Row { values, errors: runs.iter().map(|run| run.errors).sum() })
    }

    /// The shapes that were measured under a policy, in the order in which they were.
    fn shapes(&self, policy: Policy) -> Vec<&str> {
        let mut shapes: Vec<&str> = Vec::new();
        for run in self.runs.iter().filter(|run| run.policy == policy) {
            if !shapes.contains(&run.shape.as_str()) {
                shapes.push(&run.shape);
            }
        }
        shapes
    }

    fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.brokers.iter().map(|(kind, _)| *kind)
    }

    /// Everything, as sections.
    fn sections(&self) -> Vec<Section> {
        let mut sections = Vec::new();
        let mut add = |heading: &str, text: &str, table: Table| {
            if !table.rows.is_empty() {
                sections.push(Section { heading: heading.to_owned(), text: text.to_owned(), table });
            }
        };
        if !self.runs.is_empty() || !self.figures.is_empty() {
            add("Targets", "", self.targets());
        }
        add("Limits of the machine", "Measured by the same command, first and last.", self.limits_table());
        for other in self.kinds().filter(|kind| *kind != Kind::Gantry) {
            let text = "Gantry's median by the other one's: CPU time and latency are better below 1, throughput above.";
            add(&format!("Gantry by {}", other.name()), text, self.ratios(other));
        }
        for policy in Policy::ALL {
            add(&format!("Policy {}", policy.name()), "", self.details(policy));
        }
        add("Memory, idle CPU, start, disk", "", self.figures_table());
        sections
    }

    fn limits_table(&self) -> Table {
        let mut table = Table::new(3, ["limit", "unit", "bounds", "first", "last"]);
        for limit in &self.limits {
            let at = |at: usize| limit.values.get(at).map_or_else(String::new, |value| short(*value));
            let texts = [limit.name, limit.unit, limit.bounds].map(str::to_owned);
            table.rows.push(texts.into_iter().chain([at(0), at(1)]).collect());
        }
        table
    }

    fn ratios(&self, other: Kind) -> Table {
        let columns = ["policy", "shape", "CPU per message", "throughput", "p50", "p99"];
        let mut table = Table::new(2, columns);
        for policy in Policy::ALL {
            for shape in self.shapes(policy) {
                let rows = (self.row(shape, policy, Kind::Gantry), self.row(shape, policy, other));
                let (Some(gantry), Some(other)) = rows else { continue };
                let ratio = |at: usize| number(gantry.values[at] / other.values[at], 2);
                let texts = [policy.name().to_owned(), shape.to_owned()];
                table.rows.push(texts.into_iter().chain([CPU, THROUGHPUT, P50, P99].map(ratio)).collect());
            }
        }
        table
    }

    fn details(&self, policy: Policy) -> Table {
        let columns = ["shape", "broker"].into_iter().chain(COLUMNS.map(|(name, _)| name)).chain(["errors"]);
        let mut table = Table::new(2, columns);
        for shape in self.shapes(policy) {
            let mut name = shape.to_owned();
            for broker in self.kinds() {
                let Some(row) = self.row(shape, policy, broker) else { continue };
                let values =
                    row.values.iter().zip(COLUMNS).map(|(value, (_, digits))| number(*value, digits));
                let texts = [std::mem::take(&mut name), broker.name().to_owned()];
                table.rows.push(texts.into_iter().chain(values).chain([row.errors.to_string()]).collect());
            }
        }
        table
    }

    fn figures_table(&self) -> Table {
        let brokers: Vec<_> = self.kinds().collect();
        let columns = ["figure", "unit"].into_iter().chain(brokers.iter().map(|kind| kind.name()));
        let mut table = Table::new(2, columns);
        for figure in &self.figures {
            let value = |kind: &Kind| {
                self.figure_of(&figure.name, *kind).map_or_else(String::new, |value| {
                    let missed = *kind == Kind::Gantry && figure.limit.is_some_and(|limit| value > limit);
                    short(value) + if missed { " (missed)" } else { "" }
                })
            };
            let limit = figure.limit.map_or_else(String::new, |limit| format!(" (Gantry ≤ {limit})"));
            let texts = [format!("{}{limit}", figure.name), figure.unit.to_owned()];
            table.rows.push(texts.into_iter().chain(brokers.iter().map(value)).collect());
        }
        table
    }

    /// What there is to know before any table, as paragraphs.
    fn introduction(&self) -> Vec<String> {
        let Machine { cores, processor, memory_gib, kernel } = &self.machine;
        let Scale { rounds, more_rounds, millis, .. } = self.scale;
        let mut text = vec![format!(
            "{cores} cores ({processor}), {memory_gib} GiB, Linux {kernel}. Medians of {rounds} round(s), of shapes \
             without a target of {more_rounds}, each {} s long; {:.0} minutes in all.",
            number(f64::from(u32::try_from(millis).unwrap_or(u32::MAX)) / 1000.0, 1),
            self.minutes
        )];
        if self.set == Set::Quick {
            text.push("A smoke run: too short, and JVMs are cold. Nothing here can be compared.".to_owned());
        }
        let settings = self.brokers.iter().filter(|(_, settings)| !settings.is_empty());
        text.extend(settings.map(|(kind, settings)| format!("{}: {settings}.", kind.name())));
        let failures = self.failures.iter();
        text.extend(failures.map(|Failed { broker, doing, why }| {
            let why = why.lines().next().unwrap_or_default();
            format!("NOT MEASURED: {}, {doing}: {why}", broker.name())
        }));
        text
    }

    /// The report as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for paragraph in self.introduction() {
            text += &paragraph;
            text += "\n\n";
        }
        for Section { heading, text: remark, table } in self.sections() {
            // Writing to a string does not fail.
            let _ = write!(text, "### {heading}\n\n");
            if !remark.is_empty() {
                let _ = write!(text, "{remark}\n\n");
            }
            text += &table.markdown();
        }
        text.trim_end().to_owned()
    }
}

/// A rate for people.
fn rate(value: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, is not negative")]
    let whole = value.round() as u64;
    if value.is_finite() { format!("{}/s", thousands(whole)) } else { "–".to_owned() }
}
