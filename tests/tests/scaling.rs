//! Fewer and more queues while a topic is in use, over the wire and over kills of the broker: nothing lost, and with
//! `gantry.scale=ordered` each key in its order. Also priorities, where queues stand for them.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client_scenarios::until;
use gantry_client::proto::remoting::body::topic::TopicConfig;
use gantry_client::proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_client::{Client, ClientOptions, ConsumeFrom, Message, Outcome, PushConsumer};
use gantry_proto::record::RecordView;
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::pop::PopMessageHeader;
use gantry_proto::remoting::request::send::SendMessageHeader;
use gantry_tests::harness::Gantry;
use wire::Wire;

#[allow(dead_code, reason = "its steps belong to other suites")]
mod client_scenarios;
#[path = "bad_input/wire.rs"]
#[expect(dead_code, reason = "what malformed input needs is not needed here")]
mod wire;

const TOPIC: &str = "Scaled";
const KEYS: u32 = 12;

async fn connect(gantry: &Gantry) -> Client {
    let options = ClientOptions::new(gantry.name_server().to_string())
        .route_interval(Duration::from_millis(200))
        .timeout(Duration::from_secs(2));
    Client::connect(options).await.unwrap()
}

fn config(queues: i32, attributes: &[(&str, &str)]) -> TopicConfig {
    TopicConfig {
        topic_name: TOPIC.to_owned(),
        read_queue_nums: queues,
        write_queue_nums: queues,
        attributes: attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        ..TopicConfig::default()
    }
}

/// Queues that are read and written.
async fn numbers(client: &Client) -> (i32, i32) {
    let config = client.admin().topic_config(TOPIC).await.unwrap().unwrap();
    (config.read_queue_nums, config.write_queue_nums)
}

/// The numbers that a group got of each key, in order of arrival.
type Seen = Arc<Mutex<BTreeMap<String, Vec<u32>>>>;

async fn consume(client: &Client, group: &str) -> (PushConsumer, Seen) {
    let seen = Seen::default();
    let into = Arc::clone(&seen);
    let consumer = client
        .push_consumer(group)
        .subscribe(TOPIC, "*")
        .from(ConsumeFrom::First)
        .orderly()
        .start(move |message| {
            let body = String::from_utf8_lossy(message.body()).into_owned();
            let (key, number) = body.split_once(' ').unwrap();
            into.lock().unwrap().entry(key.to_owned()).or_default().push(number.parse().unwrap());
            async { Outcome::Success }
        })
        .await
        .unwrap();
    (consumer, seen)
}

