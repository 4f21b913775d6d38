//! Consumer groups: their configuration, members, queue locks and offsets.
//!
//! A change of the configuration is acknowledged, and seen by others, once `config/subscriptionGroup.json`
//! holds it.

pub mod allocate;
pub mod attributes;
pub mod broadcasts;
pub mod locks;
pub mod members;
pub mod modes;
pub mod offsets;
pub mod retry;
pub mod start;
#[cfg(test)]
mod tests;
pub mod tiers;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use gantry_proto::names::{GroupName, NameError, TopicName};
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::group::{SubscriptionGroupConfig, SubscriptionGroupTable};
use gantry_proto::remoting::body::heartbeat::HeartbeatData;
use gantry_proto::remoting::body::topic::DataVersion;

use crate::clock::Clock;
use crate::config::GroupsConfig;
use crate::saved::{Next, SaveError, SavedTable, pretty};
use crate::store::layout::load_json;
use crate::topics::{TopicError, Topics, perm};
use attributes::{AttributeError, BroadcastOffsets, Durability, Settings};
use broadcasts::{Broadcasts, MEMBERS_MAX};
use members::{Change, Members, Peer, RegisterError, Subscriptions};
use retry::{Schedule, ScheduleError};
use tiers::TierError;

/// Groups that exist without being declared: the system's own and those of the tools.
const SYSTEM_GROUPS: &[&str] = &[
    "TOOLS_CONSUMER",
    "FILTERSRV_CONSUMER",
    "SELF_TEST_C_GROUP",
    "CID_ONS-HTTP-PROXY",
    "CID_ONSAPI_PULL",
    "CID_ONSAPI_PERMISSION",
    "CID_ONSAPI_OWNER",
    GroupName::TRANSACTION,
];

/// Groups that one client may be in.
const GROUPS_PER_CLIENT_MAX: usize = 1024;

/// Topics that one group may be forbidden.
const FORBIDDEN_MAX: usize = 4096;
/// The bit of a topic that a group may not read, where Apache's brokers have it.
const FORBIDDEN_READ: i32 = 1 << 2;

/// One consumer group.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Its name.
    pub name: GroupName,
    /// Its configuration, as tools see it.
    pub config: SubscriptionGroupConfig,
    /// What its attributes ask of this broker.
    pub settings: Settings,
    /// When messages that it refuses come again.
    pub retries: Schedule,
    /// Bits of what it may not do, by topic; none of them is 0. See [`FORBIDDEN_READ`].
    forbidden: BTreeMap<String, i32>,
}

/// Whether a group may read a topic, as an operator says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// It may.
    Allowed,
    /// Its pulls are refused.
    Forbidden,
}

impl Group {
    fn new(name: GroupName, config: SubscriptionGroupConfig, forbidden: BTreeMap<String, i32>) -> Self {
        let (settings, wrong) = Settings::of(&config.attributes);
        for error in wrong {
            tracing::warn!(group = %name, %error, "an attribute is kept, but means nothing to this version");
        }
        let retries = Schedule::of(&config.group_retry_policy).unwrap_or_else(|error| {
            tracing::warn!(group = %name, %error, "the retry policy is kept, but has no effect");
            Schedule::default()
        });
        Self { name, config, settings, retries, forbidden }
    }

    /// Whether the group may read the topic.
    pub fn reading(&self, topic: &str) -> Reading {
        // Hardly a group has any.
        let bits = if self.forbidden.is_empty() { None } else { self.forbidden.get(topic) };
        if bits.is_some_and(|bits| bits & FORBIDDEN_READ != 0) {
            Reading::Forbidden
        } else {
            Reading::Allowed
        }
    }

    /// The same group with a topic taken or given back.
    fn with_reading(&self, topic: &TopicName, reading: Reading) -> Self {
        let mut group = self.clone();
        let bits = group.forbidden.entry(topic.to_string()).or_default();
        match reading {
            Reading::Allowed => *bits &= !FORBIDDEN_READ,
            Reading::Forbidden => *bits |= FORBIDDEN_READ,
        }
        group.forbidden.retain(|_, bits| *bits != 0);
        group
    }

