//! One look at a queue: which messages a pull gets, and where the next one begins.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use gantry_proto::ids::QueueOffset;
use gantry_proto::record::RecordView;

use super::filter::{Filter, Verdict};
use crate::store::{LogRuns, Queue, QueueEntry, ReadError, Store};

/// Messages of one answer, at the most.
pub const MESSAGES_MAX: usize = 1024;
/// Bytes of one answer, at the most; one message is always given.
pub const BYTES_MAX: usize = 256 * 1024;
/// Entries that one pull looks at; a filter that matches rarely gets its answer in pieces.
const SCAN_MAX: usize = 4096;
/// Messages whose properties one pull looks at, and bytes of those that it does not give.
const LOOKS_MAX: usize = 1024;
const LOOKED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Steps that a filter takes in one pull: terms times bytes of properties.
const LOOK_STEPS_MAX: usize = 16 * 1024 * 1024;

/// What a pull asks for.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// The queue.
    pub queue: Arc<Queue>,
    /// The first message wanted.
    pub from: QueueOffset,
    /// Messages wanted, at the most.
    pub messages_max: usize,
    /// Bytes wanted, at the most.
    pub bytes_max: usize,
    /// Which messages are wanted.
    pub filter: Filter,
}

/// What became of a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullStatus {
    /// There are messages.
    Found,
    /// There were messages, but none that is wanted (or they are gone): pull again at once.
    NoneMatched,
    /// The queue has nothing behind the offset yet.
    AtEnd,
    /// The queue has never had a message.
    EmptyQueue,
    /// The offset is below the first message.
    TooSmall,
    /// The offset is behind the end.
    Beyond,
}

/// The answer to a pull.
#[derive(Debug)]
pub struct Pulled {
    /// What became of it.
    pub status: PullStatus,
    /// Where the next pull begins.
    pub next: QueueOffset,
    /// First message of the queue.
    pub min: QueueOffset,
    /// Number after its last message.
    pub max: QueueOffset,
    /// The messages, as stored.
    pub messages: LogRuns,
}

/// Memory that pulls use one after the other.
#[derive(Debug, Default)]
pub struct Scratch {
    /// For the queue's entries.
    entries: Vec<QueueEntry>,
    /// For the messages: give them back when they are written.
    pub messages: LogRuns,
}

/// Looks once.
pub fn pull(store: &Store, request: &PullRequest, scratch: &mut Scratch) -> Pulled {
    let queue = &request.queue;
    let (min, max) = (queue.min(), queue.max());
    let from = request.from;
    let nothing = |status, next| Pulled { status, next, min, max, messages: LogRuns::default() };
    if max == QueueOffset::ZERO {
        return nothing(PullStatus::EmptyQueue, QueueOffset::ZERO);
    }
    if from < min {
        return nothing(PullStatus::TooSmall, min);
    }
    if from >= max {
        let status = if from == max { PullStatus::AtEnd } else { PullStatus::Beyond };
        return nothing(status, max);
    }
    let messages_max = request.messages_max.clamp(1, MESSAGES_MAX);
    let scan = match request.filter {
        Filter::All => messages_max,
        Filter::Tags(_) => SCAN_MAX,
        Filter::Sql(_) | Filter::Any(_) => LOOKS_MAX,
    };
    scratch.entries.clear();
    store.entries(queue, from, scan, &mut scratch.entries);
    let mut messages = store.messages(queue, std::mem::take(&mut scratch.messages));
    let bytes_max = request.bytes_max.clamp(1, BYTES_MAX);
    let mut next = from;
    let mut looks = Looks::new(&request.filter);
    for entry in &scratch.entries {
        let size = entry.size as usize;
        let verdict = request.filter.by_entry(entry.tags_code);
        if entry.is_blank() || verdict == Verdict::Unwanted {
            next = entry.at + 1;
            continue;
        }
        let full = messages.runs.messages() >= messages_max
            || (messages.runs.bytes() + size > bytes_max && !messages.runs.is_empty());
        if full || looks.are_enough() {
            break;
        }
        let added = match verdict {
            Verdict::Open => messages.add_if(entry, |record| looks.at(record)),
            Verdict::Wanted | Verdict::Unwanted => messages.add(entry),
        };
        match added {
            Ok(_) => {}
            Err(error @ ReadError::Gone { .. }) => {
                tracing::debug!(topic = %queue.topic(), queue = %queue.id(), at = %entry.at, %error, "a pulled message was just cleaned away");
            }
            Err(error) => {
                tracing::error!(topic = %queue.topic(), queue = %queue.id(), at = %entry.at, %error, "a message cannot be served; it is passed over");
            }
        }
        next = entry.at + 1;
    }
    let messages = messages.runs;
    let status = if messages.is_empty() { PullStatus::NoneMatched } else { PullStatus::Found };
    Pulled { status, next, min, max, messages }
}

/// What a filter that looks at properties costs in one pull.
struct Looks<'a> {
    filter: &'a Filter,
    steps: usize,
    /// Bytes of records that were looked at for nothing.
    bytes: usize,
}

impl<'a> Looks<'a> {
    const fn new(filter: &'a Filter) -> Self {
        Self { filter, steps: 0, bytes: 0 }
    }

    /// Whether a pull has cost as much as it may: the client asks again from where it got to.
    const fn are_enough(&self) -> bool {
        self.steps >= LOOK_STEPS_MAX || self.bytes >= LOOKED_BYTES_MAX
    }

    /// Whether a record is wanted; one that cannot be read is not.
    fn at(&mut self, record: &[u8]) -> bool {
        let Ok(view) = RecordView::parse(record) else { return false };
        let properties = view.properties();
        self.steps += self.filter.terms().saturating_mul(properties.raw().len() + 1);
        let wanted = self.filter.by_properties(properties);
        if !wanted {
            self.bytes += record.len();
        }
        wanted
    }
}
