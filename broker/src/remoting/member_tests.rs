use std::cell::RefCell;
use std::net::SocketAddr;

use gantry_proto::ids::{QueueId, QueueOffset};
use gantry_proto::names::TopicName;
use gantry_proto::remoting::body::heartbeat::{ConsumerData, ProducerData, SubscriptionData};
use gantry_proto::remoting::codes::Language;
use gantry_proto::remoting::header::ExtWrite;

use super::*;
use crate::fixture::World;
use crate::groups::offsets::Key;

fn request(header: &impl ExtWrite) -> OwnedCommand {
    OwnedCommand::request(0, header)
}

fn caller() -> Caller {
    let address = |port| SocketAddr::from(([192, 0, 2, 7], port));
    Caller {
        connection: 5,
        remote: address(51234),
        local: address(10911),
        language: Language::Java,
        version: 513,
        outbox: Peer::outbox().0,
    }
}

fn beat(world: &World, data: &HeartbeatData) -> (Reply, Vec<String>) {
    let joined = RefCell::new(Vec::new());
    let reply = heartbeat(
        (&world.groups, &world.topics, &world.members),
        &Expressions::default(),
        &OwnedCommand::request(34, &()).body(data.to_json()),
        &caller(),
        |group| joined.borrow_mut().push(group.to_string()),
        |topic| joined.borrow_mut().push(format!("mixed {topic}")),
    );
    (reply, joined.into_inner())
}

fn data() -> HeartbeatData {
    let subscription =
        SubscriptionData { topic: "T".to_owned(), sub_string: "*".to_owned(), ..SubscriptionData::default() };
    HeartbeatData {
        client_id: "192.0.2.7@4242#1".to_owned(),
        consumer_data_set: vec![ConsumerData {
            group_name: "cg".to_owned(),
            subscription_data_set: vec![subscription],
            ..ConsumerData::default()
        }],
        producer_data_set: vec![ProducerData { group_name: "pg".to_owned() }],
        ..HeartbeatData::default()
    }
}

fn of_group(group: &str) -> OwnedCommand {
    request(&ConsumerGroupHeader { consumer_group: group.to_owned(), broker_name: None })
}

fn of_producers(group: &str) -> OwnedCommand {
    request(&ProducerGroupHeader { producer_group: group.to_owned() })
}

fn text(reply: &Reply) -> &str {
    std::str::from_utf8(&reply.body).unwrap()
}

