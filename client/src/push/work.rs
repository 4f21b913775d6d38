//! Processing: messages wait in one backlog, workers take them; what is refused goes back to the broker.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use gantry_proto::names::TopicName;
use gantry_proto::record::{PropertiesBuf, keys};
use gantry_proto::remoting::body::heartbeat::MessageModel;
use gantry_proto::remoting::codes::RequestCode;
use gantry_proto::remoting::request::send::ConsumerSendMsgBackHeader;
use tokio::sync::Semaphore;

use super::group::Group;
use super::process_queue::{Epoch, ProcessQueue};
use super::{Handler, Outcome};
use crate::error::Result;
use crate::message::Received;
use crate::producer::{Outgoing, Shape};

/// A message that cannot be handed back is tried again after this time.
const BACK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// First delay level of a message that this client itself sends to its retry topic.
const FIRST_RETRY_LEVEL: u32 = 3;

/// One message to process.
pub(crate) struct Work {
    pub queue: Arc<ProcessQueue>,
    pub epoch: Epoch,
    pub message: Received,
}

/// Messages that wait for a worker. Bounded by the limits of the queues they come from.
pub(crate) struct Backlog {
    waiting: Mutex<VecDeque<Work>>,
    /// As many permits as messages wait.
    count: Semaphore,
}

impl Backlog {
    pub(crate) fn new() -> Self {
        Self { waiting: Mutex::default(), count: Semaphore::new(0) }
    }

    pub(crate) fn add(&self, queue: &Arc<ProcessQueue>, epoch: Epoch, messages: Vec<Received>) {
        let count = messages.len();
        let work = messages.into_iter().map(|message| Work { queue: Arc::clone(queue), epoch, message });
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).extend(work);
        self.count.add_permits(count);
    }

    async fn next(&self) -> Option<Work> {
        self.count.acquire().await.ok()?.forget();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// Runs the handler; a panic counts as a refusal.
pub(crate) async fn handle(handler: &Handler, message: Received) -> Outcome {
    let mut running = Box::pin(async move { handler(message).await });
    std::future::poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(context))).unwrap_or_else(|_| {
            tracing::error!("a message handler panicked: the message will come again");
            Poll::Ready(Outcome::Later)
        })
    })
    .await
}

/// Processes messages until the group stops; the one at hand is finished.
pub(crate) async fn work(group: Arc<Group>) {
    loop {
        let work = tokio::select! {
            biased;
            () = group.stop.cancelled() => return,
            work = group.backlog.next() => work,
        };
        let Some(Work { queue, epoch, message }) = work else { return };
        // Given to another member, or moved: it will be delivered again where it belongs.
        if !queue.wants(epoch) {
            continue;
        }
        let offset = message.queue_offset();
        let outcome = group.process(&message).await;
        if group.settle(&queue, &message, outcome).await {
            queue.finish(epoch, offset);
        }
    }
}

impl Group {
    /// Runs the handler, and writes down what it did, where traces are wanted.
    pub(crate) async fn process(&self, message: &Received) -> Outcome {
        let handler = handle(&self.handler, message.clone());
        match &self.core.tracer {
            Some(tracer) => tracer.consumed(self.core.next_id(), &self.name, message, handler).await,
            None => handler.await,
        }
    }

    /// Does what the handler's verdict asks for. Whether the message is done with.
    pub(crate) async fn settle(&self, queue: &ProcessQueue, message: &Received, outcome: Outcome) -> bool {
        let level = match outcome {
            Outcome::Success => return true,
            Outcome::Later => 0,
            Outcome::LaterAtLevel(level) => i32::from(level),
            Outcome::DeadLetter => -1,
        };
        if self.settings.model == MessageModel::Broadcasting {
            let (id, times) = (message.message_id(), message.reconsume_times());
            tracing::warn!(%id, times, "refused by its handler; broadcast messages do not come again");
            return true;
        }
        loop {
            let Err(error) = self.give_back(message, level).await else { return true };
            tracing::warn!(id = %message.message_id(), "handing a message back failed: {error}");
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = queue.gone.cancelled() => return false,
                () = tokio::time::sleep(BACK_AGAIN_AFTER) => {}
            }
        }
    }

    /// Hands a message back to its broker; to its retry topic directly when the broker refuses.
    async fn give_back(&self, message: &Received, level: i32) -> Result<()> {
        let header = ConsumerSendMsgBackHeader {
            offset: message.phy_offset().to_wire(),
            group: self.name.as_str().to_owned(),
            delay_level: level,
            origin_msg_id: Some(message.offset_message_id().to_string()),
            origin_topic: Some(message.topic().as_str().to_owned()),
            unit_mode: Some(false),
            max_reconsume_times: Some(self.max_reconsume_times()),
            broker_name: Some(message.queue().broker.as_str().to_owned()),
        };
        let core = &self.core;
        let handed = async {
            let connection = core.queue_connection(message.queue()).await?;
            connection.call(RequestCode::ConsumerSendMsgBack, &header, &[], core.timeout()).await
        };
        let Err(error) = handed.await else { return Ok(()) };
        tracing::info!(id = %message.message_id(), "sending to the retry topic, because: {error}");
        self.send_to_retry_topic(message, level).await
    }

    /// What the broker does for a message that is handed back, done by this client.
    pub(crate) async fn send_to_retry_topic(&self, message: &Received, level: i32) -> Result<()> {
        let mut properties = PropertiesBuf::from(message.properties());
        let origin = message.properties().origin_message_id().map(str::to_owned);
        let origin = origin.unwrap_or_else(|| message.offset_message_id().to_string());
        properties.set(keys::RETRY_TOPIC, message.topic().as_str());
        properties.set(keys::ORIGIN_MESSAGE_ID, &origin);
        // Half-ness and its like were settled by the first delivery.
        properties.remove(keys::TRAN_MSG);
        let times = message.reconsume_times();
        let level = match u32::try_from(level) {
            Ok(0) => FIRST_RETRY_LEVEL.saturating_add(times),
            Ok(level) => level,
            Err(_) => 0,
        };
        properties.set(keys::DELAY, &level.to_string());
        let max = self.max_reconsume_times();
        let times = i32::try_from(times).unwrap_or(i32::MAX).saturating_add(1);
        let outgoing = Outgoing {
            topic: TopicName::retry(&self.name),
            body: message.body().clone(),
            properties,
            sys_flag: message
                .sys_flag()
                .with_compression(None)
                .with_transaction(gantry_proto::record::TransactionFlag::None),
            flag: message.flag(),
            born_at: message.born_at().get(),
            id: message.message_id(),
            sharding_key: None,
            shape: Shape::Single,
            // Level 0 means the dead letter topic: more attempts than allowed lead there.
            reconsume_times: if level == 0 { max.saturating_add(1) } else { times },
            max_reconsume_times: Some(max),
        };
        self.inner_producer.deliver(&outgoing, None).await.map(drop)
    }
}
