//! The properties of a message: its named texts, in the one string that wire and record carry.
//!
//! ```text
//!  name \x01 value \x02 name \x01 value \x02 …      the last \x02 may be missing
//! ```
//!
//! A segment without a name, without `\x01` or with an empty value is no property; of two with the
//! same name the later counts. The string should be UTF-8; a property that is not is skipped, never
//! an error: the bytes may come from anywhere.
//!
//! No other file knows how a property is spelled.

use std::fmt;

use super::tag_hash::JavaHash;

/// Spellings of the properties that mean something to the broker or the clients.
pub mod keys {
    /// The client's message id; key of the index and of the dedup window, id of the transaction.
    pub const UNIQ_KEY: &str = "UNIQ_KEY";
    /// The user's keys, separated by one space.
    pub const KEYS: &str = "KEYS";
    /// The tag.
    pub const TAGS: &str = "TAGS";
    /// Whether the sender waits until the message is kept.
    pub const WAIT: &str = "WAIT";
    /// Delay level, from 1.
    pub const DELAY: &str = "DELAY";
    /// Delay of a timer message, in seconds.
    pub const TIMER_DELAY_SEC: &str = "TIMER_DELAY_SEC";
    /// Delay of a timer message, in milliseconds.
    pub const TIMER_DELAY_MS: &str = "TIMER_DELAY_MS";
    /// When a timer message is wanted, in milliseconds since the epoch.
    pub const TIMER_DELIVER_MS: &str = "TIMER_DELIVER_MS";
    /// When the timer lets go of the message, in milliseconds since the epoch.
    pub const TIMER_OUT_MS: &str = "TIMER_OUT_MS";
    /// When the timer took the message in.
    pub const TIMER_ENQUEUE_MS: &str = "TIMER_ENQUEUE_MS";
    /// When the timer gave the message out.
    pub const TIMER_DEQUEUE_MS: &str = "TIMER_DEQUEUE_MS";
    /// How often the timer put the message off.
    pub const TIMER_ROLL_TIMES: &str = "TIMER_ROLL_TIMES";
    /// The timer message that this one recalls.
    pub const TIMER_DEL_UNIQKEY: &str = "TIMER_DEL_UNIQKEY";
    /// Topic that a delayed, timer or half message is for.
    pub const REAL_TOPIC: &str = "REAL_TOPIC";
    /// Queue that a delayed, timer or half message is for.
    pub const REAL_QID: &str = "REAL_QID";
    /// Topic that a retried message was sent to first.
    pub const RETRY_TOPIC: &str = "RETRY_TOPIC";
    /// Offset message id of the first delivery.
    pub const ORIGIN_MESSAGE_ID: &str = "ORIGIN_MESSAGE_ID";
    /// Reconsume times that a client re-sends.
    pub const RECONSUME_TIME: &str = "RECONSUME_TIME";
    /// Reconsume times after which a message is dead.
    pub const MAX_RECONSUME_TIMES: &str = "MAX_RECONSUME_TIMES";
    /// Group whose pop is retried.
    pub const ORIGIN_GROUP: &str = "ORIGIN_GROUP";
    /// When the message was first popped, in milliseconds since the epoch.
    pub const FIRST_POP_TIME: &str = "1ST_POP_TIME";
    /// Receipt handle of a popped message; never stored.
    pub const POP_CK: &str = "POP_CK";
    /// `true` marks a half message and stays in the committed copy.
    pub const TRAN_MSG: &str = "TRAN_MSG";
    /// Producer group that answers for a half message.
    pub const PGROUP: &str = "PGROUP";
    /// Id of the transaction.
    pub const TRANSACTION_ID: &str = "__transactionId__";
    /// How often the transaction was checked.
    pub const TRANSACTION_CHECK_TIMES: &str = "TRANSACTION_CHECK_TIMES";
    /// Age before which the transaction is not checked, in seconds.
    pub const CHECK_IMMUNITY_TIME_IN_SECONDS: &str = "CHECK_IMMUNITY_TIME_IN_SECONDS";
    /// Queue offset of the first copy of a half message that was put again.
    pub const TRAN_PREPARED_QUEUE_OFFSET: &str = "TRAN_PREPARED_QUEUE_OFFSET";
    /// Region of the broker.
    pub const MSG_REGION: &str = "MSG_REGION";
    /// Whether clients trace the message.
    pub const TRACE_ON: &str = "TRACE_ON";
    /// Cluster of the broker.
    pub const CLUSTER: &str = "CLUSTER";
    /// Messages with the same key are delivered in order.
    pub const SHARDING_KEY: &str = "__SHARDINGKEY";
    /// Priority of the message.
    pub const PRIORITY: &str = "_SYS_MSG_PRIORITY_";
    /// Lite topic of the message.
    pub const LITE_TOPIC: &str = "__LITE_TOPIC";
    /// Further queues that show the message, separated by `,`.
    pub const INNER_MULTI_DISPATCH: &str = "INNER_MULTI_DISPATCH";
    /// Number of messages in an inner batch.
    pub const INNER_NUM: &str = "INNER_NUM";
    /// Queue offset of the first message of an inner batch.
    pub const INNER_BASE: &str = "INNER_BASE";
    /// `reply` marks the answer to a request.
    pub const MSG_TYPE: &str = "MSG_TYPE";
    /// Ties an answer to its request.
    pub const CORRELATION_ID: &str = "CORRELATION_ID";
    /// Client id that waits for the answer.
    pub const REPLY_TO_CLIENT: &str = "REPLY_TO_CLIENT";
    /// How long the requester waits, in milliseconds.
    pub const TTL: &str = "TTL";
    /// When the answer reached the broker.
    pub const ARRIVE_TIME: &str = "ARRIVE_TIME";
    /// When the broker pushed the answer.
    pub const PUSH_REPLY_TIME: &str = "PUSH_REPLY_TIME";
    /// Namespace of the first kind.
    pub const INSTANCE_ID: &str = "INSTANCE_ID";
    /// Topic that a dead letter was sent to first.
    pub const DLQ_ORIGIN_TOPIC: &str = "DLQ_ORIGIN_TOPIC";
    /// Message id that a dead letter had first.
    pub const DLQ_ORIGIN_MESSAGE_ID: &str = "DLQ_ORIGIN_MESSAGE_ID";
    /// Trace context as the client gave it.
    pub const TRACE_CONTEXT: &str = "TRACE_CONTEXT";
    /// Checksum over the whole record; always the last property.
    pub const RECORD_CRC: &str = "__CRC32#";
}

