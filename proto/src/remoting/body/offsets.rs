//! Offsets of groups: codes 43, 45, 220 to 223, 308 and the files `consumerOffset.json`, `delayOffset.json`.

use std::collections::BTreeMap;

use super::body;
use super::queues::MessageQueue;
use super::topic::DataVersion;

body! {
    /// Offsets of all groups: code 43 and `consumerOffset.json`.
    #[derive(Default)]
    ConsumerOffsets {
        data_version: Option<DataVersion>,
        /// Topics by group; only what a Java broker derives from the offsets, it is not read back.
        group_topic_map: Option<BTreeMap<String, Vec<String>>>,
        /// Offset by queue id, by `topic@group`.
        offset_table: BTreeMap<String, BTreeMap<i32, i64>>,
        /// The same for the offsets that pulls have reached; from 5.4 on.
        pull_offset_table: Option<BTreeMap<String, BTreeMap<i32, i64>>>,
    }
}

body! {
    /// Offsets of the schedule topic: code 45 and `delayOffset.json`.
    #[derive(Default)]
    DelayOffsets {
        data_version: Option<DataVersion>,
        /// Offset by delay level, from 1.
        offset_table: BTreeMap<i32, i64>,
    }
}

body! {
    /// Code 220, and the answer to 222: new offsets.
    #[derive(Default)]
    ResetOffsetBody {
        offset_table: BTreeMap<MessageQueue, i64>,
    }
}

body! {
    /// The same as [`ResetOffsetBody`], for clients in C++.
    #[derive(Default)]
    ResetOffsetBodyForC {
        offset_table: Vec<MessageQueueOffset>,
    }
}

body! {
    /// A queue and an offset in it.
    #[derive(Default)]
    MessageQueueOffset {
        broker_name: String,
        offset: i64,
        queue_id: i32,
        topic: String,
    }
}

impl From<&ResetOffsetBody> for ResetOffsetBodyForC {
    fn from(body: &ResetOffsetBody) -> Self {
        let entry = |(queue, offset): (&MessageQueue, &i64)| MessageQueueOffset {
            broker_name: queue.broker_name.clone(),
            offset: *offset,
            queue_id: queue.queue_id,
            topic: queue.topic.clone(),
        };
        Self { offset_table: body.offset_table.iter().map(entry).collect() }
    }
}

body! {
    /// Answer to code 221 (one client: `message_queue_table`) and 223 (all: `consumer_table`).
    #[derive(Default)]
    GetConsumerStatusBody {
        consumer_table: BTreeMap<String, BTreeMap<MessageQueue, i64>>,
        message_queue_table: BTreeMap<MessageQueue, i64>,
    }
}

body! {
    /// Answer to code 308.
    #[derive(Default)]
    QueryCorrectionOffsetBody {
        correction_offsets: BTreeMap<i32, i64>,
    }
}
