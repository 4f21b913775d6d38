//! What is measured of one broker at a time: idle CPU time and memory, and the time from start to ready.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::broker::{Broker, Kind};
use crate::failure::Failure;
use crate::load::{self, Running};
use crate::options::{Options, Part, Policy};
use crate::process;
use crate::shapes::{self, Seat};
use crate::stats;
use crate::stop;

/// How long a broker is left alone before its idle figures are taken.
const CALM: Duration = Duration::from_secs(3);
/// How long a broker is under load before it is killed.
const UNDER_LOAD: Duration = Duration::from_secs(3);
/// The policy of these figures: the default of Gantry.
const POLICY: Policy = Policy::Disk;
/// Bytes of a body of the store that is recovered.
const BIG: u64 = 4096;
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
/// Free room that the recovery figure wants, in stores.
const ROOM: u64 = 3;

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// `ms`, `MiB`, `%`.
    pub unit: &'static str,
    /// Gantry's.
    pub gantry: f64,
    /// What Gantry may have at most.
    pub limit: Option<f64>,
    /// Apache's, where it was measured.
    pub apache: Option<f64>,
}

impl Figure {
    /// A figure of Gantry alone.
    pub fn new(name: impl Into<String>, unit: &'static str, gantry: f64, limit: f64) -> Self {
        Self { name: name.into(), unit, gantry, limit: Some(limit), apache: None }
    }
}

/// The figures that were asked for; each is given to `take` as it is there.
pub fn run(options: &Options, take: &mut impl FnMut(Figure)) -> Result<(), Failure> {
    if options.wants(Part::Idle) {
        idle(options, take)?;
    }
    if options.wants(Part::Start) {
        start(options, take)?;
    }
    if options.wants(Part::Recovery) {
        recovery(options, take)?;
    }
    Ok(())
}

fn idle(options: &Options, take: &mut impl FnMut(Figure)) -> Result<(), Failure> {
    let scale = options.scale();
    let seat = Seat::start(Kind::Gantry, POLICY, options)?;
    let broker = &seat.broker;
    let pid = broker.pid();
    stop::sleep(CALM)?;
    take(Figure::new("anonymous memory, idle, empty store", "MiB", process::anonymous_mib(pid)?, 30.0));
    take(Figure::new("idle CPU, empty store", "% of a core", process::cpu_percent(pid, scale.idle())?, 0.5));
    let mut peak: f64 = 0.0;
    for part in [Part::Send, Part::Batch, Part::Transaction] {
        let measured = load::bench(broker, &shapes::arguments(part, &scale))?;
        peak = peak.max(measured.broker.rss_anon_peak_mib);
    }
    take(Figure::new(
        "anonymous memory, most under load (send, batch, transaction in a row)",
        "MiB",
        peak,
        150.0,
    ));
    stop::sleep(CALM)?;
    take(Figure {
        limit: None,
        ..Figure::new("anonymous memory, idle after that load", "MiB", process::anonymous_mib(pid)?, 0.0)
    });
    take(Figure::new(
        "idle CPU, after that load",
        "% of a core",
        process::cpu_percent(pid, scale.idle())?,
        0.5,
    ));
    let consumer = Running::start(broker, "consume send --group idle --from last")?;
    stop::sleep(CALM)?;
    let used = process::cpu_percent(pid, scale.idle())?;
    drop(consumer);
    take(Figure::new("idle CPU, with a connected consumer that waits", "% of a core", used, 0.5));
    Ok(())
}

fn start(options: &Options, take: &mut impl FnMut(Figure)) -> Result<(), Failure> {
    let starts = |kind, count| -> Result<Vec<f64>, Failure> {
        (0..count)
            .map(|_| {
                rustix::fs::sync();
                Ok(millis(Seat::start(kind, POLICY, options)?.broker.took()))
            })
            .collect()
    };
    let scale = options.scale();
    let gantry = starts(Kind::Gantry, scale.starts)?;
    let apache = starts(Kind::Apache, if options.skip_apache { 0 } else { scale.apache_starts })?;
    let name = format!("start to ready, empty store, median of {}", scale.starts);
    take(compared(name, &gantry, &apache, 100.0));
    Ok(())
}

fn recovery(options: &Options, take: &mut impl FnMut(Figure)) -> Result<(), Failure> {
    let scale = options.scale();
    let needed = scale.recovery_bytes.saturating_mul(ROOM);
    let disk = rustix::fs::statvfs(&options.dir).map_err(io::Error::from);
    let disk = disk.map_err(Failure::system("asking for free room, see --dir"))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < needed {
        return Err(Failure::NoRoom { free_gib: gib(free), needed_gib: gib(needed) });
    }
    let (size, gantry) = recoveries(Kind::Gantry, scale.kills, options)?;
    let apache = match (options.skip_apache, scale.apache_kills) {
        (false, kills @ 1..) => recoveries(Kind::Apache, kills, options)?.1,
        (true, _) | (_, 0) => Vec::new(),
    };
    let name =
        format!("start to ready, {size:.1} GiB store after SIGKILL under load, median of {}", scale.kills);
    take(compared(name, &gantry, &apache, 500.0));
    Ok(())
}

/// Fills a store, then kills its broker under load and starts it again, a few times: the size of the store in
/// GiB, and how long each start took, in milliseconds.
fn recoveries(kind: Kind, kills: u32, options: &Options) -> Result<(f64, Vec<f64>), Failure> {
    let (_dir, store) = shapes::store_in(options)?;
    let mut broker = Broker::start(kind, &store, POLICY, options)?;
    let messages = options.scale().recovery_bytes.div_ceil(BIG);
    load::bench(
        &broker,
        &format!("produce --topic big --size {BIG} --batch 64 --in-flight 4 --messages {messages}"),
    )?;
    let mut took = Vec::new();
    for _ in 0..kills {
        let sends = Running::start(&broker, "bench produce --topic send --in-flight 64 --duration 10m")?;
        let transactions =
            Running::start(&broker, "bench transaction --topic transaction --in-flight 16 --duration 10m")?;
        stop::sleep(UNDER_LOAD)?;
        drop(broker);
        drop((sends, transactions));
        rustix::fs::sync();
        broker = Broker::start(kind, &store, POLICY, options)?;
        took.push(millis(broker.took()));
    }
    let size = bytes_below(&store).map_err(Failure::system("looking at the size of a store"))?;
    Ok((gib(size), took))
}

fn compared(name: String, gantry: &[f64], apache: &[f64], limit: f64) -> Figure {
    let apache = (!apache.is_empty()).then(|| stats::median(apache));
    Figure { apache, ..Figure::new(name, "ms", stats::median(gantry), limit) }
}

/// Bytes on the disk of all files below a directory.
fn bytes_below(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { bytes_below(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "a size to be read by people")]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / GIB
}
