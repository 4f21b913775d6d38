//! Sending: codes 10, 310, 320 (producers), 36 (a consumer gives a message back).

use super::super::codes::RequestCode;
use super::super::header::{ExtFields, ExtWrite, ExtWriter};
use super::{Field, Header, HeaderError, field, header};

header! {
    /// Header of a send, under its long names (code 10). Codes 310 and 320 use letters for the same
    /// fields: [`read`](Self::read) and [`SendMessageV2`].
    SendMessageHeader<'a> {
        producer_group: &'a str = "producerGroup",
        topic: &'a str = "topic",
        /// Topic whose configuration an unknown topic is created from.
        default_topic: &'a str = "defaultTopic",
        /// Queues of a topic that this send creates.
        default_topic_queue_nums: i32 = "defaultTopicQueueNums",
        /// Negative: the broker picks.
        queue_id: i32 = "queueId",
        sys_flag: i32 = "sysFlag",
        /// Milliseconds since the epoch.
        born_timestamp: i64 = "bornTimestamp",
        /// The sender's own flag, handed to consumers as it is.
        flag: i32 = "flag",
        /// Encoded properties.
        properties: Option<&'a str> = "properties",
        reconsume_times: Option<i32> = "reconsumeTimes",
        unit_mode: Option<bool> = "unitMode",
        max_reconsume_times: Option<i32> = "maxReconsumeTimes",
        /// The body holds many messages.
        batch: Option<bool> = "batch",
        broker_name: Option<&'a str> = "bname",
    }
}

/// Reads and writes a [`SendMessageHeader`] under the letters of codes 310 and 320.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SendMessageV2<'a>(pub SendMessageHeader<'a>);

macro_rules! letters {
    ($($field:ident = $letter:literal,)+) => {
        impl<'a> Header<'a> for SendMessageV2<'a> {
            fn decode(ext: &'a ExtFields<'_>) -> Result<Self, HeaderError> {
                Ok(Self(SendMessageHeader { $($field: field(ext, $letter)?,)+ }))
            }
        }

        impl ExtWrite for SendMessageV2<'_> {
            fn write(&self, out: &mut ExtWriter<'_>) {
                $(self.0.$field.put($letter, out);)+
            }
        }
    };
}

letters! {
    producer_group = "a",
    topic = "b",
    default_topic = "c",
    default_topic_queue_nums = "d",
    queue_id = "e",
    sys_flag = "f",
    born_timestamp = "g",
    flag = "h",
    properties = "i",
    reconsume_times = "j",
    unit_mode = "k",
    max_reconsume_times = "l",
    batch = "m",
    broker_name = "n",
}

impl<'a> SendMessageHeader<'a> {
    /// Reads the header of a send under the names that its request code uses.
    pub fn read(code: RequestCode, ext: &'a ExtFields<'_>) -> Result<Self, HeaderError> {
        match code {
            RequestCode::SendMessageV2 | RequestCode::SendBatchMessage | RequestCode::SendReplyMessageV2 => {
                SendMessageV2::decode(ext).map(|letters| letters.0)
            }
            _ => Self::decode(ext),
        }
    }
}

header! {
    /// Answer to a send. Write it together with [`SendReplyExtras`].
    SendMessageResponse<'a> {
        /// Offset message id; for a batch all of them, joined by `,`.
        msg_id: &'a str = "msgId",
        queue_id: i32 = "queueId",
        queue_offset: i64 = "queueOffset",
        /// The message's UNIQ_KEY.
        transaction_id: Option<&'a str> = "transactionId",
        batch_uniq_id: Option<&'a str> = "batchUniqId",
        /// Handle to recall a timer message with.
        recall_handle: Option<&'a str> = "recallHandle",
    }
}

header! {
    /// What a send reply carries beside its header.
    SendReplyExtras<'a> {
        /// Region of the broker, `DefaultRegion` unless configured.
        msg_region: &'a str = "MSG_REGION",
        trace_on: bool = "TRACE_ON",
    }
}

header! {
    /// Code 36: a consumer could not process a message.
    ConsumerSendMsgBackHeader {
        /// Commit log offset of the message.
        offset: i64 = "offset",
        group: String = "group",
        /// Below 0: to the dead letter queue; 0: by the number of attempts.
        delay_level: i32 = "delayLevel",
        origin_msg_id: Option<String> = "originMsgId",
        origin_topic: Option<String> = "originTopic",
        unit_mode: Option<bool> = "unitMode",
        max_reconsume_times: Option<i32> = "maxReconsumeTimes",
        broker_name: Option<String> = "bname",
    }
}

header! {
    /// Code 370: takes a timer message back.
    RecallMessageHeader {
        producer_group: Option<String> = "producerGroup",
        topic: String = "topic",
        recall_handle: String = "recallHandle",
        broker_name: Option<String> = "bname",
    }
}

header! {
    /// Answer to code 370.
    RecallMessageResponse {
        msg_id: String = "msgId",
    }
}
