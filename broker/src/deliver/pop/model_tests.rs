//! Random pops, acks, changes of the invisible time, waits, checkpoints and kills over a real store, against a plain
//! list of the messages. What must hold:
//!
//! - A message that was acknowledged, and the ack answered, is never given again, whatever happens afterwards.
//! - A message that was given, and the answer came, is nobody else's until its lease ends.
//! - No message is lost: in the end each one was acknowledged, is given to whoever asks, or is a dead letter, once.
//! - A message is dead only after it was given [`RETRY_MAX`] + 1 times.
//! - The group's offset never passes a message that is neither acknowledged nor stored again.
//! - Who wants messages of one tag gets no others, and takes none away from those who want them.
//! - An ack is refused if, and only if, the message may have been given to somebody else since.
//!
//! A pop whose answer a kill took may count or not.

use std::collections::BTreeMap;

use gantry_proto::ids::{Millis, QueueId};
use proptest::prelude::*;

use super::record::Counted;
use super::tests::{Given, RETRY_MAX, Rig};
use super::*;
use crate::deliver::filter::Filter;

#[derive(Clone, Debug)]
enum Op {
    /// A message for a queue.
    Send { queue: u32 },
    /// A pop of so many, invisible for so long, by a member that wants one tag of two, or everything.
    Pop { max: usize, invisible_ms: u32, tag: Option<bool> },
    /// An ack with one of the handles that were ever given.
    Ack { handle: prop::sample::Index },
    /// One of the newest: those mostly hold still.
    AckNew { handle: prop::sample::Index },
    /// Another invisible time for one of the newest.
    Renew { handle: prop::sample::Index, invisible_ms: u32 },
    /// Time goes by, and what is due is done.
    Wait { ms: u64 },
    /// Time goes by, and the task does not come to its turn.
    Stall { ms: u64 },
    /// A checkpoint.
    Save,
    /// The process is killed.
    Kill,
    /// It is killed before a pop is answered.
    LostPop { max: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (0..2_u32).prop_map(|queue| Op::Send { queue }),
        5 => (1..5_usize, 1..1000_u32, prop::option::of(any::<bool>()))
            .prop_map(|(max, invisible_ms, tag)| Op::Pop { max, invisible_ms, tag }),
        2 => index().prop_map(|handle| Op::Ack { handle }),
        5 => index().prop_map(|handle| Op::AckNew { handle }),
        2 => (index(), 0..1000_u32).prop_map(|(handle, invisible_ms)| Op::Renew { handle, invisible_ms }),
        4 => (1..600_u64).prop_map(|ms| Op::Wait { ms }),
        1 => (1..600_u64).prop_map(|ms| Op::Stall { ms }),
        1 => Just(Op::Save),
        2 => Just(Op::Kill),
        1 => (1..5_usize).prop_map(|max| Op::LostPop { max }),
    ]
}

/// What is known of one message.
#[derive(Clone, Debug, Default)]
struct Message {
    queue: u32,
    offset: u64,
    acked: bool,
    /// How often it was given, with pops whose answer was lost.
    given: i32,
    /// Until when it is somebody's.
    held_until: Option<Millis>,
}

struct Run {
    /// `None` only while it is opened again.
    rig: Option<Rig>,
    messages: BTreeMap<String, Message>,
    next_offset: [u64; 2],
    /// Every handle ever given.
    handles: Vec<Given>,
}

impl Run {
    fn new() -> Self {
        Self { rig: Some(Rig::new()), messages: BTreeMap::new(), next_offset: [0; 2], handles: Vec::new() }
    }

    fn rig(&self) -> &Rig {
        self.rig.as_ref().expect("it is open between operations")
    }

