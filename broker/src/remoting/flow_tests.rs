//! Limits over connections of a whole broker. Rates are a byte a second, so that no pause of the machine gives enough for
//! a message.

use std::sync::Arc;

use gantry_proto::remoting::body::Body as _;
use gantry_proto::remoting::body::group::SubscriptionGroupConfig;
use gantry_proto::remoting::body::lists::KvTable;
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::pop::PopMessageHeader;
use gantry_proto::remoting::request::pull::{PullMessageHeader, sys_flag};
use gantry_proto::remoting::request::send::SendMessageHeader;
use gantry_proto::remoting::request::topic::CreateTopicHeader;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::edge_tests::{ask, config, frame, hear, message, pull, start};
use crate::broker::Broker;

const BODY: &[u8] = &[b'x'; 10_000];

async fn connect(broker: &Broker) -> TcpStream {
    TcpStream::connect(broker.broker_address()).await.expect("connected")
}

async fn send(stream: &mut TcpStream, topic: &str, producers: &str) -> OwnedCommand {
    let header = SendMessageHeader { topic, producer_group: producers, ..message("") };
    ask(stream, RequestCode::SendMessage, &header, BODY).await;
    hear(stream).await
}

/// Changes the attributes of a topic.
async fn set_topic(stream: &mut TcpStream, topic: &str, change: &str) -> OwnedCommand {
    let header = CreateTopicHeader {
        topic: topic.to_owned(),
        read_queue_nums: Some(1),
        write_queue_nums: Some(1),
        attributes: Some(change.to_owned()),
        ..CreateTopicHeader::default()
    };
    ask(stream, RequestCode::UpdateAndCreateTopic, &header, b"").await;
    hear(stream).await
}

/// Changes the attributes of a group.
async fn set_group(stream: &mut TcpStream, group: &str, (key, value): (&str, &str)) -> OwnedCommand {
    let config = SubscriptionGroupConfig {
        group_name: group.to_owned(),
        attributes: [(key.to_owned(), value.to_owned())].into(),
        ..SubscriptionGroupConfig::default()
    };
    ask(stream, RequestCode::UpdateAndCreateSubscriptiongroup, &(), &config.to_json()).await;
    hear(stream).await
}

async fn runtime_info(stream: &mut TcpStream) -> std::collections::BTreeMap<String, String> {
    ask(stream, RequestCode::GetBrokerRuntimeInfo, &(), b"").await;
    KvTable::from_json(&hear(stream).await.body).expect("a table").table
}

#[tokio::test]
async fn a_send_beyond_a_rate_is_told_which_one_and_when_to_come_back() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let mut client = connect(&broker).await;
    assert_eq!(set_topic(&mut client, "T", "+gantry.rate.bytes=1").await.code, 0);
    assert_eq!(send(&mut client, "T", "p").await.code, 0);
    let refused = send(&mut client, "T", "p").await;
    assert_eq!(refused.code, ResponseCode::SystemBusy.code());
    let retry_ms: u64 = refused.ext.get("retryAfterMs").expect("when").parse().expect("a number");
    assert!((9_000_000..=10_000_000).contains(&retry_ms), "{retry_ms}");
    let why = refused.remark.expect("a remark");
    assert!(why.starts_with("topic T has used up its 1 bytes a second: try again in "), "{why}");
    // Others are not concerned, and a change holds at once.
    assert_eq!(send(&mut client, "U", "p").await.code, 0);
    let info = runtime_info(&mut client).await;
    assert_eq!(info["flowSendsLimited"], "1");
    assert_eq!(info["flowLimit topic T"], "messages=0 bytes=1 limited=1");
    assert_eq!(set_topic(&mut client, "T", "-gantry.rate.bytes").await.code, 0);
    assert_eq!(send(&mut client, "T", "p").await.code, 0);
    // A group of producers that has a limit has it in all topics.
    assert_eq!(set_group(&mut client, "p", ("+gantry.produce.rate.bytes", "1")).await.code, 0);
    assert_eq!(send(&mut client, "T", "p").await.code, 0);
    let refused = send(&mut client, "U", "p").await;
    assert!(refused.remark.expect("a remark").contains("raise gantry.produce.rate.bytes"));
    assert_eq!(send(&mut client, "U", "others").await.code, 0);
    broker.stop().await.expect("stopped");
}

