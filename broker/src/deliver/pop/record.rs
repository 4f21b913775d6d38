//! What happens to popped messages, as one record of the state topic.
//!
//! ```text
//!  0      1           5
//!  +------+-----------+-----------+
//!  | kind | m (u32)   | m changes |      kind: StateKind::Pop
//!  +------+-----------+-----------+
//!
//!  one change
//!  +-------+---------------+---------------+------------+-------------+
//!  | op u8 | group u8 text | topic u8 text | queue u32  | by op ...   |
//!  +-------+---------------+---------------+------------+-------------+
//! ```
//!
//! | op | change | behind the queue |
//! |---|---|---|
//! | 1 | messages were popped | next u64, lease, order u8, attempt u8 text, n u16, n × offset u64 |
//! | 2 | messages were acknowledged | n u16, n × offset u64 |
//! | 3 | a message is invisible for another time | offset u64, lease, counted u8 |
//! | 4 | messages were stored again, or are dead letters | n u16, n × offset u64 |
//! | 5 | the group starts there; nothing is in flight | next u64 |
//! | 6 | the topic is gone; group empty | |
//! | 7 | the group is gone; topic empty | |
//! | 8 | as 1, and messages were left | as 1, but n × (offset u64, order key u64), then m u16, m × (offset u64, order key u64) |
//!
//! `order` is 0 for none, 1 for that of the queue, 2 for that of each key. A text is its length (u8) and so many bytes. A lease is `popped at i64, invisible ms u32`. A record is whole or,
//! after a crash, not there. Records of several deliveries of one queue may come in another order than they were
//! decided in: what they add up to does not depend on it.

use std::sync::Arc;

use gantry_proto::error::DecodeError;
use gantry_proto::ids::{Millis, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::reader::Reader;

use crate::groups::offsets::Key;
use crate::state::{self, StateKind};

/// Messages that one change names, at the most.
pub const OFFSETS_MAX: usize = 1024;
/// Bytes of an attempt's id, at the most.
pub const ATTEMPT_BYTES_MAX: usize = 255;

/// For how long nobody else gets a popped message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// When it was popped.
    pub popped_at: Millis,
    /// For how long it is invisible, in milliseconds.
    pub invisible_ms: u32,
}

impl Lease {
    /// When it is visible again.
    pub fn ends(&self) -> Millis {
        self.popped_at.plus(u64::from(self.invisible_ms))
    }
}

/// How messages of a queue are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// As many at a time as are asked for.
    Concurrent,
    /// The next ones when those before are acknowledged.
    Orderly,
    /// The next ones of a key when those of that key before are acknowledged.
    ByKey,
}

impl Delivery {
    /// Whether messages stay where they are until they are acknowledged or dead.
    pub const fn is_ordered(self) -> bool {
        matches!(self, Self::Orderly | Self::ByKey)
    }

    const fn code(self) -> u8 {
        match self {
            Self::Concurrent => 0,
            Self::Orderly => 1,
            Self::ByKey => 2,
        }
    }

    const fn of(code: u8) -> Self {
        match code {
            1 => Self::Orderly,
            2 => Self::ByKey,
            _ => Self::Concurrent,
        }
    }
}

/// What messages that must keep their order have in common: a hash of their sharding key. Two keys with one hash
/// wait for each other, and nothing worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderKey(u64);

impl OrderKey {
    /// Nobody asked for it.
    pub const NONE: Self = Self(0);
    /// Messages without a sharding key keep their order among themselves.
    pub const KEYLESS: Self = Self(1);

    /// As it is stored.
    pub const fn new(hash: u64) -> Self {
        Self(hash)
    }

    /// Of a text, such as a sharding key or the id of a request: FNV-1a, which must be the same in each version.
    pub fn of(text: Option<&str>) -> Self {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Self::NONE };
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Self(text.bytes().fold(0xcbf2_9ce4_8422_2325, step).max(2))
    }

    /// Of a message with this sharding key.
    pub fn of_message(sharding_key: Option<&str>) -> Self {
        Some(Self::of(sharding_key)).filter(|key| *key != Self::NONE).unwrap_or(Self::KEYLESS)
    }

    /// As it is stored.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Whether a delivery that is not acknowledged counts as an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// It does.
    Yes,
    /// The client has put the message off.
    No,
}

