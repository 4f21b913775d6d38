//! What becomes of messages whose invisible time ends; and the groups' offsets, which follow what is done.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{TopicKind, TopicName};
use gantry_proto::record::{EncodeError, PropertiesBuf, RecordDraft, RecordView, keys};
use tokio_util::sync::CancellationToken;

use super::record::{Change, Counted, Delivery, Lease};
use super::table::{Hand, InFlight};
use super::{PopError, Pops};
use crate::clock::{CORRECTION_MAX_MS, SLEEP_MAX};
use crate::deliver::retry::{DEAD_LETTER_QUEUES, READ_WRITE, copied_properties, make_dead};
use crate::groups::offsets::Key;
use crate::store::{AppendError, Batch, LogSlice, ReadError};
use crate::topics::TopicError;

/// Messages that are stored again in one append.
const RUN_MESSAGES_MAX: usize = 128;
/// Bytes that are, about.
const RUN_BYTES_MAX: usize = 256 * 1024;
/// Pause after messages could not be stored again.
const REFUSED_PAUSE: Duration = Duration::from_millis(500);
/// Rounds are at least so far apart: many acks share a look at the offsets.
const ROUND_PAUSE: Duration = Duration::from_millis(50);
/// How often the log's hold follows the messages in flight.
const HOLD_EVERY: Duration = Duration::from_secs(5);
/// Attempts of a message whose group is not known.
const RETRY_MAX: i32 = 16;

/// A message whose lease is over.
type Due = (Key, QueueOffset, InFlight);

