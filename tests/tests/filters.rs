//! Filters over the properties of messages, over the wire: what consumers get, what wakes them, and what they
//! are told when an expression is wrong.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client_scenarios::{drain, topic, until};
use gantry_client::proto::ids::QueueOffset;
use gantry_client::proto::remoting::codes::ResponseCode;
use gantry_client::{
    Client, ClientOptions, ConsumeFrom, Error, Message, Outcome, Producer, PullConsumer, PullStatus,
    PushConsumer, PushConsumerBuilder,
};
use gantry_tests::harness::{self, Gantry};
use serde_json::Value;

#[expect(dead_code, reason = "the other suites use the rest")]
mod client_scenarios;

/// Far longer than anything here takes.
const LONG: Duration = Duration::from_secs(55);

async fn connect(gantry: &Gantry) -> Client {
    Client::connect(ClientOptions::new(gantry.name_server().to_string())).await.unwrap()
}

/// Numbers from `from` on, each with what it is divided by 3 in a property.
async fn send(producer: &Producer, topic: &str, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let message = Message::new(topic, number.to_string())
            .property("number", number.to_string())
            .property("kind", if number % 3 == 0 { "fizz" } else { "plain" });
        producer.send(message).await.unwrap();
    }
}

async fn reader(client: &Client, topic: &str, expression: &str) -> PullConsumer {
    let consumer = client.pull_consumer("readers").sql(expression).start().await.unwrap();
    consumer.assign(consumer.queues(topic).await.unwrap());
    consumer
}

