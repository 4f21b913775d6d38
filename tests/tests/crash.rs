//! SIGKILL under load: the real binary is killed again and again, also while it recovers, and must keep every
//! promise it made. What it promised is in [`gantry_tests::checker`].
//!
//! `GANTRY_KILLS` is the number of kills for each policy, `GANTRY_SEED` repeats the decisions of a run (its
//! timing cannot be repeated). The long run:
//!
//! ```sh
//! GANTRY_KILLS=120 cargo test --release -p gantry-tests --test crash -- --nocapture --test-threads 1
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_tests::checker::Checker;
use gantry_tests::harness::{Gantry, SMALL_FILES};
use gantry_tests::lab::stage::Stage;
use gantry_tests::workload::Mix;

/// Kills for each policy unless `GANTRY_KILLS` says otherwise.
const KILLS: u32 = 12;
/// For how long the broker works between two kills, at most.
const MOMENT_MAX: Duration = Duration::from_millis(400);
/// Early checks; a short first delay level.
const FLAGS: &[&str] = &[
    "--transaction-timeout",
    "400ms",
    "--transaction-check-interval",
    "400ms",
    "--transaction-check-interval-max",
    "800ms",
    "--max-checks",
    "100000",
    "--delay-levels",
    "300ms 1s",
];

#[test]
fn kills_under_the_memory_policy_lose_nothing_acknowledged() {
    run("memory");
}

#[test]
fn kills_under_the_disk_policy_lose_nothing_acknowledged() {
    run("disk");
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn run(policy: &str) {
    let seed = number("GANTRY_SEED").unwrap_or_else(|| fastrand::u64(..));
    let kills = number("GANTRY_KILLS").map_or(KILLS, |kills| u32::try_from(kills).expect("that many kills"));
    let again = format!(
        "GANTRY_SEED={seed} GANTRY_KILLS={kills} cargo test -p gantry-tests --test crash -- --nocapture {policy}"
    );
    println!("{policy}: {again}");
    let mut flags = vec!["--policy", policy];
    flags.extend(SMALL_FILES.iter().chain(FLAGS));
    let mut stage = Stage::new(Gantry::start(&flags), Arc::new(Checker::new(seed)), seed);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let started = Instant::now();
    runtime.expect("a runtime").block_on(all(&mut stage, kills));
    println!("{policy}: {kills} kills in {:.0?}, {}", started.elapsed(), summary(&stage));
    for line in stage.gantry.log().lines().filter(|line| line.contains(" ERROR ")) {
        stage.checker.violation(format!("the broker complains: {line}"));
    }
    stage.checker.assert_clean(&again);
}

async fn all(stage: &mut Stage, kills: u32) {
    let auditing = stage.auditor().await;
    let mut load = stage.load(Mix::default()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stage.kill9();
    stage.restart();
    let mut left = kills.saturating_sub(2);
    while left > 0 {
        left -= 1;
        stage.live(&auditing, MOMENT_MAX).await;
        stage.kill9();
        while left > 0 && stage.rng.u8(..) < 80 {
            left -= 1;
            stage.kill_start();
        }
        stage.restart();
    }
    load.stop_producers().await;
    stage.settle(&auditing).await;
    load.stop_consumers().await;
    // Once more without load: what was settled stays.
    stage.kill9();
    stage.restart();
    stage.audit(&auditing).await;
    stage.terminate();
}

fn summary(stage: &Stage) -> String {
    let [median, p99, max] = stage.start_times();
    format!(
        "{} of them during a start; start to ready: median {median:.1?}, p99 {p99:.1?}, max {max:.1?}; \
         {} glances; {:?}",
        stage.starts_killed,
        stage.glances,
        stage.checker.counts()
    )
}
