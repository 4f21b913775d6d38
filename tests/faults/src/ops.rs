//! The operations of a store, with faults: what each hook does once it knows that the store is meant.

use std::ffi::{CStr, c_int};

use crate::control::Verdict;
use crate::format::{Entry, Kind, Op};
use crate::paths::{self, Path};
use crate::space;
use crate::sys::{self, Errno, Sync};
use crate::world::World;

type Result<T> = std::result::Result<T, Errno>;
/// A file of the store and what it is called.
pub type File<'a> = (&'static World, c_int, &'a Path);

/// `openat`.
pub fn open(
    world: &World,
    (dir, path): (c_int, &CStr),
    name: &Path,
    flags: c_int,
    mode: libc::mode_t,
) -> Result<c_int> {
    let makes = |there: bool| flags & libc::O_CREAT != 0 && !there;
    let op = if makes(sys::exists(dir, path)) { Op::Create } else { Op::Open };
    let verdict = world.control.judge(op, name, None);
    let _alone = world.order();
    match verdict {
        Verdict::Fail { errno, .. } => return Err(errno),
        Verdict::KillBefore | Verdict::KillWithin { .. } => sys::kill_self(),
        Verdict::Pass | Verdict::KillAfter => {}
    }
    let before = sys::status(dir, path);
    let entry = if makes(before.is_some()) {
        Some(Entry::new(Kind::Create, name.bytes(), 0, 0))
    } else if flags & libc::O_TRUNC != 0 && before.is_some_and(|found| !found.is_dir && found.len > 0) {
        Some(Entry::new(Kind::Truncate, name.bytes(), 0, 0))
    } else {
        None
    };
    if let Some(entry) = &entry {
        world.tell(entry);
    }
    let opened = sys::open(dir, path, flags, mode);
    match (&opened, before) {
        (Ok(fd), before) => {
            paths::opened(*fd);
            if let Some(before) = before.filter(|_| entry.is_some()) {
                world.control.grew(sys::status(*fd, c"").map_or(0, |now| now.allocated) - before.allocated);
            }
        }
        (Err(_), _) if entry.is_some() => world.undo(),
        (Err(_), _) => {}
    }
    if opened.is_ok() && verdict == Verdict::KillAfter {
        sys::kill_self();
    }
    opened
}

/// `pwrite`, or `write` when there is no `at`.
pub fn write((world, fd, name): File<'_>, bytes: &[u8], at: Option<u64>) -> Result<usize> {
    let verdict = world.control.judge(Op::Write, name, None);
    let _alone = world.order();
    let first =
        |count: u64| usize::try_from(count).ok().and_then(|count| bytes.get(..count)).unwrap_or(bytes);
    match verdict {
        Verdict::Pass => write_alone((world, fd, name), bytes, at),
        Verdict::Fail { errno, after_bytes: 0 } => Err(errno),
        Verdict::Fail { errno, after_bytes } => {
            write_alone((world, fd, name), first(after_bytes), at)?;
            Err(errno)
        }
        Verdict::KillBefore => sys::kill_self(),
        Verdict::KillWithin { bytes: count } => {
            let _ = write_alone((world, fd, name), first(count), at); // it ends here, whatever it gave
            sys::kill_self()
        }
        Verdict::KillAfter => {
            write_alone((world, fd, name), bytes, at)?;
            sys::kill_self()
        }
    }
}

fn write_alone((world, fd, name): File<'_>, bytes: &[u8], at: Option<u64>) -> Result<usize> {
    let place = match at {
        Some(at) => at,
        None if sys::appends(fd) => sys::status(fd, c"").ok_or(libc::EBADF)?.len,
        None => sys::seek(fd, 0, libc::SEEK_CUR)?,
    };
    let mut entry = Entry { bytes, ..Entry::new(Kind::Write, name.bytes(), place, 0) };
    world.tell(&entry);
    let done = space::growing(world, fd, (place, bytes.len() as u64), || match at {
        Some(at) => sys::write_at(fd, bytes, at),
        None => sys::write(fd, bytes),
    });
    if done != Ok(bytes.len()) {
        world.undo();
        if let Ok(count) = done {
            entry.bytes = bytes.get(..count).unwrap_or(bytes);
            world.tell(&entry);
        }
    }
    done
}

/// `ftruncate`.
pub fn truncate((world, fd, name): File<'_>, len: i64) -> Result<usize> {
    let entry = Entry::new(Kind::Truncate, name.bytes(), u64::try_from(len).unwrap_or_default(), 0);
    world.act(Op::Truncate, (name, None), Some(&entry), || {
        space::counted(world, fd, || sys::truncate(fd, len))
    })
}

