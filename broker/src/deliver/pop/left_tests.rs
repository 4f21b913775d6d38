//! Members of one group that want different messages of a topic.

use gantry_proto::ids::QueueId;

use super::record::Counted;
use super::table::LEFT_MAX;
use super::tests::{Given, Rig};
use super::*;
use crate::deliver::filter::Filter;

fn tags(expression: &str) -> Filter {
    Filter::tags(expression).expect("a filter")
}

/// A pop of a member that wants these tags, where its group wants `all`.
fn of(own: &str, all: &str) -> PopRequest {
    PopRequest { filter: tags(own), others: Some(tags(all)), ..Rig::request() }
}

fn acks(rig: &Rig, given: &[Given]) {
    for given in given {
        assert_eq!(rig.ack(given), Ok(()), "{given:?}");
    }
}

fn bodies(given: &[Given]) -> Vec<&str> {
    given.iter().map(|given| given.body.as_str()).collect()
}

#[test]
fn what_another_member_wants_is_left_for_it() {
    let rig = Rig::new();
    for (body, tag) in [("a1", "a"), ("b1", "b"), ("c1", "c"), ("a2", "a"), ("b2", "b")] {
        rig.send(0, body, tag);
    }
    let given = rig.pop(&of("a", "a || b"));
    assert_eq!(bodies(&given), ["a1", "a2"]);
    acks(&rig, &given);
    assert_eq!(rig.committed(0), Some(1), "b1 is not done");
    assert_eq!(rig.bodies(&of("a", "a || b")), [""; 0]);
    rig.open.store.save_checkpoint().expect("saved");
    let rig = rig.kill();
    rig.send(0, "a3", "a");
    let given = rig.pop(&of("a", "a || b"));
    assert_eq!(bodies(&given), ["a3"]);
    let rig = rig.kill();
    // While the other member is away nobody takes it for done.
    let alone = PopRequest { others: None, ..of("a", "a") };
    assert_eq!(rig.bodies(&alone), [""; 0]);
    acks(&rig, &given);
    assert_eq!(rig.committed(0), Some(1));
    let given = rig.pop(&PopRequest { messages_max: 1, ..of("b", "a || b") });
    assert_eq!(bodies(&given), ["b1"]);
    acks(&rig, &given);
    assert_eq!(rig.committed(0), Some(4), "nobody wants c1");
    let given = rig.pop(&of("b", "a || b"));
    assert_eq!((bodies(&given), given[0].reconsume_times), (vec!["b2"], 0));
    acks(&rig, &given);
    assert_eq!(rig.committed(0), Some(6));
}

#[test]
fn a_message_that_was_left_has_no_handle() {
    let rig = Rig::new();
    rig.send(0, "b1", "b");
    rig.send(0, "a1", "a");
    let given = rig.pop(&of("a", "a || b"));
    let forged = Given { offset: QueueOffset::ZERO, ..given[0].clone() };
    assert_eq!(rig.ack(&forged), Err(Refused::NotPopped));
    assert_eq!(rig.renew(&forged, 1000, Counted::Yes), Err(Refused::NotPopped));
    let theirs = rig.pop(&of("b", "a || b"));
    assert_eq!(bodies(&theirs), ["b1"]);
    acks(&rig, &theirs);
    acks(&rig, &theirs);
}

#[test]
fn tags_of_one_hash_are_told_apart_by_their_text() {
    let rig = Rig::new();
    // Java's hash of both is the same.
    rig.send(0, "ours", "Aa");
    rig.send(0, "theirs", "BB");
    assert_eq!(rig.bodies(&of("Aa", "Aa || BB")), ["ours"]);
    assert_eq!(rig.bodies(&of("BB", "Aa || BB")), ["theirs"]);
}

#[test]
fn a_refused_message_comes_again_to_who_wants_it() {
    let rig = Rig::new();
    rig.send(0, "b1", "b");
    assert_eq!(rig.bodies(&of("b", "a || b")), ["b1"]);
    rig.wait(60_000);
    assert_eq!(rig.stored("%RETRY%g_T"), ["b1"]);
    assert_eq!(rig.bodies(&of("a", "a || b")), [""; 0]);
    // Nor to who is alone for a while.
    assert_eq!(rig.bodies(&PopRequest { others: None, ..of("a", "a") }), [""; 0]);
    let rig = rig.kill();
    let given = rig.pop(&of("b", "a || b"));
    assert_eq!((bodies(&given), given[0].reconsume_times), (vec!["b1"], 1));
    acks(&rig, &given);
}

