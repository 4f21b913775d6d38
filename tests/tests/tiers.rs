//! Groups that come after one another (`gantry.after`): nobody sees a message before the group before is done with it, whoever
//! pulls or pops, over restarts, and whoever waits is woken.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use client_scenarios::{topic, until};
use gantry_client::proto::ids::{QueueId, QueueOffset};
use gantry_client::proto::names::{BrokerName, TopicName};
use gantry_client::proto::remoting::body::group::SubscriptionGroupConfig;
use gantry_client::{
    Client, ClientOptions, ConsumeFrom, Message, MessageQueue, Outcome, PullConsumer, PullStatus, SeekTo,
};
use gantry_tests::harness::{self, Gantry};
use serde_json::Value;

#[allow(dead_code, reason = "its steps belong to other suites")]
mod client_scenarios;

/// Longer than any wake-up takes, shorter than a pull waits.
const SOON: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(20);

async fn connect(gantry: &Gantry) -> Client {
    Client::connect(ClientOptions::new(gantry.name_server().to_string()).timeout(LONG)).await.unwrap()
}

async fn group(client: &Client, name: &str, after: Option<&str>) {
    let attributes = after.map(|first| ("+gantry.after".to_owned(), first.to_owned())).into_iter().collect();
    let config = SubscriptionGroupConfig {
        group_name: name.to_owned(),
        attributes,
        ..SubscriptionGroupConfig::default()
    };
    client.admin().create_group(&config).await.unwrap();
}

fn queue() -> MessageQueue {
    let broker = BrokerName::internal("broker-a");
    MessageQueue { topic: TopicName::internal("Tiers"), broker, id: QueueId::ZERO }
}

async fn send(client: &Client, count: usize) {
    let producer = client.producer("writers").start().await.unwrap();
    for number in 0..count {
        producer.send_to(&queue(), Message::new("Tiers", format!("{number}"))).await.unwrap();
    }
}

/// What the command line says of a group's only queue.
fn waits_for(gantry: &Gantry, group: &str) -> Value {
    let name_server = gantry.name_server().to_string();
    let line =
        ["group", "describe", group, "--topic", "Tiers", "--output", "json", "--name-server", &name_server];
    let ended = harness::run(&line);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let described: Value = serde_json::from_str(&ended.stdout).unwrap();
    described["queues"][0]["waits_for"].clone()
}

/// Offsets that a pull from `from` gives, and where the next one begins.
async fn pull(consumer: &PullConsumer, from: u64) -> (PullStatus, Vec<u64>, u64) {
    let pulled = consumer.pull(&queue(), QueueOffset::new(from), 32).await.unwrap();
    let offsets = pulled.messages.iter().map(|message| message.queue_offset().get()).collect();
    (pulled.status, offsets, pulled.next.get())
}

