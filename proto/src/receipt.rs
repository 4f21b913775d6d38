//! Receipt handles: what a popped message is acknowledged with.
//!
//! The broker tells a pop's client the parts of its handles ([`PopInfo`]); the client puts them together for each
//! message (property `POP_CK`) and sends them back with an ack:
//!
//! ```text
//!  100 1700000000000 60000 3 0 broker-a 5 104 987654321
//!   |        |         |   | |    |     |  |      `- log position of the message, added by gRPC proxies only
//!   |        |         |   | |    |     |  `- queue offset of the message
//!   |        |         |   | |    |     `- queue
//!   |        |         |   | |    `- broker
//!   |        |         |   | `- topic: 0 the one popped from, 1 and 2 the group's retry topic for it
//!   |        |         |   `- revive queue, 999 when popped in order
//!   |        |         `- invisible time in milliseconds
//!   |        `- time of the pop, in milliseconds since the epoch
//!   `- first queue offset of what was popped together
//! ```

use std::fmt::{self, Write as _};

use crate::ids::{Millis, QueueId, QueueOffset};

/// Most offsets that one bit set of acks may name.
const BITS_MAX: usize = 65_536;

/// Which topic a popped message lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PoppedFrom {
    /// The one that was popped from.
    Topic,
    /// The retry topic `%RETRY%group_topic`.
    Retry,
    /// The retry topic `%RETRY%group+topic`.
    RetryV2,
}

impl PoppedFrom {
    /// Its sign in handles.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Topic => "0",
            Self::Retry => "1",
            Self::RetryV2 => "2",
        }
    }
}

/// A receipt handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptHandle {
    /// First queue offset of what was popped together.
    pub start: QueueOffset,
    /// When it was popped.
    pub popped_at: Millis,
    /// For how long it is invisible, in milliseconds.
    pub invisible_ms: u64,
    /// The revive queue.
    pub revive_queue: i32,
    /// Which topic it lies in.
    pub from: PoppedFrom,
    /// The broker that it lies on.
    pub broker: String,
    /// The queue.
    pub queue: QueueId,
    /// Its number in the queue.
    pub offset: QueueOffset,
    /// Where it lies in the log, if the handle says so.
    pub log_position: Option<i64>,
}

/// A text that is no receipt handle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is no receipt handle: {what}; pass on what came with the message")]
pub struct HandleError {
    /// The text, cut to 255 characters.
    found: String,
    what: &'static str,
}

impl ReceiptHandle {
    /// Reads a handle of 8 or 9 parts.
    pub fn parse(text: &str) -> Result<Self, HandleError> {
        let wrong = |what| HandleError { found: text.chars().take(255).collect(), what };
        let parts: Vec<&str> = text.splitn(10, ' ').collect();
        let (required, rest) =
            parts.split_first_chunk::<8>().ok_or_else(|| wrong("it has fewer than 8 parts"))?;
        let [start, popped_at, invisible, revive, from, broker, queue, offset] = *required;
        let position =
            |text: &str, what| text.parse().ok().and_then(QueueOffset::from_wire).ok_or_else(|| wrong(what));
        let log_position = match rest {
            [] => None,
            [at] => Some(at.parse().map_err(|_| wrong("its ninth part is no number"))?),
            _ => return Err(wrong("it has more than 9 parts")),
        };
        Ok(Self {
            start: position(start, "its first part is no queue offset")?,
            popped_at: Millis::new(popped_at.parse().map_err(|_| wrong("its second part is no time"))?),
            invisible_ms: invisible.parse().map_err(|_| wrong("its third part is no duration"))?,
            revive_queue: revive.parse().map_err(|_| wrong("its fourth part is no number"))?,
            from: match from {
                "0" => PoppedFrom::Topic,
                "1" => PoppedFrom::Retry,
                "2" => PoppedFrom::RetryV2,
                _ => return Err(wrong("its fifth part is not 0, 1 or 2")),
            },
            broker: broker.to_owned(),
            queue: queue
                .parse()
                .ok()
                .and_then(QueueId::from_wire)
                .ok_or_else(|| wrong("its seventh part is no queue"))?,
            offset: position(offset, "its eighth part is no queue offset")?,
            log_position,
        })
    }
}

