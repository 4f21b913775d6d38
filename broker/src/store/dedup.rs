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
//! An entry is a hash of topic and id; on a hit the caller compares the stored record itself.
//!
//! After a crash the files may lack the newest entries; dispatch adds them again from the log.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_proto::ids::{Millis, PhyOffset};
use gantry_proto::names::TopicKind;
use gantry_proto::record::TransactionFlag;

use super::disk::{Disk, DiskFile, offset_path, parse_offset_name};
use super::projection::Dispatched;

const ENTRY_BYTES: u64 = 16;

/// Bounds of the window.
#[derive(Clone, Copy, Debug)]
pub struct DedupOptions {
    /// Ids are remembered at least half and at most all of this, in milliseconds.
    pub window_ms: u64,
    /// Ids remembered at the most in one of the two generations. Costs about 40 bytes of memory each.
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
    pub fn new(topic: &str, uniq_key: &str) -> Self {
        let seed = xxhash_rust::xxh3::xxh3_64(topic.as_bytes());
        Self(xxhash_rust::xxh3::xxh3_64_with_seed(uniq_key.as_bytes(), seed))
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

/// Passes a hash through as its own hash.
#[derive(Debug, Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

type Table = HashMap<DedupKey, PhyOffset, BuildHasherDefault<Identity>>;

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

#[derive(Debug, Default)]
struct Window {
    current: Generation,
    previous: Generation,
    /// First byte of the log that was not applied.
    position: PhyOffset,
}

#[derive(Debug, Default)]
struct Generation {
    table: Table,
    /// Store time of its first entry.
    began: Option<Millis>,
    file: Option<(PathBuf, Arc<dyn DiskFile>)>,
    written: u64,
    unwritten: Vec<(DedupKey, PhyOffset)>,
}

/// The window, held for the admission of one send or batch.
#[derive(Debug)]
pub struct Admission<'a> {
    window: MutexGuard<'a, Window>,
}

impl Admission<'_> {
    /// Where the same id was stored before.
    pub fn earlier(&self, key: DedupKey) -> Option<PhyOffset> {
        self.window.get(key)
    }

    /// Remembers that the id was stored at `phy`.
    pub fn stored(&mut self, key: DedupKey, phy: PhyOffset) {
        self.window.current.table.insert(key, phy);
    }
}

