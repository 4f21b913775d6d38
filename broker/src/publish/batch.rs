//! Batches: several messages of one request, stored next to each other.

use std::sync::Arc;

use gantry_proto::ids::{PhyOffset, QueueId};
use gantry_proto::names::TopicKind;
use gantry_proto::record::{BatchItems, HotProperties, Properties, Text, TransactionFlag, keys};

use super::resend::Again;
use super::{ADDED_PROPERTIES, Incoming, Publisher, Scratch, SendError, Sent, draft};
use crate::store::Queue;
use crate::store::dedup::DedupKey;
use crate::timer::{self, TimerError};
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
        check_timer(incoming.properties)?;
        let toll = self.toll(&topic, incoming.producers)?;
        self.check_batch(&topic, incoming.body)?;
        let hot = HotProperties::default();
        let queue_id = self.pick_queue(&topic, incoming.queue_id, false, Properties::default(), &hot)?;
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
                toll.pay(scratch.sent.len(), incoming.body.len());
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
        let dedup_topic = Self::dedup_topic(topic);
        let mut made = String::new();
        for item in BatchItems::new(incoming.body) {
            let item = item?;
            let given = item.properties.get_text(keys::UNIQ_KEY);
            properties.assign(item.properties, ADDED_PROPERTIES);
            if check_timer(item.properties)? == Noted::Before {
                timer::forget_timer(properties);
            }
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
            let dedup = dedup_topic.map(|topic| topic.key(key)).map(|key| match look_up {
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
            sent.push(Sent { end, waits, phy, queue_id, queue_offset, due: None });
        }
        uniq_key.push_str(std::str::from_utf8(ids).unwrap_or_default());
        Ok(())
    }

    /// Appends what was gathered. `false`: one of the messages was stored before, or meanwhile; nothing was
    /// appended.
    fn store_new(&self, scratch: &mut Scratch) -> Result<bool, SendError> {
        let Scratch { batch, new, sent, .. } = scratch;
        let dedups = || new.iter().map(|one| one.dedup);
        let mut admission = dedups().any(|dedup| dedup.is_some()).then(|| self.store.dedup().admit());
        if let Some(admission) = &admission {
            admission.touch(dedups().flatten().map(|(key, _)| key));
            if dedups().flatten().any(|(key, seen)| admission.earlier(key) != seen) {
                return Ok(false);
            }
        }
        // What was stored before was answered above: who is refused sends all of it to another broker.
        self.drain.check()?;
        self.store.check_room()?;
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

/// Whether a timer has noted something in a message before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Noted {
    Never,
    Before,
}

/// A batch is stored as a whole: no message of it can wait for a time of its own.
fn check_timer(properties: Properties<'_>) -> Result<Noted, TimerError> {
    if !properties.may_name_timer() {
        return Ok(Noted::Never);
    }
    let hot = properties.scan();
    let noted = hot.timer_out_ms.is_some();
    if !noted && (hot.is_timer() || hot.bad_timer.is_some()) && hot.delay_level.is_none_or(|level| level <= 0)
    {
        return Err(TimerError::InBatch);
    }
    Ok(if noted { Noted::Before } else { Noted::Never })
}
