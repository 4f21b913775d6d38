use super::super::codes::RequestCode;
use super::super::frame::{PREFIX_LEN, Serialize};
use super::super::header::{Command, ExtFields, ExtWrite, Head, OwnedCommand, encode_frame};
use super::callback::*;
use super::drain::*;
use super::group::*;
use super::member::*;
use super::nameserver::*;
use super::offset::*;
use super::pull::*;
use super::query::*;
use super::send::*;
use super::topic::*;
use super::transaction::*;
use super::*;
use proptest::prelude::*;

/// Fields that `header` writes, as a command carries them.
fn fields(header: &impl ExtWrite) -> ExtFields<'static> {
    OwnedCommand::request(0, header).ext
}

#[test]
fn both_names_of_a_send_give_the_same_header() {
    let header = SendMessageHeader {
        producer_group: "pg",
        topic: "T",
        default_topic: "TBW102",
        default_topic_queue_nums: 4,
        queue_id: -1,
        sys_flag: 1,
        born_timestamp: 1_700_000_000_123,
        flag: 7,
        properties: Some("KEYS\u{1}k\u{2}"),
        reconsume_times: Some(0),
        unit_mode: Some(false),
        max_reconsume_times: None,
        batch: Some(true),
        broker_name: Some("broker-a"),
    };
    let long = fields(&header);
    let letters = fields(&SendMessageV2(header.clone()));
    assert_eq!(letters.get("i"), Some("KEYS\u{1}k\u{2}"));
    assert_eq!(letters.get("l"), None);
    assert_eq!(SendMessageHeader::read(RequestCode::SendMessage, &long), Ok(header.clone()));
    assert_eq!(SendMessageHeader::read(RequestCode::SendBatchMessage, &letters), Ok(header));
}

/// The binary header of a send with these fields.
fn binary_send(code: RequestCode, ext: &impl ExtWrite) -> Vec<u8> {
    let mut out = Vec::new();
    encode_frame(&mut out, Serialize::RocketMq, &Head::request(code, 7), ext, 0).expect("encodable");
    out.split_off(PREFIX_LEN)
}

#[test]
fn a_send_is_read_in_one_pass_where_that_can_be() {
    let long = "KEYS\u{1}".to_owned() + &"k".repeat(300);
    for properties in [None, Some("KEYS\u{1}k\u{2}"), Some("\u{e4}"), Some(long.as_str())] {
        let header =
            SendMessageHeader { topic: "T", queue_id: -1, properties, ..SendMessageHeader::default() };
        let bytes = binary_send(RequestCode::SendMessageV2, &SendMessageV2(header.clone()));
        let quick = QuickSend::read(&bytes).expect("as our client writes it");
        assert_eq!((quick.code, quick.header, quick.command.opaque), (RequestCode::SendMessageV2, header, 7));
    }
    let letters = |names: &[&'static str]| {
        let mut ext = ExtFields::new();
        for name in names {
            ext.push(*name, "1");
        }
        QuickSend::read(&binary_send(RequestCode::SendBatchMessage, &ext)).is_some()
    };
    assert!(letters(&["a", "b", "n"]));
    assert!(!letters(&["a", "a"]) && !letters(&["o"]) && !letters(&["A"]) && !letters(&["topic"]));
    let header = SendMessageHeader { topic: "T", ..SendMessageHeader::default() };
    assert_eq!(QuickSend::read(&binary_send(RequestCode::SendMessage, &header)), None);
}

proptest! {
    #[test]
    fn one_pass_reads_what_two_passes_read(
        code in prop_oneof![Just(310), Just(320), Just(10), any::<i32>().prop_map(|code| code % 30_000)],
        fields in proptest::collection::vec(("[a-o]", "[0-9a-z\u{e4}-]{0,200}"), 0..8),
        damage in proptest::option::of((any::<proptest::sample::Index>(), any::<u8>())),
    ) {
        let mut ext = ExtFields::new();
        for (name, value) in &fields {
            ext.push(name.as_str(), value.as_str());
        }
        let mut bytes = binary_send(RequestCode::from(code), &ext);
        if let Some((at, byte)) = damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(quick) = QuickSend::read(&bytes) {
            let slow = Command::decode(Serialize::RocketMq, &bytes).expect("what one pass reads two passes read");
            prop_assert_eq!(SendMessageHeader::read(quick.code, &slow.ext), Ok(quick.header));
            prop_assert_eq!(quick.command, Command { ext: ExtFields::new(), ..slow });
        }
    }
}

#[test]
fn missing_fields_are_defaults_and_broken_ones_are_named() {
    let mut ext = ExtFields::new();
    assert_eq!(PullMessageHeader::decode(&ext), Ok(PullMessageHeader::default()));
    assert_eq!(UpdateConsumerOffsetHeader::decode(&ext).unwrap().commit_offset, None);
    ext.push("queueId", "two");
    let error = PullMessageHeader::decode(&ext).unwrap_err();
    assert_eq!(
        (error.field, error.value.as_str(), error.expected),
        ("queueId", "two", "a 32 bit whole number")
    );
}

