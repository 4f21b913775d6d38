//! Faults of disk and clock under the real binary: what was acknowledged stays, what cannot be kept is refused,
//! and the broker comes back by itself where it can.
//!
//! `GANTRY_CUTS` is the number of power cuts for each policy, `GANTRY_STEPS` that of steps at which a broker is
//! killed; `GANTRY_SEED` repeats where the load ends and what each cut takes (what is on its way then cannot be
//! repeated). Many of them:
//!
//! ```sh
//! GANTRY_CUTS=500 GANTRY_STEPS=500 cargo test --release -p gantry-tests --test faults -- --nocapture --test-threads 1 power_loss
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use gantry_client::proto::ids::QueueOffset;
use gantry_client::{Client, ClientOptions, Message, MessageQueue, Producer};
use gantry_tests::faults::power::{Loss, Names, PowerCut};
use gantry_tests::faults::{Errno, Faults, Op, Rule};
use gantry_tests::harness::{Gantry, SMALL_FILES, wait_for};
use rustix::process::{Pid, Signal, kill_process};

const TOPIC: &str = "faults";
/// Power cuts for each policy unless `GANTRY_CUTS` says otherwise.
const CUTS: u64 = 7;
/// Steps at which a broker is killed, unless `GANTRY_STEPS` says otherwise.
const STEPS: u64 = 2;
/// Small files, so that they roll. The policy is `disk`, the default.
const FLAGS: &[&str] = SMALL_FILES;

/// What was acknowledged: where it is, and what it says.
type Acknowledged = BTreeMap<(MessageQueue, u64), Vec<u8>>;

async fn client(gantry: &Gantry) -> Client {
    let options = ClientOptions::new(gantry.name_server().to_string()).timeout(Duration::from_secs(3));
    Client::connect(options).await.expect("the broker is ready")
}

async fn producer(gantry: &Gantry) -> Producer {
    start_producer(&client(gantry).await).await
}

async fn start_producer(client: &Client) -> Producer {
    let producer = client.producer("faults").compress_above(usize::MAX).send_timeout(Duration::from_secs(2));
    producer.start().await.expect("a producer starts")
}

/// Reads all of it.
async fn expect_all(gantry: &Gantry, acknowledged: &Acknowledged, what: &str) {
    let client = client(gantry).await;
    let consumer = client.pull_consumer("readers").start().await.expect("a consumer starts");
    let mut found: BTreeMap<MessageQueue, BTreeMap<u64, Vec<u8>>> = BTreeMap::new();
    for ((queue, offset), body) in acknowledged {
        let known = found.entry(queue.clone()).or_default();
        while !known.contains_key(offset) {
            let pulled = consumer.pull(queue, QueueOffset::new(*offset), 32).await;
            let messages =
                pulled.unwrap_or_else(|error| panic!("{what}: {queue} {offset}: {error}")).messages;
            assert!(!messages.is_empty(), "{what}: {queue} has no message {offset}");
            known.extend(messages.iter().map(|got| (got.queue_offset().get(), got.body().to_vec())));
        }
        assert_eq!(known.get(offset), Some(body), "{what}: {queue} {offset}");
    }
}

/// Sends `count` messages from several sides, each until its first failure; gives what was acknowledged.
async fn load(gantry: &Gantry, count: usize) -> Acknowledged {
    let client = client(gantry).await;
    let mut actors = tokio::task::JoinSet::new();
    for actor in 0..4 {
        let producer = start_producer(&client).await;
        actors.spawn(async move {
            let mut acknowledged = Acknowledged::new();
            for number in 0..count.div_ceil(4) {
                let body = format!("{actor}.{number}.{}", "x".repeat(number * 37 % 3000)).into_bytes();
                let message = Message::new(format!("{TOPIC}-{actor}"), body.clone());
                let Ok(receipt) = producer.send(message).await else { break };
                acknowledged.insert((receipt.queue, receipt.queue_offset.get()), body);
            }
            acknowledged
        });
    }
    actors.join_all().await.into_iter().flatten().collect()
}

/// The power fails under load, in every way; what was acknowledged is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_loss_takes_nothing_acknowledged() {
    let faults = Faults::journalled();
    let (acknowledged, mut rng) = loaded_and_killed(&faults, "disk").await;
    let harmed = cut_the_power(&faults, "disk", &acknowledged, &mut rng).await;
    assert!(harmed > 1, "something is on its way to the disk when the power fails; {harmed} images lack it");
}

