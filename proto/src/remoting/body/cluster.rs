//! Clusters and the registration of brokers: codes 103, 106, 901.

use std::collections::{BTreeMap, BTreeSet};

use super::body;
use super::route::BrokerData;
use super::topic::TopicConfigTable;

body! {
    /// Answer to code 106: every broker, and the names in each cluster.
    #[derive(Default)]
    ClusterInfo {
        broker_addr_table: BTreeMap<String, BrokerData>,
        cluster_addr_table: BTreeMap<String, BTreeSet<String>>,
    }
}

body! {
    /// Code 103, when it is not compressed.
    #[derive(Default)]
    RegisterBrokerBody {
        filter_server_list: Vec<String>,
        topic_config_serialize_wrapper: TopicConfigTable,
    }
}

body! {
    /// Answer to code 901.
    #[derive(Default)]
    GetBrokerMemberGroupResponseBody {
        broker_member_group: Option<BrokerMemberGroup>,
    }
}

body! {
    /// The brokers of one name.
    #[derive(Default)]
    BrokerMemberGroup {
        broker_addrs: BTreeMap<i64, String>,
        broker_name: String,
        cluster: String,
    }
}
