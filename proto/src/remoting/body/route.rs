//! Routes: where the queues of a topic are (105, 217).

use std::collections::BTreeMap;

use serde_json::Value;

use super::body;

/// Broker id of a master.
pub const MASTER_ID: i64 = 0;

body! {
    /// A topic's brokers and queues.
    #[derive(Default)]
    RouteData {
        broker_datas: Vec<BrokerData>,
        filter_server_table: BTreeMap<String, Vec<String>>,
        /// `broker-a:4;broker-b:4` for an ordered topic.
        order_topic_conf: Option<String>,
        queue_datas: Vec<QueueData>,
        topic_queue_mapping_by_broker: Option<BTreeMap<String, Value>>,
    }
}

body! {
    /// A broker and its replicas.
    #[derive(Default)]
    BrokerData {
        /// `ip:port` by broker id; 0 is the master.
        broker_addrs: BTreeMap<i64, String>,
        broker_name: String,
        cluster: String,
        enable_acting_master: bool,
        zone_name: Option<String>,
    }
}

body! {
    /// A topic's queues on one broker.
    #[derive(Default)]
    QueueData {
        broker_name: String,
        /// Bits: 4 read, 2 write, 1 inherit.
        perm: i32,
        read_queue_nums: i32,
        topic_sys_flag: i32,
        write_queue_nums: i32,
    }
}
