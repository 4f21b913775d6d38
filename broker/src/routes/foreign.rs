//! Brokers that other processes are: they registered here, and are believed as long as they are heard.

use std::collections::{BTreeMap, BTreeSet};

use gantry_proto::ids::Millis;
use gantry_proto::remoting::body::route::{BrokerData, MASTER_ID, QueueData, RouteData};
use gantry_proto::remoting::body::topic::DataVersion;

use super::registration::{Inventory, TopicQueues};

/// Silence after which a broker that named no time of its own counts as gone, in milliseconds.
pub const TIMEOUT_MS: u64 = 120_000;
/// Brokers that may be registered, each replica by itself.
pub const BROKERS_MAX: usize = 256;
/// Topics that may be registered, each broker's by itself.
pub const TOPICS_MAX: usize = 500_000;
/// Bytes of a broker's, cluster's or topic's name, and of an address, at the most.
pub const NAME_BYTES_MAX: usize = 255;
/// Permission to write, in a topic's bits.
pub const PERM_WRITE: i32 = 2;

/// Who a registering broker is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BrokerIdentity {
    /// Its cluster.
    pub cluster: String,
    /// Its name, shared by all replicas.
    pub name: String,
    /// Which replica; 0 is the master.
    pub id: i64,
    /// Where clients reach it, `host:port`.
    pub address: String,
}

/// Everything a broker says when it registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// Who it is.
    pub broker: BrokerIdentity,
    /// Where its replicas reach it.
    pub ha_address: String,
    /// Silence after which it counts as gone, in milliseconds; `None`: [`TIMEOUT_MS`].
    pub timeout_ms: Option<u64>,
    /// Whether the smallest replica stands in for a lost master; old brokers do not say.
    pub acting_master: Option<bool>,
    /// Its zone.
    pub zone: Option<String>,
    /// The connection it came by: when that closes, the broker is gone.
    pub connection: u64,
    /// What it has.
    pub inventory: Inventory,
}

/// What a replica is told about its master.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registered {
    /// Where replicas reach the master.
    pub ha_address: Option<String>,
    /// Where clients reach the master.
    pub master_address: Option<String>,
}

/// Why a broker was not registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// A missing or overlong name.
    #[error("{what} has {len} bytes; it must have 1 to {NAME_BYTES_MAX}")]
    Name {
        /// Which one.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
    },
    /// It calls itself what this broker is called.
    #[error("the broker at {address} is called {name}, and so is this one: give it another brokerName")]
    OwnName {
        /// Its name.
        name: String,
        /// Its address.
        address: String,
    },
    /// One topic from a broker that is not known: the rest would be missing.
    #[error(
        "broker {id} of {name} is not registered and sends one topic only: register all of its topics first"
    )]
    OneTopic {
        /// Its name.
        name: String,
        /// Which replica.
        id: i64,
    },
    /// A topic for a broker that is not registered here.
    #[error("no broker named {name} is registered: let it register first, or declare the topic with it")]
    NoBroker {
        /// Its name.
        name: String,
    },
    /// Too many brokers.
    #[error("{BROKERS_MAX} brokers are registered, which is the limit: unregister some first")]
    Brokers,
    /// Too many topics.
    #[error("there would be {topics} topics of other brokers; the limit is {TOPICS_MAX}: delete some first")]
    Topics {
        /// Topics there would be.
        topics: usize,
    },
}

#[derive(Debug)]
struct Member {
    address: String,
    ha_address: String,
    version: DataVersion,
    heard_at: Millis,
    timeout_ms: u64,
    connection: u64,
}

/// The replicas of one name.
#[derive(Debug, Default)]
struct BrokerSet {
    cluster: String,
    acting_master: bool,
    zone: Option<String>,
    members: BTreeMap<i64, Member>,
    topics: BTreeMap<String, TopicQueues>,
    /// An operator took the write permission from all topics.
    wiped: bool,
}

