//! Real `mqadmin` lines, all in one Java process, with an official consumer and one of ours online.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gantry_client::proto::remoting::body::topic::TopicConfig;
use gantry_client::{Client, ClientOptions, ConsumeFrom, Message, Outcome};
use gantry_tests::harness::Gantry;
use gantry_tests::java::{self, Answer, Module};

use crate::table;

/// About a minute; more on a busy machine.
const WITHIN: Duration = Duration::from_secs(300);

/// What the tool shows.
#[derive(Clone, Copy, Debug)]
enum Shows {
    /// All of these.
    All(&'static [&'static str]),
    /// That the request is not supported.
    Unsupported,
    /// The same, in one word.
    Error,
}

use Shows::{All, Error, Unsupported};

/// Commands that are not run, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("addBroker", "containers"),
    ("removeBroker", "containers"),
    ("resetMasterFlushOffset", "replicas"),
    ("getSyncStateSet", "controllers"),
    ("getControllerMetaData", "controllers"),
    ("getControllerConfig", "controllers"),
    ("updateControllerConfig", "controllers"),
    ("electMaster", "controllers"),
    ("cleanBrokerMetadata", "controllers"),
    ("getBrokerEpoch", "controllers"),
    ("dumpCompactionLog", "reads files of Apache's broker"),
    ("exportMetadataInRocksDB", "reads files of Apache's broker"),
    ("rocksDBConfigToJson", "reads files of Apache's broker"),
    ("exportPopRecord", "reads pop records of Apache's broker"),
    ("setConsumeMode", "see request 401"),
    ("startMonitoring", "runs until it is stopped; sends what consumerProgress sends"),
    ("clusterRT", "runs until it is stopped; sends what sendMsgStatus sends"),
    ("copyUser", "what listUser sends"),
    ("copyAcl", "what listAcl sends"),
    ("remappingStaticTopic", "static topics"),
    ("updateStaticTopic", "static topics"),
];

/// What the tool's own client sends at any time.
const BACKGROUND: [i32; 5] = [34, 35, 38, 40, 105];

