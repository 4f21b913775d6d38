//! What groups ask of the broker by their configuration and attributes, over the wire and through kills.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use client_scenarios::{topic, until};
use gantry_client::proto::ids::{Millis, QueueOffset};
use gantry_client::proto::names::GroupName;
use gantry_client::proto::remoting::body::group::{
    CustomizedRetryPolicy, GroupRetryPolicy, SubscriptionGroupConfig,
};
use gantry_client::proto::remoting::codes::ResponseCode;
use gantry_client::{Client, ClientOptions, ConsumeFrom, Message, Outcome, Producer, PushConsumer};
use gantry_tests::harness::Gantry;

#[allow(dead_code, reason = "its steps belong to other suites")]
mod client_scenarios;

async fn connect(gantry: &Gantry) -> Client {
    Client::connect(ClientOptions::new(gantry.name_server().to_string())).await.unwrap()
}

fn kill(gantry: &mut Gantry) {
    tokio::task::block_in_place(|| {
        gantry.kill9();
        gantry.restart();
    });
}

/// Messages that were stored in a topic.
async fn stored(client: &Client, topic: &str) -> i64 {
    let stats = client.admin().topic_stats(topic).await.unwrap_or_default();
    stats.offset_table.values().map(|queue| queue.max_offset - queue.min_offset).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_messages_come_again_when_their_group_says_also_after_a_kill() {
    let mut gantry = Gantry::start(&["--policy", "memory"]);
    let client = connect(&gantry).await;
    topic(&client, "Refused", 1).await;
    // Neither is the delay of a level; those would be 10 s and 30 s.
    let delays = [700, 2_500];
    let group = SubscriptionGroupConfig {
        group_name: "refusers".to_owned(),
        group_retry_policy: GroupRetryPolicy {
            customized_retry_policy: Some(CustomizedRetryPolicy { next: delays.to_vec() }),
            ..GroupRetryPolicy::default()
        },
        ..SubscriptionGroupConfig::default()
    };
    client.admin().create_group(&group).await.unwrap();
    let seen: Arc<Mutex<BTreeMap<u32, Instant>>> = Arc::default();
    let into = Arc::clone(&seen);
    let consumer = client
        .push_consumer("refusers")
        .subscribe("Refused", "*")
        .from(ConsumeFrom::First)
        .max_reconsume_times(2)
        .start(move |message| {
            into.lock().unwrap().entry(message.reconsume_times()).or_insert_with(Instant::now);
            async { Outcome::Later }
        })
        .await
        .unwrap();
    let producer = client.producer("senders").start().await.unwrap();
    producer.send(Message::new("Refused", "no")).await.unwrap();
    let times = async |times: u32| {
        until("the next delivery", || async { seen.lock().unwrap().contains_key(&times) }).await;
    };
    times(1).await;
    // It waits for the second delay now.
    tokio::time::sleep(Duration::from_millis(300)).await;
    kill(&mut gantry);
    times(2).await;
    until("the dead letter", || async { stored(&client, "%DLQ%refusers").await == 1 }).await;
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 3, "{seen:?}");
    for (before, delay) in (0..).zip(delays) {
        let waited = seen[&(before + 1)] - seen[&before];
        assert!(
            waited >= Duration::from_millis(delay.unsigned_abs()),
            "refusal {before} waited {waited:?} only"
        );
        assert!(waited < Duration::from_secs(10), "refusal {before} waited {waited:?}, as long as its level");
    }
    assert!(!gantry.log().contains(" ERROR "), "the broker complains:\n{}", gantry.log());
    consumer.shutdown().await;
    client.shutdown().await;
}

type Bodies = Arc<Mutex<Vec<String>>>;

/// A group that exists with these attributes.
async fn declare(client: &Client, name: &str, attributes: &[(&str, &str)]) {
    let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let group = SubscriptionGroupConfig {
        group_name: name.to_owned(),
        attributes: attributes.collect(),
        ..SubscriptionGroupConfig::default()
    };
    client.admin().create_group(&group).await.unwrap();
}

async fn send(producer: &Producer, topic: &str, bodies: std::ops::Range<u32>) {
    for body in bodies {
        producer.send(Message::new(topic, body.to_string())).await.unwrap();
    }
}

fn note(into: &Bodies, body: &[u8]) {
    into.lock().unwrap().push(String::from_utf8_lossy(body).into_owned());
}

async fn all_seen(seen: &Bodies, bodies: std::ops::Range<u32>) {
    until("all messages", || async {
        let seen = seen.lock().unwrap();
        bodies.clone().all(|body| seen.contains(&body.to_string()))
    })
    .await;
}

