//! The targets, and whether a run meets them.

use gantry_benches::peer::{Kind, Policy};

use super::table::{Table, short};
use super::{CPU, P50, P99, Report, THROUGHPUT, rate};
use crate::alone::names;
use crate::limits::FDATASYNC;
use crate::plan::{AWAKE, queues_name};
use crate::timers;

/// "Level with": this much more at most.
const LEVEL: f64 = 1.1;
/// Bytes of the property in which Gantry keeps a record's checksum (`__CRC32#`, ten digits). Apache's broker writes the
/// same one with `enabledAppendPropCRC=true`, which is not its default.
const CHECKSUM: f64 = 20.0;
const MB_BY_MIB: f64 = 1024.0 * 1024.0 / 1e6;

/// The shape that shows what a broker can do.
pub(super) const SEND: &str = "send, 64 in flight";
const SINGLE: &str = "send, 1 in flight";
const BATCH: &str = "send, batches of 32";
const DRAIN: &str = "drain";
const TRANSACTION: &str = "transaction, 64 in flight";

/// Whether a target is met; none when a figure for that is missing.
type Verdict = Option<bool>;

/// A row of the table.
struct Target {
    name: &'static str,
    limit: String,
    /// Gantry's, then of every [`Peers`] in that order.
    values: [String; 4],
    verdict: Verdict,
}

/// Who stands in a column.
#[derive(Clone, Copy)]
struct Peers {
    apache: Option<Kind>,
    /// For transactions and what comes after them.
    apache_fair: Option<Kind>,
    kafka: Option<Kind>,
    nats: Option<Kind>,
}

impl Peers {
    fn fair_name(self) -> &'static str {
        self.apache_fair.map_or("Apache", Kind::name)
    }
}

impl Report {
    /// The table of targets, as the aims of the project have them.
    pub(super) fn targets(&self) -> Table {
        let find = |name: &str| self.kinds().find(|kind| kind.name().starts_with(name));
        let is = |wanted: Kind| self.kinds().find(|kind| *kind == wanted);
        let peers = Peers {
            apache: is(Kind::Apache).or(is(Kind::Apache540)),
            apache_fair: is(Kind::Apache540).or(is(Kind::Apache)),
            kafka: find("Kafka"),
            nats: find("NATS"),
        };
        let mut table =
            Table::new(2, ["shape (128 B)", "target", "Gantry", "Apache", "Kafka", "NATS", "verdict"]);
        let targets = self.loads(peers).into_iter().chain(self.alone(peers));
        for Target { name, limit, values, verdict } in targets {
            let verdict = match verdict {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "not measured",
            };
            let mut row = vec![name.to_owned(), limit];
            row.extend(values);
            row.push(verdict.to_owned());
            table.rows.push(row);
        }
        table
    }

    pub(super) fn median(
        &self,
        shape: &str,
        policy: Policy,
        column: usize,
        kind: Option<Kind>,
    ) -> Option<f64> {
        let value = self.row(shape, policy, kind?)?.values[column];
        value.is_finite().then_some(value)
    }

    /// Broker CPU time per message against Apache's and Kafka's.
    fn cpu(
        &self,
        name: &'static str,
        (shape, policy): (&str, Policy),
        by: f64,
        kafka: Option<(f64, &str)>,
        peers: Peers,
    ) -> Target {
        let of = |kind| self.median(shape, policy, CPU, kind);
        let (reference, reference_name) = match shape {
            TRANSACTION => (peers.apache_fair, peers.fair_name()),
            _ => (peers.apache, "Apache"),
        };
        let (gantry, apache) = (of(Some(Kind::Gantry)), of(reference));
        let against_apache = both(gantry, apache).map(|(gantry, apache)| gantry <= apache / by);
        let against_kafka = match kafka {
            None => Some(true),
            Some((factor, _)) => {
                both(gantry, of(peers.kafka)).map(|(gantry, kafka)| gantry <= kafka * factor)
            }
        };
        let text = kafka.map_or_else(String::new, |(_, text)| format!(" and {text} Kafka"));
        Target {
            name,
            limit: format!("≤ 1/{by} of {reference_name}{text}"),
            values: [gantry, apache, of(peers.kafka), of(peers.nats)]
                .map(|value| value.map_or_else(none, short)),
            verdict: all([against_apache, against_kafka]),
        }
    }

