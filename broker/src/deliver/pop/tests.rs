//! Pops over a real store: leases, handles, retries, dead letters, order, resets, bounds and restarts.

use std::net::SocketAddr;
use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::receipt::PoppedFrom;
use gantry_proto::record::{PropertiesBuf, RecordDraft, RecordView, SysFlag, keys};
use tempfile::TempDir;

use super::record::{Counted, Delivery, Lease};
use super::*;
use crate::clock::{Clock, ManualClock};
use crate::config::GroupsConfig;
use crate::deliver::filter::Filter;
use crate::fixture::{self, topic_defaults};
use crate::groups::attributes;
use crate::groups::members::Members;
use crate::groups::offsets::OffsetTable;
use crate::store::LogRuns;

/// Refusals after which a message is dead.
pub(super) const RETRY_MAX: i32 = 2;

/// Popping over one directory, which can be opened again.
pub(super) struct Rig {
    pub dir: Option<TempDir>,
    pub clock: Arc<ManualClock>,
    pub limit: usize,
    pub open: Open,
}

pub(super) struct Open {
    pub store: Arc<Store>,
    pub offsets: Arc<Offsets>,
    pub pops: Arc<Pops>,
}

/// A message as a pop gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub body: String,
    pub reconsume_times: i32,
    pub count: u32,
    pub key: Key,
    pub offset: QueueOffset,
    pub lease: Lease,
}

fn open(dir: &Path, clock: &Arc<ManualClock>, limit: usize) -> Open {
    let config_dir = dir.join("config");
    let metrics = Arc::new(Metrics::default());
    let polls = Arc::new(Polls::new(100));
    let table = OffsetTable::open(&config_dir, clock.clone()).expect("readable");
    let (projection, unstarted) =
        load(&config_dir, Arc::clone(&polls), Arc::clone(&metrics)).expect("readable");
    let store = fixture::store(dir, clock.clone(), vec![table.projection(), Box::new(projection)]);
    let topics = Topics::open(&config_dir, topic_defaults(), clock.clone()).expect("readable");
    topics.ensure_internal(&TopicName::internal("T"), 2, 6).expect("a topic");
    let config = GroupsConfig { retry_max: RETRY_MAX, ..GroupsConfig::default() };
    let groups = Groups::open(&config_dir, config, clock.clone()).expect("readable");
    groups.get_or_create("g").expect("a group");
    let offsets =
        Arc::new(Offsets::new(&table, Arc::clone(&store), Arc::clone(&metrics), config.max_offsets));
    let topics = Arc::new(topics);
    let members = Members::new(clock.clone(), Arc::clone(&metrics), config.member_expiry, 10);
    let scaling = fixture::scaling((&store, &topics), &offsets, &polls, &Arc::new(members));
    let pops = unstarted.start(Neighbours {
        store: Arc::clone(&store),
        topics,
        groups: Arc::new(groups),
        offsets: Arc::clone(&offsets),
        scaling,
        polls,
        metrics,
        in_flight_max: limit,
        queues_max: 100,
    });
    Open { store, offsets, pops }
}

impl Rig {
    pub fn new() -> Self {
        Self::with_limit(1000)
    }

