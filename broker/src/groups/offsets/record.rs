//! Changes of consumer offsets as one record of the state topic.
//!
//! ```text
//!  0      1         3
//!  +------+---------+---------------------------+---------+-----------+
//!  | kind | n (u16) | n names: length u8, text  | m (u32) | m changes |   kind: StateKind::Offsets
//!  +------+---------+---------------------------+---------+-----------+
//!
//!  one change, 17 bytes
//!  +--------+-----------+-----------+-----------+------------+
//!  | op u8  | group u16 | topic u16 | queue u32 | offset u64 |     group, topic: numbers of names
//!  +--------+-----------+-----------+-----------+------------+
//! ```
//!
//! | op | change | group | topic | queue | offset |
//! |---|---|---|---|---|---|
//! | 1 | the group's offset is at least this | yes | yes | yes | yes |
//! | 2 | an operator set it; consumers are still to be told | yes | yes | yes | yes |
//! | 3 | consumers follow the reset | yes | yes | yes | 0 |
//! | 4 | the topic is gone: forget its offsets | 0 | yes | 0 | 0 |
//! | 5 | the group is gone: forget its offsets | yes | 0 | 0 | 0 |
//!
//! A record is whole or, after a crash, not there.

use std::collections::HashMap;

use gantry_proto::error::DecodeError;
use gantry_proto::ids::{QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::reader::Reader;

use crate::state::{self, StateKind};

/// Changes that fit one record: their names then fit 16 bits, the whole fits the smallest message limit
/// that makes sense.
pub const CHANGES_MAX: usize = 4096;

const CHANGE_BYTES: usize = 17;

/// Whose offset, and where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The consumer group.
    pub group: GroupName,
    /// The topic.
    pub topic: TopicName,
    /// The queue in it.
    pub queue: QueueId,
}

/// What happened to offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The offset is at least this.
    Advance(Key, QueueOffset),
    /// An operator set it; consumers are still to be told.
    Reset(Key, QueueOffset),
    /// Consumers follow the reset.
    Followed(Key),
    /// The topic is gone.
    ForgetTopic(TopicName),
    /// The group is gone.
    ForgetGroup(GroupName),
}

/// The body with the first [`CHANGES_MAX`] of `changes`.
pub fn encode(changes: &[Change]) -> Vec<u8> {
    let changes = changes.get(..CHANGES_MAX).unwrap_or(changes);
    let mut names = Names::default();
    let mut rows = Vec::with_capacity(changes.len() * CHANGE_BYTES);
    for change in changes {
        let (op, group, topic, queue, offset) = match change {
            Change::Advance(key, offset) => (1, Some(&key.group), Some(&key.topic), key.queue, *offset),
            Change::Reset(key, offset) => (2, Some(&key.group), Some(&key.topic), key.queue, *offset),
            Change::Followed(key) => (3, Some(&key.group), Some(&key.topic), key.queue, QueueOffset::ZERO),
            Change::ForgetTopic(topic) => (4, None, Some(topic), QueueId::ZERO, QueueOffset::ZERO),
            Change::ForgetGroup(group) => (5, Some(group), None, QueueId::ZERO, QueueOffset::ZERO),
        };
        let group = group.map_or(0, |group| names.number(group.as_str()));
        let topic = topic.map_or(0, |topic| names.number(topic.as_str()));
        rows.push(op);
        rows.extend_from_slice(&group.to_be_bytes());
        rows.extend_from_slice(&topic.to_be_bytes());
        rows.extend_from_slice(&queue.get().to_be_bytes());
        rows.extend_from_slice(&offset.get().to_be_bytes());
    }
    let mut out = state::body_of(StateKind::Offsets);
    out.extend_from_slice(&names.count().to_be_bytes());
    for name in names.in_order {
        // Names have at most 255 bytes: the type's constructors see to it.
        out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        out.extend_from_slice(name.as_bytes());
    }
    let count = u32::try_from(changes.len()).expect("at most CHANGES_MAX changes were taken");
    out.extend_from_slice(&count.to_be_bytes());
    out.extend_from_slice(&rows);
    out
}

