//! One round, from a store to a verdict.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_client::Client;

use super::disk::{self, Failing};
use super::fault::{Fault, Nature};
use super::plan::{Pace, Round};
use super::proxy::Proxy;
use super::report::Outcome;
use super::stage::Stage;
use super::vitals::{Watch, peers, sockets};
use super::{strokes, weather};
use crate::checker::Checker;
use crate::faults::Faults;
use crate::harness::{self, Gantry};

/// The most anonymous memory that a broker may have, whatever clients do. What answers may wait for slow
/// readers is 64 MiB by the broker's own bound; the rest is the load's.
const MEMORY_MAX: u64 = 384 << 20;
/// Sockets that a broker may have beside those that it had before a weather began.
const SOCKETS_SLACK: usize = 6;
/// Sockets of a broker under the whole load: its own, and those of the load's clients. Not all of them may have
/// connected when the count is taken before a weather.
const SOCKETS_OF_LOAD: usize = 32;
/// How long a broker may take to give up connections and members that are gone: it waits for the idle
/// timeout, at most twice.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(20);
/// The address behind which a wire can be cut.
const FAR_END: [u8; 4] = [127, 0, 0, 2];

/// Runs a round on the store in `dir`.
pub async fn run(round: &Round, dir: &Path, checker: &Arc<Checker>) -> Outcome {
    let before = checker.counts();
    let mut flags = round.serve_flags();
    if round.has(Fault::HalfOpen) {
        flags.extend(["--advertise", "127.0.0.2"]);
    }
    let store = dir.join("store");
    let faults = if round.has(Fault::Power) { Faults::journalled_on(&store) } else { Faults::on(&store) };
    let mut stage = Stage::new(Gantry::kept(dir, &flags, Some(&faults)), Arc::clone(checker), round.seed);
    stage.faults = Some(faults);
    if round.pace == Pace::Brief {
        stage.quiet = Duration::from_millis(500);
    }
    checker.trust_clock(!round.has(Fault::Clock));
    stage.restart();
    let log_before = stage.gantry.log().len();
    let watch = Watch::start(Arc::clone(&stage.pid));
    let mut outcome = Outcome::default();
    under_load(&mut stage, round, &mut outcome.injections).await;
    check_files(&stage, round);
    if !round.faults.iter().any(|fault| fault.is_reported()) {
        check_log(&stage, round, log_before);
    }
    if watch.most() > MEMORY_MAX {
        checker.violation(format!("the broker had {} MiB of memory", watch.most() >> 20));
    }
    outcome.memory = watch.most();
    outcome.counts = checker.counts().since(&before);
    outcome.violations = checker.violations();
    outcome.ready = std::mem::take(&mut stage.ready);
    outcome.starts_killed = stage.starts_killed;
    outcome
}

/// Everything that clients see: load, faults, settling, and the audit. The broker is stopped afterwards.
async fn under_load(stage: &mut Stage, round: &Round, injections: &mut BTreeMap<Fault, u64>) {
    let proxy = if round.has(Fault::HalfOpen) { Some(wire(stage).await) } else { None };
    let auditing = stage.auditor().await;
    let mut load = stage.load(round.mix).await;
    stage.live(&auditing, round.moment_max()).await;
    let baseline = sockets(stage.gantry.pid()).unwrap_or_default();
    let weather = match round.faults.iter().find(|fault| fault.nature() == Nature::Weather) {
        Some(fault) => Some((*fault, blow(stage, *fault, proxy.clone(), round, &auditing).await)),
        None => None,
    };
    for fault in round.faults.iter().filter(|fault| fault.nature() == Nature::Stroke) {
        for _ in 0..round.injections {
            stage.live(&auditing, round.moment_max()).await;
            let struck = strike(stage, *fault, &auditing, round).await;
            *injections.entry(*fault).or_default() += u64::from(struck);
        }
    }
    if let Some((fault, blowing)) = weather {
        for _ in 0..round.injections {
            stage.live(&auditing, round.moment_max()).await;
        }
        let calm = blowing.calm().await;
        *injections.entry(fault).or_default() += u64::from(calm.gusts);
        given_up(stage, baseline).await;
        drop(calm.open);
    }
    stage.live(&auditing, round.moment_max()).await;
    load.stop_producers().await;
    stage.settle(&auditing).await;
    load.stop_consumers().await;
    // Once more without load: what was settled stays.
    if stage.rng.bool() {
        stage.kill9();
    } else {
        stage.terminate();
    }
    stage.restart();
    stage.audit(&auditing).await;
    stage.terminate();
    drop(proxy);
}

