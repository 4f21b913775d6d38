use std::time::Duration;

use gantry_client::proto::ids::{Millis, QueueId};
use gantry_client::proto::names::BrokerName;
use gantry_client::proto::receipt::PoppedFrom;

use super::super::Kind;
use super::*;

const TOPIC: &str = "T";
const SEED: u64 = 7;

static POPPERS: Group = Group {
    name: "poppers",
    topic: TOPIC,
    way: Way::Pop,
    sql: None,
    wants: |ident| ident.seq < 90,
    refuses: |ident| ident.seq == 3,
    retries_max: 1,
};
static ORDERLY: Group = Group { name: "orderly", way: Way::PopInOrder, refuses: |_| false, ..POPPERS_LIKE };
static KEYED: Group = Group { name: "keyed", way: Way::PopByKey, ..POPPERS_LIKE };
const POPPERS_LIKE: Group = Group {
    name: "",
    topic: TOPIC,
    way: Way::Pop,
    sql: None,
    wants: |_| true,
    refuses: |_| false,
    retries_max: 1,
};

/// A model in which messages 0 to 4 are acknowledged, each at the offset of its number.
fn checker() -> Checker {
    let checker = Checker::new(SEED);
    checker.consumes(&POPPERS);
    checker.consumes(&ORDERLY);
    sent(&checker, 5);
    checker
}

/// Messages are acknowledged, each at the offset of its number.
fn sent(checker: &Checker, count: u64) {
    for seq in 0..count {
        checker.sending(ident(seq), TOPIC, Kind::Serial);
        let mut model = checker.model();
        model.messages.get_mut(&ident(seq)).expect("it was sent").acknowledged = true;
        model.place(ident(seq), &queue(), seq, "was acknowledged");
    }
}

fn ident(seq: u64) -> Ident {
    Ident { actor: 1, seq }
}

fn queue() -> MessageQueue {
    MessageQueue {
        topic: gantry_client::proto::names::TopicName::parse(TOPIC).unwrap(),
        broker: BrokerName::storable("broker-a").unwrap(),
        id: QueueId::ZERO,
    }
}

/// Pops one message: so long after the start, for so long.
fn pop(checker: &Checker, group: &'static Group, seq: u64, after: i64, invisible: u64) -> Popped {
    let handle = ReceiptHandle {
        start: QueueOffset::new(seq),
        popped_at: Millis::new(now_ms() + after),
        invisible_ms: invisible,
        revive_queue: 0,
        from: PoppedFrom::Topic,
        broker: "broker-a".to_owned(),
        queue: QueueId::ZERO,
        offset: QueueOffset::new(seq),
        log_position: None,
    };
    let pop = Pop { asked_at: Instant::now(), attempt: None };
    let message = (ident(seq).body(SEED), TOPIC.to_owned(), handle);
    checker.popped(group, &pop, vec![message]).pop().expect("a message that is known")
}

fn acked(checker: &Checker, group: &'static Group, popped: &Popped) {
    checker.acking(group, std::slice::from_ref(popped));
    checker.popped_done(group, std::slice::from_ref(popped));
}

#[track_caller]
fn expect(checker: &Checker, words: &[&str]) {
    let found = checker.violations();
    assert_eq!(found.len(), words.len(), "{found:?}");
    for (found, words) in found.iter().zip(words) {
        assert!(found.contains(words), "expected {words:?} in {found:?}");
    }
}

#[test]
fn a_lease_is_one_members() {
    let checker = checker();
    pop(&checker, &POPPERS, 0, 0, 1000);
    pop(&checker, &POPPERS, 0, 1000, 1000);
    expect(&checker, &[]);
    pop(&checker, &POPPERS, 0, 1700, 1000);
    expect(&checker, &["somebody else's"]);
}

#[test]
fn a_lease_that_is_put_off_is_not_judged_but_the_new_one_is() {
    let checker = checker();
    let popped = pop(&checker, &POPPERS, 0, 0, 10_000);
    checker.renewing(&POPPERS, &popped);
    let handle = ReceiptHandle { invisible_ms: 5000, ..popped.handle.clone() };
    let handle = ReceiptHandle { popped_at: handle.popped_at.plus(1000), ..handle };
    checker.renewed(&POPPERS, &Popped { handle, ..popped });
    pop(&checker, &POPPERS, 0, 6500, 10);
    expect(&checker, &[]);
    pop(&checker, &POPPERS, 0, 4000, 10);
    expect(&checker, &["somebody else's"]);
}

#[test]
fn what_is_acknowledged_never_comes_again() {
    let checker = checker();
    let popped = pop(&checker, &POPPERS, 0, 0, 500);
    acked(&checker, &POPPERS, &popped);
    std::thread::sleep(Duration::from_millis(1));
    pop(&checker, &POPPERS, 0, 5000, 500);
    expect(&checker, &["its ack was answered"]);
}