/// Every wire name must be one of the reference; a header that round trips can still be misspelt.
#[test]
fn fields_of_the_sampled_commands_are_all_known() {
    for version in ["5.5.0", "5.3.3"] {
        for sample in super::super::vectors::commands(version) {
            let command = sample.command();
            let again = match command.code {
                10 => fields(&command.header::<SendMessageHeader<'_>>().unwrap()),
                310 | 320 => fields(&command.header::<SendMessageV2<'_>>().unwrap()),
                11 => fields(&command.header::<PullMessageHeader<'_>>().unwrap()),
                15 => fields(&command.header::<UpdateConsumerOffsetHeader<'_>>().unwrap()),
                37 => fields(&command.header::<EndTransactionHeader<'_>>().unwrap()),
                39 => fields(&command.header::<CheckTransactionStateHeader>().unwrap()),
                103 => fields(&command.header::<RegisterBrokerHeader>().unwrap()),
                105 => fields(&command.header::<GetRouteInfoHeader<'_>>().unwrap()),
                0 if command.ext.get("msgId").is_some() => fields(&(
                    command.header::<SendMessageResponse<'_>>().unwrap(),
                    command.header::<SendReplyExtras<'_>>().unwrap(),
                )),
                0 | 19 if command.ext.get("nextBeginOffset").is_some() => {
                    fields(&command.header::<PullMessageResponse>().unwrap())
                }
                _ => continue,
            };
            let mut expected: Vec<_> = command.ext.iter().collect();
            let mut found: Vec<_> = again.iter().collect();
            expected.sort_unstable();
            found.sort_unstable();
            assert_eq!(found, expected, "{}", sample.name);
        }
    }
}

/// Each header, with every field filled, is read back as it was written.
macro_rules! round_trips {
    ($($header:ident,)+) => {
        #[test]
        fn every_header_round_trips() {
            $(
                let mut filled = ExtFields::new();
                for (name, _) in fields(&<$header>::decode(&Numbers::fields()).unwrap()).iter() {
                    filled.push(name.to_owned(), "1");
                }
                let header = <$header>::decode(&filled).unwrap();
                let written = fields(&header);
                assert_eq!(<$header>::decode(&written), Ok(header), stringify!($header));
                assert_eq!(written.len(), filled.len(), stringify!($header));
            )+
        }
    };
}

/// Fields under every name this module knows.
struct Numbers;

impl Numbers {
    fn fields() -> ExtFields<'static> {
        let mut ext = ExtFields::new();
        for source in [
            include_str!("callback.rs"),
            include_str!("drain.rs"),
            include_str!("group.rs"),
            include_str!("member.rs"),
            include_str!("nameserver.rs"),
            include_str!("offset.rs"),
            include_str!("pull.rs"),
            include_str!("query.rs"),
            include_str!("send.rs"),
            include_str!("topic.rs"),
            include_str!("transaction.rs"),
        ] {
            for name in source.lines().filter_map(|line| line.trim().strip_suffix("\",")?.rsplit_once('"')) {
                ext.set(name.1.to_owned(), "1");
            }
        }
        ext
    }
}

round_trips! {
    SendMessageHeader, SendMessageV2, SendMessageResponse, SendReplyExtras, ConsumerSendMsgBackHeader,
    RecallMessageHeader, RecallMessageResponse, PullMessageHeader, PullMessageResponse,
    QueryConsumerOffsetHeader, OffsetResponse, UpdateConsumerOffsetHeader, SearchOffsetHeader,
    GetMaxOffsetHeader, GetMinOffsetHeader, EarliestMsgStoretimeResponse, ResetOffsetHeader,
    GetConsumerStatusHeader, QueryCorrectionOffsetHeader, CloneGroupOffsetHeader, EndTransactionHeader,
    CheckTransactionStateHeader, ResumeCheckHalfMessageHeader, ListTransactionsHeader,
    EndTransactionByOperatorHeader, EndTransactionByOperatorResponse, HeartbeatResponse, UnregisterClientHeader,
    ConsumerGroupHeader, ProducerGroupHeader, CreateTopicHeader, TopicHeader, DeleteTopicInNamesrvHeader,
    GetAllTopicConfigHeader, GetAllTopicConfigResponse, GetTopicConfigHeader, QueryConsumeTimeSpanHeader,
    GetBrokerConfigResponse, ViewBrokerStatsDataHeader, GetBrokerConsumeStatsHeader,
    GetAllSubscriptionGroupHeader, GetAllSubscriptionGroupResponse, DeleteSubscriptionGroupHeader, GroupHeader,
    GetConsumeStatsHeader, QuerySubscriptionByConsumerHeader, GroupForbiddenHeader, QueryMessageHeader,
    QueryMessageResponse, ViewMessageHeader, QueryConsumeQueueHeader, GetRouteInfoHeader,
    GetTopicsByClusterHeader, PutKvConfigHeader, KvConfigKeyHeader, GetKvConfigResponse, KvNamespaceHeader,
    RegisterBrokerHeader, RegisterBrokerResponse, BrokerHeader, QueryDataVersionResponse,
    BrokerHeartbeatHeader, BrokerNameHeader, WipeWritePermResponse, AddWritePermResponse,
    GetBrokerMemberGroupHeader, GetConsumerRunningInfoHeader, ConsumeMessageDirectlyHeader,
    PushReplyMessageHeader, DrainBrokerHeader,
}

proptest! {
    #[test]
    fn a_pull_round_trips(
        topic in ".*", group in ".*", queue_id: i32, offset: i64, expression in proptest::option::of(".*"),
    ) {
        let header = PullMessageHeader {
            consumer_group: &group,
            topic: &topic,
            queue_id,
            queue_offset: offset,
            subscription: expression.as_deref(),
            ..PullMessageHeader::default()
        };
        let written = fields(&header);
        prop_assert_eq!(PullMessageHeader::decode(&written), Ok(header.clone()));
    }
}