    pub fn with_limit(limit: usize) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let clock = fixture::clock();
        let open = open(dir.path(), &clock, limit);
        Self { dir: Some(dir), clock, limit, open }
    }

    /// As after a kill: the process's memory is gone, and what it wrote is there.
    pub fn kill(self) -> Self {
        let Self { dir, clock, limit, open: before } = self;
        drop(before);
        let dir = dir.expect("it has a directory");
        let open = open(dir.path(), &clock, limit);
        Self { dir: Some(dir), clock, limit, open }
    }

    pub fn send(&self, queue: u32, body: &str, tag: &str) {
        self.send_with(queue, body, &[(keys::TAGS, tag)]);
    }

    pub fn send_with(&self, queue: u32, body: &str, all: &[(&str, &str)]) {
        self.send_to(&TopicName::internal("T"), queue, body, all);
    }

    pub fn send_to(&self, topic: &TopicName, queue: u32, body: &str, all: &[(&str, &str)]) {
        let store = &self.open.store;
        let queue = store.queue(topic, QueueId::new(queue)).expect("a queue");
        let mut properties = PropertiesBuf::default();
        for (key, value) in all {
            properties.set(key, value);
        }
        let host = SocketAddr::from(([127, 0, 0, 1], 10911));
        let draft = RecordDraft {
            topic: topic.as_str(),
            queue_id: queue.id(),
            flag: 0,
            sys_flag: SysFlag::NONE,
            born_at: store.clock().now(),
            born_host: host,
            store_host: host,
            reconsume_times: 0,
            prepared_offset: PhyOffset::ZERO,
            body: body.as_bytes(),
            properties: properties.as_bytes(),
            append_crc: true,
        };
        let mut batch = Batch::new();
        batch.push(&queue, &draft).expect("an encodable record");
        store.append(&mut batch).expect("appended");
        store.drive();
    }

    pub fn request() -> PopRequest {
        PopRequest {
            group: GroupName::internal("g"),
            topic: TopicName::internal("T"),
            wanted: Wanted::All(2),
            messages_max: 32,
            invisible_ms: 60_000,
            start: Start::First,
            retry_start: Start::First,
            filter: Filter::All,
            others: None,
            delivery: Delivery::Concurrent,
            attempt: None,
        }
    }

    /// Pops, and has the answer as safe as it must be.
    pub fn pop(&self, request: &PopRequest) -> Vec<Given> {
        let given = self.pop_unsafely(request);
        self.open.store.drive();
        given
    }

    pub fn pop_unsafely(&self, request: &PopRequest) -> Vec<Given> {
        match self.open.pops.pop(request, LogRuns::default()).expect("popped") {
            Outcome::Found(found) => given(request, &found),
            Outcome::Nothing { .. } | Outcome::Again => Vec::new(),
        }
    }

    pub fn bodies(&self, request: &PopRequest) -> Vec<String> {
        let mut bodies: Vec<_> = self.pop(request).into_iter().map(|given| given.body).collect();
        bodies.sort();
        bodies
    }

    pub fn ack(&self, given: &Given) -> Result<(), Refused> {
        let ack = Ack { key: given.key.clone(), lease: given.lease, offsets: vec![given.offset] };
        let acked = self.open.pops.ack(&[ack]).expect("the log takes it");
        self.open.store.drive();
        match acked {
            Acked::Taken { refused, .. } => refused.first().map_or(Ok(()), |(_, why)| Err(*why)),
            Acked::Later(_) => panic!("everything is applied"),
        }
    }

    pub fn renew(&self, given: &Given, invisible_ms: u32, counted: Counted) -> Result<Given, Refused> {
        let (key, lease, offset) = (given.key.clone(), given.lease, given.offset);
        let renewal = Renewal { key, lease, offset, invisible_ms, counted };
        let renewed = self.open.pops.renew(&renewal).expect("the log takes it");
        self.open.store.drive();
        match renewed {
            Renewed::Taken { lease, .. } => Ok(Given { lease, ..given.clone() }),
            Renewed::Refused(why) => Err(why),
            Renewed::Later(_) => panic!("everything is applied"),
        }
    }

    /// Time goes by, and what is due then is done.
    pub fn wait(&self, ms: u64) {
        self.clock.advance(ms);
        self.open.pops.round();
    }

    pub fn committed(&self, queue: u32) -> Option<u64> {
        self.open.pops.round();
        self.open.offsets.get("g", "T", QueueId::new(queue)).map(QueueOffset::get)
    }

    /// Bodies of the messages in a topic's first queue.
    pub fn stored(&self, topic: &str) -> Vec<String> {
        let Some(queue) = self.open.store.find_queue(topic, QueueId::ZERO) else { return Vec::new() };
        let mut entries = Vec::new();
        queue.entries(queue.min(), 1000, &mut entries);
        let body = |entry| {
            let record = self.open.store.message(&queue, entry).expect("readable").expect("there");
            String::from_utf8(RecordView::parse(&record).expect("a record").body().to_vec()).expect("text")
        };
        entries.iter().map(body).collect()
    }
}