/// The commands and what they show. `{broker}` (an address), `{dir}`, `{id}` (an offset message id), `{keyed}` (a message id) and
/// `{rust}` (a client id) are filled in.
const LINES: &[(&str, Shows)] = &[
    ("help", All(&["topicList", "updateTopic"])),
    ("topicList", All(&["Admin", "%RETRY%AdminJava"])),
    ("topicList -c", All(&["DefaultCluster", "AdminJava"])),
    ("clusterList", All(&["broker-a", "{broker}", "V5_5_0"])),
    ("updateTopic -c DefaultCluster -t AdminNew -r 4 -w 4", All(&["create topic to {broker} success"])),
    ("updateTopicList -b {broker} -f {dir}/topics.json", All(&["to {broker} success"])),
    ("updateTopicPerm -b {broker} -t AdminNew -p 4", All(&["from 6 to 4"])),
    ("topicRoute -t AdminListed", All(&["\"readQueueNums\":2"])),
    ("topicStatus -t Admin", All(&["broker-a", "Topic Put TPS"])),
    ("topicClusterList -t Admin", All(&["DefaultCluster"])),
    ("updateSubGroup -c DefaultCluster -g AdminGroup -r 3", All(&["success", "retryMaxTimes=3"])),
    (
        "updateSubGroup -b {broker} -g AdminGroup -r 3 --attributes +gantry.start=last,+a=b",
        All(&["success", "gantry.start=last"]),
    ),
    (
        "updateSubGroup -b {broker} -g AdminGroup -r 3 --attributes +gantry.start=soon,-a",
        All(&["it takes first, last"]),
    ),
    ("getConsumerConfig -g AdminGroup", All(&["gantry.start", "last"])),
    (
        r#"updateSubGroup -b {broker} -g AdminGroup -p {"type":"CUSTOMIZED","customizedRetryPolicy":{"next":[1000,5000]}}"#,
        All(&["success"]),
    ),
    (
        r#"updateSubGroup -b {broker} -g AdminGroup -p {"type":"EXPONENTIAL","exponentialRetryPolicy":{"initial":0,"max":5,"multiplier":2}}"#,
        All(&["begin with 1 ms or more"]),
    ),
    ("updateSubGroupList -b {broker} -f {dir}/groups.json", All(&["to {broker} success"])),
    ("getConsumerConfig -g AdminListed", All(&["AdminListed", "retryMaxTimes", "7"])),
    ("brokerStatus -b {broker}", All(&["bootTimestamp", "putTps"])),
    ("queryMsgById -t Admin -i {id}", All(&["OffsetID:", "{id}", "[TagA]"])),
    ("queryMsgById -t Admin -i {id} -g AdminJava -d 127.0.0.1@live", All(&["CR_SUCCESS"])),
    ("queryMsgById -t Admin -i {id} -g AdminRust -d {rust}", All(&["CR_LATER"])),
    ("queryMsgByKey -t Admin -k k1", All(&["{keyed}"])),
    ("queryMsgByUniqueKey -t Admin -i {keyed}", All(&["Admin", "[TagA]"])),
    ("queryMsgByOffset -t Admin -b broker-a -i 0 -o 0", All(&["Queue Offset:", "Admin"])),
    ("printMsg -t Admin -d true", All(&["MSGID: {keyed}"])),
    ("printMsgByQueue -t Admin -a broker-a -i 0 -p true -d true", All(&["MSGID:"])),
    ("sendMessage -t Admin -p hello -k k9 -c TagB", All(&["SEND_OK"])),
    ("consumeMessage -t Admin -c 3", All(&["Consume ok", "MSGID:"])),
    ("brokerConsumeStats -b {broker}", All(&["AdminJava", "Diff Total:"])),
    ("consumerConnection -g AdminJava", All(&["127.0.0.1@live", "JAVA", "CONSUME_PASSIVELY"])),
    ("consumerProgress", All(&["AdminJava", "AdminRust"])),
    // Consumers commit every five seconds: how far it got is not known.
    ("consumerProgress -g AdminJava", All(&["broker-a", "Diff Total:"])),
    ("consumerStatus -g AdminJava -i 127.0.0.1@live -s", All(&["#Consumer Properties#", "TID:"])),
    ("consumerStatus -g AdminRust -i {rust}", All(&["#Consumer Properties#", "#Consumer MQ Detail#"])),
    ("producerConnection -g CLIENT_INNER_PRODUCER -t Admin", All(&["127.0.0.1@live"])),
    ("producer -b {broker}", All(&["CLIENT_INNER_PRODUCER"])),
    ("cloneGroupOffset -s AdminJava -d AdminGroup -t Admin", All(&["clone group offset success"])),
    ("getBrokerConfig -b {broker}", All(&["brokerName"])),
    ("getNamesrvConfig", All(&["listenPort"])),
    ("updateKvConfig -s space -k name -v value", All(&["success"])),
    ("deleteKvConfig -s space -k name", All(&["success"])),
    ("updateOrderConf -t Admin -m put -v broker-a:4", All(&["update orderConf success"])),
    ("updateOrderConf -t Admin -m get", All(&["orderConf=[broker-a:4]"])),
    ("updateOrderConf -t Admin -m delete", All(&["delete orderConf success"])),
    ("wipeWritePerm -b broker-a", All(&["OK"])),
    ("addWritePerm -b broker-a", All(&["OK"])),
    ("resetOffsetByTime -g AdminJava -t Admin -s now", All(&["#queueId", "broker-a"])),
    ("skipAccumulatedMessage -g AdminJava -t Admin", All(&["#queueId", "broker-a"])),
    ("cleanExpiredCQ -b {broker}", All(&["success"])),
    ("deleteExpiredCommitLog -b {broker}", All(&["success"])),
    ("cleanUnusedTopic -b {broker}", All(&["success"])),
    ("statsAll", All(&["Admin", "AdminJava"])),
    ("allocateMQ -t Admin -i 10.0.0.1,10.0.0.2", All(&["10.0.0.2", "\"queueId\":3"])),
    ("checkMsgSendRT -t Admin -a 5 -s 10", All(&["true", "Avg RT"])),
    ("sendMsgStatus -b broker-a -c 3", All(&["SEND_OK"])),
    ("queryCq -t Admin -q 0 -i 0 -c 3 -b {broker}", All(&["min: 0", "tagsCode=2598919"])),
    ("queryMsgTraceById -i {keyed}", All(&["#Type", "Pub", "AdminProducer", "Sub", "AdminRust", "success"])),
    ("queryMsgTraceById -i {keyed} -t AdminTrace", All(&["#Type", "AdminProducer"])),
    ("exportMetadata -c DefaultCluster -f {dir}", All(&["metadata.json success"])),
    ("exportConfigs -c DefaultCluster -f {dir}", All(&["configs.json success"])),
    ("exportMetrics -c DefaultCluster -f {dir}", All(&["metrics.json success"])),
    ("deleteSubGroup -b {broker} -g AdminListed -r true", All(&["success"])),
    ("deleteTopic -c DefaultCluster -t AdminNew", All(&["success"])),
    ("updateNamesrvConfig -k a -v b", All(&["has no settings that change while it runs"])),
    ("updateBrokerConfig -b {broker} -k fileReservedTime -v 48", Unsupported),
    ("haStatus -b {broker}", Unsupported),
    ("getColdDataFlowCtrInfo -b {broker}", Unsupported),
    ("updateColdDataFlowCtrGroupConfig -b {broker} -g AdminGroup -v 10", Unsupported),
    ("removeColdDataFlowCtrGroupConfig -b {broker} -g AdminGroup", Unsupported),
    ("setCommitLogReadAheadMode -b {broker} -m 0", Unsupported),
    ("createUser -b {broker} -u user -p secret", Unsupported),
    ("updateUser -b {broker} -u user -p other", Unsupported),
    ("deleteUser -b {broker} -u user", Unsupported),
    ("getUser -b {broker} -u user", Unsupported),
    ("listUser -b {broker}", Unsupported),
    ("createAcl -b {broker} -s User:user -r Topic:Admin -a Pub -d Allow -i 10.0.0.1", Unsupported),
    ("updateAcl -b {broker} -s User:user -r Topic:Admin -a Pub -d Allow", Unsupported),
    ("deleteAcl -b {broker} -s User:user", Unsupported),
    ("getAcl -b {broker} -s User:user", Unsupported),
    ("listAcl -b {broker}", Unsupported),
    ("checkRocksdbCqWriteProgress -c DefaultCluster", Unsupported),
    ("switchTimerEngine -b {broker} -e F", Unsupported),
    ("getBrokerLiteInfo -b {broker}", Unsupported),
    ("getParentTopicInfo -p Admin", Error),
    ("getLiteTopicInfo -p Admin -l lite", Error),
    ("getLiteClientInfo -p Admin -g AdminGroup -c client", Error),
    ("getLiteGroupInfo -p Admin -g AdminGroup", Error),
    ("triggerLiteDispatch -p Admin -g AdminGroup", Error),
];