#[test]
fn a_heartbeat_registers_the_client_and_is_seen_by_tools() {
    let world = World::new();
    let (reply, joined) = beat(&world, &data());
    assert_eq!((reply.code, reply.ext.get("IS_SUPPORT_HEART_BEAT_V2")), (0, Some("true")));
    assert_eq!((reply.ext.get("IS_SUB_CHANGE"), joined.as_slice()), (Some("false"), &["pg".to_owned()][..]));
    assert_eq!(beat(&world, &data()).1, Vec::<String>::new());
    assert_eq!(
        text(&consumer_ids(&world.members, &of_group("cg"))),
        r#"{"consumerIdList":["192.0.2.7@4242#1"]}"#
    );
    let connection =
        r#"{"clientAddr":"192.0.2.7:51234","clientId":"192.0.2.7@4242#1","language":"JAVA","version":513}"#;
    let connections = consumer_connections(&world.members, &of_group("cg"));
    let connections = text(&connections);
    assert!(connections.starts_with(&format!("{{\"connectionSet\":[{connection}],")), "{connections}");
    assert!(connections.contains("\"subscriptionTable\":{\"T\":{"), "{connections}");
    let producers = producer_connections(&world.members, &of_producers("pg"));
    assert_eq!(text(&producers), format!("{{\"connectionSet\":[{connection}]}}"));
    let all = all_producers(&world.members);
    assert!(text(&all).starts_with(r#"{"data":{"pg":[{"clientId":"192.0.2.7@4242#1","language":"JAVA","#));
}

#[tokio::test]
async fn a_client_that_leaves_is_gone_and_what_it_consumed_is_kept() {
    let world = World::new();
    beat(&world, &data());
    let header = UnregisterClientHeader {
        client_id: "192.0.2.7@4242#1".to_owned(),
        producer_group: Some("pg".to_owned()),
        consumer_group: Some("cg".to_owned()),
    };
    let key = Key { group: GroupName::internal("cg"), topic: TopicName::internal("T"), queue: QueueId::ZERO };
    world.offsets.note(key, QueueOffset::ZERO).unwrap();
    assert!(world.offsets.is_only_noted("cg", "T", QueueId::ZERO));
    let reply = World::settle(unregister(&world.members, &world.offsets, &request(&header))).await;
    assert_eq!(reply.code, 0);
    assert!(!world.offsets.is_only_noted("cg", "T", QueueId::ZERO));
    assert_eq!(consumer_ids(&world.members, &of_group("cg")).code, 1);
    assert_eq!(consumer_connections(&world.members, &of_group("cg")).code, 206);
    assert_eq!(producer_connections(&world.members, &of_producers("pg")).code, 1);
}

#[test]
fn a_beat_without_subscriptions_from_a_stranger_asks_for_all() {
    let world = World::new();
    let mut short = HeartbeatData { without_sub: true, heartbeat_fingerprint: 7, ..data() };
    short.consumer_data_set[0].subscription_data_set.clear();
    assert_eq!(beat(&world, &short).0.ext.get("IS_SUB_CHANGE"), Some("true"));
    beat(&world, &data());
    assert_eq!(beat(&world, &short).0.ext.get("IS_SUB_CHANGE"), Some("false"));
    assert!(world.members.subscription("cg", "T").is_some());
}

#[test]
fn wrong_heartbeats_are_refused() {
    let world = World::new();
    assert_eq!(beat(&world, &HeartbeatData { client_id: String::new(), ..data() }).0.code, 29);
    let mut bad = data();
    bad.consumer_data_set[0].group_name = "a b".to_owned();
    assert_eq!(beat(&world, &bad).0.code, 29);
    let garbage = OwnedCommand::request(34, &()).body("{\"clientID\":");
    let services = (&*world.groups, &*world.topics, &*world.members);
    assert_eq!(heartbeat(services, &Expressions::default(), &garbage, &caller(), |_| (), |_| ()).code, 1);
}

#[test]
fn a_client_learns_whether_its_subscription_can_be_served() {
    let check = |kind: &str, text: &str| {
        let body = CheckClientRequestBody {
            subscription_data: SubscriptionData {
                expression_type: kind.to_owned(),
                sub_string: text.to_owned(),
                ..SubscriptionData::default()
            },
            ..CheckClientRequestBody::default()
        };
        let request = OwnedCommand::request(46, &()).body(body.to_json());
        let reply = check_client(&Expressions::default(), &request);
        (reply.code, reply.remark.unwrap_or_default())
    };
    assert_eq!((check("TAG", "A || B").0, check("SQL92", "a > 5")), (0, (0, String::new())));
    let (code, why) = check("SQL92", "a > 'x'");
    assert!(code == 23 && why.contains("at character 3"), "{code} {why}");
    assert_eq!((check("SQL92", "").0, check("TAG", "||").0, check("CLASS", "x").0), (23, 23, 23));
    let (code, remark) = check("SQL92", "a LIKE 'x%'");
    assert!(code == 0 && remark.contains("before character 3"), "{code} {remark}");
}

#[test]
fn a_heartbeat_with_a_wrong_expression_is_taken() {
    let world = World::new();
    let mut bad = data();
    let subscription = &mut bad.consumer_data_set[0].subscription_data_set[0];
    subscription.expression_type = "SQL92".to_owned();
    subscription.sub_string = "a >".to_owned();
    assert_eq!(beat(&world, &bad).0.code, 0);
    assert!(world.members.is_online("cg") && !world.members.producers_of("pg").is_empty());
}

#[test]
fn members_that_subscribe_differently_are_told_to_whoever_asks() {
    let world = World::new();
    beat(&world, &data());
    let mut other = HeartbeatData { client_id: "192.0.2.7@4242#2".to_owned(), ..data() };
    let subscription = &mut other.consumer_data_set[0].subscription_data_set[0];
    subscription.expression_type = "SQL92".to_owned();
    subscription.sub_string = "a > 5".to_owned();
    assert!(beat(&world, &other).1.contains(&"mixed T".to_owned()));
    assert!(beat(&world, &other).1.is_empty());
    let connections = consumer_connections(&world.members, &of_group("cg"));
    let wishes =
        r#""subscriptionConflicts":{"T":{"192.0.2.7@4242#1":"*","192.0.2.7@4242#2":"SQL92: a > 5"}}"#;
    assert!(text(&connections).contains(wishes), "{}", text(&connections));
}