fn given(request: &PopRequest, found: &Found) -> Vec<Given> {
    let bytes: Vec<u8> = found.messages.iter().flatten().copied().collect();
    let mut rest = bytes.as_slice();
    let mut all = Vec::new();
    let retry = TopicName::pop_retry(&request.group, &request.topic).expect("a name");
    for queue in &found.queues {
        let topic = if queue.from == PoppedFrom::Topic { request.topic.clone() } else { retry.clone() };
        for (offset, count) in &queue.messages {
            let view = RecordView::parse(rest).expect("a record");
            assert_eq!((view.topic(), view.queue_offset()), (topic.as_str(), *offset));
            let lease = Lease { popped_at: found.popped_at, invisible_ms: request.invisible_ms };
            all.push(Given {
                body: String::from_utf8(view.body().to_vec()).expect("text"),
                reconsume_times: view.reconsume_times(),
                count: *count,
                key: Key { group: request.group.clone(), topic: topic.clone(), queue: queue.queue },
                offset: *offset,
                lease,
            });
            rest = &rest[view.total_size() as usize..];
        }
    }
    assert!(rest.is_empty(), "messages that no queue names");
    all
}

fn orderly(attempt: Option<&str>) -> PopRequest {
    PopRequest { delivery: Delivery::Orderly, attempt: attempt.map(Arc::from), ..Rig::request() }
}

#[test]
fn a_popped_message_is_nobody_elses_until_its_time_is_over() {
    let rig = Rig::new();
    for number in 0..4 {
        rig.send(number % 2, &number.to_string(), "t");
    }
    let request = Rig::request();
    let given = rig.pop(&request);
    assert_eq!(given.len(), 4);
    assert_eq!(rig.bodies(&request), [""; 0]);
    assert_eq!((rig.committed(0), rig.committed(1)), (Some(0), Some(0)));
    for message in given.iter().filter(|message| message.body != "2") {
        assert_eq!(rig.ack(message), Ok(()));
    }
    // The offset stops at what is not done.
    assert_eq!((rig.committed(0), rig.committed(1)), (Some(1), Some(2)));
    rig.wait(59_999);
    assert_eq!(rig.bodies(&request), [""; 0]);
    rig.wait(1);
    let again = rig.pop(&request);
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].body.as_str(), again[0].reconsume_times), ("2", 1));
    assert_eq!(again[0].key.topic.as_str(), "%RETRY%g_T");
    assert_eq!((rig.committed(0), rig.committed(1)), (Some(2), Some(2)));
    assert_eq!(rig.ack(&again[0]), Ok(()));
    assert_eq!(rig.open.pops.in_flight(), 0);
}

#[test]
fn handles_hold_over_a_kill() {
    let rig = Rig::new();
    for number in 0..3 {
        rig.send(0, &number.to_string(), "t");
    }
    let given = rig.pop(&Rig::request());
    assert_eq!(rig.ack(&given[0]), Ok(()));
    let longer = rig.renew(&given[2], 600_000, Counted::Yes).expect("it holds");
    for checkpoint in [false, true] {
        if checkpoint {
            rig.open.store.save_checkpoint().expect("saved");
        }
    }
    let rig = rig.kill();
    assert_eq!(rig.bodies(&Rig::request()), [""; 0]);
    // An ack that is repeated is a success; one under a lease that was replaced is not.
    assert_eq!(rig.ack(&given[0]), Ok(()));
    assert_eq!(rig.ack(&given[2]), Err(Refused::Superseded));
    assert_eq!(rig.ack(&given[1]), Ok(()));
    rig.wait(60_000);
    assert_eq!(rig.bodies(&Rig::request()), [""; 0]);
    assert_eq!(rig.ack(&longer), Ok(()));
    assert_eq!(rig.committed(0), Some(3));
}

#[test]
fn handles_that_do_not_count_are_refused() {
    let rig = Rig::new();
    rig.send(0, "one", "t");
    rig.send(0, "two", "t");
    let given = rig.pop(&PopRequest { messages_max: 1, ..Rig::request() });
    let [message] = given.as_slice() else { panic!("one message: {given:?}") };
    let other_group = Key { group: GroupName::internal("other"), ..message.key.clone() };
    let early = Lease { popped_at: message.lease.popped_at.minus(1), ..message.lease };
    assert_eq!(rig.ack(&Given { key: other_group, ..message.clone() }), Err(Refused::NotPopped));
    assert_eq!(rig.ack(&Given { lease: early, ..message.clone() }), Err(Refused::Superseded));
    assert_eq!(rig.ack(&Given { offset: QueueOffset::new(1), ..message.clone() }), Err(Refused::NotPopped));
    rig.wait(60_000);
    assert_eq!(rig.ack(message), Err(Refused::Over { since: message.lease.ends() }));
    assert_eq!(rig.renew(message, 1000, Counted::Yes), Err(Refused::Over { since: message.lease.ends() }));
    assert_eq!(rig.ack(&given[0]), Err(Refused::Over { since: message.lease.ends() }));
    let again = rig.pop(&PopRequest { messages_max: 1, ..Rig::request() });
    assert_eq!(rig.ack(&again[0]), Ok(()));
    assert_eq!(rig.renew(&again[0], 1000, Counted::Yes), Err(Refused::Done));
}

