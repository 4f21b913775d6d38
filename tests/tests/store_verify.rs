//! `gantry store verify` on stores of the real broker and of Apache's.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use gantry_broker::store::index::IndexOptions;
use gantry_broker::store::inspect::{Closed, Report, VerifyOptions, verify};
use gantry_broker::timer::Levels;
use gantry_client::{Client, ClientOptions, Message, Resolution};
use gantry_tests::harness::{self, Gantry};
use gantry_tests::vectors::{load, make_store};
use serde_json::Value;

const SMALL: IndexOptions = IndexOptions { slots: 100, entries: 40 };

fn look_at(dir: &Path, index: IndexOptions) -> Report {
    let options = VerifyOptions { index, delay_levels: Levels::default().delays_ms(), findings_max: 10 };
    verify(dir, &options, &mut |_, _| {}).expect("a store")
}

fn assert_sound(dir: &Path, index: IndexOptions, closed: Closed) -> Report {
    let report = look_at(dir, index);
    let findings: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "{findings:#?} {:?}", report.counts);
    assert_eq!(report.closed, closed);
    report
}

/// Records of a vector store that its Java reader listed, but for the blank ends of files.
fn listed(expected: &str) -> u64 {
    let records = load(expected);
    let records = records["records"].as_array().expect("records").iter();
    records.filter(|record| record["topic"].is_string()).count() as u64
}

#[test]
fn stores_that_apache_wrote_are_sound() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    make_store("store/files.json", dir.path());
    let report = assert_sound(dir.path(), IndexOptions::default(), Closed::Cleanly);
    assert_eq!(report.counts.records, listed("store_expected.json"));
    assert!(report.counts.keys > 50 && report.counts.entries > 50, "{:?}", report.counts);
    for (name, closed) in [("clean", Closed::Cleanly), ("live", Closed::Crashed)] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        make_store(&format!("small_store/{name}.json"), dir.path());
        let report = assert_sound(dir.path(), SMALL, closed);
        assert_eq!(report.counts.records, listed(&format!("small_store/{name}.expected.json")));
    }
}

/// `gantry store verify` and its JSON.
fn run(store: &Path) -> (Option<i32>, Value, String) {
    let store = store.to_str().expect("UTF-8");
    let ended = harness::run(&["store", "verify", "--store", store, "--output", "json"]);
    let json = serde_json::from_str(&ended.stdout).unwrap_or(Value::Null);
    (ended.code, json, ended.stderr)
}

/// Messages of every kind: with keys and tags, delayed, in transactions of every end.
async fn send_all_kinds(broker: &Gantry) {
    let options = ClientOptions::new(broker.name_server().to_string());
    let client = Client::connect(options).await.expect("connected");
    let producer = client.producer("P").start().await.expect("a producer");
    for n in 0..50 {
        let message = Message::new("T", format!("body {n}")).key(format!("k{n}")).tag("A");
        producer.send(message).await.expect("sent");
    }
    producer.send(Message::new("T", "later").delay_level(18)).await.expect("sent");
    let checker = |_| async { Resolution::Unknown };
    let transactions = client.transaction_producer("X", checker).start().await.expect("a producer");
    for n in 0..9 {
        let open = transactions.begin(Message::new("Paid", n.to_string())).await.expect("begun");
        match n % 3 {
            0 => open.commit().await.expect("committed"),
            1 => open.rollback().await.expect("rolled back"),
            _ => drop(open),
        }
    }
    client.shutdown().await;
}

fn files(dir: &Path) -> BTreeMap<PathBuf, (u64, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.append(&mut files(&path));
        } else {
            let meta = path.metadata().expect("a file");
            found.insert(path, (meta.len(), meta.modified().expect("a time")));
        }
    }
    found
}

#[tokio::test]
async fn a_store_of_the_real_broker_is_looked_at_and_not_touched() {
    let mut broker = Gantry::start(&["--policy", "memory"]);
    send_all_kinds(&broker).await;
    let store = broker.store().to_owned();

    let (code, _, stderr) = run(&store);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("in use by another process"), "{stderr}");

    broker.kill9();
    let before = files(&store);
    let (code, json, stderr) = run(&store);
    assert_eq!((code, &json["closed"]), (Some(0), &Value::from("crashed")), "{json} {stderr}");
    assert_eq!(json["damage"], 0, "{json}");
    assert_eq!(files(&store), before);

    broker.restart();
    send_all_kinds(&broker).await;
    broker.terminate();
    let before = files(&store);
    let (code, json, stderr) = run(&store);
    assert_eq!((code, &json["closed"]), (Some(0), &Value::from("cleanly")), "{json} {stderr}");
    assert_eq!(
        (&json["damage"], &json["mended"], &json["findings"]),
        (&0.into(), &0.into(), &Value::Array(vec![]))
    );
    let count = |name: &str| json["counts"][name].as_u64().expect("a count");
    assert!(count("records") > 120 && count("entries") == count("records"), "{json}");
    assert!(count("keys") > 220 && count("configFiles") > 2, "{json}");
    assert_eq!(files(&store), before);

    find_a_flipped_tag(&store);
}

/// A bit of a tag's hash in a queue entry, and what text says of it.
fn find_a_flipped_tag(store: &Path) {
    let queue = fs::read_dir(store.join("consumequeue/T")).expect("queues").next().expect("a queue");
    let path = queue.expect("an entry").path().join("00000000000000000000");
    let file = fs::File::options().read(true).write(true).open(&path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, 19).expect("read");
    file.write_all_at(&[byte[0] ^ 4], 19).expect("written");
    let (code, json, stderr) = run(store);
    assert_eq!((code, &json["damage"]), (Some(1), &Value::from(1)), "{json}");
    let finding = &json["findings"][0];
    assert_eq!((&finding["area"], &finding["byte"]), (&Value::from("queue"), &Value::from(0)), "{finding}");
    assert_eq!(finding["message"]["topic"], "T", "{finding}");
    assert!(stderr.contains("the store is damaged"), "{stderr}");

    let path = store.to_str().expect("UTF-8");
    let ended = harness::run(&["store", "verify", "--store", path]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.contains("\ndamage: consumequeue/T/"), "{}", ended.stdout);
    let ended = harness::run(&["store", "verify", "--store", path, "--findings", "0"]);
    assert!(ended.stdout.ends_with("… and 1 more: --findings N prints more\n"), "{}", ended.stdout);
}

#[test]
fn what_is_no_store_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (code, _, stderr) = run(dir.path());
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("--store"), "{stderr}");
    assert!(fs::read_dir(dir.path()).expect("there").next().is_none());
    assert_eq!(harness::run(&["store", "verify", "--findings", "many"]).code, Some(2));
}
