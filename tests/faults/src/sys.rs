//! The system, below the hooks: raw system calls, so that nothing here comes back to a hook, and nothing
//! allocates.

use std::ffi::{CStr, c_char, c_int, c_long, c_void};
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

use crate::format::WORDS;

/// A system error number.
pub type Errno = c_int;

fn check(result: c_long) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| errno())
}

fn check_fd(result: c_long) -> Result<c_int, Errno> {
    check(result).and_then(|fd| c_int::try_from(fd).map_err(|_| libc::EBADF))
}

fn errno() -> Errno {
    // SAFETY: the location of the calling thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}

/// Sets the calling thread's `errno`.
pub fn set_errno(value: Errno) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = value }
}

/// `openat`.
pub fn open(dir: c_int, path: &CStr, flags: c_int, mode: libc::mode_t) -> Result<c_int, Errno> {
    // SAFETY: `path` ends with a zero and lives through the call.
    check_fd(unsafe { libc::syscall(libc::SYS_openat, dir, path.as_ptr(), flags, mode) })
}

/// Whether `path` names anything.
pub fn exists(dir: c_int, path: &CStr) -> bool {
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_faccessat, dir, path.as_ptr(), libc::F_OK) }).is_ok()
}

/// `close`.
pub fn close(fd: c_int) -> Result<usize, Errno> {
    // SAFETY: takes no pointers; the caller of the hook owns the descriptor.
    check(unsafe { libc::syscall(libc::SYS_close, fd) })
}

/// `write`.
pub fn write(fd: c_int, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the slice is readable for its length.
    check(unsafe { libc::syscall(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) })
}

/// `pwrite`.
pub fn write_at(fd: c_int, bytes: &[u8], at: u64) -> Result<usize, Errno> {
    let at = i64::try_from(at).map_err(|_| libc::EINVAL)?;
    // SAFETY: the slice is readable for its length.
    check(unsafe { libc::syscall(libc::SYS_pwrite64, fd, bytes.as_ptr(), bytes.len(), at) })
}

/// Appends several parts with one call.
pub fn write_parts(fd: c_int, parts: [&[u8]; 4]) -> Result<usize, Errno> {
    let parts =
        parts.map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
    // SAFETY: each part is readable for its length; `writev` only reads.
    check(unsafe { libc::syscall(libc::SYS_writev, fd, parts.as_ptr(), parts.len()) })
}

/// `writev` as it came.
///
/// # Safety
///
/// What `writev` asks of its arguments.
pub unsafe fn writev(fd: c_int, parts: *const libc::iovec, count: c_int) -> Result<usize, Errno> {
    // SAFETY: by the caller's word.
    check(unsafe { libc::syscall(libc::SYS_writev, fd, parts, count) })
}

/// `lseek`.
pub fn seek(fd: c_int, to: i64, whence: c_int) -> Result<u64, Errno> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_lseek, fd, to, whence) }).map(|at| at as u64)
}

/// Whether writes go to the end whatever the position is.
pub fn appends(fd: c_int) -> bool {
    // SAFETY: takes no pointers.
    let flags = check_fd(unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_GETFL) });
    flags.is_ok_and(|flags| flags & libc::O_APPEND != 0)
}

/// `ftruncate`.
pub fn truncate(fd: c_int, len: i64) -> Result<usize, Errno> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_ftruncate, fd, len) })
}

/// `fallocate`.
pub fn allocate(fd: c_int, mode: c_int, at: i64, len: i64) -> Result<usize, Errno> {
    // SAFETY: takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_fallocate, fd, mode, at, len) })
}

/// What a sync is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// `fdatasync`.
    Data,
    /// `fsync`.
    File,
    /// `syncfs`.
    All,
}

/// `fdatasync`, `fsync` or `syncfs`.
pub fn sync(fd: c_int, what: Sync) -> Result<usize, Errno> {
    let call = match what {
        Sync::Data => libc::SYS_fdatasync,
        Sync::File => libc::SYS_fsync,
        Sync::All => libc::SYS_syncfs,
    };
    // SAFETY: takes no pointers.
    check(unsafe { libc::syscall(call, fd) })
}

/// `renameat2`.
pub fn rename(from_dir: c_int, from: &CStr, to_dir: c_int, to: &CStr, flags: u32) -> Result<usize, Errno> {
    // SAFETY: both paths end with a zero and live through the call.
    check(unsafe { libc::syscall(libc::SYS_renameat2, from_dir, from.as_ptr(), to_dir, to.as_ptr(), flags) })
}

/// `unlinkat`.
pub fn unlink(dir: c_int, path: &CStr, flags: c_int) -> Result<usize, Errno> {
    // SAFETY: `path` ends with a zero and lives through the call.
    check(unsafe { libc::syscall(libc::SYS_unlinkat, dir, path.as_ptr(), flags) })
}

/// `mkdirat`.
pub fn mkdir(dir: c_int, path: &CStr, mode: libc::mode_t) -> Result<usize, Errno> {
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_mkdirat, dir, path.as_ptr(), mode) })
}

/// `readlinkat` from the working directory: the bytes of the link that fit.
pub fn read_link<'a>(path: &CStr, into: &'a mut [u8]) -> Option<&'a [u8]> {
    // SAFETY: `into` is writable for its length; `path` ends with a zero.
    let len = check(unsafe {
        libc::syscall(libc::SYS_readlinkat, libc::AT_FDCWD, path.as_ptr(), into.as_mut_ptr(), into.len())
    });
    into.get(..len.ok()?)
}

