//! Connections of a whole broker: what one request does to another.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use gantry_proto::record::{PropertiesBuf, keys};
use gantry_proto::remoting::body::Body as _;
use gantry_proto::remoting::body::heartbeat::{HeartbeatData, ProducerData};
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::frame::{Frame, Serialize};
use gantry_proto::remoting::header::{Command, ExtWrite, FLAG_ONEWAY, Head, OwnedCommand, encode_frame};
use gantry_proto::remoting::request::group::GroupForbiddenHeader;
use gantry_proto::remoting::request::pull::{PullMessageHeader, sys_flag};
use gantry_proto::remoting::request::send::SendMessageHeader;
use gantry_proto::remoting::request::topic::TopicHeader;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use super::budget::Share;
use super::connection::Connection;
use super::context::{Caller, Handled, Services};
use super::{send, serve_stream};
use crate::broker::{Broker, StartError};
use crate::config::{Config, Policy};
use crate::groups::members::{ANSWER_WITHIN, Call, CallError, Peer};
use crate::store::OpenError;

pub(super) fn config(dir: &TempDir) -> Config {
    let mut config = Config::default();
    config.store.dir = dir.path().to_path_buf();
    (config.ports.name, config.ports.broker) = (0, 0);
    // How full the machine's disk is decides no test.
    (config.retention.force_percent, config.retention.refuse_percent) = (100, 100);
    config
}

pub(super) async fn start(dir: &TempDir) -> Broker {
    Broker::start(config(dir)).await.expect("started")
}

pub(super) fn frame(code: RequestCode, header: &impl ExtWrite, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_frame(&mut bytes, Serialize::Json, &Head::request(code.code(), 1), header, body.len())
        .expect("a frame");
    bytes.extend_from_slice(body);
    bytes
}

/// Writes a request.
pub(super) async fn ask(stream: &mut TcpStream, code: RequestCode, header: &impl ExtWrite, body: &[u8]) {
    stream.write_all(&frame(code, header, body)).await.expect("written");
}

/// Reads one answer.
pub(super) async fn hear(stream: &mut TcpStream) -> OwnedCommand {
    let mut input = Vec::new();
    loop {
        if let Some(frame) = Frame::cut(&input, 1 << 20).expect("a frame") {
            return OwnedCommand::decode(&frame).expect("a command");
        }
        let read = stream.read_buf(&mut input).await.expect("readable");
        assert!(read > 0, "the broker closed the connection");
    }
}

pub(super) fn message(properties: &str) -> SendMessageHeader<'_> {
    SendMessageHeader {
        producer_group: "producers",
        topic: "T",
        default_topic: "TBW102",
        default_topic_queue_nums: 1,
        properties: Some(properties),
        ..SendMessageHeader::default()
    }
}

/// A pull of the first message of a queue.
pub(super) fn pull() -> PullMessageHeader<'static> {
    PullMessageHeader {
        consumer_group: "consumers",
        topic: "T",
        max_msg_nums: 1,
        sys_flag: sys_flag::SUBSCRIPTION,
        subscription: Some("*"),
        ..PullMessageHeader::default()
    }
}

/// A pull that waits for the second one.
pub(super) fn waiting_pull() -> PullMessageHeader<'static> {
    PullMessageHeader {
        queue_offset: 1,
        sys_flag: sys_flag::SUSPEND | sys_flag::SUBSCRIPTION,
        suspend_timeout_millis: 60_000,
        ..pull()
    }
}

#[tokio::test]
async fn a_pull_that_waits_is_answered_when_its_topic_is_deleted() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let mut consumer = TcpStream::connect(broker.broker_address()).await.expect("connected");
    let mut operator = TcpStream::connect(broker.broker_address()).await.expect("connected");
    ask(&mut operator, RequestCode::SendMessage, &message(""), b"one").await;
    assert_eq!(hear(&mut operator).await.code, 0);
    let pull = waiting_pull();
    ask(&mut consumer, RequestCode::PullMessage, &pull, b"").await;
    while broker.services().polls.is_empty() {
        tokio::task::yield_now().await;
    }
    let topic = TopicHeader { topic: "T".to_owned(), broker_name: None };
    ask(&mut operator, RequestCode::DeleteTopicInBroker, &topic, b"").await;
    assert_eq!(hear(&mut operator).await.code, 0);
    let answer = tokio::time::timeout(Duration::from_secs(30), hear(&mut consumer)).await.expect("answered");
    assert_eq!(answer.code, ResponseCode::PullNotFound.code());
    ask(&mut consumer, RequestCode::PullMessage, &pull, b"").await;
    assert_eq!(hear(&mut consumer).await.code, ResponseCode::TopicNotExist.code());
    broker.stop().await.expect("stopped");
}

