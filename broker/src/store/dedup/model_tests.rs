//! Random operations on a small window, crashes and a failing disk among them, against the list of all that was
//! stored. What must hold:
//!
//! - An id is found at the newest of its records that were admitted or dispatched, or not at all; so one that was
//!   never stored, or was cut off the log, is not found.
//! - It is found while fewer than [`ENTRIES`] entries follow it and half the window's time has not passed.
//! - Both hold after any stop: what was written is read again, the rest comes from the log. Only a record without
//!   admission may be passed over then: behind one of the same id that was written, but that the crash took.
//! - After a write that failed the next one repairs it; a crash before that finds the files as they were before.
//!   What such a write may leave has tests of its own.
//! - No more than two generations are in memory, and no more than two files are read at a start.
//!
//! The ids are made so that many have the same slot, and the same part of the hash in it.

use proptest::prelude::*;
use tempfile::TempDir;

use super::super::disk::RealDisk;
use super::super::fault_disk::{EIO, FaultDisk, Op as DiskOp};
use super::*;

const ENTRIES: u32 = 12;
const WINDOW_MS: u64 = 1000;
const IDS: u64 = 16;
/// How many records dispatch is behind, at the most.
const LAG: usize = 2;
const FAULTS: [DiskOp; 6] = [
    DiskOp::Open,
    DiskOp::Sync,
    DiskOp::Write { after: 0 },
    DiskOp::Write { after: 12 },
    DiskOp::Write { after: 16 },
    DiskOp::Write { after: 56 },
];

#[derive(Clone, Debug)]
enum Op {
    /// Sends of these ids in one admission; those that are known are only stored again when it says so.
    Send { ids: Vec<u64>, again: bool },
    /// A record that comes without admission: deduplication is off for its topic.
    Store { id: u64 },
    /// Dispatch catches up.
    Dispatch,
    /// Time goes by; then expired generations are looked for.
    Wait { ms: u64 },
    /// A checkpoint.
    Write,
    /// One while the disk fails at something.
    Trouble { fault: usize },
    /// A checkpoint and a start.
    Reopen,
    /// A start with a part of the log that no checkpoint has seen, and without what was never synced.
    Crash { keep: prop::sample::Index, lose: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let ids = || prop::collection::vec(0..IDS, 1..6);
    prop_oneof![
        10 => (ids(), any::<bool>()).prop_map(|(ids, again)| Op::Send { ids, again }),
        3 => (0..IDS).prop_map(|id| Op::Store { id }),
        2 => Just(Op::Dispatch),
        2 => (1..WINDOW_MS / 2 + 2).prop_map(|ms| Op::Wait { ms }),
        3 => Just(Op::Write),
        2 => (0..FAULTS.len()).prop_map(|fault| Op::Trouble { fault }),
        1 => Just(Op::Reopen),
        3 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(keep, lose)| Op::Crash { keep, lose }),
    ]
}

/// Only the lowest bit above the half that slots keep says where the search begins; the part of the hash that a
/// slot has room for differs in one bit.
fn key(id: u64) -> DedupKey {
    DedupKey((id & 1) << 32 | (id & 2) << 30 | id >> 2)
}

/// A record of the log.
#[derive(Clone, Copy, Debug)]
struct Record {
    id: u64,
    phy: PhyOffset,
    store_at: Millis,
    is_admitted: bool,
    /// Which entry it was, counted over all lives; `None` until it is admitted or dispatched, and when a newer
    /// record of its id was admitted before that.
    entry: Option<u64>,
}

struct Run {
    dir: TempDir,
    disk: FaultDisk,
    /// `None` only while it is opened again.
    window: Option<DedupWindow>,
    now: Millis,
    log: Vec<Record>,
    end: PhyOffset,
    /// The end of the log at the last start.
    started: PhyOffset,
    /// Records that are dispatched.
    applied: usize,
    /// Records that the last checkpoint has seen.
    saved: usize,
    /// The files as the last checkpoint left them.
    durable: Vec<(PathBuf, Vec<u8>)>,
    /// Whether the last attempt to write failed.
    has_failed: bool,
    entries: u64,
}

