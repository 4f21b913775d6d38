//! What is measured how often: the sets, and the shapes of load.

use gantry_benches::load::{Client, Extent, Load, What};
use gantry_benches::peer::{Kind, Policy};
use serde::Serialize;

use crate::options::{Options, Part, Set};

/// Most messages of the warm-up of sends under policy `disk`.
const WARMUP_DISK: u64 = 4_000;
/// Topic that is drained.
pub const DRAINED: &str = "drain";
/// Messages of a batch, and of a pull: Apache's brokers give at most so many.
pub const BATCH: u32 = 32;

/// One request after the other by a client that stays awake for as long as a flush takes; under `memory` it always
/// does. Clients that cannot be told do as they always do.
pub const AWAKE: &str = "send, 1 in flight, awake for 200 µs";
const AWAKE_MICROS: u16 = 200;

/// What Apache RocketMQ's own benchmark classes do, with 64 threads.
const OFFICIAL: [(&str, What, u32); 4] = [
    ("send", What::Produce, 1),
    ("send batches", What::Produce, BATCH),
    ("send and consume", What::Consume { groups: 1 }, 1),
    ("transaction", What::Transaction, 1),
];

/// How much of everything.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scale {
    /// Rounds of the shapes that the targets are about.
    pub rounds: u32,
    /// Rounds of the other shapes.
    pub more_rounds: u32,
    /// Milliseconds of a measured phase.
    pub millis: u64,
    /// Messages a second in the open loop.
    pub rate: u32,
    /// Milliseconds of sends to a new broker before anything is measured, for the compilers of JVMs.
    pub first_millis: u64,
    /// Most messages of the warm-up of a run.
    pub warmup_max: u64,
    /// Messages of a new broker whose bytes on the disk are counted.
    pub stored: u64,
    /// Transactions before those that are measured, on the same new broker.
    pub first_transactions: u64,
    /// Messages of the topic that is drained, half as many again as warm-up.
    pub drain: u64,
    /// The many connections and queues.
    pub many: Many,
    /// Timer messages that wait, and those that fall due meanwhile.
    pub timers: [u64; 2],
    /// Milliseconds over which idle CPU time is measured.
    pub idle_millis: u64,
    /// Starts of Gantry on empty stores.
    pub starts: u32,
    /// Starts of every other broker; none to leave them out.
    pub peer_starts: u32,
    /// Bytes of bodies in the store that is recovered.
    pub recovery_bytes: u64,
    /// How often Gantry is killed under load and started again.
    pub kills: u32,
    /// How often every other broker is; none to leave them out.
    pub peer_kills: u32,
}

/// How many connections and queues are many.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Many {
    /// Connections.
    pub connections: [u32; 3],
    /// Queues.
    pub queues: [u32; 4],
}

impl Options {
    /// How much of everything.
    pub fn scale(&self) -> Scale {
        let mut scale = match self.set {
            Set::Quick => QUICK,
            Set::Default => DEFAULT,
            Set::Full => FULL,
        };
        scale.rate = self.rate;
        if let Some(rounds) = self.rounds {
            (scale.rounds, scale.more_rounds) = (rounds, rounds);
        }
        if let Some(seconds) = self.seconds {
            scale.millis = seconds.saturating_mul(1000);
        }
        scale
    }
}

const QUICK: Scale = Scale {
    rounds: 1,
    more_rounds: 1,
    millis: 300,
    rate: 0,
    first_millis: 300,
    warmup_max: 5_000,
    stored: 5_000,
    first_transactions: 2_000,
    drain: 50_000,
    many: Many { connections: [2, 20, 200], queues: [1, 8, 100, 1_000] },
    timers: [20_000, 2_000],
    idle_millis: 1_000,
    starts: 3,
    peer_starts: 0,
    recovery_bytes: 128 << 20,
    kills: 1,
    peer_kills: 0,
};

const DEFAULT: Scale = Scale {
    rounds: 3,
    more_rounds: 1,
    millis: 3_000,
    rate: 0,
    first_millis: 5_000,
    warmup_max: 100_000,
    stored: 100_000,
    first_transactions: 60_000,
    drain: 1_000_000,
    many: Many { connections: [2, 200, 2_000], queues: [1, 8, 100, 10_000] },
    timers: [1_000_000, 50_000],
    idle_millis: 10_000,
    starts: 10,
    peer_starts: 2,
    recovery_bytes: 5 << 30,
    kills: 3,
    peer_kills: 1,
};

const FULL: Scale =
    Scale { rounds: 5, more_rounds: 5, millis: 10_000, peer_starts: 5, peer_kills: 3, ..DEFAULT };

