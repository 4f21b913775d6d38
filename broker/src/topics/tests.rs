//! Topics that are found, made, changed, refused and kept.

use std::collections::BTreeMap;

use gantry_proto::json;
use tempfile::TempDir;

use super::*;
use crate::fixture;

fn defaults() -> TopicDefaults {
    TopicDefaults { max: 60, ..fixture::topic_defaults() }
}

fn open(dir: &TempDir) -> Topics {
    Topics::open(dir.path(), defaults(), fixture::clock()).unwrap()
}

fn topics() -> (TempDir, Topics) {
    let dir = TempDir::new().unwrap();
    let topics = open(&dir);
    (dir, topics)
}

fn config(name: &str, queues: i32) -> TopicConfig {
    TopicConfig {
        topic_name: name.to_owned(),
        read_queue_nums: queues,
        write_queue_nums: queues,
        ..TopicConfig::default()
    }
}

fn golden() -> &'static [u8] {
    include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/store/config/topics.json"))
}

#[test]
fn apaches_file_is_kept_with_everything_in_it() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("topics.json");
    std::fs::write(&path, golden()).unwrap();
    let topics = open(&dir);
    assert_eq!(topics.get("VecTrans").unwrap().config.attributes["message.type"], "TRANSACTION");
    assert_eq!(topics.get("BenchmarkTest").unwrap().write_queues(), 1024);
    let read = |bytes: &[u8]| json::parse(bytes).unwrap();
    let (theirs, ours) = (read(golden()), read(&std::fs::read(&path).unwrap()));
    for (name, config) in theirs["topicConfigTable"].as_object().unwrap() {
        assert_eq!(&ours["topicConfigTable"][name], config, "{name}");
    }
    // Our own state topic was missing.
    assert_eq!(ours["dataVersion"]["counter"], 15);
    assert_eq!(ours["topicConfigTable"]["rmq_sys_gantry_state"]["perm"], 4);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("\n\t\t\"VecAuto\":{\n\t\t\t\"attributes\":{},\n\t\t\t\"order\":false,"), "{text}");
}

#[test]
fn a_fresh_broker_has_the_same_system_topics_as_apache() {
    let (_dir, topics) = topics();
    let theirs = json::parse(golden()).unwrap();
    for (name, config) in theirs["topicConfigTable"].as_object().unwrap() {
        if !topics.is_system(name) {
            continue;
        }
        let ours = topics.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(Some(i64::from(ours.config.perm)), config["perm"].as_i64(), "{name}");
        assert_eq!(Some(i64::from(ours.config.read_queue_nums)), config["readQueueNums"].as_i64(), "{name}");
    }
}

#[test]
fn unknown_fields_survive_a_change() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("topics.json");
    let file = br#"{"topicConfigTable":{"T":{"topicName":"T","perm":6,"newField":{"a":1}}},"newTable":[1]}"#;
    std::fs::write(&path, file).unwrap();
    let topics = open(&dir);
    topics.declare(config("U", 2)).unwrap();
    let ours = json::parse(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(ours["topicConfigTable"]["T"]["newField"]["a"], 1);
    assert_eq!(ours["newTable"][0], 1);
}

#[test]
fn a_damaged_file_falls_back_to_the_one_before() {
    let (dir, topics) = topics();
    topics.declare(config("T", 2)).unwrap();
    topics.declare(config("U", 2)).unwrap();
    drop(topics);
    std::fs::write(dir.path().join("topics.json"), b"{\"topicConf").unwrap();
    let topics = open(&dir);
    assert!(topics.get("T").is_some() && topics.get("U").is_none());
}

#[test]
fn the_first_message_creates_a_topic_after_the_template() {
    let (dir, topics) = topics();
    let made = topics.resolve_for_send("Orders", "TBW102", 4).unwrap();
    assert_eq!((made.read_queues(), made.write_queues(), made.config.perm), (4, 4, 6));
    assert_eq!(topics.resolve_for_send("Many", "TBW102", 100).unwrap().write_queues(), 8);
    assert_eq!(topics.resolve_for_send("Few", "TBW102", -1).unwrap().write_queues(), 1);
    let version = topics.data_version();
    topics.resolve_for_send("Orders", "TBW102", 8).unwrap();
    assert_eq!(topics.data_version(), version);
    assert_eq!(open(&dir).get("Orders").unwrap().write_queues(), 4);
}

