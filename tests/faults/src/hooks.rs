//! The C library's functions that are taken over. Each asks whether the store is meant; everything else goes
//! to the system as it came.
//!
//! Callers keep the C library's rules: strings end with a zero, buffers are as long as they say; that is the
//! *caller's word* below. `open` and its like are variadic in C; on the platforms that Gantry runs on (x86-64 and AArch64
//! Linux) an optional integer is passed in the register of a fixed one, and is only looked at when the flags say
//! that it is there.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use libc::{iovec, mode_t, off_t, size_t, ssize_t, timespec, timeval};

use crate::paths;
use crate::sys::{self, Errno, Sync};
use crate::{ops, world};

/// What a C caller gets for `done`, `errno` being set.
fn answer(done: Result<usize, Errno>) -> ssize_t {
    match done {
        Ok(value) => ssize_t::try_from(value).unwrap_or(ssize_t::MAX),
        Err(errno) => {
            sys::set_errno(errno);
            -1
        }
    }
}

fn code(done: Result<usize, Errno>) -> c_int {
    c_int::try_from(answer(done)).unwrap_or(0)
}

fn fd_or_error(done: Result<c_int, Errno>) -> c_int {
    done.unwrap_or_else(|errno| {
        sys::set_errno(errno);
        -1
    })
}

/// The string at `path`.
///
/// SAFETY: null, or a string that lives as long as the caller's call.
unsafe fn text<'a>(path: *const c_char) -> Result<&'a CStr, Errno> {
    if path.is_null() {
        return Err(libc::EFAULT);
    }
    // SAFETY: not null, and a string by the caller's word.
    Ok(unsafe { CStr::from_ptr(path) })
}

/// The bytes at `at`.
///
/// SAFETY: null, or readable for `len` bytes as long as the caller's call.
unsafe fn slice<'a>(at: *const c_void, len: size_t) -> &'a [u8] {
    if at.is_null() || len == 0 {
        return &[];
    }
    // SAFETY: not null, and readable by the caller's word.
    unsafe { std::slice::from_raw_parts(at.cast(), len) }
}

fn open_at(dir: c_int, path: Result<&CStr, Errno>, flags: c_int, mode: mode_t) -> c_int {
    fd_or_error(path.and_then(|path| match world::of_path(dir, path) {
        Some((world, name)) => ops::open(world, (dir, path), &name, flags, mode),
        None => sys::open(dir, path, flags, mode),
    }))
}

fn write_to(fd: c_int, bytes: &[u8], at: Option<u64>) -> ssize_t {
    answer(match (world::of_fd(fd), at) {
        (Some((world, name)), at) => ops::write((world, fd, &name), bytes, at),
        (None, Some(at)) => sys::write_at(fd, bytes, at),
        (None, None) => sys::write(fd, bytes),
    })
}

fn rename_at(from: (c_int, Result<&CStr, Errno>), to: (c_int, Result<&CStr, Errno>), flags: u32) -> c_int {
    let renamed = |(from_dir, from): (c_int, &CStr), (to_dir, to): (c_int, &CStr)| {
        match (world::of_path(from_dir, from), world::of_path(to_dir, to)) {
            (Some((world, old)), Some((_, new))) => {
                ops::rename(world, (from_dir, from, &old), (to_dir, to, &new), flags)
            }
            (None, None) => sys::rename(from_dir, from, to_dir, to, flags),
            // In or out of the store: as between two file systems.
            _ => Err(libc::EXDEV),
        }
    };
    code(from.1.and_then(|old| renamed((from.0, old), (to.0, to.1?))))
}

fn unlink_at(dir: c_int, path: Result<&CStr, Errno>, flags: c_int) -> c_int {
    code(path.and_then(|path| match world::of_path(dir, path) {
        Some((world, name)) => ops::unlink(world, (dir, path), &name, flags),
        None => sys::unlink(dir, path, flags),
    }))
}

fn mkdir_at(dir: c_int, path: Result<&CStr, Errno>, mode: mode_t) -> c_int {
    code(path.and_then(|path| match world::of_path(dir, path) {
        Some((world, name)) => ops::mkdir(world, (dir, path), &name, mode),
        None => sys::mkdir(dir, path, mode),
    }))
}

