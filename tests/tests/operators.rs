//! What operators do with single messages and with the places of groups, by the command line.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::time::Duration;

use client_scenarios::{topic, until};
use gantry_client::proto::ids::QueueOffset;
use gantry_client::{Client, ClientOptions, ConsumeFrom, Message, Outcome};
use gantry_tests::harness::{self, Ended, Gantry};
use serde_json::Value;

#[allow(dead_code, reason = "its steps belong to other suites")]
mod client_scenarios;

fn run(gantry: &Gantry, line: &str) -> Ended {
    let name_server = gantry.name_server().to_string();
    let words: Vec<&str> = line.split_whitespace().chain(["--name-server", &name_server]).collect();
    harness::run(&words)
}

fn lines(gantry: &Gantry, line: &str) -> Vec<Value> {
    let ended = run(gantry, &format!("{line} --output json"));
    assert_eq!(ended.code, Some(0), "gantry {line}: {ended:?}");
    ended.stdout.lines().map(|text| serde_json::from_str(text).unwrap()).collect()
}

fn refused(gantry: &Gantry, line: &str, code: i32, what: &str) {
    let ended = run(gantry, line);
    assert!(ended.code == Some(code) && ended.stderr.contains(what), "gantry {line}: {ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_found_and_pushed() {
    let gantry = Gantry::start(&["--policy", "memory"]);
    let client = Client::connect(ClientOptions::new(gantry.name_server().to_string())).await.unwrap();
    topic(&client, "Asked", 2).await;
    let producer = client.producer("askers").start().await.unwrap();
    let mut sent = Vec::new();
    for number in 0..6 {
        let message = Message::new("Asked", format!("{number}")).key(format!("k{}", number % 2));
        sent.push(producer.send(message).await.unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let bodies = |line: &str| {
        let found = lines(&gantry, line);
        found.iter().map(|message| message["body"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(bodies(&format!("message query Asked --id {}", sent[3].message_id)), ["3"]);
    assert_eq!(bodies("message query Asked --key k1").len(), 3);
    let place = &sent[2].offset_message_id;
    assert_eq!(bodies(&format!("message query Asked --offset-id {place}")), ["2"]);
    let all = lines(&gantry, "message query Asked --from 0");
    let stored: Vec<i64> = all.iter().map(|message| message["stored_ms"].as_i64().unwrap()).collect();
    assert!(stored.is_sorted() && stored.len() == 6, "{stored:?}");
    let (from, to) = (stored[2], stored[4]);
    assert_eq!(bodies(&format!("message query Asked --from {from} --to {to}")), ["2", "3", "4"]);
    assert_eq!(bodies(&format!("message query Asked --from {from} --max 1")), ["2"]);
    refused(&gantry, "message query Asked --id nobody", 1, "no such message");
    refused(&gantry, "message query Asked", 2, "say what to look for");
    refused(&gantry, "message query Asked --from 2099-01-01T00:00:00Z", 1, "no such message");

    let consumer = client
        .push_consumer("askers")
        .subscribe("Asked", "*")
        .from(ConsumeFrom::Last)
        .start(|message| async move {
            if message.body() == "2".as_bytes() { Outcome::Success } else { Outcome::Later }
        })
        .await
        .unwrap();
    let push = |place: &str, member: &str| {
        run(&gantry, &format!("message push {place} --group askers --client {member} --output json"))
    };
    let ended = push(place, client.id());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("CR_SUCCESS"), "{}", ended.stdout);
    let ended = push(&sent[3].offset_message_id, client.id());
    assert!(ended.code == Some(1) && ended.stderr.contains("CR_LATER"), "{ended:?}");
    assert_eq!(push(place, "10.0.0.1@nobody").code, Some(1));
    consumer.shutdown().await;
    client.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_moved() {
    let gantry = Gantry::start(&["--policy", "memory"]);
    let client = Client::connect(ClientOptions::new(gantry.name_server().to_string())).await.unwrap();
    topic(&client, "Moved", 2).await;
    let producer = client.producer("movers").start().await.unwrap();
    for number in 0..10 {
        producer.send(Message::new("Moved", format!("{number}"))).await.unwrap();
    }
    until("the last message", || async { lines(&gantry, "message query Moved --from 0").len() == 10 }).await;
    assert_eq!(run(&gantry, "consume Moved --group movers --max 10").code, Some(0));
    let consumer = client.pull_consumer("movers").start().await.unwrap();
    let queues = consumer.queues("Moved").await.unwrap();
    let at = async |group: &str| {
        let consumer = client.pull_consumer(group).start().await.unwrap();
        let mut offsets = Vec::new();
        for queue in &queues {
            offsets.push(consumer.committed(queue).await.unwrap().map(QueueOffset::get));
        }
        offsets
    };
    assert_eq!(at("movers").await, [Some(5), Some(5)]);
    refused(&gantry, "group reset movers --topic Moved --to first", 2, "--yes");
    refused(&gantry, "group reset movers --topic Moved --to first --queue 7 --yes", 1, "no such queue");
    refused(&gantry, "group reset nobody --topic Moved --to first --yes", 1, "nobody");
    let moved = lines(&gantry, "group reset movers --topic Moved --queue 1 --offset 2 --yes");
    assert_eq!(moved[0][0]["offset"], 2, "{moved:?}");
    assert_eq!(at("movers").await, [Some(5), Some(2)]);
    run(&gantry, "group create other");
    assert_eq!(run(&gantry, "group clone-offset movers other --topic Moved --yes").code, Some(0));
    assert_eq!(at("other").await, [Some(5), Some(2)]);
    let moved = lines(&gantry, "group reset movers --topic Moved --to first --yes");
    assert_eq!(moved[0].as_array().unwrap().len(), 2, "{moved:?}");
    assert_eq!(at("movers").await, [Some(0), Some(0)]);
    lines(&gantry, "group reset movers --topic Moved --to last --yes");
    assert_eq!((at("movers").await, at("other").await), (vec![Some(5); 2], vec![Some(5), Some(2)]));
    client.shutdown().await;
}
