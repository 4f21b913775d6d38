//! The numbers of the protocol: request codes, response codes, languages, versions.

use std::fmt;

macro_rules! codes {
    ($(#[$doc:meta])* $enum:ident { $($variant:ident = $code:literal $name:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $enum {
            $(
                #[doc = concat!("`", $name, "`, ", stringify!($code), ".")]
                $variant,
            )+
            /// A code without a name here.
            Other(i32),
        }

        impl $enum {
            /// Every code that has a name.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The number on the wire.
            pub const fn code(self) -> i32 {
                match self {
                    $(Self::$variant => $code,)+
                    Self::Other(code) => code,
                }
            }

            /// The name RocketMQ gives it; `None` for a code without one.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$variant => Some($name),)+
                    Self::Other(_) => None,
                }
            }
        }

        impl From<i32> for $enum {
            fn from(code: i32) -> Self {
                match code {
                    $($code => Self::$variant,)+
                    other => Self::Other(other),
                }
            }
        }

        impl From<$enum> for i32 {
            fn from(code: $enum) -> Self {
                code.code()
            }
        }

        impl fmt::Display for $enum {
            /// `NAME(number)`, or the number alone.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.name() {
                    Some(name) => write!(f, "{name}({})", self.code()),
                    None => self.code().fmt(f),
                }
            }
        }
    };
}

