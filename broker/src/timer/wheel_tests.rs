//! Timer messages over a real store: deliveries, recalls, restarts, crashes, and log files that go.

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
use crate::metrics::Metrics;
use crate::state;
use crate::store::disk::RealDisk;
use crate::store::retain::Retention;
use crate::store::{Batch, FlushPolicy, Projection, Store, StoreOptions};

mod edges;
mod peer;

const DAY_MS: u64 = 24 * 3600 * 1000;
const LIMIT_MS: u64 = 40 * DAY_MS;

struct Broker {
    store: Arc<Store>,
    wheel: Arc<Wheel>,
    levels: Arc<Timer>,
    clock: Arc<ManualClock>,
    metrics: Arc<Metrics>,
}

fn open_at(dir: &Path, now: Millis) -> Broker {
    open_with(dir, now, Retention::default())
}

fn open_with(dir: &Path, now: Millis, retention: Retention) -> Broker {
    let clock = Arc::new(ManualClock::new(now));
    let metrics = Arc::new(Metrics::default());
    let (projection, unstarted) =
        load_wheel(dir, Arc::clone(&clock) as Arc<dyn Clock>, Arc::clone(&metrics)).expect("readable");
    let (delays, timer) = levels(dir, &clock);
    let projections: Vec<Box<dyn Projection>> = vec![Box::new(projection), Box::new(delays)];
    let store = fixture::keeping_store(dir, Arc::clone(&clock), retention, projections);
    let wheel = unstarted.start(Arc::clone(&store)).expect("readable");
    let levels = timer.start(Arc::clone(&store));
    Broker { store, wheel, levels, clock, metrics }
}

fn levels(dir: &Path, clock: &Arc<ManualClock>) -> (TimerProjection, Unstarted) {
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    load(&dir.join("config"), Levels::default(), clock).expect("readable")
}

fn open(dir: &Path) -> Broker {
    open_at(dir, fixture::NOW)
}

impl Broker {
    /// Stores a message for queue 1 of `orders` that waits so long; its id is its body.
    async fn delayed(&self, body: &str, wait_ms: u64) -> PhyOffset {
        let mut properties = PropertiesBuf::new();
        properties.push(keys::UNIQ_KEY, body);
        let due = self.clock.now().plus(wait_ms);
        let (topic, queue) = retarget_timer(&mut properties, due, "orders", QueueId::new(1));
        self.store_record(&topic, queue, body.as_bytes(), &properties, SysFlag::NONE).await
    }

    async fn store_record(
        &self,
        topic: &TopicName,
        queue: QueueId,
        body: &[u8],
        properties: &PropertiesBuf,
        sys_flag: SysFlag,
    ) -> PhyOffset {
        let queue = self.store.queue(topic, queue).expect("a queue");
        let draft = RecordDraft {
            topic: topic.as_str(),
            queue_id: queue.id(),
            flag: 7,
            sys_flag,
            properties: properties.as_bytes(),
            ..state::draft(body, Millis::new(5))
        };
        let mut batch = Batch::new();
        batch.push(&queue, &draft).expect("encodable");
        let appended = self.store.append_settled(&mut batch).await.expect("appended");
        self.store.dispatched(appended.end).await.expect("dispatched");
        batch.placed()[0].phy
    }

    async fn round(&self) -> NextRound {
        self.levels.deliver_due();
        let next = self.wheel.round();
        self.store.dispatched(self.store.max_offset()).await.expect("dispatched");
        next
    }

    fn records(&self, topic: &str, queue: u32) -> Vec<PhyOffset> {
        let Some(queue) = self.store.find_queue(topic, QueueId::new(queue)) else { return Vec::new() };
        let mut entries = Vec::new();
        queue.entries(queue.min(), 10_000, &mut entries);
        entries.iter().map(|entry| entry.phy).collect()
    }

    fn delivered_to(&self, topic: &str, queue: u32) -> Vec<String> {
        let read = |at: PhyOffset| {
            let record = self.store.record_at(at).expect("readable");
            String::from_utf8_lossy(RecordView::parse(&record).expect("a record").body()).into_owned()
        };
        self.records(topic, queue).into_iter().map(read).collect()
    }

    fn delivered(&self) -> Vec<String> {
        self.delivered_to("orders", 1)
    }

    fn handle(&self, body: &str, wait_ms: u64) -> String {
        RecallHandle::encode("orders", "broker-a", self.clock.now().plus(wait_ms), body)
    }

    async fn recall(&self, handle: &str) -> Result<String, RecallError> {
        self.recall_of("orders", handle).await
    }

