//! Whole files, from text to configuration.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tempfile::TempDir;

use super::super::load::{Loaded, load};
use super::super::{Config, Policy, ServeArgs};
use super::*;

/// Every key of Apache's broker 5.5.0 with its default.
const DEFAULTS: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/broker_conf.5.5.0.properties"));

/// The configuration of a `broker.conf` with this text and these variables.
fn with(text: &str, env: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("broker.conf");
    std::fs::write(&path, text).expect("writing the file");
    let args = ServeArgs { broker_conf: Some(path), ..ServeArgs::default() };
    load(&args, |name| env.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value)))
}

fn refused(text: &str) -> String {
    with(text, &[]).expect_err("it is refused").to_string()
}

#[test]
fn known_keys_set_what_they_set_in_apaches_broker() {
    let text = "brokerClusterName = lab\nbrokerName=broker-b\nbrokerId=0\nlistenPort=20911\nbindAddress=0.0.0.0\n\
        brokerIP1=192.0.2.7\nnamesrvAddr=ns1:9876;ns2:9876\nstorePathRootDir=/data/store\nstorePathCommitLog=/data/store/commitlog/\n\
        mapedFileSizeCommitLog=67108864\nmappedFileSizeConsumeQueue=300000\nmaxHashSlotNum=1000\nmaxIndexNum=4000\n\
        fileReservedTime=48\nflushDiskType=SYNC_FLUSH\nautoCreateTopicEnable=False\nautoCreateSubscriptionGroup=false\n\
        maxMessageSize=65536\nmessageDelayLevel=1s 1m 1h 1d\ntransactionTimeOut=60000\ntransactionCheckMax=5\n\
        transactionCheckInterval=60000\ndefaultTopicQueueNums=4\nstoreReplyMessageEnable=false\ntimerMaxDelaySec=86400\n\
        channelExpiredTimeout=90000\nserverChannelMaxIdleTimeSeconds=60\ndiskSpaceWarningLevelRatio=95\n";
    let config = with(text, &[]).expect("it is valid").config;
    let mut expected = Config::default();
    let node = &mut expected.node;
    (node.cluster, node.name) = ("lab".to_owned(), "broker-b".to_owned());
    (node.bind, node.advertise) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), Some("192.0.2.7".to_owned()));
    node.name_servers = vec!["ns1:9876".to_owned(), "ns2:9876".to_owned()];
    expected.ports.broker = 20911;
    expected.store.dir = PathBuf::from("/data/store");
    (expected.store.segment_bytes, expected.store.queue_file_bytes) = (67_108_864, 300_000);
    (expected.store.index_slots, expected.store.index_entries) = (1000, 4000);
    (expected.retention.time, expected.retention.refuse_percent) = (Duration::from_secs(48 * 3600), 95);
    (expected.topics.auto_create, expected.groups.auto_create) = (false, false);
    (expected.topics.template_queues, expected.topics.store_replies) = (4, false);
    (expected.limits.message_bytes, expected.limits.idle) = (65_536, Duration::from_secs(60));
    expected.timer.delay_levels = [1, 60, 3600, 86_400].map(Duration::from_secs).to_vec();
    expected.timer.max_delay = Duration::from_secs(86_400);
    expected.transaction.timeout = Duration::from_secs(60);
    (expected.transaction.check_interval, expected.transaction.max_checks) = (Duration::from_secs(60), 5);
    expected.groups.member_expiry = Duration::from_secs(90);
    assert_eq!(config, expected);
}

#[test]
fn apaches_own_defaults_are_taken_and_every_key_is_known() {
    let loaded = with(DEFAULTS, &[]).expect("its defaults are valid");
    assert_eq!(loaded.config.store.policy, Policy::Memory);
    assert_eq!(loaded.config.timer.delay_levels, Config::default().timer.delay_levels);
    assert!(loaded.ignored.len() > 300, "{}", loaded.ignored.len());
}

#[test]
fn everything_else_wins_over_it() {
    let env = [("GANTRY_BROKER_NAME", "from-environment")];
    let config = with("brokerName=from-conf\nlistenPort=12000\n", &env).expect("it is valid").config;
    assert_eq!((config.node.name.as_str(), config.ports.broker), ("from-environment", 12_000));
}

#[test]
fn what_would_mean_something_else_is_refused_with_file_line_and_key() {
    for (text, line, key, what) in [
        ("\nbrokerRole=SLAVE", 2, "brokerRole", "without followers"),
        ("brokerRole=SYNC_MASTER", 1, "brokerRole", "acknowledged when its own"),
        ("brokerId=1", 1, "brokerId", "without followers"),
        ("# c\nenableDLegerCommitLog=true", 2, "enableDLegerCommitLog", "without followers"),
        ("storeType=defaultRocksDB", 1, "storeType", "nothing in RocksDB"),
        ("aclEnable=true", 1, "aclEnable", "a firewall"),
        ("brokerPermission=4", 1, "brokerPermission", "permissions of its topics"),
        ("flushDiskType=SOMETIMES", 1, "flushDiskType", "ASYNC_FLUSH or SYNC_FLUSH"),
        ("fileReservedTime=3 days", 1, "fileReservedTime", "is not a number"),
        ("listenPort=99999", 1, "listenPort", "is not a number from"),
        ("storePathCommitLog=/a/commitlog", 1, "storePathCommitLog", "storePathRootDir"),
        ("storePathRootDir=/a\nstorePathCommitLog=/b/commitlog", 2, "storePathCommitLog", "/a/commitlog"),
        ("flushDiskTyp=SYNC_FLUSH", 1, "flushDiskTyp", "did you mean flushDiskType?"),
        (
            "mapedFileSizeCommitLog=4096\nmappedFileSizeCommitLog=8192",
            2,
            "mappedFileSizeCommitLog",
            "contradicts",
        ),
    ] {
        let said = refused(text);
        let place = format!("broker.conf, line {line}, key {key}: ");
        assert!(said.contains(&place) && said.contains(what), "{text:?}: {said}");
    }
    assert!(refused("a=\\u12").contains("broker.conf, line 1: "));
}

#[test]
fn what_has_no_effect_is_listed_with_its_reason() {
    let loaded = with("deleteWhen=04\nforceRegister=true\nfileReservedTime=72\n", &[]).expect("it is valid");
    let said: Vec<String> = loaded.ignored.iter().map(ToString::to_string).collect();
    let [when, names] = said.as_slice() else { panic!("{said:?}") };
    assert!(when.contains("line 1: deleteWhen is ignored: log files go"), "{when}");
    assert!(names.contains("line 2: forceRegister is ignored: how Gantry registers"), "{names}");
}

#[test]
fn the_last_of_two_counts() {
    let config =
        with("brokerId=1\nbrokerId=0\nbrokerName=a\nbrokerName=b\n", &[]).expect("it is valid").config;
    assert_eq!(config.node.name, "b");
}