/// Why a message was not stored again. It is tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum MoveError {
    #[error(transparent)]
    Pop(#[from] PopError),
    #[error(transparent)]
    Topic(#[from] TopicError),
    #[error("cannot open a queue, or read the log")]
    Io(#[from] io::Error),
}

/// What the task does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Round {
    /// Waits until there is something to do.
    Idle,
    /// Waits for the end of the next lease.
    At(Millis),
    /// Looks again after a pause.
    Pause,
    /// The log takes no more records.
    Stopped,
}

impl Pops {
    /// Looks after leases and offsets until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut last = self.with.store.clock().now();
        let mut held_at = last;
        loop {
            let now = self.with.store.clock().now();
            if now.plus(CORRECTION_MAX_MS) < last {
                tracing::warn!(%last, %now, "the clock was set back: no popped message stays invisible for longer than it was popped for");
                self.table().clamp_due(now);
            }
            last = now;
            let sleep = match self.round() {
                Round::Stopped => return,
                Round::Pause => Some(REFUSED_PAUSE),
                Round::At(due) => Some(Duration::from_millis(due.since(now)).min(SLEEP_MAX)),
                Round::Idle => None,
            };
            if u128::from(now.since(held_at)) >= HOLD_EVERY.as_millis() || held_at > now {
                self.hold_log();
                held_at = now;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(ROUND_PAUSE) => {}
            }
            let left = sleep.unwrap_or_default().saturating_sub(ROUND_PAUSE);
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(left), if sleep.is_some() => {}
            }
        }
        self.note_offsets();
    }

    /// Notes offsets, and stores again what is due now.
    pub(super) fn round(&self) -> Round {
        self.note_offsets();
        let now = self.with.store.clock().now();
        self.table().forget_moved(now);
        loop {
            let due = self.table().take_due(now, RUN_MESSAGES_MAX);
            if due.is_empty() {
                break;
            }
            match self.move_all(&due) {
                Ok(()) => {}
                Err(MoveError::Pop(PopError::Append(AppendError::Poisoned(_)) | PopError::Poisoned(_))) => {
                    return Round::Stopped;
                }
                Err(error) => {
                    tracing::warn!(%error, "popped messages that were not acknowledged cannot be stored again; tried again");
                    return Round::Pause;
                }
            }
        }
        match self.make_room() {
            Ok(()) => self.table().next_due().map_or(Round::Idle, Round::At),
            Err(MoveError::Pop(PopError::Append(AppendError::Poisoned(_)))) => Round::Stopped,
            Err(error) => {
                tracing::warn!(%error, "messages that were left for other members cannot be stored again; tried again");
                Round::Pause
            }
        }
    }

    /// Stores the oldest messages of queues with too many that were left in the retry topic: who does not want them
    /// need not wait for who does.
    fn make_room(&self) -> Result<(), MoveError> {
        let left = self.table().take_overfull(RUN_MESSAGES_MAX);
        let mut rest = left.as_slice();
        while !rest.is_empty() {
            let mut writer = self.writer();
            let moved = self.move_left(&mut writer, rest);
            drop(writer);
            self.with.store.drive();
            match moved {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) => {
                    self.table().put_left_back(rest);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Stores copies of the first of these messages in one append; returns how many it has looked
    /// at.
    pub(super) fn move_left(
        &self,
        writer: &mut Batch,
        left: &[(Key, QueueOffset)],
    ) -> Result<usize, MoveError> {
        writer.clear();
        let (mut bytes, mut changes) = (0, Vec::new());
        // They were never given.
        let lease = Lease { popped_at: self.with.store.clock().now(), invisible_ms: 0 };
        let entry = InFlight::new(lease, Delivery::Concurrent, Counted::No, 1);
        let mut count = 0;
        for (key, offset) in left {
            if bytes >= RUN_BYTES_MAX {
                break;
            }
            count += 1;
            // An operator may have set the offset since they were taken.
            if !self.table().is_to_move(key, *offset) {
                continue;
            }
            bytes += self.push_copy(writer, key, *offset, &entry)?;
            changes.push(Change::Moved(key.clone(), vec![*offset]));
        }
        if !changes.is_empty() {
            self.append_with(writer, &changes)?;
            self.with.metrics.handed_over.add(changes.len() as u64);
        }
        Ok(count)
    }

    /// Tells the groups' offsets what is done.
    fn note_offsets(&self) {
        let touched = self.table().take_touched();
        for (key, offset) in touched {
            if let Err(error) = self.with.offsets.note(key.clone(), offset) {
                tracing::debug!(%error, group = %key.group, topic = %key.topic, "an offset does not follow the acks");
            }
        }
    }

    /// Stores copies of messages whose leases are over, as many in one append as fit.
    fn move_all(&self, due: &[Due]) -> Result<(), MoveError> {
        let mut left = due;
        while !left.is_empty() {
            let mut writer = self.writer();
            let moved = self.move_run(&mut writer, left);
            drop(writer);
            self.with.store.drive();
            match moved {
                Ok(count) => left = left.get(count..).unwrap_or_default(),
                Err(error) => {
                    let mut table = self.table();
                    for (key, offset, entry) in left {
                        table.put_back(key, *offset, &entry.lease);
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Stores copies of the first of these messages in one append; returns of how many.
    fn move_run(&self, writer: &mut Batch, due: &[Due]) -> Result<usize, MoveError> {
        writer.clear();
        let (mut bytes, mut count) = (0, 0);
        let mut changes: Vec<Change> = Vec::new();
        for (key, offset, entry) in due {
            if bytes >= RUN_BYTES_MAX {
                break;
            }
            count += 1;
            let stays = entry.delivery.is_ordered() && !self.is_last(key, entry, 0);
            // An ack may have come since the message was found due.
            let lease = entry.lease;
            let is_current = {
                let mut table = self.table();
                let is_current = table.is_held(key, *offset, &lease);
                if is_current && !stays {
                    table.set_hand(key, *offset, Hand::Moving);
                }
                is_current
            };
            if !is_current {
                continue;
            }
            if stays {
                // It is given again from where it is, to whoever waits.
                self.shared.stir(&self.with.polls, key);
                continue;
            }
            bytes += self.push_copy(writer, key, *offset, entry)?;
            match changes.last_mut() {
                Some(Change::Moved(last, offsets)) if last == key => offsets.push(*offset),
                _ => changes.push(Change::Moved(key.clone(), vec![*offset])),
            }
        }
        if !changes.is_empty() {
            self.append_with(writer, &changes)?;
        }
        Ok(count)
    }

    /// Whether a message with so many reconsume times was popped as often as its group wants.
    fn is_last(&self, key: &Key, entry: &InFlight, reconsume_times: i32) -> bool {
        let group = self.with.groups.get(key.group.as_str());
        let max = group.map_or(RETRY_MAX, |group| group.retry_max(None));
        let before = i32::try_from(entry.deliveries).unwrap_or(i32::MAX).saturating_sub(1);
        entry.counted == Counted::Yes && reconsume_times.saturating_add(before) >= max
    }

    /// Adds the copy of one message to the batch; returns its bytes. One that is gone or damaged is told, and passed over.
    fn push_copy(
        &self,
        batch: &mut Batch,
        key: &Key,
        offset: QueueOffset,
        entry: &InFlight,
    ) -> Result<usize, MoveError> {
        let Some(record) = self.record_of(key, offset)? else { return Ok(0) };
        let Ok(view) = RecordView::parse(&record) else { return Ok(0) };
        let is_dead = self.is_last(key, entry, view.reconsume_times());
        let mut properties = copied_properties(&view, view.phy_offset());
        let topic = if is_dead {
            make_dead(&mut properties);
            let topic = TopicName::dead_letter(&key.group);
            self.with.topics.ensure_internal(&topic, DEAD_LETTER_QUEUES, READ_WRITE)?;
            self.with.metrics.pops_dead.bump();
            topic
        } else {
            note_first_pop(&mut properties, &view, key, entry);
            let topic = retry_topic(key);
            self.with.topics.ensure_internal(&topic, 1, READ_WRITE)?;
            self.with.metrics.pops_retried.bump();
            topic
        };
        let queue = self.with.store.queue(&topic, QueueId::ZERO)?;
        let counted = i32::from(entry.counted == Counted::Yes);
        let before = i32::try_from(entry.deliveries.saturating_sub(1)).unwrap_or(i32::MAX);
        let draft = RecordDraft {
            topic: topic.as_str(),
            queue_id: QueueId::ZERO,
            reconsume_times: view.reconsume_times().saturating_add(before).saturating_add(counted),
            prepared_offset: PhyOffset::ZERO,
            append_crc: true,
            ..RecordDraft::from_view(&view, properties.as_bytes())
        };
        match batch.push(&queue, &draft) {
            Ok(()) => Ok(view.total_size() as usize),
            Err(error) => {
                report_lost(key, offset, &error);
                Ok(0)
            }
        }
    }

    /// The record of a message in flight; `None` when it is gone.
    fn record_of(&self, key: &Key, offset: QueueOffset) -> Result<Option<LogSlice>, MoveError> {
        let queue = self.with.store.find_queue(key.topic.as_str(), key.queue);
        let found = queue.and_then(|queue| queue.entry(offset).map(|entry| (queue, entry)));
        let Some((queue, entry)) = found else {
            tracing::warn!(group = %key.group, topic = %key.topic, queue = %key.queue, %offset, "a popped message that was not acknowledged is no longer there");
            return Ok(None);
        };
        match self.with.store.message(&queue, &entry) {
            Ok(record) => Ok(record),
            Err(ReadError::Io { source, .. }) => Err(source.into()),
            Err(error) => {
                tracing::error!(%error, group = %key.group, topic = %key.topic, queue = %key.queue, %offset, "a popped message that was not acknowledged cannot be read; it is lost");
                Ok(None)
            }
        }
    }

    /// Has the log kept from the first message in flight on.
    pub(super) fn hold_log(&self) {
        let oldest = self.table().oldest();
        let place = |(key, offset): &(Key, QueueOffset)| {
            let queue = self.with.store.find_queue(key.topic.as_str(), key.queue)?;
            queue.entry((*offset).max(queue.min())).map(|entry| entry.phy)
        };
        let hold = oldest.iter().filter_map(place).min().map(|at| self.with.store.hold(at));
        *self.hold.lock().unwrap_or_else(PoisonError::into_inner) = hold;
    }
}

/// The topic that a message of this queue is stored in again.
fn retry_topic(key: &Key) -> TopicName {
    if key.topic.kind() == TopicKind::Retry {
        return key.topic.clone();
    }
    // Pops from topics without such a name are refused.
    TopicName::pop_retry(&key.group, &key.topic).unwrap_or_else(|_| TopicName::retry(&key.group))
}

fn note_first_pop(properties: &mut PropertiesBuf, view: &RecordView<'_>, key: &Key, entry: &InFlight) {
    properties.set(keys::ORIGIN_GROUP, key.group.as_str());
    if view.reconsume_times() == 0 || view.properties().first_pop_time().is_none() {
        properties.set(keys::FIRST_POP_TIME, &entry.lease.popped_at.to_string());
    }
}

fn report_lost(key: &Key, offset: QueueOffset, error: &EncodeError) {
    tracing::error!(%error, group = %key.group, topic = %key.topic, queue = %key.queue, %offset, "a popped message cannot be stored again; it is only in the log");
}