codes! {
    /// What a request asks for.
    RequestCode {
        SendMessage = 10 "SEND_MESSAGE",
        PullMessage = 11 "PULL_MESSAGE",
        QueryMessage = 12 "QUERY_MESSAGE",
        QueryBrokerOffset = 13 "QUERY_BROKER_OFFSET",
        QueryConsumerOffset = 14 "QUERY_CONSUMER_OFFSET",
        UpdateConsumerOffset = 15 "UPDATE_CONSUMER_OFFSET",
        UpdateAndCreateTopic = 17 "UPDATE_AND_CREATE_TOPIC",
        UpdateAndCreateTopicList = 18 "UPDATE_AND_CREATE_TOPIC_LIST",
        GetAllTopicConfig = 21 "GET_ALL_TOPIC_CONFIG",
        GetTopicConfigList = 22 "GET_TOPIC_CONFIG_LIST",
        GetTopicNameList = 23 "GET_TOPIC_NAME_LIST",
        UpdateBrokerConfig = 25 "UPDATE_BROKER_CONFIG",
        GetBrokerConfig = 26 "GET_BROKER_CONFIG",
        TriggerDeleteFiles = 27 "TRIGGER_DELETE_FILES",
        GetBrokerRuntimeInfo = 28 "GET_BROKER_RUNTIME_INFO",
        SearchOffsetByTimestamp = 29 "SEARCH_OFFSET_BY_TIMESTAMP",
        GetMaxOffset = 30 "GET_MAX_OFFSET",
        GetMinOffset = 31 "GET_MIN_OFFSET",
        GetEarliestMsgStoretime = 32 "GET_EARLIEST_MSG_STORETIME",
        ViewMessageById = 33 "VIEW_MESSAGE_BY_ID",
        HeartBeat = 34 "HEART_BEAT",
        UnregisterClient = 35 "UNREGISTER_CLIENT",
        ConsumerSendMsgBack = 36 "CONSUMER_SEND_MSG_BACK",
        EndTransaction = 37 "END_TRANSACTION",
        GetConsumerListByGroup = 38 "GET_CONSUMER_LIST_BY_GROUP",
        CheckTransactionState = 39 "CHECK_TRANSACTION_STATE",
        NotifyConsumerIdsChanged = 40 "NOTIFY_CONSUMER_IDS_CHANGED",
        LockBatchMq = 41 "LOCK_BATCH_MQ",
        UnlockBatchMq = 42 "UNLOCK_BATCH_MQ",
        GetAllConsumerOffset = 43 "GET_ALL_CONSUMER_OFFSET",
        GetAllDelayOffset = 45 "GET_ALL_DELAY_OFFSET",
        CheckClientConfig = 46 "CHECK_CLIENT_CONFIG",
        GetClientConfig = 47 "GET_CLIENT_CONFIG",
        GetTimerCheckPoint = 60 "GET_TIMER_CHECK_POINT",
        GetTimerMetrics = 61 "GET_TIMER_METRICS",
        PutKvConfig = 100 "PUT_KV_CONFIG",
        GetKvConfig = 101 "GET_KV_CONFIG",
        DeleteKvConfig = 102 "DELETE_KV_CONFIG",
        RegisterBroker = 103 "REGISTER_BROKER",
        UnregisterBroker = 104 "UNREGISTER_BROKER",
        GetRouteinfoByTopic = 105 "GET_ROUTEINFO_BY_TOPIC",
        GetBrokerClusterInfo = 106 "GET_BROKER_CLUSTER_INFO",
        UpdateAndCreateSubscriptiongroup = 200 "UPDATE_AND_CREATE_SUBSCRIPTIONGROUP",
        GetAllSubscriptiongroupConfig = 201 "GET_ALL_SUBSCRIPTIONGROUP_CONFIG",
        GetTopicStatsInfo = 202 "GET_TOPIC_STATS_INFO",
        GetConsumerConnectionList = 203 "GET_CONSUMER_CONNECTION_LIST",
        GetProducerConnectionList = 204 "GET_PRODUCER_CONNECTION_LIST",
        WipeWritePermOfBroker = 205 "WIPE_WRITE_PERM_OF_BROKER",
        GetAllTopicListFromNameserver = 206 "GET_ALL_TOPIC_LIST_FROM_NAMESERVER",
        DeleteSubscriptiongroup = 207 "DELETE_SUBSCRIPTIONGROUP",
        GetConsumeStats = 208 "GET_CONSUME_STATS",
        SuspendConsumer = 209 "SUSPEND_CONSUMER",
        ResumeConsumer = 210 "RESUME_CONSUMER",
        ResetConsumerOffsetInConsumer = 211 "RESET_CONSUMER_OFFSET_IN_CONSUMER",
        ResetConsumerOffsetInBroker = 212 "RESET_CONSUMER_OFFSET_IN_BROKER",
        AdjustConsumerThreadPool = 213 "ADJUST_CONSUMER_THREAD_POOL",
        WhoConsumeTheMessage = 214 "WHO_CONSUME_THE_MESSAGE",
        DeleteTopicInBroker = 215 "DELETE_TOPIC_IN_BROKER",
        DeleteTopicInNamesrv = 216 "DELETE_TOPIC_IN_NAMESRV",
        RegisterTopicInNamesrv = 217 "REGISTER_TOPIC_IN_NAMESRV",
        GetKvlistByNamespace = 219 "GET_KVLIST_BY_NAMESPACE",
        ResetConsumerClientOffset = 220 "RESET_CONSUMER_CLIENT_OFFSET",
        GetConsumerStatusFromClient = 221 "GET_CONSUMER_STATUS_FROM_CLIENT",
        InvokeBrokerToResetOffset = 222 "INVOKE_BROKER_TO_RESET_OFFSET",
        InvokeBrokerToGetConsumerStatus = 223 "INVOKE_BROKER_TO_GET_CONSUMER_STATUS",
        GetTopicsByCluster = 224 "GET_TOPICS_BY_CLUSTER",
        UpdateAndCreateSubscriptiongroupList = 225 "UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST",
        QueryTopicConsumeByWho = 300 "QUERY_TOPIC_CONSUME_BY_WHO",
        RegisterFilterServer = 301 "REGISTER_FILTER_SERVER",
        RegisterMessageFilterClass = 302 "REGISTER_MESSAGE_FILTER_CLASS",
        QueryConsumeTimeSpan = 303 "QUERY_CONSUME_TIME_SPAN",
        GetSystemTopicListFromNs = 304 "GET_SYSTEM_TOPIC_LIST_FROM_NS",
        GetSystemTopicListFromBroker = 305 "GET_SYSTEM_TOPIC_LIST_FROM_BROKER",
        CleanExpiredConsumequeue = 306 "CLEAN_EXPIRED_CONSUMEQUEUE",
        GetConsumerRunningInfo = 307 "GET_CONSUMER_RUNNING_INFO",
        QueryCorrectionOffset = 308 "QUERY_CORRECTION_OFFSET",
        ConsumeMessageDirectly = 309 "CONSUME_MESSAGE_DIRECTLY",
        SendMessageV2 = 310 "SEND_MESSAGE_V2",
        GetUnitTopicList = 311 "GET_UNIT_TOPIC_LIST",
        GetHasUnitSubTopicList = 312 "GET_HAS_UNIT_SUB_TOPIC_LIST",
        GetHasUnitSubUnunitTopicList = 313 "GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST",
        CloneGroupOffset = 314 "CLONE_GROUP_OFFSET",
        ViewBrokerStatsData = 315 "VIEW_BROKER_STATS_DATA",
        CleanUnusedTopic = 316 "CLEAN_UNUSED_TOPIC",
        GetBrokerConsumeStats = 317 "GET_BROKER_CONSUME_STATS",
        UpdateNamesrvConfig = 318 "UPDATE_NAMESRV_CONFIG",
        GetNamesrvConfig = 319 "GET_NAMESRV_CONFIG",
        SendBatchMessage = 320 "SEND_BATCH_MESSAGE",
        QueryConsumeQueue = 321 "QUERY_CONSUME_QUEUE",
        QueryDataVersion = 322 "QUERY_DATA_VERSION",
        ResumeCheckHalfMessage = 323 "RESUME_CHECK_HALF_MESSAGE",
        SendReplyMessage = 324 "SEND_REPLY_MESSAGE",
        SendReplyMessageV2 = 325 "SEND_REPLY_MESSAGE_V2",
        PushReplyMessageToClient = 326 "PUSH_REPLY_MESSAGE_TO_CLIENT",
        AddWritePermOfBroker = 327 "ADD_WRITE_PERM_OF_BROKER",
        GetAllProducerInfo = 328 "GET_ALL_PRODUCER_INFO",
        DeleteExpiredCommitlog = 329 "DELETE_EXPIRED_COMMITLOG",
        QueryTopicsByConsumer = 343 "QUERY_TOPICS_BY_CONSUMER",
        QuerySubscriptionByConsumer = 345 "QUERY_SUBSCRIPTION_BY_CONSUMER",
        GetTopicConfig = 351 "GET_TOPIC_CONFIG",
        GetSubscriptiongroupConfig = 352 "GET_SUBSCRIPTIONGROUP_CONFIG",
        UpdateAndGetGroupForbidden = 353 "UPDATE_AND_GET_GROUP_FORBIDDEN",
        CheckRocksdbCqWriteProgress = 354 "CHECK_ROCKSDB_CQ_WRITE_PROGRESS",
        ExportRocksdbConfigToJson = 355 "EXPORT_ROCKSDB_CONFIG_TO_JSON",
        LitePullMessage = 361 "LITE_PULL_MESSAGE",
        RecallMessage = 370 "RECALL_MESSAGE",
        QueryAssignment = 400 "QUERY_ASSIGNMENT",
        SetMessageRequestMode = 401 "SET_MESSAGE_REQUEST_MODE",
        GetAllMessageRequestMode = 402 "GET_ALL_MESSAGE_REQUEST_MODE",
        UpdateAndCreateStaticTopic = 513 "UPDATE_AND_CREATE_STATIC_TOPIC",
        GetBrokerMemberGroup = 901 "GET_BROKER_MEMBER_GROUP",
        AddBroker = 902 "ADD_BROKER",
        RemoveBroker = 903 "REMOVE_BROKER",
        BrokerHeartbeat = 904 "BROKER_HEARTBEAT",
        NotifyMinBrokerIdChange = 905 "NOTIFY_MIN_BROKER_ID_CHANGE",
        ExchangeBrokerHaInfo = 906 "EXCHANGE_BROKER_HA_INFO",
        GetBrokerHaStatus = 907 "GET_BROKER_HA_STATUS",
        ResetMasterFlushOffset = 908 "RESET_MASTER_FLUSH_OFFSET",
        UpdateColdDataFlowCtrConfig = 2001 "UPDATE_COLD_DATA_FLOW_CTR_CONFIG",
        RemoveColdDataFlowCtrConfig = 2002 "REMOVE_COLD_DATA_FLOW_CTR_CONFIG",
        GetColdDataFlowCtrInfo = 2003 "GET_COLD_DATA_FLOW_CTR_INFO",
        SetCommitlogReadMode = 2004 "SET_COMMITLOG_READ_MODE",
        AuthCreateUser = 3001 "AUTH_CREATE_USER",
        AuthUpdateUser = 3002 "AUTH_UPDATE_USER",
        AuthDeleteUser = 3003 "AUTH_DELETE_USER",
        AuthGetUser = 3004 "AUTH_GET_USER",
        AuthListUser = 3005 "AUTH_LIST_USER",
        AuthCreateAcl = 3006 "AUTH_CREATE_ACL",
        AuthUpdateAcl = 3007 "AUTH_UPDATE_ACL",
        AuthDeleteAcl = 3008 "AUTH_DELETE_ACL",
        AuthGetAcl = 3009 "AUTH_GET_ACL",
        AuthListAcl = 3010 "AUTH_LIST_ACL",
        SwitchTimerEngine = 5001 "SWITCH_TIMER_ENGINE",
        // Gantry's own, in a range that RocketMQ does not use: Apache's brokers refuse them as not supported.
        ListTransactions = 60_001 "LIST_TRANSACTIONS",
        EndTransactionByOperator = 60_002 "END_TRANSACTION_BY_OPERATOR",
        DrainBroker = 60_003 "DRAIN_BROKER",
        ListBroadcastMembers = 60_010 "LIST_BROADCAST_MEMBERS",
        PopMessage = 200_050 "POP_MESSAGE",
        AckMessage = 200_051 "ACK_MESSAGE",
        PeekMessage = 200_052 "PEEK_MESSAGE",
        ChangeMessageInvisibletime = 200_053 "CHANGE_MESSAGE_INVISIBLETIME",
        Notification = 200_054 "NOTIFICATION",
        PollingInfo = 200_055 "POLLING_INFO",
        PopRollback = 200_056 "POP_ROLLBACK",
        PopLiteMessage = 200_070 "POP_LITE_MESSAGE",
        LiteSubscriptionCtl = 200_071 "LITE_SUBSCRIPTION_CTL",
        AckLiteMessage = 200_072 "ACK_LITE_MESSAGE",
        NotifyUnsubscribeLite = 200_073 "NOTIFY_UNSUBSCRIBE_LITE",
        BatchAckMessage = 200_151 "BATCH_ACK_MESSAGE",
    }
}

