//! Sending.
//!
//! A message gets its id (`UNIQ_KEY`) once; every attempt carries the same one. Attempts go on, on
//! other queues and brokers where that can help, until the send timeout is over.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use gantry_proto::ids::{Millis, QueueId, QueueOffset};
use gantry_proto::names::{BrokerName, GroupName, TopicName, topics};
use gantry_proto::record::{Compression, PropertiesBuf, SysFlag, keys};
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::request::send::{SendMessageHeader, SendMessageV2};

use crate::client::{Client, Core};
use crate::compress;
use crate::connection::{Reply, SendAnswer};
use crate::error::{Error, ErrorKind, Result};
use crate::members::Checker;
use crate::message::{Message, MessageQueue, now};
use crate::retry::{Advice, Attempts, advice};
use crate::routes::{NEW_TOPIC_QUEUES, Route, RouteQueue};

/// How a producer behaves; made by [`Client::producer`].
#[derive(Clone, Debug)]
pub struct ProducerBuilder {
    client: Client,
    group: String,
    settings: Settings,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub send_timeout: Duration,
    pub elsewhere: u32,
    pub compress_above: usize,
    pub body_bytes_max: usize,
    pub batch_bytes_max: usize,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client, group: &str) -> Self {
        let settings = Settings {
            send_timeout: Duration::from_secs(10),
            elsewhere: 2,
            compress_above: 4096,
            body_bytes_max: 4 * 1024 * 1024,
            batch_bytes_max: 1024 * 1024,
        };
        Self { client, group: group.to_owned(), settings }
    }

    /// How long a send may take with all its attempts; 10 s by default. One attempt may take
    /// [`ClientOptions::timeout`](crate::ClientOptions::timeout).
    #[must_use]
    pub const fn send_timeout(mut self, timeout: Duration) -> Self {
        self.settings.send_timeout = timeout;
        self
    }

    /// How many further brokers are tried when one refuses for a reason of its own; 2 by default.
    #[must_use]
    pub const fn retries(mut self, retries: u32) -> Self {
        self.settings.elsewhere = retries;
        self
    }

    /// Bodies of at least so many bytes are compressed (zlib); 4096 by default, `usize::MAX` for never.
    #[must_use]
    pub const fn compress_above(mut self, bytes: usize) -> Self {
        self.settings.compress_above = bytes;
        self
    }

    /// Largest body that is sent, in bytes; 4 MiB by default, which is also what brokers take by default.
    #[must_use]
    pub const fn body_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.body_bytes_max = bytes;
        self
    }

    /// A batch is split into requests of at most so many bytes; 1 MiB by default.
    #[must_use]
    pub const fn batch_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.batch_bytes_max = bytes;
        self
    }

    /// Starts the producer.
    #[expect(clippy::unused_async, reason = "every part of a client is started with await")]
    pub async fn start(self) -> Result<Producer> {
        self.start_with(None)
    }

    pub(crate) fn start_with(self, checker: Option<Checker>) -> Result<Producer> {
        let group =
            GroupName::parse(&self.group).map_err(|error| Error::from(error).during("producer group"))?;
        let core = self.client.core();
        core.members.add_producer(&group, checker);
        core.beat.notify_one();
        let seat =
            Seat { client: self.client, group, gone: AtomicBool::new(false), known: AtomicBool::new(false) };
        Ok(Producer { seat: Arc::new(seat), settings: self.settings })
    }
}

/// Membership in a producer group; ends with the last handle.
struct Seat {
    client: Client,
    group: GroupName,
    gone: AtomicBool,
    /// Whether the brokers in use have heard of the group.
    known: AtomicBool,
}

