//! Members of one group that do not subscribe alike: who wants what.

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_proto::names::TopicName;
use gantry_proto::remoting::body::heartbeat::SubscriptionData;

use super::Members;

/// Topics and members of one group that are told of.
const TOLD_MAX: usize = 64;

/// What each member wants of a topic, by client id; `None` is nothing.
pub type Wishes = BTreeMap<Arc<str>, Option<Arc<SubscriptionData>>>;

impl Members {
    /// What the member behind a connection itself subscribes to; `None` when no member of the group is there, or
    /// several who want different things.
    pub fn own(&self, group: &str, topic: &str, connection: u64) -> Option<Arc<SubscriptionData>> {
        let table = self.lock();
        let members = table.consumers.get(group)?.members.values();
        let mut own = members
            .filter(|member| member.peer.connection == connection)
            .map(|member| member.subscriptions.get(topic));
        let first = own.next()??;
        own.all(|other| other == Some(first)).then(|| Arc::clone(first))
    }

    /// The topics to which members of a group do not subscribe alike, with what each wants. A group of very many
    /// is told in part.
    pub fn conflicts(&self, group: &str) -> BTreeMap<TopicName, Wishes> {
        let table = self.lock();
        let Some(group) = table.consumers.get(group) else { return BTreeMap::new() };
        let wishes = |topic: &TopicName| {
            let members = group.members.iter().take(TOLD_MAX);
            members.map(|(id, member)| (Arc::clone(id), member.subscriptions.get(topic).cloned())).collect()
        };
        group.conflicts.iter().take(TOLD_MAX).map(|topic| (topic.clone(), wishes(topic))).collect()
    }
}
