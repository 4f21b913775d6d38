use gantry_proto::json;
use gantry_proto::remoting::header::ExtWrite;
use tempfile::TempDir;

use super::*;
use crate::broker::Broker;
use crate::fixture::{self, World};

fn request(header: &impl ExtWrite) -> OwnedCommand {
    OwnedCommand::request(0, header)
}

fn key(group: &str, queue: u32) -> Key {
    Key { group: GroupName::internal(group), topic: TopicName::internal("T"), queue: QueueId::new(queue) }
}

/// Topic `T` with two queues; ten messages in queue 0, the last five a second later. Groups `g` at 3 and `h` at 6.
async fn world() -> World {
    let world = World::new();
    world.topic("T", 2);
    world.send("T", 0, 5).await;
    world.clock.advance(1000);
    world.send("T", 0, 5).await;
    world.clock.advance(1000);
    for (group, at) in [("g", 3), ("h", 6)] {
        world.groups.get_or_create(group).unwrap();
        world.offsets.commit(key(group, 0), QueueOffset::new(at)).await.unwrap();
    }
    world
}

#[tokio::test]
async fn the_span_of_a_queue_is_told_in_times() {
    let world = world().await;
    let span_of = |group: &str| {
        let header = QueryConsumeTimeSpanHeader { topic: "T".to_owned(), group: group.to_owned() };
        let reply = time_span((&world.topics, &world.offsets), &world.store, "broker-a", &request(&header));
        QueryConsumeTimeSpanBody::from_json(&reply.body).unwrap().consume_time_span_set
    };
    let first = fixture::NOW.get();
    let spans = span_of("h");
    assert_eq!((spans[0].min_time_stamp, spans[0].max_time_stamp), (first, first + 1000));
    assert_eq!((spans[0].consume_time_stamp, spans[0].delay_time), (first + 1000, 1000));
    assert_eq!(spans[0].message_queue.broker_name, "broker-a");
    let empty = &spans[1];
    assert_eq!((empty.min_time_stamp, empty.max_time_stamp, empty.delay_time), (-1, -1, 0));
    let spans = span_of("nobody");
    assert_eq!((spans[0].consume_time_stamp, spans[0].delay_time), (first, 2000));
    let none = QueryConsumeTimeSpanHeader { topic: "None".to_owned(), group: "g".to_owned() };
    let reply = time_span((&world.topics, &world.offsets), &world.store, "broker-a", &request(&none));
    assert_eq!(reply.code, 17);
}

#[tokio::test]
async fn a_span_has_the_fields_of_the_java_class() {
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/broker_admin_samples.json");
    let samples = json::parse(&std::fs::read(samples).unwrap()).unwrap();
    let theirs = samples["303 {group=cg_norm, topic=VecNormal}"]["body"].as_str().unwrap();
    let theirs = QueryConsumeTimeSpanBody::from_json(theirs.as_bytes()).unwrap().consume_time_span_set;
    // Queue 0 has three of five messages consumed, queue 1 all.
    assert!(theirs[0].min_time_stamp < theirs[0].consume_time_stamp);
    assert!(theirs[0].delay_time > 0);
    assert_eq!((theirs[1].consume_time_stamp, theirs[1].delay_time), (theirs[1].max_time_stamp, 0));
}

#[tokio::test]
async fn the_smallest_offsets_over_groups_are_told() {
    let world = world().await;
    let corrected = |filter: Option<&str>, compare: &str| {
        let header = QueryCorrectionOffsetHeader {
            filter_groups: filter.map(str::to_owned),
            compare_group: compare.to_owned(),
            topic: "T".to_owned(),
        };
        let reply = corrections((&world.topics, &world.offsets), &world.store, &request(&header));
        QueryCorrectionOffsetBody::from_json(&reply.body).unwrap().correction_offsets
    };
    assert_eq!(corrected(None, "h"), BTreeMap::from([(0, 3)]));
    assert_eq!(corrected(Some("x,g"), "h"), BTreeMap::from([(0, 6)]));
    assert_eq!(corrected(Some("g"), "g"), BTreeMap::from([(0, BEYOND)]), "g is behind all others");
    assert_eq!(corrected(Some("g,h"), "g"), BTreeMap::new());
    assert_eq!(world.offsets.of_group("g").len(), 1, "groups that are left out keep their offsets");
}

async fn broker(dir: &TempDir) -> Broker {
    let broker = super::super::edge_tests::start(dir).await;
    let services = broker.services();
    services.topics.ensure_internal(&TopicName::internal("T"), 2, 6).unwrap();
    fixture::send(&services.store, "T", 0, 10).await;
    services.groups.get_or_create("g").unwrap();
    services.offsets.commit(key("g", 0), QueueOffset::new(7)).await.unwrap();
    broker
}

async fn clone(broker: &Broker, from: &str, to: &str, topic: Option<&str>) -> Reply {
    let header = CloneGroupOffsetHeader {
        src_group: from.to_owned(),
        dest_group: to.to_owned(),
        topic: topic.map(str::to_owned),
        offline: true,
    };
    World::settle(clone_offsets(broker.services(), &request(&header))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_group_goes_on_where_another_stands_also_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    assert_eq!(clone(&broker, "g", "copy", None).await.code, 0);
    assert_eq!(clone(&broker, "g", "copy", Some("T")).await.code, 0);
    for (from, to, topic, code) in [
        ("none", "copy", None, 26),
        ("g", "g", None, 16),
        ("g", "TOOLS_CONSUMER", None, 16),
        ("copy", "g", Some("Other"), 1),
    ] {
        let refused = clone(&broker, from, to, topic).await;
        assert_eq!(refused.code, code, "{from} to {to}: {:?}", refused.remark);
    }
    broker.stop().await.unwrap();
    let broker = super::super::edge_tests::start(&dir).await;
    let offsets = &broker.services().offsets;
    assert_eq!(offsets.get("copy", "T", QueueId::ZERO), Some(QueueOffset::new(7)));
    assert_eq!(offsets.take_reset(&key("copy", 0), QueueOffset::ZERO), None, "nobody is to be told");
    broker.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_group_of_the_broker_is_measured() {
    let dir = TempDir::new().unwrap();
    let broker = broker(&dir).await;
    let measured = async |is_order| {
        let header = GetBrokerConsumeStatsHeader { is_order };
        let address = SocketAddr::from(([127, 0, 0, 1], 10911));
        let reply = World::settle(of_broker(broker.services(), address, &request(&header))).await;
        ConsumeStatsList::from_json(&reply.body).unwrap()
    };
    let all = measured(false).await;
    assert_eq!((all.broker_addr.as_str(), all.total_diff), ("127.0.0.1:10911", 3));
    let of_g = all.consume_stats_list.iter().find_map(|group| group.get("g")).unwrap();
    let first = of_g[0].offset_table.values().next().unwrap();
    assert_eq!((first.broker_offset, first.consumer_offset), (10, 7));
    assert_eq!(measured(true).await.total_diff, 0, "the topic is not ordered");
    broker.stop().await.unwrap();
}
