//! Everything the store asks of a disk, behind one trait, so that power loss, a failed flush and a
//! full disk can be made to happen in tests.
//!
//! Writes are positional; reads go through read-only maps. A reader is only ever handed bytes below
//! the *written* watermark, and bytes below it never change, so a map is never read while the same
//! bytes are written. This is the only file of the workspace with `unsafe` code.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FlockOperation};

/// Free and total space of the file system under a directory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system.
    pub total: u64,
    /// What an ordinary process may still write.
    pub available: u64,
}

impl Space {
    /// Used share, 0.0 to 1.0.
    pub fn used_ratio(self) -> f64 {
        if self.total == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "a ratio for a threshold; 53 bits are plenty")]
        let free = self.available as f64 / self.total as f64;
        1.0 - free
    }
}

/// A directory tree of files, as the store uses it.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// Names and lengths of the plain files in `dir`, sorted; empty when there is no such directory.
    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>>;
    /// Names of the directories in `dir`, sorted; empty when there is no such directory.
    fn dirs(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Opens `path`, or creates it with `len` zero bytes (sparse). An existing file keeps its length.
    fn open(&self, path: &Path, len: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes `bytes` the whole content of `path`, durably: after a crash it holds the old or the new
    /// content, never a mix.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Removes a file; a missing one is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in `dir` durable, whoever made them; nothing to do where there is no such directory.
    fn sync_names(&self, dir: &Path) -> io::Result<()>;
    /// Space of the file system that holds `dir`.
    fn space(&self, dir: &Path) -> io::Result<Space>;
    /// Names the machine's run: while it is the same, what was written is there, flushed or not. `None` where that cannot
    /// be told.
    fn boot(&self) -> Option<String> {
        None
    }
    /// The file system that holds `dir`, if it can be made durable as a whole. Only errors from now on are told by
    /// its [`sync`](Volume::sync).
    fn volume(&self, _dir: &Path) -> io::Result<Option<Arc<dyn Volume>>> {
        Ok(None)
    }
    /// Opens `path` as [`open`](Self::open) does. Where there is a [`volume`](Self::volume), a file that was
    /// created, its directories among them, is durable only with its next sync.
    fn open_unsynced(&self, path: &Path, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path, len)
    }
}

/// A file system.
pub trait Volume: Send + Sync + std::fmt::Debug {
    /// Makes everything durable that was written or created in it.
    fn sync(&self) -> io::Result<()>;
}

/// One open file.
pub trait DiskFile: Send + Sync + std::fmt::Debug {
    /// Length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Writes all of `bytes` at byte `at`.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Reserves disk blocks for `len` bytes from `at`, without changing content or length.
    fn allocate(&self, at: u64, len: u64) -> io::Result<()>;
    /// Writes zeroes over `len` bytes from `at`, which were reserved and never written: content and length stay. A flush
    /// of what is written there later need not note in the file system that its blocks are in use now.
    fn prepare(&self, _at: u64, _len: usize) -> io::Result<()> {
        Ok(())
    }
    /// Makes written bytes durable (fdatasync).
    fn sync(&self) -> io::Result<()>;
    /// Maps the whole file for reading.
    fn map(&self) -> io::Result<Map>;
    /// Reads what lies from byte `at` on into `bytes`; fewer at the file's end. For a look at a file that is closed
    /// again: maps cost more, and have holes around them filled with pages.
    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let map = self.map()?;
        let rest = map.get(usize::try_from(at).unwrap_or(usize::MAX)..).unwrap_or_default();
        let len = rest.len().min(bytes.len());
        bytes[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
    /// Makes every byte from `at` on zero. The length stays, also in a crash; durable with the next `sync`.
    fn zero_from(&self, at: u64) -> io::Result<()>;
    /// The first stretch at or behind `at` that was ever written, as far as the file system knows; `None` when
    /// there are only holes. What lies around it is zero.
    fn next_data(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        Ok(Some(at..u64::MAX))
    }
}

/// A read-only view of a whole file. Clones share the view; it stays valid after the file is removed.
#[derive(Clone, Debug)]
pub struct Map(Arc<memmap2::Mmap>);

impl Deref for Map {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// The machine's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

/// The machine's file system, to look at only: whatever would change it fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadOnlyDisk;

#[derive(Debug)]
struct RealFile {
    file: File,
}

/// The file system of an open directory. The kernel tells each open file once of an error since it was opened.
#[derive(Debug)]
struct RealVolume {
    dir: File,
}

impl Volume for RealVolume {
    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.dir)?)
    }
}

