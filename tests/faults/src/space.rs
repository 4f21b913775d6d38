//! A disk that fills up: what the store may still grow by.
//!
//! Only growth counts: bytes over bytes that have their place already are always written. Where an operation
//! would need more than there is, nothing of it is done.

use std::ffi::c_int;

use crate::sys::{self, Errno};
use crate::world::World;

/// What the file system hands out at a time.
const BLOCK: i64 = 4096;

fn allocated(fd: c_int) -> i64 {
    sys::status(fd, c"").map_or(0, |found| found.allocated)
}

/// Does `real`, which needs disk space for `at..at + len`, if there is room, and counts what it took. Only
/// with the order held.
pub fn growing<T>(
    world: &World,
    fd: c_int,
    (at, len): (u64, u64),
    real: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    let Some(room) = world.control.room() else { return real() };
    let most = i64::try_from(len).unwrap_or(i64::MAX).saturating_add(2 * BLOCK);
    if most > room {
        reserve(world, fd, at, len, room)?;
    }
    counted(world, fd, real)
}

/// Does `real` and counts by how much the file grew or shrank.
pub fn counted<T>(world: &World, fd: c_int, real: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    if world.control.room().is_none() {
        return real();
    }
    let before = allocated(fd);
    let done = real();
    world.control.grew(allocated(fd) - before);
    done
}

/// Takes the blocks of `at..at + len` that are missing. When they are more than `room`, what was missing is
/// given back: the ranges that the file system called holes before, which hold no data.
fn reserve(world: &World, fd: c_int, at: u64, len: u64, room: i64) -> Result<(), Errno> {
    let (Ok(from), Ok(bytes)) = (i64::try_from(at), i64::try_from(len)) else { return Err(libc::EINVAL) };
    let before = allocated(fd);
    let position = sys::seek(fd, 0, libc::SEEK_CUR);
    let holes = Holes::find(fd, from, from.saturating_add(bytes));
    let done = sys::allocate(fd, libc::FALLOC_FL_KEEP_SIZE, from, bytes);
    if done.is_ok() && allocated(fd) - before > room {
        holes.give_back(fd);
        world.control.grew(allocated(fd) - before);
        return Err(libc::ENOSPC);
    }
    if let Some(position) = position.ok().and_then(|at| i64::try_from(at).ok()) {
        let _ = sys::seek(fd, position, libc::SEEK_SET); // where it was before
    }
    world.control.grew(allocated(fd) - before);
    done.map(drop)
}

/// Holes of one file; the first ones, of a range with very many.
struct Holes {
    found: [(i64, i64); 32],
    count: usize,
    file_len: i64,
    /// The range goes beyond the end of the file.
    beyond: bool,
}

impl Holes {
    /// The holes in `from..end`, in whole blocks.
    fn find(fd: c_int, from: i64, end: i64) -> Self {
        let file_len =
            sys::status(fd, c"").and_then(|found| i64::try_from(found.len).ok()).unwrap_or_default();
        let mut holes = Self { found: [(0, 0); 32], count: 0, file_len, beyond: end > file_len };
        let seek = |at, whence| sys::seek(fd, at, whence).ok().and_then(|at| i64::try_from(at).ok());
        let (mut at, end) = (from, end.min(file_len));
        while at < end {
            let Some(hole) = seek(at, libc::SEEK_HOLE).filter(|hole| *hole < end) else { break };
            let data = seek(hole, libc::SEEK_DATA).unwrap_or(end).min(end);
            let Some(slot) = holes.found.get_mut(holes.count) else { break };
            // A block is a hole as a whole.
            *slot = (hole / BLOCK * BLOCK, (data + BLOCK - 1) / BLOCK * BLOCK);
            holes.count += 1;
            at = data;
        }
        holes
    }

    /// Makes them holes again. A file system that cannot keeps the blocks.
    fn give_back(&self, fd: c_int) {
        for (from, end) in self.found.iter().take(self.count) {
            let mode = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
            let _ = sys::allocate(fd, mode, *from, end - from);
        }
        if self.beyond {
            let _ = sys::truncate(fd, self.file_len);
        }
    }
}