/// What a file is and how much it takes.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// A directory.
    pub is_dir: bool,
    /// Bytes of disk space.
    pub allocated: i64,
    /// How many names it has.
    pub links: u64,
    /// Length in bytes.
    pub len: u64,
}

/// What is known of an open file (`path` empty) or of one with a name.
pub fn status(dir: c_int, path: &CStr) -> Option<Status> {
    // SAFETY: all zeros is a valid `statx`, plain numbers.
    let mut found: libc::statx = unsafe { std::mem::zeroed() };
    let flags = if path.is_empty() { libc::AT_EMPTY_PATH } else { libc::AT_SYMLINK_NOFOLLOW };
    // SAFETY: `path` ends with a zero, `found` is writable and as large as the kernel expects.
    let done = unsafe {
        libc::syscall(libc::SYS_statx, dir, path.as_ptr(), flags, libc::STATX_BASIC_STATS, &raw mut found)
    };
    check(done).ok()?;
    Some(Status {
        is_dir: u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFDIR,
        allocated: i64::try_from(found.stx_blocks).unwrap_or(i64::MAX).saturating_mul(512),
        links: u64::from(found.stx_nlink),
        len: found.stx_size,
    })
}

/// Lets `micros` microseconds pass.
pub fn sleep(micros: u64) {
    let mut left = libc::timespec {
        tv_sec: i64::try_from(micros / 1_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(micros % 1_000_000 * 1000).unwrap_or_default(),
    };
    // SAFETY: both pointers are to `left`, readable and writable.
    while check(unsafe { libc::syscall(libc::SYS_nanosleep, &raw const left, &raw mut left) })
        == Err(libc::EINTR)
    {}
}

/// Ends the process on the spot.
pub fn kill_self() -> ! {
    // SAFETY: takes no pointers.
    unsafe { libc::syscall(libc::SYS_kill, libc::getpid(), libc::SIGKILL) };
    loop {
        sleep(1_000_000);
    }
}

/// Says why the faults cannot be had, and ends the process: a test must not go on without them.
pub fn give_up(why: &str) -> ! {
    let _ = write(2, b"gantry-faults: "); // there is nobody else to tell
    let _ = write(2, why.as_bytes());
    let _ = write(2, b"\n");
    kill_self()
}

/// The value of an environment variable.
pub fn environment(name: &CStr) -> Option<&'static CStr> {
    // SAFETY: called while the process is loaded, before any thread can change the environment; the value
    // stays where it is, for the broker never changes its environment.
    let found = unsafe { libc::getenv(name.as_ptr()) };
    // SAFETY: a value of the environment ends with a zero.
    (!found.is_null()).then(|| unsafe { CStr::from_ptr(found) })
}

/// Maps the control file.
pub fn map_words(path: &CStr) -> Option<&'static [AtomicU64; WORDS]> {
    let fd = open(libc::AT_FDCWD, path, libc::O_RDWR | libc::O_CLOEXEC, 0).ok()?;
    let long_enough = status(fd, c"").is_some_and(|found| found.len >= (WORDS * 8) as u64);
    // SAFETY: a new shared mapping at an address that the system chooses.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            WORDS * 8,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            fd,
            0,
        )
    };
    let _ = close(fd); // the mapping stays
    // SAFETY: the mapping is aligned to a page, as long as the array, never unmapped, and the file is as long
    // and never cut; it is only ever accessed through atomics.
    (long_enough && at != libc::MAP_FAILED).then(|| unsafe { &*at.cast::<[AtomicU64; WORDS]>() })
}

type ClockGetTime = unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> c_int;
type StatVfs = unsafe extern "C" fn(*const c_char, *mut libc::statvfs64) -> c_int;

static CLOCK_GETTIME: OnceLock<Option<ClockGetTime>> = OnceLock::new();
static STATVFS: OnceLock<Option<StatVfs>> = OnceLock::new();

fn next(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: `name` ends with a zero; `RTLD_NEXT` is looked up from this library.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// Finds the C library's own functions; once, while the process is loaded.
pub fn find_next() {
    CLOCK_GETTIME.get_or_init(|| {
        // SAFETY: the C library's function of this name has this signature.
        next(c"clock_gettime").map(|found| unsafe { std::mem::transmute::<*mut c_void, ClockGetTime>(found) })
    });
    STATVFS.get_or_init(|| {
        // SAFETY: as above.
        next(c"statvfs64").map(|found| unsafe { std::mem::transmute::<*mut c_void, StatVfs>(found) })
    });
}

/// `clock_gettime`, without a system call where the machine can.
pub fn time(clock: libc::clockid_t) -> Result<libc::timespec, Errno> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let result = match CLOCK_GETTIME.get() {
        // SAFETY: `now` is writable.
        Some(Some(found)) => c_long::from(unsafe { found(clock, &raw mut now) }),
        // SAFETY: as above.
        _ => unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut now) },
    };
    check(result).map(|_| now)
}

/// `statvfs`.
pub fn space(path: &CStr) -> Result<libc::statvfs64, Errno> {
    let Some(Some(found)) = STATVFS.get() else { return Err(libc::ENOSYS) };
    // SAFETY: all zeros is a valid `statvfs64`, plain numbers.
    let mut space: libc::statvfs64 = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a zero, `space` is writable.
    check(c_long::from(unsafe { found(path.as_ptr(), &raw mut space) })).map(|_| space)
}
