//! Message queues, as keys and in lists: locks (41, 42), assignment (400, 401), batch acks (200151).

use std::collections::{BTreeMap, BTreeSet};

use super::{Body, body, texts};

/// One queue of a topic on one broker. As a key of a map it is written as an object.
#[derive(
    Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(default, rename_all = "camelCase")]
pub struct MessageQueue {
    /// Name of the broker.
    pub broker_name: String,
    /// Number of the queue; -1: any.
    pub queue_id: i32,
    /// Name of the topic.
    pub topic: String,
}

impl Body for MessageQueue {}

body! {
    /// Codes 41 and 42: lock or unlock queues for a client of a group.
    #[derive(Default)]
    LockBatchBody {
        client_id: String,
        consumer_group: String,
        mq_set: BTreeSet<MessageQueue>,
        /// Do not ask the replicas.
        only_this_broker: bool,
    }
}

body! {
    /// Answer to code 41: the queues that this client now holds.
    #[derive(Default)]
    LockBatchResponseBody {
        #[serde(rename = "lockOKMQSet")]
        lock_ok_mq_set: BTreeSet<MessageQueue>,
    }
}

texts! {
    /// How messages of a queue are taken.
    MessageRequestMode {
        Pull = "PULL",
        Pop = "POP",
    }
}

body! {
    /// Code 400: which queues are mine?
    #[derive(Default)]
    QueryAssignmentRequestBody {
        client_id: String,
        consumer_group: String,
        message_model: super::heartbeat::MessageModel,
        /// `AVG` or `AVG_BY_CIRCLE`.
        strategy_name: String,
        topic: String,
    }
}

body! {
    /// Answer to code 400.
    #[derive(Default)]
    QueryAssignmentResponseBody {
        /// `None`: keep what you have.
        message_queue_assignments: Option<Vec<MessageQueueAssignment>>,
    }
}

body! {
    /// One queue that a client is to consume.
    #[derive(Default)]
    MessageQueueAssignment {
        attachments: Option<BTreeMap<String, String>>,
        message_queue: MessageQueue,
        mode: MessageRequestMode,
    }
}

body! {
    /// Code 401: how a group takes messages of a topic.
    #[derive(Default)]
    SetMessageRequestModeBody {
        consumer_group: String,
        mode: MessageRequestMode,
        pop_share_queue_num: i32,
        topic: String,
    }
}

body! {
    /// Code 200151: acks of several popped messages.
    #[derive(Default)]
    BatchAckMessageBody {
        acks: Vec<BatchAck>,
        broker_name: String,
    }
}

body! {
    /// Acks of messages that were popped together.
    #[derive(Default)]
    BatchAck {
        /// Base64 of a bit set, lowest byte first: bit i acks `start_offset + i`.
        #[serde(rename = "b", alias = "bitSet")]
        bit_set: String,
        #[serde(rename = "c", alias = "consumerGroup")]
        consumer_group: String,
        /// Milliseconds.
        #[serde(rename = "it", alias = "invisibleTime")]
        invisible_time: i64,
        /// Milliseconds since the epoch.
        #[serde(rename = "pt", alias = "popTime")]
        pop_time: i64,
        #[serde(rename = "q", alias = "queueId")]
        queue_id: i32,
        /// `0` normal, `1` and `2` retry topics.
        #[serde(rename = "r", alias = "retry")]
        retry: String,
        #[serde(rename = "rq", alias = "reviveQueueId")]
        revive_queue_id: i32,
        #[serde(rename = "so", alias = "startOffset")]
        start_offset: i64,
        #[serde(rename = "t", alias = "topic")]
        topic: String,
    }
}
