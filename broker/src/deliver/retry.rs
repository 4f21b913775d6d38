//! Messages that a consumer refused: delivered again later, and dead letters in the end.
//!
//! A refused message is stored again for `%RETRY%group`, after a delay that its group's [schedule](crate::groups::retry) says: by way of the
//! delay level that lasts as long, or of the timer where there is none. Without a schedule the level grows with the number of
//! refusals. After the last one it is stored in `%DLQ%group`. The copy keeps everything of the message but counts
//! the refusal, and remembers the topic and the id of its first delivery.

use std::io;
use std::sync::Arc;

use gantry_proto::ids::{PhyOffset, QueueId};
use gantry_proto::names::{TopicKind, TopicName};
use gantry_proto::record::{EncodeError, OffsetMsgId, PropertiesBuf, RecordDraft, RecordView, keys};

use crate::groups::locks::Locks;
use crate::groups::{Group, Groups};
use crate::store::{AppendError, Batch, ReadError, Store};
use crate::timer::{self, Level, Levels};
use crate::topics::{TopicError, Topics};

/// Retry and dead-letter topics can be read and written.
pub(super) const READ_WRITE: i32 = 6;
/// Queues of a dead-letter topic.
pub(super) const DEAD_LETTER_QUEUES: u32 = 1;

/// A consumer's word that it could not use a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendBack<'a> {
    /// The consumer group.
    pub group: &'a str,
    /// Where the message's record starts in the log.
    pub at: PhyOffset,
    /// The delay level that the consumer wants: 0 leaves it to the broker, less than 0 asks for the dead letters.
    pub delay_level: i32,
    /// Refusals after which the message is dead, if the consumer says so.
    pub max_reconsume_times: Option<i32>,
}

/// What became of a refused message. It is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentBack {
    /// It waits for its next delivery.
    Waiting,
    /// It is a dead letter.
    Dead,
    /// The group has no retry queues: it does not want refused messages again.
    Unwanted,
}

/// Where a message sent directly to a retry topic belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DirectRetry {
    /// Into the retry topic, as it says.
    Retry,
    /// Into this dead-letter topic, without delay; see [`make_dead`].
    Dead(TopicName),
}

