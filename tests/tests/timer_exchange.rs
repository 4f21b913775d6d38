//! Gantry and Apache's broker 5.5.0 open each other's stores and go on with the timer messages in them: what was delivered or
//! taken back is not delivered again, and what waits is delivered once, not before its time.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use client_scenarios::{topic, until};
use gantry_client::proto::ids::QueueOffset;
use gantry_client::{Client, ClientOptions, Message};
use gantry_tests::apache::Apache;
use gantry_tests::harness::Gantry;
use gantry_tests::java::{self, Module};

#[allow(dead_code, reason = "its steps belong to other suites")]
mod client_scenarios;

const TOPIC: &str = "TimerExchange";
const QUEUES: i32 = 4;
/// Both brokers must be told the same size of a log file.
const SEGMENT: [&str; 2] = ["--segment-bytes", "64MiB"];
const SETTINGS: &[&str] = &["flushDiskType=ASYNC_FLUSH", "recallMessageEnable=true"];
/// When the second broker has long been running.
const LATER: Duration = Duration::from_secs(28);
/// More than comes at once.
const EACH: u64 = 30;

/// When each message is due, in milliseconds since the epoch.
type Due = BTreeMap<String, u128>;

async fn connect(name_server: &str) -> Client {
    Client::connect(ClientOptions::new(name_server)).await.unwrap()
}

/// Sends messages that are due at once, soon and later, and takes some back; those that are to come. Returns when the first
/// two thirds have come.
async fn send(name_server: &str) -> Due {
    let client = connect(name_server).await;
    topic(&client, TOPIC, QUEUES).await;
    let producer = client.producer("exchange").start().await.unwrap();
    let mut due = Due::new();
    for number in 0..EACH {
        for (what, wait) in [
            ("soon", Duration::from_millis(500 + number * 50)),
            ("later", LATER + Duration::from_millis(number * 150)),
            ("gone", LATER + Duration::from_millis(number * 150 + 7)),
            ("far", Duration::from_secs(60 * 3600)),
        ] {
            let at = SystemTime::now() + wait;
            let body = format!("{what} {number}");
            let sent = producer.send(Message::new(TOPIC, body.clone()).deliver_at(at)).await.unwrap();
            match what {
                "gone" => drop(producer.recall(TOPIC, &sent.recall_handle.unwrap()).await.unwrap()),
                "far" => {}
                _ => {
                    due.insert(body, at.duration_since(UNIX_EPOCH).unwrap().as_millis());
                }
            }
        }
    }
    until("the messages that are due soon", || async { count(&client).await >= EACH }).await;
    assert_eq!(count(&client).await, EACH);
    client.shutdown().await;
    due
}

/// How many messages the topic has.
async fn count(client: &Client) -> u64 {
    let Ok(stats) = client.admin().topic_stats(TOPIC).await else { return 0 };
    let all: i64 = stats.offset_table.values().map(|queue| queue.max_offset - queue.min_offset).sum();
    u64::try_from(all).unwrap()
}

/// Waits until all have come, and for some seconds more; each must be there once.
async fn expect(name_server: &str, due: &Due, who: &str) {
    let client = connect(name_server).await;
    until("all that is due", || async { count(&client).await >= due.len() as u64 }).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let reader = client.pull_consumer("exchange-readers").start().await.unwrap();
    let mut seen = BTreeMap::<String, Vec<u128>>::new();
    for queue in reader.queues(TOPIC).await.unwrap() {
        let mut next = QueueOffset::new(0);
        loop {
            let pulled = reader.pull(&queue, next, 32).await.unwrap();
            if pulled.messages.is_empty() {
                break;
            }
            next = pulled.next;
            for message in pulled.messages {
                let body = String::from_utf8_lossy(message.body()).into_owned();
                seen.entry(body).or_default().push(u128::try_from(message.store_at().get()).unwrap());
            }
        }
    }
    client.shutdown().await;
    let twice: Vec<_> = seen.iter().filter(|(_, times)| times.len() > 1).collect();
    assert!(twice.is_empty(), "{who} delivered again: {twice:?}");
    assert_eq!(seen.keys().collect::<Vec<_>>(), due.keys().collect::<Vec<_>>(), "{who}");
    for (body, times) in &seen {
        assert!(times[0] >= due[body], "{who}: {body} was due at {} and came at {}", due[body], times[0]);
    }
}

fn start_apache(store: &Path) -> Apache {
    Apache::start_on(store, SETTINGS).expect("Apache's broker starts")
}

fn has_java() -> bool {
    java::module(Module::Suite5).inspect_err(|why| java::skip(why)).is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apache_goes_on_with_gantrys_timers_and_gantry_with_apaches() {
    if !has_java() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let mut gantry = Gantry::start_on(&store, &SEGMENT);
    let due = send(&gantry.name_server().to_string()).await;
    tokio::task::block_in_place(|| gantry.terminate());

    let apache = tokio::task::block_in_place(|| start_apache(&store));
    expect(apache.name_server(), &due, "Apache").await;
    tokio::task::block_in_place(|| apache.stop().unwrap());

    tokio::task::block_in_place(|| gantry.restart());
    expect(&gantry.name_server().to_string(), &due, "Gantry after Apache").await;
    let log = gantry.log();
    assert!(!log.contains(" ERROR "), "the broker complains:\n{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gantry_goes_on_with_apaches_timers() {
    if !has_java() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let apache = tokio::task::block_in_place(|| start_apache(&store));
    let due = send(apache.name_server()).await;
    tokio::task::block_in_place(|| apache.stop().unwrap());

    let mut gantry = Gantry::start_on(&store, &SEGMENT);
    expect(&gantry.name_server().to_string(), &due, "Gantry").await;
    tokio::task::block_in_place(|| gantry.kill9());
    tokio::task::block_in_place(|| gantry.restart());
    expect(&gantry.name_server().to_string(), &due, "Gantry after a kill").await;
}
