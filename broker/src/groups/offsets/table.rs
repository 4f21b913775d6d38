//! The offsets in memory, and `config/consumerOffset.json`.
//!
//! The file has Apache's form, with two members of our own that Apache passes over and drops when it
//! writes the file:
//!
//! ```text
//! {"dataVersion":{"counter":1,"stateVersion":0,"timestamp":1700000000000},
//!  "gantryPosition":4096,                     state records below this log position are in the file
//!  "gantryResets":{"topic@group":[0,1]},      queues whose reset no consumer follows yet
//!  "groupTopicMap":{"group":["topic"]},
//!  "offsetTable":{"topic@group":{0:5,1:7}},
//!  "pullOffsetTable":{}}
//! ```
//!
//! Without `gantryPosition` the file was written by Apache: it alone counts, and state records that are
//! in the log already are older than it.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::json;
use gantry_proto::names::{GroupName, TopicName};
use serde_json::Value;

use super::record::{Change, Key};

/// What is known of one group in one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// What the log says.
    logged: Option<QueueOffset>,
    /// What was noted since; always more than `logged`.
    noted: Option<QueueOffset>,
    /// Whether an operator set the offset and no consumer starts from it yet.
    reset: Reset,
    /// Whether the list of what is to be logged holds the key.
    is_waiting: bool,
}

/// How far consumers follow an offset that an operator set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reset {
    /// There is none, or they follow it.
    #[default]
    Done,
    /// None was told.
    Untold,
    /// One was told. Official clients then drop the queue for ten seconds, in which they still commit
    /// where they were; only their next pull shows that they follow.
    Told,
}

type Topics = HashMap<TopicName, BTreeMap<QueueId, Entry>>;

/// All offsets of all groups.
#[derive(Debug, Default)]
pub(super) struct Table {
    groups: HashMap<GroupName, Topics>,
    /// Entries in `groups`.
    len: usize,
    /// Keys whose `noted` is to be logged.
    noted: Vec<Key>,
    /// Resets that consumers follow; to be logged.
    followed: Vec<Key>,
    /// Entries with a `reset` that is not done.
    resets: usize,
    /// Keys with resets that are on their way through the log, and how many: what is committed or pulled meanwhile
    /// would come behind them there, and undo them.
    resetting: HashMap<Key, u32>,
    /// Whether the file lacks something that the log says.
    dirty: bool,
    /// Times the file was written.
    version: u64,
}

/// What a new offset would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It moves the group forward.
    Ahead,
    /// The group is there or further, or does not follow a reset yet: nothing is to be done.
    Settled,
    /// A reset is on its way through the log, and counts.
    Overruled,
    /// The group has no offset there, and the table is full.
    Full,
}

/// What waited for keys that are to be reset.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    noted: Vec<Key>,
    followed: Vec<Key>,
}

impl Table {
    pub fn get(&self, group: &str, topic: &str, queue: QueueId) -> Option<QueueOffset> {
        let entry = self.groups.get(group)?.get(topic)?.get(&queue)?;
        entry.noted.or(entry.logged)
    }

    /// The offset as the log has it.
    pub fn kept(&self, group: &str, topic: &str, queue: QueueId) -> Option<QueueOffset> {
        self.groups.get(group)?.get(topic)?.get(&queue)?.logged
    }

    /// What noting `offset` would do.
    pub fn to_note(&self, key: &Key, offset: QueueOffset, max: usize) -> Standing {
        self.standing(key, offset, max, |entry| entry.noted.or(entry.logged))
    }

    /// What logging `offset` would do: what is only noted is not kept yet.
    pub fn to_commit(&self, key: &Key, offset: QueueOffset, max: usize) -> Standing {
        self.standing(key, offset, max, |entry| entry.logged)
    }

    fn standing(
        &self,
        key: &Key,
        offset: QueueOffset,
        max: usize,
        known: impl Fn(&Entry) -> Option<QueueOffset>,
    ) -> Standing {
        if self.resetting.contains_key(key) {
            return Standing::Overruled;
        }
        match self.entry(key) {
            None if self.len >= max => Standing::Full,
            Some(entry) if entry.reset != Reset::Done || known(entry) >= Some(offset) => Standing::Settled,
            _ => Standing::Ahead,
        }
    }

