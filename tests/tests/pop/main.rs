//! Popping over the wire, as official clients do it, against the real binary: handles over a kill, long polling, order,
//! refusals, and who works on which queue.

mod mixed;
mod operators;
mod order;
mod waiting;
#[path = "../bad_input/wire.rs"]
#[expect(dead_code, reason = "what malformed input needs is not needed here")]
mod wire;

use gantry_proto::ids::QueueOffset;
use gantry_proto::receipt::ReceiptHandle;
use gantry_proto::record::RecordView;
use gantry_proto::remoting::body::Body as _;
use gantry_proto::remoting::body::queues::{
    BatchAck, BatchAckMessageBody, MessageRequestMode, QueryAssignmentRequestBody,
    QueryAssignmentResponseBody, SetMessageRequestModeBody,
};
use gantry_proto::remoting::body::stats::ConsumeStats;
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::group::GetConsumeStatsHeader;
use gantry_proto::remoting::request::offset::QueryConsumerOffsetHeader;
use gantry_proto::remoting::request::pop::{
    AckMessageHeader, ChangeInvisibleTimeHeader, ChangeInvisibleTimeResponse, NotificationHeader,
    NotificationResponse, PeekMessageHeader, PollingInfoHeader, PollingInfoResponse, PopMessageHeader,
    PopMessageResponse,
};
use gantry_proto::remoting::request::send::SendMessageHeader;
use gantry_proto::remoting::request::topic::CreateTopicHeader;
use gantry_tests::harness::Gantry;
use wire::{Heard, Wire, expect_refused};

const TOPIC: &str = "T";
const GROUP: &str = "workers";

/// A message as a client has it after a pop.
#[derive(Clone, Debug)]
struct Popped {
    body: String,
    reconsume_times: i32,
    /// The topic that its acks name.
    topic: String,
    handle: ReceiptHandle,
}

fn start(flags: &[&str]) -> (Gantry, Wire) {
    let gantry = Gantry::start(flags);
    let mut wire = Wire::to(gantry.broker());
    let header = CreateTopicHeader {
        topic: TOPIC.to_owned(),
        read_queue_nums: Some(2),
        write_queue_nums: Some(2),
        perm: Some(6),
        ..CreateTopicHeader::default()
    };
    expect_done(&wire.request(RequestCode::UpdateAndCreateTopic, &header, b""));
    (gantry, wire)
}

#[track_caller]
fn expect_done(reply: &OwnedCommand) {
    assert_eq!(reply.code, 0, "expected success, found {:?}", reply.remark);
}

fn send(wire: &mut Wire, queue_id: i32, body: &str) {
    let header = SendMessageHeader {
        producer_group: "producers",
        topic: TOPIC,
        queue_id,
        properties: Some("TAGS\u{1}t\u{2}"),
        ..SendMessageHeader::default()
    };
    expect_done(&wire.request(RequestCode::SendMessage, &header, body.as_bytes()));
}

fn pop() -> PopMessageHeader<'static> {
    PopMessageHeader {
        consumer_group: GROUP,
        topic: TOPIC,
        queue_id: -1,
        max_msg_nums: 32,
        invisible_time: 60_000,
        exp_type: Some("TAG"),
        exp: Some("*"),
        order: Some(false),
        ..PopMessageHeader::default()
    }
}

/// What a client makes of a pop's answer: the messages with their handles.
fn messages(gantry: &str, reply: &OwnedCommand) -> Vec<Popped> {
    expect_done(reply);
    let header: PopMessageResponse = reply.header().expect("a pop's answer");
    let (starts, offsets) =
        (header.start_offset_info.expect("starts"), header.msg_offset_info.expect("offsets"));
    let mut parts = Vec::new();
    for (start, offsets) in starts.split(';').zip(offsets.split(';')) {
        let (key, start) = start.rsplit_once(' ').expect("three parts");
        let (same, offsets) = offsets.rsplit_once(' ').expect("three parts");
        assert_eq!(key, same);
        let (retry, queue) = key.split_once(' ').expect("two parts");
        for offset in offsets.split(',') {
            let (at, invisible, revive) = (header.pop_time, header.invisible_time, header.revive_qid);
            parts.push(format!("{start} {at} {invisible} {revive} {retry} {gantry} {queue} {offset}"));
        }
    }
    let mut rest = reply.body.as_ref();
    let mut popped = Vec::new();
    for handle in parts {
        let view = RecordView::parse(rest).expect("a stored message");
        let handle = ReceiptHandle::parse(&handle).expect("a handle");
        assert_eq!(view.queue_offset(), handle.offset);
        popped.push(Popped {
            body: String::from_utf8(view.body().to_vec()).expect("text"),
            reconsume_times: view.reconsume_times(),
            topic: view.topic().to_owned(),
            handle,
        });
        rest = &rest[view.total_size() as usize..];
    }
    assert!(rest.is_empty(), "messages without a handle");
    popped
}

