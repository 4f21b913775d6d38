//! Random calls of the offsets of a real store, crashes and a failing disk among them, against a model of plain lists.
//! What must hold:
//!
//! - After each call the offsets are those of the model, also while calls are on their way to the disk, and so is what
//!   pulls are told of resets.
//! - No offset that was acknowledged is lost or goes back, but by a reset or when its group or topic is deleted.
//! - After any stop the offsets are those of a start of the records: of all that were acknowledged, or written when
//!   only the process ended, and of some that were not, in order.
//! - What is refused changes nothing.

mod model;

use std::collections::BTreeMap;
use std::future::Future;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::task::Poll;

use gantry_proto::ids::Millis;
use gantry_proto::json;
use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use self::model::{At, MAX, Model, Outcome, Stand, Stands};
use super::*;
use crate::clock::ManualClock;
use crate::fixture;
use crate::store::disk::{Space, offset_path};
use crate::store::fault_disk::{EIO, FaultDisk, HeldSyncs, Op as DiskOp};
use crate::store::layout::Layout;
use crate::store::retain::Retention;
use crate::store::{FlushPolicy, StoreOptions, checkpoint};

const GROUPS: [&str; 2] = ["g", "h"];
const TOPICS: [&str; 2] = ["T", "U"];
const QUEUES: u32 = 2;
const KEEP_MS: u64 = 20_000;
const SEGMENT_BYTES: u64 = 4096;
/// What fails in an [`Op::Trouble`], of the log.
const FAULTS: [DiskOp; 4] = [
    DiskOp::Write { after: 0 },
    DiskOp::Write { after: 100 },
    DiskOp::Write { after: 100_000 },
    DiskOp::Sync,
];

/// One call of the service.
#[derive(Clone, Debug)]
enum Call {
    Commit {
        at: At,
        offset: u64,
    },
    Note {
        at: At,
        offset: u64,
    },
    /// What was noted is logged, without waiting for it.
    LogWaiting,
    Settle,
    /// By an operator; never beyond the end of the queue.
    Reset {
        offsets: BTreeMap<At, u64>,
    },
    /// A consumer pulls.
    Pull {
        at: At,
        from: u64,
    },
    RemoveGroup {
        group: usize,
    },
    RemoveTopic {
        topic: usize,
    },
}

#[derive(Clone, Debug)]
enum Op {
    Send {
        topic: usize,
        queue: u32,
        count: usize,
    },
    Alone {
        call: Call,
    },
    /// Calls at the same time: under the policy `disk` none arrives there before all have begun. From one of them on
    /// there may be no room.
    Together {
        calls: Vec<Call>,
        no_room_from: Option<Index>,
        end: End,
    },
    /// A call while the log fails, and a restart.
    Trouble {
        call: Call,
        fault: usize,
    },
    /// The task writes the file.
    Save,
    /// It cannot, nor can a checkpoint.
    SaveFails,
    /// A checkpoint, and retention some time later.
    KeepHouse {
        after_ms: u64,
    },
    Reopen,
    Crash {
        loss: Loss,
    },
}

/// How calls that are under way end.
#[derive(Clone, Copy, Debug)]
enum End {
    Arrive,
    Crash(Loss),
}

/// What a crash takes.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// The process only.
    Process,
    /// The log from somewhere on that is not on the disk.
    Power { seed: u64 },
}

/// Mostly the same place, so that calls meet.
fn at() -> impl Strategy<Value = At> {
    let any = (0..GROUPS.len(), 0..TOPICS.len(), 0..QUEUES);
    prop_oneof![3 => Just((0, 0, 0)), 2 => any].prop_map(|(group, topic, queue)| At { group, topic, queue })
}

