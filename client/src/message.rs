//! Messages: those to send, those received, and the queues they are in.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{BrokerName, TopicKind, TopicName};
use gantry_proto::record::{OffsetMsgId, Properties, PropertiesBuf, RecordView, SysFlag, keys};
use gantry_proto::remoting::body::queues as wire;

use crate::compress;
use crate::error::{Error, ErrorKind, Result};

/// One queue of a topic on one broker.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageQueue {
    /// The topic.
    pub topic: TopicName,
    /// The broker's name.
    pub broker: BrokerName,
    /// The number of the queue on that broker.
    pub id: QueueId,
}

impl MessageQueue {
    pub(crate) fn to_wire(&self) -> wire::MessageQueue {
        wire::MessageQueue {
            broker_name: self.broker.as_str().to_owned(),
            queue_id: self.id.to_wire(),
            topic: self.topic.as_str().to_owned(),
        }
    }

    /// A queue as JSON bodies name it; `None` when it cannot be one.
    pub(crate) fn from_wire(queue: &wire::MessageQueue) -> Option<Self> {
        Some(Self {
            topic: TopicName::storable(&queue.topic).ok()?,
            broker: BrokerName::storable(&queue.broker_name).ok()?,
            id: QueueId::from_wire(queue.queue_id)?,
        })
    }
}

impl fmt::Display for MessageQueue {
    /// `topic@broker:queue`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}", self.topic, self.broker, self.id)
    }
}

/// A message to send.
///
/// ```
/// use gantry_client::Message;
///
/// let message = Message::new("orders", "one tea")
///     .tag("drinks")
///     .key("order-17")
///     .property("table", "4")
///     .sharding_key("table-4");
/// assert_eq!(message.body(), "one tea".as_bytes());
/// ```
#[derive(Clone, Debug)]
pub struct Message {
    pub(crate) topic: TopicName,
    pub(crate) body: Bytes,
    pub(crate) properties: PropertiesBuf,
    pub(crate) flag: i32,
    pub(crate) sharding_key: Option<Box<str>>,
}

impl Message {
    /// A message for `topic`. The name is checked when the message is sent.
    pub fn new(topic: impl AsRef<str>, body: impl Into<Bytes>) -> Self {
        Self::to(TopicName::internal(topic.as_ref()), body)
    }

    /// The same for a name that is there already; cheaper when many are sent to one topic.
    pub fn to(topic: TopicName, body: impl Into<Bytes>) -> Self {
        Self { topic, body: body.into(), properties: PropertiesBuf::new(), flag: 0, sharding_key: None }
    }

    /// The tag that consumers filter by: one, without `||`.
    #[must_use]
    pub fn tag(self, tag: impl AsRef<str>) -> Self {
        self.property(keys::TAGS, tag)
    }

    /// A key to find the message by; may be called several times. Blanks separate keys.
    #[must_use]
    pub fn key(mut self, key: impl AsRef<str>) -> Self {
        let key = key.as_ref();
        let all = match self.properties.view().get(keys::KEYS) {
            Some(others) => format!("{others} {key}"),
            None => key.to_owned(),
        };
        self.properties.set(keys::KEYS, &all);
        self
    }

    /// A property of any name; an empty value is no property. Names and values must not hold the bytes 1
    /// and 2, which become blanks.
    #[must_use]
    pub fn property(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        self.properties.set(name.as_ref(), value.as_ref());
        self
    }

    /// Deliver later: level 1 to 18, by default 1s 5s 10s 30s 1m 2m 3m 4m 5m 6m 7m 8m 9m 10m 20m 30m 1h 2h.
    #[must_use]
    pub fn delay_level(self, level: u8) -> Self {
        let level = level.to_string();
        self.property(keys::DELAY, level)
    }

    /// Deliver this much later, to the millisecond; the broker counts from when it gets the message. At most 40 days by
    /// default. A [`delay_level`](Self::delay_level) counts before it.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        let ms = delay.as_nanos().div_ceil(1_000_000);
        self.properties.remove(keys::TIMER_DELIVER_MS);
        self.property(keys::TIMER_DELAY_MS, i64::try_from(ms).unwrap_or(i64::MAX).to_string())
    }

    /// Deliver at that time, to the millisecond, by the broker's clock; at once when it is past. Otherwise as
    /// [`delay`](Self::delay).
    #[must_use]
    pub fn deliver_at(mut self, at: SystemTime) -> Self {
        let ms = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().div_ceil(1_000_000);
        self.properties.remove(keys::TIMER_DELAY_MS);
        self.property(keys::TIMER_DELIVER_MS, i64::try_from(ms).unwrap_or(i64::MAX).to_string())
    }

    /// Messages with one key go to one queue, and so keep their order.
    #[must_use]
    pub fn sharding_key(mut self, key: impl AsRef<str>) -> Self {
        self.sharding_key = Some(key.as_ref().into());
        self.property(keys::SHARDING_KEY, key)
    }

    /// Deliver before messages of lower priority, to consumers that pop. Queues stand for priorities: the topic's type
    /// should be `PRIORITY`, and a priority beyond its last queue counts as that. Not together with delays, sharding keys
    /// and transactions.
    #[must_use]
    pub fn priority(self, priority: u32) -> Self {
        self.property(keys::PRIORITY, priority.min(i32::MAX.unsigned_abs()).to_string())
    }

    /// A number of your own that is delivered as it is.
    #[must_use]
    pub const fn flag(mut self, flag: i32) -> Self {
        self.flag = flag;
        self
    }

    /// The topic.
    pub const fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// The body.
    pub const fn body(&self) -> &Bytes {
        &self.body
    }

    /// The properties set so far.
    pub fn properties(&self) -> Properties<'_> {
        self.properties.view()
    }
}

