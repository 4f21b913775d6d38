//! The commit log's files: fixed length, named after their first byte, in order and without gaps.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use gantry_proto::ids::PhyOffset;

use super::disk::{Disk, DiskFile, Map, offset_path, parse_offset_name};

/// One file of the log.
#[derive(Debug)]
pub struct Segment {
    start: u64,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    map: OnceLock<Map>,
}

impl Segment {
    /// Its first byte's place in the log.
    pub fn start(&self) -> PhyOffset {
        PhyOffset::new(self.start)
    }

    /// The file itself, for writing and flushing.
    pub fn file(&self) -> &dyn DiskFile {
        self.file.as_ref()
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its content. Only bytes below the written watermark may be looked at while the log is live.
    pub fn map(&self) -> io::Result<&Map> {
        if let Some(map) = self.map.get() {
            return Ok(map);
        }
        let map = self.file.map()?;
        Ok(self.map.get_or_init(|| map))
    }
}

/// All files of the log.
#[derive(Debug)]
pub struct Segments {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    bytes: u64,
    /// In order of `start`. Guards the list; the files have their own rules.
    files: RwLock<Vec<Arc<Segment>>>,
}

/// Why the log's files cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SegmentsError {
    /// Reading the directory or a file failed.
    #[error("cannot open the commit log in {dir}: check that it exists and may be written")]
    Io {
        /// The log's directory.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file's length is not the configured one.
    #[error(
        "{path} is {len} bytes long, log files are {expected}: if all are that long, set store.segment-bytes to it; if it was cut short, restore it from a backup"
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
        /// The configured length.
        expected: u64,
    },
    /// A file does not begin where one can.
    #[error(
        "{path} does not begin at a multiple of {expected} bytes, the length of log files: restore it from a backup"
    )]
    Misplaced {
        /// The file.
        path: PathBuf,
        /// Their length.
        expected: u64,
    },
    /// A file is missing between two others.
    #[error("the commit log has no file that starts at {missing}: restore it from a backup")]
    Gap {
        /// First byte of the missing file.
        missing: u64,
    },
}

impl Segments {
    /// Opens the files that are there. An empty last file (a crash while it was made) is made anew. When the
    /// files are known to be `bytes` long, a shorter last file (a crash while it was cut, or damage) gets its
    /// length back, filled with zeroes.
    pub fn open(disk: Arc<dyn Disk>, dir: PathBuf, bytes: u64, known: bool) -> Result<Self, SegmentsError> {
        let io = |source| SegmentsError::Io { dir: dir.clone(), source };
        let mut files: Vec<Arc<Segment>> = Vec::new();
        let listed: Vec<(u64, u64)> = disk
            .list(&dir)
            .map_err(io)?
            .into_iter()
            .filter_map(|(name, len)| parse_offset_name(&name).map(|start| (start, len)))
            .collect();
        for (number, &(start, len)) in listed.iter().enumerate() {
            let path = offset_path(&dir, start);
            let last = number + 1 == listed.len();
            let short_last = last && (len == 0 || known && len < bytes);
            if len != bytes && !short_last {
                return Err(SegmentsError::Length { path, len, expected: bytes });
            }
            if start % bytes != 0 {
                return Err(SegmentsError::Misplaced { path, expected: bytes });
            }
            if let Some(before) = files.last()
                && before.start + bytes != start
            {
                return Err(SegmentsError::Gap { missing: before.start + bytes });
            }
            let file = disk.open(&path, bytes).map_err(io)?;
            if len > 0 && len < bytes {
                tracing::error!(path = %path.display(), len, expected = bytes, "the last file of the commit log is cut short; what lay behind is lost");
                // Its last byte gives it its length.
                file.write_at(bytes - 1, &[0]).and_then(|()| file.sync()).map_err(io)?;
            }
            files.push(Arc::new(Segment { start, path, file, map: OnceLock::new() }));
        }
        Ok(Self { disk, dir, bytes, files: RwLock::new(files) })
    }

    /// Length of each file.
    pub fn segment_bytes(&self) -> u64 {
        self.bytes
    }

    /// First byte of the first file; zero for an empty log.
    pub fn min(&self) -> PhyOffset {
        self.read().first().map_or(PhyOffset::ZERO, |segment| segment.start())
    }

    /// All files, in order.
    pub fn all(&self) -> Vec<Arc<Segment>> {
        self.read().clone()
    }

    /// The file that holds `at`.
    pub fn find(&self, at: PhyOffset) -> Option<Arc<Segment>> {
        let files = self.read();
        let first = files.first()?.start;
        let number = at.get().checked_sub(first)? / self.bytes;
        files.get(usize::try_from(number).ok()?).cloned()
    }

