//! The open transactions: which half messages are still owed an answer.
//!
//! Pure memory, driven from two sides: the projection applies what the log says ([`Table::open`],
//! [`Table::close_by_copy`], [`Table::close_by_op`], [`Table::close_by_parked`]), the services take halves
//! out to end them ([`Table::take`]) and ask which are due for a check ([`Table::take_due`]).
//!
//! A transaction is known by the `UNIQ_KEY` of its half. A half with key, group, topic and body of an open one
//! is the same transaction again (Apache re-puts a half at each check; a producer may send twice) and takes
//! its place: the older one is done, and an end that names it means the newer. One with the key alone is
//! another transaction, of an application that uses a message object twice: see `keys`.
//!
//! Halves lie in one queue, so they come with rising positions *and* rising queue offsets: one row of slots,
//! in order, is found by either. A closed half leaves a small empty slot that goes when it reaches the front
//! or when most slots are empty.

mod deadlines;
mod keys;
mod snapshot;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset, QueueOffset};
use gantry_proto::names::{GroupName, TopicName};

use super::rules::Rules;
pub use snapshot::{Remains, Remembered};

/// How a transaction ends by request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// The message becomes visible.
    Commit,
    /// The message is never seen.
    Rollback,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Its message is visible.
    Committed,
    /// Its message was dropped on the producer's word.
    RolledBack,
    /// Nobody answered: it is parked in the topic of unanswered halves.
    Expired,
}

/// A half message that is still owed an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenHalf {
    /// Where its record starts.
    pub at: PhyOffset,
    /// Its number in the half queue; op records name it.
    pub queue_offset: QueueOffset,
    /// Length of its record, in bytes.
    pub size: u32,
    /// Where the first half of this transaction started: earlier than `at` when it was put again.
    pub first: PhyOffset,
    /// `UNIQ_KEY`: the message id that the producer knows, and the transaction's id.
    pub key: Arc<str>,
    /// The producer group that answers checks.
    pub group: GroupName,
    /// Where the message goes when it is committed.
    pub topic: TopicName,
    /// CRC-32 of the body: with key, group and topic it tells one transaction from another.
    pub body_crc: u32,
    /// When the producer made it, by the producer's clock.
    pub born: Millis,
    /// When it was stored, by this broker's clock.
    pub stored: Millis,
    /// The message's own time before the first check, in milliseconds.
    pub immunity_ms: Option<u64>,
    /// Checks sent so far.
    pub checks: u32,
    /// When the last check was sent; zero before the first, or when only its count is known.
    pub checked: Millis,
}

/// Where a half stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waiting for its producer.
    Open,
    /// Its end is being appended.
    Ending(Outcome),
}

#[derive(Debug)]
struct Entry {
    half: OpenHalf,
    state: State,
    /// Next check; `None` while one is being sent.
    due: Option<Millis>,
    /// The open half before this one that has the same key and is another transaction.
    twin: Option<PhyOffset>,
}

#[derive(Debug)]
struct Slot {
    at: PhyOffset,
    queue_offset: QueueOffset,
    entry: Option<Box<Entry>>,
}

/// What [`Table::find`] says of a half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is in the table.
    Here(OpenHalf, State),
    /// It ended, and how is still remembered.
    Ended(Outcome),
    /// It is not in the table.
    Absent,
}

/// A half for the operator's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The half.
    pub half: OpenHalf,
    /// Where it stands.
    pub state: State,
    /// When it is checked next; `None` while a check is being sent.
    pub next_check: Option<Millis>,
}

/// How far Apache's transaction group would have got: see `store.md` on the group's two offsets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// First half that is not done.
    pub half: QueueOffset,
    /// First op record that may name a half at or behind it.
    pub op: QueueOffset,
}

/// The open transactions.
#[derive(Debug)]
pub struct Table {
    rules: Rules,
    slots: VecDeque<Slot>,
    open: usize,
    by_key: HashMap<Arc<str>, PhyOffset>,
    /// Lazy: an entry counts only while the half's own `due` equals it.
    due: BinaryHeap<Reverse<(Millis, PhyOffset)>>,
    /// The latest that the clock is known to have stood at; before the first look, later than any.
    latest: Millis,
    /// Halves of these groups found nobody to ask.
    silent: HashSet<GroupName>,
    /// Groups and topics of the open halves, one copy of each name.
    groups: HashSet<GroupName>,
    topics: HashSet<TopicName>,
    recent: HashMap<PhyOffset, Outcome>,
    recent_order: VecDeque<PhyOffset>,
    /// Halves that a record closed for which no op record has been seen.
    needs_op: BTreeSet<QueueOffset>,
    /// Those that lacked one when [`Table::overdue_ops`] last looked.
    lacked_op: BTreeSet<QueueOffset>,
    /// Of the newest op records: their number and the greatest half they name.
    ops: VecDeque<(QueueOffset, QueueOffset)>,
    /// The next numbers of the half and the op queue.
    half_max: QueueOffset,
    op_max: QueueOffset,
    /// Halves of the snapshot whose records are not read yet: they lack all but position, number and key.
    unread: BTreeSet<PhyOffset>,
}

