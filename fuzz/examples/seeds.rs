//! Makes the seeds of all targets anew: `fuzz/run --seeds`.
//!
//! Frames, records, batches, bodies and stores of the real Java classes come from `tests/vectors`; a broker's
//! own store and the requests of clients are made here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use gantry_broker::broker::Broker;
use gantry_broker::config::Policy;
use gantry_fuzz::{connection, store};
use gantry_proto::record::BatchItem;
use gantry_proto::record::Properties;
use gantry_proto::remoting::codes::RequestCode;
use gantry_proto::remoting::frame::{Frame, Serialize};
use gantry_proto::remoting::header::{ExtFields, OwnedCommand};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// Longest seed: longer vectors teach nothing that shorter ones do not.
const SEED_MAX: usize = 16_000;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("fuzz/ lies in the repository").to_path_buf()
}

fn vectors(name: &str) -> Value {
    let path = root().join("tests/vectors").join(name);
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).expect("a digit")).expect("below 16");
    text.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// The texts of a field of every entry of a list.
fn all<'v>(list: &'v Value, field: &'v str) -> impl Iterator<Item = &'v str> {
    list.as_array().expect("a list").iter().filter_map(move |entry| entry[field].as_str())
}

fn save(target: &str, seeds: impl IntoIterator<Item = Vec<u8>>) {
    let dir = root().join("fuzz/seeds").join(target);
    fs::create_dir_all(&dir).expect("made");
    let unique: BTreeSet<Vec<u8>> = seeds.into_iter().filter(|seed| seed.len() <= SEED_MAX).collect();
    let mut bytes = 0;
    for (number, seed) in unique.iter().enumerate() {
        bytes += seed.len();
        fs::write(dir.join(format!("{number:03}")), seed).expect("written");
    }
    println!("{target}: {} seeds, {bytes} bytes", unique.len());
}

fn main() {
    let commands = vectors("remoting_commands.5.5.0.json");
    save("frames", all(&commands, "hex").map(unhex));
    let messages = vectors("messages.json");
    let batches = vectors("batches.json");
    let properties = vectors("properties.json");
    let mut records: Vec<_> = all(&messages, "hex").chain(all(&batches, "hex")).map(unhex).collect();
    records.extend(all(&properties["parse"], "text").map(|text| text.as_bytes().to_vec()));
    records.extend(all(&vectors("message_ids.json"), "msgId").map(|text| text.as_bytes().to_vec()));
    records.extend(all(&vectors("names.json"), "topic").map(|text| text.as_bytes().to_vec()));
    save("records", records);
    let bodies = [vectors("json_bodies.5.5.0.json"), vectors("json_bodies.5.3.3.json")];
    let mut texts: Vec<_> =
        bodies.iter().flat_map(|list| all(list, "text")).map(|text| text.as_bytes().to_vec()).collect();
    for entry in fs::read_dir(root().join("tests/vectors/store/config")).expect("readable") {
        texts.push(fs::read(entry.expect("an entry").path()).expect("readable"));
    }
    save("json", texts);
    save("sql", expressions(&vectors("filter_sql92.json")));
    let traffic = traffic();
    save("store", [false, true].into_iter().flat_map(|live| stores(&traffic, live)));
    let mut requests = traffic;
    requests.extend(all(&commands, "hex").map(|hex| vector_request(&unhex(hex))));
    save("connection", requests);
}

/// Expressions of the vectors, each with its properties.
fn expressions(cases: &Value) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for case in cases.as_array().expect("a list") {
        let mut seed = case["expr"].as_str().expect("a text").as_bytes().to_vec();
        seed.push(0);
        for (name, value) in case["props"].as_object().expect("properties") {
            seed.extend([name, "\u{1}", value.as_str().expect("a text"), "\u{2}"].concat().bytes());
        }
        seeds.push(seed);
    }
    seeds
}

/// A request of the vectors, as raw bytes.
fn vector_request(frame: &[u8]) -> Vec<u8> {
    let mut seed = vec![0, 0b1_1000];
    seed.extend_from_slice(&u16::try_from(frame.len()).expect("short").to_be_bytes());
    seed.extend_from_slice(frame);
    seed
}

