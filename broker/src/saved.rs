//! JSON files under `config/` that are replaced before a change is acknowledged.
//!
//! Whoever makes a change takes a [`Revision`] and then waits in [`SavedFile::save`]. One writer at a time
//! encodes everything as it is by then: the changes of all who wait go to the disk in one write.
//!
//! A [`SavedTable`] shows a change to readers only after that: what they see is on the disk.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use gantry_proto::ids::Millis;
use gantry_proto::remoting::body::topic::DataVersion;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::hash::NameHash;
use crate::store::layout::replace_json;

/// One change of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(u64);

/// A change that is in memory but not on the disk. The next save that succeeds keeps it as well.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: check free space and permissions, then try again", path.display())]
pub struct SaveError {
    /// The file.
    path: PathBuf,
    /// What the system said.
    #[source]
    cause: io::Error,
}

/// The file and how much of the table it holds.
#[derive(Debug)]
pub struct SavedFile {
    path: PathBuf,
    changed: AtomicU64,
    /// Newest revision in the file. Held while writing: it guards the file itself.
    saved: Mutex<u64>,
}

impl SavedFile {
    /// The file at `path`, holding what the table holds now.
    pub fn new(path: PathBuf) -> Self {
        Self { path, changed: AtomicU64::new(0), saved: Mutex::new(0) }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Marks a change. To be called while the table is locked for writing.
    #[must_use = "a change is not kept before it is saved"]
    pub fn changed(&self) -> Revision {
        Revision(self.changed.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Returns once the file holds `revision`, with the newest one that it holds. `encode` locks the table for reading and gives the
    /// whole file; it is not called when another save has written the change already.
    pub fn save(&self, revision: Revision, encode: impl FnOnce() -> Vec<u8>) -> Result<Revision, SaveError> {
        off_the_workers(|| {
            let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
            if *saved >= revision.0 {
                return Ok(Revision(*saved));
            }
            // Read before encoding: a change that comes between the two is written, but not counted.
            let newest = self.changed.load(Ordering::SeqCst);
            replace_json(&self.path, &encode())
                .map_err(|cause| SaveError { path: self.path.clone(), cause })?;
            *saved = newest;
            Ok(Revision(newest))
        })
    }
}

/// Runs `work`, which waits for the disk, without holding up the other tasks of this worker thread.
fn off_the_workers<T>(work: impl FnOnce() -> T) -> T {
    let on_worker = Handle::try_current()
        .is_ok_and(|runtime| matches!(runtime.runtime_flavor(), RuntimeFlavor::MultiThread));
    if on_worker { tokio::task::block_in_place(work) } else { work() }
}

/// What becomes of an entry.
#[derive(Debug)]
pub enum Next<V> {
    /// It stays as it is.
    Keep,
    /// It is this from now on.
    Put(V),
    /// It goes.
    Remove,
}

/// A change on its way to the disk.
#[derive(Debug)]
struct Pending<V> {
    /// `None`: the entry goes.
    value: Option<Arc<V>>,
    revision: Revision,
}

#[derive(Debug)]
struct Changes<K, V> {
    pending: HashMap<K, Pending<V>>,
    version: DataVersion,
}

/// A table of names and values that one file holds as a whole. Reading takes a read lock and no copy.
#[derive(Debug)]
pub struct SavedTable<K, V> {
    file: SavedFile,
    /// What the file holds.
    table: RwLock<HashMap<K, Arc<V>, NameHash>>,
    /// Guards what is on its way to the file. Taken before `table`, never the other way round.
    changes: Mutex<Changes<K, V>>,
}

impl<K: Clone + Ord + Hash + Borrow<str>, V> SavedTable<K, V> {
    /// The table as the file at `path` holds it.
    pub fn new(path: PathBuf, entries: HashMap<K, Arc<V>>, version: DataVersion) -> Self {
        Self {
            file: SavedFile::new(path),
            table: RwLock::new(entries.into_iter().collect()),
            changes: Mutex::new(Changes { pending: HashMap::new(), version }),
        }
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<Arc<V>> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Everything, in the order of the names.
    pub fn all(&self) -> BTreeMap<K, Arc<V>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.iter().map(|(name, value)| (name.clone(), Arc::clone(value))).collect()
    }

    /// What `is_wanted` of all values, in no order.
    pub fn filtered(&self, is_wanted: impl Fn(&V) -> bool) -> Vec<Arc<V>> {
        let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
        table.values().filter(|value| is_wanted(value)).cloned().collect()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.table.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells one state of the table from another.
    pub fn version(&self) -> DataVersion {
        self.changes().version
    }

    /// Changes an entry. `decide` sees it as it is, or as it will be when a change of it is on its way to
    /// the disk, and how many entries there are. Returns once the result is on the disk, with the value.
    pub fn change<E: From<SaveError>>(
        &self,
        name: &K,
        now: Millis,
        decide: impl FnOnce(Option<&Arc<V>>, usize) -> Result<Next<V>, E>,
        encode: impl FnOnce(&BTreeMap<K, Arc<V>>, DataVersion) -> Vec<u8>,
    ) -> Result<Option<Arc<V>>, E> {
        let (value, revision) = {
            let mut changes = self.changes();
            let pending = changes.pending.get::<str>(name.borrow());
            let waiting = pending.map(|pending| pending.revision);
            let current = match pending {
                Some(pending) => pending.value.clone(),
                None => self.get(name.borrow()),
            };
            let entries = self.len() + changes.pending.len();
            let (value, same) = match decide(current.as_ref(), entries)? {
                Next::Put(value) => (Some(Arc::new(value)), false),
                Next::Remove => (None, current.is_none()),
                Next::Keep => (current, true),
            };
            match (same, waiting) {
                (true, None) => return Ok(value),
                (true, Some(revision)) => (value, revision),
                (false, _) => {
                    let revision = self.file.changed();
                    changes.version.counter += 1;
                    changes.version.timestamp = now.get();
                    changes.pending.insert(name.clone(), Pending { value: value.clone(), revision });
                    (value, revision)
                }
            }
        };
        match self.file.save(revision, || self.encode(encode)) {
            Ok(saved) => self.publish(name, saved),
            Err(error) => {
                let mut changes = self.changes();
                if changes
                    .pending
                    .get::<str>(name.borrow())
                    .is_some_and(|pending| pending.revision == revision)
                {
                    changes.pending.remove::<str>(name.borrow());
                }
                return Err(error.into());
            }
        }
        Ok(value)
    }

    /// Adds entries in one write, if there are any. For the start, when nobody else changes the table.
    pub fn add_all(
        &self,
        entries: Vec<(K, V)>,
        now: Millis,
        encode: impl FnOnce(&BTreeMap<K, Arc<V>>, DataVersion) -> Vec<u8>,
    ) -> Result<(), SaveError> {
        if entries.is_empty() {
            return Ok(());
        }
        let revision = {
            let mut changes = self.changes();
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            table.extend(entries.into_iter().map(|(name, value)| (name, Arc::new(value))));
            changes.version.counter += 1;
            changes.version.timestamp = now.get();
            self.file.changed()
        };
        self.file.save(revision, || self.encode(encode)).map(|_| ())
    }

    /// Shows a change to readers, unless a later one of the same entry is still on its way.
    fn publish(&self, name: &K, saved: Revision) {
        let mut changes = self.changes();
        if changes.pending.get::<str>(name.borrow()).is_none_or(|pending| pending.revision > saved) {
            return;
        }
        let Some(done) = changes.pending.remove::<str>(name.borrow()) else { return };
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        match done.value {
            Some(value) => table.insert(name.clone(), value),
            None => table.remove(name.borrow()),
        };
    }

    fn encode(&self, encode: impl FnOnce(&BTreeMap<K, Arc<V>>, DataVersion) -> Vec<u8>) -> Vec<u8> {
        let changes = self.changes();
        let mut all = self.all();
        for (name, pending) in &changes.pending {
            match &pending.value {
                Some(value) => all.insert(name.clone(), Arc::clone(value)),
                None => all.remove(name.borrow()),
            };
        }
        encode(&all, changes.version)
    }

    fn changes(&self) -> MutexGuard<'_, Changes<K, V>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file's text as Apache lays it out: one member a line, indented with tabs, no blank behind a colon.
pub fn pretty(compact: &[u8]) -> Vec<u8> {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(compact) else {
        // Only standard JSON can be laid out; anything else is just as readable for programs.
        return compact.to_vec();
    };
    let mut out = Vec::with_capacity(compact.len() * 2);
    let layout = Layout { inner: PrettyFormatter::with_indent(b"\t") };
    match value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, layout)) {
        Ok(()) => out,
        Err(_) => compact.to_vec(),
    }
}

struct Layout {
    inner: PrettyFormatter<'static>,
}

macro_rules! as_inner {
    ($($method:ident($($first:ident: bool)?),)+) => {
        $(
            fn $method<W: ?Sized + io::Write>(&mut self, out: &mut W $(, $first: bool)?) -> io::Result<()> {
                self.inner.$method(out $(, $first)?)
            }
        )+
    };
}

impl Formatter for Layout {
    as_inner! {
        begin_array(), end_array(), begin_array_value(first: bool), end_array_value(),
        begin_object(), end_object(), begin_object_key(first: bool), end_object_value(),
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b":")
    }
}

#[cfg(test)]
mod tests {
    use gantry_proto::names::TopicName;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn one_write_serves_all_changes_before_it() {
        let dir = TempDir::new().unwrap();
        let file = SavedFile::new(dir.path().join("t.json"));
        let table = RwLock::new(String::new());
        let (first, second) = {
            let mut table = table.write().unwrap();
            table.push_str("{}");
            (file.changed(), file.changed())
        };
        file.save(first, || table.read().unwrap().clone().into_bytes()).unwrap();
        file.save(second, || panic!("it is on the disk already")).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"{}");
    }

    #[test]
    fn a_failed_write_is_tried_again_by_the_next() {
        let dir = TempDir::new().unwrap();
        // A directory where the file should be cannot be replaced.
        let path = dir.path().join("t.json");
        std::fs::create_dir_all(path.join("in the way")).unwrap();
        let file = SavedFile::new(path.clone());
        let revision = file.changed();
        let error = file.save(revision, || b"{}".to_vec()).unwrap_err();
        assert!(error.to_string().contains("t.json"), "{error}");
        std::fs::remove_dir_all(&path).unwrap();
        file.save(revision, || b"{}".to_vec()).unwrap();
        assert!(path.is_file());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn saving_works_on_a_worker_thread() {
        let dir = TempDir::new().unwrap();
        let file = SavedFile::new(dir.path().join("t.json"));
        file.save(file.changed(), || b"[]".to_vec()).unwrap();
        assert!(file.path().exists());
    }

    type Texts = SavedTable<TopicName, String>;

    fn texts(dir: &TempDir) -> Texts {
        SavedTable::new(dir.path().join("t.json"), HashMap::new(), DataVersion::default())
    }

    fn encode(all: &BTreeMap<TopicName, Arc<String>>, version: DataVersion) -> Vec<u8> {
        format!("{} {all:?}", version.counter).into_bytes()
    }

    fn put(texts: &Texts, name: &str, text: &str) -> Result<Option<Arc<String>>, SaveError> {
        let text = text.to_owned();
        texts.change(&TopicName::internal(name), Millis::new(7), |_, _| Ok(Next::Put(text)), encode)
    }

    #[test]
    fn a_change_is_seen_after_it_is_saved() {
        let dir = TempDir::new().unwrap();
        let texts = texts(&dir);
        put(&texts, "a", "1").unwrap();
        put(&texts, "b", "2").unwrap();
        let kept = texts.change(
            &TopicName::internal("a"),
            Millis::ZERO,
            |_, _| Ok::<_, SaveError>(Next::Keep),
            encode,
        );
        assert_eq!(kept.unwrap().as_deref().map(String::as_str), Some("1"));
        assert_eq!((texts.version().counter, texts.version().timestamp, texts.len()), (2, 7, 2));
        let gone = texts.change(
            &TopicName::internal("a"),
            Millis::ZERO,
            |_, _| Ok::<_, SaveError>(Next::Remove),
            encode,
        );
        assert_eq!(gone.unwrap(), None);
        assert!(texts.get("a").is_none() && texts.get("b").is_some());
        assert_eq!(std::fs::read_to_string(texts.file.path()).unwrap(), "3 {\"b\": \"2\"}");
    }

    #[test]
    fn a_change_that_cannot_be_saved_is_not_seen() {
        let dir = TempDir::new().unwrap();
        let texts = texts(&dir);
        std::fs::create_dir_all(texts.file.path().join("in the way")).unwrap();
        assert!(put(&texts, "a", "1").is_err());
        assert!(texts.get("a").is_none());
        std::fs::remove_dir_all(texts.file.path()).unwrap();
        put(&texts, "b", "2").unwrap();
        assert!(texts.get("a").is_none());
    }

    #[test]
    fn many_creators_of_one_entry_get_the_same() {
        let dir = TempDir::new().unwrap();
        let texts = texts(&dir);
        let create = |n: usize| {
            let name = TopicName::internal("same");
            let decide = |current: Option<&Arc<String>>, _| {
                Ok::<_, SaveError>(if current.is_some() { Next::Keep } else { Next::Put(n.to_string()) })
            };
            texts.change(&name, Millis::ZERO, decide, encode).unwrap().unwrap()
        };
        let got: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || create(n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(got.iter().all(|value| Arc::ptr_eq(value, &got[0])));
        assert_eq!(texts.version().counter, 1);
    }

    #[test]
    fn files_look_as_apache_writes_them() {
        let text = String::from_utf8(pretty(br#"{"a":{"b":1},"c":{}}"#)).unwrap();
        assert_eq!(text, "{\n\t\"a\":{\n\t\t\"b\":1\n\t},\n\t\"c\":{}\n}");
        assert_eq!(pretty(b"{0:1}"), b"{0:1}");
    }
}