const NAME_END: u8 = 1;
pub(super) const VALUE_END: u8 = 2;

/// What the checksum property starts with.
pub(super) const CRC_HEAD: &[u8; 9] = b"__CRC32#\x01";
/// Bytes of the checksum property: name, separator, ten digits, separator.
pub(super) const CRC_PROPERTY_BYTES: usize = 20;
/// The checksum property before the checksum is known.
pub(super) const CRC_HOLE: &[u8; CRC_PROPERTY_BYTES] = b"__CRC32#\x010000000000\x02";

/// Position of the first `needle`, eight bytes at a step: property strings are read on every
/// append and dispatch.
fn find(haystack: &[u8], needle: u8) -> Option<usize> {
    find_either(haystack, needle, needle)
}

/// Position of the first byte that is one of the two.
#[inline]
fn find_either(haystack: &[u8], one: u8, other: u8) -> Option<usize> {
    let (words, rest) = haystack.as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = places_of(word, one) | places_of(word, other);
        if found != 0 {
            return Some(number * 8 + (found.trailing_zeros() / 8) as usize);
        }
    }
    let start = words.len() * 8;
    rest.iter().position(|byte| *byte == one || *byte == other).map(|at| start + at)
}

/// The high bit of the lowest byte of `word` that is `byte`, and maybe of later bytes.
#[inline]
const fn places_of(word: u64, byte: u8) -> u64 {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // A byte that equals the needle becomes zero, and the lowest zero byte gets its high bit.
    let difference = word ^ (byte as u64 * LOW);
    difference.wrapping_sub(LOW) & !difference & HIGH
}

/// `bytes` around the byte at `at`, which is in neither part.
fn cut(bytes: &[u8], at: usize) -> (&[u8], &[u8]) {
    let (before, rest) = bytes.split_at_checked(at).unwrap_or((bytes, &[]));
    (before, rest.get(1..).unwrap_or_default())
}

/// The segments between the separators, without them.
#[derive(Clone, Debug)]
struct Segments<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let end = find(self.rest, VALUE_END).unwrap_or(self.rest.len());
        let (segment, rest) = cut(self.rest, end);
        self.rest = rest;
        Some(segment)
    }
}

