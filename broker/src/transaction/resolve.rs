//! Ending transactions: commit and rollback, by their producers or by an operator.
//!
//! Several ends go into one batch of records: first the visible copies, then one op record that names all the
//! halves. They lie one behind the other in the log, so a crash can only cut off the op record, or the last
//! copies with it; a copy without an op record closes its half all the same.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicKind, topics};
use gantry_proto::record::{
    HotProperties, OffsetMsgId, Properties, PropertiesBuf, RecordDraft, RecordView, SysFlag, TransactionFlag,
    keys,
};

use super::projection::{OP_TAG, open_half};
use super::table::{Found, OpenHalf, Outcome, Resolution, State};
use super::{RedriveError, StoreError, Transactions};
use crate::store::{Appended, Batch, Poisoned};
use crate::timer::{self, TimerError};

/// Most bytes of half queue offsets in one op record.
const OP_BODY_MAX: usize = 4096;

/// Bytes of visible copies stored together; one is always taken.
const RUN_BYTES_MAX: u64 = 1024 * 1024;

/// Who says how a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndSource {
    /// The producer, after its local transaction.
    Producer,
    /// The producer group, asked by a check.
    Check,
}

/// A request to end a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndRequest {
    /// The producer group of the half.
    pub group: GroupName,
    /// The half's number in the half queue.
    pub half_queue_offset: QueueOffset,
    /// Where the half's record starts in the log.
    pub half_phy: PhyOffset,
    /// How it shall end.
    pub resolution: Resolution,
    /// Who says so.
    pub source: EndSource,
}

/// How a transaction stands after a request to end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// This request ended it.
    Now(Outcome),
    /// It had ended before; how is forgotten after a while. Nothing was changed.
    Before(Option<Outcome>),
    /// Another request is just ending it. Nothing was changed.
    Underway(Outcome),
}

/// Why a request to end a transaction was refused. The transaction is as it was.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EndError {
    /// No half message is there.
    #[error(
        "there is no half message at log position {at}: end a transaction with the offsets that its send returned"
    )]
    NoSuchHalf {
        /// The position that the request names.
        at: PhyOffset,
    },
    /// The half belongs to another producer group.
    #[error("the half message at {at} belongs to producer group {owner}, not to {asked}")]
    WrongGroup {
        /// Where the half is.
        at: PhyOffset,
        /// Its group.
        owner: GroupName,
        /// The group that the request names.
        asked: GroupName,
    },
    /// The half has another queue offset.
    #[error("the half message at {at} has queue offset {actual}, not {asked}")]
    WrongOffset {
        /// Where the half is.
        at: PhyOffset,
        /// Its queue offset.
        actual: QueueOffset,
        /// The queue offset that the request names.
        asked: QueueOffset,
    },
    /// The time that the message set itself is over; the group will be asked.
    #[error(
        "the message set {limit_ms} ms for its transaction, {age_ms} ms have passed: answer the coming check instead"
    )]
    TooLate {
        /// Age of the message by its born time, in milliseconds.
        age_ms: u64,
        /// What the message allows, in milliseconds.
        limit_ms: u64,
    },
    /// The half was stored but the table has not taken it in yet.
    #[error("the half message at {at} is not taken in yet: try again shortly")]
    NotYet {
        /// Where the half is.
        at: PhyOffset,
    },
    /// The end could not be stored.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// The log stopped before the end was safe.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

