//! Sending: codes 10, 310, 320 (producers), 36 (a consumer gives a message back).

use super::super::codes::{Language, RequestCode};
use super::super::header::{Command, ExtFields, ExtWrite, ExtWriter, FieldText};
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

        /// The fields in one pass; `None` for other names, a name that comes twice, or what cannot be read.
        fn letters_of(mut fields: FieldText<'_>) -> Option<SendMessageHeader<'_>> {
            let mut header = SendMessageHeader::default();
            let mut seen = 0_u32;
            while !fields.is_done() {
                let (name, value) = fields.next()?;
                let [letter] = name.as_bytes() else { return None };
                let bit = 1_u32.checked_shl(u32::from(letter.checked_sub(b'a')?))?;
                if seen & bit != 0 {
                    return None;
                }
                seen |= bit;
                match name {
                    $($letter => header.$field = Field::read(Some(value)).ok()?,)+
                    _ => return None,
                }
            }
            Some(header)
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

/// A send whose binary header was read in one pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuickSend<'a> {
    /// The command, without its fields.
    pub command: Command<'a>,
    /// Its code: 310 or 320.
    pub code: RequestCode,
    /// Its fields.
    pub header: SendMessageHeader<'a>,
}

impl<'a> QuickSend<'a> {
    /// Reads the binary header of a send as our clients and the peer's write it: fields with letters for names, each
    /// once. `None` for everything else; that is for [`Command::decode`], with the same outcome where both read it.
    pub fn read(header: &'a [u8]) -> Option<Self> {
        let (fixed, rest) = header.split_first_chunk::<13>()?;
        let [c0, c1, language, v0, v1, o0, o1, o2, o3, f0, f1, f2, f3] = *fixed;
        let code = RequestCode::from(i32::from(i16::from_be_bytes([c0, c1])));
        if !matches!(code, RequestCode::SendMessageV2 | RequestCode::SendBatchMessage) {
            return None;
        }
        let (no_remark, rest) = rest.split_first_chunk::<4>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        if *no_remark != [0; 4] {
            return None;
        }
        let fields = rest.get(..usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
        let command = Command {
            code: code.code(),
            language: Language::from_code(language),
            version: i32::from(i16::from_be_bytes([v0, v1])),
            opaque: i32::from_be_bytes([o0, o1, o2, o3]),
            flag: i32::from_be_bytes([f0, f1, f2, f3]),
            remark: None,
            ext: ExtFields::new(),
        };
        Some(Self { command, code, header: letters_of(FieldText::new(fields))? })
    }
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
