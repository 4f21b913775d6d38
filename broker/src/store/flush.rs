//! Group commit: one thread flushes the log, for as many waiting senders as there are.
//!
//! Under the policy `disk` it writes and flushes whenever something was appended; what arrives while a
//! flush is under way shares the next one. Under `memory` appenders write themselves, and the thread
//! flushes behind them so that a power loss costs about [`MEMORY_INTERVAL`].

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::FlushPolicy;
use super::append::Log;
use super::dispatch::Dispatcher;
use super::watermark::Poisoned;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Condvar, Mutex};

/// Under the policy `memory`, how long written bytes may stay unflushed.
const MEMORY_INTERVAL: Duration = Duration::from_millis(500);

/// The flusher's mailbox.
#[derive(Debug, Default)]
pub struct FlushSignal {
    wanted: AtomicBool,
    /// Whether the thread shall end. Guards nothing else.
    stop: Mutex<bool>,
    bell: Condvar,
}

impl FlushSignal {
    /// Asks for a flush. Cheap when one was asked for already.
    pub fn request(&self) {
        if !self.wanted.swap(true, Ordering::SeqCst) {
            let _guard = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
            self.bell.notify_one();
        }
    }

    /// Ends the thread after what was asked for.
    pub fn stop(&self) {
        *self.stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.bell.notify_one();
    }

    /// Waits for a request; `false` when the thread shall end and nothing is asked for.
    fn next(&self) -> bool {
        let mut stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.wanted.swap(false, Ordering::SeqCst) {
                return true;
            }
            if *stop {
                return false;
            }
            stop = self.bell.wait(stop).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets requests gather for `interval`, or until the thread shall end.
    fn gather(&self, interval: Duration) {
        let stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        // A spurious wake-up only flushes a little early.
        drop(self.bell.wait_timeout_while(stop, interval, |stop| !*stop));
    }
}

/// Stops the log when it is dropped by a panic: otherwise whoever waits for what the thread did would wait
/// forever.
pub(super) struct StopOnPanic<'a>(pub &'a Log);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0
                .marks()
                .poison(std::io::Error::other("a part of the broker panicked: report what its log says"));
        }
    }
}

/// Writes and flushes everything staged, and dispatches it. A failure stops the log.
pub(super) fn flush_all(log: &Log, dispatcher: &Dispatcher) -> Result<(), Poisoned> {
    log.write_staged()?;
    let flushed = log.flush()?;
    log.marks().visible.advance(flushed);
    dispatcher.run(log);
    Ok(())
}

/// The flusher thread's loop.
pub(super) fn run(policy: FlushPolicy, log: &Arc<Log>, dispatcher: &Arc<Dispatcher>, signal: &FlushSignal) {
    let _stop = StopOnPanic(log);
    while signal.next() {
        let done = match policy {
            FlushPolicy::Disk => flush_all(log, dispatcher),
            FlushPolicy::Memory => {
                signal.gather(MEMORY_INTERVAL);
                log.flush().map(|_| ())
            }
        };
        if done.is_err() {
            // The log is stopped and has told every waiter; the failure was logged where it happened.
            return;
        }
    }
}