    /// Keeps an offset for the next record. Returns whether it is the first to wait.
    pub fn note(&mut self, key: Key, offset: QueueOffset) -> bool {
        let first = !self.is_waiting();
        let entry = Self::entry_mut(&mut self.groups, &mut self.len, &key);
        entry.noted = Some(offset);
        // What was noted before may be on its way through the log, and no longer wait.
        if !std::mem::replace(&mut entry.is_waiting, true) {
            self.noted.push(key);
        }
        first
    }

    /// A consumer pulls from `from`. Returns the offset that it must be told; the pull after that, or one
    /// that starts at the offset anyway, follows the reset.
    pub fn take_reset(&mut self, key: &Key, from: QueueOffset) -> Option<QueueOffset> {
        if self.resetting.contains_key(key) {
            return None;
        }
        let entry = self.existing_mut(key)?;
        let offset = entry.logged.filter(|_| entry.reset != Reset::Done)?;
        if entry.reset == Reset::Untold && from != offset {
            entry.reset = Reset::Told;
            return Some(offset);
        }
        entry.reset = Reset::Done;
        self.resets -= 1;
        self.followed.push(key.clone());
        None
    }

    /// The offset of a reset that is not done.
    pub fn pending_reset(&self, key: &Key) -> Option<QueueOffset> {
        self.entry(key).filter(|entry| entry.reset != Reset::Done)?.logged
    }

    /// Whether changes wait to be logged.
    pub const fn is_waiting(&self) -> bool {
        !self.noted.is_empty() || !self.followed.is_empty()
    }

    /// Whether the log does not have the offset yet that [`get`](Self::get) gives.
    pub fn is_only_noted(&self, group: &str, topic: &str, queue: QueueId) -> bool {
        let queues = self.groups.get(group).and_then(|topics| topics.get(topic));
        queues.and_then(|queues| queues.get(&queue)).is_some_and(|entry| entry.noted.is_some())
    }

    pub const fn resets(&self) -> usize {
        self.resets
    }

    /// The changes that wait to be logged. They stay visible; give back with
    /// [`keep_waiting`](Self::keep_waiting) what could not be logged.
    pub fn take_waiting(&mut self) -> Vec<Change> {
        let noted = std::mem::take(&mut self.noted);
        let followed = std::mem::take(&mut self.followed);
        let mut changes = Vec::with_capacity(noted.len() + followed.len());
        changes.extend(followed.into_iter().map(Change::Followed));
        for key in noted {
            let Some(entry) = self.existing_mut(&key) else { continue };
            entry.is_waiting = false;
            if let Some(offset) = entry.noted {
                changes.push(Change::Advance(key, offset));
            }
        }
        changes
    }

