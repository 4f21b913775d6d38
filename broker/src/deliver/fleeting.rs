//! What is kept of groups for a time only: everything of groups that are not durable, and the offsets of members that broadcast.
//!
//! A group with `gantry.durable=false` has offsets, popped messages and locks while it has members, and for `gantry.grace` after the last
//! one left; a start of the broker counts as the moment when they left. The offsets of a member that broadcasts go when it was not
//! heard of for `gantry.broadcast.expire`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use gantry_proto::ids::Millis;
use gantry_proto::names::GroupName;

use super::pop::{PopError, Pops};
use crate::clock::Clock;
use crate::groups::attributes::Settings;
use crate::groups::locks::Locks;
use crate::groups::members::Members;
use crate::groups::offsets::{CommitError, Offsets};
use crate::groups::{Group, Groups};

/// Removes what is kept for a time only when that is over.
#[derive(Debug)]
pub struct Fleeting {
    /// The groups.
    pub groups: Arc<Groups>,
    /// Who is online.
    pub members: Arc<Members>,
    /// What is removed.
    pub offsets: Arc<Offsets>,
    /// What is removed.
    pub pops: Arc<Pops>,
    /// What is removed.
    pub locks: Arc<Locks>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Since when groups that are not durable have had no members.
    pub gone_since: HashMap<GroupName, Millis>,
}

