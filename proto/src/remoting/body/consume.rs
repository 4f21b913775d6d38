//! What a consumer says of itself: codes 307 and 309.

use std::collections::BTreeMap;

use super::heartbeat::SubscriptionData;
use super::queues::MessageQueue;
use super::{body, texts};

/// Keys of [`ConsumerRunningInfo::properties`].
pub mod property {
    /// Name servers the client uses.
    pub const NAMESERVER_ADDR: &str = "PROP_NAMESERVER_ADDR";
    /// A consume type.
    pub const CONSUME_TYPE: &str = "PROP_CONSUME_TYPE";
    /// `true` or `false`.
    pub const CONSUME_ORDERLY: &str = "PROP_CONSUMEORDERLY";
    /// Threads that process messages.
    pub const THREADPOOL_CORE_SIZE: &str = "PROP_THREADPOOL_CORE_SIZE";
    /// Name of the client's version.
    pub const CLIENT_VERSION: &str = "PROP_CLIENT_VERSION";
    /// Milliseconds since the epoch.
    pub const CONSUMER_START_TIMESTAMP: &str = "PROP_CONSUMER_START_TIMESTAMP";
}

body! {
    /// Answer to code 307.
    #[derive(Default)]
    ConsumerRunningInfo {
        /// Stacks of all threads.
        jstack: Option<String>,
        mq_pop_table: BTreeMap<MessageQueue, PopProcessQueueInfo>,
        mq_table: BTreeMap<MessageQueue, ProcessQueueInfo>,
        /// See [`property`].
        properties: BTreeMap<String, String>,
        status_table: BTreeMap<String, ConsumeStatus>,
        subscription_set: Vec<SubscriptionData>,
        user_consumer_info: BTreeMap<String, String>,
    }
}

body! {
    /// A queue that a consumer pops from.
    #[derive(Default)]
    PopProcessQueueInfo {
        /// Dropped; the wire spells it so.
        droped: bool,
        /// Milliseconds since the epoch.
        last_pop_timestamp: i64,
        wait_ack_count: i32,
    }
}

body! {
    /// A queue that a consumer pulls from.
    #[derive(Default)]
    ProcessQueueInfo {
        cached_msg_count: i32,
        cached_msg_max_offset: i64,
        cached_msg_min_offset: i64,
        #[serde(rename = "cachedMsgSizeInMiB")]
        cached_msg_size_in_mib: i32,
        commit_offset: i64,
        /// Dropped; the wire spells it so.
        droped: bool,
        /// Milliseconds since the epoch.
        last_consume_timestamp: i64,
        /// Milliseconds since the epoch.
        last_lock_timestamp: i64,
        /// Milliseconds since the epoch.
        last_pull_timestamp: i64,
        locked: bool,
        transaction_msg_count: i32,
        transaction_msg_max_offset: i64,
        transaction_msg_min_offset: i64,
        try_unlock_times: i64,
    }
}

body! {
    /// Rates of one topic; times in milliseconds.
    #[derive(Default)]
    ConsumeStatus {
        consume_failed_msgs: i64,
        #[serde(rename = "consumeFailedTPS")]
        consume_failed_tps: f64,
        #[serde(rename = "consumeOKTPS")]
        consume_ok_tps: f64,
        #[serde(rename = "consumeRT")]
        consume_rt: f64,
        #[serde(rename = "pullRT")]
        pull_rt: f64,
        #[serde(rename = "pullTPS")]
        pull_tps: f64,
    }
}

texts! {
    /// How processing one message ended.
    ConsumeResult {
        Success = "CR_SUCCESS",
        Later = "CR_LATER",
        Rollback = "CR_ROLLBACK",
        Commit = "CR_COMMIT",
        ThrowException = "CR_THROW_EXCEPTION",
        ReturnNull = "CR_RETURN_NULL",
    }
}

body! {
    /// Answer to code 309.
    #[derive(Default)]
    ConsumeMessageDirectlyResult {
        auto_commit: bool,
        consume_result: Option<ConsumeResult>,
        order: bool,
        remark: Option<String>,
        /// Milliseconds.
        spent_time_mills: i64,
    }
}
