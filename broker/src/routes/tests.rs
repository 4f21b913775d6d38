use gantry_proto::ids::Millis;
use gantry_proto::json;
use gantry_proto::remoting::body::Body;
use tempfile::TempDir;

use super::fixture::{FOUR, REACHED, registration, registry};
use super::foreign::{BROKERS_MAX, TOPICS_MAX};
use super::*;
use crate::fixture::clock;

fn brokers(route: &RouteData) -> Vec<&str> {
    route.broker_datas.iter().map(|data| data.broker_name.as_str()).collect()
}

fn perms(route: &RouteData) -> Vec<i32> {
    route.queue_datas.iter().map(|data| data.perm).collect()
}

fn sample(name: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/json_bodies.5.5.0.json");
    let samples: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let sample = samples.as_array().unwrap().iter().find(|sample| sample["name"] == name).unwrap();
    sample["text"].as_str().unwrap().to_owned()
}

#[test]
fn routes_have_the_shape_of_the_java_classes() {
    let dir = TempDir::new().unwrap();
    let embedded = registry(dir.path(), &[], clock());
    let mut master = registration(&["TopicTest", "other"]);
    embedded.register(master.clone()).unwrap();
    master.broker.id = 1;
    master.broker.address = "192.0.2.11:10911".to_owned();
    embedded.register(master).unwrap();
    let route = embedded.route("TopicTest", REACHED).unwrap();
    for (name, version) in [("TopicRouteData (default)", 317), ("TopicRouteData (standard JSON)", 513)] {
        let text = String::from_utf8(answer::encode(&route, version, false)).unwrap();
        assert_eq!(text, sample(name).replace("broker-a", "broker-b"), "{name}");
    }
    let group = embedded.members("DefaultCluster", "broker-b", REACHED);
    let sampled = sample("GetBrokerMemberGroupResponseBody").replace("broker-a", "broker-b");
    let sampled = json::parse(sampled.as_bytes()).unwrap();
    assert_eq!(json::parse(&group.to_json()).unwrap(), sampled["brokerMemberGroup"]);
}

/// The answers of a real name server with one broker are ours but for names and addresses.
#[test]
fn a_lone_broker_answers_as_apache_does() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/broker_admin_samples.json");
    let samples: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let body = |key: &str| json::parse(samples[key]["body"].as_str().unwrap().as_bytes()).unwrap();
    let (cluster, route) = (body("106 "), body("105 {topic=VecNormal}"));
    let data = &route["brokerDatas"][0];
    let (name, cluster_name) = (data["brokerName"].as_str().unwrap(), data["cluster"].as_str().unwrap());
    let (host, port) = data["brokerAddrs"]["0"].as_str().unwrap().rsplit_once(':').unwrap();
    let node = crate::config::NodeConfig {
        name: name.to_owned(),
        cluster: cluster_name.to_owned(),
        advertise: Some(host.to_owned()),
        ..Default::default()
    };
    let queues = serde_json::from_value::<gantry_proto::remoting::body::route::QueueData>(
        route["queueDatas"][0].clone(),
    )
    .unwrap();
    let queues = TopicQueues {
        read: queues.read_queue_nums,
        write: queues.write_queue_nums,
        perm: queues.perm,
        sys_flag: queues.topic_sys_flag,
    };
    let topics = fixture::FixedTopics([("VecNormal".to_owned(), queues)].into());
    let dir = TempDir::new().unwrap();
    let kv = KvConfig::open(dir.path()).unwrap();
    let own = OwnBroker::new(&node, port.parse().unwrap());
    let drain = Arc::new(Drain::open(dir.path(), name, clock()).unwrap());
    let embedded = Embedded::new(own, Arc::new(topics), kv, drain, clock());
    let ours = embedded.route("VecNormal", REACHED).unwrap();
    assert_eq!(json::parse(&ours.to_json()).unwrap(), route);
    assert_eq!(json::parse(&embedded.cluster_info(REACHED).to_json()).unwrap(), cluster);
}

