//! How far groups are, and how operators move them: all groups of the broker (317), how old the waiting messages are
//! (303), the smallest offsets over groups (308), and one group's offsets for another (314).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use gantry_proto::ids::{Millis, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicKind, TopicName};
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::offsets::QueryCorrectionOffsetBody;
use gantry_proto::remoting::body::queues::MessageQueue;
use gantry_proto::remoting::body::stats::{
    ConsumeStats, ConsumeStatsList, QueryConsumeTimeSpanBody, QueueTimeSpan,
};
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::offset::{CloneGroupOffsetHeader, QueryCorrectionOffsetHeader};
use gantry_proto::remoting::request::topic::{GetBrokerConsumeStatsHeader, QueryConsumeTimeSpanHeader};

use super::context::{Handled, Reply, Services, settle, short};
use super::group::standing;
use super::offset::{known_group, known_topic, message_queue};
use crate::groups::members::Members;
use crate::groups::offsets::{Key, Offsets};
use crate::groups::{GroupError, Groups};
use crate::store::{Queue, Store};
use crate::topics::{Topic, Topics};

/// Queues of all groups of which one code 317 may tell.
const QUEUES_MAX: usize = 65_536;
/// What Apache says of a queue in which the compared group is further than the others.
const BEYOND: i64 = i64::MAX;

/// Code 317. `address` is this broker's. Beside the connection: there may be many groups.
pub fn of_broker(services: &Arc<Services>, address: SocketAddr, request: &OwnedCommand) -> Handled {
    let header: GetBrokerConsumeStatsHeader = match request.header() {
        Ok(header) => header,
        Err(error) => return Reply::from(error).into(),
    };
    let services = Arc::clone(services);
    Handled::later(async move {
        let measured = tokio::task::spawn_blocking(move || measure(&services, header.is_order));
        match measured.await {
            Ok(Ok(mut body)) => {
                body.broker_addr = address.to_string();
                Reply::body(body.to_json())
            }
            Ok(Err(refused)) => refused,
            Err(error) => Reply::refused(ResponseCode::SystemError, format!("measuring stopped: {error}")),
        }
    })
}

fn measure(services: &Services, only_ordered: bool) -> Result<ConsumeStatsList, Reply> {
    let (members, offsets) = (&services.members, &services.offsets);
    let mut body = ConsumeStatsList::default();
    let mut queues = 0;
    for group in services.groups.all() {
        let online = members.is_online(group.name.as_str());
        let mut list = Vec::new();
        for name in offsets.topics_of_group(group.name.as_str()) {
            let Some(topic) = services.topics.get(name.as_str()) else { continue };
            let left = online && members.subscription(group.name.as_str(), name.as_str()).is_none();
            if left || only_ordered && !topic.config.order {
                continue;
            }
            let stats = of_topic(services, &group.name, &topic);
            queues += stats.offset_table.len();
            if queues > QUEUES_MAX {
                let why = format!("groups have offsets in more than {QUEUES_MAX} queues: ask group by group");
                return Err(Reply::refused(ResponseCode::SystemError, why));
            }
            for queue in stats.offset_table.values() {
                body.total_diff += queue.broker_offset - queue.consumer_offset;
                body.total_inflight_diff += queue.pull_offset - queue.consumer_offset;
            }
            list.push(stats);
        }
        if !list.is_empty() {
            body.consume_stats_list.push(BTreeMap::from([(group.name.to_string(), list)]));
        }
    }
    Ok(body)
}

fn of_topic(services: &Services, group: &GroupName, topic: &Topic) -> ConsumeStats {
    let mut stats = ConsumeStats::default();
    for queue in (0..topic.read_queues()).map(QueueId::new) {
        let key = Key { group: group.clone(), topic: topic.name.clone(), queue };
        let standing = standing(&services.offsets, (&services.store, &services.pops), &key);
        stats.offset_table.insert(message_queue(&services.config.node.name, &key), standing);
    }
    stats
}

/// Code 303: when the oldest, the newest and the last consumed message of each queue were stored, and how long the next
/// one waits.
pub fn time_span(
    (topics, offsets): (&Topics, &Offsets),
    store: &Store,
    broker: &str,
    request: &OwnedCommand,
) -> Reply {
    settle(|| {
        let header: QueryConsumeTimeSpanHeader = request.header()?;
        let topic = known_topic(topics, &header.topic)?;
        let spans = (0..topic.read_queues().max(topic.write_queues())).map(QueueId::new).map(|id| {
            let queue = store.find_queue(topic.name.as_str(), id);
            let at = offsets.get(&header.group, topic.name.as_str(), id).unwrap_or_default();
            let message_queue = MessageQueue {
                broker_name: broker.to_owned(),
                queue_id: id.to_wire(),
                topic: topic.name.to_string(),
            };
            span(store, queue.as_deref(), at, message_queue)
        });
        Ok(Reply::body(QueryConsumeTimeSpanBody { consume_time_span_set: spans.collect() }.to_json()))
    })
}

