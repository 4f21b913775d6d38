use gantry_proto::remoting::body::group::SubscriptionGroupConfig;
use gantry_proto::remoting::body::topic::TopicConfig;
use gantry_proto::remoting::header::ExtWrite;

use super::*;
use crate::fixture::World;

fn request(header: &impl ExtWrite) -> OwnedCommand {
    OwnedCommand::request(0, header)
}

/// A broker with topic `T` of two queues, ten messages in queue 0, and group `g`.
async fn world() -> World {
    let world = World::new();
    world.topic("T", 2);
    world.groups.get_or_create("g").unwrap();
    world.send("T", 0, 10).await;
    world
}

async fn query(world: &World, queue_id: i32, set_zero_if_not_found: Option<bool>) -> Reply {
    query_as(world, "g", queue_id, set_zero_if_not_found).await
}

async fn query_as(world: &World, group: &str, queue_id: i32, set_zero_if_not_found: Option<bool>) -> Reply {
    let header = QueryConsumerOffsetHeader {
        consumer_group: group,
        topic: "T",
        queue_id,
        set_zero_if_not_found,
        broker_name: None,
    };
    let owners = (&*world.groups, &*world.members, &*world.topics);
    World::settle(query_offset((&world.offsets, &world.store), owners, &request(&header))).await
}

fn update_header(commit_offset: Option<i64>) -> UpdateConsumerOffsetHeader<'static> {
    UpdateConsumerOffsetHeader {
        consumer_group: "g",
        topic: "T",
        queue_id: 0,
        commit_offset,
        broker_name: None,
    }
}

async fn update(world: &World, request: &OwnedCommand) -> Reply {
    World::settle(update_offset(&world.offsets, &world.topics, &world.groups, request)).await
}

fn found(reply: &Reply) -> Option<&str> {
    reply.ext.get("offset")
}

#[tokio::test]
async fn an_unknown_offset_is_zero_in_a_new_queue_unless_that_is_not_wanted() {
    let world = world().await;
    assert_eq!(found(&query(&world, 0, None).await), Some("0"));
    assert_eq!(found(&query(&world, 1, Some(true)).await), Some("0"));
    let unknown = query(&world, 0, Some(false)).await;
    assert_eq!(unknown.code, 22);
    assert!(unknown.remark.unwrap().contains("group g has no offset in T queue 0"));
    assert_eq!(query(&world, -1, None).await.code, 29);
}

#[tokio::test]
async fn a_group_begins_where_its_operator_said_in_all_queues_at_once() {
    let world = world().await;
    let declare = |start: &str| {
        let attributes = [("+gantry.start".to_owned(), start.to_owned())].into();
        let config = SubscriptionGroupConfig {
            group_name: "g".into(),
            attributes,
            ..SubscriptionGroupConfig::default()
        };
        world.groups.declare(config)
    };
    declare("last").unwrap();
    assert_eq!(found(&query(&world, 1, Some(false)).await), Some("0"));
    // Queue 0 was settled by that question: what comes later is consumed.
    world.send("T", 0, 5).await;
    assert_eq!(found(&query(&world, 0, None).await), Some("10"));
    declare("first").unwrap();
    assert_eq!(found(&query(&world, 0, None).await), Some("10"), "it has begun");
    // A queue that came into being since is consumed from its first message.
    let wider = TopicConfig { topic_name: "T".into(), read_queue_nums: 3, ..TopicConfig::default() };
    world.topics.declare(wider).unwrap();
    world.send("T", 2, 4).await;
    assert_eq!(found(&query(&world, 2, Some(false)).await), Some("0"));
    world.offsets.remove_group(&GroupName::internal("g")).await.unwrap();
    let now = world.store.clock().now();
    declare(&(now.get() + 1).to_string()).unwrap();
    assert_eq!(found(&query(&world, 0, None).await), Some("15"), "nothing is as young as that");
    world.offsets.remove_group(&GroupName::internal("g")).await.unwrap();
    declare("0").unwrap();
    assert_eq!(found(&query(&world, 0, None).await), Some("0"));
    assert_eq!(world.offsets.of_group("g").len(), 3);
}

#[tokio::test]
async fn commits_are_kept_and_one_way_ones_are_noted() {
    let world = world().await;
    assert_eq!(update(&world, &request(&update_header(Some(4)))).await.code, 0);
    assert_eq!(found(&query(&world, 0, None).await), Some("4"));
    let mut one_way = request(&update_header(Some(7)));
    one_way.flag = FLAG_ONEWAY;
    let before = world.store.max_offset();
    assert_eq!(update(&world, &one_way).await.code, 0);
    assert_eq!(world.store.max_offset(), before);
    // What is told must be kept.
    assert_eq!(found(&query(&world, 0, None).await), Some("7"));
    assert!(world.store.max_offset() > before);
}

