//! Replies to request messages, from the consumer to the requester and back.

use gantry_proto::record::{Properties, PropertiesBuf, keys};
use gantry_proto::remoting::codes::RequestCode;
use gantry_proto::remoting::frame::Serialize;
use gantry_proto::remoting::header::{Head, OwnedCommand, encode_frame};
use gantry_proto::remoting::request::callback::PushReplyMessageHeader;
use gantry_proto::remoting::request::send::{SendMessageHeader, SendMessageV2};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::edge_tests::{ask, config, connection, hear, producer, start};
use crate::broker::Broker;

const TOPIC: &str = "DefaultCluster_REPLY_TOPIC";

/// A reply for the client `to`.
fn request(to: &str) -> OwnedCommand {
    let mut properties = PropertiesBuf::new();
    for (name, value) in
        [(keys::MSG_TYPE, "reply"), (keys::CORRELATION_ID, "17"), (keys::REPLY_TO_CLIENT, to)]
    {
        properties.push(name, value);
    }
    let header = SendMessageV2(SendMessageHeader {
        producer_group: "repliers",
        topic: TOPIC,
        default_topic: "TBW102",
        default_topic_queue_nums: 4,
        flag: 3,
        properties: std::str::from_utf8(properties.as_bytes()).ok(),
        ..SendMessageHeader::default()
    });
    OwnedCommand::request(RequestCode::SendReplyMessageV2, &header).body("two coins")
}

/// Sends a reply for the client `to` and hears the answer.
async fn reply(broker: &Broker, to: &str) -> OwnedCommand {
    let mut stream = TcpStream::connect(broker.broker_address()).await.expect("connected");
    let request = request(to);
    ask(&mut stream, RequestCode::SendReplyMessageV2, &request.ext, &request.body).await;
    hear(&mut stream).await
}

/// Answers the next request of the broker with `code`, and gives it.
async fn take(requester: &mut TcpStream, code: i32) -> OwnedCommand {
    let pushed = hear(requester).await;
    let mut bytes = Vec::new();
    let head = Head { remark: Some("said so"), ..Head::reply(code, pushed.opaque) };
    encode_frame(&mut bytes, Serialize::Json, &head, &(), 0).expect("a frame");
    requester.write_all(&bytes).await.expect("written");
    pushed
}

/// How many replies are stored.
async fn stored(broker: &Broker) -> usize {
    let services = broker.services();
    services.store.dispatched(services.store.max_offset()).await.expect("the log runs");
    let topic = services.topics.get(TOPIC).expect("the topic exists");
    let queue = services.store.queue(&topic.name, gantry_proto::ids::QueueId::ZERO).expect("its queue");
    usize::try_from(queue.max().get()).expect("few")
}

fn field<'a>(answer: &'a OwnedCommand, name: &str) -> &'a str {
    answer.ext.get(name).expect("the field is there")
}

#[tokio::test]
async fn a_reply_is_pushed_to_who_asked_and_stored() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let (mut requester, _) = producer(&broker).await;
    let (answer, pushed) = tokio::join!(reply(&broker, "requester"), take(&mut requester, 0));
    assert_eq!(answer.code, 0, "{:?}", answer.remark);
    assert_eq!((field(&answer, "msgId").len(), field(&answer, "queueOffset")), (32, "0"));
    assert_eq!((field(&answer, "MSG_REGION"), field(&answer, "TRACE_ON")), ("DefaultRegion", "true"));
    assert_eq!(stored(&broker).await, 1);
    assert_eq!((pushed.code, pushed.flag), (RequestCode::PushReplyMessageToClient.code(), 0));
    assert_eq!(&*pushed.body, b"two coins");
    let header: PushReplyMessageHeader = pushed.header().expect("a header");
    assert_eq!((header.topic.as_str(), header.producer_group.as_str(), header.flag), (TOPIC, "repliers", 3));
    assert!(header.born_host.starts_with("127.0.0.1:") && header.store_host.starts_with("127.0.0.1:"));
    let properties = header.properties.expect("properties");
    let properties = Properties::new(properties.as_bytes());
    assert_eq!((properties.correlation_id(), properties.is_reply()), (Some("17"), true));
    assert!(properties.get(keys::PUSH_REPLY_TIME).is_some());
    broker.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_reply_to_nobody_is_refused_with_a_sentence() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let answer = reply(&broker, "who?").await;
    let remark = answer.remark.expect("a remark");
    assert!(answer.code == 1 && remark.contains("no producer called who? is connected"), "{remark}");
    assert_eq!(stored(&broker).await, 1, "people find it in the topic");
    let answer = reply(&broker, "").await;
    let remark = answer.remark.expect("a remark");
    assert!(answer.code == 1 && remark.contains("no property REPLY_TO_CLIENT"), "{remark}");
    assert_eq!(stored(&broker).await, 1);
    broker.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_requester_may_refuse_and_may_go() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let (mut requester, _) = producer(&broker).await;
    let (answer, _) = tokio::join!(reply(&broker, "requester"), take(&mut requester, 5));
    let remark = answer.remark.expect("a remark");
    assert!(answer.code == 1 && remark.contains("refused the reply with code 5: said so"), "{remark}");
    let leaving = async {
        hear(&mut requester).await;
        drop(requester);
    };
    let (answer, ()) = tokio::join!(reply(&broker, "requester"), leaving);
    let remark = answer.remark.expect("a remark");
    assert!(answer.code == 1 && remark.contains("its connection ended"), "{remark}");
    broker.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_requester_that_says_nothing_is_not_waited_for_long() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let (_silent, _) = producer(&broker).await;
    let caller = connection(broker.services()).caller.clone();
    tokio::time::pause(); // from here on time passes when nothing else happens
    let answer = super::reply::reply(broker.services(), &request("requester"), &caller).await;
    tokio::time::resume();
    let remark = answer.remark.expect("a remark");
    assert!(answer.code == 1 && remark.contains("did not answer within 10s"), "{remark}");
    broker.stop().await.expect("stopped");
}

#[tokio::test]
async fn replies_need_not_be_stored() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut config = config(&dir);
    config.topics.store_replies = false;
    let broker = Broker::start(config).await.expect("started");
    let (mut requester, _) = producer(&broker).await;
    let (answer, _) = tokio::join!(reply(&broker, "requester"), take(&mut requester, 0));
    assert_eq!((answer.code, field(&answer, "msgId"), stored(&broker).await), (0, "0", 0));
    broker.stop().await.expect("stopped");
}