/// A client of a producer group on a connection of its own, and how services reach it.
pub(super) async fn producer(broker: &Broker) -> (TcpStream, Arc<Peer>) {
    let mut stream = TcpStream::connect(broker.broker_address()).await.expect("connected");
    let beat = HeartbeatData {
        client_id: "requester".to_owned(),
        producer_data_set: vec![ProducerData { group_name: "producers".to_owned() }],
        ..HeartbeatData::default()
    };
    ask(&mut stream, RequestCode::HeartBeat, &(), &beat.to_json()).await;
    assert_eq!(hear(&mut stream).await.code, 0);
    let peer = broker.services().members.any_producer("producers").expect("it is registered");
    (stream, peer)
}

#[tokio::test]
async fn a_client_is_called_and_its_answer_finds_who_called() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let (mut client, peer) = producer(&broker).await;
    let call = |body: &str| Call::new(RequestCode::GetConsumerRunningInfo, &(), body.into());
    let answering = async {
        let asked = hear(&mut client).await;
        let mut bytes = Vec::new();
        for (opaque, body) in [(asked.opaque + 1, "to nothing"), (asked.opaque, "fine")] {
            let head = Head { remark: Some("a remark"), ..Head::reply(7, opaque) };
            encode_frame(&mut bytes, Serialize::Json, &head, &(), body.len()).expect("a frame");
            bytes.extend_from_slice(body.as_bytes());
        }
        client.write_all(&bytes).await.expect("written");
        asked
    };
    let (answer, asked) = tokio::join!(peer.call(call("how are you?"), ANSWER_WITHIN), answering);
    assert_eq!(
        (asked.code, &*asked.body),
        (RequestCode::GetConsumerRunningInfo.code(), &b"how are you?"[..])
    );
    let answer = answer.expect("it answered");
    assert_eq!((answer.code, answer.remark.as_deref(), &*answer.body), (7, Some("a remark"), &b"fine"[..]));
    // Two that get no answer: by the time, and by the end of the connection.
    let silent = peer.call(call(""), Duration::ZERO).await;
    assert_eq!(silent.expect_err("no answer"), CallError::Silent(Duration::ZERO));
    let (gone, ()) = tokio::join!(peer.call(call("still there?"), ANSWER_WITHIN), async { drop(client) });
    assert_eq!(gone.expect_err("no answer"), CallError::Gone);
    assert_eq!(peer.call(call(""), ANSWER_WITHIN).await.expect_err("no answer"), CallError::Gone);
    broker.stop().await.expect("stopped");
}

/// Reads so many answers to sends, and gives the queue offset of each.
async fn hear_offsets(stream: &mut TcpStream, count: usize) -> Vec<i64> {
    let (mut input, mut offsets) = (Vec::new(), Vec::new());
    while offsets.len() < count {
        while let Some(frame) = Frame::cut(&input, 1 << 20).expect("a frame") {
            let answer = OwnedCommand::decode(&frame).expect("a command");
            assert_eq!(answer.code, 0, "{:?}", answer.remark);
            offsets.push(answer.ext.get("queueOffset").and_then(|at| at.parse().ok()).expect("an offset"));
            input.drain(..frame.len);
        }
        if offsets.len() < count {
            assert!(stream.read_buf(&mut input).await.expect("readable") > 0, "closed");
        }
    }
    offsets
}

/// They are handled some at a time, and one by one a lone client is served without another thread.
#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_and_one_by_one_are_all_answered_in_order() {
    for policy in [Policy::Disk, Policy::Memory] {
        let dir = TempDir::new().expect("a temporary directory");
        let mut config = config(&dir);
        config.store.policy = policy;
        let broker = Broker::start(config).await.expect("started");
        let mut stream = TcpStream::connect(broker.broker_address()).await.expect("connected");
        let large = vec![b'x'; 9000];
        let many: Vec<u8> = (0..150)
            .flat_map(|number| {
                let body = if number % 10 == 0 { large.as_slice() } else { b"small" };
                frame(RequestCode::SendMessage, &message(""), body)
            })
            .collect();
        stream.write_all(&many).await.expect("written");
        assert!(hear_offsets(&mut stream, 150).await.into_iter().eq(0..150), "{policy:?}");
        for number in 150..350 {
            ask(&mut stream, RequestCode::SendMessage, &message(""), b"alone").await;
            assert_eq!(hear_offsets(&mut stream, 1).await, [number], "{policy:?}");
        }
        broker.stop().await.expect("stopped");
    }
}

