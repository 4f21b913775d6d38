//! What operators see of a popping group, and how it follows them.

use gantry_proto::remoting::request::offset::{CloneGroupOffsetHeader, ResetOffsetHeader};
use gantry_tests::harness;
use serde_json::{Value, json};

use super::*;

fn describe(gantry: &Gantry, arguments: &[&str]) -> String {
    let name_server = gantry.name_server().to_string();
    let all = [&["group", "describe", GROUP, "--name-server", &name_server], arguments].concat();
    let ended = harness::run(&all);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.stdout
}

fn bodies(popped: &[Popped]) -> Vec<&str> {
    popped.iter().map(|message| message.body.as_str()).collect()
}

#[test]
fn a_person_sees_what_is_in_flight() {
    let (mut gantry, mut wire) = start(&["--policy", "disk"]);
    for body in ["one", "two", "three"] {
        send(&mut wire, 0, body);
    }
    let given = pop_all(&mut wire, &PopMessageHeader { max_msg_nums: 2, ..pop() });
    assert_eq!(given.len(), 2);
    expect_done(&ack(&mut wire, &given[0]));
    await_offset(&mut wire, 1);
    gantry.kill9();
    gantry.restart();
    let told: Value = serde_json::from_str(&describe(&gantry, &["--output", "json"])).expect("JSON");
    assert_eq!((&told["in_flight"], &told["lag"]), (&json!(1), &json!(2)));
    let queues = told["queues"].as_array().expect("queues");
    let queue = queues.iter().find(|queue| queue["topic"] == TOPIC && queue["queue"] == 0).expect("queue 0");
    let popped_at = given[1].handle.popped_at.get();
    assert_eq!(
        (&queue["in_flight"], &queue["left"], &queue["oldest_popped_ms"]),
        (&json!(1), &json!(0), &json!(popped_at))
    );
    let text = describe(&gantry, &["--topic", TOPIC]);
    let is_told = |line: &str| {
        let columns: Vec<&str> = line.split('\t').collect();
        columns.len() == 6 && columns[..4] == [TOPIC, "broker-a", "0", "1"] && columns[5] == "0"
    };
    assert!(text.lines().any(is_told), "{text}");
}

#[test]
fn a_group_that_waits_follows_a_reset_back_and_forth() {
    let (gantry, mut wire) = start(&["--policy", "memory"]);
    for body in ["one", "two", "three"] {
        send(&mut wire, 0, body);
    }
    let reset = |wire: &mut Wire, offset| {
        let header = ResetOffsetHeader {
            topic: TOPIC.to_owned(),
            group: GROUP.to_owned(),
            timestamp: 0,
            is_force: true,
            queue_id: Some(0),
            offset: Some(offset),
        };
        expect_done(&wire.request(RequestCode::InvokeBrokerToResetOffset, &header, b""));
    };
    let first = pop_all(&mut wire, &PopMessageHeader { max_msg_nums: 1, ..pop() });
    assert_eq!(bodies(&first), ["one"]);
    // Forth: what lies between is nobody's, and what was in flight is done.
    reset(&mut wire, 2);
    let third = pop_all(&mut wire, &pop());
    assert_eq!(bodies(&third), ["three"]);
    expect_done(&ack(&mut wire, &first[0]));
    expect_done(&ack(&mut wire, &third[0]));
    await_offset(&mut wire, 3);
    // Back, while it waits.
    let mut waiting = Wire::to(gantry.broker());
    let waits = PopMessageHeader { poll_time: 20_000, ..pop() };
    waiting.post(&OwnedCommand::request(RequestCode::PopMessage, &waits));
    reset(&mut wire, 1);
    let Heard::Command(reply) = waiting.hear() else { panic!("expected an answer") };
    assert_eq!(bodies(&messages("broker-a", &reply)), ["two", "three"]);
    await_offset(&mut wire, 1);
    expect_refused(&ack(&mut wire, &third[0]), ResponseCode::NoMessage, "another handle");
}

#[test]
fn a_group_that_is_offline_goes_on_where_another_one_stands() {
    let (mut gantry, mut wire) = start(&["--policy", "disk"]);
    for body in ["one", "two", "three"] {
        send(&mut wire, 0, body);
    }
    let ours = pop_all(&mut wire, &pop());
    assert_eq!(ours.len(), 3);
    for message in &ours {
        expect_done(&ack(&mut wire, message));
    }
    await_offset(&mut wire, 3);
    let theirs = pop_all(&mut wire, &PopMessageHeader { consumer_group: "others", max_msg_nums: 1, ..pop() });
    let handle = theirs[0].handle.to_string();
    let header = AckMessageHeader {
        consumer_group: "others",
        topic: TOPIC,
        queue_id: 0,
        extra_info: &handle,
        offset: 0,
    };
    expect_done(&wire.request(RequestCode::AckMessage, &header, b""));
    let clone = CloneGroupOffsetHeader {
        src_group: "others".to_owned(),
        dest_group: GROUP.to_owned(),
        topic: Some(TOPIC.to_owned()),
        offline: true,
    };
    // Offsets follow acks a little later.
    harness::wait_for("the clone", std::time::Duration::from_secs(20), || {
        let cloned = wire.request(RequestCode::CloneGroupOffset, &clone, b"");
        if cloned.code != 0 {
            return Err(format!("{:?}", cloned.remark));
        }
        let header = QueryConsumerOffsetHeader {
            consumer_group: GROUP,
            topic: TOPIC,
            queue_id: 0,
            ..QueryConsumerOffsetHeader::default()
        };
        let reply = wire.request(RequestCode::QueryConsumerOffset, &header, b"");
        let offset = reply.ext.get("offset").unwrap_or_default().to_owned();
        if offset == "1" { Ok(()) } else { Err(format!("the offset is {offset:?}")) }
    });
    gantry.kill9();
    gantry.restart();
    let mut wire = Wire::to(gantry.broker());
    assert_eq!(bodies(&pop_all(&mut wire, &pop())), ["two", "three"]);
}
