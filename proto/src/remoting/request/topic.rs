//! Topics: codes 17, 18, 21, 202, 215, 216, 217, 300, 303, 351; broker state: 26, 315, 317.

use super::header;

header! {
    /// Codes 17 and 513: declares a topic.
    CreateTopicHeader {
        topic: String = "topic",
        default_topic: String = "defaultTopic",
        /// `None` lets the receiver use its own default.
        read_queue_nums: Option<i32> = "readQueueNums",
        write_queue_nums: Option<i32> = "writeQueueNums",
        /// Bits: 4 read, 2 write, 1 inherit.
        perm: Option<i32> = "perm",
        /// `SINGLE_TAG` or `MULTI_TAG`.
        topic_filter_type: Option<String> = "topicFilterType",
        topic_sys_flag: Option<i32> = "topicSysFlag",
        order: bool = "order",
        /// `+key=value,-key`.
        attributes: Option<String> = "attributes",
        force: Option<bool> = "force",
        broker_name: Option<String> = "bname",
    }
}

header! {
    /// A topic: codes 202, 215, 217, 300.
    TopicHeader {
        topic: String = "topic",
        broker_name: Option<String> = "bname",
    }
}

header! {
    /// Code 216: the name server forgets a topic.
    DeleteTopicInNamesrvHeader {
        topic: String = "topic",
        cluster_name: Option<String> = "clusterName",
    }
}

header! {
    /// Code 21: all topics, or one page of them.
    GetAllTopicConfigHeader {
        topic_seq: Option<i32> = "topicSeq",
        data_version: Option<String> = "dataVersion",
        max_topic_num: Option<i32> = "maxTopicNum",
    }
}

header! {
    /// Answer to code 21.
    GetAllTopicConfigResponse {
        total_topic_num: Option<i32> = "totalTopicNum",
    }
}

header! {
    /// Code 351: one topic's configuration.
    GetTopicConfigHeader {
        topic: String = "topic",
        /// Ask about the logical queues of a static topic.
        lo: Option<bool> = "lo",
    }
}

header! {
    /// Code 303: how far apart a group's messages are in time.
    QueryConsumeTimeSpanHeader {
        topic: String = "topic",
        group: String = "group",
    }
}

header! {
    /// Answer to code 26.
    GetBrokerConfigResponse {
        /// A data version, as JSON.
        version: String = "version",
    }
}

header! {
    /// Code 315: one counter of the broker.
    ViewBrokerStatsDataHeader {
        stats_name: String = "statsName",
        /// `topic` or `topic@group`.
        stats_key: String = "statsKey",
    }
}

header! {
    /// Code 317: consumption of every group.
    GetBrokerConsumeStatsHeader {
        is_order: bool = "isOrder",
    }
}
