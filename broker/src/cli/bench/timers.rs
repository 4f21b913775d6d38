//! `gantry bench timers`: sends timer messages, waits for them, and tells how late they come.
//!
//! Each message says when it is due, by the clock of this process, and has a number: so it is known when one comes early,
//! twice or never. Lateness counts until this process has the message.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use clap::Args;
use gantry_client::{Client, ClientOptions, Message, MessageQueue, Producer, PullConsumer, Received};
use gantry_proto::ids::QueueOffset;
use gantry_proto::names::TopicName;

use super::super::args::{Delays, delays, span};
use super::super::output::Failure;
use super::load::{Go, Plan, Record, Schedule, Tally, Turn, Worker, in_turn, lane, phase};
use super::produce::send_one;
use super::report::{Setup, Watched};
use super::{Common, Load, REQUEST_TIMEOUT};

/// Messages of a pull.
const PULLED_MAX: u32 = 32;
/// How long a pull waits for a message; a reader looks so often whether all are there.
const PULL_WAIT: Duration = Duration::from_millis(300);
/// The property with a message's number.
const NUMBER: &str = "bench-number";

/// `gantry bench timers`.
#[derive(Debug, Args)]
pub struct Timers {
    /// When messages are due, counted from when each is sent: a time like `10s`, or two like `5s..15s` over which they
    /// are spread.
    #[arg(long, value_name = "TIME", default_value = "5s..15s", value_parser = delays)]
    delay: Delays,
    /// How long messages are waited for that are late.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = span)]
    patience: Duration,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    common: Common,
}

/// What came so far.
#[derive(Debug, Default)]
struct Arrivals {
    /// Guards what was counted; held for one message.
    counts: Mutex<Counts>,
    /// How many there are, and until when they are waited for; set once all are sent.
    goal: OnceLock<(u64, Instant)>,
}

#[derive(Debug, Default)]
struct Counts {
    /// One bit for each number that came.
    seen: Vec<u64>,
    arrived: u64,
    early: u64,
    twice: u64,
}

impl Counts {
    /// Notes a number; `false` when it was there before.
    fn note(&mut self, number: u64) -> bool {
        let word = usize::try_from(number / 64).unwrap_or(usize::MAX);
        if word >= self.seen.len() {
            self.seen.resize(word.saturating_add(1), 0);
        }
        let Some(bits) = self.seen.get_mut(word) else { return false };
        let is_new = *bits >> (number % 64) & 1 == 0;
        *bits |= 1 << (number % 64);
        is_new
    }
}

