//! The key index: from a hash of `topic#key` to the records that carry the key.
//!
//! One file is drawn in `index/file.rs`. Applied keys wait in memory and are written in large runs, so that a slot page is
//! written once for many keys.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_proto::ids::{Millis, PhyOffset};
use gantry_proto::record::{HotProperties, JavaHash};

use super::disk::Disk;
use super::projection::Dispatched;

mod file;

pub use file::IndexOptions;
pub(super) use file::{Entry, Header, is_index_file, is_unborn, newest_in, slot_in};
use file::{IndexFile, Key, file_name};

/// Keys that may wait in memory before the index asks to be written.
pub const PENDING_WANTED: usize = 256 * 1024;
/// Keys that may wait in memory at all, 24 bytes each; beyond it they are written by whoever brings them.
const PENDING_MAX: usize = 2 * PENDING_WANTED;

/// The index of a store.
#[derive(Debug)]
pub struct KeyIndex {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: IndexOptions,
    /// Keys not yet written. Held for a moment only.
    pending: Mutex<Pending>,
    /// Held while a run is written.
    files: Mutex<Vec<IndexFile>>,
}

#[derive(Debug, Default)]
struct Pending {
    keys: Vec<Key>,
    /// Keys that are being written just now.
    writing: Arc<Vec<Key>>,
    /// The topic of the record before, and the hash of what its keys begin with.
    topic: (String, JavaHash),
    /// First byte of the log whose keys were not added.
    position: PhyOffset,
}

/// Where the hash of a record's entry comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyKind {
    /// The client's message id.
    Id,
    /// One of the user's keys.
    Key,
    /// The tag; brokers before 5.4 did not index it.
    Tag,
}

/// The hash of what the keys of a topic's records begin with.
pub(super) fn topic_hash(topic: &str) -> JavaHash {
    JavaHash::new().push(topic).push("#")
}

/// Hands out the hashes under which a record of the topic is found, in the order of its entries.
pub(super) fn key_hashes(topic: JavaHash, hot: &HotProperties<'_>, mut add: impl FnMut(KeyKind, u32)) {
    if let Some(uniq_key) = hot.uniq_key {
        add(KeyKind::Id, index_hash(topic.push(uniq_key).finish()));
    }
    for key in hot.split_keys() {
        add(KeyKind::Key, index_hash(topic.push(key).finish()));
    }
    if let Some(tags) = hot.tags {
        add(KeyKind::Tag, index_hash(topic.push("T#").push(tags).finish()));
    }
}

impl KeyIndex {
    /// Opens the files that are there. Files of another length are left alone and reported: the index
    /// is not worth refusing to start for.
    pub(super) fn open(disk: Arc<dyn Disk>, dir: PathBuf, options: IndexOptions) -> io::Result<Self> {
        let mut files = Vec::new();
        for (name, len) in disk.list(&dir)? {
            if is_unborn(&name, len) {
                disk.remove(&dir.join(name))?;
                continue;
            }
            if !is_index_file(&name, len, options) {
                tracing::warn!(
                    name,
                    len,
                    expected = options.file_bytes(),
                    "not an index file of this store; it is left alone"
                );
                continue;
            }
            let path = dir.join(name);
            let file = disk.open(&path, len)?;
            files.push(IndexFile::open(path, file)?);
        }
        // Not that of the last file: a crash may have left it without a header.
        let position = files.iter().map(|file: &IndexFile| file.header.end_phy).max().unwrap_or(0);
        let pending =
            Pending { position: PhyOffset::from_wire(position).unwrap_or_default(), ..Pending::default() };
        Ok(Self { disk, dir, options, pending: Mutex::new(pending), files: Mutex::new(files) })
    }

    /// Adds the keys of one record; `true` when enough wait to be worth writing.
    pub(super) fn apply(&self, record: &Dispatched<'_>) -> bool {
        let (view, hot) = (&record.view, &record.hot);
        let mut pending = self.pending();
        if view.phy_offset() < pending.position {
            return false;
        }
        let Pending { keys, topic, .. } = &mut *pending;
        if topic.0 != view.topic() {
            view.topic().clone_into(&mut topic.0);
            topic.1 = topic_hash(view.topic());
        }
        key_hashes(topic.1, hot, |_, hash| {
            keys.push(Key { hash, phy: view.phy_offset(), store_at: view.store_at() });
        });
        let waiting = pending.keys.len();
        drop(pending);
        if waiting >= PENDING_MAX
            && let Err(error) = self.write()
        {
            tracing::error!(%error, waiting, "cannot write the key index; queries by key miss these messages until a restart");
            self.pending().keys.clear();
        }
        waiting >= PENDING_WANTED
    }

