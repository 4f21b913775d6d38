//! Whole commands that ask for what is not there, or do not say what they must.

use std::collections::BTreeMap;

use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::frame::Serialize;
use gantry_proto::remoting::header::{ExtFields, FLAG_ONEWAY, OwnedCommand};
use gantry_proto::remoting::request::pull::{PullMessageHeader, sys_flag};
use gantry_proto::remoting::request::send::{ConsumerSendMsgBackHeader, SendMessageHeader};
use gantry_tests::harness::Gantry;

use crate::normal::Normal;
use crate::wire::{Wire, expect_refused, expect_some_refusal};

/// A send that is fine but for what the test changes.
fn send<'a>() -> SendMessageHeader<'a> {
    SendMessageHeader {
        producer_group: "raw",
        topic: "Requests",
        default_topic: "TBW102",
        default_topic_queue_nums: 4,
        ..SendMessageHeader::default()
    }
}

fn pull<'a>() -> PullMessageHeader<'a> {
    PullMessageHeader {
        consumer_group: "raw",
        topic: "Requests",
        max_msg_nums: 32,
        sys_flag: sys_flag::SUBSCRIPTION,
        subscription: Some("*"),
        ..PullMessageHeader::default()
    }
}

/// Properties as they stand in a header.
fn properties(all: &[(&str, &str)]) -> String {
    all.iter().flat_map(|(name, value)| [name, "\u{1}", value, "\u{2}"]).collect()
}

#[test]
fn unknown_request_codes_are_refused_as_such() {
    let gantry = Gantry::start(&[]);
    for form in [Serialize::Json, Serialize::RocketMq] {
        for address in [gantry.broker(), gantry.name_server()] {
            let mut wire = Wire::in_form(address, form);
            for code in [0, 1, -1, 9_999, 32_767, i32::from(i16::MIN)] {
                let reply = wire.request(code, &(), b"body");
                expect_refused(&reply, ResponseCode::RequestCodeNotSupported, "is not supported");
                assert!(reply.remark.is_some_and(|remark| remark.contains(&code.to_string())));
            }
        }
    }
    let mut wire = Wire::to(gantry.broker());
    for code in [i32::MAX, i32::MIN] {
        let reply = wire.request(code, &(), b"");
        expect_refused(&reply, ResponseCode::RequestCodeNotSupported, "is not supported");
    }
    // One-way, nobody is told; the next answer is that of the next request.
    wire.post(&OwnedCommand { flag: FLAG_ONEWAY, ..OwnedCommand::request(9_999, &()) });
    expect_refused(&wire.request(9_998, &(), b""), ResponseCode::RequestCodeNotSupported, "9998");
}

/// Every code there is, with nothing that it needs and a body that is none: an answer for each.
#[test]
fn every_request_code_survives_missing_fields_and_a_senseless_body() {
    let gantry = Gantry::start(&[]);
    let mut normal = Normal::new(&gantry);
    let fields = ["topic", "group", "consumerGroup", "queueId", "offset", "b", "a", "e", "n", "clientID"];
    let bodies: [&[u8]; 4] = [b"", b"\0\xff\xfe garbage", b"{\"a\":[{}", b"null"];
    for value in [None, Some(""), Some("-1"), Some("99999999999999999999"), Some("\u{0}\u{1F680}")] {
        let mut ext = ExtFields::new();
        for field in fields {
            if let Some(value) = value {
                ext.push(field, value);
            }
        }
        let mut wire = Wire::in_form(gantry.broker(), Serialize::RocketMq);
        for code in RequestCode::ALL {
            for body in bodies {
                let command = OwnedCommand { ext: ext.clone(), ..OwnedCommand::request(*code, &()) };
                let reply = wire.ask(&command.body(body.to_vec()));
                if reply.code != 0 {
                    expect_some_refusal(&reply, &format!("{code} with {value:?} and {body:?}"));
                }
            }
        }
    }
    normal.works();
    normal.keeps();
    assert!(!gantry.log().contains("panicked"), "{}", gantry.log());
}

