//! What the log is folded into.

use std::io;
use std::sync::Arc;

use gantry_proto::ids::{PhyOffset, QueueId};
use gantry_proto::names::TopicName;
use gantry_proto::record::{HotProperties, RecordView};

use super::queue::Queue;

/// A record on its way through the projections.
#[derive(Debug)]
pub struct Dispatched<'a> {
    /// The record.
    pub view: RecordView<'a>,
    /// Its properties that most projections look at, found in one pass.
    pub hot: HotProperties<'a>,
    /// The queue it is an entry of; `None` for records that no queue lists, and at a start for those that the queues
    /// have had before.
    pub queue: Option<&'a Arc<Queue>>,
}

/// A record that a projection could not apply.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A file of the projection could not be written.
    #[error("cannot write the projection's files")]
    Io(#[from] io::Error),
    /// The record does not say what its topic promises.
    #[error("the record at {at} is not what its topic promises: {what}")]
    Malformed {
        /// Where the record starts.
        at: PhyOffset,
        /// What is wrong with it.
        what: String,
    },
}

/// Knows which queue goes on for one that is no longer written.
pub trait Targets: Send + Sync + std::fmt::Debug {
    /// The queue that gets a message which waited for the queue `asked` of the topic: that one, as long as it is written.
    fn target(&self, topic: &TopicName, asked: QueueId) -> QueueId;
}

/// Writes a projection's file.
pub type Save = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// A fold over the commit log. Everything on disk but the log itself is one of these.
///
/// It runs on whichever thread moved the visible watermark: it must be quick and must neither append
/// nor wait.
pub trait Projection: Send {
    /// Its name in the checkpoint file and in messages.
    fn name(&self) -> &'static str;
    /// First byte this projection has not applied. Zero when the store is opened means that the
    /// checkpoint knows; beyond the log's end means that its own file stands for all of the log, and
    /// [`truncate`](Self::truncate) will tell where that ends.
    fn position(&self) -> PhyOffset;
    /// Applies one record; records come in log order, and again after a crash: be idempotent.
    fn apply(&mut self, record: &Dispatched<'_>) -> Result<(), ApplyError>;
    /// What makes everything below [`position`](Self::position) durable, if there is something new. It is
    /// run while records go on: it takes along what it needs, and when it fails the next call gives it again.
    fn save(&mut self) -> Option<Save>;
    /// Forgets everything at or beyond `end`: the log was cut there.
    fn truncate(&mut self, end: PhyOffset) -> io::Result<()>;
    /// Called after each run of records: the place to wake whoever waits for them.
    fn finish_batch(&mut self) {}
    /// Called when the records before `min` have left the log.
    fn raise_min(&mut self, _min: PhyOffset) -> io::Result<()> {
        Ok(())
    }
}
