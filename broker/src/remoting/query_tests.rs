use std::net::SocketAddr;

use gantry_proto::names::TopicName;
use gantry_proto::record::{PropertiesBuf, RecordDraft, SysFlag, keys};
use gantry_proto::remoting::header::ExtWrite;
use tempfile::TempDir;

use super::*;
use crate::clock::ManualClock;
use crate::fixture::{self, NOW, clock, store};
use crate::routes::fixture::{FixedTopics, topics};
use crate::store::{Batch, Placed};

const FRAME: usize = 16 << 20;

struct World {
    store: Arc<Store>,
    clock: Arc<ManualClock>,
    topics: FixedTopics,
    _dir: TempDir,
}

fn world() -> World {
    let dir = TempDir::new().unwrap();
    let clock = clock();
    World {
        store: store(dir.path(), Arc::clone(&clock), Vec::new()),
        clock,
        topics: topics(&["t"]),
        _dir: dir,
    }
}

impl World {
    /// Stores one message of `t` in queue 1.
    async fn send(&self, properties: &[(&str, &str)], body: &[u8]) -> Placed {
        let queue = self.store.queue(&TopicName::internal("t"), QueueId::new(1)).unwrap();
        let host = SocketAddr::from(([127, 0, 0, 1], 10911));
        let mut text = PropertiesBuf::new();
        for (name, value) in properties {
            text.push(name, value);
        }
        let draft = RecordDraft {
            topic: "t",
            queue_id: queue.id(),
            flag: 0,
            sys_flag: SysFlag::NONE,
            born_at: NOW,
            born_host: host,
            store_host: host,
            reconsume_times: 0,
            prepared_offset: PhyOffset::ZERO,
            body,
            properties: &text.finish(),
            append_crc: true,
        };
        let mut batch = Batch::new();
        batch.push(&queue, &draft).unwrap();
        let appended = self.store.append_settled(&mut batch).await.unwrap();
        self.store.dispatched(appended.end).await.unwrap();
        batch.placed()[0]
    }

    fn view(&self, offset: i64) -> Reply {
        let header = ViewMessageHeader { offset: Some(offset), ..ViewMessageHeader::default() };
        view_message(&self.store, &request(&header))
    }

    fn query(&self, header: &QueryMessageHeader) -> Result<Vec<String>, i32> {
        self.query_in(FRAME, header)
    }

    /// Bodies of the answer, or its code.
    fn query_in(&self, frame_bytes: usize, header: &QueryMessageHeader) -> Result<Vec<String>, i32> {
        let reply = query_message(&self.store, frame_bytes, &request(header));
        if reply.code != 0 {
            assert!(reply.remark.is_some());
            return Err(reply.code);
        }
        assert!(reply.ext.get("indexLastUpdatePhyoffset").is_some());
        let mut rest = reply.body.as_slice();
        let mut bodies = Vec::new();
        while !rest.is_empty() {
            let record = RecordView::parse(rest).unwrap();
            bodies.push(String::from_utf8(record.body().to_vec()).unwrap());
            rest = &rest[record.total_size() as usize..];
        }
        Ok(bodies)
    }

    fn search(&self, queue_id: i32, timestamp: i64, boundary: Option<&str>) -> i64 {
        let header = SearchOffsetHeader {
            topic: "t".to_owned(),
            queue_id,
            timestamp,
            boundary_type: boundary.map(str::to_owned),
            ..SearchOffsetHeader::default()
        };
        number(&search_offset(&self.store, &self.topics, &request(&header)), "offset")
    }
}

fn request(header: &impl ExtWrite) -> OwnedCommand {
    OwnedCommand::request(0, header)
}

fn number(reply: &Reply, field: &str) -> i64 {
    assert_eq!(reply.code, 0, "{:?}", reply.remark);
    reply.ext.get(field).unwrap().parse().unwrap()
}

fn by_key(key: &str) -> QueryMessageHeader {
    QueryMessageHeader {
        topic: "t".to_owned(),
        key: key.to_owned(),
        max_num: 10,
        begin_timestamp: 0,
        end_timestamp: i64::MAX,
        ..QueryMessageHeader::default()
    }
}