#[test]
fn sends_beyond_the_limits_are_refused_with_the_limit() {
    let gantry = Gantry::start(&[]);
    let mut normal = Normal::new(&gantry);
    let mut wire = Wire::to(gantry.broker());
    let mut expect = |header: SendMessageHeader<'_>, body: &[u8], code: ResponseCode, words: &str| {
        let reply = wire.request(RequestCode::SendMessage, &header, body);
        expect_refused(&reply, code, words);
    };
    for (topic, words) in [
        ("x".repeat(128), "the limit is 127"),
        ("x".repeat(60_000), "the limit is 127"),
        ("bad name".to_owned(), "bad name"),
        ("../../etc/passwd".to_owned(), "passwd"),
        (String::new(), "topic"),
    ] {
        expect(SendMessageHeader { topic: &topic, ..send() }, b"x", ResponseCode::InvalidParameter, words);
    }
    let system = SendMessageHeader { topic: "SCHEDULE_TOPIC_XXXX", ..send() };
    expect(system, b"x", ResponseCode::NoPermission, "SCHEDULE_TOPIC_XXXX");
    for queue_id in [4, 99, i32::MAX] {
        let header = SendMessageHeader { queue_id, ..send() };
        expect(header, b"x", ResponseCode::InvalidParameter, &format!("there is no queue {queue_id}"));
    }
    let long = properties(&[("own", &"v".repeat(40_000))]);
    let header = SendMessageHeader { properties: Some(&long), ..send() };
    expect(header, b"x", ResponseCode::MessageIllegal, "the format allows");
    let body = vec![b'x'; (4 << 20) + 1];
    expect(send(), &body, ResponseCode::MessageIllegal, "the limit is 4194304");
    for body in [&b""[..], b"\0\0\0\x05", b"\x7f\xff\xff\xffgarbage", b"\xff\xff\xff\xff"] {
        let header = SendMessageHeader { batch: Some(true), ..send() };
        expect(header, body, ResponseCode::MessageIllegal, "batch");
    }
    normal.works();
    normal.keeps();
}

/// Odd, but not wrong: taken, and given to the consumer as it came.
#[test]
fn odd_messages_are_kept_as_they_are() {
    let gantry = Gantry::start(&[]);
    let mut wire = Wire::to(gantry.broker());
    let odd = properties(&[("TAGS", &"t".repeat(10_000)), ("DELAY", "-7"), ("KEYS", &"k ".repeat(2_000))]);
    let headers = [
        SendMessageHeader { queue_id: -5, ..send() },
        SendMessageHeader { born_timestamp: i64::MIN, reconsume_times: Some(i32::MIN), ..send() },
        SendMessageHeader { sys_flag: -1, flag: i32::MIN, ..send() },
        SendMessageHeader { properties: Some("no separators at all"), ..send() },
        SendMessageHeader { properties: Some(&odd), ..send() },
        SendMessageHeader { default_topic_queue_nums: i32::MAX, topic: "Another", ..send() },
        SendMessageHeader { default_topic_queue_nums: -1, topic: "Third", ..send() },
    ];
    for header in headers {
        let reply = wire.request(RequestCode::SendMessage, &header, b"odd");
        assert_eq!(reply.code, 0, "{header:?}: {reply:?}");
    }
    let stored: i64 = (0..4)
        .map(|queue_id| {
            let reply =
                wire.request(RequestCode::PullMessage, &PullMessageHeader { queue_id, ..pull() }, b"");
            reply.ext.get("maxOffset").expect("a pull answer").parse::<i64>().expect("a number")
        })
        .sum();
    assert_eq!(stored, 5);
}

