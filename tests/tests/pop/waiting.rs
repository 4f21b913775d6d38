//! Pops that wait: as many are answered as there are messages, in their turn.

use super::*;

const WAITERS: usize = 8;

fn waiting(wire: &mut Wire) -> i32 {
    let header = PollingInfoHeader { consumer_group: GROUP, topic: TOPIC, queue_id: -1 };
    let reply = wire.request(RequestCode::PollingInfo, &header, b"");
    expect_done(&reply);
    reply.header::<PollingInfoResponse>().expect("a number").polling_num
}

fn await_waiting(wire: &mut Wire, expected: i32) {
    while waiting(wire) != expected {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn those_that_wait_are_answered_in_their_turn() {
    let (gantry, mut wire) = start(&["--policy", "memory"]);
    let mut all = Vec::new();
    for number in 1..=WAITERS {
        let mut one = Wire::to(gantry.broker());
        let header = PopMessageHeader { poll_time: 30_000, max_msg_nums: 1, ..pop() };
        one.post(&OwnedCommand::request(RequestCode::PopMessage, &header));
        await_waiting(&mut wire, i32::try_from(number).expect("few"));
        all.push(one);
    }
    // Who goes is passed over, and keeps nothing from the others.
    drop(all.remove(1));
    await_waiting(&mut wire, 7);
    for (number, one) in all.iter_mut().enumerate() {
        let body = number.to_string();
        send(&mut wire, i32::try_from(number % 2).expect("few"), &body);
        let Heard::Command(reply) = one.hear() else { panic!("expected an answer") };
        assert_eq!(messages("broker-a", &reply)[0].body, body);
    }
    assert_eq!(waiting(&mut wire), 0);
}

#[test]
fn what_one_leaves_the_next_one_gets() {
    let (gantry, mut wire) = start(&["--policy", "memory"]);
    let header = PopMessageHeader { poll_time: 30_000, max_msg_nums: 2, ..pop() };
    let mut all: Vec<Wire> = (0..4).map(|_| Wire::to(gantry.broker())).collect();
    for one in &mut all {
        one.post(&OwnedCommand::request(RequestCode::PopMessage, &header));
    }
    await_waiting(&mut wire, 4);
    for number in 0..8 {
        wire.post(&OwnedCommand::request(
            RequestCode::SendMessage,
            &SendMessageHeader {
                producer_group: "producers",
                topic: TOPIC,
                queue_id: number % 2,
                ..SendMessageHeader::default()
            },
        ));
    }
    // However they divide it, nothing is left lying while somebody waits.
    let mut got = 0;
    for one in &mut all {
        let Heard::Command(reply) = one.hear() else { panic!("expected an answer") };
        got += messages("broker-a", &reply).len();
    }
    for _ in 0..8 {
        wire.hear();
    }
    let rest = wire.request(RequestCode::PopMessage, &pop(), b"");
    got += if rest.code == 0 { messages("broker-a", &rest).len() } else { 0 };
    assert_eq!(got, 8);
}
