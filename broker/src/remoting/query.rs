//! Looking at what is stored: a message by its place (33), messages by key (12), the offsets of a queue (29 to 32), and
//! its entries (321).
//!
//! Everything is read through maps of the files: what is not in memory costs a page fault on the
//! connection's thread, which these rare requests are worth.

use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::record::RecordView;
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::stats::{ConsumeQueueData, QueryConsumeQueueResponseBody};
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::offset::{
    EarliestMsgStoretimeResponse, GetMaxOffsetHeader, GetMinOffsetHeader, OffsetResponse, SearchOffsetHeader,
};
use gantry_proto::remoting::request::query::{
    QueryConsumeQueueHeader, QueryMessageHeader, QueryMessageResponse, ViewMessageHeader,
};

use super::context::{Reply, chain, settle, short};
use crate::deliver::filter::{Filter, Verdict};
use crate::groups::members::Members;
use crate::routes::OwnTopics;
use crate::store::{LogSlice, Queue, ReadError, Store};

/// Messages of one answer to code 12, at the most.
const MESSAGES_MAX: usize = 64;
/// Messages of one answer when a unique key is asked for, whatever the request says.
const UNIQUE_MESSAGES: usize = 32;
/// Records that are looked at for one code 12.
const LOOKED_AT_MAX: usize = 4096;
/// Room in a frame for everything but the body.
const HEADER_ROOM: usize = 4096;
/// Entries of one answer to code 321, at the most.
const ENTRIES_MAX: usize = 1024;
/// Blank entries that are passed over to find a queue's first message.
const BLANKS_MAX: usize = 1024;

/// Code 33.
pub fn view_message(store: &Store, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: ViewMessageHeader = request.header()?;
        let missing = |what: String| Reply::refused(ResponseCode::SystemError, what);
        let raw = header.offset.ok_or_else(|| missing("the request names no offset: set it".to_owned()))?;
        let at = PhyOffset::from_wire(raw)
            .ok_or_else(|| missing(format!("the log has no offset {raw}: check the message id")))?;
        match visible_record(store, at) {
            Ok(record) => Ok(Reply::body(record.to_vec())),
            Err(error) => Err(missing(format!("{}: check the message id", chain(&error)))),
        }
    })
}

/// The record at `at`, if it is one that consumers may see: what is not kept yet may still be lost.
pub(super) fn visible_record(store: &Store, at: PhyOffset) -> Result<LogSlice, ReadError> {
    if at >= store.visible_offset() {
        return Err(ReadError::Nothing { at });
    }
    store.record_at(at)
}

/// What a key is looked for in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyKind {
    /// The keys and the unique key.
    Any,
    Keys,
    Unique,
    Tag,
}

impl KeyKind {
    fn of(header: &QueryMessageHeader) -> Self {
        match header.index_type.as_deref() {
            _ if header.unique_key_query == Some(true) => Self::Unique,
            Some("U") => Self::Unique,
            Some("K") => Self::Keys,
            Some("T") => Self::Tag,
            _ => Self::Any,
        }
    }

    /// Whether the record carries the key. The index knows hashes only.
    fn matches(self, record: &RecordView<'_>, key: &str) -> bool {
        let properties = record.properties().scan();
        let unique = properties.uniq_key == Some(key.into());
        let mut keys = properties.split_keys();
        match self {
            Self::Any => unique || keys.any(|other| other == key),
            Self::Keys => keys.any(|other| other == key),
            Self::Unique => unique,
            Self::Tag => properties.tags == Some(key.into()),
        }
    }
}