    async fn recall_of(&self, topic: &str, handle: &str) -> Result<String, RecallError> {
        let asked = Recall { topic, handle, broker: "broker-a" };
        recall::recall(&self.wheel, &self.levels, &asked).await
    }
}

#[tokio::test]
async fn messages_are_delivered_when_due() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let first = broker.delayed("first", 2_500).await;
    broker.delayed("far", 40 * DAY_MS).await;
    broker.delayed("second", 2_500).await;
    broker.delayed("short", 7).await;
    assert_eq!(broker.round().await, NextRound::At(fixture::NOW.plus(7)));
    assert!(broker.delivered().is_empty());
    broker.clock.advance(2_499);
    assert_eq!(broker.round().await, NextRound::At(fixture::NOW.plus(2_500)));
    assert_eq!(broker.delivered(), ["short"]);
    broker.clock.advance(1);
    assert!(matches!(broker.round().await, NextRound::At(at) if at > fixture::NOW.plus(39 * DAY_MS)));
    assert_eq!(broker.delivered(), ["short", "first", "second"]);
    assert_eq!((broker.wheel.pending(), broker.metrics.timers_pending.get()), (1, 1));
    assert_eq!((broker.metrics.timers_taken.get(), broker.metrics.timers_delivered.get()), (4, 3));
    // The short one was 2 492 ms late.
    assert_eq!(
        (broker.metrics.timer_lateness.at_most(50), broker.metrics.timer_lateness.at_most(100)),
        (0, 4095)
    );

    let record = broker.store.record_at(broker.records("orders", 1)[1]).expect("readable");
    let view = RecordView::parse(&record).expect("a record");
    assert_eq!((view.flag(), view.born_at()), (7, Millis::new(5)));
    assert_eq!(view.prepared_offset(), first.max(PhyOffset::new(1)), "it says what it was made of");
    let properties = view.properties();
    let due = fixture::NOW.plus(2_500).get();
    assert_eq!((properties.timer_out_ms(), properties.timer_dequeued_at()), (Some(due), Some(due)));
    assert_eq!(properties.get(keys::TIMER_ENQUEUE_MS), Some(fixture::NOW.to_string().as_str()));
    assert_eq!(properties.real_topic(), Some("orders"));

    broker.clock.advance(40 * DAY_MS - 2_500);
    broker.round().await;
    assert_eq!(broker.delivered().last().map(String::as_str), Some("far"));
    assert_eq!(broker.round().await, NextRound::Idle);
}

#[tokio::test]
async fn nothing_is_delivered_twice_lost_or_early_over_restarts() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut expected = Vec::new();
    for round in 0..9_u64 {
        let broker = open_at(dir.path(), fixture::NOW.plus(round * 10_000));
        broker.round().await;
        expected.extend((round > 0).then(|| format!("late {}", round - 1)));
        assert_eq!(broker.delivered(), expected, "round {round}");
        for number in 0..3 {
            broker.delayed(&format!("message {round}.{number}"), 1_000 + number).await;
            expected.push(format!("message {round}.{number}"));
        }
        broker.delayed(&format!("late {round}"), 5_000).await;
        if round % 2 == 0 {
            broker.store.save_checkpoint().expect("a checkpoint");
        }
        broker.clock.advance(1_002);
        broker.round().await;
        assert_eq!(broker.delivered(), expected, "round {round}");
        match round % 3 {
            0 => broker.store.close().expect("closed"),
            1 => {
                // Long enough ago for a save.
                broker.clock.advance(100_000);
                broker.store.save_checkpoint().expect("a checkpoint");
                if round == 7 {
                    std::fs::remove_file(dir.path().join("timers/slots")).expect("it was saved");
                }
            }
            _ => {} // a crash
        }
    }
}

#[tokio::test]
async fn a_crash_right_after_the_append_delivers_once() {
    for lose_copies in [0, 1, 2] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let broker = open(dir.path());
        broker.delayed("one", 1_000).await;
        broker.delayed("two", 1_000).await;
        broker.store.save_checkpoint().expect("a checkpoint");
        broker.clock.advance(1_000);
        broker.round().await;
        let copies = broker.records("orders", 1);
        drop(broker);
        if lose_copies > 0 {
            let path = dir.path().join("commitlog/00000000000000000000");
            let mut log = std::fs::OpenOptions::new().write(true).open(path).expect("the log file");
            log.seek(SeekFrom::Start(copies[2 - lose_copies].get())).expect("inside");
            log.write_all(&[0; 4096]).expect("written");
        }
        let broker = open_at(dir.path(), fixture::NOW.plus(1_000));
        assert_eq!(broker.delivered().len(), 2 - lose_copies);
        broker.round().await;
        assert_eq!(broker.delivered(), ["one", "two"], "{lose_copies} copies were lost");
        assert_eq!(broker.wheel.pending(), 0);
    }
}