impl Seat {
    fn leave(&self) -> bool {
        !self.gone.swap(true, Ordering::AcqRel) && self.client.core().members.remove_producer(&self.group)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Sends messages. Clones are the same producer; share it between tasks.
#[derive(Clone)]
pub struct Producer {
    seat: Arc<Seat>,
    settings: Settings,
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").field("group", &self.seat.group).finish_non_exhaustive()
    }
}

/// How well a message is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SendStatus {
    /// As its broker's policy asks.
    Ok,
    /// It is stored, but was not flushed in time.
    FlushDiskTimeout,
    /// It is stored, but no replica confirmed in time.
    FlushSlaveTimeout,
    /// It is stored, but there is no replica to send it to.
    SlaveNotAvailable,
}

/// What became of a sent message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendReceipt {
    /// How well it is kept.
    pub status: SendStatus,
    /// The id that this producer gave it.
    pub message_id: String,
    /// Where it is stored: parses as an [`OffsetMsgId`](gantry_proto::record::OffsetMsgId).
    pub offset_message_id: String,
    /// The queue it is in.
    pub queue: MessageQueue,
    /// Its offset in that queue.
    pub queue_offset: QueueOffset,
    /// What [`Producer::recall`] takes the message back with, if it waits for a time of its own.
    pub recall_handle: Option<String>,
    /// Id of its transaction, if the broker names one.
    pub(crate) transaction_id: Option<String>,
}

/// A message ready for any number of attempts.
pub(crate) struct Outgoing {
    pub topic: TopicName,
    pub body: Bytes,
    pub properties: PropertiesBuf,
    pub sys_flag: SysFlag,
    pub flag: i32,
    pub born_at: i64,
    pub id: String,
    pub sharding_key: Option<Box<str>>,
    pub shape: Shape,
    /// How often consumers refused it.
    pub reconsume_times: i32,
    pub max_reconsume_times: Option<i32>,
}

/// One message, or many in one request, or the reply to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Single,
    Batch,
    Reply,
}

impl Shape {
    const fn code(self) -> RequestCode {
        match self {
            Self::Single => RequestCode::SendMessageV2,
            Self::Batch => RequestCode::SendBatchMessage,
            Self::Reply => RequestCode::SendReplyMessageV2,
        }
    }
}

impl Producer {
    /// The group.
    pub fn group(&self) -> &GroupName {
        &self.seat.group
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        self.seat.client.core()
    }

    /// Whether the brokers in use have heard of the group.
    pub(crate) fn known(&self) -> &AtomicBool {
        &self.seat.known
    }

    pub(crate) const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Sends a message and waits until a broker has it. With a sharding key it goes to that key's queue,
    /// otherwise to the queues in turn.
    ///
    /// ```no_run
    /// # async fn example(producer: gantry_client::Producer) -> gantry_client::Result<()> {
    /// use gantry_client::Message;
    ///
    /// let receipt = producer.send(Message::new("orders", "one tea")).await?;
    /// println!("{} is in {}", receipt.message_id, receipt.queue);
    /// # Ok(()) }
    /// ```
    pub async fn send(&self, message: Message) -> Result<SendReceipt> {
        let outgoing = self.prepare(message)?;
        self.deliver(&outgoing, None).await
    }

    /// Sends a message to one queue and nowhere else.
    pub async fn send_to(&self, queue: &MessageQueue, message: Message) -> Result<SendReceipt> {
        if message.topic != queue.topic {
            return Err(Error::invalid(format!("a message for {} cannot go to {queue}", message.topic)));
        }
        let outgoing = self.prepare(message)?;
        self.deliver(&outgoing, Some(queue)).await
    }

    /// Hands a message to the connection and does not ask what became of it.
    pub async fn send_one_way(&self, message: Message) -> Result<()> {
        let outgoing = self.prepare(message)?;
        let route = self.core().route_to_send(&outgoing.topic).await?;
        let queue = choose(&route, &outgoing, None)?;
        let connection = self.connect(queue).await?;
        let header = self.header(&outgoing, queue);
        let timeout = self.core().timeout();
        connection.tell(outgoing.shape.code(), &header, &[&outgoing.body], timeout).await
    }

