//! The timer over a real store: deliveries, order, restarts and crashes.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset, QueueId};
use gantry_proto::names::TopicName;
use gantry_proto::record::{
    PropertiesBuf, RecallHandle, RecordDraft, RecordView, SysFlag, TransactionFlag, keys,
};
use tokio_util::sync::CancellationToken;

use super::task::{NextRound, Rounds as _};
use super::*;
use crate::clock::{Clock, ManualClock};
use crate::fixture;
use crate::store::{Batch, Store};

struct Broker {
    store: Arc<Store>,
    timer: Arc<Timer>,
    clock: Arc<ManualClock>,
}

fn open_at(dir: &Path, now: Millis) -> Broker {
    let clock = Arc::new(ManualClock::new(now));
    let config = dir.join("config");
    let (projection, unstarted) =
        load(&config, Levels::default(), Arc::clone(&clock) as Arc<dyn Clock>).expect("readable");
    let store = fixture::delaying_store(
        dir,
        Arc::clone(&clock),
        Levels::default().delays_ms(),
        vec![Box::new(projection)],
    );
    let timer = unstarted.start(Arc::clone(&store));
    Broker { store, timer, clock }
}

fn open(dir: &Path) -> Broker {
    open_at(dir, fixture::NOW)
}

impl Broker {
    async fn delayed(&self, body: &str, level: i32) -> PhyOffset {
        let level = self.timer.levels().level(level).expect("a level");
        let mut properties = PropertiesBuf::new();
        properties.push(keys::UNIQ_KEY, body);
        let (topic, queue) = retarget(&mut properties, level, "orders", QueueId::new(1));
        self.store_record(&topic, queue, body, &properties, 3).await
    }

    async fn store_record(
        &self,
        topic: &TopicName,
        queue: QueueId,
        body: &str,
        properties: &PropertiesBuf,
        reconsume_times: i32,
    ) -> PhyOffset {
        let queue = self.store.queue(topic, queue).expect("a queue");
        let host = ([127, 0, 0, 1], 10911).into();
        let draft = RecordDraft {
            topic: topic.as_str(),
            queue_id: queue.id(),
            flag: 7,
            sys_flag: SysFlag::NONE.with_transaction(TransactionFlag::Commit),
            born_at: Millis::new(5),
            born_host: host,
            store_host: host,
            reconsume_times,
            prepared_offset: PhyOffset::ZERO,
            body: body.as_bytes(),
            properties: properties.as_bytes(),
            append_crc: true,
        };
        let mut batch = Batch::new();
        batch.push(&queue, &draft).expect("encodable");
        let appended = self.store.append_settled(&mut batch).await.expect("appended");
        self.store.dispatched(appended.end).await.expect("dispatched");
        batch.placed()[0].phy
    }

    async fn round(&self) -> NextRound {
        let next = self.timer.round();
        self.store.dispatched(self.store.max_offset()).await.expect("dispatched");
        next
    }

    fn delivered_from(&self, topic: &str, queue: u32) -> Vec<(PhyOffset, String)> {
        let Some(queue) = self.store.find_queue(topic, QueueId::new(queue)) else { return Vec::new() };
        let mut entries = Vec::new();
        queue.entries(queue.min(), 10_000, &mut entries);
        let read = |at, size| {
            let record = self.store.read(at, size).expect("readable");
            let view = RecordView::parse(&record).expect("a record");
            String::from_utf8_lossy(view.body()).into_owned()
        };
        entries.iter().map(|entry| (entry.phy, read(entry.phy, entry.size))).collect()
    }

    fn delivered(&self) -> Vec<String> {
        self.delivered_from("orders", 1).into_iter().map(|(_, body)| body).collect()
    }
}