codes! {
    /// How a request ended.
    ResponseCode {
        Success = 0 "SUCCESS",
        SystemError = 1 "SYSTEM_ERROR",
        SystemBusy = 2 "SYSTEM_BUSY",
        RequestCodeNotSupported = 3 "REQUEST_CODE_NOT_SUPPORTED",
        TransactionFailed = 4 "TRANSACTION_FAILED",
        FlushDiskTimeout = 10 "FLUSH_DISK_TIMEOUT",
        SlaveNotAvailable = 11 "SLAVE_NOT_AVAILABLE",
        FlushSlaveTimeout = 12 "FLUSH_SLAVE_TIMEOUT",
        MessageIllegal = 13 "MESSAGE_ILLEGAL",
        ServiceNotAvailable = 14 "SERVICE_NOT_AVAILABLE",
        VersionNotSupported = 15 "VERSION_NOT_SUPPORTED",
        NoPermission = 16 "NO_PERMISSION",
        TopicNotExist = 17 "TOPIC_NOT_EXIST",
        TopicExistAlready = 18 "TOPIC_EXIST_ALREADY",
        PullNotFound = 19 "PULL_NOT_FOUND",
        PullRetryImmediately = 20 "PULL_RETRY_IMMEDIATELY",
        PullOffsetMoved = 21 "PULL_OFFSET_MOVED",
        QueryNotFound = 22 "QUERY_NOT_FOUND",
        SubscriptionParseFailed = 23 "SUBSCRIPTION_PARSE_FAILED",
        SubscriptionNotExist = 24 "SUBSCRIPTION_NOT_EXIST",
        SubscriptionNotLatest = 25 "SUBSCRIPTION_NOT_LATEST",
        SubscriptionGroupNotExist = 26 "SUBSCRIPTION_GROUP_NOT_EXIST",
        FilterDataNotExist = 27 "FILTER_DATA_NOT_EXIST",
        FilterDataNotLatest = 28 "FILTER_DATA_NOT_LATEST",
        InvalidParameter = 29 "INVALID_PARAMETER",
        TransactionShouldCommit = 200 "TRANSACTION_SHOULD_COMMIT",
        TransactionShouldRollback = 201 "TRANSACTION_SHOULD_ROLLBACK",
        TransactionStateUnknow = 202 "TRANSACTION_STATE_UNKNOW",
        TransactionStateGroupWrong = 203 "TRANSACTION_STATE_GROUP_WRONG",
        NoBuyerId = 204 "NO_BUYER_ID",
        NotInCurrentUnit = 205 "NOT_IN_CURRENT_UNIT",
        ConsumerNotOnline = 206 "CONSUMER_NOT_ONLINE",
        ConsumeMsgTimeout = 207 "CONSUME_MSG_TIMEOUT",
        NoMessage = 208 "NO_MESSAGE",
        PollingFull = 209 "POLLING_FULL",
        PollingTimeout = 210 "POLLING_TIMEOUT",
        BrokerNotExist = 211 "BROKER_NOT_EXIST",
        BrokerDispatchNotComplete = 212 "BROKER_DISPATCH_NOT_COMPLETE",
        BroadcastConsumption = 213 "BROADCAST_CONSUMPTION",
        FlowControl = 215 "FLOW_CONTROL",
        NotLeaderForQueue = 501 "NOT_LEADER_FOR_QUEUE",
        IllegalOperation = 604 "ILLEGAL_OPERATION",
        GoAway = 1500 "GO_AWAY",
        LmqQuotaExceeded = 2017 "LMQ_QUOTA_EXCEEDED",
        LiteSubscriptionQuotaExceeded = 2018 "LITE_SUBSCRIPTION_QUOTA_EXCEEDED",
        UserNotExist = 3001 "USER_NOT_EXIST",
        PolicyNotExist = 3002 "POLICY_NOT_EXIST",
    }
}

