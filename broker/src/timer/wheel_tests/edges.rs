//! Cases at the edges: nothing that waits, properties that leave no room, two timers under one id, targets that are the
//! broker's own, files that cannot be opened, timers that are more than the log may be.

use std::time::Duration;

use gantry_proto::names::topics;

use super::super::fire::ROLL_EVERY_MS;
use super::super::index::Place;
use super::*;

const KEEP_MS: u64 = 10_000;

fn open_keeping(dir: &Path) -> Broker {
    open_with(dir, fixture::NOW, Retention { keep_ms: KEEP_MS, ..Retention::default() })
}

/// Fills more than two log files.
async fn fill(broker: &Broker) {
    let (bytes, plain) = (vec![b'x'; 100_000], PropertiesBuf::new());
    for _ in 0..25 {
        broker.store_record(&TopicName::internal("fill"), QueueId::ZERO, &bytes, &plain, SysFlag::NONE).await;
    }
}

/// Regression: a task without timers slept forever, and its hold kept the log from the start on.
#[tokio::test(start_paused = true)]
async fn log_files_go_while_nothing_waits() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open_keeping(dir.path());
    let stop = CancellationToken::new();
    let task = tokio::spawn(Arc::clone(&broker.wheel).run(stop.clone()));
    tokio::task::yield_now().await;
    fill(&broker).await;
    broker.clock.advance(2 * KEEP_MS);
    tokio::time::sleep(Duration::from_secs(30)).await;
    // The levels have a hold of their own.
    broker.levels.deliver_due();
    broker.store.keep_house().expect("kept");
    assert!(broker.store.min_offset() >= PhyOffset::new(1 << 20), "the first file is gone");
    stop.cancel();
    task.await.expect("it ends");
}

/// A timer for `orders` whose properties leave `room` bytes free.
async fn full(broker: &Broker, body: &str, wait_ms: u64, room: usize) {
    let mut properties = PropertiesBuf::new();
    let (topic, queue) =
        retarget_timer(&mut properties, broker.clock.now().plus(wait_ms), "orders", QueueId::new(1));
    properties.push(keys::UNIQ_KEY, body);
    // The checksum takes 20 bytes, the property's name and the two marks 6.
    let free = 32_767 - 20 - 6 - properties.as_bytes().len() - room;
    properties.push("fill", &"x".repeat(free));
    broker.store_record(&topic, queue, body.as_bytes(), &properties, SysFlag::NONE).await;
}

/// Regression: the times that a delivery notes did not fit, the message was in no topic, and held the log for good.
#[tokio::test]
async fn properties_that_leave_no_room_are_delivered_as_they_are() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    for room in [0, 30, 60, 90] {
        full(&broker, &format!("room {room}"), 1_000, room).await;
    }
    broker.clock.advance(1_000);
    broker.round().await;
    assert_eq!(broker.delivered(), ["room 0", "room 30", "room 60", "room 90"]);
    assert_eq!((broker.wheel.pending(), broker.wheel.shared.index.taken()), (0, 0));
}

/// Regression: one of two timers under one id (resends are not looked for in the topic) came after the recall.
#[tokio::test]
async fn a_recall_takes_all_that_wait_under_its_id() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    for wait_ms in [2_000, 2_000, 2_000, 5_000] {
        broker.delayed("twin", wait_ms).await;
    }
    let handle = broker.handle("twin", 2_000);
    assert_eq!(broker.recall(&handle).await.expect("they wait"), "twin");
    assert_eq!(broker.wheel.pending(), 1);
    assert_eq!(broker.recall(&handle).await.expect("they were recalled"), "twin");
    broker.clock.advance(4_999);
    broker.round().await;
    assert!(broker.delivered().is_empty());
    broker.clock.advance(1);
    broker.round().await;
    assert_eq!(broker.delivered(), ["twin"], "another time is another message");
}

/// Regression: a timer for the timers' own topic was delivered there, again and again.
#[tokio::test]
async fn nothing_is_delivered_to_the_brokers_own_topics() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let own =
        ["rmq_sys_gantry_state", "SCHEDULE_TOPIC_XXXX", "RMQ_SYS_TRANS_HALF_TOPIC", "rmq_sys_wheel_timer"];
    for topic in own {
        let mut properties = PropertiesBuf::new();
        retarget_timer(&mut properties, fixture::NOW.plus(1_000), topic, QueueId::ZERO);
        let timer = TopicName::timer();
        broker.store_record(&timer, QueueId::ZERO, topic.as_bytes(), &properties, SysFlag::NONE).await;
    }
    broker.clock.advance(1_000);
    broker.round().await;
    assert_eq!(broker.delivered_to("%DLQ%SCHEDULE_CONSUMER", 0), own);
    assert_eq!((broker.records(topics::TIMER, 0).len(), broker.wheel.pending()), (4, 0));
}