    fn loads(&self, peers: Peers) -> Vec<Target> {
        let (memory, disk) = (Policy::Memory, Policy::Disk);
        let below = Some((1.0, "below"));
        let level = Some((LEVEL, "level with"));
        let million = |name, shape, by, kafka| self.cpu(name, shape, by, kafka, peers);
        let gantry = Some(Kind::Gantry);
        let rates = |shape, policy| {
            [gantry, peers.apache, peers.kafka, peers.nats]
                .map(|kind| self.median(shape, policy, THROUGHPUT, kind))
        };
        let shown = |values: [Option<f64>; 4]| values.map(|value| value.map_or_else(none, rate));
        let many = rates(SEND, disk);
        let one = rates(SINGLE, disk);
        let awake = rates(AWAKE, disk);
        let bare = self.limits.iter().find(|limit| limit.name == FDATASYNC).map(super::Limit::value);
        let latency = |kind| {
            let at = |column| self.median(SINGLE, memory, column, kind);
            both(at(P50), at(P99))
        };
        let latencies = [gantry, peers.apache, peers.kafka, peers.nats].map(latency);
        vec![
            million("broker CPU-seconds per million sends, 64 in flight, memory", (SEND, memory), 8.0, below),
            million("the same, disk", (SEND, disk), 8.0, None),
            million("the same, memory, batches of 32", (BATCH, memory), 6.0, below),
            million("per million transactions, 64 in flight, memory", (TRANSACTION, memory), 8.0, None),
            million("per million messages drained", (DRAIN, memory), 10.0, level),
            Target {
                name: "throughput, disk, 64 in flight",
                limit: "≥ 5 × Apache".to_owned(),
                verdict: both(many[0], many[1]).map(|(gantry, apache)| gantry >= 5.0 * apache),
                values: shown(many),
            },
            Target {
                name: "throughput, disk, 1 in flight",
                limit: format!("≥ 80 % of 4 KiB writes with fdatasync ({})", bare.map_or_else(none, rate)),
                verdict: both(one[0], bare).map(|(gantry, bare)| gantry >= 0.8 * bare),
                values: shown(one),
            },
            Target {
                name: "the same, Gantry's client awake for 200 µs",
                limit: "the same".to_owned(),
                verdict: both(awake[0], bare).map(|(gantry, bare)| gantry >= 0.8 * bare),
                values: shown(awake),
            },
            Target {
                name: "latency, memory, 1 in flight, p50 / p99 µs",
                limit: "≤ 30 / ≤ 100".to_owned(),
                verdict: latencies[0].map(|(p50, p99)| p50 <= 0.030 && p99 <= 0.100),
                values: latencies.map(|value| {
                    value.map_or_else(none, |(p50, p99)| pair(short(p50 * 1000.0), &short(p99 * 1000.0)))
                }),
            },
        ]
    }