impl fmt::Display for ReceiptHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, broker, queue, offset) = (self.from.as_str(), &self.broker, self.queue, self.offset);
        write!(f, "{} {} {} {} ", self.start, self.popped_at, self.invisible_ms, self.revive_queue)?;
        write!(f, "{from} {broker} {queue} {offset}")?;
        self.log_position.map_or(Ok(()), |at| write!(f, " {at}"))
    }
}

/// What a pop's answer tells of each queue, in the form of its three header fields: parts joined by `;`, each
/// `retry queue value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PopInfo {
    /// The first offset of each queue.
    pub starts: String,
    /// The offsets of each queue's messages, joined by `,`.
    pub offsets: String,
    /// How often messages were popped before, by `qo<queue>%<offset>`; those that were not are left out.
    pub order_counts: String,
}

impl PopInfo {
    /// Adds the messages of one queue: offset, and how often each was popped before.
    pub fn add(&mut self, from: PoppedFrom, queue: QueueId, messages: &[(QueueOffset, u32)]) {
        let Some((start, _)) = messages.first() else { return };
        let from = from.as_str();
        for field in [&mut self.starts, &mut self.offsets] {
            if !field.is_empty() {
                field.push(';');
            }
        }
        // Writing into a string cannot fail.
        let _ = write!(self.starts, "{from} {queue} {start}");
        let _ = write!(self.offsets, "{from} {queue} ");
        for (number, (offset, count)) in messages.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            let _ = write!(self.offsets, "{comma}{offset}");
            if *count > 0 {
                let semicolon = if self.order_counts.is_empty() { "" } else { ";" };
                let _ = write!(self.order_counts, "{semicolon}{from} qo{queue}%{offset} {count}");
            }
        }
    }
}

/// A text that is no bit set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitsError {
    /// It is not base64.
    #[error("the bit set of a batch of acks is not base64")]
    NotBase64,
    /// It has too many bits.
    #[error("the bit set of a batch of acks names more than {BITS_MAX} messages: send several batches")]
    TooMany,
}

/// The offsets that a batch of acks names: base64 of a bit set, lowest byte and lowest bit first; bit `i` is
/// `start + i`.
pub fn acked_offsets(start: QueueOffset, bits: &str) -> Result<Vec<QueueOffset>, BitsError> {
    let text = bits.trim_end_matches('=').as_bytes();
    if text.len() > BITS_MAX / 6 {
        return Err(BitsError::TooMany);
    }
    let mut offsets = Vec::new();
    let (mut pending, mut width, mut byte_at) = (0_u32, 0_u32, 0_u64);
    for symbol in text {
        let value = base64_value(*symbol).ok_or(BitsError::NotBase64)?;
        pending = pending << 6 | u32::from(value);
        width += 6;
        if width < 8 {
            continue;
        }
        width -= 8;
        let byte = pending >> width & 0xFF;
        pending &= (1 << width) - 1;
        let set = (0..8_u64).filter(|bit| byte >> bit & 1 == 1);
        offsets.extend(set.map(|bit| QueueOffset::new(start.get().saturating_add(byte_at * 8 + bit))));
        byte_at += 1;
    }
    Ok(offsets)
}

