//! Faults under the real `gantry` binary: of its disk, and of its clock.
//!
//! A library that is preloaded into the broker (`tests/faults`) stands between it and the system. [`Faults`]
//! tells it what shall fail; everything can be changed while the broker runs:
//!
//! ```no_run
//! use gantry_tests::faults::{Errno, Faults, Op, Rule};
//! use gantry_tests::harness::Gantry;
//!
//! let faults = Faults::new();
//! let full = faults.add(Rule::on(Op::Write).path("consumequeue").from(3).fail(Errno::NOSPC));
//! faults.add(Rule::on(Op::Rename).path("config/").nth(3).kill_after());
//! let mut gantry = Gantry::start_with(&faults, &["--policy", "disk"]);
//! faults.set_clock(-3_600_000); // an hour back
//! faults.limit_growth(Some(0)); // the disk is full
//! // …
//! faults.limit_growth(None);
//! full.disarm();
//! gantry.wait_killed(); // the rename came
//! gantry.restart(); // still with these faults
//! ```
//!
//! With a journal ([`Faults::journalled`]) the power can fail as well: [`Faults::disk`] reads what was written
//! and synced, and [`power`] makes of it a directory as the disk may hold it afterwards.
//!
//! ```no_run
//! # use gantry_tests::faults::{Faults, power::{Loss, PowerCut}};
//! # use gantry_tests::harness::Gantry;
//! let faults = Faults::journalled();
//! let mut gantry = Gantry::start_with(&faults, &["--policy", "disk"]);
//! // … load …
//! gantry.kill9();
//! let after = tempfile::tempdir().unwrap();
//! let store = after.path().join("store");
//! faults.disk().write_image(&PowerCut::new(Loss::Random, 4711), &store);
//! let gantry = Gantry::start_with(&Faults::journalled_on(&store), &["--policy", "disk"]);
//! ```

pub mod disk;
// Compiled here as well: to link the library itself would take this process's own calls over.
#[path = "../../faults/src/format.rs"]
pub mod format;
mod journal;
pub mod power;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use format::Op;
pub use rustix::io::Errno;
use tempfile::TempDir;

use crate::harness;
use disk::Disk;
use format::{Action, rule};
use journal::Journal;