#[test]
fn what_cannot_be_created_is_refused() {
    let (dir, topics) = topics();
    let error = |name: &str, template: &str| topics.resolve_for_send(name, template, 4).unwrap_err();
    assert!(matches!(error("New", "Unknown"), TopicError::NotExist(_)));
    assert!(matches!(error("New", "SELF_TEST_TOPIC"), TopicError::NotExist(_)));
    assert!(matches!(error("a b", "TBW102"), TopicError::Illegal { .. }));
    assert!(matches!(error("RMQ_SYS_TRANS_HALF_TOPIC", "TBW102"), TopicError::NoPermission(_)));
    assert!(matches!(error("rmq_sys_gantry_state", "TBW102"), TopicError::NoPermission(_)));
    let closed = TopicDefaults { auto_create: false, ..defaults() };
    let topics = Topics::open(dir.path(), closed, fixture::clock()).unwrap();
    assert!(matches!(topics.resolve_for_send("New", "TBW102", 4), Err(TopicError::NotExist(_))));
    // Retry topics are the broker's own means.
    assert_eq!(topics.resolve_for_send("%RETRY%g", "TBW102", 4).unwrap().write_queues(), 1);
}

#[test]
fn operators_declare_and_delete() {
    let (dir, topics) = topics();
    topics.declare(config("T", 2)).unwrap();
    let version = topics.data_version();
    topics.declare(config("T", 2)).unwrap();
    assert_eq!(topics.data_version(), version);
    topics.declare(TopicConfig { perm: 4, ..config("T", 3) }).unwrap();
    let topic = topics.get("T").unwrap();
    assert!(topic.is_readable() && !topic.is_writable() && topic.read_queues() == 3);
    topics.delete("T").unwrap();
    assert!(matches!(topics.delete("T"), Err(TopicError::NotExist(_))));
    assert!(open(&dir).get("T").is_none());
}

#[test]
fn wrong_declarations_are_refused() {
    let (_dir, topics) = topics();
    let error = |config: TopicConfig| topics.declare(config).unwrap_err();
    assert!(matches!(error(config("a/b", 1)), TopicError::Illegal { .. }));
    assert!(matches!(error(config("T", -1)), TopicError::Queues { asked: -1, .. }));
    assert!(matches!(error(config("T", QUEUES_MAX + 1)), TopicError::Queues { .. }));
    assert!(matches!(error(TopicConfig { perm: 16, ..config("T", 1) }), TopicError::Perm { .. }));
    for system in ["TBW102", "broker-a", "DefaultCluster", "DefaultCluster_REPLY_TOPIC", "rmq_sys_x"] {
        assert!(matches!(error(config(system, 1)), TopicError::System(_)), "{system}");
        assert!(matches!(topics.delete(system), Err(TopicError::System(_))), "{system}");
    }
}

#[test]
fn the_table_is_bounded() {
    let (_dir, topics) = topics();
    let left = defaults().max - topics.all().len();
    for n in 0..left {
        topics.declare(config(&format!("T{n}"), 1)).unwrap();
    }
    assert!(matches!(topics.declare(config("more", 1)), Err(TopicError::Full { max: 60 })));
    assert!(matches!(topics.resolve_for_send("more", "TBW102", 1), Err(TopicError::Full { .. })));
    topics.declare(config("T0", 2)).unwrap();
}

#[test]
fn a_topic_says_itself_whether_resends_are_looked_for() {
    let (_dir, topics) = topics();
    let with = |value: &str| TopicConfig {
        attributes: BTreeMap::from([(attributes::DEDUP.to_owned(), value.to_owned())]),
        ..config("T", 1)
    };
    assert!(!topics.declare(with("false")).unwrap().dedup);
    assert!(topics.declare(with("true")).unwrap().dedup);
    assert!(topics.declare(config("U", 1)).unwrap().dedup);
}

#[test]
fn system_names_are_listed() {
    let (_dir, topics) = topics();
    topics.declare(config("T", 1)).unwrap();
    let names = topics.system_names();
    assert!(names.contains(&"TBW102".to_owned()) && !names.contains(&"T".to_owned()));
}
