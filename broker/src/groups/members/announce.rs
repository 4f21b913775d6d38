//! Something that members of groups should look at again, although no member came or went.

use gantry_proto::names::TopicName;

use super::Members;

impl Members {
    /// Tells the members of all groups that subscribe to the topic to look at its queues again.
    pub fn announce(&self, topic: &TopicName) {
        let told: Vec<_> = {
            let table = self.lock();
            let subscribing =
                table.consumers.iter().filter(|(_, group)| group.effective.contains_key(topic.as_str()));
            let peers = subscribing.map(|(name, group)| {
                (name.clone(), group.members.values().map(|member| member.peer.clone()).collect::<Vec<_>>())
            });
            peers.collect()
        };
        for (group, peers) in told {
            self.tell(&group, &peers);
        }
    }
}