#[test]
fn too_many_for_others_do_not_hold_the_rest_up() {
    let rig = Rig::with_limit(100_000);
    let count = LEFT_MAX + 10;
    for number in 0..count {
        rig.send(0, &format!("b{number}"), "b");
    }
    rig.send(0, "a", "a");
    // A look ends where nothing more can be left; then the oldest are stored again.
    assert_eq!(rig.bodies(&of("a", "a || b")), [""; 0]);
    rig.wait(0);
    assert_eq!(rig.committed(0), Some(128));
    let rig = rig.kill();
    assert_eq!(rig.bodies(&of("a", "a || b")), ["a"]);
    let mut theirs = Vec::new();
    loop {
        let given = rig.pop(&of("b", "a || b"));
        if given.is_empty() {
            break;
        }
        acks(&rig, &given);
        assert!(given.iter().all(|given| given.reconsume_times == 0));
        theirs.extend(given.into_iter().map(|given| given.body));
    }
    theirs.sort();
    theirs.dedup();
    assert_eq!(theirs.len(), count);
    assert_eq!(rig.bodies(&of("a", "a || b")), [""; 0]);
}

#[test]
fn a_retry_topic_full_of_what_nobody_wants_any_more_goes_on() {
    let rig = Rig::with_limit(100_000);
    let retry = TopicName::internal("%RETRY%g_T");
    rig.open.pops.with.topics.ensure_internal(&retry, 1, 6).expect("a topic");
    for number in 0..=LEFT_MAX {
        rig.send_to(&retry, 0, &format!("b{number}"), &[("TAGS", "b")]);
    }
    rig.send_to(&retry, 0, "a", &[("TAGS", "a")]);
    let alone = PopRequest { others: None, ..of("a", "a") };
    assert_eq!(rig.bodies(&alone), [""; 0], "who does not want the last one would drop it");
    // Each that is taken makes room for one more, and whoever waits is told.
    rig.open.pops.table().take_freed();
    let stirs = || rig.open.pops.shared.stirs.load(Ordering::SeqCst);
    let before = stirs();
    let theirs = rig.pop(&PopRequest { messages_max: 1, ..of("b", "a || b") });
    assert_eq!(bodies(&theirs), ["b0"]);
    assert!(stirs() > before, "there is room again");
    assert_eq!(rig.bodies(&alone), ["a"]);
}

fn sql(own: &str) -> PopRequest {
    let sql = |text: &str| Filter::Sql(Arc::new(gantry_proto::sql::Sql::parse(text).expect("valid")));
    let others = Some(sql("s = 'a' OR s = 'b' OR s = 'c'"));
    PopRequest { filter: sql(&format!("s = '{own}'")), others, ..Rig::request() }
}

#[test]
fn more_left_than_one_look_may_read_keeps_nobody_waiting() {
    for delivery in [record::Delivery::Concurrent, record::Delivery::ByKey, record::Delivery::Orderly] {
        let rig = Rig::with_limit(100_000);
        let large = "b".repeat(60_000);
        let request = |own| PopRequest { delivery, ..sql(own) };
        for _ in 0..100 {
            rig.send_with(0, &large, &[("s", "b")]);
        }
        rig.send_with(0, "c", &[("s", "c")]);
        assert_eq!(rig.bodies(&request("a")), [""; 0]);
        assert_eq!(rig.bodies(&request("a")), [""; 0]);
        rig.send_with(0, "a", &[("s", "a")]);
        assert_eq!(rig.bodies(&request("a")), ["a"], "{delivery:?}");
        if delivery == record::Delivery::Concurrent {
            assert_eq!(rig.bodies(&request("c")), ["c"], "it lies behind what one look may read");
        }
    }
}

