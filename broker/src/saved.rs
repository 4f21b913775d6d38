//! A JSON file under `config/` that is replaced before a change is acknowledged.
//!
//! Whoever changes the table in memory takes a [`Revision`] and then waits in [`SavedFile::save`].
//! One writer at a time encodes the table as it is by then: the changes of all who wait go to the disk
//! in one write.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::store::layout::replace_json;

/// One change of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[must_use = "a change is not kept before it is saved"]
pub struct Revision(u64);

/// A change that is in memory but not on the disk. The next save that succeeds keeps it as well.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: check free space and permissions, then try again", path.display())]
pub struct SaveError {
    /// The file.
    path: PathBuf,
    /// What the system said.
    #[source]
    cause: io::Error,
}

/// The file and how much of the table it holds.
#[derive(Debug)]
pub struct SavedFile {
    path: PathBuf,
    changed: AtomicU64,
    /// Newest revision in the file. Held while writing: it guards the file itself.
    saved: Mutex<u64>,
}

impl SavedFile {
    /// The file at `path`, holding what the table holds now.
    pub fn new(path: PathBuf) -> Self {
        Self { path, changed: AtomicU64::new(0), saved: Mutex::new(0) }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Marks a change. To be called while the table is locked for writing.
    pub fn changed(&self) -> Revision {
        Revision(self.changed.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Returns once the file holds `revision`. `encode` locks the table for reading and gives the
    /// whole file; it is not called when another save has written the change already.
    pub fn save(&self, revision: Revision, encode: impl FnOnce() -> Vec<u8>) -> Result<(), SaveError> {
        off_the_workers(|| {
            let mut saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner);
            if *saved >= revision.0 {
                return Ok(());
            }
            // Read before encoding: a change that comes between the two is written, but not counted.
            let newest = self.changed.load(Ordering::SeqCst);
            replace_json(&self.path, &encode())
                .map_err(|cause| SaveError { path: self.path.clone(), cause })?;
            *saved = newest;
            Ok(())
        })
    }
}

/// Runs `work`, which waits for the disk, without holding up the other tasks of this worker thread.
fn off_the_workers<T>(work: impl FnOnce() -> T) -> T {
    let on_worker = Handle::try_current()
        .is_ok_and(|runtime| matches!(runtime.runtime_flavor(), RuntimeFlavor::MultiThread));
    if on_worker { tokio::task::block_in_place(work) } else { work() }
}

#[cfg(test)]
mod tests {
    use std::sync::RwLock;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn one_write_serves_all_changes_before_it() {
        let dir = TempDir::new().unwrap();
        let file = SavedFile::new(dir.path().join("t.json"));
        let table = RwLock::new(String::new());
        let (first, second) = {
            let mut table = table.write().unwrap();
            table.push_str("{}");
            (file.changed(), file.changed())
        };
        file.save(first, || table.read().unwrap().clone().into_bytes()).unwrap();
        file.save(second, || panic!("it is on the disk already")).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"{}");
    }

    #[test]
    fn a_failed_write_is_tried_again_by_the_next() {
        let dir = TempDir::new().unwrap();
        // A directory where the file should be cannot be replaced.
        let path = dir.path().join("t.json");
        std::fs::create_dir_all(path.join("in the way")).unwrap();
        let file = SavedFile::new(path.clone());
        let revision = file.changed();
        let error = file.save(revision, || b"{}".to_vec()).unwrap_err();
        assert!(error.to_string().contains("t.json"), "{error}");
        std::fs::remove_dir_all(&path).unwrap();
        file.save(revision, || b"{}".to_vec()).unwrap();
        assert!(path.is_file());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn saving_works_on_a_worker_thread() {
        let dir = TempDir::new().unwrap();
        let file = SavedFile::new(dir.path().join("t.json"));
        file.save(file.changed(), || b"[]".to_vec()).unwrap();
        assert!(file.path().exists());
    }
}
