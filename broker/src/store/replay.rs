//! Records from a position on: start-up, dispatch and repair all read the log through this.

use std::sync::Arc;

use gantry_proto::ids::PhyOffset;
use gantry_proto::record::{RecordView, Slot};
use memchr::memmem;

use super::append::{Log, Staged};
use super::disk::Map;
use super::segments::{Segment, Segments};

/// How closely records are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Written by this process: only the lengths are checked.
    OwnWrites,
    /// Read back from the disk: checksums and the record's own position are checked too.
    Nothing,
}

/// What lies at a position.
#[derive(Debug)]
pub enum Step<'a> {
    /// A record, and where the next one starts.
    Record(RecordView<'a>, PhyOffset),
    /// The rest of the file is blank; the next file starts here.
    NextFile(PhyOffset),
    /// Nothing was written here.
    End,
    /// Something was, but it does not check out.
    Damaged(String),
}

/// A cursor over the log's bytes. Holds the file it is in, so that a run of records costs one look-up.
#[derive(Debug)]
pub struct Replay<'a> {
    segments: &'a Segments,
    current: Option<(Arc<Segment>, Map)>,
    /// What need not be read from the files.
    newest: Option<Arc<Staged>>,
}

impl<'a> Replay<'a> {
    /// A cursor over `segments`.
    pub const fn new(segments: &'a Segments) -> Self {
        Self { segments, current: None, newest: None }
    }

    /// A cursor over what this process wrote, which takes the last of it from memory.
    pub(super) fn of_own(log: &'a Log) -> Self {
        Self { newest: Some(log.newest()), ..Self::new(log.segments()) }
    }

    /// What lies at `at`. No byte at or beyond `limit` is looked at.
    pub fn step(&mut self, at: PhyOffset, limit: PhyOffset, trust: Trust) -> Step<'_> {
        let bytes = self.segments.segment_bytes();
        if at >= limit {
            return Step::End;
        }
        let start = PhyOffset::new(at.get() - at.get() % bytes);
        let end = limit.since(start).min(bytes);
        let in_memory = self.newest.as_ref().and_then(|newest| newest.place_of(at));
        if in_memory.is_none() && !self.enter(at) {
            return Step::End;
        }
        let rest = match (in_memory, &self.newest, &self.current) {
            (Some(place), Some(newest), _) => slice(newest.bytes_of(place), 0, end - at.since(start)),
            (_, _, Some((_, map))) => slice(map, at.since(start), end),
            _ => return Step::End,
        };
        match Slot::read(rest) {
            Ok(Slot::Record(view)) => match check(&view, at, trust) {
                Ok(()) => Step::Record(view, at + u64::from(view.total_size())),
                Err(what) => Step::Damaged(what),
            },
            // A blank record covers the rest of its file; in a live log only its first bytes exist.
            Ok(Slot::Blank { .. }) => Step::NextFile(start + bytes),
            Ok(Slot::End) => Step::End,
            Err(error) => Step::Damaged(error.to_string()),
        }
    }

    /// Hands every whole record from `at` to `end` to `apply`. What lies between them is passed over, whether it is
    /// damaged or blank: recovery has reported it.
    pub fn each(&mut self, mut at: PhyOffset, end: PhyOffset, mut apply: impl FnMut(&RecordView<'_>)) {
        while at < end {
            at = match self.step(at, end, Trust::Nothing) {
                Step::Record(view, next) => {
                    apply(&view);
                    next
                }
                Step::NextFile(next) => next,
                Step::End | Step::Damaged(_) => match self.resync(at, end) {
                    Some(next) => next,
                    None => return,
                },
            }
        }
    }

    /// The next place behind `at`, and below `limit`, where a whole record checks out that also says
    /// that it lies there.
    pub fn resync(&mut self, at: PhyOffset, limit: PhyOffset) -> Option<PhyOffset> {
        let bytes = self.segments.segment_bytes();
        let mut candidate = at + 1;
        while candidate < limit {
            if !self.enter(candidate) {
                return None;
            }
            let (segment, map) = self.current.as_ref()?;
            let start = segment.start();
            // Holes are passed over unread: the rest of the last file is one most of the time.
            let from = candidate.since(start);
            let data = segment.file().next_data(from).unwrap_or(Some(from..bytes));
            let Some(data) = data.filter(|data| data.start < bytes) else {
                candidate = start + bytes;
                continue;
            };
            // A length may begin in the hole before, as far as it is zero.
            let from = from.max(data.start.saturating_sub(4));
            let rest = slice(map, from, data.end.min(limit.since(start)).min(bytes));
            let Some(skip) = candidate_in(rest) else {
                candidate = (start + data.end.min(bytes)).max(candidate + 1);
                continue;
            };
            candidate = start + from + skip as u64;
            if matches!(self.step(candidate, limit, Trust::Nothing), Step::Record(..)) {
                return Some(candidate);
            }
            candidate += 1;
        }
        None
    }

    fn enter(&mut self, at: PhyOffset) -> bool {
        let bytes = self.segments.segment_bytes();
        let inside = |segment: &Segment| at >= segment.start() && at < segment.start() + bytes;
        if self.current.as_ref().is_some_and(|(segment, _)| inside(segment)) {
            return true;
        }
        self.current = self.segments.find(at).and_then(|segment| match segment.map() {
            Ok(map) => {
                let map = map.clone();
                Some((segment, map))
            }
            Err(error) => {
                tracing::error!(%error, path = %segment.path().display(), "cannot map a log file");
                None
            }
        });
        self.current.is_some()
    }
}

/// The first place in `bytes` that looks like the start of a record: its length, whose first byte is 0 (records
/// are below 16 MiB), and its magic code behind it.
pub(super) fn candidate_in(bytes: &[u8]) -> Option<usize> {
    memmem::find_iter(bytes, &[0xDA, 0xA3, 0x20])
        .filter_map(|magic| magic.checked_sub(4))
        .find(|length| bytes.get(*length) == Some(&0))
}

fn slice(map: &[u8], from: u64, to: u64) -> &[u8] {
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    let to = usize::try_from(to).unwrap_or(usize::MAX).min(map.len());
    map.get(from..to).unwrap_or_default()
}

/// Whether the record that was found at `at` is to be believed; the error says why not.
pub(super) fn check(view: &RecordView<'_>, at: PhyOffset, trust: Trust) -> Result<(), String> {
    if trust == Trust::OwnWrites {
        return Ok(());
    }
    if view.phy_offset() != at {
        return Err(format!("the record says that it lies at {}", view.phy_offset()));
    }
    view.check().map_err(|error| error.to_string())
}
