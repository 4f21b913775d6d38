//! `config/gantryPop.json`: the messages in flight, and how much of the log they were read from.
//!
//! ```text
//! { "position": 123456,
//!   "queues": [[group, topic, queue, next, attempt id or "",
//!               [[offset, popped at, invisible ms, deliveries, flags, last end], …],
//!               [[offset, until], …]], …],         flags: 1 in order, 2 does not count as an attempt, 4 in
//!   "left": [[n, [[offset, order key], …],                 the order of its key
//!                [[offset, order key, attempt], …]], …],
//!   "over": [[n, time], …] }
//! ```
//!
//! `over`: how late it was when messages of the n-th of the queues were stored again. `left` is not there when it is
//! empty: of the n-th of the queues the messages that were left, and keys and attempts of
//! those in flight that have a key.
//!
//! It is replaced as a whole. Without it the log is read from the last checkpoint on: what is only before that is
//! popped again from the group's offset on.

use std::collections::HashMap;
use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicName};
use serde::{Deserialize, Serialize};

use super::record::{Counted, Delivery, Lease, OrderKey};
use super::table::{InFlight, Kept};
use crate::groups::offsets::Key;

const ORDERLY: u8 = 1;
const NOT_COUNTED: u8 = 2;
const BY_KEY: u8 = 4;

/// Offset, time of the pop, invisible time, deliveries, flags, last end.
type Row = (u64, i64, u32, u32, u8, i64);

/// Group, topic, queue, next, attempt id, messages in flight, messages that were stored again.
type QueueRow = (String, String, u32, u64, String, Vec<Row>, Vec<(u64, i64)>);

/// Number of the queue, messages that were left with their order keys, order keys and attempts of those in flight.
type LeftRow = (usize, Vec<(u64, u64)>, Vec<(u64, u64, u64)>);

#[derive(Debug, Serialize, Deserialize)]
struct File {
    position: u64,
    queues: Vec<QueueRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    left: Vec<LeftRow>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    over: Vec<(usize, i64)>,
}

/// The file's bytes.
pub fn encode(position: PhyOffset, kept: &[Kept]) -> Vec<u8> {
    let row = |(offset, entry): &(QueueOffset, InFlight)| {
        let orderly = match entry.delivery {
            Delivery::Concurrent => 0,
            Delivery::Orderly => ORDERLY,
            Delivery::ByKey => ORDERLY | BY_KEY,
        };
        let flags = orderly | if entry.counted == Counted::No { NOT_COUNTED } else { 0 };
        let lease = entry.lease;
        let (popped_at, last_end) = (lease.popped_at.get(), entry.last_end.get());
        (offset.get(), popped_at, lease.invisible_ms, entry.deliveries, flags, last_end)
    };
    let queue = |kept: &Kept| {
        let (group, topic, queue) =
            (kept.key.group.to_string(), kept.key.topic.to_string(), kept.key.queue.get());
        let attempt = kept.attempt.as_deref().unwrap_or_default().to_owned();
        let rows = kept.in_flight.iter().map(row).collect();
        let moved = kept.moved.iter().map(|(offset, until)| (offset.get(), until.get())).collect();
        (group, topic, queue, kept.next.get(), attempt, rows, moved)
    };
    let left = |(number, kept): (usize, &Kept)| {
        let left: Vec<_> = kept.left.iter().map(|(offset, key)| (offset.get(), key.get())).collect();
        let has_key = |(_, entry): &&(QueueOffset, InFlight)| entry.delivery == Delivery::ByKey;
        let keys = kept.in_flight.iter().filter(has_key);
        let keys: Vec<_> =
            keys.map(|(offset, entry)| (offset.get(), entry.order_key.get(), entry.attempt.get())).collect();
        (!left.is_empty() || !keys.is_empty()).then_some((number, left, keys))
    };
    let over = |(number, kept): (usize, &Kept)| {
        (kept.over_until > Millis::ZERO).then_some((number, kept.over_until.get()))
    };
    let file = File {
        position: position.get(),
        queues: kept.iter().map(queue).collect(),
        left: kept.iter().enumerate().filter_map(left).collect(),
        over: kept.iter().enumerate().filter_map(over).collect(),
    };
    serde_json::to_vec(&file).expect("numbers and texts have a JSON form")
}

/// Reads the file; `None` when it is damaged. Queues whose names cannot be are left out.
pub fn decode(bytes: &[u8]) -> Option<(PhyOffset, Vec<Kept>)> {
    let file: File = serde_json::from_slice(bytes).ok()?;
    let mut left: HashMap<usize, _> =
        file.left.into_iter().map(|(number, left, keys)| (number, (left, keys))).collect();
    let over: HashMap<usize, i64> = file.over.into_iter().collect();
    let entry = |(offset, popped_at, invisible_ms, deliveries, flags, last_end): Row| {
        let lease = Lease { popped_at: Millis::new(popped_at), invisible_ms };
        let delivery = match flags & (ORDERLY | BY_KEY) {
            0 => Delivery::Concurrent,
            ORDERLY => Delivery::Orderly,
            _ => Delivery::ByKey,
        };
        let counted = if flags & NOT_COUNTED == 0 { Counted::Yes } else { Counted::No };
        let mut entry = InFlight::new(lease, delivery, counted, deliveries);
        entry.last_end = entry.last_end.max(Millis::new(last_end));
        (QueueOffset::new(offset), entry)
    };
    let queues = file.queues.into_iter().enumerate().filter_map(|(number, row)| {
        let (group, topic, queue, next, attempt, rows, moved) = row;
        let (group, topic) = (GroupName::storable(&group).ok()?, TopicName::storable(&topic).ok()?);
        let (left, keys) = left.remove(&number).unwrap_or_default();
        let keys: HashMap<u64, (u64, u64)> =
            keys.into_iter().map(|(offset, key, attempt)| (offset, (key, attempt))).collect();
        let keyed = |(offset, mut entry): (QueueOffset, InFlight)| {
            if let Some((key, attempt)) = keys.get(&offset.get()) {
                (entry.order_key, entry.attempt) = (OrderKey::new(*key), OrderKey::new(*attempt));
            }
            (offset, entry)
        };
        Some(Kept {
            key: Key { group, topic, queue: QueueId::new(queue) },
            next: QueueOffset::new(next),
            attempt: Some(attempt).filter(|attempt| !attempt.is_empty()).map(Arc::from),
            in_flight: rows.into_iter().map(entry).map(keyed).collect(),
            moved: moved
                .into_iter()
                .map(|(offset, until)| (QueueOffset::new(offset), Millis::new(until)))
                .collect(),
            left: left
                .into_iter()
                .map(|(offset, key)| (QueueOffset::new(offset), OrderKey::new(key)))
                .collect(),
            over_until: Millis::new(over.get(&number).copied().unwrap_or_default()),
        })
    });
    Some((PhyOffset::new(file.position), queues.collect()))
}
