//! Taking a message back before it is due.
//!
//! The handle names topic, broker, due time and message id; where the message waits is found by its id in the key index. A
//! recall is a record of the timer topic, with Apache's properties for it, that names the timer's record. Recall and
//! delivery take the timer out of the index first: one of the two gets it.

use std::io;
use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset, QueueId};
use gantry_proto::names::{TopicName, topics};
use gantry_proto::record::{
    EncodeError, HotProperties, PropertiesBuf, RecallHandle, RecordDraft, RecordView, Text, keys,
};

use super::copy::DeliverError;
use super::cursors::mark_of;
use super::deliver::Timer;
use super::due::due_of;
use super::fire::Wheel;
use super::index::{Place, Standing};
use super::levels::Levels;
use crate::state;
use crate::store::{AppendError, Batch, Poisoned, Store};

/// Records with one message id that are looked at.
pub(super) const CANDIDATES_MAX: usize = 64;
/// Apache's handles name a time that is off by up to this.
const TOLERANCE_MS: u64 = 1000;
/// Tag of a recall, as Apache's.
const RECALL_TAG: &str = "_RECALL_TAG_";
/// What a record says is recalled when its message's id is not known.
const UNKNOWN_KEY: &str = "-";

/// Why a timer message was not taken back.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RecallError {
    /// The handle is none.
    #[error("this is no recall handle: pass on the one that the send returned")]
    BadHandle,
    /// The message waits elsewhere.
    #[error("the message waits on broker {theirs}, this is {ours}: ask that one")]
    OtherBroker {
        /// The handle's.
        theirs: String,
        /// This one.
        ours: String,
    },
    /// The request names another topic.
    #[error("the handle is for topic {theirs}, the request for {asked}: name the topic that was sent to")]
    OtherTopic {
        /// The handle's.
        theirs: String,
        /// The request's.
        asked: String,
    },
    /// It is due.
    #[error("the message was due {late_ms} ms ago: it can no longer be taken back")]
    TimeOver {
        /// How long ago, in milliseconds.
        late_ms: u64,
    },
    /// No timer can wait so long.
    #[error(
        "the handle names a time {wait_ms} ms ahead, the longest delay is {limit_ms} ms: it is not from this broker"
    )]
    TooFar {
        /// How far it is off, in milliseconds.
        wait_ms: u64,
        /// The longest delay, in milliseconds.
        limit_ms: u64,
    },
    /// Nothing waits under the handle.
    #[error(
        "no message {uniq_key} waits for its time in topic {topic}: it was delivered, or the handle was made up"
    )]
    Unknown {
        /// The message id.
        uniq_key: String,
        /// The topic.
        topic: String,
    },
    /// The bound of recalled messages with delay levels is reached.
    #[error("{limit} messages with delay levels are recalled and not due yet: try again when some are")]
    TooMany {
        /// The most there may be.
        limit: usize,
    },
    /// Somebody else is at it.
    #[error("the message is just being delivered, recalled or moved: try again")]
    Busy,
    /// The log did not take the recall. The message waits on.
    #[error(transparent)]
    Append(Arc<AppendError>),
    /// The log stopped before the recall was safe.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
    /// The message could not be looked up.
    #[error("the message cannot be looked up: {0}")]
    LookUp(Arc<io::Error>),
}

impl From<io::Error> for RecallError {
    fn from(error: io::Error) -> Self {
        Self::LookUp(Arc::new(error))
    }
}

impl From<DeliverError> for RecallError {
    fn from(error: DeliverError) -> Self {
        match error {
            DeliverError::Append(error) => Self::Append(Arc::new(error)),
            DeliverError::Io(error) => error.into(),
        }
    }
}

/// What is known under a handle.
#[derive(Debug, Default)]
struct Found {
    /// Records of the timer, newest first: it may have been rolled.
    timers: Vec<Place>,
    /// Whether it was recalled before.
    was_recalled: bool,
}

/// A request to take a message back.
#[derive(Clone, Copy, Debug)]
pub struct Recall<'a> {
    /// The topic that it names.
    pub topic: &'a str,
    /// The handle.
    pub handle: &'a str,
    /// This broker's name.
    pub broker: &'a str,
}

/// Takes the message back that waits in `wheel` or in a level of `levels`; its id. What was taken back before stays so. Safe
/// when it returns.
pub async fn recall(wheel: &Wheel, levels: &Timer, asked: &Recall<'_>) -> Result<String, RecallError> {
    let handle = RecallHandle::decode(asked.handle).ok_or(RecallError::BadHandle)?;
    wheel.check(&handle, asked, levels.levels())?;
    // What was acknowledged is visible; index and timers must know it, too.
    wheel.store.dispatched(wheel.store.visible_offset()).await?;
    if wheel.recall(&handle).await?.is_none() && levels.recall(&handle).await?.is_none() {
        return Err(RecallError::Unknown { uniq_key: handle.uniq_key, topic: handle.topic });
    }
    Ok(handle.uniq_key)
}

/// Whether a waiting message with these properties that is due at `due` is the one that the handle names.
pub(super) fn is_named(handle: &RecallHandle, hot: &HotProperties<'_>, due: Millis) -> bool {
    let off_ms = due.since(handle.deliver_at).max(handle.deliver_at.since(due));
    hot.uniq_key.map(Text::as_str) == Some(&handle.uniq_key)
        && hot.real_topic == Some(&handle.topic)
        && off_ms <= TOLERANCE_MS
}

