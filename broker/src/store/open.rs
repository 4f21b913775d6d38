//! How a store is opened: what can be chosen, what is in the way, and everything that [`Store::open`] does before the
//! flusher starts: lock, checkpoint, recovery ([`recover`]), and what was found made durable.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock, PoisonError};

use gantry_proto::ids::PhyOffset;

use super::append::{Log, LogLimits};
use super::checkpoint::{self, CheckpointError, Positions};
use super::dedup::{DedupOptions, DedupWindow};
use super::disk::{DirLock, Disk};
use super::dispatch::{DelayLevels, Dispatcher, Folds};
use super::gaps::Judge;
use super::index::{IndexOptions, KeyIndex};
use super::layout::Layout;
use super::projection::Projection;
use super::queue;
use super::queues::Queues;
use super::recover::{self, Recovered, Start};
use super::retain::{Holds, Retention};
use super::segments::{Segments, SegmentsError};
use super::{FlushPolicy, Store, flush, stopped};
use crate::clock::Clock;
use crate::sync::{Mutex, thread};

/// Under the policy `disk` blocks of the log are written with zeroes in steps of this many bytes.
const PREPARE_STEP: u64 = 256 * 1024;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// What an acknowledged append survives.
    pub policy: FlushPolicy,
    /// Length of a log file in bytes. Fixed for the life of the store.
    pub segment_bytes: u64,
    /// Length of a consume queue file in bytes. Fixed for the life of the store.
    pub queue_file_bytes: u64,
    /// The most bytes that may wait to be written before appends are refused.
    pub staged_bytes_max: u64,
    /// Disk blocks are reserved in steps of this many bytes.
    pub allocate_step: u64,
    /// Bytes of the disk that appends leave free, for recovery and metadata.
    pub reserve_bytes: u64,
    /// Delay of each level in milliseconds.
    pub delay_levels: DelayLevels,
    /// Sizes of the key index.
    pub index: IndexOptions,
    /// Bounds of the dedup window.
    pub dedup: DedupOptions,
    /// When old messages go.
    pub retention: Retention,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            policy: FlushPolicy::Disk,
            segment_bytes: 1024 * 1024 * 1024,
            queue_file_bytes: 300_000 * queue::ENTRY_BYTES,
            staged_bytes_max: 32 * 1024 * 1024,
            allocate_step: 16 * 1024 * 1024,
            reserve_bytes: 64 * 1024 * 1024,
            delay_levels: Arc::from([]),
            index: IndexOptions::default(),
            dedup: DedupOptions::default(),
            retention: Retention::default(),
        }
    }
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the store {0} is in use by another process: stop that one, or choose another --store")]
    Locked(PathBuf),
    /// A newer program wrote it, or its checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The log's files are not what they must be.
    #[error(transparent)]
    Segments(#[from] SegmentsError),
    /// Reading or writing the directory failed.
    #[error("cannot use {path} as a store: check that it exists, may be written and has free space")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Store {
    /// Opens the store in `dir`, making it when there is none, and brings `projections` up to its end.
    pub fn open(
        dir: &Path,
        options: &StoreOptions,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        projections: Vec<Box<dyn Projection>>,
    ) -> Result<Self, OpenError> {
        let layout = Layout::new(dir);
        let io = |source| OpenError::Io { path: dir.to_path_buf(), source };
        let lock = DirLock::take(&layout.lock()).map_err(io)?.ok_or_else(|| OpenError::Locked(dir.into()))?;
        let positions = checkpoint::load(&layout)?;
        let clean = !layout.abort().exists();
        let known =
            positions.as_ref().is_some_and(|known| known.segment_bytes == Some(options.segment_bytes));
        let segments = Segments::open(Arc::clone(&disk), layout.commit_log(), options.segment_bytes, known)?;
        let folds = open_folds(&disk, &layout, options).map_err(io)?;
        let positions = match positions {
            None => begin_store(disk.as_ref(), &layout, &segments, &folds).map_err(io)?,
            known => known,
        };
        if clean {
            // After a crash it is there still.
            disk.replace(&layout.abort(), std::process::id().to_string().as_bytes()).map_err(io)?;
        }

        let whole = queues_are_whole(&folds.queues, positions.as_ref()).map_err(io)?;
        let start = if whole {
            replay_from(&layout, &segments, &folds, positions.as_ref(), &projections, clean)
        } else {
            Start { from: segments.min(), listed: segments.min() }
        };
        let from = start.from;
        let give_up = |at| give_up_queues(disk.as_ref(), &layout, positions.as_ref(), at);
        give_up(start.listed).map_err(io)?;
        let dispatcher = Dispatcher::new(folds.clone(), projections, from);
        let peer = checkpoint::load_peer(&layout);
        let known = (positions.as_ref(), peer.as_ref());
        let judge = Judge::new(known, clean, options.policy, clock.now(), disk.as_ref());
        let recovered = recover::run(&segments, &folds, &dispatcher, start, &judge, give_up).map_err(io)?;
        let gaps = judge.after(from, recovered.end, &recovered.gaps);
        let recovered = Recovered { clean, ..recovered };
        report_lost(&recovered, positions.as_ref());

        let limits = LogLimits {
            staged_bytes_max: options.staged_bytes_max,
            allocate_step: options.allocate_step,
            prepare_step: match options.policy {
                FlushPolicy::Disk => PREPARE_STEP,
                FlushPolicy::Memory => 0,
            },
            reserve_bytes: options.reserve_bytes,
            refuse_ratio: options.retention.disk_refuse_ratio,
        };
        let flushed = recovered.from.min(recovered.end);
        let log = Log::new(Arc::clone(&disk), dir.to_path_buf(), segments, limits, flushed, recovered.end);
        let store = Self {
            layout,
            disk,
            clock,
            policy: options.policy,
            log: Arc::new(log),
            folds,
            holds: Holds::default(),
            retention: options.retention,
            dispatcher: Arc::new(dispatcher),
            signal: Arc::default(),
            flusher: Mutex::new(None),
            saved: Mutex::new(None),
            checkpointing: Mutex::new(()),
            closed: AtomicBool::new(false),
            targets: OnceLock::new(),
            recovered,
            gaps,
            _lock: lock,
        };
        store.settle_names().map_err(io)?;
        match options.policy {
            // What was found is answered for from now on: a resend finds it and is acknowledged.
            FlushPolicy::Disk => drop(store.log.flush().map_err(|failure| io(stopped(&failure)))?),
            FlushPolicy::Memory => store.signal.request(),
        }
        store.start_flusher().map_err(io)?;
        Ok(store)
    }

    /// Makes durable what the directories hold that cannot be built again. A process that was killed between
    /// making a file and syncing its directory has left a name that only memory has; it looks like any other.
    fn settle_names(&self) -> io::Result<()> {
        let layout = &self.layout;
        match layout.root().parent().filter(|above| !above.as_os_str().is_empty()) {
            // A directory of somebody else, that one may pass through but not list.
            Some(above) => self.disk.sync_names(above).or_else(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => Ok(()),
                _ => Err(error),
            })?,
            None => self.disk.sync_names(Path::new("."))?,
        }
        for dir in [layout.root().to_path_buf(), layout.commit_log(), layout.config(), layout.dedup()] {
            self.disk.sync_names(&dir)?;
        }
        Ok(())
    }

    fn start_flusher(&self) -> io::Result<()> {
        let (policy, log, dispatcher, signal) =
            (self.policy, Arc::clone(&self.log), Arc::clone(&self.dispatcher), Arc::clone(&self.signal));
        let thread = thread::Builder::new()
            .name("flush".to_owned())
            .spawn(move || flush::run(policy, &log, &dispatcher, &signal))?;
        *self.flusher.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }
}

