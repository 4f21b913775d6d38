//! Delivered copies of messages that waited.
//!
//! A message that names no real topic and queue, or one of the broker's own, cannot be delivered: it goes to the dead-letter topic of the system
//! group `SCHEDULE_CONSUMER`. A topic that was deleted meanwhile gets the message all the same, as at Apache: it
//! is in its queue again when the topic is made anew.

use std::io;

use gantry_proto::ids::{PhyOffset, QueueId};
use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::record::{EncodeError, Properties, PropertiesBuf, RecordDraft, RecordView, keys};

use super::cursors::mark_of;
use crate::store::{AppendError, Batch, Store};

/// The group whose dead letters are messages that cannot be delivered.
const NOBODY: &str = "SCHEDULE_CONSUMER";
/// What a dead letter keeps of properties that are too long: by these its delivery is known.
const NEEDED: [&str; 6] = [
    keys::UNIQ_KEY,
    keys::DELAY,
    keys::TIMER_OUT_MS,
    keys::TIMER_DELIVER_MS,
    keys::REAL_TOPIC,
    keys::REAL_QID,
];

/// Why a run of messages was not delivered; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeliverError {
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error("cannot open a queue, or read a message")]
    Io(#[from] io::Error),
}

/// Why a waiting message has no delivered form.
#[derive(Debug, thiserror::Error)]
enum Undeliverable {
    #[error("it names no real topic and queue that messages are sent to")]
    NoTarget,
    #[error(transparent)]
    Encode(EncodeError),
}

/// Adds the copy of the waiting message `view`, whose record starts at `at`, with these properties to `batch`; of one that
/// cannot be delivered, a dead letter.
pub(super) fn push(
    store: &Store,
    batch: &mut Batch,
    view: &RecordView<'_>,
    at: PhyOffset,
    properties: Properties<'_>,
) -> Result<(), DeliverError> {
    let mut pushed = push_delivered(store, batch, view, at, properties)?;
    if matches!(pushed, Err(Undeliverable::Encode(_))) {
        // No room for what a delivery notes in it. It fits as it waited.
        pushed = push_delivered(store, batch, view, at, view.properties().without_crc())?;
    }
    if let Err(error) = pushed {
        tracing::warn!(%at, %error, "a delayed message cannot be delivered; it goes to a dead-letter topic");
        push_dead(store, batch, view, at)?;
    }
    Ok(())
}

fn push_delivered(
    store: &Store,
    batch: &mut Batch,
    view: &RecordView<'_>,
    at: PhyOffset,
    properties: Properties<'_>,
) -> Result<Result<(), Undeliverable>, DeliverError> {
    let topic = properties.real_topic().and_then(|topic| TopicName::storable(topic).ok());
    // What is stored there is taken for the broker's own word.
    let topic = topic.filter(|topic| !topic.is_protected());
    let queue_id = properties.real_queue_id().and_then(QueueId::from_wire);
    let (Some(topic), Some(queue_id)) = (topic, queue_id) else {
        return Ok(Err(Undeliverable::NoTarget));
    };
    let target = store.target(&topic, queue_id)?;
    let draft = RecordDraft {
        topic: topic.as_str(),
        queue_id: target.id(),
        prepared_offset: mark_of(at),
        append_crc: true,
        ..RecordDraft::from_view(view, properties.raw())
    };
    Ok(batch.push(&target, &draft).map_err(Undeliverable::Encode))
}

/// Stores the message where somebody can find it. Its real topic becomes that, so that the copy counts as delivered.
fn push_dead(
    store: &Store,
    batch: &mut Batch,
    view: &RecordView<'_>,
    at: PhyOffset,
) -> Result<(), DeliverError> {
    let topic = TopicName::dead_letter(&GroupName::internal(NOBODY));
    let mut properties = PropertiesBuf::copy_of(view.properties().without_crc(), topic.as_str().len() + 32);
    properties.set(keys::REAL_TOPIC, topic.as_str());
    properties.set(keys::REAL_QID, "0");
    let target = store.queue(&topic, QueueId::ZERO)?;
    let mut push = |properties: &PropertiesBuf| {
        let draft = RecordDraft {
            topic: topic.as_str(),
            queue_id: QueueId::ZERO,
            prepared_offset: mark_of(at),
            append_crc: true,
            ..RecordDraft::from_view(view, properties.as_bytes())
        };
        batch.push(&target, &draft)
    };
    let Err(error) = push(&properties) else { return Ok(()) };
    tracing::error!(%at, %error, "a delayed message leaves its properties behind: they are only in the log");
    let mut few = PropertiesBuf::new();
    for key in NEEDED {
        few.push(key, properties.view().get(key).unwrap_or_default());
    }
    push(&few).map_err(|error| io::Error::other(error.to_string()).into())
}
