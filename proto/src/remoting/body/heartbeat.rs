//! Heartbeats (34) and what clients subscribe to; code 46.

use std::collections::BTreeSet;

use super::{body, texts};

texts! {
    /// How a consumer takes messages.
    ConsumeType {
        /// Push.
        Passively = "CONSUME_PASSIVELY",
        /// Pull.
        Actively = "CONSUME_ACTIVELY",
        Pop = "CONSUME_POP",
    }
}

texts! {
    /// Who of a group gets a message.
    MessageModel {
        /// One member.
        Clustering = "CLUSTERING",
        /// Every member.
        Broadcasting = "BROADCASTING",
        LiteSelective = "LITE_SELECTIVE",
    }
}

texts! {
    /// Where a group without an offset starts.
    ConsumeFromWhere {
        LastOffset = "CONSUME_FROM_LAST_OFFSET",
        FirstOffset = "CONSUME_FROM_FIRST_OFFSET",
        Timestamp = "CONSUME_FROM_TIMESTAMP",
    }
}

body! {
    /// A client and the groups it is in.
    #[derive(Default)]
    HeartbeatData {
        #[serde(rename = "clientID")]
        client_id: String,
        consumer_data_set: Vec<ConsumerData>,
        /// Not 0: a beat of version 2, which may leave the subscriptions out.
        heartbeat_fingerprint: i32,
        producer_data_set: Vec<ProducerData>,
        /// The subscriptions were left out.
        without_sub: bool,
    }
}

body! {
    /// A consumer group in a heartbeat.
    #[derive(Default)]
    ConsumerData {
        consume_from_where: ConsumeFromWhere,
        consume_type: ConsumeType,
        group_name: String,
        message_model: MessageModel,
        subscription_data_set: Vec<SubscriptionData>,
        unit_mode: bool,
    }
}

body! {
    /// A producer group in a heartbeat.
    #[derive(Default)]
    ProducerData {
        group_name: String,
    }
}

body! {
    /// What a group wants of a topic.
    SubscriptionData {
        class_filter_mode: bool,
        /// Java hash codes of the tags.
        code_set: BTreeSet<i32>,
        /// `TAG` or `SQL92`.
        expression_type: String,
        /// The expression; `*` is everything.
        sub_string: String,
        /// Milliseconds since the epoch at which it was made; newer ones win.
        sub_version: i64,
        tags_set: BTreeSet<String>,
        topic: String,
    }
}

impl Default for SubscriptionData {
    fn default() -> Self {
        Self {
            class_filter_mode: false,
            code_set: BTreeSet::new(),
            expression_type: "TAG".to_owned(),
            sub_string: String::new(),
            sub_version: 0,
            tags_set: BTreeSet::new(),
            topic: String::new(),
        }
    }
}

body! {
    /// Code 46: can the broker evaluate this subscription?
    #[derive(Default)]
    CheckClientRequestBody {
        client_id: String,
        group: String,
        namespace: Option<String>,
        subscription_data: SubscriptionData,
    }
}

body! {
    /// Answer to code 345.
    #[derive(Default)]
    QuerySubscriptionResponseBody {
        group: String,
        subscription_data: Option<SubscriptionData>,
        topic: String,
    }
}
