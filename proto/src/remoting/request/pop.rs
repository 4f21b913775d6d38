//! Popping: codes 200050 to 200055 and 200151. Their numbers fit the JSON header only.

use super::header;

/// `maxMsgNums` of a pop, at the most.
pub const POP_MESSAGES_MAX: i32 = 32;
/// `reviveQid` of messages that were popped in order.
pub const REVIVE_ORDERLY: i32 = 999;

/// Values of [`PopMessageHeader::init_mode`].
pub mod init_mode {
    /// A group that is new to a queue starts with its first message.
    pub const MIN: i32 = 0;
    /// It starts with its last message.
    pub const MAX: i32 = 1;
}

header! {
    /// Code 200050: messages of a topic that nobody else of the group gets for some time.
    PopMessageHeader<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        /// -1: all queues.
        queue_id: i32 = "queueId",
        max_msg_nums: i32 = "maxMsgNums",
        /// For how long nobody else gets them, in milliseconds.
        invisible_time: i64 = "invisibleTime",
        /// How long the broker may hold the request, in milliseconds.
        poll_time: i64 = "pollTime",
        /// When the client sent the request, in milliseconds since the epoch.
        born_time: i64 = "bornTime",
        /// See [`init_mode`].
        init_mode: i32 = "initMode",
        /// `TAG` (also when missing) or `SQL92`.
        exp_type: Option<&'a str> = "expType",
        exp: Option<&'a str> = "exp",
        /// Whether a queue's messages are given in order, the next ones when these are acknowledged.
        order: Option<bool> = "order",
        /// A repeated request with the same id is given the same messages.
        attempt_id: Option<&'a str> = "attemptId",
    }
}

header! {
    /// Answer to code 200050.
    PopMessageResponse {
        /// When they were popped, in milliseconds since the epoch.
        pop_time: i64 = "popTime",
        invisible_time: i64 = "invisibleTime",
        revive_qid: i32 = "reviveQid",
        /// Messages that are left in the queues.
        rest_num: i64 = "restNum",
        /// See [`PopInfo`](crate::receipt::PopInfo).
        start_offset_info: Option<String> = "startOffsetInfo",
        msg_offset_info: Option<String> = "msgOffsetInfo",
        order_count_info: Option<String> = "orderCountInfo",
    }
}

header! {
    /// Code 200051: a popped message is done.
    AckMessageHeader<'a> {
        consumer_group: &'a str = "consumerGroup",
        /// The topic that the message lies in, which may be the group's retry topic.
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        /// The receipt handle.
        extra_info: &'a str = "extraInfo",
        offset: i64 = "offset",
    }
}

header! {
    /// Code 200053: from now on a popped message is invisible for another time.
    ChangeInvisibleTimeHeader<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
        /// The receipt handle.
        extra_info: &'a str = "extraInfo",
        offset: i64 = "offset",
        /// Milliseconds.
        invisible_time: i64 = "invisibleTime",
        /// Whether the delivery that ends then does not count as an attempt.
        suspend: Option<bool> = "suspend",
    }
}

header! {
    /// Answer to code 200053: what the new receipt handle is made of.
    ChangeInvisibleTimeResponse {
        pop_time: i64 = "popTime",
        invisible_time: i64 = "invisibleTime",
        revive_qid: i32 = "reviveQid",
    }
}

header! {
    /// Code 200054: tell when there is something to pop.
    NotificationHeader<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        /// -1: all queues.
        queue_id: i32 = "queueId",
        poll_time: i64 = "pollTime",
        born_time: i64 = "bornTime",
        order: Option<bool> = "order",
        attempt_id: Option<&'a str> = "attemptId",
        exp_type: Option<&'a str> = "expType",
        exp: Option<&'a str> = "exp",
    }
}

header! {
    /// Answer to code 200054.
    NotificationResponse {
        has_msg: bool = "hasMsg",
        polling_full: Option<bool> = "pollingFull",
    }
}

header! {
    /// Code 200055: how many pops wait?
    PollingInfoHeader<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        queue_id: i32 = "queueId",
    }
}

header! {
    /// Answer to code 200055.
    PollingInfoResponse {
        polling_num: i32 = "pollingNum",
    }
}

header! {
    /// Code 200052: the messages that a pop would give, without taking them.
    PeekMessageHeader<'a> {
        consumer_group: &'a str = "consumerGroup",
        topic: &'a str = "topic",
        /// -1: all queues.
        queue_id: i32 = "queueId",
        max_msg_nums: i32 = "maxMsgNums",
    }
}