#[test]
fn a_message_that_was_put_off_has_one_handle() {
    let rig = Rig::new();
    rig.send(0, "one", "t");
    let given = rig.pop(&Rig::request());
    // At once: the old handle's time would go on for a minute.
    let now = rig.renew(&given[0], 0, Counted::No).expect("it holds");
    assert_eq!(rig.ack(&given[0]), Err(Refused::Superseded));
    rig.wait(0);
    for _ in 0..2 {
        assert_eq!(rig.ack(&given[0]).map_err(|_| ()), Err(()), "it is delivered again");
        assert_eq!(rig.ack(&now).map_err(|_| ()), Err(()), "it is delivered again");
    }
    let rig = rig.kill();
    assert_eq!(rig.ack(&given[0]).map_err(|_| ()), Err(()), "it is delivered again");
    let again = rig.pop(&Rig::request());
    // It was put off, which is no attempt.
    assert_eq!((again[0].body.as_str(), again[0].reconsume_times), ("one", 0));
}

#[test]
fn a_handle_counts_as_soon_as_it_is_out() {
    let rig = Rig::new();
    rig.send(0, "one", "t");
    let given = rig.pop(&orderly(Some("a")));
    let ack_of = |lease| Ack { key: given[0].key.clone(), lease, offsets: vec![given[0].offset] };
    let renewal = Renewal {
        key: given[0].key.clone(),
        lease: given[0].lease,
        offset: given[0].offset,
        invisible_ms: 1000,
        counted: Counted::Yes,
    };
    // The answers can be given, and acknowledged, before the log is applied.
    let Ok(Renewed::Taken { lease, .. }) = rig.open.pops.renew(&renewal) else { panic!("it holds") };
    assert!(matches!(rig.open.pops.ack(&[ack_of(lease)]), Ok(Acked::Later(_))));
    rig.open.store.drive();
    assert_eq!(rig.ack(&given[0]), Err(Refused::Superseded));
    rig.clock.advance(10);
    let again = rig.pop_unsafely(&orderly(Some("a")));
    assert!(matches!(rig.open.pops.ack(&[ack_of(again[0].lease)]), Ok(Acked::Later(_))));
    rig.open.store.drive();
    assert_eq!(rig.ack(&given[0]), Err(Refused::Superseded));
    assert_eq!(rig.ack(&again[0]), Ok(()));
}

#[test]
fn a_message_popped_too_often_is_dead() {
    let mut rig = Rig::new();
    rig.send(0, "bad", "t");
    for times in 0..=RETRY_MAX {
        let given = rig.pop(&Rig::request());
        assert_eq!(given.len(), 1, "delivery {times}");
        assert_eq!(given[0].reconsume_times, times);
        rig = rig.kill();
        rig.wait(60_000);
    }
    assert_eq!(rig.bodies(&Rig::request()), [""; 0]);
    assert_eq!(rig.stored("%DLQ%g"), ["bad"]);
    assert_eq!(rig.open.pops.in_flight(), 0);
}

#[test]
fn a_filter_passes_over_what_is_not_wanted() {
    let rig = Rig::new();
    for tag in ["a", "b", "a", "c"] {
        rig.send(0, tag, tag);
    }
    let request = PopRequest { filter: Filter::tags("b").expect("a filter"), ..Rig::request() };
    let given = rig.pop(&request);
    assert_eq!(given.len(), 1);
    assert_eq!(rig.committed(0), Some(1));
    assert_eq!(rig.ack(&given[0]), Ok(()));
    // What nobody wants does not look like a lag.
    assert_eq!(rig.committed(0), Some(4));
    assert_eq!(rig.bodies(&request), [""; 0]);
}

