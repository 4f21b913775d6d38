//! The dedup window: which producer-generated ids were stored lately, and where.
//!
//! ```text
//! dedup/NNNNNNNNNNNNNNNNNNNN          named after the log position at which the generation began
//!  0                8                16
//!  +----------------+----------------+
//!  | hash u64       | phy + 1 u64    |   entries back to back; phy + 1 == 0 ends the file
//!  +----------------+----------------+
//! ```
//!
//! Two generations are kept: the current one takes entries until it is full or half the window's time
//! has passed; then it becomes the previous one, and what was the previous one is forgotten. So an id is
//! remembered for at least half the window's time, unless more than [`DedupOptions::entries`] follow it.
//! An entry is a hash of topic and id; on a hit the caller compares the stored record itself. In memory an id
//! costs the few bytes of a table (`generation.rs`) once it is in the file, and nothing else.
//!
//! After a crash the files may lack the newest entries; dispatch adds them again from the log.

mod generation;

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_proto::ids::{Millis, PhyOffset};
use gantry_proto::names::TopicKind;
use gantry_proto::record::{Text, TransactionFlag};

use super::disk::{Disk, offset_path, parse_offset_name};
use super::projection::Dispatched;
use generation::{EntryFile, Generation};

const ENTRY_BYTES: u64 = 16;
/// Entries that are encoded at once to be written; sends wait meanwhile.
const WRITE_AT_ONCE: usize = 16 * 1024;

/// Bounds of the window.
#[derive(Clone, Copy, Debug)]
pub struct DedupOptions {
    /// Ids are remembered at least half and at most all of this, in milliseconds.
    pub window_ms: u64,
    /// Ids remembered at the most in one of the two generations. Costs 6 to 12 bytes of memory each.
    pub entries: u32,
}

impl Default for DedupOptions {
    fn default() -> Self {
        Self { window_ms: 10 * 60 * 1000, entries: 448 * 1024 }
    }
}

/// Hash of a topic and a producer-generated id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DedupKey(u64);

impl DedupKey {
    /// The key of `uniq_key` in `topic`.
    pub fn new<'a>(topic: &str, uniq_key: impl Into<Text<'a>>) -> Self {
        DedupTopic::new(topic).key(uniq_key)
    }

    /// The key under which a stored record counts; `None` for records that are not the first form of
    /// what a producer sent (copies, retries, our own records).
    pub fn of(record: &Dispatched<'_>) -> Option<Self> {
        let uniq_key = record.hot.uniq_key?;
        let topic = match TopicKind::of(record.view.topic()) {
            TopicKind::Half | TopicKind::Schedule | TopicKind::Timer => record.hot.real_topic?,
            TopicKind::User if record.hot.real_topic.is_none() => record.view.topic(),
            _ => return None,
        };
        // A committed copy may name a half at position 0.
        let is_copy = record.view.prepared_offset() > PhyOffset::ZERO
            || record.view.sys_flag().transaction() == TransactionFlag::Commit;
        let first_form = !is_copy && TopicKind::of(topic) == TopicKind::User;
        first_form.then(|| Self::new(topic, uniq_key))
    }
}

/// What the keys of a topic have in common.
#[derive(Clone, Copy, Debug)]
pub struct DedupTopic(u64);

impl DedupTopic {
    /// That of `topic`.
    pub fn new(topic: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(topic.as_bytes()))
    }

    /// The key of `uniq_key` in the topic.
    pub fn key<'a>(self, uniq_key: impl Into<Text<'a>>) -> DedupKey {
        DedupKey(xxhash_rust::xxh3::xxh3_64_with_seed(uniq_key.into().as_bytes(), self.0))
    }
}

/// The window of a store.
#[derive(Debug)]
pub struct DedupWindow {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: DedupOptions,
    hits: AtomicU64,
    /// Both generations. Held while a send is admitted, so that two sends of one id cannot both pass.
    window: Mutex<Window>,
    /// Held while entries are written.
    file: Mutex<()>,
}

#[derive(Debug)]
struct Window {
    current: Generation,
    previous: Generation,
    /// Recovery may come to records from before the oldest entry that the files had: those are forgotten.
    floor: PhyOffset,
    /// Records that an admission has entered and that were not dispatched yet, in the order of the log.
    admitted: VecDeque<PhyOffset>,
    /// Files of forgotten generations, to be removed.
    gone: Vec<PathBuf>,
}

