//! Looks at a store that no broker runs on, without changing it: `gantry store verify`.
//!
//! One pass over the commit log, in the order in which everything else was made from it: at each record its
//! queue's entry is looked at, and the index entries of its keys, which lie in the same order. So each file is read
//! once from its beginning to its end, and memory holds a few words for each queue and one number for each slot of
//! an index file.
//!
//! - `log.rs`: the files of the log, the records in them, what lies between and behind
//! - `queues.rs`: the entries of the consume queues, each against its record
//! - `index.rs`: headers, entries, chains and slots of the key index
//! - `files.rs`: the checkpoints and the JSON files
//!
//! **After a crash** (`abort` is there) the store may lack what the next start builds again, and hold what it cuts
//! off. Where that start would begin is known from the checkpoint: what is wrong with the queues behind that
//! position, and with the log behind the last record that checks out, is told as *mended*, and so is a gap where the log
//! was not known to be on the disk; all else is damage. Once a start has passed over such a gap the checkpoint lists it,
//! and it is told as that for as long as the log has it.

mod files;
pub mod finding;
mod index;
mod log;
mod queues;

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::checkpoint::{self, CheckpointError};
use super::disk::{DirLock, ReadOnlyDisk};
use super::dispatch::DelayLevels;
use super::gaps::{Gap, unflushed_from};
use super::index::IndexOptions;
use super::layout::Layout;
use finding::Findings;

/// Advice where the log itself is damaged.
const RESTORE: &str = "look after the disk; restore the file from a backup if you need these messages";
/// Advice where something made from the log is wrong.
const REBUILD: &str = "to build queues and index again from the log, remove consumequeue/, index/ and gantry.checkpoint and start";
/// Advice where a start puts things right by itself.
const START: &str = "nothing is to be done";

/// How a store is verified.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Sizes of the index files, as the store was made with.
    pub index: IndexOptions,
    /// Delay of each level in milliseconds.
    pub delay_levels: DelayLevels,
    /// How many findings of each area are kept; all are counted.
    pub findings_max: usize,
}

/// How the last broker on the store ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Closed {
    /// It stopped.
    Cleanly,
    /// It was killed, or the machine stopped.
    Crashed,
}

/// What the store itself says of how far it is.
#[derive(Clone, Debug)]
struct Known {
    closed: Closed,
    /// Whether Gantry ran on it.
    is_ours: bool,
    /// Log bytes below were on the disk.
    flushed: u64,
    /// See [`unflushed_from`].
    gaps_from: u64,
    /// The next start applies the records from here on again.
    replayed_from: u64,
    /// Gaps of the log that were met by a start.
    gaps: Vec<Gap>,
}

impl Known {
    fn is_clean(&self) -> bool {
        self.closed == Closed::Cleanly
    }

    /// How bad it is when what belongs to the record at `phy` is missing or wrong in a queue.
    fn severity_at(&self, phy: u64) -> finding::Severity {
        if !self.is_clean() && phy >= self.replayed_from {
            finding::Severity::Mended
        } else {
            finding::Severity::Damage
        }
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Files of the commit log.
    pub log_files: u64,
    /// First byte of the log.
    pub log_start: u64,
    /// First byte behind the last record.
    pub log_end: u64,
    /// Records that check out.
    pub records: u64,
    /// Stretches of the log between records that are none.
    pub damaged_stretches: u64,
    /// Bytes in those.
    pub damaged_bytes: u64,
    /// Gaps of the log where nothing was known to be on the disk.
    pub gaps: u64,
    /// Bytes in those.
    pub gap_bytes: u64,
    /// Consume queues.
    pub queues: u64,
    /// Their files.
    pub queue_files: u64,
    /// Entries that name their record.
    pub entries: u64,
    /// Entries that stand for messages that are gone.
    pub blank_entries: u64,
    /// Entries of records that have left the log.
    pub expired_entries: u64,
    /// Entries that the next start adds.
    pub entries_to_come: u64,
    /// Records of topics that were deleted since, or made anew.
    pub records_of_deleted_topics: u64,
    /// Index files.
    pub index_files: u64,
    /// Index entries that name a record with their key.
    pub keys: u64,
    /// Index entries of records that have left the log.
    pub expired_keys: u64,
    /// Keys that the next start adds.
    pub keys_to_come: u64,
    /// JSON files.
    pub config_files: u64,
}

/// What an inspection says.
#[derive(Clone, Debug)]
pub struct Report {
    /// How the last broker ended.
    pub closed: Closed,
    /// Log bytes below were known to be on the disk.
    pub flushed: u64,
    /// What was looked at.
    pub counts: Counts,
    /// What is wrong.
    pub findings: Findings,
}

/// Why a store cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is none.
    #[error(
        "{0} holds no store: there is no commitlog directory in it; name the right directory with --store"
    )]
    NoStore(PathBuf),
    /// A broker runs on it.
    #[error("the store {0} is in use by another process: stop the broker first")]
    Locked(PathBuf),
    /// A newer program wrote it, or its checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A file cannot be read.
    #[error("cannot read the store {path}: check the disk and who may read it")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Looks at all of the store in `dir`. `progress` is told now and then how many bytes of the log are done, of how