#[tokio::test]
async fn a_message_is_seen_at_its_place_and_nowhere_else() {
    let world = world();
    world.send(&[], b"first").await;
    let placed = world.send(&[], b"second").await;
    let seen = world.view(placed.phy.to_wire());
    assert_eq!(RecordView::parse(&seen.body).unwrap().body(), b"second");
    assert_eq!(seen.body.len(), placed.size as usize);
    let end = world.store.max_offset().to_wire();
    for wrong in [placed.phy.to_wire() + 1, 7, end, end + 100, 1 << 40, -1, i64::MIN, i64::MAX] {
        let refused = world.view(wrong);
        assert_eq!(refused.code, 1, "{wrong}");
        assert!(refused.remark.unwrap().contains("check the message id"));
    }
    assert_eq!(view_message(&world.store, &request(&())).code, 1);
}

#[tokio::test]
async fn messages_are_found_by_each_of_their_keys() {
    let world = world();
    world.send(&[(keys::UNIQ_KEY, "U1"), (keys::KEYS, "red blue"), (keys::TAGS, "tag")], b"1").await;
    world.clock.advance(10_000);
    world.send(&[(keys::UNIQ_KEY, "U2"), (keys::KEYS, "blue")], b"2").await;
    assert_eq!(world.query(&by_key("red")).unwrap(), ["1"]);
    assert_eq!(world.query(&by_key("blue")).unwrap(), ["1", "2"]);
    assert_eq!(world.query(&by_key("U2")).unwrap(), ["2"]);
    assert_eq!(world.query(&by_key("tag")), Err(22));
    let of_type = |index_type: &str, key: &str| {
        world.query(&QueryMessageHeader { index_type: Some(index_type.to_owned()), ..by_key(key) })
    };
    assert_eq!(of_type("T", "tag").unwrap(), ["1"]);
    assert_eq!(of_type("K", "U1"), Err(22));
    assert_eq!(of_type("U", "U1").unwrap(), ["1"]);
    // The number of messages does not count when an id is asked for.
    let unique = QueryMessageHeader { unique_key_query: Some(true), max_num: 0, ..by_key("U1") };
    assert_eq!(world.query(&unique).unwrap(), ["1"]);
    assert_eq!(world.query(&QueryMessageHeader { unique_key_query: Some(true), ..by_key("red") }), Err(22));

    // The newest are the ones that fit.
    assert_eq!(world.query(&QueryMessageHeader { max_num: 1, ..by_key("blue") }).unwrap(), ["2"]);
    assert_eq!(world.query_in(0, &by_key("blue")).unwrap(), ["2"]);
    let between = |begin: i64, end: i64| {
        let (begin_timestamp, end_timestamp) = (NOW.get() + begin, NOW.get() + end);
        world.query(&QueryMessageHeader { begin_timestamp, end_timestamp, ..by_key("blue") })
    };
    assert_eq!(between(0, 9_999).unwrap(), ["1"]);
    assert_eq!(between(1, 10_000).unwrap(), ["2"]);
    assert_eq!(between(1, 9_999), Err(22));
    assert_eq!(between(10_000, 0), Err(22));
}

/// `Aa` and `BB` have the same hash.
#[tokio::test]
async fn a_key_is_not_taken_for_another_with_its_hash() {
    let world = world();
    world.send(&[(keys::KEYS, "Aa BB")], b"both").await;
    for _ in 0..50 {
        world.send(&[(keys::KEYS, "BB")], b"other").await;
    }
    assert_eq!(world.query(&by_key("Aa")).unwrap(), ["both"]);
    let all = world.query(&QueryMessageHeader { max_num: i32::MAX, ..by_key("BB") }).unwrap();
    assert_eq!(all.len(), 51);
}

#[tokio::test]
async fn senseless_queries_are_refused() {
    let world = world();
    assert_eq!(world.query(&QueryMessageHeader { max_num: 0, ..by_key("k") }), Err(29));
    assert_eq!(world.query(&QueryMessageHeader { max_num: -5, ..by_key("k") }), Err(29));
    assert_eq!(world.query(&by_key("")), Err(29));
    let ends = QueryMessageHeader { begin_timestamp: i64::MIN, end_timestamp: i64::MAX, ..by_key("k") };
    assert_eq!(world.query(&ends), Err(22));
}