/// What one line brought.
#[derive(Debug, Default)]
struct Ran {
    command: String,
    said: String,
    codes: BTreeSet<i32>,
    stuck: bool,
}

/// The names that lines hold, and what they stand for.
type Names = Vec<(&'static str, String)>;

fn filled(text: &str, names: &Names) -> String {
    names.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
}

/// A topic with messages, and a consumer of ours that has them; it wants none of them that it gets again.
async fn prepare(name_server: &str) -> (Client, gantry_client::PushConsumer, Names) {
    let client = Client::connect(ClientOptions::new(name_server).traced()).await.unwrap();
    let config = TopicConfig {
        topic_name: "Admin".to_owned(),
        read_queue_nums: 4,
        write_queue_nums: 4,
        ..TopicConfig::default()
    };
    client.admin().create_topic(&config).await.unwrap();
    let producer = client.producer("AdminProducer").start().await.unwrap();
    let mut receipts = Vec::new();
    for _ in 0..8 {
        let message = Message::new("Admin", "hello").key("k1").tag("TagA");
        receipts.push(producer.send(message).await.unwrap());
    }
    // What a client with traces would say of the first one.
    let (id, place) = (&receipts[0].message_id, &receipts[0].offset_message_id);
    let fields = [
        "Pub",
        "1700000000000",
        "DefaultRegion",
        "AdminProducer",
        "Admin",
        id,
        "TagA",
        "k1",
        "127.0.0.1:10911",
        "5",
        "3",
        "0",
        place,
        "true",
    ];
    let trace = format!("{}\u{2}", fields.join("\u{1}"));
    producer.send(Message::new("AdminTrace", trace).key(id)).await.unwrap();
    let came = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&came);
    let consumer = client
        .push_consumer("AdminRust")
        .subscribe("Admin", "*")
        .from(ConsumeFrom::First)
        .start(move |_| {
            let first = count.fetch_add(1, Ordering::Relaxed) < 8;
            async move { if first { Outcome::Success } else { Outcome::Later } }
        })
        .await
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while came.load(Ordering::Relaxed) < 8 {
        assert!(Instant::now() < deadline, "the consumer has {} of 8 messages", came.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let traced = async || client.admin().message_traces(&receipts[0].message_id, None).await.unwrap().len();
    while traced().await < 3 {
        assert!(Instant::now() < deadline, "the client has written {} of 3 traces", traced().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let members = client.admin().group_members("AdminRust").await.unwrap().unwrap();
    let names = vec![
        ("{rust}", members.connection_set[0].client_id.clone()),
        ("{keyed}", receipts[0].message_id.clone()),
        ("{id}", receipts[0].offset_message_id.clone()),
    ];
    (client, consumer, names)
}

/// Runs the lines.
fn run(dir: &Path, scratch: &Path, name_server: &str, names: &Names) -> Vec<Ran> {
    fs::write(
        scratch.join("topics.json"),
        r#"[{"topicName":"AdminListed","readQueueNums":2,"writeQueueNums":2,"perm":6}]"#,
    )
    .unwrap();
    fs::write(scratch.join("groups.json"), r#"[{"groupName":"AdminListed","retryMaxTimes":7}]"#).unwrap();
    let line = |(line, _): &(&str, Shows)| {
        let words: Vec<_> = line.split(' ').map(|word| filled(word, names)).collect();
        format!("{}\t-n\t{name_server}\n", words.join("\t"))
    };
    let script = scratch.join("script");
    fs::write(&script, LINES.iter().map(line).collect::<String>()).unwrap();
    let script = script.to_str().unwrap();
    let output =
        java::run(dir, "gantry.suite.Admin", &[name_server, "Admin", script], WITHIN, |_| Answer::Nothing)
            .unwrap();
    let mut ran = Vec::new();
    let mut current = Ran::default();
    for line in &output.lines {
        match line.split_at_checked(2).unwrap_or((line, "")) {
            ("> ", command) => command.clone_into(&mut current.command),
            ("| ", said) => current.said.extend([said, "\n"]),
            (_, codes) if line.starts_with('<') => {
                current.stuck = codes == "stuck";
                current.codes = codes.split(' ').filter_map(|code| code.parse().ok()).collect();
                ran.push(std::mem::take(&mut current));
            }
            _ => {}
        }
    }
    assert_eq!(ran.len(), LINES.len(), "all lines are run; after {current:?}: {}", output.stderr);
    ran
}

/// What is wrong with what the tool showed.
fn wrong(ran: &Ran, shows: Shows, names: &Names) -> Option<String> {
    let said = &ran.said;
    let missing = match shows {
        All(texts) => texts.iter().find(|text| !said.contains(&filled(text, names))).copied(),
        Unsupported => Some("is not supported by this version").filter(|text| !said.contains(text)),
        Error => Some(" error").filter(|text| !said.contains(text)),
    };
    let what = missing
        .map(|text| format!("{text:?} is missing"))
        .or_else(|| ran.stuck.then(|| "stuck".to_owned()))?;
    Some(format!("{}: {what} in\n{said}", ran.command))
}

/// The names of the commands, as the tool's help lists them.
fn listed(help: &str) -> Vec<&str> {
    let indented = help.lines().filter_map(|line| line.strip_prefix("   "));
    indented.filter(|line| !line.starts_with(' ')).filter_map(|line| line.split_whitespace().next()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands() {
    let dir = match java::module(Module::Suite5) {
        Ok(dir) => dir,
        Err(why) => return java::skip(&why),
    };
    let gantry = Gantry::start(&["--policy", "memory"]);
    let name_server = gantry.name_server().to_string();
    let (client, consumer, mut names) = prepare(&name_server).await;
    let scratch = tempfile::tempdir().unwrap();
    names.push(("{broker}", gantry.broker().to_string()));
    names.push(("{dir}", scratch.path().display().to_string()));
    let ran = run(&dir, scratch.path(), &name_server, &names);
    consumer.shutdown().await;
    client.shutdown().await;

    let failures: Vec<_> =
        ran.iter().zip(LINES).filter_map(|(ran, (_, shows))| wrong(ran, *shows, &names)).collect();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), ran.len(), failures.join("\n"));

    let mut seen: BTreeMap<&str, (&str, BTreeSet<i32>)> = BTreeMap::new();
    for (ran, (_, shows)) in ran.iter().zip(LINES).skip(1) {
        let state = match shows {
            All(_) if ran.codes.contains(&318) => "refused",
            All(_) => "works",
            Unsupported | Error => "answered unsupported",
        };
        let codes = ran.codes.iter().filter(|code| !BACKGROUND.contains(code));
        seen.entry(&ran.command).or_insert((state, BTreeSet::new())).1.extend(codes);
    }
    let commands = listed(&ran[0].said);
    assert!(commands.len() > 80, "the tool lists its commands: {commands:?}");
    let row = |name: &&str| {
        let (state, codes) = match (seen.get(name), LEFT_OUT.iter().find(|(left, _)| left == name)) {
            (Some((state, codes)), _) => ((*state).to_owned(), codes.clone()),
            (None, Some((_, why))) => (format!("not run: {why}"), BTreeSet::new()),
            (None, None) => panic!("{name} is new: run it here, or say why not"),
        };
        let codes: Vec<_> = codes.iter().map(i32::to_string).collect();
        vec![(*name).to_owned(), state, codes.join(" ")]
    };
    let mut rows: Vec<_> = commands.iter().map(row).collect();
    rows.sort();
    table::check("commands", &["command", "state", "requests"], &rows, 2);
}
