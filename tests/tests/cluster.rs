//! Gantry beside Apache's broker 5.5.0: registered with Apache's name server, and the other way round, while the official
//! client sends to and reads from both.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gantry_client::proto::remoting::body::topic::TopicConfig;
use gantry_client::proto::remoting::codes::ResponseCode;
use gantry_client::{Client, ClientOptions, ConsumeFrom, ErrorKind, Message, Outcome};
use gantry_tests::apache::Apache;
use gantry_tests::harness::{self, Ended, Gantry, wait_for};
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

/// Starts Gantry as a broker of this name that registers with the name servers.
fn gantry(name: &str, name_servers: &str) -> Gantry {
    let mut flags = vec!["--policy", "memory", "--broker-name", name];
    if !name_servers.is_empty() {
        flags.extend(["--name-servers", name_servers]);
    }
    Gantry::start(&flags)
}

fn broker_command(name_server: &str, words: &str) -> Ended {
    let mut arguments = vec!["broker"];
    arguments.extend(words.split(' '));
    arguments.extend(["--name-server", name_server]);
    harness::run(&arguments)
}

/// Drains `broker`, which `leaving` is, while the official client uses it and another one, and stops it.
fn drain_while_in_use(name_servers: &str, first: &str, leaving: &mut Gantry) -> Output {
    run_client(name_servers, &["broker-a", "broker-g"], || {
        // The client asks for routes every second.
        let drained = broker_command(first, "drain broker-g --grace 4s --timeout 60s");
        assert_eq!(drained.code, Some(0), "{drained:?}");
        assert!(drained.stderr.contains("routes say it takes no messages"), "{drained:?}");
        assert!(drained.stdout.contains("left"), "{drained:?}");
        leaving.terminate();
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_of_apaches_name_server_goes_without_an_error() {
    let apache = match Apache::start(&["flushDiskType=ASYNC_FLUSH"]) {
        Ok(apache) => apache,
        Err(why) => return java::skip(&why),
    };
    let mut leaving = gantry("broker-g", apache.name_server());
    let client = client(apache.name_server()).await;
    brokers(&client, &["broker-a", "broker-g"]).await;
    create(&client).await;
    let output = drain_while_in_use(apache.name_server(), apache.name_server(), &mut leaving);
    assert_eq!(expect_all(&output), "broker-a");
    brokers(&client, &["broker-a"]).await;

    // It has left for good, until it is taken back.
    leaving.restart();
    let address = leaving.broker().to_string();
    // It finds out what the name server has of it first.
    let deadline = std::time::Instant::now() + WITHIN;
    loop {
        let state = broker_command(apache.name_server(), &format!("status {address}"));
        assert!(state.stdout.contains("phase\tleft\n"), "{state:?}");
        if state.stdout.contains(" left (since") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{state:?}");
    }
    let refused = broker_command(apache.name_server(), "status broker-g");
    assert!(
        refused.code == Some(1) && refused.stderr.contains("no broker is called broker-g"),
        "{refused:?}"
    );
    let resumed = broker_command(apache.name_server(), &format!("resume {address}"));
    assert!(resumed.stdout.contains("phase\tserving\n"), "{resumed:?}");
    brokers(&client, &["broker-a", "broker-g"]).await;
    client.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_of_gantrys_name_service_goes_without_an_error() {
    if let Err(why) = java::module(Module::Suite5) {
        return java::skip(&why);
    }
    let stays = gantry("broker-a", "");
    let names = stays.name_server().to_string();
    let mut leaving = gantry("broker-g", &names);
    let client = client(&names).await;
    brokers(&client, &["broker-a", "broker-g"]).await;
    create(&client).await;
    let output = drain_while_in_use(&names, &names, &mut leaving);
    assert_eq!(expect_all(&output), "broker-a");
    client.shutdown().await;
}

/// Two Gantrys that are name servers of each other; the one that goes is asked first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_that_is_asked_for_routes_goes_without_an_error() {
    if let Err(why) = java::module(Module::Suite5) {
        return java::skip(&why);
    }
    let stays = gantry("broker-a", "");
    let there = stays.name_server().to_string();
    let mut leaving = gantry("broker-g", &there);
    let here = leaving.name_server().to_string();
    let mut stays = stays;
    stays.terminate();
    stays.set_flags(&["--policy", "memory", "--broker-name", "broker-a", "--name-servers", &here]);
    stays.restart();
    let client = client(&here).await;
    brokers(&client, &["broker-a", "broker-g"]).await;
    create(&client).await;
    let output = drain_while_in_use(&format!("{here};{there}"), &here, &mut leaving);
    assert_eq!(expect_all(&output), "broker-a");
    client.shutdown().await;
}

/// What holds a broker is told, and lets it go in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_waits_for_what_it_has() {
    let mut broker = gantry("broker-g", "");
    let names = broker.name_server().to_string();
    let client = client(&names).await;
    create(&client).await;
    let producer = client.producer("P").start().await.unwrap();
    producer.send(Message::new(TOPIC, "now")).await.unwrap();
    producer.send(Message::new(TOPIC, "later").delay(Duration::from_secs(15))).await.unwrap();
    let came = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&came);
    let start = || async {
        let count = Arc::clone(&count);
        let consumer = client.push_consumer("G").subscribe(TOPIC, "*").from(ConsumeFrom::First);
        consumer
            .start(move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                async { Outcome::Success }
            })
            .await
            .unwrap()
    };
    let consumer = start().await;
    tokio::task::block_in_place(|| {
        wait_for("the first message", WITHIN, || match came.load(Ordering::Relaxed) {
            0 => Err("none".to_owned()),
            some => Ok(some),
        })
    });
    consumer.shutdown().await;

    let lone = broker_command(&names, "drain broker-g --grace 0");
    assert!(lone.code == Some(2) && lone.stderr.contains("knows no other broker"), "{lone:?}");
    let wrong = broker_command(&names, "drain nobody");
    assert!(wrong.code == Some(1) && wrong.stderr.contains("no broker is called nobody"), "{wrong:?}");
    let held = broker_command(&names, "drain broker-g --grace 0 --timeout 0 --yes");
    assert!(held.code == Some(1) && held.stderr.contains("1 messages wait for their time"), "{held:?}");
    let refused = producer.send(Message::new(TOPIC, "too late")).await.unwrap_err();
    assert_eq!(refused.code(), Some(ResponseCode::NoPermission), "{refused}");
    assert!(refused.to_string().contains("being taken off line"), "{refused}");

    // A crash changes nothing of it.
    broker.kill9();
    broker.restart();
    let held = tokio::task::block_in_place(|| {
        wait_for("a message that a group has not consumed", WITHIN, || {
            let state = broker_command(&names, "status broker-g");
            if state.stdout.contains("behind\tG 1 of Shared, 0 members\n") {
                Ok(state)
            } else {
                Err(state.stdout)
            }
        })
    });
    assert!(held.stdout.contains("phase\tsealed\n") && held.stdout.contains("waiting\t0\n"), "{held:?}");
    let consumer = start().await;
    let gone = tokio::task::block_in_place(|| {
        broker_command(&names, "drain broker-g --grace 0 --yes --output json")
    });
    assert!(gone.code == Some(0) && gone.stdout.contains(r#""phase":"left""#), "{gone:?}");
    assert_eq!(came.load(Ordering::Relaxed), 2);
    consumer.shutdown().await;
    assert!(client.admin().leave("broker-g").await.is_ok(), "it has left already");
    let routes = producer.send(Message::new("unheard", "of")).await.unwrap_err();
    assert_eq!(routes.kind(), ErrorKind::NoRoute, "{routes}");
    client.admin().resume("broker-g").await.unwrap();
    client.shutdown().await;
    // One that has no routes from before.
    let client = self::client(&names).await;
    let producer = client.producer("P").start().await.unwrap();
    producer.send(Message::new(TOPIC, "again")).await.unwrap();
    client.shutdown().await;
}

/// The lines that `mqadmin` showed for each of these commands.
fn mqadmin(name_server: &str, lines: &[&str]) -> Vec<String> {
    let dir = java::module(Module::Suite5).expect("it was there before");
    let scratch = tempfile::tempdir().expect("a directory");
    let script = scratch.path().join("script");
    let line = |line: &&str| format!("{}\t-n\t{name_server}\n", line.replace(' ', "\t"));
    std::fs::write(&script, lines.iter().map(line).collect::<Vec<_>>().concat())
        .expect("the script is written");
    let script = script.to_str().expect("UTF-8");
    let output =
        java::run(&dir, "gantry.suite.Admin", &[name_server, TOPIC, script], WITHIN, |_| Answer::Nothing)
            .expect("java runs");
    let mut said = Vec::new();
    for line in &output.lines {
        match line.split_at_checked(2) {
            Some(("> ", _)) => said.push(String::new()),
            Some(("| ", text)) => said.last_mut().expect("a command came first").extend([text, "\n"]),
            _ => {}
        }
    }
    assert_eq!(said.len(), lines.len(), "{output:?}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apaches_broker_registers_with_gantry() {
    let gantry = gantry("broker-g", "");
    let names = gantry.name_server().to_string();
    let apache = match Apache::start(&["flushDiskType=ASYNC_FLUSH", &format!("namesrvAddr=;{names}")]) {
        Ok(apache) => apache,
        Err(why) => return java::skip(&why),
    };
    let client = client(&names).await;
    brokers(&client, &["broker-a", "broker-g"]).await;
    create(&client).await;
    expect_all(&run_client(&names, &["broker-a", "broker-g"], || ()));

    let route = format!("topicRoute -t {TOPIC}");
    let said = mqadmin(
        &names,
        &["clusterList", &route, "wipeWritePerm -b broker-a", &route, "addWritePerm -b broker-a", &route],
    );
    let [list, both, wiped, without, given, with] = said.as_slice() else { panic!("{said:?}") };
    assert!(list.contains("broker-a") && list.contains("broker-g"), "{list}");
    assert!(
        both.contains("\"brokerName\":\"broker-a\"") && both.contains("\"brokerName\":\"broker-g\""),
        "{both}"
    );
    assert!(wiped.contains("OK") && given.contains("OK"), "{wiped} {given}");
    let perms = |route: &str| (route.matches("\"perm\":6").count(), route.matches("\"perm\":4").count());
    assert_eq!([both, without, with].map(|route| perms(route)), [(2, 0), (1, 1), (2, 0)]);

    drop(apache);
    brokers(&client, &["broker-g"]).await;
    client.shutdown().await;
}