/// Version that this program states in its headers: V5_5_0.
pub const V5_5_0: i32 = 513;
/// From this version on a peer reads route answers as standard JSON: V4_9_4.
pub const V4_9_4: i32 = 401;
/// From this version on a retry's `maxReconsumeTimes` counts: V3_4_9.
pub const V3_4_9: i32 = 121;
/// A peer must be newer than this to be sent `GO_AWAY`: V5_3_1.
pub const V5_3_1: i32 = 475;

/// The language a peer is written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Language {
    /// Java; also what a missing language means.
    #[default]
    Java = 0,
    /// C++. Its offset reset bodies are lists.
    Cpp = 1,
    /// .NET.
    Dotnet = 2,
    /// Python.
    Python = 3,
    /// Delphi.
    Delphi = 4,
    /// Erlang.
    Erlang = 5,
    /// Ruby.
    Ruby = 6,
    /// Any other, and every name or number that is not in this list.
    Other = 7,
    /// The HTTP proxy.
    Http = 8,
    /// Go.
    Go = 9,
    /// PHP.
    Php = 10,
    /// OpenMessaging.
    Oms = 11,
    /// Rust.
    Rust = 12,
    /// Node.js.
    NodeJs = 13,
}

const LANGUAGES: [(Language, &str); 14] = [
    (Language::Java, "JAVA"),
    (Language::Cpp, "CPP"),
    (Language::Dotnet, "DOTNET"),
    (Language::Python, "PYTHON"),
    (Language::Delphi, "DELPHI"),
    (Language::Erlang, "ERLANG"),
    (Language::Ruby, "RUBY"),
    (Language::Other, "OTHER"),
    (Language::Http, "HTTP"),
    (Language::Go, "GO"),
    (Language::Php, "PHP"),
    (Language::Oms, "OMS"),
    (Language::Rust, "RUST"),
    (Language::NodeJs, "NODE_JS"),
];

