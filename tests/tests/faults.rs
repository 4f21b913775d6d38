//! Faults of disk and clock under the real binary: what was acknowledged stays, what cannot be kept is refused,
//! and the broker comes back by itself where it can.

use std::time::Duration;

use gantry_client::proto::ids::QueueOffset;
use gantry_client::{Client, ClientOptions, Message, Producer};
use gantry_tests::faults::{Errno, Faults, Op, Rule};
use gantry_tests::harness::{Gantry, wait_for};

const TOPIC: &str = "faults";
/// Small files, so that they roll.
const FLAGS: &[&str] = &[
    "--policy",
    "disk",
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
];

async fn client(gantry: &Gantry) -> Client {
    let options = ClientOptions::new(gantry.name_server().to_string()).timeout(Duration::from_secs(3));
    Client::connect(options).await.expect("the broker is ready")
}

async fn producer(gantry: &Gantry) -> Producer {
    client(gantry).await.producer("faults").start().await.expect("a producer starts")
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
async fn a_rule_kills_at_a_named_point() {
    let faults = Faults::new();
    faults.add(Rule::on(Op::Rename).path("config/").nth(2).kill_after());
    let (mut gantry, ready) = Gantry::try_start_with(&faults, FLAGS);
    assert!(!ready, "the second file of config/ is made during the start");
    gantry.restart();
    let middle = faults.add(Rule::on(Op::Write).path("commitlog").nth(3).kill_within(100));
    let producer = producer(&gantry).await;
    let mut acknowledged = Vec::new();
    for number in 0..10 {
        if let Ok(receipt) = producer.send(Message::new(TOPIC, format!("{number}"))).await {
            acknowledged.push(receipt);
        }
        if !gantry.is_running() {
            break;
        }
    }
    assert_eq!(middle.fired(), 1);
    gantry.restart();
    let client = client(&gantry).await;
    for receipt in &acknowledged {
        let consumer = client.pull_consumer("readers").start().await.expect("a consumer");
        let pulled = consumer.pull(&receipt.queue, QueueOffset::new(receipt.queue_offset.get()), 1).await;
        assert_eq!(pulled.expect("it is there").messages.len(), 1);
    }
    wait_for("a broker that runs", Duration::from_secs(1), || {
        if gantry.is_running() { Ok(()) } else { Err("it has ended".to_owned()) }
    });
}