/// Why something could not be removed. It is tried again.
#[derive(Debug, thiserror::Error)]
enum RemoveError {
    #[error(transparent)]
    Offsets(#[from] CommitError),
    #[error(transparent)]
    Pops(#[from] PopError),
}

impl Fleeting {
    /// Removes what is over. To be called every ten seconds or so.
    pub async fn sweep(&mut self) {
        let now = self.clock.now();
        for group in self.abandoned(now) {
            match self.forget(&group.name).await {
                Ok(()) => {
                    tracing::info!(group = %group.name, "the group is not durable and has no members: its offsets are forgotten");
                }
                Err(error) => {
                    tracing::error!(group = %group.name, %error, "a group that is not durable cannot be forgotten; it is tried again");
                }
            }
        }
        for name in self.silent(now) {
            match self.offsets.remove_group(&name).await {
                Ok(()) => {
                    tracing::info!(member = %name, "the member was not heard of for long: its offsets are forgotten");
                    self.groups.broadcasts().remove(&name);
                }
                Err(error) => {
                    tracing::error!(member = %name, %error, "the offsets of a member cannot be forgotten; it is tried again");
                }
            }
        }
        let groups = Arc::clone(&self.groups);
        let saved = tokio::task::spawn_blocking(move || groups.broadcasts().save(now)).await;
        if let Ok(Err(error)) = saved {
            tracing::error!(%error, "cannot write gantryBroadcast.json; offsets of members that stay away are kept longer");
        }
    }

    /// Groups that are not durable, of which something is kept, and whose last member left long enough ago.
    fn abandoned(&mut self, now: Millis) -> Vec<Arc<Group>> {
        let mut groups = self.groups.fleeting();
        groups.retain(|group| !self.members.is_online(group.name.as_str()));
        let offline: HashSet<_> = groups.iter().map(|group| &group.name).collect();
        self.gone_since.retain(|name, _| offline.contains(name));
        groups.retain(|group| {
            let since = *self.gone_since.entry(group.name.clone()).or_insert(now);
            // A clock that went back begins anew.
            if now < since {
                self.gone_since.insert(group.name.clone(), now);
            }
            let is_over = u128::from(now.since(since)) >= group.settings.grace.as_millis();
            is_over && self.has_traces(&group.name)
        });
        groups
    }

    fn has_traces(&self, group: &GroupName) -> bool {
        self.pops.knows_group(group) || !self.offsets.topics_of_group(group.as_str()).is_empty()
    }

    async fn forget(&self, group: &GroupName) -> Result<(), RemoveError> {
        self.locks.remove_group(group.as_str());
        self.pops.remove_group(group).await?;
        Ok(self.offsets.remove_group(group).await?)
    }

    /// Members that broadcast, and were not heard of for as long as their group says.
    fn silent(&self, now: Millis) -> Vec<GroupName> {
        self.groups.broadcasts().gone(|name, seen| {
            let owner = name.broadcast_member().and_then(|(group, _)| self.groups.get(group.as_str()));
            let settings = owner.map_or_else(Settings::default, |owner| owner.settings.clone());
            u128::from(now.since(seen)) >= settings.broadcast_expiry.as_millis()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use gantry_proto::ids::{QueueId, QueueOffset};
    use gantry_proto::names::TopicName;
    use gantry_proto::remoting::body::group::SubscriptionGroupConfig;
    use gantry_proto::remoting::body::heartbeat::ConsumerData;
    use gantry_proto::remoting::codes::Language;

    use super::*;
    use crate::fixture::World;
    use crate::groups::members::{Peer, Subscriptions};
    use crate::groups::offsets::Key;

    const HOUR_MS: u64 = 3_600_000;

    fn fleeting(world: &World) -> Fleeting {
        Fleeting {
            groups: Arc::clone(&world.groups),
            members: Arc::clone(&world.members),
            offsets: Arc::clone(&world.offsets),
            pops: Arc::clone(&world.pops),
            locks: Arc::clone(&world.locks),
            clock: world.clock.clone(),
            gone_since: HashMap::new(),
        }
    }

    fn declare(world: &World, group: &str, attributes: &[(&str, &str)]) {
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let config = SubscriptionGroupConfig {
            group_name: group.to_owned(),
            attributes: attributes.collect(),
            ..SubscriptionGroupConfig::default()
        };
        world.groups.declare(config).unwrap();
    }

    async fn commit(world: &World, group: &GroupName) {
        let key = Key { group: group.clone(), topic: TopicName::internal("T"), queue: QueueId::ZERO };
        world.offsets.commit(key, QueueOffset::new(1)).await.unwrap();
    }

    async fn world() -> World {
        let world = World::new();
        world.topic("T", 1);
        world.send("T", 0, 3).await;
        world
    }

    #[tokio::test]
    async fn a_group_that_is_not_durable_is_forgotten_when_its_grace_is_over() {
        let world = world().await;
        let mut fleeting = fleeting(&world);
        declare(&world, "g", &[("gantry.durable", "false"), ("gantry.grace", "30s")]);
        let group = GroupName::internal("g");
        let (outbox, _inbox) = Peer::outbox();
        let address = SocketAddr::from(([192, 0, 2, 1], 4000));
        let peer = Arc::new(Peer::new(1, address, "client", (Language::Java, 513), outbox));
        let data = ConsumerData { group_name: "g".to_owned(), ..ConsumerData::default() };
        let join =
            || world.members.register_consumer(&group, &peer, &data, Subscriptions::Listed, true).unwrap();
        let mut sweep_after = async |ms: u64| {
            world.clock.advance(ms);
            fleeting.sweep().await;
            world.offsets.topics_of_group("g").len()
        };
        join();
        commit(&world, &group).await;
        assert_eq!(sweep_after(HOUR_MS).await, 1, "it has a member");
        world.members.unregister("client", None, Some("g"));
        assert_eq!(sweep_after(10_000).await, 1, "now it has been gone for no time");
        join();
        assert_eq!(sweep_after(30_000).await, 1, "it came back");
        world.members.unregister("client", None, Some("g"));
        assert_eq!(sweep_after(10_000).await, 1);
        assert_eq!(sweep_after(29_999).await, 1);
        assert_eq!(sweep_after(1).await, 0);
        // What is committed without a heartbeat is not kept either.
        commit(&world, &group).await;
        assert_eq!(sweep_after(0).await, 0);
        assert!(world.groups.get("g").is_some(), "the group itself stays");
    }

    #[tokio::test]
    async fn offsets_of_a_member_that_broadcasts_go_when_it_was_silent_for_long() {
        let world = world().await;
        let mut fleeting = fleeting(&world);
        declare(&world, "g", &[("gantry.broadcast.offsets", "broker"), ("gantry.broadcast.expire", "1h")]);
        let name = |member: &str| GroupName::broadcaster(&GroupName::internal("g"), member).unwrap();
        for member in ["a", "b"] {
            let name = world.groups.keeper_of_offsets(name(member).as_str()).unwrap();
            commit(&world, &name).await;
        }
        world.clock.advance(HOUR_MS - 1);
        fleeting.sweep().await;
        assert_eq!(world.groups.broadcasts().of_group("g").len(), 2);
        world.groups.keeper_of_offsets(name("b").as_str()).unwrap();
        world.clock.advance(1);
        fleeting.sweep().await;
        let left: Vec<_> =
            world.groups.broadcasts().of_group("g").into_iter().map(|(name, _)| name).collect();
        assert_eq!(left, [name("b")]);
        assert_eq!(world.offsets.broadcasters(), [name("b")]);
    }

    #[test]
    fn who_may_keep_offsets_is_told() {
        let world = World::new();
        declare(&world, "g", &[]);
        let refused = |name: &str| world.groups.keeper_of_offsets(name).unwrap_err().to_string();
        assert!(refused("%BROADCAST%g%m").contains("gantry.broadcast.offsets=broker"));
        assert!(refused("%BROADCAST%unknown%m").contains("does not exist"));
        assert_eq!(world.groups.keeper_of_offsets("g").unwrap(), "g");
    }
}