    /// Hands a message to the connection; the ticket tells later what became of it. One attempt is made.
    ///
    /// This is the way to have many sends in flight from one task: it waits only when there is no
    /// connection yet or the connection has more than it can carry.
    pub async fn send_nowait(&self, message: Message) -> Result<SendTicket> {
        let outgoing = self.prepare(message)?;
        let route = self.core().route_to_send(&outgoing.topic).await?;
        let queue = choose(&route, &outgoing, None)?;
        let begun = now();
        let reply = self.attempt(&outgoing, queue, self.core().timeout()).await?;
        let (queue, id) = (queue.queue.clone(), outgoing.id.clone());
        let is_traced = self.core().tracer.as_ref().is_some_and(|tracer| tracer.concerns(&outgoing.topic));
        let traced = is_traced.then(|| Box::new(TracedSend { producer: self.clone(), outgoing, begun }));
        Ok(SendTicket { reply, queue, id, traced })
    }

    /// Takes a message back that was to be delivered later ([`Message::delay`], [`Message::deliver_at`], with Gantry also
    /// [`Message::delay_level`]): nobody will get it.
    /// `handle` is the receipt's [`recall_handle`](SendReceipt::recall_handle). The message's id; an error when it is due by
    /// now or was never sent. Taken back again it stays so.
    ///
    /// ```no_run
    /// # async fn example(producer: gantry_client::Producer) -> gantry_client::Result<()> {
    /// use std::time::Duration;
    ///
    /// use gantry_client::Message;
    ///
    /// let reminder = Message::new("reminders", "your tea").delay(Duration::from_secs(1800));
    /// let receipt = producer.send(reminder).await?;
    /// if let Some(handle) = &receipt.recall_handle {
    ///     producer.recall("reminders", handle).await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn recall(&self, topic: impl AsRef<str>, handle: impl AsRef<str>) -> Result<String> {
        self.core().recall(Some(&self.seat.group), topic.as_ref(), handle.as_ref()).await
    }

    /// The queues of a topic that can be sent to.
    pub async fn queues(&self, topic: impl AsRef<str>) -> Result<Vec<MessageQueue>> {
        let topic = TopicName::parse(topic.as_ref())?;
        let route = self.core().route(&topic).await?;
        Ok(route.write.iter().map(|queue| queue.queue.clone()).collect())
    }

    /// Leaves the group. What is in flight is still answered.
    pub async fn shutdown(&self) {
        if self.seat.leave() {
            self.core().unregister(Some(&self.seat.group), None).await;
        }
    }

    /// Checks a message, gives it its id and packs it.
    pub(crate) fn prepare(&self, message: Message) -> Result<Outgoing> {
        if self.seat.gone.load(Ordering::Acquire) {
            return Err(Error::closed("producer"));
        }
        let Message { topic, mut body, mut properties, flag, sharding_key } = message;
        let (len, max) = (body.len(), self.settings.body_bytes_max);
        if len > max {
            let what = format!("the body has {len} bytes, the limit is {max}");
            return Err(Error::new(ErrorKind::TooLarge, what));
        }
        let mut sys_flag = SysFlag::NONE;
        if len >= self.settings.compress_above {
            let packed = compress::zlib(&body);
            if !packed.is_empty() && packed.len() < len {
                body = packed.into();
                sys_flag = sys_flag.with_compression(Some(Compression::Zlib));
            }
        }
        let has_any = !properties.as_bytes().is_empty();
        let shape = if has_any && properties.view().is_reply() { Shape::Reply } else { Shape::Single };
        let id = self.give_id(&mut properties);
        let born_at = now().get();
        Ok(Outgoing {
            topic,
            body,
            properties,
            sys_flag,
            flag,
            born_at,
            id,
            sharding_key,
            shape,
            reconsume_times: 0,
            max_reconsume_times: None,
        })
    }

    /// The message's id: its own, or a new one.
    pub(crate) fn give_id(&self, properties: &mut PropertiesBuf) -> String {
        if !properties.as_bytes().is_empty()
            && let Some(id) = properties.view().get(keys::UNIQ_KEY)
        {
            return id.to_owned();
        }
        let id = self.core().next_id();
        properties.push(keys::UNIQ_KEY, &id);
        id
    }

    /// Attempts until one succeeds or there is no point in more, and writes down what became of it.
    pub(crate) async fn deliver(
        &self,
        outgoing: &Outgoing,
        to: Option<&MessageQueue>,
    ) -> Result<SendReceipt> {
        let tracer = self.core().tracer.as_ref().filter(|tracer| tracer.concerns(&outgoing.topic));
        let Some(tracer) = tracer else { return self.attempts(outgoing, to).await };
        let begun = now();
        let result = self.attempts(outgoing, to).await;
        tracer.sent(self.core(), self.group(), outgoing, begun, &result);
        result
    }

    async fn attempts(&self, outgoing: &Outgoing, to: Option<&MessageQueue>) -> Result<SendReceipt> {
        let mut attempts = Attempts::new(self.settings.send_timeout, self.settings.elsewhere);
        let mut failed_on: Option<BrokerName> = None;
        let attempt_timeout = match outgoing.shape {
            Shape::Single | Shape::Batch => self.core().timeout(),
            // It is answered when the requester has taken it.
            Shape::Reply => self.settings.send_timeout,
        };
        loop {
            let timeout = attempts.time_left(attempt_timeout);
            let (error, broker) = match self.deliver_once(outgoing, to, failed_on.as_ref(), timeout).await {
                Ok(receipt) => return Ok(receipt),
                Err(failed) => failed,
            };
            let pause = attempts.next(&error).filter(|_| to.is_none() || advice(&error) == Advice::Later);
            let Some(pause) = pause else {
                return Err(error.during(format_args!("sending to {}", outgoing.topic)));
            };
            tracing::debug!(topic = %outgoing.topic, id = %outgoing.id, "sending again: {error}");
            if broker.is_some() {
                failed_on = broker;
            }
            tokio::time::sleep(pause).await;
            if error.code() == Some(ResponseCode::TopicNotExist) {
                // The route may be old; if not, the error of the next attempt says so.
                let _ = self.core().refresh(&outgoing.topic).await;
            }
        }
    }

    async fn deliver_once(
        &self,
        outgoing: &Outgoing,
        to: Option<&MessageQueue>,
        avoid: Option<&BrokerName>,
        timeout: Duration,
    ) -> Result<SendReceipt, (Error, Option<BrokerName>)> {
        let route = self.core().route_to_send(&outgoing.topic).await.map_err(|error| (error, None))?;
        let named;
        let queue = match to {
            None => choose(&route, outgoing, avoid).map_err(|error| (error, None))?,
            Some(queue) => {
                let Some(broker) = route.broker(&queue.broker) else {
                    let what = format!("no broker called {} has topic {}", queue.broker, queue.topic);
                    return Err((Error::new(ErrorKind::NoRoute, what), None));
                };
                named = RouteQueue { queue: queue.clone(), broker: Arc::clone(broker) };
                &named
            }
        };
        let answered = async {
            let answer = self.attempt(outgoing, queue, timeout).await?.await?;
            receipt(answer, &queue.queue, outgoing.id.clone())
        };
        answered.await.map_err(|error| (error, Some(queue.queue.broker.clone())))
    }

    async fn connect(&self, queue: &RouteQueue) -> Result<crate::connection::Connection> {
        let master = queue.broker.master.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::NoRoute, format!("broker {} has no master", queue.broker.name))
        })?;
        self.core().broker(master).await
    }

    async fn attempt(
        &self,
        outgoing: &Outgoing,
        queue: &RouteQueue,
        timeout: Duration,
    ) -> Result<Reply<SendAnswer>> {
        let connection = self.connect(queue).await?;
        let header = self.header(outgoing, queue);
        connection.ask(outgoing.shape.code(), &header, &[&outgoing.body], timeout).await
    }

    fn header<'a>(&'a self, outgoing: &'a Outgoing, queue: &'a RouteQueue) -> SendMessageV2<'a> {
        let properties = std::str::from_utf8(outgoing.properties.as_bytes()).ok();
        SendMessageV2(SendMessageHeader {
            producer_group: self.seat.group.as_str(),
            topic: outgoing.topic.as_str(),
            default_topic: topics::DEFAULT,
            default_topic_queue_nums: NEW_TOPIC_QUEUES,
            queue_id: queue.queue.id.to_wire(),
            sys_flag: outgoing.sys_flag.get(),
            born_timestamp: outgoing.born_at,
            flag: outgoing.flag,
            properties,
            reconsume_times: Some(outgoing.reconsume_times),
            unit_mode: Some(false),
            max_reconsume_times: outgoing.max_reconsume_times,
            batch: Some(outgoing.shape == Shape::Batch),
            broker_name: Some(queue.queue.broker.as_str()),
        })
    }
}

