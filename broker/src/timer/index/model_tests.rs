//! Random operations on a small index, crashes and a failing disk among them, against a map of what waits. What must
//! hold:
//!
//! - What is due comes out, once and in the order of its places, whatever is near and whatever is in files; nothing
//!   that is not due does.
//! - What was given back waits again; what is done never comes again, also when it was done while it was not near.
//! - All that holds after any stop: what was saved is read again, the rest comes from the log.
//! - No pending timer lies before the oldest position, and the counts are right.
//! - After a save that failed the next one repairs it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::store::disk::RealDisk;
use crate::store::fault_disk::{EIO, FaultDisk, Op as DiskOp};

const START: i64 = 1_700_000_000_000;
const BOUNDS: Bounds = Bounds { load: 6, near_low: 3, near_max: 10, buffered_max: 5 };
const FAULTS: [DiskOp; 6] = [
    DiskOp::Open,
    DiskOp::Sync,
    DiskOp::Replace,
    DiskOp::Write { after: 0 },
    DiskOp::Write { after: 7 },
    DiskOp::Write { after: 16 },
];

#[derive(Clone, Debug)]
enum Op {
    /// Timers that are due so much later, in milliseconds.
    Add { waits: Vec<u64> },
    /// Time goes by; then at most so many that are due are taken. Of those, every one below `end` is done, the others wait
    /// again.
    Deliver { ms: u64, limit: usize, end: usize },
    /// One that waits is taken out of turn, and done or given back.
    Take { which: prop::sample::Index, done: bool },
    /// One is done without being taken: a record from recovery, or Apache's.
    Close { which: prop::sample::Index },
    /// One that is done is said to be done again.
    Again { which: prop::sample::Index },
    /// Those before a place in the log are asked for.
    Old { end: prop::sample::Index },
    /// The clock is set back.
    Back { ms: u64 },
    /// A save.
    Save,
    /// One while the disk fails at something.
    Trouble { fault: usize },
    /// A save and a start.
    Reopen,
    /// A start with a part of the log that no save has seen, and perhaps without what was never synced.
    Crash { keep: prop::sample::Index, lose: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let waits = prop_oneof![
        4 => 0..5_000_u64,
        3 => 0..400_000_u64,
        2 => 0..8_000_000_u64,
        1 => 0..3_500_000_000_u64,
    ];
    let ms = prop_oneof![3 => 0..3_000_u64, 3 => 0..300_000_u64, 2 => 0..20_000_000_u64];
    let which = any::<prop::sample::Index>;
    prop_oneof![
        10 => prop::collection::vec(waits, 1..9).prop_map(|waits| Op::Add { waits }),
        8 => (ms, 1..20_usize, 0..20_usize).prop_map(|(ms, limit, end)| Op::Deliver { ms, limit, end }),
        3 => (which(), any::<bool>()).prop_map(|(which, done)| Op::Take { which, done }),
        3 => which().prop_map(|which| Op::Close { which }),
        2 => which().prop_map(|which| Op::Again { which }),
        2 => which().prop_map(|end| Op::Old { end }),
        1 => (0..10_000_000_u64).prop_map(|ms| Op::Back { ms }),
        4 => Just(Op::Save),
        2 => (0..FAULTS.len()).prop_map(|fault| Op::Trouble { fault }),
        1 => Just(Op::Reopen),
        3 => (which(), any::<bool>()).prop_map(|(keep, lose)| Op::Crash { keep, lose }),
    ]
}

/// A record of the log.
#[derive(Clone, Copy, Debug)]
enum Record {
    Timer { place: Place, wait_ms: u64 },
    Done { place: Place },
}

struct Run {
    dir: TempDir,
    disk: FaultDisk,
    index: TimeIndex,
    now: Millis,
    /// Ten bytes each.
    log: Vec<Record>,
    /// Records that the last good save has seen, and the files as it left them.
    saved: usize,
    durable: Vec<(PathBuf, Vec<u8>)>,
    has_failed: bool,
    /// What waits.
    pending: BTreeSet<Place>,
    done: Vec<Place>,
}

fn phy_of(number: usize) -> PhyOffset {
    PhyOffset::new(number as u64 * 10)
}

impl Run {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = FaultDisk::default();
        let files = dir.path().join("timers");
        let (index, position) = TimeIndex::open(Arc::new(disk.clone()), &files, BOUNDS).expect("it opens");
        assert_eq!(position, None);
        Self {
            dir,
            disk,
            index,
            now: Millis::new(START),
            log: Vec::new(),
            saved: 0,
            durable: Vec::new(),
            has_failed: false,
            pending: BTreeSet::new(),
            done: Vec::new(),
        }
    }

