//! Many timer messages that wait: how late those come that are due, and what the others cost.
//!
//! Two brokers take turns with sends: one that holds the timers, one that holds none. What waits is due in 10 minutes to
//! 40 days; what falls due meanwhile was sent some seconds before, alone or beside other sends.

use std::time::Instant;

use gantry_benches::failure::Failure;
use gantry_benches::load::{Extent, Load, Measured, What};
use gantry_benches::peer::{Kind, Peer, Policy, pause, resume};
use gantry_benches::{process, stop};

use crate::alone::millis;
use crate::options::Options;
use crate::plan::{self, Scale, thousands};
use crate::report::Report;
use crate::seat::{SETTLE, store_in};
use crate::stats;

/// The policy of these figures: the default of Gantry.
const POLICY: Policy = Policy::Disk;
/// When what waits is due.
const FAR: &str = "10m..40d";
/// When what comes is due.
const SOON: &str = "2s..7s";
/// In this time those are sent that come, in seconds.
const SENT_WITHIN: u64 = 5;
/// Milliseconds of the sends beside them: from the first one sent until the last one is due.
const BESIDE_MILLIS: u64 = 12_000;
/// How late a timer may be, in milliseconds.
const LATE_MS_MAX: f64 = 100.0;
/// Anonymous memory that a broker may have.
const MEMORY_MIB_MAX: f64 = 100.0 * 1e6 / 1024.0 / 1024.0;

/// Name of the figure: the 99.9th percentile with nothing else to do.
pub const LATE_ALONE: &str = "lateness of timers, alone, p99.9";
/// Name of the figure: the same beside sends.
pub const LATE_BESIDE: &str = "lateness of timers, beside sends, p99.9";
/// Name of the figure: throughput of a broker without timers.
pub const SENDS_WITHOUT: &str = "sends, 64 in flight, no timers";

/// Name of the figure: throughput of a broker with timers that wait.
pub fn sends_with(scale: &Scale) -> String {
    format!("sends, 64 in flight, {} timers wait", thousands(scale.timers[0]))
}

/// The part `timers` for one broker.
pub fn measure(kind: Kind, peer: &dyn Peer, options: &Options, report: &mut Report) -> Result<(), Failure> {
    let scale = options.scale();
    let pending = thousands(scale.timers[0]);
    let mut figure = |name: &str, unit, limit, value| report.figure(name, unit, limit, kind, value);
    let (_plain_dir, plain_store) = store_in(options)?;
    let (_dir, store) = store_in(options)?;
    let plain = peer.start(&plain_store, POLICY)?;
    let server = peer.start(&store, POLICY)?;
    plain.run(&plan::first_sends(&scale))?;
    pause(plain.as_ref())?;
    server.run(&plan::first_sends(&scale))?;

    let stored = server.run(&far(&scale))?;
    let used = |measured: &Measured| measured.broker.and_then(|used| used.cpu_seconds_per_million);
    figure("timers stored a second, 64 in flight", "1/s", None, stored.messages_per_second);
    figure("CPU of a million timers stored", "s", None, used(&stored).unwrap_or(f64::NAN));
    let mut memory = peak(&stored);

    let (mut without, mut with) = (Sends::default(), Sends::default());
    for _ in 0..scale.rounds {
        resume(plain.as_ref())?;
        without.add(&plain.run(&sends(&scale))?);
        pause(plain.as_ref())?;
        let measured = server.run(&sends(&scale))?;
        memory = memory.max(peak(&measured));
        with.add(&measured);
        stop::sleep(SETTLE)?;
    }
    figure(SENDS_WITHOUT, "1/s", None, without.rate());
    figure(&sends_with(&scale), "1/s", None, with.rate());
    figure("CPU of a million sends, no timers", "s", None, without.cpu());
    figure(&format!("CPU of a million sends, {pending} timers wait"), "s", None, with.cpu());
    figure("anonymous memory, most, no timers", "MiB", Some(MEMORY_MIB_MAX), without.memory);
    drop(plain);

    let alone = server.run(&soon(&scale))?;
    let beside = server.begin(&Load {
        rate: Some(scale.rate),
        extent: Extent::Millis(BESIDE_MILLIS),
        ..Load::produce("beside")
    })?;
    let among = server.run(&soon(&scale))?;
    let beside = beside.finish(std::time::Duration::from_millis(BESIDE_MILLIS))?;
    memory = memory.max(peak(&alone)).max(peak(&among)).max(peak(&beside));
    for (what, p99_9, measured) in [("alone", LATE_ALONE, &alone), ("beside sends", LATE_BESIDE, &among)] {
        let latency = measured.latency_ms;
        figure(&format!("lateness of timers, {what}, p50"), "ms", None, latency.p50);
        figure(&format!("lateness of timers, {what}, p99"), "ms", None, latency.p99);
        figure(p99_9, "ms", Some(LATE_MS_MAX), latency.p99_9);
        figure(&format!("lateness of timers, {what}, max"), "ms", Some(LATE_MS_MAX), latency.max);
        figure(&format!("timers lost, early or doubled, {what}"), "", Some(0.0), count(measured.errors));
    }
    figure("CPU of a million timers stored and delivered", "s", None, used(&alone).unwrap_or(f64::NAN));
    figure(&format!("anonymous memory, most, {pending} timers wait"), "MiB", Some(MEMORY_MIB_MAX), memory);
    drop(server);
    restart(kind, peer, &store, &scale, report)
}

