//! What a run found out, for people and for programs.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::super::args::Format;
use super::super::output::{Failure, Output};
use super::Common;
use super::load::{INTERVAL_MS, Tally, float};
use super::process::{Used, Watch};

const MIB: f64 = 1024.0 * 1024.0;

/// How a run was set up.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    /// What was measured: `produce`, `consume` or `transaction`.
    pub bench: &'static str,
    /// Body bytes of a message, where they were chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// Messages of a request.
    pub batch: u64,
    /// Messages a second that were due; none in a closed loop.
    pub rate: Option<f64>,
    /// Share of transactions that were rolled back, where there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback_percent: Option<u8>,
    /// Groups that read, where messages were read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<u32>,
}

/// Percentiles in milliseconds.
#[derive(Clone, Debug, Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
    #[serde(rename = "p99.9")]
    p99_9: f64,
    #[serde(rename = "p99.99")]
    p99_99: f64,
    max: f64,
}

impl Latency {
    fn of(nanos: &Histogram<u64>) -> Self {
        let at = |quantile| millis(nanos.value_at_quantile(quantile));
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: millis(nanos.max()),
        }
    }
}

/// Milliseconds, to the tenth of a microsecond.
fn millis(nanos: u64) -> f64 {
    (float(nanos) / 100.0).round() / 10_000.0
}

/// A histogram in full: microseconds, and how many operations took so long.
fn pairs(nanos: &Histogram<u64>) -> Vec<(f64, u64)> {
    let micros = |nanos| (float(nanos) / 100.0).round() / 10.0;
    nanos.iter_recorded().map(|step| (micros(step.value_iterated_to()), step.count_at_value())).collect()
}

/// Messages over time.
#[derive(Clone, Debug, Serialize)]
struct Series<'a> {
    interval_ms: u64,
    messages: &'a [u64],
}

/// What a process used.
#[derive(Clone, Copy, Debug, Serialize)]
struct Use {
    cpu_seconds: f64,
    /// None when nothing was done.
    cpu_seconds_per_million: Option<f64>,
    rss_anon_peak_mib: f64,
}

impl Use {
    fn of(used: Used, messages: u64) -> Self {
        let cpu_seconds = used.cpu.as_secs_f64();
        Self {
            cpu_seconds: rounded(cpu_seconds),
            cpu_seconds_per_million: (messages > 0).then(|| rounded(cpu_seconds * 1e6 / float(messages))),
            rss_anon_peak_mib: rounded(float(used.anonymous_bytes_max) / MIB),
        }
    }
}

/// Three digits behind the point: more is noise.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[derive(Clone, Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    setup: &'a Setup,
    label: Option<&'a str>,
    topic: &'a str,
    threads: u16,
    connections: Option<u32>,
    in_flight: u32,
    warmup: u64,
    messages: u64,
    errors: u64,
    first_error: Option<&'a str>,
    seconds: f64,
    messages_per_second: f64,
    mb_per_second: f64,
    latency_ms: Latency,
    broker: Option<Use>,
    client: Option<Use>,
    series: Series<'a>,
    histogram_us: Vec<(f64, u64)>,
}

/// The processes that take part, from the start of the measured phase on.
#[derive(Debug)]
pub struct Watched {
    broker: Option<Watch>,
    own: Option<Watch>,
}

impl Watched {
    /// Starts to count.
    pub fn start(common: &Common) -> Result<Self, Failure> {
        let own = Watch::start(std::process::id()).ok();
        Ok(Self { broker: common.broker_pid.map(Watch::start).transpose()?, own })
    }

