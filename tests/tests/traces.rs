//! Message traces: the Rust client writes them and the command line reads them; Apache's encoder and decoder agree with
//! ours. What Apache's clients write is read in `java_clients` and `mqadmin`.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::time::Duration;

use client_scenarios::{topic, until};
use gantry_client::proto::ids::Millis;
use gantry_client::proto::trace::{ConsumeCode, EndState, Event, MessageKind, Trace, decode};
use gantry_client::{Client, ClientOptions, ConsumeFrom, Message, Outcome, Resolution};
use gantry_tests::harness::{self, Gantry};
use gantry_tests::java::{self, Answer, Module};
use serde_json::Value;

#[allow(dead_code, reason = "its steps belong to other suites")]
mod client_scenarios;

async fn kinds(client: &Client, id: &str) -> Vec<&'static str> {
    let traces = client.admin().message_traces(id, None).await.unwrap();
    traces.iter().map(|traced| traced.trace.event.name()).collect()
}

/// What the command line prints of a message.
fn timeline(gantry: &Gantry, id: &str) -> Vec<Value> {
    let name_server = gantry.name_server().to_string();
    let ended =
        harness::run(&["message", "trace", "--id", id, "--output", "json", "--name-server", &name_server]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let Value::Array(all) = serde_json::from_str(&ended.stdout).unwrap() else { panic!("{}", ended.stdout) };
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_leaves_a_timeline() {
    let gantry = Gantry::start(&["--policy", "memory"]);
    let options = ClientOptions::new(gantry.name_server().to_string()).traced();
    let client = Client::connect(options).await.unwrap();
    topic(&client, "Traced", 2).await;
    let consumer = client
        .push_consumer("TracedReaders")
        .subscribe("Traced", "*")
        .from(ConsumeFrom::First)
        .start(|message| async move {
            let again = message.tag() == Some("again") && message.reconsume_times() == 0;
            if again { Outcome::LaterAtLevel(1) } else { Outcome::Success }
        })
        .await
        .unwrap();
    let producer = client.producer("TracedWriters").start().await.unwrap();
    let plain = Message::new("Traced", "plain").tag("t").key("k1").key("k2");
    let plain = producer.send(plain).await.unwrap();
    let again = producer.send_nowait(Message::new("Traced", "again").tag("again")).await.unwrap();
    let again = again.await.unwrap();
    let batch: Vec<_> = (0..3).map(|n| Message::new("Traced", format!("batch {n}"))).collect();
    let batch = producer.send_batch(batch).await.unwrap();
    let later = Message::new("Traced", "later").delay(Duration::from_secs(3600));
    let later = producer.send(later).await.unwrap();
    producer.recall("Traced", later.recall_handle.as_ref().unwrap()).await.unwrap();
    let transactions =
        client.transaction_producer("TracedBooks", |_| async { Resolution::Unknown }).start().await.unwrap();
    let message = Message::new("Traced", "booked").key("booking");
    let (booked, _) = transactions.send(message, |_| async { Resolution::Commit }).await.unwrap();

    let consumed = ["Pub", "SubBefore", "SubAfter"];
    for id in std::iter::once(&plain).chain(&batch).map(|receipt| &receipt.message_id) {
        until("a consumed message's trace", || async { kinds(&client, id).await == consumed }).await;
    }
    let twice = [&consumed[..], &["SubBefore", "SubAfter"]].concat();
    until("a refused message's trace", || async { kinds(&client, &again.message_id).await == twice }).await;
    until("a recalled message's trace", || async {
        kinds(&client, &later.message_id).await == ["Pub", "Recall"]
    })
    .await;
    until("a transaction's trace", || async { kinds(&client, &booked.message_id).await.len() == 4 }).await;
    consumer.shutdown().await;
    client.shutdown().await;

    let told = timeline(&gantry, &plain.message_id);
    let text = |at: usize, field: &str| told[at][field].as_str().unwrap_or_default().to_owned();
    assert_eq!((text(0, "group"), text(1, "group")), ("TracedWriters".into(), "TracedReaders".into()));
    assert_eq!(
        (text(0, "topic"), text(0, "tag"), text(0, "kind")),
        ("Traced".into(), "t".into(), "normal".into())
    );
    assert_eq!(text(0, "offset_id"), plain.offset_message_id);
    assert_eq!(text(0, "store_host"), gantry.broker().to_string());
    assert_eq!((&told[0]["body_bytes"], &told[0]["success"]), (&5.into(), &true.into()));
    assert_eq!(told[0]["keys"], serde_json::json!(["k1", "k2"]));
    assert_eq!(text(1, "request_id"), text(2, "request_id"));
    assert_eq!((text(2, "result"), &told[2]["cost_ms"]), ("success".into(), &0.into()));
    let told = timeline(&gantry, &again.message_id);
    let of = |name: &str| told.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    let retries: Vec<_> = of("SubBefore").iter().map(|event| event["retries"].clone()).collect();
    let results: Vec<_> = of("SubAfter").iter().map(|event| event["result"].clone()).collect();
    assert_eq!((retries, results), (vec![0.into(), 1.into()], vec!["refused".into(), "success".into()]));
    let told = timeline(&gantry, &booked.message_id);
    let end = told.iter().find(|event| event["event"] == "EndTransaction").unwrap();
    assert_eq!((&end["state"], &end["from_check"]), (&"COMMIT_MESSAGE".into(), &false.into()));
    assert_eq!(end["keys"], serde_json::json!(["booking"]));
    assert_eq!(told[0]["kind"], "half");
    let name_server = gantry.name_server().to_string();
    let nothing = harness::run(&["message", "trace", "--id", "nobody", "--name-server", &name_server]);
    assert_eq!(nothing.code, Some(1));
    assert!(nothing.stderr.contains("no client has written a trace of nobody"), "{}", nothing.stderr);
}

/// What `gantry.suite.Traces` encodes, by us.
fn golden() -> Vec<Trace> {
    let lines = [
        "Pub|1700000000123|DefaultRegion|group|topic|7F0000010001ID|tag|k1 k2|127.0.0.1:10911|17|5|3|7F00000100002A9F0000000000000007|true",
        "Recall|1700000000123|DefaultRegion|group|topic|7F0000010001ID|true",
        "SubBefore|1700000000123|DefaultRegion|group|request|7F0000010001ID|2|k1 k2",
        "SubAfter|request|7F0000010001ID|5|false|k1 k2|4|1700000000123|group",
        "EndTransaction|1700000000123|DefaultRegion|group|topic|7F0000010001ID|tag|k1 k2|127.0.0.1:10911|2|transaction|ROLLBACK_MESSAGE|true",
    ];
    lines.iter().map(|line| decode(line.replace('|', "\u{1}").as_bytes()).next().unwrap().unwrap()).collect()
}

fn shown(trace: &Trace) -> String {
    let mut text = String::new();
    trace.encode_into(&mut text);
    text.replace('\u{1}', "|").replace('\u{2}', "$")
}

#[test]
fn our_records_are_those_of_the_official_client() {
    let dir = match java::module(Module::Suite5) {
        Ok(dir) => dir,
        Err(why) => return java::skip(&why),
    };
    let within = Duration::from_secs(120);
    let output = java::run(&dir, "gantry.suite.Traces", &[], within, |_| Answer::Nothing).unwrap();
    assert_eq!(output.lines.len(), 7, "{output:?}");
    let (java, ours) = (&output.lines[..5], golden());
    assert_eq!(java, ours.iter().map(shown).collect::<Vec<_>>());
    let read = |line: &str| {
        let body = line.replace('|', "\u{1}").replace('$', "\u{2}");
        decode(body.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap()
    };
    for (line, trace) in java.iter().zip(&ours) {
        assert_eq!(read(line), std::slice::from_ref(trace));
    }
    assert!(matches!(&ours[3].event, Event::SubAfter { code: ConsumeCode::Failed, success: false, .. }));
    assert!(matches!(&ours[4].event, Event::EndTransaction(end) if end.state == EndState::Rollback));
    // A client of the cloud leaves out when and who.
    assert_eq!((read(&output.lines[5])[0].at, read(&output.lines[5])[0].group.as_str()), (None, ""));
    let bare = &read(&output.lines[6])[0];
    let Event::Pub(sent) = &bare.event else { panic!("{bare:?}") };
    assert_eq!((sent.tags.as_str(), bare.keys.as_str(), sent.kind), ("", "", MessageKind::Delay));
    assert_eq!((bare.at, &shown(bare)), (Some(Millis::new(1_700_000_000_123)), &output.lines[6]));

    let text: String = ours.iter().map(shown).collect();
    let arguments = [text.as_str(), "7F0000010001ID"];
    let output = java::run(&dir, "gantry.suite.Traces", &arguments, within, |_| Answer::Nothing).unwrap();
    let expected = [
        "Pub group success k1 k2 1700000000123",
        "Recall group success  1700000000123",
        "SubBefore group success k1 k2 1700000000123",
        "SubAfter group failed k1 k2 1700000000123",
        "EndTransaction group success k1 k2 1700000000123",
    ];
    assert_eq!(output.lines, expected, "{}", output.stderr);
}
