//! Finds the end of the log after a start and brings every projection up to it.
//!
//! Records are checked from the last checkpoint on (without one: from where the peer's files say, or
//! from the first record). The first place that does not check out is the end, unless a whole record
//! that names its own place follows within [`RESYNC_BYTES`]: then the bytes between are a gap, which is
//! reported and passed over, unless a power failure must be taken for its cause ([`gaps`](super::gaps)). Behind the
//! end everything is made zero, so that no remainder of an older write can come to life again.

use std::io;

use gantry_proto::ids::PhyOffset;

use super::checkpoint::{self, PeerCheckpoint};
use super::dispatch::{Audience, Dispatcher, Folds};
use super::gaps::{Gap, Judge};
use super::layout::Layout;
use super::queues::Queues;
use super::replay::{Replay, Step, Trust};
use super::segments::Segments;

/// How far behind damage recovery looks for more records. More than can wait unflushed.
pub const RESYNC_BYTES: u64 = 96 * 1024 * 1024;

/// Where recovery begins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    /// With reading: the smallest position of all.
    pub from: PhyOffset,
    /// With queues, index and dedup window, which have every record below. Not below `from`.
    pub listed: PhyOffset,
}

/// What recovery found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Where reading started.
    pub from: PhyOffset,
    /// The end of the log.
    pub end: PhyOffset,
    /// Records read.
    pub records: u64,
    /// Gaps inside the log that were met.
    pub gaps: Vec<Gap>,
    /// Whether the last stop was clean.
    pub clean: bool,
}

/// Where reading must start in a store that only the peer has written so far: at the start of a file, so
/// that its newest records are checked even after a clean stop.
pub(super) fn start_of_peer(layout: &Layout, segments: &Segments, queues: &Queues, clean: bool) -> PhyOffset {
    let min = segments.min();
    let dispatched = queues.max_phy().max(min).back(1);
    let file = dispatched.back(dispatched.get() % segments.segment_bytes()).max(min);
    if clean {
        return file;
    }
    checkpoint::load_peer(layout).map_or(min, |peer| from_peer(segments, &peer).min(file))
}

/// The last file whose first record the crashed peer had surely dispatched and flushed.
pub(super) fn from_peer(segments: &Segments, peer: &PeerCheckpoint) -> PhyOffset {
    let limit = PhyOffset::new(u64::MAX);
    for segment in segments.all().iter().rev() {
        let mut replay = Replay::new(segments);
        if let Step::Record(view, _) = replay.step(segment.start(), limit, Trust::Nothing) {
            let safe = if peer.logics_phy > PhyOffset::ZERO {
                view.phy_offset() <= peer.logics_phy
            } else {
                view.store_at() <= peer.safe_time()
            };
            if safe {
                return segment.start();
            }
        }
    }
    segments.min()
}

/// Reads from `start` to the end, applying every record; cuts log and projections at the end. After a clean
/// stop of ours the end is known. `judge` tells what the gaps are. When the end is below what the queues had,
/// `give_up` notes it before they are cut.
pub(super) fn run(
    segments: &Segments,
    folds: &Folds,
    dispatcher: &Dispatcher,
    Start { from, listed }: Start,
    judge: &Judge<'_>,
    give_up: impl FnOnce(PhyOffset) -> io::Result<()>,
) -> io::Result<Recovered> {
    let limit = segments.all().last().map_or(PhyOffset::ZERO, |last| last.start() + segments.segment_bytes());
    let clean_end = judge.clean_end();
    let mut recovered = Recovered { from, ..Recovered::default() };
    // What the queues hold behind `listed` may not be durable: it is built again from the log.
    folds.queues.each(|queue| queue.truncate(listed))?;
    dispatcher.seek(from);
    let mut replay = Replay::new(segments);
    let mut at = from;
    loop {
        match replay.step(at, limit, Trust::Nothing) {
            Step::Record(view, next) => {
                let audience = if at < listed { Audience::Lagging } else { Audience::All };
                dispatcher.replay(view, next, audience);
                recovered.records += 1;
                at = next;
            }
            Step::NextFile(next) if next <= limit => {
                if segments.find(next).is_none() {
                    at = next;
                    break;
                }
                at = next;
            }
            Step::NextFile(_) | Step::End if clean_end == Some(at) => break,
            Step::NextFile(_) | Step::End => {
                let Some(next) = beyond(segments, at, limit) else { break };
                if judge.is_end(at, next) {
                    break;
                }
                recovered.gaps.push(judge.meet(at, next, "it is blank"));
                at = next;
            }
            Step::Damaged(what) => {
                let Some(next) = beyond(segments, at, limit) else {
                    tracing::warn!(%at, what, "the log ends in an unfinished record; it is cut there");
                    break;
                };
                if judge.is_end(at, next) {
                    break;
                }
                recovered.gaps.push(judge.meet(at, next, &what));
                at = next;
            }
        }
    }
    recovered.end = at;
    if at < listed {
        give_up(at)?;
    }
    segments.cut(at)?;
    dispatcher.seek(at);
    folds.queues.each(|queue| queue.truncate(at))?;
    folds.index.truncate(at)?;
    folds.dedup.truncate(at)?;
    dispatcher.truncate(at)?;
    folds.queues.each(|queue| queue.raise_min(segments.min()))?;
    dispatcher.finish_replay();
    Ok(recovered)
}

/// The next record within reach behind bytes that are none.
fn beyond(segments: &Segments, at: PhyOffset, limit: PhyOffset) -> Option<PhyOffset> {
    Replay::new(segments).resync(at, limit.min(at + RESYNC_BYTES))
}