/// The property of one segment, if it is one.
fn pair(segment: &[u8]) -> Option<(&str, &str)> {
    let (name, value) = cut(segment, find(segment, NAME_END)?);
    if name.is_empty() || value.is_empty() {
        return None;
    }
    Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
}

/// The value of one segment if its name is `name`.
fn value_of<'a>(segment: &'a [u8], name: &str) -> Option<&'a [u8]> {
    match segment.strip_prefix(name.as_bytes())?.split_first()? {
        (&NAME_END, value) => Some(value),
        _ => None,
    }
}

/// Java's `Boolean.parseBoolean`.
const fn is_true(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"true")
}

/// A text that is known to be one, as its bytes: to hash or copy it, it need not be looked at again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    /// `None` when the bytes are no UTF-8.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        // Nearly all are ASCII, and that is found out much faster.
        (bytes.is_ascii() || std::str::from_utf8(bytes).is_ok()).then_some(Self(bytes))
    }

    /// Its UTF-8.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The text.
    pub fn as_str(self) -> &'a str {
        std::str::from_utf8(self.0).unwrap_or_default()
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self(text.as_bytes())
    }
}

impl<'a> From<&'a String> for Text<'a> {
    fn from(text: &'a String) -> Self {
        Self(text.as_bytes())
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// A view of a property string; reading it never fails and never allocates.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Properties<'a>(&'a [u8]);

macro_rules! texts {
    ($($(#[$doc:meta])* $getter:ident = $key:ident),+ $(,)?) => {
        $(
            $(#[$doc])*
            pub fn $getter(self) -> Option<&'a str> {
                self.get(keys::$key)
            }
        )+
    };
}

macro_rules! numbers {
    ($($(#[$doc:meta])* $getter:ident: $type:ty = $key:ident),+ $(,)?) => {
        $(
            $(#[$doc])*
            ///
            /// `None` also when the text is no such number.
            pub fn $getter(self) -> Option<$type> {
                self.get(keys::$key)?.parse().ok()
            }
        )+
    };
}

impl<'a> Properties<'a> {
    /// Looks at a property string.
    pub const fn new(raw: &'a [u8]) -> Self {
        Self(raw)
    }

    /// The string as it is.
    pub const fn raw(self) -> &'a [u8] {
        self.0
    }

    /// Whether the string has no bytes.
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    /// The string without the checksum that an earlier append put at its end. Whoever stores a copy
    /// needs this: the old checksum is not that of the copy.
    #[must_use]
    pub fn without_crc(self) -> Self {
        match self.0.len().checked_sub(CRC_PROPERTY_BYTES).and_then(|at| self.0.split_at_checked(at)) {
            Some((rest, last))
                if last.starts_with(CRC_HEAD) && matches!(rest.last(), None | Some(&VALUE_END)) =>
            {
                Self(rest)
            }
            _ => self,
        }
    }

    fn segments(self) -> Segments<'a> {
        Segments { rest: self.0 }
    }

    /// All properties in their order, duplicates included.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.segments().filter_map(pair)
    }

    /// The value of `name`: that of its last occurrence.
    pub fn get(self, name: &str) -> Option<&'a str> {
        self.get_text(name).map(Text::as_str)
    }

    /// [`get`](Self::get) for who only copies or hashes the value.
    pub fn get_text(self, name: &str) -> Option<Text<'a>> {
        if name.is_empty() {
            return None;
        }
        let value = |segment| value_of(segment, name).filter(|value| !value.is_empty());
        self.segments().filter_map(value).filter_map(Text::new).last()
    }

    /// The hot properties, all in one pass.
    pub fn scan(self) -> HotProperties<'a> {
        HotProperties::of(self)
    }

    texts! {
        /// The client's message id.
        uniq_key = UNIQ_KEY,
        /// The tag.
        tags = TAGS,
        /// Topic that a delayed, timer or half message is for.
        real_topic = REAL_TOPIC,
        /// Producer group that answers for a half message.
        producer_group = PGROUP,
        /// Topic that a retried message was sent to first.
        retry_topic = RETRY_TOPIC,
        /// Offset message id of the first delivery.
        origin_message_id = ORIGIN_MESSAGE_ID,
        /// Id of the transaction.
        transaction_id = TRANSACTION_ID,
        /// Group whose pop is retried.
        origin_group = ORIGIN_GROUP,
        /// The timer message that this one recalls.
        timer_recalls = TIMER_DEL_UNIQKEY,
        /// Messages with the same key are delivered in order.
        sharding_key = SHARDING_KEY,
        /// Lite topic of the message.
        lite_topic = LITE_TOPIC,
        /// Ties an answer to its request.
        correlation_id = CORRELATION_ID,
        /// Client id that waits for the answer.
        reply_to_client = REPLY_TO_CLIENT,
        /// Further queues that show the message, separated by `,`.
        multi_dispatch = INNER_MULTI_DISPATCH,
    }

    numbers! {
        /// Delay level, from 1; 0 and less mean none.
        delay_level: i32 = DELAY,
        /// Queue that a delayed, timer or half message is for.
        real_queue_id: i32 = REAL_QID,
        /// Age before which the transaction is not checked, in seconds.
        check_immunity_secs: u64 = CHECK_IMMUNITY_TIME_IN_SECONDS,
        /// How often the transaction was checked.
        check_times: u32 = TRANSACTION_CHECK_TIMES,
        /// Queue offset of the first copy of a half message that was put again.
        prepared_queue_offset: u64 = TRAN_PREPARED_QUEUE_OFFSET,
        /// Reconsume times that a client re-sends.
        reconsume_time: i32 = RECONSUME_TIME,
        /// Reconsume times after which the message is dead.
        max_reconsume_times: i32 = MAX_RECONSUME_TIMES,
        /// When the message was first popped, in milliseconds since the epoch.
        first_pop_time: i64 = FIRST_POP_TIME,
        /// Delay of a timer message, in seconds.
        timer_delay_secs: i64 = TIMER_DELAY_SEC,
        /// Delay of a timer message, in milliseconds.
        timer_delay_ms: i64 = TIMER_DELAY_MS,
        /// When a timer message is wanted, in milliseconds since the epoch.
        timer_deliver_ms: i64 = TIMER_DELIVER_MS,
        /// When the timer lets go of the message, in milliseconds since the epoch.
        timer_out_ms: i64 = TIMER_OUT_MS,
        /// How often the timer put the message off.
        timer_roll_times: u32 = TIMER_ROLL_TIMES,
        /// When the timer gave the message out, in milliseconds since the epoch.
        timer_dequeued_at: i64 = TIMER_DEQUEUE_MS,
        /// Number of messages in an inner batch.
        inner_num: u32 = INNER_NUM,
        /// Priority of the message.
        priority: i32 = PRIORITY,
    }

    /// The user's keys, one by one.
    pub fn keys(self) -> impl Iterator<Item = &'a str> {
        split_keys(self.get(keys::KEYS))
    }

    /// Whether this marks a half message, or the committed copy of one.
    pub fn is_half(self) -> bool {
        self.get_text(keys::TRAN_MSG).is_some_and(|value| is_true(value.0))
    }

    /// Whether the sender waits until the message is kept; the default.
    pub fn waits_for_store(self) -> bool {
        self.get_text(keys::WAIT).is_none_or(|value| is_true(value.0))
    }

    /// Whether something for or of the timer may be among the properties: told without reading them.
    pub fn may_name_timer(self) -> bool {
        let before = |at| self.0.split_at_checked(at).is_some_and(|(before, _)| before.ends_with(b"TIMER"));
        memchr::memchr_iter(b'_', self.0).any(before)
    }

    /// Whether this is the answer to a request.
    pub fn is_reply(self) -> bool {
        self.get(keys::MSG_TYPE) == Some("reply")
    }
}

