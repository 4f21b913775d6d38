//! Every request code is sent to a broker, without any fields: one that is served refuses what is missing, one that is not
//! says so. None is left without an answer.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::frame::{FRAME_LIMIT, Frame, Serialize};
use gantry_proto::remoting::header::{Head, OwnedCommand, encode_frame};
use gantry_tests::harness::Gantry;

use crate::table;

/// What brokers send to clients and never get.
const TO_CLIENTS: [RequestCode; 6] = [
    RequestCode::CheckTransactionState,
    RequestCode::NotifyConsumerIdsChanged,
    RequestCode::ResetConsumerClientOffset,
    RequestCode::GetConsumerStatusFromClient,
    RequestCode::PushReplyMessageToClient,
    RequestCode::NotifyUnsubscribeLite,
];

/// What is known, but refused whatever it asks.
const REFUSED: [RequestCode; 1] = [RequestCode::UpdateNamesrvConfig];

/// Tests with Apache's clients or our own that send a code which `mqadmin` does not; each is a file or directory of
/// `tests/tests`. Codes that are in none are in the unit tests of the broker's edge.
const SHOWN: &[(&str, &[RequestCode])] = &[
    (
        "java_clients",
        &[
            RequestCode::SendMessage,
            RequestCode::SendBatchMessage,
            RequestCode::PullMessage,
            RequestCode::LitePullMessage,
            RequestCode::QueryConsumerOffset,
            RequestCode::UpdateConsumerOffset,
            RequestCode::SearchOffsetByTimestamp,
            RequestCode::GetEarliestMsgStoretime,
            RequestCode::HeartBeat,
            RequestCode::UnregisterClient,
            RequestCode::ConsumerSendMsgBack,
            RequestCode::EndTransaction,
            RequestCode::GetConsumerListByGroup,
            RequestCode::LockBatchMq,
            RequestCode::UnlockBatchMq,
            RequestCode::CheckClientConfig,
            RequestCode::GetSubscriptiongroupConfig,
            RequestCode::SendReplyMessageV2,
        ],
    ),
    (
        "cli",
        &[
            RequestCode::ResumeCheckHalfMessage,
            RequestCode::ListTransactions,
            RequestCode::EndTransactionByOperator,
            RequestCode::GetTopicConfig,
        ],
    ),
    (
        "pop",
        &[
            RequestCode::QueryAssignment,
            RequestCode::SetMessageRequestMode,
            RequestCode::GetAllMessageRequestMode,
            RequestCode::PopMessage,
            RequestCode::AckMessage,
            RequestCode::PeekMessage,
            RequestCode::ChangeMessageInvisibletime,
            RequestCode::Notification,
            RequestCode::PollingInfo,
            RequestCode::BatchAckMessage,
        ],
    ),
    ("timers", &[RequestCode::RecallMessage]),
    (
        "cluster",
        &[
            RequestCode::RegisterBroker,
            RequestCode::UnregisterBroker,
            RequestCode::QueryDataVersion,
            RequestCode::DrainBroker,
        ],
    ),
    ("operators", &[RequestCode::CloneGroupOffset]),
    ("groups", &[RequestCode::ListBroadcastMembers]),
];

fn ask(stream: &mut TcpStream, code: RequestCode) -> OwnedCommand {
    let mut bytes = Vec::new();
    encode_frame(&mut bytes, Serialize::Json, &Head::request(code.code(), code.code()), &(), 0).unwrap();
    stream.write_all(&bytes).unwrap();
    let (mut input, mut chunk) = (Vec::new(), [0; 8 * 1024]);
    loop {
        if let Some(frame) = Frame::cut(&input, FRAME_LIMIT).unwrap() {
            let answer = OwnedCommand::decode(&frame).unwrap();
            assert_eq!(answer.opaque, code.code(), "an answer to another request");
            return answer;
        }
        let read = stream.read(&mut chunk).unwrap_or_else(|error| panic!("{code} is not answered: {error}"));
        assert!(read > 0, "{code}: the broker closed the connection");
        input.extend_from_slice(&chunk[..read]);
    }
}

fn shown_by(code: RequestCode, commands: &[Vec<String>]) -> String {
    let sends = |row: &&Vec<String>| {
        row[1] == "works" && row[2].split_whitespace().any(|sent| sent == code.code().to_string())
    };
    if let Some((test, _)) = SHOWN.iter().find(|(_, codes)| codes.contains(&code)) {
        return format!("`{test}`");
    }
    let names: Vec<_> = commands.iter().filter(sends).take(3).map(|row| row[0].as_str()).collect();
    if names.is_empty() { "unit tests".to_owned() } else { format!("`mqadmin`: {}", names.join(", ")) }
}

#[test]
fn requests() {
    let gantry = Gantry::start(&["--policy", "memory"]);
    let mut stream = TcpStream::connect(gantry.broker()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let commands = table::rows("commands");
    let mut rows = Vec::new();
    for code in RequestCode::ALL {
        let (state, shown) = if TO_CLIENTS.contains(code) {
            ("from the broker to clients", String::new())
        } else {
            let answer = ask(&mut stream, *code);
            if answer.code == ResponseCode::RequestCodeNotSupported.code() {
                let why = answer.remark.unwrap_or_default();
                assert!(why.contains(&code.code().to_string()), "{code}: {why}");
                ("answered unsupported", "`mqadmin`".to_owned())
            } else if REFUSED.contains(code) {
                ("refused", "`mqadmin`".to_owned())
            } else {
                ("works", shown_by(*code, &commands))
            }
        };
        let name = code.to_string();
        let name = name.split('(').next().unwrap_or_default().to_owned();
        rows.push(vec![code.code().to_string(), name, state.to_owned(), shown]);
    }
    for (test, _) in SHOWN {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let exists = dir.join(format!("{test}.rs")).exists() || dir.join(test).exists();
        assert!(exists, "the test {test} does not exist");
    }
    table::check("requests", &["code", "request", "state", "shown by"], &rows, 3);
}