impl BrokerSet {
    fn data(&self, name: &str) -> BrokerData {
        BrokerData {
            broker_addrs: self.members.iter().map(|(id, member)| (*id, member.address.clone())).collect(),
            broker_name: name.to_owned(),
            cluster: self.cluster.clone(),
            enable_acting_master: self.acting_master,
            zone_name: self.zone.clone(),
        }
    }

    /// A stand-in for the master takes no messages.
    fn queues(&self, topic: &str) -> Option<TopicQueues> {
        let mut queues = *self.topics.get(topic)?;
        if self.wiped || (self.acting_master && !self.members.contains_key(&MASTER_ID)) {
            queues.perm &= !PERM_WRITE;
        }
        Some(queues)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Foreign {
    sets: BTreeMap<String, BrokerSet>,
}

impl Foreign {
    /// Takes a broker in, or what it says anew.
    pub(super) fn register(&mut self, new: Registration, now: Millis) -> Result<Registered, RegisterError> {
        let BrokerIdentity { cluster, name, id, address } = new.broker;
        for (what, text) in [("clusterName", &cluster), ("brokerName", &name), ("brokerAddr", &address)] {
            if !(1..=NAME_BYTES_MAX).contains(&text.len()) {
                return Err(RegisterError::Name { what, len: text.len() });
            }
        }
        let known = self.sets.get(&name).and_then(|set| set.members.get(&id));
        if known.is_none() && new.inventory.topics.len() == 1 {
            return Err(RegisterError::OneTopic { name, id });
        }
        if let Some(known) = known
            && known.address != address
            && known.version.state_version > new.inventory.version.state_version
        {
            tracing::warn!(
                broker = name,
                id,
                address,
                known = known.address,
                "an older broker has the same id; it is not registered"
            );
            return Ok(Registered::default());
        }
        self.check_room(&name, known.is_none(), &new.inventory)?;

        let set = self.sets.entry(name).or_default();
        set.cluster = cluster;
        set.acting_master = new.acting_master.unwrap_or(false);
        set.zone = new.zone.filter(|zone| zone.len() <= NAME_BYTES_MAX);
        // A replica that became the master leaves its old id.
        set.members.retain(|other, member| member.address != address || *other == id);
        let member = Member {
            address,
            ha_address: new.ha_address.chars().take(NAME_BYTES_MAX).collect(),
            version: new.inventory.version,
            heard_at: now,
            timeout_ms: new.timeout_ms.unwrap_or(TIMEOUT_MS),
            connection: new.connection,
        };
        set.members.insert(id, member);
        let stands_in = new.acting_master.is_some() && set.members.keys().next() == Some(&id);
        if id == MASTER_ID || stands_in {
            // What is not named is still there: brokers also register only what changed.
            set.topics.extend(new.inventory.topics.into_iter().filter(|(topic, _)| is_name(topic)));
        }
        Ok(set.members.get(&MASTER_ID).filter(|_| id != MASTER_ID).map_or_else(
            Registered::default,
            |master| Registered {
                ha_address: Some(master.ha_address.clone()),
                master_address: Some(master.address.clone()),
            },
        ))
    }

    fn check_room(&self, name: &str, is_new: bool, inventory: &Inventory) -> Result<(), RegisterError> {
        let brokers: usize = self.sets.values().map(|set| set.members.len()).sum();
        if is_new && brokers >= BROKERS_MAX {
            return Err(RegisterError::Brokers);
        }
        let set = self.sets.get(name);
        let new = inventory
            .topics
            .keys()
            .filter(|topic| is_name(topic) && set.is_none_or(|set| !set.topics.contains_key(topic.as_str())));
        let topics = self.sets.values().map(|set| set.topics.len()).sum::<usize>() + new.count();
        if topics > TOPICS_MAX { Err(RegisterError::Topics { topics }) } else { Ok(()) }
    }

    /// Forgets one replica.
    pub(super) fn unregister(&mut self, broker: &BrokerIdentity) {
        self.retain(|name, id, member| {
            name != broker.name || id != broker.id || member.address != broker.address
        });
    }

    /// Forgets every replica that came by `connection`.
    pub(super) fn connection_closed(&mut self, connection: u64) {
        self.retain(|_, _, member| member.connection != connection);
    }

    /// Forgets every replica that was silent for too long.
    pub(super) fn expire(&mut self, now: Millis) {
        self.retain(|_, _, member| now.since(member.heard_at) <= member.timeout_ms);
    }

    fn retain(&mut self, stays: impl Fn(&str, i64, &Member) -> bool) {
        self.sets.retain(|name, set| {
            set.members.retain(|id, member| {
                let stays = stays(name, *id, member);
                if !stays {
                    tracing::info!(
                        broker = name,
                        id,
                        address = member.address,
                        "a registered broker is gone"
                    );
                }
                stays
            });
            !set.members.is_empty()
        });
    }

    /// Notes that the broker at `address` lives; its version as it registered, if it did.
    pub(super) fn heard(&mut self, cluster: &str, address: &str, now: Millis) -> Option<DataVersion> {
        let sets = self.sets.values_mut().filter(|set| set.cluster == cluster);
        let mut members = sets.flat_map(|set| set.members.values_mut());
        let member = members.find(|member| member.address == address)?;
        member.heard_at = now;
        Some(member.version)
    }

    /// Forgets a topic on every broker, or on those of one cluster.
    pub(super) fn forget_topic(&mut self, topic: &str, cluster: Option<&str>) {
        for set in self.sets.values_mut() {
            if cluster.is_none_or(|cluster| set.cluster == cluster) {
                set.topics.remove(topic);
            }
        }
    }

    /// Adds a topic to brokers that are here.
    pub(super) fn add_topic(&mut self, topic: &str, queues: &[QueueData]) -> Result<(), RegisterError> {
        if !is_name(topic) {
            return Err(RegisterError::Name { what: "topic", len: topic.len() });
        }
        if let Some(none) = queues.iter().find(|data| !self.sets.contains_key(&data.broker_name)) {
            let name = none.broker_name.chars().take(NAME_BYTES_MAX).collect();
            return Err(RegisterError::NoBroker { name });
        }
        let topics = self.sets.values().map(|set| set.topics.len()).sum::<usize>() + queues.len();
        if topics > TOPICS_MAX {
            return Err(RegisterError::Topics { topics });
        }
        for data in queues {
            if let Some(set) = self.sets.get_mut(&data.broker_name) {
                set.topics.insert(topic.to_owned(), TopicQueues::from(data));
            }
        }
        Ok(())
    }

    /// Takes or gives back the write permission of all topics; how many there are.
    pub(super) fn set_wiped(&mut self, broker: &str, wiped: bool) -> usize {
        let Some(set) = self.sets.get_mut(broker) else { return 0 };
        set.wiped = wiped;
        set.topics.len()
    }

    /// Adds the brokers that have the topic.
    pub(super) fn add_route(&self, topic: &str, route: &mut RouteData) {
        for (name, set) in &self.sets {
            if let Some(queues) = set.queues(topic) {
                route.queue_datas.push(queues.on(name));
                route.broker_datas.push(set.data(name));
            }
        }
    }

    /// Every broker.
    pub(super) fn brokers(&self) -> impl Iterator<Item = BrokerData> {
        self.sets.iter().map(|(name, set)| set.data(name))
    }

    /// Adds the topics of one cluster, or of all, that `wanted` picks.
    pub(super) fn add_topics(
        &self,
        cluster: Option<&str>,
        wanted: impl Fn(TopicQueues) -> bool,
        out: &mut BTreeSet<String>,
    ) {
        for set in self.sets.values().filter(|set| cluster.is_none_or(|cluster| set.cluster == cluster)) {
            let topics = set.topics.iter().filter(|(_, queues)| wanted(**queues));
            out.extend(topics.map(|(topic, _)| topic.clone()));
        }
    }
}

fn is_name(topic: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&topic.len())
}