/// Why a refused message was not taken back. The consumer has to try again or keep it.
#[derive(Debug, thiserror::Error)]
pub enum SendBackError {
    /// The group is unknown.
    #[error("subscription group {0} does not exist: create it, or send a heartbeat first")]
    GroupNotExist(String),
    /// The message is gone, or was never there.
    #[error("the refused message cannot be found")]
    Message(#[source] ReadError),
    /// The position is no message that a consumer can have seen.
    #[error(
        "the record at {at} is not a message that consumers see: send back the offset of a delivered message"
    )]
    NotDelivered {
        /// The position.
        at: PhyOffset,
    },
    /// The retry or dead-letter topic cannot be made.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The topic's queue cannot be made.
    #[error("cannot open a queue")]
    Queue(#[from] io::Error),
    /// The copy does not fit the format.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The log refused the copy.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Takes refused messages back.
#[derive(Debug)]
pub struct Retries {
    /// Where messages are.
    pub store: Arc<Store>,
    /// The delay levels.
    pub levels: Levels,
    /// Retry and dead-letter topics are made here.
    pub topics: Arc<Topics>,
    /// The groups' limits.
    pub groups: Arc<Groups>,
    /// Which groups consume in order.
    pub locks: Arc<Locks>,
}

impl Retries {
    /// Stores a refused message for its next delivery, or as a dead letter. What it answers is safe.
    pub async fn send_back(&self, request: &SendBack<'_>) -> Result<SentBack, SendBackError> {
        let group = self.group(request.group)?;
        if group.retry_queues() == 0 {
            return Ok(SentBack::Unwanted);
        }
        let mut batch = Batch::new();
        let sent = self.push_copy(&mut batch, &group, request)?;
        self.store.append_settled(&mut batch).await?;
        Ok(sent)
    }

    /// Stores messages once more for the group's retry topic, without delay and as if they had not been delivered:
    /// whoever was asked first does not subscribe to them. What it answers is safe; messages that are lost are passed
    /// over.
    pub async fn hand_over(&self, group: &str, messages: &[PhyOffset]) -> Result<(), SendBackError> {
        let group = self.group(group)?;
        let mut batch = Batch::new();
        for at in messages {
            let record = match self.store.record_at(*at) {
                Ok(record) => record,
                Err(error @ ReadError::Io { .. }) => return Err(SendBackError::Message(error)),
                Err(error) => {
                    tracing::error!(group = %group.name, %at, %error, "a message cannot be handed to another member; it is passed over");
                    continue;
                }
            };
            let not_delivered = SendBackError::NotDelivered { at: *at };
            let Ok(view) = RecordView::parse(&record) else { return Err(not_delivered) };
            let properties = copied_properties(&view, *at);
            let topic = self.retry_topic(&group)?;
            let target = (topic, QueueId::new(fastrand::u32(0..group.retry_queues().max(1))));
            self.push_to(&mut batch, (&view, &properties), target, view.reconsume_times())?;
        }
        if !batch.is_empty() {
            self.store.append_settled(&mut batch).await?;
        }
        Ok(())
    }

    fn retry_topic(&self, group: &Group) -> Result<TopicName, SendBackError> {
        let topic = TopicName::retry(&group.name);
        self.topics.ensure_internal(&topic, group.retry_queues().max(1), READ_WRITE)?;
        Ok(topic)
    }

    /// Where a message belongs that a consumer sends to the retry topic `topic` itself, after
    /// `reconsume_times` refusals. A group that consumes in order has retried locally: its message is dead.
    pub fn direct(
        &self,
        topic: &TopicName,
        reconsume_times: i32,
        max_reconsume_times: Option<i32>,
    ) -> Result<DirectRetry, SendBackError> {
        let Some(name) = topic.retry_group() else { return Ok(DirectRetry::Retry) };
        let group = self.group(name.as_str())?;
        if reconsume_times <= group.retry_max(max_reconsume_times) && !self.locks.is_ordered(name.as_str()) {
            return Ok(DirectRetry::Retry);
        }
        let topic = TopicName::dead_letter(&group.name);
        self.topics.ensure_internal(&topic, DEAD_LETTER_QUEUES, READ_WRITE)?;
        Ok(DirectRetry::Dead(topic))
    }

    fn group(&self, name: &str) -> Result<Arc<Group>, SendBackError> {
        self.groups.get(name).ok_or_else(|| SendBackError::GroupNotExist(name.to_owned()))
    }

    fn push_copy(
        &self,
        batch: &mut Batch,
        group: &Group,
        request: &SendBack<'_>,
    ) -> Result<SentBack, SendBackError> {
        let record = self.store.record_at(request.at).map_err(SendBackError::Message)?;
        let not_delivered = SendBackError::NotDelivered { at: request.at };
        let Ok(view) = RecordView::parse(&record) else { return Err(not_delivered) };
        // A half message or an internal record must not reach a consumer this way.
        if !matches!(
            TopicKind::of(view.topic()),
            TopicKind::User | TopicKind::Retry | TopicKind::DeadLetter | TopicKind::Trace
        ) {
            return Err(not_delivered);
        }
        let mut properties = copied_properties(&view, request.at);
        let refused = view.reconsume_times();
        let dead = request.delay_level < 0 || refused >= group.retry_max(request.max_reconsume_times);
        let (topic, queue_id) = if dead {
            make_dead(&mut properties);
            let topic = TopicName::dead_letter(&group.name);
            self.topics.ensure_internal(&topic, DEAD_LETTER_QUEUES, READ_WRITE)?;
            (topic, QueueId::ZERO)
        } else {
            let topic = self.retry_topic(group)?;
            let queue_id = QueueId::new(fastrand::u32(0..group.retry_queues()));
            let target = (topic, queue_id);
            match (request.delay_level, group.retries.delay_ms(refused)) {
                (asked @ 1.., _) => wait_at(self.levels.level(asked), &mut properties, target),
                (_, Some(delay_ms)) => self.wait_for(delay_ms, &mut properties, target),
                (_, None) => {
                    let level = self.levels.level(Group::retry_level(refused));
                    wait_at(level, &mut properties, target)
                }
            }
        };
        self.push_to(batch, (&view, &properties), (topic, queue_id), refused.saturating_add(1))?;
        Ok(if dead { SentBack::Dead } else { SentBack::Waiting })
    }

    /// Where a message is stored to reach its target after so many milliseconds.
    fn wait_for(
        &self,
        delay_ms: u64,
        properties: &mut PropertiesBuf,
        (topic, queue_id): (TopicName, QueueId),
    ) -> (TopicName, QueueId) {
        if delay_ms == 0 {
            properties.remove(keys::DELAY);
            return (topic, queue_id);
        }
        let exact = self.levels.lasting(delay_ms);
        if exact.is_none() && timer::check_room(properties).is_ok() {
            let due = self.store.clock().now().plus(delay_ms);
            return timer::retarget_timer(properties, due, topic.as_str(), queue_id);
        }
        // Where the properties are too full for the timer's notes, waiting too long is better than not at all.
        wait_at(exact.or_else(|| self.levels.lasting_at_least(delay_ms)), properties, (topic, queue_id))
    }

    /// A copy of a message for another queue.
    fn push_to(
        &self,
        batch: &mut Batch,
        (view, properties): (&RecordView<'_>, &PropertiesBuf),
        (topic, queue_id): (TopicName, QueueId),
        reconsume_times: i32,
    ) -> Result<(), SendBackError> {
        let queue = self.store.queue(&topic, queue_id)?;
        let draft = RecordDraft {
            topic: topic.as_str(),
            queue_id,
            reconsume_times,
            prepared_offset: PhyOffset::ZERO,
            append_crc: true,
            ..RecordDraft::from_view(view, properties.as_bytes())
        };
        batch.push(&queue, &draft)?;
        Ok(())
    }
}

/// Where a message is stored to reach its target by a delay level; without one, at once.
fn wait_at(
    level: Option<Level>,
    properties: &mut PropertiesBuf,
    (topic, queue_id): (TopicName, QueueId),
) -> (TopicName, QueueId) {
    match level {
        Some(level) => timer::retarget(properties, level, topic.as_str(), queue_id),
        None => (topic, queue_id),
    }
}

/// The properties of a refused message's copy: with the topic and the id of its first delivery.
pub(super) fn copied_properties(view: &RecordView<'_>, at: PhyOffset) -> PropertiesBuf {
    let stored = view.properties().without_crc();
    let mut properties = PropertiesBuf::copy_of(stored, view.topic().len() + 128);
    if stored.retry_topic().is_none() {
        properties.push(keys::RETRY_TOPIC, view.topic());
    }
    if stored.origin_message_id().is_none() {
        properties.push(keys::ORIGIN_MESSAGE_ID, &OffsetMsgId::new(view.store_host(), at).to_string());
    }
    properties.set(keys::WAIT, "false");
    properties
}

/// Takes the delay from a message that becomes a dead letter.
pub fn make_dead(properties: &mut PropertiesBuf) {
    properties.set(keys::DELAY, "0");
}

#[cfg(test)]
mod tests;