    /// Attempts after which a message goes to the dead letters. `asked` is what the consumer itself wants,
    /// where it says so.
    pub fn retry_max(&self, asked: Option<i32>) -> i32 {
        asked.filter(|asked| *asked >= 0).unwrap_or(self.config.retry_max_times)
    }

    /// The delay level of the attempt after `reconsume_times` refusals: each waits longer than the last.
    pub const fn retry_level(reconsume_times: i32) -> i32 {
        reconsume_times.saturating_add(3)
    }

    /// Whether it limits what its producers send.
    fn limits_producers(&self) -> bool {
        !self.settings.produce.is_empty()
    }

    /// Queues of its retry topic; 0: it does not want refused messages again.
    pub fn retry_queues(&self) -> u32 {
        u32::try_from(self.config.retry_queue_nums).unwrap_or(0)
    }
}

/// Why a group cannot be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// The name is not one that clients may use.
    #[error("group {name:?}: {why}")]
    Illegal {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: NameError,
    },
    /// There is none, and none was made.
    #[error("group {0} does not exist: create it, or start the broker with --auto-create-groups true")]
    NotExist(String),
    /// The group belongs to the system.
    #[error("group {0} belongs to the broker: choose another one")]
    System(String),
    /// The table of groups is full.
    #[error("{max} groups exist, which is the limit: delete some or raise groups.max")]
    Full {
        /// The bound.
        max: usize,
    },
    /// The group is forbidden too many topics.
    #[error(
        "group {group} is forbidden {FORBIDDEN_MAX} topics, which is the limit: disable the group instead"
    )]
    Forbidden {
        /// The group.
        group: GroupName,
    },
    /// The group keeps no offsets of members.
    #[error(
        "group {0} keeps no offsets of members that broadcast: set its attribute gantry.broadcast.offsets=broker first"
    )]
    NoBroadcastOffsets(GroupName),
    /// The group has too many members that broadcast.
    #[error(
        "{MEMBERS_MAX} members of group {0} keep their offsets with the broker, which is the limit: give members the same names when they start anew, or lower gantry.broadcast.expire"
    )]
    Broadcasters(GroupName),
    /// The group's attributes cannot be changed so.
    #[error("group {group}: {why}")]
    Attribute {
        /// The group.
        group: GroupName,
        /// What is wrong.
        why: AttributeError,
    },
    /// The group's retry policy cannot be.
    #[error("group {group}: {why}")]
    Retry {
        /// The group.
        group: GroupName,
        /// What is wrong.
        why: ScheduleError,
    },
    /// The group cannot come after another one.
    #[error("group {group}: {why}")]
    Tier {
        /// The group.
        group: GroupName,
        /// What is wrong.
        why: TierError,
    },
    /// Another group comes after it.
    #[error(
        "group {by} waits for group {group}: remove its attribute gantry.after first, or delete it first"
    )]
    WaitedFor {
        /// The group.
        group: GroupName,
        /// The other one.
        by: GroupName,
    },
    /// The change is not on the disk.
    #[error(transparent)]
    Save(#[from] SaveError),
}