#[test]
fn a_new_group_begins_where_it_says() {
    let rig = Rig::new();
    for number in 0..3 {
        rig.send(0, &number.to_string(), "t");
    }
    let last = PopRequest { start: Start::Last, ..Rig::request() };
    assert_eq!(rig.bodies(&last), ["2"]);
    // It has looked at the other queue, too: what comes now is all new.
    let rig = rig.kill();
    rig.send(1, "first", "t");
    rig.send(1, "second", "t");
    assert_eq!(rig.bodies(&last), ["first", "second"]);
    let other = PopRequest { group: GroupName::internal("h"), ..Rig::request() };
    assert_eq!(rig.pop(&other).len(), 5);
}

#[test]
fn a_group_that_is_told_where_to_begin_begins_there() {
    let rig = Rig::new();
    rig.send(0, "0", "t");
    let last = Start::Told(attributes::Start::Last);
    let told = PopRequest { start: last, retry_start: last, ..Rig::request() };
    assert_eq!(rig.bodies(&told), [""; 0]);
    // Both queues are settled, and so is the retry topic.
    let rig = rig.kill();
    rig.send(0, "1", "t");
    rig.send(1, "2", "t");
    assert_eq!(rig.bodies(&told), ["1", "2"]);
    let first = Start::Told(attributes::Start::First);
    let other = PopRequest { group: GroupName::internal("h"), start: first, ..Rig::request() };
    assert_eq!(rig.pop(&other).len(), 3);
}

#[tokio::test]
async fn an_operators_reset_is_followed() {
    let rig = Rig::new();
    for number in 0..3 {
        rig.send(0, &number.to_string(), "t");
    }
    let given = rig.pop(&Rig::request());
    for message in &given {
        assert_eq!(rig.ack(message), Ok(()));
    }
    assert_eq!(rig.committed(0), Some(3));
    let key = Key { group: GroupName::internal("g"), topic: TopicName::internal("T"), queue: QueueId::ZERO };
    rig.open.offsets.reset(vec![(key, QueueOffset::new(1))]).await.expect("reset");
    assert_eq!(rig.bodies(&Rig::request()), ["1", "2"]);
    assert_eq!(rig.committed(0), Some(1));
    let rig = rig.kill();
    assert_eq!(rig.bodies(&Rig::request()), [""; 0]);
    rig.wait(60_000);
    assert_eq!(rig.bodies(&Rig::request()), ["1", "2"]);
}

#[test]
fn what_is_in_flight_is_bounded() {
    let rig = Rig::with_limit(3);
    for number in 0..5 {
        rig.send(0, &number.to_string(), "t");
    }
    let given = rig.pop(&Rig::request());
    assert_eq!(given.len(), 3);
    let refused = rig.open.pops.pop(&Rig::request(), LogRuns::default());
    assert!(matches!(refused, Err(PopError::Full { in_flight: 3, max: 3 })), "{refused:?}");
    assert_eq!(rig.ack(&given[0]), Ok(()));
    assert_eq!(rig.bodies(&Rig::request()), ["3"]);
}

#[test]
fn an_orderly_queue_waits_for_what_was_popped() {
    let rig = Rig::new();
    for number in 0..4 {
        rig.send(0, &number.to_string(), "t");
    }
    let two = |attempt| PopRequest { messages_max: 2, ..orderly(attempt) };
    let given = rig.pop(&two(Some("a")));
    assert_eq!(given.iter().map(|given| given.body.as_str()).collect::<Vec<_>>(), ["0", "1"]);
    assert_eq!(rig.bodies(&two(Some("b"))), [""; 0]);
    // The same request again gets the same messages, as if it were the first time.
    let given = rig.pop(&two(Some("a")));
    assert_eq!(
        given.iter().map(|given| (given.body.as_str(), given.count)).collect::<Vec<_>>(),
        [("0", 0), ("1", 0)]
    );
    assert_eq!(rig.ack(&given[1]), Ok(()));
    let rig = rig.kill();
    assert_eq!(rig.bodies(&two(Some("b"))), [""; 0]);
    rig.wait(60_000);
    // Only what is not acknowledged comes again, before the rest, with its count.
    let again = rig.pop(&PopRequest { messages_max: 1, ..orderly(Some("b")) });
    assert_eq!((again[0].body.as_str(), again[0].count, again[0].reconsume_times), ("0", 1, 0));
    assert_eq!(rig.bodies(&two(None)), [""; 0]);
    assert_eq!(rig.ack(&again[0]), Ok(()));
    assert_eq!(rig.bodies(&two(None)), ["2", "3"]);
    // Too often is too often.
    for _ in 0..RETRY_MAX {
        rig.wait(60_000);
        assert_eq!(rig.bodies(&two(None)), ["2", "3"]);
    }
    rig.wait(60_000);
    assert_eq!(rig.bodies(&two(None)), [""; 0]);
    let mut dead = rig.stored("%DLQ%g");
    dead.sort();
    assert_eq!(dead, ["2", "3"]);
}

