//! Groups that are found, made, changed, refused and kept; heartbeats.

use std::net::SocketAddr;
use std::time::Duration;

use gantry_proto::json;
use gantry_proto::remoting::body::heartbeat::{ConsumerData, ProducerData};
use gantry_proto::remoting::codes::Language;
use tempfile::TempDir;

use super::*;
use crate::fixture;

const MAX: usize = 20;

fn config() -> GroupsConfig {
    GroupsConfig { max: MAX, ..GroupsConfig::default() }
}

fn open(dir: &TempDir) -> Groups {
    Groups::open(dir.path(), config(), fixture::clock()).unwrap()
}

fn groups() -> (TempDir, Groups) {
    let dir = TempDir::new().unwrap();
    let groups = open(&dir);
    (dir, groups)
}

#[test]
fn apaches_file_is_kept_with_everything_in_it() {
    let golden = include_bytes!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/vectors/store/config/subscriptionGroup.json"
    ));
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("subscriptionGroup.json");
    std::fs::write(&path, golden).unwrap();
    let groups = open(&dir);
    assert_eq!(groups.get("cg_retry").unwrap().config.retry_max_times, 1);
    groups.get_or_create("mine").unwrap();
    let (theirs, ours) = (json::parse(golden).unwrap(), json::parse(&std::fs::read(&path).unwrap()).unwrap());
    for (name, config) in theirs["subscriptionGroupTable"].as_object().unwrap() {
        assert_eq!(&ours["subscriptionGroupTable"][name], config, "{name}");
    }
    assert_eq!(ours["forbiddenTable"], theirs["forbiddenTable"]);
    assert_eq!(ours["dataVersion"]["counter"], 6);
    assert!(std::fs::read_to_string(&path).unwrap().contains("\n\t\t\"mine\":{\n\t\t\t\"attributes\":{},"));
}

#[test]
fn a_fresh_broker_has_the_groups_of_the_tools() {
    let (dir, groups) = groups();
    assert!(groups.get("TOOLS_CONSUMER").is_some() && groups.get("CID_RMQ_SYS_TRANS").is_some());
    assert_eq!(open(&dir).data_version(), groups.data_version());
}

#[test]
fn the_first_client_creates_a_group_if_it_may() {
    let (dir, groups) = groups();
    assert_eq!(groups.get_or_create("g").unwrap().retry_max(None), 16);
    assert!(matches!(groups.get_or_create("a b"), Err(GroupError::Illegal { .. })));
    assert!(open(&dir).get("g").is_some());
    let closed = GroupsConfig { auto_create: false, ..config() };
    let groups = Groups::open(dir.path(), closed, fixture::clock()).unwrap();
    assert!(groups.get_or_create("g").is_ok());
    assert!(matches!(groups.get_or_create("h"), Err(GroupError::NotExist(_))));
}

#[test]
fn operators_declare_and_delete() {
    let (dir, groups) = groups();
    let config = SubscriptionGroupConfig {
        group_name: "g".to_owned(),
        retry_max_times: 3,
        consume_enable: false,
        ..SubscriptionGroupConfig::default()
    };
    groups.declare(config.clone()).unwrap();
    let version = groups.data_version();
    groups.declare(config).unwrap();
    assert_eq!(groups.data_version(), version);
    let group = open(&dir).get("g").unwrap();
    assert!(!group.config.consume_enable);
    assert_eq!((group.retry_max(None), group.retry_max(Some(5)), group.retry_max(Some(-1))), (3, 5, 3));
    groups.delete("g").unwrap();
    assert!(matches!(groups.delete("g"), Err(GroupError::NotExist(_))));
    assert!(matches!(groups.delete("TOOLS_CONSUMER"), Err(GroupError::System(_))));
}

#[test]
fn the_table_is_bounded() {
    let (_dir, groups) = groups();
    for n in 0..MAX - SYSTEM_GROUPS.len() {
        groups.get_or_create(&format!("g{n}")).unwrap();
    }
    assert!(matches!(groups.get_or_create("more"), Err(GroupError::Full { max: 20 })));
    let config =
        SubscriptionGroupConfig { group_name: "more".to_owned(), ..SubscriptionGroupConfig::default() };
    assert!(matches!(groups.declare(config), Err(GroupError::Full { .. })));
}