fn pop_all(wire: &mut Wire, header: &PopMessageHeader<'_>) -> Vec<Popped> {
    messages("broker-a", &wire.request(RequestCode::PopMessage, header, b""))
}

fn ack(wire: &mut Wire, message: &Popped) -> OwnedCommand {
    ack_with(wire, message, &message.handle.to_string())
}

fn ack_with(wire: &mut Wire, message: &Popped, handle: &str) -> OwnedCommand {
    let header = AckMessageHeader {
        consumer_group: GROUP,
        topic: &message.topic,
        queue_id: message.handle.queue.to_wire(),
        extra_info: handle,
        offset: message.handle.offset.to_wire(),
    };
    wire.request(RequestCode::AckMessage, &header, b"")
}

/// The group's offset in queue 0, once it is there.
fn await_offset(wire: &mut Wire, expected: i64) {
    let header = QueryConsumerOffsetHeader {
        consumer_group: GROUP,
        topic: TOPIC,
        queue_id: 0,
        ..QueryConsumerOffsetHeader::default()
    };
    let mut found = None;
    for _ in 0..1000 {
        let reply = wire.request(RequestCode::QueryConsumerOffset, &header, b"");
        found = reply.ext.get("offset").and_then(|offset| offset.parse::<i64>().ok());
        if found == Some(expected) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("expected the offset {expected}, found {found:?}");
}

#[test]
fn handles_hold_over_a_kill_and_what_is_not_acknowledged_comes_again() {
    for policy in ["disk", "memory"] {
        let (mut gantry, mut wire) = start(&["--policy", policy]);
        for body in ["one", "two", "three"] {
            send(&mut wire, 0, body);
        }
        let given = pop_all(&mut wire, &PopMessageHeader { invisible_time: 5000, ..pop() });
        assert_eq!(
            given.iter().map(|message| message.body.as_str()).collect::<Vec<_>>(),
            ["one", "two", "three"]
        );
        expect_done(&ack(&mut wire, &given[0]));
        gantry.kill9();
        gantry.restart();
        let mut wire = Wire::to(gantry.broker());
        expect_done(&ack(&mut wire, &given[1]));
        expect_done(&ack(&mut wire, &given[0]));
        await_offset(&mut wire, 2);
        // It waits until the invisible time of the last one ends.
        let again = pop_all(&mut wire, &PopMessageHeader { poll_time: 25_000, ..pop() });
        assert_eq!(again.len(), 1, "{again:?}");
        assert_eq!((again[0].body.as_str(), again[0].reconsume_times), ("three", 1));
        assert_eq!(again[0].topic, format!("%RETRY%{GROUP}_{TOPIC}"));
        await_offset(&mut wire, 3);
        expect_refused(&ack(&mut wire, &given[2]), ResponseCode::NoMessage, "delivered again");
        gantry.kill9();
        gantry.restart();
        let mut wire = Wire::to(gantry.broker());
        expect_done(&ack(&mut wire, &again[0]));
        expect_refused(
            &wire.request(RequestCode::PopMessage, &pop(), b""),
            ResponseCode::PollingTimeout,
            "NO_MESSAGE",
        );
    }
}

#[test]
fn a_pop_that_waits_gets_what_comes() {
    let (gantry, mut wire) = start(&["--policy", "memory"]);
    let mut waiting = Wire::to(gantry.broker());
    let mut told = Wire::to(gantry.broker());
    waiting.post(&OwnedCommand::request(
        RequestCode::PopMessage,
        &PopMessageHeader { poll_time: 20_000, ..pop() },
    ));
    let header = NotificationHeader {
        consumer_group: "others",
        topic: TOPIC,
        queue_id: -1,
        poll_time: 20_000,
        ..NotificationHeader::default()
    };
    told.post(&OwnedCommand::request(RequestCode::Notification, &header));
    let header = PollingInfoHeader { consumer_group: GROUP, topic: TOPIC, queue_id: -1 };
    loop {
        let reply = wire.request(RequestCode::PollingInfo, &header, b"");
        expect_done(&reply);
        let waiting: PollingInfoResponse = reply.header().expect("a number");
        if waiting.polling_num == 1 {
            break;
        }
    }
    send(&mut wire, 1, "news");
    let Heard::Command(reply) = waiting.hear() else { panic!("expected an answer") };
    let popped = messages("broker-a", &reply);
    assert_eq!(popped[0].body, "news");
    let Heard::Command(reply) = told.hear() else { panic!("expected an answer") };
    assert!(reply.header::<NotificationResponse>().expect("an answer").has_msg);
    let peek = PeekMessageHeader { consumer_group: "others", topic: TOPIC, queue_id: -1, max_msg_nums: 5 };
    for _ in 0..2 {
        let peeked = wire.request(RequestCode::PeekMessage, &peek, b"");
        assert_eq!(messages("broker-a", &peeked).len(), 1);
    }
    assert_eq!(pop_all(&mut wire, &PopMessageHeader { consumer_group: "others", ..pop() }).len(), 1);
    let none = wire.request(RequestCode::PeekMessage, &peek, b"");
    expect_refused(&none, ResponseCode::PullNotFound, "NO_MESSAGE");
}

#[test]
fn a_batch_of_acks_and_other_invisible_times() {
    let (_gantry, mut wire) = start(&["--policy", "memory"]);
    for number in 0..10 {
        send(&mut wire, 0, &number.to_string());
    }
    let given = pop_all(&mut wire, &pop());
    assert_eq!(given.len(), 10);
    let last = &given[9];
    let change = |handle: &ReceiptHandle, invisible_time| ChangeInvisibleTimeHeader {
        consumer_group: GROUP,
        topic: TOPIC,
        queue_id: 0,
        extra_info: Box::leak(handle.to_string().into_boxed_str()),
        offset: handle.offset.to_wire(),
        invisible_time,
        suspend: None,
    };
    let reply = wire.request(RequestCode::ChangeMessageInvisibletime, &change(&last.handle, 600_000), b"");
    expect_done(&reply);
    let renewed: ChangeInvisibleTimeResponse = reply.header().expect("the parts of a handle");
    assert_eq!(renewed.invisible_time, 600_000);
    expect_refused(&ack(&mut wire, last), ResponseCode::NoMessage, "another handle");
    // Bits 0, 2 and 9 of the vectors: the last one has another handle by now.
    let batch = BatchAck {
        bit_set: "BQI=".to_owned(),
        consumer_group: GROUP.to_owned(),
        invisible_time: 60_000,
        pop_time: last.handle.popped_at.get(),
        queue_id: 0,
        retry: "0".to_owned(),
        revive_queue_id: 0,
        start_offset: 0,
        topic: TOPIC.to_owned(),
    };
    let body = BatchAckMessageBody { acks: vec![batch], broker_name: "broker-a".to_owned() };
    let reply = wire.request(RequestCode::BatchAckMessage, &(), &body.to_json());
    expect_refused(&reply, ResponseCode::NoMessage, "2 messages are acknowledged, 1 are not");
    await_offset(&mut wire, 1);
    expect_done(&ack(&mut wire, &given[1]));
    await_offset(&mut wire, 3);
    // Put off for no time at all, it comes again at once.
    let handle = ReceiptHandle {
        popped_at: gantry_proto::ids::Millis::new(renewed.pop_time),
        invisible_ms: 600_000,
        start: QueueOffset::new(9),
        ..last.handle.clone()
    };
    expect_done(&wire.request(RequestCode::ChangeMessageInvisibletime, &change(&handle, 0), b""));
    let again = pop_all(&mut wire, &PopMessageHeader { poll_time: 20_000, ..pop() });
    assert_eq!((again[0].body.as_str(), again[0].reconsume_times), ("9", 1));
    let header = GetConsumeStatsHeader {
        consumer_group: GROUP.to_owned(),
        topic: Some(TOPIC.to_owned()),
        ..GetConsumeStatsHeader::default()
    };
    let reply = wire.request(RequestCode::GetConsumeStats, &header, b"");
    let stats = ConsumeStats::from_json(&reply.body).expect("figures");
    let queue = stats.offset_table.iter().find(|(queue, _)| queue.queue_id == 0).expect("queue 0").1;
    assert_eq!((queue.broker_offset, queue.consumer_offset, queue.pull_offset), (10, 3, 10));
}

#[test]
fn an_orderly_queue_waits() {
    let (_gantry, mut wire) = start(&["--policy", "memory"]);
    for body in ["one", "two", "three"] {
        send(&mut wire, 0, body);
    }
    let orderly = |attempt_id| PopMessageHeader {
        order: Some(true),
        attempt_id,
        max_msg_nums: 2,
        queue_id: 0,
        ..pop()
    };
    let given = pop_all(&mut wire, &orderly(Some("a")));
    assert_eq!(given.len(), 2);
    assert_eq!(given[0].handle.revive_queue, 999);
    let blocked = wire.request(RequestCode::PopMessage, &orderly(Some("b")), b"");
    expect_refused(&blocked, ResponseCode::PollingTimeout, "NO_MESSAGE");
    let given = pop_all(&mut wire, &orderly(Some("a")));
    assert_eq!(given.len(), 2);
    // Who waits is answered when the last one is done.
    let waits = PopMessageHeader { poll_time: 20_000, ..orderly(Some("b")) };
    wire.post(&OwnedCommand::request(RequestCode::PopMessage, &waits));
    for message in &given {
        let header = AckMessageHeader {
            consumer_group: GROUP,
            topic: TOPIC,
            queue_id: 0,
            extra_info: &message.handle.to_string(),
            offset: message.handle.offset.to_wire(),
        };
        wire.post(&OwnedCommand::request(RequestCode::AckMessage, &header));
    }
    let mut third = Vec::new();
    for _ in 0..3 {
        let Heard::Command(reply) = wire.hear() else { panic!("expected an answer") };
        expect_done(&reply);
        if !reply.body.is_empty() {
            third = messages("broker-a", &reply);
        }
    }
    assert_eq!(third.iter().map(|message| message.body.as_str()).collect::<Vec<_>>(), ["three"]);
}

#[test]
fn what_cannot_be_popped_is_refused_with_a_sentence() {
    let (_gantry, mut wire) = start(&["--policy", "memory", "--max-popped", "2"]);
    let mut refused = |header: PopMessageHeader<'_>, code, words| {
        let reply = wire.request(RequestCode::PopMessage, &header, b"");
        expect_refused(&reply, code, words);
        let _: PopMessageResponse =
            reply.header().expect("official clients read the header of a refusal too");
    };
    refused(PopMessageHeader { max_msg_nums: 33, ..pop() }, ResponseCode::InvalidParameter, "1 to 32");
    refused(PopMessageHeader { max_msg_nums: 0, ..pop() }, ResponseCode::InvalidParameter, "1 to 32");
    refused(PopMessageHeader { invisible_time: 0, ..pop() }, ResponseCode::InvalidParameter, "invisibleTime");
    refused(
        PopMessageHeader { invisible_time: 1 << 40, ..pop() },
        ResponseCode::InvalidParameter,
        "invisibleTime",
    );
    refused(PopMessageHeader { queue_id: 2, ..pop() }, ResponseCode::InvalidParameter, "no queue 2");
    refused(PopMessageHeader { queue_id: -2, ..pop() }, ResponseCode::InvalidParameter, "no queue -2");
    refused(PopMessageHeader { topic: "nowhere", ..pop() }, ResponseCode::TopicNotExist, "nowhere");
    refused(PopMessageHeader { exp: Some("||"), ..pop() }, ResponseCode::SubscriptionParseFailed, "tag");
    refused(PopMessageHeader { born_time: 1, ..pop() }, ResponseCode::PollingTimeout, "too late");
    let long = "g".repeat(255);
    refused(
        PopMessageHeader { consumer_group: &long, ..pop() },
        ResponseCode::InvalidParameter,
        "retry topic",
    );
    let attempt = "a".repeat(256);
    let long = PopMessageHeader { order: Some(true), attempt_id: Some(&attempt), ..pop() };
    refused(long, ResponseCode::InvalidParameter, "attemptId");
    for body in ["one", "two", "three"] {
        send(&mut wire, 0, body);
    }
    assert_eq!(pop_all(&mut wire, &pop()).len(), 2);
    let full = wire.request(RequestCode::PopMessage, &pop(), b"");
    expect_refused(&full, ResponseCode::PollingFull, "limits.popped");
}

