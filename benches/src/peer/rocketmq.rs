//! What Gantry and Apache RocketMQ have in common: the protocol, and with it the load generator.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use gantry_client::proto::remoting::body::topic::TopicConfig;
use gantry_client::{Client, ClientOptions, Message};
use gantry_tests::harness;

use super::driver::{self, Driver};
use crate::failure::Failure;
use crate::load::{Client as LoadClient, Extent, Load, Running, What};
use crate::stop;

/// How long a broker that runs may take until it acknowledges a first message.
const FIRST_WITHIN: Duration = Duration::from_secs(60);
const FIRST_TOPIC: &str = "first-send";
const AGAIN: Duration = Duration::from_millis(1);
/// One attempt: a request to a name server that does not listen yet must not use up the time.
const ATTEMPT: Duration = Duration::from_secs(3);

/// Whether there is a load generator.
pub fn can(load: &Load) -> bool {
    static OFFICIAL: OnceLock<bool> = OnceLock::new();
    load.client == LoadClient::Best
        || *OFFICIAL.get_or_init(|| match Driver::RocketMq.build() {
            Ok(()) => true,
            Err(failure) => {
                eprintln!("SKIPPED, the benchmark classes of Apache RocketMQ: {failure}");
                false
            }
        })
}

/// The load generator that a load asks for, of a broker on `store`.
pub fn generator(name_server: &str, pid: u32, store: &Path, load: &Load) -> Result<Command, Failure> {
    match load.client {
        LoadClient::Best => Ok(bench(name_server, pid, load)),
        LoadClient::OfficialJava => {
            // The official client writes its log into the home directory.
            let home = format!("-Duser.home={}", Driver::RocketMq.dir().join("target").display());
            let mut command = Driver::RocketMq.java(store, &["-Xmx1g", &home], "gantry.rocketmq.Official")?;
            command.args([name_server, &driver::document(load)?]);
            Ok(command)
        }
    }
}

/// `gantry bench` for a load.
fn bench(name_server: &str, pid: u32, load: &Load) -> Command {
    let mut command = Command::new(harness::binary());
    command.args(arguments(load)).args(["--name-server", name_server]);
    command.args(["--broker-pid", &pid.to_string(), "--output", "json"]);
    command
}

/// `gantry consume`, which waits for messages.
pub fn waiting_consumer(name_server: &str, pid: u32, topic: &str) -> Result<Running, Failure> {
    let mut command = Command::new(harness::binary());
    command.args(["consume", topic, "--group", "waiting", "--from", "last", "--name-server", name_server]);
    Running::start(command, vec![pid])
}

fn arguments(load: &Load) -> Vec<String> {
    let what = match load.what {
        What::Produce => "produce",
        What::Transaction => "transaction",
        What::Timers => "timers",
        What::Consume { .. } => "consume",
    };
    let mut words = vec!["bench".to_owned(), what.to_owned()];
    let mut add = |name: &str, value: &dyn ToString| words.extend([name.to_owned(), value.to_string()]);
    add("--topic", &load.topic);
    add("--in-flight", &load.in_flight);
    add("--connections", &load.connections);
    add("--warmup", &load.warmup);
    if let What::Consume { groups } = load.what {
        add("--groups", &groups);
    } else {
        add("--size", &load.size);
    }
    if let Some(delay) = &load.delay {
        add("--delay", delay);
    } else if load.what != What::Transaction {
        add("--batch", &load.batch);
    }
    match load.extent {
        Extent::Messages(messages) => add("--messages", &messages),
        Extent::Millis(millis) => add("--duration", &format!("{millis}ms")),
    }
    if let Some(micros) = load.busy_wait {
        add("--busy-wait", &micros);
    }
    if let Some(rate) = load.rate {
        add("--rate", &format!("{rate}/s"));
    }
    words
}

/// How many timer messages wait.
pub fn pending_timers(name_server: &str) -> Result<u64, Failure> {
    let mut pending = None;
    with_client(name_server, async |client| {
        let admin = client.admin();
        for broker in admin.cluster().await?.broker_addr_table.keys() {
            let info = admin.broker_runtime_info(broker).await?;
            pending = info.get("timerCongestNum").and_then(|text| text.parse().ok());
        }
        Ok(())
    })?;
    pending.ok_or_else(|| Failure::Peer(format!("{name_server} does not say how many timers wait")))
}

/// Creates a topic unless it is there, and waits until the name server knows it.
pub fn create_topic(name_server: &str, topic: &str, queues: u32) -> Result<(), Failure> {
    let queues = i32::try_from(queues).unwrap_or(i32::MAX);
    let config = TopicConfig {
        topic_name: topic.to_owned(),
        read_queue_nums: queues,
        write_queue_nums: queues,
        ..TopicConfig::default()
    };
    with_client(name_server, async |client| {
        let admin = client.admin();
        if admin.topic_config(topic).await?.is_none() {
            admin.create_topic(&config).await?;
        }
        while admin.topic_route(topic).await.is_err() {
            tokio::time::sleep(AGAIN).await;
        }
        Ok(())
    })
}

/// Sends one message, again until it is acknowledged.
pub fn first_send(name_server: &str) -> Result<(), Failure> {
    let end = Instant::now() + FIRST_WITHIN;
    let config = TopicConfig { topic_name: FIRST_TOPIC.to_owned(), ..TopicConfig::default() };
    loop {
        let sent = with_client(name_server, async |client| {
            client.admin().create_topic(&config).await?;
            let producer = client.producer("first-send").start().await?;
            producer.send(Message::new(FIRST_TOPIC, "first")).await?;
            Ok(())
        });
        match sent {
            Err(failure) if Instant::now() >= end => return Err(failure),
            Err(_) => stop::sleep(AGAIN)?,
            Ok(()) => return Ok(()),
        }
    }
}

fn with_client(
    name_server: &str,
    work: impl AsyncFnOnce(&Client) -> gantry_client::Result<()>,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Failure::system("starting a client"))?;
    let late = || Failure::Peer(format!("{name_server} did not answer within {ATTEMPT:?}"));
    runtime.block_on(async {
        let all = async {
            let client = Client::connect(ClientOptions::new(name_server).timeout(ATTEMPT)).await?;
            let done = work(&client).await;
            client.shutdown().await;
            done
        };
        let done = tokio::time::timeout(ATTEMPT, all).await.map_err(|_| late())?;
        done.map_err(|error| Failure::Peer(format!("{name_server}: {error}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_becomes_arguments() {
        let mut load = Load { rate: Some(500), warmup: 7, ..Load::produce("t") };
        let expected = "bench produce --topic t --in-flight 64 --connections 1 --warmup 7 --size 128 --batch 1 \
                        --duration 4000ms --rate 500/s";
        assert_eq!(arguments(&load).join(" "), expected);
        load = Load { what: What::Consume { groups: 5 }, extent: Extent::Messages(9), rate: None, ..load };
        let expected = "bench consume --topic t --in-flight 64 --connections 1 --warmup 7 --groups 5 --batch 1 \
                        --messages 9";
        assert_eq!(arguments(&load).join(" "), expected);
        load = Load { what: What::Timers, delay: Some("1s..2s".to_owned()), ..load };
        let expected = "bench timers --topic t --in-flight 64 --connections 1 --warmup 7 --size 128 --delay 1s..2s \
                        --messages 9";
        assert_eq!(arguments(&load).join(" "), expected);
    }
}
