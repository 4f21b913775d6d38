//! Offsets that lie before the first message, behind the last one, or nowhere.

use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::offset::{
    QueryConsumerOffsetHeader, ResetOffsetHeader, SearchOffsetHeader, UpdateConsumerOffsetHeader,
};
use gantry_proto::remoting::request::pull::{PullMessageHeader, sys_flag};
use gantry_tests::harness::Gantry;

use crate::normal::Normal;
use crate::wire::{Wire, expect_refused};

const MESSAGES: i64 = 3;

fn number(reply: &OwnedCommand, field: &str) -> i64 {
    let text = reply.ext.get(field).unwrap_or_else(|| panic!("expected {field} in {reply:?}"));
    text.parse().expect("a number")
}

fn commit(offset: Option<i64>) -> UpdateConsumerOffsetHeader<'static> {
    UpdateConsumerOffsetHeader {
        consumer_group: "normal",
        topic: "Normal",
        queue_id: 0,
        commit_offset: offset,
        broker_name: None,
    }
}

#[test]
fn pulls_from_nowhere_are_told_where_to_go_on() {
    let gantry = Gantry::start(&[]);
    let mut normal = Normal::new(&gantry);
    (0..MESSAGES).for_each(|_| normal.works());
    let mut wire = Wire::to(gantry.broker());
    let mut pull = |queue_offset: i64| {
        let header = PullMessageHeader {
            consumer_group: "raw",
            topic: "Normal",
            queue_offset,
            max_msg_nums: 32,
            sys_flag: sys_flag::SUBSCRIPTION,
            subscription: Some("*"),
            ..PullMessageHeader::default()
        };
        let reply = wire.request(RequestCode::PullMessage, &header, b"");
        (ResponseCode::from(reply.code), number(&reply, "nextBeginOffset"), number(&reply, "maxOffset"))
    };
    assert_eq!(pull(MESSAGES), (ResponseCode::PullNotFound, MESSAGES, MESSAGES));
    for far in [MESSAGES + 1, 1 << 40, i64::MAX] {
        assert_eq!(pull(far), (ResponseCode::PullOffsetMoved, MESSAGES, MESSAGES), "from {far}");
    }
    // Below 0 is "from the start", as with Apache's broker.
    for negative in [-1, -1_000, i64::MIN] {
        assert_eq!(pull(negative), (ResponseCode::Success, MESSAGES, MESSAGES), "from {negative}");
    }
    normal.keeps();
}

#[test]
fn offsets_that_cannot_be_are_not_committed() {
    let mut gantry = Gantry::start(&[]);
    let mut normal = Normal::new(&gantry);
    (0..MESSAGES).for_each(|_| normal.works());
    let mut wire = Wire::to(gantry.broker());
    assert_eq!(wire.request(RequestCode::UpdateConsumerOffset, &commit(Some(2)), b"").code, 0);
    for (offset, words) in [
        (None, "commitOffset"),
        (Some(-1), "below 0"),
        (Some(i64::MIN), "below 0"),
        (Some(MESSAGES + 1), "3"),
        (Some(i64::MAX), "3"),
    ] {
        let reply = wire.request(RequestCode::UpdateConsumerOffset, &commit(offset), b"");
        expect_refused(&reply, ResponseCode::InvalidParameter, words);
    }
    for queue_id in [-1, 1, i32::MAX] {
        let header = UpdateConsumerOffsetHeader { queue_id, ..commit(Some(0)) };
        let reply = wire.request(RequestCode::UpdateConsumerOffset, &header, b"");
        expect_refused(&reply, ResponseCode::InvalidParameter, &format!("no queue {queue_id}"));
    }
    let query = QueryConsumerOffsetHeader {
        consumer_group: "normal",
        topic: "Normal",
        queue_id: 0,
        set_zero_if_not_found: None,
        broker_name: None,
    };
    let reply = wire.request(RequestCode::QueryConsumerOffset, &query, b"");
    assert_eq!((reply.code, number(&reply, "offset")), (0, 2), "the acknowledged offset is what is kept");
    gantry.kill9();
    gantry.restart();
    let reply = Wire::to(gantry.broker()).request(RequestCode::QueryConsumerOffset, &query, b"");
    assert_eq!((reply.code, number(&reply, "offset")), (0, 2), "also over a crash");
    normal.works();
    normal.keeps();
}

#[test]
fn times_before_and_after_everything_find_the_ends() {
    let gantry = Gantry::start(&[]);
    let mut normal = Normal::new(&gantry);
    (0..MESSAGES).for_each(|_| normal.works());
    let mut wire = Wire::to(gantry.broker());
    for (timestamp, expected) in [(i64::MIN, 0), (-1, 0), (0, 0), (i64::MAX, MESSAGES)] {
        let header = SearchOffsetHeader {
            topic: "Normal".to_owned(),
            queue_id: 0,
            timestamp,
            ..SearchOffsetHeader::default()
        };
        let reply = wire.request(RequestCode::SearchOffsetByTimestamp, &header, b"");
        assert_eq!((reply.code, number(&reply, "offset")), (0, expected), "at {timestamp}");
    }
    let reset = ResetOffsetHeader {
        topic: "Normal".to_owned(),
        group: "normal".to_owned(),
        timestamp: 0,
        is_force: true,
        queue_id: Some(7),
        offset: Some(i64::MAX),
    };
    let reply = wire.request(RequestCode::InvokeBrokerToResetOffset, &reset, b"");
    assert_ne!(reply.code, 0, "there is no queue 7");
    normal.works();
    normal.keeps();
}