#[test]
fn a_clock_that_is_set_back_hides_nothing() {
    let rig = Rig::new();
    rig.send(0, "one", "t");
    assert_eq!(rig.pop(&Rig::request()).len(), 1);
    rig.clock.set(Millis::new(fixture::NOW.get() - 24 * 3600 * 1000));
    let rig = rig.kill();
    rig.wait(60_000);
    assert_eq!(rig.bodies(&Rig::request()), ["one"]);
}

#[test]
fn a_clock_that_is_set_back_keeps_no_queue_waiting() {
    for attempt in [None, Some("a")] {
        let rig = Rig::new();
        rig.send(0, "one", "t");
        rig.send(0, "two", "t");
        assert_eq!(rig.bodies(&PopRequest { messages_max: 1, ..orderly(attempt) }), ["one"]);
        rig.clock.set(Millis::new(fixture::NOW.get() - 24 * 3600 * 1000));
        let rig = rig.kill();
        assert_eq!(rig.bodies(&orderly(Some("b"))), [""; 0]);
        rig.wait(60_000);
        assert_eq!(rig.bodies(&orderly(Some("b"))), ["one", "two"]);
    }
}

#[test]
fn an_ack_after_the_clock_was_ahead_is_told_what_happened_meanwhile() {
    for is_killed in [false, true] {
        let rig = Rig::new();
        rig.send(0, "one", "t");
        let given = rig.pop(&Rig::request());
        rig.wait(3_600_000);
        rig.clock.set(fixture::NOW.plus(1000));
        let rig = if is_killed {
            rig.open.store.save_checkpoint().expect("saved");
            rig.kill()
        } else {
            rig
        };
        assert_eq!(rig.ack(&given[0]), Err(Refused::Over { since: given[0].lease.ends() }));
        let again = rig.pop(&Rig::request());
        assert_eq!(again.len(), 1);
        assert_eq!(rig.ack(&again[0]), Ok(()));
        assert_eq!(rig.ack(&again[0]), Ok(()));
    }
}

#[tokio::test]
async fn what_is_deleted_is_forgotten() {
    let rig = Rig::new();
    rig.send(0, "one", "t");
    assert_eq!(rig.pop(&Rig::request()).len(), 1);
    assert_eq!(rig.open.pops.retry_topics_of(&TopicName::internal("T")).len(), 1);
    rig.open.pops.remove_topic(&TopicName::internal("T")).await.expect("kept");
    assert_eq!(rig.open.pops.in_flight(), 0);
    let other = PopRequest { group: GroupName::internal("h"), ..Rig::request() };
    assert_eq!(rig.pop(&other).len(), 1);
    let rig = rig.kill();
    assert_eq!(rig.open.pops.in_flight(), 1);
    rig.open.pops.remove_group(&GroupName::internal("h")).await.expect("kept");
    let rig = rig.kill();
    assert_eq!(rig.open.pops.in_flight(), 0);
}

#[test]
fn after_the_clock_is_set_back_what_was_due_is_told_again() {
    let rig = Rig::new();
    rig.send(0, "one", "t");
    let pops = &rig.open.pops;
    let now = rig.clock.now();
    assert_eq!(rig.pop(&orderly(None)).len(), 1);
    rig.wait(60_000);
    // It stays where it is, and whoever waits was told.
    assert_eq!(pops.table().next_due(), None);
    rig.clock.set(now.minus(600_000));
    pops.table().clamp_due(rig.clock.now());
    assert_eq!(rig.bodies(&orderly(None)), [""; 0]);
    assert_eq!(pops.table().next_due(), Some(rig.clock.now().plus(60_000)));
    rig.wait(60_000);
    assert_eq!(rig.bodies(&orderly(None)), ["one"]);
}