    fn files(&self) -> PathBuf {
        self.dir.path().join("timers")
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Add { waits } => {
                for wait_ms in waits {
                    let place = Place { due: self.now.plus(*wait_ms), phy: phy_of(self.log.len()) };
                    self.append(Record::Timer { place, wait_ms: *wait_ms });
                }
            }
            Op::Deliver { ms, limit, end } => self.deliver(*ms, *limit, *end),
            Op::Take { which, done } => {
                if let Some(place) = self.choose(*which) {
                    assert_eq!(self.index.take(place).expect("readable"), Standing::Taken);
                    assert_eq!(self.index.take(place).expect("readable"), Standing::Busy);
                    if *done {
                        self.append(Record::Done { place });
                        assert_eq!(self.index.take(place).expect("readable"), Standing::Gone);
                    } else {
                        self.index.give_back(&[place]);
                    }
                }
            }
            Op::Close { which } => {
                if let Some(place) = self.choose(*which) {
                    self.append(Record::Done { place });
                }
            }
            Op::Again { which } => {
                if !self.done.is_empty() {
                    let place = self.done[which.index(self.done.len())];
                    assert!(!self.index.close(place, phy_of(self.log.len())).expect("readable"));
                    assert_eq!(self.index.take(place).expect("readable"), Standing::Gone);
                }
            }
            Op::Old { end } => self.old(phy_of(end.index(self.log.len() + 1))),
            Op::Back { ms } => self.now = self.now.minus(*ms),
            Op::Save => assert!(self.save(), "the disk is well"),
            Op::Trouble { fault } => {
                self.disk.fail(FAULTS[*fault], "timers", EIO);
                self.save();
                self.disk.heal();
            }
            Op::Reopen => {
                assert!(self.save(), "the disk is well");
                self.start(self.log.len());
            }
            Op::Crash { keep, lose } => {
                let kept = self.saved + keep.index(self.log.len() - self.saved + 1);
                if *lose || self.has_failed {
                    self.lose_unsynced();
                }
                self.start(kept);
            }
        }
        self.check();
    }

    fn choose(&self, which: prop::sample::Index) -> Option<Place> {
        if self.pending.is_empty() {
            return None;
        }
        self.pending.iter().nth(which.index(self.pending.len())).copied()
    }

    /// Stores a record and lets index and model see it.
    fn append(&mut self, record: Record) {
        let at = phy_of(self.log.len());
        self.log.push(record);
        self.fold(record, at);
    }

    fn fold(&mut self, record: Record, at: PhyOffset) {
        match record {
            Record::Timer { place, wait_ms } => {
                self.index.add(place, key(place), wait_ms);
                self.pending.insert(place);
            }
            Record::Done { place } => {
                assert!(self.index.close(place, at).expect("readable"), "{place:?} is not known to wait");
                self.pending.remove(&place);
                self.done.push(place);
            }
        }
    }

    fn deliver(&mut self, ms: u64, limit: usize, end: usize) {
        self.now = self.now.plus(ms);
        let wanted: Vec<_> =
            self.pending.iter().take_while(|place| place.due <= self.now).take(limit).copied().collect();
        let mut taken = Vec::new();
        for _ in 0..10_000 {
            self.index.load(self.now).expect("readable");
            let more = self.index.take_due(self.now, limit - taken.len());
            let is_through = more.is_empty() && self.index.next_load().is_none_or(|at| at > self.now);
            taken.extend(more);
            if taken.len() == limit || is_through {
                break;
            }
        }
        assert_eq!(taken, wanted, "what is due at {}", self.now);
        let (done, others) = taken.split_at(end.min(taken.len()));
        for place in done {
            self.append(Record::Done { place: *place });
        }
        self.index.give_back(others);
    }

    fn old(&mut self, end: PhyOffset) {
        let mut found = Vec::new();
        for _ in 0..1000 {
            let position = phy_of(self.log.len());
            let old = self.index.older_than(end, position, 4).expect("readable");
            for place in &old.places {
                assert!(place.phy < end && self.pending.contains(place));
                // As a roll does: the same timer is stored anew.
                self.append(Record::Done { place: *place });
                found.push(*place);
            }
            if !old.more {
                break;
            }
        }
        assert!(self.pending.iter().all(|place| place.phy >= end), "some are older than {end}");
        for place in found {
            let again = Place { due: place.due, phy: phy_of(self.log.len()) };
            self.append(Record::Timer { place: again, wait_ms: place.due.since(self.now) });
        }
    }

    fn save(&mut self) -> bool {
        let seen = self.log.len();
        let capture = self.index.capture(phy_of(seen));
        let done = self.index.save(&capture).is_ok();
        self.has_failed = !done;
        if done {
            assert!(!self.index.is_damaged());
            self.saved = seen;
            self.keep_files();
        }
        done
    }

    fn keep_files(&mut self) {
        let files = RealDisk.list(&self.files()).expect("readable").into_iter();
        let paths = files.map(|(name, _)| self.files().join(name));
        self.durable = paths.map(|path| (path.clone(), std::fs::read(path).expect("readable"))).collect();
    }

    /// The end of the machine: the files are as the last good save left them.
    fn lose_unsynced(&self) {
        for (name, _) in RealDisk.list(&self.files()).expect("readable") {
            std::fs::remove_file(self.files().join(name)).expect("removed");
        }
        for (path, bytes) in &self.durable {
            std::fs::write(path, bytes).expect("written");
        }
    }

    /// Opens the index as a start does, when `kept` records of the log are left.
    fn start(&mut self, kept: usize) {
        self.log.truncate(kept);
        let (index, position) =
            TimeIndex::open(Arc::new(self.disk.clone()), &self.files(), BOUNDS).expect("it opens");
        assert_eq!(position.is_some(), self.saved > 0 || !self.durable.is_empty());
        self.index = index;
        self.has_failed = false;
        self.pending.clear();
        self.done.clear();
        let seen = usize::try_from(position.unwrap_or_default().get() / 10).expect("small");
        assert_eq!(seen, self.saved);
        for (number, record) in self.log.clone().into_iter().enumerate() {
            if number >= seen {
                self.fold(record, phy_of(number));
                continue;
            }
            match record {
                Record::Timer { place, .. } => {
                    self.pending.insert(place);
                }
                Record::Done { place } => {
                    self.pending.remove(&place);
                    self.done.push(place);
                }
            }
        }
    }

    fn check(&self) {
        assert_eq!(self.index.pending(), self.pending.len() as u64);
        assert_eq!(self.index.taken(), 0);
        let oldest = self.pending.iter().map(|place| place.phy).min();
        match (self.index.oldest(), oldest) {
            (Some(bound), Some(oldest)) => assert!(bound <= oldest, "{bound} is behind {oldest}"),
            (bound, oldest) => assert_eq!(bound, oldest),
        }
        assert!(self.index.lock().near.len() <= BOUNDS.near_max);
        assert!(!self.index.is_damaged());
        if let Some(first) = self.pending.iter().next() {
            let found = self.index.find_by_key(first.due, key(*first)).expect("readable");
            assert!(found.contains(first), "{first:?} is not found by its key");
        }
    }
}

fn key(place: Place) -> u32 {
    u32::try_from(place.phy.get()).expect("small")
}

fn run(ops: &[Op]) {
    let mut run = Run::new();
    for op in ops {
        run.apply(op);
    }
    run.apply(&Op::Reopen);
    run.apply(&Op::Deliver { ms: 4_000_000_000, limit: usize::MAX, end: usize::MAX });
    assert_eq!(run.index.pending(), 0);
    run.apply(&Op::Save);
    assert_eq!(RealDisk.list(&run.files()).expect("readable").len(), 1, "what is done leaves no file");
}

proptest! {
    #![proptest_config(crate::fixture::cases(200))]

    #[test]
    fn what_waits_comes_out_in_time(ops in prop::collection::vec(op(), 1..50)) {
        run(&ops);
    }
}