/// Code 12. `frame_bytes` is the longest frame that may be sent.
pub fn query_message(store: &Store, frame_bytes: usize, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: QueryMessageHeader = request.header()?;
        let kind = KeyKind::of(&header);
        let wanted = match kind {
            KeyKind::Unique => UNIQUE_MESSAGES,
            _ => usize::try_from(header.max_num).unwrap_or(0).min(MESSAGES_MAX),
        };
        if wanted == 0 || header.key.is_empty() {
            let why = format!("no key, or maxNum {}: name a key and ask for at least 1", header.max_num);
            return Err(Reply::refused(ResponseCode::InvalidParameter, why));
        }
        let bytes_max = frame_bytes.saturating_sub(HEADER_ROOM);
        let body = find_by_key(store, &header, kind, wanted, bytes_max)
            .map_err(|error| Reply::refused(ResponseCode::SystemError, chain(&error)))?;
        let (newest_at, newest_phy) = store.index().newest();
        let newest = QueryMessageResponse {
            index_last_update_timestamp: newest_at.get(),
            index_last_update_phyoffset: newest_phy.to_wire(),
        };
        if body.is_empty() {
            let why = format!(
                "topic {} has no message with the key {} stored from {} to {}: check both and the times",
                short(&header.topic),
                short(&header.key),
                header.begin_timestamp,
                header.end_timestamp
            );
            let refused = Reply::refused(ResponseCode::QueryNotFound, why);
            return Err(Reply { ext: Reply::header(&newest).ext, ..refused });
        }
        Ok(Reply::header(&newest).with_body(body))
    })
}

/// The newest `wanted` records with the key, oldest first; at least one, however long it is.
fn find_by_key(
    store: &Store,
    header: &QueryMessageHeader,
    kind: KeyKind,
    wanted: usize,
    bytes_max: usize,
) -> std::io::Result<Vec<u8>> {
    let (from, to) = (Millis::new(header.begin_timestamp), Millis::new(header.end_timestamp));
    let (topic, key) = (header.topic.as_str(), header.key.as_str());
    let tag;
    let indexed = match kind {
        KeyKind::Tag => {
            tag = format!("T#{key}");
            tag.as_str()
        }
        _ => key,
    };
    // Other keys may share the hash: look at more places until there are enough messages.
    let mut look_at = wanted * 2;
    loop {
        // The index rounds times down to seconds.
        let places = store.index().find(topic, indexed, from.minus(1000), to, look_at)?;
        let mut records = Vec::new();
        let mut bytes = 0;
        for at in &places {
            let Ok(slice) = visible_record(store, *at) else { continue };
            let Ok(record) = RecordView::parse(&slice) else { continue };
            let stored = record.store_at();
            if record.topic() != topic || stored < from || stored > to || !kind.matches(&record, key) {
                continue;
            }
            if records.len() == wanted || (bytes + slice.len() > bytes_max && !records.is_empty()) {
                break;
            }
            bytes += slice.len();
            records.push((*at, slice));
        }
        if records.len() == wanted || places.len() < look_at || look_at >= LOOKED_AT_MAX {
            // A message is named twice when two of its keys have the same hash.
            records.sort_unstable_by_key(|(at, _)| *at);
            records.dedup_by_key(|(at, _)| *at);
            return Ok(records.iter().fold(Vec::with_capacity(bytes), |mut body, (_, slice)| {
                body.extend_from_slice(slice);
                body
            }));
        }
        look_at = (look_at * 4).min(LOOKED_AT_MAX);
    }
}

/// The queue that a request names. `None`: the topic has it, but nothing was ever sent to it.
fn find_queue(
    store: &Store,
    topics: &dyn OwnTopics,
    topic: &str,
    queue_id: i32,
) -> Result<Option<Arc<Queue>>, Reply> {
    let Some(known) = topics.find(topic) else {
        let why = format!("the topic {} does not exist: create it, or check its name", short(topic));
        return Err(Reply::refused(ResponseCode::TopicNotExist, why));
    };
    let queues = known.read.max(known.write);
    let queue = QueueId::from_wire(queue_id).and_then(|id| store.find_queue(topic, id));
    // A topic that was made smaller still has its other queues.
    if queue.is_none() && !(0..queues).contains(&queue_id) {
        let why = format!("the topic {} has the queues 0 to {}, not {queue_id}", short(topic), queues - 1);
        return Err(Reply::refused(ResponseCode::InvalidParameter, why));
    }
    Ok(queue)
}

fn offset(at: QueueOffset) -> Reply {
    Reply::header(&OffsetResponse { offset: at.to_wire() })
}

