//! What leaves the store: log files that are old, or that the disk has no room for.
//!
//! A file goes as a whole, oldest first, never the one being written, and never one that somebody still
//! needs (a [`Hold`]: undelivered timers, open halves). Queues and index follow.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use gantry_proto::ids::{Millis, PhyOffset};
use gantry_proto::record::RecordView;

use super::Store;
use super::watermark::Watermark;

/// When log files may go.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Messages are kept at least this long, in milliseconds, while there is room.
    pub keep_ms: u64,
    /// The log is cut down to about this many bytes; zero: no limit.
    pub keep_bytes: u64,
    /// Used share of the disk from which the oldest files go regardless of their age.
    pub disk_high_ratio: f64,
    /// Used share of the disk above which no new messages are taken.
    pub disk_refuse_ratio: f64,
}

impl Default for Retention {
    fn default() -> Self {
        Self { keep_ms: 72 * 3600 * 1000, keep_bytes: 0, disk_high_ratio: 0.85, disk_refuse_ratio: 0.9 }
    }
}

/// Keeps the log from `at` on while it lives. Move it on with [`Watermark::advance`].
pub type Hold = Arc<Watermark>;

/// Who needs old bytes.
#[derive(Debug, Default)]
pub struct Holds {
    /// Guards the list only.
    holds: Mutex<Vec<Weak<Watermark>>>,
    /// Files before this would go, were it not for a hold.
    wanted: Watermark,
}

impl Holds {
    /// A hold on the whole log from `at` on.
    pub fn hold(&self, at: PhyOffset) -> Hold {
        let hold = Hold::default();
        hold.advance(at);
        self.holds.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&hold));
        hold
    }

    /// Whoever can do without the log before this should move its hold on: retention wants that file.
    pub fn wanted(&self) -> PhyOffset {
        self.wanted.get()
    }

    fn least(&self) -> Option<PhyOffset> {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        holds.retain(|hold| hold.strong_count() > 0);
        holds.iter().filter_map(|hold| hold.upgrade().map(|hold| hold.get())).min()
    }
}

/// Removes what `retention` lets go at `now`; returns how many files went.
pub fn clean(store: &Store, holds: &Holds, retention: &Retention, now: Millis) -> std::io::Result<usize> {
    let log = store.log();
    let bytes = log.segments().segment_bytes();
    let mut removed = 0;
    loop {
        let segments = log.segments().all();
        let [first, second, ..] = segments.as_slice() else { break };
        let end = first.start() + bytes;
        // What no checkpoint has seen is still to be read again after a crash.
        if end > store.checkpointed() {
            break;
        }
        // Everything in a file is older than the first record of the next one.
        let old = second
            .map()
            .ok()
            .and_then(|map| RecordView::parse(map).ok().map(|view| now.since(view.store_at())))
            .is_some_and(|age| age > retention.keep_ms);
        let large = retention.keep_bytes > 0 && segments.len() as u64 * bytes > retention.keep_bytes + bytes;
        let crowded =
            store.disk.space(store.dir()).is_ok_and(|space| space.used_ratio() > retention.disk_high_ratio);
        if !(old || large || crowded) {
            break;
        }
        if holds.least().is_some_and(|least| least < end) {
            holds.wanted.advance(end);
            break;
        }
        if log.segments().drop_first()?.is_none() {
            break;
        }
        tracing::info!(file = %first.path().display(), old, large, crowded, "a log file was removed by retention");
        removed += 1;
    }
    if removed > 0 {
        store.raise_min()?;
    }
    Ok(removed)
}
