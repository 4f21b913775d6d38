//! A registry for tests: broker `broker-a` with the topics that the test names.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::*;
use crate::clock::ManualClock;

/// Where clients of the tests reach the name service.
pub const REACHED: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9876);

/// Topics that do not change.
#[derive(Debug, Default)]
pub struct FixedTopics(pub BTreeMap<String, TopicQueues>);

impl OwnTopics for FixedTopics {
    fn find(&self, topic: &str) -> Option<TopicQueues> {
        self.0.get(topic).copied()
    }

    fn all(&self) -> Vec<(String, TopicQueues)> {
        self.0.iter().map(|(name, queues)| (name.clone(), *queues)).collect()
    }
}

/// Four queues that may be read and written.
pub const FOUR: TopicQueues = TopicQueues { read: 4, write: 4, perm: 6, sys_flag: 0 };

/// Topics of [`FOUR`] queues.
pub fn topics(names: &[&str]) -> FixedTopics {
    FixedTopics(names.iter().map(|name| ((*name).to_owned(), FOUR)).collect())
}

/// A registry with these topics, its pairs in `dir`.
pub fn registry(dir: &Path, names: &[&str], clock: Arc<ManualClock>) -> Embedded {
    let own = OwnBroker::new(&NodeConfig::default(), 10911);
    let kv = KvConfig::open(dir).expect("the pairs are read");
    let drain = Drain::open(dir, "broker-a", Arc::clone(&clock) as _).expect("the drain is read");
    Embedded::new(own, Arc::new(topics(names)), kv, Arc::new(drain), clock)
}

/// Master of `broker-b` with these topics, registering over connection 1.
pub fn registration(names: &[&str]) -> Registration {
    Registration {
        broker: BrokerIdentity {
            cluster: "DefaultCluster".to_owned(),
            name: "broker-b".to_owned(),
            id: 0,
            address: "192.0.2.10:10911".to_owned(),
        },
        ha_address: "192.0.2.10:10912".to_owned(),
        connection: 1,
        inventory: Inventory { version: DataVersion::default(), topics: topics(names).0 },
        ..Registration::default()
    }
}