#[test]
fn handles_that_do_not_count_are_refused_with_a_sentence() {
    let (_gantry, mut wire) = start(&["--policy", "memory"]);
    send(&mut wire, 0, "one");
    send(&mut wire, 0, "two");
    let given = pop_all(&mut wire, &PopMessageHeader { max_msg_nums: 1, queue_id: 0, ..pop() });
    let message = &given[0];
    let handle = &message.handle;
    let cases = [
        ("nonsense".to_owned(), ResponseCode::SystemError, "no receipt handle"),
        (
            ReceiptHandle { broker: "broker-b".to_owned(), ..handle.clone() }.to_string(),
            ResponseCode::MessageIllegal,
            "broker-b",
        ),
        (
            ReceiptHandle { offset: QueueOffset::new(1), ..handle.clone() }.to_string(),
            ResponseCode::MessageIllegal,
            "message 1",
        ),
        (
            ReceiptHandle { invisible_ms: 1 << 40, ..handle.clone() }.to_string(),
            ResponseCode::NoMessage,
            "not popped",
        ),
        (
            ReceiptHandle { popped_at: handle.popped_at.minus(1), ..handle.clone() }.to_string(),
            ResponseCode::NoMessage,
            "handle",
        ),
    ];
    for (forged, code, words) in cases {
        expect_refused(&ack_with(&mut wire, message, &forged), code, words);
    }
    let at = |offset| {
        let handle = ReceiptHandle { offset: QueueOffset::new(offset), ..handle.clone() };
        Popped { handle, ..message.clone() }
    };
    expect_refused(&ack(&mut wire, &at(1)), ResponseCode::NoMessage, "not popped");
    expect_refused(&ack(&mut wire, &at(7)), ResponseCode::NoMessage, "ends at 2");
    let foreign = Popped { topic: "elsewhere".to_owned(), ..message.clone() };
    expect_refused(&ack(&mut wire, &foreign), ResponseCode::TopicNotExist, "elsewhere");
    expect_done(&ack(&mut wire, message));
    expect_done(&ack(&mut wire, message));
}

