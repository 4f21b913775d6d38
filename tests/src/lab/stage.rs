//! One broker under load, and what is done with it between faults.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gantry_client::{Client, ClientOptions};

use crate::checker::Checker;
use crate::faults::Faults;
use crate::harness::Gantry;
use crate::workload::{Load, Mix};

/// After this much time everything that was left open must have an end.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// How long a client of the load waits for an answer.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the audit waits for an answer.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(20);
/// How often an audit may break off because of a lost connection or an answer that took too long.
const AUDIT_ATTEMPTS: u32 = 3;

/// A broker, and the model of what it promised.
#[derive(Debug)]
pub struct Stage {
    /// The broker.
    pub gantry: Gantry,
    /// The model.
    pub checker: Arc<Checker>,
    /// What happens to the broker's disk and clock.
    pub faults: Option<Faults>,
    /// Decisions.
    pub rng: fastrand::Rng,
    /// How long each start took until it was ready.
    pub ready: Vec<Duration>,
    /// Starts that did not come that far because they were killed.
    pub starts_killed: u32,
    /// Looks at everything new between two faults.
    pub glances: u32,
    /// Where clients connect, if not to the broker itself.
    pub name_server: Option<String>,
    /// The same for connections to the broker that clients make by themselves.
    pub broker: Option<SocketAddr>,
    /// How long a second delivery of what was seen already would take to come.
    pub quiet: Duration,
    /// The broker's process, for those who watch it; 0 while there is none.
    pub pid: Arc<AtomicU32>,
}

impl Stage {
    /// A stage for a broker that may run already.
    pub fn new(gantry: Gantry, checker: Arc<Checker>, seed: u64) -> Self {
        Self {
            gantry,
            checker,
            faults: None,
            rng: fastrand::Rng::with_seed(seed),
            ready: Vec::new(),
            starts_killed: 0,
            glances: 0,
            name_server: None,
            broker: None,
            quiet: Duration::from_secs(2),
            pid: Arc::default(),
        }
    }

    /// A client for the load.
    pub async fn client(&self) -> Client {
        self.client_that_waits(CLIENT_TIMEOUT).await
    }

    /// A client for audits.
    pub async fn auditor(&self) -> Client {
        self.client_that_waits(AUDIT_TIMEOUT).await
    }

    async fn client_that_waits(&self, timeout: Duration) -> Client {
        let own = || self.gantry.name_server().to_string();
        let options = ClientOptions::new(self.name_server.clone().unwrap_or_else(own))
            .timeout(timeout)
            .connect_timeout(timeout)
            .heartbeat_interval(Duration::from_millis(200));
        Client::connect(options).await.expect("the broker is ready")
    }

    /// Starts a load with clients of its own.
    pub async fn load(&self, mix: Mix) -> Load {
        let (sending, receiving) = (self.client().await, self.client().await);
        let broker = self.broker.unwrap_or_else(|| self.gantry.broker());
        Load::start(Arc::clone(&self.checker), [sending, receiving], broker, mix).await
    }

    /// Lets it work for a moment; looks at it meanwhile, as far as there is time.
    pub async fn live(&mut self, auditing: &Client, moment_max: Duration) {
        let longest = u64::try_from(moment_max.as_millis()).unwrap_or(u64::MAX).max(31);
        let moment = Duration::from_millis(self.rng.u64(30..longest));
        // When the fault comes first there is nothing to compare.
        if let Ok(Ok(())) = tokio::time::timeout(moment, self.checker.glance(auditing)).await {
            self.glances += 1;
            tokio::time::sleep(Duration::from_millis(self.rng.u64(0..100))).await;
        }
    }

    /// Starts it after it was stopped or killed.
    pub fn restart(&mut self) {
        let start = Instant::now();
        tokio::task::block_in_place(|| self.gantry.restart());
        self.ready.push(start.elapsed());
        self.pid.store(self.gantry.pid(), Ordering::Relaxed);
    }

    /// Kills it.
    pub fn kill9(&mut self) {
        self.pid.store(0, Ordering::Relaxed);
        self.gantry.kill9();
    }

    /// Stops it cleanly.
    pub fn terminate(&mut self) {
        self.pid.store(0, Ordering::Relaxed);
        tokio::task::block_in_place(|| self.gantry.terminate());
    }

    /// A moment at which a start is most likely under way.
    pub fn within_a_start(&mut self) -> Duration {
        let usual = self.ready.last().copied().unwrap_or(Duration::from_millis(20));
        usual.mul_f64(self.rng.f64() * 1.2)
    }

    /// Starts it and kills it before it is ready, most likely.
    pub fn kill_start(&mut self) {
        let after = self.within_a_start();
        tokio::task::block_in_place(|| self.gantry.restart_and_kill9(after));
        self.starts_killed += 1;
    }

    /// Waits until everything that is owed was seen, and groups have nothing before them.
    pub async fn settle(&self, auditing: &Client) {
        let deadline = Instant::now() + SETTLED_WITHIN;
        while let Some(left) = self.checker.waits_for(auditing).await {
            if Instant::now() >= deadline {
                self.checker.violation(format!("after {SETTLED_WITHIN:?} without new messages {left}"));
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // A second commit or delivery of what was seen already would come now.
        tokio::time::sleep(self.quiet).await;
    }

    /// Reads everything and compares it. Nothing else may be going on.
    pub async fn audit(&self, auditing: &Client) {
        let mut last = None;
        for _ in 0..AUDIT_ATTEMPTS {
            match self.checker.audit(auditing).await {
                Ok(()) => return,
                Err(error) => last = Some(error),
            }
        }
        self.checker.violation(format!("an audit of a broker without load ends with {last:?}"));
    }

    /// Start times: median, 99th percentile and longest.
    pub fn start_times(&self) -> [Duration; 3] {
        percentiles(&self.ready)
    }
}

/// Median, 99th percentile and longest of some times.
pub fn percentiles(times: &[Duration]) -> [Duration; 3] {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    [50, 99, 100].map(|part| sorted.get((sorted.len() * part / 100).min(last)).copied().unwrap_or_default())
}
