//! Where groups begin in a topic from which they have never consumed.
//!
//! Members ask the broker, and decide themselves when it does not know. Where the broker is to say it (`gantry.start`, groups that are not
//! durable), the first question about a topic settles all of its queues, in one record of the log: members that come to a queue
//! later, and those after a restart, begin where the group began. A queue without an offset has come into being since, so it is
//! consumed from its first message.

use std::io;

use gantry_proto::ids::{QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicKind};
use gantry_proto::remoting::body::heartbeat::ConsumeFromWhere;

use super::attributes::{Durability, Settings, Start};
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

/// Who says where a group begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Its members, as at Apache: of a young queue they are told to take the first message.
    Members,
    /// Its members, and nobody else.
    MembersAlone,
    /// The broker.
    At(Start),
}

impl Wish {
    /// That of a group. `asked` is what its members say in their heartbeats.
    pub fn of(settings: &Settings, kind: TopicKind, asked: Option<&ConsumeFromWhere>) -> Self {
        match (settings.durability, kind, settings.start) {
            (_, TopicKind::User, Some(start)) => Self::At(start),
            (Durability::Durable, ..) => Self::Members,
            (Durability::WhileOnline, TopicKind::User, None) => match asked {
                Some(ConsumeFromWhere::FirstOffset) => Self::At(Start::First),
                Some(ConsumeFromWhere::Timestamp) => Self::MembersAlone,
                _ => Self::At(Start::Last),
            },
            // What its members before refused is not theirs.
            (Durability::WhileOnline, ..) => Self::At(Start::Last),
        }
    }

    /// That of a member that broadcasts, in its group with these settings.
    pub const fn of_broadcaster(settings: &Settings) -> Self {
        match settings.start {
            Some(start) => Self::At(start),
            None => Self::MembersAlone,
        }
    }
}

/// What is to be done before a group consumes from a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Nothing: its members ask for where they begin, and of a young queue they are told the first message.
    AsAsked,
    /// Nothing: its members ask for where they begin.
    AsAskedAlone,
    /// Nothing: it has begun. Queues without an offset are consumed from their first message.
    Begun,
    /// Its places are to be [settled](settle).
    Due(Start),
}

/// Whether the group has begun to consume from the topic.
pub fn beginning(offsets: &Offsets, group: &GroupName, wish: Wish, topic: &Topic) -> Beginning {
    if wish == Wish::Members {
        return Beginning::AsAsked;
    }
    let mut queues = (0..topic.read_queues()).map(QueueId::new);
    let has_begun = queues.any(|queue| offsets.get(group.as_str(), topic.name.as_str(), queue).is_some());
    match wish {
        _ if has_begun => Beginning::Begun,
        Wish::At(start) => Beginning::Due(start),
        Wish::Members | Wish::MembersAlone => Beginning::AsAskedAlone,
    }
}

/// Fixes where the group begins in all queues of the topic, and returns once that is kept.
pub async fn settle(
    offsets: &Offsets,
    store: &Store,
    (group, topic): (&GroupName, &Topic),
    start: Start,
) -> Result<(), StartError> {
    let mut places = Vec::new();
    for queue in (0..topic.read_queues()).map(QueueId::new) {
        let found = store.find_queue(topic.name.as_str(), queue);
        let at = found.as_deref().map_or(Ok(QueueOffset::ZERO), |queue| place(store, queue, start))?;
        places.push((Key { group: group.clone(), topic: topic.name.clone(), queue }, at));
    }
    tracing::info!(%group, topic = %topic.name, ?start, "the group begins to consume from the topic");
    Ok(offsets.begin(places).await?)
}

/// Where a group begins in one queue.
pub fn place(store: &Store, queue: &Queue, start: Start) -> io::Result<QueueOffset> {
    let at = match start {
        Start::First => queue.min(),
        Start::Last => queue.max(),
        Start::Time(time) => store.find_by_time(queue, time)?,
    };
    Ok(at.max(queue.min()).min(queue.max()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_says_where_a_group_begins_then_its_durability_then_its_members() {
        let durable = Settings::default();
        let fleeting = Settings { durability: Durability::WhileOnline, ..Settings::default() };
        let told = |settings: &Settings| Settings { start: Some(Start::First), ..settings.clone() };
        let user = |settings: &Settings, asked| Wish::of(settings, TopicKind::User, asked);
        let (first, last) = (Wish::At(Start::First), Wish::At(Start::Last));
        assert_eq!(user(&durable, Some(&ConsumeFromWhere::LastOffset)), Wish::Members);
        assert_eq!(user(&told(&durable), Some(&ConsumeFromWhere::LastOffset)), first);
        assert_eq!(user(&fleeting, Some(&ConsumeFromWhere::FirstOffset)), first);
        assert_eq!(user(&fleeting, Some(&ConsumeFromWhere::LastOffset)), last);
        assert_eq!(user(&fleeting, Some(&ConsumeFromWhere::Timestamp)), Wish::MembersAlone);
        assert_eq!(user(&fleeting, None), last);
        assert_eq!(user(&told(&fleeting), Some(&ConsumeFromWhere::Timestamp)), first);
        assert_eq!(Wish::of(&told(&durable), TopicKind::Retry, None), Wish::Members);
        assert_eq!(Wish::of(&told(&fleeting), TopicKind::Retry, None), last);
        assert_eq!(Wish::of_broadcaster(&durable), Wish::MembersAlone);
        assert_eq!(Wish::of_broadcaster(&told(&durable)), first);
    }
}
