//! One look at a queue: which messages a pull gets, and where the next one begins.

use std::sync::Arc;

use gantry_proto::ids::QueueOffset;

use super::filter::Filter;
use crate::store::{LogSlice, Queue, QueueEntry, ReadError, Store};

/// Messages of one answer, at the most.
pub const MESSAGES_MAX: usize = 1024;
/// Bytes of one answer, at the most; one message is always given.
pub const BYTES_MAX: usize = 256 * 1024;
/// Entries that one pull looks at; a filter that matches rarely gets its answer in pieces.
const SCAN_MAX: usize = 4096;

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
    pub messages: Vec<LogSlice>,
    /// Bytes of them.
    pub bytes: usize,
}

/// Looks once.
pub fn pull(store: &Store, request: &PullRequest, scratch: &mut Vec<QueueEntry>) -> Pulled {
    let queue = &request.queue;
    let (min, max) = (queue.min(), queue.max());
    let from = request.from;
    let nothing = |status, next| Pulled { status, next, min, max, messages: Vec::new(), bytes: 0 };
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
    };
    scratch.clear();
    store.entries(queue, from, scan, scratch);
    let mut pulled = Pulled { next: from, ..nothing(PullStatus::NoneMatched, from) };
    for entry in scratch.iter() {
        let size = entry.size as usize;
        if entry.is_blank() || !request.filter.matches(entry.tags_code) {
            pulled.next = entry.at + 1;
            continue;
        }
        let full = pulled.messages.len() >= messages_max
            || (pulled.bytes + size > request.bytes_max.clamp(1, BYTES_MAX) && !pulled.messages.is_empty());
        if full {
            break;
        }
        match store.message(queue, entry) {
            Ok(Some(slice)) => {
                pulled.bytes += slice.len();
                pulled.messages.push(slice);
            }
            Ok(None) => {}
            Err(error @ ReadError::Gone { .. }) => {
                tracing::debug!(topic = %queue.topic(), queue = %queue.id(), at = %entry.at, %error, "a pulled message was just cleaned away");
            }
            Err(error) => {
                tracing::error!(topic = %queue.topic(), queue = %queue.id(), at = %entry.at, %error, "a message cannot be served; it is passed over");
            }
        }
        pulled.next = entry.at + 1;
    }
    if !pulled.messages.is_empty() {
        pulled.status = PullStatus::Found;
    }
    pulled
}