#[test]
fn operators_say_which_groups_pop() {
    let (mut gantry, mut wire) = start(&["--policy", "disk"]);
    let ask = |wire: &mut Wire, topic: &str| {
        let body = QueryAssignmentRequestBody {
            client_id: "c@1".to_owned(),
            consumer_group: GROUP.to_owned(),
            strategy_name: "AVG".to_owned(),
            topic: topic.to_owned(),
            ..QueryAssignmentRequestBody::default()
        };
        let reply = wire.request(RequestCode::QueryAssignment, &(), &body.to_json());
        expect_done(&reply);
        QueryAssignmentResponseBody::from_json(&reply.body).expect("an answer").message_queue_assignments
    };
    assert_eq!(ask(&mut wire, TOPIC), None, "an unknown member keeps what it has");
    let mode = |topic: &str, mode| SetMessageRequestModeBody {
        consumer_group: GROUP.to_owned(),
        mode,
        pop_share_queue_num: 0,
        topic: topic.to_owned(),
    };
    let body = mode(TOPIC, MessageRequestMode::Pop).to_json();
    expect_done(&wire.request(RequestCode::SetMessageRequestMode, &(), &body));
    gantry.kill9();
    gantry.restart();
    let mut wire = Wire::to(gantry.broker());
    let assigned = ask(&mut wire, TOPIC).expect("queues");
    assert_eq!(assigned.len(), 1, "{assigned:?}");
    assert_eq!((assigned[0].mode.clone(), assigned[0].message_queue.queue_id), (MessageRequestMode::Pop, -1));
    assert_eq!(ask(&mut wire, "nowhere"), None);
    let body = mode("%RETRY%workers", MessageRequestMode::Pop).to_json();
    let retry = wire.request(RequestCode::SetMessageRequestMode, &(), &body);
    expect_refused(&retry, ResponseCode::NoPermission, "retry topic");
    let all = wire.request(RequestCode::GetAllMessageRequestMode, &(), b"");
    assert!(String::from_utf8_lossy(&all.body).contains("\"POP\""));
}
