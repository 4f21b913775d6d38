//! The order of keys: messages of one key wait for each other, and for nobody else.

use std::collections::{BTreeMap, BTreeSet};

use gantry_proto::record::keys;
use proptest::prelude::*;

use super::record::Delivery;
use super::table::LEFT_MAX;
use super::tests::{Given, RETRY_MAX, Rig};
use super::*;

fn by_key(messages_max: usize) -> PopRequest {
    PopRequest { delivery: Delivery::ByKey, messages_max, ..Rig::request() }
}

fn attempt(id: &str, messages_max: usize) -> PopRequest {
    PopRequest { attempt: Some(Arc::from(id)), ..by_key(messages_max) }
}

/// A message whose key is its first letter.
fn send(rig: &Rig, body: &str) {
    rig.send_with(0, body, &[(keys::SHARDING_KEY, &body[..1])]);
}

fn bodies(given: &[Given]) -> Vec<&str> {
    given.iter().map(|given| given.body.as_str()).collect()
}

fn acks(rig: &Rig, given: &[Given]) {
    for given in given {
        assert_eq!(rig.ack(given), Ok(()), "{given:?}");
    }
}

#[test]
fn only_messages_of_the_same_key_wait() {
    let rig = Rig::new();
    for body in ["a1", "b1", "a2", "c1", "b2"] {
        send(&rig, body);
    }
    let first = rig.pop(&by_key(1));
    assert_eq!(bodies(&first), ["a1"]);
    let others = rig.pop(&by_key(32));
    assert_eq!(bodies(&others), ["b1", "c1", "b2"]);
    let rig = rig.kill();
    acks(&rig, &others);
    assert_eq!((rig.committed(0), rig.bodies(&by_key(32))), (Some(0), vec![]));
    rig.open.store.save_checkpoint().expect("saved");
    send(&rig, "a3");
    send(&rig, "b3");
    assert_eq!(rig.bodies(&by_key(32)), ["b3"]);
    let rig = rig.kill();
    acks(&rig, &first);
    assert_eq!(rig.committed(0), Some(2), "a2 is left");
    assert_eq!(bodies(&rig.pop(&by_key(32))), ["a2", "a3"]);
}

#[test]
fn what_was_popped_before_and_what_was_left_come_in_the_order_of_the_queue() {
    let rig = Rig::new();
    let briefly = |max| PopRequest { invisible_ms: 1000, ..by_key(max) };
    for body in ["a1", "b1", "a2", "c1"] {
        send(&rig, body);
    }
    let first = rig.pop(&by_key(1));
    assert_eq!(bodies(&rig.pop(&briefly(32))), ["b1", "c1"]);
    rig.wait(1000);
    acks(&rig, &first);
    let given = rig.pop(&by_key(32));
    assert_eq!(bodies(&given), ["b1", "a2", "c1"]);
    assert_eq!(given.iter().map(|given| given.count).collect::<Vec<_>>(), [1, 0, 1]);
}

#[test]
fn members_pop_other_keys_before_the_log_shows_what_the_first_one_took() {
    let rig = Rig::new();
    for body in ["a1", "b1", "a2", "c1", "b2"] {
        send(&rig, body);
    }
    let mut given = Vec::new();
    for expected in [["a1", ""], ["b1", "c1"], ["", ""]] {
        // Nothing is applied in between.
        let popped = rig.pop_unsafely(&by_key(if given.is_empty() { 1 } else { 2 }));
        assert_eq!(bodies(&popped), expected.into_iter().filter(|body| !body.is_empty()).collect::<Vec<_>>());
        given.extend(popped);
    }
    rig.open.store.drive();
    assert_eq!(rig.bodies(&by_key(32)), [""; 0]);
    acks(&rig, &given);
    assert_eq!(bodies(&rig.pop(&by_key(32))), ["a2", "b2"]);
}

#[test]
fn a_failing_key_is_given_again_in_order_and_dies_alone() {
    let mut rig = Rig::new();
    for body in ["a1", "b1", "a2", "a3"] {
        send(&rig, body);
    }
    let given = rig.pop(&by_key(3));
    assert_eq!(bodies(&given), ["a1", "b1", "a2"]);
    acks(&rig, &given[1..]);
    for times in 1..=RETRY_MAX {
        rig.wait(60_000);
        send(&rig, &format!("b{}", times + 1));
        let given = rig.pop(&by_key(32));
        assert_eq!(bodies(&given[..1]), ["a1"]);
        assert_eq!((given[0].count, given[0].reconsume_times), (u32::try_from(times).expect("few"), 0));
        // What came of other keys meanwhile, and the later ones of this key behind it.
        let mut rest = bodies(&given[1..]);
        rest.retain(|body| body.starts_with('b'));
        assert_eq!(rest, [format!("b{}", times + 1)]);
        rig = rig.kill();
        for given in &given[1..] {
            if given.body.starts_with('b') {
                assert_eq!(rig.ack(given), Ok(()));
            }
        }
    }
    rig.wait(60_000);
    assert_eq!(rig.stored("%DLQ%g"), ["a1"]);
    assert_eq!(bodies(&rig.pop(&by_key(32))), ["a3"]);
}