/// Why a heartbeat was refused.
#[derive(Debug, thiserror::Error)]
pub enum HeartbeatError {
    /// The client has no name.
    #[error("the heartbeat has no clientID: give the client an instance name")]
    NoClientId,
    /// The client is in too many groups.
    #[error("the client is in {count} groups, the limit is {GROUPS_PER_CLIENT_MAX}: use several clients")]
    TooManyGroups {
        /// How many there were.
        count: usize,
    },
    /// A group cannot be had.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// A group's retry topic cannot be made.
    #[error(transparent)]
    RetryTopic(#[from] TopicError),
    /// A group's members cannot be registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

/// What a heartbeat changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Whether a consumer group has other members or subscriptions than before.
    pub change: Change,
    /// Producer groups that the client joined with it.
    pub producers_joined: Vec<GroupName>,
}

/// The configuration of all consumer groups.
#[derive(Debug)]
pub struct Groups {
    entries: SavedTable<GroupName, Group>,
    /// The file without its groups: what is not known here is written back.
    rest: SubscriptionGroupTable,
    defaults: GroupsConfig,
    /// Whether a group may limit what its producers send: one does, or did since the start.
    limiting: AtomicBool,
    clock: Arc<dyn Clock>,
    /// Held by changes of who comes after whom: each sees those before it.
    tiering: Mutex<()>,
    /// For each group that another one comes after one of those.
    firsts: RwLock<HashMap<GroupName, GroupName>>,
    broadcasts: Broadcasts,
}

impl Groups {
    /// Reads `subscriptionGroup.json` in `config_dir` and adds the system groups that it lacks.
    pub fn open(config_dir: &Path, defaults: GroupsConfig, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let path = config_dir.join("subscriptionGroup.json");
        let read = load_json(&path, |bytes| SubscriptionGroupTable::from_json(bytes).ok())?;
        let mut rest = read.unwrap_or_default();
        let mut forbidden = rest.forbidden_table.take().unwrap_or_default();
        let mut entries = HashMap::new();
        for (name, mut config) in std::mem::take(&mut rest.subscription_group_table) {
            match GroupName::storable(&name) {
                Ok(name) => {
                    name.as_str().clone_into(&mut config.group_name);
                    let mut forbidden = forbidden.remove(name.as_str()).unwrap_or_default();
                    forbidden.retain(|_, bits| *bits != 0);
                    entries.insert(name.clone(), Arc::new(Group::new(name, config, forbidden)));
                }
                Err(error) => {
                    tracing::warn!(group = name, %error, "subscriptionGroup.json names a group that cannot exist; it is left out");
                }
            }
        }
        rest.forbidden_table = Some(forbidden);
        let broadcasts = Broadcasts::open(config_dir, clock.now())?;
        let limiting = AtomicBool::new(entries.values().any(|group: &Arc<Group>| group.limits_producers()));
        let groups = Self {
            entries: SavedTable::new(path, entries, rest.data_version),
            rest,
            defaults,
            limiting,
            clock,
            tiering: Mutex::default(),
            firsts: RwLock::default(),
            broadcasts,
        };
        groups.find_firsts();
        let missing = SYSTEM_GROUPS.iter().filter(|name| groups.get(name).is_none());
        let missing =
            missing.map(|name| (GroupName::internal(name), groups.made(&GroupName::internal(name))));
        let (missing, now) = (missing.collect(), groups.clock.now());
        groups
            .entries
            .add_all(missing, now, |all, version| groups.encode(all, version))
            .map_err(io::Error::other)?;
        Ok(groups)
    }

    /// The group called `name`.
    pub fn get(&self, name: &str) -> Option<Arc<Group>> {
        self.entries.get(name)
    }

    /// The name of a group, or of a [member that broadcasts](GroupName::broadcast_member) and that is noted as heard of. `NotExist` when
    /// there is neither.
    pub fn keeper_of_offsets(&self, name: &str) -> Result<GroupName, GroupError> {
        if let Some(group) = self.get(name) {
            return Ok(group.name.clone());
        }
        let member = GroupName::parse(name).ok();
        let owner = member
            .as_ref()
            .and_then(GroupName::broadcast_member)
            .and_then(|(group, _)| self.get(group.as_str()));
        let (Some(member), Some(owner)) = (member, owner) else {
            return Err(GroupError::NotExist(name.to_owned()));
        };
        if owner.settings.broadcast != BroadcastOffsets::AtBroker {
            return Err(GroupError::NoBroadcastOffsets(owner.name.clone()));
        }
        match self.broadcasts.note(&member, self.clock.now()) {
            Ok(()) => Ok(member),
            Err(broadcasts::TooMany) => Err(GroupError::Broadcasters(owner.name.clone())),
        }
    }

    /// Members of broadcasting groups that keep their offsets here.
    pub const fn broadcasts(&self) -> &Broadcasts {
        &self.broadcasts
    }

    /// Groups that are not durable, in no order.
    pub fn fleeting(&self) -> Vec<Arc<Group>> {
        self.entries.filtered(|group| group.settings.durability == Durability::WhileOnline)
    }

