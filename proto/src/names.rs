//! Names of topics, groups and brokers: which are allowed, and what a topic's name says about it.
//!
//! All prefixes (`%RETRY%`, `%DLQ%`, `rmq_sys_` …) are known here and nowhere else: ask
//! [`TopicName::kind`], not the text.
//!
//! A name that a client sends goes through `parse`; a name from our own files or constants through
//! `internal` (trusted) or `storable` (only what could leave the store's directory is refused).

use std::borrow::Borrow;
use std::fmt;
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest name of an ordinary topic, in bytes.
pub const TOPIC_BYTES_MAX: usize = 127;
/// Longest name of a retry or dead-letter topic, and of a group, in bytes.
pub const LONG_NAME_BYTES_MAX: usize = 255;

/// Longest name of a member of a broadcasting group, in bytes.
pub const MEMBER_BYTES_MAX: usize = 64;

const RETRY_PREFIX: &str = "%RETRY%";
const DEAD_LETTER_PREFIX: &str = "%DLQ%";
const BROADCAST_PREFIX: &str = "%BROADCAST%";
const SYSTEM_PREFIX: &str = "rmq_sys_";
const TRACE_PREFIX: &str = "rmq_sys_TRACE_DATA_";
const SYSTEM_GROUP_PREFIX: &str = "CID_RMQ_SYS_";
const ONS_GROUP_PREFIX: &str = "CID_ONSAPI_";

/// Spellings of the topics that the broker itself owns.
pub mod topics {
    /// Messages that wait for a delay level; queue `n` is level `n + 1`.
    pub const SCHEDULE: &str = "SCHEDULE_TOPIC_XXXX";
    /// Half messages.
    pub const HALF: &str = "RMQ_SYS_TRANS_HALF_TOPIC";
    /// Op records: which half messages are done.
    pub const OP: &str = "RMQ_SYS_TRANS_OP_HALF_TOPIC";
    /// Half messages of Apache's RocksDB transaction store; unused here, but reserved.
    pub const ROCKSDB_HALF: &str = "RMQ_SYS_ROCKSDB_TRANS_HALF_TOPIC";
    /// Op records of Apache's RocksDB transaction store; unused here, but reserved.
    pub const ROCKSDB_OP: &str = "RMQ_SYS_ROCKSDB_TRANS_OP_HALF_TOPIC";
    /// Half messages that nobody answered.
    pub const CHECK_MAX_TIME: &str = "TRANS_CHECK_MAX_TIME_TOPIC";
    /// Messages that wait for a time other than a delay level.
    pub const TIMER: &str = "rmq_sys_wheel_timer";
    /// This broker's own state records.
    pub const STATE: &str = "rmq_sys_gantry_state";
    /// Message traces of the clients.
    pub const TRACE: &str = "RMQ_SYS_TRACE_TOPIC";
    /// The template from which a send may create its topic.
    pub const DEFAULT: &str = "TBW102";
    /// Apache's self test.
    pub const SELF_TEST: &str = "SELF_TEST_TOPIC";
    /// Apache's events about offsets out of range.
    pub const OFFSET_MOVED: &str = "OFFSET_MOVED_EVENT";
    /// Apache's benchmark programs.
    pub const BENCHMARK: &str = "BenchmarkTest";
}

/// Why a name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or only blanks.
    #[error("the name is empty: give it 1 to {TOPIC_BYTES_MAX} characters")]
    Empty,
    /// More bytes than the limit of its kind.
    #[error("the name has {len} bytes, the limit is {max}: choose a shorter one")]
    TooLong {
        /// Length of the name, in bytes.
        len: usize,
        /// Longest allowed, in bytes.
        max: usize,
    },
    /// A character outside the allowed set.
    #[error("the name contains {0:?}: use letters, digits, '%', '|', '_' and '-' only")]
    Character(char),
    /// A name that a directory cannot have, or that would leave its directory.
    #[error("the name {0:?} cannot be stored: it must not contain '/' or a zero byte, nor be a path step")]
    NotStorable(String),
}