/// A shape of load, the same for all brokers.
#[derive(Clone, Debug)]
pub struct Shape {
    /// What it is a part of.
    pub part: Part,
    /// Its name in tables.
    pub name: String,
    /// The load.
    pub load: Load,
    /// How often it is measured.
    pub rounds: u32,
}

impl Shape {
    /// The load for a broker. Transactions need a long warm-up in the JVM of Apache's broker; where they take
    /// longer and are compiled sooner, it would only cost time.
    pub fn load_for(&self, kind: Kind) -> Load {
        let mut load = self.load.clone();
        let apache = matches!(kind, Kind::Gantry | Kind::Apache | Kind::Apache540);
        if load.what == What::Transaction && !apache {
            load.warmup /= 20;
        }
        load
    }

    /// Transactions get a new broker each time: Apache 5.5.0 can keep a core busy after some, and the next run
    /// would pay for the one before.
    pub fn wants_new_broker(&self) -> bool {
        self.load.what == What::Transaction
    }
}

/// The shapes that were asked for, under a policy, in the order in which they are measured: what leaves much behind
/// comes last.
pub fn shapes(options: &Options, policy: Policy) -> Vec<Shape> {
    let scale = options.scale();
    let everywhere = options.set != Set::Default || !options.policy.is_empty();
    let mut shapes = all(&scale);
    shapes.retain(|shape| options.wants(shape.part) && (everywhere || is_measured(shape, policy)));
    shapes.retain(|shape| policy == Policy::Disk || shape.load.busy_wait.is_none());
    for shape in &mut shapes {
        let aimed_at = is_aimed_at(shape, policy, &scale);
        shape.rounds = if aimed_at { scale.rounds } else { scale.more_rounds };
        if policy == Policy::Disk && shape.load.what == What::Produce {
            // Some brokers take seconds for a few thousand messages, and nothing is the warmer for it.
            shape.load.warmup = shape.load.warmup.min(WARMUP_DISK.max(u64::from(shape.load.queues)));
        }
    }
    shapes
}

/// Whether the default set has it under a policy.
fn is_measured(shape: &Shape, policy: Policy) -> bool {
    match (policy, shape.part) {
        // Each of them takes half a minute.
        (Policy::Memory, Part::Official) => {
            shape.load.batch == 1 && !matches!(shape.load.what, What::Consume { .. })
        }
        (Policy::Memory, _) => true,
        (Policy::Disk, part) => {
            matches!(part, Part::Send | Part::Single | Part::OpenLoop | Part::Batch | Part::Transaction)
        }
    }
}

/// Whether a target is about it.
fn is_aimed_at(shape: &Shape, policy: Policy, scale: &Scale) -> bool {
    match (shape.part, policy) {
        (Part::Send | Part::Single, _) | (Part::Batch | Part::Drain | Part::Transaction, Policy::Memory) => {
            true
        }
        (Part::Queues, Policy::Memory) => {
            let [_, few, _, many] = scale.many.queues;
            [few, many].contains(&shape.load.queues)
        }
        _ => false,
    }
}

/// Every shape.
pub fn all(scale: &Scale) -> Vec<Shape> {
    let extent = Extent::Millis(scale.millis);
    let quick = |warmup: u64| warmup.min(scale.warmup_max);
    let produce = |topic: &str| Load { extent, warmup: quick(20_000), ..Load::produce(topic) };
    let mut shapes = Vec::new();
    let mut add = |part, name: String, load: Load| shapes.push(Shape { part, name, load, rounds: 1 });
    let count = |count: u32| thousands(u64::from(count));
    add(Part::Send, "send, 64 in flight".to_owned(), produce("send"));
    let single = Load { in_flight: 1, warmup: quick(2_000), ..produce("single") };
    add(Part::Single, "send, 1 in flight".to_owned(), single.clone());
    let awake = Load { busy_wait: Some(AWAKE_MICROS), ..single };
    add(Part::Single, AWAKE.to_owned(), awake);
    let rate = Load {
        rate: Some(scale.rate),
        in_flight: 256,
        warmup: quick(u64::from(scale.rate)),
        ..produce("open-loop")
    };
    add(Part::OpenLoop, format!("send, open loop, {}/s", count(scale.rate)), rate);
    let batch = Load { batch: BATCH, in_flight: 8, warmup: quick(100_000), ..produce("batch") };
    add(Part::Batch, format!("send, batches of {BATCH}"), batch);
    let drain = Load {
        what: What::Consume { groups: 1 },
        in_flight: 8,
        batch: BATCH,
        warmup: scale.drain / 2,
        extent: Extent::Messages(scale.drain),
        ..produce(DRAINED)
    };
    add(Part::Drain, "drain".to_owned(), drain.clone());
    let fan_out = Load {
        what: What::Consume { groups: 5 },
        in_flight: 40,
        connections: 5,
        warmup: scale.drain / 20,
        extent: Extent::Messages(scale.drain / 4),
        ..drain
    };
    add(Part::FanOut, "drain by 5 groups".to_owned(), fan_out);
    for in_flight in [8, 1024] {
        let load = Load { in_flight, ..produce(&format!("in-flight-{in_flight}")) };
        add(Part::InFlight, format!("send, {} in flight", count(in_flight)), load);
    }
    let size = Load { size: 1024, ..produce("size-1024") };
    add(Part::Size, "send, 64 in flight, 1 KiB".to_owned(), size);
    for connections in scale.many.connections {
        let load = Load { connections, ..produce(&format!("connections-{connections}")) };
        add(Part::Connections, format!("send, 64 in flight, {} connections", count(connections)), load);
    }
    for (name, what, batch) in OFFICIAL {
        let warmup = if what == What::Transaction { scale.first_transactions } else { 0 };
        let topic = format!("official-{}", name.replace(' ', "-"));
        let load = Load { client: Client::OfficialJava, what, batch, warmup, ..produce(&topic) };
        add(Part::Official, format!("Apache's benchmark classes: {name}"), load);
    }
    for queues in scale.many.queues {
        let warmup = quick(20_000).max(u64::from(queues) * 4);
        let load = Load { queues, warmup, ..produce(&format!("queues-{queues}")) };
        add(Part::Queues, queues_name(queues), load);
    }
    let transaction =
        Load { what: What::Transaction, warmup: scale.first_transactions, ..produce("transaction") };
    add(Part::Transaction, "transaction, 64 in flight".to_owned(), transaction);
    shapes
}