fn call() -> impl Strategy<Value = Call> {
    let offset = || prop_oneof![3 => 0_u64..6, 1 => 0_u64..20];
    prop_oneof![
        6 => (at(), offset()).prop_map(|(at, offset)| Call::Commit { at, offset }),
        6 => (at(), offset()).prop_map(|(at, offset)| Call::Note { at, offset }),
        3 => Just(Call::LogWaiting),
        1 => Just(Call::Settle),
        4 => prop::collection::btree_map(at(), offset(), 1..3).prop_map(|offsets| Call::Reset { offsets }),
        5 => (at(), offset()).prop_map(|(at, from)| Call::Pull { at, from }),
        1 => (0..GROUPS.len()).prop_map(|group| Call::RemoveGroup { group }),
        1 => (0..TOPICS.len()).prop_map(|topic| Call::RemoveTopic { topic }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let loss = || prop_oneof![Just(Loss::Process), any::<u64>().prop_map(|seed| Loss::Power { seed })];
    let end = prop_oneof![3 => Just(End::Arrive), 1 => loss().prop_map(End::Crash)];
    let calls = prop::collection::vec(call(), 1..12);
    let no_room = prop::option::weighted(0.3, any::<Index>());
    prop_oneof![
        4 => (0..TOPICS.len(), 0..QUEUES, 2_usize..8)
            .prop_map(|(topic, queue, count)| Op::Send { topic, queue, count }),
        12 => call().prop_map(|call| Op::Alone { call }),
        4 => (calls, no_room, end)
            .prop_map(|(calls, no_room_from, end)| Op::Together { calls, no_room_from, end }),
        1 => (call(), 0..FAULTS.len()).prop_map(|(call, fault)| Op::Trouble { call, fault }),
        1 => Just(Op::Save),
        1 => Just(Op::SaveFails),
        1 => (0_u64..16_000).prop_map(|after_ms| Op::KeepHouse { after_ms }),
        1 => Just(Op::Reopen),
        1 => loss().prop_map(|loss| Op::Crash { loss }),
    ]
}

type Answer = Pin<Box<dyn Future<Output = Result<(), CommitError>>>>;

fn key(at: At) -> Key {
    Key {
        group: GroupName::internal(GROUPS[at.group]),
        topic: TopicName::internal(TOPICS[at.topic]),
        queue: QueueId::new(at.queue),
    }
}

fn outcome(result: &Result<(), CommitError>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(CommitError::BeyondEnd { .. }) => Outcome::BeyondEnd,
        Err(CommitError::Full { .. }) => Outcome::Full,
        Err(CommitError::Append(_)) => Outcome::Refused,
        Err(other) => panic!("{other}"),
    }
}

struct Run {
    dir: TempDir,
    disk: FaultDisk,
    clock: Arc<ManualClock>,
    policy: FlushPolicy,
    runtime: Runtime,
    /// `None` only while it is opened again.
    offsets: Option<Arc<Offsets>>,
    model: Model,
    /// The end of each queue.
    ends: BTreeMap<(usize, u32), u64>,
}

impl Run {
    fn new(policy: FlushPolicy) -> Self {
        let mut run = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            disk: FaultDisk::default(),
            clock: fixture::clock(),
            policy,
            runtime: tokio::runtime::Builder::new_current_thread().build().expect("a runtime"),
            offsets: None,
            model: Model::default(),
            ends: BTreeMap::new(),
        };
        run.make_room(true);
        run.open();
        run
    }

    fn open(&mut self) {
        let options = fixture::options(self.policy);
        let retention = Retention { keep_ms: KEEP_MS, ..options.retention };
        // Each append asks the disk for room.
        let options = StoreOptions { segment_bytes: SEGMENT_BYTES, allocate_step: 1, retention, ..options };
        let table = OffsetTable::open(&self.dir.path().join("config"), self.clock.clone()).expect("readable");
        let (disk, clock) = (Arc::new(self.disk.clone()), self.clock.clone());
        let store = Store::open(self.dir.path(), &options, disk, clock, vec![table.projection()]);
        let store = Arc::new(store.expect("it opens"));
        self.offsets = Some(Arc::new(Offsets::new(&table, store, Arc::default(), MAX)));
    }

    fn offsets(&self) -> &Arc<Offsets> {
        self.offsets.as_ref().expect("it is open between operations")
    }

    fn make_room(&self, room: bool) {
        self.disk.set_space(Space { total: 1 << 30, available: if room { 1 << 30 } else { 0 } });
    }

    fn end(&self, at: At) -> u64 {
        self.ends.get(&(at.topic, at.queue)).copied().unwrap_or_default()
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Send { topic, queue, count } => {
                let store = Arc::clone(&self.offsets().store);
                self.runtime.block_on(fixture::send(&store, TOPICS[*topic], *queue, *count));
                *self.ends.entry((*topic, *queue)).or_default() += *count as u64;
            }
            Op::Alone { call } => self.alone(call),
            Op::Together { calls, no_room_from, end } => self.together(calls, *no_room_from, *end),
            Op::Trouble { call, fault } => self.trouble(call, FAULTS[*fault]),
            Op::Save => self.save(|offsets| offsets.shared.save()),
            Op::SaveFails => {
                let in_the_way = self.dir.path().join("config/consumerOffset.json.tmp");
                std::fs::create_dir_all(&in_the_way).expect("made");
                // They fail if there is something to write.
                let _ = (self.offsets().shared.save(), self.offsets().store.keep_house());
                std::fs::remove_dir(&in_the_way).expect("removed");
            }
            Op::KeepHouse { after_ms } => {
                self.clock.advance(*after_ms);
                self.save(|offsets| offsets.store.keep_house());
            }
            Op::Reopen => self.reopen(),
            Op::Crash { loss } => self.crash(None, *loss, self.model.given()),
        }
        self.check();
    }

    /// Begins a call, and tells how it should end.
    fn begin(&mut self, call: &Call) -> (Outcome, Answer) {
        let offsets = Arc::clone(self.offsets());
        match call.clone() {
            Call::Commit { at, offset } => (
                self.model.commit(at, offset, self.end(at)),
                Box::pin(async move { offsets.commit(key(at), QueueOffset::new(offset)).await }),
            ),
            Call::Note { at, offset } => (
                self.model.note(at, offset, self.end(at)),
                Box::pin(async move { offsets.note(key(at), QueueOffset::new(offset)) }),
            ),
            Call::LogWaiting => (self.model.log_waiting(), Box::pin(async move { offsets.log_waiting() })),
            Call::Settle => (self.model.settle(), Box::pin(async move { offsets.settle().await })),
            Call::Reset { offsets: wanted } => {
                let within = |(at, offset): (At, u64)| (at, offset.min(self.end(at)));
                let wanted: BTreeMap<_, _> = wanted.into_iter().map(within).collect();
                let outcome = self.model.reset(&wanted);
                let wanted = wanted.into_iter().map(|(at, offset)| (key(at), QueueOffset::new(offset)));
                (outcome, Box::pin(async move { offsets.reset(wanted.collect()).await }))
            }
            Call::Pull { at, from } => {
                let told = self.model.pull(at, from);
                let heard = offsets.take_reset(&key(at), QueueOffset::new(from));
                assert_eq!(heard.map(QueueOffset::get), told, "what a pull of {at:?} is told");
                (Outcome::Done, Box::pin(async { Ok(()) }))
            }
            Call::RemoveGroup { group } => {
                let name = GroupName::internal(GROUPS[group]);
                (self.model.remove_group(group), Box::pin(async move { offsets.remove_group(&name).await }))
            }
            Call::RemoveTopic { topic } => {
                let name = TopicName::internal(TOPICS[topic]);
                (self.model.remove_topic(topic), Box::pin(async move { offsets.remove_topic(&name).await }))
            }
        }
    }

    /// Something that writes the file if it lacks anything.
    fn save(&mut self, save: impl FnOnce(&Offsets) -> io::Result<()>) {
        let is_written = self.offsets().shared.table().is_dirty();
        save(self.offsets()).expect("the disk is well");
        self.model.saved(is_written);
    }

    /// Waits until everything that was logged is applied.
    fn arrive(&mut self) {
        let end = PhyOffset::new(self.offsets().logged_end.load(Ordering::Acquire));
        let store = Arc::clone(&self.offsets().store);
        self.runtime.block_on(store.dispatched(end)).expect("the disk is well");
        if self.policy == FlushPolicy::Disk {
            self.model.kept = self.model.given();
        }
    }

    fn alone(&mut self, call: &Call) {
        let (expected, answer) = self.begin(call);
        let result = self.runtime.block_on(answer);
        assert_eq!(outcome(&result), expected, "{result:?}");
        self.arrive();
        if let Call::RemoveTopic { topic } = call {
            self.save(|offsets| offsets.store.remove_topic(TOPICS[*topic]));
            self.ends.retain(|(of, _), _| of != topic);
        }
    }

    fn together(&mut self, calls: &[Call], no_room_from: Option<Index>, end: End) {
        let held = (self.policy == FlushPolicy::Disk).then(|| self.disk.hold_syncs("commitlog"));
        self.model.is_held = held.is_some();
        let no_room_from = no_room_from.map_or(calls.len(), |index| index.index(calls.len()));
        let mut under_way = Vec::new();
        for (number, call) in calls.iter().enumerate() {
            self.model.refuses = number >= no_room_from;
            self.make_room(!self.model.refuses);
            let (expected, mut answer) = self.begin(call);
            let now = std::future::poll_fn(|context| Poll::Ready(answer.as_mut().poll(context)));
            match self.runtime.block_on(now) {
                Poll::Ready(result) => assert_eq!(outcome(&result), expected, "{call:?}: {result:?}"),
                Poll::Pending => under_way.push((expected, answer)),
            }
            self.check();
        }
        self.model.refuses = false;
        self.make_room(true);
        match end {
            End::Arrive => {
                drop(held);
                for (expected, answer) in under_way {
                    let result = self.runtime.block_on(answer);
                    assert_eq!(outcome(&result), expected, "{result:?}");
                }
                self.model.is_held = false;
                self.model.apply();
                self.arrive();
            }
            End::Crash(loss) => {
                drop(under_way);
                let least = if held.is_some() { self.model.kept } else { self.model.given() };
                self.crash(held, loss, least);
            }
        }
    }

    /// A call while the log fails; what it was to change may have happened or not.
    fn trouble(&mut self, call: &Call, fault: DiskOp) {
        let before = self.model.given();
        self.disk.fail(fault, "commitlog", EIO);
        self.model.is_held = true;
        let (_, answer) = self.begin(call);
        let result = self.runtime.block_on(answer);
        let logged = self.model.given() > before;
        let is_kept = logged && result.is_ok() && !matches!(call, Call::LogWaiting);
        // Under `memory` it was written: only a power loss could take it.
        assert!(
            !is_kept || self.policy == FlushPolicy::Memory && fault == DiskOp::Sync,
            "{call:?} ended well"
        );
        let least = if is_kept { self.model.given() } else { before };
        self.crash(None, Loss::Process, least);
    }

    fn reopen(&mut self) {
        // As its task does.
        let logged = self.offsets().log_waiting();
        assert_eq!(outcome(&logged), self.model.log_waiting());
        self.arrive();
        self.save(|offsets| offsets.shared.save());
        self.save(|offsets| offsets.store.close());
        self.offsets = None;
        self.restart(self.model.kept, Loss::Process);
    }

    /// The end of the process, or of the machine. `least` records survive the former.
    fn crash(&mut self, held: Option<HeldSyncs>, loss: Loss, least: usize) {
        // The flusher must not flush what it was not asked for yet.
        self.disk.fail(DiskOp::Sync, "commitlog", EIO);
        drop(held);
        let offsets = self.offsets.take().expect("it is open");
        let flushed = offsets.store.log().marks().flushed.get().get();
        let given = offsets.logged_end.load(Ordering::Acquire).max(offsets.store.max_offset().get());
        drop(Arc::into_inner(offsets).expect("nobody else has it"));
        self.disk.heal();
        let least = match loss {
            Loss::Process => least,
            Loss::Power { seed } => {
                // An earlier life may have flushed more than this one knows of; its checkpoint tells.
                let known = checkpoint::load(&Layout::new(self.dir.path())).expect("readable");
                let flushed = flushed.max(known.map_or(0, |known| known.flushed));
                self.cut(fastrand::Rng::with_seed(seed).u64(flushed..=given.max(flushed)));
                if self.policy == FlushPolicy::Memory {
                    self.model.forgive();
                }
                least.min(self.model.kept)
            }
        };
        self.restart(least, loss);
    }

    /// Makes the log zero from `at` on.
    fn cut(&self, at: u64) {
        // Before the first record there is none.
        let Ok(log) = std::fs::read_dir(self.dir.path().join("commitlog")) else { return };
        for entry in log {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("a number");
            let start: u64 = name.parse().expect("a number");
            let from = at.saturating_sub(start);
            if from < SEGMENT_BYTES {
                let zeroes = vec![0; usize::try_from(SEGMENT_BYTES - from).expect("small")];
                let path = offset_path(&self.dir.path().join("commitlog"), start);
                let file = std::fs::File::options().write(true).open(path).expect("it is there");
                file.write_all_at(&zeroes, from).expect("written");
            }
        }
    }

    fn restart(&mut self, least: usize, loss: Loss) {
        self.open();
        let is_lossy = matches!(loss, Loss::Power { .. }) && self.policy == FlushPolicy::Memory;
        for (topic, queue) in queues() {
            let found = self.found_end(topic, queue);
            let known = self.ends.entry((topic, queue)).or_default();
            assert!(
                found == *known || found < *known && is_lossy,
                "{topic} {queue} ends at {found}, not {known}"
            );
            *known = found;
        }
        let found = self.found();
        let ends = self.ends.clone();
        let end = |at: At| ends.get(&(at.topic, at.queue)).copied().unwrap_or_default();
        if let Err(wrong) = self.model.restart(least, &found, end) {
            panic!("{wrong}");
        }
        if self.policy == FlushPolicy::Disk {
            // A start makes what it finds durable.
            self.model.kept = self.model.given();
        }
    }

    fn found_end(&self, topic: usize, queue: u32) -> u64 {
        let queue = self.offsets().store.find_queue(TOPICS[topic], QueueId::new(queue));
        queue.map_or(0, |queue| queue.max().get())
    }

    /// What the file would say.
    fn found(&self) -> Stands {
        let file = {
            let mut table = self.offsets().shared.table();
            let dirty = table.is_dirty();
            let file = table.encode(Some(PhyOffset::ZERO), Millis::ZERO);
            if dirty {
                table.mark_dirty();
            }
            json::parse(&file).expect("readable")
        };
        let mut found = Stands::new();
        for at in places() {
            let name = format!("{}@{}", TOPICS[at.topic], GROUPS[at.group]);
            let Some(offset) = file["offsetTable"][&name][at.queue.to_string()].as_u64() else { continue };
            let resets = file["gantryResets"][&name].as_array();
            let owed = resets.is_some_and(|queues| queues.iter().any(|queue| *queue == at.queue));
            found.insert(at, Stand { offset, owed });
        }
        found
    }

    fn check(&self) {
        let offsets = self.offsets();
        let known = self.model.known();
        for at in places() {
            let (group, topic, queue) = (GROUPS[at.group], TOPICS[at.topic], QueueId::new(at.queue));
            let found = offsets.get(group, topic, queue).map(QueueOffset::get);
            assert_eq!(found, self.model.get(at), "{at:?}");
            assert_eq!(offsets.is_only_noted(group, topic, queue), self.model.is_only_noted(at), "{at:?}");
        }
        for (at, promised) in self.model.promised() {
            let found = offsets.get(GROUPS[at.group], TOPICS[at.topic], QueueId::new(at.queue));
            let found = found.map(QueueOffset::get);
            assert!(found >= Some(promised), "{at:?} stands at {found:?}; {promised} was acknowledged");
        }
        assert_eq!(offsets.shared.table().len(), known.len());
        assert_eq!(self.found(), self.model.stands(), "the file");
        for (number, group) in GROUPS.iter().enumerate() {
            let of_group = offsets.of_group(group).into_iter();
            let found: Vec<_> =
                of_group.map(|(topic, queue, offset)| (topic.to_string(), queue, offset)).collect();
            let of_group = known.iter().filter(|at| at.group == number);
            let wanted: Vec<_> = of_group
                .map(|at| {
                    let offset = self.model.get(*at).expect("it is known");
                    (TOPICS[at.topic].to_owned(), QueueId::new(at.queue), QueueOffset::new(offset))
                })
                .collect();
            assert_eq!(found, wanted, "{group}");
        }
        for (number, topic) in TOPICS.iter().enumerate() {
            let found: Vec<_> = offsets.groups_of_topic(topic).iter().map(ToString::to_string).collect();
            let has = |group: &usize| known.iter().any(|at| (at.group, at.topic) == (*group, number));
            let wanted: Vec<_> = (0..GROUPS.len()).filter(has).map(|group| GROUPS[group]).collect();
            assert_eq!(found, wanted, "{topic}");
        }
        for (topic, queue) in queues() {
            let known = self.ends.get(&(topic, queue)).copied().unwrap_or_default();
            assert_eq!(self.found_end(topic, queue), known, "the end of {topic} {queue}");
        }
    }
}

fn queues() -> impl Iterator<Item = (usize, u32)> {
    (0..TOPICS.len()).flat_map(|topic| (0..QUEUES).map(move |queue| (topic, queue)))
}

fn places() -> impl Iterator<Item = At> {
    (0..GROUPS.len()).flat_map(|group| queues().map(move |(topic, queue)| At { group, topic, queue }))
}

fn run(policy: FlushPolicy, ops: &[Op]) {
    let mut run = Run::new(policy);
    for op in ops {
        run.apply(op);
    }
    run.apply(&Op::Reopen);
}

proptest! {
    #![proptest_config(crate::fixture::cases(64))]

    #[test]
    fn offsets_under_disk_are_what_was_acknowledged(ops in prop::collection::vec(op(), 1..50)) {
        run(FlushPolicy::Disk, &ops);
    }

    #[test]
    fn offsets_under_memory_are_what_was_acknowledged(ops in prop::collection::vec(op(), 1..50)) {
        run(FlushPolicy::Memory, &ops);
    }
}