/// A store directory and the faults that happen to it. Clones are the same.
#[derive(Clone, Debug)]
pub struct Faults(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Holds the control file, the journal, and the store unless the caller brought one.
    dir: TempDir,
    store: PathBuf,
    control: File,
    journal: Option<Journal>,
    rules: AtomicUsize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Journalled {
    No,
    Yes,
}

impl Default for Faults {
    fn default() -> Self {
        Self::new()
    }
}

impl Faults {
    /// No faults yet, on a fresh store.
    pub fn new() -> Self {
        Self::make(None, Journalled::No)
    }

    /// No faults yet, on a store that the caller keeps; it need not exist yet, its parent must.
    pub fn on(store: &Path) -> Self {
        Self::make(Some(store), Journalled::No)
    }

    /// As [`new`](Self::new), with a journal of everything that is written and synced.
    pub fn journalled() -> Self {
        Self::make(None, Journalled::Yes)
    }

    /// As [`on`](Self::on), with a journal. What the store holds now, which is kept in memory, counts as synced.
    pub fn journalled_on(store: &Path) -> Self {
        Self::make(Some(store), Journalled::Yes)
    }

    fn make(store: Option<&Path>, journalled: Journalled) -> Self {
        let dir = tempfile::Builder::new().prefix("gantry-faults-").tempdir().expect("a temporary directory");
        let store = absolute(store.unwrap_or(&dir.path().join("store")));
        let control =
            File::options().read(true).write(true).create_new(true).open(dir.path().join("control"));
        let control = control.expect("a control file");
        control.set_len(8 * format::WORDS as u64).expect("a length");
        let journal = (journalled == Journalled::Yes).then(|| {
            let journal = Journal::create(dir.path().join("journal"), &store);
            journal.unwrap_or_else(|error| panic!("{} cannot be read: {error}", store.display()))
        });
        let faults = Self(Arc::new(Inner { dir, store, control, journal, rules: AtomicUsize::new(0) }));
        faults.put_path(format::STORE, &faults.0.store);
        if let Some(journal) = &faults.0.journal {
            faults.put_path(format::JOURNAL, journal.path());
        }
        faults.limit_growth(None);
        faults.put(0, format::MAGIC);
        faults
    }

    /// The store's directory.
    pub fn store(&self) -> &Path {
        &self.0.store
    }

    /// Makes a rule hold from now on.
    pub fn add(&self, rule: Rule) -> Armed {
        let number = self.0.rules.fetch_add(1, Ordering::Relaxed);
        assert!(number < format::RULES_MAX, "at most {} rules: make new Faults", format::RULES_MAX);
        let at = format::RULES + number * format::RULE_WORDS;
        let Rule { ops, path, first, times, action } = rule;
        let [action, value, bytes] = action.encode();
        for (word, value) in [
            (rule::ACTION, action),
            (rule::OPS, ops),
            (rule::FIRST, first),
            (rule::TIMES, times),
            (rule::VALUE, value),
            (rule::BYTES, bytes),
            (rule::TEXT_LEN, path.len() as u64),
        ] {
            self.put(at + word, value);
        }
        assert!(path.len() <= rule::TEXT_MAX, "a shorter text: {path}");
        self.put_bytes(at + rule::TEXT, path.as_bytes());
        self.put(at + rule::ARMED, 1);
        Armed { faults: self.clone(), at }
    }

    /// Sets the broker's wall clock off by `ms` milliseconds against the machine's. Monotonic time stays.
    pub fn set_clock(&self, ms: i64) {
        self.put_twice(format::CLOCK, ms);
    }

    /// Lets the store grow by `bytes` of disk space from now on, and no more; `None`: as much as there is.
    pub fn limit_growth(&self, bytes: Option<u64>) {
        let limit = bytes.map_or(i64::MAX, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX - 1));
        if bytes.is_some() {
            self.put(format::GROWN, 0);
        }
        self.put_twice(format::LIMIT, limit);
    }

    /// What the disk knows of the store, by what was done until now: ask when the broker is killed.
    ///
    /// # Panics
    ///
    /// Without a journal.
    pub fn disk(&self) -> Disk {
        let journal = self.0.journal.as_ref().expect("these faults have a journal");
        journal.disk().expect("the journal can be read")
    }

    /// To be called before a broker starts: the one before may have been killed at any place.
    pub(crate) fn settle(&self) {
        if let Some(journal) = &self.0.journal {
            journal.settle(&self.0.store).expect("the journal's end can be compared with the store");
        }
    }

    /// What a broker must find in its environment.
    pub(crate) fn environment(&self) -> [(&'static str, OsString); 2] {
        let control = self.0.dir.path().join("control").into_os_string();
        [("LD_PRELOAD", library().as_os_str().to_owned()), ("GANTRY_FAULTS", control)]
    }

    fn put(&self, word: usize, value: u64) {
        self.put_bytes(word, &value.to_le_bytes());
    }

    fn put_twice(&self, word: usize, value: i64) {
        self.put_bytes(word, &value.to_le_bytes());
        self.put_bytes(word + 1, &value.to_le_bytes());
    }

    fn put_path(&self, word: usize, path: &Path) {
        let bytes = path.as_os_str().as_bytes();
        assert!(bytes.len() < format::PATH_MAX, "a shorter path: {}", path.display());
        self.put(word, bytes.len() as u64);
        self.put_bytes(word + 1, bytes);
    }

    fn put_bytes(&self, word: usize, bytes: &[u8]) {
        self.0.control.write_all_at(bytes, 8 * word as u64).expect("the control file can be written");
    }

    fn get(&self, word: usize) -> u64 {
        let mut bytes = [0; 8];
        self.0.control.read_exact_at(&mut bytes, 8 * word as u64).expect("the control file can be read");
        u64::from_le_bytes(bytes)
    }
}

/// `path` without links: the library compares with what the system calls its files.
fn absolute(path: &Path) -> PathBuf {
    let parent = path.parent().and_then(|parent| fs::canonicalize(parent).ok());
    let parent = parent.unwrap_or_else(|| panic!("{} lies in no directory", path.display()));
    parent.join(path.file_name().expect("a store has a name"))
}

/// What shall happen to which operations. One rule counts each operation that it meets, from 1, in the order
/// in which they begin.
#[derive(Clone, Debug)]
pub struct Rule {
    ops: u64,
    path: String,
    first: u64,
    times: u64,
    action: Action,
}

impl Rule {
    /// A rule for every `op`, on any path; until an action is chosen, it only counts.
    pub fn on(op: Op) -> Self {
        Self {
            ops: op.bit(),
            path: String::new(),
            first: 1,
            times: u64::MAX,
            action: Action::Delay { micros: 0 },
        }
    }

    /// A rule for every operation.
    pub fn on_any() -> Self {
        Self { ops: u64::MAX, ..Self::on(Op::Open) }
    }

    /// For this operation as well.
    #[must_use]
    pub fn or(mut self, op: Op) -> Self {
        self.ops |= op.bit();
        self
    }

    /// Only where the path, relative to the store, contains `text`.
    #[must_use]
    pub fn path(mut self, text: &str) -> Self {
        text.clone_into(&mut self.path);
        self
    }

    /// Only the `n`-th match, from 1.
    #[must_use]
    pub fn nth(mut self, n: u64) -> Self {
        (self.first, self.times) = (n, 1);
        self
    }

    /// The `n`-th match, from 1, and all that follow.
    #[must_use]
    pub fn from(mut self, n: u64) -> Self {
        (self.first, self.times) = (n, u64::MAX);
        self
    }

    /// It fails, and nothing of it is done.
    #[must_use]
    pub fn fail(self, errno: Errno) -> Self {
        self.fail_after(0, errno)
    }

    /// A write fails after so many bytes were written.
    #[must_use]
    pub fn fail_after(mut self, bytes: u64, errno: Errno) -> Self {
        self.action = Action::Fail { errno: errno.raw_os_error(), after_bytes: bytes };
        self
    }

    /// The broker dies as by SIGKILL, right before it.
    #[must_use]
    pub fn kill_before(mut self) -> Self {
        self.action = Action::KillBefore;
        self
    }

    /// The broker dies as by SIGKILL, right after it was done.
    #[must_use]
    pub fn kill_after(mut self) -> Self {
        self.action = Action::KillAfter;
        self
    }

    /// The broker dies as by SIGKILL in the middle of a write, after so many bytes.
    #[must_use]
    pub fn kill_within(mut self, bytes: u64) -> Self {
        self.action = Action::KillWithin { bytes };
        self
    }

    /// It waits so long first.
    #[must_use]
    pub fn delay(mut self, time: Duration) -> Self {
        self.action = Action::Delay { micros: u64::try_from(time.as_micros()).unwrap_or(u64::MAX) };
        self
    }

    /// It waits until the rule is disarmed.
    #[must_use]
    pub fn stall(mut self) -> Self {
        self.action = Action::Stall;
        self
    }
}

/// A rule that holds, also after a restart of the broker, until it is disarmed. Dropping this changes nothing.
#[derive(Clone, Debug)]
pub struct Armed {
    faults: Faults,
    at: usize,
}

impl Armed {
    /// Lets everything pass from now on, and what waits go on.
    pub fn disarm(&self) {
        self.faults.put(self.at + rule::ARMED, 0);
    }

    /// How many operations it met.
    pub fn seen(&self) -> u64 {
        self.faults.get(self.at + rule::SEEN)
    }

    /// How often it took effect.
    pub fn fired(&self) -> u64 {
        self.faults.get(self.at + rule::FIRED)
    }
}

/// The library of the build that these tests belong to; built once if need be.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let built = harness::build(&["--package", "gantry-faults", "--lib"], "libgantry_faults.so");
        built.unwrap_or_else(|why| panic!("the library of faults cannot be built: {why}"))
    })
}
