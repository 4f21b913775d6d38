//! One look at a queue: which messages a pull gets, and where the next one begins.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use gantry_proto::ids::{PhyOffset, QueueOffset};
use gantry_proto::record::{Properties, RecordView};

use super::filter::{Filter, Verdict};
use crate::store::{LogRuns, Queue, QueueEntry, ReadError, Store};

/// Messages of one answer, at the most.
pub const MESSAGES_MAX: usize = 1024;
/// Bytes of one answer, at the most; one message is always given.
pub const BYTES_MAX: usize = 256 * 1024;
/// Entries that one pull looks at; a filter that matches rarely gets its answer in pieces.
const SCAN_MAX: usize = 4096;
/// Messages whose properties one pull looks at, and bytes of those that it does not give.
pub(super) const LOOKS_MAX: usize = 1024;
const LOOKED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Steps that a filter takes in one pull: terms times bytes of properties.
const LOOK_STEPS_MAX: usize = 16 * 1024 * 1024;
/// Messages of others that one pull names.
const STRANGERS_MAX: usize = 32;

/// What a pull asks for.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// The queue.
    pub queue: Arc<Queue>,
    /// The first message wanted.
    pub from: QueueOffset,
    /// Where the messages end for the group that asks, if others must be [done](crate::groups::tiers) with them first.
    pub end: Option<QueueOffset>,
    /// Messages wanted, at the most.
    pub messages_max: usize,
    /// Bytes wanted, at the most.
    pub bytes_max: usize,
    /// Which messages are wanted.
    pub filter: Filter,
    /// Where in the log messages begin that may not be given yet, see [`Scaling::limit`](super::scaling::Scaling::limit).
    pub below: Option<PhyOffset>,
    /// What the member that asks takes itself, if others of its group want other messages. Those are named then, not
    /// given: it would drop them.
    pub own: Option<Filter>,
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
    /// Number after the last one that the group may see.
    pub end: QueueOffset,
    /// The messages, as stored.
    pub messages: LogRuns,
    /// Where the messages lie that others of the group want and the member that asked does not. With any of them
    /// there are no messages, and the next pull begins behind them: by then they must be with the others.
    pub strangers: Vec<PhyOffset>,
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
    let end = request.end.map_or(max, |end| end.min(max));
    let nothing = |status, next| {
        let (messages, strangers) = (LogRuns::default(), Vec::new());
        Pulled { status, next, min, max, end, messages, strangers }
    };
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
    if from >= end {
        return nothing(PullStatus::AtEnd, from);
    }
    let messages_max = request.messages_max.clamp(1, MESSAGES_MAX);
    let scan = match request.own {
        Some(_) => LOOKS_MAX,
        None => scan_of(&request.filter, messages_max),
    };
    scratch.entries.clear();
    store.entries(queue, from, scan, &mut scratch.entries);
    scratch.entries.truncate(scratch.entries.partition_point(|entry| entry.at < end));
    let mut messages = store.messages(queue, std::mem::take(&mut scratch.messages));
    let bytes_max = request.bytes_max.clamp(1, BYTES_MAX);
    let mut next = from;
    let mut looks = Looks::new(&request.filter, request.own.as_ref());
    let (mut strangers, mut strangers_bytes) = (Vec::new(), 0);
    let mut is_held_back = false;
    for entry in &scratch.entries {
        if request.below.is_some_and(|below| entry.phy >= below) {
            is_held_back = true;
            break;
        }
        let size = entry.size as usize;
        let verdict = looks.by_entry(entry.tags_code);
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
            Verdict::Open => messages.add_if(entry, |record| looks.at(record) && strangers.is_empty()),
            Verdict::Wanted | Verdict::Unwanted => messages.add(entry),
        };
        match added {
            Ok(_) if looks.whose == Whose::Others => {
                let enough = strangers.len() == STRANGERS_MAX || strangers_bytes + size > bytes_max;
                if !messages.runs.is_empty() || (enough && !strangers.is_empty()) {
                    break;
                }
                strangers_bytes += size;
                strangers.push(looks.phy);
            }
            // What is given must begin the answer.
            Ok(_) if looks.whose == Whose::Own && !strangers.is_empty() => break,
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
    let status = match (messages.is_empty(), is_held_back && next == from) {
        (false, _) => PullStatus::Found,
        (true, false) => PullStatus::NoneMatched,
        (true, true) => PullStatus::AtEnd,
    };
    Pulled { status, next, min, max, end, messages, strangers }
}

/// Entries to look at for so many messages.
pub(super) const fn scan_of(filter: &Filter, messages_max: usize) -> usize {
    match filter {
        Filter::All => messages_max,
        Filter::Tags(_) => SCAN_MAX,
        Filter::Sql(_) | Filter::Any(_) => LOOKS_MAX,
    }
}

/// Who wants a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// The member that asks.
    Own,
    /// Others of its group.
    Others,
    /// Nobody.
    Nobodys,
}

/// What a filter that looks at properties costs in one pull, and what it found last.
pub(super) struct Looks<'a> {
    filter: &'a Filter,
    own: Option<&'a Filter>,
    steps: usize,
    /// Bytes of records that were looked at for nothing.
    bytes: usize,
    /// Who wants the message that was looked at last, and where it lies.
    whose: Whose,
    phy: PhyOffset,
}

impl<'a> Looks<'a> {
    /// Nothing so far. `own` is what the member that asks wants, where others want something else.
    pub(super) const fn new(filter: &'a Filter, own: Option<&'a Filter>) -> Self {
        Self { filter, own, steps: 0, bytes: 0, whose: Whose::Nobodys, phy: PhyOffset::ZERO }
    }

    /// What an entry tells. Whose a message is only its properties do.
    #[inline]
    fn by_entry(&mut self, tags_code: i64) -> Verdict {
        self.whose = Whose::Nobodys;
        match self.filter.by_entry(tags_code) {
            Verdict::Wanted if self.own.is_some() => Verdict::Open,
            verdict => verdict,
        }
    }

    /// Whether a pull has cost as much as it may: the client asks again from where it got to.
    pub(super) const fn are_enough(&self) -> bool {
        self.steps >= LOOK_STEPS_MAX || self.bytes >= LOOKED_BYTES_MAX
    }

    /// Whether filters have taken as many steps as they may.
    pub(super) const fn have_all_steps(&self) -> bool {
        self.steps >= LOOK_STEPS_MAX
    }

    /// Counts a look at properties, and the bytes of a record that is not given.
    pub(super) fn count(&mut self, properties: Properties<'_>, bytes: usize) {
        self.steps += self.filter.terms().saturating_mul(properties.raw().len() + 1);
        self.bytes += bytes;
    }

    /// Whether a record is wanted by the member that asks; one that cannot be read is not.
    pub(super) fn at(&mut self, record: &[u8]) -> bool {
        let Ok(view) = RecordView::parse(record) else { return false };
        let properties = view.properties();
        self.phy = view.phy_offset();
        self.count(properties, 0);
        self.whose = match self.own {
            None if self.filter.by_properties(properties) => Whose::Own,
            Some(own) if own.takes(properties) => Whose::Own,
            Some(_) if self.filter.takes(properties) => Whose::Others,
            _ => Whose::Nobodys,
        };
        if self.whose != Whose::Own {
            self.bytes += record.len();
        }
        self.whose == Whose::Own
    }
}
