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

use gantry_client::{Client, ClientOptions};
use gantry_tests::checker::Checker;
use gantry_tests::harness::Gantry;
use gantry_tests::workload::Load;

/// Kills for each policy unless `GANTRY_KILLS` says otherwise.
const KILLS: u32 = 12;
/// After this much time everything that was left open must have an end.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// Small files, so that kills meet their ends too; early checks; a short first delay level.
const FLAGS: &[&str] = &[
    "--segment-bytes",
    "1MiB",
    "--max-message-size",
    "64KiB",
    "--queue-file-bytes",
    "20000",
    "--index-slots",
    "500",
    "--index-entries",
    "2000",
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
    flags.extend(FLAGS);
    let mut run = Run {
        gantry: Gantry::start(&flags),
        checker: Arc::new(Checker::new(seed)),
        rng: fastrand::Rng::with_seed(seed),
        ready: Vec::new(),
        starts_killed: 0,
        glances: 0,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let started = Instant::now();
    runtime.expect("a runtime").block_on(run.all(kills));
    println!("{policy}: {kills} kills in {:.0?}, {}", started.elapsed(), run.summary());
    for line in run.gantry.log().lines().filter(|line| line.contains(" ERROR ")) {
        run.checker.violation(format!("the broker complains: {line}"));
    }
    run.checker.assert_clean(&again);
}

struct Run {
    gantry: Gantry,
    checker: Arc<Checker>,
    rng: fastrand::Rng,
    /// How long each start took until it was ready.
    ready: Vec<Duration>,
    starts_killed: u32,
    glances: u32,
}

impl Run {
    async fn all(&mut self, kills: u32) {
        let (sending, receiving, auditing) = (self.client().await, self.client().await, self.client().await);
        let mut load = Load::start(Arc::clone(&self.checker), sending, receiving).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.gantry.kill9();
        self.restart();
        let mut left = kills.saturating_sub(2);
        while left > 0 {
            left -= 1;
            self.live(&auditing).await;
            self.gantry.kill9();
            while left > 0 && self.rng.u8(..) < 80 {
                left -= 1;
                self.kill_start();
            }
            self.restart();
        }
        load.stop_producers().await;
        self.settle().await;
        load.stop_consumers().await;
        // Once more without load: what was settled stays.
        self.gantry.kill9();
        self.restart();
        self.checker.audit(&auditing).await.expect("the broker answers while it is audited");
        self.gantry.terminate();
    }

    async fn client(&self) -> Client {
        let options = ClientOptions::new(self.gantry.name_server().to_string())
            .timeout(Duration::from_secs(3))
            .heartbeat_interval(Duration::from_millis(200));
        Client::connect(options).await.expect("the broker is ready")
    }

    /// Lets it work for a moment; looks at it meanwhile, as far as there is time.
    async fn live(&mut self, auditing: &Client) {
        let moment = Duration::from_millis(self.rng.u64(30..400));
        // When the kill comes first there is nothing to compare.
        if let Ok(Ok(())) = tokio::time::timeout(moment, self.checker.glance(auditing)).await {
            self.glances += 1;
            tokio::time::sleep(Duration::from_millis(self.rng.u64(0..100))).await;
        }
    }

    fn restart(&mut self) {
        let start = Instant::now();
        tokio::task::block_in_place(|| self.gantry.restart());
        self.ready.push(start.elapsed());
    }

    fn kill_start(&mut self) {
        let usual = self.ready.last().copied().unwrap_or(Duration::from_millis(20));
        let after = usual.mul_f64(self.rng.f64() * 1.2);
        tokio::task::block_in_place(|| self.gantry.restart_and_kill9(after));
        self.starts_killed += 1;
    }

    /// Waits until everything that is owed was seen.
    async fn settle(&self) {
        let deadline = Instant::now() + SETTLED_WITHIN;
        while self.checker.owed() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // A second commit or delivery of what was seen already would come now.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    fn summary(&self) -> String {
        let mut ready = self.ready.clone();
        ready.sort();
        let at = |part: usize| ready.get((ready.len() * part / 100).min(ready.len() - 1)).copied();
        let [median, p99, max] = [50, 99, 100].map(|part| at(part).unwrap_or_default());
        format!(
            "{} of them during a start; start to ready: median {median:.1?}, p99 {p99:.1?}, max {max:.1?}; \
             {} glances; {:?}",
            self.starts_killed,
            self.glances,
            self.checker.counts()
        )
    }
}