fn sync_fd(fd: c_int, what: Sync) -> c_int {
    code(match world::of_fd(fd) {
        Some((world, name)) => ops::sync((world, fd, &name), what),
        None => sys::sync(fd, what),
    })
}

fn truncate_fd(fd: c_int, len: off_t) -> c_int {
    code(match world::of_fd(fd) {
        Some((world, name)) => ops::truncate((world, fd, &name), len),
        None => sys::truncate(fd, len),
    })
}

fn allocate_fd(fd: c_int, mode: c_int, at: off_t, len: off_t) -> c_int {
    code(match world::of_fd(fd) {
        Some((world, name)) => ops::allocate((world, fd, &name), mode, at, len),
        None => sys::allocate(fd, mode, at, len),
    })
}

fn now(clock: libc::clockid_t) -> Result<timespec, Errno> {
    let now = sys::time(clock)?;
    let is_wall = clock == libc::CLOCK_REALTIME || clock == libc::CLOCK_REALTIME_COARSE;
    Ok(match world::world() {
        Some(world) if is_wall => ops::shifted(world, now),
        _ => now,
    })
}

/// Defines hooks: the same function under each of its names.
macro_rules! hooks {
    ($([$($name:ident)+] $arguments:tt -> $result:ty $body:block)+) => {
        $($(
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name $arguments -> $result $body
        )+)+
    };
}