impl Arrivals {
    fn with<T>(&self, work: impl FnOnce(&mut Counts) -> T) -> T {
        work(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether nothing more is waited for.
    fn is_over(&self) -> bool {
        let Some((sent, until)) = self.goal.get() else { return false };
        self.with(|counts| counts.arrived >= *sent) || Instant::now() >= *until
    }

    /// Takes in a message, whose due time and number are those of a sender of this process.
    fn take(&self, message: &Received, record: &mut Record) {
        let Some((due, number)) = due_of(message) else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let is_new = self.with(|counts| {
            let is_new = counts.note(number);
            counts.arrived += u64::from(is_new);
            counts.twice += u64::from(!is_new);
            counts.early += u64::from(is_new && now < due);
            is_new
        });
        if is_new {
            let since = Instant::now().checked_sub(now.saturating_sub(due));
            record.done(since.unwrap_or_else(Instant::now), 1, message.body().len() as u64);
        }
    }

    /// Adds to `tally` what should not be.
    fn judge(&self, sent: u64, tally: &mut Tally) {
        let (lost, early, twice) =
            self.with(|counts| (sent.saturating_sub(counts.arrived), counts.early, counts.twice));
        for (count, what) in [(lost, "did not come"), (early, "came early"), (twice, "came twice")] {
            tally.errors += count;
            if count > 0 && tally.first_error.is_none() {
                tally.first_error = Some(format!("{count} timer messages {what}; see the broker's log"));
            }
        }
    }
}

/// When a message of this bench is due, since the epoch, and its number.
fn due_of(message: &Received) -> Option<(Duration, u64)> {
    let due = message.properties().scan().timer_deliver_ms?;
    let number = message.property(NUMBER)?.parse().ok()?;
    Some((Duration::from_millis(u64::try_from(due).ok()?), number))
}

/// Runs `gantry bench timers`.
pub fn run(args: &Timers) -> Result<(), Failure> {
    let Timers { delay, patience, load, common } = args;
    let (topic, body) = (common.topic()?, load.body());
    let setup = Setup {
        bench: "timers",
        size: Some(load.size),
        batch: 1,
        rate: load.rate,
        rollback_percent: None,
        groups: None,
    };
    let senders = common.workers(1, async |client| {
        common.provide_topic(client, load.queues).await?;
        Ok(client.producer(&load.group).compress_above(usize::MAX).start().await?)
    })?;
    let (reader, queues) = reader(common, load)?;
    let (_, plan) = load.plans(0, 1);
    let arrivals = Arc::new(Arrivals::default());
    let watched = Watched::start(common)?;
    let (tally, took) = thread::scope(|scope| {
        let reading = scope.spawn(|| read(&reader, queues, &arrivals));
        let (sent, _) = send(&senders, plan, *delay, &topic, &body);
        let last = Instant::now() + delay.to + *patience;
        // Set once only, here.
        let _ = arrivals.goal.set((sent.messages, last));
        let (mut came, took) = reading.join().expect("a reader does not panic");
        arrivals.judge(sent.messages, &mut came);
        came.errors += sent.errors;
        came.first_error = sent.first_error.or(came.first_error.take());
        (came, took)
    });
    let result = watched.report(common, &setup, &tally, took);
    for worker in senders {
        worker.end(async |producer| producer.shutdown().await);
    }
    reader.end(async |_| ());
    result
}

type Reader = Worker<Arc<PullConsumer>>;
/// Queues that no lane has taken yet.
type Queues = Vec<(MessageQueue, QueueOffset)>;

/// A worker with a lane for each queue, and where each queue ends now.
fn reader(common: &Common, load: &Load) -> Result<(Reader, Queues), Failure> {
    let options = ClientOptions::new(&*common.target.name_server).timeout(REQUEST_TIMEOUT);
    let mut queues = Vec::new();
    let mut give = async |client: &Client| {
        let consumer = client.pull_consumer(&load.group).start().await?;
        for queue in consumer.queues(&common.topic).await? {
            let end = consumer.max_offset(&queue).await?;
            queues.push((queue, end));
        }
        Ok(Arc::new(consumer))
    };
    let lanes = u32::try_from(load.queues).unwrap_or(1);
    let worker = Worker::start(&options, 1, lanes, &mut give)?;
    Ok((worker, queues))
}

/// Reads all queues until everything has come, or for long enough.
fn read(reader: &Reader, queues: Queues, arrivals: &Arc<Arrivals>) -> (Tally, Duration) {
    let queues = Arc::new(queues);
    let lanes = u64::from(reader.lanes());
    let next_lane = AtomicU64::new(0);
    phase(std::slice::from_ref(reader), None, |consumers, mut record| {
        let (consumers, queues, arrivals) =
            (Arc::clone(consumers), Arc::clone(&queues), Arc::clone(arrivals));
        let lane = next_lane.fetch_add(1, Ordering::Relaxed);
        async move {
            let consumer = in_turn(&consumers, 0);
            // A topic that was there before may have more queues than there are lanes.
            let mut own: Queues = (0..)
                .zip(&*queues)
                .filter(|(at, _)| at % lanes == lane)
                .map(|(_, queue)| queue.clone())
                .collect();
            while !own.is_empty() && !arrivals.is_over() {
                let wait = PULL_WAIT / u32::try_from(own.len()).unwrap_or(1);
                for (queue, next) in &mut own {
                    match consumer.pull_wait(queue, *next, PULLED_MAX, wait).await {
                        Ok(pulled) => {
                            pulled.messages.iter().for_each(|message| arrivals.take(message, &mut record));
                            *next = pulled.next;
                        }
                        Err(error) => {
                            if record.failed(&error).await == Go::Home {
                                return;
                            }
                        }
                    }
                }
            }
        }
    })
}

fn send(
    workers: &[Worker<Producer>],
    plan: Plan,
    delay: Delays,
    topic: &TopicName,
    body: &Bytes,
) -> (Tally, Duration) {
    let schedule = Arc::new(Schedule::start(plan));
    let bytes_each = body.len() as u64;
    phase(workers, Some(&schedule), |producers, record| {
        let (schedule, producers) = (Arc::clone(&schedule), Arc::clone(producers));
        let message = Message::to(topic.clone(), body.clone());
        async move {
            let operation = async |turn: Turn| {
                let number = turn.number.to_string();
                let at = SystemTime::now() + delay.of(turn.number);
                let message = message.clone().deliver_at(at).property(NUMBER, number);
                send_one(in_turn(&producers, turn.number), message).await
            };
            lane(schedule, record, bytes_each, operation).await;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_seen_once() {
        let mut counts = Counts::default();
        assert!([0, 63, 64, 1000].into_iter().all(|number| counts.note(number)));
        assert!(!counts.note(64) && counts.note(65));
    }
}