/// The queue for the next attempt. A sharding key binds its messages to one queue: order comes first.
fn choose<'r>(route: &'r Route, outgoing: &Outgoing, avoid: Option<&BrokerName>) -> Result<&'r RouteQueue> {
    let queue = match &outgoing.sharding_key {
        Some(key) => route.pick_for_key(key),
        None => route.pick(avoid),
    };
    queue.ok_or_else(|| {
        let what = format!("topic {} has no queue that can be sent to", outgoing.topic);
        Error::new(ErrorKind::NoRoute, what)
    })
}

/// Reads the answer to a send of one message.
pub(crate) fn receipt(answer: SendAnswer, asked: &MessageQueue, id: String) -> Result<SendReceipt> {
    let status = match ResponseCode::from(answer.code) {
        ResponseCode::Success => SendStatus::Ok,
        ResponseCode::FlushDiskTimeout => SendStatus::FlushDiskTimeout,
        ResponseCode::FlushSlaveTimeout => SendStatus::FlushSlaveTimeout,
        ResponseCode::SlaveNotAvailable => SendStatus::SlaveNotAvailable,
        _ => return Err(Error::refused(answer.code, answer.remark.as_deref())),
    };
    let queue = MessageQueue { id: QueueId::from_wire(answer.queue_id).unwrap_or(asked.id), ..asked.clone() };
    Ok(SendReceipt {
        status,
        message_id: id,
        offset_message_id: answer.offset_msg_id,
        queue,
        queue_offset: QueueOffset::from_wire(answer.queue_offset).unwrap_or_default(),
        recall_handle: answer.recall_handle,
        transaction_id: answer.transaction_id,
    })
}

/// The answer to a send, to come. Dropping it does not take the message back.
#[must_use = "a ticket that is not awaited does not tell whether the message was kept"]
pub struct SendTicket {
    reply: Reply<SendAnswer>,
    queue: MessageQueue,
    id: String,
    /// What is to be written down with the answer.
    traced: Option<Box<TracedSend>>,
}

struct TracedSend {
    producer: Producer,
    outgoing: Outgoing,
    begun: Millis,
}

impl std::fmt::Debug for SendTicket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendTicket").field("message_id", &self.id).finish_non_exhaustive()
    }
}

impl SendTicket {
    /// The id that the message got.
    pub fn message_id(&self) -> &str {
        &self.id
    }
}

impl Future for SendTicket {
    type Output = Result<SendReceipt>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.reply).poll(context).map(|answer| {
            let id = std::mem::take(&mut self.id);
            let result = answer.and_then(|answer| receipt(answer, &self.queue, id));
            if let Some(TracedSend { producer, outgoing, begun }) = self.traced.as_deref()
                && let Some(tracer) = &producer.core().tracer
            {
                tracer.sent(producer.core(), producer.group(), outgoing, *begun, &result);
            }
            result
        })
    }
}
