//! Runs a real broker under load through every fault; `tests/README.md` says what each does and what is asserted.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use gantry_tests::harness;
use gantry_tests::lab::{self, Choice, Fault, Options, Pace, Policy};

/// How long the runtime may take to end what is left at the end.
const ENDED_WITHIN: Duration = Duration::from_secs(5);

/// Runs a real broker under load through every fault, and checks that it keeps every promise.
#[derive(Debug, Parser)]
#[command(name = "lab")]
struct Arguments {
    /// For how long rounds begin, like 90s, 10m or 1h.
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10m")]
    duration: Duration,
    /// Seed of the run; drawn and printed when it is not given.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Only this round of a run with that seed, and those whose store it goes on with.
    #[arg(long, value_name = "K", requires = "seed")]
    round: Option<u64>,
    /// Only these faults.
    #[arg(long, value_name = "FAULT,…", value_delimiter = ',')]
    only: Vec<Fault>,
    /// One policy for all rounds, disk or memory.
    #[arg(long, value_name = "POLICY")]
    policy: Option<Policy>,
    /// Directory for the stores [default: a new one].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// One short stroke of each fault in a round.
    #[arg(long)]
    brief: bool,
    /// How the report is printed on standard output.
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Format {
    #[default]
    Markdown,
    Json,
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time: write a whole number with s, m or h, like 10m");
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => Some(number),
        "m" => number.checked_mul(60),
        "h" => number.checked_mul(3600),
        _ => None,
    };
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let dir = arguments.dir.unwrap_or_else(|| std::env::temp_dir().join(format!("gantry-lab-{seed}")));
    eprintln!("seed {seed}, stores in {}", dir.display());
    harness::binary();
    let options = Options {
        choice: Choice {
            seed,
            faults: if arguments.only.is_empty() { Fault::ALL.to_vec() } else { arguments.only },
            policy: arguments.policy,
            pace: if arguments.brief { Pace::Brief } else { Pace::Full },
        },
        duration: arguments.duration,
        only_round: arguments.round,
        dir,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let stop = async {
        // Without a signal handler the run cannot be broken off, and goes on.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let ran = runtime.block_on(lab::run(&options, stop, |line| eprintln!("{line}")));
    runtime.shutdown_timeout(ENDED_WITHIN);
    let report = match ran {
        Ok(report) => report,
        Err(error) => {
            eprintln!("the stores cannot be kept in {}: {error}", options.dir.display());
            return ExitCode::FAILURE;
        }
    };
    match arguments.output {
        Format::Markdown => print!("{}", report.markdown()),
        Format::Json => println!("{}", report.json()),
    }
    if report.is_clean() {
        let _ = std::fs::remove_dir(&options.dir); // it may hold something else
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
