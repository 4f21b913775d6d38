//! What a disk knows: for every sector, length and name, what is certainly on it and what may be.
//!
//! A [`Disk`] is the store as it was at the beginning, all of it certain, and everything that the journal tells
//! of since. A version is certain once a sync that began after it has succeeded: `fdatasync` or `fsync` of the
//! file for its bytes and its length, `fsync` of the directory for a name in it, `syncfs` for everything. When a sync fails, what it was
//! for stays in doubt forever, whatever later syncs say: the system takes such pages for written.
//!
//! The content of a sector is what the page cache held after each write that touched it: the disk may hold any
//! of these, but never the bytes of a later write beside those from before an earlier one.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use super::format::{Entry, Kind};

/// What a disk writes whole or not at all, in bytes.
pub const SECTOR: u64 = 512;
const SECTOR_LEN: usize = 512;

/// The content of a sector; `None`: zeros that take no space.
pub(super) type Sector = Option<Arc<[u8; SECTOR_LEN]>>;
/// Number of a file or directory.
pub(super) type Node = usize;

/// The root directory.
pub(super) const ROOT: Node = 0;

/// One value and the versions that came after what is certain.
#[derive(Clone, Debug, Default)]
pub(super) struct History<T> {
    pub certain: T,
    /// In order.
    versions: Vec<Version<T>>,
}

#[derive(Clone, Debug)]
struct Version<T> {
    /// When it came.
    at: u64,
    /// A sync that should have made it certain has failed.
    doubtful: bool,
    value: T,
}

impl<T: Clone> History<T> {
    fn new(certain: T) -> Self {
        Self { certain, versions: Vec::new() }
    }

    /// The newest value.
    pub fn now(&self) -> &T {
        self.versions.last().map_or(&self.certain, |version| &version.value)
    }

    /// The newest value from `time` or before.
    pub fn until(&self, time: u64) -> &T {
        let known = self.versions.iter().rev().find(|version| version.at <= time);
        known.map_or(&self.certain, |version| &version.value)
    }

    /// When the uncertain versions came.
    pub fn times(&self) -> impl Iterator<Item = u64> {
        self.versions.iter().map(|version| version.at)
    }

    fn set(&mut self, at: u64, value: T) {
        self.versions.push(Version { at, doubtful: false, value });
    }

    /// What came until `time` is on the disk, except what a failed sync was for.
    fn commit(&mut self, time: u64) {
        let known = self.versions.iter().rposition(|version| version.at <= time && !version.doubtful);
        if let Some(version) = known.and_then(|last| self.versions.drain(..=last).next_back()) {
            self.certain = version.value;
        }
    }

    /// What came until `time` will never be certain.
    fn doubt(&mut self, time: u64) {
        for version in self.versions.iter_mut().filter(|version| version.at <= time) {
            version.doubtful = true;
        }
    }
}

/// A file's bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub len: History<u64>,
    pub sectors: BTreeMap<u64, History<Sector>>,
}

impl Content {
    fn write(&mut self, time: u64, at: u64, bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        self.overlay(time, at, bytes);
        if end > *self.len.now() {
            self.len.set(time, end);
        }
    }

    fn overlay(&mut self, time: u64, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (number, within) = (at / SECTOR, (at % SECTOR) as usize);
            let (part, rest) = bytes.split_at(bytes.len().min(SECTOR_LEN - within));
            let sector = self.sectors.entry(number).or_default();
            let mut content = sector.now().as_deref().copied().unwrap_or([0; SECTOR_LEN]);
            content[within..within + part.len()].copy_from_slice(part);
            sector.set(time, Some(Arc::new(content)));
            at += part.len() as u64;
            bytes = rest;
        }
    }

    /// Makes `from..end` zero.
    fn zero(&mut self, time: u64, from: u64, end: u64) {
        if from >= end {
            return;
        }
        let whole = from.div_ceil(SECTOR)..end / SECTOR;
        for edge in [from / SECTOR, end / SECTOR] {
            let (start, stop) = (from.max(edge * SECTOR), end.min((edge + 1) * SECTOR));
            let there = self.sectors.get(&edge).is_some_and(|sector| sector.now().is_some());
            if there && !whole.contains(&edge) && start < stop {
                let len = usize::try_from(stop - start).expect("at most a sector");
                self.overlay(time, start, &[0; SECTOR_LEN][..len]);
            }
            if from / SECTOR == end / SECTOR {
                return;
            }
        }
        if whole.start < whole.end {
            for (_, sector) in self.sectors.range_mut(whole).filter(|(_, sector)| sector.now().is_some()) {
                sector.set(time, None);
            }
        }
    }

    fn truncate(&mut self, time: u64, len: u64) {
        let before = *self.len.now();
        self.zero(time, len, before.next_multiple_of(SECTOR).max(len));
        if len != before {
            self.len.set(time, len);
        }
    }

    fn each(&mut self, mut change: impl FnMut(&mut History<Sector>), len: impl Fn(&mut History<u64>)) {
        self.sectors.values_mut().for_each(&mut change);
        len(&mut self.len);
    }
}

