//! The Rust client against Gantry, also while the broker dies and comes back.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client_scenarios::{requests, topic, until};
use gantry_client::{Client, ClientOptions, ConsumeFrom, Message, Outcome};
use gantry_tests::harness::Gantry;

mod client_scenarios;

const FLAGS: [&str; 4] = ["--transaction-timeout", "1s", "--transaction-check-interval", "1s"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_works_with_gantry() {
    let gantry = Gantry::start(&FLAGS);
    client_scenarios::all(&gantry.name_server().to_string()).await;
}

/// Sends go on over a crash of the broker without being lost or doubled; the consumer goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_outlives_the_broker() {
    let mut gantry = Gantry::start(&FLAGS);
    let client = Client::connect(ClientOptions::new(gantry.name_server().to_string())).await.unwrap();
    topic(&client, "Lasting", 4).await;
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let seen_in = Arc::clone(&seen);
    let consumer = client
        .push_consumer("lasting")
        .subscribe("Lasting", "*")
        .from(ConsumeFrom::First)
        .start(move |message| {
            seen_in.lock().unwrap().insert(String::from_utf8_lossy(message.body()).into_owned());
            async { Outcome::Success }
        })
        .await
        .unwrap();
    let producer = client.producer("lasting").send_timeout(Duration::from_secs(60)).start().await.unwrap();
    let crashed = Arc::new(AtomicBool::new(false));
    let enough = Arc::clone(&crashed);
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        while sent < 1000 || !enough.load(Ordering::Relaxed) {
            producer.send(Message::new("Lasting", sent.to_string())).await.unwrap();
            sent += 1;
        }
        sent
    });
    for _ in 0..3 {
        let before = seen.lock().unwrap().len();
        until("some messages between two crashes", || async { seen.lock().unwrap().len() > before + 50 })
            .await;
        tokio::task::block_in_place(|| {
            gantry.kill9();
            gantry.restart();
        });
    }
    crashed.store(true, Ordering::Relaxed);
    let sent = sending.await.unwrap();
    until("every message", || async { seen.lock().unwrap().len() == sent }).await;
    consumer.shutdown().await;
    let stats = client.admin().topic_stats("Lasting").await.unwrap();
    let stored: i64 = stats.offset_table.values().map(|queue| queue.max_offset - queue.min_offset).sum();
    assert_eq!(usize::try_from(stored), Ok(sent), "a message that was sent again is stored once");
    let stats = client.admin().group_stats("lasting", Some("Lasting")).await.unwrap();
    assert!(
        stats.offset_table.values().all(|queue| queue.broker_offset == queue.consumer_offset),
        "{stats:?}"
    );
    client.shutdown().await;
}

/// A request that is under way when the broker dies has its time-out; those after it are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_again_after_a_crash() {
    let mut gantry = Gantry::start(&FLAGS);
    let name_server = gantry.name_server().to_string();
    let client = Client::connect(ClientOptions::new(&*name_server)).await.unwrap();
    let other = Client::connect(ClientOptions::new(&*name_server)).await.unwrap();
    topic(&client, "Questions", 2).await;
    let answering = requests::replier(&other, "Questions").await;
    let producer = client.producer("requesters").send_timeout(Duration::from_secs(30)).start().await.unwrap();
    assert_eq!(requests::ask(&producer, "Questions", "before").await.unwrap(), "re: before");
    let under_way = {
        let producer = producer.clone();
        tokio::spawn(async move { requests::ask(&producer, "Questions", "meanwhile").await })
    };
    tokio::task::block_in_place(|| {
        gantry.kill9();
        gantry.restart();
    });
    // Whether it was answered before the crash, is after it, or was never sent: it ends, and is right.
    if let Ok(reply) = under_way.await.unwrap() {
        assert_eq!(reply, "re: meanwhile");
    }
    until("an answer after the crash", || async {
        requests::ask(&producer, "Questions", "after").await.is_ok_and(|reply| reply == "re: after")
    })
    .await;
    answering.shutdown().await;
}