/// many. Must not be called in a process that has the store open (see [`DirLock::share`]).
pub fn verify(
    dir: &Path,
    options: &VerifyOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report, VerifyError> {
    let layout = Layout::new(dir);
    if !layout.commit_log().is_dir() {
        return Err(VerifyError::NoStore(dir.to_path_buf()));
    }
    let io = |source| VerifyError::Io { path: dir.to_path_buf(), source };
    let locked = DirLock::share(&layout.lock()).map_err(io)?;
    let _lock = locked.ok_or_else(|| VerifyError::Locked(dir.to_path_buf()))?;
    let positions = checkpoint::load(&layout)?;
    look(&layout, options, positions.as_ref(), progress).map_err(io)
}

fn look(
    layout: &Layout,
    options: &VerifyOptions,
    positions: Option<&checkpoint::Positions>,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<Report> {
    let (mut findings, mut counts) = (Findings::new(options.findings_max), Counts::default());
    let log_files =
        log::LogFiles::open(layout, positions.and_then(|known| known.segment_bytes), &mut findings)?;
    let closed = if layout.abort().exists() { Closed::Crashed } else { Closed::Cleanly };
    let mut queues = queues::QueueChecks::open(layout, &options.delay_levels, &mut findings)?;
    let peer = checkpoint::load_peer(layout);
    let mut known = Known {
        closed,
        is_ours: positions.is_some(),
        flushed: positions.map_or(0, |known| known.flushed),
        gaps_from: unflushed_from(positions, peer.as_ref(), closed == Closed::Cleanly, &ReadOnlyDisk),
        replayed_from: files::replayed_from(layout, &log_files, positions, queues.max_phy()),
        gaps: positions.map(|known| known.gaps.clone()).unwrap_or_default(),
    };
    let counted = queues.count_below(positions, known.replayed_from);
    if let Some((found, expected)) = counted.filter(|(found, expected)| found != expected) {
        if !known.is_clean() {
            known.replayed_from = log_files.min();
        }
        findings.add(files::miscounted(&known, found, expected));
    }
    queues.judge_missing_by(files::topics(layout), counted.map(|(found, expected)| found == expected));
    let mut index = index::IndexChecks::open(layout, options.index, &known, &log_files, &mut findings)?;
    let mut checkpoints = files::Checkpoints::new(positions);

    let scanned = log::scan(&log_files, &known, &mut findings, progress, |step, findings| match step {
        log::Seen::Boundary(at) => {
            checkpoints.boundary(at);
            Ok(())
        }
        log::Seen::Record(view) => {
            let hot = view.properties().scan();
            queues.record(view, &hot, &log_files, &known, findings)?;
            index.record(view, &hot, findings)
        }
    })?;
    counts.log_start = log_files.min();
    counts.log_end = scanned.end;
    counts.log_files = log_files.count();
    counts.records = scanned.records;
    counts.damaged_stretches = scanned.damaged.count;
    counts.damaged_bytes = scanned.damaged.bytes;
    counts.gaps = scanned.gaps.count;
    counts.gap_bytes = scanned.gaps.bytes;
    queues.finish(&log_files, &known, &mut findings, &mut counts)?;
    index.finish(scanned.end, &mut findings, &mut counts)?;
    checkpoints.finish(layout, &known, &scanned, &log_files, &mut findings);
    counts.config_files = files::check_config(layout, &mut findings)?;
    Ok(Report { closed, flushed: known.flushed, counts, findings })
}

/// A big file's bytes from `from` on that are not zero: the first one. Holes are not read.
fn first_nonzero(file: &dyn super::disk::DiskFile, map: &[u8], from: u64) -> io::Result<Option<u64>> {
    let mut at = from;
    while let Some(data) = file.next_data(at)? {
        let start = usize::try_from(data.start).unwrap_or(usize::MAX);
        let end = usize::try_from(data.end).unwrap_or(usize::MAX).min(map.len());
        let Some(bytes) = map.get(start..end).filter(|bytes| !bytes.is_empty()) else { return Ok(None) };
        if let Some(found) = bytes.iter().position(|byte| *byte != 0) {
            return Ok(Some(data.start + found as u64));
        }
        at = end as u64;
    }
    Ok(None)
}

/// Opens `path` for reading, and its content.
fn open_map(
    path: &Path,
) -> io::Result<(std::sync::Arc<dyn super::disk::DiskFile>, Option<super::disk::Map>)> {
    use super::disk::Disk as _;
    let file = ReadOnlyDisk.open(path, 0)?;
    // An empty file cannot be mapped.
    let map = if file.length()? == 0 { None } else { Some(file.map()?) };
    Ok((file, map))
}

#[cfg(test)]
mod tests;
