//! What a round does. It follows from the seed of the run and the number of the round alone, so that a round can
//! be repeated; what it meets does not, because the machine decides when things happen.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::fault::{Fault, Nature};
use crate::workload::Mix;

/// Rounds on one store, at most.
const CHAIN_MAX: u64 = 4;
/// Messages of one round before the producers only trickle: what the model and the disk can bear.
const MESSAGES_MAX: u64 = 30_000;
const MESSAGES_MAX_BRIEF: u64 = 6_000;

/// When the broker says that it has kept something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// When it is on the disk.
    Disk,
    /// When it is in the page cache.
    Memory,
}

impl Policy {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "disk" => Ok(Self::Disk),
            "memory" => Ok(Self::Memory),
            _ => Err(format!("{text:?} is no policy: choose disk or memory")),
        }
    }
}

/// How long rounds are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// One stroke of each fault, in a few seconds: for a test suite.
    Brief,
    /// Several strokes: for long runs.
    Full,
}

/// What rounds are made from.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Seed of the run.
    pub seed: u64,
    /// The faults to choose from; not empty.
    pub faults: Vec<Fault>,
    /// The policy, unless each round chooses.
    pub policy: Option<Policy>,
    /// How long rounds are.
    pub pace: Pace,
}

/// One round: a store under load, faults, and what must be true after them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// Its number in the run, from 0.
    pub number: u64,
    /// Seed of all that it decides later.
    pub seed: u64,
    /// The number of the round that made its store: its own, unless it goes on with a store.
    pub first: u64,
    /// One fault, or a stroke and a weather together.
    pub faults: Vec<Fault>,
    /// When sends are acknowledged.
    pub policy: Policy,
    /// How often a stroke falls, or how often a weather blows.
    pub injections: u32,
    /// The load.
    pub mix: Mix,
    /// Flags of the broker, beside the policy.
    pub flags: Vec<String>,
    /// How long it is.
    pub pace: Pace,
}

impl Choice {
    /// The round with this number.
    pub fn round(&self, number: u64) -> Round {
        let mut rng = self.rng(number);
        let seed = rng.u64(..);
        let continues = rng.bool();
        let first = if continues { self.first(number) } else { number };
        let faults = self.faults_of(number, &mut rng);
        let policy = if rng.bool() { Policy::Disk } else { Policy::Memory };
        let mut policy = self.policy.unwrap_or(policy);
        if faults.contains(&Fault::Power) {
            // The other promises nothing about it.
            policy = Policy::Disk;
        }
        let injections = match self.pace {
            Pace::Brief => 1,
            Pace::Full => rng.u32(2..=5),
        };
        Round {
            number,
            seed,
            first,
            policy,
            injections,
            mix: mix(&mut rng, self.pace),
            flags: self.flags(first, &faults, &mut rng),
            faults,
            pace: self.pace,
        }
    }

