//! Random operations on a small store, crashes among them, against a model of plain lists.
//!
//! A crash drops the store and then damages what the disk was never told to keep: bytes of the log behind the
//! flushed mark are cut off, zeroed by the page or flipped, entries of consume queues behind the checkpoint are
//! zeroed. Whatever was flushed must be there after that, with the same offsets and content; what was not may be
//! there as it was sent, or not at all.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;

use fastrand::Rng;
use gantry_proto::ids::QueueOffset;
use gantry_proto::record::RecordView;
use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::append::Log;
use super::dedup::DedupKey;
use super::disk::offset_path;
use super::fault_disk::{EIO, FaultDisk, Op as DiskOp};
use super::fault_tests::Behind;
use super::tests::{options, push};
use super::*;
use crate::clock::ManualClock;

const TOPICS: [&str; 2] = ["T", "Other"];
const QUEUES: u32 = 2;
const KEEP_MS: u64 = 20_000;
/// What fails in a [`Op::Trouble`].
const FAULTS: [(DiskOp, &str); 15] = [
    (DiskOp::Write { after: 0 }, "commitlog"),
    (DiskOp::Write { after: 100 }, "commitlog"),
    (DiskOp::Sync, "commitlog"),
    (DiskOp::Allocate, "commitlog"),
    (DiskOp::Open, "commitlog"),
    (DiskOp::Write { after: 0 }, "consumequeue"),
    (DiskOp::Sync, "consumequeue"),
    (DiskOp::Open, "consumequeue"),
    (DiskOp::Write { after: 0 }, "index"),
    (DiskOp::Sync, "index"),
    (DiskOp::Open, "index"),
    (DiskOp::Write { after: 0 }, "dedup"),
    (DiskOp::Sync, "dedup"),
    (DiskOp::Open, "dedup"),
    (DiskOp::Replace, "checkpoint"),
];
/// What a disk loses at once.
const PAGE: u64 = 512;

#[derive(Clone, Debug)]
enum Op {
    /// Messages of these queues and body lengths.
    Append { batch: Vec<(usize, u32, usize)>, then: Then },
    /// A checkpoint, and retention some time later.
    KeepHouse { after_ms: u64 },
    /// Delete a topic of which everything is dispatched.
    RemoveTopic { topic: usize },
    /// The disk fails at something while messages are appended and a checkpoint is taken.
    Trouble { fault: usize, batch: Vec<(usize, u32, usize)> },
    /// Close and open.
    Reopen,
    /// Drop, damage, open.
    Crash { damage: Damage, seed: u64 },
}

/// How far an append gets before the next operation.
#[derive(Clone, Copy, Debug)]
enum Then {
    /// Into memory.
    Stage,
    /// Into the page cache.
    Write,
    /// As far as the policy asks for.
    Settle,
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    None,
    Cut,
    ZeroPages,
    FlipBit,
}

fn op() -> impl Strategy<Value = Op> {
    let message = (0..TOPICS.len(), 0..QUEUES, 0_usize..300);
    let then = prop_oneof![Just(Then::Stage), Just(Then::Write), Just(Then::Settle), Just(Then::Settle)];
    let damage =
        prop_oneof![Just(Damage::None), Just(Damage::Cut), Just(Damage::ZeroPages), Just(Damage::FlipBit)];
    let batch = || prop::collection::vec(message.clone(), 1..8);
    prop_oneof![
        8 => (batch(), then).prop_map(|(batch, then)| Op::Append { batch, then }),
        2 => (0..FAULTS.len(), batch()).prop_map(|(fault, batch)| Op::Trouble { fault, batch }),
        1 => (0..TOPICS.len()).prop_map(|topic| Op::RemoveTopic { topic }),
        2 => (0_u64..8_000).prop_map(|after_ms| Op::KeepHouse { after_ms }),
        1 => Just(Op::Reopen),
        2 => (damage, any::<u64>()).prop_map(|(damage, seed)| Op::Crash { damage, seed }),
    ]
}

/// A message as it was appended.
#[derive(Clone, Debug)]
struct Sent {
    topic: &'static str,
    queue: u32,
    placed: Placed,
    store_at: Millis,
    body: Vec<u8>,
    key: String,
}

impl Sent {
    fn end(&self) -> PhyOffset {
        self.placed.phy + u64::from(self.placed.size)
    }
}

