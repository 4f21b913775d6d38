//! Topics: which there are, how many queues they have, and what may be done with them.
//!
//! A change is acknowledged, and seen by others, once `config/topics.json` holds it. Looking a topic up
//! takes a read lock and no copy.

pub mod attributes;
pub mod kinds;
pub mod scale;
mod table;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::Arc;

use gantry_proto::ids::QueueId;
use gantry_proto::names::{NameError, TopicKind, TopicName};
use gantry_proto::remoting::body::topic::{DataVersion, TopicConfig, TopicConfigTable};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::flow::{OwnRates, Subject};
use crate::saved::{Next, SaveError};
use crate::store::Targets;
use attributes::AttributeError;
use kinds::MessageType;
use scale::{Change, Haste, ScaleMode};
use table::{File, configured, system_topics};

/// Most queues that a topic may have.
pub const QUEUES_MAX: i32 = 16_384;

/// Permission bits of a topic.
pub mod perm {
    /// New topics may be made after it.
    pub const INHERIT: i32 = 1;
    /// Messages may be sent to it.
    pub const WRITE: i32 = 2;
    /// Messages may be consumed from it.
    pub const READ: i32 = 4;
    /// All bits that mean something, the one for priorities included.
    pub(super) const ALL: i32 = 15;
}

/// What the operator set for all topics.
#[derive(Clone, Debug)]
pub struct TopicDefaults {
    /// Name of this broker, which also names a topic.
    pub broker: String,
    /// Name of its cluster, which also names a topic.
    pub cluster: String,
    /// Whether the first message to an unknown topic creates it.
    pub auto_create: bool,
    /// Queues of a topic that is created without saying how many.
    pub queues: u32,
    /// Queues of `TBW102`.
    pub template_queues: u32,
    /// Number of delay levels: queues of the schedule topic.
    pub delay_levels: u32,
    /// Whether resends are looked for in topics that do not say it themselves.
    pub dedup: bool,
    /// Most topics.
    pub max: usize,
}

/// One topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Topic {
    /// Its name.
    pub name: TopicName,
    /// What it is for, told by its name.
    pub kind: TopicKind,
    /// Its configuration, as tools see it.
    pub config: TopicConfig,
    /// Whether resends are looked for.
    pub dedup: bool,
    /// What is sent to it.
    pub message_type: MessageType,
    /// Whether a message of another type is refused.
    pub checks_type: bool,
    /// How the number of its queues changes.
    pub scale: ScaleMode,
    /// A change of that number which is under way.
    pub change: Option<Change>,
    /// What it says about the rate at which it takes messages.
    pub rates: OwnRates,
    protected: bool,
}

impl Topic {
    fn new(name: TopicName, config: TopicConfig, defaults: &TopicDefaults) -> Self {
        let switch = |key| attributes::switch(&config.attributes, key);
        Self {
            kind: name.kind(),
            dedup: switch(attributes::DEDUP).unwrap_or(defaults.dedup),
            message_type: MessageType::of(&config),
            checks_type: switch(attributes::CHECK_TYPE).unwrap_or(false),
            scale: ScaleMode::of(&config),
            change: Change::of(&config),
            rates: OwnRates::read(&config.attributes, Subject::Topic.attribute()),
            protected: name.is_protected(),
            name,
            config,
        }
    }

    /// Queues that consumers read.
    pub fn read_queues(&self) -> u32 {
        u32::try_from(self.config.read_queue_nums).unwrap_or(0)
    }

    /// Queues that producers write.
    pub fn write_queues(&self) -> u32 {
        u32::try_from(self.config.write_queue_nums).unwrap_or(0)
    }

    /// Whether consumers may read it.
    pub const fn is_readable(&self) -> bool {
        self.config.perm & perm::READ != 0
    }

    /// Whether producers may write it.
    pub const fn is_writable(&self) -> bool {
        self.config.perm & perm::WRITE != 0
    }

    /// Whether it is one of the broker's own, to which no client may send.
    pub const fn is_protected(&self) -> bool {
        self.protected
    }
}

