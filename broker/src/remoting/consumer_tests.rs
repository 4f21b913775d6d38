use gantry_proto::json;
use gantry_proto::remoting::body::heartbeat::{ConsumerData, HeartbeatData};
use gantry_proto::remoting::body::queues::MessageQueue;
use gantry_proto::remoting::codes::RequestCode;
use gantry_proto::remoting::frame::{Frame, Serialize};
use gantry_proto::remoting::header::{ExtWrite, Head, encode_frame};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::edge_tests::{ask, message, start};
use super::*;
use crate::broker::Broker;

/// A connection to the broker, with what was read and not looked at yet.
struct Client {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Client {
    async fn new(broker: &Broker) -> Self {
        Self { stream: TcpStream::connect(broker.broker_address()).await.unwrap(), input: Vec::new() }
    }

    /// The next command, apart from notices to divide the queues anew.
    async fn hear(&mut self) -> OwnedCommand {
        loop {
            if let Some(frame) = Frame::cut(&self.input, 1 << 20).unwrap() {
                let (command, len) = (OwnedCommand::decode(&frame).unwrap(), frame.len);
                self.input.drain(..len);
                if command.code != RequestCode::NotifyConsumerIdsChanged.code() {
                    return command;
                }
            } else {
                assert!(self.stream.read_buf(&mut self.input).await.unwrap() > 0, "closed");
            }
        }
    }

    async fn reply(&mut self, to: &OwnedCommand, code: i32, remark: Option<&str>, body: &[u8]) {
        let head = Head { remark, ..Head::reply(code, to.opaque) };
        let mut bytes = Vec::new();
        encode_frame(&mut bytes, Serialize::Json, &head, &(), body.len()).unwrap();
        bytes.extend_from_slice(body);
        self.stream.write_all(&bytes).await.unwrap();
    }
}

/// A broker with consumers, and the operator who asks for them.
struct Scene {
    broker: Broker,
    operator: Client,
    _dir: TempDir,
}

impl Scene {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let broker = start(&dir).await;
        let operator = Client::new(&broker).await;
        Self { broker, operator, _dir: dir }
    }

    /// A consumer of group `g`, known to the broker.
    async fn consumer(&self, id: &str, model: MessageModel) -> Client {
        let mut client = Client::new(&self.broker).await;
        let consumer =
            ConsumerData { group_name: "g".to_owned(), message_model: model, ..ConsumerData::default() };
        let beat = HeartbeatData {
            client_id: id.to_owned(),
            consumer_data_set: vec![consumer],
            ..HeartbeatData::default()
        };
        ask(&mut client.stream, RequestCode::HeartBeat, &(), &beat.to_json()).await;
        assert_eq!(client.hear().await.code, 0);
        client
    }

    async fn ask(&mut self, code: RequestCode, header: &impl ExtWrite) {
        ask(&mut self.operator.stream, code, header, b"").await;
    }

    async fn answer(&mut self) -> OwnedCommand {
        self.operator.hear().await
    }

    /// Sends a message; returns its offset message id.
    async fn send(&mut self) -> String {
        ask(&mut self.operator.stream, RequestCode::SendMessage, &message(""), b"one").await;
        let answer = self.answer().await;
        assert_eq!(answer.code, 0, "{:?}", answer.remark);
        answer.ext.get("msgId").unwrap().to_owned()
    }
}

fn info_of(client: &str) -> GetConsumerRunningInfoHeader {
    GetConsumerRunningInfoHeader {
        consumer_group: "g".to_owned(),
        client_id: client.to_owned(),
        jstack_enable: true,
    }
}

fn consume(msg_id: &str, topic: &str) -> ConsumeMessageDirectlyHeader {
    ConsumeMessageDirectlyHeader {
        consumer_group: "g".to_owned(),
        client_id: Some("c".to_owned()),
        msg_id: Some(msg_id.to_owned()),
        topic: Some(topic.to_owned()),
        ..ConsumeMessageDirectlyHeader::default()
    }
}