    /// The group called `name`, made if that is allowed.
    pub fn get_or_create(&self, name: &str) -> Result<Arc<Group>, GroupError> {
        if let Some(group) = self.get(name) {
            return Ok(group);
        }
        let name = parse(name)?;
        if !self.defaults.auto_create && !name.is_system() {
            return Err(GroupError::NotExist(name.to_string()));
        }
        let made = self.change(&name, |current, entries| match current {
            Some(_) => Ok(Next::Keep),
            None if entries >= self.defaults.max => Err(GroupError::Full { max: self.defaults.max }),
            None => Ok(Next::Put(self.made(&name))),
        })?;
        tracing::info!(group = %name, "created by its first client");
        Ok(made.expect("the decision leaves a group"))
    }

    /// Creates a group or changes it, as an operator says; its attributes are [changes](attributes). No change is a success.
    pub fn declare(&self, mut config: SubscriptionGroupConfig) -> Result<Arc<Group>, GroupError> {
        let name = parse(&config.group_name)?;
        let is_tiered = config.attributes.keys().any(|key| key.contains(attributes::AFTER));
        let _tiering = is_tiered.then(|| self.tiering.lock().unwrap_or_else(PoisonError::into_inner));
        let declared = self.change(&name, |current, entries| {
            let (before, forbidden) = current
                .map(|current| (current.config.attributes.clone(), current.forbidden.clone()))
                .unwrap_or_default();
            config.attributes = attributes::changed(&before, &config.attributes)
                .map_err(|why| GroupError::Attribute { group: name.clone(), why })?;
            if current.is_none_or(|current| current.config.group_retry_policy != config.group_retry_policy) {
                Schedule::of(&config.group_retry_policy)
                    .map_err(|why| GroupError::Retry { group: name.clone(), why })?;
            }
            match current {
                Some(current) if current.config == config => Ok(Next::Keep),
                None if entries >= self.defaults.max => Err(GroupError::Full { max: self.defaults.max }),
                _ => {
                    let group = Group::new(name.clone(), config, forbidden);
                    let was = current.and_then(|current| current.settings.after.as_ref());
                    if let Some(first) = group.settings.after.as_ref().filter(|first| was != Some(first)) {
                        tiers::check(self, &name, first)
                            .map_err(|why| GroupError::Tier { group: name.clone(), why })?;
                    }
                    Ok(Next::Put(group))
                }
            }
        })?;
        if is_tiered {
            self.find_firsts();
        }
        Ok(declared.expect("the decision leaves a group"))
    }

    /// Takes a topic from a group, or gives it back. `NotExist` when there is no such group.
    pub fn set_reading(
        &self,
        name: &GroupName,
        topic: &TopicName,
        reading: Reading,
    ) -> Result<Arc<Group>, GroupError> {
        let changed = self.change(name, |current, _| {
            let current = current.ok_or_else(|| GroupError::NotExist(name.to_string()))?;
            if current.reading(topic.as_str()) == reading {
                return Ok(Next::Keep);
            }
            let next = current.with_reading(topic, reading);
            if next.forbidden.len() > FORBIDDEN_MAX {
                return Err(GroupError::Forbidden { group: name.clone() });
            }
            Ok(Next::Put(next))
        })?;
        Ok(changed.expect("the decision leaves a group"))
    }

    /// Forgets a group's configuration. `NotExist` when there is none.
    pub fn delete(&self, name: &str) -> Result<(), GroupError> {
        let group = self.get(name).ok_or_else(|| GroupError::NotExist(name.to_owned()))?;
        if group.name.is_system() {
            return Err(GroupError::System(name.to_owned()));
        }
        let _tiering = self.tiering.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(by) = self.firsts().get(name) {
            return Err(GroupError::WaitedFor { group: group.name.clone(), by: by.clone() });
        }
        self.change(&group.name, |_, _| Ok(Next::Remove))?;
        if group.settings.after.is_some() {
            self.find_firsts();
        }
        Ok(())
    }

    /// Whether another group comes [after](tiers) this one.
    pub fn is_waited_for(&self, name: &str) -> bool {
        self.firsts().contains_key(name)
    }

    fn firsts(&self) -> std::sync::RwLockReadGuard<'_, HashMap<GroupName, GroupName>> {
        self.firsts.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn find_firsts(&self) {
        let all = self.entries.all().into_iter();
        let firsts = all.filter_map(|(name, group)| Some((group.settings.after.clone()?, name))).collect();
        *self.firsts.write().unwrap_or_else(PoisonError::into_inner) = firsts;
    }

