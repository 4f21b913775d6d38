//! The audit: reads what the broker holds, and compares it with the model.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use gantry_client::proto::ids::QueueOffset;
use gantry_client::{Client, MessageQueue, PullConsumer, PullStatus, Result};

use super::{Checker, Entry, Model};

/// Messages at the end of a queue that [`Checker::glance`] reads.
const GLANCE: u64 = 16;
/// An answer to a send may overtake the entry in the queue; not by so much, and a lost message never comes.
const DISPATCHED_WITHIN: Duration = Duration::from_secs(5);
/// Messages of one pull.
const PULL: u32 = 32;

impl Checker {
    /// Asks where a group stands in a queue and compares.
    pub async fn check_offset(&self, consumer: &PullConsumer, queue: &MessageQueue) -> Result<()> {
        let key = (consumer.group().to_string(), queue.clone());
        let floor = self.model().commits.get(&key).copied().unwrap_or_default().acknowledged;
        let found = consumer.committed(queue).await?.map_or(0, QueueOffset::get);
        let mut model = self.model();
        let ceiling = model.commits.get(&key).copied().unwrap_or_default().asked;
        if found < floor {
            model.violation(format!("{} stands at {found} in {queue}; {floor} was acknowledged", key.0));
        }
        if found > ceiling {
            model
                .violation(format!("{} stands at {found} in {queue}; it asked for at most {ceiling}", key.0));
        }
        Ok(())
    }

    /// A quick look after a restart: the last messages of all queues with news, and all committed offsets.
    pub async fn glance(&self, client: &Client) -> Result<()> {
        let news: Vec<_> = self.model().news.iter().cloned().collect();
        let consumer = client.pull_consumer("crash-audit").start().await?;
        for queue in &news {
            let last = self.last(queue);
            let from = last.saturating_sub(GLANCE - 1);
            if self.read(&consumer, queue, from, last + 1).await? {
                self.model().news.remove(queue);
            }
        }
        self.check_offsets(client).await
    }

    /// Reads everything and compares everything. Nothing else may be going on.
    pub async fn audit(&self, client: &Client) -> Result<()> {
        let consumer = client.pull_consumer("crash-audit").start().await?;
        let topics: BTreeSet<String> = {
            let model = self.model();
            model.messages.values().filter(|m| m.acknowledged).map(|m| m.topic.clone()).collect()
        };
        let mut queues: BTreeSet<MessageQueue> = self.model().queues.keys().cloned().collect();
        for topic in topics {
            queues.extend(consumer.queues(&topic).await?);
        }
        for queue in &queues {
            let (min, max) = (consumer.min_offset(queue).await?, consumer.max_offset(queue).await?);
            if min != QueueOffset::new(0) {
                self.violation(format!("{queue} begins at {min}, but nothing was deleted"));
            }
            let last = self.last(queue);
            if max.get() <= last && self.model().queues.contains_key(queue) {
                self.violation(format!("{queue} ends before {max}, but {last} was acknowledged or seen"));
            }
            self.read(&consumer, queue, min.get(), max.get()).await?;
        }
        self.check_offsets(client).await?;
        self.model().check_owed();
        self.model().check_groups();
        self.model().check_order();
        Ok(())
    }

    /// What is left to come, if anything; groups consume on meanwhile.
    pub async fn waits_for(&self, client: &Client) -> Option<String> {
        let (owed, owed_to_groups) = (self.owed(), self.owed_to_groups());
        if owed > 0 || owed_to_groups > 0 {
            return Some(format!("{owed} messages are owed, {owed_to_groups} to groups"));
        }
        match self.behind(client).await {
            Ok(behind) => behind,
            Err(error) => Some(format!("the groups' offsets are not known: {error}")),
        }
    }

    fn last(&self, queue: &MessageQueue) -> u64 {
        let model = self.model();
        model.queues.get(queue).and_then(|places| places.keys().next_back().copied()).unwrap_or_default()
    }

    async fn check_offsets(&self, client: &Client) -> Result<()> {
        let keys: Vec<_> = self.model().commits.keys().cloned().collect();
        for (group, queue) in keys {
            let consumer = client.pull_consumer(&group).start().await?;
            self.check_offset(&consumer, &queue).await?;
        }
        self.check_popped_offsets(client).await
    }

    /// Reads `from..to` of a queue; every offset must hold a message. Tells whether it could.
    async fn read(&self, consumer: &PullConsumer, queue: &MessageQueue, from: u64, to: u64) -> Result<bool> {
        let mut next = from;
        let patience = Instant::now() + DISPATCHED_WITHIN;
        while next < to {
            let pulled = consumer.pull_wait(queue, QueueOffset::new(next), PULL, DISPATCHED_WITHIN).await?;
            if pulled.status == PullStatus::OffsetMoved
                && pulled.max.get() < next
                && Instant::now() < patience
            {
                // What was acknowledged just now comes to its queue a moment later; a pull only waits at its end.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            let first = pulled.messages.first().map(|message| message.queue_offset().get());
            if first != Some(next) {
                let (status, max) = (pulled.status, pulled.max);
                self.violation(format!(
                    "{queue} @ {next}, below {to}: the pull gives {status:?} with {first:?} first, max {max}"
                ));
                return Ok(false);
            }
            for message in &pulled.messages {
                if message.queue_offset().get() != next {
                    let found = message.queue_offset();
                    self.violation(format!("{queue}: {found} comes where {next} is due"));
                }
                next = message.queue_offset().get() + 1;
                self.saw(message);
            }
        }
        Ok(true)
    }
}

impl Model {
    /// Everything that must be visible is.
    fn check_owed(&mut self) {
        let mut missing: Vec<String> = self
            .messages
            .iter()
            .filter(|(_, entry)| entry.is_owed() && entry.place.is_none())
            .map(|(ident, entry)| format!("{ident} was acknowledged and is nowhere: {entry:?}"))
            .collect();
        missing.sort();
        for what in missing {
            self.violation(what);
        }
    }

    /// Messages of one actor are in order in every queue.
    fn check_order(&mut self) {
        let mut wrong = Vec::new();
        for (queue, places) in &self.queues {
            let mut last: HashMap<u16, u64> = HashMap::new();
            for (offset, ident) in places {
                if !self.messages.get(ident).is_some_and(Entry::is_ordered) {
                    continue;
                }
                if let Some(before) = last.insert(ident.actor, ident.seq)
                    && before >= ident.seq
                {
                    wrong.push(format!(
                        "{queue} @ {offset}: {ident} comes after number {before} of its actor"
                    ));
                }
            }
        }
        for what in wrong {
            self.violation(what);
        }
    }
}