#[test]
fn the_same_request_again_gets_the_same_messages() {
    let rig = Rig::new();
    for body in ["a1", "b1", "a2", "b2"] {
        send(&rig, body);
    }
    assert_eq!(bodies(&rig.pop(&attempt("x", 1))), ["a1"]);
    assert_eq!(bodies(&rig.pop(&attempt("y", 1))), ["b1"]);
    rig.open.store.save_checkpoint().expect("saved");
    let rig = rig.kill();
    let again = rig.pop(&attempt("x", 1));
    assert_eq!((bodies(&again), again[0].count), (vec!["a1"], 0));
    let again = rig.pop(&attempt("y", 2));
    assert_eq!((bodies(&again), again[0].count), (vec!["b1", "b2"], 0));
    assert_eq!(rig.bodies(&attempt("z", 32)), [""; 0]);
    acks(&rig, &again);
}

#[test]
fn a_look_ends_where_too_many_wait() {
    let rig = Rig::with_limit(100_000);
    for _ in 0..=LEFT_MAX {
        send(&rig, "a");
    }
    send(&rig, "b");
    let mut given = rig.pop(&by_key(1));
    assert_eq!(bodies(&given), ["a"]);
    assert_eq!(rig.bodies(&by_key(32)), ["b"]);
    send(&rig, "a");
    send(&rig, "c");
    assert_eq!(rig.bodies(&by_key(32)), [""; 0], "one more of the key has no room, and c is behind it");
    let rig = rig.kill();
    assert_eq!(rig.bodies(&by_key(32)), [""; 0]);
    acks(&rig, &given);
    given = rig.pop(&by_key(1));
    assert_eq!(bodies(&given), ["a"]);
    assert_eq!(rig.bodies(&by_key(32)), ["c"]);
    assert_eq!(rig.stored("%RETRY%g_T"), [""; 0], "what keeps its order stays where it is");
}

#[test]
fn messages_without_a_key_keep_their_order_among_themselves() {
    let rig = Rig::new();
    rig.send(0, "one", "t");
    rig.send(0, "two", "t");
    send(&rig, "a1");
    let first = rig.pop(&by_key(1));
    assert_eq!(bodies(&first), ["one"]);
    assert_eq!(rig.bodies(&by_key(32)), ["a1"]);
    acks(&rig, &first);
    assert_eq!(rig.bodies(&by_key(32)), ["two"]);
}

#[test]
fn a_group_may_change_its_order_at_any_time() {
    let rig = Rig::new();
    for body in ["a1", "a2", "b1", "c1"] {
        send(&rig, body);
    }
    let a1 = rig.pop(&by_key(1));
    let b1 = rig.pop(&by_key(1));
    assert_eq!((bodies(&a1), bodies(&b1)), (vec!["a1"], vec!["b1"]));
    let whole = PopRequest { delivery: Delivery::Orderly, messages_max: 2, ..Rig::request() };
    assert_eq!(rig.bodies(&whole), [""; 0], "the order of the queue waits for all keys");
    acks(&rig, &a1);
    acks(&rig, &b1);
    let rest = rig.pop(&whole);
    assert_eq!(bodies(&rest), ["a2", "c1"]);
    assert_eq!(rig.bodies(&by_key(32)), [""; 0], "what was popped in the queue's order keeps all keys back");
    acks(&rig, &rest);
    send(&rig, "d1");
    assert_eq!(rig.bodies(&by_key(32)), ["d1"]);
}

#[derive(Clone, Debug)]
enum Op {
    Send { queue: u32, key: u8 },
    Pop { max: usize, invisible_ms: u32 },
    Ack { handle: prop::sample::Index },
    Renew { handle: prop::sample::Index, invisible_ms: u32 },
    Wait { ms: u64 },
    Save,
    Kill,
    LostPop,
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        6 => (0..2_u32, 0..4_u8).prop_map(|(queue, key)| Op::Send { queue, key }),
        6 => (1..5_usize, 1..1000_u32).prop_map(|(max, invisible_ms)| Op::Pop { max, invisible_ms }),
        6 => index().prop_map(|handle| Op::Ack { handle }),
        1 => (index(), 0..1000_u32).prop_map(|(handle, invisible_ms)| Op::Renew { handle, invisible_ms }),
        4 => (1..600_u64).prop_map(|ms| Op::Wait { ms }),
        1 => Just(Op::Save),
        2 => Just(Op::Kill),
        1 => Just(Op::LostPop),
    ]
}

