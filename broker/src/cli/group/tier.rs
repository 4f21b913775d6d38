//! What a group waits for that comes after another one (`gantry.after`).

use std::collections::BTreeMap;

use gantry_client::{Client, MessageQueue};
use gantry_proto::remoting::body::group::SubscriptionGroupConfig;
use gantry_proto::remoting::body::heartbeat::MessageModel;
use serde_json::{Value, json};

use crate::cli::output::Failure;

/// The attribute that names the group before.
const AFTER: &str = "gantry.after";

/// The group before another one, and where it stands.
#[derive(Debug)]
pub struct Tier {
    /// Its name.
    first: String,
    standing: Standing,
}

#[derive(Debug)]
enum Standing {
    /// It was deleted.
    Gone,
    /// Its members keep their offsets themselves.
    Broadcasts,
    /// Its offsets.
    At(BTreeMap<MessageQueue, i64>),
}

impl Tier {
    /// That of a group, if it has one.
    pub async fn of(client: &Client, config: &SubscriptionGroupConfig) -> Result<Option<Self>, Failure> {
        let Some(first) = config.attributes.get(AFTER) else { return Ok(None) };
        let admin = client.admin();
        let standing = if admin.groups().await?.contains_key(first) {
            let members = admin.group_members(first).await?;
            let offsets = admin.group_stats(first, None).await?.offset_table;
            let offsets = offsets.into_iter().filter(|(_, at)| at.consumer_offset >= 0);
            let offsets: BTreeMap<_, _> = offsets
                .filter_map(|(queue, at)| Some((crate::cli::queue(&queue)?, at.consumer_offset)))
                .collect();
            let broadcasts =
                members.is_some_and(|members| members.message_model == Some(MessageModel::Broadcasting));
            if broadcasts && offsets.is_empty() { Standing::Broadcasts } else { Standing::At(offsets) }
        } else {
            Standing::Gone
        };
        Ok(Some(Self { first: first.clone(), standing }))
    }

    /// What it is, on one line.
    pub fn summary(&self) -> String {
        let first = &self.first;
        match self.standing {
            Standing::Gone => format!("{first}, which does not exist: nothing new is seen"),
            Standing::Broadcasts => {
                format!("{first}, whose members keep their offsets themselves: nothing new is seen")
            }
            Standing::At(_) => first.clone(),
        }
    }

    fn offset(&self, queue: &MessageQueue) -> Option<i64> {
        match &self.standing {
            Standing::At(offsets) => offsets.get(queue).copied(),
            Standing::Gone | Standing::Broadcasts => None,
        }
    }

    /// What keeps the group from the messages of a queue that ends at `max`; nothing where it may see all.
    pub fn waits_for(&self, queue: &MessageQueue, max: i64) -> String {
        let first = &self.first;
        match self.offset(queue) {
            Some(at) if at >= max => String::new(),
            None if max <= 0 => String::new(),
            Some(at) => format!("waits for {first} at offset {at}"),
            None => format!("waits for {first}, which has not consumed here"),
        }
    }

    /// The same as JSON: null where it may see all.
    pub fn waits_for_json(&self, queue: &MessageQueue, max: i64) -> Value {
        if self.waits_for(queue, max).is_empty() {
            return Value::Null;
        }
        json!({"group": self.first, "offset": self.offset(queue)})
    }
}