/// Small stores: those of the vectors, and what a broker leaves behind after the traffic.
fn stores(traffic: &[Vec<u8>], live: bool) -> Vec<Vec<u8>> {
    let name = if live { "small_store/live.json" } else { "small_store/clean.json" };
    let dir = tempfile::tempdir().expect("a directory");
    for (path, file) in vectors(name)["files"].as_object().expect("files") {
        let length = usize::try_from(file["length"].as_u64().expect("a length")).expect("small");
        let mut bytes = vec![0; length];
        for segment in file["segments"].as_array().expect("segments") {
            let at = usize::try_from(segment[0].as_u64().expect("a place")).expect("small");
            let part = unhex(segment[1].as_str().expect("hex"));
            bytes[at..at + part.len()].copy_from_slice(&part);
        }
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, bytes).expect("written");
    }
    let mut seeds = vec![store::pack(dir.path(), u8::from(live))];
    for requests in traffic.iter().filter(|_| live) {
        let dir = tempfile::tempdir().expect("a directory");
        leave_store(dir.path(), requests);
        seeds.push(store::pack(dir.path(), 3));
    }
    seeds
}

/// Lets a broker with small files work on requests and stop.
fn leave_store(dir: &Path, requests: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let config = store::config(dir, Policy::Memory, store::SEGMENT_BYTES);
        let broker = Broker::start(config).await.expect("it starts");
        let mut stream = TcpStream::connect(broker.broker_address()).await.expect("connected");
        for bytes in connection::requests(requests) {
            stream.write_all(&bytes).await.expect("written");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        drop(stream);
        broker.stop().await.expect("it stops");
    });
}

fn command(code: RequestCode, fields: &[(&str, &str)], body: &[u8]) -> OwnedCommand {
    let mut ext = ExtFields::new();
    for (name, value) in fields {
        ext.push((*name).to_owned(), (*value).to_owned());
    }
    OwnedCommand { ext, ..OwnedCommand::request(code, &()) }.body(body.to_vec())
}

fn send(topic: &str, properties: &str, body: &[u8]) -> OwnedCommand {
    let sys_flag = if properties.contains("TRAN_MSG") { "4" } else { "0" };
    let fields = [
        ("producerGroup", "P"),
        ("topic", topic),
        ("defaultTopic", "TBW102"),
        ("defaultTopicQueueNums", "2"),
        ("queueId", "0"),
        ("sysFlag", sys_flag),
        ("bornTimestamp", "1700000000000"),
        ("flag", "0"),
        ("properties", properties),
        ("reconsumeTimes", "0"),
        ("batch", "false"),
    ];
    command(RequestCode::SendMessage, &fields, body)
}

fn pull(topic: &str, offset: &str, wait: &str) -> OwnedCommand {
    let fields = [
        ("consumerGroup", "C"),
        ("topic", topic),
        ("queueId", "0"),
        ("queueOffset", offset),
        ("maxMsgNums", "8"),
        ("sysFlag", if wait == "0" { "4" } else { "6" }),
        ("commitOffset", "0"),
        ("suspendTimeoutMillis", wait),
        ("subscription", "*"),
        ("subVersion", "0"),
    ];
    command(RequestCode::PullMessage, &fields, b"")
}

fn end(offset: &str, how: &str) -> OwnedCommand {
    let fields = [
        ("producerGroup", "P"),
        ("tranStateTableOffset", offset),
        ("commitLogOffset", offset),
        ("commitOrRollback", how),
        ("fromTransactionCheck", "false"),
        ("msgId", "H1"),
        ("topic", "T"),
    ];
    command(RequestCode::EndTransaction, &fields, b"")
}

