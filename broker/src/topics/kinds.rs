//! What is sent to a topic: the attribute `message.type`, and the type that a message's properties tell.

use std::fmt;

use gantry_proto::record::{HotProperties, Properties};
use gantry_proto::remoting::body::topic::TopicConfig;

use super::attributes;

/// A type of messages, as Apache's brokers and tools name them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MessageType {
    /// Nothing special. A topic that says nothing has this type.
    #[default]
    Normal,
    /// With a sharding key.
    Fifo,
    /// With a delay level or a time of its own.
    Delay,
    /// In a transaction.
    Transaction,
    /// With a priority; queues stand for priorities.
    Priority,
    /// For a lite topic.
    Lite,
    /// Of a topic only: all of them.
    Mixed,
    /// Of a topic only: none of them, but nobody says which.
    Unspecified,
}

impl MessageType {
    /// What a topic is for.
    pub(super) fn of(config: &TopicConfig) -> Self {
        match config.attributes.get(attributes::MESSAGE_TYPE).map(String::as_str) {
            Some("FIFO") => Self::Fifo,
            Some("DELAY") => Self::Delay,
            Some("TRANSACTION") => Self::Transaction,
            Some("PRIORITY") => Self::Priority,
            Some("LITE") => Self::Lite,
            Some("MIXED") => Self::Mixed,
            Some("UNSPECIFIED") => Self::Unspecified,
            _ => Self::Normal,
        }
    }

    /// What a message is: the first that its properties tell, in Apache's order.
    pub fn of_message(properties: Properties<'_>, hot: &HotProperties<'_>) -> Self {
        if hot.is_half() {
            Self::Transaction
        } else if hot.delay_level.is_some() || hot.is_timer() {
            Self::Delay
        } else if hot.sharding_key.is_some() {
            Self::Fifo
        } else if hot.priority.is_some() {
            Self::Priority
        } else if properties.lite_topic().is_some() {
            Self::Lite
        } else {
            Self::Normal
        }
    }

    /// Whether a topic of this type takes a message of that one.
    pub fn takes(self, message: Self) -> bool {
        self == Self::Mixed || self == message
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "NORMAL",
            Self::Fifo => "FIFO",
            Self::Delay => "DELAY",
            Self::Transaction => "TRANSACTION",
            Self::Priority => "PRIORITY",
            Self::Lite => "LITE",
            Self::Mixed => "MIXED",
            Self::Unspecified => "UNSPECIFIED",
        })
    }
}

#[cfg(test)]
mod tests {
    use gantry_proto::record::{PropertiesBuf, keys};

    use super::*;

    fn type_of(properties: &[(&str, &str)]) -> MessageType {
        let mut buf = PropertiesBuf::new();
        for (key, value) in properties {
            buf.push(key, value);
        }
        MessageType::of_message(buf.view(), &buf.view().scan())
    }

    #[test]
    fn properties_tell_the_type() {
        let all = [
            (keys::LITE_TOPIC, "l", MessageType::Lite),
            (keys::PRIORITY, "3", MessageType::Priority),
            (keys::SHARDING_KEY, "k", MessageType::Fifo),
            (keys::TIMER_DELAY_SEC, "3", MessageType::Delay),
            (keys::DELAY, "3", MessageType::Delay),
            (keys::TRAN_MSG, "true", MessageType::Transaction),
        ];
        assert_eq!(type_of(&[(keys::TAGS, "a")]), MessageType::Normal);
        let mut properties = Vec::new();
        for (key, value, expected) in all {
            // Later ones count before the earlier ones.
            properties.push((key, value));
            assert_eq!(type_of(&properties), expected);
            assert_eq!(type_of(&[(key, value)]), expected);
        }
    }

    #[test]
    fn a_topic_takes_its_own_type_or_all() {
        assert!(MessageType::Mixed.takes(MessageType::Fifo) && MessageType::Fifo.takes(MessageType::Fifo));
        assert!(!MessageType::Normal.takes(MessageType::Fifo));
        assert!(!MessageType::Unspecified.takes(MessageType::Normal));
    }
}
