//! What groups ask of the broker by their configuration and attributes, over the wire and through kills.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use client_scenarios::{topic, until};
use gantry_client::proto::remoting::body::group::{
    CustomizedRetryPolicy, GroupRetryPolicy, SubscriptionGroupConfig,
};
use gantry_client::{Client, ClientOptions, ConsumeFrom, Message, Outcome};
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