impl Disk for RealDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        let found = entries(dir)?.into_iter().filter(|(_, meta)| meta.is_file());
        Ok(found.map(|(name, meta)| (name, meta.len())).collect())
    }

    fn dirs(&self, dir: &Path) -> io::Result<Vec<String>> {
        let found = entries(dir)?.into_iter().filter(|(_, meta)| meta.is_dir());
        Ok(found.map(|(name, _)| name).collect())
    }

    fn open(&self, path: &Path, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = create(path, create_dirs)?;
        if file.metadata()?.len() == 0 && len > 0 {
            let made = file.set_len(len).and_then(|()| file.sync_all());
            if let Err(error) = made.and_then(|()| sync_dir(parent(path)?)) {
                // Found again with its length it would be taken for durable.
                let _ = std::fs::remove_file(path);
                return Err(error);
            }
        }
        Ok(Arc::new(RealFile { file }))
    }

    fn open_unsynced(&self, path: &Path, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let file = create(path, create_dirs_unsynced)?;
        if file.metadata()?.len() == 0 && len > 0 {
            file.set_len(len)?;
        }
        Ok(Arc::new(RealFile { file }))
    }

    fn volume(&self, dir: &Path) -> io::Result<Option<Arc<dyn Volume>>> {
        create_dirs(dir)?;
        Ok(Some(Arc::new(RealVolume { dir: File::open(dir)? })))
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let dir = parent(path)?;
        create_dirs(dir)?;
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".tmp");
        let tmp = dir.join(name);
        let mut file = File::create(&tmp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&tmp, path)?;
        sync_dir(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_dir(parent(path)?),
        }
    }

    fn sync_names(&self, dir: &Path) -> io::Result<()> {
        match sync_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn boot(&self) -> Option<String> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(boot.trim().to_owned()).filter(|boot| !boot.is_empty())
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(dir)?;
        let unit = stat.f_frsize;
        Ok(Space { total: stat.f_blocks.saturating_mul(unit), available: stat.f_bavail.saturating_mul(unit) })
    }
}

impl Disk for ReadOnlyDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        RealDisk.list(dir)
    }

    fn dirs(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.dirs(dir)
    }

    fn open(&self, path: &Path, _len: u64) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile { file: File::open(path)? }))
    }

    fn boot(&self) -> Option<String> {
        RealDisk.boot()
    }

    fn replace(&self, _path: &Path, _bytes: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn remove(&self, _path: &Path) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_names(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        RealDisk.space(dir)
    }
}

impl DiskFile for RealFile {
    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    fn allocate(&self, at: u64, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, at, len) {
            // Not every file system can reserve; the file is then merely sparse.
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            other => Ok(other?),
        }
    }

    fn prepare(&self, at: u64, len: usize) -> io::Result<()> {
        static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
        let (mut at, mut left) = (at, len);
        while left > 0 {
            let now = left.min(ZEROES.len());
            self.file.write_all_at(&ZEROES[..now], at)?;
            at += now as u64;
            left -= now;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn map(&self) -> io::Result<Map> {
        // SAFETY: the mapping is read-only and shared. The store never shortens a file below bytes it
        // hands to readers (`zero_from` runs before readers exist), other processes are kept out by
        // the lock file, and only bytes below the written watermark, which never change again, are
        // read. So no byte changes while a reference to it is alive.
        let map = unsafe { memmap2::MmapOptions::new().map(&self.file)? };
        Ok(Map(Arc::new(map)))
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match self.file.read_at(&mut bytes[done..], at + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn zero_from(&self, at: u64) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        if at >= len {
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, punch, at, len - at) {
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(&self.file, at, len),
            other => Ok(other?),
        }
    }

    fn next_data(&self, at: u64) -> io::Result<Option<Range<u64>>> {
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(at)) {
            Ok(from) => {
                let to = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Hole(from))?;
                Ok(Some(from..to))
            }
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(rustix::io::Errno::INVAL) => Ok(Some(at..u64::MAX)), // a file system that does not know
            Err(error) => Err(error.into()),
        }
    }
}

/// Opens a file, making it and, by `make_dirs`, its directories where they are missing.
fn create(path: &Path, make_dirs: fn(&Path) -> io::Result<()>) -> io::Result<File> {
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_dirs(parent(path)?)?;
            open()
        }
        other => other,
    }
}

