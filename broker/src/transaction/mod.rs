//! Transactions: a half message is held until its producer says commit or rollback.
//!
//! [`Transactions::begin`] turns a message into a half: it is stored in the half topic, where no consumer sees it.
//! [`table`] folds the log into the open transactions. [`Transactions::end`] (`resolve`) ends one: a commit
//! appends the message's visible copy and an op record, a rollback the op record alone. `check` asks the
//! producer group about halves that nobody ended; after the last check `expire` parks them in a topic of their own,
//! from where an operator can put them back.
//!
//! What a crash can leave behind: a visible copy without its op record. The copy names its half and closes it;
//! the op record, which only Apache needs then, is written at the next start.
//!
//! Deviations from Apache, on purpose: a check does not store the half again (only a count, in a state
//! record); an end that names an older record of the transaction means the transaction; times count from when
//! *this* broker stored the half, not from the producer's clock.

mod check;
mod expire;
pub mod projection;
mod resolve;
pub mod rules;
pub mod table;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::TopicName;
use gantry_proto::record::{
    EncodeError, Properties, PropertiesBuf, RecordView, SysFlag, TransactionFlag, keys,
};

pub use expire::{Parked, RedriveError};
pub use projection::TransactionProjection;
pub use resolve::{EndError, EndRequest, EndSource, Ended, OperatorError};
pub use rules::Rules;
pub use table::{Listed, OpenHalf, Outcome, Progress, Resolution, State};

use crate::groups::members::Members;
use crate::metrics::Metrics;
use crate::store::replay::Replay;
use crate::store::retain::Hold;
use crate::store::{AppendError, Queue, ReadError, Store};
use crate::timer::Levels;
use projection::{Shared, open_half};
use table::Table;

/// Takes note of how far the transaction group's two offsets are.
pub type NoteProgress = dyn Fn(Progress) + Send + Sync;

/// The transactions before the store is open.
#[derive(Debug)]
pub struct Unstarted {
    shared: Arc<Shared>,
    rules: Rules,
}

/// What transactions need of their neighbours.
pub struct Neighbours {
    /// The open store.
    pub store: Arc<Store>,
    /// The delay levels, for committed messages that are to be delayed.
    pub levels: Levels,
    /// The producers, who are asked about halves.
    pub members: Arc<Members>,
    /// Keeps the offsets of the transaction group, for Apache.
    pub note_progress: Box<NoteProgress>,
    /// First half that was not done, says the transaction group's offset in the store's files.
    pub done_below: Option<QueueOffset>,
}

impl fmt::Debug for Neighbours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Neighbours").field("done_below", &self.done_below).finish_non_exhaustive()
    }
}

/// The transactions of this broker.
pub struct Transactions {
    shared: Arc<Shared>,
    rules: Rules,
    store: Arc<Store>,
    levels: Levels,
    halves: Arc<Queue>,
    ops: Arc<Queue>,
    parked: Arc<Queue>,
    states: Arc<Queue>,
    members: Arc<Members>,
    note_progress: Box<NoteProgress>,
    /// Keeps the log from the oldest open half on.
    hold: Hold,
}

impl fmt::Debug for Transactions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transactions").field("rules", &self.rules).finish_non_exhaustive()
    }
}

/// A message made into a half: store it like this.
#[derive(Debug)]
pub struct Half {
    /// The half queue. Its topic and number are the record's.
    pub queue: Arc<Queue>,
    /// The properties, with the real topic and queue.
    pub properties: PropertiesBuf,
    /// The system flag without its transaction bits.
    pub sys_flag: SysFlag,
}

/// Why a half message is refused.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The bound of open halves is reached.
    #[error(
        "{open} transactions are open, the limit is {limit}: end some (see `gantry txn list`) or raise the limit"
    )]
    TooManyOpen {
        /// Open transactions.
        open: usize,
        /// The most there may be.
        limit: usize,
    },
    /// Without an id the transaction cannot be told from others.
    #[error("a half message needs the property UNIQ_KEY: send one with each message")]
    NoKey,
}

/// A record could not be stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The log refused it.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// It does not fit the format.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The record it is a copy of cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The record it is a copy of is not one.
    #[error("the record at {at} cannot be used: {what}")]
    Malformed {
        /// Where it starts.
        at: PhyOffset,
        /// What is wrong with it.
        what: String,
    },
    /// A queue could not be made.
    #[error("cannot open a queue")]
    Queue(#[from] io::Error),
}

/// Reads what was remembered in the directory `config`. The projection goes to the store; the rest starts when that
/// is open.
pub fn load(
    config: &Path,
    rules: Rules,
    metrics: Arc<Metrics>,
) -> io::Result<(TransactionProjection, Unstarted)> {
    let (projection, shared) = TransactionProjection::load(config, rules, metrics)?;
    Ok((projection, Unstarted { shared, rules }))
}

