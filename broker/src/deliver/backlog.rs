//! What groups have not consumed yet: what holds a broker that is to go off line.

use std::collections::BTreeSet;

use gantry_proto::ids::QueueId;
use gantry_proto::names::{GroupName, TopicKind, TopicName};
use gantry_proto::remoting::body::heartbeat::MessageModel;

use crate::groups::Groups;
use crate::groups::members::{Consumers, Members};
use crate::groups::offsets::Offsets;
use crate::store::Store;
use crate::topics::Topics;

/// Groups and topics that one look lists; the others are counted.
pub const LISTED_MAX: usize = 100;

/// What is not consumed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Groups that are behind, the furthest first.
    pub groups: Vec<Behind>,
    /// How many more are.
    pub more: usize,
}

/// A group that has not consumed all of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Behind {
    /// The group.
    pub group: GroupName,
    /// The topic.
    pub topic: TopicName,
    /// Messages it has not consumed.
    pub messages: u64,
    /// Members that are online.
    pub members: usize,
}

/// Whom a look asks.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// The queues.
    pub store: &'a Store,
    /// Topics.
    pub topics: &'a Topics,
    /// Groups.
    pub groups: &'a Groups,
    /// Who is online.
    pub members: &'a Members,
    /// How far groups are.
    pub offsets: &'a Offsets,
}

/// Looks at all groups: of those that are online at what they subscribe to, of the others at where they have offsets.
/// Broadcasting groups keep their offsets themselves, and hold nobody.
pub fn measure(from: &Sources<'_>) -> Backlog {
    let mut names: BTreeSet<GroupName> = from.members.consumer_groups();
    names.extend(from.groups.all().into_iter().map(|group| group.name.clone()));
    let mut groups = Vec::new();
    for name in names.into_iter().filter(|name| !name.is_system()) {
        let online = from.members.consumer_group(name.as_str());
        if online.as_ref().is_some_and(|group| group.consumption.model == MessageModel::Broadcasting) {
            continue;
        }
        let members = online.as_ref().map_or(0, |group| group.members.len());
        for topic in topics(from, &name, online.as_ref()) {
            let messages = behind(from, &name, &topic);
            if messages > 0 {
                groups.push(Behind { group: name.clone(), topic, messages, members });
            }
        }
    }
    groups.sort_by(|a, b| b.messages.cmp(&a.messages).then_with(|| a.group.cmp(&b.group)));
    let more = groups.len().saturating_sub(LISTED_MAX);
    groups.truncate(LISTED_MAX);
    Backlog { groups, more }
}

/// The topics that a group consumes.
fn topics(from: &Sources<'_>, group: &GroupName, online: Option<&Consumers>) -> BTreeSet<TopicName> {
    let mut topics: BTreeSet<TopicName> = from.offsets.topics_of_group(group.as_str()).into_iter().collect();
    if let Some(online) = online {
        // What it subscribed to before and no longer does nobody will take. Retry topics of popping groups are in no
        // subscription.
        topics.retain(|topic| topic.kind() == TopicKind::Retry || online.subscriptions.contains_key(topic));
        topics.extend(online.subscriptions.keys().cloned());
    }
    topics
}

fn behind(from: &Sources<'_>, group: &GroupName, topic: &TopicName) -> u64 {
    let Some(known) = from.topics.get(topic.as_str()) else { return 0 };
    let queues = (0..known.read_queues()).map(QueueId::new);
    let of_queue = |id| {
        let queue = from.store.find_queue(topic.as_str(), id)?;
        // Of a queue in which it has no offset it has not consumed anything yet.
        let known = from.offsets.get(group.as_str(), topic.as_str(), id).unwrap_or_default();
        let at = known.max(queue.min());
        Some(queue.max().since(at))
    };
    queues.filter_map(of_queue).sum()
}

#[cfg(test)]
mod tests {
    use gantry_proto::ids::QueueOffset;

    use super::*;
    use crate::fixture::World;
    use crate::groups::offsets::Key;

    fn look(world: &World) -> Vec<(String, String, u64, usize)> {
        let found = measure(&Sources {
            store: &world.store,
            topics: &world.topics,
            groups: &world.groups,
            members: &world.members,
            offsets: &world.offsets,
        });
        assert_eq!(found.more, 0);
        let line = |of: Behind| (of.group.to_string(), of.topic.to_string(), of.messages, of.members);
        found.groups.into_iter().map(line).collect()
    }

    async fn commit(world: &World, group: &str, topic: &str, queue: u32, offset: u64) {
        world.groups.get_or_create(group).unwrap();
        let key = Key {
            group: GroupName::internal(group),
            topic: TopicName::internal(topic),
            queue: QueueId::new(queue),
        };
        world.offsets.commit(key, QueueOffset::new(offset)).await.unwrap();
    }

    #[tokio::test]
    async fn groups_are_behind_by_what_they_have_not_consumed() {
        let world = World::new();
        world.topic("T", 2);
        world.topic("%RETRY%one", 1);
        for (topic, queue) in [("T", 0), ("T", 1), ("%RETRY%one", 0)] {
            world.send(topic, queue, 5).await;
        }
        assert_eq!(look(&world), []);
        commit(&world, "one", "T", 0, 5).await;
        commit(&world, "one", "T", 1, 3).await;
        commit(&world, "two", "T", 0, 0).await;
        commit(&world, "CID_RMQ_SYS_TRANS", "T", 0, 0).await;
        commit(&world, "one", "%RETRY%one", 0, 1).await;
        let text = |group: &str, topic: &str, messages| (group.to_owned(), topic.to_owned(), messages, 0);
        assert_eq!(look(&world), [text("two", "T", 10), text("one", "%RETRY%one", 4), text("one", "T", 2)]);
        commit(&world, "two", "T", 0, 5).await;
        commit(&world, "two", "T", 1, 5).await;
        commit(&world, "one", "T", 1, 5).await;
        commit(&world, "one", "%RETRY%one", 0, 5).await;
        assert_eq!(look(&world), []);
    }
}