/// For file systems without holes.
fn write_zeros(file: &File, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = from;
    while at < to {
        let len = zeros.len().min(usize::try_from(to - at).unwrap_or(usize::MAX));
        file.write_all_at(&zeros[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

/// What lies in `dir`, sorted by name; names that are not UTF-8 are none of ours.
fn entries(dir: &Path) -> io::Result<Vec<(String, std::fs::Metadata)>> {
    let listing = match std::fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.metadata()?));
        }
    }
    found.sort_by(|left, right| left.0.cmp(&right.0));
    Ok(found)
}

fn parent(path: &Path) -> io::Result<&Path> {
    let dir = path
        .parent()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a file needs a directory"))?;
    // A name alone lies in the working directory.
    Ok(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })
}

/// Creates `dir` and its parents, each durably.
fn create_dirs(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty()) {
        create_dirs(above)?;
    }
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let synced = match dir.parent() {
        Some(above) if !above.as_os_str().is_empty() => sync_dir(above),
        _ => Ok(()),
    };
    synced.inspect_err(|_| {
        // Found again it would be taken for durable. Where another has put something into it, it stays.
        let _ = std::fs::remove_dir(dir);
    })
}

fn create_dirs_unsynced(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The store directory's lock, held while the value lives. A POSIX lock, because that is what the
/// peer's Java broker takes: the two exclude each other.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the lock of `path`, creating the file; `None` when another process holds it.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        create_dirs(parent(path)?)?;
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        if file.metadata()?.len() == 0 {
            file.write_all(b"lock")?;
        }
        Ok(Some(Self { _file: file }))
    }

    /// Keeps brokers out while the value lives, and changes nothing: a lock file that is not there is not made
    /// (without one nobody runs). `None` when another process holds the lock. As with every POSIX lock, this must
    /// not be asked in the process that holds it: closing the file would let go of it.
    pub fn share(path: &Path) -> io::Result<Option<Option<Self>>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(None)),
            Err(error) => return Err(error),
        };
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Some(Some(Self { _file: file }))),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Twenty digits, zero padded: how every fixed-length file of the store is named after its first byte.
pub fn offset_name(start: u64) -> String {
    format!("{start:020}")
}

/// The most that such a name says, 4 EiB: sums with it and the length of a file do not overflow.
const OFFSET_MAX: u64 = 1 << 62;

/// The offset in such a name, or `None` for any other file.
pub fn parse_offset_name(name: &str) -> Option<u64> {
    let offset = (name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit())).then(|| name.parse());
    offset?.ok().filter(|offset| *offset <= OFFSET_MAX)
}

/// `dir/NNNNNNNNNNNNNNNNNNNN`.
pub fn offset_path(dir: &Path, start: u64) -> PathBuf {
    dir.join(offset_name(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_seen_through_the_map() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = RealDisk.open(&dir.path().join("a/b/segment"), 8192)?;
        let map = file.map()?;
        file.write_at(4000, b"across a page")?;
        assert_eq!(map.get(4000..4013), Some(&b"across a page"[..]));
        file.zero_from(4005)?;
        assert_eq!(file.map()?.get(4000..4010), Some(&b"acros\0\0\0\0\0"[..]));
        assert_eq!(file.length()?, 8192);
        Ok(())
    }

    #[test]
    fn replace_leaves_one_whole_file() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("config/topics.json");
        RealDisk.replace(&path, b"one")?;
        RealDisk.replace(&path, b"two")?;
        assert_eq!(std::fs::read(&path)?, b"two");
        assert_eq!(RealDisk.list(&dir.path().join("config"))?, [("topics.json".to_owned(), 3)]);
        RealDisk.remove(&path)?;
        RealDisk.remove(&path)
    }

    /// Regression: `--ready-file NAME` without a directory ended the broker.
    #[test]
    fn a_name_alone_lies_in_the_working_directory() {
        assert_eq!(parent(Path::new("ready")).expect("a directory"), Path::new("."));
        assert_eq!(parent(Path::new("a/ready")).expect("a directory"), Path::new("a"));
        assert!(parent(Path::new("/")).is_err());
    }

    #[test]
    fn only_offset_names_are_parsed() {
        assert_eq!(parse_offset_name(&offset_name(1_073_741_824)), Some(1_073_741_824));
        assert_eq!(parse_offset_name("lost+found"), None);
        assert_eq!(parse_offset_name("99999999999999999999"), None);
        assert_eq!(parse_offset_name("18446744073709551615"), None, "one byte more would be none");
    }
}
