//! Which queue a message goes to: the one that its sender asks for, unless a priority or a change of the number of
//! queues says otherwise.

use gantry_proto::ids::QueueId;
use gantry_proto::names::TopicKind;
use gantry_proto::record::{BatchItems, HotProperties, Properties};

use super::{Publisher, SendError};
use crate::topics::Topic;
use crate::topics::kinds::MessageType;
use crate::topics::scale::{Place, ScaleMode};

/// Whether a message belongs into an order with others of its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// Any queue is as good.
    None,
    /// The sender chose the queue for those that belong together.
    Kept,
}

impl Publisher {
    /// The queue of a message. `dead`: it goes to the dead letters, whatever queue was asked for.
    pub(super) fn pick_queue(
        &self,
        topic: &Topic,
        asked: i32,
        dead: bool,
        properties: Properties<'_>,
        hot: &HotProperties<'_>,
    ) -> Result<QueueId, SendError> {
        if !topic.is_writable() {
            return Err(SendError::NotWritable { topic: topic.name.clone() });
        }
        let write = topic.write_queues().max(1);
        let Some(id) = QueueId::from_wire(asked).filter(|_| !dead) else {
            return Ok(QueueId::new(fastrand::u32(0..write)));
        };
        if topic.kind == TopicKind::User
            && let Some(priority) = priority(topic, properties, hot)
        {
            return Ok(QueueId::new(priority.min(write - 1)));
        }
        match topic.place(id) {
            Place::Open => Ok(id),
            Place::Sealed(next) => self.instead(topic, id, next, order(topic, hot)),
            Place::Unknown => self.beyond(topic, id, order(topic, hot)),
        }
    }

    /// The queue for a message that was sent to a sealed one. What belongs into an order may go there as long as
    /// producers have not heard of the change; whoever reads in order waits for it.
    fn instead(&self, topic: &Topic, id: QueueId, next: QueueId, order: Order) -> Result<QueueId, SendError> {
        let is_fresh = || topic.change.is_some_and(|c| c.is_fresh(self.clock.now(), self.scale_grace));
        match order {
            Order::None => Ok(next),
            Order::Kept if is_fresh() => Ok(id),
            Order::Kept => Err(sealed(topic, id)),
        }
    }

    /// The same for a queue that the topic does not have, or no longer has.
    fn beyond(&self, topic: &Topic, id: QueueId, order: Order) -> Result<QueueId, SendError> {
        let was_there = topic.kind == TopicKind::User
            && topic.write_queues() > 0
            && self.store.find_queue(topic.name.as_str(), id).is_some();
        match order {
            _ if !was_there => Err(SendError::NoSuchQueue {
                topic: topic.name.clone(),
                queues: topic.write_queues().max(topic.read_queues()),
                asked: id.to_wire(),
            }),
            Order::None => Ok(topic.target(id)),
            Order::Kept => Err(sealed(topic, id)),
        }
    }

    /// Whether the topic takes a message of this type, where it says that it looks.
    #[expect(clippy::unused_self, reason = "it stands beside the other steps of a send")]
    pub(super) fn check_type(
        &self,
        topic: &Topic,
        properties: Properties<'_>,
        hot: &HotProperties<'_>,
    ) -> Result<(), SendError> {
        if !topic.checks_type || topic.kind != TopicKind::User {
            return Ok(());
        }
        let found = MessageType::of_message(properties, hot);
        if topic.message_type.takes(found) {
            return Ok(());
        }
        Err(SendError::Type { topic: topic.name.clone(), takes: topic.message_type, found })
    }

    /// The same for each message of a batch.
    pub(super) fn check_batch(&self, topic: &Topic, body: &[u8]) -> Result<(), SendError> {
        if !topic.checks_type {
            return Ok(());
        }
        BatchItems::new(body).try_for_each(|item| {
            let properties = item?.properties;
            self.check_type(topic, properties, &properties.scan())
        })
    }
}

fn sealed(topic: &Topic, queue: QueueId) -> SendError {
    SendError::Sealed { topic: topic.name.clone(), queue, queues: topic.write_queues() }
}

/// The priority by which a message is stored. As in Apache's broker, a message of another type has none, except where
/// the topic is for priorities; what is no number, or below 0, is none.
fn priority(topic: &Topic, properties: Properties<'_>, hot: &HotProperties<'_>) -> Option<u32> {
    let asked = hot.priority?.parse().ok()?;
    let is_meant = topic.message_type == MessageType::Priority
        || MessageType::of_message(properties, hot) == MessageType::Priority;
    is_meant.then_some(asked)
}

fn order(topic: &Topic, hot: &HotProperties<'_>) -> Order {
    let is_kept = hot.sharding_key.is_some()
        || topic.message_type == MessageType::Fifo
        || topic.scale == ScaleMode::Ordered
        || topic.config.order;
    if is_kept { Order::Kept } else { Order::None }
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