#[track_caller]
fn expect_wrong(error: &Error, words: &str) {
    assert_eq!(error.code(), Some(ResponseCode::SubscriptionParseFailed), "{error}");
    assert!(error.to_string().contains(words), "expected {words:?}, found {error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consumers_get_what_their_expression_wants() {
    let mut gantry = Gantry::start(&[]);
    let client = connect(&gantry).await;
    topic(&client, "Filtered", 2).await;
    let producer = client.producer("senders").start().await.unwrap();
    send(&producer, "Filtered", 0..60).await;

    let consumer = reader(&client, "Filtered", "kind = 'fizz' AND number BETWEEN 10 AND 30").await;
    let mut bodies = drain(&consumer, 7).await;
    bodies.sort();
    assert_eq!(bodies, ["12", "15", "18", "21", "24", "27", "30"]);

    let seen = Arc::new(Mutex::new(Vec::new()));
    let seen_in = Arc::clone(&seen);
    let pushed = client
        .push_consumer("pushed")
        .subscribe_sql("Filtered", "number >= 50 AND NOT (kind = 'fizz')")
        .from(ConsumeFrom::First)
        .start(move |message| {
            seen_in.lock().unwrap().push(String::from_utf8_lossy(message.body()).into_owned());
            async { Outcome::Success }
        })
        .await
        .unwrap();
    until("the messages that were there", || async { seen.lock().unwrap().len() >= 6 }).await;
    // The broker knows subscriptions by heartbeats alone: they come again after a crash.
    tokio::task::block_in_place(|| {
        gantry.kill9();
        gantry.restart();
    });
    send(&producer, "Filtered", 60..70).await;
    until("what came after", || async { seen.lock().unwrap().len() >= 13 }).await;
    pushed.shutdown().await;
    let mut seen = seen.lock().unwrap().clone();
    seen.sort();
    seen.dedup();
    let expected: Vec<_> =
        (50..70).filter(|number| number % 3 != 0).map(|number| number.to_string()).collect();
    assert_eq!(seen, expected);
    let group = client.admin().group_stats("pushed", Some("Filtered")).await.unwrap();
    assert!(
        group.offset_table.values().all(|queue| queue.broker_offset == queue.consumer_offset),
        "what was passed over is behind the group: {group:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_waits_is_answered_for_a_match_only() {
    let gantry = Gantry::start(&["--policy", "memory"]);
    let client = connect(&gantry).await;
    topic(&client, "Waited", 1).await;
    let producer = client.producer("senders").start().await.unwrap();
    send(&producer, "Waited", 0..1).await;
    let consumer = Arc::new(reader(&client, "Waited", "number = 20").await);
    let queue = consumer.assigned()[0].clone();
    let waiting = {
        let (consumer, queue) = (Arc::clone(&consumer), queue.clone());
        tokio::spawn(async move { consumer.pull_wait(&queue, QueueOffset::new(1), 32, LONG).await })
    };
    send(&producer, "Waited", 1..22).await;
    // An answer for any of those before would say that nothing matched.
    let pulled = waiting.await.unwrap().unwrap();
    assert_eq!((pulled.status, pulled.messages.len()), (PullStatus::Found, 1));
    assert_eq!(pulled.messages[0].body(), "20".as_bytes());
    assert!(pulled.next.get() >= 21, "{:?}", pulled.next);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_stretch_without_a_match_is_answered_in_steps_and_stalls_nobody() {
    let gantry = Gantry::start(&["--policy", "memory"]);
    let client = connect(&gantry).await;
    topic(&client, "Stretch", 1).await;
    let producer = client.producer("senders").start().await.unwrap();
    let plain = (0..5000).map(|number| Message::new("Stretch", number.to_string()).property("n", "1"));
    producer.send_batch(plain).await.unwrap();
    producer.send(Message::new("Stretch", "the one").property("n", "2")).await.unwrap();
    let consumer = reader(&client, "Stretch", "n = 2").await;
    let queue = consumer.assigned()[0].clone();
    let (mut next, mut steps) = (QueueOffset::ZERO, 0);
    let found = loop {
        let pulled = consumer.pull_wait(&queue, next, 32, LONG).await.unwrap();
        if pulled.status == PullStatus::Found {
            break pulled;
        }
        assert_eq!(pulled.status, PullStatus::NoMatch, "at {next}");
        assert!(pulled.next > next, "at {next}");
        (next, steps) = (pulled.next, steps + 1);
    };
    assert!(steps > 1, "one pull looks at a bounded number of messages");
    assert_eq!(
        (found.messages.len(), &found.messages[0].body()[..], found.next.get()),
        (1, "the one".as_bytes(), 5001)
    );
    assert_eq!(drain(&consumer, 1).await, ["the one"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_expression_is_refused_with_its_place() {
    let gantry = Gantry::start(&["--policy", "memory"]);
    let client = connect(&gantry).await;
    topic(&client, "Wrong", 1).await;
    let consumer = reader(&client, "Wrong", "a == 1").await;
    expect_wrong(&consumer.poll(LONG).await.unwrap_err(), "at character 4");
    let pushed = client.push_consumer("pushed").subscribe_sql("Wrong", "a = \"x\"");
    let error = pushed.start(|_| async { Outcome::Success }).await.unwrap_err();
    expect_wrong(&error, "between single quotes");
    assert!(client.admin().group_members("pushed").await.unwrap().is_none());
    let deep = format!("{}a{}", "(".repeat(5000), ")".repeat(5000));
    let error = reader(&client, "Wrong", &deep).await.poll(LONG).await.unwrap_err();
    expect_wrong(&error, "nested more than 100 deep");
}

type Seen = Arc<Mutex<Vec<String>>>;

/// Starts a member that notes the bodies that it is given.
async fn member(
    client: &Client,
    subscribe: impl Fn(PushConsumerBuilder) -> PushConsumerBuilder,
) -> (PushConsumer, Seen) {
    let seen = Seen::default();
    let seen_in = Arc::clone(&seen);
    let builder = subscribe(client.push_consumer("mixed").from(ConsumeFrom::First));
    let consumer = builder
        .start(move |message| {
            seen_in.lock().unwrap().push(String::from_utf8_lossy(message.body()).into_owned());
            async { Outcome::Success }
        })
        .await
        .unwrap();
    (consumer, seen)
}

/// Members with different filters share the queues. What lies in a queue of one and only the other wants
/// reaches the group nevertheless, and people are told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_subscribe_differently_lose_nothing() {
    let gantry = Gantry::start(&[]);
    let (one, two) = (connect(&gantry).await, connect(&gantry).await);
    topic(&one, "Mixed", 4).await;
    let (first, seen_first) = member(&one, |builder| builder.subscribe("Mixed", "A")).await;
    let (second, seen_second) =
        member(&two, |builder| builder.subscribe_sql("Mixed", "TAGS = 'B' AND number >= 10")).await;
    until("queues for both", || async { !first.assigned().is_empty() && !second.assigned().is_empty() })
        .await;

    let producer = one.producer("senders").start().await.unwrap();
    let mut wanted = BTreeSet::new();
    for number in 0..120 {
        let tag = ["A", "B", "C"][number % 3];
        let body = format!("{tag}{number}");
        let message = Message::new("Mixed", body.clone()).tag(tag).property("number", number.to_string());
        producer.send(message).await.unwrap();
        if tag == "A" || (tag == "B" && number >= 10) {
            wanted.insert(body);
        }
    }
    let seen = || -> BTreeSet<String> {
        let all = [seen_first.lock().unwrap().clone(), seen_second.lock().unwrap().clone()];
        all.into_iter().flatten().collect()
    };
    until("every message that one of them wants", || async { seen().len() >= wanted.len() }).await;
    assert_eq!(seen(), wanted, "and nothing that nobody wants");

    let arguments = ["group", "describe", "mixed", "--name-server", &gantry.name_server().to_string()];
    let shown = harness::run(&arguments).stdout;
    assert!(shown.contains("conflicts\tMixed: make the members' topics and expressions equal"), "{shown}");
    let shown = harness::run(&[&arguments[..], &["--output", "json"]].concat()).stdout;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let wishes = [&shown["conflicts"]["Mixed"][one.id()], &shown["conflicts"]["Mixed"][two.id()]];
    assert_eq!(wishes, ["A", "SQL92: TAGS = 'B' AND number >= 10"], "{shown}");
    second.shutdown().await;
    let shown = harness::run(&[&arguments[..], &["--output", "json"]].concat()).stdout;
    assert!(shown.contains("\"conflicts\":{}"), "{shown}");
    first.shutdown().await;
}