fn open_folds(disk: &Arc<dyn Disk>, layout: &Layout, options: &StoreOptions) -> io::Result<Folds> {
    let queues = Queues::open(Arc::clone(disk), layout.root(), options.queue_file_bytes)?;
    let index = KeyIndex::open(Arc::clone(disk), layout.index(), options.index)?;
    let dedup = DedupWindow::open(Arc::clone(disk), layout.dedup(), options.dedup)?;
    Ok(Folds {
        queues: Arc::new(queues),
        index: Arc::new(index),
        dedup: Arc::new(dedup),
        delay_levels: Arc::clone(&options.delay_levels),
    })
}

/// The first checkpoint of a store that has nothing yet: from now on it is known what was never on the disk.
fn begin_store(
    disk: &dyn Disk,
    layout: &Layout,
    segments: &Segments,
    folds: &Folds,
) -> io::Result<Option<Positions>> {
    if !segments.all().is_empty() || !folds.queues.topics().is_empty() {
        return Ok(None);
    }
    let positions = Positions::of_new(segments.segment_bytes(), disk.boot());
    checkpoint::save_positions(disk, layout, &positions)?;
    Ok(Some(positions))
}

/// Where recovery must start so that every projection gets what it lacks.
fn replay_from(
    layout: &Layout,
    segments: &Segments,
    folds: &Folds,
    positions: Option<&Positions>,
    projections: &[Box<dyn Projection>],
    clean: bool,
) -> Start {
    let listed = match positions {
        // Projections at zero rely on the checkpoint; the others keep a position of their own.
        // Without any queue files there is nothing that the checkpoint could speak of, unless it says so.
        Some(known) if known.queue_entries != Some(0) && folds.queues.topics().is_empty() => PhyOffset::ZERO,
        Some(positions) => positions.start(&["queues"]),
        None => recover::start_of_peer(layout, segments, &folds.queues, clean),
    };
    let own =
        projections.iter().map(|projection| projection.position()).filter(|at| *at > PhyOffset::ZERO).min();
    // One that lacks its file says 1: all records count, the one at 0 among them.
    let own = own.map(|own| if own == PhyOffset::new(1) { PhyOffset::ZERO } else { own });
    let from = own.map_or(listed, |own| listed.min(own)).max(segments.min());
    // Records that others lack are not for the queues: those of a deleted topic would be listed again. Of queues
    // without a checkpoint nobody knows whether they are whole: they are built again as far as is read anyway.
    let listed = if positions.is_some() { listed.max(from) } else { from };
    Start { from, listed }
}

