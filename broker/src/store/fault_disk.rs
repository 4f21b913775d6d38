//! A disk that fails when it is told to, for tests: real files underneath.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::disk::{Disk, DiskFile, Map, RealDisk, Space, Volume};

/// Input/output error.
pub const EIO: i32 = 5;
/// No space left on device.
pub const ENOSPC: i32 = 28;

/// What can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Opening or creating a file.
    Open,
    /// Writing to a file, after this many bytes of it.
    Write { after: usize },
    /// Making it durable.
    Sync,
    /// Reserving blocks.
    Allocate,
    /// Replacing a small file.
    Replace,
    /// Making the end of a file zero.
    Zero,
}

/// One fault: an operation on files whose path holds a text fails with a system error.
#[derive(Clone, Debug)]
struct Fault {
    op: Op,
    path: &'static str,
    errno: i32,
}

#[derive(Debug, Default)]
struct State {
    faults: Vec<Fault>,
    /// Files whose path holds this text wait in a sync.
    held: Option<&'static str>,
    space: Option<Space>,
    syncs: Vec<PathBuf>,
}

/// The disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct FaultDisk(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug)]
struct FaultFile {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    disk: FaultDisk,
}

impl FaultDisk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().expect("no test panics while it holds this")
    }

    /// Until what this gives is dropped, syncs of files whose path holds `path` wait.
    pub fn hold_syncs(&self, path: &'static str) -> HeldSyncs {
        self.lock().held = Some(path);
        HeldSyncs(self.clone())
    }

    /// From now on `op` fails on every file whose path holds `path`.
    pub fn fail(&self, op: Op, path: &'static str, errno: i32) {
        self.lock().faults.push(Fault { op, path, errno });
    }

    /// Nothing fails any more.
    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    /// What [`Disk::space`] says from now on.
    pub fn set_space(&self, space: Space) {
        self.lock().space = Some(space);
    }

    /// How often a file whose path holds `path` was synced, or was to be.
    pub fn syncs(&self, path: &str) -> usize {
        self.lock().syncs.iter().filter(|synced| synced.to_string_lossy().contains(path)).count()
    }

    /// The first fault of this kind: its error and, of a write, how many bytes still succeed.
    fn fault(&self, path: &Path, is: impl Fn(Op) -> bool) -> Option<(io::Error, usize)> {
        let path = path.to_string_lossy();
        let state = self.lock();
        let fault = state.faults.iter().find(|fault| is(fault.op) && path.contains(fault.path))?;
        let after = if let Op::Write { after } = fault.op { after } else { 0 };
        Some((io::Error::from_raw_os_error(fault.errno), after))
    }

    fn check(&self, path: &Path, op: Op) -> io::Result<()> {
        self.fault(path, |known| known == op).map_or(Ok(()), |(error, _)| Err(error))
    }
}

/// Syncs wait while it lives.
#[must_use]
#[derive(Debug)]
pub struct HeldSyncs(FaultDisk);

impl Drop for HeldSyncs {
    fn drop(&mut self) {
        self.0.lock().held = None;
        self.0.0.1.notify_all();
    }
}

impl Disk for FaultDisk {
    fn list(&self, dir: &Path) -> io::Result<Vec<(String, u64)>> {
        RealDisk.list(dir)
    }

    fn dirs(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.dirs(dir)
    }

    fn open(&self, path: &Path, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.check(path, Op::Open)?;
        let file = RealDisk.open(path, len)?;
        Ok(Arc::new(FaultFile { file, path: path.to_path_buf(), disk: self.clone() }))
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.check(path, Op::Replace)?;
        RealDisk.replace(path, bytes)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn volume(&self, dir: &Path) -> io::Result<Option<Arc<dyn Volume>>> {
        Ok(Some(Arc::new(FaultVolume { dir: dir.to_path_buf(), disk: self.clone() })))
    }

    fn sync_names(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_names(dir)
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let told = self.lock().space;
        told.map_or_else(|| RealDisk.space(dir), Ok)
    }
}

/// Fails as the files of its directory do.
#[derive(Debug)]
struct FaultVolume {
    dir: PathBuf,
    disk: FaultDisk,
}

impl Volume for FaultVolume {
    fn sync(&self) -> io::Result<()> {
        self.disk.check(&self.dir, Op::Sync)
    }
}

impl DiskFile for FaultFile {
    fn length(&self) -> io::Result<u64> {
        self.file.length()
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        match self.disk.fault(&self.path, |op| matches!(op, Op::Write { .. })) {
            None => self.file.write_at(at, bytes),
            Some((error, after)) => {
                self.file.write_at(at, bytes.get(..after).unwrap_or(bytes))?;
                Err(error)
            }
        }
    }

    fn allocate(&self, at: u64, len: u64) -> io::Result<()> {
        self.disk.check(&self.path, Op::Allocate)?;
        self.file.allocate(at, len)
    }

    fn prepare(&self, at: u64, len: usize) -> io::Result<()> {
        self.file.prepare(at, len)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.syncs.push(self.path.clone());
        let is_held =
            |state: &mut State| state.held.is_some_and(|held| self.path.to_string_lossy().contains(held));
        drop(self.disk.0.1.wait_while(state, is_held).expect("no test panics while it holds this"));
        self.disk.check(&self.path, Op::Sync)?;
        self.file.sync()
    }

    fn map(&self) -> io::Result<Map> {
        self.file.map()
    }

    fn zero_from(&self, at: u64) -> io::Result<()> {
        self.disk.check(&self.path, Op::Zero)?;
        self.file.zero_from(at)
    }
}