impl Unstarted {
    /// Reads what the table lacks from the open store, and writes the op records that a crash cut off.
    pub fn start(self, neighbours: Neighbours) -> Result<Arc<Transactions>, StoreError> {
        let Neighbours { store, levels, members, note_progress, done_below } = neighbours;
        let transactions = Transactions {
            halves: store.queue(&TopicName::half(), QueueId::ZERO)?,
            ops: store.queue(&TopicName::op(), QueueId::ZERO)?,
            parked: store.queue(&TopicName::check_max_time(), QueueId::ZERO)?,
            states: store.queue(&TopicName::state(), QueueId::ZERO)?,
            shared: self.shared,
            rules: self.rules,
            hold: store.hold(PhyOffset::ZERO),
            store,
            levels,
            members,
            note_progress,
        };
        if transactions.shared.has_base() {
            transactions.read_remembered();
        } else {
            let log_was_cut = transactions.shared.lock().log_was_cut;
            transactions.read_log(done_below.filter(|_| !log_was_cut).unwrap_or_default());
        }
        let lacking = transactions.shared.lock().table.needs_op();
        if !lacking.is_empty() {
            transactions.append_ops(&lacking)?;
        }
        transactions.note_progress();
        Ok(Arc::new(transactions))
    }
}

impl Transactions {
    /// Makes a message for `topic` and `queue` a half.
    pub fn begin(
        &self,
        topic: &str,
        queue: QueueId,
        sys_flag: SysFlag,
        properties: Properties<'_>,
    ) -> Result<Half, BeginError> {
        {
            let state = self.shared.lock();
            if state.table.is_full() {
                return Err(BeginError::TooManyOpen { open: state.table.len(), limit: self.rules.open_max });
            }
        }
        let key = properties.uniq_key().ok_or(BeginError::NoKey)?;
        let mut half = PropertiesBuf::copy_of(properties, topic.len() + key.len() + 64);
        half.set(keys::REAL_TOPIC, topic);
        half.set(keys::REAL_QID, &queue.get().to_string());
        half.set(keys::TRANSACTION_ID, key);
        Ok(Half {
            queue: Arc::clone(&self.halves),
            properties: half,
            sys_flag: sys_flag.with_transaction(TransactionFlag::None),
        })
    }

    /// Number of open transactions.
    pub fn open_count(&self) -> usize {
        self.shared.lock().table.len()
    }

    /// Open transactions, oldest first, at most `limit`, of one producer group if given.
    pub fn list(&self, group: Option<&str>, limit: usize) -> Vec<Listed> {
        self.shared.lock().table.list(group, limit)
    }

    /// Tells the keeper of the group offsets how far Apache would have got, and lets go of log that no open
    /// half needs.
    pub fn note_progress(&self) {
        let position = self.shared.position();
        let (progress, oldest) = {
            let mut state = self.shared.lock();
            (state.table.progress(), state.table.oldest())
        };
        self.hold.advance(oldest.unwrap_or(position).min(position));
        (self.note_progress)(progress);
    }

    fn now(&self) -> Millis {
        self.store.clock().now()
    }

    /// Reads the records of the snapshot's halves.
    fn read_remembered(&self) {
        let unread = self.shared.lock().table.unread();
        let mut halves = Vec::with_capacity(unread.len());
        for at in unread {
            let half = self.store.record_at(at).ok().and_then(|record| {
                let view = RecordView::parse(&record).ok()?;
                open_half(&view, &view.properties().scan())
            });
            match half {
                Some(half) => halves.push(half),
                None => {
                    tracing::error!(%at, "an open half message can no longer be read; its transaction is lost");
                }
            }
        }
        let mut state = self.shared.lock();
        state.table.restore(halves, QueueOffset::ZERO);
        state.table.note_queues(self.halves.max(), self.ops.max());
    }

    /// Makes the table from the log, from the first half on that is not done.
    fn read_log(&self, done_below: QueueOffset) {
        let first = self.halves.entry(done_below.max(self.halves.min()));
        let end = self.store.max_offset();
        let mut state = self.shared.lock();
        state.table = Table::new(self.rules);
        state.redriven.clear();
        Replay::new(self.store.log().segments()).each(first.map_or(end, |entry| entry.phy), end, |view| {
            if let Err(error) = state.apply(view, &view.properties().scan()) {
                tracing::error!(at = %view.phy_offset(), %error, "a record of a transaction cannot be used");
            }
        });
        state.table.restore(Vec::new(), done_below);
        state.table.note_queues(self.halves.max(), self.ops.max());
        self.shared.set_position(end);
    }
}

#[cfg(test)]
mod tests;
