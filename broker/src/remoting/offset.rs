//! Where groups stand: one queue's offset (14, 15), all of them (43, 45), and resets by operators (222).

use std::sync::Arc;

use gantry_proto::ids::{Millis, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicKind, TopicName};
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::offsets::{DelayOffsets, ResetOffsetBody, ResetOffsetBodyForC};
use gantry_proto::remoting::body::queues::MessageQueue;
use gantry_proto::remoting::codes::{Language, ResponseCode};
use gantry_proto::remoting::header::{FLAG_ONEWAY, OwnedCommand};
use gantry_proto::remoting::request::offset::{
    OffsetResponse, QueryConsumerOffsetHeader, ResetOffsetHeader, UpdateConsumerOffsetHeader,
};

use super::context::{Handled, Reply, settle, short};
use crate::deliver::polls::Polls;
use crate::groups::members::Members;
use crate::groups::offsets::{Key, Offsets};
use crate::groups::start::{self, Beginning, Wish};
use crate::groups::{GroupError, Groups};
use crate::store::layout::load_json;
use crate::store::{Queue, Store};
use crate::topics::{Topic, Topics};

/// A queue whose first message is less than this behind the end of the log is taken for new: a group that
/// comes to it starts with that message, whatever it says of where to start.
const NEW_QUEUE_BYTES: u64 = 1 << 30;

/// Code 14. What is told is kept: an offset that came one-way is logged first, and so is where a group begins when the broker says it.
/// A member that broadcasts follows a reset by asking.
pub fn query_offset(
    (offsets, store): (&Arc<Offsets>, &Arc<Store>),
    (groups, members, topics): (&Groups, &Members, &Topics),
    request: &OwnedCommand,
) -> Handled {
    let asked = || {
        let header: QueryConsumerOffsetHeader<'_> = request.header()?;
        let queue = queue_id(header.queue_id)?;
        let topic = topics.get(header.topic);
        let (group, wish) = asker(groups, members, header.consumer_group, topic.as_deref())?;
        let beginning =
            topic.as_ref().map_or(Beginning::AsAsked, |topic| start::beginning(offsets, &group, wish, topic));
        let is_only_noted = offsets.is_only_noted(header.consumer_group, header.topic, queue);
        let key = Key { group, topic: TopicName::internal(header.topic), queue };
        Ok::<_, Reply>((key, topic, beginning, is_only_noted))
    };
    let (key, topic, beginning, is_only_noted) = match asked() {
        Ok(asked) => asked,
        Err(refused) => return refused.into(),
    };
    if !is_only_noted && !matches!(beginning, Beginning::Due(_)) {
        return answer_offset(offsets, store, beginning, &key, request).into();
    }
    let (offsets, store, request) = (Arc::clone(offsets), Arc::clone(store), request.clone());
    Handled::later(async move {
        if let (Beginning::Due(at), Some(topic)) = (beginning, &topic)
            && let Err(error) = start::settle(&offsets, &store, (&key.group, topic), at).await
        {
            return error.into();
        }
        match offsets.settle().await {
            Ok(()) => answer_offset(&offsets, &store, beginning, &key, &request),
            Err(error) => error.into(),
        }
    })
}

/// Whose offset is asked for, and who says where it begins.
fn asker(
    groups: &Groups,
    members: &Members,
    name: &str,
    topic: Option<&Topic>,
) -> Result<(GroupName, Wish), Reply> {
    let kind = topic.map_or(TopicKind::User, |topic| topic.kind);
    if let Some(group) = groups.get(name) {
        let asked = members.from_where(name);
        return Ok((group.name.clone(), Wish::of(&group.settings, kind, asked.as_ref())));
    }
    let group = GroupName::internal(name);
    let Some((owner, _)) = group.broadcast_member() else { return Ok((group, Wish::Members)) };
    let group = groups.keeper_of_offsets(name)?;
    let wish =
        groups.get(owner.as_str()).map_or(Wish::Members, |owner| Wish::of_broadcaster(&owner.settings));
    Ok((group, wish))
}

