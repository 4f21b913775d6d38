//! Halves that nobody answered: parked in `TRANS_CHECK_MAX_TIME_TOPIC`, listed, put back on request.
//!
//! A parked copy carries the position of its half in the field for the half's position, so that it closes exactly that
//! one; Apache's copies leave the field zero and close the half with their `UNIQ_KEY`. A half that was put back carries
//! the position of the parked copy in the same way: that marks the copy as used, in the same record.

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicKind, topics};
use gantry_proto::record::{OffsetMsgId, PropertiesBuf, RecordDraft, RecordView, TransactionFlag, keys};

use super::table::{OpenHalf, Outcome};
use super::{OperatorError, StoreError, Transactions};
use crate::store::{Batch, Poisoned, QueueEntry};

/// Parked copies that are looked through for an id, newest first.
const SEARCH_MAX: u64 = 100_000;

/// A half message that nobody answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// Where the parked copy starts in the log.
    pub at: PhyOffset,
    /// Its number in its queue.
    pub queue_offset: QueueOffset,
    /// The offset message id of the copy.
    pub msg_id: String,
    /// The transaction's id: the message id that the producer knows.
    pub key: String,
    /// The producer group.
    pub group: GroupName,
    /// Where the message was to go.
    pub topic: String,
    /// When the producer made it.
    pub born: Millis,
    /// When it was parked.
    pub parked: Millis,
    /// Where the half is that was made of it, once it was put back.
    pub redriven: Option<PhyOffset>,
}

/// Why a parked half was not put back.
#[derive(Debug, thiserror::Error)]
pub enum RedriveError {
    /// It was before.
    #[error(
        "the parked message {id} was put back before, as the half message at {half}: see `gantry txn list`"
    )]
    Already {
        /// Offset message id of the parked copy.
        id: String,
        /// Where its new half is.
        half: PhyOffset,
    },
    /// The same transaction is open.
    #[error("transaction {key} is open: end it instead of putting back {id}")]
    Open {
        /// Offset message id of the parked copy.
        id: String,
        /// The transaction's id.
        key: String,
    },
    /// It could not be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log stopped before it was safe.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

impl Transactions {
    /// Parks halves that are due and not to be asked about any more. Those that cannot be are open
    /// again, to be tried after the check interval.
    pub(super) fn park(&self, halves: &[OpenHalf]) -> Result<(), StoreError> {
        let now = self.now();
        let mut failed = None;
        for half in halves {
            // Its end may have come in since it fell due.
            let taken = self.shared.lock().table.take(half.at, Outcome::Expired);
            let Some(half) = taken else { continue };
            if let Err(error) = self.park_one(&half) {
                let mut state = self.shared.lock();
                state.table.put_back(half.at, now.plus(self.rules.retry_ms()));
                failed = Some(error);
                continue;
            }
            tracing::warn!(
                key = %half.key, group = %half.group, topic = %half.topic, checks = half.checks,
                "nobody said how a transaction ends; it is parked, see `gantry txn list --expired`"
            );
        }
        failed.map_or(Ok(()), Err)
    }

    fn park_one(&self, half: &OpenHalf) -> Result<(), StoreError> {
        let record = self.store.read(half.at, half.size)?;
        let view = RecordView::parse(&record)
            .map_err(|error| StoreError::Malformed { at: half.at, what: error.to_string() })?;
        let mut properties = PropertiesBuf::copy_of(view.properties().without_crc(), 32);
        if half.checks > 0 {
            properties.set(keys::TRANSACTION_CHECK_TIMES, &half.checks.to_string());
        }
        let draft = RecordDraft {
            topic: topics::CHECK_MAX_TIME,
            queue_id: QueueId::ZERO,
            prepared_offset: half.at,
            append_crc: true,
            ..RecordDraft::from_view(&view, properties.as_bytes())
        };
        let mut batch = Batch::new();
        batch.push(&self.parked, &draft)?;
        self.push_ops(&mut batch, &[half.queue_offset])?;
        self.store.append(&mut batch)?;
        self.store.drive();
        Ok(())
    }

    /// Parked halves, newest first, at most `limit`, of one producer group if given. Reads them from the log.
    pub fn list_parked(&self, group: Option<&str>, limit: usize) -> Vec<Parked> {
        self.parked_entries()
            .filter_map(|entry| self.read_parked(entry.phy))
            .filter(|parked| group.is_none_or(|group| parked.group == *group))
            .take(limit)
            .collect()
    }