hooks! {
    [open open64] (path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        // SAFETY: strings, by the caller's word.
        open_at(libc::AT_FDCWD, unsafe { text(path) }, flags, mode)
    }
    [openat openat64] (dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        // SAFETY: strings, by the caller's word.
        open_at(dir, unsafe { text(path) }, flags, mode)
    }
    [creat creat64] (path: *const c_char, mode: mode_t) -> c_int {
        let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
        // SAFETY: strings, by the caller's word.
        open_at(libc::AT_FDCWD, unsafe { text(path) }, flags, mode)
    }
    [close] (fd: c_int) -> c_int {
        paths::closing(fd);
        code(sys::close(fd))
    }
    [write] (fd: c_int, bytes: *const c_void, len: size_t) -> ssize_t {
        // SAFETY: readable, by the caller's word.
        write_to(fd, unsafe { slice(bytes, len) }, None)
    }
    [pwrite pwrite64] (fd: c_int, bytes: *const c_void, len: size_t, at: off_t) -> ssize_t {
        let Ok(at) = u64::try_from(at) else { return answer(Err(libc::EINVAL)) };
        // SAFETY: readable, by the caller's word.
        write_to(fd, unsafe { slice(bytes, len) }, Some(at))
    }
    [writev] (fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
        if !paths::is_open(fd) {
            // SAFETY: readable, by the caller's word.
            return answer(unsafe { sys::writev(fd, parts, count) });
        }
        // A short write is one; the caller goes on.
        // SAFETY: readable, by the caller's word.
        let part = unsafe { first_part(parts, count) };
        write_to(fd, part, None)
    }
    [pwritev pwritev64] (fd: c_int, parts: *const iovec, count: c_int, at: off_t) -> ssize_t {
        let Ok(at) = u64::try_from(at) else { return answer(Err(libc::EINVAL)) };
        // SAFETY: readable, by the caller's word.
        let part = unsafe { first_part(parts, count) };
        write_to(fd, part, Some(at))
    }
    [fsync] (fd: c_int) -> c_int {
        sync_fd(fd, Sync::File)
    }
    [fdatasync] (fd: c_int) -> c_int {
        sync_fd(fd, Sync::Data)
    }
    [syncfs] (fd: c_int) -> c_int {
        sync_fd(fd, Sync::All)
    }
    [ftruncate ftruncate64] (fd: c_int, len: off_t) -> c_int {
        truncate_fd(fd, len)
    }
    [fallocate fallocate64] (fd: c_int, mode: c_int, at: off_t, len: off_t) -> c_int {
        allocate_fd(fd, mode, at, len)
    }
    [rename] (from: *const c_char, to: *const c_char) -> c_int {
        // SAFETY: strings, by the caller's word.
        let (from, to) = unsafe { (text(from), text(to)) };
        rename_at((libc::AT_FDCWD, from), (libc::AT_FDCWD, to), 0)
    }
    [renameat] (from_dir: c_int, from: *const c_char, to_dir: c_int, to: *const c_char) -> c_int {
        // SAFETY: strings, by the caller's word.
        let (from, to) = unsafe { (text(from), text(to)) };
        rename_at((from_dir, from), (to_dir, to), 0)
    }
    [renameat2] (
        from_dir: c_int,
        from: *const c_char,
        to_dir: c_int,
        to: *const c_char,
        flags: c_uint
    ) -> c_int {
        // SAFETY: strings, by the caller's word.
        let (from, to) = unsafe { (text(from), text(to)) };
        rename_at((from_dir, from), (to_dir, to), flags)
    }
    [unlink] (path: *const c_char) -> c_int {
        // SAFETY: strings, by the caller's word.
        unlink_at(libc::AT_FDCWD, unsafe { text(path) }, 0)
    }
    [rmdir] (path: *const c_char) -> c_int {
        // SAFETY: strings, by the caller's word.
        unlink_at(libc::AT_FDCWD, unsafe { text(path) }, libc::AT_REMOVEDIR)
    }
    [unlinkat] (dir: c_int, path: *const c_char, flags: c_int) -> c_int {
        // SAFETY: strings, by the caller's word.
        unlink_at(dir, unsafe { text(path) }, flags)
    }
    [mkdir] (path: *const c_char, mode: mode_t) -> c_int {
        // SAFETY: strings, by the caller's word.
        mkdir_at(libc::AT_FDCWD, unsafe { text(path) }, mode)
    }
    [mkdirat] (dir: c_int, path: *const c_char, mode: mode_t) -> c_int {
        // SAFETY: strings, by the caller's word.
        mkdir_at(dir, unsafe { text(path) }, mode)
    }
    [statvfs statvfs64] (path: *const c_char, into: *mut libc::statvfs64) -> c_int {
        // SAFETY: strings, by the caller's word.
        let space = unsafe { text(path) }.and_then(|path| match world::of_path(libc::AT_FDCWD, path) {
            Some((world, _)) => ops::space(world, path),
            None => sys::space(path),
        });
        code(space.map(|space| {
            // SAFETY: writable, by the caller's word.
            unsafe { into.write(space) };
            0
        }))
    }
    [clock_gettime] (clock: libc::clockid_t, into: *mut timespec) -> c_int {
        code(now(clock).map(|now| {
            // SAFETY: writable, by the caller's word.
            unsafe { into.write(now) };
            0
        }))
    }
    [gettimeofday] (into: *mut timeval, _zone: *mut c_void) -> c_int {
        code(now(libc::CLOCK_REALTIME).map(|now| {
            if !into.is_null() {
                // SAFETY: writable, by the caller's word.
                unsafe { into.write(timeval { tv_sec: now.tv_sec, tv_usec: now.tv_nsec / 1000 }) };
            }
            0
        }))
    }
    [time] (into: *mut libc::time_t) -> libc::time_t {
        let seconds = now(libc::CLOCK_REALTIME).map_or(-1, |now| now.tv_sec);
        if !into.is_null() {
            // SAFETY: writable, by the caller's word.
            unsafe { into.write(seconds) };
        }
        seconds
    }
}

/// The first part that is not empty.
///
/// SAFETY: as `writev` asks of its arguments.
unsafe fn first_part<'a>(parts: *const iovec, count: c_int) -> &'a [u8] {
    for number in 0..usize::try_from(count).unwrap_or_default() {
        // SAFETY: one of `count` parts.
        let part = unsafe { &*parts.add(number) };
        if part.iov_len > 0 {
            // SAFETY: readable by the caller's word.
            return unsafe { slice(part.iov_base, part.iov_len) };
        }
    }
    &[]
}