fn span(store: &Store, queue: Option<&Queue>, at: QueueOffset, message_queue: MessageQueue) -> QueueTimeSpan {
    let stored = |at: QueueOffset| store.store_time(&queue?.entry(at)?);
    let millis = |time: Option<Millis>| time.map_or(-1, Millis::get);
    let min = queue.and_then(|queue| stored(queue.min()));
    let max = queue.and_then(|queue| stored(QueueOffset::new(queue.max().get().checked_sub(1)?)));
    let consumed = at.get().checked_sub(1).map(QueueOffset::new).map_or(min, stored);
    let waits = stored(at).map_or(0, |next| store.clock().now().since(next));
    QueueTimeSpan {
        consume_time_stamp: millis(consumed),
        delay_time: i64::try_from(waits).unwrap_or(i64::MAX),
        max_time_stamp: millis(max),
        message_queue,
        min_time_stamp: millis(min),
        ..QueueTimeSpan::default()
    }
}

/// Code 308: of each queue the smallest offset over all groups but those that are left out; [`BEYOND`] where the
/// compared group is behind that already.
pub fn corrections((topics, offsets): (&Topics, &Offsets), store: &Store, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: QueryCorrectionOffsetHeader = request.header()?;
        let topic = known_topic(topics, &header.topic)?;
        let name = topic.name.as_str();
        let left_out: BTreeSet<_> = header.filter_groups.as_deref().unwrap_or_default().split(',').collect();
        let mut groups = offsets.groups_of_topic(name);
        groups.retain(|group| !left_out.contains(group.as_str()));
        let mut body = QueryCorrectionOffsetBody::default();
        for id in (0..topic.read_queues().max(topic.write_queues())).map(QueueId::new) {
            let min = store.find_queue(name, id).map_or(QueueOffset::ZERO, |queue| queue.min());
            let known = groups.iter().filter_map(|group| offsets.get(group.as_str(), name, id));
            let Some(smallest) = known.filter(|at| *at >= min).min() else { continue };
            let behind = offsets.get(&header.compare_group, name, id).is_some_and(|at| at < smallest);
            let correction = if behind { BEYOND } else { smallest.to_wire() };
            body.correction_offsets.insert(id.to_wire(), correction);
        }
        Ok(Reply::body(body.to_json()))
    })
}

/// Code 314: a group goes on where another one stands. Its members, if there are any, are told by their next pull.
pub fn clone_offsets(services: &Services, request: &OwnedCommand) -> Handled {
    let neighbours = (&*services.topics, &*services.groups, &*services.members);
    let (target, offsets) = match to_clone(neighbours, &services.offsets, &services.store, request) {
        Ok(cloned) => cloned,
        Err(refused) => return refused.into(),
    };
    let online = services.members.is_online(target.as_str());
    let (owner, polls) = (Arc::clone(&services.offsets), Arc::clone(&services.polls));
    let pops = Arc::clone(&services.pops);
    Handled::later(async move {
        // Who pops need not be online to have something in flight, or to be further than its offset.
        let (told, set): (Vec<_>, Vec<_>) =
            offsets.into_iter().partition(|(key, _)| online || pops.standing(key).is_some());
        let queues: Vec<_> = told.iter().map(|(key, _)| (key.topic.clone(), key.queue)).collect();
        for kept in [owner.reset(told).await, owner.set(set).await] {
            if let Err(error) = kept {
                return error.into();
            }
        }
        for queue in &queues {
            polls.wake_all(queue);
        }
        Reply::ok()
    })
}

fn to_clone(
    (topics, groups, members): (&Topics, &Groups, &Members),
    offsets: &Offsets,
    store: &Store,
    request: &OwnedCommand,
) -> Result<(GroupName, Vec<(Key, QueueOffset)>), Reply> {
    let header: CloneGroupOffsetHeader = request.header()?;
    let source = known_group(groups, &header.src_group)?;
    let target = groups.get_or_create(&header.dest_group)?.name.clone();
    if target.is_system() || source == target {
        return Err(GroupError::System(target.to_string()).into());
    }
    let wanted = header.topic.as_deref().filter(|topic| !topic.is_empty());
    let is_wanted = |topic: &TopicName| match wanted {
        Some(wanted) => topic.as_str() == wanted,
        // What is retried is the group's own.
        None => TopicKind::of(topic.as_str()) != TopicKind::Retry,
    };
    // Of topics that an online group has left only its past is known.
    let left = |topic: &TopicName| {
        !header.offline
            && members.is_online(source.as_str())
            && members.subscription(source.as_str(), topic.as_str()).is_none()
    };
    let known = offsets.of_group(source.as_str()).into_iter();
    let cloned: Vec<_> = known
        .filter(|(topic, ..)| is_wanted(topic) && topics.get(topic.as_str()).is_some() && !left(topic))
        .map(|(topic, queue, offset)| {
            let end = store.find_queue(topic.as_str(), queue).map_or(QueueOffset::ZERO, |queue| queue.max());
            (Key { group: target.clone(), topic, queue }, offset.min(end))
        })
        .collect();
    if cloned.is_empty() {
        let of = wanted.map_or_else(String::new, |topic| format!(" in topic {}", short(topic)));
        let why = format!("group {source} has no offset{of} that could be cloned: see where it stands");
        return Err(Reply::refused(ResponseCode::SystemError, why));
    }
    Ok((target, cloned))
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