    /// Puts the parked half with this offset message id or transaction id back into the half topic, its
    /// checks counted anew. Returns the new half.
    pub async fn redrive(&self, id: &str) -> Result<OpenHalf, OperatorError> {
        let Some(parked) = self.find_parked(id) else { return Err(OperatorError::Unknown(id.to_owned())) };
        Ok(self.redrive_parked(&parked).await?)
    }

    pub(super) fn find_parked(&self, id: &str) -> Option<Parked> {
        if let Ok(id) = id.parse::<OffsetMsgId>()
            && let Some(parked) = self.read_parked(id.offset)
        {
            return Some(parked);
        }
        self.parked_entries().filter_map(|entry| self.read_parked(entry.phy)).find(|parked| parked.key == id)
    }

    pub(super) async fn redrive_parked(&self, parked: &Parked) -> Result<OpenHalf, RedriveError> {
        let appended = self.put_back_parked(parked)?;
        self.store.drive();
        self.store.settled(appended.1).await?;
        self.store.dispatched(appended.1).await?;
        let open = self.half_at(appended.0);
        open.ok_or_else(|| RedriveError::Already { id: parked.msg_id.clone(), half: appended.0 })
    }

    /// Appends the new half; where it is, and where the log ends behind it.
    fn put_back_parked(&self, parked: &Parked) -> Result<(PhyOffset, PhyOffset), RedriveError> {
        let record = self.store.record_at(parked.at).map_err(StoreError::Read)?;
        let view = RecordView::parse(&record)
            .map_err(|error| StoreError::Malformed { at: parked.at, what: error.to_string() })?;
        let mut properties = PropertiesBuf::copy_of(view.properties().without_crc(), 32);
        properties.remove(keys::TRANSACTION_CHECK_TIMES);
        properties.remove(keys::TRAN_PREPARED_QUEUE_OFFSET);
        let draft = RecordDraft {
            topic: topics::HALF,
            queue_id: QueueId::ZERO,
            sys_flag: view.sys_flag().with_transaction(TransactionFlag::None),
            prepared_offset: parked.at,
            append_crc: true,
            ..RecordDraft::from_view(&view, properties.as_bytes())
        };
        let mut batch = Batch::new();
        batch.push(&self.halves, &draft).map_err(StoreError::Encode)?;
        // Under the lock, so that of two requests for the same copy one is refused.
        let mut state = self.shared.lock();
        if let Some(half) = state.redriven.get(&parked.at) {
            return Err(RedriveError::Already { id: parked.msg_id.clone(), half: *half });
        }
        if state.table.find_key(&parked.key).is_some() {
            return Err(RedriveError::Open { id: parked.msg_id.clone(), key: parked.key.clone() });
        }
        let appended = self.store.append(&mut batch).map_err(StoreError::Append)?;
        let at = batch.placed().first().map_or(appended.end, |placed| placed.phy);
        state.note_redriven(parked.at, at);
        Ok((at, appended.end))
    }

    /// Entries of the parked copies, newest first.
    fn parked_entries(&self) -> impl Iterator<Item = QueueEntry> + '_ {
        let (min, max) = (self.parked.min().get(), self.parked.max().get());
        let from = min.max(max.saturating_sub(SEARCH_MAX));
        (from..max)
            .rev()
            .filter_map(|number| self.parked.entry(QueueOffset::new(number)))
            .filter(|entry| !entry.is_blank())
    }

    fn read_parked(&self, at: PhyOffset) -> Option<Parked> {
        let record = self.store.record_at(at).ok()?;
        let view = RecordView::parse(&record).ok()?;
        if TopicKind::of(view.topic()) != TopicKind::CheckMaxTime {
            return None;
        }
        let properties = view.properties();
        Some(Parked {
            at,
            queue_offset: view.queue_offset(),
            msg_id: OffsetMsgId::new(view.store_host(), at).to_string(),
            key: properties.uniq_key()?.to_owned(),
            group: GroupName::internal(properties.producer_group().unwrap_or_default()),
            topic: properties.real_topic()?.to_owned(),
            born: view.born_at(),
            parked: view.store_at(),
            redriven: self.shared.lock().redriven.get(&at).copied(),
        })
    }
}
