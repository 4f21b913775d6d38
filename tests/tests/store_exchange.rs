//! Gantry and Apache's broker 5.5.0 open each other's stores and serve all that the other acknowledged: messages,
//! committed offsets, the key index, pending delayed messages and retries, open transactions.
//!
//! `gantry.suite.Store` (in `clients/java`) writes through the first broker and prints what was acknowledged; it
//! reads through the second one and prints what is served. Here the two lists are compared.
//!
//! Run one direction alone: `cargo test -p gantry-tests --test store_exchange apache_to`.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::Duration;

use gantry_tests::apache::Apache;
use gantry_tests::harness::Gantry;
use gantry_tests::java::{self, Answer, Module};
use serde_json::Value;

/// The delayed messages take a minute; the rest is for a busy machine.
const WITHIN: Duration = Duration::from_secs(200);
/// Begins all names of a run; every run has a store of its own.
const PREFIX: &str = "x";
/// Both brokers must be told the same size of a log file.
const SEGMENT: [&str; 2] = ["--segment-bytes", "64MiB"];
/// Producers leave transactions open here: nobody may check them before the other broker does.
const WRITING: &[&str] =
    &["flushDiskType=ASYNC_FLUSH", "transactionTimeOut=60000", "transactionOpBatchInterval=200"];
/// Apache checks from its start on, also while no producer is there.
const SETTLING: &[&str] = &[
    "flushDiskType=ASYNC_FLUSH",
    "transactionTimeOut=2000",
    "transactionCheckInterval=2000",
    "transactionCheckMax=100",
    "transactionOpBatchInterval=200",
];

#[test]
fn apache_to_gantry() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = dir.path().join("store");
    let Some(suite) = suite() else { return };
    let apache = Apache::start_on(&store, WRITING).expect("Apache's broker starts");
    let written = exchange(&suite, apache.name_server(), &["write"]);
    apache.stop().expect("Apache's broker stops");

    let mut flags = vec!["--transaction-timeout", "2s", "--transaction-check-interval", "2s"];
    flags.extend(SEGMENT);
    let mut gantry = Gantry::start_on(&store, &flags);
    let name_server = gantry.name_server().to_string();
    expect_served(&written, &exchange(&suite, &name_server, &["read"]));
    expect_settled(&written, &exchange(&suite, &name_server, &["read", "--settle", "90"]));
    // What it took over is its own now: it comes back from a crash with it.
    gantry.kill9();
    gantry.restart();
    expect_visible(&written, &exchange(&suite, &name_server, &["read"]), Visible::Settled);
}

/// Both ways to stop at the same time: most of it is waiting.
#[test]
fn gantry_to_apache() {
    if suite().is_none() {
        return;
    }
    thread::scope(|scope| {
        let stopped = scope.spawn(|| gantry_goes_then_apache(Gantry::terminate));
        let killed = scope.spawn(|| gantry_goes_then_apache(Gantry::kill9));
        stopped.join().expect("after SIGTERM Apache serves all");
        killed.join().expect("after SIGKILL Apache serves all");
    });
}

fn gantry_goes_then_apache(go: impl FnOnce(&mut Gantry)) {
    let dir = tempfile::tempdir().expect("a directory");
    let store = dir.path().join("store");
    let suite = suite().expect("it was there before");
    let mut flags = vec!["--policy", "memory", "--transaction-timeout", "60s"];
    flags.extend(SEGMENT);
    let mut gantry = Gantry::start_on(&store, &flags);
    let written = exchange(&suite, &gantry.name_server().to_string(), &["write"]);
    go(&mut gantry);

    let apache = Apache::start_on(&store, SETTLING).expect("Apache's broker starts");
    expect_served(&written, &exchange(&suite, apache.name_server(), &["read"]));
    expect_settled(&written, &exchange(&suite, apache.name_server(), &["read", "--settle", "90"]));
}

fn suite() -> Option<std::path::PathBuf> {
    java::module(Module::Suite5).inspect_err(|why| java::skip(why)).ok()
}