    /// Writes the keys that wait. Durable when it returns.
    pub(super) fn write(&self) -> io::Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = {
            let mut pending = self.pending();
            let keys = Arc::new(std::mem::take(&mut pending.keys));
            pending.writing = Arc::clone(&keys);
            keys
        };
        let mut left = keys.as_slice();
        let result = self.write_keys(&mut files, &mut left);
        let mut pending = self.pending();
        pending.writing = Arc::default();
        // Those in files that became full before a failure must not be written once more.
        let mut again = left.to_vec();
        again.append(&mut pending.keys);
        pending.keys = again;
        result
    }

    /// Writes `keys`; what is left of them after a failure is in no file.
    fn write_keys(&self, files: &mut Vec<IndexFile>, keys: &mut &[Key]) -> io::Result<()> {
        while let Some(first) = keys.first() {
            let full = files.last().is_none_or(|file| file.header.next >= self.options.entries);
            if full {
                let file = self.create(files.last(), first)?;
                files.push(file);
            }
            let Some(file) = files.last_mut() else { return Ok(()) };
            let room = self.options.entries.saturating_sub(file.header.next) as usize;
            let (now, later) = keys.split_at(room.min(keys.len()));
            file.add(self.options, now)?;
            *keys = later;
        }
        Ok(())
    }

    fn create(&self, last: Option<&IndexFile>, first: &Key) -> io::Result<IndexFile> {
        let mut name = file_name(first.store_at);
        // Names must grow, and no two files may share one.
        if let Some(last) = last.and_then(|last| last.path.file_name()).and_then(|name| name.to_str())
            && last >= name.as_str()
        {
            name = format!("{:017}", last.parse::<u64>().unwrap_or(0).saturating_add(1));
        }
        let path = self.dir.join(name);
        let file = self.disk.open(&path, self.options.file_bytes())?;
        let mut made = IndexFile::open(path, file)?;
        if let Some(last) = last {
            made.header.begin_at = last.header.end_at;
            made.header.begin_phy = last.header.end_phy;
            made.header.end_at = last.header.end_at;
            made.header.end_phy = last.header.end_phy;
        }
        Ok(made)
    }

    /// Positions of records that may carry `key` (equal hashes, newest first) stored in `from..=to`, at
    /// most `limit`. The caller must look at the records.
    pub fn find(
        &self,
        topic: &str,
        key: &str,
        from: Millis,
        to: Millis,
        limit: usize,
    ) -> io::Result<Vec<PhyOffset>> {
        let hash = index_hash(topic_hash(topic).push(key).finish());
        let mut found = Vec::new();
        let matches = |key: &Key| key.hash == hash && key.store_at >= from && key.store_at <= to;
        {
            let pending = self.pending();
            let waiting = pending.writing.iter().chain(&pending.keys).rev();
            found.extend(waiting.filter(|key| matches(key)).map(|key| key.phy).take(limit));
        }
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        for file in files.iter().rev() {
            if found.len() >= limit || file.header.end_at < from.get() {
                break;
            }
            file.find(self.options, hash, from, to, limit, &mut found)?;
        }
        // A run may have been written between the two looks.
        found.dedup();
        Ok(found)
    }

    /// Store time and position of the newest indexed record.
    pub fn newest(&self) -> (Millis, PhyOffset) {
        let pending = self.pending();
        if let Some(key) = pending.keys.last().or(pending.writing.last()) {
            return (key.store_at, key.phy);
        }
        drop(pending);
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.last().map_or((Millis::ZERO, PhyOffset::ZERO), |file| {
            (Millis::new(file.header.end_at), PhyOffset::from_wire(file.header.end_phy).unwrap_or_default())
        })
    }

    /// Forgets every key at or beyond `end`.
    pub(super) fn truncate(&self, end: PhyOffset) -> io::Result<()> {
        let mut pending = self.pending();
        pending.keys.retain(|key| key.phy < end);
        // Records that are written from here on are new, whatever the files have.
        pending.position = pending.position.min(end);
        drop(pending);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(last) = files.last_mut() {
            last.cut(self.options, end)?;
            if last.header.next > 1 {
                break;
            }
            // Nothing is left, or it was only just made when a crash came.
            self.disk.remove(&last.path)?;
            files.pop();
        }
        Ok(())
    }

    /// Removes files that only name records before `log_min`, but never the newest.
    pub(super) fn raise_min(&self, log_min: PhyOffset) -> io::Result<()> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        while files.len() > 1 && files.first().is_some_and(|file| file.header.end_phy < log_min.to_wire()) {
            let first = files.remove(0);
            self.disk.remove(&first.path)?;
        }
        Ok(())
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The peer's absolute value: `i32::MIN`, which has none, becomes 0.
fn index_hash(hash: i32) -> u32 {
    hash.checked_abs().unwrap_or(0).cast_unsigned()
}

#[cfg(test)]
mod tests;