/// A message as a broker delivered it.
#[derive(Clone)]
pub struct Received {
    topic: TopicName,
    queue: MessageQueue,
    queue_offset: QueueOffset,
    phy_offset: PhyOffset,
    prepared_offset: PhyOffset,
    born_at: Millis,
    born_host: SocketAddr,
    store_at: Millis,
    store_host: SocketAddr,
    reconsume_times: i32,
    flag: i32,
    sys_flag: SysFlag,
    store_bytes: u32,
    body: Bytes,
    properties: Bytes,
}

impl Received {
    /// The topic it was sent to; for a retried message the original one.
    pub const fn topic(&self) -> &TopicName {
        &self.topic
    }

    /// The queue it was taken from: of the retry topic for a retried message.
    pub const fn queue(&self) -> &MessageQueue {
        &self.queue
    }

    /// Its offset in that queue.
    pub const fn queue_offset(&self) -> QueueOffset {
        self.queue_offset
    }

    /// Its position in the broker's commit log.
    pub const fn phy_offset(&self) -> PhyOffset {
        self.phy_offset
    }

    /// Commit log position of the half message it was committed from; 0 otherwise.
    pub const fn prepared_offset(&self) -> PhyOffset {
        self.prepared_offset
    }

    /// When its producer made it.
    pub const fn born_at(&self) -> Millis {
        self.born_at
    }

    /// Its producer's address.
    pub const fn born_host(&self) -> SocketAddr {
        self.born_host
    }

    /// When the broker stored it.
    pub const fn store_at(&self) -> Millis {
        self.store_at
    }

    /// The address of the broker that stored it.
    pub const fn store_host(&self) -> SocketAddr {
        self.store_host
    }

    /// How often this group has refused it; 0 on the first delivery.
    pub fn reconsume_times(&self) -> u32 {
        u32::try_from(self.reconsume_times).unwrap_or_default()
    }

    /// The sender's own number.
    pub const fn flag(&self) -> i32 {
        self.flag
    }

    /// The system flag, as it was stored.
    pub const fn sys_flag(&self) -> SysFlag {
        self.sys_flag
    }

    /// Bytes of the stored record.
    pub const fn store_bytes(&self) -> u32 {
        self.store_bytes
    }

    /// The body, decompressed.
    pub const fn body(&self) -> &Bytes {
        &self.body
    }

    /// All properties.
    pub fn properties(&self) -> Properties<'_> {
        Properties::new(&self.properties)
    }

    /// One property.
    pub fn property(&self, name: &str) -> Option<&str> {
        self.properties().get(name)
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        self.properties().tags()
    }

    /// The priority that its sender gave it.
    pub fn priority(&self) -> Option<u32> {
        u32::try_from(self.properties().priority()?).ok()
    }

    /// The keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.properties().keys()
    }

    /// The id its producer gave it, the same in every delivery; the offset message id if it has none.
    pub fn message_id(&self) -> String {
        match self.properties().uniq_key() {
            Some(id) => id.to_owned(),
            None => self.offset_message_id().to_string(),
        }
    }

    /// Where it is stored; another one in each delivery of a retried message.
    pub const fn offset_message_id(&self) -> OffsetMsgId {
        OffsetMsgId::new(self.store_host, self.phy_offset)
    }

    /// Reads the record at the front of `bytes`, which a broker called `broker` sent, and takes it off.
    pub(crate) fn take(bytes: &mut Bytes, broker: &BrokerName, topic: Option<&TopicName>) -> Result<Self> {
        let view = RecordView::parse(bytes).map_err(|error| damaged().because(error))?;
        let received = Self::of(bytes, &view, broker, topic)?;
        let len = view.as_bytes().len();
        let _ = bytes.split_to(len);
        Ok(received)
    }

    /// All records of an answer's body. The CRC of each body is checked.
    pub(crate) fn all(mut bytes: Bytes, broker: &BrokerName, topic: Option<&TopicName>) -> Result<Vec<Self>> {
        let mut all = Vec::with_capacity((bytes.len() / 200).min(64));
        while !bytes.is_empty() {
            all.push(Self::take(&mut bytes, broker, topic)?);
        }
        Ok(all)
    }

    fn of(
        bytes: &Bytes,
        view: &RecordView<'_>,
        broker: &BrokerName,
        topic: Option<&TopicName>,
    ) -> Result<Self> {
        view.check_body_crc().map_err(|error| damaged().because(error))?;
        let stored = match topic {
            Some(topic) if *topic == *view.topic() => topic.clone(),
            _ => TopicName::storable(view.topic())?,
        };
        let topic = match TopicKind::of(view.topic()) {
            TopicKind::Retry => match view.properties().retry_topic() {
                Some(topic) => TopicName::storable(topic)?,
                None => stored.clone(),
            },
            _ => stored.clone(),
        };
        let body = match view.sys_flag().compression() {
            None => bytes.slice_ref(view.body()),
            Some(how) => compress::decompress(how, view.body())?.into(),
        };
        Ok(Self {
            topic,
            queue: MessageQueue { topic: stored, broker: broker.clone(), id: view.queue_id() },
            queue_offset: view.queue_offset(),
            phy_offset: view.phy_offset(),
            prepared_offset: view.prepared_offset(),
            born_at: view.born_at(),
            born_host: view.born_host(),
            store_at: view.store_at(),
            store_host: view.store_host(),
            reconsume_times: view.reconsume_times(),
            flag: view.flag(),
            sys_flag: view.sys_flag(),
            store_bytes: view.total_size(),
            body,
            properties: bytes.slice_ref(view.properties().without_crc().raw()),
        })
    }
}