    /// Takes changes back that could not be logged.
    pub fn keep_waiting(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Advance(key, _) => self.wait_again(key),
                Change::Followed(key) => self.followed.push(key.clone()),
                _ => {}
            }
        }
    }

    fn wait_again(&mut self, key: &Key) {
        if let Some(entry) = self.existing_mut(key).filter(|entry| entry.noted.is_some())
            && !std::mem::replace(&mut entry.is_waiting, true)
        {
            self.noted.push(key.clone());
        }
    }

    /// Resets of `keys` are about to be logged: what waits for them is taken out, and what comes before they are
    /// applied is ignored.
    pub fn begin_reset<'k>(&mut self, keys: impl Iterator<Item = &'k Key>) -> Waiting {
        for key in keys {
            *self.resetting.entry(key.clone()).or_default() += 1;
        }
        let is_reset = |key: &mut Key| self.resetting.contains_key(key);
        let noted: Vec<_> = self.noted.extract_if(.., is_reset).collect();
        let followed = self.followed.extract_if(.., is_reset).collect();
        for key in &noted {
            if let Some(entry) = self.existing_mut(key) {
                entry.is_waiting = false;
            }
        }
        Waiting { noted, followed }
    }

    /// The resets could not be logged: `waiting` waits again.
    pub fn cancel_reset<'k>(&mut self, keys: impl Iterator<Item = &'k Key>, waiting: Waiting) {
        for key in keys {
            self.reset_arrived(key);
        }
        for key in &waiting.noted {
            self.wait_again(key);
        }
        self.followed.extend(waiting.followed);
    }

    fn reset_arrived(&mut self, key: &Key) {
        if let Some(count) = self.resetting.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.resetting.remove(key);
            }
        }
    }

    /// Applies what the log says.
    pub fn apply(&mut self, change: &Change) {
        self.dirty = true;
        match change {
            Change::Advance(key, offset) => {
                let entry = Self::entry_mut(&mut self.groups, &mut self.len, key);
                entry.logged = entry.logged.max(Some(*offset));
                entry.noted = entry.noted.filter(|noted| Some(*noted) > entry.logged);
            }
            Change::Reset(key, offset) => {
                self.reset_arrived(key);
                let entry = Self::entry_mut(&mut self.groups, &mut self.len, key);
                self.resets += usize::from(entry.reset == Reset::Done);
                *entry = Entry { logged: Some(*offset), noted: None, reset: Reset::Untold, ..*entry };
            }
            Change::Followed(key) => {
                // Whose topic or group was deleted since has nothing that could be followed.
                let Some(entry) = self.existing_mut(key) else { return };
                let was_owed = std::mem::take(&mut entry.reset) != Reset::Done;
                self.resets -= usize::from(was_owed);
            }
            Change::ForgetTopic(topic) => {
                for topics in self.groups.values_mut() {
                    topics.remove(topic);
                }
                self.groups.retain(|_, topics| !topics.is_empty());
                self.recount();
            }
            Change::ForgetGroup(group) => {
                self.groups.remove(group);
                self.recount();
            }
        }
    }

    /// Sets offsets that lie beyond the end of their queue back to that end: the messages between were
    /// lost with the log's unflushed tail, and new ones will take their places. Returns what it changed.
    pub fn clamp(&mut self, end: impl Fn(&TopicName, QueueId) -> QueueOffset) -> Vec<(Key, QueueOffset)> {
        let mut clamped = Vec::new();
        for (group, topics) in &mut self.groups {
            for (topic, queues) in topics {
                for (queue, entry) in queues {
                    let end = end(topic, *queue);
                    if let Some(logged) = entry.logged.filter(|logged| *logged > end) {
                        entry.logged = Some(end);
                        let key = Key { group: group.clone(), topic: topic.clone(), queue: *queue };
                        clamped.push((key, logged));
                    }
                }
            }
        }
        self.dirty |= !clamped.is_empty();
        clamped
    }

    /// Every offset of a group, in order.
    pub fn of_group(&self, group: &str) -> Vec<(TopicName, QueueId, QueueOffset)> {
        let mut offsets = Vec::new();
        for (topic, queues) in self.groups.get(group).into_iter().flatten() {
            for (queue, entry) in queues {
                if let Some(offset) = entry.noted.or(entry.logged) {
                    offsets.push((topic.clone(), *queue, offset));
                }
            }
        }
        offsets.sort_unstable();
        offsets
    }

    pub fn topics_of_group(&self, group: &str) -> BTreeSet<TopicName> {
        self.groups.get(group).into_iter().flat_map(HashMap::keys).cloned().collect()
    }

    /// Offsets added up over the queues of each topic, for each group, at most `max` of them.
    pub fn sums(&self, max: usize) -> Vec<(GroupName, TopicName, u64)> {
        let all = self.groups.iter().flat_map(|(group, topics)| topics.iter().map(move |of| (group, of)));
        let sum = |queues: &BTreeMap<QueueId, Entry>| {
            queues.values().filter_map(|entry| entry.noted.or(entry.logged)).map(QueueOffset::get).sum()
        };
        all.take(max).map(|(group, (topic, queues))| (group.clone(), topic.clone(), sum(queues))).collect()
    }

    /// Groups that have an offset.
    pub fn groups(&self) -> impl Iterator<Item = &GroupName> {
        self.groups.keys()
    }

    pub fn groups_of_topic(&self, topic: &str) -> BTreeSet<GroupName> {
        let named = self.groups.iter().filter(|(_, topics)| topics.contains_key(topic));
        named.map(|(group, _)| group.clone()).collect()
    }

    pub const fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// How many more entries there would be with these keys.
    pub fn lacks<'k>(&self, keys: impl Iterator<Item = &'k Key>) -> usize {
        keys.filter(|key| self.entry(key).is_none()).count()
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    /// The file with everything that the log says up to `position`; afterwards the table is clean until
    /// [`mark_dirty`](Self::mark_dirty) says that it was not written.
    pub fn encode(&mut self, position: Option<PhyOffset>, now: Millis) -> Vec<u8> {
        self.dirty = false;
        self.version += 1;
        let mut rows: BTreeMap<String, &BTreeMap<QueueId, Entry>> = BTreeMap::new();
        let mut topic_map: BTreeMap<&GroupName, BTreeSet<&TopicName>> = BTreeMap::new();
        for (group, topics) in &self.groups {
            for (topic, queues) in topics {
                if queues.values().any(|entry| entry.logged.is_some()) {
                    rows.insert(format!("{topic}@{group}"), queues);
                    topic_map.entry(group).or_default().insert(topic);
                }
            }
        }
        let mut out = Vec::new();
        write_file(&mut out, &rows, &topic_map, position, (self.version, now))
            .expect("writing into a vector cannot fail");
        out
    }

    pub fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    /// Reads the file. The second value is the log position up to which it holds every state record;
    /// `None` when the file is Apache's.
    pub fn decode(bytes: &[u8]) -> Option<(Self, Option<PhyOffset>)> {
        let file = json::parse(bytes).ok()?;
        let mut table = Self {
            version: file.pointer("/dataVersion/counter").and_then(Value::as_u64).unwrap_or(0),
            ..Self::default()
        };
        for (name, queues) in file.get("offsetTable").and_then(Value::as_object).into_iter().flatten() {
            let Some((topic, group)) = split(name) else { continue };
            for (queue, offset) in queues.as_object().into_iter().flatten() {
                let queue = queue.parse().ok().and_then(QueueId::from_wire);
                let offset = offset.as_i64().and_then(QueueOffset::from_wire);
                let (Some(queue), Some(offset)) = (queue, offset) else { continue };
                let key = Key { group: group.clone(), topic: topic.clone(), queue };
                Self::entry_mut(&mut table.groups, &mut table.len, &key).logged = Some(offset);
            }
        }
        for (name, queues) in file.get("gantryResets").and_then(Value::as_object).into_iter().flatten() {
            let Some((topic, group)) = split(name) else { continue };
            let entries = table.groups.get_mut(&group).and_then(|topics| topics.get_mut(&topic));
            let Some(entries) = entries else { continue };
            for queue in queues.as_array().into_iter().flatten().filter_map(Value::as_u64) {
                let queue = u32::try_from(queue).ok().map(QueueId::new);
                if let Some(entry) = queue.and_then(|queue| entries.get_mut(&queue)) {
                    table.resets += usize::from(entry.reset == Reset::Done);
                    entry.reset = Reset::Untold;
                }
            }
        }
        let position = file.get("gantryPosition").and_then(Value::as_u64).map(PhyOffset::new);
        Some((table, position))
    }

    fn entry(&self, key: &Key) -> Option<&Entry> {
        self.groups.get(&key.group)?.get(&key.topic)?.get(&key.queue)
    }

    fn existing_mut(&mut self, key: &Key) -> Option<&mut Entry> {
        self.groups.get_mut(&key.group)?.get_mut(&key.topic)?.get_mut(&key.queue)
    }

    fn entry_mut<'t>(
        groups: &'t mut HashMap<GroupName, Topics>,
        len: &mut usize,
        key: &Key,
    ) -> &'t mut Entry {
        let topics = match groups.entry(key.group.clone()) {
            MapEntry::Occupied(found) => found.into_mut(),
            MapEntry::Vacant(free) => free.insert(Topics::new()),
        };
        let queues = topics.entry(key.topic.clone()).or_default();
        *len += usize::from(!queues.contains_key(&key.queue));
        queues.entry(key.queue).or_default()
    }

    fn recount(&mut self) {
        let entries = || self.groups.values().flat_map(HashMap::values).flat_map(BTreeMap::values);
        self.len = entries().count();
        self.resets = entries().filter(|entry| entry.reset != Reset::Done).count();
    }
}

