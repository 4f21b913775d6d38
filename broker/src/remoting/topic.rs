//! Topics as operators see them: declare (17, 18), delete (215), list (21, 305, 351), measure (202), and who
//! consumes them (300).

use std::collections::BTreeSet;
use std::sync::Arc;

use gantry_proto::ids::{Millis, QueueId};
use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::lists::{GroupList, TopicList};
use gantry_proto::remoting::body::queues::MessageQueue;
use gantry_proto::remoting::body::stats::{TopicOffset, TopicStatsTable};
use gantry_proto::remoting::body::topic::{CreateTopicListBody, TopicConfig};
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::topic::{
    CreateTopicHeader, GetAllTopicConfigHeader, GetAllTopicConfigResponse, GetTopicConfigHeader, TopicHeader,
};

use super::context::{Handled, Reply, settle};
use super::member::body_of;
use super::offset::known_topic;
use crate::deliver::polls::Polls;
use crate::deliver::pop::Pops;
use crate::deliver::scaling::Scaling;
use crate::groups::locks::Locks;
use crate::groups::members::Members;
use crate::groups::offsets::{CommitError, Offsets};
use crate::store::{Queue, Store};
use crate::topics::scale::Haste;
use crate::topics::{TopicError, Topics, attributes, perm};

/// Entries of one page of codes 21 and 201, at the most.
pub(super) const PAGE_MAX: usize = 2000;
/// Topics that one code 18 may declare.
const DECLARED_MAX: usize = 10_000;

/// Code 17.
pub fn declare(topics: &Topics, scaling: &Arc<Scaling>, request: &OwnedCommand) -> Handled {
    match declared(topics, request) {
        Ok((config, haste)) => {
            let scaling = Arc::clone(scaling);
            Handled::later(async move {
                scaling.declare(config, haste).await.map_or_else(Reply::from, |_| Reply::ok())
            })
        }
        Err(refused) => refused.into(),
    }
}

fn declared(topics: &Topics, request: &OwnedCommand) -> Result<(TopicConfig, Haste), Reply> {
    let header: CreateTopicHeader = request.header()?;
    let current = topics.get(&header.topic);
    let mut config = current.map_or_else(TopicConfig::default, |topic| topic.config.clone());
    let change = header.attributes.as_deref().unwrap_or_default();
    attributes::change(&mut config.attributes, change)
        .map_err(|error| Reply::refused(ResponseCode::InvalidParameter, error.to_string()))?;
    let queues = i32::try_from(topics.default_queues()).unwrap_or(i32::MAX);
    config.topic_name = header.topic;
    config.read_queue_nums = header.read_queue_nums.unwrap_or(queues);
    config.write_queue_nums = header.write_queue_nums.unwrap_or(queues);
    config.perm = header.perm.unwrap_or(perm::READ | perm::WRITE);
    config.topic_filter_type =
        header.topic_filter_type.filter(|kind| !kind.is_empty()).unwrap_or(config.topic_filter_type);
    config.topic_sys_flag = header.topic_sys_flag.unwrap_or(0);
    config.order = header.order;
    let haste = if header.force == Some(true) { Haste::Force } else { Haste::Wait };
    Ok((config, haste))
}

/// Code 18. Stops at the first topic that is refused; those before it are declared.
pub fn declare_all(scaling: &Arc<Scaling>, request: &OwnedCommand) -> Handled {
    let body: CreateTopicListBody = match body_of(request) {
        Ok(body) => body,
        Err(refused) => return refused.into(),
    };
    let count = body.topic_config_list.len();
    if count > DECLARED_MAX {
        let why = format!("{count} topics at once, the limit is {DECLARED_MAX}: declare fewer");
        return Reply::refused(ResponseCode::InvalidParameter, why).into();
    }
    let scaling = Arc::clone(scaling);
    Handled::later(async move {
        for config in body.topic_config_list {
            if let Err(error) = scaling.declare(config, Haste::Wait).await {
                return error.into();
            }
        }
        Reply::ok()
    })
}

/// Code 215: the topic with its queues, offsets and locks. Deleting what is not there is a success. Whoever
/// waits for a message of it is answered.
pub fn delete(
    (topics, locks): (&Topics, &Locks),
    (offsets, pops): (&Arc<Offsets>, &Arc<Pops>),
    (store, polls): (&Arc<Store>, &Arc<Polls>),
    request: &OwnedCommand,
) -> Handled {
    let name = match deleted(topics, locks, store, request) {
        Ok(Some(name)) => name,
        Ok(None) => {
            return Reply { remark: Some("there was no such topic".to_owned()), ..Reply::ok() }.into();
        }
        Err(refused) => return refused.into(),
    };
    // What groups have popped from it and not acknowledged goes with it.
    let mut names = pops.retry_topics_of(&name);
    for retry in &names {
        if let Err(error) = topics.delete(retry.as_str())
            && !matches!(error, TopicError::NotExist(_))
        {
            return Reply::from(error).into();
        }
    }
    names.push(name);
    let (offsets, pops) = (Arc::clone(offsets), Arc::clone(pops));
    let (store, polls) = (Arc::clone(store), Arc::clone(polls));
    Handled::later(async move {
        for name in names {
            if let Err(refused) = forget(&offsets, &pops, &store, &polls, name).await {
                return refused;
            }
        }
        Reply::ok()
    })
}