async fn commit(consumer: &PullConsumer, offset: u64) {
    consumer.commit_to(&queue(), QueueOffset::new(offset)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_ends_where_the_group_before_stands_and_wakes_when_that_moves() {
    let mut gantry = Gantry::start(&["--policy", "memory"]);
    let client = connect(&gantry).await;
    topic(&client, "Tiers", 1).await;
    group(&client, "one", None).await;
    group(&client, "two", Some("one")).await;
    group(&client, "three", Some("two")).await;
    send(&client, 6).await;
    let [one, two, three] = ["one", "two", "three"].map(|name| client.pull_consumer(name));
    let (one, two, three) =
        (one.start().await.unwrap(), Arc::new(two.start().await.unwrap()), three.start().await.unwrap());
    // The group before has no offset there: it is done with nothing yet.
    assert_eq!(pull(&two, 0).await, (PullStatus::NoNewMessage, vec![], 0));
    assert_eq!(waits_for(&gantry, "two"), serde_json::json!({"group": "one", "offset": null}));
    assert_eq!(pull(&one, 0).await.1.len(), 6);
    commit(&one, 2).await;
    assert_eq!(pull(&two, 0).await, (PullStatus::Found, vec![0, 1], 2));
    assert_eq!(pull(&three, 0).await.1, Vec::<u64>::new());
    commit(&two, 1).await;
    assert_eq!(pull(&three, 0).await.1, [0]);
    assert_eq!(waits_for(&gantry, "two"), serde_json::json!({"group": "one", "offset": 2}));
    assert_eq!(waits_for(&gantry, "one"), Value::Null);

    // Whoever waits is woken by the group before, not by messages.
    let waiting = Arc::clone(&two);
    let woken = tokio::spawn(async move {
        let pulled = waiting.pull_wait(&queue(), QueueOffset::new(2), 32, LONG).await.unwrap();
        (
            pulled.messages.iter().map(|message| message.queue_offset().get()).collect::<Vec<_>>(),
            Instant::now(),
        )
    });
    send(&client, 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!woken.is_finished(), "a message alone wakes nobody");
    let moved = Instant::now();
    commit(&one, 5).await;
    let (offsets, at) = woken.await.unwrap();
    assert_eq!(offsets, [2, 3, 4]);
    assert!(at.duration_since(moved) < SOON, "woken after {:?}", at.duration_since(moved));

    // An operator sends the first group back: what was given stays given, later messages wait.
    client.admin().reset_queue("one", &queue(), SeekTo::Offset(QueueOffset::new(1))).await.unwrap();
    assert_eq!(pull(&two, 5).await, (PullStatus::NoNewMessage, vec![], 5));
    gantry.kill9();
    gantry.restart();
    until("the broker is back", || async { client.admin().topic_route("Tiers").await.is_ok() }).await;
    assert_eq!(pull(&two, 5).await, (PullStatus::NoNewMessage, vec![], 5));
    assert_eq!(pull(&two, 0).await.1, [0]);
    assert_eq!(waits_for(&gantry, "two"), serde_json::json!({"group": "one", "offset": 1}));
    client.admin().reset_queue("one", &queue(), SeekTo::End).await.unwrap();
    assert_eq!(pull(&two, 5).await.1, [5, 6]);

    // Without the attribute the group sees everything; whoever waits for it is told at once.
    client.admin().reset_queue("one", &queue(), SeekTo::Offset(QueueOffset::new(6))).await.unwrap();
    let waiting = Arc::clone(&two);
    let woken = tokio::spawn(async move {
        waiting.pull_wait(&queue(), QueueOffset::new(6), 32, LONG).await.unwrap().messages.len()
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let refused = client.admin().delete_group("one").await.unwrap_err().to_string();
    assert!(refused.contains("group two waits for group one"), "{refused}");
    let name_server = gantry.name_server().to_string();
    let line =
        ["group", "set", "two", "--remove-attribute", "gantry.after", "--name-server", name_server.as_str()];
    let removed = Instant::now();
    assert_eq!(harness::run(&line).code, Some(0));
    assert_eq!(woken.await.unwrap(), 1);
    assert!(removed.elapsed() < SOON, "{:?}", removed.elapsed());
    assert!(client.admin().delete_group("one").await.unwrap());
    client.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_push_consumers_get_each_message_one_after_the_other() {
    let gantry = Gantry::start(&["--policy", "memory"]);
    let client = connect(&gantry).await;
    topic(&client, "Tiers", 4).await;
    group(&client, "first", None).await;
    group(&client, "second", Some("first")).await;
    let log: Arc<Mutex<Vec<(&'static str, String)>>> = Arc::default();
    let mut consumers = Vec::new();
    for (name, tag) in [("second", "*"), ("first", "a")] {
        let into = Arc::clone(&log);
        let handler = move |message: gantry_client::Received| {
            into.lock().unwrap().push((name, String::from_utf8_lossy(message.body()).into_owned()));
            async { Outcome::Success }
        };
        let builder = client.push_consumer(name).subscribe("Tiers", tag).from(ConsumeFrom::First);
        consumers.push(builder.start(handler).await.unwrap());
    }
    let producer = client.producer("writers").start().await.unwrap();
    for number in 0..40 {
        // What the first group filters out is done for it.
        let tag = if number % 4 == 3 { "b" } else { "a" };
        producer.send(Message::new("Tiers", format!("{number}")).tag(tag)).await.unwrap();
    }
    let got = |name: &str| log.lock().unwrap().iter().filter(|(of, _)| *of == name).count();
    until("all messages at both groups", || async { got("first") == 30 && got("second") == 40 }).await;
    let log = log.lock().unwrap().clone();
    for (at, (_, body)) in log.iter().enumerate().filter(|(_, (name, _))| *name == "second") {
        let number: usize = body.parse().unwrap();
        let before = log.iter().take(at).any(|(name, other)| *name == "first" && other == body);
        assert!(before || number % 4 == 3, "the second group got {body} before the first one: {log:?}");
    }
    for consumer in consumers {
        consumer.shutdown().await;
    }
    client.shutdown().await;
}
