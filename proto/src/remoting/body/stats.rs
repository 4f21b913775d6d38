//! Measurements: codes 202, 208, 303, 315, 317, 321.

use std::collections::BTreeMap;

use super::body;
use super::heartbeat::SubscriptionData;
use super::queues::MessageQueue;

body! {
    /// Answer to code 202: how full the queues of a topic are.
    #[derive(Default)]
    TopicStatsTable {
        offset_table: BTreeMap<MessageQueue, TopicOffset>,
        topic_put_tps: f64,
    }
}

body! {
    /// One queue's offsets.
    #[derive(Default)]
    TopicOffset {
        /// When its last message was stored; milliseconds since the epoch.
        last_update_timestamp: i64,
        max_offset: i64,
        min_offset: i64,
    }
}

body! {
    /// Answer to code 208: how far a group is.
    #[derive(Default)]
    ConsumeStats {
        consume_tps: f64,
        offset_table: BTreeMap<MessageQueue, OffsetWrapper>,
    }
}

body! {
    /// Where a group is in a queue.
    #[derive(Default)]
    OffsetWrapper {
        broker_offset: i64,
        consumer_offset: i64,
        /// When the last consumed message was stored; milliseconds since the epoch.
        last_timestamp: i64,
        pull_offset: i64,
        /// Gantry's own, of a group that pops: messages that are popped and not acknowledged.
        #[serde(skip_serializing_if = "Option::is_none")]
        in_flight: Option<i64>,
        /// Gantry's own: messages that were left for other members, or until those of their key before them are done.
        #[serde(skip_serializing_if = "Option::is_none")]
        left: Option<i64>,
        /// Gantry's own: when the oldest of those in flight was popped; milliseconds since the epoch.
        #[serde(skip_serializing_if = "Option::is_none")]
        oldest_popped: Option<i64>,
    }
}

body! {
    /// Answer to code 317: every group of a broker.
    #[derive(Default)]
    ConsumeStatsList {
        broker_addr: String,
        consume_stats_list: Vec<BTreeMap<String, Vec<ConsumeStats>>>,
        total_diff: i64,
        total_inflight_diff: i64,
    }
}

body! {
    /// Answer to code 315: one counter.
    #[derive(Default)]
    BrokerStatsData {
        stats_day: BrokerStatsItem,
        stats_hour: BrokerStatsItem,
        stats_minute: BrokerStatsItem,
    }
}

body! {
    /// A counter over one span of time.
    #[derive(Default)]
    BrokerStatsItem {
        /// Average per call.
        avgpt: f64,
        sum: i64,
        /// Per second.
        tps: f64,
    }
}

body! {
    /// Answer to code 303.
    #[derive(Default)]
    QueryConsumeTimeSpanBody {
        consume_time_span_set: Vec<QueueTimeSpan>,
    }
}

body! {
    /// Times of a queue's messages, in milliseconds since the epoch and as text.
    #[derive(Default)]
    QueueTimeSpan {
        consume_time_stamp: i64,
        consume_time_stamp_str: Option<String>,
        /// Milliseconds.
        delay_time: i64,
        max_time_stamp: i64,
        max_time_stamp_str: Option<String>,
        message_queue: MessageQueue,
        min_time_stamp: i64,
        min_time_stamp_str: Option<String>,
    }
}

body! {
    /// Answer to code 321.
    #[derive(Default)]
    QueryConsumeQueueResponseBody {
        filter_data: Option<String>,
        max_queue_index: i64,
        min_queue_index: i64,
        queue_data: Vec<ConsumeQueueData>,
        subscription_data: Option<SubscriptionData>,
    }
}

body! {
    /// One entry of a consume queue.
    #[derive(Default)]
    ConsumeQueueData {
        bit_map: Option<String>,
        eval: bool,
        extend_data_json: Option<String>,
        msg: Option<String>,
        physic_offset: i64,
        physic_size: i32,
        tags_code: i64,
    }
}
