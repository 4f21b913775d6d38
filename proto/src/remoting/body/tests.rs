use std::collections::BTreeMap;

use serde_json::Value;

use super::cluster::*;
use super::connection::*;
use super::consume::*;
use super::group::*;
use super::heartbeat::*;
use super::lists::*;
use super::offsets::*;
use super::queues::*;
use super::route::*;
use super::stats::*;
use super::topic::*;
use super::transaction::*;
use super::*;
use crate::json::parse;

fn file(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Whether what is read into `B` and written again says the same.
fn round_trip<B: Body + PartialEq + std::fmt::Debug>(name: &str, text: &[u8]) {
    let body = B::from_json(text).unwrap_or_else(|error| panic!("{name}: {error}"));
    for again in [body.to_json(), body.to_standard_json()] {
        assert_eq!(parse(&again).unwrap(), parse(text).unwrap(), "{name}");
        assert_eq!(B::from_json(&again).unwrap(), body, "{name}");
    }
}

type Check = fn(&str, &[u8]);

/// The struct of a sampled body; `None` for those without one.
fn check(name: &str) -> Option<Check> {
    Some(match name {
        "TopicRouteData (default)" | "TopicRouteData (standard JSON)" => round_trip::<RouteData>,
        "ClusterInfo" => round_trip::<ClusterInfo>,
        "GetBrokerMemberGroupResponseBody" => round_trip::<GetBrokerMemberGroupResponseBody>,
        "TopicStatsTable" => round_trip::<TopicStatsTable>,
        "ConsumeStats" => round_trip::<ConsumeStats>,
        "ConsumeStatsList" => round_trip::<ConsumeStatsList>,
        "TopicConfigSerializeWrapper" | "TopicConfigAndMappingSerializeWrapper" => {
            round_trip::<TopicConfigTable>
        }
        "TopicConfigAndQueueMapping" => round_trip::<TopicConfig>,
        "CreateTopicListRequestBody" => round_trip::<CreateTopicListBody>,
        "SubscriptionGroupConfig" | "SubscriptionGroupConfig with policy" => {
            round_trip::<SubscriptionGroupConfig>
        }
        "SubscriptionGroupWrapper" => round_trip::<SubscriptionGroupTable>,
        "GroupForbidden" => round_trip::<GroupForbidden>,
        "ConsumerConnection" => round_trip::<ConsumerConnection>,
        "ProducerConnection" => round_trip::<ProducerConnection>,
        "ProducerTableInfo" => round_trip::<ProducerTableInfo>,
        "LockBatchRequestBody" | "UnlockBatchRequestBody" => round_trip::<LockBatchBody>,
        "LockBatchResponseBody" => round_trip::<LockBatchResponseBody>,
        "QueryAssignmentRequestBody" => round_trip::<QueryAssignmentRequestBody>,
        "QueryAssignmentResponseBody" => round_trip::<QueryAssignmentResponseBody>,
        "SetMessageRequestModeRequestBody" => round_trip::<SetMessageRequestModeBody>,
        name if name.starts_with("BatchAckMessageRequestBody") => round_trip::<BatchAckMessageBody>,
        "ResetOffsetBody" => round_trip::<ResetOffsetBody>,
        "ResetOffsetBodyForC" => round_trip::<ResetOffsetBodyForC>,
        "GetConsumerStatusBody (from client)" | "GetConsumerStatusBody (from broker)" => {
            round_trip::<GetConsumerStatusBody>
        }
        "ConsumerRunningInfo" => round_trip::<ConsumerRunningInfo>,
        "ConsumeMessageDirectlyResult" => round_trip::<ConsumeMessageDirectlyResult>,
        "KVTable" => round_trip::<KvTable>,
        "TopicList" => round_trip::<TopicList>,
        "GroupList" => round_trip::<GroupList>,
        "QueryConsumeTimeSpanBody" => round_trip::<QueryConsumeTimeSpanBody>,
        "ConsumerOffsetSerializeWrapper" => round_trip::<ConsumerOffsets>,
        "QueryCorrectionOffsetBody" => round_trip::<QueryCorrectionOffsetBody>,
        "GetConsumerListByGroupResponseBody" => round_trip::<ConsumerIdList>,
        "BrokerStatsData" => round_trip::<BrokerStatsData>,
        "CheckClientRequestBody" => round_trip::<CheckClientRequestBody>,
        "DataVersion" => round_trip::<DataVersion>,
        "QuerySubscriptionResponseBody" => round_trip::<QuerySubscriptionResponseBody>,
        "QueryConsumeQueueResponseBody" => round_trip::<QueryConsumeQueueResponseBody>,
        "RegisterBrokerBody (empty)" => round_trip::<RegisterBrokerBody>,
        "UserInfo" | "AclInfo" | "TopicConfig.encode() line form" => return None,
        other => panic!("{other} is new: give it a struct or list it here"),
    })
}

#[test]
fn bodies_of_the_java_implementation() {
    for version in ["5.5.0", "5.3.3"] {
        let entries: Vec<Value> =
            serde_json::from_slice(&file(&format!("json_bodies.{version}.json"))).unwrap();
        assert!(entries.len() > 30);
        for entry in entries {
            let (name, text) = (entry["name"].as_str().unwrap(), entry["text"].as_str().unwrap());
            if name == "TopicConfig.encode() line form" {
                let topic = TopicConfig::from_line(text).unwrap();
                assert_eq!(
                    topic.attributes,
                    BTreeMap::from([("message.type".to_owned(), "FIFO".to_owned())])
                );
                assert_eq!(topic.to_line(), text);
                continue;
            }
            parse(text.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
            if let Some(check) = check(name) {
                check(&format!("{version} {name}"), text.as_bytes());
            }
        }
    }
}

#[test]
fn answers_of_a_real_cluster() {
    let samples: Value = serde_json::from_slice(&file("broker_admin_samples.json")).unwrap();
    for (request, answer) in samples.as_object().unwrap() {
        let body = answer["body"].as_str().unwrap_or_default().as_bytes();
        if !body.starts_with(b"{") {
            continue;
        }
        parse(body).unwrap_or_else(|error| panic!("{request}: {error}"));
        let check: Check = match request.split(' ').next().unwrap() {
            "105" => round_trip::<RouteData>,
            "106" => round_trip::<ClusterInfo>,
            "206" | "305" => round_trip::<TopicList>,
            "21" => round_trip::<TopicConfigTable>,
            "201" => round_trip::<SubscriptionGroupTable>,
            "43" => round_trip::<ConsumerOffsets>,
            "45" => round_trip::<DelayOffsets>,
            "28" => round_trip::<KvTable>,
            "202" => round_trip::<TopicStatsTable>,
            "208" => round_trip::<ConsumeStats>,
            "203" => round_trip::<ConsumerConnection>,
            "204" => round_trip::<ProducerConnection>,
            "303" => round_trip::<QueryConsumeTimeSpanBody>,
            "300" => round_trip::<GroupList>,
            "38" => round_trip::<ConsumerIdList>,
            "351" => round_trip::<TopicConfig>,
            "352" => round_trip::<SubscriptionGroupConfig>,
            "321" => round_trip::<QueryConsumeQueueResponseBody>,
            "307" => round_trip::<ConsumerRunningInfo>,
            other => panic!("{other} has a body and no struct"),
        };
        check(request, body);
    }
}

#[test]
fn configuration_files_of_a_java_broker() {
    round_trip::<TopicConfigTable>("topics", &file("store/config/topics.json"));
    round_trip::<SubscriptionGroupTable>("groups", &file("store/config/subscriptionGroup.json"));
    round_trip::<ConsumerOffsets>("offsets", &file("store/config/consumerOffset.json"));
    round_trip::<DelayOffsets>("delays", &file("store/config/delayOffset.json"));
    for name in ["consumerFilter", "consumerOrderInfo"] {
        parse(&file(&format!("store/config/{name}.json"))).unwrap();
    }
    let offsets = ConsumerOffsets::from_json(&file("store/config/consumerOffset.json")).unwrap();
    assert_eq!(offsets.offset_table["VecNormal@cg_sql"], BTreeMap::from([(0, 5), (1, 5)]));
}

#[test]
fn heartbeats_of_all_clients() {
    for sample in super::super::vectors::commands("5.5.0") {
        let command = sample.command();
        if command.code == 34 {
            round_trip::<HeartbeatData>(&sample.name, &command.body);
        }
    }
    let sparse = br#"{"clientID":"c","consumerDataSet":[{"groupName":"g","consumeType":"CONSUME_DREAMILY",
        "subscriptionDataSet":[{"topic":"T","subString":"*","tagsSet":null,"codeSet":null}]}],"producerDataSet":null}"#;
    let beat = HeartbeatData::from_json(sparse).unwrap();
    let group = &beat.consumer_data_set[0];
    assert_eq!(group.consume_type, ConsumeType::Other("CONSUME_DREAMILY".to_owned()));
    assert_eq!(group.message_model, MessageModel::Clustering);
    assert_eq!(group.subscription_data_set[0].expression_type, "TAG");
}

