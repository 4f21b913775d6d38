//! Request and reply: a message whose sender waits for the answer of whoever consumes it.
//!
//! The request is an ordinary message that names this client and the request. The reply is a message made by
//! [`Received::reply`]; its broker pushes it to this client, which finds the waiting call by the request's number.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use gantry_proto::ids::Millis;
use gantry_proto::names::TopicName;
use gantry_proto::record::{Properties, PropertiesBuf, SysFlag, keys};
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::header::FLAG_ONEWAY;
use gantry_proto::remoting::request::callback::PushReplyMessageHeader;
use tokio::sync::oneshot;

use crate::client::Core;
use crate::compress;
use crate::connection::FromServer;
use crate::dispatch::refuse;
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Message, Received, now};
use crate::producer::Producer;

/// The value of `MSG_TYPE` that marks a reply.
const REPLY: &str = "reply";
/// Bytes of properties that are added to a reply when it arrives.
const ADDED_PROPERTIES: usize = 48;

/// What a consumer answered to a request.
#[derive(Clone)]
pub struct Reply {
    body: Bytes,
    properties: Vec<u8>,
    flag: i32,
    born_at: Millis,
}

impl Reply {
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

    /// The consumer's own number.
    pub const fn flag(&self) -> i32 {
        self.flag
    }

    /// When the consumer made it.
    pub const fn born_at(&self) -> Millis {
        self.born_at
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("body_bytes", &self.body.len())
            .field("properties", &self.properties())
            .finish_non_exhaustive()
    }
}

/// The requests of one client that wait for their replies, by number. Each lives no longer than the call of
/// [`Producer::request`] that made it.
#[derive(Default)]
pub(crate) struct Requests {
    waiting: Mutex<HashMap<String, oneshot::Sender<Reply>>>,
}

/// A request that waits; dropping it gives up.
struct Waiting<'a> {
    requests: &'a Requests,
    number: String,
    reply: oneshot::Receiver<Reply>,
}

impl Requests {
    fn begin(&self) -> Waiting<'_> {
        let number = format!("{:032x}", fastrand::u128(..));
        let (sender, reply) = oneshot::channel();
        self.lock().insert(number.clone(), sender);
        Waiting { requests: self, number, reply }
    }

    fn take(&self, number: &str) -> Option<oneshot::Sender<Reply>> {
        self.lock().remove(number)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<Reply>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.requests.take(&self.number);
    }
}

impl Producer {
    /// Sends a message and waits, at most `timeout` for both, for the reply of the consumer that processes it. It fails with
    /// [`ErrorKind::Timeout`] when none came: the message may be consumed all the same.
    ///
    /// ```no_run
    /// # async fn example(producer: gantry_client::Producer) -> gantry_client::Result<()> {
    /// use std::time::Duration;
    ///
    /// use gantry_client::Message;
    ///
    /// let question = Message::new("questions", "how much is the tea?");
    /// let reply = producer.request(question, Duration::from_secs(3)).await?;
    /// println!("{}", String::from_utf8_lossy(reply.body()));
    /// # Ok(()) }
    /// ```
    pub async fn request(&self, mut message: Message, timeout: Duration) -> Result<Reply> {
        let core = self.core();
        let mut waiting = core.requests.begin();
        let set = &mut message.properties;
        set.set(keys::CORRELATION_ID, &waiting.number);
        set.set(keys::REPLY_TO_CLIENT, &core.client_id);
        set.set(keys::TTL, &timeout.as_millis().to_string());
        let topic = message.topic.clone();
        let answered = async {
            self.be_known(&topic).await?;
            let sent = self.send(message).await?;
            // The sender lives in the table until it is used.
            let reply = (&mut waiting.reply).await.map_err(|_| Error::closed("request"))?;
            tracing::trace!(id = sent.message_id, "the reply came");
            Ok(reply)
        };
        tokio::time::timeout(timeout, answered).await.unwrap_or_else(|_| {
            let what = format!("no reply to a request of {topic} within {timeout:?}");
            Err(Error::new(ErrorKind::Timeout, what))
        })
    }

    /// Lets the brokers of the topic know this producer, if they may not yet: a reply finds it by its heartbeat.
    async fn be_known(&self, topic: &TopicName) -> Result<()> {
        let core = self.core();
        core.route_to_send(topic).await?;
        if !self.known().load(Ordering::Acquire) && core.heartbeat().await {
            self.known().store(true, Ordering::Release);
        }
        Ok(())
    }
}

impl Received {
    /// The reply to this request, to be sent by any producer. `Err` when the message is no request.
    ///
    /// ```no_run
    /// # async fn example(producer: gantry_client::Producer, request: gantry_client::Received) -> gantry_client::Result<()> {
    /// producer.send(request.reply("two coins")?).await?;
    /// # Ok(()) }
    /// ```
    pub fn reply(&self, body: impl Into<Bytes>) -> Result<Message> {
        let needed = |name: &str| {
            self.property(name).ok_or_else(|| {
                let what = format!("message {} has no property {name}: it is no request", self.message_id());
                Error::invalid(what)
            })
        };
        let topic = TopicName::reply(needed(keys::CLUSTER)?);
        let reply = Message::to(topic, body)
            .property(keys::MSG_TYPE, REPLY)
            .property(keys::CORRELATION_ID, needed(keys::CORRELATION_ID)?)
            .property(keys::REPLY_TO_CLIENT, needed(keys::REPLY_TO_CLIENT)?);
        // Some clients set no time; then the reply has none.
        Ok(match self.property(keys::TTL) {
            Some(ttl) => reply.property(keys::TTL, ttl),
            None => reply,
        })
    }
}

/// Hands a reply that a broker pushed to the call that waits for it. Nobody may wait any more: the reply was
/// received all the same, and sending it again would not help.
pub(crate) fn take_reply(core: &Arc<Core>, request: &FromServer) {
    let (number, reply) = match read(request) {
        Ok(read) => read,
        Err(error) => return refuse(request, ResponseCode::SystemError, &error.to_string()),
    };
    // Who gives up takes its place with it; a moment earlier the reply is received in vain.
    if core.requests.take(&number).is_none_or(|waiting| waiting.send(reply).is_err()) {
        tracing::info!(number, "a reply came to a request that waits no more");
    }
    if request.command.flag & FLAG_ONEWAY == 0 {
        // Nobody waits any more on a closed connection.
        let _ = request.connection.answer(ResponseCode::Success, request.command.opaque, None, &[]);
    }
}

fn read(request: &FromServer) -> Result<(String, Reply)> {
    let header: PushReplyMessageHeader = request.command.header()?;
    let sent = Properties::new(header.properties.as_deref().unwrap_or_default().as_bytes());
    let number =
        sent.correlation_id().ok_or_else(|| Error::invalid("the reply names no request"))?.to_owned();
    let mut properties = PropertiesBuf::copy_of(sent, ADDED_PROPERTIES);
    properties.set(keys::ARRIVE_TIME, &now().to_string());
    let body = match SysFlag::new(header.sys_flag).compression() {
        None => Bytes::clone(&request.command.body),
        Some(how) => compress::decompress(how, &request.command.body)?.into(),
    };
    let reply = Reply {
        body,
        properties: properties.finish(),
        flag: header.flag,
        born_at: Millis::new(header.born_timestamp),
    };
    Ok((number, reply))
}