    fn alone(&self, peers: Peers) -> Vec<Target> {
        let of = |name, kind: Option<Kind>| self.figure_of(name, kind?);
        let columns = [Some(Kind::Gantry), peers.apache, peers.kafka, peers.nats];
        let fair = [Some(Kind::Gantry), peers.apache_fair, peers.kafka, peers.nats];
        let two = |one: &'static str, other: &'static str, factor: f64| {
            columns.map(|kind| both(of(one, kind), of(other, kind)).map(|(a, b)| (a * factor, b * factor)))
        };
        let shown = |values: [Option<(f64, f64)>; 4]| {
            values.map(|value| value.map_or_else(none, |(one, other)| pair(short(one), &short(other))))
        };
        let idle = fair.map(|kind| of(names::IDLE_CPU, kind));
        let memory = two(names::MEMORY_IDLE, names::MEMORY_LOADED, MB_BY_MIB);
        let start = two(names::START, names::RECOVERY, 0.001);
        let stored = two(names::STORED, names::STORED_BATCH, 1.0);
        vec![
            Target {
                name: "idle CPU after a load, % of a core",
                limit: format!("≤ 0.5 (beside {})", peers.fair_name()),
                verdict: idle[0].map(|gantry| gantry <= 0.5),
                values: idle.map(|value| value.map_or_else(none, short)),
            },
            Target {
                name: "anonymous memory idle / loaded, MB",
                limit: "≤ 20 / ≤ 100".to_owned(),
                verdict: memory[0].map(|(idle, loaded)| idle <= 20.0 && loaded <= 100.0),
                values: shown(memory),
            },
            Target {
                name: "start to first send, empty / large store after SIGKILL, s",
                limit: "≤ 0.05 / ≤ 0.3".to_owned(),
                verdict: start[0].map(|(empty, large)| empty <= 0.05 && large <= 0.3),
                values: shown(start),
            },
            Target {
                name: "disk bytes per message beside the body, sends / batches",
                limit: format!("≤ Apache + {CHECKSUM} for a checksum that its default leaves out"),
                verdict: both(stored[0], stored[1]).map(|(gantry, apache)| {
                    let holds = |gantry: f64, apache: f64| gantry.round() <= apache.round() + CHECKSUM;
                    holds(gantry.0, apache.0) && holds(gantry.1, apache.1)
                }),
                values: shown(stored),
            },
            self.many_queues(columns),
            self.many_timers(columns),
        ]
    }

    fn many_timers(&self, columns: [Option<Kind>; 4]) -> Target {
        let of = |name: &str, kind: Option<Kind>| self.figure_of(name, kind?);
        let values = columns.map(|kind| {
            let late = of(timers::LATE_ALONE, kind)?.max(of(timers::LATE_BESIDE, kind)?);
            let [with, without] = [timers::sends_with(&self.scale), timers::SENDS_WITHOUT.to_owned()]
                .map(|name| of(&name, kind));
            Some((late, (with? / without? - 1.0) * 100.0))
        });
        Target {
            name: "1,000,000 timers wait: lateness p99.9 of others, ms / throughput of sends, %",
            limit: "≤ 100 / ≥ −10".to_owned(),
            verdict: values[0]
                .filter(|_| self.scale.timers[0] == 1_000_000)
                .map(|(late, change)| late <= 100.0 && change >= -10.0),
            values: values.map(|value| {
                value.map_or_else(none, |(late, change)| pair(short(late), &format!("{change:+.0}")))
            }),
        }
    }

    fn many_queues(&self, columns: [Option<Kind>; 4]) -> Target {
        let [_, few, _, many] = self.scale.many.queues.map(queues_name);
        let at = |shape: &str, kind| self.median(shape, Policy::Memory, THROUGHPUT, kind);
        let change = columns
            .map(|kind| both(at(&few, kind), at(&many, kind)).map(|(few, many)| (many / few - 1.0) * 100.0));
        Target {
            name: "10,000 queues: throughput by that of 8 queues, %",
            limit: "≥ −10".to_owned(),
            verdict: change[0].filter(|_| self.scale.many.queues[3] == 10_000).map(|change| change >= -10.0),
            values: change.map(|value| value.map_or_else(none, |value| format!("{value:+.0}"))),
        }
    }
}

fn none() -> String {
    "–".to_owned()
}

fn pair(one: String, other: &str) -> String {
    one + " / " + other
}

fn both<A, B>(one: Option<A>, other: Option<B>) -> Option<(A, B)> {
    one.zip(other)
}

/// Missed if any is missed; met if all are.
fn all<const N: usize>(verdicts: [Verdict; N]) -> Verdict {
    if verdicts.contains(&Some(false)) {
        return Some(false);
    }
    verdicts.iter().all(Option::is_some).then_some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_part_misses_and_a_missing_one_proves_nothing() {
        assert_eq!(all([Some(true), Some(true)]), Some(true));
        assert_eq!(all([None, Some(false)]), Some(false));
        assert_eq!(all([None, Some(true)]), None);
    }
}