#[test]
fn java_form_and_standard_form_differ_in_integer_keys() {
    let addrs = BTreeMap::from([(0, "127.0.0.1:10911".to_owned())]);
    let route = RouteData {
        broker_datas: vec![BrokerData { broker_addrs: addrs, ..BrokerData::default() }],
        ..RouteData::default()
    };
    let java = String::from_utf8(route.to_json()).unwrap();
    assert!(java.contains(r#"{"brokerAddrs":{0:"127.0.0.1:10911"},"#), "{java}");
    let standard = String::from_utf8(route.to_standard_json()).unwrap();
    assert!(standard.contains(r#"{"brokerAddrs":{"0":"127.0.0.1:10911"},"#), "{standard}");
}

#[test]
fn lists_of_transactions_round_trip() {
    let open = TransactionInfo { state: TransactionState::Open, checks: 3, ..TransactionInfo::default() };
    let parked = TransactionInfo { state: TransactionState::Redriven, ..TransactionInfo::default() };
    let list = TransactionList { transactions: vec![open, parked] };
    assert_eq!(TransactionList::from_json(&list.to_json()), Ok(list));
}

#[test]
fn unknown_fields_of_configuration_survive() {
    let text = br#"{"topicName":"T","perm":"4","future":{"a":[1]},"nothing":null}"#;
    let topic = TopicConfig::from_json(text).unwrap();
    assert_eq!((topic.perm, topic.write_queue_nums), (4, 16));
    let again = parse(&topic.to_json()).unwrap();
    assert_eq!(again["future"], serde_json::json!({"a": [1]}));
}

#[test]
fn old_and_broken_topic_lines() {
    let topic = TopicConfig::from_line("T 8 4 6 SINGLE_TAG").unwrap();
    assert_eq!((topic.read_queue_nums, topic.write_queue_nums, topic.perm), (8, 4, 6));
    assert!(TopicConfig::from_line("T eight 4 6 SINGLE_TAG").is_err());
    assert!(TopicConfig::from_line("T 8").is_err());
}

#[test]
fn resets_for_cpp_are_lists() {
    let queue = MessageQueue { broker_name: "b".to_owned(), queue_id: 2, topic: "T".to_owned() };
    let body = ResetOffsetBody { offset_table: BTreeMap::from([(queue, 7)]) };
    let list = String::from_utf8(ResetOffsetBodyForC::from(&body).to_json()).unwrap();
    assert_eq!(list, r#"{"offsetTable":[{"brokerName":"b","offset":7,"queueId":2,"topic":"T"}]}"#);
    let map = String::from_utf8(body.to_json()).unwrap();
    assert_eq!(map, r#"{"offsetTable":{{"brokerName":"b","queueId":2,"topic":"T"}:7}}"#);
}

proptest::proptest! {
    #[test]
    fn any_bytes_return(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
        let _ = HeartbeatData::from_json(&bytes);
        let _ = TopicConfigTable::from_json(&bytes);
        let _ = TopicConfig::from_line(&String::from_utf8_lossy(&bytes));
    }
}
