//! The answer to a message that was stored before.

use gantry_proto::ids::{PhyOffset, QueueId};
use gantry_proto::names::TopicKind;
use gantry_proto::record::RecordView;

use super::{Publisher, SendError, Sent};
use crate::store::{LogSlice, ReadError};
use crate::timer;
use crate::topics::Topic;

/// A message whose id was stored before.
pub(super) struct Again<'a> {
    /// The topic.
    pub topic: &'a Topic,
    /// Its id.
    pub uniq_key: &'a str,
    /// Its body.
    pub body: &'a [u8],
    /// Whether it is a half.
    pub is_half: bool,
}

impl Publisher {
    /// The first send's result, if the record at `earlier` is the same message: same topic, id and
    /// body, and both a half or none. A different message under the same id (an application that sends what it
    /// received, or sent, once more) is none.
    pub(super) fn answer_again(
        &self,
        earlier: PhyOffset,
        again: &Again<'_>,
    ) -> Result<Option<Sent>, SendError> {
        let record = match self.read_staged_too(earlier) {
            Ok(record) => record,
            // Cleaned away or cut off meanwhile: then the window remembers more than the log. Of one that is
            // damaged nobody gets anything.
            Err(ReadError::Gone { .. } | ReadError::Nothing { .. } | ReadError::Damaged { .. }) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let Ok(view) = RecordView::parse(&record) else { return Ok(None) };
        let hot = view.properties().scan();
        let stored_for = hot.real_topic.unwrap_or(view.topic());
        let is_half = TopicKind::of(view.topic()) == TopicKind::Half;
        if hot.uniq_key != Some(again.uniq_key.into())
            || stored_for != again.topic.name.as_str()
            || view.body() != again.body
            || is_half != again.is_half
        {
            return Ok(None);
        }
        self.store.dedup().count_hit();
        let real_queue = hot.real_queue_id.and_then(QueueId::from_wire);
        Ok(Some(Sent {
            end: earlier + u64::from(view.total_size()),
            waits: true,
            phy: earlier,
            queue_id: real_queue.unwrap_or(view.queue_id()),
            queue_offset: view.queue_offset(),
            due: timer::due_if_waiting(&view, &self.levels),
        }))
    }

    /// The record at `at`, which may still wait to be written.
    fn read_staged_too(&self, at: PhyOffset) -> Result<LogSlice, ReadError> {
        if at >= self.store.max_offset() {
            self.store.write_through();
        }
        self.store.record_at(at)
    }
}
