//! Pulling: codes 11 and 361.

use super::header;

/// Bits of [`PullMessageHeader::sys_flag`].
pub mod sys_flag {
    /// `commit_offset` holds an offset to commit.
    pub const COMMIT_OFFSET: i32 = 1;
    /// The broker may hold the request until a message arrives.
    pub const SUSPEND: i32 = 2;
    /// The subscription expression is in this request.
    pub const SUBSCRIPTION: i32 = 4;
    /// A class filter; nobody uses it.
    pub const CLASS_FILTER: i32 = 8;
    /// A lite pull consumer asks.
    pub const LITE_PULL: i32 = 16;
}

header! {
    /// Codes 11 and 361: messages of one queue, from an offset on.
    PullMessageHeader<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        queue_offset: i64 = "queueOffset",
        max_msg_nums: i32 = "maxMsgNums",
        /// See [`sys_flag`].
        sys_flag: i32 = "sysFlag",
        commit_offset: i64 = "commitOffset",
        /// How long the broker may hold the request.
        suspend_timeout_millis: i64 = "suspendTimeoutMillis",
        /// The expression, when the flag says so.
        subscription: Option<&'a str> = "subscription",
        /// Version of the subscription, milliseconds since the epoch.
        sub_version: i64 = "subVersion",
        /// `TAG` (also when missing) or `SQL92`.
        expression_type: Option<&'a str> = "expressionType",
        max_msg_bytes: Option<i32> = "maxMsgBytes",
        request_source: Option<i32> = "requestSource",
        proxy_forward_client_id: Option<&'a str> = "proxyFrowardClientId",
        lite_topic: Option<&'a str> = "liteTopic",
        broker_name: Option<&'a str> = "bname",
    }
}

header! {
    /// Answer to a pull, on success and on every "not now".
    PullMessageResponse {
        suggest_which_broker_id: i64 = "suggestWhichBrokerId",
        /// Where the consumer pulls next.
        next_begin_offset: i64 = "nextBeginOffset",
        min_offset: i64 = "minOffset",
        max_offset: i64 = "maxOffset",
        offset_delta: Option<i64> = "offsetDelta",
        topic_sys_flag: Option<i32> = "topicSysFlag",
        group_sys_flag: Option<i32> = "groupSysFlag",
        /// With NO_PERMISSION: 1 broker, 2 group, 3 topic, 4 broadcast, 5 subscription.
        forbidden_type: Option<i32> = "forbiddenType",
    }
}
