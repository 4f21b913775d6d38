//! Consumer groups as operators see them: declare (200, 225), delete (207), list (201, 352), measure (208), what they
//! consume (343, 345) and may not consume (353), and members that broadcast and keep their offsets here (60010).

use std::collections::BTreeSet;
use std::sync::Arc;

use gantry_proto::ids::{Millis, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::group::{
    BroadcastMember, BroadcastMembers, GroupForbidden, SubscriptionGroupConfig, SubscriptionGroupList,
    SubscriptionGroupTable,
};
use gantry_proto::remoting::body::heartbeat::QuerySubscriptionResponseBody;
use gantry_proto::remoting::body::lists::TopicList;
use gantry_proto::remoting::body::stats::{ConsumeStats, OffsetWrapper};
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::group::{
    DeleteSubscriptionGroupHeader, GetAllSubscriptionGroupHeader, GetAllSubscriptionGroupResponse,
    GetConsumeStatsHeader, GroupForbiddenHeader, GroupHeader, QuerySubscriptionByConsumerHeader,
};

use super::context::{Handled, Reply, settle};
use super::member::body_of;
use super::offset::{known_group, known_topic, message_queue};
use super::topic::page;
use crate::deliver::polls::Polls;
use crate::deliver::pop::Pops;
use crate::groups::locks::Locks;
use crate::groups::members::Members;
use crate::groups::offsets::{Key, Offsets};
use crate::groups::{GroupError, Groups, Reading};
use crate::store::{Queue, Store};
use crate::topics::Topics;

/// Groups that one code 225 may declare.
const DECLARED_MAX: usize = 10_000;

/// Code 200.
pub fn declare((groups, polls): (&Groups, &Polls), request: &OwnedCommand) -> Reply {
    settle(|| {
        let config: SubscriptionGroupConfig = body_of(request)?;
        let declared = groups.declare(config);
        // It may have come after another group, or do so now.
        polls.wake_all_tiers();
        declared?;
        Ok(Reply::ok())
    })
}

/// Code 225. Stops at the first group that is refused; those before it are declared.
pub fn declare_all((groups, polls): (&Groups, &Polls), request: &OwnedCommand) -> Reply {
    settle(|| {
        let body: SubscriptionGroupList = body_of(request)?;
        let count = body.group_config_list.len();
        if count > DECLARED_MAX {
            let why = format!("{count} groups at once, the limit is {DECLARED_MAX}: declare fewer");
            return Err(Reply::refused(ResponseCode::InvalidParameter, why));
        }
        let declared =
            body.group_config_list.into_iter().try_for_each(|config| groups.declare(config).map(drop));
        polls.wake_all_tiers();
        declared?;
        Ok(Reply::ok())
    })
}

/// Code 207: the configuration, the locks, and on request the offsets.
pub fn delete(
    (groups, locks): (&Groups, &Locks),
    offsets: &Arc<Offsets>,
    pops: &Arc<Pops>,
    request: &OwnedCommand,
) -> Handled {
    let header: DeleteSubscriptionGroupHeader = match request.header() {
        Ok(header) => header,
        Err(error) => return Reply::from(error).into(),
    };
    if let Err(error) = groups.delete(&header.group_name) {
        return Reply::from(error).into();
    }
    locks.remove_group(&header.group_name);
    if !header.clean_offset {
        return Reply::ok().into();
    }
    let group = GroupName::internal(&header.group_name);
    let mut names = vec![group.clone()];
    for (name, _) in groups.broadcasts().of_group(group.as_str()) {
        groups.broadcasts().remove(&name);
        names.push(name);
    }
    let (offsets, pops) = (Arc::clone(offsets), Arc::clone(pops));
    Handled::later(async move {
        if let Err(error) = pops.remove_group(&group).await {
            return error.into();
        }
        for name in &names {
            if let Err(error) = offsets.remove_group(name).await {
                return error.into();
            }
        }
        Reply::ok()
    })
}

/// Code 201: all groups, or the page that the request names.
pub fn all(groups: &Groups, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: GetAllSubscriptionGroupHeader = request.header()?;
        let mut body: SubscriptionGroupTable = groups.table();
        let all = std::mem::take(&mut body.subscription_group_table);
        let total_group_num = Some(i32::try_from(all.len()).unwrap_or(i32::MAX));
        body.subscription_group_table = page(all, header.group_seq, header.max_group_num).collect();
        Ok(Reply::header(&GetAllSubscriptionGroupResponse { total_group_num }).with_body(body.to_json()))
    })
}

/// Code 352. Creates the group, if that is allowed: Apache does so, and clients count on it.
pub fn get(groups: &Groups, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: GroupHeader = request.header()?;
        Ok(Reply::body(groups.get_or_create(&header.group)?.config.to_json()))
    })
}

/// Code 343: topics in which the group has an offset.
pub fn topics_of(offsets: &Offsets, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: GroupHeader = request.header()?;
        let topic_list = offsets.topics_of_group(&header.group).iter().map(TopicName::to_string).collect();
        Ok(Reply::body(TopicList { broker_addr: None, topic_list }.to_json()))
    })
}

