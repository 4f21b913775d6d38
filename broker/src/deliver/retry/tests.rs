//! Refused messages over a real store, with the timer that brings them back.

use std::path::Path;
use std::time::Duration;

use gantry_proto::ids::QueueOffset;
use gantry_proto::names::GroupName;
use gantry_proto::remoting::body::group::CustomizedRetryPolicy;

use super::*;
use crate::clock::{Clock, ManualClock};
use crate::config::GroupsConfig;
use crate::fixture;
use crate::groups::locks::QueueKey;
use crate::timer::Timer;

struct Broker {
    store: Arc<Store>,
    retries: Retries,
    timer: Arc<Timer>,
    clock: Arc<ManualClock>,
}

fn open(dir: &Path) -> Broker {
    let clock = fixture::clock();
    let shared = Arc::clone(&clock) as Arc<dyn Clock>;
    let config = dir.join("config");
    let (projection, unstarted) =
        timer::load(&config, Levels::default(), Arc::clone(&shared)).expect("readable");
    let store = fixture::delaying_store(
        dir,
        Arc::clone(&clock),
        Levels::default().delays_ms(),
        vec![Box::new(projection)],
    );
    let timer = unstarted.start(Arc::clone(&store));
    let topics = Topics::open(&config, fixture::topic_defaults(), Arc::clone(&shared)).expect("topics");
    let defaults = GroupsConfig { retry_max: 2, ..GroupsConfig::default() };
    let groups = Groups::open(&config, defaults, Arc::clone(&shared)).expect("groups");
    groups.get_or_create("cg").expect("a group");
    let retries = Retries {
        store: Arc::clone(&store),
        levels: Levels::default(),
        topics: Arc::new(topics),
        groups: Arc::new(groups),
        locks: Arc::new(Locks::new(shared, Duration::from_secs(60))),
    };
    Broker { store, retries, timer, clock }
}

impl Broker {
    fn newest(&self, topic: &str, queue: u32) -> Option<PhyOffset> {
        let queue = self.store.find_queue(topic, QueueId::new(queue))?;
        let last = queue.max().get().checked_sub(1)?;
        queue.entry(QueueOffset::new(last)).map(|entry| entry.phy)
    }

    async fn send_back(&self, at: PhyOffset, delay_level: i32) -> Result<SentBack, SendBackError> {
        let request = SendBack { group: "cg", at, delay_level, max_reconsume_times: None };
        let sent = self.retries.send_back(&request).await;
        self.store.dispatched(self.store.max_offset()).await.expect("dispatched");
        sent
    }

    /// A copy of a message in the retry topic that was refused so often.
    async fn refused(&self, at: PhyOffset, times: i32) -> PhyOffset {
        let record = self.store.record_at(at).expect("readable");
        let view = RecordView::parse(&record).expect("a record");
        let properties = copied_properties(&view, at);
        let mut batch = Batch::new();
        let target = (TopicName::internal("%RETRY%cg"), QueueId::ZERO);
        self.retries.push_to(&mut batch, (&view, &properties), target, times).expect("it fits");
        self.store.append_settled(&mut batch).await.expect("stored");
        self.store.dispatched(self.store.max_offset()).await.expect("dispatched");
        self.newest("%RETRY%cg", 0).expect("the copy")
    }

    async fn deliver_after(&self, ms: u64) {
        self.clock.advance(ms);
        self.timer.deliver_due();
        self.store.dispatched(self.store.max_offset()).await.expect("dispatched");
    }
}