/// Messages of one queue that were popped together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Popped {
    /// Whose, and where.
    pub key: Key,
    /// Everything below was popped, or passed over.
    pub next: QueueOffset,
    /// For how long.
    pub lease: Lease,
    /// How.
    pub delivery: Delivery,
    /// Id of the request, if it has one and asks for order.
    pub attempt: Option<Arc<str>>,
    /// The messages. Their keys are known where there is an order of keys.
    pub messages: Vec<(QueueOffset, OrderKey)>,
    /// Messages below `next` that were neither popped nor passed over: others of the group get them.
    pub left: Vec<(QueueOffset, OrderKey)>,
}

impl Popped {
    /// Whether it takes the longer form.
    fn is_long(&self) -> bool {
        !self.left.is_empty() || self.messages.iter().any(|(_, key)| *key != OrderKey::NONE)
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Messages were popped.
    Popped(Popped),
    /// Messages were acknowledged.
    Acked(Key, Vec<QueueOffset>),
    /// A message is invisible for another time.
    Renewed(Key, QueueOffset, Lease, Counted),
    /// Messages were stored again, or are dead letters.
    Moved(Key, Vec<QueueOffset>),
    /// The group starts there; nothing is in flight.
    Begun(Key, QueueOffset),
    /// The topic is gone.
    ForgetTopic(TopicName),
    /// The group is gone.
    ForgetGroup(GroupName),
}

/// The body with these changes. Each names at most [`OFFSETS_MAX`] messages.
pub fn encode(changes: &[Change]) -> Vec<u8> {
    let mut out = state::body_of(StateKind::Pop);
    let count = u32::try_from(changes.len()).expect("a request makes fewer than four billion changes");
    out.extend_from_slice(&count.to_be_bytes());
    for change in changes {
        match change {
            Change::Popped(popped) => {
                head(&mut out, if popped.is_long() { 8 } else { 1 }, &popped.key);
                out.extend_from_slice(&popped.next.get().to_be_bytes());
                lease(&mut out, popped.lease);
                out.push(popped.delivery.code());
                text(&mut out, popped.attempt.as_deref().unwrap_or_default());
                if popped.is_long() {
                    keyed(&mut out, &popped.messages);
                    keyed(&mut out, &popped.left);
                } else {
                    offsets(&mut out, popped.messages.iter().map(|(offset, _)| offset));
                }
            }
            Change::Acked(key, done) => {
                head(&mut out, 2, key);
                offsets(&mut out, done.iter());
            }
            Change::Renewed(key, offset, renewed, counted) => {
                head(&mut out, 3, key);
                out.extend_from_slice(&offset.get().to_be_bytes());
                lease(&mut out, *renewed);
                out.push(u8::from(*counted == Counted::Yes));
            }
            Change::Moved(key, done) => {
                head(&mut out, 4, key);
                offsets(&mut out, done.iter());
            }
            Change::Begun(key, next) => {
                head(&mut out, 5, key);
                out.extend_from_slice(&next.get().to_be_bytes());
            }
            Change::ForgetTopic(topic) => names(&mut out, 6, "", topic.as_str(), QueueId::ZERO),
            Change::ForgetGroup(group) => names(&mut out, 7, group.as_str(), "", QueueId::ZERO),
        }
    }
    out
}

fn head(out: &mut Vec<u8>, op: u8, key: &Key) {
    names(out, op, key.group.as_str(), key.topic.as_str(), key.queue);
}

fn names(out: &mut Vec<u8>, op: u8, group: &str, topic: &str, queue: QueueId) {
    out.push(op);
    text(out, group);
    text(out, topic);
    out.extend_from_slice(&queue.get().to_be_bytes());
}

/// Names have at most 255 bytes, as their constructors see to; attempts are cut before.
fn text(out: &mut Vec<u8>, text: &str) {
    let len = u8::try_from(text.len()).expect("names and attempts have at most 255 bytes");
    out.push(len);
    out.extend_from_slice(text.as_bytes());
}

fn lease(out: &mut Vec<u8>, lease: Lease) {
    out.extend_from_slice(&lease.popped_at.get().to_be_bytes());
    out.extend_from_slice(&lease.invisible_ms.to_be_bytes());
}

fn offsets<'a>(out: &mut Vec<u8>, offsets: impl ExactSizeIterator<Item = &'a QueueOffset>) {
    count(out, offsets.len());
    for offset in offsets {
        out.extend_from_slice(&offset.get().to_be_bytes());
    }
}

