//! What a broker asks of its clients: codes 307, 309, 326. Codes 39, 40, 220 and 221 are with their families.

use super::header;

header! {
    /// Code 307: how a consumer is doing. Operators send it to the broker, which hands it on.
    GetConsumerRunningInfoHeader {
        consumer_group: String = "consumerGroup",
        client_id: String = "clientId",
        /// With the stacks of its threads.
        jstack_enable: bool = "jstackEnable",
    }
}

header! {
    /// Code 309: a consumer is to process one message now; the body holds it.
    ConsumeMessageDirectlyHeader {
        consumer_group: String = "consumerGroup",
        client_id: Option<String> = "clientId",
        /// Offset message id.
        msg_id: Option<String> = "msgId",
        broker_name: Option<String> = "brokerName",
        topic: Option<String> = "topic",
        topic_sys_flag: Option<i32> = "topicSysFlag",
        group_sys_flag: Option<i32> = "groupSysFlag",
    }
}

header! {
    /// Code 326: the reply to a request message; the body is the message body.
    PushReplyMessageHeader {
        producer_group: String = "producerGroup",
        topic: String = "topic",
        default_topic: String = "defaultTopic",
        default_topic_queue_nums: i32 = "defaultTopicQueueNums",
        queue_id: i32 = "queueId",
        sys_flag: i32 = "sysFlag",
        /// Milliseconds since the epoch.
        born_timestamp: i64 = "bornTimestamp",
        flag: i32 = "flag",
        properties: Option<String> = "properties",
        reconsume_times: Option<i32> = "reconsumeTimes",
        unit_mode: Option<bool> = "unitMode",
        born_host: String = "bornHost",
        store_host: String = "storeHost",
        /// Milliseconds since the epoch.
        store_timestamp: i64 = "storeTimestamp",
    }
}