struct Run {
    dir: tempfile::TempDir,
    disk: FaultDisk,
    clock: Arc<ManualClock>,
    policy: FlushPolicy,
    /// Whether a projection wants the whole log at each start.
    behind: bool,
    runtime: Runtime,
    /// `None` only while it is opened again.
    store: Option<Store>,
    /// In order of the log; without what a crash took.
    sent: Vec<Sent>,
    number: usize,
}

impl Run {
    fn new(policy: FlushPolicy, behind: bool) -> Self {
        let mut run = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            disk: FaultDisk::default(),
            clock: Arc::new(ManualClock::new(Millis::new(1_700_000_000_000))),
            policy,
            behind,
            runtime: tokio::runtime::Builder::new_current_thread().build().expect("a runtime"),
            store: None,
            sent: Vec::new(),
            number: 0,
        };
        run.open();
        run
    }

    fn open(&mut self) {
        let retention =
            Retention { keep_ms: KEEP_MS, disk_high_ratio: 2.0, ..options(self.policy).retention };
        let options = StoreOptions { retention, ..options(self.policy) };
        let (disk, clock) = (Arc::new(self.disk.clone()), Arc::clone(&self.clock));
        let projections: Vec<Box<dyn Projection>> =
            if self.behind { vec![Box::new(Behind(PhyOffset::new(1)))] } else { Vec::new() };
        self.store =
            Some(Store::open(self.dir.path(), &options, disk, clock, projections).expect("it opens"));
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("it is open between operations")
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Append { batch, then } => self.append(batch, *then),
            Op::KeepHouse { after_ms } => {
                self.clock.advance(*after_ms);
                self.store().keep_house().expect("the disk is well");
                self.forget_expired();
            }
            Op::RemoveTopic { topic } => self.remove_topic(TOPICS[*topic]),
            Op::Trouble { fault, batch } => self.trouble(FAULTS[*fault], batch),
            Op::Reopen => {
                let store = self.store.take().expect("it is open");
                store.close().expect("the disk is well");
                let end = store.max_offset();
                drop(store);
                self.open();
                self.forget_lost(end);
            }
            Op::Crash { damage, seed } => {
                let flushed = self.crash(*damage, *seed);
                self.open();
                self.forget_lost(flushed);
            }
        }
        self.check();
    }

    /// Forgets what retention took; it may only take what is old.
    fn forget_expired(&mut self) {
        let (min, now) = (self.store().min_offset(), self.store().clock().now());
        let (gone, kept): (Vec<Sent>, _) =
            std::mem::take(&mut self.sent).into_iter().partition(|sent| sent.placed.phy < min);
        assert!(gone.iter().all(|sent| now.since(sent.store_at) > KEEP_MS), "retention took a young message");
        self.sent = kept;
    }

    fn append(&mut self, messages: &[(usize, u32, usize)], then: Then) {
        let end = self.stage(messages).expect("the disk is well");
        match then {
            Then::Stage => {}
            Then::Write => self.store().write_through(),
            Then::Settle => self.settle(end).expect("the disk is well"),
        }
    }

    /// Appends messages; they count as sent.
    fn stage(&mut self, messages: &[(usize, u32, usize)]) -> Result<PhyOffset, AppendError> {
        let mut batch = Batch::new();
        let mut sent = Vec::new();
        for (topic, queue, len) in messages {
            let body = format!("{:<len$}", self.number).into_bytes();
            let (topic, key) = (TOPICS[*topic], format!("key-{}", self.number));
            self.number += 1;
            push(self.store(), &mut batch, topic, *queue, &body, &key);
            sent.push((topic, *queue, body, key));
        }
        let appended = self.store().append(&mut batch)?;
        for ((topic, queue, body, key), placed) in sent.into_iter().zip(batch.placed().iter().copied()) {
            self.sent.push(Sent { topic, queue, placed, store_at: appended.store_at, body, key });
        }
        Ok(appended.end)
    }

    fn settle(&self, end: PhyOffset) -> Result<(), Poisoned> {
        self.store().drive();
        self.runtime.block_on(self.store().settled(end))
    }

    fn remove_topic(&mut self, topic: &str) {
        self.store().write_through();
        let end = self.store().max_offset();
        self.settle(end).expect("the disk is well");
        self.runtime.block_on(self.store().dispatched(end)).expect("the disk is well");
        self.store().remove_topic(topic).expect("the disk is well");
        self.sent.retain(|sent| sent.topic != topic);
    }

    /// Works while the disk fails at something. A log that stopped is opened again.
    fn trouble(&mut self, (op, path): (DiskOp, &'static str), messages: &[(usize, u32, usize)]) {
        self.disk.fail(op, path, EIO);
        let settled = self.stage(messages).map(|end| self.settle(end));
        // Some of it may fail; what it leaves must be as good as nothing done.
        let _ = self.store().keep_house();
        self.disk.heal();
        self.forget_expired();
        let stopped = self.store().failure().is_some();
        assert!(stopped || !matches!(settled, Ok(Err(_))), "a send failed, and the log goes on");
        // A file of which a flush failed is not believed before the next start.
        if stopped || self.store().keep_house().is_err() {
            let flushed = self.crash(Damage::None, 0);
            self.open();
            self.forget_lost(flushed);
        }
    }

    /// Drops the store as the end of the machine does. Gives the mark below which the disk has everything.
    fn crash(&mut self, damage: Damage, seed: u64) -> PhyOffset {
        // The flusher must not flush what it was not asked for yet.
        self.disk.fail(DiskOp::Sync, "commitlog", EIO);
        let store = self.store.take().expect("it is open");
        let log: Arc<Log> = Arc::clone(&store.log);
        drop(store);
        self.disk.heal();
        let written = log.marks().written.get().get();
        // An earlier life may have flushed more than this one knows of; its checkpoint tells.
        let known = checkpoint::load(&Layout::new(self.dir.path())).expect("readable");
        let flushed = log.marks().flushed.get().get().max(known.map_or(0, |known| known.flushed));
        let mut rng = Rng::with_seed(seed);
        if flushed < written {
            match damage {
                Damage::None => return PhyOffset::new(written),
                Damage::Cut => self.change_log(rng.u64(flushed..written)..written, |bytes| bytes.fill(0)),
                Damage::ZeroPages => {
                    for page in flushed / PAGE..written.div_ceil(PAGE) {
                        let part = (page * PAGE).max(flushed)..((page + 1) * PAGE).min(written);
                        if rng.bool() {
                            self.change_log(part, |bytes| bytes.fill(0));
                        }
                    }
                }
                Damage::FlipBit => {
                    let at = rng.u64(flushed..written);
                    let bit = rng.u8(..8);
                    self.change_log(at..at + 1, |bytes| bytes[0] ^= 1 << bit);
                }
            }
        }
        self.lose_queue_entries(&mut rng);
        PhyOffset::new(flushed)
    }

    /// Changes bytes of the log, which may lie in several files.
    fn change_log(&self, range: std::ops::Range<u64>, mut change: impl FnMut(&mut [u8])) {
        let size = options(self.policy).segment_bytes;
        let mut at = range.start;
        while at < range.end {
            let start = at - at % size;
            let end = range.end.min(start + size);
            let path = offset_path(&self.dir.path().join("commitlog"), start);
            if let Ok(file) = std::fs::File::options().read(true).write(true).open(path) {
                let mut bytes = vec![0; usize::try_from(end - at).expect("small")];
                file.read_exact_at(&mut bytes, at - start).expect("files have their length");
                change(&mut bytes);
                file.write_all_at(&bytes, at - start).expect("written");
            }
            at = end;
        }
    }

    /// Zeroes some queue entries that no checkpoint says to be on the disk.
    fn lose_queue_entries(&self, rng: &mut Rng) {
        let positions = checkpoint::load(&Layout::new(self.dir.path())).expect("readable");
        let durable = positions.map_or(0, |positions| positions.start(&["queues"]).get());
        for (topic, queue) in queues() {
            let dir = self.dir.path().join("consumequeue").join(topic).join(queue.to_string());
            let Ok(files) = std::fs::read_dir(dir) else { continue };
            for path in files.map(|entry| entry.expect("an entry").path()) {
                let mut bytes = std::fs::read(&path).expect("readable");
                for entry in bytes.chunks_exact_mut(20) {
                    let phy = u64::from_be_bytes(*entry.first_chunk().expect("20 bytes"));
                    if phy >= durable && rng.bool() {
                        entry.fill(0);
                    }
                }
                std::fs::write(&path, bytes).expect("written");
            }
        }
    }

    /// Forgets what is gone; nothing that ends at or below `safe` may be.
    fn forget_lost(&mut self, safe: PhyOffset) {
        let store = self.store.as_ref().expect("it is open");
        self.sent.retain(|sent| {
            let there = store.record_at(sent.placed.phy).is_ok_and(|record| {
                RecordView::parse(&record).is_ok_and(|view| view.properties().uniq_key() == Some(&*sent.key))
            });
            assert!(there || sent.end() > safe, "lost below {safe}: {sent:?}");
            there
        });
    }

    /// The queues hold the visible messages and nothing else; index and dedup window know them.
    fn check(&self) {
        let store = self.store();
        let visible = store.visible_offset();
        self.runtime.block_on(store.dispatched(visible)).expect("the disk is well");
        let mut expected: BTreeMap<(&str, u32), Vec<&Sent>> = BTreeMap::new();
        for sent in self.sent.iter().filter(|sent| sent.end() <= visible) {
            expected.entry((sent.topic, sent.queue)).or_default().push(sent);
            let found =
                store.index().find(sent.topic, &sent.key, Millis::ZERO, Millis::MAX, 10).expect("found");
            assert_eq!(found, [sent.placed.phy], "the index does not know {sent:?}");
            let earlier = store.dedup().earlier(DedupKey::new(sent.topic, &sent.key));
            assert_eq!(earlier, Some(sent.placed.phy), "the dedup window does not know {sent:?}");
        }
        for (topic, queue) in queues() {
            let expected = expected.remove(&(topic, queue)).unwrap_or_default();
            self.check_queue(topic, queue, &expected);
        }
    }

    fn check_queue(&self, topic: &str, id: u32, expected: &[&Sent]) {
        let store = self.store();
        let Some(queue) = store.find_queue(topic, QueueId::new(id)) else {
            assert!(expected.is_empty(), "{topic} {id} is gone, it held {expected:?}");
            return;
        };
        let mut entries = Vec::new();
        let mut from = queue.min();
        while from < queue.max() {
            let before = entries.len();
            queue.entries(from, 1000, &mut entries);
            assert!(entries.len() > before, "{topic} {id} has no entry {from}");
            from = entries.last().map_or(from, |entry: &QueueEntry| entry.at + 1);
        }
        let numbers: Vec<u64> = entries.iter().map(|entry| entry.at.get()).collect();
        let dense: Vec<u64> = (queue.min().get()..queue.max().get()).collect();
        assert_eq!(numbers, dense, "{topic} {id} has a gap");
        let found: Vec<(QueueOffset, PhyOffset)> =
            entries.iter().filter(|entry| !entry.is_blank()).map(|entry| (entry.at, entry.phy)).collect();
        self.check_times(&queue, expected);
        let wanted: Vec<_> =
            expected.iter().map(|sent| (sent.placed.queue_offset, sent.placed.phy)).collect();
        assert_eq!(found, wanted, "{topic} {id}");
        for (entry, sent) in entries.iter().filter(|entry| !entry.is_blank()).zip(expected) {
            let slice = store.message(&queue, entry).expect("readable").expect("there");
            let view = RecordView::parse(&slice).expect("a record");
            assert_eq!((view.body(), view.queue_offset()), (&*sent.body, sent.placed.queue_offset));
        }
    }

    /// Looking for a time finds the first message from then on.
    fn check_times(&self, queue: &Queue, expected: &[&Sent]) {
        for sent in expected.chunk_by(|left, right| left.store_at == right.store_at).filter_map(<[_]>::first)
        {
            let from = |at: Millis| expected.iter().find(|other| other.store_at >= at);
            for at in [sent.store_at, sent.store_at.plus(1)] {
                let found = self.store().find_by_time(queue, at).expect("readable");
                let before = expected.iter().rfind(|other| other.store_at < at);
                let first = from(at).map_or(queue.max(), |first| first.placed.queue_offset);
                let after = before.map_or(queue.min(), |before| before.placed.queue_offset + 1);
                assert!((after..=first).contains(&found), "from {at} on: {found}, not {after} to {first}");
            }
        }
    }
}

fn queues() -> impl Iterator<Item = (&'static str, u32)> {
    TOPICS.into_iter().flat_map(|topic| (0..QUEUES).map(move |queue| (topic, queue)))
}

fn run(policy: FlushPolicy, behind: bool, ops: &[Op]) {
    let mut run = Run::new(policy, behind);
    for op in ops {
        run.apply(op);
    }
    run.apply(&Op::Reopen);
}

proptest! {
    #![proptest_config(crate::fixture::cases(48))]

    #[test]
    fn a_store_under_disk_is_what_was_flushed(
        behind in any::<bool>(),
        ops in prop::collection::vec(op(), 1..40),
    ) {
        run(FlushPolicy::Disk, behind, &ops);
    }

    #[test]
    fn a_store_under_memory_is_what_was_flushed(
        behind in any::<bool>(),
        ops in prop::collection::vec(op(), 1..40),
    ) {
        run(FlushPolicy::Memory, behind, &ops);
    }
}