/// Keeps [`Table::ops`] small; older ones are merged, which only makes Apache read a few more.
const OPS_MAX: usize = 1024;
/// Names kept without a half that uses them.
const NAMES_MAX: usize = 1024;

impl Table {
    /// A table that knows nothing.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            slots: VecDeque::new(),
            open: 0,
            by_key: HashMap::new(),
            due: BinaryHeap::new(),
            latest: Millis::new(i64::MAX),
            silent: HashSet::new(),
            groups: HashSet::new(),
            topics: HashSet::new(),
            recent: HashMap::new(),
            recent_order: VecDeque::new(),
            needs_op: BTreeSet::new(),
            lacked_op: BTreeSet::new(),
            ops: VecDeque::new(),
            half_max: QueueOffset::ZERO,
            op_max: QueueOffset::ZERO,
            unread: BTreeSet::new(),
        }
    }

    /// Number of open halves.
    pub fn len(&self) -> usize {
        self.open
    }

    /// Whether no transaction is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a further half is refused.
    pub fn is_full(&self) -> bool {
        self.len() >= self.rules.open_max
    }

    /// Bounds and times.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    // --- what the log says ---------------------------------------------------------------------

    /// A half was stored. A second time is no change.
    pub fn open(&mut self, mut half: OpenHalf) {
        if self.slots.back().is_some_and(|last| last.at >= half.at) {
            return;
        }
        self.half_max = self.half_max.max(half.queue_offset + 1);
        self.supersede(&mut half);
        self.slots.push_back(Slot { at: half.at, queue_offset: half.queue_offset, entry: None });
        let last = self.slots.len() - 1;
        self.fill(last, half);
    }

    fn fill(&mut self, index: usize, mut half: OpenHalf) {
        half.group = intern(&mut self.groups, &half.group);
        half.topic = intern(&mut self.topics, &half.topic);
        let due = self.rules.next_due(&half);
        self.latest = self.latest.max(half.stored);
        let twin = self.by_key.insert(Arc::clone(&half.key), half.at);
        self.due.push(Reverse((due, half.at)));
        self.slots[index].entry = Some(Box::new(Entry { half, state: State::Open, due: Some(due), twin }));
        self.open += 1;
    }

    /// A visible copy with this body was stored at `at`; it names the half at `prepared`.
    pub fn close_by_copy(&mut self, at: PhyOffset, prepared: PhyOffset, key: &str, body_crc: u32) {
        self.close_by_record(at, prepared, (key, body_crc), Outcome::Committed);
    }

    /// A copy in the topic of unanswered halves was stored at `at`. Ours name their half, Apache's
    /// leave `prepared` zero.
    pub fn close_by_parked(&mut self, at: PhyOffset, prepared: PhyOffset, key: &str, body_crc: u32) {
        self.close_by_record(at, prepared, (key, body_crc), Outcome::Expired);
    }

    fn close_by_record(&mut self, at: PhyOffset, prepared: PhyOffset, named: (&str, u32), outcome: Outcome) {
        let by_apache = outcome == Outcome::Expired && prepared == PhyOffset::ZERO;
        let Some(index) = self.indices_of_key(named.0).find(|index| {
            self.slots[*index].entry.as_ref().is_some_and(|entry| {
                let half = &entry.half;
                let covers = by_apache || (half.first..=half.at).contains(&prepared);
                half.at < at && half.body_crc == named.1 && covers
            })
        }) else {
            return;
        };
        let Some((half_at, queue_offset)) =
            self.slots[index].entry.as_ref().map(|entry| (entry.half.at, entry.half.queue_offset))
        else {
            return;
        };
        self.remove(index);
        self.needs_op.insert(queue_offset);
        self.note_recent(half_at, outcome);
        if prepared != half_at && !by_apache {
            self.note_recent(prepared, outcome);
        }
    }

    /// The op record number `op` names these halves.
    pub fn close_by_op(&mut self, op: QueueOffset, halves: impl Iterator<Item = QueueOffset>) {
        self.op_max = self.op_max.max(op + 1);
        let mut greatest = None;
        for queue_offset in halves {
            greatest = greatest.max(Some(queue_offset));
            if self.needs_op.remove(&queue_offset) {
                continue;
            }
            if let Some(index) = self.index_of_offset(queue_offset)
                && let Some(entry) = self.slots[index].entry.as_ref()
            {
                let at = entry.half.at;
                self.remove(index);
                self.note_recent(at, Outcome::RolledBack);
            }
        }
        if let Some(greatest) = greatest {
            self.note_op(op, greatest);
        }
    }

    fn note_op(&mut self, op: QueueOffset, greatest: QueueOffset) {
        if self.ops.back().is_some_and(|last| last.0 >= op) {
            return; // applied again
        }
        self.ops.push_back((op, greatest));
        if self.ops.len() > OPS_MAX {
            let merged: VecDeque<_> = self
                .ops
                .make_contiguous()
                .chunks(2)
                .filter_map(|pair| {
                    let greatest = pair.iter().map(|op| op.1).max()?;
                    Some((pair.first()?.0, greatest))
                })
                .collect();
            self.ops = merged;
        }
    }

    /// A state record says how often these halves had been checked at `when`.
    pub fn note_checks(&mut self, at: PhyOffset, checks: u32, when: Millis) {
        if let Some(entry) = self.entry_mut(at)
            && entry.half.checks < checks
        {
            (entry.half.checks, entry.half.checked) = (checks, when);
            self.schedule_next(at);
        }
    }

    // --- ending --------------------------------------------------------------------------------

    /// What is known of the half at `at`.
    pub fn find(&self, at: PhyOffset) -> Found {
        if let Some(entry) = self.index_of(at).and_then(|index| self.slots[index].entry.as_ref()) {
            return Found::Here(entry.half.clone(), entry.state);
        }
        self.recent.get(&at).map_or(Found::Absent, |outcome| Found::Ended(*outcome))
    }

    /// Takes an open half out: only the caller may end it now. `None` when it is not open.
    pub fn take(&mut self, at: PhyOffset, outcome: Outcome) -> Option<OpenHalf> {
        let entry = self.entry_mut(at).filter(|entry| entry.state == State::Open)?;
        entry.state = State::Ending(outcome);
        Some(entry.half.clone())
    }

    /// The end of a half that was taken could not be stored: it is open again.
    pub fn put_back(&mut self, at: PhyOffset, now: Millis) {
        let Some(entry) = self.entry_mut(at) else { return };
        entry.state = State::Open;
        if entry.due.is_none() {
            let due = now;
            self.set_due(at, due);
        }
    }

    // --- what operators and Apache see -----------------------------------------------------------

    /// Open halves, oldest first, at most `limit`, of one producer group if given.
    pub fn list(&self, group: Option<&str>, limit: usize) -> Vec<Listed> {
        self.entries()
            .filter(|entry| group.is_none_or(|group| entry.half.group == *group))
            .take(limit)
            .map(|entry| Listed { half: entry.half.clone(), state: entry.state, next_check: entry.due })
            .collect()
    }

    /// Where the oldest open half starts.
    pub fn oldest(&self) -> Option<PhyOffset> {
        self.entries().next().map(|entry| entry.half.at)
    }

    /// Where Apache's check service would go on.
    pub fn progress(&mut self) -> Progress {
        let open = self.entries().next().map(|entry| entry.half.queue_offset);
        let needs_op = self.needs_op.first().copied();
        let half = [open, needs_op].into_iter().flatten().min().unwrap_or(self.half_max);
        while self.ops.front().is_some_and(|op| op.1 < half) {
            self.ops.pop_front();
        }
        Progress { half, op: self.ops.front().map_or(self.op_max, |op| op.0) }
    }

    // --- slots ---------------------------------------------------------------------------------

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().filter_map(|slot| slot.entry.as_deref())
    }

    fn index_of(&self, at: PhyOffset) -> Option<usize> {
        self.slots.binary_search_by(|slot| slot.at.cmp(&at)).ok()
    }

    fn index_of_offset(&self, queue_offset: QueueOffset) -> Option<usize> {
        self.slots.binary_search_by(|slot| slot.queue_offset.cmp(&queue_offset)).ok()
    }

    fn entry_mut(&mut self, at: PhyOffset) -> Option<&mut Entry> {
        let index = self.index_of(at)?;
        self.slots[index].entry.as_deref_mut()
    }

    fn remove(&mut self, index: usize) {
        let Some(entry) = self.slots[index].entry.take() else { return };
        self.open -= 1;
        self.unread.remove(&entry.half.at);
        self.unlink_key(&entry);
        while self.slots.front().is_some_and(|slot| slot.entry.is_none()) {
            self.slots.pop_front();
        }
        if self.slots.len() > 2 * self.open + 1024 {
            self.slots.retain(|slot| slot.entry.is_some());
        }
        if self.due.len() > 2 * self.open + 1024 {
            let due = std::mem::take(&mut self.due);
            self.due = due.into_iter().filter(|Reverse((_, at))| self.is_open(*at)).collect();
        }
        if self.groups.len() > NAMES_MAX + self.open {
            self.groups = self.entries().map(|entry| entry.half.group.clone()).collect();
            self.silent.retain(|group| self.groups.contains(group));
        }
        if self.topics.len() > NAMES_MAX + self.open {
            self.topics = self.entries().map(|entry| entry.half.topic.clone()).collect();
        }
    }

    fn is_open(&self, at: PhyOffset) -> bool {
        self.index_of(at).is_some_and(|index| self.slots[index].entry.is_some())
    }

    fn note_recent(&mut self, at: PhyOffset, outcome: Outcome) {
        if self.recent.insert(at, outcome).is_none() {
            self.recent_order.push_back(at);
        }
        while self.recent_order.len() > self.rules.recent_max {
            if let Some(oldest) = self.recent_order.pop_front() {
                self.recent.remove(&oldest);
            }
        }
    }
}

fn intern<T: Clone + Eq + std::hash::Hash>(names: &mut HashSet<T>, name: &T) -> T {
    if let Some(known) = names.get(name) {
        return known.clone();
    }
    names.insert(name.clone());
    name.clone()
}

#[cfg(test)]
mod tests;