/// Why an operator's request about a transaction was refused.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// Neither an open nor a parked transaction has this id.
    #[error("no open or expired transaction has the id {0}: see `gantry txn list`")]
    Unknown(String),
    /// It could not be ended.
    #[error(transparent)]
    End(#[from] EndError),
    /// It could not be put back first.
    #[error(transparent)]
    Redrive(#[from] RedriveError),
}

/// What the append of a batch of ends gave.
#[derive(Debug)]
pub struct StagedEnds {
    /// The answers, in the order of the requests; those that are `Now` hold once `end` is settled.
    pub answers: Vec<Result<Ended, EndError>>,
    /// First byte behind what was appended; `None` when nothing was.
    pub end: Option<PhyOffset>,
}

/// A half that was taken to be ended.
struct Taken {
    /// The number of the request.
    number: usize,
    half: OpenHalf,
    resolution: Resolution,
}

/// How many of these ends are stored together.
fn run_length(ends: &[Taken]) -> usize {
    let mut bytes = 0;
    let fits = |end: &&Taken| {
        if end.resolution == Resolution::Commit {
            bytes += u64::from(end.half.size);
        }
        bytes <= RUN_BYTES_MAX
    };
    ends.iter().take_while(fits).count().max(1)
}

impl Transactions {
    /// Ends a transaction, or says how it stands. What it answers is safe.
    pub async fn end(&self, request: &EndRequest) -> Result<Ended, EndError> {
        self.wait_for(request.half_phy).await?;
        let staged = self.stage_ends(std::slice::from_ref(request));
        if let Some(end) = staged.end {
            self.store.drive();
            self.store.settled(end).await?;
        }
        staged.answers.into_iter().next().unwrap_or(Err(EndError::NoSuchHalf { at: request.half_phy }))
    }

    /// Waits until the table knows every half up to the one at `at`.
    pub async fn wait_for(&self, at: PhyOffset) -> Result<(), EndError> {
        if at >= self.store.max_offset() {
            return Err(EndError::NoSuchHalf { at });
        }
        match tokio::time::timeout(self.rules.dispatch_wait, self.store.dispatched(at + 1)).await {
            Ok(passed) => Ok(passed?),
            Err(_) => Err(EndError::NotYet { at }),
        }
    }

    /// Appends the ends of several transactions together. The caller drives the store and waits until
    /// `StagedEnds::end` is settled before it passes the answers on.
    pub fn stage_ends(&self, requests: &[EndRequest]) -> StagedEnds {
        let mut answers = Vec::with_capacity(requests.len());
        let mut taken = Vec::with_capacity(requests.len());
        for (number, request) in requests.iter().enumerate() {
            match self.admit(request) {
                Ok(half) => {
                    answers.push(Ok(Ended::Now(outcome_of(request.resolution))));
                    taken.push(Taken { number, half, resolution: request.resolution });
                }
                Err(answer) => answers.push(answer),
            }
        }
        let mut end = None;
        let mut rest = taken.as_slice();
        while !rest.is_empty() {
            let (run, later) = rest.split_at(run_length(rest));
            match self.append_ends(run) {
                Ok(appended) => end = Some(appended.end),
                Err(error) => self.take_back(run, error, &mut answers),
            }
            if !later.is_empty() {
                self.store.drive(); // what is staged gives its memory back
            }
            rest = later;
        }
        StagedEnds { answers, end }
    }

    /// The ends could not be stored: the transactions are open again.
    fn take_back(&self, run: &[Taken], error: StoreError, answers: &mut [Result<Ended, EndError>]) {
        let (error, now) = (Arc::new(error), self.now());
        let mut state = self.shared.lock();
        for taken in run {
            state.table.put_back(taken.half.at, now);
            if let Some(answer) = answers.get_mut(taken.number) {
                *answer = Err(EndError::Store(Arc::clone(&error)));
            }
        }
    }

    /// Takes the half out of the table if the request may end it; otherwise says why not.
    fn admit(&self, request: &EndRequest) -> Result<OpenHalf, Result<Ended, EndError>> {
        let found = self.shared.lock().table.find(request.half_phy);
        let (half, state) = match found {
            Found::Here(half, state) => {
                if half.queue_offset != request.half_queue_offset {
                    return Err(Err(wrong_offset(request, half.queue_offset)));
                }
                (half, state)
            }
            Found::Ended(outcome) => return Err(Ok(Ended::Before(Some(outcome)))),
            Found::Absent => self.find_by_record(request)?,
        };
        if half.group != request.group {
            let (owner, asked) = (half.group, request.group.clone());
            return Err(Err(EndError::WrongGroup { at: half.at, owner, asked }));
        }
        if let State::Ending(outcome) = state {
            return Err(Ok(Ended::Underway(outcome)));
        }
        let age_ms = self.now().since(half.born);
        if let Some(limit_ms) = half.immunity_ms
            && request.source == EndSource::Producer
            && age_ms > limit_ms
        {
            return Err(Err(EndError::TooLate { age_ms, limit_ms }));
        }
        let outcome = outcome_of(request.resolution);
        self.shared.lock().table.take(half.at, outcome).ok_or(Ok(Ended::Underway(outcome)))
    }

    /// The request names a record that is not in the table: an older one of an open transaction, or one of
    /// a transaction that ended long ago.
    fn find_by_record(&self, request: &EndRequest) -> Result<(OpenHalf, State), Result<Ended, EndError>> {
        let at = request.half_phy;
        if at >= self.shared.position() {
            return Err(Err(EndError::NotYet { at }));
        }
        let Ok(record) = self.store.record_at(at) else { return Err(Err(EndError::NoSuchHalf { at })) };
        let view = match RecordView::parse(&record) {
            Ok(view) if TopicKind::of(view.topic()) == TopicKind::Half => view,
            _ => return Err(Err(EndError::NoSuchHalf { at })),
        };
        if view.queue_offset() != request.half_queue_offset {
            return Err(Err(wrong_offset(request, view.queue_offset())));
        }
        let properties = view.properties();
        let group = properties.producer_group().unwrap_or_default();
        if request.group != *group {
            let (owner, asked) = (GroupName::internal(group), request.group.clone());
            return Err(Err(EndError::WrongGroup { at, owner, asked }));
        }
        let Some(older) = open_half(&view, &properties.scan()) else {
            return Err(Err(EndError::NoSuchHalf { at }));
        };
        self.shared.lock().table.find_renewed(&older).ok_or(Ok(Ended::Before(None)))
    }

    /// Appends copies and op records of halves that were taken.
    fn append_ends(&self, ends: &[Taken]) -> Result<Appended, StoreError> {
        let mut batch = Batch::new();
        for end in ends.iter().filter(|end| end.resolution == Resolution::Commit) {
            self.push_copy(&mut batch, &end.half)?;
        }
        let halves: Vec<_> = ends.iter().map(|end| end.half.queue_offset).collect();
        self.push_ops(&mut batch, &halves)?;
        Ok(self.store.append(&mut batch)?)
    }

    /// The visible copy of a half.
    fn push_copy(&self, batch: &mut Batch, half: &OpenHalf) -> Result<(), StoreError> {
        let record = self.store.read(half.at, half.size)?;
        let malformed = |what: String| StoreError::Malformed { at: half.at, what };
        let view = RecordView::parse(&record).map_err(|error| malformed(error.to_string()))?;
        let stored = view.properties().without_crc();
        let queue_id = stored.real_queue_id().and_then(QueueId::from_wire);
        let queue_id = queue_id.ok_or_else(|| malformed("it names no real queue".to_owned()))?;
        let mut properties = PropertiesBuf::copy_of(stored, 32);
        properties.remove(keys::REAL_TOPIC);
        properties.remove(keys::REAL_QID);
        let hot = stored.scan();
        let level = hot.delay_level.and_then(|asked| self.levels.level(asked));
        let (topic, queue_id) = if let Some(level) = level {
            timer::retarget(&mut properties, level, half.topic.as_str(), queue_id)
        } else if let Some(due) = self.due_after_commit(&hot, stored) {
            timer::retarget_timer(&mut properties, due, half.topic.as_str(), queue_id)
        } else {
            (half.topic.clone(), queue_id)
        };
        let queue = self.store.target(&topic, queue_id)?;
        let draft = RecordDraft {
            topic: topic.as_str(),
            queue_id: queue.id(),
            sys_flag: view.sys_flag().with_transaction(TransactionFlag::Commit),
            prepared_offset: half.at,
            append_crc: true,
            ..RecordDraft::from_view(&view, properties.as_bytes())
        };
        batch.push(&queue, &draft)?;
        Ok(())
    }

    /// When a committed message is due, if it asks for a time; delays count from the commit. What could not wait was
    /// refused as a half, unless the limit has changed since, or Apache took it: then it waits no longer than the limit.
    fn due_after_commit(&self, hot: &HotProperties<'_>, properties: Properties<'_>) -> Option<Millis> {
        if !hot.is_timer() {
            return None;
        }
        let (now, limit_ms) = (self.now(), self.levels.max_delay_ms());
        match timer::asked(hot, properties, now, limit_ms) {
            Ok(due) => due,
            Err(TimerError::TooFar { .. }) => Some(now.plus(limit_ms)),
            Err(TimerError::NotANumber | TimerError::Recall | TimerError::InBatch) => None,
        }
    }

    /// Op records that name these halves.
    pub(super) fn push_ops(&self, batch: &mut Batch, halves: &[QueueOffset]) -> Result<(), StoreError> {
        let mut properties = PropertiesBuf::new();
        properties.push(keys::TAGS, OP_TAG);
        properties.push(keys::WAIT, "true");
        let mut body = String::new();
        for (number, half) in halves.iter().enumerate() {
            body.push_str(&half.get().to_string());
            body.push(',');
            if number + 1 == halves.len() || body.len() > OP_BODY_MAX - 21 {
                let here = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
                let draft = RecordDraft {
                    topic: topics::OP,
                    queue_id: QueueId::ZERO,
                    flag: 0,
                    sys_flag: SysFlag::NONE,
                    born_at: self.now(),
                    born_host: here,
                    store_host: here,
                    reconsume_times: 0,
                    prepared_offset: PhyOffset::ZERO,
                    body: body.as_bytes(),
                    properties: properties.as_bytes(),
                    append_crc: true,
                };
                batch.push(&self.ops, &draft)?;
                body.clear();
            }
        }
        Ok(())
    }

    /// Writes op records for halves that are closed but lack them.
    pub(super) fn append_ops(&self, halves: &[QueueOffset]) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        self.push_ops(&mut batch, halves)?;
        self.store.append(&mut batch)?;
        self.store.drive();
        Ok(())
    }

    /// Ends the transaction that an operator names by its id (the message id that the producer knows), or
    /// by the offset message id of its half or parked copy. A parked one is put back and ended.
    pub async fn decide(&self, id: &str, resolution: Resolution) -> Result<Ended, OperatorError> {
        let half = match self.find_open(id) {
            Some(half) => half,
            None => match self.find_parked(id) {
                Some(parked) => self.redrive_parked(&parked).await?,
                None => return Err(OperatorError::Unknown(id.to_owned())),
            },
        };
        let request = EndRequest {
            group: half.group,
            half_queue_offset: half.queue_offset,
            half_phy: half.at,
            resolution,
            source: EndSource::Check,
        };
        Ok(self.end(&request).await?)
    }

    /// The open transaction with this id (the message id that the producer knows), or whose half has this
    /// offset message id.
    pub fn find_open(&self, id: &str) -> Option<OpenHalf> {
        let state = self.shared.lock();
        let by_offset = || id.parse::<OffsetMsgId>().ok().map(|id| id.offset);
        let at = state.table.find_key(id).or_else(by_offset)?;
        match state.table.find(at) {
            Found::Here(half, _) => Some(half),
            Found::Ended(_) | Found::Absent => None,
        }
    }

    /// Whether the half at `at` is known to be rolled back, or just being so.
    pub fn was_rolled_back(&self, at: PhyOffset) -> bool {
        let outcome = match self.shared.lock().table.find(at) {
            Found::Ended(outcome) | Found::Here(_, State::Ending(outcome)) => Some(outcome),
            Found::Here(_, State::Open) | Found::Absent => None,
        };
        outcome == Some(Outcome::RolledBack)
    }

    /// The half at `at`, if it is open.
    pub(super) fn half_at(&self, at: PhyOffset) -> Option<OpenHalf> {
        match self.shared.lock().table.find(at) {
            Found::Here(half, _) => Some(half),
            Found::Ended(_) | Found::Absent => None,
        }
    }
}

fn wrong_offset(request: &EndRequest, actual: QueueOffset) -> EndError {
    EndError::WrongOffset { at: request.half_phy, actual, asked: request.half_queue_offset }
}

const fn outcome_of(resolution: Resolution) -> Outcome {
    match resolution {
        Resolution::Commit => Outcome::Committed,
        Resolution::Rollback => Outcome::RolledBack,
    }
}