impl Wheel {
    /// Takes back the message that `handle` names; `None` when none waits here under it. Where several wait under its id and
    /// time (a resend in a topic that does not look for those) all are.
    async fn recall(&self, handle: &RecallHandle) -> Result<Option<()>, RecallError> {
        let found = self.look_up(handle)?;
        let (taken, is_busy) = self.take_all(&found.timers)?;
        if !taken.is_empty() {
            let end = self.append_recalls(&taken, handle)?;
            self.store.settled(end).await?;
            // Who asks again finds them done.
            self.store.dispatched(end).await?;
        }
        match (is_busy, found.was_recalled || !taken.is_empty()) {
            (true, _) => Err(RecallError::Busy),
            (false, true) => Ok(Some(())),
            (false, false) => Ok(None),
        }
    }

    fn check(&self, handle: &RecallHandle, asked: &Recall<'_>, levels: &Levels) -> Result<(), RecallError> {
        if handle.broker != asked.broker {
            let ours = asked.broker.to_owned();
            return Err(RecallError::OtherBroker { theirs: handle.broker.clone(), ours });
        }
        if handle.topic != asked.topic {
            let asked = asked.topic.to_owned();
            return Err(RecallError::OtherTopic { theirs: handle.topic.clone(), asked });
        }
        let now = self.store.clock().now();
        if handle.deliver_at <= now {
            return Err(RecallError::TimeOver { late_ms: now.since(handle.deliver_at) });
        }
        let longest = levels.delays_ms().iter().copied().max().unwrap_or(0).max(levels.max_delay_ms());
        let wait_ms = handle.deliver_at.since(now);
        if wait_ms > longest.saturating_add(TOLERANCE_MS) {
            return Err(RecallError::TooFar { wait_ms, limit_ms: longest });
        }
        Ok(())
    }

    fn look_up(&self, handle: &RecallHandle) -> Result<Found, RecallError> {
        let key = &handle.uniq_key;
        let all = (Millis::ZERO, Millis::MAX);
        let places = self.store.index().find(topics::TIMER, key, all.0, all.1, CANDIDATES_MAX)?;
        let mut found = Found::default();
        for phy in places {
            let Ok(record) = self.store.record_at(phy) else { continue };
            let Ok(view) = RecordView::parse(&record) else { continue };
            let hot = view.properties().scan();
            let Some(due) = due_of(&hot) else { continue };
            if view.topic() != topics::TIMER || !is_named(handle, &hot, due) {
                continue;
            }
            if view.properties().timer_recalls().is_some() {
                found.was_recalled = true;
            } else {
                found.timers.push(Place { due, phy });
            }
        }
        Ok(found)
    }

    /// Takes those of these timers that wait. Whether somebody else has another of them.
    fn take_all(&self, timers: &[Place]) -> Result<(Vec<Place>, bool), RecallError> {
        let (mut taken, mut is_busy) = (Vec::new(), false);
        for place in timers {
            match self.shared.index.take(*place) {
                Ok(Standing::Taken) => taken.push(*place),
                Ok(Standing::Busy) => is_busy = true,
                Ok(Standing::Gone) => {}
                Err(error) => {
                    self.shared.index.give_back(&taken);
                    return Err(error.into());
                }
            }
        }
        Ok((taken, is_busy))
    }

    /// Stores the recalls of timers that were taken; where their records end.
    fn append_recalls(&self, taken: &[Place], handle: &RecallHandle) -> Result<PhyOffset, RecallError> {
        let mut batch = Batch::new();
        let pushed =
            taken.iter().try_for_each(|place| push_end(&self.store, &mut batch, *place, Some(handle)));
        let appended = pushed.and_then(|()| Ok(self.store.append(&mut batch)?));
        let appended = appended.inspect_err(|_| self.shared.index.give_back(taken))?;
        self.store.drive();
        Ok(appended.end)
    }
}

/// Adds the record that ends a timer's wait without delivery: a recall, or the end of one that cannot be read.
pub(super) fn push_end(
    store: &Store,
    batch: &mut Batch,
    place: Place,
    handle: Option<&RecallHandle>,
) -> Result<(), DeliverError> {
    let queue = store.queue(&TopicName::timer(), QueueId::ZERO)?;
    let (topic, key) =
        handle.map_or((topics::TIMER, UNKNOWN_KEY), |handle| (&handle.topic, &handle.uniq_key));
    let mut properties = PropertiesBuf::new();
    properties.push(keys::TIMER_DEL_UNIQKEY, key);
    properties.push(keys::TIMER_OUT_MS, &place.due.to_string());
    properties.push(keys::REAL_TOPIC, topic);
    properties.push(keys::REAL_QID, "0");
    properties.push(keys::UNIQ_KEY, key);
    properties.push(keys::TAGS, RECALL_TAG);
    let draft = RecordDraft {
        topic: topics::TIMER,
        prepared_offset: mark_of(place.phy),
        properties: properties.as_bytes(),
        ..state::draft(b"0", store.clock().now())
    };
    batch.push(&queue, &draft).map_err(|error: EncodeError| io::Error::other(error.to_string()))?;
    Ok(())
}
