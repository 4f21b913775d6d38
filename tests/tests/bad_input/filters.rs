//! Subscriptions that cannot be served: what pulls and heartbeats with them are told, and that nobody else minds.

use gantry_proto::remoting::body::Body as _;
use gantry_proto::remoting::body::heartbeat::{
    CheckClientRequestBody, ConsumerData, HeartbeatData, MessageModel, SubscriptionData,
};
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::pull::{PullMessageHeader, sys_flag};
use gantry_tests::harness::Gantry;

use crate::normal::Normal;
use crate::wire::{Wire, expect_refused};

fn pull<'a>(kind: &'a str, expression: &'a str) -> PullMessageHeader<'a> {
    PullMessageHeader {
        consumer_group: "filters",
        topic: "Normal",
        max_msg_nums: 32,
        sys_flag: sys_flag::SUBSCRIPTION,
        subscription: Some(expression),
        expression_type: Some(kind),
        ..PullMessageHeader::default()
    }
}

fn subscription(kind: &str, expression: &str, sub_version: i64) -> SubscriptionData {
    SubscriptionData {
        topic: "Normal".to_owned(),
        expression_type: kind.to_owned(),
        sub_string: expression.to_owned(),
        sub_version,
        ..SubscriptionData::default()
    }
}

/// Joins the group as a member with this subscription.
fn beat(wire: &mut Wire, client_id: &str, subscription: SubscriptionData) -> OwnedCommand {
    let data = HeartbeatData {
        client_id: client_id.to_owned(),
        consumer_data_set: vec![ConsumerData {
            group_name: "filters".to_owned(),
            // Such a group hears nothing of new members.
            message_model: MessageModel::Broadcasting,
            subscription_data_set: vec![subscription],
            ..ConsumerData::default()
        }],
        ..HeartbeatData::default()
    };
    wire.request(RequestCode::HeartBeat, &(), &data.to_json())
}

/// A pull by what heartbeats told, of a member with this version.
fn by_heartbeat(wire: &mut Wire, sub_version: i64) -> OwnedCommand {
    let header = PullMessageHeader { sys_flag: 0, subscription: None, sub_version, ..pull("SQL92", "") };
    wire.request(RequestCode::PullMessage, &header, b"")
}

#[test]
fn expressions_that_are_none_are_refused_with_their_place() {
    let gantry = Gantry::start(&[]);
    let mut normal = Normal::new(&gantry);
    normal.works();
    let mut wire = Wire::to(gantry.broker());
    let deep = "NOT ".repeat(4000);
    let long = "a = 1 OR ".repeat(2000);
    let wrong = [
        ("SQL92", "", "at character 1: it is empty"),
        ("SQL92", "a >", "at character 4: expected a property"),
        ("SQL92", "a > 'x'", "at character 3: only numbers"),
        ("SQL92", "a = 'x", "at character 5: the text does not end"),
        ("SQL92", "größer > 1", "at character 3: `ö` means nothing here"),
        ("SQL92", &deep, "nested more than 100 deep"),
        ("SQL92", &long, "the limit is 16384"),
        ("TAG", "||", "names no tag"),
        ("CLASS", "org.example.Filter", "there are no filters of type CLASS"),
    ];
    for (kind, expression, words) in wrong {
        let reply = wire.request(RequestCode::PullMessage, &pull(kind, expression), b"");
        expect_refused(&reply, ResponseCode::SubscriptionParseFailed, words);
        let body = CheckClientRequestBody {
            client_id: "c@1".to_owned(),
            group: "filters".to_owned(),
            subscription_data: subscription(kind, expression, 1),
            ..CheckClientRequestBody::default()
        };
        let reply = wire.request(RequestCode::CheckClientConfig, &(), &body.to_json());
        expect_refused(&reply, ResponseCode::SubscriptionParseFailed, words);
    }
    assert_eq!(wire.request(RequestCode::PullMessage, &pull("SQL92", "KEYS IS NULL"), b"").code, 0);
    normal.works();
}

#[test]
fn a_heartbeat_with_a_wrong_expression_costs_only_its_own_pulls() {
    let gantry = Gantry::start(&[]);
    let mut normal = Normal::new(&gantry);
    normal.works();
    let (mut bad, mut good) = (Wire::to(gantry.broker()), Wire::to(gantry.broker()));
    assert_eq!(beat(&mut bad, "bad@1", subscription("SQL92", "a >", 7)).code, 0);
    let reply = by_heartbeat(&mut bad, 7);
    expect_refused(&reply, ResponseCode::FilterDataNotExist, "at character 4");
    let reply = by_heartbeat(&mut bad, 8);
    expect_refused(&reply, ResponseCode::SubscriptionNotLatest, "send a heartbeat first");
    // Another member can be served; the first one's pulls still cannot.
    assert_eq!(beat(&mut good, "good@1", subscription("SQL92", "a IS NULL", 5)).code, 0);
    assert_eq!(by_heartbeat(&mut good, 5).code, 0);
    let reply = by_heartbeat(&mut bad, 7);
    expect_refused(&reply, ResponseCode::FilterDataNotLatest, "at character 4");
    // It is corrected: each member of such a group gets what it wants itself.
    assert_eq!(beat(&mut bad, "bad@1", subscription("SQL92", "a > 5", 9)).code, 0);
    let reply = by_heartbeat(&mut bad, 9);
    assert_eq!(reply.code, ResponseCode::PullRetryImmediately.code(), "{:?}", reply.remark);
    assert_eq!(by_heartbeat(&mut good, 5).code, 0);
    normal.works();
}