/// What clients ask for, one subject a seed.
fn traffic() -> Vec<Vec<u8>> {
    let mut batch = Vec::new();
    for body in [b"one", b"two"] {
        let item =
            BatchItem { flag: 0, body, properties: Properties::new(b"KEYS\x01k\x02UNIQ_KEY\x01U\x02") };
        item.encode_into(&mut batch).expect("an item");
    }
    let mut batch_send = send("T", "", &batch);
    batch_send.code = RequestCode::SendBatchMessage.code();
    batch_send.ext.set("batch", "true");
    let half = send("T", "TRAN_MSG\u{1}true\u{2}PGROUP\u{1}P\u{2}UNIQ_KEY\u{1}H1\u{2}", b"half");
    let heartbeat = br#"{"clientID":"c@1","consumerDataSet":[{"groupName":"C","consumeType":"CONSUME_PASSIVELY","messageModel":"CLUSTERING","consumeFromWhere":"CONSUME_FROM_FIRST_OFFSET","subscriptionDataSet":[{"topic":"T","subString":"*","subVersion":1}]}],"producerDataSet":[{"groupName":"P"}]}"#;
    let lock = br#"{"consumerGroup":"C","clientId":"c@1","mqSet":[{"topic":"T","brokerName":"broker-a","queueId":0}]}"#;
    let offset = |code, more: &[(&str, &str)]| {
        let fields =
            [&[("consumerGroup", "C"), ("group", "C"), ("topic", "T"), ("queueId", "0")], more].concat();
        command(code, &fields, b"")
    };
    let topic = |code| {
        let fields = [
            ("topic", "T"),
            ("defaultTopic", "TBW102"),
            ("readQueueNums", "4"),
            ("writeQueueNums", "4"),
            ("perm", "6"),
            ("topicFilterType", "SINGLE_TAG"),
            ("topicSysFlag", "0"),
            ("order", "false"),
        ];
        command(code, &fields, b"")
    };
    use RequestCode as Code;
    let subjects = [
        vec![send("T", "KEYS\u{1}k\u{2}UNIQ_KEY\u{1}U1\u{2}TAGS\u{1}A\u{2}", b"body"), pull("T", "0", "0")],
        vec![pull("T", "0", "5000"), send("T", "", b"x"), pull("T", "1", "5000"), send("T", "", b"y")],
        vec![batch_send, pull("T", "0", "0")],
        vec![half.clone(), end("0", "8"), pull("T", "0", "0"), half.clone(), end("0", "12"), half],
        vec![
            send("T", "DELAY\u{1}3\u{2}UNIQ_KEY\u{1}D\u{2}", b"later"),
            send("T", "UNIQ_KEY\u{1}D\u{2}", b"again"),
        ],
        vec![
            command(Code::HeartBeat, &[], heartbeat),
            command(Code::LockBatchMq, &[], lock),
            command(Code::UnlockBatchMq, &[], lock),
            command(Code::UnregisterClient, &[("clientID", "c@1"), ("consumerGroup", "C")], b""),
        ],
        vec![
            send("T", "", b"a"),
            offset(Code::UpdateConsumerOffset, &[("commitOffset", "1")]),
            offset(Code::QueryConsumerOffset, &[]),
            offset(Code::GetMaxOffset, &[]),
            offset(Code::GetMinOffset, &[]),
            offset(Code::SearchOffsetByTimestamp, &[("timestamp", "1700000000000")]),
            offset(
                Code::InvokeBrokerToResetOffset,
                &[("timestamp", "0"), ("isForce", "true"), ("offset", "0")],
            ),
        ],
        vec![
            topic(Code::UpdateAndCreateTopic),
            send("T", "KEYS\u{1}k\u{2}", b"a"),
            command(
                Code::QueryMessage,
                &[
                    ("topic", "T"),
                    ("key", "k"),
                    ("maxNum", "9"),
                    ("beginTimestamp", "0"),
                    ("endTimestamp", "9000000000000"),
                ],
                b"",
            ),
            command(Code::ViewMessageById, &[("offset", "0"), ("topic", "T")], b""),
            command(
                Code::ConsumerSendMsgBack,
                &[
                    ("offset", "0"),
                    ("group", "C"),
                    ("delayLevel", "1"),
                    ("originTopic", "T"),
                    ("maxReconsumeTimes", "2"),
                ],
                b"",
            ),
            topic(Code::DeleteTopicInBroker),
        ],
        vec![
            command(Code::GetRouteinfoByTopic, &[("topic", "T")], b""),
            command(Code::PutKvConfig, &[("namespace", "n"), ("key", "k"), ("value", "v")], b""),
            command(Code::GetKvConfig, &[("namespace", "n"), ("key", "k")], b""),
            command(
                Code::UpdateAndCreateSubscriptiongroup,
                &[],
                br#"{"groupName":"C","retryMaxTimes":3,"consumeEnable":true}"#,
            ),
            command(Code::GetConsumeStats, &[("consumerGroup", "C")], b""),
            command(Code::GetBrokerRuntimeInfo, &[], b""),
            command(Code::GetTopicStatsInfo, &[("topic", "T")], b""),
        ],
    ];
    let mut seeds = Vec::new();
    for (number, subject) in subjects.iter().enumerate() {
        let mut seed = vec![u8::from(number % 2 == 1)];
        for (at, command) in subject.iter().enumerate() {
            // Both connections, both forms.
            let what = if at % 3 == 1 { 1 } else { 0 } | if number % 2 == 0 { 2 } else { 0 };
            connection::pack(&mut seed, what, command);
        }
        seeds.push(seed);
    }
    // Frames that follow each other in one piece.
    let mut raw = Vec::new();
    for command in subjects.iter().flatten().take(8) {
        command.encode(&mut raw, Serialize::Json).expect("a frame");
    }
    assert!(Frame::cut(&raw, 1 << 20).expect("a frame").is_some());
    seeds.push(vector_request(&raw));
    seeds
}