    /// Prints the report of a phase that ends now. Fails when operations failed or nothing was done.
    pub fn report(
        self,
        common: &Common,
        setup: &Setup,
        tally: &Tally,
        took: Duration,
    ) -> Result<(), Failure> {
        let broker = self.broker.map(|watch| {
            watch.stop().ok_or_else(|| {
                Failure::Refused("the broker's process ended during the run; see its log".to_owned())
            })
        });
        let own = self.own.and_then(Watch::stop);
        let seconds = took.as_secs_f64().max(1e-9);
        let report = Report {
            setup,
            label: common.label.as_deref(),
            topic: &common.topic,
            threads: common.threads,
            connections: common.connections,
            in_flight: common.in_flight,
            warmup: common.warmup,
            messages: tally.messages,
            errors: tally.errors,
            first_error: tally.first_error.as_deref(),
            seconds: rounded(seconds),
            messages_per_second: rounded(float(tally.messages) / seconds),
            mb_per_second: rounded(float(tally.bytes) / 1e6 / seconds),
            latency_ms: Latency::of(&tally.latency),
            broker: broker.transpose()?.map(|used| Use::of(used, tally.messages)),
            client: own.map(|used| Use::of(used, tally.messages)),
            series: Series { interval_ms: INTERVAL_MS, messages: &tally.series },
            histogram_us: pairs(&tally.latency),
        };
        report.print(common.printing.output)?;
        report.verdict()
    }
}

impl Report<'_> {
    fn print(&self, format: Format) -> Result<(), Failure> {
        let mut output = Output::new(format);
        match format {
            Format::Json => output.json(self)?,
            Format::Text => output.fields(&self.fields())?,
        }
        output.flush()
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![("bench", self.setup.bench.to_owned())];
        fields.extend(self.label.map(|label| ("label", label.to_owned())));
        let Latency { p50, p90, p99, p99_9, p99_99, max } = self.latency_ms;
        fields.extend([
            ("messages", format!("{} in {:.2} s", self.messages, self.seconds)),
            (
                "throughput",
                format!("{:.0} messages/s, {:.2} MB/s", self.messages_per_second, self.mb_per_second),
            ),
            (
                "latency ms",
                format!(
                    "p50 {p50:.3}  p90 {p90:.3}  p99 {p99:.3}  p99.9 {p99_9:.3}  p99.99 {p99_99:.3}  max {max:.3}"
                ),
            ),
        ]);
        for (name, used) in [("broker", self.broker), ("client", self.client)] {
            let Some(used) = used else { continue };
            let each =
                used.cpu_seconds_per_million.map_or_else(|| "-".to_owned(), |each| format!("{each:.2}"));
            let (cpu, memory) = (used.cpu_seconds, used.rss_anon_peak_mib);
            fields.push((
                name,
                format!("CPU {cpu:.2} s, {each} s per million messages; memory {memory:.1} MiB"),
            ));
        }
        fields.push(("errors", self.errors.to_string()));
        fields
    }

    fn verdict(&self) -> Result<(), Failure> {
        match (self.errors, self.messages) {
            (0, 0) => Err(Failure::Refused("nothing was done; allow more time".to_owned())),
            (0, _) => Ok(()),
            (errors, _) => {
                let first = self.first_error.unwrap_or("no reason was given");
                Err(Failure::Refused(format!("{errors} operations failed, the first one: {first}")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_milliseconds() {
        let mut nanos = super::super::load::histogram();
        for value in 1..=1000 {
            nanos.saturating_record(value * 1_000_000);
        }
        let Latency { p50, p99, max, .. } = Latency::of(&nanos);
        assert!((p50 - 500.0).abs() < 1.0 && (p99 - 990.0).abs() < 1.5 && (max - 1000.0).abs() < 1.0);
    }

    #[test]
    fn a_histogram_is_given_in_full() {
        let mut nanos = super::super::load::histogram();
        for value in [1234, 1234, 2_000_000] {
            nanos.saturating_record(value);
        }
        let pairs = pairs(&nanos);
        assert_eq!(pairs.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [2, 1]);
        assert!(
            pairs.iter().zip([1.2, 2000.0]).all(|((micros, _), value)| (micros / value - 1.0).abs() < 1e-3)
        );
    }

    #[test]
    fn cpu_time_is_given_per_million_messages() {
        let used = Used { cpu: Duration::from_secs(2), anonymous_bytes_max: 3 * 1024 * 1024 };
        let all = Use::of(used, 500_000);
        assert_eq!((all.cpu_seconds_per_million, all.rss_anon_peak_mib), (Some(4.0), 3.0));
        assert_eq!(Use::of(used, 0).cpu_seconds_per_million, None);
    }
}