/// The window, held for the admission of one send or batch.
#[derive(Debug)]
pub struct Admission<'a> {
    window: MutexGuard<'a, Window>,
    options: DedupOptions,
}

impl Admission<'_> {
    /// Prepares for [`earlier`](Self::earlier) and [`stored`](Self::stored) of many ids.
    pub fn touch(&self, keys: impl Iterator<Item = DedupKey> + Clone) {
        self.window.current.touch(keys.clone());
        self.window.previous.touch(keys);
    }

    /// Where the same id was stored before.
    pub fn earlier(&self, key: DedupKey) -> Option<PhyOffset> {
        self.window.get(key)
    }

    /// Remembers that the id was stored at `phy`.
    pub fn stored(&mut self, key: DedupKey, phy: PhyOffset) {
        self.window.put(key, phy, self.options);
        self.window.admitted.push_back(phy);
    }
}

impl DedupWindow {
    /// Opens the window as its files say.
    pub(super) fn open(disk: Arc<dyn Disk>, dir: PathBuf, options: DedupOptions) -> io::Result<Self> {
        let mut window = Window {
            current: Generation::new(1, options.entries),
            previous: Generation::new(0, options.entries),
            floor: PhyOffset::ZERO,
            admitted: VecDeque::new(),
            gone: Vec::new(),
        };
        let starts: Vec<u64> =
            disk.list(&dir)?.iter().filter_map(|(name, _)| parse_offset_name(name)).collect();
        let mut kept = Vec::new();
        for start in starts.into_iter().rev() {
            let path = offset_path(&dir, start);
            if kept.len() < 2 {
                let file = disk.open(&path, u64::from(options.entries) * ENTRY_BYTES)?;
                let file = EntryFile::new(path.clone(), file)?;
                // One that was made and never written would take entries from before its name, and another
                // generation may begin at that.
                if file.first().is_some() {
                    kept.push(file);
                    continue;
                }
            }
            disk.remove(&path)?;
        }
        window.floor = kept.last().and_then(EntryFile::first).unwrap_or(PhyOffset::ZERO);
        for file in kept.into_iter().rev() {
            let serial = window.current.serial + 1;
            let loaded = Generation::load(serial, file, options.entries);
            window.previous = std::mem::replace(&mut window.current, loaded);
        }
        Ok(Self {
            disk,
            dir,
            options,
            hits: AtomicU64::new(0),
            window: Mutex::new(window),
            file: Mutex::new(()),
        })
    }