#[test]
fn own_and_foreign_brokers_share_a_topic() {
    let dir = TempDir::new().unwrap();
    let embedded = registry(dir.path(), &["orders", "mine"], clock());
    assert_eq!(embedded.route("theirs", REACHED), None);
    embedded.register(registration(&["orders", "theirs"])).unwrap();
    assert_eq!(brokers(&embedded.route("orders", REACHED).unwrap()), ["broker-a", "broker-b"]);
    assert_eq!(brokers(&embedded.route("mine", REACHED).unwrap()), ["broker-a"]);
    assert_eq!(brokers(&embedded.route("theirs", REACHED).unwrap()), ["broker-b"]);
    let all = embedded.topics(None, &|_| true);
    assert_eq!(all.iter().map(String::as_str).collect::<Vec<_>>(), ["mine", "orders", "theirs"]);
    assert!(embedded.topics(Some("elsewhere"), &|_| true).is_empty());
    assert_eq!(embedded.topics(Some("DefaultCluster"), &|queues| queues == FOUR).len(), 3);
    let info = embedded.cluster_info(REACHED);
    assert_eq!(info.cluster_addr_table["DefaultCluster"].len(), 2);
    assert_eq!(info.broker_addr_table["broker-a"].broker_addrs[&0], "127.0.0.1:10911");
    assert_eq!(embedded.members("elsewhere", "broker-b", REACHED).broker_addrs.len(), 0);

    embedded.kv().put(kv::ORDER_TOPIC_CONFIG, "orders", "broker-a:4").unwrap();
    let route = embedded.route("orders", REACHED).unwrap();
    assert_eq!(route.order_topic_conf.as_deref(), Some("broker-a:4"));

    embedded.forget_topic("orders", Some("elsewhere"));
    assert_eq!(embedded.route("orders", REACHED).unwrap().queue_datas.len(), 2);
    embedded.forget_topic("orders", Some("DefaultCluster"));
    embedded.forget_topic("theirs", None);
    assert_eq!(brokers(&embedded.route("orders", REACHED).unwrap()), ["broker-a"]);
    assert_eq!(embedded.route("theirs", REACHED), None);
}

#[test]
fn a_broker_leaves_by_silence_by_its_connection_and_by_its_word() {
    let dir = TempDir::new().unwrap();
    let clock = clock();
    let embedded = registry(dir.path(), &[], Arc::clone(&clock));
    let there = || embedded.route("t", REACHED).is_some();
    let broker = registration(&["t", "u"]);

    embedded.register(broker.clone()).unwrap();
    clock.advance(100_000);
    assert_eq!(embedded.heard("DefaultCluster", "192.0.2.10:10911"), Some(DataVersion::default()));
    assert_eq!(embedded.heard("other", "192.0.2.10:10911"), None);
    clock.advance(120_000);
    assert!(there());
    clock.advance(1);
    assert!(!there());
    assert_eq!(embedded.heard("DefaultCluster", "192.0.2.10:10911"), None);

    embedded.register(Registration { timeout_ms: Some(10_000), ..broker.clone() }).unwrap();
    clock.advance(10_001);
    assert!(!there());

    embedded.register(broker.clone()).unwrap();
    embedded.connection_closed(7);
    assert!(there());
    embedded.connection_closed(1);
    assert!(!there());

    embedded.register(broker.clone()).unwrap();
    embedded.unregister(&BrokerIdentity { address: "192.0.2.99:1".to_owned(), ..broker.broker.clone() });
    assert!(there());
    embedded.unregister(&broker.broker);
    assert!(!there());
    // A clock that was set back keeps nobody out.
    embedded.register(broker).unwrap();
    clock.set(Millis::ZERO);
    assert!(there());
}

#[test]
fn wiped_brokers_take_no_messages_until_they_may_again() {
    let dir = TempDir::new().unwrap();
    let embedded = registry(dir.path(), &["t", "own"], clock());
    let broker = registration(&["t", "u", "v"]);
    embedded.register(broker.clone()).unwrap();
    assert_eq!(embedded.set_wiped("broker-b", true), 3);
    // It stays wiped although the broker registers what it has, again and again.
    embedded.register(broker).unwrap();
    assert_eq!(perms(&embedded.route("t", REACHED).unwrap()), [6, 4]);
    assert_eq!(embedded.set_wiped("broker-a", true), 2);
    assert_eq!(perms(&embedded.route("t", REACHED).unwrap()), [4, 4]);
    embedded.set_wiped("broker-a", false);
    embedded.set_wiped("broker-b", false);
    assert_eq!(perms(&embedded.route("t", REACHED).unwrap()), [6, 6]);
    assert_eq!(embedded.set_wiped("nobody", true), 0);
}