const fn base64_value(symbol: u8) -> Option<u8> {
    Some(match symbol {
        b'A'..=b'Z' => symbol - b'A',
        b'a'..=b'z' => symbol - b'a' + 26,
        b'0'..=b'9' => symbol - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::names::{GroupName, TopicName};

    fn vectors() -> Value {
        let text =
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/receipt_handles.json"));
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn handles_are_those_of_the_java_classes() {
        for vector in vectors()["receipt_handles"].as_array().expect("a list") {
            for form in ["pop_ck", "grpc_receipt_handle"] {
                let text = vector[form].as_str().expect("text");
                let handle = ReceiptHandle::parse(text).expect("a handle");
                assert_eq!(handle.to_string(), text);
                let decoded = &vector["decoded"];
                assert_eq!(handle.start.to_wire(), decoded["startOffset"].as_i64().unwrap());
                assert_eq!(handle.popped_at.get(), decoded["popTime"].as_i64().unwrap());
                assert_eq!(handle.invisible_ms, decoded["invisibleTime"].as_u64().unwrap());
                assert_eq!(i64::from(handle.revive_queue), decoded["reviveQueueId"].as_i64().unwrap());
                assert_eq!(handle.from.as_str(), decoded["topicType"].as_str().unwrap());
                assert_eq!(handle.broker, decoded["brokerName"].as_str().unwrap());
                assert_eq!(i64::from(handle.queue.to_wire()), decoded["queueId"].as_i64().unwrap());
                assert_eq!(handle.offset.to_wire(), decoded["queueOffset"].as_i64().unwrap());
            }
        }
        for vector in vectors()["invalid_receipt_handles"].as_array().expect("a list") {
            let text = vector["handle"].as_str().expect("text");
            assert!(ReceiptHandle::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn retry_topics_are_named_as_in_java() {
        let name = &vectors()["names"][0]["popRetryV1"];
        let (group, topic) = (GroupName::internal("GroupB"), TopicName::internal("TopicA"));
        assert_eq!(TopicName::pop_retry(&group, &topic).unwrap().as_str(), name.as_str().unwrap());
        let long = TopicName::internal(&"t".repeat(127));
        assert!(TopicName::pop_retry(&GroupName::internal(&"g".repeat(120)), &long).is_ok());
        assert!(TopicName::pop_retry(&GroupName::internal(&"g".repeat(121)), &long).is_err());
    }

    #[test]
    fn a_pop_tells_the_parts_of_its_handles() {
        let at = |offset| QueueOffset::new(offset);
        let mut info = PopInfo::default();
        info.add(PoppedFrom::Topic, QueueId::new(3), &[(at(5), 0), (at(7), 2)]);
        info.add(PoppedFrom::Topic, QueueId::new(4), &[]);
        info.add(PoppedFrom::Retry, QueueId::ZERO, &[(at(1), 0)]);
        assert_eq!(info.starts, "0 3 5;1 0 1");
        assert_eq!(info.offsets, "0 3 5,7;1 0 1");
        assert_eq!(info.order_counts, "0 qo3%7 2");
    }

    #[test]
    fn a_bit_set_names_offsets() {
        let offsets = |bits| acked_offsets(QueueOffset::new(100), bits);
        // Bytes 0b1000_0101, 0b0000_0001.
        let named: Vec<u64> = offsets("hQE=").unwrap().into_iter().map(QueueOffset::get).collect();
        assert_eq!(named, [100, 102, 107, 108]);
        assert_eq!(offsets(""), Ok(Vec::new()));
        assert_eq!(offsets("!!"), Err(BitsError::NotBase64));
        assert_eq!(offsets(&"A".repeat(11_000)), Err(BitsError::TooMany));
    }

    proptest! {
        #[test]
        fn any_text_gives_a_handle_or_an_error(text in ".{0,80}") {
            if let Ok(handle) = ReceiptHandle::parse(&text) {
                prop_assert_eq!(ReceiptHandle::parse(&handle.to_string()), Ok(handle));
            }
            let _ = acked_offsets(QueueOffset::new(u64::MAX), &text);
        }

        #[test]
        fn what_is_written_is_read(
            numbers in (0..i64::MAX, any::<i64>(), any::<u64>(), any::<i32>(), 0..i32::MAX, 0..i64::MAX),
            broker in "[a-z_.-]{1,10}", log_position in prop::option::of(any::<i64>()), retry in any::<bool>(),
        ) {
            let (start, popped_at, invisible_ms, revive_queue, queue, offset) = numbers;
            let handle = ReceiptHandle {
                start: QueueOffset::from_wire(start).unwrap(),
                popped_at: Millis::new(popped_at),
                invisible_ms,
                revive_queue,
                from: if retry { PoppedFrom::Retry } else { PoppedFrom::Topic },
                broker,
                queue: QueueId::from_wire(queue).unwrap(),
                offset: QueueOffset::from_wire(offset).unwrap(),
                log_position,
            };
            prop_assert_eq!(ReceiptHandle::parse(&handle.to_string()), Ok(handle));
        }
    }
}