    fn now(&self) -> Millis {
        self.rig().open.store.clock().now()
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Send { queue } => self.send(*queue),
            Op::Pop { max, invisible_ms, tag } => self.pop(*max, *invisible_ms, tag.map(tag_of)),
            Op::Ack { handle } => self.ack(handle.index(self.handles.len().max(1))),
            Op::AckNew { handle } => {
                let newest = self.handles.len().min(6);
                self.ack((self.handles.len() - newest) + handle.index(newest.max(1)));
            }
            Op::Renew { handle, invisible_ms } => {
                let newest = self.handles.len().min(6);
                self.renew((self.handles.len() - newest) + handle.index(newest.max(1)), *invisible_ms);
            }
            Op::Wait { ms } => self.rig().wait(*ms),
            Op::Stall { ms } => self.rig().clock.advance(*ms),
            Op::Save => self.rig().open.store.save_checkpoint().expect("saved"),
            Op::Kill => self.rig = self.rig.take().map(Rig::kill),
            Op::LostPop { max } => {
                let request = PopRequest { messages_max: *max, invisible_ms: 500, ..Rig::request() };
                for given in self.rig().pop_unsafely(&request) {
                    self.messages.get_mut(&given.body).expect("known").given += 1;
                }
                self.rig = self.rig.take().map(Rig::kill);
            }
        }
        self.check_offsets();
    }

    fn send(&mut self, queue: u32) {
        let body = self.messages.len().to_string();
        self.rig().send(queue, &body, tag_of(self.messages.len().is_multiple_of(2)));
        let offset = &mut self.next_offset[queue as usize];
        self.messages.insert(body, Message { queue, offset: *offset, ..Message::default() });
        *offset += 1;
    }

    fn pop(&mut self, max: usize, invisible_ms: u32, tag: Option<&str>) {
        let now = self.now();
        let (filter, others) = match tag {
            Some(tag) => {
                (Filter::tags(tag).expect("a filter"), Some(Filter::tags("even || odd").expect("a filter")))
            }
            None => (Filter::All, None),
        };
        let request = PopRequest { messages_max: max, invisible_ms, filter, others, ..Rig::request() };
        let given = self.rig().pop(&request);
        assert!(given.len() <= max);
        for given in given {
            let message = self.messages.get_mut(&given.body).expect("a message that was sent");
            let number: usize = given.body.parse().expect("a number");
            assert!(
                tag.is_none_or(|tag| tag == tag_of(number.is_multiple_of(2))),
                "{given:?} is not {tag:?}"
            );
            assert!(!message.acked, "{} was acknowledged and is given again", given.body);
            let held = message.held_until.is_some_and(|until| until > now);
            assert!(
                !held,
                "{} is somebody's until {:?}, and is given at {now}",
                given.body, message.held_until
            );
            message.given += 1;
            assert!(given.reconsume_times < message.given, "{given:?} was given {} times", message.given);
            message.held_until = Some(given.lease.ends());
            self.handles.push(given);
        }
    }

    fn ack(&mut self, handle: usize) {
        let Some(given) = self.handles.get(handle).cloned() else { return };
        let acked = self.rig().ack(&given);
        let now = self.now();
        let is_newest = self.is_newest(&given);
        let message = self.messages.get_mut(&given.body).expect("known");
        match acked {
            // A lease that was replaced may be taken for a repeated ack once the message is done.
            Ok(()) => {
                assert!(message.acked || is_newest, "{given:?} no longer counts");
                message.acked = true;
            }
            Err(why) => {
                let counts = is_newest && given.lease.ends() > now;
                assert!(!counts, "{given:?} was refused: {why}");
            }
        }
    }

    fn renew(&mut self, handle: usize, invisible_ms: u32) {
        let Some(given) = self.handles.get(handle).cloned() else { return };
        let now = self.now();
        match self.rig().renew(&given, invisible_ms, Counted::Yes) {
            Ok(renewed) => {
                assert!(self.is_newest(&given));
                let message = self.messages.get_mut(&given.body).expect("known");
                assert!(!message.acked);
                message.held_until = Some(renewed.lease.ends());
                self.handles.push(renewed);
            }
            Err(why) => {
                let message = &self.messages[&given.body];
                let counts = self.is_newest(&given) && given.lease.ends() > now && !message.acked;
                assert!(!counts, "{given:?} was refused: {why}");
            }
        }
    }

    /// Whether no other handle of the message is newer. Two of one lease are one.
    fn is_newest(&self, given: &Given) -> bool {
        let newest = self.handles.iter().rev().find(|other| other.body == given.body);
        newest.is_some_and(|newest| {
            (&newest.key, newest.offset, newest.lease) == (&given.key, given.offset, given.lease)
        })
    }

    /// The group's offset in the topic's own queues.
    fn check_offsets(&self) {
        for queue in 0..2 {
            let committed = self.rig().open.offsets.get("g", "T", QueueId::new(queue));
            let committed = committed.map_or(0, QueueOffset::get);
            for (body, message) in self.messages.iter().filter(|(_, message)| message.queue == queue) {
                let may_be_done = message.acked || message.given > 0;
                assert!(may_be_done || message.offset >= committed, "{body} is passed over: {message:?}");
            }
        }
    }

    /// Everything that is left is given until it is acknowledged.
    fn finish(mut self) {
        for _ in 0..=RETRY_MAX + 1 {
            self.rig().wait(2000);
            for _ in 0..200 {
                let before = self.handles.len();
                self.pop(32, 1000, None);
                if self.handles.len() == before {
                    break;
                }
                for handle in before..self.handles.len() {
                    self.ack(handle);
                }
            }
        }
        let dead = self.rig().stored("%DLQ%g");
        for (body, message) in &self.messages {
            let buried = dead.iter().filter(|dead| *dead == body).count();
            assert_eq!(usize::from(message.acked) + buried, 1, "{body}: {message:?}, {buried} dead letters");
            assert!(buried == 0 || message.given > RETRY_MAX, "{body} was given {} times", message.given);
        }
        assert_eq!(self.rig().open.pops.in_flight(), 0);
        assert_eq!((self.rig().committed(0), self.rig().committed(1)), {
            let end = |queue: usize| (self.next_offset[queue] > 0).then_some(self.next_offset[queue]);
            (end(0), end(1))
        });
    }
}

fn tag_of(is_even: bool) -> &'static str {
    if is_even { "even" } else { "odd" }
}

fn run(ops: &[Op]) {
    let mut run = Run::new();
    for op in ops {
        run.apply(op);
    }
    run.finish();
}

proptest! {
    #![proptest_config(crate::fixture::cases(30))]

    #[test]
    fn nothing_acknowledged_comes_again_and_nothing_else_is_lost(ops in prop::collection::vec(op(), 1..60)) {
        run(&ops);
    }
}