/// Only these may be part of a name that a client chooses.
const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'%' | b'|' | b'_' | b'-')
}

fn check(name: &str, max: usize) -> Result<(), NameError> {
    if name.trim().is_empty() {
        return Err(NameError::Empty);
    }
    if let Some(bad) = name.chars().find(|c| !u8::try_from(*c).is_ok_and(is_name_byte)) {
        return Err(NameError::Character(bad));
    }
    if name.len() > max {
        return Err(NameError::TooLong { len: name.len(), max });
    }
    Ok(())
}

fn check_storable(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > LONG_NAME_BYTES_MAX {
        return Err(NameError::TooLong { len: name.len(), max: LONG_NAME_BYTES_MAX });
    }
    if name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(NameError::NotStorable(name.to_owned()));
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// Cheap to clone; hashes and compares as its text, so a map of them is asked with a `&str`.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// A trusted name: one of our constants, or one that was checked before it was stored.
            pub fn internal(name: &str) -> Self {
                Self(Arc::from(name))
            }

            /// Any name that a file of the store can carry: not empty, at most
            /// [`LONG_NAME_BYTES_MAX`] bytes, and no path.
            pub fn storable(name: &str) -> Result<Self, NameError> {
                check_storable(name)?;
                Ok(Self::internal(name))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                &*self.0 == other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                &*self.0 == *other
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let name = String::deserialize(deserializer)?;
                Self::storable(&name).map_err(serde::de::Error::custom)
            }
        }
    };
}

name! {
    /// The name of a topic.
    TopicName
}

name! {
    /// The name of a producer or consumer group.
    GroupName
}

name! {
    /// The name of a broker, as routes and message queues carry it. Any text that can be stored.
    BrokerName
}

/// What a topic is for, told by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TopicKind {
    /// An application's topic.
    User,
    /// Messages that a group refused and shall see again.
    Retry,
    /// Messages that a group refused for good.
    DeadLetter,
    /// Half messages.
    Half,
    /// Op records of transactions.
    Op,
    /// Messages waiting for a delay level.
    Schedule,
    /// Half messages that nobody answered.
    CheckMaxTime,
    /// Messages waiting for a time.
    Timer,
    /// This broker's own state records.
    State,
    /// Message traces.
    Trace,
    /// Any other topic of the system.
    System,
}

impl TopicKind {
    /// The kind of the topic called `name`. Topics named after the broker or the cluster are system
    /// topics too, but only the broker knows these names: here they are [`TopicKind::User`].
    pub fn of(name: &str) -> Self {
        match name.as_bytes().first() {
            Some(b'%') if name.starts_with(RETRY_PREFIX) => Self::Retry,
            Some(b'%') if name.starts_with(DEAD_LETTER_PREFIX) => Self::DeadLetter,
            Some(b'S' | b'R' | b'T' | b'O' | b'B' | b'r') => match name {
                topics::HALF => Self::Half,
                topics::OP => Self::Op,
                topics::SCHEDULE => Self::Schedule,
                topics::CHECK_MAX_TIME => Self::CheckMaxTime,
                topics::TIMER => Self::Timer,
                topics::STATE => Self::State,
                topics::TRACE => Self::Trace,
                topics::DEFAULT
                | topics::SELF_TEST
                | topics::OFFSET_MOVED
                | topics::BENCHMARK
                | topics::ROCKSDB_HALF
                | topics::ROCKSDB_OP => Self::System,
                _ if name.starts_with(TRACE_PREFIX) => Self::Trace,
                _ if name.starts_with(SYSTEM_PREFIX) => Self::System,
                _ => Self::User,
            },
            _ => Self::User,
        }
    }
}