fn keyed(out: &mut Vec<u8>, messages: &[(QueueOffset, OrderKey)]) {
    count(out, messages.len());
    for (offset, key) in messages {
        out.extend_from_slice(&offset.get().to_be_bytes());
        out.extend_from_slice(&key.get().to_be_bytes());
    }
}

fn count(out: &mut Vec<u8>, count: usize) {
    let count = u16::try_from(count).expect("a change names at most OFFSETS_MAX messages");
    out.extend_from_slice(&count.to_be_bytes());
}

/// Reads what follows the kind.
pub fn decode(payload: &[u8]) -> Result<Vec<Change>, DecodeError> {
    let mut reader = Reader::new(payload);
    let count = reader.u32("number of changes")?;
    let mut changes = Vec::new();
    for _ in 0..count {
        changes.push(change(&mut reader)?);
    }
    Ok(changes)
}

fn change(reader: &mut Reader<'_>) -> Result<Change, DecodeError> {
    let at = reader.clone();
    let op = reader.u8("op")?;
    let (group, topic) = (read_text(reader, "group")?, read_text(reader, "topic")?);
    let queue = QueueId::new(reader.u32("queue")?);
    let group = || GroupName::storable(group).map_err(|error| at.expected(format!("a group ({error})")));
    let topic = || TopicName::storable(topic).map_err(|error| at.expected(format!("a topic ({error})")));
    let key = || Ok::<_, DecodeError>(Key { group: group()?, topic: topic()?, queue });
    Ok(match op {
        1 | 8 => {
            let next = QueueOffset::new(reader.u64("next")?);
            let lease = read_lease(reader)?;
            let delivery = Delivery::of(reader.u8("order")?);
            let attempt = Some(read_text(reader, "attempt")?).filter(|text| !text.is_empty()).map(Arc::from);
            let (messages, left) = if op == 8 {
                (read_keyed(reader)?, read_keyed(reader)?)
            } else {
                let offsets = read_offsets(reader)?;
                (offsets.into_iter().map(|offset| (offset, OrderKey::NONE)).collect(), Vec::new())
            };
            Change::Popped(Popped { key: key()?, next, lease, delivery, attempt, messages, left })
        }
        2 => Change::Acked(key()?, read_offsets(reader)?),
        3 => {
            let offset = QueueOffset::new(reader.u64("offset")?);
            let lease = read_lease(reader)?;
            let counted = if reader.u8("counted")? == 1 { Counted::Yes } else { Counted::No };
            Change::Renewed(key()?, offset, lease, counted)
        }
        4 => Change::Moved(key()?, read_offsets(reader)?),
        5 => Change::Begun(key()?, QueueOffset::new(reader.u64("next")?)),
        6 => Change::ForgetTopic(topic()?),
        7 => Change::ForgetGroup(group()?),
        _ => return Err(at.expected("an op from 1 to 8")),
    })
}

fn read_text<'a>(reader: &mut Reader<'a>, what: &str) -> Result<&'a str, DecodeError> {
    let len = reader.u8(what)?;
    reader.text(usize::from(len), what)
}

