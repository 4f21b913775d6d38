//! `config/gantryPop.json`: the messages in flight, and how much of the log they were read from.
//!
//! ```text
//! { "position": 123456,
//!   "queues": [[group, topic, queue, next, attempt id or "",
//!               [[offset, popped at, invisible ms, deliveries, flags, last end], …],
//!               [[offset, until], …]], …] }        flags: 1 in order, 2 does not count as an attempt
//! ```
//!
//! It is replaced as a whole. Without it the log is read from the last checkpoint on: what is only before that is
//! popped again from the group's offset on.

use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicName};
use serde::{Deserialize, Serialize};

use super::record::{Counted, Delivery, Lease};
use super::table::{InFlight, Kept};
use crate::groups::offsets::Key;

const ORDERLY: u8 = 1;
const NOT_COUNTED: u8 = 2;

/// Offset, time of the pop, invisible time, deliveries, flags, last end.
type Row = (u64, i64, u32, u32, u8, i64);

/// Group, topic, queue, next, attempt id, messages in flight, messages that were stored again.
type QueueRow = (String, String, u32, u64, String, Vec<Row>, Vec<(u64, i64)>);

#[derive(Debug, Serialize, Deserialize)]
struct File {
    position: u64,
    queues: Vec<QueueRow>,
}

/// The file's bytes.
pub fn encode(position: PhyOffset, kept: &[Kept]) -> Vec<u8> {
    let row = |(offset, entry): &(QueueOffset, InFlight)| {
        let orderly = if entry.delivery == Delivery::Orderly { ORDERLY } else { 0 };
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
    let file = File { position: position.get(), queues: kept.iter().map(queue).collect() };
    serde_json::to_vec(&file).expect("numbers and texts have a JSON form")
}

/// Reads the file; `None` when it is damaged. Queues whose names cannot be are left out.
pub fn decode(bytes: &[u8]) -> Option<(PhyOffset, Vec<Kept>)> {
    let file: File = serde_json::from_slice(bytes).ok()?;
    let entry = |(offset, popped_at, invisible_ms, deliveries, flags, last_end): Row| {
        let lease = Lease { popped_at: Millis::new(popped_at), invisible_ms };
        let delivery = if flags & ORDERLY == 0 { Delivery::Concurrent } else { Delivery::Orderly };
        let counted = if flags & NOT_COUNTED == 0 { Counted::Yes } else { Counted::No };
        let mut entry = InFlight::new(lease, delivery, counted, deliveries);
        entry.last_end = entry.last_end.max(Millis::new(last_end));
        (QueueOffset::new(offset), entry)
    };
    let queues = file.queues.into_iter().filter_map(|(group, topic, queue, next, attempt, rows, moved)| {
        let (group, topic) = (GroupName::storable(&group).ok()?, TopicName::storable(&topic).ok()?);
        Some(Kept {
            key: Key { group, topic, queue: QueueId::new(queue) },
            next: QueueOffset::new(next),
            attempt: Some(attempt).filter(|attempt| !attempt.is_empty()).map(Arc::from),
            in_flight: rows.into_iter().map(entry).collect(),
            moved: moved
                .into_iter()
                .map(|(offset, until)| (QueueOffset::new(offset), Millis::new(until)))
                .collect(),
        })
    });
    Some((PhyOffset::new(file.position), queues.collect()))
}