/// Runs `gantry.suite.Store`; its lines.
fn exchange(suite: &Path, name_server: &str, arguments: &[&str]) -> Vec<Value> {
    let mut all = vec!["--namesrv", name_server, "--prefix", PREFIX];
    all.extend(arguments);
    let output =
        java::run(suite, "gantry.suite.Store", &all, WITHIN, |_| Answer::Nothing).expect("java runs");
    assert_eq!(output.code, Some(0), "{arguments:?} failed: {}", output.stderr);
    output.lines.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

/// What must be seen of delayed messages and open transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Visible {
    /// Delayed messages if they are due; no open transaction.
    Served,
    /// All but what was rolled back.
    Settled,
}

/// Right after the first broker went.
fn expect_served(written: &[Value], read: &[Value]) {
    expect_visible(written, read, Visible::Served);
    expect_same_offsets(written, read);
    expect_index(read);
}

/// After the checks were answered and the delays were over.
fn expect_settled(written: &[Value], read: &[Value]) {
    expect_visible(written, read, Visible::Settled);
    expect_index(read);
    let retried = of_kind(read, "retried");
    assert_eq!(retried.len(), 1, "the refused message is consumed once more: {retried:#?}");
    assert_eq!(retried[0]["reconsumeTimes"], 1, "{:#}", retried[0]);
    let refused = of_kind(written, "retry");
    assert_eq!(retried[0]["uniqKey"], refused[0]["uniqKey"], "{:#}", retried[0]);
}

/// Each acknowledged message once, unchanged, and nothing else.
fn expect_visible(written: &[Value], read: &[Value], visible: Visible) {
    let mut served: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for message in of_kind(read, "message") {
        served.entry(text(message, "uniqKey")).or_default().push(message);
    }
    let mut sent = 0;
    for message in written.iter().filter(|line| line["kind"] != "offset") {
        sent += 1;
        let found = served.remove(text(message, "uniqKey")).unwrap_or_default();
        let expected = match (text(message, "kind"), visible) {
            ("rolled back", _) | ("open", Visible::Served) => 0..=0,
            ("open", Visible::Settled) => {
                let copies = usize::from(text(message, "body").ends_with("-commit"));
                copies..=copies
            }
            ("delayed", Visible::Served) => 0..=1,
            _ => 1..=1,
        };
        assert!(
            expected.contains(&found.len()),
            "{visible:?}: expected {expected:?} times, found {} times {found:#?}:\n{message:#}",
            found.len()
        );
        if let Some(found) = found.first() {
            expect_unchanged(message, found);
        }
    }
    assert!(sent >= 100, "the writer acknowledged {sent} messages only");
    assert!(served.is_empty(), "expected no other messages, found {served:#?}");
}

fn expect_unchanged(sent: &Value, found: &Value) {
    let mut fields = vec!["topic", "sha1", "bodyLength", "tags", "keys", "flag"];
    // These were answered with their place in another topic.
    let moved = ["delayed", "committed", "open"].contains(&text(sent, "kind"));
    if !moved {
        fields.extend(["queueId", "queueOffset"]);
    }
    for field in fields {
        assert_eq!(sent[field], found[field], "{field} of\n{sent:#}\nis served as\n{found:#}");
    }
    for (name, value) in sent["userProperties"].as_object().expect("a map") {
        assert_eq!(
            found["properties"].get(name),
            Some(value),
            "{name} of\n{sent:#}\nis served as\n{found:#}"
        );
    }
    if sent["kind"] == "delayed" {
        let delay = if text(sent, "body").ends_with(['0', '1', '2']) { 60_000 } else { 30_000 };
        let (born, stored) = (found["bornTimestamp"].as_i64(), found["storeTimestamp"].as_i64());
        let took = stored.zip(born).map(|(stored, born)| stored - born);
        assert!(took.is_some_and(|took| took >= delay - 1000), "delivered after {took:?} ms:\n{found:#}");
    }
}

fn expect_same_offsets(written: &[Value], read: &[Value]) {
    assert_eq!(of_kind(written, "offset"), of_kind(read, "offset"), "committed offsets");
}

fn expect_index(read: &[Value]) {
    let found: Vec<_> = of_kind(read, "key").iter().map(|line| line["found"].as_i64()).collect();
    assert_eq!(found, [Some(40), Some(1), Some(1)], "what the key index finds: {:#?}", of_kind(read, "key"));
}

fn of_kind<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["kind"] == kind).collect()
}

fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().unwrap_or_else(|| panic!("no text {field} in {line:#}"))
}
