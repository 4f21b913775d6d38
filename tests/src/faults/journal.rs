//! The journal's file, on the tests' side: read as a whole, and put right after a kill.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::disk::Disk;
use super::format::{Entry, Kind};

/// A journal and what the store was at its beginning.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    base: Disk,
    /// Bytes of entries that are true. What follows is of the process that runs, or of the last one.
    settled: Mutex<u64>,
}

impl Journal {
    /// A new journal for `store`, which nobody writes to.
    pub fn create(path: PathBuf, store: &Path) -> io::Result<Self> {
        File::create_new(&path)?;
        Ok(Self { path, base: Disk::load(store)?, settled: Mutex::new(0) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the disk knows, by what the journal tells so far.
    pub fn disk(&self) -> io::Result<Disk> {
        let mut disk = self.base.clone();
        disk.replay(&fs::read(&self.path)?);
        Ok(disk)
    }

    /// Puts the journal's end right, before a new process goes on with the store: the one before may have been
    /// killed between the last entry and what it tells of.
    pub fn settle(&self, store: &Path) -> io::Result<()> {
        let mut settled = self.settled.lock().expect("no test panics while it holds this");
        let mut file = File::options().read(true).write(true).open(&self.path)?;
        file.seek(SeekFrom::Start(*settled))?;
        let mut journal = Vec::new();
        file.read_to_end(&mut journal)?;
        let (mut at, mut last) = (0, None);
        while let Some((entry, size)) = Entry::read(&journal[at..]) {
            (at, last) = (at + size, Some(entry));
        }
        file.set_len(*settled + at as u64)?;
        file.seek(SeekFrom::End(0))?;
        if let Some(last) = last {
            correct(&mut file, store, &last)?;
        }
        *settled = file.stream_position()?;
        Ok(())
    }
}

/// Appends to `journal` what is true instead of `last`, unless `last` is.
fn correct(journal: &mut File, store: &Path, last: &Entry<'_>) -> io::Result<()> {
    let path = |bytes: &[u8]| store.join(std::ffi::OsStr::from_bytes(bytes));
    let exists = |bytes: &[u8]| path(bytes).symlink_metadata().is_ok();
    let mut found = Vec::new();
    let done = match last.kind {
        Kind::Create | Kind::Mkdir => exists(last.path),
        Kind::Rename | Kind::Unlink => !exists(last.path),
        Kind::Truncate => fs::metadata(path(last.path))?.len() == last.a,
        Kind::Zero => {
            let file = File::open(path(last.path))?;
            let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(last.a));
            data.is_err() || data.is_ok_and(|data| data >= last.a + last.b)
        }
        Kind::Write => {
            let file = File::open(path(last.path))?;
            let there = file.metadata()?.len().saturating_sub(last.a);
            found = vec![0; last.bytes.len().min(usize::try_from(there).unwrap_or(usize::MAX))];
            file.read_exact_at(&mut found, last.a)?;
            found == last.bytes
        }
        Kind::Start | Kind::SyncBegin | Kind::SyncEnd | Kind::Undo => true,
    };
    if done {
        return Ok(());
    }
    append(journal, &Entry::new(Kind::Undo, &[], 0, 0))?;
    if !found.is_empty() {
        append(journal, &Entry { bytes: &found, ..*last })?;
    }
    Ok(())
}

/// Writes an entry behind the others.
pub(super) fn append(journal: &mut impl io::Write, entry: &Entry<'_>) -> io::Result<()> {
    let header = entry.header().ok_or(io::ErrorKind::InvalidInput)?;
    for part in [&header[..], entry.path, entry.second, entry.bytes] {
        journal.write_all(part)?;
    }
    Ok(())
}