fn read_lease(reader: &mut Reader<'_>) -> Result<Lease, DecodeError> {
    let popped_at = Millis::new(reader.i64("time of the pop")?);
    Ok(Lease { popped_at, invisible_ms: reader.u32("invisible time")? })
}

fn read_offsets(reader: &mut Reader<'_>) -> Result<Vec<QueueOffset>, DecodeError> {
    let count = usize::from(reader.u16("number of offsets")?);
    let mut offsets = Vec::with_capacity(count.min(reader.remaining() / 8));
    for _ in 0..count {
        offsets.push(QueueOffset::new(reader.u64("offset")?));
    }
    Ok(offsets)
}

fn read_keyed(reader: &mut Reader<'_>) -> Result<Vec<(QueueOffset, OrderKey)>, DecodeError> {
    let count = usize::from(reader.u16("number of messages")?);
    let mut messages = Vec::with_capacity(count.min(reader.remaining() / 16));
    for _ in 0..count {
        messages.push((QueueOffset::new(reader.u64("offset")?), OrderKey::new(reader.u64("order key")?)));
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_change() -> impl Strategy<Value = Change> {
        let name = || prop_oneof!["[a-zA-Z0-9%_-]{1,8}", "[a-z]{255}"];
        let key = (name(), name(), any::<u32>()).prop_map(|(group, topic, queue)| Key {
            group: GroupName::internal(&group),
            topic: TopicName::internal(&topic),
            queue: QueueId::new(queue),
        });
        let lease = (any::<i64>(), any::<u32>())
            .prop_map(|(at, invisible_ms)| Lease { popped_at: Millis::new(at), invisible_ms });
        let offset = || any::<u64>().prop_map(QueueOffset::new);
        let offsets = prop::collection::vec(offset(), 0..5);
        let keyed = || {
            let message = (offset(), any::<u64>().prop_map(OrderKey::new));
            prop_oneof![Just(Vec::new()), prop::collection::vec(message, 0..5)]
        };
        let order = (0..4_u8, keyed(), keyed());
        let attempt = prop::option::of("[a-z]{1,255}");
        (0..7, key, offset(), lease, any::<bool>(), offsets, attempt, order).prop_map(
            |(op, key, next, lease, flag, offsets, attempt, (code, messages, left))| match op {
                0 => Change::Popped(Popped {
                    key,
                    next,
                    lease,
                    delivery: Delivery::of(code),
                    attempt: attempt.map(Arc::from),
                    messages,
                    left,
                }),
                1 => Change::Acked(key, offsets),
                2 => Change::Renewed(key, next, lease, if flag { Counted::Yes } else { Counted::No }),
                3 => Change::Moved(key, offsets),
                4 => Change::Begun(key, next),
                5 => Change::ForgetTopic(key.topic),
                _ => Change::ForgetGroup(key.group),
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(changes in prop::collection::vec(any_change(), 0..20)) {
            let body = encode(&changes);
            let (kind, payload) = state::parse(&body).expect("it is a state record");
            prop_assert_eq!(kind, StateKind::Pop);
            prop_assert_eq!(decode(payload), Ok(changes));
        }

        #[test]
        fn any_bytes_give_a_value_or_an_error(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&payload);
        }
    }

    #[test]
    fn order_keys_are_the_same_in_each_version() {
        assert_eq!(OrderKey::of(None), OrderKey::NONE);
        assert_eq!(OrderKey::of(Some("")), OrderKey::NONE);
        assert_eq!(OrderKey::of_message(Some("")), OrderKey::KEYLESS);
        assert_eq!(OrderKey::of_message(Some("a")), OrderKey::of(Some("a")));
        // The published values of FNV-1a.
        assert_eq!(OrderKey::of(Some("a")).get(), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(OrderKey::of(Some("foobar")).get(), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn numbers_that_promise_too_much_are_errors() {
        assert!(decode(&[255, 255, 255, 255]).is_err());
        assert!(decode(&[0, 0, 0, 1, 9, 0, 0, 0, 0, 0, 0]).is_err());
    }
}
