//! JSON in the dialects of the Java libraries: any value, and every body of the protocol.
//!
//! Readers return; what they return is written in both forms and read back the same.

use gantry_proto::json::{self, IntKeys};
use gantry_proto::remoting::body::{
    Body, cluster, connection, consume, group, heartbeat, lists, offsets, queues, route, stats, topic,
    transaction,
};
use serde_json::Value;

/// Reads the input as a value and as every body.
pub fn check(input: &[u8]) {
    if let Ok(value) = json::parse(input) {
        for keys in [IntKeys::Bare, IntKeys::Quoted] {
            let written = json::to_vec(&value, keys);
            let again = json::parse(&written).expect("what was written is read");
            assert_eq!(again, without_nulls(value.clone()), "{}", String::from_utf8_lossy(&written));
        }
        check_bodies(input);
    }
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(config) = topic::TopicConfig::from_line(text)
    {
        let line = config.to_line();
        let again = topic::TopicConfig::from_line(&line).expect("what was written is read");
        assert_eq!(again.to_line(), line);
    }
}

/// The value as it is written: members without a value are left out.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let there = members.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(there.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// Reads the input as one type of body; what it writes in one form is read, and written the same again.
macro_rules! each {
    ($input:expr; $($family:ident: $($name:ident)+;)+) => {
        $($({
            if let Ok(body) = $family::$name::from_json($input) {
                let written = body.to_json();
                let again = $family::$name::from_json(&written).expect("what was written is read");
                assert_eq!(
                    String::from_utf8_lossy(&again.to_json()),
                    String::from_utf8_lossy(&written),
                    concat!(stringify!($name), " is written and read back"),
                );
            }
        })+)+
    };
}

fn check_bodies(input: &[u8]) {
    each! { input;
        consume: ConsumeMessageDirectlyResult ConsumeStatus ConsumerRunningInfo PopProcessQueueInfo
            ProcessQueueInfo;
        topic: CreateTopicListBody DataVersion TopicConfig TopicConfigTable;
        group: CustomizedRetryPolicy ExponentialRetryPolicy GroupForbidden GroupRetryPolicy SimpleSubscriptionData
            SubscriptionGroupConfig SubscriptionGroupList SubscriptionGroupTable;
        cluster: BrokerMemberGroup ClusterInfo GetBrokerMemberGroupResponseBody RegisterBrokerBody;
        queues: BatchAck BatchAckMessageBody LockBatchBody LockBatchResponseBody MessageQueueAssignment
            QueryAssignmentRequestBody QueryAssignmentResponseBody SetMessageRequestModeBody
            MessageQueue;
        heartbeat: CheckClientRequestBody ConsumerData HeartbeatData ProducerData QuerySubscriptionResponseBody
            SubscriptionData;
        connection: Connection ConsumerConnection ConsumerIdList ProducerConnection ProducerInfo ProducerTableInfo;
        route: BrokerData QueueData RouteData;
        transaction: TransactionInfo TransactionList;
        stats: BrokerStatsData BrokerStatsItem ConsumeQueueData ConsumeStats ConsumeStatsList OffsetWrapper
            QueryConsumeQueueResponseBody QueryConsumeTimeSpanBody QueueTimeSpan TopicOffset TopicStatsTable;
        lists: GroupList KvTable TopicList;
        offsets: ConsumerOffsets DelayOffsets GetConsumerStatusBody MessageQueueOffset QueryCorrectionOffsetBody
            ResetOffsetBody ResetOffsetBodyForC;
    }
}