impl fmt::Debug for Properties<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// The keys in the text of the KEYS property: separated by one space, empty ones are none.
pub fn split_keys(keys: Option<&str>) -> impl Iterator<Item = &str> {
    keys.unwrap_or_default().split(' ').filter(|key| !key.is_empty())
}

/// The properties that publishing and dispatching need of every message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HotProperties<'a> {
    /// The client's message id.
    pub uniq_key: Option<Text<'a>>,
    /// The text of the user's keys; see [`split_keys`].
    pub keys: Option<Text<'a>>,
    /// The tag.
    pub tags: Option<Text<'a>>,
    /// Delay level as it was sent: 0 and less mean none.
    pub delay_level: Option<i32>,
    /// WAIT, TRAN_MSG; see the methods.
    wait: Option<bool>,
    half: Option<bool>,
    /// Topic that a delayed, timer or half message is for.
    pub real_topic: Option<&'a str>,
    /// Queue that a delayed, timer or half message is for.
    pub real_queue_id: Option<i32>,
    /// Producer group that answers for a half message.
    pub producer_group: Option<&'a str>,
    /// Topic that a retried message was sent to first.
    pub retry_topic: Option<&'a str>,
    /// When a timer message is wanted, in milliseconds since the epoch.
    pub timer_deliver_ms: Option<i64>,
    /// Delay of a timer message, in milliseconds.
    pub timer_delay_ms: Option<i64>,
    /// Delay of a timer message, in seconds.
    pub timer_delay_secs: Option<i64>,
    /// When the timer lets go of the message, in milliseconds since the epoch.
    pub timer_out_ms: Option<i64>,
    /// A time of a timer message that is no number.
    pub bad_timer: Option<&'a str>,
    /// Messages with the same key are delivered in order.
    pub sharding_key: Option<&'a str>,
    /// Priority of the message, as it was sent.
    pub priority: Option<&'a str>,
    /// Number of messages in an inner batch.
    pub inner_num: Option<u32>,
    /// A receipt handle that a client sent back with the message; it must not be stored.
    pub pop_ck: Option<&'a str>,
    /// Whether MSG_REGION is there.
    pub has_region: bool,
    /// Whether TRACE_ON is there.
    pub has_trace_on: bool,
    /// Whether CLUSTER is there.
    pub has_cluster: bool,
}

