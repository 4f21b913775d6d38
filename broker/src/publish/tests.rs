//! Sends over a real store: what counts as sent before.

use std::time::Duration;

use gantry_proto::names::GroupName;
use gantry_proto::record::{PropertiesBuf, TransactionFlag};
use tempfile::TempDir;

use super::*;
use crate::clock::ManualClock;
use crate::config::{FlowConfig, GroupsConfig, RateLimits, TimerConfig};
use crate::fixture;
use crate::groups::Groups;
use crate::groups::locks::Locks;
use crate::groups::members::Members;
use crate::transaction::{self, EndRequest, EndSource, Ended, Neighbours, Outcome, Resolution, Rules};

pub(super) struct Edge {
    pub store: Arc<Store>,
    pub clock: Arc<ManualClock>,
    pub topics: Arc<Topics>,
    transactions: Arc<Transactions>,
    pub publisher: Publisher,
    drain: Arc<Drain>,
    flow: Arc<Flow>,
    _dir: TempDir,
}

impl Edge {
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let config = dir.path().join("config");
        let clock = fixture::clock();
        let (projection, unstarted) =
            transaction::load(&config, Rules::default(), Arc::default()).expect("no snapshot");
        let store = fixture::store(dir.path(), clock.clone(), vec![Box::new(projection)]);
        let levels = Levels::new(&TimerConfig::default());
        let members = Members::new(clock.clone(), Arc::default(), Duration::from_secs(120), 100);
        let neighbours = Neighbours {
            store: Arc::clone(&store),
            levels: levels.clone(),
            members: Arc::new(members),
            note_progress: Box::new(|_| ()),
            done_below: None,
        };
        let transactions = unstarted.start(neighbours).expect("started");
        let topics = Topics::open(&config, fixture::topic_defaults(), clock.clone()).expect("no topics");
        let topics = Arc::new(topics);
        topics.ensure_internal(&TopicName::internal("T"), 1, 6).expect("a topic");
        let groups = Groups::open(&config, GroupsConfig::default(), clock.clone()).expect("no groups");
        let retries = Retries {
            store: Arc::clone(&store),
            levels: levels.clone(),
            topics: Arc::clone(&topics),
            groups: Arc::new(groups),
            locks: Arc::new(Locks::new(clock.clone(), Duration::from_secs(60))),
        };
        let drain = Drain::open(&config, "broker-a", clock.clone()).expect("no drain");
        let drain = Arc::new(drain);
        let flow = Arc::new(Flow::new(FlowConfig::default(), Arc::clone(&clock) as _));
        let publisher = Publisher::new(
            Arc::clone(&store),
            clock.clone(),
            Arc::clone(&topics),
            Arc::clone(&transactions),
            Arc::new(retries),
            Arc::clone(&drain),
            Arc::clone(&flow),
            levels,
            1 << 20,
            ("DefaultCluster".to_owned(), Duration::from_secs(60)),
            [127, 0, 0, 1].into(),
        );
        store.set_targets(Arc::clone(&topics) as _);
        Self { store, clock, topics, transactions, publisher, drain, flow, _dir: dir }
    }

    async fn send(&self, uniq_key: &str, body: &str, is_half: bool) -> Sent {
        self.send_with(0, uniq_key, body, is_half).await
    }

    pub async fn send_to(&self, queue_id: i32, uniq_key: &str, is_half: bool) -> Sent {
        self.send_with(queue_id, uniq_key, "body", is_half).await
    }

    async fn send_with(&self, queue_id: i32, uniq_key: &str, body: &str, is_half: bool) -> Sent {
        let mut properties = PropertiesBuf::new();
        properties.push(keys::UNIQ_KEY, uniq_key);
        properties.push(keys::PGROUP, "producers");
        if is_half {
            properties.push(keys::TRAN_MSG, "true");
        }
        let incoming = Incoming { queue_id, ..incoming(properties.view(), body.as_bytes()) };
        let sent = self.publisher.send(&incoming, &mut Scratch::default()).expect("sent");
        self.dispatch(sent.end).await;
        sent
    }

    pub async fn end(&self, half: &Sent, resolution: Resolution) -> Ended {
        let request = EndRequest {
            group: GroupName::internal("producers"),
            half_queue_offset: half.queue_offset,
            half_phy: half.phy,
            resolution,
            source: EndSource::Producer,
        };
        let ended = self.transactions.end(&request).await.expect("ended");
        self.dispatch(self.store.max_offset()).await;
        ended
    }

    async fn dispatch(&self, end: PhyOffset) {
        self.store.drive();
        self.store.dispatched(end).await.expect("dispatched");
    }

    fn visible(&self) -> u64 {
        self.store.find_queue("T", QueueId::ZERO).map_or(0, |queue| queue.max().get())
    }
}

