//! `config/topics.json`: Apache's file, in its form. Fields that are not known here are kept.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;

use gantry_proto::names::{TopicName, topics};
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::topic::{DataVersion, TopicConfig, TopicConfigTable};

use super::{Topic, TopicDefaults, perm};
use crate::saved::{SavedTable, pretty};
use crate::store::layout::load_json;

/// The topics on disk.
#[derive(Debug)]
pub(super) struct File {
    pub entries: SavedTable<TopicName, Topic>,
    /// The file without its topics: what is not known here is written back.
    pub rest: TopicConfigTable,
}

impl File {
    /// Reads the file in `config_dir`, or starts one.
    pub fn open(config_dir: &Path, defaults: &TopicDefaults) -> io::Result<Self> {
        let path = config_dir.join("topics.json");
        let read = load_json(&path, |bytes| TopicConfigTable::from_json(bytes).ok())?;
        let mut rest = read.unwrap_or_default();
        let mut entries = HashMap::new();
        for (name, mut config) in std::mem::take(&mut rest.topic_config_table) {
            match TopicName::storable(&name) {
                Ok(name) => {
                    name.as_str().clone_into(&mut config.topic_name);
                    entries.insert(name.clone(), Arc::new(Topic::new(name, config, defaults)));
                }
                Err(error) => {
                    tracing::warn!(topic = name, %error, "topics.json names a topic that cannot exist; it is left out");
                }
            }
        }
        Ok(Self { entries: SavedTable::new(path, entries, rest.data_version), rest })
    }

    /// The whole file.
    pub fn encode(&self, all: &BTreeMap<TopicName, Arc<Topic>>, version: DataVersion) -> Vec<u8> {
        pretty(&self.table(all, version).to_standard_json())
    }

    /// The whole table as a body.
    pub fn table(&self, all: &BTreeMap<TopicName, Arc<Topic>>, version: DataVersion) -> TopicConfigTable {
        let config = |(name, topic): (&TopicName, &Arc<Topic>)| (name.to_string(), topic.config.clone());
        TopicConfigTable {
            data_version: version,
            topic_config_table: all.iter().map(config).collect(),
            ..self.rest.clone()
        }
    }
}

/// The topics that a broker has from its start.
pub(super) fn system_topics(defaults: &TopicDefaults) -> Vec<TopicConfig> {
    const READ_WRITE: i32 = perm::READ | perm::WRITE;
    let template = READ_WRITE | perm::INHERIT;
    let TopicDefaults { cluster, broker, .. } = defaults;
    let topic = |name: &str, queues: u32, perm: i32| configured(name, queues, perm);
    let mut all = vec![
        topic(topics::SELF_TEST, 1, READ_WRITE),
        topic(topics::BENCHMARK, 1024, READ_WRITE),
        topic(cluster, 16, template),
        topic(broker, 1, template),
        topic(topics::OFFSET_MOVED, 1, READ_WRITE),
        topic(topics::SCHEDULE, defaults.delay_levels, READ_WRITE),
        topic(topics::TRACE, 1, READ_WRITE),
        topic(&format!("{cluster}_REPLY_TOPIC"), 1, READ_WRITE),
        topic(&format!("rmq_sys_REVIVE_LOG_{cluster}"), 8, READ_WRITE),
        topic(&format!("rmq_sys_SYNC_BROKER_MEMBER_{broker}"), 1, perm::INHERIT),
        topic(topics::HALF, 1, READ_WRITE),
        topic(topics::OP, 1, READ_WRITE),
        topic(topics::ROCKSDB_HALF, 1, READ_WRITE),
        topic(topics::ROCKSDB_OP, 1, READ_WRITE),
        topic(topics::TIMER, 1, READ_WRITE),
        topic(topics::CHECK_MAX_TIME, 1, READ_WRITE),
        topic(topics::STATE, 1, perm::READ),
    ];
    if defaults.auto_create {
        all.push(topic(topics::DEFAULT, defaults.template_queues, template));
    }
    all
}

/// A topic's configuration with as many queues to read as to write.
pub(super) fn configured(name: &str, queues: u32, perm: i32) -> TopicConfig {
    let queues = i32::try_from(queues).unwrap_or(i32::MAX);
    TopicConfig {
        topic_name: name.to_owned(),
        read_queue_nums: queues,
        write_queue_nums: queues,
        perm,
        ..TopicConfig::default()
    }
}