    /// Whether a group may limit what its producers send.
    pub fn limits_producers(&self) -> bool {
        self.limiting.load(Ordering::Relaxed)
    }

    /// Every group, by name.
    pub fn all(&self) -> Vec<Arc<Group>> {
        self.entries.all().into_values().collect()
    }

    /// All groups as a body, with what the file holds besides.
    pub fn table(&self) -> SubscriptionGroupTable {
        self.body(&self.entries.all(), self.entries.version())
    }

    /// Tells one state of the groups from another.
    pub fn data_version(&self) -> DataVersion {
        self.entries.version()
    }

    /// Takes a client's heartbeat: makes what it needs and registers it in its groups. On an error the
    /// groups before the one that failed are registered.
    pub fn heartbeat(
        &self,
        topics: &Topics,
        members: &Members,
        data: &HeartbeatData,
        peer: &Arc<Peer>,
    ) -> Result<Beat, HeartbeatError> {
        if data.client_id.is_empty() {
            return Err(HeartbeatError::NoClientId);
        }
        let count = data.consumer_data_set.len() + data.producer_data_set.len();
        if count > GROUPS_PER_CLIENT_MAX {
            return Err(HeartbeatError::TooManyGroups { count });
        }
        let mut beat = Beat { change: Change::No, producers_joined: Vec::new() };
        let keep = if data.without_sub { Subscriptions::AsBefore } else { Subscriptions::Listed };
        for consumer in &data.consumer_data_set {
            let group = self.get_or_create(&consumer.group_name)?;
            if group.retry_queues() > 0 {
                let retry = TopicName::retry(&group.name);
                topics.ensure_internal(&retry, group.retry_queues(), perm::READ | perm::WRITE)?;
            }
            let tell = group.config.notify_consumer_ids_changed_enable;
            if members.register_consumer(&group.name, peer, consumer, keep, tell)? == Change::Yes {
                beat.change = Change::Yes;
            }
        }
        for producer in &data.producer_data_set {
            let group = parse(&producer.group_name)?;
            if members.register_producer(&group, peer)? == Change::Yes {
                beat.producers_joined.push(group);
            }
        }
        Ok(beat)
    }

    fn made(&self, name: &GroupName) -> Group {
        let config = SubscriptionGroupConfig {
            group_name: name.to_string(),
            retry_max_times: self.defaults.retry_max,
            ..SubscriptionGroupConfig::default()
        };
        Group::new(name.clone(), config, BTreeMap::new())
    }

    fn body(&self, all: &BTreeMap<GroupName, Arc<Group>>, version: DataVersion) -> SubscriptionGroupTable {
        let config = |(name, group): (&GroupName, &Arc<Group>)| (name.to_string(), group.config.clone());
        let mut forbidden = self.rest.forbidden_table.clone().unwrap_or_default();
        let some = all.iter().filter(|(_, group)| !group.forbidden.is_empty());
        forbidden.extend(some.map(|(name, group)| (name.to_string(), group.forbidden.clone())));
        SubscriptionGroupTable {
            data_version: version,
            forbidden_table: Some(forbidden),
            subscription_group_table: all.iter().map(config).collect(),
            ..self.rest.clone()
        }
    }

    fn encode(&self, all: &BTreeMap<GroupName, Arc<Group>>, version: DataVersion) -> Vec<u8> {
        pretty(&self.body(all, version).to_standard_json())
    }

    fn change(
        &self,
        name: &GroupName,
        decide: impl FnOnce(Option<&Arc<Group>>, usize) -> Result<Next<Group>, GroupError>,
    ) -> Result<Option<Arc<Group>>, GroupError> {
        let decide = |current: Option<&Arc<Group>>, entries: usize| {
            let next = decide(current, entries)?;
            if matches!(&next, Next::Put(group) if group.limits_producers()) {
                self.limiting.store(true, Ordering::Relaxed);
            }
            Ok::<_, GroupError>(next)
        };
        self.entries.change(name, self.clock.now(), decide, |all, version| self.encode(all, version))
    }
}

fn parse(name: &str) -> Result<GroupName, GroupError> {
    GroupName::parse(name).map_err(|why| GroupError::Illegal { name: name.to_owned(), why })
}
