//! What the Rust client can do, as steps that run against any broker.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

pub mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gantry_client::proto::ids::QueueOffset;
use gantry_client::proto::names::TopicKind;
use gantry_client::proto::remoting::body::group::SubscriptionGroupConfig;
use gantry_client::proto::remoting::body::topic::TopicConfig;
use gantry_client::proto::remoting::codes::ResponseCode;
use gantry_client::{
    Client, ClientOptions, ConsumeFrom, ErrorKind, Message, Outcome, PullConsumer, PullStatus, PushConsumer,
    Received, Resolution, SeekTo, SendStatus,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// Everything, against the broker behind `name_server`. Its transaction checks must come within seconds.
pub async fn all(name_server: &str) {
    let client = Client::connect(ClientOptions::new(name_server)).await.unwrap();
    sends(&client).await;
    batches(&client).await;
    sharding_and_pull(&client).await;
    admin(&client).await;
    transactions(&client).await;
    push(&client).await;
    push_members(&client, name_server).await;
    broadcasting_and_order(&client).await;
    requests::requests(&client, name_server).await;
    client.shutdown().await;
    let error = client.admin().topics().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

pub async fn topic(client: &Client, name: &str, queues: i32) {
    let config = TopicConfig {
        topic_name: name.to_owned(),
        read_queue_nums: queues,
        write_queue_nums: queues,
        ..TopicConfig::default()
    };
    client.admin().create_topic(&config).await.unwrap();
    until("the route of a new topic", || async { client.admin().topic_route(name).await.is_ok() }).await;
}

/// Waits for a condition.
pub async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Polls until `count` messages came; their bodies in order of arrival.
pub async fn drain(consumer: &PullConsumer, count: usize) -> Vec<String> {
    let start = Instant::now();
    let mut bodies = Vec::new();
    while bodies.len() < count {
        assert!(start.elapsed() < DEADLINE, "{} of {count} messages: {bodies:?}", bodies.len());
        for message in consumer.poll(Duration::from_secs(1)).await.unwrap() {
            bodies.push(String::from_utf8_lossy(message.body()).into_owned());
        }
    }
    bodies
}

async fn sends(client: &Client) {
    let producer = client.producer("senders").start().await.unwrap();
    // A topic that nobody created.
    let receipt = producer.send(Message::new("Auto", "first").key("k1").tag("a")).await.unwrap();
    assert_eq!((receipt.status, receipt.message_id.len()), (SendStatus::Ok, 32));
    until("the created topic's route", || async { client.admin().topic_route("Auto").await.is_ok() }).await;
    let large = "x".repeat(100_000);
    producer.send(Message::new("Auto", large.clone()).property("own", "value")).await.unwrap();
    producer.send_one_way(Message::new("Auto", "one-way")).await.unwrap();
    let delayed = producer.send(Message::new("Auto", "delayed").delay_level(1)).await.unwrap();
    assert_eq!(delayed.status, SendStatus::Ok);
    let mut tickets = Vec::new();
    for number in 0..200 {
        tickets.push(producer.send_nowait(Message::new("Auto", format!("nowait {number}"))).await.unwrap());
    }
    let mut places = BTreeSet::new();
    for ticket in tickets {
        let receipt = ticket.await.unwrap();
        assert!(places.insert((receipt.queue.id, receipt.queue_offset)), "two messages in one place");
    }
    let consumer = client.pull_consumer("auto-readers").start().await.unwrap();
    consumer.assign(consumer.queues("Auto").await.unwrap());
    let bodies: BTreeSet<String> = drain(&consumer, 204).await.into_iter().collect();
    for body in ["first", &large, "one-way", "delayed", "nowait 0", "nowait 199"] {
        assert!(bodies.contains(body), "{body:.20} is missing");
    }
    let error = producer.send(Message::new("bad name", "")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let error = producer.send(Message::new("Auto", vec![0; 4 << 20 | 1])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    let error = producer.send(Message::new("SCHEDULE_TOPIC_XXXX", "x")).await.unwrap_err();
    assert_eq!(error.code(), Some(ResponseCode::NoPermission), "{error}");
    producer.shutdown().await;
    let error = producer.send(Message::new("Auto", "late")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

async fn batches(client: &Client) {
    topic(client, "Batches", 1).await;
    let producer = client.producer("senders").batch_bytes_max(10_000).start().await.unwrap();
    let messages = (0..500).map(|number| Message::new("Batches", format!("{number:0100}")));
    let receipts = producer.send_batch(messages).await.unwrap();
    let offsets: Vec<u64> = receipts.iter().map(|receipt| receipt.queue_offset.get()).collect();
    assert_eq!(offsets, (0..500).collect::<Vec<_>>());
    let found = &receipts[250];
    let message =
        client.admin().view_message("Batches", found.offset_message_id.parse().unwrap()).await.unwrap();
    assert_eq!(message.message_id(), found.message_id);
    assert_eq!(message.body(), format!("{:0100}", 250).as_bytes());
    let mixed = [Message::new("Batches", "a"), Message::new("Auto", "b")];
    assert_eq!(producer.send_batch(mixed).await.unwrap_err().error.kind(), ErrorKind::Invalid);
}

async fn sharding_and_pull(client: &Client) {
    topic(client, "Sharded", 4).await;
    let producer = client.producer("senders").start().await.unwrap();
    let mut queues = BTreeMap::new();
    for number in 0..40 {
        let key = format!("key-{}", number % 4);
        let tag = if number % 2 == 0 { "even" } else { "odd" };
        let message = Message::new("Sharded", number.to_string()).sharding_key(&key).tag(tag);
        let receipt = producer.send(message).await.unwrap();
        assert_eq!(queues.entry(key).or_insert(receipt.queue.clone()), &receipt.queue);
    }
    let consumer = client.pull_consumer("pullers").start().await.unwrap();
    let all = consumer.queues("Sharded").await.unwrap();
    assert_eq!(all.len(), 4);
    let queue = &queues["key-0"];
    assert_eq!(consumer.committed(queue).await.unwrap(), None);
    let end = consumer.max_offset(queue).await.unwrap();
    assert!(end.get() >= 10);
    let pulled = consumer.pull(queue, QueueOffset::ZERO, 3).await.unwrap();
    assert_eq!((pulled.status, pulled.messages.len(), pulled.next.get()), (PullStatus::Found, 3, 3));
    let pulled = consumer.pull(queue, end, 3).await.unwrap();
    assert_eq!(pulled.status, PullStatus::NoNewMessage);

    consumer.assign([queue.clone()]);
    let first = drain(&consumer, 10).await;
    consumer.commit().await.unwrap();
    assert_eq!(consumer.committed(queue).await.unwrap(), consumer.position(queue));
    consumer.seek(queue, SeekTo::Begin).await.unwrap();
    assert_eq!(drain(&consumer, 10).await[..10], first[..10]);
    assert_eq!(consumer.seek(queue, SeekTo::End).await.unwrap(), end);
    assert_eq!(consumer.poll(Duration::from_millis(300)).await.unwrap().len(), 0);
    consumer.seek(queue, SeekTo::Offset(QueueOffset::new(1))).await.unwrap();
    assert_eq!(drain(&consumer, 9).await[0], first[1]);
    let time = client.admin().topic_stats("Sharded").await.unwrap();
    assert_eq!(time.offset_table.len(), 4);

    let odd = client.pull_consumer("odd-pullers").filter("odd || none").start().await.unwrap();
    odd.assign(all);
    let odd = drain(&odd, 20).await;
    assert!(odd.iter().all(|body| body.parse::<u32>().unwrap() % 2 == 1), "{odd:?}");
}

async fn admin(client: &Client) {
    let admin = client.admin();
    let cluster = admin.cluster().await.unwrap();
    let broker = cluster.broker_addr_table.keys().next().unwrap().clone();
    let info = admin.broker_runtime_info(&broker).await.unwrap();
    assert!(info.contains_key("bootTimestamp"), "{info:?}");
    topic(client, "Short", 2).await;
    assert!(admin.topics().await.unwrap().contains(&"Short".to_owned()));
    assert_eq!(admin.topic_config("Short").await.unwrap().unwrap().write_queue_nums, 2);
    assert!(admin.delete_topic("Short").await.unwrap());
    until("a deleted topic is gone", || async {
        !admin.topics().await.unwrap().contains(&"Short".to_owned())
    })
    .await;
    let group = SubscriptionGroupConfig {
        group_name: "made".to_owned(),
        retry_max_times: 3,
        ..SubscriptionGroupConfig::default()
    };
    admin.create_group(&group).await.unwrap();
    assert_eq!(admin.groups().await.unwrap()["made"].retry_max_times, 3);
    assert!(admin.group_members("made").await.unwrap().is_none());
    assert!(admin.delete_group("made").await.unwrap());
    assert!(!admin.groups().await.unwrap().contains_key("made"));
    let stats = admin.group_stats("pullers", Some("Sharded")).await.unwrap();
    assert!(stats.offset_table.values().any(|queue| queue.consumer_offset >= 10), "{stats:?}");

    let producer = client.producer("senders").start().await.unwrap();
    let sent = producer.send(Message::new("Auto", "find me").key("needle").key("pin")).await.unwrap();
    let range = (gantry_client::proto::ids::Millis::ZERO, gantry_client::proto::ids::Millis::MAX);
    until("a key in the index", || async {
        let found = admin.find_by_key("Auto", "pin", range, 10).await.unwrap();
        found.len() == 1 && found[0].message_id() == sent.message_id
    })
    .await;
    let found = admin.find_by_message_id("Auto", &sent.message_id).await.unwrap();
    assert_eq!(found[0].body(), "find me".as_bytes());
}

async fn transactions(client: &Client) {
    topic(client, "Paid", 1).await;
    let asked = Arc::new(Mutex::new(BTreeSet::new()));
    let asked_in = Arc::clone(&asked);
    let producer = client
        .transaction_producer("payers", move |message| {
            let body = String::from_utf8_lossy(message.body()).into_owned();
            let resolution = match &*body {
                "checked-commit" => Resolution::Commit,
                "checked-rollback" => Resolution::Rollback,
                _ => Resolution::Unknown,
            };
            asked_in.lock().unwrap().insert(body);
            async move { resolution }
        })
        .start()
        .await
        .unwrap();
    let send = |body: &'static str, resolution: Resolution| {
        let producer = producer.clone();
        async move {
            let (_, told) =
                producer.send(Message::new("Paid", body), |_| async move { resolution }).await.unwrap();
            assert_eq!(told, resolution);
        }
    };
    send("committed", Resolution::Commit).await;
    send("rolled-back", Resolution::Rollback).await;
    send("checked-commit", Resolution::Unknown).await;
    send("checked-rollback", Resolution::Unknown).await;
    let open = producer.begin(Message::new("Paid", "by hand")).await.unwrap();
    open.commit().await.unwrap();
    drop(producer.begin(Message::new("Paid", "undecided")).await.unwrap());
    let consumer = client.pull_consumer("paid-readers").start().await.unwrap();
    consumer.assign(consumer.queues("Paid").await.unwrap());
    let bodies: BTreeSet<String> = drain(&consumer, 3).await.into_iter().collect();
    let expected = ["by hand", "checked-commit", "committed"].map(str::to_owned);
    assert_eq!(bodies, expected.into());
    until("checks of what was left open", || async {
        let asked = asked.lock().unwrap();
        asked.contains("checked-rollback") && asked.contains("undecided")
    })
    .await;
    producer.shutdown().await;
}

/// Bodies with the number of earlier refusals, in order of arrival.
type Seen = Arc<Mutex<Vec<(String, u32)>>>;

fn note(seen: &Seen, message: &Received) -> (String, u32) {
    let entry = (String::from_utf8_lossy(message.body()).into_owned(), message.reconsume_times());
    seen.lock().unwrap().push(entry.clone());
    entry
}

async fn push(client: &Client) {
    topic(client, "Pushed", 2).await;
    let producer = client.producer("senders").start().await.unwrap();
    producer.send(Message::new("Pushed", "early").tag("a")).await.unwrap();
    let seen = Seen::default();
    let seen_in = Arc::clone(&seen);
    let consumer = client
        .push_consumer("pushers")
        .subscribe("Pushed", "a || b")
        .from(ConsumeFrom::First)
        .max_reconsume_times(1)
        .start(move |message| {
            let (body, times) = note(&seen_in, &message);
            async move {
                match (&*body, times) {
                    ("again", 0) | ("never", _) => Outcome::LaterAtLevel(1),
                    ("panics", 0) => panic!("a handler that fails"),
                    ("dead", _) => Outcome::DeadLetter,
                    _ => Outcome::Success,
                }
            }
        })
        .await
        .unwrap();
    let error =
        client.push_consumer("pushers").subscribe("Pushed", "*").start(|_| async { Outcome::Success }).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::GroupInUse);
    for (body, tag) in
        [("again", "a"), ("never", "b"), ("dead", "a"), ("other", "c"), ("panics", "a"), ("last", "b")]
    {
        producer.send(Message::new("Pushed", body).tag(tag).key(body)).await.unwrap();
    }
    let has = |body: &str, times: u32| {
        let entry = (body.to_owned(), times);
        let seen = Arc::clone(&seen);
        async move { seen.lock().unwrap().contains(&entry) }
    };
    for (body, times) in [("early", 0), ("last", 0), ("again", 1), ("never", 1), ("panics", 1)] {
        until(body, || has(body, times)).await;
    }
    assert!(!has("other", 0).await);
    // One refusal too many, and the one that asked for it, are dead.
    let reader = client.pull_consumer("dead-readers").start().await.unwrap();
    until("the dead-letter topic", || async {
        reader.queues("%DLQ%pushers").await.is_ok_and(|queues| {
            reader.assign(queues);
            true
        })
    })
    .await;
    let dead: BTreeSet<String> = drain(&reader, 2).await.into_iter().collect();
    assert_eq!(dead, ["dead", "never"].map(str::to_owned).into());

    // What the members tell of themselves.
    let members = client.admin().group_members("pushers").await.unwrap().unwrap();
    assert_eq!(members.connection_set[0].client_id, client.id());
    assert!(members.subscription_table.contains_key("Pushed"));
    consumer.shutdown().await;
    assert!(client.admin().group_members("pushers").await.unwrap().is_none());
    let stats = client.admin().group_stats("pushers", Some("Pushed")).await.unwrap();
    assert!(
        stats.offset_table.values().all(|queue| queue.broker_offset == queue.consumer_offset),
        "{stats:?}"
    );
}

async fn push_members(client: &Client, name_server: &str) {
    topic(client, "Shared", 4).await;
    let second = Client::connect(ClientOptions::new(name_server)).await.unwrap();
    let start = |client: &Client| {
        let seen = Seen::default();
        let seen_in = Arc::clone(&seen);
        let consumer = client.push_consumer("sharers").subscribe("Shared", "*").start(move |message| {
            note(&seen_in, &message);
            async { Outcome::Success }
        });
        async move { (consumer.await.unwrap(), seen) }
    };
    let (one, seen_one) = start(client).await;
    until("all queues for the only member", || async { own(&one) == 4 }).await;
    let (two, seen_two) = start(&second).await;
    until("half the queues for each", || async { own(&one) == 2 && own(&two) == 2 }).await;
    let producer = client.producer("senders").start().await.unwrap();
    for number in 0..100 {
        producer.send(Message::new("Shared", number.to_string())).await.unwrap();
    }
    let count = |seen: &Seen| seen.lock().unwrap().len();
    until("all messages", || async { count(&seen_one) + count(&seen_two) >= 100 }).await;
    assert!(count(&seen_one) > 0 && count(&seen_two) > 0);
    two.shutdown().await;
    until("all queues for the member that stays", || async { own(&one) == 4 }).await;
    for number in 100..120 {
        producer.send(Message::new("Shared", number.to_string())).await.unwrap();
    }
    let bodies = || {
        let seen = [seen_one.lock().unwrap().clone(), seen_two.lock().unwrap().clone()].concat();
        seen.into_iter().map(|(body, _)| body).collect::<BTreeSet<_>>()
    };
    until("the rest", || async { bodies().len() == 120 }).await;
    one.shutdown().await;
    second.shutdown().await;
}

/// How many queues of a user's topic the consumer has.
fn own(consumer: &PushConsumer) -> usize {
    consumer.assigned().iter().filter(|queue| queue.topic.kind() == TopicKind::User).count()
}

async fn broadcasting_and_order(client: &Client) {
    topic(client, "Ordered", 2).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("offsets.json");
    let everyone = Seen::default();
    let everyone_in = Arc::clone(&everyone);
    let broadcast = client
        .push_consumer("everyone")
        .subscribe("Ordered", "*")
        .broadcasting(Some(file.clone()))
        .from(ConsumeFrom::First)
        .start(move |message| {
            note(&everyone_in, &message);
            async { Outcome::Later }
        })
        .await
        .unwrap();
    let seen = Seen::default();
    let seen_in = Arc::clone(&seen);
    let refused = Arc::new(AtomicBool::new(false));
    let ordered = client
        .push_consumer("in-order")
        .subscribe("Ordered", "*")
        .from(ConsumeFrom::First)
        .orderly()
        .start(move |message| {
            let (body, _) = note(&seen_in, &message);
            let first = body == "a3" && !refused.swap(true, Ordering::SeqCst);
            async move { if first { Outcome::Later } else { Outcome::Success } }
        })
        .await
        .unwrap();
    let producer = client.producer("senders").start().await.unwrap();
    for number in 0..10 {
        for key in ["a", "b"] {
            let message = Message::new("Ordered", format!("{key}{number}")).sharding_key(key);
            producer.send(message).await.unwrap();
        }
    }
    until("all in order", || async { seen.lock().unwrap().len() >= 21 }).await;
    for key in ["a", "b"] {
        let of_key: Vec<String> = seen
            .lock()
            .unwrap()
            .iter()
            .map(|(body, _)| body.clone())
            .filter(|body| body.starts_with(key))
            .collect();
        let mut expected: Vec<String> = (0..10).map(|number| format!("{key}{number}")).collect();
        if key == "a" {
            expected.insert(3, "a3".to_owned());
        }
        assert_eq!(of_key, expected);
    }
    until("everyone got all", || async { everyone.lock().unwrap().len() >= 20 }).await;
    broadcast.shutdown().await;
    ordered.shutdown().await;
    let offsets: BTreeMap<String, u64> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(offsets.values().sum::<u64>(), 20, "{offsets:?}");
}