/// Why a topic cannot be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    /// The name is not one that clients may use.
    #[error("topic {name:?}: {why}")]
    Illegal {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: NameError,
    },
    /// The name belongs to the system.
    #[error("topic {0} belongs to the broker: choose another name")]
    System(String),
    /// Clients may not send to it.
    #[error("clients may not send to topic {0}, which the broker writes itself: choose another topic")]
    NoPermission(String),
    /// There is none, and none was made.
    #[error("topic {0} does not exist: create it, or start the broker with --auto-create-topics true")]
    NotExist(String),
    /// A number of queues that cannot be.
    #[error("topic {topic} cannot have {asked} queues: choose from 0 to {QUEUES_MAX}")]
    Queues {
        /// The topic.
        topic: String,
        /// What was asked for.
        asked: i32,
    },
    /// Permission bits that do not exist.
    #[error("topic {topic} cannot have the permission {asked}: add up 4 (read), 2 (write) and 1 (inherit)")]
    Perm {
        /// The topic.
        topic: String,
        /// What was asked for.
        asked: i32,
    },
    /// An attribute that cannot be.
    #[error("topic {topic}: {why}")]
    Attribute {
        /// The topic.
        topic: String,
        /// What is wrong with it.
        why: AttributeError,
    },
    /// The last change of its queues is not done.
    #[error(
        "the queues of topic {topic} are still changing, in order: wait until its groups have read what is left, or force it"
    )]
    UnderWay {
        /// The topic.
        topic: String,
    },
    /// In order, keys must move between known queues.
    #[error(
        "topic {topic} has {has} queues and is scaled in order: ask for a multiple or a divisor of that, not for {asked}"
    )]
    NoMultiple {
        /// The topic.
        topic: String,
        /// Queues it has.
        has: i32,
        /// What was asked for.
        asked: i32,
    },
    /// The table of topics is full.
    #[error("{max} topics exist, which is the limit: delete some or raise topics.max")]
    Full {
        /// The bound.
        max: usize,
    },
    /// The change is not on the disk.
    #[error(transparent)]
    Save(#[from] SaveError),
}

/// All topics of this broker.
#[derive(Debug)]
pub struct Topics {
    file: File,
    defaults: TopicDefaults,
    clock: Arc<dyn Clock>,
    /// Counts changes that can be seen.
    changed: watch::Sender<u64>,
}

impl Topics {
    /// Reads `topics.json` in `config_dir` and adds the system topics that it lacks.
    pub fn open(config_dir: &Path, defaults: TopicDefaults, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let file = File::open(config_dir, &defaults)?;
        let topics = Self { file, defaults, clock, changed: watch::Sender::new(0) };
        topics.add_system_topics().map_err(io::Error::other)?;
        Ok(topics)
    }

    fn add_system_topics(&self) -> Result<(), SaveError> {
        let missing: Vec<_> = system_topics(&self.defaults)
            .into_iter()
            .filter(|config| self.get(&config.topic_name).is_none())
            .map(|config| {
                let name = TopicName::internal(&config.topic_name);
                (name.clone(), Topic::new(name, config, &self.defaults))
            })
            .collect();
        self.file.entries.add_all(missing, self.clock.now(), |all, version| self.file.encode(all, version))
    }

    /// The topic called `name`.
    pub fn get(&self, name: &str) -> Option<Arc<Topic>> {
        self.file.entries.get(name)
    }

    /// The topic to which a client sends: found, or made after `default_topic`.
    pub fn resolve_for_send(
        &self,
        name: &str,
        default_topic: &str,
        default_queue_nums: i32,
    ) -> Result<Arc<Topic>, TopicError> {
        if let Some(topic) = self.get(name) {
            return if topic.protected { Err(TopicError::NoPermission(name.to_owned())) } else { Ok(topic) };
        }
        let parsed =
            TopicName::parse(name).map_err(|why| TopicError::Illegal { name: name.to_owned(), why })?;
        if parsed.is_protected() {
            return Err(TopicError::NoPermission(name.to_owned()));
        }
        if parsed.kind() == TopicKind::Retry {
            return self.ensure_internal(&parsed, 1, perm::READ | perm::WRITE);
        }
        let unknown = || TopicError::NotExist(name.to_owned());
        let template = self.get(default_topic).filter(|_| self.defaults.auto_create).ok_or_else(unknown)?;
        if template.config.perm & perm::INHERIT == 0 {
            return Err(unknown());
        }
        let queues = default_queue_nums.min(template.config.write_queue_nums).max(1);
        let perm = template.config.perm & !perm::INHERIT;
        let topic = self.ensure_internal(&parsed, u32::try_from(queues).unwrap_or(1), perm)?;
        tracing::info!(topic = name, queues, "created by its first message");
        Ok(topic)
    }

    /// The topic `name`, made with these queues and permissions when there is none. For names that are
    /// checked or made by the broker.
    pub fn ensure_internal(
        &self,
        name: &TopicName,
        queues: u32,
        perm: i32,
    ) -> Result<Arc<Topic>, TopicError> {
        if let Some(topic) = self.get(name.as_str()) {
            return Ok(topic);
        }
        let made = self.change(name, |current, entries| match current {
            Some(_) => Ok(Next::Keep),
            None if entries >= self.defaults.max => Err(TopicError::Full { max: self.defaults.max }),
            None => {
                let config = configured(name.as_str(), queues, perm);
                Ok(Next::Put(Topic::new(name.clone(), config, &self.defaults)))
            }
        })?;
        Ok(made.expect("the decision leaves a topic"))
    }

