//! Topic configuration: codes 18, 21, 351 and the file `topics.json`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::body;
use crate::error::DecodeError;
use crate::json::{self, IntKeys};

body! {
    /// Version of a table: it changed when any of the three did.
    #[derive(Copy, Eq, Default)]
    DataVersion {
        counter: i64,
        state_version: i64,
        /// Milliseconds since the epoch.
        timestamp: i64,
    }
}

body! {
    /// One topic.
    TopicConfig {
        /// For example `message.type` = `FIFO`.
        attributes: BTreeMap<String, String>,
        order: bool,
        /// Bits: 4 read, 2 write, 1 inherit.
        perm: i32,
        read_queue_nums: i32,
        /// `SINGLE_TAG` or `MULTI_TAG`.
        topic_filter_type: String,
        topic_name: String,
        topic_sys_flag: i32,
        write_queue_nums: i32,
        /// Fields that are not known here.
        #[serde(flatten)]
        extra: BTreeMap<String, Value>,
    }
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            attributes: BTreeMap::new(),
            order: false,
            perm: 6,
            read_queue_nums: 16,
            topic_filter_type: "SINGLE_TAG".to_owned(),
            topic_name: String::new(),
            topic_sys_flag: 0,
            write_queue_nums: 16,
            extra: BTreeMap::new(),
        }
    }
}

impl TopicConfig {
    /// The line form of compressed registrations: `name read write perm filter {attributes}`.
    pub fn to_line(&self) -> String {
        let attributes =
            String::from_utf8_lossy(&json::to_vec(&self.attributes, IntKeys::Quoted)).into_owned();
        let Self { topic_name, read_queue_nums, write_queue_nums, perm, topic_filter_type, .. } = self;
        format!("{topic_name} {read_queue_nums} {write_queue_nums} {perm} {topic_filter_type} {attributes}")
    }

    /// Reads the line form; older brokers write no attributes.
    pub fn from_line(line: &str) -> Result<Self, DecodeError> {
        let mut parts = line.splitn(6, ' ');
        let mut part = |what: &str| parts.next().ok_or_else(|| DecodeError::new(line.len(), what));
        let topic_name = part("a topic name")?.to_owned();
        let mut number = |what: &str| part(what)?.parse().map_err(|_| DecodeError::new(0, what));
        let read_queue_nums = number("the number of read queues")?;
        let write_queue_nums = number("the number of write queues")?;
        let perm = number("the permission bits")?;
        let topic_filter_type = part("a filter type")?.to_owned();
        let attributes = match part("attributes") {
            Ok(text) if !text.trim().is_empty() => json::from_slice(text.as_bytes())?,
            _ => BTreeMap::new(),
        };
        Ok(Self {
            attributes,
            perm,
            read_queue_nums,
            topic_filter_type,
            topic_name,
            write_queue_nums,
            ..Self::default()
        })
    }
}

body! {
    /// All topics (or a page of them) with their version. `topics.json` and 4.x brokers know the first two
    /// fields; 5.x brokers send the mappings too.
    #[derive(Default)]
    TopicConfigTable {
        data_version: DataVersion,
        topic_config_table: BTreeMap<String, TopicConfig>,
        mapping_data_version: Option<DataVersion>,
        topic_queue_mapping_detail_map: Option<BTreeMap<String, Value>>,
        topic_queue_mapping_info_map: Option<BTreeMap<String, Value>>,
        /// Fields that are not known here.
        #[serde(flatten)]
        extra: BTreeMap<String, Value>,
    }
}

body! {
    /// Code 18.
    #[derive(Default)]
    CreateTopicListBody {
        topic_config_list: Vec<TopicConfig>,
    }
}