    /// Begins the admission of a send or batch; no other one is admitted until it is dropped.
    pub fn admit(&self) -> Admission<'_> {
        Admission { window: self.lock(), options: self.options }
    }

    /// Where the id was stored before, if it was; another send may be storing it just now.
    pub fn earlier(&self, key: DedupKey) -> Option<PhyOffset> {
        self.lock().get(key)
    }

    /// Counts one send that was answered with an earlier one's result.
    pub fn count_hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends answered with an earlier one's result since the start.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// Ids that are remembered.
    pub fn len(&self) -> usize {
        let window = self.lock();
        window.current.ids() + window.previous.ids()
    }

    /// Whether no id is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Remembers a dispatched record.
    pub(super) fn apply(&self, record: &Dispatched<'_>) {
        self.dispatched(record.view.phy_offset(), record.view.store_at(), || DedupKey::of(record));
    }

    /// `key` makes the record's key, if it has one.
    fn dispatched(&self, phy: PhyOffset, store_at: Millis, key: impl FnOnce() -> Option<DedupKey>) {
        let mut window = self.lock();
        if window.was_admitted(phy) {
            window.note_time(phy, store_at, self.options);
        } else if let Some(key) = key() {
            window.remember(key, phy, store_at, self.options);
        }
    }

    /// Forgets generations whose time is over even though nothing is sent.
    pub(super) fn expire(&self, now: Millis) {
        self.lock().turn_if_due(now, self.options);
    }

    /// Writes the entries that are only in memory. Durable when it returns.
    pub(super) fn write(&self) -> io::Result<()> {
        let _alone = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let serials = {
            let window = self.lock();
            [window.previous.serial, window.current.serial]
        };
        serials.into_iter().try_for_each(|serial| self.write_generation(serial))?;
        for path in std::mem::take(&mut self.lock().gone) {
            if let Err(error) = self.disk.remove(&path) {
                tracing::warn!(%error, path = %path.display(), "cannot remove an old dedup file");
            }
        }
        Ok(())
    }

    /// Writes what one generation has in memory, unless it is forgotten meanwhile.
    fn write_generation(&self, serial: u64) -> io::Result<()> {
        let begun = self.lock().generation(serial).and_then(|generation| {
            let (first, count) = generation.unwritten()?;
            Some((first, count, generation.file().cloned()))
        });
        let Some((first, count, file)) = begun else { return Ok(()) };
        let file = if let Some(file) = file {
            file
        } else {
            let path = offset_path(&self.dir, first.get());
            let file = self.disk.open(&path, u64::from(self.options.entries) * ENTRY_BYTES)?;
            let file = EntryFile::new(path, file)?;
            let mut window = self.lock();
            let Some(generation) = window.generation(serial) else {
                window.gone.push(file.path);
                return Ok(());
            };
            // Before anything is written: when that fails, the file still goes with its generation.
            generation.set_file(file.clone());
            file
        };
        let mut bytes = Vec::new();
        for from in (0..count).step_by(WRITE_AT_ONCE) {
            bytes.clear();
            let mut window = self.lock();
            let Some(generation) = window.generation(serial) else { return Ok(()) };
            let at = generation.encode(from, WRITE_AT_ONCE.min(count - from), &mut bytes);
            drop(window);
            file.file.write_at(at, &bytes)?;
        }
        file.file.sync()?;
        if let Some(generation) = self.lock().generation(serial) {
            generation.wrote(count);
        }
        Ok(())
    }

    /// Forgets every id stored at or beyond `end`. Durable when it returns.
    pub(super) fn truncate(&self, end: PhyOffset) -> io::Result<()> {
        {
            let Window { current, previous, floor, gone, admitted } = &mut *self.lock();
            admitted.retain(|phy| *phy < end);
            *floor = end.min(*floor);
            for generation in [current, previous] {
                gone.extend(generation.forget_from(end)?);
            }
            if gone.is_empty() {
                return Ok(());
            }
        }
        self.write()
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    fn get(&self, key: DedupKey) -> Option<PhyOffset> {
        self.current.find(key).or_else(|| self.previous.find(key))
    }

    /// Whether an admission has entered the record, which is asked of each record once, in the order of the log.
    fn was_admitted(&mut self, phy: PhyOffset) -> bool {
        while let Some(first) = self.admitted.front() {
            if *first > phy {
                return false;
            }
            if self.admitted.pop_front() == Some(phy) {
                return true;
            }
        }
        false
    }

    /// Remembers a record that no admission has entered: one that recovery has found, or a copy.
    fn remember(&mut self, key: DedupKey, phy: PhyOffset, store_at: Millis, options: DedupOptions) {
        if phy < self.floor {
            return;
        }
        // Of several messages with one id the newest counts.
        if self.get(key).is_none_or(|known| known < phy) {
            self.put(key, phy, options);
        }
        self.note_time(phy, store_at, options);
    }

    /// Learns from a record that is remembered what the time is.
    fn note_time(&mut self, phy: PhyOffset, store_at: Millis, options: DedupOptions) {
        // One that is in the generation before says nothing of when this one began.
        if self.current.began.is_none() && self.current.first().is_some_and(|first| first <= phy) {
            self.current.began = Some(store_at);
        }
        self.turn_if_due(store_at, options);
    }

    fn put(&mut self, key: DedupKey, phy: PhyOffset, options: DedupOptions) {
        if self.current.is_full() {
            self.turn(options);
        }
        self.current.put(key, phy);
    }

    /// Starts a new generation when the current one is full or old enough.
    fn turn_if_due(&mut self, now: Millis, options: DedupOptions) {
        let old = self.current.began.is_some_and(|began| now.since(began) * 2 >= options.window_ms);
        if old || self.current.is_full() {
            self.turn(options);
        }
    }

    fn turn(&mut self, options: DedupOptions) {
        let next = Generation::new(self.current.serial + 1, options.entries);
        let before = std::mem::replace(&mut self.current, next);
        let gone = std::mem::replace(&mut self.previous, before);
        self.gone.extend(gone.path().map(std::path::Path::to_path_buf));
    }

    /// The generation with that number, unless it is forgotten.
    fn generation(&mut self, serial: u64) -> Option<&mut Generation> {
        [&mut self.current, &mut self.previous].into_iter().find(|generation| generation.serial == serial)
    }
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