#[tokio::test]
async fn offsets_are_found_by_time() {
    let world = world();
    for step in [0, 1000, 0, 1000] {
        world.clock.advance(step);
        world.send(&[], b"x").await;
    }
    // Stored at 0, 1000, 1000 and 2000 from now.
    let now = NOW.get();
    for (at, lower, upper) in [
        (-1, 0, 0),
        (0, 0, 0),
        (1, 1, 0),
        (1000, 1, 2),
        (1001, 3, 2),
        (2000, 3, 3),
        (2001, 4, 3),
        (i64::MAX - now, 4, 3),
        (-now - 5, 0, 0),
        (i64::MIN / 2, 0, 0),
    ] {
        assert_eq!(world.search(1, now + at, None), lower, "{at}");
        assert_eq!(world.search(1, now + at, Some("lower")), lower, "{at}");
        assert_eq!(world.search(1, now + at, Some("UPPER")), upper, "{at}");
    }
    // A queue that nothing was sent to.
    assert_eq!(world.search(0, now, None), 0);
    assert_eq!(world.search(0, now, Some("upper")), 0);
}

type Handler = fn(&Store, &dyn OwnTopics, &OwnedCommand) -> Reply;

#[tokio::test]
async fn ends_of_queues_and_what_is_no_queue() {
    let world = world();
    world.send(&[], b"x").await;
    world.send(&[], b"x").await;
    let at = |topic: &str, queue_id: i32| GetMinOffsetHeader {
        topic: topic.to_owned(),
        queue_id,
        ..Default::default()
    };
    let ask = |handler: Handler, topic: &str, queue: i32| {
        handler(&world.store, &world.topics, &request(&at(topic, queue)))
    };
    assert_eq!(number(&ask(get_max_offset, "t", 1), "offset"), 2);
    assert_eq!(number(&ask(get_min_offset, "t", 1), "offset"), 0);
    assert_eq!(number(&ask(get_earliest_store_time, "t", 1), "timestamp"), NOW.get());
    assert_eq!(number(&ask(get_max_offset, "t", 0), "offset"), 0);
    assert_eq!(number(&ask(get_earliest_store_time, "t", 0), "timestamp"), -1);
    let handlers: [Handler; 4] = [get_max_offset, get_min_offset, get_earliest_store_time, search_offset];
    for handler in handlers {
        assert_eq!(ask(handler, "unknown", 0).code, 17);
        for queue in [-1, 4, i32::MAX, i32::MIN] {
            let refused = ask(handler, "t", queue);
            assert_eq!(refused.code, 29, "{queue}");
            assert!(refused.remark.unwrap().contains("0 to 3"));
        }
    }
}

#[tokio::test]
async fn entries_of_a_queue_are_listed() {
    let world = world();
    let sent = world.send(&[("TAGS", "TagA")], b"one").await;
    for _ in 0..3 {
        world.send(&[("TAGS", "TagB")], b"other").await;
    }
    let members = fixture::World::new().members;
    let list = |queue_id, index, count, group: Option<&str>| {
        let header = QueryConsumeQueueHeader {
            topic: "t".to_owned(),
            queue_id,
            index,
            count,
            consumer_group: group.map(str::to_owned),
        };
        query_queue(&world.store, &members, &OwnedCommand::request(321, &header))
    };
    let body = |reply: &Reply| QueryConsumeQueueResponseBody::from_json(&reply.body).unwrap();
    let first = body(&list(1, 0, 1, None));
    let theirs =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/broker_admin_samples.json"));
    let theirs = gantry_proto::json::parse(theirs.as_bytes()).unwrap();
    let theirs = theirs["321 {index=0, count=3, topic=VecNormal, queueId=0}"]["body"].as_str().unwrap();
    let theirs = QueryConsumeQueueResponseBody::from_json(theirs.as_bytes()).unwrap();
    assert_eq!(first.queue_data[0].tags_code, theirs.queue_data[0].tags_code);
    assert_eq!(first.queue_data[0].physic_offset, sent.phy.to_wire());
    assert_eq!((first.min_queue_index, first.max_queue_index), (0, 4));
    assert_eq!(body(&list(1, 2, 100, None)).queue_data.len(), 2);
    assert_eq!(body(&list(1, 100, 100, None)).queue_data.len(), 0);
    assert_eq!(body(&list(1, -5, i32::MIN, None)).queue_data.len(), 0);
    let absent = body(&list(1, 0, 1, Some("g"))).filter_data.unwrap();
    assert_eq!(absent, "no member of g subscribes to t");
    for queue in [0, -1] {
        assert_eq!(list(queue, 0, 1, None).code, 1);
    }
}
