//! Who does how much, when: workers, lanes and the schedule they follow.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use gantry_client::{Client, ClientOptions};
use hdrhistogram::Histogram;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::super::output::Failure;

/// The pacer sleeps at least so long: what falls due meanwhile is let go together.
const PACE_MIN: Duration = Duration::from_micros(50);
/// A pacer looks at least so often whether the lanes gave up.
const PACE_MAX: Duration = Duration::from_millis(100);
/// A lane whose operations fail rests so long after each.
const FAILED_PAUSE: Duration = Duration::from_millis(10);
/// A lane gives up after so many failures in a row.
const FAILURES_MAX: u32 = 100;

/// How much is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Extent {
    /// So many messages.
    Messages(u64),
    /// As many as fit into this time.
    Time(Duration),
}

/// One phase of a run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How much is done.
    pub extent: Extent,
    /// Messages of one operation.
    pub batch: u64,
    /// Messages a second; `None` for a closed loop.
    pub rate: Option<f64>,
}

/// An operation to be done now.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Its number, from 0.
    pub number: u64,
    /// How many messages it has.
    pub messages: u64,
    /// When it was due: its latency counts from here.
    pub due: Instant,
}

/// Hands out operations until there are enough.
#[derive(Debug)]
pub struct Schedule {
    plan: Plan,
    start: Instant,
    /// Messages in all; none in a closed loop that goes on for a time.
    messages: Option<u64>,
    next: AtomicU64,
    /// Operations that fell due and nobody has taken; used in an open loop only.
    due: Semaphore,
}

impl Schedule {
    /// Starts now.
    pub fn start(plan: Plan) -> Self {
        let messages = match (plan.extent, plan.rate) {
            (Extent::Messages(messages), _) => Some(messages),
            (Extent::Time(time), Some(rate)) => Some(whole(time.as_secs_f64() * rate).max(1)),
            (Extent::Time(_), None) => None,
        };
        Self { plan, start: Instant::now(), messages, next: AtomicU64::new(0), due: Semaphore::new(0) }
    }

