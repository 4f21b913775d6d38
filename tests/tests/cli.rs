//! The command line against the real binary: every command, as text and as JSON, with its exit codes; and the
//! tour of the README as it is written there.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use gantry_client::{Client, ClientOptions, Message, Resolution, TransactionProducer};
use gantry_tests::apache::Apache;
use gantry_tests::harness::{self, Ended, Gantry};
use serde_json::Value;

/// A broker and the commands that are sent to it.
struct Shell<B> {
    broker: B,
    name_server: String,
}

impl Shell<Gantry> {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(flags: &[&str]) -> Self {
        let broker = Gantry::start(&[&["--policy", "memory"], flags].concat());
        let name_server = broker.name_server().to_string();
        Self { broker, name_server }
    }
}

impl<B> Shell<B> {
    /// A command line, split at blanks.
    fn run(&self, line: &str) -> Ended {
        let mut arguments: Vec<&str> = line.split_whitespace().collect();
        arguments.extend(["--name-server", &self.name_server]);
        harness::run(&arguments)
    }

    /// The same, expecting that it is done.
    fn ok(&self, line: &str) -> String {
        let ended = self.run(line);
        assert_eq!(ended.code, Some(0), "gantry {line}: {ended:?}");
        ended.stdout
    }

    /// The same, with one JSON value as output.
    fn json(&self, line: &str) -> Value {
        let text = self.ok(&format!("{line} --output json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("gantry {line}: {error} in {text:?}"))
    }

    /// The same, expecting a refusal that says `what`.
    fn refused(&self, line: &str, code: i32, what: &str) {
        refused(line, &self.run(line), code, what);
    }

    /// A command that reads `input`.
    fn feed(&self, line: &str, input: &str) -> (i32, String, String) {
        let mut child = Command::new(harness::binary())
            .args(line.split_whitespace())
            .args(["--name-server", &self.name_server])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

/// Nothing on standard output; on standard error a sentence that says what happened.
fn refused(line: &str, ended: &Ended, code: i32, what: &str) {
    let Ended { code: found, stdout, stderr } = ended;
    assert_eq!(*found, Some(code), "gantry {line}: {ended:?}");
    assert!(
        stderr.contains("error: ") && stderr.contains(what),
        "gantry {line}: expected {what:?} in {stderr}"
    );
    assert_eq!(stdout, "", "gantry {line}");
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("one JSON object a line")).collect()
}

#[test]
fn topics_are_created_listed_described_and_deleted() {
    let shell = Shell::start();
    assert_eq!(shell.json("topic create T --queues 4")["outcome"], "created");
    assert_eq!(shell.json("topic create T --queues 4")["outcome"], "unchanged");
    shell.refused("topic create T --queues 6", 1, "add --update");
    assert_eq!(shell.json("topic create T --queues 6 --update")["outcome"], "changed");

    assert_eq!(shell.ok("topic list"), "T\tuser\n");
    let all = shell.json("topic list --all");
    assert!(all.as_array().unwrap().iter().any(|topic| topic["kind"] == "system"), "{all}");

    let described = shell.json("topic describe T");
    assert_eq!((&described["write_queues"], &described["perm"]), (&6.into(), &"rw".into()));
    assert_eq!(described["queues"].as_array().unwrap().len(), 6);
    assert!(shell.ok("topic describe T").contains("queues\t6 read, 6 write"));
    shell.refused("topic describe U", 1, "gantry topic list");

    shell.refused("topic delete T", 2, "--yes");
    assert_eq!(shell.json("topic delete T --yes")["outcome"], "deleted");
    shell.refused("topic delete T --yes", 1, "no topic is called T");
    assert_eq!(shell.ok("topic list"), "");
}

#[test]
fn topics_are_scaled_and_typed() {
    let shell = Shell::start_with(&["--scale-grace", "1s"]);
    shell.ok("topic create T --queues 4 --message-type priority");
    assert_eq!(shell.json("topic describe T")["attributes"]["message.type"], "PRIORITY");
    shell.refused("topic create U --attribute message.type=X", 1, "choose one of");
    let (code, ..) = shell.feed("produce T --priority 3", "urgent\nurgent too\n");
    assert_eq!(code, 0);
    assert_eq!(shell.json("topic describe T")["queues"][3]["messages"], 2);
    shell.ok("consume T --group G --max 1");
    assert_eq!(shell.json("topic scale T --queues 2")["outcome"], "changing");
    let described = shell.json("topic describe T");
    assert_eq!((&described["read_queues"], &described["queues"][3]["state"]), (&4.into(), &"sealed".into()));
    assert_eq!(described["left_in_sealed"][0]["messages"], 1, "{described}");
    assert!(shell.ok("topic describe T").contains("G\tbroker-a\t3\t1\n"));
    shell.refused("topic scale T --queues 2 --force", 2, "--yes");
    assert_eq!(shell.json("topic scale T --queues 2 --force --yes")["outcome"], "changed");
    assert_eq!(shell.json("topic describe T")["read_queues"], 2);
    shell.refused("topic scale U --queues 2", 1, "no topic is called U");
}

#[test]
fn groups_are_created_listed_described_and_deleted() {
    let shell = Shell::start();
    assert_eq!(shell.json("group create G --retries 3")["outcome"], "created");
    shell.refused("group create G --retries 4", 1, "add --update");
    assert_eq!(shell.json("group create G --retries 4 --update")["outcome"], "changed");
    assert_eq!(shell.ok("group list"), "G\t4\n");
    assert_eq!(shell.json("group list")[0]["group"], "G");
    assert_eq!(shell.json("group describe G")["retries"], 4);
    assert_eq!(shell.json("group set G --attribute gantry.start=last --attribute a=b")["outcome"], "changed");
    assert_eq!(shell.json("group set G --retries 4 --remove-attribute c")["outcome"], "unchanged");
    shell.refused("group set G --attribute gantry.start=tomorrow", 1, "it takes first, last, or a time");
    shell.refused("group set G --attribute gantry.strat=last", 1, "those of Gantry are");
    assert_eq!(shell.json("group describe G")["retry"], "levels");
    assert_eq!(shell.json("group set G --retry 1s,10s,1m")["outcome"], "changed");
    assert!(shell.ok("group describe G").contains("\nretry\t1s,10s,1m\n"));
    assert_eq!(shell.json("group set G --retry 5s..2h*3")["outcome"], "changed");
    assert_eq!(shell.json("group describe G")["retry"], "5s..2h*3");
    shell.refused("group set G --retry 41d", 1, "choose from 0 to 3456000000 (40 days)");
    shell.refused("group set G --retry 1h..5s", 1, "end with as much or more");
    shell.refused("group reset G --topic T --to last", 2, "--yes");
    shell.refused("group reset G --topic T --to last --member a%b --yes", 2, "member \"a%b\"");
    shell.refused("group reset G --topic NoTopic --to last --yes", 1, "NoTopic");
    assert_eq!(shell.json("group describe G")["broadcast_members"], serde_json::json!([]));
    shell.refused("group set H --retries 1", 1, "gantry group list");
    assert_eq!(shell.json("group set G --retries 5 --remove-attribute a")["outcome"], "changed");
    assert!(shell.ok("group describe G").contains("\nattributes\tgantry.start=last\n"));
    shell.refused("group describe H", 1, "gantry group list");
    shell.refused("group delete G", 2, "--yes");
    assert_eq!(shell.json("group delete G --yes")["outcome"], "deleted");
    shell.refused("group delete G --yes", 1, "no consumer group is called G");
}

#[test]
fn lines_are_sent_and_printed_once_to_a_group() {
    let shell = Shell::start();
    shell.ok("topic create T --queues 1");
    let (code, receipts, said) = shell.feed(
        "produce T --key k1 --key k2 --tag new --property a=b --rate 500/s --output json",
        "one\n\ntwo\r\nthree",
    );
    assert_eq!((code, said.as_str()), (0, "3 messages sent to T\n"));
    let receipts = json_lines(&receipts);
    let offsets: Vec<_> = receipts.iter().map(|receipt| receipt["offset"].as_i64().unwrap()).collect();
    assert_eq!(offsets, [0, 1, 2]);

    let printed = json_lines(&shell.ok("consume T --group G --max 2 --output json"));
    let bodies: Vec<_> = printed.iter().map(|message| message["body"].as_str().unwrap()).collect();
    assert_eq!(bodies, ["one", "two"]);
    assert_eq!(printed[0]["id"], receipts[0]["id"]);
    assert_eq!(printed[0]["keys"], serde_json::json!(["k1", "k2"]));
    assert_eq!((&printed[0]["tag"], &printed[0]["properties"]["a"]), (&"new".into(), &"b".into()));
    assert_eq!(shell.json("group describe G")["lag"], 1);
    assert!(shell.ok("group describe G").contains("lag\t1"));

    assert_eq!(shell.ok("consume T --group G --idle 300ms"), "three\n");
    assert_eq!(shell.ok("consume T --group G --idle 300ms"), "");
    assert_eq!(
        lines(&shell.ok("consume T --max 3")),
        ["one", "two", "three"],
        "without a group: from the first"
    );
    assert_eq!(shell.ok("consume T --from last --idle 300ms"), "");
    assert_eq!(shell.ok("consume T --filter old --idle 300ms"), "");
    assert_eq!(lines(&shell.ok("consume T --sql a='b' --max 3")).len(), 3);
    assert_eq!(shell.ok("consume T --sql a<>'b' --idle 300ms"), "");
    shell.refused("consume T --sql a== --max 1", 1, "at character 3: expected");
    shell.refused("consume T --sql a=1 --filter old", 2, "cannot be used with");
    let since_1970 = shell.ok("consume T --from 1970-01-01T00:00:01Z --max 1");
    assert_eq!(since_1970, "one\n");
    shell.refused("consume U --max 1", 1, "create the topic");
}

#[test]
fn files_are_sent_and_delayed_messages_come_later() {
    let shell = Shell::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lines");
    fs::write(&file, "later\n").unwrap();
    shell.ok(&format!("produce D --delay 1 --file {}", file.display()));
    let printed = shell.ok("consume D --max 1 --output json");
    let message: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(message["body"], "later");
    let late = message["stored_ms"].as_i64().unwrap() - message["born_ms"].as_i64().unwrap();
    assert!(late >= 900, "delay level 1 is a second, found {late} ms");
    shell.refused("produce D --file /does/not/exist", 1, "name a readable file");
    shell.refused("produce a/b", 2, "use letters");
}

#[test]
fn messages_with_a_time_come_then_and_are_taken_back() {
    let shell = Shell::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lines");
    fs::write(&file, "later\n").unwrap();
    let sent = shell.json(&format!("produce D --deliver-in 40d --file {}", file.display()));
    let handle = sent["recall_handle"].as_str().unwrap().to_owned();
    let again = shell.ok(&format!("produce D --deliver-in 1s --file {}", file.display()));
    assert!(again.trim().len() > 40 && again.lines().count() == 1, "a recall handle, found {again}");
    for _ in 0..2 {
        let recalled = shell.json(&format!("message recall {handle}"));
        assert_eq!(recalled["message"], sent["id"]);
    }
    let printed = shell.ok("consume D --max 1 --output json");
    let message: Value = serde_json::from_str(&printed).unwrap();
    let late = message["stored_ms"].as_i64().unwrap() - message["born_ms"].as_i64().unwrap();
    assert!(late >= 1000, "it was to come in a second, found {late} ms");
    shell.refused(&format!("message recall {}", again.trim()), 1, "can no longer be taken back");
    shell.refused("message recall nonsense", 2, "no recall handle");
    shell.refused(&format!("produce D --deliver-in 41d --file {}", file.display()), 1, "the limit is");
}

#[test]
fn operators_list_and_end_transactions() {
    let shell = Shell::start();
    assert_eq!(shell.ok("txn list"), "");
    let Tellers { ids, .. } = open_transactions(&shell.name_server, 2);
    let listed = harness::wait_for("two open transactions", Duration::from_secs(10), || {
        let listed = shell.json("txn list --group tellers");
        if listed.as_array().is_some_and(|all| all.len() == 2) { Ok(listed) } else { Err(listed.to_string()) }
    });
    assert_eq!((&listed[0]["id"], &listed[0]["topic"]), (&ids[0].as_str().into(), &"T".into()));
    assert!(shell.ok("txn list").contains("tellers"));
    assert_eq!(shell.json("txn list --expired"), serde_json::json!([]));
    assert_eq!(shell.json("txn list --group others"), serde_json::json!([]));

    let [first, second] = [&ids[0], &ids[1]];
    assert_eq!(shell.json(&format!("txn commit {first}"))["outcome"], "committed");
    shell.refused(&format!("txn rollback {second}"), 2, "--yes");
    assert_eq!(shell.json(&format!("txn rollback {second} --yes"))["outcome"], "rolled back");
    assert_eq!(shell.ok("txn list"), "");
    assert_eq!(shell.ok("consume T --max 1"), "0\n");
    assert_eq!(shell.ok("consume T --idle 300ms"), "0\n");
    shell.refused("txn commit NOBODY", 1, "gantry txn list");
    shell.refused("txn redrive NOBODY", 1, "gantry txn list");
}

#[test]
fn expired_transactions_are_put_back_and_ended() {
    // The one check is answered with "unknown".
    let flags =
        ["--transaction-timeout", "200ms", "--transaction-check-interval", "200ms", "--max-checks", "1"];
    let shell = Shell::start_with(&flags);
    let tellers = open_transactions(&shell.name_server, 1);
    let id = &tellers.ids[0];
    let expired = || {
        let listed = shell.json("txn list --expired");
        listed.as_array().unwrap().iter().filter(|one| one["state"] == "expired").cloned().collect::<Vec<_>>()
    };
    let expires = || {
        harness::wait_for("one expired transaction", Duration::from_secs(20), || match &*expired() {
            [one] if one["id"] == id.as_str() => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    expires();
    assert_eq!(shell.json(&format!("txn redrive {id}"))["outcome"], "open");
    expires();
    assert_eq!(shell.json(&format!("txn commit {id}"))["outcome"], "committed");
    assert_eq!(shell.ok("consume T --max 1"), "0\n");
    assert!(expired().is_empty());
}

/// A producer that never knows how its transactions end. It leaves when it is dropped.
struct Tellers {
    ids: Vec<String>,
    _producer: TransactionProducer,
    /// Keeps the producer's tasks running; last, so that it goes last.
    _runtime: tokio::runtime::Runtime,
}

/// Opens transactions on topic `T`, with their numbers as bodies.
fn open_transactions(name_server: &str, count: usize) -> Tellers {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (ids, producer) = runtime.block_on(async {
        let client = Client::connect(ClientOptions::new(name_server)).await.unwrap();
        let producer =
            client.transaction_producer("tellers", async |_| Resolution::Unknown).start().await.unwrap();
        let mut ids = Vec::new();
        for number in 0..count {
            let open = producer.begin(Message::new("T", number.to_string())).await.unwrap();
            ids.push(open.receipt().message_id.clone());
        }
        (ids, producer)
    });
    Tellers { ids, _producer: producer, _runtime: runtime }
}

#[test]
fn benches_report_what_they_did() {
    let shell = Shell::start();
    let pid = shell.broker.pid();
    let sent = shell
        .json(&format!("bench produce --messages 500 --warmup 100 --size 64 --broker-pid {pid} --label x"));
    assert_eq!((&sent["messages"], &sent["errors"], &sent["label"]), (&500.into(), &0.into(), &"x".into()));
    for field in ["p50", "p90", "p99", "p99.9", "max"] {
        assert!(sent["latency_ms"][field].as_f64().unwrap() > 0.0, "{field} in {sent}");
    }
    assert!(sent["broker"]["rss_anon_peak_mib"].as_f64().unwrap() > 0.0, "{sent}");
    assert!(sent["broker"]["cpu_seconds_per_million"].is_number(), "{sent}");

    let batches = shell.json("bench produce --messages 100 --batch 7 --threads 2 --in-flight 3");
    assert_eq!(batches["messages"], 100);
    let paced = shell.json("bench produce --duration 500ms --rate 200/s");
    assert_eq!((&paced["messages"], &paced["rate"]), (&100.into(), &200.0.into()));

    let read = shell.json("bench consume --in-flight 3");
    assert_eq!((&read["messages"], &read["errors"]), (&800.into(), &0.into()), "{read}");
    let some = shell.json("bench consume --messages 40 --batch 10 --threads 2");
    assert!((40..=160).contains(&some["messages"].as_i64().unwrap()), "{some}");

    let ended = shell.json("bench transaction --topic X --messages 200 --rollback 50 --in-flight 8");
    assert_eq!((&ended["messages"], &ended["errors"]), (&200.into(), &0.into()));
    assert_eq!(shell.ok("txn list"), "", "every transaction was ended");
    let committed = shell.json("bench consume --topic X");
    assert_eq!(committed["messages"], 100);
    assert!(shell.ok("bench produce --messages 10").contains("throughput\t"));
}

#[test]
fn benches_refuse_what_cannot_be_measured() {
    let shell = Shell::start();
    shell.refused("bench produce --broker-pid 4294967295", 2, "no process 4294967295");
    shell.refused("bench consume --topic U", 1, "create the topic");
    shell.ok("topic create E");
    shell.refused("bench consume --topic E", 1, "bench produce --topic E");
    // What fails is counted, reported and makes the exit code 1.
    let ended = shell.run("bench produce --messages 2 --size 5000000 --output json");
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code, &report["errors"], &report["messages"]), (Some(1), &2.into(), &0.into()));
    assert!(ended.stderr.contains("2 operations failed"), "{}", ended.stderr);
}

#[test]
fn apaches_broker_is_driven_alike() {
    // Apache cannot delete a topic without its timer.
    let broker = match Apache::start(&["timerWheelEnable=true"]) {
        Ok(broker) => broker,
        Err(why) => {
            println!("SKIPPED cli against Apache: {why}");
            return;
        }
    };
    let shell = Shell { name_server: broker.name_server().to_owned(), broker };
    assert_eq!(shell.json("topic create T --queues 2")["outcome"], "created");
    assert_eq!(shell.json("topic describe T")["write_queues"], 2);
    assert!(shell.ok("topic list").contains("T\tuser"));
    assert_eq!(shell.json("group create G --retries 3")["outcome"], "created");
    assert_eq!(shell.json("group describe G")["retries"], 3);
    let (code, ..) = shell.feed("produce T --key k --tag t", "one\ntwo\n");
    assert_eq!(code, 0);
    let mut printed = shell.ok("consume T --group G --max 2").lines().map(str::to_owned).collect::<Vec<_>>();
    printed.sort_unstable();
    assert_eq!(printed, ["one", "two"]);
    assert_eq!(shell.json("group describe G")["lag"], 0);

    let sent = shell.json("bench produce --messages 2000 --warmup 100 --in-flight 16");
    assert_eq!((&sent["messages"], &sent["errors"]), (&2000.into(), &0.into()), "{sent}");
    let batches = shell.json("bench produce --messages 100 --batch 8 --in-flight 2");
    assert_eq!((&batches["messages"], &batches["errors"]), (&100.into(), &0.into()), "{batches}");
    let read = shell.json("bench consume");
    assert_eq!((&read["messages"], &read["errors"]), (&2200.into(), &0.into()), "{read}");
    let ended = shell.json("bench transaction --messages 500 --in-flight 16 --rollback 10");
    assert_eq!((&ended["messages"], &ended["errors"]), (&500.into(), &0.into()), "{ended}");

    // What only Gantry has is refused in words.
    shell.refused("txn list", 1, "use a server that knows this request");
    assert_eq!(shell.json("group delete G --yes")["outcome"], "deleted");
    assert_eq!(shell.json("topic delete T --yes")["outcome"], "deleted");
}

#[test]
fn without_a_server_every_command_says_what_to_check() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for line in [
        "topic list",
        "topic create T",
        "group list",
        "group describe G",
        "produce T",
        "consume T --max 1",
        "txn list",
        "txn commit X",
        "bench produce --messages 1",
        "bench consume",
        "bench transaction --messages 1",
    ] {
        let arguments: Vec<&str> = line.split_whitespace().chain(["--name-server", &nobody]).collect();
        refused(line, &harness::run(&arguments), 1, "check the address and that the server runs");
    }
    refused("", &harness::run(&["topic", "list", "--name-server", "nowhere"]), 2, "is not host:port");
}

#[test]
fn usage_errors_are_exit_code_2() {
    for line in [
        "launch",
        "produce",
        "produce T --delay 19",
        "consume T --from yesterday",
        "topic create",
        "topic create T --queues 0",
        "bench produce --rate 0",
        "bench produce --messages 5 --duration 2s",
        "group describe",
        "txn commit",
        "serve --policy maybe",
    ] {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let ended = harness::run(&arguments);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "gantry {line}: {ended:?}");
    }
    assert_eq!(harness::run(&["--help"]).code, Some(0));
    assert_eq!(harness::run(&["--version"]).code, Some(0));
}

/// A broker that starts with the file of an Apache broker does as it says, tells what has no effect, and refuses what
/// it would do otherwise.
#[test]
fn the_file_of_an_apache_broker_is_followed_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broker.conf");
    let file = path.to_str().unwrap();
    let refuse = |text: &str, what: &str| {
        fs::write(&path, text).unwrap();
        let line = ["serve", "--broker-conf", file];
        refused(&line.join(" "), &harness::run(&line), 2, what);
    };
    refuse(
        "brokerName = broker-a\nbrokerRole = SLAVE\n",
        "broker.conf, line 2, key brokerRole: \"SLAVE\" cannot be had",
    );
    refuse("flushDiskTyp=SYNC_FLUSH\n", "did you mean flushDiskType?");
    refuse("fileReservedTime=\\u00\n", "broker.conf, line 1: ");
    fs::write(
        &path,
        "# as it was\nbrokerClusterName=lab\nbrokerName=broker-b\nbrokerId=0\ndeleteWhen=04\nfileReservedTime=48\n\
         autoCreateTopicEnable=false\nlistenPort=10911\nflushDiskType=ASYNC_FLUSH\n",
    )
    .unwrap();
    let broker = Gantry::start(&["--broker-conf", file]); // its flags for ports and store win
    let name_server = broker.name_server().to_string();
    let shell = Shell { broker, name_server };
    assert!(
        shell.broker.log().contains("broker.conf, line 5: deleteWhen is ignored: log files go"),
        "{}",
        shell.broker.log()
    );
    shell.ok("topic create T --queues 2");
    let topic = shell.json("topic describe T");
    assert!(topic.to_string().contains("broker-b"), "{topic}");
    let (code, _, said) = shell.feed("produce Unknown", "one\n");
    assert!(code == 1 && said.contains("Unknown"), "{said}");
}

/// The shell blocks of the README's tour, run as they are. Only what builds something is left out.
#[test]
fn the_tour_of_the_readme_works() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let tour = readme.split("## Five minutes").nth(1).and_then(|text| text.split("\n## ").next()).unwrap();
    let mut script = String::from("set -eu\n");
    for block in tour.split("```sh\n").skip(1) {
        for line in block.split("```").next().unwrap().lines().filter(|line| !line.starts_with("cargo ")) {
            // As many messages as a test has time for.
            script += &line.replace("--messages 200000", "--messages 2000");
            script.push('\n');
        }
    }
    assert!(script.matches("gantry ").count() >= 6, "the tour has commands:\n{script}");

    let shell = Shell::start();
    let bin = harness::binary().parent().unwrap().display().to_string();
    let path = format!("{bin}:{}", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("sh")
        .args(["-c", &script])
        .env("PATH", path)
        .env("GANTRY_NAME_SERVER", &shell.name_server)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}\n{stdout}\n{stderr}");
    for expected in [
        "messages\t3",
        "first\n",
        "second\n",
        "third\n",
        "blue\n",
        "group\tbilling",
        "lag\t0",
        "throughput\t",
    ] {
        assert!(stdout.contains(expected), "expected {expected:?} in {stdout}\n{stderr}");
    }
}
