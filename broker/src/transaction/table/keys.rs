//! Open halves by key. One key usually has one open half. An application that sends one message object several
//! times, with other bodies or to other topics, gives all of them one key: they are chained, the newest first.

use gantry_proto::ids::PhyOffset;

use super::{Entry, OpenHalf, State, Table};

impl Table {
    /// Where the newest open half with this key is.
    pub fn find_key(&self, key: &str) -> Option<PhyOffset> {
        self.by_key.get(key).copied()
    }

    /// The open half that continues the transaction of `older`, a half that was replaced.
    pub fn find_renewed(&self, older: &OpenHalf) -> Option<(OpenHalf, State)> {
        self.indices_of_key(&older.key)
            .filter_map(|index| self.slots[index].entry.as_ref())
            .find(|entry| {
                self.is_same(&entry.half, older) && (entry.half.first..=entry.half.at).contains(&older.at)
            })
            .map(|entry| (entry.half.clone(), entry.state))
    }

    /// Slots of the open halves with this key, the newest first.
    pub(super) fn indices_of_key(&self, key: &str) -> impl Iterator<Item = usize> + '_ {
        let mut next = self.by_key.get(key).copied();
        std::iter::from_fn(move || {
            let index = self.index_of(next?)?;
            next = self.slots[index].entry.as_ref()?.twin;
            Some(index)
        })
    }

    /// Whether both halves are of one transaction, given that they have one key.
    fn is_same(&self, open: &OpenHalf, other: &OpenHalf) -> bool {
        // Of a half that is not read yet only key and body are known.
        let is_read = !self.unread.contains(&open.at);
        open.body_crc == other.body_crc
            && (!is_read || open.topic == other.topic && open.group == other.group)
    }

    /// The open half of the same transaction, if any, is done: `half` continues it.
    pub(super) fn supersede(&mut self, half: &mut OpenHalf) {
        let same = self.indices_of_key(&half.key).find_map(|index| {
            let entry = self.slots[index].entry.as_ref()?;
            let same = entry.half.at < half.at && self.is_same(&entry.half, half);
            same.then_some((index, entry.half.first, entry.half.queue_offset))
        });
        if let Some((index, first, queue_offset)) = same {
            half.first = first;
            self.remove(index);
            self.needs_op.insert(queue_offset);
        }
    }

    /// Takes a half that was removed out of the chain of its key.
    pub(super) fn unlink_key(&mut self, gone: &Entry) {
        let (key, at) = (&gone.half.key, gone.half.at);
        if self.by_key.get(key) == Some(&at) {
            match gone.twin {
                Some(twin) => self.by_key.insert(key.clone(), twin),
                None => self.by_key.remove(key),
            };
            return;
        }
        let newer = self
            .indices_of_key(key)
            .find(|index| self.slots[*index].entry.as_ref().is_some_and(|entry| entry.twin == Some(at)));
        if let Some(entry) = newer.and_then(|index| self.slots[index].entry.as_mut()) {
            entry.twin = gone.twin;
        }
    }
}