impl Run {
    fn new() -> Self {
        let mut run = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            disk: FaultDisk::default(),
            window: None,
            now: Millis::new(1_700_000_000_000),
            log: Vec::new(),
            end: PhyOffset::ZERO,
            started: PhyOffset::ZERO,
            applied: 0,
            saved: 0,
            durable: Vec::new(),
            has_failed: false,
            entries: 0,
        };
        run.open();
        run
    }

    fn files(&self) -> PathBuf {
        self.dir.path().join("dedup")
    }

    fn open(&mut self) {
        let options = DedupOptions { window_ms: WINDOW_MS, entries: ENTRIES };
        let disk = Arc::new(self.disk.clone());
        self.window = Some(DedupWindow::open(disk, self.files(), options).expect("it opens"));
        let files = RealDisk.list(&self.files()).expect("readable").len();
        assert!(files <= 2, "{files} files are left");
    }

    fn window(&self) -> &DedupWindow {
        self.window.as_ref().expect("it is open between operations")
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Send { ids, again } => self.send(ids, *again),
            Op::Store { id } => self.store(*id, None),
            Op::Dispatch => self.dispatch(0),
            Op::Wait { ms } => {
                self.dispatch(0);
                self.now = self.now.plus(*ms);
                self.window().expire(self.now);
            }
            Op::Write => assert!(self.write(), "the disk is well"),
            Op::Trouble { fault } => {
                self.disk.fail(FAULTS[*fault], "dedup", EIO);
                self.write();
                self.disk.heal();
            }
            Op::Reopen => {
                self.dispatch(0);
                assert!(self.write(), "the disk is well");
                self.start(self.log.len());
            }
            Op::Crash { keep, lose } => {
                let kept = self.saved + keep.index(self.log.len() - self.saved + 1);
                self.window = None;
                if *lose || self.has_failed {
                    self.lose_unsynced();
                }
                self.start(kept);
            }
        }
        self.dispatch(LAG);
        self.check();
    }

    fn send(&mut self, ids: &[u64], again: bool) {
        let window = self.window.take().expect("it is open");
        {
            let mut admission = window.admit();
            admission.touch(ids.iter().map(|id| key(*id)));
            for id in ids {
                let known = admission.earlier(key(*id));
                self.check_found(*id, known);
                if again || known.is_none() {
                    admission.stored(key(*id), self.end);
                    let entry = self.next_entry();
                    self.store(*id, Some(entry));
                }
            }
        }
        self.window = Some(window);
    }

    fn next_entry(&mut self) -> u64 {
        self.entries += 1;
        self.entries
    }

    fn store(&mut self, id: u64, entry: Option<u64>) {
        let is_admitted = entry.is_some();
        self.log.push(Record { id, phy: self.end, store_at: self.now, is_admitted, entry });
        // Some room between two, so that a file may be cut between them.
        self.end += 10;
    }

    /// Dispatches all but the newest `behind` records.
    fn dispatch(&mut self, behind: usize) {
        while self.applied + behind < self.log.len() {
            let record = self.log[self.applied];
            let known = self.window().earlier(key(record.id));
            self.window().dispatched(record.phy, record.store_at, || Some(key(record.id)));
            let found = self.window().earlier(key(record.id));
            assert!(found >= Some(record.phy) || record.phy < self.started, "not taken: {record:?}");
            if found.is_some() && found != known {
                self.log[self.applied].entry = Some(self.next_entry());
            }
            self.applied += 1;
        }
    }

    /// A checkpoint: it covers what was dispatched when it began. Whether it succeeded.
    fn write(&mut self) -> bool {
        let saved = self.applied;
        let done = self.window().write().is_ok();
        self.has_failed = !done;
        if done {
            self.saved = saved;
            self.keep_files();
        }
        done
    }

    fn keep_files(&mut self) {
        let files = RealDisk.list(&self.files()).expect("readable").into_iter();
        let paths = files.map(|(name, _)| self.files().join(name));
        self.durable = paths.map(|path| (path.clone(), std::fs::read(path).expect("readable"))).collect();
    }

    /// The end of the machine: the files are as the last checkpoint left them.
    fn lose_unsynced(&self) {
        for (name, _) in RealDisk.list(&self.files()).expect("readable") {
            std::fs::remove_file(self.files().join(name)).expect("removed");
        }
        for (path, bytes) in &self.durable {
            std::fs::write(path, bytes).expect("written");
        }
    }

    /// Opens the window as recovery does, when `kept` records of the log are left.
    fn start(&mut self, kept: usize) {
        self.window = None;
        if let Some(first) = self.log.get(kept) {
            self.end = first.phy;
        }
        self.log.truncate(kept);
        (self.started, self.has_failed) = (self.end, false);
        self.applied = self.saved;
        self.open();
        self.dispatch(0);
        self.window().truncate(self.end).expect("the disk is well");
        for at in self.saved..kept {
            let Record { id, phy, is_admitted, .. } = self.log[at];
            if !is_admitted && self.window().earlier(key(id)).is_none_or(|found| found < phy) {
                self.log[at].entry = None;
            }
        }
        // A start makes its changes durable.
        self.keep_files();
    }

    fn check(&self) {
        for id in 0..IDS {
            self.check_found(id, self.window().earlier(key(id)));
        }
        assert_eq!(self.window().earlier(key(IDS)), None, "an id that nobody ever sent is found");
        assert!(self.window().len() <= 2 * ENTRIES as usize);
    }

    /// `found` is the newest known record of the id; it must be found while that is promised.
    fn check_found(&self, id: u64, found: Option<PhyOffset>) {
        let newest = self.log.iter().rev().find(|record| record.id == id && record.entry.is_some());
        let Some(newest) = newest else {
            assert_eq!(found, None, "{id} is in the log nowhere");
            return;
        };
        if let Some(found) = found {
            assert_eq!(found, newest.phy, "not the newest place of {id}");
        }
        let followers = self.entries - newest.entry.unwrap_or(self.entries);
        let is_young = self.now.since(newest.store_at) * 2 < WINDOW_MS;
        let is_promised = followers < u64::from(ENTRIES) && is_young;
        assert!(found.is_some() || !is_promised, "forgotten with {followers} behind it: {newest:?}");
    }
}

fn run(ops: &[Op]) {
    let mut run = Run::new();
    for op in ops {
        run.apply(op);
    }
    run.apply(&Op::Reopen);
}

proptest! {
    #![proptest_config(crate::fixture::cases(200))]

    #[test]
    fn the_window_is_what_was_stored_lately(ops in prop::collection::vec(op(), 1..60)) {
        run(&ops);
    }
}