    /// The next operation, when it is due; `None` when there are enough.
    pub async fn next(&self) -> Option<Turn> {
        if self.plan.rate.is_some() {
            self.due.acquire().await.ok()?.forget();
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let before = number.saturating_mul(self.plan.batch);
        let messages = match self.messages {
            Some(all) => all.checked_sub(before).filter(|left| *left > 0)?.min(self.plan.batch),
            None => self.plan.batch,
        };
        let due = self.due_at(number).unwrap_or_else(Instant::now);
        match self.plan.extent {
            Extent::Time(time) if self.plan.rate.is_none() && due - self.start >= time => None,
            _ => Some(Turn { number, messages, due }),
        }
    }

    /// When an operation is due; `None` in a closed loop, where that is when somebody takes it.
    fn due_at(&self, number: u64) -> Option<Instant> {
        let operations_per_second = self.plan.rate? / float(self.plan.batch);
        Some(self.start + Duration::from_secs_f64(float(number) / operations_per_second))
    }

    /// Lets operations go as they fall due, until all have or `stop`; returns at once in a closed loop.
    ///
    /// This is a thread and not a timer of the runtime: those are a millisecond coarse, which would be all the
    /// latency that is seen.
    fn pace(&self, lanes: usize, stop: &AtomicBool) {
        let (Some(rate), Some(messages)) = (self.plan.rate, self.messages) else { return };
        let operations = messages.div_ceil(self.plan.batch);
        let mut released = 0;
        while released < operations && !stop.load(Ordering::Relaxed) {
            let elapsed = self.start.elapsed().as_secs_f64();
            let due = (whole(elapsed * rate / float(self.plan.batch)) + 1).min(operations);
            // More than were ever taken at once would only be counted: lanes take them by number.
            self.due.add_permits(usize::try_from(due - released).unwrap_or_default());
            released = due;
            if let Some(next) = self.due_at(released) {
                thread::sleep(next.saturating_duration_since(Instant::now()).clamp(PACE_MIN, PACE_MAX));
            }
        }
        // Each lane asks once more and hears that there are enough.
        self.due.add_permits(lanes);
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn float(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is not negative")]
fn whole(number: f64) -> u64 {
    number as u64
}

/// What was done.
#[derive(Debug)]
pub struct Tally {
    /// Messages that were sent, ended or read.
    pub messages: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Why the first one failed.
    pub first_error: Option<String>,
    /// Microseconds of each operation that succeeded.
    pub latency: Histogram<u64>,
}

/// Microseconds up to an hour with three digits; what takes longer counts as an hour.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3)
        .expect("the bounds are in order and the precision is known")
}

impl Tally {
    fn new() -> Self {
        let latency = histogram();
        Self { messages: 0, bytes: 0, errors: 0, first_error: None, latency }
    }

    fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latency.add(other.latency).expect("both have the same bounds");
    }
}

/// Where the lanes of one worker record what they did.
#[derive(Clone, Debug)]
pub struct Record {
    /// Guards the tally of one thread; held for one entry, so nobody ever waits for it.
    tally: Arc<Mutex<Tally>>,
    failures_in_a_row: u32,
}

/// Whether a lane goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Go {
    /// With the next operation.
    On,
    /// No more: the server does not answer this lane any longer.
    Home,
}

impl Record {
    fn with(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// An operation that began (or was due) at `since` succeeded.
    pub fn done(&mut self, since: Instant, messages: u64, bytes: u64) {
        self.failures_in_a_row = 0;
        let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.with(|tally| {
            tally.messages += messages;
            tally.bytes += bytes;
            tally.latency.saturating_record(micros);
        });
    }

    /// An operation failed. Rests, so that a server that refuses everything is not asked in a busy loop.
    pub async fn failed(&mut self, why: &impl ToString) -> Go {
        self.failures_in_a_row += 1;
        self.with(|tally| {
            tally.errors += 1;
            if tally.first_error.is_none() {
                tally.first_error = Some(why.to_string());
            }
        });
        if self.failures_in_a_row >= FAILURES_MAX {
            return Go::Home;
        }
        tokio::time::sleep(FAILED_PAUSE).await;
        Go::On
    }
}

/// A thread's runtime and client, kept between the phases of a run.
#[derive(Debug)]
pub struct Worker<W> {
    runtime: Runtime,
    client: Client,
    lanes: u32,
    with: W,
}

impl<W> Worker<W> {
    /// Connects; `give` makes what the lanes share.
    pub fn start(
        options: ClientOptions,
        lanes: u32,
        give: &mut impl AsyncFnMut(&Client) -> Result<W, Failure>,
    ) -> Result<Self, Failure> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| {
            Failure::Refused(format!("cannot start: {error}; check the limits of this process (`ulimit -a`)"))
        })?;
        let (client, with) = runtime.block_on(async {
            let client = Client::connect(options).await?;
            let with = give(&client).await?;
            Ok::<_, Failure>((client, with))
        })?;
        Ok(Self { runtime, client, lanes, with })
    }

    /// Runs all lanes to their end.
    fn work<L>(&self, lane: &impl Fn(&W, Record) -> L) -> Tally
    where
        L: Future<Output = ()> + Send + 'static,
    {
        let tally = Arc::new(Mutex::new(Tally::new()));
        self.runtime.block_on(async {
            let mut lanes = JoinSet::new();
            for _ in 0..self.lanes {
                let record = Record { tally: Arc::clone(&tally), failures_in_a_row: 0 };
                lanes.spawn(lane(&self.with, record));
            }
            while let Some(ended) = lanes.join_next().await {
                ended.expect("a lane ends by itself and does not panic");
            }
        });
        let mut all = tally.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *all, Tally::new())
    }

    /// Leaves the groups and closes the connections.
    pub fn end(self, leave: impl AsyncFnOnce(W)) {
        let Self { runtime, client, with, .. } = self;
        runtime.block_on(async {
            leave(with).await;
            client.shutdown().await;
        });
    }
}

