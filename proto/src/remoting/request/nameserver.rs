//! Name server: routes (105), topics of a cluster (224), key-value pairs (100 to 102, 219), brokers (103, 104, 205, 322, 327, 901, 904).

use super::header;

header! {
    /// Code 105: where a topic is.
    GetRouteInfoHeader<'a> {
        topic: &'a str = "topic",
        /// The asker cannot read unquoted integer keys.
        accept_standard_json_only: Option<bool> = "acceptStandardJsonOnly",
    }
}

header! {
    /// Code 224: the topics of a cluster.
    GetTopicsByClusterHeader {
        cluster: String = "cluster",
    }
}

header! {
    /// Code 100.
    PutKvConfigHeader {
        namespace: String = "namespace",
        key: String = "key",
        value: String = "value",
    }
}

header! {
    /// Codes 101 and 102.
    KvConfigKeyHeader {
        namespace: String = "namespace",
        key: String = "key",
    }
}

header! {
    /// Answer to code 101.
    GetKvConfigResponse {
        value: Option<String> = "value",
    }
}

header! {
    /// Code 219.
    KvNamespaceHeader {
        namespace: String = "namespace",
    }
}

header! {
    /// Code 103: a broker says that it is there and what it has.
    RegisterBrokerHeader {
        broker_name: String = "brokerName",
        broker_addr: String = "brokerAddr",
        cluster_name: String = "clusterName",
        ha_server_addr: String = "haServerAddr",
        /// 0: master.
        broker_id: i64 = "brokerId",
        heartbeat_timeout_millis: Option<i64> = "heartbeatTimeoutMillis",
        enable_acting_master: Option<bool> = "enableActingMaster",
        /// The body is a zlib stream.
        compressed: bool = "compressed",
        /// CRC-32 of the body without its sign bit; 0: not to be checked.
        body_crc32: i32 = "bodyCrc32",
    }
}

header! {
    /// Answer to code 103.
    RegisterBrokerResponse {
        ha_server_addr: Option<String> = "haServerAddr",
        master_addr: Option<String> = "masterAddr",
    }
}

header! {
    /// Codes 104 (leaving) and 322 (is my registration current?).
    BrokerHeader {
        broker_name: String = "brokerName",
        broker_addr: String = "brokerAddr",
        cluster_name: String = "clusterName",
        broker_id: i64 = "brokerId",
    }
}

header! {
    /// Answer to code 322.
    QueryDataVersionResponse {
        changed: bool = "changed",
    }
}

header! {
    /// Code 904: a broker is alive.
    BrokerHeartbeatHeader {
        cluster_name: String = "clusterName",
        broker_addr: String = "brokerAddr",
        broker_name: String = "brokerName",
        broker_id: Option<i64> = "brokerId",
        epoch: Option<i32> = "epoch",
        max_offset: Option<i64> = "maxOffset",
        confirm_offset: Option<i64> = "confirmOffset",
        heartbeat_timeout_millis: Option<i64> = "heartbeatTimeoutMills",
        election_priority: Option<i32> = "electionPriority",
    }
}

header! {
    /// Codes 205 and 327: topics of this broker stop or start taking messages.
    BrokerNameHeader {
        broker_name: String = "brokerName",
    }
}

header! {
    /// Answer to code 205.
    WipeWritePermResponse {
        wipe_topic_count: i32 = "wipeTopicCount",
    }
}

header! {
    /// Answer to code 327.
    AddWritePermResponse {
        add_topic_count: i32 = "addTopicCount",
    }
}

header! {
    /// Code 901: the brokers of one name.
    GetBrokerMemberGroupHeader {
        cluster_name: String = "clusterName",
        broker_name: String = "brokerName",
    }
}
