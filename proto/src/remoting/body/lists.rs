//! Plain lists and tables: codes 28, 206, 219, 224, 300, 304, 305, 343.

use std::collections::BTreeMap;

use super::body;

body! {
    /// Names and values: state of a broker, key-value configuration.
    #[derive(Default)]
    KvTable {
        table: BTreeMap<String, String>,
    }
}

body! {
    /// Topics.
    #[derive(Default)]
    TopicList {
        /// One broker, where the name server lists system topics.
        broker_addr: Option<String>,
        topic_list: Vec<String>,
    }
}

body! {
    /// Consumer groups.
    #[derive(Default)]
    GroupList {
        group_list: Vec<String>,
    }
}