/// A member of a broadcasting group whose offsets the broker keeps.
async fn member(client: &Client, name: &str) -> (PushConsumer, Bodies) {
    let seen = Bodies::default();
    let into = Arc::clone(&seen);
    let consumer = client
        .push_consumer("prices")
        .subscribe("Prices", "*")
        .broadcasting_as(name)
        .from(ConsumeFrom::First)
        .start(move |message| {
            note(&into, message.body());
            async { Outcome::Success }
        })
        .await
        .unwrap();
    (consumer, seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_broadcast_go_on_where_the_broker_says_they_were() {
    let mut gantry = Gantry::start(&["--policy", "memory"]);
    let client = connect(&gantry).await;
    let other = connect(&gantry).await;
    topic(&client, "Prices", 4).await;
    declare(&client, "prices", &[]).await;
    let refused = client.push_consumer("prices").subscribe("Prices", "*").broadcasting_as("a");
    let error = refused.start(|_| async { Outcome::Success }).await.unwrap_err();
    assert_eq!(error.code(), Some(ResponseCode::NoPermission), "{error}");
    assert!(error.to_string().contains("gantry.broadcast.offsets=broker"), "{error}");
    declare(&client, "prices", &[("gantry.broadcast.offsets", "broker")]).await;

    let producer = client.producer("senders").start().await.unwrap();
    let ((a, seen_a), (b, seen_b)) = (member(&client, "a").await, member(&other, "b").await);
    send(&producer, "Prices", 0..20).await;
    all_seen(&seen_a, 0..20).await;
    all_seen(&seen_b, 0..20).await;
    a.shutdown().await;
    send(&producer, "Prices", 20..30).await;
    all_seen(&seen_b, 20..30).await;
    b.shutdown().await;
    let members = client.admin().broadcast_members("prices").await.unwrap();
    assert_eq!(members.keys().collect::<Vec<_>>(), ["a", "b"]);
    kill(&mut gantry);

    // Each has its own place, wherever it starts; a new one is asked where to start.
    let ((a, seen_a), (c, seen_c)) = (member(&other, "a").await, member(&client, "c").await);
    all_seen(&seen_a, 20..30).await;
    all_seen(&seen_c, 0..30).await;
    assert_eq!(seen_a.lock().unwrap().len(), 10, "{:?}", seen_a.lock().unwrap());
    let lag = async |name: &str| {
        let name = GroupName::broadcaster(&GroupName::internal("prices"), name).unwrap();
        let stats = client.admin().group_stats(name.as_str(), None).await.unwrap();
        stats.offset_table.values().map(|queue| queue.broker_offset - queue.consumer_offset).sum::<i64>()
    };
    assert_eq!(lag("b").await, 0);
    assert_eq!(client.admin().groups_of_topic("Prices").await.unwrap(), ["prices"]);

    // A reset reaches those that are there, and those that come later.
    seen_a.lock().unwrap().clear();
    client.admin().reset_offsets("prices", "Prices", Some(Millis::new(0))).await.unwrap();
    all_seen(&seen_a, 0..30).await;
    assert_eq!(lag("b").await, 30);
    a.shutdown().await;
    assert_eq!(lag("a").await, 0, "what is committed after the reset counts");
    let (b, seen_b) = member(&other, "b").await;
    all_seen(&seen_b, 0..30).await;
    for consumer in [b, c] {
        consumer.shutdown().await;
    }

    // A pull consumer may be a member, too.
    let reader = client.pull_consumer("prices").broadcasting_as("d").start().await.unwrap();
    let queue = reader.queues("Prices").await.unwrap().remove(0);
    reader.commit_to(&queue, QueueOffset::new(1)).await.unwrap();
    assert_eq!(reader.committed(&queue).await.unwrap().map(QueueOffset::get), Some(1));
    client.admin().delete_group("prices").await.unwrap();
    assert_eq!(client.admin().topics_of_group("%BROADCAST%prices%a").await.unwrap(), [] as [&str; 0]);
    client.shutdown().await;
    other.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_is_not_durable_leaves_nothing_behind() {
    let mut gantry = Gantry::start(&["--policy", "memory"]);
    let client = connect(&gantry).await;
    topic(&client, "Ticks", 2).await;
    declare(&client, "watchers", &[("gantry.durable", "false"), ("gantry.grace", "0s")]).await;
    let producer = client.producer("senders").start().await.unwrap();
    send(&producer, "Ticks", 0..10).await;
    let watch = async || {
        let seen = Bodies::default();
        let into = Arc::clone(&seen);
        let consumer = client.push_consumer("watchers").subscribe("Ticks", "*").start(move |message| {
            note(&into, message.body());
            async { Outcome::Success }
        });
        let consumer = consumer.await.unwrap();
        until("its queues", || async { consumer.assigned().len() == 3 }).await;
        (consumer, seen)
    };
    let topics = async || client.admin().topics_of_group("watchers").await.unwrap();
    let (consumer, seen) = watch().await;
    send(&producer, "Ticks", 10..20).await;
    all_seen(&seen, 10..20).await;
    assert_eq!(seen.lock().unwrap().len(), 10, "it starts at the end: {:?}", seen.lock().unwrap());
    // Its offsets are as safe as others while it is there.
    kill(&mut gantry);
    send(&producer, "Ticks", 20..30).await;
    all_seen(&seen, 20..30).await;
    assert!(topics().await.contains(&"Ticks".to_owned()));
    consumer.shutdown().await;
    until("nothing is left", || async { topics().await.is_empty() }).await;
    assert_eq!(client.admin().groups_of_topic("Ticks").await.unwrap(), [] as [&str; 0]);
    send(&producer, "Ticks", 30..40).await;
    let (consumer, seen) = watch().await;
    send(&producer, "Ticks", 40..50).await;
    all_seen(&seen, 40..50).await;
    assert_eq!(seen.lock().unwrap().len(), 10, "it starts at the end again: {:?}", seen.lock().unwrap());
    consumer.shutdown().await;
    client.shutdown().await;
}