/// An answer "no message" would have it pull again at once.
#[tokio::test]
async fn a_pull_that_may_not_wait_is_refused() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut config = config(&dir);
    config.limits.waiting_polls = 1;
    let broker = Broker::start(config).await.expect("started");
    let mut stream = TcpStream::connect(broker.broker_address()).await.expect("connected");
    ask(&mut stream, RequestCode::SendMessage, &message(""), b"one").await;
    assert_eq!(hear(&mut stream).await.code, 0);
    let pull = PullMessageHeader { max_msg_nums: 32, suspend_timeout_millis: 20_000, ..waiting_pull() };
    ask(&mut stream, RequestCode::PullMessage, &pull, b"").await;
    ask(&mut stream, RequestCode::PullMessage, &pull, b"").await;
    let refused = hear(&mut stream).await;
    assert_eq!(refused.code, ResponseCode::SystemBusy.code());
    assert!(refused.remark.expect("a remark").contains("1 pulls wait already"));
    broker.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_group_pulls_nothing_of_a_topic_that_it_is_forbidden() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let mut stream = TcpStream::connect(broker.broker_address()).await.expect("connected");
    ask(&mut stream, RequestCode::SendMessage, &message(""), b"one").await;
    assert_eq!(hear(&mut stream).await.code, 0);
    for (readable, code) in [(None, 0), (Some(false), 16), (Some(true), 0)] {
        if readable.is_some() {
            let header =
                GroupForbiddenHeader { group: "consumers".to_owned(), topic: "T".to_owned(), readable };
            ask(&mut stream, RequestCode::UpdateAndGetGroupForbidden, &header, b"").await;
            assert_eq!(hear(&mut stream).await.code, 0);
        }
        ask(&mut stream, RequestCode::PullMessage, &pull(), b"").await;
        let answer = hear(&mut stream).await;
        assert_eq!(answer.code, code, "{:?}", answer.remark);
    }
    broker.stop().await.expect("stopped");
}

/// A connection without a socket.
pub(super) fn connection(services: &Arc<Services>) -> Connection {
    let (outbox, _) = Peer::outbox();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 5));
    let language = gantry_proto::remoting::codes::Language::Java;
    let caller = Caller { connection: 1, remote: address, local: address, language, version: 0, outbox };
    Connection::new(services.clone(), caller)
}

#[tokio::test]
async fn one_answer_at_a_time_is_prepared_while_others_do_not_read() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let mut sender = TcpStream::connect(broker.broker_address()).await.expect("connected");
    ask(&mut sender, RequestCode::SendMessage, &message(""), &vec![b'x'; 20_000]).await;
    assert_eq!(hear(&mut sender).await.code, 0);
    let services = broker.services();
    let frames = frame(RequestCode::PullMessage, &pull(), b"").repeat(10);
    let answered = || {
        let mut connection = connection(services);
        connection.take_frames(&mut frames.as_slice().into()).expect("frames");
        connection.out.len() / 20_000
    };
    assert_eq!(answered(), 2, "as many as are written at once");
    let mut others = Share::new(&services.outbound);
    others.set(1 << 30);
    assert_eq!(answered(), 1);
    drop(others);
    assert_eq!(answered(), 2);
    broker.stop().await.expect("stopped");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_holds_up_no_stop() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let mut sender = TcpStream::connect(broker.broker_address()).await.expect("connected");
    ask(&mut sender, RequestCode::SendMessage, &message(""), &vec![b'x'; 20_000]).await;
    assert_eq!(hear(&mut sender).await.code, 0);
    let services = broker.services();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 5));
    let (ours, mut theirs) = tokio::io::duplex(1000);
    let served = tokio::spawn(super::serve_stream(std::sync::Arc::clone(services), ours, address, address));
    theirs.write_all(&frame(RequestCode::PullMessage, &pull(), b"")).await.expect("written");
    theirs.read_u8().await.expect("the answer begins");
    let began = tokio::time::Instant::now();
    services.connections.stop();
    served.await.expect("it ends");
    assert!(began.elapsed() < services.config.limits.idle / 10, "by the paused clock");
    let mut rest = Vec::new();
    theirs.read_to_end(&mut rest).await.expect("it is closed");
    assert!(rest.len() <= 1000, "nothing is written twice");
    broker.stop().await.expect("stopped");
}

