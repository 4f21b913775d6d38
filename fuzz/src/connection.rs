//! A whole broker behind two connections: any sequence of requests is answered or ends its connection; a client
//! that behaves is served meanwhile and after the next start; what the broker stored can be read.
//!
//! ```text
//! input: policy u8 | request …
//! request: what u8 | …    bit 0: which connection, bit 1: binary header, bit 2: oneway,
//!                         bits 3 and 4 set: raw bytes, else a command
//!   raw:     length u16 | bytes
//!   command: code u8 | fields u8 | { name u8 | length u8 | value } … | body length u16 | body
//! ```
//!
//! Codes and names are places in the lists of all of them, so that most inputs are requests that mean something.

use std::net::SocketAddr;
use std::sync::Arc;

use gantry_broker::broker::Broker;
use gantry_broker::config::Policy;
use gantry_broker::remoting::{self, context::Services};
use gantry_proto::remoting::codes::RequestCode;
use gantry_proto::remoting::frame::{Frame, Serialize};
use gantry_proto::remoting::header::{FLAG_ONEWAY, OwnedCommand};
use gantry_proto::remoting::request::send::{SendMessageHeader, SendMessageResponse};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::JoinHandle;

use crate::cursor::Cursor;
use crate::store;

/// Length of a log file.
const SEGMENT_BYTES: u64 = 64 * 1024;
/// Most requests of one input.
const REQUESTS_MAX: usize = 64;
/// The topic of the client that behaves.
const KEPT: &str = "KeptByTheClientThatBehaves";

/// Names of header fields. Seeds hold their places: add new ones at the end.
pub const NAMES: &[&str] = &[
    "topic",
    "group",
    "consumerGroup",
    "producerGroup",
    "defaultTopic",
    "defaultTopicQueueNums",
    "queueId",
    "queueOffset",
    "maxMsgNums",
    "sysFlag",
    "commitOffset",
    "suspendTimeoutMillis",
    "subscription",
    "subVersion",
    "expressionType",
    "bornTimestamp",
    "flag",
    "properties",
    "reconsumeTimes",
    "batch",
    "offset",
    "timestamp",
    "key",
    "maxNum",
    "beginTimestamp",
    "endTimestamp",
    "commitOrRollback",
    "commitLogOffset",
    "tranStateTableOffset",
    "msgId",
    "transactionId",
    "clientID",
    "readQueueNums",
    "writeQueueNums",
    "perm",
    "topicFilterType",
    "order",
    "namespace",
    "value",
    "brokerName",
    "brokerAddr",
    "clusterName",
    "brokerId",
    "delayLevel",
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "g",
    "h",
    "i",
    "j",
    "k",
    "l",
    "m",
    "n",
    "originMsgId",
    "originTopic",
    "unitMode",
    "maxReconsumeTimes",
    "fromTransactionCheck",
    "topicSysFlag",
    "attributes",
    "isForce",
    "isC",
    "bname",
    "brokerAddr",
    "haServerAddr",
    "compressed",
    "bodyCrc32",
    "enableActingMaster",
    "index",
    "count",
    "consumeMessageQueue",
    "topicSeq",
    "maxTopicNum",
    "groupSeq",
    "maxGroupNum",
    "dataVersion",
    "srcGroup",
    "destGroup",
    "offline",
    "filterGroups",
    "compareGroup",
    "statsName",
    "statsKey",
    "recallHandle",
    "readable",
    "cleanOffset",
    "boundaryType",
    "indexType",
    "lastKey",
    "consumerGroupList",
    "heartbeatTimeoutMillis",
    "brokerClusterName",
    "setZeroIfNotFound",
    "lo",
    "ns",
    "nsd",
    "oway",
];

/// Serves all requests of an input.
pub fn check(input: &[u8]) {
    let mut cursor = Cursor::new(input);
    let policy = if cursor.byte() & 1 == 0 { Policy::Memory } else { Policy::Disk };
    let dir = crate::fresh_dir();
    let number = crate::run(async {
        let broker = start(dir.path(), policy).await;
        let mut clients = [Client::of(&broker), Client::of(&broker)];
        for _ in 0..REQUESTS_MAX {
            if cursor.is_empty() {
                break;
            }
            let (which, bytes) = request(&mut cursor);
            clients[which].write(&bytes).await;
        }
        let number = send_kept(&broker).await;
        for client in clients {
            client.end().await;
        }
        stop(broker).await;
        number
    });
    crate::run(async {
        let broker = start(dir.path(), policy).await;
        let mut served = std::collections::BTreeMap::new();
        store::read_all(&broker.services().store, &mut served);
        assert!(served.contains_key(&(KEPT.to_owned(), 0, number)), "an acknowledged message is gone");
        stop(broker).await;
    });
}

async fn start(dir: &std::path::Path, policy: Policy) -> Broker {
    let mut config = store::config(dir, policy, SEGMENT_BYTES);
    config.limits.message_bytes = 16 * 1024;
    config.limits.frame_bytes = 64 * 1024;
    Broker::start(config).await.expect("it starts")
}

async fn stop(broker: Broker) {
    assert!(broker.services().store.failure().is_none(), "the log stopped");
    broker.stop().await.expect("it stops");
}