fn answer_offset(
    offsets: &Offsets,
    store: &Store,
    beginning: Beginning,
    key: &Key,
    request: &OwnedCommand,
) -> Reply {
    settle(|| {
        let header: QueryConsumerOffsetHeader<'_> = request.header()?;
        let queue = key.queue;
        let known = offsets.get(header.consumer_group, header.topic, queue);
        if let Some(known) = known.filter(|_| key.group.broadcast_member().is_some()) {
            offsets.take_reset(key, known);
        }
        let first = || {
            let found = store.find_queue(header.topic, queue);
            match beginning {
                Beginning::Begun | Beginning::Due(_) => {
                    Some(found.map_or(QueueOffset::ZERO, |queue| queue.min()))
                }
                Beginning::AsAskedAlone => None,
                Beginning::AsAsked => {
                    let wanted = header.set_zero_if_not_found != Some(false);
                    (wanted && is_new(store, found.as_deref())).then_some(QueueOffset::ZERO)
                }
            }
        };
        match known.or_else(first) {
            Some(offset) => Ok(Reply::header(&OffsetResponse { offset: offset.to_wire() })),
            None => Err(Reply::refused(
                ResponseCode::QueryNotFound,
                format!(
                    "group {} has no offset in {} queue {queue}: start where the group's configuration says",
                    short(header.consumer_group),
                    short(header.topic)
                ),
            )),
        }
    })
}

/// Whether nothing of the queue is gone and it is young.
fn is_new(store: &Store, queue: Option<&Queue>) -> bool {
    let Some(queue) = queue else { return true };
    if queue.min() > QueueOffset::ZERO {
        return false;
    }
    let first = queue.entry(QueueOffset::ZERO);
    first.is_none_or(|first| store.max_offset().since(first.phy) < NEW_QUEUE_BYTES)
}

/// Code 15. One-way, the offset is noted and logged within a second; with an answer, it is kept before that.
pub fn update_offset(
    offsets: &Arc<Offsets>,
    topics: &Topics,
    groups: &Groups,
    request: &OwnedCommand,
) -> Handled {
    let (key, offset) = match committed(topics, groups, request) {
        Ok(committed) => committed,
        Err(refused) => return refused.into(),
    };
    if request.flag & FLAG_ONEWAY != 0 {
        return offsets.note(key, offset).map_or_else(Reply::from, |()| Reply::ok()).into();
    }
    let offsets = Arc::clone(offsets);
    Handled::later(
        async move { offsets.commit(key, offset).await.map_or_else(Reply::from, |()| Reply::ok()) },
    )
}

fn committed(topics: &Topics, groups: &Groups, request: &OwnedCommand) -> Result<(Key, QueueOffset), Reply> {
    let header: UpdateConsumerOffsetHeader<'_> = request.header()?;
    let group = known_group(groups, header.consumer_group)?;
    let topic = known_topic(topics, header.topic)?;
    let offset = header.commit_offset.and_then(QueueOffset::from_wire).ok_or_else(|| {
        Reply::refused(
            ResponseCode::InvalidParameter,
            "commitOffset is missing or below 0: commit what was consumed",
        )
    })?;
    let queue = queue_id(header.queue_id)?;
    let queues = topic.read_queues().max(topic.write_queues());
    if queue.get() >= queues {
        let why =
            format!("topic {} has {queues} queues, there is no queue {queue}: refresh the route", topic.name);
        return Err(Reply::refused(ResponseCode::InvalidParameter, why));
    }
    Ok((Key { group, topic: topic.name.clone(), queue }, offset))
}

/// Code 222. The offsets are kept on the answer; consumers are told by their next pull, or by the one that
/// waits for a message now.
pub fn reset_offset(
    (offsets, store, polls): (&Arc<Offsets>, &Store, &Arc<Polls>),
    (topics, groups): (&Topics, &Groups),
    broker: &str,
    request: &OwnedCommand,
) -> Handled {
    let resets = match resets(offsets, store, (topics, groups), request) {
        Ok(resets) => resets,
        Err(refused) => return refused.into(),
    };
    let body = reset_body(broker, &resets, request.language);
    let (offsets, polls) = (Arc::clone(offsets), Arc::clone(polls));
    Handled::later(async move {
        let queues: Vec<_> = resets.iter().map(|(key, _)| (key.topic.clone(), key.queue)).collect();
        if let Err(error) = offsets.reset(resets).await {
            return error.into();
        }
        for queue in &queues {
            polls.wake_all(queue);
        }
        Reply::body(body)
    })
}

/// What a reset is answered with: where each queue goes on.
pub(super) fn reset_body(broker: &str, resets: &[(Key, QueueOffset)], language: Language) -> Vec<u8> {
    let offset_of = |(key, offset): &(Key, QueueOffset)| (message_queue(broker, key), offset.to_wire());
    let body = ResetOffsetBody { offset_table: resets.iter().map(offset_of).collect() };
    match language {
        Language::Cpp => ResetOffsetBodyForC::from(&body).to_json(),
        _ => body.to_json(),
    }
}