/// Code 29. `lower` is the first message at or after the time, `upper` the last one at or before it; where
/// there is none it is the end of the queue, or its start.
pub fn search_offset(store: &Store, topics: &dyn OwnTopics, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: SearchOffsetHeader = request.header()?;
        let Some(queue) = find_queue(store, topics, &header.topic, header.queue_id)? else {
            return Ok(offset(QueueOffset::ZERO));
        };
        let upper = header.boundary_type.is_some_and(|text| text.eq_ignore_ascii_case("upper"));
        let at = Millis::new(header.timestamp);
        let found = store.find_by_time(&queue, if upper { at.plus(1) } else { at }).map_err(|error| {
            Reply::refused(ResponseCode::SystemError, format!("cannot read the queue: {error}"))
        })?;
        Ok(offset(if upper { found.back(1).max(queue.min()) } else { found }))
    })
}

/// Code 30.
pub fn get_max_offset(store: &Store, topics: &dyn OwnTopics, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: GetMaxOffsetHeader = request.header()?;
        let queue = find_queue(store, topics, &header.topic, header.queue_id)?;
        Ok(offset(queue.map_or(QueueOffset::ZERO, |queue| queue.max())))
    })
}

/// Code 31.
pub fn get_min_offset(store: &Store, topics: &dyn OwnTopics, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: GetMinOffsetHeader = request.header()?;
        let queue = find_queue(store, topics, &header.topic, header.queue_id)?;
        Ok(offset(queue.map_or(QueueOffset::ZERO, |queue| queue.min())))
    })
}

/// Code 32.
pub fn get_earliest_store_time(store: &Store, topics: &dyn OwnTopics, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: GetMinOffsetHeader = request.header()?;
        let queue = find_queue(store, topics, &header.topic, header.queue_id)?;
        let first = queue.and_then(|queue| {
            let mut entries = Vec::new();
            queue.entries(queue.min(), BLANKS_MAX, &mut entries);
            entries.iter().find(|entry| !entry.is_blank()).and_then(|entry| store.store_time(entry))
        });
        let timestamp = first.map_or(-1, Millis::get);
        Ok(Reply::header(&EarliestMsgStoretimeResponse { timestamp }))
    })
}

/// Code 321: entries of a queue, and which of them a group's subscription may want.
pub fn query_queue(store: &Store, members: &Members, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: QueryConsumeQueueHeader = request.header()?;
        let id = QueueId::from_wire(header.queue_id);
        let queue = id.and_then(|id| store.find_queue(&header.topic, id)).ok_or_else(|| {
            let why =
                format!("nothing is in queue {} of {}: check both", header.queue_id, short(&header.topic));
            Reply::refused(ResponseCode::SystemError, why)
        })?;
        let mut body = QueryConsumeQueueResponseBody {
            max_queue_index: queue.max().to_wire(),
            min_queue_index: queue.min().to_wire(),
            ..QueryConsumeQueueResponseBody::default()
        };
        let mut filter = None;
        if let Some(group) = header.consumer_group.as_deref().filter(|group| !group.is_empty()) {
            let subscription = members.subscription(group, &header.topic);
            body.subscription_data = subscription.as_deref().cloned();
            filter = subscription.map(|subscription| match subscription.expression_type.as_str() {
                "" | "TAG" => Filter::of(&subscription.tags_set),
                // Entries tell nothing of properties: each may be wanted.
                _ => Filter::All,
            });
            if filter.is_none() {
                let topic = short(&header.topic);
                body.filter_data = Some(format!("no member of {} subscribes to {topic}", short(group)));
            }
        }
        let count = usize::try_from(header.count).unwrap_or(0).min(ENTRIES_MAX);
        let from = QueueOffset::from_wire(header.index).unwrap_or_default().max(queue.min());
        let mut entries = Vec::new();
        queue.entries(from, count, &mut entries);
        body.queue_data = entries
            .iter()
            .filter(|entry| !entry.is_blank())
            .map(|entry| ConsumeQueueData {
                eval: filter
                    .as_ref()
                    .is_some_and(|filter| filter.by_entry(entry.tags_code) != Verdict::Unwanted),
                physic_offset: entry.phy.to_wire(),
                physic_size: i32::try_from(entry.size).unwrap_or(i32::MAX),
                tags_code: entry.tags_code,
                ..ConsumeQueueData::default()
            })
            .collect();
        Ok(Reply::body(body.to_json()))
    })
}

#[cfg(test)]
#[path = "query_tests.rs"]
mod tests;