/// Lets every lane of every worker run to its end. Gives what they did and how long it took.
pub fn phase<W, L>(
    workers: &[Worker<W>],
    schedule: Option<&Schedule>,
    lane: impl Fn(&W, Record) -> L + Sync,
) -> (Tally, Duration)
where
    W: Sync,
    L: Future<Output = ()> + Send + 'static,
{
    let start = Instant::now();
    let stop = AtomicBool::new(false);
    let lanes = workers.iter().map(|worker| worker.lanes as usize).sum();
    thread::scope(|scope| {
        if let Some(schedule) = schedule {
            scope.spawn(|| schedule.pace(lanes, &stop));
        }
        let running: Vec<_> = workers.iter().map(|worker| scope.spawn(|| worker.work(&lane))).collect();
        let mut all = Tally::new();
        for worker in running {
            all.add(worker.join().expect("a worker does not panic"));
        }
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        (all, took)
    })
}

/// The lane of a load: takes operations and does them until there are enough.
pub async fn lane<F>(
    schedule: Arc<Schedule>,
    mut record: Record,
    bytes_each: u64,
    operation: impl Fn(Turn) -> F,
) where
    F: Future<Output = Result<(), String>>,
{
    while let Some(turn) = schedule.next().await {
        let done = pin!(operation(turn)).await;
        match done {
            Ok(()) => record.done(turn.due, turn.messages, turn.messages * bytes_each),
            Err(why) => {
                if record.failed(&why).await == Go::Home {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(schedule: &Schedule) -> Vec<Turn> {
        let mut turns = Vec::new();
        while let Some(turn) = schedule.next().await {
            turns.push(turn);
        }
        turns
    }

    #[tokio::test]
    async fn a_closed_loop_hands_out_as_many_messages_as_asked() {
        let plan = Plan { extent: Extent::Messages(10), batch: 4, rate: None };
        let turns = all(&Schedule::start(plan)).await;
        let messages: Vec<u64> = turns.iter().map(|turn| turn.messages).collect();
        assert_eq!(messages, [4, 4, 2]);
        assert_eq!(turns.last().map(|turn| turn.number), Some(2));
    }

    #[tokio::test]
    async fn a_closed_loop_ends_with_its_time() {
        let plan = Plan { extent: Extent::Time(Duration::ZERO), batch: 1, rate: None };
        assert!(Schedule::start(plan).next().await.is_none());
    }

    #[tokio::test]
    async fn an_open_loop_keeps_its_timetable_whoever_is_late() {
        let plan = Plan { extent: Extent::Time(Duration::from_millis(4)), batch: 2, rate: Some(2000.0) };
        let schedule = Schedule::start(plan);
        schedule.pace(1, &AtomicBool::new(false));
        let turns = all(&schedule).await;
        let due: Vec<_> = turns.iter().map(|turn| (turn.due - schedule.start).as_millis()).collect();
        assert_eq!(due, [0, 1, 2, 3]);
        assert_eq!(turns.iter().map(|turn| turn.messages).sum::<u64>(), 8);
    }

    #[tokio::test]
    async fn a_lane_that_only_fails_gives_up() {
        tokio::time::pause();
        let plan = Plan { extent: Extent::Messages(1000), batch: 1, rate: None };
        let record = Record { tally: Arc::new(Mutex::new(Tally::new())), failures_in_a_row: 0 };
        let schedule = Arc::new(Schedule::start(plan));
        lane(schedule, record.clone(), 1, |_| async { Err("no".to_owned()) }).await;
        record.with(|tally| {
            assert_eq!((tally.errors, tally.messages), (u64::from(FAILURES_MAX), 0));
            assert_eq!(tally.first_error.as_deref(), Some("no"));
        });
    }

    #[test]
    fn tallies_add_up() {
        let (mut all, mut one) = (Tally::new(), Tally::new());
        one.messages = 2;
        one.first_error = Some("first".to_owned());
        one.latency.saturating_record(90_000_000);
        all.add(one);
        let mut other = Tally::new();
        other.messages = 3;
        other.first_error = Some("second".to_owned());
        all.add(other);
        assert_eq!((all.messages, all.first_error.as_deref()), (5, Some("first")));
        assert!(all.latency.max() >= 90_000_000);
    }
}