/// Names that nearly every message has, as bytes: a pattern of bytes is compared at once, a string by a call.
const UNIQ_KEY: &[u8] = keys::UNIQ_KEY.as_bytes();
const RECORD_CRC: &[u8] = keys::RECORD_CRC.as_bytes();
const WAIT: &[u8] = keys::WAIT.as_bytes();
const TAGS: &[u8] = keys::TAGS.as_bytes();
const KEYS: &[u8] = keys::KEYS.as_bytes();
const TRAN_MSG: &[u8] = keys::TRAN_MSG.as_bytes();
const TRACE_ON: &[u8] = keys::TRACE_ON.as_bytes();
const MSG_REGION: &[u8] = keys::MSG_REGION.as_bytes();
const CLUSTER: &[u8] = keys::CLUSTER.as_bytes();

impl<'a> HotProperties<'a> {
    fn of(properties: Properties<'a>) -> Self {
        let mut hot = Self::default();
        let mut rest = properties.0;
        while !rest.is_empty() {
            let Some(name_end) = find_either(rest, NAME_END, VALUE_END) else { break };
            let (name, behind) = cut(rest, name_end);
            if rest.get(name_end) == Some(&VALUE_END) {
                rest = behind;
                continue;
            }
            let (value, behind) = cut(behind, find(behind, VALUE_END).unwrap_or(behind.len()));
            if !value.is_empty() {
                hot.note(name, value);
            }
            rest = behind;
        }
        hot
    }

