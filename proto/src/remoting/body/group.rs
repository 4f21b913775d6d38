//! Consumer group configuration: codes 200, 201, 225, 352, 353 and the file `subscriptionGroup.json`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::topic::DataVersion;
use super::{body, texts};

texts! {
    /// Which retry schedule a group uses.
    RetryPolicyType {
        /// The listed delays, or the broker's own when there are none.
        Customized = "CUSTOMIZED",
        Exponential = "EXPONENTIAL",
    }
}

body! {
    /// When a refused message comes again.
    #[derive(Eq, Default)]
    GroupRetryPolicy {
        customized_retry_policy: Option<CustomizedRetryPolicy>,
        exponential_retry_policy: Option<ExponentialRetryPolicy>,
        #[serde(rename = "type")]
        kind: RetryPolicyType,
    }
}

body! {
    /// Delays one by one.
    #[derive(Eq, Default)]
    CustomizedRetryPolicy {
        /// Milliseconds.
        next: Vec<i64>,
    }
}

body! {
    /// Growing delays.
    #[derive(Eq)]
    ExponentialRetryPolicy {
        /// Milliseconds.
        initial: i64,
        /// Milliseconds.
        max: i64,
        multiplier: i64,
    }
}

impl Default for ExponentialRetryPolicy {
    fn default() -> Self {
        Self { initial: 5_000, max: 7_200_000, multiplier: 2 }
    }
}

body! {
    /// A subscription fixed in a group's configuration.
    #[derive(Eq, Default)]
    SimpleSubscriptionData {
        expression: String,
        expression_type: String,
        topic: String,
        version: i64,
    }
}

body! {
    /// One consumer group.
    SubscriptionGroupConfig {
        attributes: BTreeMap<String, String>,
        broker_id: i64,
        consume_broadcast_enable: bool,
        consume_enable: bool,
        consume_from_min_enable: bool,
        consume_message_orderly: bool,
        /// Minutes.
        consume_timeout_minute: i32,
        group_name: String,
        group_retry_policy: GroupRetryPolicy,
        group_sys_flag: i32,
        notify_consumer_ids_changed_enable: bool,
        retry_max_times: i32,
        retry_queue_nums: i32,
        subscription_data_set: Option<Vec<SimpleSubscriptionData>>,
        which_broker_when_consume_slowly: i64,
        /// Fields that are not known here.
        #[serde(flatten)]
        extra: BTreeMap<String, Value>,
    }
}

impl Default for SubscriptionGroupConfig {
    fn default() -> Self {
        Self {
            attributes: BTreeMap::new(),
            broker_id: 0,
            consume_broadcast_enable: true,
            consume_enable: true,
            consume_from_min_enable: true,
            consume_message_orderly: false,
            consume_timeout_minute: 15,
            group_name: String::new(),
            group_retry_policy: GroupRetryPolicy::default(),
            group_sys_flag: 0,
            notify_consumer_ids_changed_enable: true,
            retry_max_times: 16,
            retry_queue_nums: 1,
            subscription_data_set: None,
            which_broker_when_consume_slowly: 1,
            extra: BTreeMap::new(),
        }
    }
}

body! {
    /// All groups (or a page of them) with their version, as in `subscriptionGroup.json`.
    #[derive(Default)]
    SubscriptionGroupTable {
        data_version: DataVersion,
        /// Bits by group and topic; from 5.4 on.
        forbidden_table: Option<BTreeMap<String, BTreeMap<String, i32>>>,
        subscription_group_table: BTreeMap<String, SubscriptionGroupConfig>,
        /// Fields that are not known here.
        #[serde(flatten)]
        extra: BTreeMap<String, Value>,
    }
}

body! {
    /// Code 225.
    #[derive(Default)]
    SubscriptionGroupList {
        group_config_list: Vec<SubscriptionGroupConfig>,
    }
}

body! {
    /// Answer to code 60010, Gantry's own: members of a broadcasting group that keep their offsets with the broker.
    #[derive(Eq, Default)]
    BroadcastMembers {
        members: Vec<BroadcastMember>,
    }
}

body! {
    /// One such member.
    #[derive(Eq, Default)]
    BroadcastMember {
        name: String,
        /// When it was heard of last; milliseconds since the epoch.
        last_seen: i64,
    }
}

body! {
    /// Answer to code 353.
    #[derive(Eq, Default)]
    GroupForbidden {
        group: String,
        readable: Option<bool>,
        topic: String,
    }
}
