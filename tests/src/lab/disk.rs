//! Faults of the disk that strike, and weather of disk and clock. What happens to the broker's calls is the
//! business of [`faults`](crate::faults); here is when, and what must follow.

use std::fs;
use std::time::{Duration, Instant};

use gantry_client::Client;
use rustix::process::Signal;

use super::plan::{Pace, Round};
use super::stage::Stage;
use super::vitals::Stop;
use super::weather::{Scene, resumed};
use crate::checker::Checker;
use crate::faults::power::{Loss, Names, PowerCut};
use crate::faults::{Errno, Faults, Op, Rule};

/// How long a rule that must come sooner or later may take.
const FIRED_WITHIN: Duration = Duration::from_secs(10);
/// How long answers that were given before a failure may be on their way.
const UNDERWAY_MAX: Duration = Duration::from_secs(30);
/// When nothing was acknowledged for so long, nothing is any more.
const SILENCE: Duration = Duration::from_millis(1500);
/// How long a broker may take to end after SIGTERM, whatever its disk does.
const ENDED_WITHIN: Duration = Duration::from_secs(30);
/// How often the weather changes at the most; each change takes a rule, and there are not many.
const GUSTS_MAX: u32 = 8;

/// Operations at which a broker is killed, where, and which of them at most.
const POINTS: &[(Op, &str, u64)] = &[
    (Op::Write, "commitlog", 300),
    (Op::SyncData, "commitlog", 60),
    (Op::Allocate, "commitlog", 3),
    (Op::Create, "commitlog", 2),
    (Op::Zero, "commitlog", 2),
    (Op::Write, "consumequeue", 30),
    (Op::SyncData, "consumequeue", 8),
    (Op::Create, "consumequeue", 6),
    (Op::Mkdir, "consumequeue", 4),
    (Op::Write, "index", 20),
    (Op::SyncData, "index", 3),
    (Op::Write, "dedup", 20),
    (Op::SyncData, "dedup", 3),
    (Op::Write, "checkpoint", 3),
    (Op::Rename, "checkpoint", 3),
    (Op::Write, "config", 8),
    (Op::Rename, "config", 8),
    (Op::SyncFile, "", 8),
    (Op::SyncDir, "", 8),
    (Op::Unlink, "", 3),
    (Op::Truncate, "", 3),
];

fn faults(stage: &Stage) -> Faults {
    stage.faults.clone().expect("a round with faults of the disk has them")
}