/// Forgets what is kept of a topic that was deleted.
async fn forget(
    offsets: &Offsets,
    pops: &Pops,
    store: &Arc<Store>,
    polls: &Polls,
    name: TopicName,
) -> Result<(), Reply> {
    pops.remove_topic(&name).await?;
    offsets.remove_topic(&name).await?;
    // What was sent to the topic is listed first: listed later, it would be in a queue made anew.
    store.write_through();
    store.drive();
    store.dispatched(store.max_offset()).await.map_err(CommitError::from)?;
    let queues = store.topic_queues(name.as_str());
    let blocking = Arc::clone(store);
    let removed = tokio::task::spawn_blocking(move || blocking.remove_topic(name.as_str())).await;
    for queue in queues {
        polls.wake_all(&(queue.topic().clone(), queue.id()));
    }
    removed.map_err(std::io::Error::other).and_then(|removed| removed).map_err(|error| {
        let why = format!("the topic is deleted, but not the files of its queues: {error}");
        Reply::refused(ResponseCode::SystemError, why)
    })
}

/// The topic whose queues are to go. One that is not known, but has messages, is what a deletion leaves that a kill
/// broke off.
fn deleted(
    topics: &Topics,
    locks: &Locks,
    store: &Store,
    request: &OwnedCommand,
) -> Result<Option<TopicName>, Reply> {
    let header: TopicHeader = request.header()?;
    let Some(topic) = topics.get(&header.topic) else {
        return if topics.is_system(&header.topic) {
            Err(TopicError::System(header.topic).into())
        } else {
            let left = store.topic_queues(&header.topic);
            Ok(left.iter().find(|queue| !queue.is_empty()).map(|queue| queue.topic().clone()))
        };
    };
    topics.delete(&header.topic)?;
    locks.remove_topic(&header.topic);
    Ok(Some(topic.name.clone()))
}

/// Code 21: all topics, or the page that the request names.
pub fn all(topics: &Topics, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: GetAllTopicConfigHeader = request.header()?;
        let mut body = topics.table();
        let all = std::mem::take(&mut body.topic_config_table);
        let total = all.len();
        body.topic_config_table = page(all, header.topic_seq, header.max_topic_num).collect();
        body.mapping_data_version.get_or_insert(body.data_version);
        body.topic_queue_mapping_detail_map.get_or_insert_default();
        body.topic_queue_mapping_info_map.get_or_insert_default();
        let total_topic_num = Some(i32::try_from(total).unwrap_or(i32::MAX));
        Ok(Reply::header(&GetAllTopicConfigResponse { total_topic_num }).with_body(body.to_json()))
    })
}

/// The entries from number `from` on, at most `count`; all of them when the request names no page.
pub(super) fn page<T: IntoIterator>(
    all: T,
    from: Option<i32>,
    count: Option<i32>,
) -> impl Iterator<Item = T::Item> {
    let number = |raw: i32| usize::try_from(raw).unwrap_or(0);
    let (skip, take) = match from {
        Some(from) => (number(from), count.map_or(PAGE_MAX, number).min(PAGE_MAX)),
        None => (0, usize::MAX),
    };
    all.into_iter().skip(skip).take(take)
}

/// Code 305.
pub fn system_topics(topics: &Topics) -> Reply {
    Reply::body(TopicList { broker_addr: None, topic_list: topics.system_names() }.to_json())
}

/// Code 351.
pub fn get(topics: &Topics, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: GetTopicConfigHeader = request.header()?;
        Ok(Reply::body(known_topic(topics, &header.topic)?.config.to_json()))
    })
}

/// Code 202: the ends of the topic's queues and the time of their last messages.
pub fn stats(topics: &Topics, store: &Store, broker: &str, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: TopicHeader = request.header()?;
        let topic = known_topic(topics, &header.topic)?;
        let mut body = TopicStatsTable::default();
        for id in 0..topic.read_queues().max(topic.write_queues()) {
            let queue = store.find_queue(topic.name.as_str(), QueueId::new(id));
            let offset = queue.map_or_else(TopicOffset::default, |queue| TopicOffset {
                last_update_timestamp: last_stored(store, &queue).map_or(0, Millis::get),
                max_offset: queue.max().to_wire(),
                min_offset: queue.min().to_wire(),
            });
            let key = MessageQueue {
                broker_name: broker.to_owned(),
                queue_id: QueueId::new(id).to_wire(),
                topic: topic.name.to_string(),
            };
            body.offset_table.insert(key, offset);
        }
        Ok(Reply::body(body.to_json()))
    })
}

/// When the newest message of a queue was stored.
fn last_stored(store: &Store, queue: &Queue) -> Option<Millis> {
    store.store_time(&queue.entry(queue.max().back(1))?)
}

/// Code 300: groups that are online with a subscription, or have an offset.
pub fn consumers(members: &Members, offsets: &Offsets, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: TopicHeader = request.header()?;
        let mut groups: BTreeSet<GroupName> = members.groups_subscribing(&header.topic);
        let owner =
            |name: GroupName| name.broadcast_member().map_or_else(|| name.clone(), |(group, _)| group);
        groups.extend(offsets.groups_of_topic(&header.topic).into_iter().map(owner));
        let group_list = groups.iter().map(GroupName::to_string).collect();
        Ok(Reply::body(GroupList { group_list }.to_json()))
    })
}

#[cfg(test)]
#[path = "topic_tests.rs"]
mod tests;
