//! Where the queues of a topic are: this broker, and the brokers that registered here.
//!
//! The broker is its own name server. What it has itself is looked up when a client asks, so it is never
//! stale; what other brokers have is what they registered ([`foreign`]), kept in memory only and for as
//! long as they are heard. The key-value configuration ([`kv`]) is the one thing that is stored.

pub mod answer;
pub mod drain;
pub mod foreign;
pub mod kv;
pub mod registration;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_proto::remoting::body::cluster::{BrokerMemberGroup, ClusterInfo};
use gantry_proto::remoting::body::route::{BrokerData, QueueData, RouteData};
use gantry_proto::remoting::body::topic::DataVersion;

use crate::clock::Clock;
use crate::config::NodeConfig;
use crate::topics::Topics;
pub use answer::OwnBroker;
pub use drain::{Drain, Phase};
pub use foreign::{BrokerIdentity, RegisterError, Registered, Registration};
use foreign::{Foreign, PERM_WRITE};
pub use kv::KvConfig;
pub use registration::{Inventory, TopicQueues};

/// What knows the brokers of a deployment and their topics. A trait because there will be two: the
/// embedded one, and one that several brokers share.
///
/// `reached` is the address under which the asking client reached the name service.
pub trait Registry: Send + Sync + fmt::Debug {
    /// Takes a broker in, or what it says anew.
    fn register(&self, registration: Registration) -> Result<Registered, RegisterError>;

    /// Forgets a broker; it may be unknown.
    fn unregister(&self, broker: &BrokerIdentity);

    /// Notes that the broker at `address` lives. The version of its topics as it registered them;
    /// `None` when it is not registered.
    fn heard(&self, cluster: &str, address: &str) -> Option<DataVersion>;

    /// Forgets the brokers that registered over this connection.
    fn connection_closed(&self, connection: u64);

    /// The brokers and queues of a topic; `None` when no broker has it.
    fn route(&self, topic: &str, reached: SocketAddr) -> Option<RouteData>;

    /// Every broker, and the names in each cluster.
    fn cluster_info(&self, reached: SocketAddr) -> ClusterInfo;

    /// The replicas of one name in a cluster.
    fn members(&self, cluster: &str, broker: &str, reached: SocketAddr) -> BrokerMemberGroup;

    /// Topics of one cluster, or of all, that `wanted` picks.
    fn topics(&self, cluster: Option<&str>, wanted: &dyn Fn(TopicQueues) -> bool) -> BTreeSet<String>;

    /// Adds a topic to brokers that are registered. What this broker has is declared with itself.
    fn add_topic(&self, topic: &str, queues: &[QueueData]) -> Result<(), RegisterError>;

    /// Forgets a topic of other brokers, in one cluster or in all. What this broker has itself stays:
    /// it is in its routes until it is deleted here.
    fn forget_topic(&self, topic: &str, cluster: Option<&str>);

    /// Takes the write permission from all topics of a broker, or gives it back; how many topics it has.
    /// Holds until it is given back or the broker leaves. Only routes change: a broker that is sent a
    /// message all the same decides by its own configuration.
    fn set_wiped(&self, broker: &str, wiped: bool) -> usize;
}

/// The topics of this broker, as routes need them.
pub trait OwnTopics: Send + Sync + fmt::Debug {
    /// The queues of one topic.
    fn find(&self, topic: &str) -> Option<TopicQueues>;

    /// Every topic.
    fn all(&self) -> Vec<(String, TopicQueues)>;
}

impl OwnTopics for Topics {
    fn find(&self, topic: &str) -> Option<TopicQueues> {
        self.get(topic).map(|topic| TopicQueues::from(&topic.config))
    }

    fn all(&self) -> Vec<(String, TopicQueues)> {
        let all = Topics::all(self).into_iter();
        all.map(|topic| (topic.name.to_string(), TopicQueues::from(&topic.config))).collect()
    }
}

/// The registry inside this process.
#[derive(Debug)]
pub struct Embedded {
    own: OwnBroker,
    topics: Arc<dyn OwnTopics>,
    kv: KvConfig,
    drain: Arc<Drain>,
    clock: Arc<dyn Clock>,
    /// Other brokers. Held for map operations only.
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    foreign: Foreign,
    /// An operator took the write permission from all topics of this broker.
    own_wiped: bool,
}

impl Embedded {
    /// Knows this broker only.
    pub fn new(
        own: OwnBroker,
        topics: Arc<dyn OwnTopics>,
        kv: KvConfig,
        drain: Arc<Drain>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { own, topics, kv, drain, clock, table: Mutex::default() }
    }

