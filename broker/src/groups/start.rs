//! Where a group begins that its operator told where to (`gantry.start`).
//!
//! The first question about a topic settles all of its queues, in one record of the log: members that come to a queue later, and
//! those after a restart, begin where the group began. A queue without an offset has come into being since, so it is
//! consumed from its first message.

use std::io;

use gantry_proto::ids::{QueueId, QueueOffset};
use gantry_proto::names::TopicKind;

use super::Group;
use super::attributes::Start;
use super::offsets::{CommitError, Key, Offsets};
use crate::store::{Queue, Store};
use crate::topics::Topic;

/// Why a group cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The queue cannot be searched by time.
    #[error("cannot look for where the group begins")]
    Read(#[from] io::Error),
    /// Where it begins cannot be kept.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// What is to be done before a group consumes from a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Nothing: its members ask for where they begin.
    AsAsked,
    /// Nothing: it has begun. Queues without an offset are consumed from their first message.
    Begun,
    /// Its places are to be [settled](settle).
    Due(Start),
}

/// Whether the group has begun to consume from the topic.
pub fn beginning(offsets: &Offsets, group: &Group, topic: &Topic) -> Beginning {
    let Some(start) = group.settings.start.filter(|_| topic.kind == TopicKind::User) else {
        return Beginning::AsAsked;
    };
    let (group, name) = (group.name.as_str(), topic.name.as_str());
    let mut queues = (0..topic.read_queues()).map(QueueId::new);
    if queues.any(|queue| offsets.get(group, name, queue).is_some()) {
        Beginning::Begun
    } else {
        Beginning::Due(start)
    }
}

/// Fixes where the group begins in all queues of the topic, and returns once that is kept.
pub async fn settle(
    offsets: &Offsets,
    store: &Store,
    (group, topic): (&Group, &Topic),
    start: Start,
) -> Result<(), StartError> {
    let mut places = Vec::new();
    for queue in (0..topic.read_queues()).map(QueueId::new) {
        let found = store.find_queue(topic.name.as_str(), queue);
        let at = found.as_deref().map_or(Ok(QueueOffset::ZERO), |queue| place(store, queue, start))?;
        places.push((Key { group: group.name.clone(), topic: topic.name.clone(), queue }, at));
    }
    tracing::info!(group = %group.name, topic = %topic.name, ?start, "the group begins to consume from the topic");
    Ok(offsets.begin(places).await?)
}

fn place(store: &Store, queue: &Queue, start: Start) -> io::Result<QueueOffset> {
    let at = match start {
        Start::First => queue.min(),
        Start::Last => queue.max(),
        Start::Time(time) => store.find_by_time(queue, time)?,
    };
    Ok(at.max(queue.min()).min(queue.max()))
}
