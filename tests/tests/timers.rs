//! Messages with a time of their own, over the wire, also while the broker is killed: none lost, none early, none twice,
//! none after it was recalled.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use client_scenarios::{topic, until};
use gantry_client::proto::record::RecallHandle;
use gantry_client::proto::remoting::codes::ResponseCode;
use gantry_client::{
    Client, ClientOptions, ConsumeFrom, Message, Outcome, Producer, PushConsumer, Resolution,
};
use gantry_tests::harness::{Gantry, SMALL_FILES};

#[allow(dead_code, reason = "its steps belong to other suites")]
mod client_scenarios;

/// What a consumer got: for each body when, in milliseconds since the epoch, each time.
type Seen = Arc<Mutex<BTreeMap<String, Vec<u128>>>>;

fn now_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()
}

async fn connect(gantry: &Gantry) -> Client {
    Client::connect(ClientOptions::new(gantry.name_server().to_string())).await.unwrap()
}

async fn consume(client: &Client, name: &str) -> (PushConsumer, Seen) {
    topic(client, name, 4).await;
    let seen = Seen::default();
    let into = Arc::clone(&seen);
    let consumer = client
        .push_consumer(format!("{name}-readers"))
        .subscribe(name, "*")
        .from(ConsumeFrom::First)
        .start(move |message| {
            let body = String::from_utf8_lossy(message.body()).into_owned();
            into.lock().unwrap().entry(body).or_default().push(now_ms());
            async { Outcome::Success }
        })
        .await
        .unwrap();
    (consumer, seen)
}