    /// Notes one property, unless its value is no text.
    fn note(&mut self, name: &[u8], value: &'a [u8]) {
        // What every message has comes first.
        match name {
            UNIQ_KEY => self.uniq_key = Text::new(value).or(self.uniq_key),
            RECORD_CRC => {}
            WAIT => self.wait = Text::new(value).map(|value| is_true(value.0)).or(self.wait),
            TAGS => self.tags = Text::new(value).or(self.tags),
            KEYS => self.keys = Text::new(value).or(self.keys),
            TRAN_MSG => self.half = Text::new(value).map(|value| is_true(value.0)).or(self.half),
            TRACE_ON => self.has_trace_on |= Text::new(value).is_some(),
            MSG_REGION => self.has_region |= Text::new(value).is_some(),
            CLUSTER => self.has_cluster |= Text::new(value).is_some(),
            _ => {
                if let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) {
                    self.note_rare(name, value);
                }
            }
        }
    }

    fn note_rare(&mut self, name: &str, value: &'a str) {
        match name {
            keys::DELAY => self.delay_level = value.parse().ok(),
            keys::REAL_TOPIC => self.real_topic = Some(value),
            keys::REAL_QID => self.real_queue_id = value.parse().ok(),
            keys::PGROUP => self.producer_group = Some(value),
            keys::RETRY_TOPIC => self.retry_topic = Some(value),
            keys::TIMER_DELIVER_MS => self.timer_deliver_ms = self.timer_number(value),
            keys::TIMER_DELAY_MS => self.timer_delay_ms = self.timer_number(value),
            keys::TIMER_DELAY_SEC => self.timer_delay_secs = self.timer_number(value),
            keys::TIMER_OUT_MS => self.timer_out_ms = value.parse().ok(),
            keys::SHARDING_KEY => self.sharding_key = Some(value),
            keys::PRIORITY => self.priority = Some(value),
            keys::INNER_NUM => self.inner_num = value.parse().ok(),
            keys::POP_CK => self.pop_ck = Some(value),
            _ => {}
        }
    }

    fn timer_number(&mut self, value: &'a str) -> Option<i64> {
        let number = value.parse().ok();
        if number.is_none() {
            self.bad_timer = Some(value);
        }
        number
    }

    /// The user's keys, one by one.
    pub fn split_keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        split_keys(self.keys.map(Text::as_str))
    }

    /// The tags code that the message's queue entry carries.
    pub fn tags_code(&self) -> i64 {
        self.tags.map_or(0, |tags| i64::from(JavaHash::new().push(tags).finish()))
    }

    /// Whether this marks a half message, or the committed copy of one.
    pub fn is_half(&self) -> bool {
        self.half.unwrap_or(false)
    }

    /// Whether the sender waits until the message is kept; the default.
    pub fn waits_for_store(&self) -> bool {
        self.wait.unwrap_or(true)
    }

    /// Whether the message waits for a time of its own (a delay level is not one).
    pub const fn is_timer(&self) -> bool {
        self.timer_deliver_ms.is_some() || self.timer_delay_ms.is_some() || self.timer_delay_secs.is_some()
    }
}

/// A property string being written. Order is kept; foreign bytes are passed on as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PropertiesBuf(Vec<u8>);

impl PropertiesBuf {
    /// No properties yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// A copy of `properties`, with room for `spare` more bytes.
    pub fn copy_of(properties: Properties<'_>, spare: usize) -> Self {
        let mut bytes = Vec::with_capacity(properties.0.len() + spare);
        bytes.extend_from_slice(properties.0);
        Self(bytes)
    }

    /// Makes this a copy of `properties`, with room for `spare` more bytes; its memory is used again.
    pub fn assign(&mut self, properties: Properties<'_>, spare: usize) {
        self.0.clear();
        self.0.reserve(properties.0.len() + spare);
        self.0.extend_from_slice(properties.0);
    }

    /// What has been written, to be read.
    pub fn view(&self) -> Properties<'_> {
        Properties(&self.0)
    }

    /// Adds a property at the end without looking for an earlier one; it counts before all of them.
    ///
    /// A value that is empty is not written, because no reader would see it. A separator inside
    /// name or value becomes a space: it would forge another property.
    pub fn push(&mut self, name: &str, value: &str) {
        if name.is_empty() || value.is_empty() {
            return;
        }
        if self.0.last().is_some_and(|last| *last != VALUE_END) {
            self.0.push(VALUE_END);
        }
        self.push_text(name);
        self.0.push(NAME_END);
        self.push_text(value);
        self.0.push(VALUE_END);
    }

    fn push_text(&mut self, text: &str) {
        let blank = |byte| if byte == NAME_END || byte == VALUE_END { b' ' } else { byte };
        if text.bytes().any(|byte| byte == NAME_END || byte == VALUE_END) {
            self.0.extend(text.bytes().map(blank));
        } else {
            self.0.extend_from_slice(text.as_bytes());
        }
    }

    /// Sets `name` to `value`, at the end of the string; an empty value removes it.
    pub fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.push(name, value);
    }

    /// Removes all occurrences of `name`.
    pub fn remove(&mut self, name: &str) {
        let mut at = 0;
        while let Some(rest) = self.0.get(at..).filter(|rest| !rest.is_empty()) {
            let len = find(rest, VALUE_END).unwrap_or(rest.len());
            let end = (at + len + 1).min(self.0.len());
            if rest.get(..len).is_some_and(|segment| value_of(segment, name).is_some()) {
                self.0.drain(at..end);
            } else {
                at = end;
            }
        }
    }

    /// The bytes of the string so far.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The finished string.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

impl From<Properties<'_>> for PropertiesBuf {
    fn from(properties: Properties<'_>) -> Self {
        Self::copy_of(properties, 0)
    }
}

#[cfg(test)]
mod tests;