impl Language {
    /// The number in binary headers.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The name in JSON.
    pub fn name(self) -> &'static str {
        LANGUAGES.iter().find(|(language, _)| *language == self).map_or("OTHER", |(_, name)| name)
    }

    /// Reads the number; an unknown one is [`Language::Other`].
    pub fn from_code(code: u8) -> Self {
        LANGUAGES.get(usize::from(code)).map_or(Self::Other, |(language, _)| *language)
    }

    /// Reads the name; an unknown one is [`Language::Other`].
    pub fn from_name(name: &str) -> Self {
        LANGUAGES.iter().find(|(_, known)| *known == name).map_or(Self::Other, |(language, _)| *language)
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl serde::Serialize for Language {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for Language {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Ok(Self::from_name(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_names_go_both_ways() {
        for code in RequestCode::ALL {
            assert_eq!(RequestCode::from(code.code()), *code);
        }
        for code in ResponseCode::ALL {
            assert_eq!(ResponseCode::from(code.code()), *code);
        }
        assert_eq!(RequestCode::from(310).to_string(), "SEND_MESSAGE_V2(310)");
        assert_eq!(ResponseCode::from(77777), ResponseCode::Other(77777));
        assert_eq!(ResponseCode::Other(5).to_string(), "5");
    }

    #[test]
    fn languages_go_both_ways() {
        for (place, (language, name)) in LANGUAGES.iter().enumerate() {
            assert_eq!(usize::from(language.code()), place);
            assert_eq!(Language::from_name(name), *language);
            assert_eq!(Language::from_code(language.code()), *language);
        }
        assert_eq!(Language::from_name("COBOL"), Language::Other);
        assert_eq!(Language::from_code(200), Language::Other);
    }
}