#[tokio::test]
async fn a_log_that_was_cut_below_the_index_gives_back_what_was_done() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    broker.delayed("one", 1_000).await;
    broker.store.save_checkpoint().expect("a checkpoint");
    let checkpoint = dir.path().join("gantry.checkpoint");
    let before = std::fs::read(&checkpoint).expect("a checkpoint");
    broker.clock.advance(1_000);
    broker.round().await;
    let copy = broker.records("orders", 1)[0];
    broker.clock.advance(100_000);
    broker.store.save_checkpoint().expect("a checkpoint");
    drop(broker);
    // The power failed: the index was on the disk, the end of the log and the newer checkpoint were not.
    std::fs::write(&checkpoint, before).expect("written");
    let path = dir.path().join("commitlog/00000000000000000000");
    let mut log = std::fs::OpenOptions::new().write(true).open(path).expect("the log file");
    log.seek(SeekFrom::Start(copy.get())).expect("inside");
    log.write_all(&[0; 4096]).expect("written");
    let broker = open_at(dir.path(), fixture::NOW.plus(101_000));
    assert_eq!(broker.wheel.pending(), 1);
    broker.round().await;
    assert_eq!(broker.delivered(), ["one"]);
}

#[tokio::test]
async fn a_message_without_a_target_goes_to_dead_letters_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let mut properties = PropertiesBuf::new();
    properties.push(keys::TIMER_OUT_MS, &fixture::NOW.plus(1_000).to_string());
    broker.store_record(&TopicName::timer(), QueueId::ZERO, b"lost", &properties, SysFlag::NONE).await;
    broker.delayed("found", 1_000).await;
    broker.clock.advance(1_000);
    broker.round().await;
    assert_eq!(broker.delivered(), ["found"]);
    assert_eq!(broker.delivered_to("%DLQ%SCHEDULE_CONSUMER", 0), ["lost"]);
    drop(broker);
    let broker = open_at(dir.path(), fixture::NOW.plus(1_000));
    assert_eq!(broker.round().await, NextRound::Idle);
    assert_eq!(broker.delivered_to("%DLQ%SCHEDULE_CONSUMER", 0).len(), 1);
}

#[tokio::test]
async fn a_recalled_message_is_never_delivered() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    for (body, wait_ms) in [("kept", 1_000), ("near", 1_000), ("far", 3 * DAY_MS)] {
        broker.delayed(body, wait_ms).await;
    }
    broker.round().await;
    let (near, far) = (broker.handle("near", 1_000), broker.handle("far", 3 * DAY_MS));
    assert_eq!(broker.recall(&near).await.expect("it waits"), "near");
    assert_eq!(broker.recall(&far).await.expect("it waits"), "far");
    assert_eq!(broker.recall(&far).await.expect("it was recalled"), "far");
    assert_eq!(broker.wheel.pending(), 1);
    // Kept over a crash, and over the end of the slots' files.
    drop(broker);
    let broker = open_at(dir.path(), fixture::NOW);
    assert_eq!(broker.recall(&far).await.expect("it was recalled"), "far");
    broker.clock.advance(1_000);
    broker.round().await;
    assert_eq!(broker.delivered(), ["kept"]);
    broker.clock.advance(2 * DAY_MS);
    broker.store.save_checkpoint().expect("a checkpoint");
    assert_eq!(broker.recall(&far).await.expect("it was recalled"), "far");
    broker.clock.advance(DAY_MS);
    broker.round().await;
    assert_eq!(broker.delivered(), ["kept"]);
}

#[tokio::test]
async fn what_cannot_be_recalled_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    broker.delayed("one", 1_000).await;
    let handle = broker.handle("one", 1_000);
    let refused = |result: Result<String, RecallError>| result.expect_err("refused").to_string();
    assert!(refused(broker.recall("nonsense").await).contains("no recall handle"));
    let foreign = RecallHandle::encode("orders", "broker-b", fixture::NOW.plus(1_000), "one");
    assert!(refused(broker.recall(&foreign).await).contains("broker broker-b"));
    let other = broker.recall_of("payments", &handle).await;
    assert!(refused(other).contains("topic orders"));
    let far = broker.handle("one", LIMIT_MS + 2_000);
    assert!(refused(broker.recall(&far).await).contains("longest delay"));
    for made_up in [broker.handle("two", 1_000), broker.handle("one", 3_000)] {
        assert!(refused(broker.recall(&made_up).await).contains("waits for its time"));
    }
    broker.clock.advance(1_000);
    assert!(refused(broker.recall(&handle).await).contains("was due 0 ms ago"));
    broker.round().await;
    assert_eq!(broker.delivered(), ["one"]);
    // Delivered, and then the clock was set back: it is gone all the same.
    broker.clock.set(fixture::NOW);
    assert!(matches!(broker.recall(&handle).await, Err(RecallError::Unknown { .. })));
}