pub(super) fn incoming<'a>(properties: Properties<'a>, body: &'a [u8]) -> Incoming<'a> {
    Incoming {
        producers: "producers",
        topic: "T",
        default_topic: "TBW102",
        default_queues: 4,
        queue_id: 0,
        sys_flag: SysFlag::NONE.with_transaction(TransactionFlag::None),
        flag: 0,
        born_at: fixture::NOW,
        born_host: SocketAddr::from(([127, 0, 0, 1], 5)),
        store_host: SocketAddr::from(([127, 0, 0, 1], 10911)),
        properties,
        body,
        reconsume_times: 0,
        reconsume_max: None,
    }
}

#[tokio::test]
async fn a_message_sent_again_is_answered_with_the_first_one() {
    let edge = Edge::new();
    let first = edge.send("one", "body", false).await;
    assert_eq!(edge.send("one", "body", false).await.phy, first.phy);
    assert_ne!(edge.send("one", "other", false).await.phy, first.phy);
    assert_eq!(edge.visible(), 2);
}

#[tokio::test]
async fn a_half_sent_again_after_its_commit_stays_one_message() {
    let edge = Edge::new();
    let first = edge.send("one", "body", true).await;
    assert_eq!(edge.send("one", "body", true).await.phy, first.phy);
    assert_eq!(edge.end(&first, Resolution::Commit).await, Ended::Now(Outcome::Committed));
    assert_eq!(edge.send("one", "body", true).await.phy, first.phy);
    let late = edge.end(&first, Resolution::Commit).await;
    assert_eq!(late, Ended::Before(Some(Outcome::Committed)));
    assert_eq!((edge.visible(), edge.transactions.open_count()), (1, 0));
}

#[tokio::test]
async fn a_half_sent_again_after_its_rollback_is_a_new_transaction() {
    let edge = Edge::new();
    let first = edge.send("one", "body", true).await;
    assert_eq!(edge.end(&first, Resolution::Rollback).await, Ended::Now(Outcome::RolledBack));
    let second = edge.send("one", "body", true).await;
    assert_ne!(second.phy, first.phy);
    assert_eq!(edge.end(&second, Resolution::Commit).await, Ended::Now(Outcome::Committed));
    assert_eq!(edge.send("one", "body", true).await.phy, second.phy);
    assert_eq!((edge.visible(), edge.transactions.open_count()), (1, 0));
}

#[tokio::test]
async fn a_half_and_a_plain_message_with_one_id_are_two() {
    let edge = Edge::new();
    let half = edge.send("one", "body", true).await;
    edge.send("one", "body", false).await;
    assert_eq!(edge.visible(), 1);
    assert_eq!(edge.end(&half, Resolution::Rollback).await, Ended::Now(Outcome::RolledBack));
    edge.send("two", "body", false).await;
    edge.send("two", "body", true).await;
    assert_eq!((edge.visible(), edge.transactions.open_count()), (2, 1));
}

