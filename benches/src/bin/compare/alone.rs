//! What is measured of one broker at a time: idle CPU time and memory, and the time from start to ready.

use std::io;
use std::time::{Duration, Instant};

use gantry_benches::failure::Failure;
use gantry_benches::load::{Extent, Load, What};
use gantry_benches::peer::{Kind, Peer, Policy};
use gantry_benches::{process, stop};
use serde::Serialize;

use crate::Brokers;
use crate::options::{Options, Part};
use crate::plan::{self, BATCH, times};
use crate::report::Report;
use crate::seat::{Seat, store_in};
use crate::{stats, timers};

/// How long a broker is left alone before its idle figures are taken.
const CALM: Duration = Duration::from_secs(3);
/// How long a broker is under load before it is killed.
const UNDER_LOAD: Duration = Duration::from_secs(5);
/// The policy of these figures: the default of Gantry.
const POLICY: Policy = Policy::Disk;
/// Bytes of a body of the store that is recovered.
const BIG: u32 = 4096;
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
/// Free room that the recovery figure wants, in stores.
const ROOM: u64 = 3;

/// Names of the figures that targets are about.
pub mod names {
    /// Memory of a broker that has just started.
    pub const MEMORY_IDLE: &str = "anonymous memory, idle, empty store";
    /// The most memory under load.
    pub const MEMORY_LOADED: &str = "anonymous memory, most under load (send, batch, transaction in a row)";
    /// CPU time after a load.
    pub const IDLE_CPU: &str = "idle CPU, after that load";
    /// Start on an empty store.
    pub const START: &str = "start to first send, empty store";
    /// Start after a kill.
    pub const RECOVERY: &str = "start to first send, large store after SIGKILL under load";
    /// Bytes on the disk.
    pub const STORED: &str = "disk bytes per message beside the body, sends";
    /// Bytes on the disk.
    pub const STORED_BATCH: &str = "disk bytes per message beside the body, batches of 32";
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// `ms`, `MiB`, `% of a core`, `B`.
    pub unit: &'static str,
    /// What Gantry may have at most, where no target says more.
    pub limit: Option<f64>,
    /// Of each broker.
    pub values: Vec<(Kind, f64)>,
}

/// The figures that were asked for.
pub fn run(brokers: &Brokers, options: &Options, report: &mut Report) -> Result<(), Failure> {
    type Measure = fn(Kind, &dyn Peer, &Options, &mut Report) -> Result<(), Failure>;
    let parts: [(Part, Measure); 4] = [
        (Part::Timers, timers::measure),
        (Part::Idle, idle),
        (Part::Start, start),
        (Part::Recovery, recovery),
    ];
    for (part, measure) in parts {
        for (kind, peer) in brokers.of(&[part], options) {
            if let Err(failure) = measure(kind, peer, options, report) {
                report.failed(kind, &part.name(), &failure)?;
            }
        }
    }
    Ok(())
}

fn idle(kind: Kind, peer: &dyn Peer, options: &Options, report: &mut Report) -> Result<(), Failure> {
    let scale = options.scale();
    let time = Duration::from_millis(scale.idle_millis);
    let seat = Seat::start(kind, peer, POLICY, options)?;
    let pids = seat.server.pids();
    let percent = "% of a core";
    stop::sleep(CALM)?;
    report.figure(names::MEMORY_IDLE, "MiB", Some(20.0), kind, process::anonymous_mib(&pids)?);
    report.figure("idle CPU, empty store", percent, Some(0.5), kind, process::cpu_percent(&pids, time / 2)?);
    let mut peak: f64 = 0.0;
    let parts = [Part::Send, Part::Batch, Part::Transaction];
    for shape in plan::all(&scale).into_iter().filter(|shape| parts.contains(&shape.part)) {
        if peer.can(&shape.load) {
            let measured = seat.server.run(&shape.load_for(kind))?;
            peak = peak.max(measured.broker.map_or(0.0, |used| used.rss_anon_peak_mib));
        }
    }
    report.figure(names::MEMORY_LOADED, "MiB", Some(100.0), kind, peak);
    stop::sleep(CALM)?;
    let after = "anonymous memory, idle after that load";
    report.figure(after, "MiB", None, kind, process::anonymous_mib(&pids)?);
    report.figure(names::IDLE_CPU, percent, Some(0.5), kind, process::cpu_percent(&pids, time)?);
    if let Some(consumer) = seat.server.waiting_consumer("send") {
        let consumer = consumer?;
        stop::sleep(CALM)?;
        let used = process::cpu_percent(&pids, time / 2)?;
        drop(consumer);
        report.figure("idle CPU, with a connected consumer that waits", percent, Some(0.5), kind, used);
    }
    Ok(())
}

