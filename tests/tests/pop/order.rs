//! A group whose messages keep the order of their sharding keys.

use std::collections::BTreeMap;

use gantry_proto::remoting::body::Body as _;
use gantry_proto::remoting::body::group::SubscriptionGroupConfig;

use super::*;

/// Says what messages of the group wait for.
fn set_order(wire: &mut Wire, order: &str) -> OwnedCommand {
    let config = SubscriptionGroupConfig {
        group_name: GROUP.to_owned(),
        retry_max_times: 2,
        attributes: BTreeMap::from([("+gantry.order".to_owned(), order.to_owned())]),
        ..SubscriptionGroupConfig::default()
    };
    wire.request(RequestCode::UpdateAndCreateSubscriptiongroup, &(), &config.to_json())
}

/// A message whose sharding key is its first letter.
fn send_keyed(wire: &mut Wire, body: &str) {
    let header = SendMessageHeader {
        producer_group: "producers",
        topic: TOPIC,
        queue_id: 0,
        properties: Some(&format!("__SHARDINGKEY\u{1}{}\u{2}", &body[..1])),
        ..SendMessageHeader::default()
    };
    expect_done(&wire.request(RequestCode::SendMessage, &header, body.as_bytes()));
}

fn orderly(max_msg_nums: i32) -> PopMessageHeader<'static> {
    PopMessageHeader { order: Some(true), max_msg_nums, queue_id: 0, ..pop() }
}

fn bodies(popped: &[Popped]) -> Vec<&str> {
    popped.iter().map(|message| message.body.as_str()).collect()
}

#[test]
fn a_failing_key_keeps_no_other_back() {
    let (mut gantry, mut wire) = start(&["--policy", "disk"]);
    expect_refused(&set_order(&mut wire, "topic"), ResponseCode::InvalidParameter, "queue or key");
    expect_done(&set_order(&mut wire, "key"));
    for body in ["a1", "b1", "a2", "c1", "b2"] {
        send_keyed(&mut wire, body);
    }
    let failing = pop_all(&mut wire, &PopMessageHeader { invisible_time: 3000, ..orderly(1) });
    assert_eq!(bodies(&failing), ["a1"]);
    assert_eq!(failing[0].handle.revive_queue, 999);
    let others = pop_all(&mut wire, &orderly(32));
    assert_eq!(bodies(&others), ["b1", "c1", "b2"]);
    gantry.kill9();
    gantry.restart();
    let mut wire = Wire::to(gantry.broker());
    for message in &others {
        expect_done(&ack(&mut wire, message));
    }
    await_offset(&mut wire, 0);
    // Twice more, each time when its time is over, and then it is dead and the next one of its key comes.
    for _ in 0..2 {
        let again =
            pop_all(&mut wire, &PopMessageHeader { poll_time: 20_000, invisible_time: 1000, ..orderly(1) });
        assert_eq!((bodies(&again), again[0].reconsume_times), (vec!["a1"], 0));
    }
    let next = pop_all(&mut wire, &PopMessageHeader { poll_time: 20_000, ..orderly(1) });
    assert_eq!(bodies(&next), ["a2"]);
    expect_done(&ack(&mut wire, &next[0]));
    await_offset(&mut wire, 5);
}

#[test]
fn who_waits_for_a_key_is_answered_when_that_is_free() {
    let (gantry, mut wire) = start(&["--policy", "memory"]);
    expect_done(&set_order(&mut wire, "key"));
    for body in ["a1", "a2"] {
        send_keyed(&mut wire, body);
    }
    let first = pop_all(&mut wire, &orderly(1));
    let mut waiting = Wire::to(gantry.broker());
    waiting.post(&OwnedCommand::request(
        RequestCode::PopMessage,
        &PopMessageHeader { poll_time: 20_000, ..orderly(32) },
    ));
    expect_done(&ack(&mut wire, &first[0]));
    let Heard::Command(reply) = waiting.hear() else { panic!("expected an answer") };
    assert_eq!(bodies(&messages("broker-a", &reply)), ["a2"]);
}