/// Sends numbers of some keys until it is told to stop; how many of each were acknowledged. Who sends in order sends one
/// again until it is taken.
async fn send_until(client: Client, stop: Arc<AtomicBool>, sent: Arc<Mutex<u32>>) -> u32 {
    let producer = client.producer("producers").start().await.unwrap();
    let mut round = 0;
    while !stop.load(Ordering::SeqCst) {
        for key in 0..KEYS {
            let key = format!("key-{key}");
            let message = Message::new(TOPIC, format!("{key} {round}")).sharding_key(&key);
            while producer.send(message.clone()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        round += 1;
        *sent.lock().unwrap() = round;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    round
}

async fn more(sent: &Mutex<u32>, rounds: u32) {
    let target = *sent.lock().unwrap() + rounds;
    until("more messages", || async { *sent.lock().unwrap() >= target }).await;
}

/// The first deliveries alone: what was not committed when the broker was killed comes again.
fn firsts(numbers: &[u32]) -> Vec<u32> {
    let mut firsts: Vec<u32> = Vec::new();
    for number in numbers {
        if !firsts.contains(number) {
            firsts.push(*number);
        }
    }
    firsts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_key_keeps_its_order_over_fewer_and_more_queues_and_kills() {
    let mut gantry = Gantry::start(&["--scale-grace", "6s", "--policy", "memory"]);
    let client = connect(&gantry).await;
    let admin = client.admin();
    let ordered = [("gantry.scale", "ordered")];
    admin.create_topic(&config(8, &ordered)).await.unwrap();
    let (consumer, seen) = consume(&client, "readers").await;
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(0)));
    let sender = tokio::spawn(send_until(client.clone(), Arc::clone(&stop), Arc::clone(&sent)));
    more(&sent, 5).await;
    admin.create_topic(&config(4, &ordered)).await.unwrap();
    assert_eq!(numbers(&client).await, (8, 4));
    gantry.kill9();
    gantry.restart();
    until("the broker", || async { admin.topic_config(TOPIC).await.is_ok() }).await;
    until("the sealed queues to go", || async { numbers(&client).await == (4, 4) }).await;
    more(&sent, 5).await;
    admin.create_topic(&config(8, &ordered)).await.unwrap();
    gantry.kill9();
    gantry.restart();
    until("the broker", || async { admin.topic_config(TOPIC).await.is_ok() }).await;
    assert_eq!(numbers(&client).await, (8, 8));
    let settled = async || admin.topic_config(TOPIC).await.unwrap().unwrap();
    until("the change to be done", || async { !settled().await.attributes.contains_key("gantry.scaling") })
        .await;
    more(&sent, 5).await;
    stop.store(true, Ordering::SeqCst);
    let rounds = sender.await.unwrap();
    let all: Vec<u32> = (0..rounds).collect();
    until("all messages", || async {
        let seen = seen.lock().unwrap();
        seen.len() == KEYS as usize && seen.values().all(|numbers| numbers.contains(&(rounds - 1)))
    })
    .await;
    for (key, numbers) in seen.lock().unwrap().iter() {
        assert_eq!(firsts(numbers), all, "{key}");
    }
    consumer.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sealed_queue_waits_for_its_readers_and_takes_nothing() {
    let gantry = Gantry::start(&["--scale-grace", "1s"]);
    let client = connect(&gantry).await;
    let admin = client.admin();
    admin.create_topic(&config(2, &[])).await.unwrap();
    let mut wire = Wire::to(gantry.broker());
    let send = |wire: &mut Wire, queue_id, properties| {
        let header = SendMessageHeader {
            producer_group: "producers",
            topic: TOPIC,
            queue_id,
            properties,
            ..SendMessageHeader::default()
        };
        wire.request(RequestCode::SendMessage, &header, b"key 0")
    };
    let queue = |reply: &OwnedCommand| reply.ext.get("queueId").map(str::to_owned);
    assert_eq!(queue(&send(&mut wire, 1, None)).as_deref(), Some("1"));
    admin.create_topic(&config(1, &[])).await.unwrap();
    // A message of no order goes elsewhere; one of an order stays as long as its producer may not know.
    assert_eq!(queue(&send(&mut wire, 1, None)).as_deref(), Some("0"));
    let keyed = Some("__SHARDINGKEY\u{1}k\u{2}");
    assert_eq!(queue(&send(&mut wire, 1, keyed)).as_deref(), Some("1"));
    until("the grace to be over", || {
        let refused = send(&mut wire, 1, keyed);
        async move { refused.code == i32::from(ResponseCode::NoPermission) }
    })
    .await;
    assert_eq!(numbers(&client).await, (2, 1));
    let (consumer, seen) = consume(&client, "readers").await;
    until("the sealed queue to go", || async { numbers(&client).await == (1, 1) }).await;
    assert!(seen.lock().unwrap().contains_key("key"));
    consumer.shutdown().await;
    assert_eq!(queue(&send(&mut wire, 1, None)).as_deref(), Some("0"));
}

/// Bodies of one pop.
fn pop(wire: &mut Wire, most: i32) -> Vec<String> {
    let header = PopMessageHeader {
        consumer_group: "workers",
        topic: TOPIC,
        queue_id: -1,
        max_msg_nums: most,
        invisible_time: 60_000,
        exp_type: Some("TAG"),
        exp: Some("*"),
        order: Some(false),
        ..PopMessageHeader::default()
    };
    let reply = wire.request(RequestCode::PopMessage, &header, b"");
    assert_eq!(reply.code, 0, "{:?}", reply.remark);
    let mut rest = reply.body.as_ref();
    let mut bodies = Vec::new();
    while !rest.is_empty() {
        let view = RecordView::parse(rest).unwrap();
        bodies.push(String::from_utf8(view.body().to_vec()).unwrap());
        rest = &rest[view.total_size() as usize..];
    }
    bodies
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn higher_priorities_are_popped_first_and_the_lowest_in_time() {
    let gantry = Gantry::start(&[]);
    let client = connect(&gantry).await;
    client.admin().create_topic(&config(4, &[("message.type", "PRIORITY")])).await.unwrap();
    let producer = client.producer("producers").start().await.unwrap();
    for priority in [0, 2, 3, 9] {
        let receipt =
            producer.send(Message::new(TOPIC, priority.to_string()).priority(priority)).await.unwrap();
        assert_eq!(receipt.queue.id.get(), priority.min(3));
    }
    let mut wire = Wire::to(gantry.broker());
    assert_eq!(pop(&mut wire, 32), ["3", "9", "2", "0"]);
    // However much comes above it, the lowest has its turn in time: in 8 pops for each of the 4 queues.
    producer.send(Message::new(TOPIC, "low").priority(0)).await.unwrap();
    for _ in 0..64 {
        producer.send(Message::new(TOPIC, "high").priority(3)).await.unwrap();
    }
    let popped: Vec<String> = (0..32).flat_map(|_| pop(&mut wire, 1)).collect();
    let low = popped.iter().filter(|body| *body == "low").count();
    assert_eq!((popped.len(), low), (32, 1));
    client.shutdown().await;
}
