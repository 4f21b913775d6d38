//! The list of everything that can be set: one row a value, with its names in all sources.

use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{Config, Policy, rates, units};

/// One value that can be set by flag, environment and file.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Section and name in the TOML file, like `store.dir`.
    pub key: &'static str,
    /// Environment variable, like `GANTRY_STORE`.
    pub env: &'static str,
    /// Flag without its dashes, like `store`.
    pub flag: &'static str,
    /// What stands for the value in the help, like `DIR`.
    pub value: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// Writes the parsed value; the error says what is wrong with it and what to write.
    pub(super) set: fn(&mut Config, &str) -> Result<(), String>,
}

macro_rules! settings {
    ($($key:literal $env:literal $flag:literal $value:literal $help:literal
       |$config:ident, $text:ident| $set:expr;)+) => {
        /// Every setting, in the order of the help.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            key: $key,
            env: $env,
            flag: $flag,
            value: $value,
            help: $help,
            set: |$config, $text| {
                $set;
                Ok(())
            },
        }),+];
    };
}

settings! {
    "store.dir" "GANTRY_STORE" "store" "DIR" "Store directory [default: gantry-store]"
        |c, text| c.store.dir = path(text)?;
    "node.bind" "GANTRY_BIND" "bind" "ADDR" "Address of all listeners [default: 127.0.0.1]"
        |c, text| c.node.bind = address(text)?;
    "store.policy" "GANTRY_POLICY" "policy" "POLICY"
        "When a write counts as kept: disk or memory [default: disk]"
        |c, text| c.store.policy = policy(text)?;
    "ports.name" "GANTRY_NAME_PORT" "name-port" "PORT" "Name service [default: 9876; 0: a free port]"
        |c, text| c.ports.name = number(text, 0, u16::MAX)?;
    "ports.broker" "GANTRY_BROKER_PORT" "broker-port" "PORT"
        "Broker; its VIP port is two below [default: 10911; 0: a free port]"
        |c, text| c.ports.broker = broker_port(text)?;
    "ports.grpc" "GANTRY_GRPC_PORT" "grpc-port" "PORT" "gRPC; only 0 (off) in this version [default: 0]"
        |_c, text| off(text, "gRPC")?;
    "ports.http" "GANTRY_HTTP_PORT" "http-port" "PORT" "HTTP; only 0 (off) in this version [default: 0]"
        |_c, text| off(text, "HTTP")?;
    "node.ready_file" "GANTRY_READY_FILE" "ready-file" "FILE" "File to create when every listener is ready"
        |c, text| c.node.ready_file = Some(path(text)?);
    "node.advertise" "GANTRY_ADVERTISE" "advertise" "HOST"
        "Host that routes name [default: the address by which the client came]"
        |c, text| c.node.advertise = Some(host(text)?);
    "node.name_servers" "GANTRY_NAME_SERVERS" "name-servers" "HOST:PORT;…"
        "Name servers to register with, beside being its own"
        |c, text| c.node.name_servers = name_servers(text)?;
    "node.name" "GANTRY_BROKER_NAME" "broker-name" "NAME" "Name of this broker [default: broker-a]"
        |c, text| c.node.name = name(text)?;
    "node.cluster" "GANTRY_CLUSTER" "cluster" "NAME" "Name of its cluster [default: DefaultCluster]"
        |c, text| c.node.cluster = name(text)?;

    "store.segment_bytes" "GANTRY_SEGMENT_BYTES" "segment-bytes" "SIZE"
        "Size of one commit-log file [default: 1GiB]"
        |c, text| c.store.segment_bytes = size(text, 4096, 1 << 31)?;
    "store.queue_file_bytes" "GANTRY_QUEUE_FILE_BYTES" "queue-file-bytes" "SIZE"
        "Size of one consume-queue file, a multiple of 20 [default: 6000000]"
        |c, text| c.store.queue_file_bytes = queue_file_bytes(text)?;
    "store.index_slots" "GANTRY_INDEX_SLOTS" "index-slots" "N"
        "Hash slots of one index file [default: 5000000]"
        |c, text| c.store.index_slots = number(text, 1, 1 << 28)?;
    "store.index_entries" "GANTRY_INDEX_ENTRIES" "index-entries" "N"
        "Entries of one index file [default: 20000000]"
        |c, text| c.store.index_entries = number(text, 2, 1 << 26)?;

    "retention.time" "GANTRY_RETENTION_TIME" "retention-time" "TIME" "Age at which messages go [default: 72h]"
        |c, text| c.retention.time = time(text, Duration::from_secs(1))?;
    "retention.bytes" "GANTRY_RETENTION_BYTES" "retention-bytes" "SIZE"
        "Most bytes of the log; 0: no limit [default: 0]"
        |c, text| c.retention.bytes = Some(units::bytes(text)?).filter(|bytes| *bytes > 0);
    "retention.force_percent" "GANTRY_RETENTION_FORCE_PERCENT" "retention-force-percent" "PERCENT"
        "Disk use at which the oldest messages go although younger [default: 85]"
        |c, text| c.retention.force_percent = number(text, 1, 100)?;
    "retention.refuse_percent" "GANTRY_RETENTION_REFUSE_PERCENT" "retention-refuse-percent" "PERCENT"
        "Disk use at which writes are refused [default: 90]"
        |c, text| c.retention.refuse_percent = number(text, 1, 100)?;
    "retention.reserve_bytes" "GANTRY_RETENTION_RESERVE_BYTES" "retention-reserve-bytes" "SIZE"
        "Bytes kept free for recovery and metadata [default: 64MiB]"
        |c, text| c.retention.reserve_bytes = units::bytes(text)?;

    "transaction.timeout" "GANTRY_TRANSACTION_TIMEOUT" "transaction-timeout" "TIME"
        "Age of a half message at its first back-check [default: 6s]"
        |c, text| c.transaction.timeout = units::duration(text)?;
    "transaction.check_interval" "GANTRY_TRANSACTION_CHECK_INTERVAL" "transaction-check-interval" "TIME"
        "Time to the second back-check; doubles with each one [default: 30s]"
        |c, text| c.transaction.check_interval = time(text, Duration::from_millis(10))?;
    "transaction.check_interval_max" "GANTRY_TRANSACTION_CHECK_INTERVAL_MAX"
        "transaction-check-interval-max" "TIME" "What the doubling stops at [default: 10m]"
        |c, text| c.transaction.check_interval_max = time(text, Duration::from_millis(10))?;
    "transaction.max_checks" "GANTRY_MAX_CHECKS" "max-checks" "N"
        "Back-checks before a half message is parked [default: 15]"
        |c, text| c.transaction.max_checks = number(text, 0, 1_000_000)?;

    "timer.delay_levels" "GANTRY_DELAY_LEVELS" "delay-levels" "TIMES"
        "Delays of level 1, 2, … [default: 1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h]"
        |c, text| c.timer.delay_levels = delay_levels(text)?;
    "timer.max_delay" "GANTRY_TIMER_MAX_DELAY" "timer-max-delay" "TIME"
        "Longest delay that a message may ask for itself [default: 40d]"
        |c, text| c.timer.max_delay = max_delay(text)?;

    "groups.auto_create" "GANTRY_AUTO_CREATE_GROUPS" "auto-create-groups" "true|false"
        "Create an unknown group when it is first named [default: true]"
        |c, text| c.groups.auto_create = switch(text)?;
    "groups.max" "GANTRY_MAX_GROUPS" "max-groups" "N" "Most groups [default: 100000]"
        |c, text| c.groups.max = number(text, 16, 10_000_000)?;
    "groups.retry_max" "GANTRY_RETRY_MAX" "retry-max" "N"
        "Attempts after which a message goes to the dead letters [default: 16]"
        |c, text| c.groups.retry_max = number(text, 0, i32::MAX)?;
    "groups.member_expiry" "GANTRY_MEMBER_EXPIRY" "member-expiry" "TIME"
        "Silence after which a client counts as gone [default: 120s]"
        |c, text| c.groups.member_expiry = time(text, Duration::from_secs(1))?;
    "groups.max_members" "GANTRY_MAX_MEMBERS" "max-members" "N" "Most registered clients [default: 100000]"
        |c, text| c.groups.max_members = number(text, 1, 10_000_000)?;
    "groups.lock_lease" "GANTRY_LOCK_LEASE" "lock-lease" "TIME"
        "How long a queue stays locked for its orderly consumer [default: 60s]"
        |c, text| c.groups.lock_lease = time(text, Duration::from_secs(1))?;
    "groups.max_offsets" "GANTRY_MAX_OFFSETS" "max-offsets" "N"
        "Most (group, topic, queue) offsets [default: 1000000]"
        |c, text| c.groups.max_offsets = number(text, 1, 100_000_000)?;

    "topics.auto_create" "GANTRY_AUTO_CREATE_TOPICS" "auto-create-topics" "true|false"
        "Create an unknown topic by its first message [default: true]"
        |c, text| c.topics.auto_create = switch(text)?;
    "topics.default_queues" "GANTRY_DEFAULT_QUEUES" "default-queues" "N"
        "Queues of a topic created without saying how many [default: 4]"
        |c, text| c.topics.default_queues = number(text, 1, 1024)?;
    "topics.template_queues" "GANTRY_TEMPLATE_QUEUES" "template-queues" "N"
        "Most queues of a topic created by its first message [default: 8]"
        |c, text| c.topics.template_queues = number(text, 1, 1024)?;
    "topics.max" "GANTRY_MAX_TOPICS" "max-topics" "N" "Most topics [default: 100000]"
        |c, text| c.topics.max = number(text, 64, 10_000_000)?;
    "topics.store_replies" "GANTRY_STORE_REPLIES" "store-replies" "true|false"
        "Store replies to request messages, beside pushing them [default: true]"
        |c, text| c.topics.store_replies = switch(text)?;
    "topics.scale_grace" "GANTRY_SCALE_GRACE" "scale-grace" "TIME"
        "How long producers may go by a route from before a change of queues [default: 60s]"
        |c, text| c.topics.scale_grace = units::duration(text)?;

    "limits.message_bytes" "GANTRY_MAX_MESSAGE_SIZE" "max-message-size" "SIZE"
        "Most bytes of one message's body [default: 4MiB]"
        |c, text| c.limits.message_bytes = size(text, 1, 1 << 30)?;
    "limits.frame_bytes" "GANTRY_MAX_FRAME_SIZE" "max-frame-size" "SIZE" "Most bytes of one frame [default: 16MiB]"
        |c, text| c.limits.frame_bytes = size(text, 65_536, 1 << 30)?;
    "limits.connections" "GANTRY_MAX_CONNECTIONS" "max-connections" "N"
        "Most connections to one listener [default: 10000]"
        |c, text| c.limits.connections = number(text, 1, 10_000_000)?;
    "limits.idle" "GANTRY_IDLE_TIMEOUT" "idle-timeout" "TIME"
        "Silence after which a connection is closed [default: 120s]"
        |c, text| c.limits.idle = time(text, Duration::from_secs(1))?;
    "limits.outbound_bytes" "GANTRY_MAX_OUTBOUND" "max-outbound" "SIZE"
        "Most bytes that wait to be sent to one client [default: 32MiB]"
        |c, text| c.limits.outbound_bytes = size(text, 65_536, 1 << 40)?;
    "limits.waiting_polls" "GANTRY_MAX_WAITING_POLLS" "max-waiting-polls" "N"
        "Most pulls that wait for a message [default: 100000]"
        |c, text| c.limits.waiting_polls = number(text, 1, 10_000_000)?;
    "limits.open_halves" "GANTRY_MAX_OPEN_HALVES" "max-open-halves" "N"
        "Most half messages without an end [default: 1000000]"
        |c, text| c.limits.open_halves = number(text, 1, 100_000_000)?;
    "limits.popped" "GANTRY_MAX_POPPED" "max-popped" "N"
        "Most messages that are popped and not acknowledged [default: 200000]"
        |c, text| c.limits.popped = number(text, 1, 10_000_000)?;
    "limits.in_flight_requests" "GANTRY_MAX_IN_FLIGHT" "max-in-flight" "N"
        "Requests of one connection under way, beyond which no further one is read [default: 16384]"
        |c, text| c.limits.in_flight_requests = number(text, 1, 10_000_000)?;
    "limits.in_flight_bytes" "GANTRY_MAX_IN_FLIGHT_BYTES" "max-in-flight-bytes" "SIZE"
        "Bytes that one connection sent and that are not safe, beyond which it is not read [default: 16MiB]"
        |c, text| c.limits.in_flight_bytes = size(text, 1, 1 << 40)?;
    "limits.unwritten_bytes" "GANTRY_MAX_UNWRITTEN" "max-unwritten" "SIZE"
        "Bytes that wait to be written to the log, beyond which sends are refused [default: 32MiB]"
        |c, text| c.limits.unwritten_bytes = size(text, 65_536, 1 << 40)?;

    "flow.topic_rate" "GANTRY_TOPIC_RATE" "topic-rate" "RATE"
        "Messages a second that each topic takes; 0: no limit [default: 0]"
        |c, text| c.flow.topic.messages = rates::messages(text)?;
    "flow.topic_bytes" "GANTRY_TOPIC_BYTES" "topic-bytes" "RATE"
        "Bytes a second that each topic takes; 0: no limit [default: 0]"
        |c, text| c.flow.topic.bytes = rates::bytes(text)?;
    "flow.producer_rate" "GANTRY_PRODUCER_RATE" "producer-rate" "RATE"
        "Messages a second that the producers of each group send; 0: no limit [default: 0]"
        |c, text| c.flow.producer.messages = rates::messages(text)?;
    "flow.producer_bytes" "GANTRY_PRODUCER_BYTES" "producer-bytes" "RATE"
        "Bytes a second that the producers of each group send; 0: no limit [default: 0]"
        |c, text| c.flow.producer.bytes = rates::bytes(text)?;
    "flow.consumer_rate" "GANTRY_CONSUMER_RATE" "consumer-rate" "RATE"
        "Messages a second that the consumers of each group get; 0: no limit [default: 0]"
        |c, text| c.flow.consumer.messages = rates::messages(text)?;
    "flow.consumer_bytes" "GANTRY_CONSUMER_BYTES" "consumer-bytes" "RATE"
        "Bytes a second that the consumers of each group get; 0: no limit [default: 0]"
        |c, text| c.flow.consumer.bytes = rates::bytes(text)?;
    "flow.burst" "GANTRY_BURST" "burst" "TIME"
        "How much may come at once: what a rate lets pass in this time [default: 1s]"
        |c, text| {
            let burst_ms = rates::burst(text)?;
            for limits in [&mut c.flow.topic, &mut c.flow.producer, &mut c.flow.consumer] {
                limits.burst_ms = burst_ms;
            }
        };

    "dedup.enabled" "GANTRY_DEDUP" "dedup" "true|false"
        "Recognise resends in topics that do not say it themselves [default: true]"
        |c, text| c.dedup.enabled = switch(text)?;
    "dedup.time" "GANTRY_DEDUP_TIME" "dedup-time" "TIME" "How long a send is remembered [default: 10m]"
        |c, text| c.dedup.time = units::duration(text)?;
    "dedup.entries" "GANTRY_DEDUP_ENTRIES" "dedup-entries" "N" "How many sends are remembered [default: 1000000]"
        |c, text| c.dedup.entries = number(text, 0, 100_000_000)?;
}

