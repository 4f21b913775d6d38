//! Routes as the asking client sees them.
//!
//! This broker has no address of its own: it is wherever the client reached the name service, at the
//! broker's port. So it works behind `127.0.0.1`, on every network of the machine and in a container
//! without being told. Only where the client's way and the broker's differ must the operator name a host.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};

use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::route::{BrokerData, MASTER_ID, RouteData};
use gantry_proto::remoting::codes::V4_9_4;

use crate::config::NodeConfig;

/// This broker, as routes name it.
#[derive(Debug)]
pub struct OwnBroker {
    name: String,
    cluster: String,
    advertise: Option<String>,
    port: AtomicU16,
}

impl OwnBroker {
    /// The broker that `node` describes, listening on `port`.
    pub fn new(node: &NodeConfig, port: u16) -> Self {
        Self {
            name: node.name.clone(),
            cluster: node.cluster.clone(),
            advertise: node.advertise.clone(),
            port: AtomicU16::new(port),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its cluster.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Tells the port once it is known: a free one is only chosen by listening.
    pub fn set_port(&self, port: u16) {
        self.port.store(port, Ordering::Release);
    }

    /// Its address for a client that reached the name service at `reached`.
    pub fn address(&self, reached: SocketAddr) -> String {
        let port = self.port.load(Ordering::Acquire);
        match &self.advertise {
            Some(host) => format!("{host}:{port}"),
            // An IPv4 client of an IPv6 listener must get the IPv4 form back.
            None => SocketAddr::new(reached.ip().to_canonical(), port).to_string(),
        }
    }

    /// Its entry in routes and cluster lists.
    pub fn data(&self, reached: SocketAddr) -> BrokerData {
        BrokerData {
            broker_addrs: BTreeMap::from([(MASTER_ID, self.address(reached))]),
            broker_name: self.name.clone(),
            cluster: self.cluster.clone(),
            enable_acting_master: false,
            zone_name: None,
        }
    }
}

/// The body for a client of this version: standard JSON for who reads it or asks for it, the older form
/// with bare integer keys for all others.
pub fn encode(route: &RouteData, version: i32, standard_only: bool) -> Vec<u8> {
    if version >= V4_9_4 || standard_only { route.to_standard_json() } else { route.to_json() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(advertise: Option<&str>) -> OwnBroker {
        let node = NodeConfig { advertise: advertise.map(str::to_owned), ..NodeConfig::default() };
        OwnBroker::new(&node, 0)
    }

    fn reached(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn the_address_is_the_one_that_the_client_reached() {
        let own_broker = own(None);
        own_broker.set_port(10911);
        assert_eq!(own_broker.address(reached("192.0.2.7:9876")), "192.0.2.7:10911");
        assert_eq!(own_broker.address(reached("127.0.0.1:9876")), "127.0.0.1:10911");
        assert_eq!(own_broker.address(reached("[::ffff:192.0.2.7]:9876")), "192.0.2.7:10911");
        assert_eq!(own_broker.address(reached("[2001:db8::1]:9876")), "[2001:db8::1]:10911");
        let named = own(Some("broker.example.org"));
        named.set_port(20911);
        assert_eq!(named.address(reached("127.0.0.1:9876")), "broker.example.org:20911");
    }

    #[test]
    fn only_old_clients_get_bare_keys() {
        let route =
            RouteData { broker_datas: vec![own(None).data(reached("127.0.0.1:1"))], ..RouteData::default() };
        let text =
            |version, standard_only| String::from_utf8(encode(&route, version, standard_only)).unwrap();
        assert!(text(317, false).contains("\"brokerAddrs\":{0:\"127.0.0.1:0\"}"));
        for standard in [text(401, false), text(317, true), text(513, true)] {
            assert!(standard.contains("\"brokerAddrs\":{\"0\":\"127.0.0.1:0\"}"), "{standard}");
        }
    }
}
