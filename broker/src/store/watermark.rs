//! How far the log has got, as positions that only grow and that tasks can wait for.
//!
//! `written` ≥ `flushed`: bytes in the page cache, bytes on the disk. `visible` follows `written` under
//! the policy `memory` and `flushed` under `disk`; `dispatched` ≤ `visible`. [`Marks`] holds all four.

use std::future::poll_fn;
use std::sync::{Arc, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use gantry_proto::ids::PhyOffset;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The log stopped: a write or flush failed earlier. What was not acknowledged by then never will be.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the commit log stopped after a failed write or flush ({0}): check the disk and restart the broker")]
pub struct Poisoned(pub Arc<std::io::Error>);

/// One position that only grows.
#[derive(Debug, Default)]
pub struct Watermark {
    value: AtomicU64,
    has_waiters: AtomicBool,
    /// Who waits, and for what. Guards nothing else.
    waiters: Mutex<Vec<(u64, Waker)>>,
}

impl Watermark {
    /// The position now.
    pub fn get(&self) -> PhyOffset {
        PhyOffset::new(self.value.load(Ordering::Acquire))
    }

    /// Moves the mark up to `to` and wakes whoever waited for it; a lower `to` changes nothing.
    pub fn advance(&self, to: PhyOffset) {
        let before = self.value.fetch_max(to.get(), Ordering::SeqCst);
        if before < to.get() && self.has_waiters.load(Ordering::SeqCst) {
            self.wake(to.get());
        }
    }

    fn wake(&self, reached: u64) {
        let mut ready = Vec::new();
        {
            let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
            let mut at = 0;
            while at < waiters.len() {
                if waiters[at].0 <= reached {
                    ready.push(waiters.swap_remove(at).1);
                } else {
                    at += 1;
                }
            }
            self.has_waiters.store(!waiters.is_empty(), Ordering::SeqCst);
        }
        for waker in ready {
            waker.wake();
        }
    }

    /// Arranges for `waker` to be woken once the mark reaches `target`; `true` when it already has.
    pub fn reached_or_wake(&self, target: PhyOffset, waker: &Waker) -> bool {
        if self.get() >= target {
            return true;
        }
        let mut waiters = self.waiters.lock().unwrap_or_else(PoisonError::into_inner);
        match waiters.iter_mut().find(|(_, known)| known.will_wake(waker)) {
            Some(entry) => entry.0 = entry.0.min(target.get()),
            None => waiters.push((target.get(), waker.clone())),
        }
        self.has_waiters.store(true, Ordering::SeqCst);
        // Looked at again after registering: an advance in between saw no waiter.
        self.value.load(Ordering::SeqCst) >= target.get()
    }

    fn wake_all(&self) {
        self.wake(u64::MAX);
    }
}

/// The marks of one log.
#[derive(Debug, Default)]
pub struct Marks {
    /// Bytes below are in the page cache: they survive the process.
    pub written: Watermark,
    /// Bytes below are on the disk: they survive the machine. `flushed ≤ written`.
    pub flushed: Watermark,
    /// Bytes below may be shown to consumers: the policy's promise holds for them.
    pub visible: Watermark,
    /// Every projection has applied the bytes below. `dispatched ≤ visible`.
    pub dispatched: Watermark,
    failure: OnceLock<Poisoned>,
}

impl Marks {
    /// Stops the log for good. The first failure is the one that is told.
    pub fn poison(&self, error: std::io::Error) {
        if self.failure.set(Poisoned(Arc::new(error))).is_ok() {
            for mark in [&self.written, &self.flushed, &self.visible, &self.dispatched] {
                mark.wake_all();
            }
        }
    }

    /// The failure that stopped the log, if one did.
    pub fn failure(&self) -> Option<&Poisoned> {
        self.failure.get()
    }

    /// Waits until `mark` has reached `target`, or the log has stopped below it.
    pub async fn wait(&self, mark: &Watermark, target: PhyOffset) -> Result<(), Poisoned> {
        poll_fn(|context| {
            if mark.reached_or_wake(target, context.waker()) {
                return Poll::Ready(Ok(()));
            }
            match self.failure() {
                Some(failure) => Poll::Ready(Err(failure.clone())),
                None => Poll::Pending,
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiting_ends_when_the_mark_arrives() {
        let marks = Arc::new(Marks::default());
        let waiter = tokio::spawn({
            let marks = Arc::clone(&marks);
            async move { marks.wait(&marks.flushed, PhyOffset::new(10)).await }
        });
        tokio::task::yield_now().await;
        marks.flushed.advance(PhyOffset::new(9));
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        marks.flushed.advance(PhyOffset::new(12));
        assert!(waiter.await.expect("the waiter does not panic").is_ok());
        marks.flushed.advance(PhyOffset::new(3));
        assert_eq!(marks.flushed.get(), PhyOffset::new(12));
    }

    #[tokio::test]
    async fn a_stopped_log_ends_every_wait_with_its_first_failure() {
        let marks = Arc::new(Marks::default());
        let waiter = tokio::spawn({
            let marks = Arc::clone(&marks);
            async move { marks.wait(&marks.visible, PhyOffset::new(1)).await }
        });
        tokio::task::yield_now().await;
        marks.poison(std::io::Error::other("first"));
        marks.poison(std::io::Error::other("second"));
        let failure = waiter.await.expect("the waiter does not panic").unwrap_err();
        assert!(failure.to_string().contains("first"), "{failure}");
        assert!(marks.wait(&marks.visible, PhyOffset::ZERO).await.is_ok(), "reached marks stay reached");
    }
}
