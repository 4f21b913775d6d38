//! What the operator can set: one struct per section, handed only to its owner.
//!
//! [`load`](load::load) fills them from flags, the environment, a TOML file, Apache's `broker.conf` and these defaults,
//! in that order of precedence; [`settings`] lists every value with its names in the three sources.

pub mod apache;
mod args;
pub mod load;
pub mod rates;
pub mod settings;
pub(crate) mod units;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

pub use args::{ServeArgs, StoreArgs};
pub use load::{ConfigError, Loaded, load};

/// Everything `gantry serve` can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Who this broker is and where it listens.
    pub node: NodeConfig,
    /// The listeners' ports.
    pub ports: PortsConfig,
    /// The store directory and when a write counts as kept.
    pub store: StoreConfig,
    /// How long messages stay.
    pub retention: RetentionConfig,
    /// Half messages and their back-checks.
    pub transaction: TransactionConfig,
    /// Delayed messages.
    pub timer: TimerConfig,
    /// Consumer groups, their members and locks.
    pub groups: GroupsConfig,
    /// Topics and their creation.
    pub topics: TopicsConfig,
    /// Bounds on what clients may send and hold.
    pub limits: LimitsConfig,
    /// The window in which a resend is recognised.
    pub dedup: DedupConfig,
    /// Rates of topics and groups that say nothing themselves.
    pub flow: FlowConfig,
}

/// Who this broker is and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Name of the broker in routes. Default `broker-a`.
    pub name: String,
    /// Cluster that the broker belongs to. Default `DefaultCluster`.
    pub cluster: String,
    /// Address of all listeners. Default 127.0.0.1: reachable from this machine only.
    pub bind: IpAddr,
    /// Host name or IP address that routes name instead of the one by which the client came.
    pub advertise: Option<String>,
    /// Name servers that the broker registers with, `host:port` each, beside being its own. Default none.
    pub name_servers: Vec<String>,
    /// File to create once every listener is ready.
    pub ready_file: Option<PathBuf>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: "broker-a".to_owned(),
            cluster: "DefaultCluster".to_owned(),
            bind: IpAddr::V4(Ipv4Addr::LOCALHOST),
            advertise: None,
            name_servers: Vec::new(),
            ready_file: None,
        }
    }
}

/// The listeners' ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortsConfig {
    /// Name service. Default 9876; 0 takes a free one.
    pub name: u16,
    /// Broker. Default 10911; 0 takes a free one. The VIP port is two below, or free as well.
    pub broker: u16,
}

impl Default for PortsConfig {
    fn default() -> Self {
        Self { name: 9876, broker: 10911 }
    }
}

impl PortsConfig {
    /// The VIP port of a broker that listens on `broker`: same protocol, separate acceptor. 0 (a
    /// free one) when the broker's port is free as well.
    pub const fn vip(broker: u16) -> u16 {
        broker.saturating_sub(2)
    }
}

/// When an acknowledged write counts as kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// In the operating system's page cache: survives a crash of the process.
    Memory,
    /// On the disk, by group commit: survives power loss.
    #[default]
    Disk,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
        })
    }
}

/// The store directory and the sizes of its files. Another broker that opens the same directory
/// must be configured with the same file sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// The directory. Default `gantry-store` in the working directory.
    pub dir: PathBuf,
    /// When a write counts as kept. Default `disk`.
    pub policy: Policy,
    /// Bytes of one commit-log file. Default 1 GiB.
    pub segment_bytes: u64,
    /// Bytes of one consume-queue file; a multiple of 20. Default 6 000 000.
    pub queue_file_bytes: u64,
    /// Hash slots of one index file. Default 5 000 000.
    pub index_slots: u32,
    /// Entries of one index file. Default 20 000 000.
    pub index_entries: u32,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("gantry-store"),
            policy: Policy::default(),
            segment_bytes: 1 << 30,
            queue_file_bytes: 6_000_000,
            index_slots: 5_000_000,
            index_entries: 20_000_000,
        }
    }
}

/// How long messages stay. Whole log files go, oldest first, as soon as one of the limits says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionConfig {
    /// Age at which a log file may go. Default 72 h.
    pub time: Duration,
    /// Bytes that the log may take; `None` (set as 0) is no limit. Default none.
    pub bytes: Option<u64>,
    /// Disk use at which the oldest file goes although it is younger, in percent. Default 85.
    pub force_percent: u8,
    /// Disk use at which writes are refused, in percent. Default 90.
    pub refuse_percent: u8,
    /// Bytes kept free for recovery and metadata; touching them makes the store read-only.
    /// Default 64 MiB.
    pub reserve_bytes: u64,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(72 * 3600),
            bytes: None,
            force_percent: 85,
            refuse_percent: 90,
            reserve_bytes: 64 << 20,
        }
    }
}

/// Half messages and their back-checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionConfig {
    /// Age of a half message at its first back-check. Default 6 s.
    pub timeout: Duration,
    /// Time from the first back-check to the second; doubles with each further one. Default 30 s.
    pub check_interval: Duration,
    /// What the doubling stops at. Default 10 min.
    pub check_interval_max: Duration,
    /// Back-checks before the half message is parked. Default 15.
    pub max_checks: u32,
}

impl Default for TransactionConfig {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(6),
            check_interval: Duration::from_secs(30),
            check_interval_max: Duration::from_secs(600),
            max_checks: 15,
        }
    }
}

/// Delayed messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimerConfig {
    /// Delay of level 1, 2, …; at most 64 of them. Default
    /// `1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h`.
    pub delay_levels: Vec<Duration>,
    /// The longest delay that a message may ask for itself. Default 40 days.
    pub max_delay: Duration,
}