/// Whether the queue files hold as many entries for the log below the checkpoint as they did when it was saved.
fn queues_are_whole(queues: &Queues, positions: Option<&Positions>) -> io::Result<bool> {
    let Some((positions, expected)) = positions.and_then(|known| Some((known, known.queue_entries?))) else {
        return Ok(true);
    };
    let end = positions.start(&["queues"]);
    queues.each(|queue| queue.truncate(end))?;
    let found = queues.entries_ever();
    if found != expected {
        tracing::error!(
            found,
            expected,
            "the files of the consume queues are damaged; all are built again from the log"
        );
    }
    Ok(found == expected)
}

/// Notes that the queue files hold nothing from `from` on, before recovery makes it so: if that is killed, the
/// next start must neither rely on more nor take them for damaged.
fn give_up_queues(
    disk: &dyn Disk,
    layout: &Layout,
    positions: Option<&Positions>,
    from: PhyOffset,
) -> io::Result<()> {
    let Some(positions) = positions.filter(|known| known.start(&["queues"]) > from) else { return Ok(()) };
    let mut left = Positions { queue_entries: None, ..positions.clone() };
    left.projections.insert("queues".to_owned(), from.get());
    checkpoint::save_positions(disk, layout, &left)
}

/// Tells when the log ends before the place up to which it once was on the disk.
fn report_lost(recovered: &Recovered, positions: Option<&Positions>) {
    let flushed = PhyOffset::new(positions.map_or(0, |known| known.flushed));
    if recovered.end < flushed {
        tracing::error!(end = %recovered.end, %flushed, "the commit log ends before what was flushed to the disk: messages that were acknowledged are lost");
    }
}