/// Code 60010: members of a broadcasting group that keep their offsets here.
pub fn broadcast_members(groups: &Groups, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: GroupHeader = request.header()?;
        let group = known_group(groups, &header.group)?;
        let all = groups.broadcasts().of_group(group.as_str()).into_iter();
        let member = |(name, seen): (GroupName, Millis)| {
            let (_, member) = name.broadcast_member()?;
            Some(BroadcastMember { name: member.to_owned(), last_seen: seen.get() })
        };
        Ok(Reply::body(BroadcastMembers { members: all.filter_map(member).collect() }.to_json()))
    })
}

/// Code 345: what the online members of a group subscribe to in a topic.
pub fn subscription(members: &Members, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: QuerySubscriptionByConsumerHeader = request.header()?;
        let subscription_data =
            members.subscription(&header.group, &header.topic).map(|subscription| (*subscription).clone());
        let body =
            QuerySubscriptionResponseBody { group: header.group, subscription_data, topic: header.topic };
        Ok(Reply::body(body.to_json()))
    })
}

/// Code 353: takes a topic from a group or gives it back, and tells whether the group may read it.
pub fn forbid((groups, topics): (&Groups, &Topics), request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: GroupForbiddenHeader = request.header()?;
        let group = known_group(groups, &header.group)?;
        let topic = known_topic(topics, &header.topic)?;
        let group = match header.readable {
            Some(true) => groups.set_reading(&group, &topic.name, Reading::Allowed)?,
            Some(false) => groups.set_reading(&group, &topic.name, Reading::Forbidden)?,
            None => groups.get(group.as_str()).ok_or_else(|| GroupError::NotExist(group.to_string()))?,
        };
        let readable = Some(group.reading(topic.name.as_str()) == Reading::Allowed);
        let body = GroupForbidden { group: header.group, readable, topic: header.topic };
        Ok(Reply::body(body.to_json()))
    })
}

/// Code 208: how far the group is, queue by queue.
pub fn stats(
    (topics, members, offsets): (&Topics, &Members, &Offsets),
    (store, pops): (&Store, &Pops),
    broker: &str,
    request: &OwnedCommand,
) -> Reply {
    settle(|| {
        let header: GetConsumeStatsHeader = request.header()?;
        let group = GroupName::internal(&header.consumer_group);
        let mut body = ConsumeStats::default();
        for name in measured(members, offsets, &header) {
            let Some(topic) = topics.get(name.as_str()) else { continue };
            for queue in (0..topic.read_queues()).map(QueueId::new) {
                let key = Key { group: group.clone(), topic: name.clone(), queue };
                let wrapper = standing(offsets, (store, pops), &key);
                body.offset_table.insert(message_queue(broker, &key), wrapper);
            }
        }
        Ok(Reply::body(body.to_json()))
    })
}

/// Topics that the request names; else those with an offset that an online group still subscribes to.
fn measured(members: &Members, offsets: &Offsets, header: &GetConsumeStatsHeader) -> BTreeSet<TopicName> {
    let listed = header.topic_list.as_deref().unwrap_or_default().split(';');
    let named: BTreeSet<_> = listed
        .chain(header.topic.as_deref())
        .filter(|name| !name.is_empty())
        .map(TopicName::internal)
        .collect();
    if !named.is_empty() {
        return named;
    }
    let group = header.consumer_group.as_str();
    let online = members.is_online(group);
    let known = offsets.topics_of_group(group).into_iter();
    let subscribed = |topic: &TopicName| members.subscription(group, topic.as_str()).is_some();
    // What is popped again belongs to the topic that it was popped from.
    let name = GroupName::internal(group);
    let prefix = TopicName::retry(&name);
    let is_retried = |topic: &TopicName| {
        let of = topic.as_str().strip_prefix(prefix.as_str()).and_then(|rest| rest.strip_prefix('_'));
        of.is_some_and(|of| members.subscription(group, of).is_some())
    };
    known.filter(|topic| !online || subscribed(topic) || is_retried(topic)).collect()
}

/// Where a group is in a queue. What tools call the pull offset is for a group that pops how far it has popped: what lies between the two is
/// in flight, or behind something that is.
pub(super) fn standing(offsets: &Offsets, (store, pops): (&Store, &Pops), key: &Key) -> OffsetWrapper {
    let queue = store.find_queue(key.topic.as_str(), key.queue);
    let at = offsets.get(key.group.as_str(), key.topic.as_str(), key.queue).unwrap_or_default();
    let popped = pops.standing(key);
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    OffsetWrapper {
        broker_offset: queue.as_ref().map_or(0, |queue| queue.max().to_wire()),
        consumer_offset: at.to_wire(),
        last_timestamp: queue.and_then(|queue| last_consumed(store, &queue, at)).map_or(0, Millis::get),
        pull_offset: popped.map_or(at, |popped| popped.next.max(at)).to_wire(),
        in_flight: popped.map(|popped| count(popped.in_flight)),
        left: popped.map(|popped| count(popped.left)),
        oldest_popped: popped.and_then(|popped| popped.oldest).map(Millis::get),
    }
}

/// When the last message that the group consumed was stored.
fn last_consumed(store: &Store, queue: &Queue, at: QueueOffset) -> Option<Millis> {
    store.store_time(&queue.entry(QueueOffset::new(at.get().checked_sub(1)?))?)
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