/// Over all members, redeliveries, kills and dead letters: a message is given when those of its key before it are
/// acknowledged, dead, or given with it; and in the end each is acknowledged or dead.
struct Run {
    rig: Option<Rig>,
    /// Queue and key of each message, in the order of the queue.
    messages: BTreeMap<usize, (u32, u8)>,
    acked: BTreeSet<usize>,
    handles: Vec<Given>,
}

impl Run {
    fn rig(&self) -> &Rig {
        self.rig.as_ref().expect("it is open between operations")
    }

    fn apply(&mut self, op: &Op) {
        let newest = |handles: &[Given], handle: &prop::sample::Index| {
            let recent = handles.len().min(6);
            handles.get(handles.len() - recent + handle.index(recent.max(1))).cloned()
        };
        match op {
            Op::Send { queue, key } => {
                let number = self.messages.len();
                let body = number.to_string();
                let key_text = key.to_string();
                // The last of the keys is none.
                let property = (*key < 3).then_some((keys::SHARDING_KEY, key_text.as_str()));
                self.rig().send_with(*queue, &body, property.as_slice());
                self.messages.insert(number, (*queue, *key));
            }
            Op::Pop { max, invisible_ms } => {
                let request = PopRequest { invisible_ms: *invisible_ms, ..by_key(*max) };
                let given = self.rig().pop(&request);
                self.check(&given);
                self.handles.extend(given);
            }
            Op::Ack { handle } => {
                let Some(given) = newest(&self.handles, handle) else { return };
                if self.rig().ack(&given).is_ok() {
                    self.acked.insert(given.body.parse().expect("a number"));
                }
            }
            Op::Renew { handle, invisible_ms } => {
                let Some(given) = newest(&self.handles, handle) else { return };
                if let Ok(renewed) = self.rig().renew(&given, *invisible_ms, record::Counted::Yes) {
                    self.handles.push(renewed);
                }
            }
            Op::Wait { ms } => self.rig().wait(*ms),
            Op::Save => self.rig().open.store.save_checkpoint().expect("saved"),
            Op::Kill => self.rig = self.rig.take().map(Rig::kill),
            Op::LostPop => {
                self.rig().pop_unsafely(&PopRequest { invisible_ms: 500, ..by_key(2) });
                self.rig = self.rig.take().map(Rig::kill);
            }
        }
    }

    fn check(&self, given: &[Given]) {
        let dead: BTreeSet<usize> =
            self.rig().stored("%DLQ%g").iter().map(|body| body.parse().expect("a number")).collect();
        let mut done: BTreeSet<usize> = self.acked.union(&dead).copied().collect();
        for given in given {
            let number: usize = given.body.parse().expect("a number");
            assert!(!self.acked.contains(&number), "{given:?} was acknowledged");
            let place = self.messages[&number];
            let before = self.messages.range(..number).filter(|(_, other)| **other == place);
            for (other, _) in before {
                assert!(done.contains(other), "{number} of {place:?} is given before {other}");
            }
            done.insert(number);
        }
    }

    fn finish(mut self) {
        for _ in 0..1000 {
            self.rig().wait(2000);
            let given = self.rig().pop(&PopRequest { invisible_ms: 1000, ..by_key(32) });
            self.check(&given);
            for given in &given {
                assert_eq!(self.rig().ack(given), Ok(()));
                self.acked.insert(given.body.parse().expect("a number"));
            }
            if given.is_empty() {
                break;
            }
        }
        let dead = self.rig().stored("%DLQ%g");
        for number in self.messages.keys() {
            let buried = dead.iter().filter(|body| **body == number.to_string()).count();
            let acked = usize::from(self.acked.contains(number));
            assert_eq!(acked + buried, 1, "message {number}, {acked} acks, {buried} dead letters");
        }
        assert_eq!(self.rig().open.pops.in_flight(), 0);
    }
}

proptest! {
    #![proptest_config(crate::fixture::cases(30))]

    #[test]
    fn each_key_keeps_its_order(ops in prop::collection::vec(op(), 1..80)) {
        let mut run = Run {
            rig: Some(Rig::new()),
            messages: BTreeMap::new(),
            acked: BTreeSet::new(),
            handles: Vec::new(),
        };
        for op in &ops {
            run.apply(op);
        }
        run.finish();
    }
}