#[tokio::test]
async fn attributes_that_mean_nothing_are_refused() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let mut client = connect(&broker).await;
    for change in ["+gantry.rate=many", "+gantry.speed=1", "+gantry.rate.burst=1"] {
        let refused = set_topic(&mut client, "T", change).await;
        assert_eq!(refused.code, ResponseCode::InvalidParameter.code(), "{change}");
    }
    for change in [("+gantry.rate", "many"), ("+gantry.speed", "1")] {
        assert_eq!(set_group(&mut client, "G", change).await.code, ResponseCode::InvalidParameter.code());
    }
    broker.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_group_whose_rate_is_used_up_waits_and_loses_nothing() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let mut client = connect(&broker).await;
    for _ in 0..3 {
        assert_eq!(send(&mut client, "T", "p").await.code, 0);
    }
    assert_eq!(set_group(&mut client, "consumers", ("+gantry.rate.bytes", "1")).await.code, 0);
    let second = PullMessageHeader { queue_offset: 1, max_msg_nums: 32, ..pull() };
    let waiting = PullMessageHeader {
        sys_flag: sys_flag::SUSPEND | sys_flag::SUBSCRIPTION,
        suspend_timeout_millis: 50,
        ..second.clone()
    };
    // One message is always given; the next ones when it is paid for.
    ask(
        &mut client,
        RequestCode::PullMessage,
        &PullMessageHeader { queue_offset: 0, ..waiting.clone() },
        b"",
    )
    .await;
    let first = hear(&mut client).await;
    assert_eq!((first.code, first.ext.get("nextBeginOffset")), (0, Some("1")));
    ask(&mut client, RequestCode::PullMessage, &waiting, b"").await;
    let nothing = hear(&mut client).await;
    assert_eq!(nothing.code, ResponseCode::PullNotFound.code());
    assert_eq!(nothing.ext.get("nextBeginOffset"), Some("1"));
    // Who may not wait is told.
    ask(&mut client, RequestCode::PullMessage, &second, b"").await;
    let refused = hear(&mut client).await;
    assert_eq!(refused.code, ResponseCode::FlowControl.code());
    assert!(refused.remark.expect("a remark").contains("consumer group consumers has used up its 1 bytes"));
    // Another group goes on, and this one too when its limit is raised.
    let other = PullMessageHeader { consumer_group: "others", ..second.clone() };
    ask(&mut client, RequestCode::PullMessage, &other, b"").await;
    assert_eq!(hear(&mut client).await.code, 0);
    let long = PullMessageHeader { suspend_timeout_millis: 60_000, ..waiting };
    ask(&mut client, RequestCode::PullMessage, &long, b"").await;
    while broker.services().polls.is_empty() {
        tokio::task::yield_now().await;
    }
    let mut operator = connect(&broker).await;
    assert_eq!(set_group(&mut operator, "consumers", ("+gantry.rate.bytes", "1GiB")).await.code, 0);
    let limiter = broker.services().groups.get("consumers").expect("it is there");
    drop(super::pull::limiter_of(broker.services(), &limiter));
    let found = hear(&mut client).await;
    assert_eq!((found.code, found.ext.get("nextBeginOffset")), (0, Some("3")));
    assert!(runtime_info(&mut operator).await["flowPullsHeld"].parse::<u64>().expect("a number") >= 3);
    while !broker.services().polls.is_empty() {
        tokio::task::yield_now().await;
    }
    broker.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_pop_waits_for_its_groups_rate_too() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let mut client = connect(&broker).await;
    for _ in 0..2 {
        assert_eq!(send(&mut client, "T", "p").await.code, 0);
    }
    assert_eq!(set_group(&mut client, "G", ("+gantry.rate.bytes", "1")).await.code, 0);
    let pop = PopMessageHeader {
        consumer_group: "G",
        topic: "T",
        queue_id: 0,
        max_msg_nums: 1,
        invisible_time: 60_000,
        ..PopMessageHeader::default()
    };
    ask(&mut client, RequestCode::PopMessage, &pop, b"").await;
    assert_eq!(hear(&mut client).await.code, 0);
    ask(&mut client, RequestCode::PopMessage, &pop, b"").await;
    let full = hear(&mut client).await;
    assert_eq!(full.code, ResponseCode::PollingFull.code());
    assert!(full.remark.expect("a remark").contains("consumer group G has used up its 1 bytes a second"));
    ask(&mut client, RequestCode::PopMessage, &PopMessageHeader { poll_time: 30, ..pop }, b"").await;
    assert_eq!(hear(&mut client).await.code, ResponseCode::PollingTimeout.code());
    assert!(broker.services().polls.is_empty());
    broker.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_connection_with_too_much_under_way_is_not_read_until_that_is_answered() {
    let dir = TempDir::new().expect("a temporary directory");
    for (requests, bytes) in [(1, 1 << 20), (1000, 1)] {
        let mut config = config(&dir);
        (config.limits.in_flight_requests, config.limits.in_flight_bytes) = (requests, bytes);
        let broker = Broker::start(config).await.expect("started");
        let mut client = connect(&broker).await;
        let many: Vec<u8> =
            (0..100).flat_map(|_| frame(RequestCode::SendMessage, &message(""), BODY)).collect();
        let (mut from, mut to) = client.split();
        let writing = async { to.write_all(&many).await.expect("written") };
        let reading = async {
            let mut input = Vec::new();
            let mut answers = 0;
            while answers < 100 {
                use gantry_proto::remoting::frame::Frame;
                use tokio::io::AsyncReadExt as _;
                while let Some(frame) = Frame::cut(&input, 1 << 20).expect("a frame") {
                    assert_eq!(OwnedCommand::decode(&frame).expect("a command").code, 0);
                    let len = frame.len;
                    input.drain(..len);
                    answers += 1;
                }
                if answers < 100 {
                    assert!(from.read_buf(&mut input).await.expect("readable") > 0);
                }
            }
        };
        tokio::join!(writing, reading);
        assert!(broker.services().metrics.connections_paused.get() > 0);
        broker.stop().await.expect("stopped");
    }
}

#[tokio::test]
async fn a_spent_limiter_is_kept_for_people_to_see() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut config = config(&dir);
    config.flow.topic.bytes = 1;
    let broker = Broker::start(config).await.expect("started");
    let mut client = connect(&broker).await;
    assert_eq!(send(&mut client, "T", "p").await.code, 0);
    assert_eq!(send(&mut client, "T", "p").await.code, ResponseCode::SystemBusy.code());
    let services = Arc::clone(broker.services());
    services.flow.sweep();
    assert_eq!(services.flow.busiest(10).len(), 1);
    broker.stop().await.expect("stopped");
}
