//! How a client finds its servers and how patient it is.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::Duration;

use gantry_proto::names::topics;
use gantry_proto::remoting::frame::Serialize;

use crate::error::{Error, Result};

/// Options of a [`Client`](crate::Client).
///
/// ```
/// use std::time::Duration;
/// use gantry_client::ClientOptions;
///
/// let options = ClientOptions::new("127.0.0.1:9876;127.0.0.2:9876")
///     .timeout(Duration::from_secs(5))
///     .instance_name("orders");
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
pub struct ClientOptions {
    pub(crate) name_servers: String,
    pub(crate) instance_name: Option<String>,
    pub(crate) timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) route_interval: Duration,
    pub(crate) serialize: Serialize,
    pub(crate) busy_wait: Duration,
    pub(crate) trace_topic: Option<String>,
}

impl ClientOptions {
    /// Name servers as `host:port`, several separated by `;` (or `,`).
    pub fn new(name_servers: impl Into<String>) -> Self {
        Self {
            name_servers: name_servers.into(),
            instance_name: None,
            timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(3),
            heartbeat_interval: Duration::from_secs(30),
            route_interval: Duration::from_secs(30),
            serialize: Serialize::RocketMq,
            busy_wait: Duration::from_micros(50),
            trace_topic: None,
        }
    }

    /// Tells clients of one host apart; part of the client id. By default unique per client.
    #[must_use]
    pub fn instance_name(mut self, name: impl Into<String>) -> Self {
        self.instance_name = Some(name.into());
        self
    }

    /// How long one request may take; 3 s by default.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long making a connection may take; 3 s by default.
    #[must_use]
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How often brokers hear of this client's groups; 30 s by default. Brokers forget it after 120 s.
    #[must_use]
    pub const fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.heartbeat_interval = interval;
        self
    }

    /// How often routes in use are asked for again; 30 s by default.
    #[must_use]
    pub const fn route_interval(mut self, interval: Duration) -> Self {
        self.route_interval = interval;
        self
    }

    /// Form of the command headers: the compact binary form by default. Every server reads both.
    #[must_use]
    pub const fn serialize(mut self, form: Serialize) -> Self {
        self.serialize = form;
        self
    }

    /// How long a connection may stay awake for an answer instead of falling asleep; 50 µs by default, zero for never.
    ///
    /// It does so only where most answers come in that time, so that it is no loss where they come at once: a broker
    /// under the policy `memory` answers in less. One under `disk` takes as long as a flush, 100 µs and more on a fast
    /// disk: with 200 µs here, who sends one message after the other has each answer earlier by the time that waking up
    /// takes, and pays with a core that is busy meanwhile.
    #[must_use]
    pub const fn busy_wait(mut self, longest: Duration) -> Self {
        self.busy_wait = longest;
        self
    }

    /// Writes down what this client does with its messages, for operators: what its producers send (one-way sends
    /// apart), what its push consumers process, how transactions end, what is recalled. Read it with
    /// `gantry message trace` or `mqadmin queryMsgTraceById`. Off by default.
    ///
    /// Traces are messages of `RMQ_SYS_TRACE_TOPIC`, in the format of Apache's clients, sent within a second. They are
    /// no ledger: what comes faster than it can be sent is dropped, and so is the last second of a client that is not
    /// [shut down](crate::Client::shutdown).
    #[must_use]
    pub fn traced(self) -> Self {
        self.traced_to(topics::TRACE)
    }

    /// The same with a trace topic of your own.
    #[must_use]
    pub fn traced_to(mut self, topic: impl Into<String>) -> Self {
        self.trace_topic = Some(topic.into());
        self
    }

    /// The name servers, one by one.
    pub(crate) fn name_server_list(&self) -> Result<Vec<String>> {
        let list: Vec<String> = self
            .name_servers
            .split([';', ','])
            .map(str::trim)
            .filter(|address| !address.is_empty())
            .map(str::to_owned)
            .collect();
        let bad = list.iter().find(|address| {
            address
                .rsplit_once(':')
                .is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        });
        match bad {
            Some(address) => Err(Error::invalid(format!("name server {address:?} is not host:port"))),
            None if list.is_empty() => Err(Error::invalid("no name server was given")),
            None => Ok(list),
        }
    }
}

/// The address of this host from which `server` is reached; loopback when that cannot be told.
pub(crate) fn local_ip(server: &str) -> IpAddr {
    // Connecting a datagram socket sends nothing: it only asks the routing table.
    UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| {
            socket.connect(server)?;
            socket.local_addr()
        })
        .map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_name_servers_are_split_and_checked() {
        let list = |text: &str| ClientOptions::new(text).name_server_list();
        assert_eq!(list("a:1; b:2,").unwrap(), ["a:1", "b:2"]);
        assert!(list(" ; ").is_err());
        assert!(list("a:1;b").is_err());
        assert!(list("a:70000").is_err());
    }
}
