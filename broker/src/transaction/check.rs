//! Back-checks: asking the producer group what became of a half that nobody ended.
//!
//! One task sleeps until the next deadline of the table. A check goes to one live member of the group and counts;
//! without a member nothing is sent and nothing counted, and the half is tried again when one registers, at the latest
//! after the check interval. The answer is an ordinary request to end the transaction. A half whose checks are used
//! up, or that is too old, is parked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gantry_proto::ids::{Millis, PhyOffset, QueueId};
use gantry_proto::record::{OffsetMsgId, RecordDraft, RecordView, seal};
use tokio_util::sync::CancellationToken;

use super::projection::checks_body;
use super::table::OpenHalf;
use super::{StoreError, Transactions};
use crate::clock::{HOLD_SLEEP_MAX, SLEEP_MAX};
use crate::groups::members::CheckRequest;
use crate::state;
use crate::store::Batch;

/// A round of checks sends at most this part of the checks of a second.
const ROUNDS_PER_SECOND: usize = 10;

/// When a round of checks wants to be followed by the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextRound {
    /// At this time.
    At(Millis),
    /// As soon as the limit of checks per second allows.
    Soon,
    /// When there is something to do.
    Idle,
}

impl Transactions {
    /// Sends checks as they become due, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let next = self.round();
            self.note_progress();
            let now = self.now();
            let sleep = match next {
                NextRound::Soon => Duration::from_millis(1000 / ROUNDS_PER_SECOND as u64),
                NextRound::At(due) => Duration::from_millis(due.since(now)).min(SLEEP_MAX),
                NextRound::Idle => HOLD_SLEEP_MAX,
            };
            let until = if let NextRound::At(due) = next { due.get() } else { i64::MAX };
            self.shared.sleeps_until.store(until, Ordering::SeqCst);
            // A half that came in since `round` looked may be due before `until`, and woke nobody.
            let due_now = self.shared.lock().table.next_due();
            self.shared.wake_if_earlier(due_now.filter(|_| next != NextRound::Soon));
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.shared.wake.notified() => {}
                () = tokio::time::sleep(sleep) => {}
            }
        }
        self.note_progress();
    }

    /// Handles what is due now: asks, or parks.
    pub(super) fn round(&self) -> NextRound {
        let now = self.now();
        let limit = self.rules.checks_per_second.div_ceil(ROUNDS_PER_SECOND).max(1);
        let due = {
            let mut state = self.shared.lock();
            state.table.look_at_clock(now);
            state.table.take_due(now, limit)
        };
        let more = due.len() == limit;
        let (spent, waiting): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|half| self.rules.is_spent(half, now));
        let checked: Vec<_> = waiting.iter().filter_map(|half| self.check(half, now)).collect();
        if let Err(error) = self.note_checks(&checked, now) {
            tracing::warn!(%error, "the counts of back-checks were not stored; after a restart some are repeated");
        }
        if let Err(error) = self.park(&spent) {
            tracing::warn!(%error, halves = spent.len(), "unanswered halves could not be parked; tried again later");
        }
        self.write_overdue_ops();
        match self.shared.lock().table.next_due() {
            _ if more => NextRound::Soon,
            Some(due) => NextRound::At(due),
            None => NextRound::Idle,
        }
    }

    /// A member of the producer group `group` has come: halves that found nobody to ask are asked about now.
    pub fn producer_came(&self, group: &str) {
        let now = self.now();
        let mut state = self.shared.lock();
        if state.table.producer_came(group, now) {
            let next = state.table.next_due();
            self.shared.wake_if_earlier(next);
        }
    }

    /// Asks about one half; its new count if somebody was asked.
    fn check(&self, half: &OpenHalf, now: Millis) -> Option<(PhyOffset, u32)> {
        let request = match self.check_request(half) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(at = %half.at, %error, "a half message cannot be read for its back-check");
                self.shared.lock().table.nobody_asked(half.at, now);
                return None;
            }
        };
        // The lock is not held here: the producer's answer may come at once.
        let asked = self.members.ask_producer(half.group.as_str(), request);
        let mut state = self.shared.lock();
        if asked {
            return Some((half.at, state.table.checked(half.at, now)));
        }
        state.table.nobody_asked(half.at, now);
        None
    }

    /// What the producer is asked about a half.
    fn check_request(&self, half: &OpenHalf) -> Result<CheckRequest, StoreError> {
        let record = self.store.read(half.at, half.size)?;
        let view = RecordView::parse(&record)
            .map_err(|error| StoreError::Malformed { at: half.at, what: error.to_string() })?;
        Ok(CheckRequest {
            half_queue_offset: half.queue_offset,
            half_phy: half.at,
            uniq_key: half.key.to_string(),
            transaction_id: view.properties().transaction_id().unwrap_or(&half.key).to_owned(),
            offset_msg_id: OffsetMsgId::new(view.store_host(), half.at).to_string(),
            real_topic: half.topic.clone(),
        })
    }

    /// The half at `at` as a record with its real topic and queue, as the producer knows it; `None` when its
    /// transaction has ended meanwhile.
    pub fn check_message(&self, at: PhyOffset) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(half) = self.half_at(at) else { return Ok(None) };
        let record = self.store.read(half.at, half.size)?;
        let view = RecordView::parse(&record)
            .map_err(|error| StoreError::Malformed { at: half.at, what: error.to_string() })?;
        let properties = view.properties().without_crc();
        let draft = RecordDraft {
            topic: half.topic.as_str(),
            queue_id: properties.real_queue_id().and_then(QueueId::from_wire).unwrap_or_default(),
            append_crc: false,
            ..RecordDraft::from_view(&view, properties.raw())
        };
        let mut message = Vec::with_capacity(draft.encoded_len());
        draft.encode_into(&mut message)?;
        seal(&mut message, half.queue_offset, half.at, view.store_at());
        Ok(Some(message))
    }

    /// Halves that another one of their transaction replaced are done, and nobody else says so in the log.
    fn write_overdue_ops(&self) {
        let overdue = self.shared.lock().table.overdue_ops();
        if !overdue.is_empty()
            && let Err(error) = self.append_ops(&overdue)
        {
            tracing::warn!(%error, "op records could not be stored; tried again later");
        }
    }

    /// Logs how often these halves have been checked. Not waited for: losing it repeats a check.
    fn note_checks(&self, checked: &[(PhyOffset, u32)], now: Millis) -> Result<(), StoreError> {
        if checked.is_empty() {
            return Ok(());
        }
        let body = checks_body(checked);
        let mut batch = Batch::new();
        batch.push(&self.states, &state::draft(&body, now))?;
        self.store.append(&mut batch)?;
        self.store.drive();
        Ok(())
    }
}