#[test]
fn a_pop_that_is_heard_of_late_is_no_pop_after_an_ack() {
    let checker = checker();
    let asked_at = Instant::now();
    let popped = pop(&checker, &POPPERS, 0, 0, 500);
    acked(&checker, &POPPERS, &popped);
    let handle = ReceiptHandle { popped_at: popped.handle.popped_at.minus(2000), ..popped.handle };
    let before = Pop { asked_at, attempt: None };
    checker.popped(&POPPERS, &before, vec![(ident(0).body(SEED), TOPIC.to_owned(), handle)]);
    expect(&checker, &[]);
}

#[test]
fn an_ack_of_an_older_lease_contradicts_a_newer_one() {
    let checker = checker();
    let popped = pop(&checker, &POPPERS, 0, 0, 500);
    pop(&checker, &POPPERS, 0, 700, 500);
    acked(&checker, &POPPERS, &popped);
    expect(&checker, &["it was given again"]);
}

#[test]
fn an_ack_in_time_counts() {
    let checker = checker();
    let late = pop(&checker, &POPPERS, 0, -1000, 500);
    checker.acking(&POPPERS, std::slice::from_ref(&late));
    checker.ack_refused(&POPPERS, &late, "over");
    expect(&checker, &[]);
    let early = pop(&checker, &POPPERS, 1, 0, 60_000);
    checker.acking(&POPPERS, std::slice::from_ref(&early));
    checker.ack_refused(&POPPERS, &early, "over");
    expect(&checker, &["refused in time"]);
}

#[test]
fn times_of_a_clock_that_jumps_are_not_compared() {
    let checker = checker();
    checker.trust_clock(false);
    pop(&checker, &POPPERS, 0, 0, 60_000);
    pop(&checker, &POPPERS, 0, 1, 60_000);
    checker.trust_clock(true);
    pop(&checker, &POPPERS, 0, 2, 60_000);
    expect(&checker, &[]);
    pop(&checker, &POPPERS, 0, 3, 60_000);
    expect(&checker, &["somebody else's"]);
}

#[test]
fn an_orderly_queue_waits_for_its_first() {
    let checker = checker();
    pop(&checker, &ORDERLY, 1, 0, 500);
    expect(&checker, &["message 1.0 at 0 is not done"]);
    let first = pop(&checker, &ORDERLY, 0, 0, 500);
    acked(&checker, &ORDERLY, &first);
    pop(&checker, &ORDERLY, 1, 1000, 500);
    assert_eq!(checker.violations().len(), 1);
}

#[test]
fn a_key_waits_for_its_first_and_for_no_other() {
    let checker = Checker::new(SEED);
    checker.consumes(&KEYED);
    // There are 16 keys.
    sent(&checker, 17);
    let key = |seq| ident(seq).sharding_key(SEED);
    let later = (0..17).find(|later| (0..*later).any(|first| key(first) == key(*later)));
    let later = later.expect("two of 17 have one key");
    let first = (0..later).find(|first| key(*first) == key(later)).expect("there is one");
    for other in (0..later).filter(|other| *other != first) {
        pop(&checker, &KEYED, other, 0, 500);
    }
    expect(&checker, &[]);
    pop(&checker, &KEYED, later, 0, 500);
    expect(&checker, &["is not done"]);
    let first = pop(&checker, &KEYED, first, 0, 500);
    acked(&checker, &KEYED, &first);
    pop(&checker, &KEYED, later, 1000, 500);
    assert_eq!(checker.violations().len(), 1);
}

#[test]
fn groups_are_owed_what_they_want_and_dead_letters_are_of_what_is_refused() {
    let checker = checker();
    assert_eq!(checker.owed_to_groups(), 10);
    for seq in 0..5 {
        for group in [&POPPERS, &ORDERLY] {
            let popped = pop(&checker, group, seq, 0, 500);
            acked(&checker, group, &popped);
        }
    }
    // Of the one that all refuse only the dead letter counts.
    assert_eq!(checker.owed_to_groups(), 1);
    checker.model().check_groups();
    expect(&checker, &["poppers lacks message 1.3"]);
}

#[test]
fn nobody_gets_what_the_group_does_not_want() {
    let checker = checker();
    checker.sending(ident(95), TOPIC, Kind::Serial);
    let handle = pop(&checker, &POPPERS, 0, 0, 500).handle;
    let pop = Pop { asked_at: Instant::now(), attempt: None };
    let messages = [ident(95).body(SEED), b"1.1.other".to_vec(), b"nobody's".to_vec()]
        .map(|body| (body, TOPIC.to_owned(), handle.clone()));
    assert_eq!(checker.popped(&POPPERS, &pop, messages.into()).len(), 0);
    expect(&checker, &["no place in what the group wants", "another body", "nobody sent"]);
}