fn damaged() -> Error {
    Error::new(ErrorKind::Protocol, "a message of the server is damaged")
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("topic", &self.topic)
            .field("queue", &format_args!("{}", self.queue))
            .field("queue_offset", &self.queue_offset.get())
            .field("reconsume_times", &self.reconsume_times)
            .field("body_bytes", &self.body.len())
            .field("properties", &self.properties())
            .finish_non_exhaustive()
    }
}

/// Now, as messages carry it.
pub(crate) fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis::new(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use gantry_proto::record::{Compression, RecordDraft};

    use super::*;

    fn record(topic: &str, body: &[u8], flag: SysFlag, properties: &PropertiesBuf) -> Vec<u8> {
        let mut bytes = Vec::new();
        RecordDraft {
            topic,
            queue_id: QueueId::new(3),
            flag: 7,
            sys_flag: flag,
            born_at: Millis::new(5),
            born_host: "127.0.0.1:1".parse().unwrap(),
            store_host: "127.0.0.1:2".parse().unwrap(),
            reconsume_times: 2,
            prepared_offset: PhyOffset::ZERO,
            body,
            properties: properties.as_bytes(),
            append_crc: false,
        }
        .encode_into(&mut bytes)
        .unwrap();
        bytes
    }

    fn read(bytes: Vec<u8>) -> Result<Vec<Received>> {
        Received::all(bytes.into(), &BrokerName::internal("b"), None)
    }

    #[test]
    fn a_retried_message_shows_its_first_topic() {
        let mut properties = PropertiesBuf::new();
        properties.push(keys::RETRY_TOPIC, "T");
        properties.push(keys::UNIQ_KEY, "ID");
        let mut bytes = record("%RETRY%g", b"one", SysFlag::NONE, &properties);
        bytes.extend(record("T", b"two", SysFlag::NONE, &PropertiesBuf::new()));
        let all = read(bytes).unwrap();
        let first = all.first().unwrap();
        assert_eq!((first.topic().as_str(), first.queue().topic.as_str()), ("T", "%RETRY%g"));
        assert_eq!((first.message_id().as_str(), first.reconsume_times(), first.flag()), ("ID", 2, 7));
        assert_eq!(all.get(1).unwrap().body(), "two".as_bytes());
        assert_eq!(all.get(1).unwrap().message_id(), "7F000001000000020000000000000000");
    }

    #[test]
    fn compressed_bodies_are_read_and_damaged_ones_refused() {
        let body = vec![b'x'; 10_000];
        let packed = compress::zlib(&body);
        let flag = SysFlag::NONE.with_compression(Some(Compression::Zlib));
        let mut bytes = record("T", &packed, flag, &PropertiesBuf::new());
        assert_eq!(read(bytes.clone()).unwrap().first().unwrap().body(), &body);
        let last = bytes.len() - 6;
        bytes[last] ^= 1;
        assert_eq!(read(bytes).unwrap_err().kind(), ErrorKind::Protocol);
    }

    #[test]
    fn keys_add_up() {
        let message = Message::new("T", "").key("a").key("b").tag("x").tag("y");
        assert_eq!(message.properties().keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(message.properties().tags(), Some("y"));
        let urgent = Message::new("T", "").priority(7);
        assert_eq!(
            (urgent.properties().priority(), Message::new("T", "").properties().priority()),
            (Some(7), None)
        );
    }
}