#[tokio::test]
async fn a_refused_message_comes_back_later_and_later_and_dies_in_the_end() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    fixture::send(&broker.store, "orders", 0, 1).await;
    let first = broker.newest("orders", 0).expect("the message");

    assert_eq!(broker.send_back(first, 0).await.expect("taken back"), SentBack::Waiting);
    broker.deliver_after(9_999).await;
    assert_eq!(broker.newest("%RETRY%cg", 0), None);
    broker.deliver_after(1).await;
    let second = broker.newest("%RETRY%cg", 0).expect("level 3 waits 10 s");

    assert_eq!(broker.send_back(second, 0).await.expect("taken back"), SentBack::Waiting);
    broker.deliver_after(30_000).await;
    let third = broker.newest("%RETRY%cg", 0).expect("level 4 waits 30 s");
    assert_ne!(second, third);

    assert_eq!(broker.send_back(third, 0).await.expect("taken back"), SentBack::Dead);
    let dead = broker.newest("%DLQ%cg", 0).expect("a dead letter");
    let record = broker.store.record_at(dead).expect("readable");
    let view = RecordView::parse(&record).expect("a record");
    assert_eq!((view.body(), view.reconsume_times()), (&b"body"[..], 3));
    let properties = view.properties();
    assert_eq!(properties.retry_topic(), Some("orders"));
    let origin = OffsetMsgId::new(([127, 0, 0, 1], 10911).into(), first).to_string();
    assert_eq!(properties.origin_message_id(), Some(origin.as_str()));
    assert_eq!((properties.delay_level(), properties.waits_for_store()), (Some(0), false));
    let topic = broker.retries.topics.get("%DLQ%cg").expect("made");
    assert_eq!((topic.read_queues(), topic.config.perm), (1, 6));
}

#[tokio::test]
async fn the_consumer_may_choose_level_and_limit() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    fixture::send(&broker.store, "orders", 0, 1).await;
    let at = broker.newest("orders", 0).expect("the message");
    assert_eq!(broker.send_back(at, 1).await.expect("taken back"), SentBack::Waiting);
    broker.deliver_after(1_000).await;
    assert!(broker.newest("%RETRY%cg", 0).is_some());
    assert_eq!(broker.send_back(at, -1).await.expect("taken back"), SentBack::Dead);
    let request = SendBack { group: "cg", at, delay_level: 0, max_reconsume_times: Some(0) };
    assert_eq!(broker.retries.send_back(&request).await.expect("taken back"), SentBack::Dead);
}

#[tokio::test]
async fn what_cannot_be_taken_back_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    fixture::send(&broker.store, "orders", 0, 1).await;
    let at = broker.newest("orders", 0).expect("the message");
    let request = SendBack { group: "unknown", at, delay_level: 0, max_reconsume_times: None };
    let refused = broker.retries.send_back(&request).await;
    assert!(matches!(refused, Err(SendBackError::GroupNotExist(_))));
    assert!(matches!(broker.send_back(at + 1, 0).await, Err(SendBackError::Message(_))));
    assert!(matches!(broker.send_back(at + 100_000, 0).await, Err(SendBackError::Message(_))));
    fixture::send(&broker.store, "RMQ_SYS_TRANS_HALF_TOPIC", 0, 1).await;
    let half = broker.newest("RMQ_SYS_TRANS_HALF_TOPIC", 0).expect("a half");
    assert!(matches!(broker.send_back(half, 0).await, Err(SendBackError::NotDelivered { .. })));

    let mut config = broker.retries.groups.get("cg").expect("the group").config.clone();
    config.retry_queue_nums = 0;
    broker.retries.groups.declare(config).expect("declared");
    assert_eq!(broker.send_back(at, 0).await.expect("success"), SentBack::Unwanted);
}

#[tokio::test]
async fn a_direct_send_beyond_the_limit_or_of_an_ordered_group_is_dead() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let group = GroupName::internal("cg");
    let topic = TopicName::retry(&group);
    let dead = DirectRetry::Dead(TopicName::dead_letter(&group));
    let direct = |times, max| broker.retries.direct(&topic, times, max).expect("the group exists");
    assert_eq!(direct(2, None), DirectRetry::Retry);
    assert_eq!(direct(3, None), dead);
    assert_eq!(direct(3, Some(5)), DirectRetry::Retry);
    let key = QueueKey { topic: TopicName::internal("orders"), queue: QueueId::ZERO };
    broker.retries.locks.lock_batch(&group, "client", vec![key]);
    assert_eq!(direct(0, None), dead);
    let unknown = TopicName::retry(&GroupName::internal("unknown"));
    assert!(matches!(broker.retries.direct(&unknown, 0, None), Err(SendBackError::GroupNotExist(_))));
}

