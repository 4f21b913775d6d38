//! Consumer groups: codes 201, 207, 208, 343, 345, 352, 353, 60010. Codes 200, 225, 41, 42 have a body only.

use super::header;

header! {
    /// Code 201: all groups, or one page of them.
    GetAllSubscriptionGroupHeader {
        group_seq: Option<i32> = "groupSeq",
        data_version: Option<String> = "dataVersion",
        max_group_num: Option<i32> = "maxGroupNum",
    }
}

header! {
    /// Answer to code 201.
    GetAllSubscriptionGroupResponse {
        total_group_num: Option<i32> = "totalGroupNum",
    }
}

header! {
    /// Code 207: forgets a group.
    DeleteSubscriptionGroupHeader {
        group_name: String = "groupName",
        clean_offset: bool = "cleanOffset",
    }
}

header! {
    /// A group: codes 343, 352, 60010.
    GroupHeader {
        group: String = "group",
    }
}

header! {
    /// Code 208: how far a group is behind.
    GetConsumeStatsHeader {
        consumer_group: String = "consumerGroup",
        topic: Option<String> = "topic",
        /// Topics joined by `;`.
        topic_list: Option<String> = "topicList",
    }
}

header! {
    /// Code 345: what a group subscribes to.
    QuerySubscriptionByConsumerHeader {
        group: String = "group",
        topic: String = "topic",
    }
}

header! {
    /// Code 353: may this group read this topic?
    GroupForbiddenHeader {
        group: String = "group",
        topic: String = "topic",
        /// Missing: only ask.
        readable: Option<bool> = "readable",
    }
}