fn resets(
    offsets: &Offsets,
    store: &Store,
    (topics, groups): (&Topics, &Groups),
    request: &OwnedCommand,
) -> Result<Vec<(Key, QueueOffset)>, Reply> {
    let header: ResetOffsetHeader = request.header()?;
    let mut resets = targets(store, (topics, groups), &header)?;
    // Without force a group is only sent back, never over messages that it has not seen.
    resets.retain(|(key, to)| {
        let at = offsets.get(key.group.as_str(), key.topic.as_str(), key.queue);
        header.is_force || at.is_some_and(|at| at > *to)
    });
    Ok(resets)
}

/// Where a reset sends a group in each queue that it names.
pub(super) fn targets(
    store: &Store,
    (topics, groups): (&Topics, &Groups),
    header: &ResetOffsetHeader,
) -> Result<Vec<(Key, QueueOffset)>, Reply> {
    let group = known_group(groups, &header.group)?;
    let topic = known_topic(topics, &header.topic)?;
    let queues = match header.queue_id.and_then(QueueId::from_wire) {
        Some(queue) if queue.get() >= topic.read_queues() => {
            return Err(Reply::refused(
                ResponseCode::InvalidParameter,
                format!("topic {} has {} queues, not one numbered {queue}", topic.name, topic.read_queues()),
            ));
        }
        Some(queue) => queue.get()..queue.get() + 1,
        None => 0..topic.read_queues(),
    };
    let target = |queue| {
        let to = target(store, store.find_queue(topic.name.as_str(), queue).as_deref(), header)?;
        Ok((Key { group: group.clone(), topic: topic.name.clone(), queue }, to))
    };
    queues.map(|queue| target(QueueId::new(queue))).collect()
}

/// Where a reset sends the group in one queue: always between the queue's ends.
fn target(store: &Store, queue: Option<&Queue>, header: &ResetOffsetHeader) -> Result<QueueOffset, Reply> {
    let Some(queue) = queue else { return Ok(QueueOffset::ZERO) };
    let to = match header.offset.and_then(QueueOffset::from_wire) {
        Some(offset) => offset,
        None if header.timestamp < 0 => queue.max(),
        None => store.find_by_time(queue, Millis::new(header.timestamp)).map_err(|error| {
            Reply::refused(ResponseCode::SystemError, format!("cannot read the queue: {error}"))
        })?,
    };
    Ok(to.max(queue.min()).min(queue.max()))
}

/// Code 43: all offsets, as `consumerOffset.json` has them.
pub fn all_offsets(offsets: &Offsets) -> Reply {
    Reply::body(offsets.to_json())
}

/// Code 45: `delayOffset.json`, as it was written last.
pub fn delay_offsets(store: &Store) -> Reply {
    match read_delay_offsets(store) {
        Ok(offsets) => Reply::body(offsets.to_json()),
        Err(error) => {
            Reply::refused(ResponseCode::SystemError, format!("cannot read delayOffset.json: {error}"))
        }
    }
}

/// Where delivery stands in each delay level, as it was written last.
pub(super) fn read_delay_offsets(store: &Store) -> std::io::Result<DelayOffsets> {
    let path = store.layout().config().join("delayOffset.json");
    let read = load_json(&path, |bytes| DelayOffsets::from_json(bytes).ok())?;
    Ok(read.unwrap_or_default())
}

/// A queue in the form of bodies.
pub(super) fn message_queue(broker: &str, key: &Key) -> MessageQueue {
    MessageQueue {
        broker_name: broker.to_owned(),
        queue_id: key.queue.to_wire(),
        topic: key.topic.to_string(),
    }
}

pub(super) fn queue_id(raw: i32) -> Result<QueueId, Reply> {
    QueueId::from_wire(raw).ok_or_else(|| {
        Reply::refused(ResponseCode::InvalidParameter, format!("there is no queue {raw}: name one from 0 on"))
    })
}

pub(super) fn known_topic(topics: &Topics, name: &str) -> Result<Arc<Topic>, Reply> {
    topics.get(name).ok_or_else(|| {
        Reply::refused(
            ResponseCode::TopicNotExist,
            format!("topic {} does not exist: create it first", short(name)),
        )
    })
}

/// A group, or a member that broadcasts and keeps its offsets here.
pub(super) fn known_group(groups: &Groups, name: &str) -> Result<GroupName, Reply> {
    groups.keeper_of_offsets(name).map_err(|error| match error {
        GroupError::NotExist(_) => {
            let why = format!(
                "group {} does not exist: create it, or let its consumers connect first",
                short(name)
            );
            Reply::refused(ResponseCode::SubscriptionGroupNotExist, why)
        }
        other => other.into(),
    })
}

#[cfg(test)]
#[path = "offset_tests.rs"]
mod tests;
