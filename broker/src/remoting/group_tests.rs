use gantry_proto::remoting::header::ExtWrite;

use super::*;
use crate::fixture::World;

fn request(header: &impl ExtWrite) -> OwnedCommand {
    OwnedCommand::request(0, header)
}

fn text(reply: &Reply) -> &str {
    std::str::from_utf8(&reply.body).unwrap()
}

fn config(name: &str, retry_max_times: i32) -> SubscriptionGroupConfig {
    SubscriptionGroupConfig {
        group_name: name.to_owned(),
        retry_max_times,
        ..SubscriptionGroupConfig::default()
    }
}

fn named(group: &str) -> OwnedCommand {
    request(&GroupHeader { group: group.to_owned() })
}

#[test]
fn a_declared_group_is_shown_as_it_was_declared() {
    let world = World::new();
    let body = config("g", 3).to_json();
    assert_eq!(
        declare((&world.groups, &Polls::new(1)), &OwnedCommand::request(200, &()).body(body.clone())).code,
        0
    );
    assert_eq!(get(&world.groups, &named("g")).body, body);
    let list = SubscriptionGroupList { group_config_list: vec![config("h", 1), config("a b", 1)] };
    assert_eq!(
        declare_all((&world.groups, &Polls::new(1)), &OwnedCommand::request(225, &()).body(list.to_json()))
            .code,
        29
    );
    assert!(world.groups.get("h").is_some());
    assert_eq!(declare((&world.groups, &Polls::new(1)), &OwnedCommand::default()).code, 1);
}

#[test]
fn groups_are_listed_in_pages() {
    let world = World::new();
    world.groups.get_or_create("g").unwrap();
    let list = |group_seq, max_group_num| {
        let header = GetAllSubscriptionGroupHeader { group_seq, data_version: None, max_group_num };
        let reply = all(&world.groups, &request(&header));
        let body = SubscriptionGroupTable::from_json(&reply.body).unwrap();
        (
            body.subscription_group_table.len(),
            reply.ext.get("totalGroupNum").unwrap().parse::<usize>().unwrap(),
        )
    };
    let (everything, total) = list(None, None);
    assert_eq!(everything, total);
    assert_eq!(list(Some(2), Some(3)), (3, total));
}

#[tokio::test]
async fn progress_is_measured_and_goes_with_the_group() {
    let world = World::new();
    world.topic("T", 2);
    world.send("T", 0, 5).await;
    world.groups.get_or_create("g").unwrap();
    let key = Key { group: GroupName::internal("g"), topic: TopicName::internal("T"), queue: QueueId::ZERO };
    world.offsets.commit(key, QueueOffset::new(3)).await.unwrap();
    let measure = |topic: Option<&str>| {
        let header = GetConsumeStatsHeader {
            consumer_group: "g".to_owned(),
            topic: topic.map(str::to_owned),
            topic_list: None,
        };
        let services = (&*world.topics, &*world.members, &*world.offsets);
        stats(services, (&world.store, &world.pops), "broker-a", &request(&header))
    };
    let reply = measure(None);
    let first = ConsumeStats::from_json(&reply.body).unwrap().offset_table.into_values().next().unwrap();
    let now = crate::fixture::NOW.get();
    let expected = OffsetWrapper {
        broker_offset: 5,
        consumer_offset: 3,
        last_timestamp: now,
        pull_offset: 3,
        ..OffsetWrapper::default()
    };
    assert_eq!(first, expected);
    assert_eq!(measure(Some("unknown")).body, br#"{"consumeTps":0.0,"offsetTable":{}}"#);
    assert_eq!(text(&topics_of(&world.offsets, &named("g"))), r#"{"topicList":["T"]}"#);

    let delete = |clean_offset| {
        let header = DeleteSubscriptionGroupHeader { group_name: "g".to_owned(), clean_offset };
        World::settle(super::delete(
            (&world.groups, &world.locks),
            &world.offsets,
            &world.pops,
            &request(&header),
        ))
    };
    assert_eq!(delete(false).await.code, 0);
    assert!(!world.offsets.of_group("g").is_empty());
    assert_eq!(delete(true).await.code, 26);
    world.groups.get_or_create("g").unwrap();
    assert_eq!(delete(true).await.code, 0);
    assert!(world.offsets.of_group("g").is_empty());
}

#[tokio::test]
async fn a_group_may_be_forbidden_a_topic() {
    let world = World::new();
    world.topic("T", 1);
    world.groups.get_or_create("g").unwrap();
    let set = |group: &str, topic: &str, readable| {
        let header = GroupForbiddenHeader { group: group.to_owned(), topic: topic.to_owned(), readable };
        forbid((&world.groups, &world.topics), &request(&header))
    };
    let readable = |reply: &Reply| GroupForbidden::from_json(&reply.body).unwrap().readable;
    assert_eq!(readable(&set("g", "T", None)), Some(true));
    assert_eq!(readable(&set("g", "T", Some(false))), Some(false));
    assert_eq!(readable(&set("g", "T", None)), Some(false));
    // A changed configuration gives nothing back.
    world.groups.declare(config("g", 3)).unwrap();
    assert_eq!(readable(&set("g", "T", None)), Some(false));
    let table = world.groups.table().forbidden_table.unwrap();
    assert_eq!(table["g"]["T"], 4, "the bit that Apache's brokers set");
    assert_eq!(text(&set("g", "T", Some(true))), r#"{"group":"g","readable":true,"topic":"T"}"#);
    assert!(world.groups.table().forbidden_table.unwrap().is_empty());
    assert_eq!((set("x", "T", None).code, set("g", "X", None).code), (26, 17));
}

#[test]
fn what_a_group_subscribes_to_is_told_also_when_it_is_nothing() {
    let world = World::new();
    let header = QuerySubscriptionByConsumerHeader { group: "g".to_owned(), topic: "T".to_owned() };
    let reply = subscription(&world.members, &request(&header));
    assert_eq!((reply.code, text(&reply)), (0, r#"{"group":"g","topic":"T"}"#));
}