impl DedupWindow {
    /// Opens the window as its files say.
    pub(super) fn open(disk: Arc<dyn Disk>, dir: PathBuf, options: DedupOptions) -> io::Result<Self> {
        let mut window = Window::default();
        let starts: Vec<u64> =
            disk.list(&dir)?.iter().filter_map(|(name, _)| parse_offset_name(name)).collect();
        let (old, kept) = starts.split_at(starts.len().saturating_sub(2));
        for start in old {
            disk.remove(&offset_path(&dir, *start))?;
        }
        for start in kept {
            let path = offset_path(&dir, *start);
            let file = disk.open(&path, u64::from(options.entries) * ENTRY_BYTES)?;
            window.previous = std::mem::replace(&mut window.current, Generation::load(path, file)?);
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
        Admission { window: self.lock() }
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
        window.current.table.len() + window.previous.table.len()
    }

    /// Whether no id is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Remembers a dispatched record.
    pub(super) fn apply(&self, record: &Dispatched<'_>) {
        let phy = record.view.phy_offset();
        let mut window = self.lock();
        if let Some(key) = DedupKey::of(record) {
            // The admission has entered it already, unless the record comes from recovery. Of several
            // messages with one id the newest counts.
            let at = window.current.table.entry(key).or_insert(phy);
            *at = phy.max(*at);
            if *at == phy {
                window.current.unwritten.push((key, phy));
            }
            window.current.began.get_or_insert(record.view.store_at());
            self.turn(&mut window, record.view.store_at());
        }
        window.position = phy + u64::from(record.view.total_size());
    }

    /// Starts a new generation when the current one is full or old enough.
    fn turn(&self, window: &mut Window, now: Millis) {
        let full = window.current.table.len() >= self.options.entries as usize;
        let old = window.current.began.is_some_and(|began| now.since(began) * 2 >= self.options.window_ms);
        if !full && !old {
            return;
        }
        let size = window.current.table.len();
        let next = Generation {
            table: Table::with_capacity_and_hasher(size, BuildHasherDefault::default()),
            ..Generation::default()
        };
        let before = std::mem::replace(&mut window.current, next);
        let gone = std::mem::replace(&mut window.previous, before);
        if let Some((path, _)) = gone.file
            && let Err(error) = self.disk.remove(&path)
        {
            tracing::warn!(%error, path = %path.display(), "cannot remove an old dedup file");
        }
    }

    /// Forgets generations whose time is over even though nothing is sent.
    pub(super) fn expire(&self, now: Millis) {
        let mut window = self.lock();
        self.turn(&mut window, now);
    }

    /// Writes the entries that are only in memory. Durable when it returns.
    pub(super) fn write(&self) -> io::Result<()> {
        let _alone = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        for pick in [Window::previous_mut as fn(&mut Window) -> &mut Generation, Window::current_mut] {
            let (entries, file, written) = {
                let mut window = self.lock();
                let generation = pick(&mut window);
                let Some((_, first)) = generation.unwritten.first().copied() else { continue };
                if generation.file.is_none() {
                    let path = offset_path(&self.dir, first.get());
                    let bytes = u64::from(self.options.entries) * ENTRY_BYTES;
                    let file = self.disk.open(&path, bytes)?;
                    generation.file = Some((path, file));
                }
                let entries = std::mem::take(&mut generation.unwritten);
                let Some((_, file)) = generation.file.clone() else { continue };
                let written = generation.written;
                generation.written += entries.len() as u64;
                (entries, file, written)
            };
            let mut bytes = Vec::with_capacity(entries.len() * 16);
            for (key, phy) in &entries {
                bytes.extend_from_slice(&key.0.to_be_bytes());
                bytes.extend_from_slice(&(phy.get() + 1).to_be_bytes());
            }
            if let Err(error) = file.write_at(written * ENTRY_BYTES, &bytes).and_then(|()| file.sync()) {
                self.lock().take_back(&file, entries);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Forgets every id stored at or beyond `end`.
    pub(super) fn truncate(&self, end: PhyOffset) {
        let mut window = self.lock();
        for generation in [Window::current_mut, Window::previous_mut] {
            generation(&mut window).table.retain(|_, phy| *phy < end);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    fn get(&self, key: DedupKey) -> Option<PhyOffset> {
        self.current.table.get(&key).or_else(|| self.previous.table.get(&key)).copied()
    }

    /// Keeps entries for the next write, in the same place: a checkpoint after that may count on them.
    fn take_back(&mut self, file: &Arc<dyn DiskFile>, mut entries: Vec<(DedupKey, PhyOffset)>) {
        let mine = |generation: &&mut Generation| {
            generation.file.as_ref().is_some_and(|(_, known)| Arc::ptr_eq(known, file))
        };
        // Neither has it when its time is over.
        if let Some(generation) = [&mut self.current, &mut self.previous].into_iter().find(mine) {
            generation.written -= entries.len() as u64;
            entries.append(&mut generation.unwritten);
            generation.unwritten = entries;
        }
    }

    fn current_mut(&mut self) -> &mut Generation {
        &mut self.current
    }

    fn previous_mut(&mut self) -> &mut Generation {
        &mut self.previous
    }
}

impl Generation {
    fn load(path: PathBuf, file: Arc<dyn DiskFile>) -> io::Result<Self> {
        let map = file.map()?;
        let (entries, _) = map.as_chunks::<16>();
        let decode = |entry: &[u8; 16]| {
            let entry = u128::from_be_bytes(*entry);
            #[expect(clippy::cast_possible_truncation, reason = "the two halves of the entry")]
            let (hash, phy) = ((entry >> 64) as u64, entry as u64);
            Some((DedupKey(hash), PhyOffset::new(phy.checked_sub(1)?)))
        };
        // Entries are written without gaps; making the table large enough at once saves most of the time.
        let written = entries.partition_point(|entry| decode(entry).is_some());
        let mut table = Table::with_capacity_and_hasher(written, BuildHasherDefault::default());
        table.extend(entries.iter().take(written).filter_map(decode));
        let written = written as u64;
        Ok(Self { table, began: None, file: Some((path, file)), written, unwritten: Vec::new() })
    }
}

#[cfg(test)]
mod tests;