/// Reads what follows the kind.
pub fn decode(payload: &[u8]) -> Result<Vec<Change>, DecodeError> {
    let mut reader = Reader::new(payload);
    let count = reader.u16("number of names")?;
    let mut names = Vec::with_capacity(usize::from(count).min(reader.remaining()));
    for _ in 0..count {
        let len = reader.u8("length of a name")?;
        names.push(reader.text(usize::from(len), "name")?);
    }
    let count = reader.u32("number of changes")?;
    let fits = usize::try_from(count).is_ok_and(|count| count <= reader.remaining() / CHANGE_BYTES);
    if !fits {
        return Err(reader.expected(format!("{count} changes of {CHANGE_BYTES} bytes")));
    }
    let mut changes = Vec::new();
    for _ in 0..count {
        changes.push(change(&mut reader, &names)?);
    }
    Ok(changes)
}

fn change(reader: &mut Reader<'_>, names: &[&str]) -> Result<Change, DecodeError> {
    let at = reader.clone();
    let op = reader.u8("op")?;
    let (group, topic) = (reader.u16("group")?, reader.u16("topic")?);
    let queue = QueueId::new(reader.u32("queue")?);
    let offset = QueueOffset::new(reader.u64("offset")?);
    let name =
        |number: u16| names.get(usize::from(number)).ok_or_else(|| at.expected("the number of a name"));
    let group =
        || GroupName::storable(name(group)?).map_err(|error| at.expected(format!("a group ({error})")));
    let topic =
        || TopicName::storable(name(topic)?).map_err(|error| at.expected(format!("a topic ({error})")));
    let key = || Ok(Key { group: group()?, topic: topic()?, queue });
    match op {
        1 => Ok(Change::Advance(key()?, offset)),
        2 => Ok(Change::Reset(key()?, offset)),
        3 => Ok(Change::Followed(key()?)),
        4 => Ok(Change::ForgetTopic(topic()?)),
        5 => Ok(Change::ForgetGroup(group()?)),
        _ => Err(at.expected("an op from 1 to 5")),
    }
}

/// Numbers for names, in the order of their first use.
#[derive(Default)]
struct Names<'a> {
    numbers: HashMap<&'a str, u16>,
    in_order: Vec<&'a str>,
}

impl<'a> Names<'a> {
    fn number(&mut self, name: &'a str) -> u16 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.count();
        self.numbers.insert(name, number);
        self.in_order.push(name);
        number
    }

    fn count(&self) -> u16 {
        u16::try_from(self.in_order.len()).expect("two names for each of at most CHANGES_MAX changes")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = String> {
        prop_oneof!["[a-zA-Z0-9%_-]{1,8}", "[a-z]{255}"]
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let key = (name(), name(), any::<u32>()).prop_map(|(group, topic, queue)| Key {
            group: GroupName::internal(&group),
            topic: TopicName::internal(&topic),
            queue: QueueId::new(queue),
        });
        (0..5, key, any::<u64>().prop_map(QueueOffset::new)).prop_map(|(op, key, offset)| match op {
            0 => Change::Advance(key, offset),
            1 => Change::Reset(key, offset),
            2 => Change::Followed(key),
            3 => Change::ForgetTopic(key.topic),
            _ => Change::ForgetGroup(key.group),
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(changes in prop::collection::vec(any_change(), 0..40)) {
            let body = encode(&changes);
            let (kind, payload) = state::parse(&body).expect("it is a state record");
            prop_assert_eq!(kind, StateKind::Offsets);
            prop_assert_eq!(decode(payload), Ok(changes));
        }

        #[test]
        fn any_bytes_give_a_value_or_an_error(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&payload);
        }
    }

    #[test]
    fn many_changes_of_one_group_name_it_once() {
        let change = |queue| {
            let key = Key { group: GroupName::internal("group"), topic: TopicName::internal("topic"), queue };
            Change::Advance(key, QueueOffset::ZERO)
        };
        let changes: Vec<_> =
            (0..=CHANGES_MAX).map(|n| change(QueueId::new(u32::try_from(n).unwrap()))).collect();
        assert_eq!(encode(&changes).len(), 1 + 2 + 6 + 6 + 4 + CHANGES_MAX * CHANGE_BYTES);
    }

    #[test]
    fn numbers_that_name_nothing_are_errors() {
        let mut payload = vec![0, 0, 0, 0, 0, 1];
        payload.extend_from_slice(&[1; CHANGE_BYTES]);
        assert!(decode(&payload).is_err());
        assert!(decode(&[0, 0, 255, 255, 255, 255]).is_err());
    }
}