/// Items of a batch, one for each id.
fn items(ids: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for id in ids {
        let mut properties = PropertiesBuf::new();
        properties.push(keys::UNIQ_KEY, id);
        let properties = properties.as_bytes();
        let total = 4 + 4 + 4 + 4 + 4 + id.len() + 2 + properties.len();
        for field in [total, 0, 0, 0, id.len()] {
            bytes.extend_from_slice(&u32::try_from(field).expect("small").to_be_bytes());
        }
        bytes.extend_from_slice(id.as_bytes());
        bytes.extend_from_slice(&u16::try_from(properties.len()).expect("small").to_be_bytes());
        bytes.extend_from_slice(properties);
    }
    bytes
}

#[tokio::test]
async fn a_batch_stores_only_what_is_new() {
    let edge = Edge::new();
    let mut scratch = Scratch::default();
    for (ids, stored) in [(&["a", "b"][..], 2), (&["a", "b"], 2), (&["b", "c", "d"], 4)] {
        let body = items(ids);
        let batch = incoming(Properties::new(b""), &body);
        edge.publisher.send_batch(&batch, &mut scratch).expect("sent");
        let sent = &scratch.sent;
        edge.dispatch(sent.iter().map(|sent| sent.end).max().expect("some")).await;
        assert_eq!((sent.len(), edge.visible()), (ids.len(), stored));
        assert_eq!(scratch.uniq_key, ids.join(","));
    }
    let sent = scratch.sent.iter().map(|sent| sent.queue_offset.get());
    assert_eq!(sent.collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn one_batch_sent_on_many_connections_at_once_is_stored_once() {
    let edge = Edge::new();
    for round in 0..50 {
        let ids: Vec<_> = (0..20).map(|number| format!("{round}-{number}")).collect();
        let body = items(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        std::thread::scope(|threads| {
            for _ in 0..3 {
                threads.spawn(|| {
                    let batch = incoming(Properties::new(b""), &body);
                    edge.publisher.send_batch(&batch, &mut Scratch::default()).expect("sent");
                    edge.store.drive();
                });
            }
        });
        edge.store.drive();
        assert_eq!(edge.visible(), (round + 1) * 20);
    }
}

/// Regression: a message that waits was taken although what is noted in it later did not fit: then it came early, without
/// those notes, or its transaction could not be committed.
#[tokio::test]
async fn a_message_that_waits_leaves_room_for_what_is_noted_in_it() {
    let edge = Edge::new();
    let send = |key: &'static str, fill: usize, is_half: bool| {
        let mut properties = PropertiesBuf::new();
        properties.push(keys::UNIQ_KEY, key);
        properties.push(keys::PGROUP, "producers");
        properties.push(keys::TIMER_DELAY_SEC, "60");
        if is_half {
            properties.push(keys::TRAN_MSG, "true");
        }
        properties.push("fill", &"x".repeat(fill));
        edge.publisher.send(&incoming(properties.view(), b"body"), &mut Scratch::default())
    };
    for is_half in [false, true] {
        let full = (32_000..32_767).find(|fill| send("full", *fill, is_half).is_err()).expect("a limit");
        assert!(matches!(send("full", full, is_half), Err(SendError::Encode(_))));
        let key = if is_half { "half" } else { "one" };
        let sent = send(key, full - 1, is_half).expect("sent");
        edge.dispatch(sent.end).await;
        if is_half {
            assert_eq!(edge.end(&sent, Resolution::Commit).await, Ended::Now(Outcome::Committed));
        }
    }
    let waiting = edge.store.find_queue("rmq_sys_wheel_timer", QueueId::ZERO).expect("messages wait");
    let last = waiting.entry(waiting.max().back(1)).expect("an entry");
    let record = edge.store.record_at(last.phy).expect("readable");
    let view = gantry_proto::record::RecordView::parse(&record).expect("a record");
    let mut properties = PropertiesBuf::copy_of(view.properties().without_crc(), 0);
    for (name, value) in [
        (keys::TIMER_ENQUEUE_MS, "1700000000000"),
        (keys::TIMER_DEQUEUE_MS, "1700000000000"),
        (keys::TIMER_ROLL_TIMES, "4294967295"),
    ] {
        properties.push(name, value);
    }
    let draft = gantry_proto::record::RecordDraft::from_view(&view, properties.as_bytes());
    assert!(Batch::new().push(&waiting, &draft).is_ok(), "the delivered form fits");
}

/// What consumers send back, ends of transactions and resends of what is stored are still taken.
#[tokio::test]
async fn a_broker_that_goes_refuses_what_is_new() {
    let edge = Edge::new();
    let first = edge.send("one", "body", false).await;
    let half = edge.send("half", "body", true).await;
    edge.drain.begin(Duration::ZERO).expect("begun");
    let send = |topic: &'static str, key: &str, is_half: bool| {
        let mut properties = PropertiesBuf::new();
        properties.push(keys::UNIQ_KEY, key);
        properties.push(keys::PGROUP, "producers");
        if is_half {
            properties.push(keys::TRAN_MSG, "true");
        }
        let incoming = Incoming { topic, ..incoming(properties.view(), b"body") };
        edge.publisher.send(&incoming, &mut Scratch::default())
    };
    for is_half in [false, true] {
        assert!(matches!(send("T", "two", is_half), Err(SendError::Leaving(_))));
    }
    assert_eq!(send("T", "one", false).expect("answered").phy, first.phy);
    assert_eq!(edge.end(&half, Resolution::Commit).await, Ended::Now(Outcome::Committed));
    let retried = send("%RETRY%G", "three", false);
    assert!(matches!(retried, Ok(_) | Err(SendError::Retry(SendBackError::GroupNotExist(_)))), "{retried:?}");

    let batch = |edge: &Edge| {
        let mut body = Vec::new();
        let properties = Properties::new(b"UNIQ_KEY\x01batched\x02");
        let item = gantry_proto::record::BatchItem { flag: 0, body: b"b", properties };
        item.encode_into(&mut body).expect("encodable");
        let incoming = incoming(Properties::new(b""), &body);
        let mut scratch = Scratch::default();
        edge.publisher.send_batch(&incoming, &mut scratch).map(|()| scratch.sent[0].phy)
    };
    assert!(matches!(batch(&edge), Err(SendError::Leaving(_))));
    edge.drain.resume().expect("resumed");
    let stored = batch(&edge).expect("sent");
    edge.store.drive();
    edge.drain.begin(Duration::ZERO).expect("begun");
    assert_eq!(batch(&edge).expect("answered"), stored, "a batch whose answer was lost");
    edge.drain.resume().expect("resumed");
    send("T", "two", false).expect("sent");
}

#[tokio::test]
async fn a_rate_lets_its_burst_pass_and_then_as_much_as_time_gives() {
    let edge = Edge::new();
    let limits = RateLimits { messages: 10, bytes: 0, burst_ms: 300 };
    edge.flow.set_defaults(FlowConfig { topic: limits, ..FlowConfig::default() });
    let send = |key: &str| {
        let mut properties = PropertiesBuf::new();
        properties.push(keys::UNIQ_KEY, key);
        let incoming = incoming(properties.view(), b"body");
        edge.publisher.send(&incoming, &mut Scratch::default()).map(|_| ())
    };
    for key in ["1", "2", "3"] {
        send(key).expect("the burst");
    }
    // What was refused is not stored, and costs nothing.
    for _ in 0..3 {
        let limited = match send("4") {
            Err(SendError::Limited(limited)) => limited,
            other => panic!("it is limited, not {other:?}"),
        };
        assert_eq!((limited.name.as_str(), limited.limit, limited.retry_ms), ("T", 10, 100));
    }
    edge.clock.advance(99);
    assert!(send("4").is_err());
    edge.clock.advance(1);
    send("4").expect("there is one more");
    assert!(send("5").is_err());
}
