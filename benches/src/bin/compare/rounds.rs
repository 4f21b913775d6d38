//! All brokers in all shapes of load, in turn.
//!
//! ```text
//! a policy:  start all ─▶ first sends ─▶ for each part, for each round, for each shape: A B C │ B C A │ …
//!            then, for each round of transactions: a new A, first sends; a new B, first sends; …
//! ```
//!
//! Those that are not measured are paused. A broker that ends is left out from then on; whatever fails is a line of
//! the report.

use gantry_benches::failure::Failure;
use gantry_benches::load::{Load, Measured};
use gantry_benches::peer::{Kind, Peer, Policy, pause};
use gantry_benches::stop;
use serde::Serialize;

use crate::Brokers;
use crate::options::{Options, Part};
use crate::plan::{self, Shape};
use crate::report::Report;
use crate::seat::Seat;
use crate::stored;

/// One measured run.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// What it is a part of.
    pub part: Part,
    /// Shape of the load.
    pub shape: String,
    /// What an answer means.
    pub policy: Policy,
    /// Which broker.
    pub broker: Kind,
    /// From 1.
    pub round: u32,
    /// The load in full.
    pub load: Load,
    /// What came out.
    #[serde(flatten)]
    pub measured: Measured,
}

/// All brokers in all shapes that were asked for.
pub fn run(brokers: &Brokers, options: &Options, report: &mut Report) -> Result<(), Failure> {
    for (at, policy) in options.policies().into_iter().enumerate() {
        let shapes = plan::shapes(options, policy);
        let (new, long): (Vec<_>, Vec<_>) = shapes.into_iter().partition(Shape::wants_new_broker);
        // The records are the same under every policy.
        let store = at == 0 && options.wants(Part::Store);
        if store || !long.is_empty() {
            in_turn(brokers, &long, policy, store, options, report)?;
        }
        for shape in &new {
            on_new_brokers(brokers, shape, policy, options, report)?;
        }
    }
    Ok(())
}

/// Shapes that do not change what comes after them.
fn in_turn(
    brokers: &Brokers,
    shapes: &[Shape],
    policy: Policy,
    store: bool,
    options: &Options,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut parts: Vec<_> = shapes.iter().map(|shape| shape.part).collect();
    parts.dedup();
    let with_store: Vec<_> = parts.iter().copied().chain(store.then_some(Part::Store)).collect();
    let mut seats = Vec::new();
    for (kind, peer) in brokers.of(&with_store, options) {
        let seated = Seat::start(kind, peer, policy, options).and_then(|seat| {
            prepare(peer, &seat, shapes, options)?;
            pause(seat.server.as_ref()).and(Ok(seat))
        });
        match seated {
            Ok(seat) => seats.push(seat),
            Err(failure) => report.failed(kind, &format!("policy {}", policy.name()), &failure)?,
        }
    }
    if store {
        stored::measure(&seats, &options.scale(), report)?;
    }
    for part in parts {
        let shapes: Vec<_> = shapes.iter().filter(|shape| shape.part == part).collect();
        let rounds = shapes.iter().map(|shape| shape.rounds).max().unwrap_or_default();
        for round in 1..=rounds {
            for shape in &shapes {
                one_round(brokers, shape, policy, round, &seats, report)?;
                seats.retain(Seat::is_alive);
            }
        }
    }
    Ok(())
}

fn one_round(
    brokers: &Brokers,
    shape: &Shape,
    policy: Policy,
    round: u32,
    seats: &[Seat],
    report: &mut Report,
) -> Result<(), Failure> {
    for turn in 0..seats.len() {
        // Who comes first changes: what drifts in the machine is charged to all.
        let Some(seat) = seats.get((turn + round as usize - 1) % seats.len()) else { continue };
        if !brokers.can(seat.kind, &shape.load) || !report.holds(shape, policy, seat.kind) {
            continue;
        }
        let measured = seat.awake(|seat| seat.measure(&shape.load_for(seat.kind)));
        take(shape, policy, seat.kind, round, measured, report)?;
    }
    Ok(())
}

/// What a broker gets before anything is measured.
fn prepare(peer: &dyn Peer, seat: &Seat, shapes: &[Shape], options: &Options) -> Result<(), Failure> {
    let scale = options.scale();
    seat.measure(&plan::first_sends(&scale))?;
    if shapes.iter().any(|shape| shape.load.topic == plan::DRAINED) {
        seat.measure(&plan::fill(&scale))?;
    }
    // Some brokers make a queue's files with its first message, others some seconds later.
    let of_queues = |shape: &&Shape| shape.part == Part::Queues && peer.can(&shape.load);
    for shape in shapes.iter().filter(of_queues) {
        seat.measure(&plan::first_of_each_queue(&shape.load))?;
    }
    if shapes.iter().any(|shape| shape.part == Part::Queues) {
        seat.rest()?;
    }
    Ok(())
}

/// A shape that leaves so much behind that every run gets a new broker.
fn on_new_brokers(
    brokers: &Brokers,
    shape: &Shape,
    policy: Policy,
    options: &Options,
    report: &mut Report,
) -> Result<(), Failure> {
    let scale = options.scale();
    let doing = doing(shape, policy);
    for round in 1..=shape.rounds {
        for (kind, peer) in brokers.of(&[shape.part], options) {
            if !peer.can(&shape.load) || report.has_failed(kind, &doing) {
                continue;
            }
            let measured = Seat::start(kind, peer, policy, options).and_then(|seat| {
                seat.server.run(&plan::first_sends(&scale))?;
                seat.measure(&shape.load_for(kind))
            });
            take(shape, policy, kind, round, measured, report)?;
        }
    }
    Ok(())
}

fn take(
    shape: &Shape,
    policy: Policy,
    broker: Kind,
    round: u32,
    measured: Result<Measured, Failure>,
    report: &mut Report,
) -> Result<(), Failure> {
    stop::check()?;
    let Shape { part, name, .. } = shape;
    match measured {
        Ok(measured) => {
            let (shape, load) = (name.clone(), shape.load_for(broker));
            report.run(Run { part: *part, shape, policy, broker, round, load, measured });
            Ok(())
        }
        Err(failure) => report.failed(broker, &doing(shape, policy), &failure),
    }
}

/// What is being done, for the line of what fails.
pub fn doing(shape: &Shape, policy: Policy) -> String {
    format!("{}, policy {}", shape.name, policy.name())
}
