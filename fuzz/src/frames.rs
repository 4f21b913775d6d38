//! The stream of a connection: frames, command headers in both forms, the typed header of every code.
//!
//! Decoders return, and what they return is written and read back the same.

use gantry_proto::record::BatchItems;
use gantry_proto::remoting::frame::{Frame, Serialize};
use gantry_proto::remoting::header::{ExtFields, ExtWrite, OwnedCommand};
use gantry_proto::remoting::request::{
    Header, callback, group, member, nameserver, offset, pull, query, send, topic, transaction,
};

/// Longest frame that is taken.
const LIMIT: usize = 1 << 20;

/// Reads all frames of a stream.
pub fn check(input: &[u8]) {
    let mut rest = input;
    loop {
        let missing = Frame::missing(rest, LIMIT);
        match Frame::cut(rest, LIMIT) {
            Err(error) => return assert_eq!(missing, Err(error)),
            Ok(None) => return assert_ne!(missing, Ok(0), "a frame lacks bytes"),
            Ok(Some(frame)) => {
                assert_eq!(missing, Ok(0));
                assert!(frame.len >= 8 && frame.len <= rest.len(), "{frame:?}");
                check_frame(&frame);
                rest = rest.get(frame.len..).expect("a frame lies in its stream");
            }
        }
    }
}

fn check_frame(frame: &Frame<'_>) {
    let Ok(command) = OwnedCommand::decode(frame) else { return };
    for form in [Serialize::Json, Serialize::RocketMq] {
        let mut bytes = Vec::new();
        if command.encode(&mut bytes, form).is_err() {
            continue; // longer than the form can say
        }
        let again = Frame::cut(&bytes, usize::MAX).expect("a frame was written").expect("a whole one");
        let again = OwnedCommand::decode(&again).expect("what was written is read");
        let mut expected = command.clone();
        if form == Serialize::RocketMq {
            // What the binary form cuts off, or cannot tell from nothing.
            assert_eq!((low(again.code), low(again.version)), (low(command.code), low(command.version)));
            (expected.code, expected.version) = (again.code, again.version);
            expected.remark = command.remark.clone().filter(|remark| !remark.is_empty());
            expected.ext = ExtFields::new();
            for (name, value) in command.ext.iter().filter(|(name, _)| !name.is_empty()) {
                expected.ext.push(name.to_owned(), value.to_owned());
            }
        }
        assert_eq!(again, expected, "{form:?}");
    }
    check_headers(&command.ext);
    for item in BatchItems::new(&command.body) {
        drop(item);
    }
}

/// The half of a number that the binary form keeps.
fn low(number: i32) -> i32 {
    number & 0xffff
}

/// Reads the fields as one type of header, and what that writes.
macro_rules! each {
    ($ext:expr; $($family:ident: $($name:ident)+;)+) => {
        $($({
            if let Ok(header) = <$family::$name as Header<'_>>::decode($ext) {
                let written = fields(&header);
                let again = <$family::$name as Header<'_>>::decode(&written).expect("what was written is read");
                assert_eq!(again, header);
            }
        })+)+
    };
}

fn fields(header: &impl ExtWrite) -> ExtFields<'static> {
    OwnedCommand::request(0, header).ext
}

fn check_headers(ext: &ExtFields<'_>) {
    each! { ext;
        send: SendMessageHeader SendMessageV2 SendMessageResponse SendReplyExtras ConsumerSendMsgBackHeader
            RecallMessageHeader RecallMessageResponse;
        pull: PullMessageHeader PullMessageResponse;
        offset: QueryConsumerOffsetHeader OffsetResponse UpdateConsumerOffsetHeader SearchOffsetHeader
            GetMaxOffsetHeader GetMinOffsetHeader EarliestMsgStoretimeResponse ResetOffsetHeader
            GetConsumerStatusHeader QueryCorrectionOffsetHeader CloneGroupOffsetHeader;
        transaction: EndTransactionHeader CheckTransactionStateHeader ResumeCheckHalfMessageHeader
            ListTransactionsHeader EndTransactionByOperatorHeader EndTransactionByOperatorResponse;
        member: HeartbeatResponse UnregisterClientHeader ConsumerGroupHeader ProducerGroupHeader;
        topic: CreateTopicHeader TopicHeader DeleteTopicInNamesrvHeader GetAllTopicConfigHeader
            GetAllTopicConfigResponse GetTopicConfigHeader QueryConsumeTimeSpanHeader GetBrokerConfigResponse
            ViewBrokerStatsDataHeader GetBrokerConsumeStatsHeader;
        group: GetAllSubscriptionGroupHeader GetAllSubscriptionGroupResponse DeleteSubscriptionGroupHeader
            GroupHeader GetConsumeStatsHeader QuerySubscriptionByConsumerHeader GroupForbiddenHeader;
        query: QueryMessageHeader QueryMessageResponse ViewMessageHeader QueryConsumeQueueHeader;
        nameserver: GetRouteInfoHeader GetTopicsByClusterHeader PutKvConfigHeader KvConfigKeyHeader
            GetKvConfigResponse KvNamespaceHeader RegisterBrokerHeader RegisterBrokerResponse BrokerHeader
            QueryDataVersionResponse BrokerHeartbeatHeader BrokerNameHeader WipeWritePermResponse
            AddWritePermResponse GetBrokerMemberGroupHeader;
        callback: GetConsumerRunningInfoHeader ConsumeMessageDirectlyHeader PushReplyMessageHeader;
    }
}