    fn rng(&self, number: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed ^ number.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Where the chain of rounds begins that `number` goes on with.
    fn first(&self, number: u64) -> u64 {
        let begin = number - number % CHAIN_MAX;
        let continues = |number: u64| {
            let mut rng = self.rng(number);
            rng.u64(..);
            rng.bool()
        };
        (begin..=number).rev().find(|number| *number == begin || !continues(*number)).unwrap_or(number)
    }

    /// Every fault is met equally often: they come in turns, each turn in another order.
    fn faults_of(&self, number: u64, rng: &mut fastrand::Rng) -> Vec<Fault> {
        let count = self.faults.len() as u64;
        let mut turn = self.faults.clone();
        fastrand::Rng::with_seed(self.seed ^ (number / count)).shuffle(&mut turn);
        let at = usize::try_from(number % count).unwrap_or_default();
        let mut faults = vec![turn[at]];
        let others: Vec<_> =
            self.faults.iter().copied().filter(|other| goes_with(turn[at], *other)).collect();
        if self.pace == Pace::Full
            && rng.u8(..) < 64
            && let Some(other) = rng.choice(&others)
        {
            faults.push(*other);
            faults.sort_by_key(|fault| fault.nature() == Nature::Weather);
        }
        faults
    }

    /// Small files, so that faults meet their ends too; early checks; a short first delay level. The sizes of
    /// files belong to the store, the rest to the round.
    fn flags(&self, first: u64, faults: &[Fault], rng: &mut fastrand::Rng) -> Vec<String> {
        let mut sizes = fastrand::Rng::with_seed(self.rng(first).u64(..) ^ 0x51);
        let mut flags: Vec<(&str, String)> = vec![
            ("--segment-bytes", format!("{}KiB", [512, 1024, 4096][sizes.usize(..3)])),
            ("--queue-file-bytes", (20 * sizes.u32(100..2000)).to_string()),
            ("--index-slots", sizes.u32(200..1000).to_string()),
            ("--index-entries", sizes.u32(1000..8000).to_string()),
            ("--max-message-size", "64KiB".to_owned()),
            ("--transaction-timeout", format!("{}ms", rng.u32(200..600))),
            ("--transaction-check-interval", format!("{}ms", rng.u32(200..600))),
            ("--transaction-check-interval-max", "800ms".to_owned()),
            ("--max-checks", "100000".to_owned()),
            ("--delay-levels", "300ms 1s".to_owned()),
        ];
        if faults.iter().any(|fault| fault.nature() == Nature::Weather) {
            flags.push(("--idle-timeout", "3s".to_owned()));
            flags.push(("--member-expiry", "6s".to_owned()));
            flags.push(("--max-outbound", "4MiB".to_owned()));
        }
        if faults.contains(&Fault::Clock) {
            // Jumps of a day must not look like age.
            flags.push(("--dedup-time", "10d".to_owned()));
            flags.push(("--retention-time", "30d".to_owned()));
        }
        flags.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }
}

/// Whether two faults can come at once: a stroke and a weather, but not a power cut, after which the disk is
/// another one, and a weather of the disk or the clock.
fn goes_with(one: Fault, other: Fault) -> bool {
    let both = [one, other];
    one.nature() != other.nature()
        && !(both.contains(&Fault::Power)
            && (both.contains(&Fault::SlowDisk) || both.contains(&Fault::Clock)))
}

fn mix(rng: &mut fastrand::Rng, pace: Pace) -> Mix {
    let messages_max = match pace {
        Pace::Brief => MESSAGES_MAX_BRIEF,
        Pace::Full => MESSAGES_MAX,
    };
    let everything = Mix { messages_max, ..Mix::default() };
    match rng.u8(..4) {
        0 => Mix { pipelines: 1, transactions: 24, others: false, ..everything },
        1 => Mix { pipelines: 8, transactions: 2, ..everything },
        _ => everything,
    }
}

impl Round {
    /// Whether a fault takes part.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    /// The faults, joined by `+`.
    pub fn faults_text(&self) -> String {
        let names: Vec<_> = self.faults.iter().map(|fault| fault.name()).collect();
        names.join("+")
    }

    /// Flags of `gantry serve`.
    pub fn serve_flags(&self) -> Vec<&str> {
        let mut flags = vec!["--policy", self.policy.name()];
        flags.extend(self.flags.iter().map(String::as_str));
        flags
    }

    /// Flags of `gantry store verify`, which must know of some of them.
    pub fn verify_flags(&self) -> Vec<&str> {
        let known = ["--index-slots", "--index-entries", "--delay-levels"];
        let pairs = self.flags.chunks(2).filter(|pair| known.contains(&pair[0].as_str()));
        pairs.flatten().map(String::as_str).collect()
    }

    /// For how long the broker works undisturbed between two strokes, at most.
    pub const fn moment_max(&self) -> Duration {
        match self.pace {
            Pace::Brief => Duration::from_millis(200),
            Pace::Full => Duration::from_millis(800),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(seed: u64) -> Choice {
        Choice { seed, faults: Fault::ALL.to_vec(), policy: None, pace: Pace::Full }
    }

    #[test]
    fn a_round_follows_from_seed_and_number() {
        let rounds = |seed| (0..50).map(|number| choice(seed).round(number)).collect::<Vec<_>>();
        assert_eq!(rounds(7), rounds(7));
        assert_ne!(rounds(7), rounds(8));
    }

    #[test]
    fn every_fault_has_its_turn() {
        let count = Fault::ALL.len() as u64;
        for turn in 0..5 {
            let mut met: Vec<_> = (turn * count..(turn + 1) * count)
                .flat_map(|number| choice(3).round(number).faults)
                .collect();
            met.sort_unstable();
            met.dedup();
            assert_eq!(met, {
                let mut all = Fault::ALL.to_vec();
                all.sort_unstable();
                all
            });
        }
    }

    #[test]
    fn chains_begin_with_a_round_of_their_own_and_agree_on_file_sizes() {
        let choice = choice(11);
        let mut continued = 0;
        for number in 0..200 {
            let round = choice.round(number);
            let first = choice.round(round.first);
            assert_eq!(first.first, round.first, "round {number} goes on with a store that is made");
            assert_eq!(first.flags[..8], round.flags[..8], "round {number}");
            continued += u32::from(round.first != number);
        }
        assert!(continued > 30, "some rounds go on with a store; found {continued}");
    }
}