/// Sends a message that is due so much later; when that is at the earliest.
async fn send_later(producer: &Producer, name: &str, body: &str, delay: Duration) -> (u128, String) {
    let earliest = now_ms() + delay.as_millis();
    let receipt = producer.send(Message::new(name, body.to_owned()).delay(delay)).await.unwrap();
    (earliest, receipt.recall_handle.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_property_delays_and_what_cannot_be_is_refused() {
    let gantry = Gantry::start(&["--timer-max-delay", "41d", "--transaction-timeout", "1s"]);
    let client = connect(&gantry).await;
    let (consumer, seen) = consume(&client, "Timers").await;
    let producer = client.producer("timers").start().await.unwrap();
    let send = async |message: Message| producer.send(message).await.unwrap();
    let started = now_ms();
    send(Message::new("Timers", "seconds").property("TIMER_DELAY_SEC", "1")).await;
    send(Message::new("Timers", "millis").property("TIMER_DELAY_MS", "700")).await;
    let at = SystemTime::now() + Duration::from_millis(1_300);
    let receipt = send(Message::new("Timers", "at").deliver_at(at)).await;
    let handle = RecallHandle::decode(receipt.recall_handle.as_deref().unwrap()).unwrap();
    assert_eq!((handle.topic.as_str(), handle.uniq_key.as_str()), ("Timers", receipt.message_id.as_str()));
    let at_ms = at.duration_since(UNIX_EPOCH).unwrap().as_nanos().div_ceil(1_000_000);
    assert_eq!(u128::try_from(handle.deliver_at.get()).unwrap(), at_ms);
    // In the past: at once, and nothing to recall.
    let past = send(Message::new("Timers", "past").deliver_at(UNIX_EPOCH)).await;
    assert_eq!(past.recall_handle, None);
    until("a message of the past", || async { seen.lock().unwrap().contains_key("past") }).await;
    // A level counts first.
    let leveled = Message::new("Timers", "leveled").delay_level(1).delay(Duration::from_secs(86_400));
    assert!(send(leveled).await.recall_handle.is_some());
    let recalled = send(Message::new("Timers", "recalled").delay_level(1)).await.recall_handle.unwrap();
    producer.recall("Timers", &recalled).await.unwrap();
    producer.recall("Timers", &recalled).await.unwrap();
    let far = send(Message::new("Timers", "far").delay(Duration::from_secs(40 * 86_400))).await;
    assert!(far.recall_handle.is_some());
    until("five messages", || async { seen.lock().unwrap().len() == 5 }).await;
    let error = producer.recall("Timers", &recalled).await.unwrap_err();
    assert_eq!(error.code(), Some(ResponseCode::IllegalOperation), "{error}");
    let first = |body: &str| seen.lock().unwrap()[body][0];
    for (body, delay) in [("seconds", 1_000), ("millis", 700), ("leveled", 1_000)] {
        assert!(first(body) >= started + delay, "{body} came early");
    }
    assert!(first("at") >= at_ms, "the message with a time came early");

    let refused = async |message: Message| producer.send(message).await.unwrap_err();
    for message in [
        Message::new("Timers", "").delay(Duration::from_secs(42 * 86_400)),
        Message::new("Timers", "").property("TIMER_DELAY_SEC", "soon"),
        Message::new("Timers", "").property("TIMER_DELAY_SEC", "9223372036854775807"),
        Message::new("Timers", "").property("TIMER_DELAY_SEC", "1").property("TIMER_DEL_UNIQKEY", "x"),
    ] {
        let error = refused(message).await;
        assert_eq!(error.code(), Some(ResponseCode::MessageIllegal), "{error}");
    }
    let batch = [Message::new("Timers", "").delay(Duration::from_secs(1)), Message::new("Timers", "")];
    let error = producer.send_batch(batch).await.unwrap_err().error;
    assert_eq!(error.code(), Some(ResponseCode::MessageIllegal), "{error}");
    let error = refused(Message::new("rmq_sys_wheel_timer", "forged")).await;
    assert_eq!(error.code(), Some(ResponseCode::NoPermission), "{error}");
    consumer.shutdown().await;
    client.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recalled_message_never_comes() {
    let mut gantry = Gantry::start(&["--policy", "memory"]);
    let client = connect(&gantry).await;
    let (consumer, seen) = consume(&client, "Recalls").await;
    let producer = client.producer("recalls").start().await.unwrap();
    let mut handles = Vec::new();
    for number in 0..20 {
        let body = number.to_string();
        handles.push(send_later(&producer, "Recalls", &body, Duration::from_secs(4)).await);
    }
    for (number, (_, handle)) in handles.iter().enumerate().filter(|(number, _)| number % 2 == 1) {
        let id = producer.recall("Recalls", handle).await.unwrap();
        assert_eq!(id, RecallHandle::decode(handle).unwrap().uniq_key);
        if number % 4 == 1 {
            assert_eq!(producer.recall("Recalls", handle).await.unwrap(), id, "recalled twice");
        }
    }
    tokio::task::block_in_place(|| {
        gantry.kill9();
        gantry.restart();
    });
    assert!(producer.recall("Recalls", &handles[1].1).await.is_ok(), "recalled before the kill");
    until("what was not recalled", || async { seen.lock().unwrap().len() == 10 }).await;
    let error = producer.recall("Recalls", &handles[0].1).await.unwrap_err();
    assert_eq!(error.code(), Some(ResponseCode::IllegalOperation), "{error}");
    let unknown = RecallHandle::decode(&handles[0].1).unwrap();
    let later =
        RecallHandle::encode("Recalls", &unknown.broker, unknown.deliver_at.plus(60_000), &unknown.uniq_key);
    let error = producer.recall("Recalls", &later).await.unwrap_err();
    assert_eq!(error.code(), Some(ResponseCode::IllegalOperation), "{error}");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let seen = seen.lock().unwrap().clone();
    assert!(seen.keys().all(|body| body.parse::<u32>().unwrap() % 2 == 0), "recalled, but seen: {seen:?}");
    for (body, times) in &seen {
        let (earliest, _) = handles[body.parse::<usize>().unwrap()];
        assert!(times.len() == 1 && times[0] >= earliest, "{body}: due at {earliest}, seen at {times:?}");
    }
    consumer.shutdown().await;
    client.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_committed_message_waits_for_its_time_and_a_rolled_back_one_never_comes() {
    let gantry = Gantry::start(&["--transaction-timeout", "60s"]);
    let client = connect(&gantry).await;
    let (consumer, seen) = consume(&client, "Halves").await;
    let producer =
        client.transaction_producer("halves", |_| async { Resolution::Unknown }).start().await.unwrap();
    let later = |body: &str| Message::new("Halves", body.to_owned()).delay(Duration::from_secs(1));
    let kept = producer.begin(later("kept")).await.unwrap();
    let dropped = producer.begin(later("dropped")).await.unwrap();
    dropped.rollback().await.unwrap();
    let earliest = now_ms() + 1_000;
    kept.commit().await.unwrap();
    until("the committed message", || async { seen.lock().unwrap().contains_key("kept") }).await;
    assert!(seen.lock().unwrap()["kept"][0] >= earliest, "it came early");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(seen.lock().unwrap().len(), 1);
    let error = producer.begin(Message::new("Halves", "").delay(Duration::MAX)).await.unwrap_err();
    assert_eq!(error.code(), Some(ResponseCode::MessageIllegal), "{error}");
    consumer.shutdown().await;
    client.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_under_the_disk_policy_lose_no_timer() {
    kills("disk").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_under_the_memory_policy_lose_no_timer() {
    kills("memory").await;
}

async fn kills(policy: &str) {
    let mut flags = vec!["--policy", policy];
    flags.extend(SMALL_FILES);
    let mut gantry = Gantry::start(&flags);
    let client = connect(&gantry).await;
    let (consumer, seen) = consume(&client, "Kills").await;
    let producer = client.producer("kills").send_timeout(Duration::from_secs(60)).start().await.unwrap();
    let mut due = BTreeMap::new();
    let started = Instant::now();
    for round in 0..5 {
        for number in 0..200 {
            let body = format!("{round}.{number} {}", "x".repeat(500));
            let delay = Duration::from_millis(fastrand::u64(1..6_000));
            let (earliest, _) = send_later(&producer, "Kills", &body, delay).await;
            due.insert(body, earliest);
        }
        tokio::task::block_in_place(|| {
            gantry.kill9();
            gantry.restart();
        });
    }
    until("every message", || async { seen.lock().unwrap().len() == due.len() }).await;
    println!("{policy}: all {} within {:.1?}", due.len(), started.elapsed());
    consumer.shutdown().await;
    for (body, times) in seen.lock().unwrap().iter() {
        assert!(times[0] >= due[body], "{:.6} was due at {} and came at {}", body, due[body], times[0]);
    }
    // A consumer may be given a message again after a kill, but it must be stored once.
    let stats = client.admin().topic_stats("Kills").await.unwrap();
    let stored: i64 = stats.offset_table.values().map(|queue| queue.max_offset - queue.min_offset).sum();
    assert_eq!(usize::try_from(stored), Ok(due.len()), "a timer was delivered twice");
    assert!(!gantry.log().contains(" ERROR "), "the broker complains:\n{}", gantry.log());
    client.shutdown().await;
}