fn number<T>(text: &str, min: T, max: T) -> Result<T, String>
where
    T: FromStr + PartialOrd + Copy + std::fmt::Display,
{
    let parsed = text.trim().parse::<T>().ok().filter(|n| *n >= min && *n <= max);
    parsed.ok_or_else(|| format!("{text:?} is not a number from {min} to {max}"))
}

fn size<T: TryFrom<u64>>(text: &str, min: u64, max: u64) -> Result<T, String> {
    let bytes = units::bytes(text)?;
    if !(min..=max).contains(&bytes) {
        return Err(format!("{bytes} bytes is outside of {min} to {max}"));
    }
    T::try_from(bytes).map_err(|_| format!("{bytes} bytes is more than this machine can address"))
}

fn time(text: &str, min: Duration) -> Result<Duration, String> {
    let time = units::duration(text)?;
    if time < min {
        return Err(format!("{text} is too short: at least {} ms", min.as_millis()));
    }
    Ok(time)
}

fn switch(text: &str) -> Result<bool, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("the path is empty".to_owned()) } else { Ok(PathBuf::from(text)) }
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.trim().parse().map_err(|_| {
        format!("{text:?} is not an IP address: write 127.0.0.1, 0.0.0.0 or an address of this machine")
    })
}

/// A host as it can stand in a route, where the last `:` divides host and port.
fn host(text: &str) -> Result<String, String> {
    let text = text.trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if text.is_empty() || !text.chars().all(plain) {
        return Err(format!("{text:?} is not a host name or an IPv4 address (without a port)"));
    }
    Ok(text.to_owned())
}

