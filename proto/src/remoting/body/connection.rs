//! Who is connected: codes 38, 203, 204, 328.

use std::collections::BTreeMap;

use super::super::codes::Language;
use super::body;
use super::heartbeat::{ConsumeFromWhere, ConsumeType, MessageModel, SubscriptionData};

body! {
    /// One client's connection.
    #[derive(Default)]
    Connection {
        /// `ip:port`.
        client_addr: String,
        client_id: String,
        language: Language,
        version: i32,
    }
}

body! {
    /// Answer to code 203: a consumer group's members and subscriptions.
    #[derive(Default)]
    ConsumerConnection {
        connection_set: Vec<Connection>,
        consume_from_where: Option<ConsumeFromWhere>,
        consume_type: Option<ConsumeType>,
        message_model: Option<MessageModel>,
        /// Gantry's own: topics to which the members do not subscribe alike, with what each client id wants of it;
        /// an empty text is nothing.
        subscription_conflicts: Option<BTreeMap<String, BTreeMap<String, String>>>,
        subscription_table: BTreeMap<String, SubscriptionData>,
    }
}

body! {
    /// Answer to code 204: a producer group's members.
    #[derive(Default)]
    ProducerConnection {
        connection_set: Vec<Connection>,
    }
}

body! {
    /// One producer of code 328.
    #[derive(Default)]
    ProducerInfo {
        client_id: String,
        language: Language,
        /// Milliseconds since the epoch.
        last_update_timestamp: i64,
        #[serde(rename = "remoteIP")]
        remote_ip: String,
        version: i32,
    }
}

body! {
    /// Answer to code 328: all producers by group.
    #[derive(Default)]
    ProducerTableInfo {
        data: BTreeMap<String, Vec<ProducerInfo>>,
    }
}

body! {
    /// Answer to code 38: client ids of a consumer group.
    #[derive(Default)]
    ConsumerIdList {
        consumer_id_list: Vec<String>,
    }
}