    /// The file that holds `at`, made when it is the next one (or the first of an empty log).
    pub fn find_or_create(&self, at: PhyOffset) -> io::Result<Arc<Segment>> {
        if let Some(segment) = self.find(at) {
            return Ok(segment);
        }
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        let start = at.get() - at.get() % self.bytes;
        if let Some(known) = files.iter().find(|segment| segment.start == start) {
            return Ok(Arc::clone(known));
        }
        let expected = files.last().map_or(start, |last| last.start + self.bytes);
        if start != expected {
            return Err(io::Error::other(format!(
                "log file {start} was asked for, the next one is {expected}"
            )));
        }
        let path = offset_path(&self.dir, start);
        let file = self.disk.open(&path, self.bytes)?;
        let segment = Arc::new(Segment { start, path, file, map: OnceLock::new() });
        files.push(Arc::clone(&segment));
        Ok(segment)
    }

    /// Cuts the log at `end`: later files go, later bytes of its file become zero.
    pub fn cut(&self, end: PhyOffset) -> io::Result<()> {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        while let Some(last) = files.last()
            && last.start >= end.get()
        {
            self.disk.remove(&last.path)?;
            files.pop();
        }
        if let Some(last) = files.last()
            && end.get() - last.start < self.bytes
        {
            last.file.zero_from(end.get() - last.start)?;
        }
        Ok(())
    }

    /// Removes the first file, unless it is the only one. Readers that hold it can still read it.
    pub fn drop_first(&self) -> io::Result<Option<Arc<Segment>>> {
        let first = {
            let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
            if files.len() < 2 {
                return Ok(None);
            }
            files.remove(0)
        };
        self.disk.remove(&first.path)?;
        Ok(Some(first))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Segment>>> {
        self.files.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::super::disk::RealDisk;
    use super::*;

    fn open(dir: &Path) -> Result<Segments, SegmentsError> {
        Segments::open(Arc::new(RealDisk), dir.join("commitlog"), 4096, false)
    }

    #[test]
    fn files_are_made_in_order_found_and_cut() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let segments = open(dir.path()).expect("an empty log");
        assert!(segments.find(PhyOffset::ZERO).is_none());
        segments.find_or_create(PhyOffset::ZERO).expect("the first file");
        assert!(segments.find_or_create(PhyOffset::new(9000)).is_err(), "not the next one");
        segments.find_or_create(PhyOffset::new(4096)).expect("the second file");
        segments.find_or_create(PhyOffset::new(8192)).expect("the third file");
        segments.cut(PhyOffset::new(5000)).expect("cut");
        assert_eq!(segments.all().len(), 2);
        assert!(segments.drop_first().expect("drop").is_some());
        assert_eq!(segments.min(), PhyOffset::new(4096));
        assert!(segments.drop_first().expect("drop").is_none(), "the last file stays");
        drop(segments);
        assert_eq!(open(dir.path()).expect("reopened").min(), PhyOffset::new(4096));
    }

    #[test]
    fn a_last_file_that_is_cut_short_gets_its_length_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let segments = open(dir.path()).expect("an empty log");
        let file = segments.find_or_create(PhyOffset::ZERO).expect("a file");
        file.file().write_at(0, b"kept").expect("written");
        let log = dir.path().join("commitlog");
        File::options().write(true).open(file.path()).and_then(|file| file.set_len(1000)).expect("cut");
        assert!(
            matches!(open(dir.path()), Err(SegmentsError::Length { len: 1000, .. })),
            "it may be the length"
        );
        let segments = Segments::open(Arc::new(RealDisk), log, 4096, true).expect("known to be longer");
        let map = segments.all()[0].map().expect("mapped").clone();
        assert_eq!((map.len(), map.starts_with(b"kept")), (4096, true));
    }

    #[test]
    fn wrong_lengths_and_gaps_are_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let segments = open(dir.path()).expect("an empty log");
        for at in [0, 4096, 8192] {
            segments.find_or_create(PhyOffset::new(at)).expect("a file");
        }
        let wrong =
            Segments::open(Arc::new(RealDisk), dir.path().join("commitlog"), 8192, false).unwrap_err();
        assert!(wrong.to_string().contains("log files are 8192"), "{wrong}");
        std::fs::remove_file(offset_path(&dir.path().join("commitlog"), 4096)).expect("remove");
        assert!(matches!(open(dir.path()), Err(SegmentsError::Gap { missing: 4096 })));
    }

    #[test]
    fn a_file_that_begins_between_two_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let segments = open(dir.path()).expect("an empty log");
        segments.find_or_create(PhyOffset::ZERO).expect("a file");
        let path = |start| offset_path(&dir.path().join("commitlog"), start);
        std::fs::rename(path(0), path(5000)).expect("renamed");
        assert!(matches!(open(dir.path()), Err(SegmentsError::Misplaced { expected: 4096, .. })));
    }
}
