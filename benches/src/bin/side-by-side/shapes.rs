//! The shapes of load that both brokers are measured in, in turn.
//!
//! ```text
//! a policy:  start both ─▶ first sends ─▶ for each shape, for each round: Gantry, Apache │ Apache, Gantry │ …
//!            then, for each round of transactions: a new Gantry, first sends; a new Apache, first sends
//! ```
//!
//! The one that is not measured is paused. Transactions get new brokers each time, because Apache 5.5.0 can keep
//! a core busy after some: the next run would pay for the one before.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tempfile::TempDir;

use crate::broker::{Broker, Kind};
use crate::failure::Failure;
use crate::load::{self, Measured};
use crate::options::{Options, Part, Policy, Scale};
use crate::stop;

/// After a run a broker goes on so long: what it still has to do for the run is not the next run's.
const SETTLE: Duration = Duration::from_millis(700);

/// One measured run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Shape of the load.
    pub part: Part,
    /// What an answer means.
    pub policy: Policy,
    /// Which broker.
    pub broker: Kind,
    /// From 1.
    pub round: u32,
    /// What came out.
    #[serde(flatten)]
    pub measured: Measured,
}

/// A broker on a store that goes with it.
#[derive(Debug)]
pub struct Seat {
    /// The broker; declared first, so that it ends first.
    pub broker: Broker,
    _store: TempDir,
}

impl Seat {
    /// Starts a broker on an empty store.
    pub fn start(kind: Kind, policy: Policy, options: &Options) -> Result<Self, Failure> {
        let (store, path) = store_in(options)?;
        Ok(Self { broker: Broker::start(kind, &path, policy, options)?, _store: store })
    }
}

/// A directory for a store, and for what Apache writes beside it.
pub fn store_in(options: &Options) -> Result<(TempDir, PathBuf), Failure> {
    let dir = tempfile::Builder::new().prefix("gantry-bench-").tempdir_in(&options.dir);
    let dir = dir.map_err(Failure::system("making a directory for a store, see --dir"))?;
    let path = dir.path().join("store");
    Ok((dir, path))
}

/// Both brokers in all shapes that were asked for; each run is given to `take` as it ends.
pub fn run(options: &Options, take: &mut impl FnMut(Run)) -> Result<(), Failure> {
    let kinds: &[Kind] = if options.skip_apache { &[Kind::Gantry] } else { &[Kind::Gantry, Kind::Apache] };
    let shapes: Vec<_> = Part::SHAPES.into_iter().filter(|part| options.wants(*part)).collect();
    for policy in options.policies() {
        let long: Vec<_> = shapes.iter().copied().filter(|part| *part != Part::Transaction).collect();
        if !long.is_empty() {
            side_by_side(kinds, &long, policy, options, take)?;
        }
        if shapes.contains(&Part::Transaction) {
            transactions(kinds, policy, options, take)?;
        }
    }
    Ok(())
}

/// The shapes that do not change what comes after them.
fn side_by_side(
    kinds: &[Kind],
    shapes: &[Part],
    policy: Policy,
    options: &Options,
    take: &mut impl FnMut(Run),
) -> Result<(), Failure> {
    let scale = options.scale();
    let mut seats = Vec::new();
    for kind in kinds {
        let seat = Seat::start(*kind, policy, options)?;
        load::bench(&seat.broker, &first_sends(&scale))?;
        if shapes.contains(&Part::Drain) {
            load::bench(&seat.broker, &fill(&scale))?;
        }
        seat.broker.pause()?;
        seats.push(seat);
    }
    for part in shapes {
        for round in 1..=scale.rounds {
            for turn in 0..seats.len() {
                // Who comes first changes: what drifts in the machine is charged to both.
                let Some(Seat { broker, .. }) = seats.get((turn + round as usize + 1) % seats.len()) else {
                    continue;
                };
                broker.resume()?;
                let measured = measure(broker, *part, &scale)?;
                broker.pause()?;
                take(Run { part: *part, policy, broker: broker.kind(), round, measured });
            }
        }
    }
    Ok(())
}

fn transactions(
    kinds: &[Kind],
    policy: Policy,
    options: &Options,
    take: &mut impl FnMut(Run),
) -> Result<(), Failure> {
    let scale = options.scale();
    for round in 1..=scale.rounds {
        for kind in kinds {
            let seat = Seat::start(*kind, policy, options)?;
            load::bench(&seat.broker, &first_sends(&scale))?;
            let measured = measure(&seat.broker, Part::Transaction, &scale)?;
            take(Run { part: Part::Transaction, policy, broker: *kind, round, measured });
        }
    }
    Ok(())
}

fn measure(broker: &Broker, part: Part, scale: &Scale) -> Result<Measured, Failure> {
    // Writing back what earlier runs left in memory is not part of this one.
    rustix::fs::sync();
    let measured = load::bench(broker, &arguments(part, scale))?;
    stop::sleep(SETTLE)?;
    Ok(measured)
}

/// What `gantry bench` is told for a shape.
pub fn arguments(part: Part, scale: &Scale) -> String {
    let Scale { seconds, rate, drain, first_transactions, .. } = *scale;
    match part {
        Part::Send => format!("produce --topic send --in-flight 64 --warmup 20000 --duration {seconds}s"),
        Part::Single => format!("produce --topic single --in-flight 1 --warmup 2000 --duration {seconds}s"),
        Part::OpenLoop => format!(
            "produce --topic open-loop --in-flight 256 --rate {rate}/s --warmup {rate} --duration {seconds}s"
        ),
        Part::Batch => {
            format!("produce --topic batch --batch 32 --in-flight 8 --warmup 100000 --duration {seconds}s")
        }
        Part::Drain => format!("consume --topic drain --in-flight 8 --warmup {}", drain / 2),
        Part::Transaction => format!(
            "transaction --topic transaction --in-flight 64 --warmup {first_transactions} --duration {seconds}s"
        ),
        Part::Idle | Part::Start | Part::Recovery => unreachable!("no shape of load"),
    }
}

/// What a new broker gets before anything is measured.
fn first_sends(scale: &Scale) -> String {
    format!("produce --topic first --in-flight 64 --messages {}", scale.first_sends)
}

/// What makes the topic that is drained.
fn fill(scale: &Scale) -> String {
    format!("produce --topic drain --batch 32 --in-flight 8 --messages {}", scale.drain + scale.drain / 2)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn every_shape_is_a_load() {
        let scale = Options::parse_from(["side-by-side", "--rate", "500"]).scale();
        for part in Part::SHAPES {
            let arguments = arguments(part, &scale);
            assert!(["produce ", "consume ", "transaction "].iter().any(|load| arguments.starts_with(load)));
        }
        assert!(arguments(Part::OpenLoop, &scale).contains("--rate 500/s --warmup 500 "));
    }
}