fn start(kind: Kind, peer: &dyn Peer, options: &Options, report: &mut Report) -> Result<(), Failure> {
    let scale = options.scale();
    let starts = times(kind, scale.starts, scale.peer_starts);
    if starts == 0 {
        return Ok(());
    }
    let (mut ready, mut first) = (Vec::new(), Vec::new());
    for _ in 0..starts {
        rustix::fs::sync();
        let since = Instant::now();
        let seat = Seat::start(kind, peer, POLICY, options)?;
        seat.server.first_send()?;
        first.push(millis(since.elapsed()));
        ready.push(millis(seat.server.took()));
    }
    report.figure("start to ready, empty store", "ms", None, kind, stats::median(&ready));
    report.figure(names::START, "ms", Some(50.0), kind, stats::median(&first));
    Ok(())
}

/// Fills a store, then kills its broker under load and starts it again, a few times.
fn recovery(kind: Kind, peer: &dyn Peer, options: &Options, report: &mut Report) -> Result<(), Failure> {
    let scale = options.scale();
    let kills = times(kind, scale.kills, scale.peer_kills);
    if kills == 0 {
        return Ok(());
    }
    let needed = scale.recovery_bytes.saturating_mul(ROOM);
    let disk = rustix::fs::statvfs(&options.dir).map_err(io::Error::from);
    let disk = disk.map_err(Failure::system("asking for free room, see --dir"))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < needed {
        return Err(Failure::NoRoom { free_gib: gib(free), needed_gib: gib(needed) });
    }
    let (_dir, store) = store_in(options)?;
    // Some brokers would take a quarter of an hour to fill it under the other policy.
    let filled = peer.start(&store, Policy::Memory)?;
    let extent = Extent::Messages(scale.recovery_bytes.div_ceil(u64::from(BIG)));
    filled.run(&Load { size: BIG, batch: BATCH * 2, in_flight: 4, extent, ..Load::produce("big") })?;
    rustix::fs::sync();
    drop(filled);
    let mut server = peer.start(&store, POLICY)?;
    let sends = Load { extent: Extent::Millis(600_000), ..Load::produce("send") };
    let transactions =
        Load { what: What::Transaction, topic: "transaction".to_owned(), in_flight: 16, ..sends.clone() };
    let (mut ready, mut first) = (Vec::new(), Vec::new());
    for _ in 0..kills {
        let loads = [&sends, &transactions].into_iter().filter(|load| peer.can(load));
        let running = loads.map(|load| server.begin(load)).collect::<Result<Vec<_>, _>>()?;
        stop::sleep(UNDER_LOAD)?;
        drop(server);
        drop(running);
        rustix::fs::sync();
        let since = Instant::now();
        server = peer.start(&store, POLICY)?;
        server.first_send()?;
        first.push(millis(since.elapsed()));
        ready.push(millis(server.took()));
    }
    let bytes = server.store_bytes().map_err(Failure::system("looking at the size of a store"))?;
    report.figure("large store", "GiB", None, kind, gib(bytes));
    let name = "start to ready, large store after SIGKILL under load";
    report.figure(name, "ms", None, kind, stats::median(&ready));
    report.figure(names::RECOVERY, "ms", Some(300.0), kind, stats::median(&first));
    Ok(())
}

/// In milliseconds.
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "a size to be read by people")]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / GIB
}
