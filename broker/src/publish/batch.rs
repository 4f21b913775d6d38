//! Batches: several messages of one request, stored next to each other.

use std::sync::Arc;

use gantry_proto::ids::{PhyOffset, QueueId};
use gantry_proto::names::TopicKind;
use gantry_proto::record::{BatchItems, Text, TransactionFlag, keys};

use super::resend::Again;
use super::{ADDED_PROPERTIES, Incoming, Publisher, Scratch, SendError, Sent, draft, pick_queue};
use crate::store::Queue;
use crate::store::dedup::DedupKey;
use crate::topics::Topic;

/// Messages for which memory is kept from one batch to the next.
const KEPT_MESSAGES: usize = 1024;

/// A message of a batch that is to be stored.
#[derive(Debug)]
pub(super) struct New {
    /// Its number in the batch.
    number: usize,
    /// Under what a resend would be found, and what was found when it was looked for.
    dedup: Option<(DedupKey, Option<PhyOffset>)>,
}

/// Whether messages of a batch are looked up before they are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LookUp {
    /// No: resends are rare, and the admission looks anyway.
    Later,
    /// Yes: the admission met one.
    Now,
}

impl Publisher {
    /// Appends the messages of a batch, next to each other. `scratch.sent` gets one entry for each, in order;
    /// `scratch.uniq_key` their ids, joined by commas.
    pub fn send_batch(&self, incoming: &Incoming<'_>, scratch: &mut Scratch) -> Result<(), SendError> {
        self.check_size(incoming.body.len())?;
        let topic =
            self.topics.resolve_for_send(incoming.topic, incoming.default_topic, incoming.default_queues)?;
        if topic.kind == TopicKind::Retry || incoming.topic.len() > 127 {
            return Err(SendError::BatchNotAllowed { topic: topic.name.clone() });
        }
        let queue_id = pick_queue(&topic, incoming.queue_id, false)?;
        let queue = self.queue_of(&topic, queue_id)?;
        let mut look_up = LookUp::Later;
        loop {
            self.gather(incoming, (&topic, &queue), look_up, scratch)?;
            if scratch.sent.is_empty() {
                return Err(SendError::EmptyBatch);
            }
            let stored = scratch.new.is_empty() || self.store_new(scratch)?;
            scratch.batch.clear();
            if stored {
                return Ok(());
            }
            look_up = LookUp::Now;
        }
    }

    /// Encodes the messages that were not stored before.
    fn gather(
        &self,
        incoming: &Incoming<'_>,
        (topic, queue): (&Topic, &Arc<Queue>),
        look_up: LookUp,
        scratch: &mut Scratch,
    ) -> Result<(), SendError> {
        let Scratch { batch, properties, uniq_key, ids, new, sent } = scratch;
        let sys_flag = incoming.sys_flag.with_transaction(TransactionFlag::None);
        let waits = incoming.properties.waits_for_store();
        let queue_id: QueueId = queue.id();
        batch.clear();
        uniq_key.clear();
        ids.clear();
        new.clear();
        new.shrink_to(KEPT_MESSAGES);
        sent.clear();
        sent.shrink_to(KEPT_MESSAGES);
        let mut made = String::new();
        for item in BatchItems::new(incoming.body) {
            let item = item?;
            let given = item.properties.get_text(keys::UNIQ_KEY);
            properties.assign(item.properties, ADDED_PROPERTIES);
            let key = if let Some(given) = given {
                given
            } else {
                made.clear();
                self.uniq_keys.next_into(self.clock.now(), &mut made);
                properties.push(keys::UNIQ_KEY, &made);
                Text::from(made.as_str())
            };
            if !ids.is_empty() {
                ids.push(b',');
            }
            ids.extend_from_slice(key.as_bytes());
            let dedup = Self::dedup_key(topic, key).map(|key| match look_up {
                LookUp::Later => (key, None),
                LookUp::Now => (key, self.store.dedup().earlier(key)),
            });
            if let Some((_, Some(earlier))) = dedup {
                let again = Again { topic, uniq_key: key.as_str(), body: item.body, is_half: false };
                if let Some(again) = self.answer_again(earlier, &again)? {
                    sent.push(Sent { waits, ..again });
                    continue;
                }
            }
            let draft = draft(incoming, queue, sys_flag, properties.as_bytes(), item.body, item.flag);
            batch.push(queue, &draft)?;
            new.push(New { number: sent.len(), dedup });
            let (end, phy, queue_offset) = Default::default();
            sent.push(Sent { end, waits, phy, queue_id, queue_offset });
        }
        uniq_key.push_str(std::str::from_utf8(ids).unwrap_or_default());
        Ok(())
    }

    /// Appends what was gathered. `false`: one of the messages was stored before, or meanwhile; nothing was
    /// appended.
    fn store_new(&self, scratch: &mut Scratch) -> Result<bool, SendError> {
        let Scratch { batch, new, sent, .. } = scratch;
        self.store.check_room()?;
        let dedups = || new.iter().map(|one| one.dedup);
        let mut admission = dedups().any(|dedup| dedup.is_some()).then(|| self.store.dedup().admit());
        if let Some(admission) = &admission {
            admission.touch(dedups().flatten().map(|(key, _)| key));
            if dedups().flatten().any(|(key, seen)| admission.earlier(key) != seen) {
                return Ok(false);
            }
        }
        let appended = self.store.append(batch)?;
        for (one, placed) in new.iter().zip(batch.placed()) {
            if let (Some(admission), Some((key, _))) = (&mut admission, one.dedup) {
                admission.stored(key, placed.phy);
            }
            if let Some(sent) = sent.get_mut(one.number) {
                sent.end = appended.end;
                sent.phy = placed.phy;
                sent.queue_offset = placed.queue_offset;
            }
        }
        Ok(true)
    }
}