/// Regression: one round delivered all that was due, and a stop waited for the last of millions.
#[tokio::test]
async fn a_round_ends_although_more_is_due() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let queue = broker.store.queue(&TopicName::timer(), QueueId::ZERO).expect("a queue");
    let mut properties = PropertiesBuf::new();
    let due = fixture::NOW.plus(1_000);
    retarget_timer(&mut properties, due, "orders", QueueId::new(1));
    let draft = RecordDraft {
        topic: topics::TIMER,
        properties: properties.as_bytes(),
        ..state::draft(b"", fixture::NOW)
    };
    for _ in 0..65 {
        let mut batch = Batch::new();
        (0..256).for_each(|_| batch.push(&queue, &draft).expect("encodable"));
        broker.store.append_settled(&mut batch).await.expect("appended");
    }
    broker.clock.advance(1_000);
    assert_eq!((broker.round().await, broker.wheel.pending()), (NextRound::At(due), 256));
    assert_eq!((broker.round().await, broker.wheel.pending()), (NextRound::Idle, 0));
}

/// Regression: a timer whose queue could not be opened kept all that were due later waiting.
#[tokio::test]
async fn a_timer_that_cannot_be_delivered_holds_up_no_other() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let mut properties = PropertiesBuf::new();
    let (topic, queue) = retarget_timer(&mut properties, fixture::NOW.plus(1_000), "blocked", QueueId::ZERO);
    broker.store_record(&topic, queue, b"blocked", &properties, SysFlag::NONE).await;
    broker.delayed("one", 1_000).await;
    broker.delayed("two", 3_000).await;
    let in_the_way = dir.path().join("consumequeue/blocked");
    std::fs::write(&in_the_way, b"no directory").expect("written");
    broker.clock.advance(1_000);
    assert_eq!(broker.round().await, NextRound::At(fixture::NOW.plus(3_000)));
    assert_eq!(broker.delivered(), ["one"]);
    broker.clock.advance(2_000);
    assert_eq!(broker.round().await, NextRound::At(fixture::NOW.plus(6_000)));
    assert_eq!((broker.delivered(), broker.wheel.pending()), (vec!["one".to_owned(), "two".to_owned()], 1));
    std::fs::remove_file(in_the_way).expect("removed");
    broker.clock.advance(3_000);
    assert_eq!(broker.round().await, NextRound::Idle);
    assert_eq!((broker.delivered_to("blocked", 0), broker.wheel.pending()), (vec!["blocked".to_owned()], 0));
}

/// Regression: where the timers alone were more than the log may be they were stored anew without end.
#[tokio::test]
async fn timers_that_are_more_than_the_log_may_be_are_rolled_once_an_hour() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker =
        open_with(dir.path(), fixture::NOW, Retention { keep_bytes: 1 << 20, ..Retention::default() });
    let body = "x".repeat(10_000);
    for number in 0..300 {
        broker.delayed(&format!("{number} {body}"), DAY_MS + number).await;
    }
    let mut stored = Vec::new();
    for _ in 0..120 {
        broker.clock.advance(60_000);
        for _ in 0..4 {
            broker.store.save_checkpoint().expect("a checkpoint");
            broker.store.keep_house().expect("kept");
            broker.round().await;
            broker.clock.advance(ROLL_EVERY_MS);
        }
        // Each has its body in its id, too.
        stored.push(broker.store.max_offset().get() / (300 * 20_000));
    }
    // About two hours: as they were sent, and stored anew two times at most, not with each look.
    assert!(stored.last().is_some_and(|times| (1..=3).contains(times)), "{stored:?}");
    assert_eq!(broker.wheel.pending(), 300);
    assert!(broker.store.min_offset() > PhyOffset::ZERO, "what was stored anew is not kept twice");
}

/// Regression: what a roll had taken when it failed was never delivered.
#[tokio::test]
async fn a_roll_that_fails_gives_back_what_it_took() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    broker.delayed("far", 10 * DAY_MS).await;
    let far = Place { due: fixture::NOW.plus(10 * DAY_MS), phy: broker.records(topics::TIMER, 0)[0] };
    broker.round().await;
    let near = Place { due: fixture::NOW.plus(60_000), phy: broker.delayed("near", 60_000).await };
    broker.store.save_checkpoint().expect("a checkpoint");
    // Files of slots that cannot be opened.
    for file in std::fs::read_dir(dir.path().join("timers")).expect("a directory") {
        let path = file.expect("an entry").path();
        if path.file_name().is_some_and(|name| name != "slots") {
            std::fs::remove_file(&path).expect("removed");
            std::fs::create_dir(&path).expect("a directory");
        }
    }
    broker.wheel.roll_places(&[near, far]).expect_err("it cannot be looked up");
    assert_eq!(broker.wheel.shared.index.taken(), 0);
    assert_eq!(broker.wheel.first_due(), Some(near.due));
}

/// Regression: a slot whose timers stay where they are kept the others from being rolled.
#[tokio::test]
async fn each_slot_has_its_turn_to_be_rolled() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    for days in 1..=3 {
        broker.delayed("far", days * DAY_MS).await;
    }
    let end = broker.store.max_offset();
    let mut days = Vec::new();
    for _ in 0..4 {
        let old = broker.wheel.shared.index.older_than(end, end, 8).expect("readable");
        days.push((old.places[0].due.since(fixture::NOW) / DAY_MS, old.is_last));
    }
    assert_eq!(days, [(1, false), (2, false), (3, true), (1, false)]);
}