macro_rules! own_topics {
    ($($(#[$doc:meta])* $function:ident = $text:path),+ $(,)?) => {
        $(
            $(#[$doc])*
            pub fn $function() -> Self {
                static NAME: LazyLock<TopicName> = LazyLock::new(|| TopicName::internal($text));
                NAME.clone()
            }
        )+
    };
}

impl TopicName {
    /// Checks a client's name: letters, digits, `%`, `|`, `_`, `-`; at most [`TOPIC_BYTES_MAX`]
    /// bytes, for a retry or dead-letter topic [`LONG_NAME_BYTES_MAX`].
    pub fn parse(name: &str) -> Result<Self, NameError> {
        let max = match TopicKind::of(name) {
            TopicKind::Retry | TopicKind::DeadLetter => LONG_NAME_BYTES_MAX,
            _ => TOPIC_BYTES_MAX,
        };
        check(name, max)?;
        Ok(Self::internal(name))
    }

    /// The retry topic of `group`.
    pub fn retry(group: &GroupName) -> Self {
        Self(Arc::from(format!("{RETRY_PREFIX}{group}")))
    }

    /// The topic in which messages of `topic` that `group` popped, but did not acknowledge in time, are popped again.
    /// An error when its name would be longer than names may be.
    pub fn pop_retry(group: &GroupName, topic: &Self) -> Result<Self, NameError> {
        Self::storable(&format!("{RETRY_PREFIX}{group}_{topic}"))
    }

    /// The dead-letter topic of `group`.
    pub fn dead_letter(group: &GroupName) -> Self {
        Self(Arc::from(format!("{DEAD_LETTER_PREFIX}{group}")))
    }

    /// The topic to which a cluster's replies to request messages go.
    pub fn reply(cluster: &str) -> Self {
        Self(Arc::from(format!("{cluster}_REPLY_TOPIC")))
    }

    own_topics! {
        /// The topic of the delay levels.
        schedule = topics::SCHEDULE,
        /// The topic of the half messages.
        half = topics::HALF,
        /// The topic of the op records.
        op = topics::OP,
        /// The topic of unanswered half messages.
        check_max_time = topics::CHECK_MAX_TIME,
        /// The topic of timer messages.
        timer = topics::TIMER,
        /// The topic of this broker's own state.
        state = topics::STATE,
        /// The topic of message traces.
        trace = topics::TRACE,
        /// The template from which sends create topics.
        default_template = topics::DEFAULT,
    }

    /// What the topic is for.
    pub fn kind(&self) -> TopicKind {
        TopicKind::of(&self.0)
    }

    /// The group whose retry topic this is. Pop's form `%RETRY%group+topic` is understood; its older
    /// form `%RETRY%group_topic` cannot be told from a group's name and is taken as one.
    pub fn retry_group(&self) -> Option<GroupName> {
        let rest = self.0.strip_prefix(RETRY_PREFIX)?;
        let group = rest.split_once('+').map_or(rest, |(group, _)| group);
        (!group.is_empty()).then(|| GroupName::internal(group))
    }

    /// The group whose dead-letter topic this is.
    pub fn dead_letter_group(&self) -> Option<GroupName> {
        let group = self.0.strip_prefix(DEAD_LETTER_PREFIX)?;
        (!group.is_empty()).then(|| GroupName::internal(group))
    }

    /// Whether the name is reserved for the system. The broker adds the names of itself and of its
    /// cluster, which are not known here.
    pub fn is_system(&self) -> bool {
        !matches!(self.kind(), TopicKind::User | TopicKind::Retry | TopicKind::DeadLetter)
    }

    /// Whether clients may not send to it: what lies there is acted upon. The timer topic and our own
    /// state are more than Apache protects; a record forged there would be obeyed just the same.
    pub fn is_protected(&self) -> bool {
        match self.kind() {
            TopicKind::Half
            | TopicKind::Op
            | TopicKind::Schedule
            | TopicKind::CheckMaxTime
            | TopicKind::Timer
            | TopicKind::State => true,
            TopicKind::System => matches!(
                &*self.0,
                topics::SELF_TEST | topics::OFFSET_MOVED | topics::ROCKSDB_HALF | topics::ROCKSDB_OP
            ),
            TopicKind::User | TopicKind::Retry | TopicKind::DeadLetter | TopicKind::Trace => false,
        }
    }
}

impl GroupName {
    /// The group whose offsets tell how far half messages and op records are done.
    pub const TRANSACTION: &str = "CID_RMQ_SYS_TRANS";

    /// Checks a client's name: the characters of a topic, at most [`LONG_NAME_BYTES_MAX`] bytes. New
    /// clients refuse more than 120 themselves, older ones allow 255.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check(name, LONG_NAME_BYTES_MAX)?;
        Ok(Self::internal(name))
    }

    /// The name under which a broker keeps the offsets of one member of a broadcasting group. The member's name is one of 1 to
    /// [`MEMBER_BYTES_MAX`] characters that names may have, but for `%`.
    pub fn broadcaster(group: &Self, member: &str) -> Result<Self, NameError> {
        check(member, MEMBER_BYTES_MAX)?;
        if member.contains('%') {
            return Err(NameError::Character('%'));
        }
        Self::parse(&format!("{}{member}", Self::broadcaster_prefix(group.as_str())))
    }

    /// What the names of [all members](Self::broadcaster) of a broadcasting group begin with.
    pub fn broadcaster_prefix(group: &str) -> String {
        format!("{BROADCAST_PREFIX}{group}%")
    }

    /// The group and the member whose offsets are kept under this name, if it is one of [those](Self::broadcaster).
    pub fn broadcast_member(&self) -> Option<(Self, &str)> {
        let (group, member) = self.0.strip_prefix(BROADCAST_PREFIX)?.rsplit_once('%')?;
        let named = !group.is_empty() && !member.is_empty() && member.len() <= MEMBER_BYTES_MAX;
        named.then(|| (Self::internal(group), member))
    }

    /// The system group of the transaction topics.
    pub fn transaction() -> Self {
        static NAME: LazyLock<GroupName> = LazyLock::new(|| GroupName::internal(GroupName::TRANSACTION));
        NAME.clone()
    }

    /// Whether the name is reserved for the system and its tools.
    pub fn is_system(&self) -> bool {
        self.0.starts_with(SYSTEM_GROUP_PREFIX)
            || self.0.starts_with(ONS_GROUP_PREFIX)
            || matches!(
                &*self.0,
                "TOOLS_CONSUMER"
                    | "DEFAULT_CONSUMER"
                    | "DEFAULT_PRODUCER"
                    | "SCHEDULE_CONSUMER"
                    | "FILTERSRV_CONSUMER"
                    | "__MONITOR_CONSUMER"
                    | "CLIENT_INNER_PRODUCER"
                    | "SELF_TEST_P_GROUP"
                    | "SELF_TEST_C_GROUP"
                    | "CID_ONS-HTTP-PROXY"
            )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    #[expect(clippy::struct_excessive_bools, reason = "the shape of the vector file")]
    struct Vector {
        topic: String,
        valid: bool,
        system: bool,
        send_forbidden: bool,
        valid_as_group: bool,
    }

    #[test]
    fn names_are_judged_as_the_java_classes_judge_them() {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/names.json"));
        let vectors: Vec<Vector> = serde_json::from_str(text).unwrap();
        assert!(!vectors.is_empty());
        for vector in vectors {
            let name = &vector.topic;
            assert_eq!(TopicName::parse(name).is_ok(), vector.valid, "topic {name:?}");
            // The vectors hold the new clients' limit of 120; the broker takes the older 255.
            if name.len() <= 120 {
                assert_eq!(GroupName::parse(name).is_ok(), vector.valid_as_group, "group {name:?}");
            }
            if let Ok(topic) = TopicName::parse(name) {
                assert_eq!(topic.is_system(), vector.system, "system {name:?}");
                assert_eq!(topic.is_protected(), vector.send_forbidden, "protected {name:?}");
            }
        }
    }

    #[test]
    fn kinds_follow_the_name() {
        let kind = |name: &str| TopicName::internal(name).kind();
        assert_eq!(kind("TopicTest"), TopicKind::User);
        assert_eq!(kind("%LMQ%x"), TopicKind::User);
        assert_eq!(kind("RMQ_SYS_TRANS_HALF_TOPIC"), TopicKind::Half);
        assert_eq!(kind("RMQ_SYS_TRANS_OP_HALF_TOPIC"), TopicKind::Op);
        assert_eq!(kind("SCHEDULE_TOPIC_XXXX"), TopicKind::Schedule);
        assert_eq!(kind("TRANS_CHECK_MAX_TIME_TOPIC"), TopicKind::CheckMaxTime);
        assert_eq!(kind("rmq_sys_wheel_timer"), TopicKind::Timer);
        assert_eq!(kind("rmq_sys_gantry_state"), TopicKind::State);
        assert_eq!(kind("rmq_sys_TRACE_DATA_eu"), TopicKind::Trace);
        assert_eq!(kind("rmq_sys_REVIVE_LOG_c"), TopicKind::System);
        assert!(TopicName::half().is_protected());
        assert!(!TopicName::trace().is_protected());
        assert!(GroupName::transaction().is_system());
        assert!(!GroupName::internal("orders").is_system());
    }

    #[test]
    fn retry_and_dead_letter_topics_know_their_group() {
        let group = GroupName::parse("orders").unwrap();
        assert_eq!(TopicName::retry(&group), "%RETRY%orders");
        assert_eq!(TopicName::retry(&group).retry_group(), Some(group.clone()));
        assert_eq!(TopicName::dead_letter(&group).kind(), TopicKind::DeadLetter);
        assert_eq!(TopicName::dead_letter(&group).dead_letter_group(), Some(group.clone()));
        assert_eq!(TopicName::internal("%RETRY%orders+T").retry_group(), Some(group));
        assert_eq!(TopicName::internal("%RETRY%").retry_group(), None);
        assert_eq!(TopicName::internal("orders").dead_letter_group(), None);
    }

    #[test]
    fn members_that_broadcast_have_names_of_their_own() {
        let group = GroupName::parse("a%b").unwrap();
        let name = GroupName::broadcaster(&group, "till-1").unwrap();
        assert_eq!(name, "%BROADCAST%a%b%till-1");
        assert_eq!(name.broadcast_member(), Some((group.clone(), "till-1")));
        for wrong in ["", "a%b", "a b", &"m".repeat(MEMBER_BYTES_MAX + 1)] {
            assert!(GroupName::broadcaster(&group, wrong).is_err(), "{wrong}");
        }
        for other in ["orders", "%BROADCAST%", "%BROADCAST%g", "%BROADCAST%g%", "%BROADCAST%%m"] {
            assert_eq!(GroupName::internal(other).broadcast_member(), None, "{other}");
        }
    }

    #[test]
    fn a_map_of_names_is_asked_with_text() {
        let map = HashMap::from([(TopicName::internal("a"), 1)]);
        assert_eq!(map.get("a"), Some(&1));
    }

    #[test]
    fn foreign_names_are_read_unless_they_are_paths() {
        let read = |json: &str| serde_json::from_str::<TopicName>(json).ok();
        assert_eq!(read("\"%RETRY%g+t\""), Some(TopicName::internal("%RETRY%g+t")));
        assert_eq!(read("\"\u{4e3b}.x\""), Some(TopicName::internal("\u{4e3b}.x")));
        for bad in ["\"\"", "\".\"", "\"..\"", "\"../x\"", "\"a\\u0000\""] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(serde_json::to_string(&TopicName::internal("a")).unwrap(), "\"a\"");
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        assert_eq!(TopicName::parse("a b").unwrap_err(), NameError::Character(' '));
        assert_eq!(
            TopicName::parse(&"x".repeat(128)).unwrap_err().to_string(),
            "the name has 128 bytes, the limit is 127: choose a shorter one"
        );
    }
}