/// The two names of `topic@group`; neither may contain the sign.
fn split(name: &str) -> Option<(TopicName, GroupName)> {
    let (topic, group) = name.split_once('@')?;
    Some((TopicName::storable(topic).ok()?, GroupName::storable(group).ok()?))
}

fn write_file(
    out: &mut Vec<u8>,
    rows: &BTreeMap<String, &BTreeMap<QueueId, Entry>>,
    topic_map: &BTreeMap<&GroupName, BTreeSet<&TopicName>>,
    position: Option<PhyOffset>,
    (version, now): (u64, Millis),
) -> std::io::Result<()> {
    write!(out, "{{\n\t\"dataVersion\":{{\n\t\t\"counter\":{version},\n\t\t\"stateVersion\":0,\n")?;
    writeln!(out, "\t\t\"timestamp\":{now}\n\t}},")?;
    if let Some(position) = position {
        writeln!(out, "\t\"gantryPosition\":{position},")?;
        object(out, "gantryResets", rows.iter(), |out, (name, queues)| {
            let reset = queues.iter().filter(|(_, entry)| entry.reset != Reset::Done);
            let reset: Vec<_> = reset.map(|(queue, _)| queue.get()).collect();
            if reset.is_empty() {
                return Ok(false);
            }
            json::write_string(out, name);
            write!(out, ":{reset:?}")?;
            Ok(true)
        })?;
    }
    object(out, "groupTopicMap", topic_map, |out, (group, topics)| {
        json::write_string(out, group.as_str());
        out.push(b':');
        for (at, topic) in topics.iter().enumerate() {
            out.extend_from_slice(if at == 0 { b"[\n\t\t\t" } else { b",\n\t\t\t" });
            json::write_string(out, topic.as_str());
        }
        out.extend_from_slice(b"\n\t\t]");
        Ok(true)
    })?;
    object(out, "offsetTable", rows, |out, (name, queues)| {
        json::write_string(out, name);
        out.push(b':');
        let logged = queues.iter().filter_map(|(queue, entry)| Some((queue, entry.logged?)));
        for (at, (queue, offset)) in logged.enumerate() {
            out.extend_from_slice(if at == 0 { b"{\n\t\t\t" } else { b",\n\t\t\t" });
            write!(out, "{queue}:{offset}")?;
        }
        out.extend_from_slice(b"\n\t\t}");
        Ok(true)
    })?;
    out.extend_from_slice(b"\t\"pullOffsetTable\":{}\n}");
    Ok(())
}

/// Writes `"name":{…},` with one member for each item for which `member` wrote something.
fn object<T>(
    out: &mut Vec<u8>,
    name: &str,
    items: impl IntoIterator<Item = T>,
    member: impl Fn(&mut Vec<u8>, T) -> std::io::Result<bool>,
) -> std::io::Result<()> {
    write!(out, "\t\"{name}\":{{")?;
    let mut first = true;
    for item in items {
        let before = out.len();
        out.extend_from_slice(if first { b"\n\t\t" } else { b",\n\t\t" });
        if member(out, item)? {
            first = false;
        } else {
            out.truncate(before);
        }
    }
    out.extend_from_slice(if first { b"},\n" } else { b"\n\t},\n" });
    Ok(())
}

#[cfg(test)]
mod tests;