#[tokio::test]
async fn a_clock_that_is_set_loses_nothing_and_keeps_the_due_times() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    broker.delayed("one", 5_000).await;
    broker.delayed("far", 3 * DAY_MS).await;
    broker.clock.advance(DAY_MS);
    broker.round().await;
    assert_eq!(broker.delivered(), ["one"]);
    broker.clock.set(fixture::NOW.minus(10 * DAY_MS));
    broker.delayed("two", 5_000).await;
    broker.round().await;
    broker.clock.advance(4_999);
    broker.round().await;
    assert_eq!(broker.delivered(), ["one"]);
    broker.clock.advance(1);
    broker.round().await;
    assert_eq!(broker.delivered(), ["one", "two"]);
    broker.clock.set(fixture::NOW.plus(3 * DAY_MS - 1));
    broker.round().await;
    assert_eq!(broker.delivered(), ["one", "two"]);
    broker.clock.advance(1);
    broker.round().await;
    assert_eq!(broker.delivered(), ["one", "two", "far"]);
}

#[tokio::test]
async fn a_committed_message_and_apaches_records_are_understood() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let due = fixture::NOW.plus(10_414);
    let apache = |key: &str, more: &[(&str, &str)]| {
        let mut properties = PropertiesBuf::new();
        let out = (due.get() / 1000 * 1000).to_string();
        let deliver = due.to_string();
        let stored = [
            (keys::UNIQ_KEY, key),
            (keys::TIMER_DELIVER_MS, deliver.as_str()),
            (keys::TIMER_OUT_MS, out.as_str()),
            (keys::REAL_TOPIC, "orders"),
            (keys::REAL_QID, "1"),
        ];
        stored.iter().chain(more).for_each(|(name, value)| properties.push(name, value));
        properties
    };
    let timer = TopicName::timer();
    for body in ["kept", "recalled", "recalled, too", "delivered", "rolled"] {
        broker.store_record(&timer, QueueId::ZERO, body.as_bytes(), &apache(body, &[]), SysFlag::NONE).await;
    }
    let commit = SysFlag::NONE.with_transaction(TransactionFlag::Commit);
    broker.store_record(&timer, QueueId::ZERO, b"committed", &apache("committed", &[]), commit).await;
    for (body, recalled) in [("recalled", "orders+recalled"), ("recalled, too", "recalled, too")] {
        let recall = apache(body, &[(keys::TIMER_DEL_UNIQKEY, recalled)]);
        broker.store_record(&timer, QueueId::ZERO, b"0", &recall, SysFlag::NONE).await;
    }
    let copy = apache("delivered", &[(keys::TIMER_DEQUEUE_MS, "1")]);
    let orders = TopicName::internal("orders");
    broker.store_record(&orders, QueueId::new(1), b"delivered", &copy, SysFlag::NONE).await;
    let rolled = apache("rolled", &[(keys::TIMER_ROLL_TIMES, "1")]);
    broker.store_record(&timer, QueueId::ZERO, b"rolled", &rolled, SysFlag::NONE).await;
    // What only looks like a delivery is none.
    broker.store_record(&orders, QueueId::new(1), b"kept", &apache("kept", &[]), SysFlag::NONE).await;
    assert_eq!(broker.wheel.pending(), 3);
    broker.clock.advance(10_413);
    broker.round().await;
    assert_eq!(broker.delivered(), ["delivered", "kept"]);
    broker.clock.advance(1);
    broker.round().await;
    assert_eq!(broker.delivered(), ["delivered", "kept", "kept", "committed", "rolled"]);
}