/// After SIGKILL: when it takes requests again, and whether the timers are there.
fn restart(
    kind: Kind,
    peer: &dyn Peer,
    store: &std::path::Path,
    scale: &Scale,
    report: &mut Report,
) -> Result<(), Failure> {
    let pending = thousands(scale.timers[0]);
    rustix::fs::sync();
    let since = Instant::now();
    let server = peer.start(store, POLICY)?;
    server.first_send()?;
    let first = millis(since.elapsed());
    let mut figure = |name: String, unit, limit, value| report.figure(&name, unit, limit, kind, value);
    figure(format!("start to ready after SIGKILL, {pending} timers wait"), "ms", None, millis(server.took()));
    figure(format!("start to first send after SIGKILL, {pending} timers wait"), "ms", Some(300.0), first);
    let memory = process::anonymous_mib(&server.pids())?;
    figure(format!("anonymous memory after that start, {pending} timers wait"), "MiB", None, memory);
    if let Some(found) = server.pending_timers() {
        let lost = scale.timers[0].saturating_sub(found?);
        figure(format!("lost of {pending} timers that wait, after SIGKILL"), "", Some(0.0), count(lost));
    }
    Ok(())
}

/// Sends in turns.
#[derive(Debug, Default)]
struct Sends {
    rates: Vec<f64>,
    cpu: Vec<f64>,
    memory: f64,
}

impl Sends {
    fn add(&mut self, measured: &Measured) {
        self.rates.push(measured.messages_per_second);
        self.cpu.extend(measured.broker.and_then(|used| used.cpu_seconds_per_million));
        self.memory = self.memory.max(peak(measured));
    }

    fn rate(&self) -> f64 {
        stats::median(&self.rates)
    }

    fn cpu(&self) -> f64 {
        stats::median(&self.cpu)
    }
}

fn peak(measured: &Measured) -> f64 {
    measured.broker.map_or(0.0, |used| used.rss_anon_peak_mib)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn count(number: u64) -> f64 {
    number as f64
}

/// What waits.
fn far(scale: &Scale) -> Load {
    let extent = Extent::Messages(scale.timers[0]);
    Load { delay: Some(FAR.to_owned()), extent, ..Load::produce("far") }
}

/// What comes.
fn soon(scale: &Scale) -> Load {
    let due = scale.timers[1];
    Load {
        what: What::Timers,
        delay: Some(SOON.to_owned()),
        rate: Some(u32::try_from(due / SENT_WITHIN).unwrap_or(u32::MAX)),
        extent: Extent::Messages(due),
        ..Load::produce("soon")
    }
}

/// What is sent besides.
fn sends(scale: &Scale) -> Load {
    Load { extent: Extent::Millis(scale.millis), warmup: 4_000, ..Load::produce("send") }
}