    /// Creates a topic or changes it, as an operator says. No change is a success. Queues that hold messages are kept
    /// for their readers, see [`scale`].
    pub fn declare(&self, config: TopicConfig) -> Result<Arc<Topic>, TopicError> {
        self.declare_with(config, Haste::Wait)
    }

    /// The same, or at once.
    pub fn declare_with(&self, config: TopicConfig, haste: Haste) -> Result<Arc<Topic>, TopicError> {
        let text = &config.topic_name;
        let name = TopicName::parse(text).map_err(|why| TopicError::Illegal { name: text.clone(), why })?;
        if self.is_system(text) {
            return Err(TopicError::System(text.clone()));
        }
        for asked in [config.read_queue_nums, config.write_queue_nums] {
            if !(0..=QUEUES_MAX).contains(&asked) {
                return Err(TopicError::Queues { topic: text.clone(), asked });
            }
        }
        if config.perm & !perm::ALL != 0 {
            return Err(TopicError::Perm { topic: text.clone(), asked: config.perm });
        }
        let declared = self.change(&name, |current, entries| {
            let before = current.map(|current| &current.config.attributes);
            attributes::check(before, &config.attributes)
                .map_err(|why| TopicError::Attribute { topic: name.to_string(), why })?;
            let planned = scale::plan(current.map(|current| &**current), config, haste, self.clock.now())?;
            let topic = Topic::new(name.clone(), planned, &self.defaults);
            match current {
                Some(current) if **current == topic => Ok(Next::Keep),
                None if entries >= self.defaults.max => Err(TopicError::Full { max: self.defaults.max }),
                _ => Ok(Next::Put(topic)),
            }
        })?;
        Ok(declared.expect("the decision leaves a topic"))
    }

    /// Ends a change of queues, if it is still this one: the topic has the queues that are written.
    pub fn settle(&self, name: &TopicName, change: Change) -> Result<Option<Arc<Topic>>, TopicError> {
        self.change(name, |current, _| match current {
            Some(current) if current.change == Some(change) => {
                Ok(Next::Put(Topic::new(name.clone(), scale::settled(current), &self.defaults)))
            }
            _ => Ok(Next::Keep),
        })
    }

    /// Forgets a topic; its messages are the store's business. `NotExist` when there is none.
    pub fn delete(&self, name: &str) -> Result<(), TopicError> {
        if self.is_system(name) {
            return Err(TopicError::System(name.to_owned()));
        }
        let topic = self.get(name).ok_or_else(|| TopicError::NotExist(name.to_owned()))?;
        self.change(&topic.name, |_, _| Ok(Next::Remove))?;
        Ok(())
    }

    /// Every topic, by name.
    pub fn all(&self) -> Vec<Arc<Topic>> {
        self.file.entries.all().into_values().collect()
    }

    /// Tells one state of the topics from another.
    pub fn data_version(&self) -> DataVersion {
        self.file.entries.version()
    }

    /// How often topics may have changed since the start, and when they do again.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// All topics as a body, with what the file holds besides.
    pub fn table(&self) -> TopicConfigTable {
        self.file.table(&self.file.entries.all(), self.data_version())
    }

    /// Queues of a topic that is created without saying how many.
    pub const fn default_queues(&self) -> u32 {
        self.defaults.queues
    }

    /// Whether the name belongs to the system, or to this broker or its cluster.
    pub fn is_system(&self, name: &str) -> bool {
        let TopicDefaults { broker, cluster, .. } = &self.defaults;
        TopicName::internal(name).is_system()
            || name == broker
            || name == cluster
            || name.strip_suffix("_REPLY_TOPIC") == Some(cluster)
    }

    /// Names of the system's topics, in order.
    pub fn system_names(&self) -> Vec<String> {
        let all = self.file.entries.all();
        all.into_keys().filter(|name| self.is_system(name.as_str())).map(|name| name.to_string()).collect()
    }

    fn change(
        &self,
        name: &TopicName,
        decide: impl FnOnce(Option<&Arc<Topic>>, usize) -> Result<Next<Topic>, TopicError>,
    ) -> Result<Option<Arc<Topic>>, TopicError> {
        let result = self
            .file
            .entries
            .change(name, self.clock.now(), decide, |all, version| self.file.encode(all, version));
        self.changed.send_modify(|changes| *changes += 1);
        result
    }
}

/// A message that waited for its queue goes where that queue's messages go now.
impl Targets for Topics {
    fn target(&self, topic: &TopicName, asked: QueueId) -> QueueId {
        let topic = self.get(topic.as_str()).filter(|topic| topic.kind == TopicKind::User);
        topic.map_or(asked, |topic| topic.target(asked))
    }
}
