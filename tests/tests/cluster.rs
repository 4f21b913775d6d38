//! Gantry beside Apache's broker 5.5.0: registered with Apache's name server, and the other way round, while the official
//! client sends to and reads from both.

use std::time::Duration;

use gantry_client::proto::remoting::body::topic::TopicConfig;
use gantry_client::{Client, ClientOptions};
use gantry_tests::apache::Apache;
use gantry_tests::harness::{Gantry, wait_for};
use gantry_tests::java::{self, Answer, Module, Output};

/// For what takes seconds; more on a busy machine.
const WITHIN: Duration = Duration::from_secs(120);
const TOPIC: &str = "Shared";

fn run_client(name_servers: &str, brokers: &[&str], mut ready: impl FnMut()) -> Output {
    let dir = java::module(Module::Suite5).expect("it was there before");
    let arguments: Vec<_> = [name_servers, TOPIC].iter().chain(brokers).copied().collect();
    let output = java::run(&dir, "gantry.suite.Cluster", &arguments, WITHIN * 2, |line| {
        if line != "READY" {
            return Answer::Nothing;
        }
        ready();
        Answer::Line("stop")
    });
    let output = output.expect("java runs");
    assert_eq!(output.code, Some(0), "{:?}: {}", output.lines, output.stderr);
    output
}

/// No send failed, all that was acknowledged was read; the brokers that took the last messages.
fn expect_all(output: &Output) -> String {
    let [ready, summary] = output.lines.as_slice() else { panic!("expected no errors, found {output:#?}") };
    assert_eq!(ready, "READY");
    let values: Vec<_> = summary.split(' ').filter_map(|part| part.split_once('=')).collect();
    let [("sent", sent), ("read", read), ("twice", _), ("late", late)] = values.as_slice() else {
        panic!("{summary}");
    };
    assert!(sent == read && *sent != "0", "{summary}");
    (*late).to_owned()
}

async fn client(name_servers: &str) -> Client {
    Client::connect(ClientOptions::new(name_servers)).await.expect("a name server answers")
}

/// Waits until the name server knows these brokers and no others.
async fn brokers(client: &Client, expected: &[&str]) {
    let deadline = std::time::Instant::now() + WITHIN;
    loop {
        let cluster = client.admin().cluster().await.expect("the brokers");
        let found: Vec<_> = cluster.broker_addr_table.keys().map(String::as_str).collect();
        if found == expected {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "expected {expected:?}, found {found:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn create(client: &Client) {
    let config = TopicConfig {
        topic_name: TOPIC.to_owned(),
        read_queue_nums: 4,
        write_queue_nums: 4,
        ..TopicConfig::default()
    };
    client.admin().create_topic(&config).await.expect("the topic is created on all brokers");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gantry_registers_with_apaches_name_server() {
    let apache = match Apache::start(&["flushDiskType=ASYNC_FLUSH"]) {
        Ok(apache) => apache,
        Err(why) => return java::skip(&why),
    };
    // The second one is down all the time.
    let servers = format!("{};127.0.0.1:1", apache.name_server());
    let flags = ["--policy", "memory", "--broker-name", "broker-g", "--name-servers", &servers];
    let mut gantry = Gantry::start(&flags);
    let client = client(apache.name_server()).await;
    brokers(&client, &["broker-a", "broker-g"]).await;
    create(&client).await;
    let output = run_client(apache.name_server(), &["broker-a", "broker-g"], || ());
    expect_all(&output);

    let info =
        client.admin().broker_runtime_info("broker-g").await.expect("it is reached by its registration");
    let state = |server: &str| info[&format!("nameServer_{server}")].clone();
    assert!(state(apache.name_server()).starts_with("registered as 127.0.0.1:"), "{info:?}");
    assert!(state("127.0.0.1:1").contains("is it running?"), "{info:?}");
    let tries = gantry.log().matches("is it running?").count();
    assert_eq!(tries, 1, "what does not change is logged once");

    // What is killed is gone at once, what is started again is there again, and what is stopped says goodbye.
    gantry.kill9();
    brokers(&client, &["broker-a"]).await;
    gantry.restart();
    brokers(&client, &["broker-a", "broker-g"]).await;
    gantry.terminate();
    brokers(&client, &["broker-a"]).await;
    client.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_apaches_broker_has_is_left_to_it() {
    let apache = match Apache::start(&["flushDiskType=ASYNC_FLUSH"]) {
        Ok(apache) => apache,
        Err(why) => return java::skip(&why),
    };
    let gantry = Gantry::start(&["--policy", "memory", "--name-servers", apache.name_server()]);
    wait_for("the conflict in the log", WITHIN, || {
        let log = gantry.log();
        if log.contains("it knows another broker called broker-a") { Ok(()) } else { Err(log) }
    });
    let client = client(apache.name_server()).await;
    let cluster = client.admin().cluster().await.expect("the brokers");
    assert_ne!(cluster.broker_addr_table["broker-a"].broker_addrs[&0], gantry.broker().to_string());
    client.shutdown().await;
}