/// The bytes of every request of an input.
pub fn requests(input: &[u8]) -> Vec<Vec<u8>> {
    let mut cursor = Cursor::new(input);
    cursor.byte();
    std::iter::from_fn(|| (!cursor.is_empty()).then(|| request(&mut cursor).1)).take(REQUESTS_MAX).collect()
}

/// The next request: its connection and its bytes.
fn request(cursor: &mut Cursor<'_>) -> (usize, Vec<u8>) {
    let what = cursor.byte();
    let which = usize::from(what & 1);
    if what & 0b1_1000 == 0b1_1000 {
        let len = cursor.word();
        return (which, cursor.bytes(len).to_vec());
    }
    let code = RequestCode::ALL[usize::from(cursor.byte()) % RequestCode::ALL.len()];
    let mut command = OwnedCommand::request(code, &());
    for _ in 0..cursor.byte() & 31 {
        let name = NAMES[usize::from(cursor.byte()) % NAMES.len()];
        let len = usize::from(cursor.byte());
        command.ext.push(name, String::from_utf8_lossy(cursor.bytes(len)).into_owned());
    }
    let len = cursor.word();
    command.body = cursor.bytes(len).to_vec().into();
    command.opaque = i32::from(code.code() as i16);
    if what & 4 != 0 {
        command.flag = FLAG_ONEWAY;
    }
    let form = if what & 2 == 0 { Serialize::Json } else { Serialize::RocketMq };
    let mut bytes = Vec::new();
    // A command that does not fit its form is not sent.
    let _ = command.encode(&mut bytes, form);
    (which, bytes)
}

/// A command as [`request`] reads it; fields whose name is in no list are left out.
pub fn pack(out: &mut Vec<u8>, what: u8, command: &OwnedCommand) {
    let code = RequestCode::ALL.iter().position(|code| code.code() == command.code);
    let Some(code) = code.and_then(|at| u8::try_from(at).ok()) else { return };
    let place =
        |name: &str| NAMES.iter().position(|known| *known == name).and_then(|at| u8::try_from(at).ok());
    let fields: Vec<_> = command
        .ext
        .iter()
        .filter_map(|(name, value)| Some((place(name)?, u8::try_from(value.len()).ok()?, value)))
        .take(31)
        .collect();
    out.extend([what & 7, code, u8::try_from(fields.len()).expect("at most 31")]);
    for (name, len, value) in fields {
        out.extend([name, len]);
        out.extend_from_slice(value.as_bytes());
    }
    let len = u16::try_from(command.body.len()).expect("a short body");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&command.body);
}

/// One end of a connection whose other end the broker serves.
struct Client {
    stream: DuplexStream,
    served: JoinHandle<()>,
    heard: Vec<u8>,
}

impl Client {
    fn of(broker: &Broker) -> Self {
        let (stream, theirs) = tokio::io::duplex(1 << 20);
        let services: Arc<Services> = Arc::clone(broker.services());
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let served = tokio::spawn(remoting::serve_stream(services, theirs, address(40_000), address(10_911)));
        Self { stream, served, heard: Vec::new() }
    }

    /// Writes bytes and lets the broker work on them. An error means that the broker has closed.
    async fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
    }

    /// Says that nothing more comes, and reads what there is to hear: whole frames.
    async fn end(mut self) {
        let _ = self.stream.shutdown().await;
        let _ = self.stream.read_to_end(&mut self.heard).await;
        let mut rest = self.heard.as_slice();
        while let Some(frame) = Frame::cut(rest, usize::MAX).expect("the broker writes frames") {
            OwnedCommand::decode(&frame).expect("the broker writes commands");
            rest = &rest[frame.len..];
        }
        assert!(rest.is_empty(), "the broker ends with a whole frame");
        self.served.await.expect("a connection's task ends");
    }
}

/// Sends a message as a client does and hears its number in the queue.
async fn send_kept(broker: &Broker) -> u64 {
    let mut client = Client::of(broker);
    let header = SendMessageHeader {
        producer_group: "kept",
        topic: KEPT,
        default_topic: "TBW102",
        default_topic_queue_nums: 1,
        properties: Some("KEYS\x01kept\x02"),
        ..SendMessageHeader::default()
    };
    let command = OwnedCommand::request(RequestCode::SendMessage, &header).body(&b"kept"[..]);
    let mut bytes = Vec::new();
    command.encode(&mut bytes, Serialize::Json).expect("a frame");
    client.write(&bytes).await;
    let answer = loop {
        if let Some(frame) = Frame::cut(&client.heard, 1 << 20).expect("a frame") {
            break OwnedCommand::decode(&frame).expect("a command");
        }
        let read = client.stream.read_buf(&mut client.heard).await.expect("readable");
        assert!(read > 0, "the broker closed the connection of a client that behaves");
    };
    assert_eq!(answer.code, 0, "a client that behaves is refused: {:?}", answer.remark);
    let header: SendMessageResponse<'_> = answer.header().expect("a reply to a send");
    let number = u64::try_from(header.queue_offset).expect("a number");
    client.end().await;
    number
}