/// Under the policy `memory` the last half second may be lost; the broker starts and goes on all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_loss_under_the_memory_policy_leaves_a_store_that_opens() {
    let faults = Faults::journalled();
    let (_, mut rng) = loaded_and_killed(&faults, "memory").await;
    cut_the_power(&faults, "memory", &Acknowledged::new(), &mut rng).await;
}

/// A broker is killed at some step of its first seconds; another one goes on, with or without a power loss between;
/// then the power fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_step_and_a_power_loss_take_nothing() {
    let seed = number("GANTRY_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("GANTRY_SEED={seed} decides which steps");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..number("GANTRY_STEPS").unwrap_or(STEPS) {
        let images = tempfile::tempdir().expect("a temporary directory");
        let cut = |rng: &mut fastrand::Rng| {
            PowerCut::new(rng.choice(Loss::ALL).expect("there are some"), rng.u64(..))
        };
        let mut faults = Faults::journalled();
        let step = rng.u64(1..150);
        let end = faults.add(Rule::on_any().nth(step).kill_after());
        let (mut gantry, ready) = Gantry::try_start_with(&faults, FLAGS);
        let mut acknowledged = if ready { load(&gantry, 12).await } else { Acknowledged::new() };
        let mut what = format!("step {step}");
        if ready {
            gantry.kill9();
        }
        end.disarm(); // it may not have come so far
        if rng.bool() {
            let (between, image) = (cut(&mut rng), images.path().join("between"));
            let damage = faults.disk().fail_power(&between, &image);
            what = format!("{what}, then {between:?}: {damage:?}");
            faults = Faults::journalled_on(&image);
            gantry = Gantry::start_with(&faults, FLAGS);
        } else {
            gantry.restart();
        }
        acknowledged.extend(load(&gantry, 12).await);
        gantry.kill9();
        let (last, image) = (cut(&mut rng), images.path().join("last"));
        let damage = faults.disk().fail_power(&last, &image);
        what = format!("{what}, then {last:?}: {damage:?}");
        println!("{what}");
        expect_all(&Gantry::start_on(&image, FLAGS), &acknowledged, &what).await;
    }
}

/// Regression: names that a killed start had made and not synced were taken for durable by the next one, and all
/// that was acknowledged in such a file or directory was lost with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_a_killed_process_left_become_durable() {
    for point in [
        Rule::on(Op::Mkdir).path("commitlog").nth(1).kill_after(),
        Rule::on(Op::Truncate).path("commitlog").nth(1).kill_after(),
        Rule::on(Op::Mkdir).path("config").nth(1).kill_after(),
    ] {
        let faults = Faults::journalled();
        faults.add(point.clone());
        let (mut gantry, ready) = Gantry::try_start_with(&faults, FLAGS);
        if ready {
            load(&gantry, 4).await;
            gantry.wait_killed();
        }
        gantry.restart();
        let acknowledged = load(&gantry, 8).await;
        gantry.kill9();
        expect_after_loss(&faults, &acknowledged, &format!("{point:?}")).await;
    }
}

/// Regression: a log file whose name could not be made durable was used by the next send all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_whose_name_cannot_be_kept_is_not_used() {
    let faults = Faults::journalled();
    let mut gantry = Gantry::start_with(&faults, FLAGS);
    // The second file's; the first one's is synced after its directory was made and when it is made itself.
    let failing = faults.add(Rule::on(Op::SyncDir).path("commitlog").nth(2).fail(Errno::IO));
    let mut acknowledged = Acknowledged::new();
    for _ in 0..10 {
        acknowledged.extend(load(&gantry, 400).await);
        if failing.fired() > 0 {
            break;
        }
    }
    assert_eq!(failing.fired(), 1);
    acknowledged.extend(load(&gantry, 40).await);
    gantry.kill9();
    expect_after_loss(&faults, &acknowledged, "the failed sync of a directory").await;
}

/// Expects all on a disk that holds only what was synced.
async fn expect_after_loss(faults: &Faults, acknowledged: &Acknowledged, what: &str) {
    assert!(acknowledged.len() > 4, "{} acknowledged", acknowledged.len());
    let images = tempfile::tempdir().expect("a temporary directory");
    let image = images.path().join("image");
    faults.disk().fail_power(&PowerCut::new(Loss::Drop, 0), &image);
    expect_all(&Gantry::start_on(&image, FLAGS), acknowledged, what).await;
}