    /// Knows the broker that `node` describes, listening on `port`; its pairs are in `config_dir`.
    pub fn open(
        config_dir: &Path,
        node: &NodeConfig,
        port: u16,
        topics: Arc<dyn OwnTopics>,
        drain: Arc<Drain>,
        clock: Arc<dyn Clock>,
    ) -> io::Result<Self> {
        Ok(Self::new(OwnBroker::new(node, port), topics, KvConfig::open(config_dir)?, drain, clock))
    }

    /// This broker.
    pub fn own(&self) -> &OwnBroker {
        &self.own
    }

    /// The key-value configuration.
    pub fn kv(&self) -> &KvConfig {
        &self.kv
    }

    /// The table without the brokers that fell silent. They are few: looking at all of them each time
    /// is cheaper than a task that does.
    fn table(&self) -> MutexGuard<'_, Table> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.foreign.expire(self.clock.now());
        table
    }
}

impl Registry for Embedded {
    fn register(&self, registration: Registration) -> Result<Registered, RegisterError> {
        let BrokerIdentity { name, address, .. } = &registration.broker;
        if name == self.own.name() {
            return Err(RegisterError::OwnName { name: name.clone(), address: address.clone() });
        }
        self.table().foreign.register(registration, self.clock.now())
    }

    fn unregister(&self, broker: &BrokerIdentity) {
        self.table().foreign.unregister(broker);
    }

    fn heard(&self, cluster: &str, address: &str) -> Option<DataVersion> {
        self.table().foreign.heard(cluster, address, self.clock.now())
    }

    fn connection_closed(&self, connection: u64) {
        self.table().foreign.connection_closed(connection);
    }

    fn route(&self, topic: &str, reached: SocketAddr) -> Option<RouteData> {
        let own = self.topics.find(topic).filter(|_| self.drain.is_routed());
        let mut route = RouteData::default();
        {
            let table = self.table();
            if let Some(mut queues) = own {
                queues.perm = self.drain.perm(queues.perm);
                if table.own_wiped {
                    queues.perm &= !PERM_WRITE;
                }
                route.queue_datas.push(queues.on(self.own.name()));
                route.broker_datas.push(self.own.data(reached));
            }
            table.foreign.add_route(topic, &mut route);
        }
        if route.queue_datas.is_empty() {
            return None;
        }
        route.order_topic_conf = self.kv.get(kv::ORDER_TOPIC_CONFIG, topic);
        Some(route)
    }

    fn cluster_info(&self, reached: SocketAddr) -> ClusterInfo {
        let mut info = ClusterInfo::default();
        let mut add = |data: BrokerData| {
            let names: &mut BTreeSet<_> = info.cluster_addr_table.entry(data.cluster.clone()).or_default();
            names.insert(data.broker_name.clone());
            info.broker_addr_table.insert(data.broker_name.clone(), data);
        };
        add(self.own.data(reached));
        self.table().foreign.brokers().for_each(add);
        info
    }

    fn members(&self, cluster: &str, broker: &str, reached: SocketAddr) -> BrokerMemberGroup {
        let known = self.cluster_info(reached).broker_addr_table.remove(broker);
        BrokerMemberGroup {
            broker_addrs: known
                .filter(|data| data.cluster == cluster)
                .map_or_else(BTreeMap::new, |data| data.broker_addrs),
            broker_name: broker.to_owned(),
            cluster: cluster.to_owned(),
        }
    }

    fn topics(&self, cluster: Option<&str>, wanted: &dyn Fn(TopicQueues) -> bool) -> BTreeSet<String> {
        let mut topics = BTreeSet::new();
        if cluster.is_none_or(|cluster| cluster == self.own.cluster()) {
            let own = self.topics.all().into_iter().filter(|(_, queues)| wanted(*queues));
            topics.extend(own.map(|(topic, _)| topic));
        }
        self.table().foreign.add_topics(cluster, wanted, &mut topics);
        topics
    }

    fn add_topic(&self, topic: &str, queues: &[QueueData]) -> Result<(), RegisterError> {
        self.table().foreign.add_topic(topic, queues)
    }

    fn forget_topic(&self, topic: &str, cluster: Option<&str>) {
        self.table().foreign.forget_topic(topic, cluster);
    }

    fn set_wiped(&self, broker: &str, wiped: bool) -> usize {
        if broker == self.own.name() {
            self.table().own_wiped = wiped;
            return self.topics.all().len();
        }
        self.table().foreign.set_wiped(broker, wiped)
    }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