#[tokio::test]
async fn messages_are_delivered_when_due_in_the_order_of_their_level() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let first = broker.delayed("first", 2).await;
    broker.clock.advance(1_000);
    broker.delayed("second", 2).await;
    broker.delayed("short", 1).await;
    assert_eq!(broker.round().await, NextRound::At(fixture::NOW.plus(2_000)));
    assert!(broker.delivered().is_empty());
    broker.clock.advance(1_000);
    assert_eq!(broker.round().await, NextRound::At(fixture::NOW.plus(5_000)));
    broker.clock.advance(2_999);
    broker.round().await;
    assert_eq!(broker.delivered(), ["short"]);
    broker.clock.advance(1);
    assert_eq!(broker.round().await, NextRound::At(fixture::NOW.plus(6_000)));
    broker.clock.advance(1_000);
    assert_eq!(broker.round().await, NextRound::Idle);
    assert_eq!(broker.delivered(), ["short", "first", "second"]);

    let (at, _) = broker.delivered_from("orders", 1)[1];
    let record = broker.store.record_at(at).expect("readable");
    let view = RecordView::parse(&record).expect("a record");
    assert_eq!((view.flag(), view.reconsume_times(), view.born_at()), (7, 3, Millis::new(5)));
    assert_eq!(view.sys_flag().transaction(), TransactionFlag::Commit, "the system flag is kept");
    assert_eq!(view.prepared_offset(), first.max(PhyOffset::new(1)), "it says what it was made of");
    let properties = view.properties();
    assert_eq!((properties.delay_level(), properties.real_topic()), (Some(2), Some("orders")));
}

#[tokio::test]
async fn nothing_is_delivered_twice_or_lost_over_restarts() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut expected = Vec::new();
    for round in 0..6_u64 {
        let broker = open_at(dir.path(), fixture::NOW.plus(round * 10_000));
        broker.round().await;
        expected.extend((round > 0).then(|| format!("late {}", round - 1)));
        assert_eq!(broker.delivered(), expected, "round {round}");
        for number in 0..3 {
            broker.delayed(&format!("message {round}.{number}"), 1).await;
            expected.push(format!("message {round}.{number}"));
        }
        broker.delayed(&format!("late {round}"), 2).await;
        broker.clock.advance(1_000);
        broker.round().await;
        assert_eq!(broker.delivered(), expected, "round {round}");
        match round % 3 {
            0 => broker.store.close().expect("closed"),
            1 => broker.store.save_checkpoint().expect("a checkpoint"),
            _ => {} // a crash
        }
    }
}

#[tokio::test]
async fn a_crash_right_after_the_append_delivers_once() {
    for lose_copies in [0, 1, 2] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let broker = open(dir.path());
        broker.delayed("one", 1).await;
        broker.delayed("two", 1).await;
        broker.store.save_checkpoint().expect("a checkpoint");
        broker.clock.advance(1_000);
        broker.round().await;
        let copies = broker.delivered_from("orders", 1);
        drop(broker);
        if lose_copies > 0 {
            let path = dir.path().join("commitlog/00000000000000000000");
            let mut log = std::fs::OpenOptions::new().write(true).open(path).expect("the log file");
            log.seek(SeekFrom::Start(copies[2 - lose_copies].0.get())).expect("inside");
            log.write_all(&[0; 4096]).expect("written");
        }
        let broker = open_at(dir.path(), fixture::NOW.plus(1_000));
        assert_eq!(broker.delivered().len(), 2 - lose_copies);
        broker.round().await;
        assert_eq!(broker.delivered(), ["one", "two"], "{lose_copies} copies were lost");
    }
}

#[tokio::test]
async fn a_message_without_a_target_goes_to_dead_letters_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let mut properties = PropertiesBuf::new();
    properties.push(keys::DELAY, "1");
    broker.store_record(&TopicName::schedule(), QueueId::ZERO, "lost", &properties, 0).await;
    broker.delayed("found", 1).await;
    broker.clock.advance(1_000);
    broker.round().await;
    assert_eq!(broker.delivered(), ["found"]);
    assert_eq!(broker.delivered_from("%DLQ%SCHEDULE_CONSUMER", 0)[0].1, "lost");
    drop(broker);
    let broker = open_at(dir.path(), fixture::NOW.plus(1_000));
    assert_eq!(broker.round().await, NextRound::Idle);
    assert_eq!(broker.delivered_from("%DLQ%SCHEDULE_CONSUMER", 0).len(), 1);
}

#[tokio::test]
async fn a_clock_that_was_set_back_delays_nobody_for_long() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    broker.delayed("one", 1).await;
    broker.clock.set(Millis::new(fixture::NOW.get() - 10 * 3_600_000));
    broker.round().await;
    assert_eq!(broker.delivered(), ["one"]);
    // What comes after that waits as long as it should.
    broker.delayed("two", 1).await;
    broker.round().await;
    assert_eq!(broker.delivered(), ["one"]);
    broker.clock.advance(1_000);
    broker.round().await;
    assert_eq!(broker.delivered(), ["one", "two"]);
}

