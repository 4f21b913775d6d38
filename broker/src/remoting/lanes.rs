//! The threads that serve connections.
//!
//! Each lane is an event loop on one thread, and a connection stays on the lane that it was given, as in other
//! servers that have one loop per core. A pool whose threads take work from each other wakes a second thread for
//! nearly every request of a lone client, only for it to find that there is nothing left to take: two switches of
//! threads that cost more than the request. What is paid for it: busy connections of one lane share a core although
//! another may be free, and wait for a lone sender that flushes by itself and for what is read from the disk. Saving a
//! table does not hold up a lane (`block_in_place` puts another thread in its place).

use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::shutdown::Shutdown;

/// All lanes of a broker. Dropping them ends what still runs on them.
#[derive(Debug)]
pub struct Lanes(Vec<Runtime>);

impl Lanes {
    /// Starts a lane for each core that this process may use.
    pub fn start() -> io::Result<Self> {
        let count = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self::start_each(count, || {
            Builder::new_multi_thread().worker_threads(1).thread_name("lane").enable_all().build()
        })
    }

    fn start_each(count: usize, lane: impl Fn() -> io::Result<Runtime>) -> io::Result<Self> {
        let mut lanes = Self(Vec::with_capacity(count));
        for _ in 0..count {
            // Where this fails the others end as all do: a runtime that is dropped by a task panics.
            lanes.0.push(lane()?);
        }
        Ok(lanes)
    }

    /// Seats for the connections of one port. Those of another port are counted by themselves: a client mostly has one
    /// to each, and would otherwise have its busy one on the same lane as everybody else's.
    pub fn seats(&self) -> Seats {
        let lanes = self.0.iter().map(|lane| (lane.handle().clone(), Arc::default()));
        Seats { lanes: lanes.collect() }
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Runtime::shutdown_background);
    }
}

/// How many connections of one port each lane has.
#[derive(Clone, Debug)]
pub struct Seats {
    lanes: Vec<(Handle, Arc<AtomicUsize>)>,
}

impl Seats {
    /// Connections on all lanes.
    pub fn taken(&self) -> usize {
        self.lanes.iter().map(|(_, taken)| taken.load(Ordering::Relaxed)).sum()
    }

    /// Serves a connection on the lane with the fewest of them, as a task of `group`.
    pub fn spawn<F>(&self, group: &Shutdown, name: &'static str, connection: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let fewest = self.lanes.iter().min_by_key(|(_, taken)| taken.load(Ordering::Relaxed));
        let (lane, taken) = fewest.expect("there is a lane for each core, and at least one core");
        let seat = Seat::take(taken);
        group.spawn_on(lane, name, async move {
            let _seat = seat;
            connection.await;
        });
    }
}

/// One connection's place; free again when it is dropped, also by a panic.
struct Seat(Arc<AtomicUsize>);

impl Seat {
    fn take(taken: &Arc<AtomicUsize>) -> Self {
        taken.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(taken))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn lanes_that_cannot_all_be_started_are_an_error() {
        let left = AtomicUsize::new(2);
        let started = Lanes::start_each(4, || match left.fetch_sub(1, Ordering::Relaxed) {
            0 => Err(io::ErrorKind::OutOfMemory.into()),
            _ => Builder::new_multi_thread().worker_threads(1).build(),
        });
        assert_eq!(started.unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    }

    #[tokio::test]
    async fn connections_spread_over_the_lanes_and_free_their_seats() {
        let lanes = Lanes::start().unwrap();
        let (seats, others) = (lanes.seats(), lanes.seats());
        let count = seats.lanes.len();
        let group = Shutdown::new();
        let mut ends = Vec::new();
        for _ in 0..2 * count {
            let (end, ended) = oneshot::channel::<()>();
            seats.spawn(&group, "connection", async move { drop(ended.await) });
            ends.push(end);
        }
        assert!(seats.lanes.iter().all(|(_, taken)| taken.load(Ordering::Relaxed) == 2));
        assert_eq!((seats.taken(), others.taken()), (2 * count, 0));
        seats.spawn(&group, "panics", async { panic!("on purpose") });
        drop(ends);
        let _ = group.drain(std::time::Duration::from_secs(60)).await;
        assert_eq!(seats.taken(), 0);
    }
}
