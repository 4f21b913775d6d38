//! Group membership: codes 34, 35, 38, 40, 203, 204, 328. Code 46 has a body only.

use super::header;

header! {
    /// Answer to a heartbeat (34).
    HeartbeatResponse {
        is_support_heart_beat_v2: bool = "IS_SUPPORT_HEART_BEAT_V2",
        /// The broker asks for a beat with all subscriptions.
        is_sub_change: Option<bool> = "IS_SUB_CHANGE",
    }
}

header! {
    /// Code 35: a client leaves.
    UnregisterClientHeader {
        client_id: String = "clientID",
        producer_group: Option<String> = "producerGroup",
        consumer_group: Option<String> = "consumerGroup",
    }
}

header! {
    /// A consumer group: codes 38, 40, 203.
    ConsumerGroupHeader {
        consumer_group: String = "consumerGroup",
        broker_name: Option<String> = "bname",
    }
}

header! {
    /// Code 204: the members of a producer group.
    ProducerGroupHeader {
        producer_group: String = "producerGroup",
    }
}