#[test]
fn what_is_unknown_is_named() {
    let gantry = Gantry::start(&["--auto-create-topics", "false", "--auto-create-groups", "false"]);
    let mut normal_wire = Wire::to(gantry.broker());
    let mut expect = |code: RequestCode, fields: &[(&str, &str)], refusal: ResponseCode, words: &str| {
        let mut ext = ExtFields::new();
        for (name, value) in fields {
            ext.push((*name).to_owned(), (*value).to_owned());
        }
        let reply = normal_wire.ask(&OwnedCommand { ext, ..OwnedCommand::request(code, &()) });
        expect_refused(&reply, refusal, words);
    };
    let nowhere = ("topic", "Nowhere");
    let queue = ("queueId", "0");
    let topic_gone = ResponseCode::TopicNotExist;
    expect(RequestCode::GetRouteinfoByTopic, &[nowhere], topic_gone, "Nowhere");
    expect(RequestCode::GetTopicStatsInfo, &[nowhere], topic_gone, "Nowhere");
    expect(RequestCode::GetTopicConfig, &[nowhere], topic_gone, "Nowhere");
    expect(RequestCode::GetMaxOffset, &[nowhere, queue], topic_gone, "Nowhere");
    expect(RequestCode::GetMinOffset, &[nowhere, queue], topic_gone, "Nowhere");
    expect(
        RequestCode::SearchOffsetByTimestamp,
        &[nowhere, queue, ("timestamp", "0")],
        topic_gone,
        "Nowhere",
    );
    let group = ("consumerGroup", "nobody");
    expect(
        RequestCode::QueryConsumerOffset,
        &[group, nowhere, queue, ("setZeroIfNotFound", "false")],
        ResponseCode::QueryNotFound,
        "nobody",
    );
    expect(RequestCode::GetConsumerListByGroup, &[group], ResponseCode::SystemError, "nobody");
    expect(
        RequestCode::GetSubscriptiongroupConfig,
        &[("group", "nobody")],
        ResponseCode::SubscriptionGroupNotExist,
        "nobody",
    );
    let mut wire = Wire::to(gantry.broker());
    let reply = wire.request(RequestCode::PullMessage, &pull(), b"");
    expect_refused(&reply, ResponseCode::SubscriptionGroupNotExist, "raw");
    let reply = wire.request(RequestCode::SendMessage, &send(), b"x");
    expect_refused(&reply, ResponseCode::TopicNotExist, "Requests");
}

#[test]
fn unknown_topics_and_queues_of_a_pull_are_named() {
    let gantry = Gantry::start(&[]);
    let mut wire = Wire::to(gantry.broker());
    let reply = wire.request(RequestCode::PullMessage, &pull(), b"");
    expect_refused(&reply, ResponseCode::TopicNotExist, "Requests");
    assert_eq!(wire.request(RequestCode::SendMessage, &send(), b"x").code, 0);
    for queue_id in [-1, 4, i32::MAX, i32::MIN] {
        let reply = wire.request(RequestCode::PullMessage, &PullMessageHeader { queue_id, ..pull() }, b"");
        expect_refused(&reply, ResponseCode::InvalidParameter, &format!("there is no queue {queue_id}"));
    }
    let unheard = PullMessageHeader { sys_flag: 0, subscription: None, ..pull() };
    let reply = wire.request(RequestCode::PullMessage, &unheard, b"");
    expect_refused(&reply, ResponseCode::SubscriptionNotExist, "heartbeat");
    let long = "g".repeat(300);
    let reply =
        wire.request(RequestCode::PullMessage, &PullMessageHeader { consumer_group: &long, ..pull() }, b"");
    expect_some_refusal(&reply, "a group of 300 letters");
}

#[test]
fn ends_and_returns_of_what_never_was_are_refused() {
    let gantry = Gantry::start(&[]);
    let mut normal = Normal::new(&gantry);
    normal.works();
    let mut wire = Wire::to(gantry.broker());
    for at in [-1, 1, 7, i64::MAX, i64::MIN] {
        let id = format!("7F0000010000{:04X}{at:016X}", gantry.broker().port());
        let fields = BTreeMap::from([
            ("producerGroup", "raw".to_owned()),
            ("tranStateTableOffset", "0".to_owned()),
            ("commitLogOffset", at.to_string()),
            ("commitOrRollback", "8".to_owned()),
            ("fromTransactionCheck", "false".to_owned()),
            ("msgId", id.clone()),
            ("transactionId", "nothing".to_owned()),
            ("topic", "Normal".to_owned()),
        ]);
        let mut ext = ExtFields::new();
        for (name, value) in fields {
            ext.push(name, value);
        }
        let end = OwnedCommand { ext, ..OwnedCommand::request(RequestCode::EndTransaction, &()) };
        expect_some_refusal(&wire.ask(&end), &format!("the end of a transaction at {at}"));
        let back = ConsumerSendMsgBackHeader {
            offset: at,
            group: "normal".to_owned(),
            ..ConsumerSendMsgBackHeader::default()
        };
        let reply = wire.request(RequestCode::ConsumerSendMsgBack, &back, b"");
        expect_some_refusal(&reply, &format!("the return of a message at {at}"));
        let mut ext = ExtFields::new();
        ext.push("offset", at.to_string());
        let view = OwnedCommand { ext, ..OwnedCommand::request(RequestCode::ViewMessageById, &()) };
        expect_some_refusal(&wire.ask(&view), &format!("a look at a message at {at}"));
    }
    normal.works();
    normal.keeps();
}
