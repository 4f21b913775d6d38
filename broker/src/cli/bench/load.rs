//! Who does how much, when: workers, lanes and the schedule they follow.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
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
/// Whether a failure was told of.
static TOLD: Once = Once::new();
/// Messages are counted for each interval of this length, in milliseconds.
pub const INTERVAL_MS: u64 = 100;
/// Intervals that are counted by themselves, a whole day; what comes later is added to the last one.
const INTERVALS_MAX: usize = 864_000;

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
    /// Nanoseconds of each operation that succeeded.
    pub latency: Histogram<u64>,
    /// Messages that were done in each [`INTERVAL_MS`].
    pub series: Vec<u64>,
    /// Where the last interval of the series ends.
    interval_end: Instant,
}

/// Nanoseconds up to an hour with three digits; what takes longer counts as an hour.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000_000, 3)
        .expect("the bounds are in order and the precision is known")
}

impl Tally {
    /// Of a phase that began at `start`.
    fn new(start: Instant) -> Self {
        let latency = histogram();
        let (series, interval_end) = (Vec::new(), start);
        Self { messages: 0, bytes: 0, errors: 0, first_error: None, latency, series, interval_end }
    }

    fn done(&mut self, since: Instant, now: Instant, messages: u64, bytes: u64) {
        self.messages += messages;
        self.bytes += bytes;
        let nanos = now.saturating_duration_since(since).as_nanos();
        self.latency.saturating_record(u64::try_from(nanos).unwrap_or(u64::MAX));
        while now >= self.interval_end && self.series.len() < INTERVALS_MAX {
            self.series.push(0);
            self.interval_end += Duration::from_millis(INTERVAL_MS);
        }
        if let Some(last) = self.series.last_mut() {
            *last += messages;
        }
    }

    /// Adds what another one counted in the same phase.
    pub fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latency.add(other.latency).expect("both have the same bounds");
        if self.series.len() < other.series.len() {
            self.series.resize(other.series.len(), 0);
        }
        for (all, more) in self.series.iter_mut().zip(other.series) {
            *all += more;
        }
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
        let now = Instant::now();
        self.with(|tally| tally.done(since, now, messages, bytes));
    }

    /// An operation failed. Rests, so that a server that refuses everything is not asked in a busy loop.
    pub async fn failed(&mut self, why: &impl ToString) -> Go {
        self.failures_in_a_row += 1;
        self.with(|tally| {
            tally.errors += 1;
            if tally.first_error.is_none() {
                let why = why.to_string();
                // Now and not in the report: a client tries for seconds, and a hundred times that is long.
                TOLD.call_once(|| eprintln!("an operation failed, others go on: {why}"));
                tally.first_error = Some(why);
            }
        });
        if self.failures_in_a_row >= FAILURES_MAX {
            return Go::Home;
        }
        tokio::time::sleep(FAILED_PAUSE).await;
        Go::On
    }
}

/// A thread's runtime and clients, kept between the phases of a run.
#[derive(Debug)]
pub struct Worker<W> {
    runtime: Runtime,
    clients: Vec<Client>,
    lanes: u32,
    /// One for each client.
    with: Arc<[W]>,
}

impl<W> Worker<W> {
    /// Connects so many clients; `give` makes of each what the lanes share.
    pub fn start(
        options: &ClientOptions,
        connections: u32,
        lanes: u32,
        give: &mut impl AsyncFnMut(&Client) -> Result<W, Failure>,
    ) -> Result<Self, Failure> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| {
            Failure::Refused(format!("cannot start: {error}; check the limits of this process (`ulimit -a`)"))
        })?;
        let (mut clients, mut with) = (Vec::new(), Vec::new());
        runtime.block_on(async {
            for _ in 0..connections {
                let client = Client::connect(options.clone()).await?;
                with.push(give(&client).await?);
                clients.push(client);
            }
            Ok::<_, Failure>(())
        })?;
        Ok(Self { runtime, clients, lanes, with: with.into() })
    }

    /// How many there are.
    pub const fn lanes(&self) -> u32 {
        self.lanes
    }

    /// Runs all lanes to their end.
    fn work<L>(&self, start: Instant, lane: &impl Fn(&Arc<[W]>, Record) -> L) -> Tally
    where
        L: Future<Output = ()> + Send + 'static,
    {
        let tally = Arc::new(Mutex::new(Tally::new(start)));
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
        std::mem::replace(&mut *all, Tally::new(start))
    }

    /// Leaves the groups and closes the connections.
    pub fn end(self, mut leave: impl AsyncFnMut(&W)) {
        self.runtime.block_on(async {
            for (client, with) in self.clients.iter().zip(&*self.with) {
                leave(with).await;
                client.shutdown().await;
            }
        });
    }
}

/// Lets every lane of every worker run to its end. Gives what they did and how long it took.
pub fn phase<W, L>(
    workers: &[Worker<W>],
    schedule: Option<&Schedule>,
    lane: impl Fn(&Arc<[W]>, Record) -> L + Sync,
) -> (Tally, Duration)
where
    W: Send + Sync,
    L: Future<Output = ()> + Send + 'static,
{
    let start = Instant::now();
    let stop = AtomicBool::new(false);
    let lanes = workers.iter().map(|worker| worker.lanes as usize).sum();
    thread::scope(|scope| {
        if let Some(schedule) = schedule {
            scope.spawn(|| schedule.pace(lanes, &stop));
        }
        let running: Vec<_> =
            workers.iter().map(|worker| scope.spawn(|| worker.work(start, &lane))).collect();
        let mut all = Tally::new(start);
        for worker in running {
            all.add(worker.join().expect("a worker does not panic"));
        }
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        (all, took)
    })
}

/// Whose turn it is among several: one after the other.
pub fn in_turn<T>(all: &[T], number: u64) -> &T {
    // With one, as most runs have it, no division.
    let at = if all.len() == 1 { 0 } else { usize::try_from(number).unwrap_or_default() % all.len() };
    &all[at]
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
        let record = Record { tally: Arc::new(Mutex::new(Tally::new(Instant::now()))), failures_in_a_row: 0 };
        let schedule = Arc::new(Schedule::start(plan));
        lane(schedule, record.clone(), 1, |_| async { Err("no".to_owned()) }).await;
        record.with(|tally| {
            assert_eq!((tally.errors, tally.messages), (u64::from(FAILURES_MAX), 0));
            assert_eq!(tally.first_error.as_deref(), Some("no"));
        });
    }

    #[test]
    fn tallies_add_up() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let (mut all, mut one) = (Tally::new(start), Tally::new(start));
        one.done(start, at(INTERVAL_MS), 2, 20);
        one.first_error = Some("first".to_owned());
        all.add(one);
        let mut other = Tally::new(start);
        other.done(start, start, 3, 30);
        other.done(start, at(INTERVAL_MS * 3), 4, 40);
        other.first_error = Some("second".to_owned());
        all.add(other);
        assert_eq!((all.messages, all.bytes, all.first_error.as_deref()), (9, 90, Some("first")));
        assert_eq!(all.series, [3, 2, 0, 4]);
        assert!(all.latency.max() >= 3 * INTERVAL_MS * 1_000_000);
    }

    #[test]
    fn connections_take_turns() {
        assert_eq!([0, 1, 2, 3].map(|number| *in_turn(&['a', 'b', 'c'], number)), ['a', 'b', 'c', 'a']);
        assert_eq!(*in_turn(&['a'], 7), 'a');
    }
}