impl Default for TimerConfig {
    fn default() -> Self {
        let minutes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30, 60, 120].map(|m| m * 60);
        let seconds = [1, 5, 10, 30].into_iter().chain(minutes);
        let max_delay = Duration::from_secs(40 * 24 * 3600);
        Self { delay_levels: seconds.map(Duration::from_secs).collect(), max_delay }
    }
}

/// Consumer groups, their members and locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupsConfig {
    /// Whether an unknown group is created when a client first names it. Default true.
    pub auto_create: bool,
    /// Most groups that may exist. Default 100 000.
    pub max: usize,
    /// Attempts after which a message goes to the dead letters, for groups that do not say it
    /// themselves. Default 16.
    pub retry_max: i32,
    /// Silence after which a client counts as gone. Default 120 s.
    pub member_expiry: Duration,
    /// Most clients that may be registered. Default 100 000.
    pub max_members: usize,
    /// How long a queue stays locked for its orderly consumer. Default 60 s.
    pub lock_lease: Duration,
    /// Most (group, topic, queue) offsets that are kept. Default 1 000 000.
    pub max_offsets: usize,
}

impl Default for GroupsConfig {
    fn default() -> Self {
        Self {
            auto_create: true,
            max: 100_000,
            retry_max: 16,
            member_expiry: Duration::from_secs(120),
            max_members: 100_000,
            lock_lease: Duration::from_secs(60),
            max_offsets: 1_000_000,
        }
    }
}

/// Topics and their creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicsConfig {
    /// Whether the first message to an unknown topic creates it. Default true.
    pub auto_create: bool,
    /// Queues of a topic that a client creates without saying how many. Default 4.
    pub default_queues: u32,
    /// Queues of `TBW102`, the template of topics that are created by a first message: the most
    /// that a producer can ask for in this way. Default 8.
    pub template_queues: u32,
    /// Most topics that may exist. Default 100 000.
    pub max: usize,
    /// Whether replies to request messages are stored too, in `<cluster>_REPLY_TOPIC`, and not only pushed to
    /// who waits for them. Default true.
    pub store_replies: bool,
    /// How long producers may go by a route from before a change of a topic's queues. Official clients ask every 30 s.
    /// Default 60 s.
    pub scale_grace: Duration,
}

impl Default for TopicsConfig {
    fn default() -> Self {
        Self {
            auto_create: true,
            default_queues: 4,
            template_queues: 8,
            max: 100_000,
            store_replies: true,
            scale_grace: Duration::from_secs(60),
        }
    }
}

/// Bounds on what clients may send and hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Most bytes of one message's body. Default 4 MiB.
    pub message_bytes: u32,
    /// Most bytes of one frame. Default 16 MiB, which is what official clients accept.
    pub frame_bytes: u32,
    /// Most connections to one listener. Default 10 000.
    pub connections: usize,
    /// Silence after which a connection is closed, and the time that a frame may take to arrive.
    /// Default 120 s.
    pub idle: Duration,
    /// Bytes that wait to be sent to one client from which on none of its requests is handled; what is under
    /// way then comes on top. Default 32 MiB.
    pub outbound_bytes: usize,
    /// Most pulls that wait for a message, over all clients. Default 100 000.
    pub waiting_polls: usize,
    /// Most half messages without an end. Default 1 000 000.
    pub open_halves: usize,
    /// Most messages that are popped and not acknowledged, over all groups. Default 200 000.
    pub popped: usize,
    /// Requests of one connection under way, beyond which no further one is read; pulls that wait do not count.
    /// Default 16 384.
    pub in_flight_requests: usize,
    /// Bytes of messages that one connection sent and that are not safe yet, beyond which it is not read.
    /// Default 16 MiB.
    pub in_flight_bytes: usize,
    /// Bytes that wait to be written to the log, over all connections, beyond which sends are refused.
    /// Default 32 MiB.
    pub unwritten_bytes: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            message_bytes: 4 << 20,
            frame_bytes: 16 << 20,
            connections: 10_000,
            idle: Duration::from_secs(120),
            outbound_bytes: 32 << 20,
            waiting_polls: 100_000,
            open_halves: 1_000_000,
            popped: 200_000,
            in_flight_requests: 16_384,
            in_flight_bytes: 16 << 20,
            unwritten_bytes: 32 << 20,
        }
    }
}

/// The window in which a resend is recognised; it ends at whichever limit comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DedupConfig {
    /// Whether resends are looked for in topics that do not say it themselves. Default true.
    pub enabled: bool,
    /// How long a send is remembered. Default 10 min.
    pub time: Duration,
    /// How many sends are remembered. Default 1 000 000.
    pub entries: usize,
}

impl Default for DedupConfig {
    fn default() -> Self {
        Self { enabled: true, time: Duration::from_secs(600), entries: 1_000_000 }
    }
}

/// What may pass in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// Messages a second; 0 (the default) is no limit.
    pub messages: u64,
    /// Bytes a second; 0 (the default) is no limit.
    pub bytes: u64,
    /// How much may come at once: what the rates let pass in so many milliseconds. Default 1000.
    pub burst_ms: u32,
}

impl RateLimits {
    /// Whether anything is limited.
    pub const fn is_limit(&self) -> bool {
        self.messages > 0 || self.bytes > 0
    }
}

impl Default for RateLimits {
    fn default() -> Self {
        Self { messages: 0, bytes: 0, burst_ms: 1000 }
    }
}

/// Rates of topics and groups that say nothing themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowConfig {
    /// What each topic takes. Default: no limit.
    pub topic: RateLimits,
    /// What the producers of each group send. Default: no limit.
    pub producer: RateLimits,
    /// What the consumers of each group get. Default: no limit.
    pub consumer: RateLimits,
}
