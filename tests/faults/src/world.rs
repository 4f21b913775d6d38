//! The one store that faults happen to, and the order of what happens to it.

use std::ffi::{CStr, c_int};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::control::{Control, Verdict};
use crate::format::{self, Entry, Kind, MAGIC, Op};
use crate::paths::{self, Path};
use crate::sys::{self, Errno};

/// Environment variable that names the control file.
const CONTROL: &CStr = c"GANTRY_FAULTS";

static WORLD: OnceLock<World> = OnceLock::new();

/// What is known for as long as the process lives.
pub struct World {
    /// What the tests ask for.
    pub control: Control,
    store: Path,
    journal: Option<c_int>,
    /// Held while something is done to the store and told to the journal.
    order: Mutex<()>,
    syncs: AtomicU64,
}

/// Finds the control file, once, while the process is loaded. Without the variable everything passes.
pub fn begin() {
    sys::find_next();
    let Some(path) = sys::environment(CONTROL) else { return };
    let Some(words) = sys::map_words(path) else { sys::give_up("the control file cannot be mapped") };
    let control = Control(words);
    let known = words.first().is_some_and(|word| word.load(Ordering::Acquire) == MAGIC);
    let (true, Some(store), Some(journal)) =
        (known, control.path(format::STORE), control.path(format::JOURNAL))
    else {
        sys::give_up("the control file is of another version");
    };
    let journal = (!journal.bytes().is_empty()).then(|| open_journal(&journal));
    let world = World { control, store, journal, order: Mutex::new(()), syncs: AtomicU64::new(0) };
    world.tell(&Entry::new(Kind::Start, &[], 0, 0));
    if WORLD.set(world).is_err() {
        sys::give_up("loaded twice");
    }
}

fn open_journal(path: &Path) -> c_int {
    let mut bytes = [0; format::PATH_MAX + 1];
    bytes.iter_mut().zip(path.bytes()).for_each(|(to, from)| *to = *from);
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CLOEXEC;
    CStr::from_bytes_until_nul(&bytes)
        .ok()
        .and_then(|path| sys::open(libc::AT_FDCWD, path, flags, 0).ok())
        .unwrap_or_else(|| sys::give_up("the journal cannot be opened"))
}

/// The world, once [`begin`] has found one.
pub fn world() -> Option<&'static World> {
    WORLD.get()
}

/// The world and the file's path, when `fd` is of the store.
pub fn of_fd(fd: c_int) -> Option<(&'static World, Path)> {
    if !paths::is_open(fd) {
        return None;
    }
    let world = WORLD.get()?;
    Some((world, paths::of_fd(world.store.bytes(), fd)?))
}

/// The world and the path in the store, when `path` leads there.
pub fn of_path(dir: c_int, path: &CStr) -> Option<(&'static World, Path)> {
    let world = WORLD.get()?;
    Some((world, paths::resolve(world.store.bytes(), dir, path)?))
}

impl World {
    /// Whatever holds this is alone with the store and the journal.
    pub fn order(&self) -> MutexGuard<'_, ()> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends to the journal. Only with the order held.
    pub fn tell(&self, entry: &Entry<'_>) {
        let Some(journal) = self.journal else { return };
        let Some(header) = entry.header() else { sys::give_up("an entry is too long for the journal") };
        let size = header.len() + entry.path.len() + entry.second.len() + entry.bytes.len();
        if sys::write_parts(journal, [&header, entry.path, entry.second, entry.bytes]) != Ok(size) {
            sys::give_up("the journal cannot be written");
        }
    }

    /// Notes that the entry before did not come true.
    pub fn undo(&self) {
        self.tell(&Entry::new(Kind::Undo, &[], 0, 0));
    }

    /// A number for a sync.
    pub fn next_sync(&self) -> u64 {
        self.syncs.fetch_add(1, Ordering::Relaxed)
    }

    /// Does `real` if the rules let it, and tells the journal `entry`, which `real` makes true.
    pub fn act<T>(
        &self,
        op: Op,
        (path, second): (&Path, Option<&Path>),
        entry: Option<&Entry<'_>>,
        real: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let verdict = self.control.judge(op, path, second);
        let _alone = self.order();
        match verdict {
            Verdict::Fail { errno, .. } => return Err(errno),
            Verdict::KillBefore | Verdict::KillWithin { .. } => sys::kill_self(),
            Verdict::Pass | Verdict::KillAfter => {}
        }
        if let Some(entry) = entry {
            self.tell(entry);
        }
        let done = real();
        if done.is_err() && entry.is_some() {
            self.undo();
        }
        if done.is_ok() && verdict == Verdict::KillAfter {
            sys::kill_self();
        }
        done
    }
}
