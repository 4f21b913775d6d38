//! Members of a popping group that want different messages.

use gantry_proto::remoting::body::connection::ConsumerConnection;
use gantry_proto::remoting::body::heartbeat::{ConsumerData, HeartbeatData, SubscriptionData};
use gantry_proto::remoting::request::member::ConsumerGroupHeader;

use super::*;

/// Joins the group as a member that wants messages with this tag.
fn join(wire: &mut Wire, tag: &str) {
    let subscription = SubscriptionData {
        topic: TOPIC.to_owned(),
        sub_string: tag.to_owned(),
        tags_set: [tag.to_owned()].into(),
        sub_version: 1,
        ..SubscriptionData::default()
    };
    let consumer = ConsumerData {
        group_name: GROUP.to_owned(),
        subscription_data_set: vec![subscription],
        ..ConsumerData::default()
    };
    let data = HeartbeatData {
        client_id: format!("member-{tag}"),
        consumer_data_set: vec![consumer],
        ..HeartbeatData::default()
    };
    expect_done(&wire.request(RequestCode::HeartBeat, &(), &data.to_json()));
}

fn send_tagged(wire: &mut Wire, tag: &str, body: &str) {
    let header = SendMessageHeader {
        producer_group: "producers",
        topic: TOPIC,
        queue_id: 0,
        properties: Some(&format!("TAGS\u{1}{tag}\u{2}")),
        ..SendMessageHeader::default()
    };
    expect_done(&wire.request(RequestCode::SendMessage, &header, body.as_bytes()));
}

fn pop_tag(tag: &str) -> PopMessageHeader<'_> {
    PopMessageHeader { exp: Some(tag), ..pop() }
}

fn bodies(popped: &[Popped]) -> Vec<&str> {
    popped.iter().map(|message| message.body.as_str()).collect()
}

/// The next answer to a request; a member is told of others beside.
fn reply(wire: &mut Wire) -> OwnedCommand {
    loop {
        let Heard::Command(command) = wire.hear() else { panic!("expected an answer") };
        if command.flag & 1 == 1 {
            return command;
        }
    }
}

#[test]
fn members_that_want_different_messages_lose_nothing_to_each_other() {
    let (mut gantry, mut admin) = start(&["--policy", "disk"]);
    for (tag, body) in [("a", "a1"), ("b", "b1"), ("a", "a2"), ("b", "b2")] {
        send_tagged(&mut admin, tag, body);
    }
    // The second one tells of itself first: nobody is told of members that came before.
    let (mut ours, mut theirs) = (Wire::to(gantry.broker()), Wire::to(gantry.broker()));
    join(&mut theirs, "b");
    join(&mut ours, "a");
    let group = ConsumerGroupHeader { consumer_group: GROUP.to_owned(), ..ConsumerGroupHeader::default() };
    let told = admin.request(RequestCode::GetConsumerConnectionList, &group, b"");
    let told = ConsumerConnection::from_json(&told.body).expect("members");
    assert_eq!(told.subscription_conflicts.expect("a conflict").keys().collect::<Vec<_>>(), [TOPIC]);

    ours.post(&OwnedCommand::request(RequestCode::PopMessage, &pop_tag("a")));
    let given = messages("broker-a", &reply(&mut ours));
    assert_eq!(bodies(&given), ["a1", "a2"]);
    for message in &given {
        expect_done(&ack(&mut admin, message));
    }
    await_offset(&mut admin, 1);
    gantry.kill9();
    gantry.restart();
    let (mut admin, mut theirs) = (Wire::to(gantry.broker()), Wire::to(gantry.broker()));
    let given = messages("broker-a", &theirs.request(RequestCode::PopMessage, &pop_tag("b"), b""));
    assert_eq!(bodies(&given), ["b1", "b2"]);
    for message in &given {
        expect_done(&ack(&mut admin, message));
    }
    await_offset(&mut admin, 4);
}

#[test]
fn who_waits_wakes_for_what_it_wants_and_for_what_others_have_left() {
    let (gantry, mut admin) = start(&["--policy", "memory"]);
    let (mut ours, mut theirs) = (Wire::to(gantry.broker()), Wire::to(gantry.broker()));
    join(&mut theirs, "b");
    join(&mut ours, "a");
    let waits = |tag| {
        OwnedCommand::request(
            RequestCode::PopMessage,
            &PopMessageHeader { poll_time: 20_000, ..pop_tag(tag) },
        )
    };
    theirs.post(&waits("b"));
    for body in ["a1", "a2", "a3"] {
        send_tagged(&mut admin, "a", body);
        ours.post(&waits("a"));
        assert_eq!(bodies(&messages("broker-a", &reply(&mut ours))), [body]);
    }
    // Each passes over what is the other's.
    ours.post(&waits("a"));
    send_tagged(&mut admin, "b", "b1");
    assert_eq!(bodies(&messages("broker-a", &reply(&mut theirs))), ["b1"]);
    theirs.post(&waits("b"));
    send_tagged(&mut admin, "a", "a4");
    assert_eq!(bodies(&messages("broker-a", &reply(&mut ours))), ["a4"]);
    send_tagged(&mut admin, "b", "b2");
    assert_eq!(bodies(&messages("broker-a", &reply(&mut theirs))), ["b2"]);
}
