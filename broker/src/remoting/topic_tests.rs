use gantry_proto::remoting::header::ExtWrite;

use super::*;
use crate::fixture::World;
use crate::groups::locks::QueueKey;
use crate::groups::offsets::Key;

fn request(header: &impl ExtWrite) -> OwnedCommand {
    OwnedCommand::request(0, header)
}

fn named(topic: &str) -> OwnedCommand {
    request(&TopicHeader { topic: topic.to_owned(), broker_name: None })
}

fn text(reply: &Reply) -> &str {
    std::str::from_utf8(&reply.body).unwrap()
}

#[tokio::test]
async fn a_declared_topic_is_shown_as_it_was_declared() {
    let world = World::new();
    let header = CreateTopicHeader {
        topic: "T".to_owned(),
        read_queue_nums: Some(8),
        write_queue_nums: Some(8),
        perm: Some(6),
        topic_filter_type: Some("SINGLE_TAG".to_owned()),
        attributes: Some("+message.type=FIFO".to_owned()),
        ..CreateTopicHeader::default()
    };
    assert_eq!(World::settle(declare(&world.topics, &world.scaling, &request(&header))).await.code, 0);
    let shown = get(&world.topics, &request(&GetTopicConfigHeader { topic: "T".to_owned(), lo: None }));
    assert_eq!(
        text(&shown),
        r#"{"attributes":{"message.type":"FIFO"},"order":false,"perm":6,"readQueueNums":8,"topicFilterType":"SINGLE_TAG","topicName":"T","topicSysFlag":0,"writeQueueNums":8}"#
    );
    // Attributes that a change does not name stay.
    let narrow = CreateTopicHeader { read_queue_nums: None, perm: Some(4), attributes: None, ..header };
    assert_eq!(World::settle(declare(&world.topics, &world.scaling, &request(&narrow))).await.code, 0);
    let topic = world.topics.get("T").unwrap();
    assert_eq!((topic.read_queues(), topic.write_queues(), topic.config.perm), (4, 8, 4));
    assert_eq!(topic.config.attributes["message.type"], "FIFO");
}

#[tokio::test]
async fn wrong_declarations_are_refused() {
    let world = World::new();
    let code = |topic: &str, perm, attributes: &str| {
        let header = CreateTopicHeader {
            topic: topic.to_owned(),
            perm: Some(perm),
            attributes: Some(attributes.to_owned()),
            ..CreateTopicHeader::default()
        };
        World::settle(declare(&world.topics, &world.scaling, &request(&header)))
    };
    assert_eq!(code("a b", 6, "").await.code, 29);
    assert_eq!(code("TBW102", 6, "").await.code, 29);
    assert_eq!(code("T", 99, "").await.code, 29);
    assert_eq!(code("T", 6, "x").await.code, 29);
    assert_eq!(get(&world.topics, &named("T")).code, 17);
    assert_eq!(stats(&world.topics, &world.store, "broker-a", &named("T")).code, 17);
    assert_eq!(World::settle(declare_all(&world.scaling, &OwnedCommand::default())).await.code, 1);
}

#[tokio::test]
async fn several_topics_are_declared_at_once() {
    let world = World::new();
    let topic = |name: &str| TopicConfig { topic_name: name.to_owned(), ..TopicConfig::default() };
    let body = CreateTopicListBody { topic_config_list: vec![topic("A"), topic("B"), topic("bad name")] };
    let request = OwnedCommand::request(18, &()).body(body.to_json());
    assert_eq!(World::settle(declare_all(&world.scaling, &request)).await.code, 29);
    assert!(world.topics.get("A").is_some() && world.topics.get("B").is_some());
}

#[test]
fn topics_are_listed_in_pages() {
    let world = World::new();
    world.topic("T", 1);
    let list = |topic_seq, max_topic_num| {
        let header = GetAllTopicConfigHeader { topic_seq, data_version: None, max_topic_num };
        let reply = all(&world.topics, &request(&header));
        let body = gantry_proto::remoting::body::topic::TopicConfigTable::from_json(&reply.body).unwrap();
        (body, reply.ext.get("totalTopicNum").unwrap().parse::<usize>().unwrap())
    };
    let (everything, total) = list(None, None);
    assert_eq!(everything.topic_config_table.len(), total);
    assert_eq!(everything.data_version, world.topics.data_version());
    assert!(everything.topic_queue_mapping_info_map.is_some());
    let (page, same) = list(Some(1), Some(2));
    assert_eq!((page.topic_config_table.len(), same), (2, total));
    assert!(list(Some(i32::MAX), Some(2)).0.topic_config_table.is_empty());
    let system = system_topics(&world.topics);
    assert!(text(&system).contains("\"TBW102\"") && !text(&system).contains("\"T\""));
}

#[tokio::test]
async fn a_deleted_topic_leaves_nothing_behind() {
    let world = World::new();
    world.topic("T", 1);
    world.send("T", 0, 3).await;
    let (group, topic) = (GroupName::internal("g"), TopicName::internal("T"));
    let key = Key { group: group.clone(), topic: topic.clone(), queue: QueueId::ZERO };
    world.offsets.commit(key, gantry_proto::ids::QueueOffset::new(2)).await.unwrap();
    world.locks.lock_batch(&group, "c", vec![QueueKey { topic, queue: QueueId::ZERO }]);
    let delete = |name: &str| {
        let World { topics, offsets, store, locks, .. } = &world;
        let polls = Arc::new(Polls::new(1));
        World::settle(delete((topics, locks), (offsets, &world.pops), (store, &polls), &named(name)))
    };
    assert_eq!(delete("T").await.code, 0);
    assert!(world.topics.get("T").is_none());
    assert!(world.offsets.of_group("g").is_empty());
    assert!(!world.locks.is_ordered("g"));
    assert!(world.store.topic_queues("T").is_empty());
    let again = delete("T").await;
    assert_eq!((again.code, again.remark.as_deref()), (0, Some("there was no such topic")));
    // What a deletion leaves that a kill broke off: the messages of a topic that is not known any more.
    world.send("Half-deleted", 0, 3).await;
    assert_eq!(delete("Half-deleted").await.code, 0);
    assert!(world.store.topic_queues("Half-deleted").is_empty());
    assert_eq!(delete("TBW102").await.code, 29);
    assert_eq!(delete("rmq_sys_unknown").await.code, 29);
}

#[tokio::test]
async fn queues_are_measured() {
    let world = World::new();
    world.topic("T", 2);
    world.send("T", 0, 3).await;
    let reply = stats(&world.topics, &world.store, "broker-a", &named("T"));
    let now = crate::fixture::NOW;
    assert_eq!(
        text(&reply),
        format!(
            concat!(
                r#"{{"offsetTable":{{{{"brokerName":"broker-a","queueId":0,"topic":"T"}}:{{"lastUpdateTimestamp":{},"maxOffset":3,"minOffset":0}},"#,
                r#"{{"brokerName":"broker-a","queueId":1,"topic":"T"}}:{{"lastUpdateTimestamp":0,"maxOffset":0,"minOffset":0}}}},"topicPutTps":0.0}}"#
            ),
            now
        )
    );
}

#[tokio::test]
async fn groups_with_an_offset_consume_a_topic() {
    let world = World::new();
    world.topic("T", 1);
    let key = Key { group: GroupName::internal("g"), topic: TopicName::internal("T"), queue: QueueId::ZERO };
    world.offsets.commit(key, gantry_proto::ids::QueueOffset::ZERO).await.unwrap();
    let reply = consumers(&world.members, &world.offsets, &named("T"));
    assert_eq!(text(&reply), r#"{"groupList":["g"]}"#);
}