#[test]
fn what_comes_again_in_order_comes_to_who_wants_it() {
    for delivery in [record::Delivery::Orderly, record::Delivery::ByKey] {
        let rig = Rig::new();
        let request = |own| PopRequest { delivery, ..of(own, "a || b") };
        let send = |body: &str, tag, key| {
            rig.send_with(0, body, &[("TAGS", tag), (gantry_proto::record::keys::SHARDING_KEY, key)]);
        };
        send("a1", "a", "k");
        send("b1", "b", "k");
        send("b2", "b", "l");
        let given = rig.pop(&PopRequest { messages_max: 1, ..request("a") });
        assert_eq!(bodies(&given), ["a1"]);
        rig.wait(60_000);
        let theirs = rig.pop(&request("b"));
        let expected = if delivery == record::Delivery::ByKey { vec!["b2"] } else { vec![] };
        assert_eq!(bodies(&theirs), expected);
        acks(&rig, &theirs);
        let again = rig.pop(&request("a"));
        assert_eq!((bodies(&again), again[0].count), (vec!["a1"], 1));
        acks(&rig, &again);
        assert!(bodies(&rig.pop(&request("b"))).contains(&"b1"));
    }
}

#[tokio::test]
async fn what_a_reset_forgets_is_not_stored_again() {
    let rig = Rig::with_limit(100_000);
    for number in 0..LEFT_MAX {
        rig.send(0, &format!("b{number}"), "b");
    }
    assert_eq!(rig.bodies(&of("a", "a || b")), [""; 0]);
    let taken = rig.open.pops.table().take_overfull(10);
    assert_eq!(taken.len(), 10);
    let end = QueueOffset::new(LEFT_MAX as u64);
    rig.open.offsets.reset(vec![(taken[0].0.clone(), end)]).await.expect("reset");
    // The reset is followed, and the log does not show it yet.
    assert_eq!(rig.pop_unsafely(&of("a", "a || b")).len(), 0);
    let moved = rig.open.pops.move_left(&mut rig.open.pops.writer(), &taken).expect("moved");
    assert_eq!(moved, taken.len());
    rig.open.store.drive();
    let moved = rig.open.pops.move_left(&mut rig.open.pops.writer(), &taken).expect("moved");
    assert_eq!(moved, taken.len());
    rig.open.store.drive();
    assert_eq!(rig.stored("%RETRY%g_T"), [""; 0]);
}

#[tokio::test]
async fn a_reset_forgets_what_was_left() {
    let rig = Rig::new();
    for (body, tag) in [("b1", "b"), ("a1", "a"), ("b2", "b")] {
        rig.send(0, body, tag);
    }
    assert_eq!(rig.bodies(&of("a", "a || b")), ["a1"]);
    let key = Key { group: GroupName::internal("g"), topic: TopicName::internal("T"), queue: QueueId::ZERO };
    rig.open.offsets.reset(vec![(key, QueueOffset::new(2))]).await.expect("reset");
    assert_eq!(rig.bodies(&of("b", "a || b")), ["b2"]);
    let rig = rig.kill();
    assert_eq!(rig.bodies(&of("b", "a || b")), [""; 0]);
}

#[test]
fn a_full_table_leaves_nothing_behind() {
    let rig = Rig::with_limit(2);
    for (body, tag) in [("b1", "b"), ("b2", "b"), ("b3", "b"), ("a1", "a")] {
        rig.send(0, body, tag);
    }
    let is_full = || {
        let full = rig.open.pops.pop(&of("a", "a || b"), crate::store::LogRuns::default());
        rig.open.store.drive();
        matches!(full, Err(PopError::Full { in_flight: 2, max: 2 }))
    };
    assert!(is_full() && is_full());
    assert_eq!(rig.committed(0), Some(0));
    // Who pops what was left needs no room besides.
    assert_eq!(rig.bodies(&of("b", "a || b")), ["b1", "b2"]);
    assert!(is_full());
}

#[tokio::test]
async fn what_is_far_behind_comes_alone() {
    let rig = Rig::with_limit(100_000);
    rig.send(0, "b-first", "b");
    rig.send(0, "a", "a");
    assert_eq!(rig.bodies(&of("a", "a || b")), ["a"]);
    for _ in 0..33 {
        crate::fixture::send_with(&rig.open.store, "T", 0, (b"TAGS\x01c\x02", b"c"), 1000).await;
    }
    rig.send(0, "b-last", "b");
    for _ in 0..4 {
        assert_eq!(rig.bodies(&of("a", "a || b")), [""; 0], "each pop looks at some thousands");
    }
    // Clients name offsets of one answer with a bit for each.
    assert_eq!(rig.bodies(&of("b", "a || b")), ["b-first"]);
    assert_eq!(rig.bodies(&of("b", "a || b")), ["b-last"]);
}