#[test]
fn retries_wait_longer_each_time() {
    assert_eq!(
        (Group::retry_level(0), Group::retry_level(15), Group::retry_level(i32::MAX)),
        (3, 18, i32::MAX)
    );
}

#[test]
fn a_heartbeat_makes_the_group_and_its_retry_topic() {
    let (dir, groups) = groups();
    let topics = Topics::open(dir.path(), fixture::topic_defaults(), fixture::clock()).unwrap();
    let members = Members::new(fixture::clock(), Arc::default(), Duration::from_secs(120), 100);
    let (outbox, _inbox) = Peer::outbox();
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let peer = Arc::new(Peer::new(1, address, "c", (Language::Go, 317), outbox));
    let mut data = HeartbeatData {
        client_id: "c".to_owned(),
        consumer_data_set: vec![ConsumerData { group_name: "g".to_owned(), ..ConsumerData::default() }],
        producer_data_set: vec![ProducerData { group_name: "p".to_owned() }],
        ..HeartbeatData::default()
    };
    let first = groups.heartbeat(&topics, &members, &data, &peer).unwrap();
    assert_eq!(first, Beat { change: Change::Yes, producers_joined: vec![GroupName::internal("p")] });
    let second = groups.heartbeat(&topics, &members, &data, &peer).unwrap();
    assert_eq!(second, Beat { change: Change::No, producers_joined: Vec::new() });
    assert_eq!(topics.get("%RETRY%g").unwrap().write_queues(), 1);
    assert!(members.is_online("g") && members.any_producer("p").is_some());
    assert!(groups.get("p").is_none());
    data.consumer_data_set = vec![ConsumerData::default(); GROUPS_PER_CLIENT_MAX];
    let refused = groups.heartbeat(&topics, &members, &data, &peer);
    assert!(matches!(refused, Err(HeartbeatError::TooManyGroups { .. })));
    data.client_id.clear();
    assert!(matches!(groups.heartbeat(&topics, &members, &data, &peer), Err(HeartbeatError::NoClientId)));
}

#[test]
fn forbidden_topics_are_in_the_file() {
    let dir = TempDir::new().unwrap();
    let open = || Groups::open(dir.path(), GroupsConfig::default(), fixture::clock()).unwrap();
    let groups = open();
    let group = groups.get_or_create("g").unwrap();
    groups.set_reading(&group.name, &TopicName::internal("T"), Reading::Forbidden).unwrap();
    let group = open().get("g").unwrap();
    assert_eq!((group.reading("T"), group.reading("U")), (Reading::Forbidden, Reading::Allowed));
    open().delete("g").unwrap();
    assert!(open().table().forbidden_table.unwrap().is_empty());
}

#[test]
fn attributes_are_changed_kept_and_found_again() {
    let (dir, groups) = groups();
    let declare = |groups: &Groups, change: &[(&str, &str)]| {
        let attributes =
            change.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let config = SubscriptionGroupConfig {
            group_name: "g".into(),
            attributes,
            ..SubscriptionGroupConfig::default()
        };
        groups.declare(config)
    };
    declare(&groups, &[("+gantry.start", "first"), ("+mine", "1")]).unwrap();
    let version = groups.data_version();
    declare(&groups, &[("gantry.start", "first"), ("-other", "")]).unwrap();
    assert_eq!(groups.data_version(), version, "nothing changed");
    let refused = declare(&groups, &[("+gantry.start", "never"), ("-mine", "")]).unwrap_err();
    assert!(refused.to_string().starts_with("group g: attribute gantry.start cannot be \"never\""));
    for groups in [&groups, &open(&dir)] {
        let group = groups.get("g").unwrap();
        assert_eq!(group.settings.start, Some(attributes::Start::First));
        assert_eq!(group.config.attributes.len(), 2);
    }
    declare(&groups, &[("-gantry.start", "")]).unwrap();
    assert_eq!(groups.get("g").unwrap().settings, Settings::default());
    let path = dir.path().join("subscriptionGroup.json");
    let newer = std::fs::read_to_string(path.as_path()).unwrap().replace("\"mine\":", "\"gantry.newer\":");
    std::fs::write(&path, newer).unwrap();
    let groups = open(&dir);
    assert_eq!(groups.get("g").unwrap().config.attributes["gantry.newer"], "1");
    assert!(declare(&groups, &[]).is_ok(), "what a newer broker wrote stays");
}