#[tokio::test]
async fn wrong_commits_are_refused() {
    let world = world().await;
    let code =
        async |header: UpdateConsumerOffsetHeader<'static>| update(&world, &request(&header)).await.code;
    assert_eq!(code(update_header(None)).await, 29);
    assert_eq!(code(update_header(Some(-1))).await, 29);
    assert_eq!(code(update_header(Some(11))).await, 29);
    assert_eq!(code(UpdateConsumerOffsetHeader { consumer_group: "x", ..update_header(Some(1)) }).await, 26);
    assert_eq!(code(UpdateConsumerOffsetHeader { topic: "x", ..update_header(Some(1)) }).await, 17);
    assert_eq!(code(UpdateConsumerOffsetHeader { queue_id: -1, ..update_header(Some(1)) }).await, 29);
}

async fn reset(world: &World, header: ResetOffsetHeader, language: Language) -> Reply {
    let mut request = request(&header);
    request.language = language;
    let polls = Arc::new(Polls::new(10));
    let (reads, knows) = ((&world.offsets, &*world.store, &polls), (&*world.topics, &*world.groups));
    World::settle(reset_offset(reads, knows, "broker-a", &request)).await
}

fn to(timestamp: i64, is_force: bool) -> ResetOffsetHeader {
    ResetOffsetHeader {
        topic: "T".to_owned(),
        group: "g".to_owned(),
        timestamp,
        is_force,
        ..ResetOffsetHeader::default()
    }
}

#[tokio::test]
async fn resets_go_to_a_time_an_offset_or_the_end() {
    let world = world().await;
    let key = |queue| Key {
        group: GroupName::internal("g"),
        topic: gantry_proto::names::TopicName::internal("T"),
        queue: QueueId::new(queue),
    };
    world.clock.advance(60_000);
    world.send("T", 0, 5).await;
    let reply = reset(&world, to(-1, true), Language::Java).await;
    let body = ResetOffsetBody::from_json(&reply.body).unwrap();
    assert_eq!(body.offset_table.values().copied().collect::<Vec<_>>(), [15, 0]);
    assert_eq!(world.offsets.take_reset(&key(0), QueueOffset::ZERO), Some(QueueOffset::new(15)));

    let middle = crate::fixture::NOW.plus(1).get();
    let reply =
        reset(&world, ResetOffsetHeader { queue_id: Some(0), ..to(middle, false) }, Language::Cpp).await;
    assert_eq!(
        String::from_utf8(reply.body).unwrap(),
        r#"{"offsetTable":[{"brokerName":"broker-a","offset":10,"queueId":0,"topic":"T"}]}"#
    );
    assert_eq!(found(&query(&world, 0, None).await), Some("10"));

    let far = ResetOffsetHeader { queue_id: Some(0), offset: Some(99), ..to(0, true) };
    reset(&world, far, Language::Java).await;
    assert_eq!(found(&query(&world, 0, None).await), Some("15"));
    // Without force nothing is skipped.
    reset(&world, ResetOffsetHeader { queue_id: Some(0), offset: Some(3), ..to(0, true) }, Language::Java)
        .await;
    let reply = reset(&world, ResetOffsetHeader { queue_id: Some(0), ..to(-1, false) }, Language::Java).await;
    assert_eq!(reply.body, b"{\"offsetTable\":{}}");
    assert_eq!(found(&query(&world, 0, None).await), Some("3"));
}

#[tokio::test]
async fn wrong_resets_are_refused() {
    let world = world().await;
    let code = async |header| reset(&world, header, Language::Java).await.code;
    assert_eq!(code(ResetOffsetHeader { topic: "x".to_owned(), ..to(0, true) }).await, 17);
    assert_eq!(code(ResetOffsetHeader { group: "x".to_owned(), ..to(0, true) }).await, 26);
    assert_eq!(code(ResetOffsetHeader { queue_id: Some(2), ..to(0, true) }).await, 29);
}

#[tokio::test]
async fn all_offsets_are_given_as_the_files_have_them() {
    let world = world().await;
    update(&world, &request(&update_header(Some(4)))).await;
    let text = String::from_utf8(all_offsets(&world.offsets).body).unwrap();
    assert!(text.contains("\"T@g\":{\n\t\t\t0:4\n\t\t}"), "{text}");
    assert_eq!(delay_offsets(&world.store).body, b"{\"offsetTable\":{}}");
    let config = world.store.layout().config();
    std::fs::write(config.join("delayOffset.json"), "{\"offsetTable\":{1:3,18:0}}").unwrap();
    assert_eq!(delay_offsets(&world.store).body, b"{\"offsetTable\":{1:3,18:0}}");
}
