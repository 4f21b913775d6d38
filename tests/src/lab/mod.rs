//! The lab: a real broker under load, through everything that may happen to one, and a checker that knows what
//! it promised.
//!
//! ```text
//!  seed ──▶ plan: round 0, 1, 2 …       one round
//!                                        store (fresh, or of the round before) ── broker ◀── load ──▶ checker
//!                                                                                   ▲
//!                                        strokes (kill, freeze …) ──────────────────┤
//!                                        weather (half-open, slow readers …) ───────┘
//!                                        settle ─▶ restart ─▶ audit ─▶ stop ─▶ `gantry store verify`
//! ```
//!
//! What a round decides follows from the seed of the run and its number ([`plan`]); when things happen does not. A
//! round that finds a contradiction, or does not end, keeps its directory and ends the run.

pub mod disk;
pub mod fault;
pub mod plan;
pub mod proxy;
pub mod report;
pub mod round;
pub mod stage;
pub mod strokes;
pub mod vitals;
pub mod weather;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use fault::Fault;
pub use plan::{Choice, Pace, Policy, Round};
pub use report::{Outcome, Report};

use crate::checker::Checker;

/// How long a round may take on a busy machine; one that takes longer hangs.
const ROUND_WITHIN: Duration = Duration::from_secs(300);

/// What a run of the lab is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// What rounds are made from.
    pub choice: Choice,
    /// No round begins after so long.
    pub duration: Duration,
    /// Only this round, and those whose store it goes on with.
    pub only_round: Option<u64>,
    /// Where stores are; those of rounds with violations stay.
    pub dir: PathBuf,
}

/// A store that rounds may go on with.
struct Site {
    first: u64,
    dir: PathBuf,
    checker: Arc<Checker>,
}

/// Runs rounds until the time is up, one finds something, or `stop` comes.
///
/// `say` hears a line for each round. An error is one of the directory.
pub async fn run(
    options: &Options,
    stop: impl Future<Output = ()>,
    mut say: impl FnMut(&str),
) -> io::Result<Report> {
    let started = Instant::now();
    let mut report = Report::new(options.choice.seed);
    let mut site: Option<Site> = None;
    let (mut number, last) = match options.only_round {
        Some(only) => (options.choice.round(only).first, only),
        None => (0, u64::MAX),
    };
    tokio::pin!(stop);
    while number <= last && started.elapsed() < options.duration {
        let round = options.choice.round(number);
        let here = match site.take() {
            Some(site) if site.first == round.first => site,
            before => {
                before.map_or(Ok(()), |before| remove(&before.dir))?;
                Site::make(&options.dir, &round)?
            }
        };
        let begun = Instant::now();
        let outcome = tokio::select! {
            outcome = bounded(&round, &here) => outcome,
            () = &mut stop => {
                site = Some(here);
                break;
            }
        };
        say(&line(&round, &outcome, begun.elapsed()));
        report.add(&round, &outcome, &again(options, &round));
        number += 1;
        if !report.is_clean() {
            say(&format!("kept in {}; repeat it with\n  {}", here.dir.display(), again(options, &round)));
            break;
        }
        site = Some(here);
    }
    report.took(started.elapsed());
    if let Some(site) = site {
        remove(&site.dir)?;
    }
    Ok(report)
}

impl Site {
    fn make(dir: &Path, round: &Round) -> io::Result<Self> {
        let dir = dir.join(format!("round-{}", round.number));
        remove(&dir)?;
        fs::create_dir_all(&dir)?;
        Ok(Self { first: round.number, dir, checker: Arc::new(Checker::new(round.seed)) })
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Runs a round in a task of its own: a panic is a violation, and so is a round that does not end.
async fn bounded(round: &Round, site: &Site) -> Outcome {
    let (plan, dir, checker) = (round.clone(), site.dir.clone(), Arc::clone(&site.checker));
    let mut task = AbortOnDrop(tokio::spawn(async move { round::run(&plan, &dir, &checker).await }));
    let wrong = match tokio::time::timeout(ROUND_WITHIN, &mut task.0).await {
        Ok(Ok(outcome)) => return outcome,
        Ok(Err(error)) if error.is_panic() => {
            let payload = error.into_panic();
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
            text.unwrap_or("a panic without words").to_owned()
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("the round does not end within {ROUND_WITHIN:?}"),
    };
    let mut violations = site.checker.violations();
    violations.push(wrong);
    Outcome { violations, ..Outcome::default() }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The command that repeats a round.
fn again(options: &Options, round: &Round) -> String {
    let Choice { seed, faults, policy, pace } = &options.choice;
    let mut command =
        format!("cargo run --release -p gantry-tests --bin lab -- --seed {seed} --round {}", round.number);
    if faults.len() < Fault::ALL.len() {
        let names: Vec<_> = faults.iter().map(|fault| fault.name()).collect();
        command.extend([" --only ", &names.join(",")]);
    }
    if let Some(policy) = policy {
        command.extend([" --policy ", policy.name()]);
    }
    if *pace == Pace::Brief {
        command.push_str(" --brief");
    }
    command
}

fn line(round: &Round, outcome: &Outcome, took: Duration) -> String {
    let store = if round.first == round.number {
        "fresh store".to_owned()
    } else {
        format!("store of round {}", round.first)
    };
    let state = match outcome.violations.len() {
        0 => "clean".to_owned(),
        count => format!("{count} VIOLATIONS"),
    };
    format!(
        "round {} {} {} {store} seed {}: {} strokes, {} acknowledged, {} ended, {} starts, {} MiB, {took:.1?}, {state}",
        round.number,
        round.faults_text(),
        round.policy,
        round.seed,
        outcome.injections.values().sum::<u64>(),
        outcome.counts.acknowledged,
        outcome.counts.ended,
        outcome.ready.len(),
        outcome.memory >> 20,
    )
}