#[tokio::test]
async fn a_corrected_clock_delivers_nothing_early() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    broker.delayed("first", 18).await;
    broker.clock.set(Millis::new(fixture::NOW.get() - 5));
    broker.delayed("second", 18).await;
    assert_eq!(broker.round().await, NextRound::At(fixture::NOW.plus(2 * 3_600_000)));
    assert!(broker.delivered().is_empty());
}

/// Runs the task, which knows of a message that is due in two hours, until it has slept over `change`; gives what is
/// delivered.
async fn delivered_by_the_task(change: impl AsyncFnOnce(&Broker)) -> Vec<String> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let stop = CancellationToken::new();
    let task = tokio::spawn(Arc::clone(&broker.timer).run(stop.clone()));
    broker.delayed("far", 18).await;
    tokio::task::yield_now().await;
    change(&broker).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let delivered = broker.delivered();
    stop.cancel();
    task.await.expect("it ends");
    delivered
}

#[tokio::test(start_paused = true)]
async fn the_task_wakes_for_an_earlier_message() {
    let delivered = delivered_by_the_task(async |broker| {
        broker.delayed("near", 1).await;
        tokio::task::yield_now().await;
        broker.clock.advance(1_000);
    });
    assert_eq!(delivered.await, ["near"]);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_forward_is_noticed_by_the_sleeping_task() {
    let delivered = delivered_by_the_task(async |broker| {
        broker.clock.advance(3 * 3_600_000);
    });
    assert_eq!(delivered.await, ["far"]);
}

#[tokio::test]
async fn a_recalled_message_is_passed_over() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let handle = |key: &str, ms| {
        let handle = RecallHandle::encode("orders", "broker-a", fixture::NOW.plus(ms), key);
        RecallHandle::decode(&handle).expect("a handle")
    };
    for body in ["first", "kept", "last"] {
        broker.delayed(body, 2).await;
    }
    for _ in 0..2 {
        assert_eq!(broker.timer.recall(&handle("first", 5_000)).await.expect("it waits"), Some(()));
    }
    assert_eq!(broker.timer.recall(&handle("last", 5_000)).await.expect("it waits"), Some(()));
    for unknown in [handle("none", 5_000), handle("kept", 1_000)] {
        assert_eq!(broker.timer.recall(&unknown).await.expect("looked up"), None);
    }
    // Over a crash, with and without a checkpoint.
    drop(broker);
    let broker = open(dir.path());
    broker.store.save_checkpoint().expect("a checkpoint");
    drop(broker);
    let broker = open(dir.path());
    assert_eq!(broker.timer.recall(&handle("last", 5_000)).await.expect("it was"), Some(()));
    broker.clock.advance(5_000);
    assert_eq!(broker.round().await, NextRound::Idle);
    assert_eq!(broker.delivered(), ["kept"]);
    assert_eq!(broker.timer.recall(&handle("kept", 5_000)).await.expect("looked up"), None);
    // What was recalled holds no log and is forgotten.
    broker.store.save_checkpoint().expect("a checkpoint");
    let file = std::fs::read_to_string(dir.path().join("config/delayOffset.json")).expect("the file");
    assert!(file.contains("\"gantryRecalled\":{\n\t}") && file.contains("2:3"), "{file}");
    drop(broker);
    let broker = open_at(dir.path(), fixture::NOW.plus(10_000));
    broker.delayed("later", 2).await;
    broker.clock.advance(5_000);
    broker.round().await;
    assert_eq!(broker.delivered(), ["kept", "later"]);
}

/// Regression: a task without messages slept forever, and its hold kept the log from the start on.
#[tokio::test(start_paused = true)]
async fn log_files_go_while_nothing_waits() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let stop = CancellationToken::new();
    let task = tokio::spawn(Arc::clone(&broker.timer).run(stop.clone()));
    tokio::task::yield_now().await;
    let fill = vec![b'x'; 100_000];
    for _ in 0..25 {
        fixture::send_with(&broker.store, "fill", 0, (b"", &fill), 1).await;
    }
    broker.clock.advance(100 * 3_600_000);
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    broker.store.keep_house().expect("kept");
    assert!(broker.store.min_offset() >= PhyOffset::new(1 << 20), "the first file is gone");
    stop.cancel();
    task.await.expect("it ends");
}
