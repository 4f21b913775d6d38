//! Looking at stored messages: codes 12, 33, 321.

use super::header;

header! {
    /// Code 12: messages by key. The field `_UNIQUE_KEY_QUERY` = `true` asks by unique id.
    QueryMessageHeader {
        topic: String = "topic",
        key: String = "key",
        max_num: i32 = "maxNum",
        /// Milliseconds since the epoch.
        begin_timestamp: i64 = "beginTimestamp",
        /// Milliseconds since the epoch.
        end_timestamp: i64 = "endTimestamp",
        index_type: Option<String> = "indexType",
        last_key: Option<String> = "lastKey",
        unique_key_query: Option<bool> = "_UNIQUE_KEY_QUERY",
        broker_name: Option<String> = "bname",
    }
}

header! {
    /// Answer to code 12.
    QueryMessageResponse {
        /// Milliseconds since the epoch.
        index_last_update_timestamp: i64 = "indexLastUpdateTimestamp",
        index_last_update_phyoffset: i64 = "indexLastUpdatePhyoffset",
    }
}

header! {
    /// Code 33: one message by its place.
    ViewMessageHeader {
        /// Commit log offset; a missing one must not be taken for 0.
        offset: Option<i64> = "offset",
        topic: Option<String> = "topic",
        broker_name: Option<String> = "bname",
    }
}

header! {
    /// Code 321: entries of a consume queue.
    QueryConsumeQueueHeader {
        topic: String = "topic",
        queue_id: i32 = "queueId",
        /// First entry.
        index: i64 = "index",
        count: i32 = "count",
        consumer_group: Option<String> = "consumerGroup",
    }
}
