//! What a table keeps between starts, and how it begins with that.

use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset, QueueOffset};
use gantry_proto::names::{GroupName, TopicName};

use super::{Entry, OpenHalf, Rules, Slot, State, Table, intern};

/// What a snapshot keeps of an open half; the rest is in its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Where its record starts.
    pub at: PhyOffset,
    /// Its number in the half queue.
    pub queue_offset: QueueOffset,
    /// Where the first half of this transaction started.
    pub first: PhyOffset,
    /// The transaction's id.
    pub key: Arc<str>,
    /// CRC-32 of its body.
    pub body_crc: u32,
    /// Checks sent so far.
    pub checks: u32,
    /// When the last check was sent.
    pub checked: Millis,
}

/// What a snapshot keeps of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// The open halves.
    pub halves: Vec<Remembered>,
    /// Closed halves that lack an op record.
    pub needs_op: Vec<QueueOffset>,
    /// The next number of the half queue.
    pub half_max: QueueOffset,
    /// First op record that may name a half that Apache would still ask about.
    pub op: QueueOffset,
    /// The next number of the op queue.
    pub op_max: QueueOffset,
}

impl Table {
    /// A table that starts from a snapshot. Its halves are to be read, see [`Table::unread`].
    pub fn with_snapshot(rules: Rules, snapshot: &Remains) -> Self {
        let mut table = Self::new(rules);
        snapshot.halves.iter().for_each(|half| table.remember(half));
        table.needs_op = snapshot.needs_op.iter().copied().collect();
        (table.half_max, table.op_max) = (snapshot.half_max, snapshot.op_max);
        if snapshot.op < snapshot.op_max {
            // These name some of the halves so far; which ones is not worth keeping.
            table.ops.push_back((snapshot.op, snapshot.half_max.back(1)));
        }
        table
    }

    /// A half of the snapshot. It has no deadline before its record is read.
    fn remember(&mut self, known: &Remembered) {
        if self.slots.back().is_some_and(|last| last.at >= known.at) {
            return; // the snapshot lists them in order
        }
        let half = OpenHalf {
            at: known.at,
            queue_offset: known.queue_offset,
            size: 0,
            first: known.first.min(known.at),
            key: Arc::clone(&known.key),
            group: GroupName::internal(""),
            topic: TopicName::internal(""),
            body_crc: known.body_crc,
            born: Millis::ZERO,
            stored: Millis::ZERO,
            immunity_ms: None,
            checks: known.checks,
            checked: known.checked,
        };
        let twin = self.by_key.insert(Arc::clone(&half.key), half.at);
        let entry = Some(Box::new(Entry { half, state: State::Open, due: None, twin }));
        self.slots.push_back(Slot { at: known.at, queue_offset: known.queue_offset, entry });
        self.open += 1;
        self.unread.insert(known.at);
    }

    /// Halves of the snapshot that nothing has closed since: their records have to be read.
    pub fn unread(&self) -> Vec<PhyOffset> {
        self.unread.iter().copied().collect()
    }

    /// Replay is over and the records of [`Table::unread`] were read; those missing here are gone from
    /// the log. Everything below `done` was declared done by the owner of the store before us.
    pub fn restore(&mut self, halves: Vec<OpenHalf>, done: QueueOffset) {
        for half in halves {
            if !self.unread.remove(&half.at) {
                continue;
            }
            let (group, topic) =
                (intern(&mut self.groups, &half.group), intern(&mut self.topics, &half.topic));
            let at = half.at;
            if let Some(entry) = self.entry_mut(at) {
                let (first, key) = (entry.half.first, Arc::clone(&entry.half.key));
                let (mut checks, mut checked) = (entry.half.checks, entry.half.checked);
                if half.checks > checks {
                    (checks, checked) = (half.checks, half.checked);
                }
                entry.half = OpenHalf { first, key, group, topic, checks, checked, ..half };
                self.schedule_next(at);
            }
        }
        let gone = std::mem::take(&mut self.unread);
        let passed = self.slots.iter().take_while(|slot| slot.queue_offset < done).map(|slot| slot.at);
        for at in passed.chain(gone).collect::<Vec<_>>() {
            if let Some(index) = self.index_of(at) {
                self.remove(index);
            }
        }
        self.needs_op = self.needs_op.split_off(&done);
    }

    /// Numbers of the two queues as the store knows them; they may be ahead when records are gone.
    pub fn note_queues(&mut self, half_max: QueueOffset, op_max: QueueOffset) {
        self.half_max = self.half_max.max(half_max);
        self.op_max = self.op_max.max(op_max);
    }

    /// What a snapshot must keep.
    pub fn remains(&mut self) -> Remains {
        let remembered = |entry: &Entry| Remembered {
            at: entry.half.at,
            queue_offset: entry.half.queue_offset,
            first: entry.half.first,
            key: Arc::clone(&entry.half.key),
            body_crc: entry.half.body_crc,
            checks: entry.half.checks,
            checked: entry.half.checked,
        };
        Remains {
            halves: self.entries().map(remembered).collect(),
            needs_op: self.needs_op(),
            half_max: self.half_max,
            op: self.progress().op,
            op_max: self.op_max,
        }
    }

    /// Halves that lack an op record.
    pub fn needs_op(&self) -> Vec<QueueOffset> {
        self.needs_op.iter().copied().collect()
    }

    /// Halves that lacked an op record at the last call already: theirs is not just on its way.
    pub fn overdue_ops(&mut self) -> Vec<QueueOffset> {
        let lacked = std::mem::replace(&mut self.lacked_op, self.needs_op.clone());
        lacked.intersection(&self.needs_op).copied().collect()
    }
}