#[tokio::test]
async fn messages_for_other_members_go_to_the_retry_topic_at_once_and_uncounted() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    fixture::send_with(&broker.store, "orders", 0, (b"TAGS\x01B\x02", b"theirs"), 2).await;
    let last = broker.newest("orders", 0).expect("a message");
    let first = broker.store.queue(&TopicName::internal("orders"), QueueId::ZERO).expect("a queue");
    let first = first.entry(QueueOffset::ZERO).expect("an entry").phy;
    let gone = PhyOffset::new(1 << 40);
    broker.retries.hand_over("cg", &[first, gone, last]).await.expect("kept");
    broker.store.dispatched(broker.store.max_offset()).await.expect("dispatched");
    let retry = broker.store.find_queue("%RETRY%cg", QueueId::ZERO).expect("the retry queue");
    assert_eq!(retry.max().get(), 2);
    let record = broker.store.record_at(broker.newest("%RETRY%cg", 0).expect("a copy")).expect("a record");
    let copy = RecordView::parse(&record).expect("a record");
    assert_eq!((copy.body(), copy.reconsume_times()), (&b"theirs"[..], 0));
    assert_eq!((copy.properties().retry_topic(), copy.properties().tags()), (Some("orders"), Some("B")));
    let error = broker.retries.hand_over("nobody", &[first]).await.expect_err("no such group");
    assert!(matches!(error, SendBackError::GroupNotExist(_)));
}

#[tokio::test]
async fn a_schedule_of_the_group_says_when_refused_messages_come_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let declare = |next: &[i64], retry_max_times| {
        let mut config = broker.retries.groups.get("cg").expect("the group").config.clone();
        config.group_retry_policy.customized_retry_policy =
            Some(CustomizedRetryPolicy { next: next.to_vec() });
        config.retry_max_times = retry_max_times;
        broker.retries.groups.declare(config)
    };
    declare(&[1_500, 30_000, 0], 4).expect("declared");
    fixture::send(&broker.store, "orders", 0, 1).await;
    let first = broker.newest("orders", 0).expect("the message");
    let now = broker.clock.now();
    assert_eq!(broker.send_back(first, 0).await.expect("taken back"), SentBack::Waiting);
    let waiting = broker.newest("rmq_sys_wheel_timer", 0).expect("no level lasts 1.5 s: a timer");
    let record = broker.store.record_at(waiting).expect("readable");
    let view = RecordView::parse(&record).expect("a record");
    assert_eq!(timer::due_if_waiting(&view, &Levels::default()), Some(now.plus(1_500)));
    assert_eq!((view.properties().real_topic(), view.reconsume_times()), (Some("%RETRY%cg"), 1));

    // What a consumer gets then counts one refusal; the next delay is that of a level.
    assert_eq!(
        broker.send_back(waiting, 0).await.err().map(|error| error.to_string()),
        Some(SendBackError::NotDelivered { at: waiting }.to_string())
    );
    let refused = |times| broker.refused(first, times);
    let second = refused(1).await;
    broker.send_back(second, 0).await.expect("taken back");
    let level = broker.newest("SCHEDULE_TOPIC_XXXX", 3).expect("level 4 lasts 30 s");
    assert!(level > second);
    // The last delay is that of all further retries; 0 is at once.
    for times in [2, 3] {
        let at = refused(times).await;
        broker.send_back(at, 0).await.expect("taken back");
        assert!(broker.newest("%RETRY%cg", 0).expect("at once") > at);
    }
    let last = refused(4).await;
    assert_eq!(broker.send_back(last, 0).await.expect("taken back"), SentBack::Dead);
    // The consumer's own level counts.
    broker.send_back(first, 2).await.expect("taken back");
    assert!(broker.newest("SCHEDULE_TOPIC_XXXX", 1).is_some());

    let error = declare(&[], 4).expect_err("no delay at all");
    assert!(error.to_string().contains("group cg: the retry policy lists 0 delays"));
}