/// Most name servers that a broker registers with.
const NAME_SERVERS_MAX: usize = 16;

/// Addresses of name servers, with `;`, `,` or spaces between them; none at all is no error. Each once, in the order given.
fn name_servers(text: &str) -> Result<Vec<String>, String> {
    let mut servers: Vec<String> = Vec::new();
    let between = |c: char| matches!(c, ';' | ',') || c.is_whitespace();
    for server in text.split(between).filter(|part| !part.is_empty()) {
        let wrong =
            || format!("{server:?} is not the address of a name server: write host:port, like ns1:9876");
        let (host_part, port) = server.rsplit_once(':').ok_or_else(wrong)?;
        port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let address = host_part.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if address.is_none_or(|address| address.parse::<Ipv6Addr>().is_err()) {
            host(host_part).map_err(|_| wrong())?;
        }
        if !servers.iter().any(|known| known == server) {
            servers.push(server.to_owned());
        }
    }
    if servers.len() > NAME_SERVERS_MAX {
        return Err(format!("{} name servers; there can be up to {NAME_SERVERS_MAX}", servers.len()));
    }
    Ok(servers)
}

/// A broker or cluster name: it also names a topic, so the topics' alphabet holds.
fn name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if text.is_empty() || text.len() > 100 || !text.chars().all(plain) {
        return Err(format!("{text:?} is not a name: 1 to 100 letters, digits, - and _"));
    }
    Ok(text.to_owned())
}