#[derive(Clone, Debug)]
pub(super) enum Kept {
    /// Its names.
    Directory(BTreeMap<Vec<u8>, History<Option<Node>>>),
    File(Content),
}

/// A store directory as its disk knows it.
#[derive(Clone, Debug)]
pub struct Disk {
    pub(super) nodes: Vec<Kept>,
    /// Time of the newest change; the first is 1.
    pub(super) time: u64,
    /// A journalling file system has written all names until then.
    pub(super) names_committed: u64,
    /// Syncs under way: what of (`None`: everything), and since when.
    syncs: HashMap<u64, (Option<Node>, u64)>,
}

impl Default for Disk {
    /// An empty directory.
    fn default() -> Self {
        let root = Kept::Directory(BTreeMap::new());
        Self { nodes: vec![root], time: 0, names_committed: 0, syncs: HashMap::new() }
    }
}

impl Disk {
    /// What `dir` holds, all of it certain; an empty one when there is no such directory.
    pub(super) fn load(dir: &Path) -> io::Result<Self> {
        let mut disk = Self::default();
        if dir.exists() {
            disk.load_directory(dir, ROOT)?;
        }
        Ok(disk)
    }

    fn load_directory(&mut self, dir: &Path, into: Node) -> io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let is_dir = entry.file_type()?.is_dir();
            let kept = if is_dir {
                Kept::Directory(BTreeMap::new())
            } else {
                Kept::File(load_file(&File::open(entry.path())?)?)
            };
            let node = self.add(kept);
            if let Some(names) = self.names(into) {
                names.insert(entry.file_name().into_vec(), History::new(Some(node)));
            }
            if is_dir {
                self.load_directory(&entry.path(), node)?;
            }
        }
        Ok(())
    }

    /// Takes over everything that `journal` tells. A part of an entry at its end is none.
    pub(super) fn replay(&mut self, mut journal: &[u8]) {
        while let Some((entry, size)) = Entry::read(journal) {
            journal = &journal[size..];
            match Entry::read(journal) {
                Some((next, size)) if next.kind == Kind::Undo => journal = &journal[size..],
                _ => self.apply(&entry),
            }
        }
    }

    /// Takes over one entry of a journal that nothing has undone.
    pub(super) fn apply(&mut self, entry: &Entry<'_>) {
        self.time += 1;
        let time = self.time;
        match entry.kind {
            Kind::Start => self.syncs.clear(),
            Kind::Create => {
                let node = self.add(Kept::File(Content::default()));
                self.name(entry.path, Some(node));
            }
            Kind::Mkdir => {
                let node = self.add(Kept::Directory(BTreeMap::new()));
                self.name(entry.path, Some(node));
            }
            Kind::Rename => {
                if let Some(node) = self.find(entry.path) {
                    self.name(entry.second, Some(node));
                    self.name(entry.path, None);
                }
            }
            Kind::Unlink => self.name(entry.path, None),
            Kind::Write => self.change(entry.path, |file| file.write(time, entry.a, entry.bytes)),
            Kind::Zero => self.change(entry.path, |file| {
                let end = entry.a.saturating_add(entry.b).min(*file.len.now());
                file.zero(time, entry.a, end);
            }),
            Kind::Truncate => self.change(entry.path, |file| file.truncate(time, entry.a)),
            Kind::SyncBegin => {
                let node = self.find(entry.path);
                if node.is_some() || entry.b == 1 {
                    self.syncs.insert(entry.a, (node.filter(|_| entry.b == 0), time));
                }
            }
            Kind::SyncEnd => {
                let Some((node, since)) = self.syncs.remove(&entry.a) else { return };
                let nodes = node.map_or(0..self.nodes.len(), |node| node..node + 1);
                nodes.for_each(|node| self.synced(node, since, entry.b == 1));
            }
            Kind::Undo => {}
        }
    }

    fn synced(&mut self, node: Node, since: u64, succeeded: bool) {
        if succeeded {
            self.names_committed = self.names_committed.max(since);
        }
        match self.nodes.get_mut(node) {
            Some(Kept::Directory(names)) if succeeded => {
                for name in names.values_mut() {
                    name.commit(since);
                }
                names.retain(|_, name| {
                    name.now().is_some() || name.certain.is_some() || name.times().count() > 0
                });
            }
            Some(Kept::File(file)) if succeeded => {
                file.each(|sector| sector.commit(since), |len| len.commit(since));
            }
            Some(Kept::File(file)) => file.each(|sector| sector.doubt(since), |len| len.doubt(since)),
            // Nothing is taken for written: the next sync of the directory writes it.
            Some(Kept::Directory(_)) | None => {}
        }
    }

    fn add(&mut self, kept: Kept) -> Node {
        self.nodes.push(kept);
        self.nodes.len() - 1
    }

    fn names(&mut self, node: Node) -> Option<&mut BTreeMap<Vec<u8>, History<Option<Node>>>> {
        match self.nodes.get_mut(node)? {
            Kept::Directory(names) => Some(names),
            Kept::File(_) => None,
        }
    }

    /// What the path leads to now.
    fn find(&self, path: &[u8]) -> Option<Node> {
        let mut at = ROOT;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            let Kept::Directory(names) = self.nodes.get(at)? else { return None };
            at = (*names.get(part)?.now())?;
        }
        Some(at)
    }

    fn name(&mut self, path: &[u8], node: Option<Node>) {
        let time = self.time;
        let cut = path.iter().rposition(|byte| *byte == b'/');
        let (dir, name) = cut.map_or((&path[..0], path), |cut| (&path[..cut], &path[cut + 1..]));
        let names = self.find(dir).and_then(|dir| self.names(dir));
        // The store's own directory has no name in it; it is taken to be there.
        if let Some(names) = names.filter(|_| !name.is_empty()) {
            names.entry(name.to_vec()).or_default().set(time, node);
        }
    }

    fn change(&mut self, path: &[u8], change: impl FnOnce(&mut Content)) {
        if let Some(Kept::File(file)) = self.find(path).and_then(|node| self.nodes.get_mut(node)) {
            change(file);
        }
    }
}

fn load_file(file: &File) -> io::Result<Content> {
    use rustix::fs::{SeekFrom, seek};
    let len = file.metadata()?.len();
    let mut content = Content { len: History::new(len), sectors: BTreeMap::new() };
    let mut at = 0;
    while at < len {
        // What no byte was written to is not read.
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data / SECTOR * SECTOR,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = seek(file, SeekFrom::Hole(data))?.min(len);
        let mut bytes = vec![0; 1 << 16];
        at = data;
        while at < hole {
            let part = bytes.len().min(usize::try_from(hole - at).unwrap_or(usize::MAX));
            file.read_exact_at(&mut bytes[..part], at)?;
            for (number, sector) in bytes[..part].chunks(SECTOR_LEN).enumerate() {
                if sector.iter().any(|byte| *byte != 0) {
                    let mut whole = [0; SECTOR_LEN];
                    whole[..sector.len()].copy_from_slice(sector);
                    let history = History::new(Some(Arc::new(whole)));
                    content.sectors.insert(at / SECTOR + number as u64, history);
                }
            }
            at += part as u64;
        }
    }
    Ok(content)
}