fn millis(rng: &mut fastrand::Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

fn point_rule(rng: &mut fastrand::Rng) -> Rule {
    let (op, path, most) = *rng.choice(POINTS).expect("there are points");
    // The smaller numbers more often: the larger ones do not always come.
    let most = rng.u64(1..=most);
    let nth = rng.u64(1..=most);
    let rule = Rule::on(op).path(path).nth(nth);
    match rng.u8(..3) {
        0 if op == Op::Write => rule.kill_within(rng.u64(..200)),
        1 => rule.kill_before(),
        _ => rule.kill_after(),
    }
}

/// Kills it before, in or after a certain operation, while it works, starts or stops. Where that does not come, it goes
/// on to its next stop and start. Gives whether it came.
pub fn point(stage: &mut Stage, round: &Round) -> u32 {
    let rule = point_rule(&mut stage.rng);
    let faults = faults(stage);
    let patience = Duration::from_millis(if round.pace == Pace::Brief { 1000 } else { 3000 });
    let start = |stage: &mut Stage| {
        tokio::task::block_in_place(|| stage.gantry.try_restart() && stage.gantry.ended_within(patience));
    };
    let first = stage.rng.u8(..3);
    if first == 0 {
        stage.kill9();
    }
    let armed = faults.add(rule);
    match first {
        0 => start(stage),
        1 => {}
        _ => drop(tokio::task::block_in_place(|| stage.gantry.ended_within(patience))),
    }
    if !stage.gantry.ended_within(Duration::ZERO) {
        end(stage);
    }
    if armed.fired() == 0 {
        start(stage);
    }
    armed.disarm();
    if !stage.gantry.ended_within(Duration::ZERO) {
        stage.kill9();
    }
    stage.restart();
    u32::try_from(armed.fired()).unwrap_or(u32::MAX)
}

/// Stops it with SIGTERM, whatever it says about that.
fn end(stage: &mut Stage) {
    stage.gantry.signal(Signal::TERM);
    if !tokio::task::block_in_place(|| stage.gantry.ended_within(ENDED_WITHIN)) {
        stage.checker.violation(format!("the broker does not end within {ENDED_WITHIN:?} of SIGTERM"));
        stage.kill9();
    }
}

/// Cuts the power: of what was not synced, the disk keeps what it likes. Gives the number of cuts.
pub async fn power(stage: &mut Stage) -> u32 {
    let cut = PowerCut {
        loss: stage.rng.choice(Loss::ALL).unwrap_or(Loss::Random),
        names: stage.rng.choice([Names::PerName, Names::PerDirectory, Names::Journalled]).unwrap_or_default(),
        seed: stage.rng.u64(..),
    };
    if stage.rng.bool() {
        // What is written meanwhile waits to be synced: the more there is to lose.
        faults(stage).add(Rule::on(Op::SyncData).path("commitlog").stall());
        tokio::time::sleep(millis(&mut stage.rng, 10..400)).await;
    }
    stage.kill9();
    let store = stage.gantry.store().to_owned();
    let after = store.with_file_name("after-the-cut");
    tokio::task::block_in_place(|| {
        let damage = faults(stage).disk().fail_power(&cut, &after);
        eprintln!("the power fails: {cut:?}, {damage:?}");
        fs::remove_dir_all(&store)
            .and_then(|()| fs::rename(&after, &store))
            .expect("the store can be changed");
        let faults = Faults::journalled_on(&store);
        stage.gantry.set_faults(&faults);
        stage.faults = Some(faults);
    });
    stage.restart();
    1
}

/// Takes the disk's room away and gives it back. Everything is served meanwhile, and sends go on by themselves
/// afterwards.
pub async fn full(stage: &mut Stage, auditing: &Client, round: &Round) -> u32 {
    let faults = faults(stage);
    let room = if stage.rng.bool() { 0 } else { stage.rng.u64(..2 << 20) };
    faults.limit_growth(Some(room));
    tokio::time::sleep(millis(&mut stage.rng, 300..1500)).await;
    stage.live(auditing, round.moment_max()).await;
    let before = stage.checker.counts().acknowledged;
    if stage.rng.u8(..) < 80 {
        stage.kill9();
        // Without any room it may refuse to start.
        let ready = tokio::task::block_in_place(|| stage.gantry.try_restart());
        faults.limit_growth(None);
        if ready {
            stage.kill9();
        }
        stage.restart();
    }
    faults.limit_growth(None);
    resumed(&stage.checker, before, "the disk has room again").await;
    1
}

/// What fails with EIO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failing {
    /// Writes.
    Write,
    /// Syncs.
    Sync,
}