fn policy(text: &str) -> Result<Policy, String> {
    match text.trim() {
        "disk" => Ok(Policy::Disk),
        "memory" => Ok(Policy::Memory),
        "replicas" => {
            Err("the policy replicas is not available in this version: use disk or memory".to_owned())
        }
        _ => Err(format!("{text:?} is not a policy: use disk or memory")),
    }
}

fn broker_port(text: &str) -> Result<u16, String> {
    match number(text, 0, u16::MAX)? {
        port @ 1..=2 => Err(format!("{port} leaves no room for the VIP port two below: use 3 or more, or 0")),
        port => Ok(port),
    }
}

fn off(text: &str, what: &str) -> Result<(), String> {
    match number(text, 0, u16::MAX)? {
        0 => Ok(()),
        port => Err(format!("{what} on port {port} is not available in this version: use 0 (off)")),
    }
}

fn queue_file_bytes(text: &str) -> Result<u64, String> {
    let bytes: u64 = size(text, 20, 1 << 31)?;
    if bytes.is_multiple_of(20) { Ok(bytes) } else { Err(format!("{bytes} is not a multiple of 20")) }
}

fn max_delay(text: &str) -> Result<Duration, String> {
    const LIMIT: Duration = Duration::from_secs(3660 * 24 * 3600);
    let delay = time(text, Duration::from_secs(1))?;
    if delay > LIMIT { Err(format!("{text} is too long: at most 3660d")) } else { Ok(delay) }
}

