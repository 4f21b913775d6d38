//! Offsets: codes 14, 15 (of groups), 29 to 32 (of queues), 222, 223, 308, 314 (operators).

use super::header;

header! {
    /// Code 14: where a group stands in a queue.
    QueryConsumerOffsetHeader<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        /// `Some(false)`: an unknown offset is always an error, never 0.
        set_zero_if_not_found: Option<bool> = "setZeroIfNotFound",
        broker_name: Option<&'a str> = "bname",
    }
}

header! {
    /// Answer of the codes that ask for one offset: 14, 29, 30, 31.
    OffsetResponse {
        offset: i64 = "offset",
    }
}

header! {
    /// Code 15: a group commits its offset.
    UpdateConsumerOffsetHeader<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        /// A missing one must not be taken for 0.
        commit_offset: Option<i64> = "commitOffset",
        broker_name: Option<&'a str> = "bname",
    }
}

header! {
    /// Code 29: the offset at a time.
    SearchOffsetHeader {
        topic: String = "topic",
        queue_id: i32 = "queueId",
        /// Milliseconds since the epoch.
        timestamp: i64 = "timestamp",
        /// `lower` (also when missing): first message at or after the time; `upper`: last one at or before it.
        boundary_type: Option<String> = "boundaryType",
        lite_topic: Option<String> = "liteTopic",
        broker_name: Option<String> = "bname",
    }
}

header! {
    /// Code 30: one past the last offset of a queue.
    GetMaxOffsetHeader {
        topic: String = "topic",
        queue_id: i32 = "queueId",
        committed: Option<bool> = "committed",
        broker_name: Option<String> = "bname",
    }
}

header! {
    /// Codes 31 and 32: first offset of a queue, and when its message was stored.
    GetMinOffsetHeader {
        topic: String = "topic",
        queue_id: i32 = "queueId",
        broker_name: Option<String> = "bname",
    }
}

header! {
    /// Answer to code 32.
    EarliestMsgStoretimeResponse {
        /// Milliseconds since the epoch; -1: the queue is empty.
        timestamp: i64 = "timestamp",
    }
}

header! {
    /// Codes 222 (operator to broker) and 220 (broker to consumer): move a group to a time.
    ResetOffsetHeader {
        topic: String = "topic",
        group: String = "group",
        /// Milliseconds since the epoch; below 0: the end of the queue.
        timestamp: i64 = "timestamp",
        is_force: bool = "isForce",
        /// One queue; below 0 or missing: all.
        queue_id: Option<i32> = "queueId",
        /// An offset instead of a time.
        offset: Option<i64> = "offset",
    }
}

header! {
    /// Codes 223 (operator to broker) and 221 (broker to consumer): where consumers stand.
    GetConsumerStatusHeader {
        topic: String = "topic",
        group: String = "group",
        client_addr: Option<String> = "clientAddr",
    }
}

header! {
    /// Code 308: smallest offsets over several groups.
    QueryCorrectionOffsetHeader {
        filter_groups: Option<String> = "filterGroups",
        compare_group: String = "compareGroup",
        topic: String = "topic",
    }
}

header! {
    /// Code 314: one group starts where another stands.
    CloneGroupOffsetHeader {
        src_group: String = "srcGroup",
        dest_group: String = "destGroup",
        /// Missing: all topics of the source.
        topic: Option<String> = "topic",
        offline: bool = "offline",
    }
}