/// Lets writes or syncs fail. When they are the log's, it stops, says so, and acknowledges nothing more, also when
/// the disk works again; a restart finds everything. Beside the log nothing stops. Gives whether it came.
pub async fn failing(stage: &mut Stage, what: Failing) -> u32 {
    let faults = faults(stage);
    let of_log = stage.rng.u8(..) < 180;
    let beside = ["consumequeue", "index", "dedup", "checkpoint", "config"];
    let path = if of_log { "commitlog" } else { stage.rng.choice(beside).unwrap_or_default() };
    let rule = match what {
        Failing::Write => Rule::on(Op::Write)
            .path(path)
            .from(stage.rng.u64(1..20))
            .fail_after(stage.rng.u64(..300), Errno::IO),
        Failing::Sync => {
            Rule::on(Op::SyncData).or(Op::SyncFile).path(path).from(stage.rng.u64(1..3)).fail(Errno::IO)
        }
    };
    let said = stage.gantry.log().len();
    let armed = faults.add(rule);
    let deadline = Instant::now() + FIRED_WITHIN;
    while armed.fired() == 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let came = armed.fired() > 0;
    if of_log && came {
        silence(&stage.checker).await;
        armed.disarm();
        // It works again, but what failed must not be believed.
        let before = stage.checker.counts().acknowledged;
        tokio::time::sleep(SILENCE).await;
        let after = stage.checker.counts().acknowledged;
        if after != before {
            stage.checker.violation(format!("{} sends are acknowledged by a stopped log", after - before));
        }
        let log = stage.gantry.log();
        if !log.get(said..).unwrap_or_default().contains("the broker takes no more messages") {
            stage.checker.violation("the log stopped and the broker does not say so".to_owned());
        }
    }
    armed.disarm();
    if stage.rng.bool() {
        end(stage);
    } else {
        stage.kill9();
    }
    stage.restart();
    u32::from(came)
}

/// Waits until nothing is acknowledged any more.
async fn silence(checker: &Checker) {
    let deadline = Instant::now() + UNDERWAY_MAX;
    let mut count = checker.counts().acknowledged;
    loop {
        tokio::time::sleep(SILENCE).await;
        let now = checker.counts().acknowledged;
        if now == count {
            return;
        }
        if Instant::now() >= deadline {
            checker.violation(format!("a broken log acknowledges sends for {UNDERWAY_MAX:?}"));
            return;
        }
        count = now;
    }
}

/// Weather: each operation takes its time, or all stand still for a moment.
pub async fn slow(scene: Scene, faults: Faults, stop: Stop) -> u32 {
    let mut rng = fastrand::Rng::with_seed(scene.seed);
    let mut gusts = 0;
    while gusts < scene.gusts || (!stop.is_set() && gusts < GUSTS_MAX) {
        let stall = millis(&mut rng, 1000..4000);
        scene.checker.allow_delay(Duration::from_secs(5));
        let (rule, time) = match rng.u8(..4) {
            0 => (Rule::on(Op::SyncData).path("commitlog").stall(), stall),
            1 => (Rule::on(Op::Write).path("commitlog").delay(millis(&mut rng, 1..30)), stall / 2),
            2 => (Rule::on(Op::Write).or(Op::Create).delay(millis(&mut rng, 1..10)), stall / 2),
            _ => (Rule::on(Op::SyncData).or(Op::SyncFile).delay(millis(&mut rng, 5..150)), stall / 2),
        };
        let before = scene.checker.counts().acknowledged;
        let armed = faults.add(rule);
        tokio::time::sleep(time).await;
        armed.disarm();
        resumed(&scene.checker, before, "the disk is fast again").await;
        gusts += 1;
    }
    gusts
}

/// Weather: the wall clock jumps. It never comes back by less than what counts as a correction, but by seconds:
/// what was due meanwhile would rightly wait for so long.
pub async fn clock(scene: Scene, faults: Faults, stop: Stop) -> u32 {
    const HOUR: i64 = 3_600_000;
    const JUMPS: [i64; 9] = [-24 * HOUR, -HOUR, -540_000, -30_000, -2000, 2000, 5000, HOUR, 24 * HOUR];
    let mut rng = fastrand::Rng::with_seed(scene.seed);
    let mut gusts = 0;
    while gusts < scene.gusts || (!stop.is_set() && gusts < GUSTS_MAX) {
        faults.set_clock(rng.choice(JUMPS).unwrap_or_default());
        tokio::time::sleep(millis(&mut rng, 200..1500)).await;
        gusts += 1;
    }
    faults.set_clock(0);
    gusts
}