/// `fallocate`. Only what the journal has words for: reserving and punching, both without another length.
pub fn allocate((world, fd, name): File<'_>, mode: c_int, at: i64, len: i64) -> Result<usize> {
    let range = (u64::try_from(at).unwrap_or_default(), u64::try_from(len).unwrap_or_default());
    if mode == libc::FALLOC_FL_KEEP_SIZE {
        return world.act(Op::Allocate, (name, None), None, || {
            space::growing(world, fd, range, || sys::allocate(fd, mode, at, len))
        });
    }
    if mode != libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE {
        return Err(libc::EOPNOTSUPP);
    }
    let entry = Entry::new(Kind::Zero, name.bytes(), range.0, range.1);
    world.act(Op::Zero, (name, None), Some(&entry), || {
        space::counted(world, fd, || sys::allocate(fd, mode, at, len))
    })
}

/// `fdatasync`, `fsync` and `syncfs`. Others go on meanwhile: it covers what was there when it began.
pub fn sync((world, fd, name): File<'_>, what: Sync) -> Result<usize> {
    let is_dir = sys::status(fd, c"").is_some_and(|found| found.is_dir);
    let op = match (is_dir, what) {
        (_, Sync::All) => Op::SyncAll,
        (true, _) => Op::SyncDir,
        (false, Sync::Data) => Op::SyncData,
        (false, Sync::File) => Op::SyncFile,
    };
    let verdict = world.control.judge(op, name, None);
    let number = world.next_sync();
    {
        let _alone = world.order();
        if matches!(verdict, Verdict::KillBefore | Verdict::KillWithin { .. }) {
            sys::kill_self();
        }
        world.tell(&Entry::new(Kind::SyncBegin, name.bytes(), number, u64::from(what == Sync::All)));
    }
    let done = match verdict {
        Verdict::Fail { errno, .. } => Err(errno),
        _ => sys::sync(fd, what),
    };
    let _alone = world.order();
    world.tell(&Entry::new(Kind::SyncEnd, &[], number, u64::from(done.is_ok())));
    if done.is_ok() && verdict == Verdict::KillAfter {
        sys::kill_self();
    }
    done
}

/// `renameat2` inside of the store.
pub fn rename(
    world: &World,
    (from_dir, from, old): (c_int, &CStr, &Path),
    (to_dir, to, new): (c_int, &CStr, &Path),
    flags: u32,
) -> Result<usize> {
    if flags & !libc::RENAME_NOREPLACE != 0 {
        return Err(libc::EINVAL); // the journal has no word for an exchange
    }
    let entry = Entry { second: new.bytes(), ..Entry::new(Kind::Rename, old.bytes(), 0, 0) };
    world.act(Op::Rename, (old, Some(new)), Some(&entry), || {
        let freed = freed(to_dir, to);
        let done = sys::rename(from_dir, from, to_dir, to, flags);
        if done.is_ok() {
            world.control.grew(-freed);
        }
        done
    })
}

/// `unlinkat`, of a file or a directory.
pub fn unlink(world: &World, (dir, path): (c_int, &CStr), name: &Path, flags: c_int) -> Result<usize> {
    let entry = Entry::new(Kind::Unlink, name.bytes(), 0, 0);
    world.act(Op::Unlink, (name, None), Some(&entry), || {
        let freed = freed(dir, path);
        let done = sys::unlink(dir, path, flags);
        if done.is_ok() {
            world.control.grew(-freed);
        }
        done
    })
}

/// Disk space that goes with the file's last name.
fn freed(dir: c_int, path: &CStr) -> i64 {
    sys::status(dir, path)
        .filter(|found| !found.is_dir && found.links == 1)
        .map_or(0, |found| found.allocated)
}

/// `mkdirat`.
pub fn mkdir(world: &World, (dir, path): (c_int, &CStr), name: &Path, mode: libc::mode_t) -> Result<usize> {
    let entry = Entry::new(Kind::Mkdir, name.bytes(), 0, 0);
    world.act(Op::Mkdir, (name, None), Some(&entry), || sys::mkdir(dir, path, mode))
}

/// `statvfs`: no more space than the store may still take.
pub fn space(world: &World, path: &CStr) -> Result<libc::statvfs64> {
    let mut space = sys::space(path)?;
    if let Some(room) = world.control.room() {
        let blocks = u64::try_from(room).unwrap_or_default() / space.f_frsize.max(1);
        space.f_bavail = space.f_bavail.min(blocks);
        space.f_bfree = space.f_bfree.min(blocks);
    }
    Ok(space)
}

/// `now`, off by as much as the tests ask for.
pub fn shifted(world: &World, now: libc::timespec) -> libc::timespec {
    let offset = world.control.clock_offset();
    let nanos = now.tv_nsec + offset.rem_euclid(1000) * 1_000_000;
    libc::timespec {
        tv_sec: now.tv_sec + offset.div_euclid(1000) + nanos / 1_000_000_000,
        tv_nsec: nanos % 1_000_000_000,
    }
}