fn delay_levels(text: &str) -> Result<Vec<Duration>, String> {
    let levels = text.split_whitespace().map(units::duration).collect::<Result<Vec<_>, _>>()?;
    if (1..=64).contains(&levels.len()) {
        return Ok(levels);
    }
    Err(format!("{} delay levels; there can be 1 to 64", levels.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The setting of the file key `key`, applied to the defaults.
    fn set(key: &str, text: &str) -> Result<Config, String> {
        let mut config = Config::default();
        let setting = SETTINGS.iter().find(|setting| setting.key == key).expect("the key exists");
        (setting.set)(&mut config, text)?;
        Ok(config)
    }

    #[test]
    fn the_names_are_unique() {
        for name in [|s: &Setting| s.key, |s: &Setting| s.env, |s: &Setting| s.flag] {
            let mut names: Vec<_> = SETTINGS.iter().map(name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), SETTINGS.len());
        }
    }

    /// The default in each help text is the default of the struct.
    #[test]
    fn the_documented_defaults_are_the_defaults() {
        for setting in SETTINGS {
            let Some((_, rest)) = setting.help.split_once("[default: ") else { continue };
            let default = rest.split([';', ']']).next().expect("split gives at least one part");
            if setting.key == "node.advertise" {
                continue;
            }
            assert_eq!(set(setting.key, default), Ok(Config::default()), "{}", setting.key);
        }
    }

    #[test]
    fn what_is_not_built_is_refused_with_a_sentence() {
        for (key, value) in [("store.policy", "replicas"), ("ports.grpc", "8081"), ("ports.http", "8082")] {
            let error = set(key, value).expect_err("it is not available");
            assert!(error.contains("not available in this version"), "{error}");
        }
        assert!(set("ports.grpc", "0").is_ok());
    }

    #[test]
    fn name_servers_are_a_list_of_addresses() {
        let listed = |text| set("node.name_servers", text).map(|config| config.node.name_servers);
        let both = Ok(vec!["ns1:9876".to_owned(), "[::1]:9877".to_owned()]);
        for text in ["ns1:9876;[::1]:9877", "ns1:9876; [::1]:9877;ns1:9876;", "ns1:9876 [::1]:9877"] {
            assert_eq!(listed(text), both, "{text}");
        }
        assert_eq!(listed(""), Ok(Vec::new()));
        let many: Vec<_> = (1..=NAME_SERVERS_MAX + 1).map(|port| format!("ns:{port}")).collect();
        assert!(listed(&many.join(";")).unwrap_err().contains("up to 16"));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for (key, value) in [
            ("ports.broker", "2"),
            ("ports.name", "65536"),
            ("retention.force_percent", "101"),
            ("store.queue_file_bytes", "21"),
            ("limits.message_bytes", "2GiB"),
            ("timer.delay_levels", ""),
            ("timer.delay_levels", "1s 2"),
            ("timer.max_delay", "0s"),
            ("timer.max_delay", "3661d"),
            ("node.name", "a b"),
            ("node.advertise", "host:80"),
            ("node.name_servers", "ns1"),
            ("node.name_servers", "ns1:9876;ns2:0"),
            ("node.name_servers", "http://ns1:9876"),
            ("node.name_servers", ":9876"),
            ("node.name_servers", "[::g]:9876"),
            ("node.name_servers", "::1:9876"),
            ("node.bind", "localhost"),
            ("topics.auto_create", "yes"),
            ("groups.member_expiry", "0s"),
        ] {
            assert!(set(key, value).is_err(), "{key} = {value}");
        }
    }
}