#[tokio::test]
async fn a_question_is_passed_on_and_the_answer_passed_back() {
    let mut scene = Scene::new().await;
    let mut consumer = scene.consumer("c", MessageModel::Clustering).await;
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/broker_admin_samples.json");
    let samples = json::parse(&std::fs::read(samples).unwrap()).unwrap();
    let java =
        samples["307 {consumerGroup=cg_norm, clientId=192.0.2.2@c2}"]["body"].as_str().unwrap().to_owned();
    for (code, remark, body) in [(0, None, java.as_bytes()), (1, Some("no such consumer"), b"".as_slice())] {
        scene.ask(RequestCode::GetConsumerRunningInfo, &info_of("c")).await;
        let asked = consumer.hear().await;
        assert_eq!(asked.code, RequestCode::GetConsumerRunningInfo.code());
        assert_eq!(asked.header::<GetConsumerRunningInfoHeader>().unwrap(), info_of("c"));
        consumer.reply(&asked, code, remark, body).await;
        let answer = scene.answer().await;
        assert_eq!((answer.code, answer.remark.as_deref(), &*answer.body), (code, remark, body));
    }
    scene.broker.stop().await.unwrap();
}

#[tokio::test]
async fn who_is_not_online_is_not_asked() {
    let mut scene = Scene::new().await;
    let _consumer = scene.consumer("c", MessageModel::Clustering).await;
    scene.ask(RequestCode::GetConsumerRunningInfo, &info_of("d")).await;
    let refused = scene.answer().await;
    assert_eq!(refused.code, 1);
    assert!(refused.remark.unwrap().contains("client d of group g is not online"));
    let header = GetConsumerStatusHeader { group: "other".to_owned(), ..GetConsumerStatusHeader::default() };
    scene.ask(RequestCode::InvokeBrokerToGetConsumerStatus, &header).await;
    assert!(scene.answer().await.remark.unwrap().contains("no consumer of group other is online"));
    let header = ConsumeMessageDirectlyHeader { consumer_group: "other".to_owned(), ..consume("", "T") };
    scene.ask(RequestCode::ConsumeMessageDirectly, &header).await;
    assert_eq!(scene.answer().await.code, ResponseCode::SubscriptionGroupNotExist.code());
    scene.broker.stop().await.unwrap();
}

#[tokio::test]
async fn who_asked_is_told_when_the_client_leaves() {
    let mut scene = Scene::new().await;
    let mut consumer = scene.consumer("c", MessageModel::Clustering).await;
    scene.ask(RequestCode::GetConsumerRunningInfo, &info_of("c")).await;
    consumer.hear().await;
    drop(consumer);
    let refused = scene.answer().await;
    assert_eq!(refused.code, 1);
    assert!(refused.remark.unwrap().contains("client c was asked: its connection ended"));
    scene.broker.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_answer_is_given_up() {
    let (outbox, mut notices) = Peer::outbox();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 5));
    let speaks = (gantry_proto::remoting::codes::Language::Java, 0);
    let peer = Arc::new(Peer::new(1, address, "c", speaks, outbox));
    let call = Call::new(RequestCode::GetConsumerRunningInfo, &info_of("c"), Vec::new());
    let began = tokio::time::Instant::now();
    let Handled::Later(reply) = relay(Ok((peer, call))) else { panic!("the answer takes its time") };
    let (reply, notice) = tokio::join!(reply, notices.recv());
    assert!(matches!(notice, Some(Notice::Call { .. })), "the client is asked");
    assert_eq!(reply.code, ResponseCode::ConsumeMsgTimeout.code());
    assert!(reply.remark.unwrap().contains("client c was asked: it did not answer within 10s"));
    assert_eq!(began.elapsed(), ANSWER_WITHIN, "by the paused clock");
}