#[tokio::test]
async fn who_does_not_wait_for_the_disk_is_answered_when_the_message_is_written() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let services = broker.services();
    let mut connection = connection(services);
    let mut properties = PropertiesBuf::new();
    properties.push(keys::WAIT, "false");
    let properties = std::str::from_utf8(properties.as_bytes()).expect("text").to_owned();
    let bytes = frame(RequestCode::SendMessage, &message(&properties), b"one");
    let frame = Frame::cut(&bytes, 1 << 20).expect("a frame").expect("whole");
    let command = Command::decode(frame.serialize, frame.header).expect("a command");
    let before = services.store.max_offset();
    send::handle(&mut connection, RequestCode::SendMessage, &command, &frame);
    assert!(!connection.out.is_empty(), "it is answered before the disk has it");
    assert!(services.store.max_offset() > before, "the process may end now");
    drop(connection);
    broker.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_request_that_panics_beside_its_connection_is_answered() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let mut connection = connection(broker.services());
    let bytes = frame(RequestCode::QueryConsumerOffset, &pull(), b"");
    let request = Frame::cut(&bytes, 1 << 20).expect("a frame").expect("whole");
    let command = Command::decode(request.serialize, request.header).expect("a command");
    let oneway = Command { flag: FLAG_ONEWAY, ..command.clone() };
    for command in [&oneway, &command] {
        connection.respond(command, request.serialize, Handled::later(async { panic!("on purpose") }));
    }
    while connection.inbox.beside() > 0 {
        connection.inbox.mailbox.woken().await;
    }
    connection.take_inbox();
    let answer = Frame::cut(&connection.out, 1 << 20).expect("a frame").expect("whole");
    assert_eq!(answer.len, connection.out.len(), "nobody waits for the answer to the other");
    let answer = OwnedCommand::decode(&answer).expect("a command");
    assert_eq!((answer.code, answer.opaque), (ResponseCode::SystemError.code(), 1));
    assert!(answer.remark.expect("a remark").contains("the broker failed over this request"));
    drop(connection);
    broker.stop().await.expect("stopped");
}

#[tokio::test]
async fn the_limit_of_connections_counts_those_of_all_lanes() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut config = config(&dir);
    config.limits.connections = 3;
    let broker = Broker::start(config).await.expect("started");
    let connect = async || {
        let mut stream = TcpStream::connect(broker.broker_address()).await.expect("connected");
        let request = frame(RequestCode::SendMessage, &message(""), b"one");
        // A connection that is refused ends by itself.
        let served = stream.write_all(&request).await.is_ok()
            && stream.read(&mut [0; 1]).await.is_ok_and(|read| read > 0);
        served.then_some(stream)
    };
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(connect().await.expect("below the limit"));
    }
    assert!(connect().await.is_none());
    open.pop();
    let again = async { while connect().await.is_none() {} };
    tokio::time::timeout(Duration::from_secs(60), again).await.expect("one has ended");
    broker.stop().await.expect("stopped");
}

/// Gives its bytes, and panics when more are asked for, telling how many pulls wait.
struct Panics {
    bytes: Vec<u8>,
    services: Arc<Services>,
}

impl AsyncRead for Panics {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let bytes = std::mem::take(&mut self.bytes);
        assert!(!bytes.is_empty(), "{} waiting", self.services.polls.len());
        buf.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Panics {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn nothing_is_left_of_a_connection_that_panics() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let mut producer = TcpStream::connect(broker.broker_address()).await.expect("connected");
    ask(&mut producer, RequestCode::SendMessage, &message(""), b"one").await;
    assert_eq!(hear(&mut producer).await.code, 0);
    let services = Arc::clone(broker.services());
    assert_eq!(services.metrics.connections.get(), 1);
    let bytes = frame(RequestCode::PullMessage, &waiting_pull(), b"");
    let stream = Panics { bytes, services: Arc::clone(&services) };
    let (remote, local) = (broker.name_address(), broker.broker_address());
    let served = tokio::spawn(serve_stream(Arc::clone(&services), stream, remote, local)).await;
    let why = served.expect_err("it panics").into_panic();
    assert_eq!(why.downcast_ref::<String>().map(String::as_str), Some("1 waiting"));
    assert!(services.polls.is_empty());
    assert_eq!(services.metrics.connections.get(), 1);
    drop(services);
    broker.stop().await.expect("stopped");
}

#[tokio::test]
async fn a_broker_that_is_dropped_ends_and_gives_its_store_back() {
    let dir = TempDir::new().expect("a temporary directory");
    let broker = start(&dir).await;
    let mut client = TcpStream::connect(broker.broker_address()).await.expect("connected");
    ask(&mut client, RequestCode::SendMessage, &message(""), b"one").await;
    assert_eq!(hear(&mut client).await.code, 0);
    drop(broker);
    let again = async {
        assert_eq!(client.read(&mut [0; 16]).await.unwrap_or_default(), 0, "the connection ends");
        loop {
            match Broker::start(config(&dir)).await {
                Err(StartError::Store(OpenError::Locked(_))) => tokio::task::yield_now().await,
                started => return started.expect("started"),
            }
        }
    };
    let again = tokio::time::timeout(Duration::from_secs(60), again).await.expect("the store is free");
    assert!(!again.services().store.recovered().clean);
    again.stop().await.expect("stopped");
}
