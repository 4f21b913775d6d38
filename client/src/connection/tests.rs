use gantry_proto::remoting::request::send::SendMessageResponse;
use tokio::io::{DuplexStream, duplex};

use super::*;

struct Peer {
    stream: DuplexStream,
    buffer: BytesMut,
}

impl Peer {
    async fn next(&mut self) -> OwnedCommand {
        loop {
            if let Some(frame) = Frame::cut(&self.buffer, FRAME_LIMIT).unwrap() {
                let command = OwnedCommand::decode(&frame).unwrap();
                let len = frame.len;
                self.buffer.advance(len);
                return command;
            }
            assert_ne!(self.stream.read_buf(&mut self.buffer).await.unwrap(), 0, "the client closed");
        }
    }

    async fn say(&mut self, command: &OwnedCommand) {
        let mut bytes = Vec::new();
        command.encode(&mut bytes, Serialize::Json).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }
}

fn pair() -> (Connection, Peer, mpsc::Receiver<FromServer>) {
    let (ours, theirs) = duplex(1 << 20);
    let (inbox, requests) = mpsc::channel(4);
    let (connection, run) = Connection::over(
        "peer".into(),
        tokio::io::split(ours),
        Serialize::RocketMq,
        Duration::from_micros(50),
        inbox,
        CancellationToken::new(),
    );
    tokio::spawn(run);
    (connection, Peer { stream: theirs, buffer: BytesMut::new() }, requests)
}

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn answers_in_any_order_find_their_askers() {
    let (connection, mut peer, _requests) = pair();
    let first = connection.ask::<OwnedCommand>(RequestCode::HeartBeat, &(), &[b"1"], LONG).await.unwrap();
    let second = connection.ask::<SendAnswer>(RequestCode::SendMessageV2, &(), &[b"2", b"3"], LONG).await;
    let second = second.unwrap();
    let (one, two) = (peer.next().await, peer.next().await);
    assert_eq!((&one.body[..], &two.body[..]), (&b"1"[..], &b"23"[..]));
    assert_eq!((one.code, two.code, two.language), (34, 310, Language::Rust));
    let header = SendMessageResponse { msg_id: "ID", queue_id: 3, queue_offset: 9, ..Default::default() };
    peer.say(&OwnedCommand::reply(0, two.opaque, &header)).await;
    peer.say(&OwnedCommand::reply(0, one.opaque, &()).body("pong")).await;
    let sent = second.await.unwrap();
    assert_eq!((sent.offset_msg_id.as_str(), sent.queue_id, sent.queue_offset), ("ID", 3, 9));
    assert_eq!(first.await.unwrap().body, "pong");
}

#[tokio::test]
async fn a_dropped_request_is_forgotten_and_its_answer_ignored() {
    let (connection, mut peer, _requests) = pair();
    let dropped = connection.ask::<OwnedCommand>(RequestCode::HeartBeat, &(), &[], LONG).await.unwrap();
    drop(dropped);
    let kept = connection.ask::<PullAnswer>(RequestCode::PullMessage, &(), &[], LONG).await.unwrap();
    let (one, two) = (peer.next().await, peer.next().await);
    peer.say(&OwnedCommand::reply(0, one.opaque, &())).await;
    let header = PullMessageResponse { next_begin_offset: 7, ..Default::default() };
    peer.say(&OwnedCommand::reply(19, two.opaque, &header).body("messages")).await;
    let answer = kept.await.unwrap();
    assert_eq!((answer.code, answer.header.next_begin_offset), (19, 7));
    assert_eq!(answer.body, "messages");
    assert!(connection.0.lock().waiting.is_empty());
}

#[tokio::test]
async fn what_was_asked_fails_when_the_connection_ends() {
    let (connection, peer, _requests) = pair();
    let reply = connection.ask::<OwnedCommand>(RequestCode::HeartBeat, &(), &[], LONG).await.unwrap();
    drop(peer);
    assert_eq!(reply.await.unwrap_err().kind(), ErrorKind::ConnectionLost);
    let later = connection.ask::<OwnedCommand>(RequestCode::HeartBeat, &(), &[], LONG).await;
    assert_eq!(later.err().map(|error| error.kind()), Some(ErrorKind::ConnectionLost));
    assert!(connection.is_closed());
}

#[tokio::test]
async fn a_request_without_an_answer_times_out() {
    let (connection, mut peer, _requests) = pair();
    let reply =
        connection.ask::<OwnedCommand>(RequestCode::HeartBeat, &(), &[], Duration::ZERO).await.unwrap();
    let asked = peer.next().await;
    assert_eq!(reply.await.unwrap_err().kind(), ErrorKind::Timeout);
    peer.say(&OwnedCommand::reply(0, asked.opaque, &())).await;
    assert!(!connection.is_closed());
}

#[tokio::test]
async fn what_the_server_asks_is_handed_on_and_can_be_answered() {
    let (_connection, mut peer, mut requests) = pair();
    let mut request = OwnedCommand::request(RequestCode::GetConsumerRunningInfo, &());
    request.opaque = 77;
    peer.say(&request).await;
    let asked = requests.recv().await.unwrap();
    assert_eq!(asked.command.code, 307);
    asked.connection.answer(ResponseCode::Success, asked.command.opaque, None, b"{}").unwrap();
    let answer = peer.next().await;
    assert_eq!((answer.opaque, answer.flag, &answer.body[..]), (77, 1, &b"{}"[..]));
}

#[tokio::test]
async fn bytes_that_are_no_frame_end_the_connection() {
    let (connection, mut peer, _requests) = pair();
    let reply = connection.ask::<OwnedCommand>(RequestCode::HeartBeat, &(), &[], LONG).await.unwrap();
    peer.stream.write_all(b"HTTP/1.1 400 Bad Request\r\n").await.unwrap();
    let error = reply.await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionLost);
}

#[tokio::test]
async fn callers_wait_when_nothing_is_written_any_more() {
    let (connection, mut peer, _requests) = pair();
    let body = vec![0; OUT_BYTES_MAX];
    connection.tell_now(RequestCode::SendMessageV2, &(), &[&body]).unwrap();
    assert!(connection.0.crowded.load(Ordering::Acquire));
    let waiting = tokio::spawn({
        let connection = connection.clone();
        async move { connection.tell(RequestCode::HeartBeat, &(), &[], LONG).await }
    });
    // The peer reads, so the buffer drains, so the caller goes on.
    let mut large = vec![0; OUT_BYTES_MAX];
    peer.stream.read_exact(&mut large).await.unwrap();
    waiting.await.unwrap().unwrap();
}

/// Whoever waits for a shorter time than the client's drops the request: a dead connection must be noticed all the same.
#[tokio::test]
async fn a_dropped_request_without_an_answer_counts_until_something_is_heard() {
    let (connection, _peer, _requests) = pair();
    let before = Instant::now();
    for timeout in [Duration::from_secs(3), LONG] {
        drop(connection.ask::<OwnedCommand>(RequestCode::HeartBeat, &(), &[], timeout).await.unwrap());
    }
    let shared = &connection.0;
    let dropped = Instant::now();
    assert_eq!(shared.expire(dropped, before), 0, "there was still time to answer");
    let over = dropped + Duration::from_secs(4);
    assert_eq!(shared.expire(over, before), 1, "it is too late for the first");
    assert_eq!(shared.expire(over, dropped), 0, "something came");
    assert_eq!(shared.expire(over, before), 0, "that is noted");
}
