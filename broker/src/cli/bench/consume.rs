//! `gantry bench consume`: drains a topic from its first message on.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use gantry_client::{MessageQueue, PullConsumer, PullStatus};
use gantry_proto::ids::QueueOffset;

use super::super::output::Failure;
use super::Common;
use super::load::{Go, Record, Tally, Worker, in_turn, phase};
use super::report::{Setup, Watched};

/// `gantry bench consume`.
#[derive(Debug, Args)]
pub struct Consume {
    /// Stop after so many messages of every group, warm-up not counted; pulls that are under way are still
    /// counted. Without it all queues are read to where they end at the start.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    messages: Option<u64>,
    /// Most messages of one pull; Apache's brokers give at most 32 unless told otherwise.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Consumer group; nothing is acknowledged. With --groups the others have a number behind this name.
    #[arg(long, value_name = "GROUP", default_value = "gantry-bench")]
    group: String,
    /// Groups that read at the same time, every one the whole topic; each has connections of its own.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    groups: u32,
    #[command(flatten)]
    common: Common,
}

/// What of a queue is still to be read by a group.
#[derive(Clone, Debug)]
struct Span {
    /// Number of the group.
    group: u32,
    queue: MessageQueue,
    next: QueueOffset,
    end: QueueOffset,
}

/// Queues to read. Each is pulled from by at most one lane at a time for each group, because a pull starts where
/// the last one ended: at most as many pulls are in flight as there are queues, times the groups.
#[derive(Debug, Default)]
struct Spans {
    /// Guards the queues that no lane has; held to take one out or put it back.
    idle: Mutex<VecDeque<Span>>,
}

impl Spans {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Span>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Span> {
        self.lock().pop_front()
    }

    /// Puts a queue behind the others, unless it was read to its end.
    fn put_back(&self, span: Span) {
        if span.next < span.end {
            self.lock().push_back(span);
        }
    }
}

/// Runs `gantry bench consume`.
pub fn run(args: &Consume) -> Result<(), Failure> {
    let Consume { messages, batch, group, groups, common } = args;
    let mut spans = None;
    let mut connected = 0;
    let workers = common.workers(*groups, async |client| {
        let name = group_name(group, connected % groups);
        connected += 1;
        let consumer = client.pull_consumer(&name).start().await?;
        if spans.is_none() {
            spans = Some(all_spans(&consumer, &common.topic, *groups).await?);
        }
        Ok(Arc::new(consumer))
    })?;
    let spans = Arc::new(spans.unwrap_or_default());
    let reading = Reading { batch: *batch, groups: *groups };
    if common.warmup > 0 {
        drain(&workers, &spans, reading, Some(common.warmup));
    }
    if spans.lock().is_empty() {
        let topic = &common.topic;
        return Err(Failure::Refused(format!(
            "topic {topic} has nothing to read; try `gantry bench produce --topic {topic}`, or a shorter warm-up"
        )));
    }
    let watched = Watched::start(common)?;
    let (tally, took) = drain(&workers, &spans, reading, *messages);
    let setup = Setup {
        bench: "consume",
        size: None,
        batch: u64::from(*batch),
        rate: None,
        rollback_percent: None,
        groups: Some(*groups),
    };
    let result = watched.report(common, &setup, &tally, took);
    for worker in workers {
        worker.end(async |_| ());
    }
    result
}

/// The first group has the name itself.
fn group_name(name: &str, number: u32) -> String {
    if number == 0 { name.to_owned() } else { format!("{name}-{number}") }
}

async fn all_spans(consumer: &PullConsumer, topic: &str, groups: u32) -> Result<Spans, Failure> {
    let spans = Spans::default();
    for queue in consumer.queues(topic).await? {
        let (next, end) = (consumer.min_offset(&queue).await?, consumer.max_offset(&queue).await?);
        for group in 0..groups {
            spans.put_back(Span { group, queue: queue.clone(), next, end });
        }
    }
    Ok(spans)
}

/// How is read.
#[derive(Clone, Copy, Debug)]
struct Reading {
    /// Most messages of a pull.
    batch: u32,
    groups: u32,
}

/// Reads until `limit` messages of every group were read, or all.
fn drain(
    workers: &[Worker<Arc<PullConsumer>>],
    spans: &Arc<Spans>,
    reading: Reading,
    limit: Option<u64>,
) -> (Tally, Duration) {
    let read = Arc::new(AtomicU64::new(0));
    let limit = limit.map(|limit| limit.saturating_mul(u64::from(reading.groups)));
    phase(workers, None, |consumers, mut record| {
        let (consumers, spans, read) = (Arc::clone(consumers), Arc::clone(spans), Arc::clone(&read));
        async move {
            let mut turn = 0;
            while limit.is_none_or(|limit| read.load(Ordering::Relaxed) < limit) {
                let Some(mut span) = spans.take() else { return };
                let consumer = in_turn(&consumers, connection(span.group, reading.groups, turn));
                turn += 1;
                let pulled = pull(consumer, &mut span, reading.batch, &mut record).await;
                spans.put_back(span);
                match pulled {
                    Ok(messages) => read.fetch_add(messages, Ordering::Relaxed),
                    Err(Go::On) => continue,
                    Err(Go::Home) => return,
                };
            }
        }
    })
}

/// A connection of a group: they were dealt out to the groups like cards, so many to each.
const fn connection(group: u32, groups: u32, turn: u64) -> u64 {
    group as u64 + groups as u64 * turn
}

/// One pull: moves the span on and gives the number of messages.
async fn pull(consumer: &PullConsumer, span: &mut Span, batch: u32, record: &mut Record) -> Result<u64, Go> {
    let since = Instant::now();
    let pulled = match consumer.pull(&span.queue, span.next, batch).await {
        Ok(pulled) => pulled,
        Err(error) => return Err(record.failed(&error).await),
    };
    if pulled.status == PullStatus::NoNewMessage {
        let Span { queue, next, end, .. } = span;
        let why = format!(
            "{queue} gave nothing at {next}, though it had messages up to {end}; see the broker's log"
        );
        return Err(record.failed(&why).await);
    }
    let messages = pulled.messages.len() as u64;
    span.next = pulled.next.max(span.next);
    record.done(since, messages, pulled.messages.iter().map(|message| message.body().len() as u64).sum());
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use gantry_proto::ids::QueueId;
    use gantry_proto::names::{BrokerName, TopicName};

    use super::*;

    #[test]
    fn queues_take_turns_and_leave_when_they_are_read() {
        let spans = Spans::default();
        for (id, end) in [(0, 2), (1, 1), (2, 0)] {
            let queue = MessageQueue {
                topic: TopicName::internal("T"),
                broker: BrokerName::internal("b"),
                id: QueueId::new(id),
            };
            spans.put_back(Span { group: 0, queue, next: QueueOffset::new(0), end: QueueOffset::new(end) });
        }
        let mut order = Vec::new();
        while let Some(mut span) = spans.take() {
            order.push(span.queue.id.get());
            span.next += 1;
            spans.put_back(span);
        }
        assert_eq!(order, [0, 1, 0]);
    }
}