/// The shape of so many queues.
pub fn queues_name(queues: u32) -> String {
    let unit = if queues == 1 { "queue" } else { "queues" };
    format!("send, 64 in flight, {} {unit}", thousands(u64::from(queues)))
}

/// What a new broker gets before anything is measured.
pub fn first_sends(scale: &Scale) -> Load {
    Load { extent: Extent::Millis(scale.first_millis), ..Load::produce("first") }
}

/// What gives each queue of a shape its first messages.
pub fn first_of_each_queue(load: &Load) -> Load {
    Load { warmup: 0, extent: Extent::Messages(u64::from(load.queues) * 4), ..load.clone() }
}

/// What makes the topic that is drained.
pub fn fill(scale: &Scale) -> Load {
    let messages = scale.drain + scale.drain / 2;
    Load { batch: BATCH, in_flight: 8, extent: Extent::Messages(messages), ..Load::produce(DRAINED) }
}

/// How many of something are measured of a broker.
pub fn times(kind: Kind, gantry: u32, others: u32) -> u32 {
    if kind == Kind::Gantry { gantry } else { others }
}

/// A number with commas.
pub fn thousands(number: u64) -> String {
    if number < 1000 {
        return number.to_string();
    }
    format!("{},{:03}", thousands(number / 1000), number % 1000)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn sets_have_their_shapes() {
        let options = Options::parse_from(["compare", "--rate", "500"]);
        let names = |options: &Options, policy| -> Vec<_> {
            shapes(options, policy).into_iter().map(|shape| shape.name).collect()
        };
        let (memory, disk) = (names(&options, Policy::Memory), names(&options, Policy::Disk));
        for name in ["send, open loop, 500/s", "send, batches of 32", "transaction, 64 in flight"] {
            assert!(memory.iter().chain(&disk).filter(|found| *found == name).count() == 2, "{name}");
        }
        for name in ["send, 64 in flight, 10,000 queues", "send, 64 in flight, 1 queue", "drain by 5 groups"]
        {
            assert!(memory.iter().any(|found| found == name) && !disk.iter().any(|found| found == name));
        }
        let rounds: Vec<_> = shapes(&options, Policy::Memory)
            .iter()
            .filter(|shape| shape.part == Part::Queues)
            .map(|shape| shape.rounds)
            .collect();
        assert_eq!(rounds, [1, 3, 1, 3]);
        let full = Options::parse_from(["compare", "--set", "full", "--rounds", "2", "--seconds", "3"]);
        // The default set leaves out two of Apache's benchmark classes; a flush is worth staying awake for.
        assert_eq!(names(&full, Policy::Disk).len(), memory.len() + 3);
        assert!(shapes(&full, Policy::Disk).iter().all(|shape| shape.rounds == 2));
        assert_eq!(full.scale().millis, 3000);
        let some = Options::parse_from(["compare", "--only", "queues", "--policy", "disk"]);
        assert_eq!(names(&some, Policy::Disk).len(), 4);
    }

    #[test]
    fn numbers_have_commas() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
