//! When a timer message is due: what its sender asks for, and what a stored one says.

use gantry_proto::ids::{Millis, QueueId};
use gantry_proto::names::{TopicKind, TopicName};
use gantry_proto::record::{
    EncodeError, HotProperties, Properties, PropertiesBuf, RecordView, SHORT_BYTES_MAX, keys,
};

use super::levels::Levels;

/// Apache stores due times cut to seconds, or a second less, beside the time that was asked for.
const PEER_PRECISION_MS: u64 = 1000;
/// Bytes that are noted in the properties of a message after it was taken, the checksum among them, at the most.
const NOTED_BYTES_MAX: usize = 192;

/// Why a timer message is refused. Nothing was stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimerError {
    /// A time that is no number.
    #[error(
        "TIMER_DELAY_SEC, TIMER_DELAY_MS and TIMER_DELIVER_MS take whole numbers: set one of them to one"
    )]
    NotANumber,
    /// A time that is too far off.
    #[error(
        "the message is to wait {wait_ms} ms, the limit is {limit_ms} ms: deliver it sooner or raise --timer-max-delay"
    )]
    TooFar {
        /// How long it is to wait, in milliseconds.
        wait_ms: u64,
        /// The longest wait, in milliseconds.
        limit_ms: u64,
    },
    /// A message that would take another back.
    #[error("a message cannot carry TIMER_DEL_UNIQKEY: take a timer message back with a recall request")]
    Recall,
    /// A timer message in a batch.
    #[error("a batch holds a message with a delivery time: send those one by one")]
    InBatch,
}

/// When the message asks to be delivered; `None` when at once. Of several times the seconds count first, then the
/// milliseconds, as at Apache. A message that was delivered by a timer before (a consumer sends on what it got) does not
/// wait again.
pub fn asked(
    hot: &HotProperties<'_>,
    properties: Properties<'_>,
    now: Millis,
    limit_ms: u64,
) -> Result<Option<Millis>, TimerError> {
    if hot.timer_out_ms.is_some() {
        return Ok(None);
    }
    if hot.bad_timer.is_some() {
        return Err(TimerError::NotANumber);
    }
    let later = |wait: i64, unit: i64| Millis::new(now.get().saturating_add(wait.saturating_mul(unit)));
    let due = match (hot.timer_delay_secs, hot.timer_delay_ms, hot.timer_deliver_ms) {
        (Some(secs), ..) => later(secs, 1000),
        (_, Some(ms), _) => later(ms, 1),
        (_, _, Some(at)) => Millis::new(at),
        _ => return Ok(None),
    };
    if properties.timer_recalls().is_some() {
        return Err(TimerError::Recall);
    }
    let wait_ms = due.since(now);
    if wait_ms > limit_ms {
        return Err(TimerError::TooFar { wait_ms, limit_ms });
    }
    Ok((wait_ms > 0).then_some(due))
}

/// Makes a message for `topic` and `queue` one that waits until `due`: notes that in its properties and says where it is
/// to be stored instead.
pub fn retarget_timer(
    properties: &mut PropertiesBuf,
    due: Millis,
    topic: &str,
    queue: QueueId,
) -> (TopicName, QueueId) {
    forget_timer(properties);
    properties.remove(keys::DELAY);
    properties.set(keys::TIMER_OUT_MS, &due.to_string());
    properties.set(keys::REAL_TOPIC, topic);
    properties.set(keys::REAL_QID, &queue.get().to_string());
    (TopicName::timer(), QueueId::ZERO)
}

/// Refuses properties of a message that is to wait, or of its half, when what is noted in them later would not fit: when it
/// is due, how often it was stored anew, when it was delivered.
pub fn check_room(properties: &PropertiesBuf) -> Result<(), EncodeError> {
    let len = properties.as_bytes().len() + NOTED_BYTES_MAX;
    if len > SHORT_BYTES_MAX { Err(EncodeError::Properties { len, max: SHORT_BYTES_MAX }) } else { Ok(()) }
}

/// Removes what a timer has noted in a message before.
pub fn forget_timer(properties: &mut PropertiesBuf) {
    for key in [keys::TIMER_OUT_MS, keys::TIMER_ENQUEUE_MS, keys::TIMER_DEQUEUE_MS, keys::TIMER_ROLL_TIMES] {
        properties.remove(key);
    }
}

/// Removes what a sender asks of the timer: a delay level counts instead.
pub fn forget_asked(properties: &mut PropertiesBuf) {
    for key in [keys::TIMER_DELAY_SEC, keys::TIMER_DELAY_MS, keys::TIMER_DELIVER_MS] {
        properties.remove(key);
    }
}

/// When the message in a record is due; `None` when it waits for nothing.
pub fn due_if_waiting(view: &RecordView<'_>, levels: &Levels) -> Option<Millis> {
    match TopicKind::of(view.topic()) {
        TopicKind::Timer => due_of(&view.properties().scan()),
        TopicKind::Schedule => {
            let level = levels.level(view.properties().delay_level()?)?;
            Some(view.store_at().plus(levels.delay_ms(level)))
        }
        _ => None,
    }
}