#[tokio::test]
async fn the_store_that_apache_wrote_keeps_its_timers() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fixture::apache_store(dir.path());
    let due = Millis::new(1_795_255_174_414);
    let clock = Arc::new(ManualClock::new(due.minus(1)));
    let (projection, unstarted) =
        load_wheel(dir.path(), Arc::clone(&clock) as Arc<dyn Clock>, Arc::default()).expect("readable");
    let (delays, timer) = levels(dir.path(), &clock);
    let options = StoreOptions { reserve_bytes: 0, policy: FlushPolicy::Memory, ..StoreOptions::default() };
    let store = Store::open(
        dir.path(),
        &options,
        Arc::new(RealDisk),
        clock.clone(),
        vec![Box::new(projection), Box::new(delays)],
    );
    let store = Arc::new(store.expect("the store opens"));
    let wheel = unstarted.start(Arc::clone(&store)).expect("readable");
    let levels = timer.start(Arc::clone(&store));
    let broker = Broker { store, wheel, levels, clock, metrics: Arc::default() };
    let delivered = || [0, 1].map(|queue| broker.delivered_to("VecDelay", queue)).concat();
    let before = delivered();
    assert!(before.contains(&"timer-2s".to_owned()), "{before:?}");
    // What was delivered or recalled there is done; what was not waits on, to the millisecond.
    broker.wheel.round();
    assert_eq!(delivered(), before);
    broker.clock.advance(1);
    broker.wheel.round();
    let new: Vec<_> = delivered().into_iter().filter(|body| !before.contains(body)).collect();
    assert_eq!((new.as_slice(), broker.wheel.pending()), (&["timer-deliver-at".to_owned()][..], 0));
}

#[tokio::test]
async fn a_log_file_goes_although_timers_in_it_wait() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let keep_ms = 10_000;
    let retention = Retention { keep_ms, ..Retention::default() };
    let broker = open_with(dir.path(), fixture::NOW, retention);
    let mut bodies = Vec::new();
    for number in 0..300 {
        let body = format!("far {number}");
        broker.delayed(&body, DAY_MS + number).await;
        bodies.push(body);
    }
    broker.recall(&broker.handle("far 7", DAY_MS + 7)).await.expect("it waits");
    bodies.remove(7);
    let fill = vec![b'x'; 100_000];
    for _ in 0..25 {
        let plain = PropertiesBuf::new();
        broker.store_record(&TopicName::internal("fill"), QueueId::ZERO, &fill, &plain, SysFlag::NONE).await;
    }
    for _ in 0..20 {
        broker.clock.advance(keep_ms);
        broker.store.keep_house().expect("kept");
        broker.round().await;
        broker.store.save_checkpoint().expect("a checkpoint");
        broker.wheel.round();
    }
    assert!(broker.store.min_offset() >= PhyOffset::new(1 << 20), "the first file is gone");
    assert_eq!(broker.wheel.pending(), 299);
    // A rolled timer can be recalled as before, and is known after a crash.
    broker.recall(&broker.handle("far 8", DAY_MS + 8 - 200_000)).await.expect("it waits");
    bodies.remove(7);
    drop(broker);
    let broker = open_with(dir.path(), fixture::NOW.plus(DAY_MS - 1), retention);
    assert_eq!(broker.wheel.pending(), 298);
    broker.round().await;
    assert!(broker.delivered().is_empty());
    broker.clock.advance(1_000);
    broker.round().await;
    assert_eq!(broker.delivered(), bodies);
}

#[tokio::test]
async fn a_record_that_is_damaged_is_given_up_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let damaged = broker.delayed("damaged", 1_000).await;
    broker.delayed("sound", 1_000).await;
    broker.store.close().expect("closed");
    drop(broker);
    let path = dir.path().join("commitlog/00000000000000000000");
    let mut log = std::fs::OpenOptions::new().write(true).open(path).expect("the log file");
    log.seek(SeekFrom::Start(damaged.get() + 90)).expect("inside");
    log.write_all(b"?").expect("written");
    let broker = open_at(dir.path(), fixture::NOW.plus(1_000));
    broker.round().await;
    assert_eq!((broker.delivered().as_slice(), broker.wheel.pending()), (&["sound".to_owned()][..], 0));
}

#[tokio::test(start_paused = true)]
async fn the_task_wakes_for_an_earlier_message_and_for_a_clock_that_is_set_forward() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let stop = CancellationToken::new();
    let task = tokio::spawn(Arc::clone(&broker.wheel).run(stop.clone()));
    broker.delayed("far", DAY_MS).await;
    tokio::task::yield_now().await;
    broker.delayed("near", 1_000).await;
    tokio::task::yield_now().await;
    broker.clock.advance(1_000);
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(broker.delivered(), ["near"]);
    broker.clock.advance(DAY_MS);
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(broker.delivered(), ["near", "far"]);
    stop.cancel();
    task.await.expect("it ends");
}