#[test]
fn replicas_learn_their_master_and_stand_in_for_it() {
    let dir = TempDir::new().unwrap();
    let embedded = registry(dir.path(), &[], clock());
    let master = Registration { acting_master: Some(true), ..registration(&["t", "u"]) };
    assert_eq!(embedded.register(master.clone()).unwrap(), Registered::default());
    let mut replica = Registration { connection: 2, ..master.clone() };
    replica.broker.id = 1;
    replica.broker.address = "192.0.2.11:10911".to_owned();
    replica.inventory.topics.insert("of the replica".to_owned(), FOUR);
    let told = embedded.register(replica.clone()).unwrap();
    assert_eq!(told.master_address.as_deref(), Some("192.0.2.10:10911"));
    assert_eq!(told.ha_address.as_deref(), Some("192.0.2.10:10912"));
    assert_eq!(embedded.route("of the replica", REACHED), None);

    embedded.connection_closed(1);
    embedded.register(replica.clone()).unwrap();
    let route = embedded.route("of the replica", REACHED).unwrap();
    assert_eq!((perms(&route), route.broker_datas[0].broker_addrs.len()), (vec![4], 1));

    // It becomes the master: its old id is gone.
    replica.broker.id = 0;
    embedded.register(replica).unwrap();
    let route = embedded.route("t", REACHED).unwrap();
    assert_eq!(perms(&route), [6]);
    assert_eq!(route.broker_datas[0].broker_addrs.keys().copied().collect::<Vec<_>>(), [0]);
}

#[test]
fn an_older_master_does_not_push_a_newer_one_out() {
    let dir = TempDir::new().unwrap();
    let embedded = registry(dir.path(), &[], clock());
    let mut newer = registration(&["t", "u"]);
    newer.inventory.version.state_version = 2;
    embedded.register(newer).unwrap();
    let mut older = registration(&["t", "u"]);
    older.broker.address = "192.0.2.99:10911".to_owned();
    embedded.register(older).unwrap();
    let route = embedded.route("t", REACHED).unwrap();
    assert_eq!(route.broker_datas[0].broker_addrs[&0], "192.0.2.10:10911");
}

#[test]
fn registrations_that_break_a_rule_are_refused() {
    let dir = TempDir::new().unwrap();
    let embedded = registry(dir.path(), &[], clock());
    let mut broker = registration(&["t"]);
    assert!(matches!(embedded.register(broker.clone()), Err(RegisterError::OneTopic { id: 0, .. })));
    broker.inventory.topics.clear();
    broker.broker.address.clear();
    let error = embedded.register(broker.clone()).unwrap_err();
    assert_eq!(error.to_string(), "brokerAddr has 0 bytes; it must have 1 to 255");
    broker.broker.name = "broker-a".to_owned();
    assert!(matches!(embedded.register(broker.clone()), Err(RegisterError::OwnName { .. })));

    for n in 0..BROKERS_MAX {
        broker.broker.name = format!("broker-{n}");
        broker.broker.address = format!("192.0.2.1:{n}");
        embedded.register(broker.clone()).unwrap();
    }
    // Who is there may still say something new.
    embedded.register(broker.clone()).unwrap();
    broker.broker.name = "one more".to_owned();
    assert_eq!(embedded.register(broker.clone()), Err(RegisterError::Brokers));
    broker.broker.name = "broker-1".to_owned();
    broker.inventory.topics = (0..=TOPICS_MAX).map(|n| (n.to_string(), FOUR)).collect();
    let topics = TOPICS_MAX + 1;
    assert_eq!(embedded.register(broker), Err(RegisterError::Topics { topics }));
}

#[test]
fn a_topic_is_added_to_brokers_that_are_registered() {
    let dir = TempDir::new().unwrap();
    let embedded = registry(dir.path(), &[], clock());
    embedded.register(registration(&["TopicTest", "other"])).unwrap();
    let on = |broker: &str| vec![FOUR.on(broker)];
    embedded.add_topic("added", &on("broker-b")).unwrap();
    assert_eq!(brokers(&embedded.route("added", REACHED).unwrap()), ["broker-b"]);
    let unknown = embedded.add_topic("more", &on("broker-x")).unwrap_err();
    assert_eq!(unknown, RegisterError::NoBroker { name: "broker-x".to_owned() });
    assert!(embedded.route("more", REACHED).is_none());
    let long = "t".repeat(foreign::NAME_BYTES_MAX + 1);
    assert!(matches!(embedded.add_topic(&long, &on("broker-b")), Err(RegisterError::Name { .. })));
}