/// A wire between the load and the broker that can be cut.
async fn wire(stage: &mut Stage) -> Arc<Proxy> {
    let far = |near: SocketAddr| (SocketAddr::from((FAR_END, near.port())), near);
    let ways = [far(stage.gantry.name_server()), far(stage.gantry.broker())];
    let proxy = Proxy::start(&ways).await.expect("the far end of the wire is free");
    stage.name_server = Some(ways[0].0.to_string());
    stage.broker = Some(ways[1].0);
    Arc::new(proxy)
}

async fn strike(stage: &mut Stage, fault: Fault, auditing: &Client, round: &Round) -> u32 {
    match fault {
        Fault::Kill => strokes::kill(stage),
        Fault::Restarts => strokes::restarts(stage, round.pace),
        Fault::Freeze => strokes::freeze(stage).await,
        Fault::Point => disk::point(stage, round),
        Fault::Power => disk::power(stage).await,
        Fault::Full => disk::full(stage, auditing, round).await,
        Fault::EioWrite => disk::failing(stage, Failing::Write).await,
        Fault::EioSync => disk::failing(stage, Failing::Sync).await,
        Fault::SlowDisk | Fault::Clock | Fault::HalfOpen | Fault::SlowReader | Fault::Reconnect => 0,
    }
}

async fn blow(
    stage: &mut Stage,
    fault: Fault,
    proxy: Option<Arc<Proxy>>,
    round: &Round,
    client: &Client,
) -> weather::Blowing {
    let scene = weather::Scene {
        broker: stage.gantry.broker(),
        proxy,
        checker: Arc::clone(&stage.checker),
        pace: round.pace,
        gusts: round.injections,
        seed: stage.rng.u64(..),
    };
    let faults = stage.faults.clone().expect("a round has faults");
    match fault {
        Fault::SlowDisk => weather::Blowing::slow_disk(scene, faults),
        Fault::Clock => weather::Blowing::clock(scene, faults),
        Fault::HalfOpen => weather::Blowing::half_open(scene),
        Fault::SlowReader => {
            if let Err(error) = weather::make_large(client).await {
                stage.checker.violation(format!("large messages cannot be sent: {error}"));
            }
            weather::Blowing::slow_readers(scene)
        }
        _ => weather::Blowing::reconnecting(scene),
    }
}

/// Waits until the broker has given up every connection and member of the weather.
async fn given_up(stage: &Stage, baseline: usize) {
    let most = baseline.max(SOCKETS_OF_LOAD) + SOCKETS_SLACK;
    let pid = stage.gantry.pid();
    let deadline = Instant::now() + GIVEN_UP_WITHIN;
    // Nothing is asked meanwhile: an answer that is late would let the time pass without a look at the sockets.
    let mut open = sockets(pid).unwrap_or_default();
    while open > most && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
        open = sockets(pid).unwrap_or_default();
    }
    if open > most {
        stage.checker.violation(format!(
            "after {GIVEN_UP_WITHIN:?} the broker has {open} sockets, {baseline} before: {}",
            peers(pid).join(", ")
        ));
    }
    // A client of its own: those that were there may have connections that vanished, which they notice late.
    let client = stage.auditor().await;
    loop {
        let left = match client.admin().group_members(weather::COMERS).await {
            Ok(None) => return,
            Ok(Some(group)) if group.connection_set.is_empty() => return,
            Ok(Some(group)) => format!("has members {:?}", group.connection_set),
            Err(error) => format!("cannot be asked about: {error}"),
        };
        if Instant::now() >= deadline {
            let group = weather::COMERS;
            stage.checker.violation(format!("after {GIVEN_UP_WITHIN:?} the group {group} {left}"));
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Log, queues and index of the stopped broker must agree.
fn check_files(stage: &Stage, round: &Round) {
    let store = stage.gantry.store().to_string_lossy().into_owned();
    let mut command = vec!["store", "verify", "--store", &store, "--output", "json"];
    command.extend(round.verify_flags());
    let ended = tokio::task::block_in_place(|| harness::run(&command));
    if ended.code != Some(0) {
        let (code, said) = (ended.code, format!("{}{}", ended.stdout, ended.stderr));
        stage.checker.violation(format!("store verify ends with {code:?}: {said}"));
    }
}

/// A broker that complains has met something that it did not expect. Only where the power failed in this round may it
/// find a gap in the log: later rounds know those before.
fn check_log(stage: &Stage, round: &Round, from: usize) {
    let log = stage.gantry.log();
    let of_power = |line: &str| line.contains(" WARN ") && line.contains("the commit log has a gap");
    let complains = |line: &&str| line.contains(" ERROR ") || of_power(line) && !round.has(Fault::Power);
    for line in log.get(from..).unwrap_or_default().lines().filter(complains) {
        stage.checker.violation(format!("the broker complains: {line}"));
    }
}