#[tokio::test]
async fn a_message_is_processed_by_the_client_that_the_operator_names() {
    let mut scene = Scene::new().await;
    let mut consumer = scene.consumer("c", MessageModel::Clustering).await;
    let id = scene.send().await;
    scene.ask(RequestCode::ConsumeMessageDirectly, &consume(&id, "T")).await;
    let asked = consumer.hear().await;
    let header: ConsumeMessageDirectlyHeader = asked.header().unwrap();
    let filled = ConsumeMessageDirectlyHeader {
        broker_name: Some("broker-a".to_owned()),
        topic_sys_flag: Some(0),
        group_sys_flag: Some(0),
        ..consume(&id, "T")
    };
    assert_eq!(header, filled);
    assert_eq!(RecordView::parse(&asked.body).unwrap().body(), b"one");
    consumer.reply(&asked, 0, None, b"{}").await;
    assert_eq!(&*scene.answer().await.body, b"{}");
    for (id, topic, why) in [
        ("12", "T", "12 is no offset message id"),
        ("7F00000100002A9F00000000000FFFFF", "T", "check the message id"),
        (&id, "Other", "is in topic T, not Other"),
    ] {
        scene.ask(RequestCode::ConsumeMessageDirectly, &consume(id, topic)).await;
        let refused = scene.answer().await;
        assert_eq!(refused.code, 1);
        assert!(refused.remark.as_deref().unwrap().contains(why), "{:?}", refused.remark);
    }
    scene.broker.stop().await.unwrap();
}

#[tokio::test]
async fn members_say_where_they_stand() {
    let mut scene = Scene::new().await;
    let mut consumers = Vec::new();
    for id in ["c", "d"] {
        consumers.push(scene.consumer(id, MessageModel::Clustering).await);
    }
    let header = GetConsumerStatusHeader { topic: "T".to_owned(), group: "g".to_owned(), client_addr: None };
    scene.ask(RequestCode::InvokeBrokerToGetConsumerStatus, &header).await;
    for (consumer, offset) in consumers.iter_mut().zip([3, 5]) {
        let asked = consumer.hear().await;
        assert_eq!(asked.code, RequestCode::GetConsumerStatusFromClient.code());
        assert_eq!(asked.header::<GetConsumerStatusHeader>().unwrap(), header);
        let queue = MessageQueue { broker_name: "broker-a".to_owned(), queue_id: 1, topic: "T".to_owned() };
        let mut body = GetConsumerStatusBody::default();
        body.message_queue_table.insert(queue, offset);
        consumer.reply(&asked, 0, None, &body.to_json()).await;
    }
    let body = GetConsumerStatusBody::from_json(&scene.answer().await.body).unwrap();
    let offsets = |client: &str| body.consumer_table[client].values().copied().collect::<Vec<_>>();
    assert_eq!((offsets("c"), offsets("d")), (vec![3], vec![5]));

    let header = GetConsumerStatusHeader { client_addr: Some("d".to_owned()), ..header };
    scene.ask(RequestCode::InvokeBrokerToGetConsumerStatus, &header).await;
    let asked = consumers[1].hear().await;
    consumers[1].reply(&asked, 0, None, b"?").await;
    let refused = scene.answer().await;
    assert!(refused.remark.unwrap().contains("client d answered what cannot be read"));
    scene.broker.stop().await.unwrap();
}

#[tokio::test]
async fn members_of_a_broadcasting_group_are_told_where_to_go_on() {
    let mut scene = Scene::new().await;
    let mut consumers = Vec::new();
    for id in ["c", "d"] {
        consumers.push(scene.consumer(id, MessageModel::Broadcasting).await);
    }
    scene.send().await;
    let header = ResetOffsetHeader {
        topic: "T".to_owned(),
        group: "g".to_owned(),
        timestamp: -1,
        is_force: true,
        queue_id: Some(0),
        offset: None,
    };
    scene.ask(RequestCode::InvokeBrokerToResetOffset, &header).await;
    let answer = scene.answer().await;
    assert_eq!(answer.code, 0, "{:?}", answer.remark);
    for consumer in &mut consumers {
        let told = consumer.hear().await;
        assert_eq!(told.code, RequestCode::ResetConsumerClientOffset.code());
        assert_eq!(told.body, answer.body);
        let header: ResetOffsetHeader = told.header().unwrap();
        assert_eq!((header.group.as_str(), header.topic.as_str(), header.timestamp), ("g", "T", -1));
    }
    let kept = scene.broker.services().offsets.of_group("g");
    assert!(kept.is_empty(), "the broker keeps no offset of such a group: {kept:?}");
    scene.broker.stop().await.unwrap();
}
