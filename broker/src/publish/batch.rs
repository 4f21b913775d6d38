//! Batches: several messages of one request, stored next to each other.

use std::sync::Arc;

use gantry_proto::ids::{PhyOffset, QueueId};
use gantry_proto::names::TopicKind;
use gantry_proto::record::{BatchItems, PropertiesBuf, TransactionFlag, keys};

use super::resend::Again;
use super::{ADDED_PROPERTIES, Incoming, Publisher, Scratch, SendError, Sent, draft, pick_queue};
use crate::store::Queue;
use crate::store::dedup::DedupKey;
use crate::topics::Topic;

/// A message of a batch that is to be stored.
struct New {
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
    /// Appends the messages of a batch, next to each other. `sent` gets one entry for each, in order;
    /// `scratch.uniq_key` their ids, joined by commas.
    pub fn send_batch(
        &self,
        incoming: &Incoming<'_>,
        scratch: &mut Scratch,
        sent: &mut Vec<Sent>,
    ) -> Result<(), SendError> {
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
            sent.clear();
            let new = self.gather(incoming, (&topic, &queue), look_up, scratch, sent)?;
            if sent.is_empty() {
                return Err(SendError::EmptyBatch);
            }
            let stored = new.is_empty() || self.store_new(&new, scratch, sent)?;
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
        sent: &mut Vec<Sent>,
    ) -> Result<Vec<New>, SendError> {
        let sys_flag = incoming.sys_flag.with_transaction(TransactionFlag::None);
        let waits = incoming.properties.waits_for_store();
        let queue_id: QueueId = queue.id();
        scratch.batch.clear();
        scratch.uniq_key.clear();
        let mut new = Vec::new();
        let mut made = String::new();
        for item in BatchItems::new(incoming.body) {
            let item = item?;
            let given = item.properties.uniq_key();
            let mut properties = PropertiesBuf::copy_of(item.properties, ADDED_PROPERTIES);
            let key = if let Some(given) = given {
                given
            } else {
                made.clear();
                self.uniq_keys.next_into(self.clock.now(), &mut made);
                properties.push(keys::UNIQ_KEY, &made);
                &made
            };
            if !scratch.uniq_key.is_empty() {
                scratch.uniq_key.push(',');
            }
            scratch.uniq_key.push_str(key);
            let dedup = Self::dedup_key(topic, key).map(|key| match look_up {
                LookUp::Later => (key, None),
                LookUp::Now => (key, self.store.dedup().earlier(key)),
            });
            if let Some((_, Some(earlier))) = dedup {
                let again = Again { topic, uniq_key: key, body: item.body, is_half: false };
                if let Some(again) = self.answer_again(earlier, &again)? {
                    sent.push(Sent { waits, ..again });
                    continue;
                }
            }
            let draft = draft(incoming, queue, sys_flag, properties.as_bytes(), item.body, item.flag);
            scratch.batch.push(queue, &draft)?;
            new.push(New { number: sent.len(), dedup });
            let (end, phy, queue_offset) = Default::default();
            sent.push(Sent { end, waits, phy, queue_id, queue_offset });
        }
        Ok(new)
    }

    /// Appends what was gathered. `false`: one of the messages was stored before, or meanwhile; nothing was
    /// appended.
    fn store_new(&self, new: &[New], scratch: &mut Scratch, sent: &mut [Sent]) -> Result<bool, SendError> {
        self.store.check_room()?;
        let dedups = || new.iter().map(|one| one.dedup);
        let mut admission = dedups().any(|dedup| dedup.is_some()).then(|| self.store.dedup().admit());
        if let Some(admission) = &admission {
            admission.touch(dedups().flatten().map(|(key, _)| key));
            if dedups().flatten().any(|(key, seen)| admission.earlier(key) != seen) {
                return Ok(false);
            }
        }
        let appended = self.store.append(&mut scratch.batch)?;
        for (one, placed) in new.iter().zip(scratch.batch.placed()) {
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
