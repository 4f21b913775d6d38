//! Which descriptors and paths are the store's, without a table of names: the system knows the name of every
//! open file.

use std::ffi::{CStr, c_int};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::format::PATH_MAX;
use crate::sys;

/// Descriptors below are looked after; the broker's limit is lower.
const FDS: usize = 1 << 20;

/// One bit for each descriptor that was opened under the store.
static OPENED: [AtomicU64; FDS / 64] = [const { AtomicU64::new(0) }; FDS / 64];

fn bit(fd: c_int) -> Option<(&'static AtomicU64, u64)> {
    let fd = usize::try_from(fd).ok()?;
    Some((OPENED.get(fd / 64)?, 1 << (fd % 64)))
}

/// Notes that `fd` is of the store.
pub fn opened(fd: c_int) {
    if let Some((word, bit)) = bit(fd) {
        word.fetch_or(bit, Ordering::Relaxed);
    }
}

/// Notes that `fd` is about to be closed.
pub fn closing(fd: c_int) {
    if let Some((word, bit)) = bit(fd)
        && word.load(Ordering::Relaxed) & bit != 0
    {
        word.fetch_and(!bit, Ordering::Relaxed);
    }
}

/// Whether `fd` is of the store.
pub fn is_open(fd: c_int) -> bool {
    bit(fd).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
}

/// A path in a fixed buffer.
#[derive(Clone, Copy)]
pub struct Path {
    bytes: [u8; PATH_MAX],
    len: usize,
}

impl Path {
    /// The path `bytes`; `None` when it is too long.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let mut path = Self { bytes: [0; PATH_MAX], len: 0 };
        path.push(bytes).then_some(path)
    }

    /// Whether there was room for `more`.
    fn push(&mut self, more: &[u8]) -> bool {
        let Some(room) = self.bytes.get_mut(self.len..self.len + more.len()) else { return false };
        room.copy_from_slice(more);
        self.len += more.len();
        true
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// The part below `store`; `None` when it lies elsewhere.
    fn below(&self, store: &[u8]) -> Option<Self> {
        match self.bytes().strip_prefix(store)? {
            [] => Self::of(&[]),
            [b'/', rest @ ..] => Self::of(rest.strip_suffix(b"/").unwrap_or(rest)),
            _ => None,
        }
    }
}

/// The name of an open file of the store, relative to it; `None` for other files and removed ones.
pub fn of_fd(store: &[u8], fd: c_int) -> Option<Path> {
    if !is_open(fd) {
        return None;
    }
    absolute(fd)?.below(store)
}

fn absolute(fd: c_int) -> Option<Path> {
    let mut link = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0\0";
    let mut digits = [0; 10];
    let mut left = u32::try_from(fd).ok()?;
    let mut count = 0;
    for digit in &mut digits {
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
        count += 1;
        if left == 0 {
            break;
        }
    }
    for (at, digit) in digits.get(..count)?.iter().rev().enumerate() {
        *link.get_mut(14 + at)? = *digit;
    }
    let mut path = Path { bytes: [0; PATH_MAX], len: 0 };
    let found = sys::read_link(CStr::from_bytes_until_nul(&link).ok()?, &mut path.bytes)?;
    if found.ends_with(b" (deleted)") {
        return None;
    }
    path.len = found.len();
    Some(path)
}

/// What `path`, from the directory `dir`, is called relative to the store; `None` outside of it. A relative
/// path from the working directory is taken to be outside: the store's path is absolute.
pub fn resolve(store: &[u8], dir: c_int, path: &CStr) -> Option<Path> {
    let bytes = path.to_bytes();
    if bytes.starts_with(b"/") {
        return Path::of(bytes)?.below(store);
    }
    let mut found = of_fd(store, dir)?;
    let joined = (found.len == 0 || found.push(b"/")) && found.push(bytes);
    joined.then_some(found)
}