/// When a stored timer message is due. Apache cuts it to seconds, but what was asked for may be there too.
pub(super) fn due_of(hot: &HotProperties<'_>) -> Option<Millis> {
    let out = Millis::new(hot.timer_out_ms?);
    let asked = hot.timer_deliver_ms.map(Millis::new);
    Some(asked.filter(|asked| *asked >= out && asked.since(out) <= PEER_PRECISION_MS).unwrap_or(out))
}

/// What the index knows a timer's topic and id by.
pub(super) fn key_of(topic: &str, uniq_key: &str) -> u32 {
    let seed = xxhash_rust::xxh3::xxh3_64(topic.as_bytes());
    let hash = xxhash_rust::xxh3::xxh3_64_with_seed(uniq_key.as_bytes(), seed);
    u32::try_from(hash >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis::new(1_700_000_000_000);
    const DAY_MS: u64 = 24 * 3600 * 1000;

    fn ask(raw: &[(&str, &str)]) -> Result<Option<Millis>, TimerError> {
        let mut properties = PropertiesBuf::new();
        for (name, value) in raw {
            properties.push(name, value);
        }
        asked(&properties.view().scan(), properties.view(), NOW, DAY_MS)
    }

    #[test]
    fn each_property_says_when() {
        assert_eq!(ask(&[(keys::TIMER_DELAY_SEC, "10")]), Ok(Some(NOW.plus(10_000))));
        assert_eq!(ask(&[(keys::TIMER_DELAY_MS, "10")]), Ok(Some(NOW.plus(10))));
        assert_eq!(ask(&[(keys::TIMER_DELIVER_MS, "1700000000001")]), Ok(Some(NOW.plus(1))));
        let all = [(keys::TIMER_DELIVER_MS, "1"), (keys::TIMER_DELAY_MS, "2"), (keys::TIMER_DELAY_SEC, "3")];
        assert_eq!(ask(&all), Ok(Some(NOW.plus(3_000))));
        assert_eq!(ask(&all[..2]), Ok(Some(NOW.plus(2))));
        assert_eq!(ask(&[]), Ok(None));
    }

    #[test]
    fn what_lies_in_the_past_or_was_delivered_does_not_wait() {
        for past in ["-5", "0", "-9223372036854775808"] {
            assert_eq!(ask(&[(keys::TIMER_DELAY_SEC, past)]), Ok(None));
            assert_eq!(ask(&[(keys::TIMER_DELIVER_MS, past)]), Ok(None));
        }
        assert_eq!(ask(&[(keys::TIMER_DELAY_SEC, "10"), (keys::TIMER_OUT_MS, "1")]), Ok(None));
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_sentence() {
        assert_eq!(ask(&[(keys::TIMER_DELAY_SEC, "soon")]), Err(TimerError::NotANumber));
        let far = ask(&[(keys::TIMER_DELAY_MS, "86400001")]);
        assert_eq!(far, Err(TimerError::TooFar { wait_ms: DAY_MS + 1, limit_ms: DAY_MS }));
        assert!(ask(&[(keys::TIMER_DELAY_SEC, "9223372036854775807")]).is_err());
        let recall = [(keys::TIMER_DELAY_SEC, "1"), (keys::TIMER_DEL_UNIQKEY, "k")];
        assert_eq!(ask(&recall), Err(TimerError::Recall));
    }

    #[test]
    fn a_waiting_message_knows_when_and_where() {
        let mut properties = PropertiesBuf::new();
        for (name, value) in [(keys::DELAY, "0"), (keys::TIMER_ROLL_TIMES, "7"), (keys::REAL_TOPIC, "forged")]
        {
            properties.push(name, value);
        }
        let (topic, queue) = retarget_timer(&mut properties, NOW, "orders", QueueId::new(3));
        assert_eq!((topic, queue), (TopicName::timer(), QueueId::ZERO));
        let view = properties.view();
        assert_eq!((view.real_topic(), view.real_queue_id()), (Some("orders"), Some(3)));
        assert_eq!((due_of(&view.scan()), view.iter().count()), (Some(NOW), 3));
    }

    #[test]
    fn the_time_that_was_asked_for_counts_where_apache_cut_it() {
        let due = |out: &str, deliver: &str| {
            let mut properties = PropertiesBuf::new();
            properties.push(keys::TIMER_OUT_MS, out);
            properties.push(keys::TIMER_DELIVER_MS, deliver);
            due_of(&properties.view().scan()).map(Millis::get)
        };
        assert_eq!(due("5000", "5414"), Some(5414));
        assert_eq!(due("5000", "6000"), Some(6000));
        assert_eq!(due("5000", "6001"), Some(5000));
        assert_eq!(due("5000", "4000"), Some(5000));
        assert_eq!(due("5000", ""), Some(5000));
    }
}
