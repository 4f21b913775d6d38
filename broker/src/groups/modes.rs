//! How groups take messages of topics, pulling or popping: `config/messageRequestMode.json`, in Apache's form.
//!
//! ```text
//! {"messageRequestModeMap":{"topic":{"group":{"consumerGroup":"group","mode":"POP","popShareQueueNum":0,"topic":"topic"}}}}
//! ```
//!
//! What an operator sets is acknowledged, and seen by others, once the file holds it.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;

use gantry_proto::names::{GroupName, NameError, TopicKind, TopicName};
use gantry_proto::remoting::body::queues::{MessageRequestMode, SetMessageRequestModeBody};
use gantry_proto::remoting::body::topic::DataVersion;
use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::saved::{Next, SaveError, SavedTable, pretty};
use crate::store::layout::load_json;

/// Why a mode was not set.
#[derive(Debug, thiserror::Error)]
pub enum ModeError {
    /// Retry topics are pulled from, or popped from together with the topic that is retried.
    #[error("{0} is a retry topic, whose mode cannot be set: set that of the topic itself")]
    RetryTopic(String),
    /// There is no such mode.
    #[error("{0:?} is no mode: PULL or POP are")]
    Unknown(String),
    /// A name cannot be.
    #[error("{name:?} cannot be the name of a topic or group: {why}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong.
        why: NameError,
    },
    /// Too many are set.
    #[error("modes are set for {max} topics and groups, which is the limit: raise groups.max")]
    Full {
        /// The bound.
        max: usize,
    },
    /// The change is not on the disk.
    #[error(transparent)]
    Save(#[from] SaveError),
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    message_request_mode_map: BTreeMap<String, BTreeMap<String, SetMessageRequestModeBody>>,
}

/// The modes that were set.
#[derive(Debug)]
pub struct Modes {
    /// By `topic@group`; neither name may contain the sign.
    entries: SavedTable<String, SetMessageRequestModeBody>,
    max: usize,
    clock: Arc<dyn Clock>,
}

impl Modes {
    /// Reads the file in `config_dir`.
    pub fn open(config_dir: &Path, max: usize, clock: Arc<dyn Clock>) -> io::Result<Self> {
        let path = config_dir.join("messageRequestMode.json");
        let file: File = load_json(&path, |bytes| serde_json::from_slice(bytes).ok())?.unwrap_or_default();
        let mut entries = HashMap::new();
        for (topic, groups) in file.message_request_mode_map {
            for (group, set) in groups {
                entries.insert(name_of(&topic, &group), Arc::new(set));
            }
        }
        Ok(Self { entries: SavedTable::new(path, entries, DataVersion::default()), max, clock })
    }

    /// How the group takes messages of the topic, and how many members share a queue that is popped from: pulling,
    /// unless something else was set.
    pub fn get(&self, topic: &str, group: &str) -> (MessageRequestMode, i32) {
        if TopicKind::of(topic) == TopicKind::Retry {
            return (MessageRequestMode::Pull, 0);
        }
        let set = self.entries.get(&name_of(topic, group));
        set.map_or((MessageRequestMode::Pull, 0), |set| (set.mode.clone(), set.pop_share_queue_num))
    }

    /// Sets it.
    pub fn set(&self, body: SetMessageRequestModeBody) -> Result<(), ModeError> {
        if TopicKind::of(&body.topic) == TopicKind::Retry {
            return Err(ModeError::RetryTopic(body.topic));
        }
        if let MessageRequestMode::Other(mode) = &body.mode {
            return Err(ModeError::Unknown(mode.clone()));
        }
        let wrong = |name: &str| {
            let name = name.to_owned();
            |why| ModeError::Name { name, why }
        };
        TopicName::parse(&body.topic).map_err(wrong(&body.topic))?;
        GroupName::parse(&body.consumer_group).map_err(wrong(&body.consumer_group))?;
        let name = name_of(&body.topic, &body.consumer_group);
        self.entries.change(
            &name,
            self.clock.now(),
            |current, entries| match current {
                Some(current) if **current == body => Ok(Next::Keep),
                None if entries >= self.max => Err(ModeError::Full { max: self.max }),
                _ => Ok(Next::Put(body)),
            },
            |all, _| encode(all),
        )?;
        Ok(())
    }

    /// The file's content.
    pub fn to_json(&self) -> Vec<u8> {
        encode(&self.entries.all())
    }
}

fn name_of(topic: &str, group: &str) -> String {
    format!("{topic}@{group}")
}

fn encode(all: &BTreeMap<String, Arc<SetMessageRequestModeBody>>) -> Vec<u8> {
    let mut file = File::default();
    for set in all.values() {
        let groups = file.message_request_mode_map.entry(set.topic.clone()).or_default();
        groups.insert(set.consumer_group.clone(), (**set).clone());
    }
    pretty(&serde_json::to_vec(&file).expect("texts and numbers have a JSON form"))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::fixture::clock;

    fn body(topic: &str, mode: MessageRequestMode) -> SetMessageRequestModeBody {
        let (topic, consumer_group) = (topic.to_owned(), "g".to_owned());
        SetMessageRequestModeBody { consumer_group, mode, pop_share_queue_num: 2, topic }
    }

    #[test]
    fn what_is_set_is_kept() {
        let dir = TempDir::new().expect("a temporary directory");
        let modes = Modes::open(dir.path(), 1, clock()).expect("no file");
        assert_eq!(modes.get("T", "g"), (MessageRequestMode::Pull, 0));
        modes.set(body("T", MessageRequestMode::Pop)).expect("set");
        let modes = Modes::open(dir.path(), 1, clock()).expect("a file");
        assert_eq!(modes.get("T", "g"), (MessageRequestMode::Pop, 2));
        assert_eq!(modes.get("T", "h"), (MessageRequestMode::Pull, 0));
        assert_eq!(modes.get("%RETRY%g", "g"), (MessageRequestMode::Pull, 0));
        let full = modes.set(body("U", MessageRequestMode::Pop));
        assert!(matches!(full, Err(ModeError::Full { max: 1 })), "{full:?}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let dir = TempDir::new().expect("a temporary directory");
        let modes = Modes::open(dir.path(), 10, clock()).expect("no file");
        let retry = modes.set(body("%RETRY%g", MessageRequestMode::Pop));
        assert!(matches!(retry, Err(ModeError::RetryTopic(_))), "{retry:?}");
        let unknown = modes.set(body("T", MessageRequestMode::Other("PUSH".to_owned())));
        assert!(matches!(unknown, Err(ModeError::Unknown(_))), "{unknown:?}");
        let name = modes.set(body("../T", MessageRequestMode::Pop));
        assert!(matches!(name, Err(ModeError::Name { .. })), "{name:?}");
    }
}