/// A load that ends in the middle of a write somewhere behind the log's first file.
async fn loaded_and_killed(faults: &Faults, policy: &str) -> (Acknowledged, fastrand::Rng) {
    let seed = number("GANTRY_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("GANTRY_SEED={seed} decides where the load ends and what the cuts take");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut gantry = Gantry::start_with(faults, &[&["--policy", policy], FLAGS].concat());
    let end = Rule::on(Op::Write).path("commitlog/00000000000001048576").nth(rng.u64(2..60));
    faults.add(end.kill_within(rng.u64(0..2000)));
    let acknowledged = load(&gantry, 2000).await;
    gantry.wait_killed();
    assert!(acknowledged.len() > 300, "{} acknowledged", acknowledged.len());
    (acknowledged, rng)
}

/// Starts a broker on what each of `GANTRY_CUTS` cuts leaves; gives how many of them took something.
async fn cut_the_power(
    faults: &Faults,
    policy: &str,
    acknowledged: &Acknowledged,
    rng: &mut fastrand::Rng,
) -> u32 {
    let (disk, images) = (faults.disk(), tempfile::tempdir().expect("a temporary directory"));
    let names = [Names::PerName, Names::PerDirectory, Names::Journalled];
    let cuts = usize::try_from(number("GANTRY_CUTS").unwrap_or(CUTS)).expect("that many cuts");
    let mut harmed = 0;
    for (number, loss) in Loss::ALL.into_iter().cycle().take(cuts).enumerate() {
        let cut = PowerCut { loss, names: names[number % names.len()], seed: rng.u64(..) };
        let image = images.path().join(number.to_string());
        let damage = disk.fail_power(&cut, &image);
        println!("{policy}: {cut:?}: {damage:?}");
        harmed += u32::from(damage.lost_sectors + damage.lost_names > 0);
        let mut gantry = Gantry::start_on(&image, &[&["--policy", policy], FLAGS].concat());
        expect_all(&gantry, acknowledged, &format!("{cut:?}, {damage:?}")).await;
        producer(&gantry).await.send(Message::new(TOPIC, "more")).await.expect("it goes on");
        gantry.kill9();
        std::fs::remove_dir_all(&image).expect("the image can go");
    }
    harmed
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Everything that the broker does to its store goes through the preloaded library.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_tells_all_that_happens_to_the_store() {
    let faults = Faults::journalled();
    let mut gantry = Gantry::start_with(&faults, FLAGS);
    for _ in 0..2 {
        let acknowledged = load(&gantry, 400).await;
        assert!(!acknowledged.is_empty());
        gantry.kill9();
        gantry.restart();
    }
    gantry.terminate();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("image");
    faults.disk().write_image(&PowerCut::new(Loss::Keep, 0), &image);
    let (real, told) = (files(gantry.store()), files(&image));
    assert_eq!(real.keys().collect::<Vec<_>>(), told.keys().collect::<Vec<_>>());
    for (path, bytes) in &real {
        assert!(told.get(path) == Some(bytes), "{path} differs from what the journal tells");
    }
}

fn pid(gantry: &Gantry) -> Pid {
    i32::try_from(gantry.pid()).ok().and_then(Pid::from_raw).expect("a process id")
}

/// Every file below `root` and what it holds.
fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut found, mut dirs) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
                found.insert(name, std::fs::read(path).expect("a file"));
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_flush_ends_all_acknowledgements() {
    let faults = Faults::new();
    let mut gantry = Gantry::start_with(&faults, FLAGS);
    let producer = producer(&gantry).await;
    producer.send(Message::new(TOPIC, "before")).await.expect("nothing is wrong yet");
    let broken = faults.add(Rule::on(Op::SyncData).path("commitlog").nth(1).fail(Errno::IO));
    let refused = producer.send(Message::new(TOPIC, "lost")).await.expect_err("its flush fails");
    assert!(refused.to_string().contains("commit log stopped"), "{refused}");
    assert_eq!(broken.fired(), 1);
    // The next flush would succeed; it must not be believed.
    producer.send(Message::new(TOPIC, "after")).await.expect_err("the log has stopped");
    assert_eq!(broken.seen(), 1, "a failed flush is not tried again");
    gantry.kill9();
    gantry.restart();
    let producer = self::producer(&gantry).await;
    producer.send(Message::new(TOPIC, "again")).await.expect("the disk works again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_is_killed_at_named_points() {
    let faults = Faults::new();
    faults.add(Rule::on(Op::Rename).path("config/").nth(2).kill_after());
    let (mut gantry, ready) = Gantry::try_start_with(&faults, FLAGS);
    assert!(!ready, "the second file of config/ is made during the start");
    let mut acknowledged = Acknowledged::new();
    let points = [
        Rule::on(Op::Write).path("commitlog").nth(3).kill_within(100),
        Rule::on(Op::SyncData).path("commitlog").nth(5).kill_after(),
        Rule::on(Op::SyncData).path("commitlog").nth(5).kill_before(),
        // At the latest when the broker stops.
        Rule::on(Op::Create).path("gantry.checkpoint").nth(1).kill_before(),
        Rule::on(Op::Rename).path("gantry.checkpoint").nth(1).kill_before(),
        Rule::on(Op::Unlink).path("abort").nth(1).kill_before(),
    ];
    for point in points {
        gantry.restart();
        let rule = faults.add(point.clone());
        acknowledged.extend(load(&gantry, 40).await);
        if gantry.is_running() {
            kill_process(pid(&gantry), Signal::TERM).expect("SIGTERM can be sent");
        }
        gantry.wait_killed();
        assert_eq!(rule.fired(), 1, "{point:?}");
    }
    gantry.restart();
    expect_all(&gantry, &acknowledged, "after all kills").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_refused_and_left_behind() {
    let faults = Faults::new();
    let gantry = Gantry::start_with(&faults, FLAGS);
    let producer = producer(&gantry).await;
    let mut acknowledged = load(&gantry, 20).await;
    for round in 0..2 {
        faults.limit_growth(Some(600 << 10));
        let refused = loop {
            match producer.send(Message::new(TOPIC, vec![b'f'; 40_000])).await {
                Ok(sent) => acknowledged.insert((sent.queue, sent.queue_offset.get()), vec![b'f'; 40_000]),
                Err(refused) => break refused,
            };
            assert!(acknowledged.len() < 1000, "600 KiB do not hold that much");
        };
        let refused = refused.to_string();
        assert!(refused.contains("free") || refused.contains("room"), "{refused}");
        faults.limit_growth(None);
        let sent = producer.send(Message::new(TOPIC, "room again")).await;
        let sent = sent.unwrap_or_else(|error| panic!("round {round}: {error}"));
        acknowledged.insert((sent.queue, sent.queue_offset.get()), b"room again".to_vec());
    }
    expect_all(&gantry, &acknowledged, "after a full disk").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_stops_nothing() {
    const DAY: i64 = 24 * 3600 * 1000;
    let faults = Faults::new();
    let mut gantry = Gantry::start_with(&faults, FLAGS);
    let mut acknowledged = load(&gantry, 20).await;
    for days in [1, -1, 400, -400, 0] {
        faults.set_clock(days * DAY);
        acknowledged.extend(load(&gantry, 20).await);
        assert!(gantry.is_running());
    }
    expect_all(&gantry, &acknowledged, "after the jumps").await;
    faults.set_clock(-30 * DAY);
    gantry.kill9();
    gantry.restart();
    acknowledged.extend(load(&gantry, 20).await);
    assert_eq!(acknowledged.len(), 140, "each is acknowledged");
    expect_all(&gantry, &acknowledged, "after a start in the past").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_holds_answers_back() {
    let faults = Faults::new();
    let gantry = Gantry::start_with(&faults, FLAGS);
    let producer = producer(&gantry).await;
    producer.send(Message::new(TOPIC, "first")).await.expect("nothing is wrong yet");
    let hung = faults.add(Rule::on(Op::SyncData).path("commitlog").stall());
    let waiting = tokio::spawn(async move { producer.send(Message::new(TOPIC, "held")).await });
    wait_for("a flush that hangs", Duration::from_secs(2), || match hung.fired() {
        0 => Err("none yet".to_owned()),
        _ => Ok(()),
    });
    assert!(!waiting.is_finished(), "what is not flushed is not acknowledged");
    hung.disarm();
    waiting.await.expect("the sender does not panic").expect("the flush came");
}
