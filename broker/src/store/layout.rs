//! The store directory: file names, the abort marker, and how small files are replaced.
//!
//! ```text
//! STORE/
//!   lock  abort  checkpoint  gantry.checkpoint
//!   commitlog/NNNNNNNNNNNNNNNNNNNN
//!   consumequeue/TOPIC/QUEUE-ID/NNNNNNNNNNNNNNNNNNNN
//!   index/yyyyMMddHHmmssSSS
//!   dedup/NNNNNNNNNNNNNNNNNNNN          (ours alone; the peer ignores it)
//!   timers/slots  timers/NNNNNNNNNNNNNNNNNNNN          (likewise)
//!   config/*.json
//! ```
//!
//! `abort` exists while a broker runs: found at start, it tells of a crash.

use std::io;
use std::path::{Path, PathBuf};

use super::disk::{Disk, RealDisk};

/// The paths of one store.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout under `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The store directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Files of the commit log.
    pub fn commit_log(&self) -> PathBuf {
        self.root.join("commitlog")
    }

    /// Files of the key index.
    pub fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    /// Files of the dedup window.
    pub fn dedup(&self) -> PathBuf {
        self.root.join("dedup")
    }

    /// JSON configuration and offsets.
    pub fn config(&self) -> PathBuf {
        self.root.join("config")
    }

    /// The peer's checkpoint: store times up to which its files are flushed.
    pub fn checkpoint(&self) -> PathBuf {
        self.root.join("checkpoint")
    }

    /// Our own checkpoint: log positions of every projection.
    pub fn positions(&self) -> PathBuf {
        self.root.join("gantry.checkpoint")
    }

    /// Exists while a broker runs.
    pub fn abort(&self) -> PathBuf {
        self.root.join("abort")
    }

    /// Locked while a broker runs.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }
}

/// Replaces a JSON file durably, keeping the one before as `NAME.bak`.
pub fn replace_json(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Ok(before) = std::fs::read(path)
        && !before.is_empty()
    {
        RealDisk.replace(&backup(path), &before)?;
    }
    RealDisk.replace(path, bytes)
}

/// Reads a JSON file; the backup when the file is missing or `valid` refuses its content. `None` when
/// there is neither; an error when there is something but nothing valid.
pub fn load_json<T>(path: &Path, parse: impl Fn(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
    let mut damaged = None;
    for candidate in [path.to_path_buf(), backup(path)] {
        match std::fs::read(&candidate) {
            Ok(bytes) => match parse(&bytes) {
                Some(value) => {
                    if let Some(damaged) = damaged {
                        tracing::warn!(?damaged, "a configuration file is damaged; its backup is used");
                    }
                    return Ok(Some(value));
                }
                None => damaged = Some(candidate),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    match damaged {
        None => Ok(None),
        Some(path) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "{} is damaged and has no usable backup: restore it, or remove it to start without",
                path.display()
            ),
        )),
    }
}

fn backup(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(".bak");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> Option<String> {
        String::from_utf8(bytes.to_vec()).ok().filter(|text| text.starts_with('{'))
    }

    #[test]
    fn a_damaged_file_falls_back_to_the_one_before() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("config/x.json");
        assert_eq!(load_json(&path, text)?, None);
        replace_json(&path, b"{1}")?;
        replace_json(&path, b"{2}")?;
        assert_eq!(load_json(&path, text)?.as_deref(), Some("{2}"));
        std::fs::write(&path, b"")?;
        assert_eq!(load_json(&path, text)?.as_deref(), Some("{1}"));
        std::fs::write(backup(&path), b"?")?;
        assert!(load_json(&path, text).is_err());
        Ok(())
    }
}
