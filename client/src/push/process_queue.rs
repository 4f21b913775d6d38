//! One queue of a push consumer: what was pulled and is not finished, and so how far it may be committed.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gantry_proto::ids::QueueOffset;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::message::{MessageQueue, Received};

/// A queue, while it is ours.
#[derive(Debug)]
pub(crate) struct ProcessQueue {
    pub queue: MessageQueue,
    /// Cancelled when the queue is no longer ours.
    pub gone: CancellationToken,
    limits: Limits,
    /// Guards what is pending; held for a look or a change.
    state: Mutex<State>,
    room: Notify,
}

/// How much may wait to be processed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub messages: usize,
    pub bytes: usize,
}

/// Which life of a queue a message belongs to: a reset starts a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch(u32);

#[derive(Debug)]
struct State {
    epoch: Epoch,
    /// Bytes of each message that was handed out and is not finished, by offset.
    pending: BTreeMap<u64, usize>,
    bytes: usize,
    /// Where to pull next.
    next: QueueOffset,
    /// What the broker was last told without an answer.
    told: Option<QueueOffset>,
    /// What the broker is known to have.
    confirmed: Option<QueueOffset>,
    locked_at: Option<Instant>,
}

impl ProcessQueue {
    /// A queue that starts at `next`. `confirmed` is what the broker has.
    pub(crate) fn new(
        queue: MessageQueue,
        next: QueueOffset,
        confirmed: Option<QueueOffset>,
        limits: Limits,
        gone: CancellationToken,
    ) -> Self {
        let state = State {
            epoch: Epoch(0),
            pending: BTreeMap::new(),
            bytes: 0,
            next,
            told: confirmed,
            confirmed,
            locked_at: None,
        };
        Self { queue, gone, limits, state: Mutex::new(state), room: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to pull next.
    pub(crate) fn next(&self) -> QueueOffset {
        self.lock().next
    }

    /// Takes in pulled messages; the next pull starts at `next`.
    pub(crate) fn add(&self, messages: &[Received], next: QueueOffset) -> Epoch {
        let mut state = self.lock();
        for message in messages {
            let bytes = message.store_bytes() as usize;
            if state.pending.insert(message.queue_offset().get(), bytes).is_none() {
                state.bytes += bytes;
            }
        }
        state.next = state.next.max(next);
        state.epoch
    }

    /// Starts over at another offset: everything pending is forgotten.
    pub(crate) fn reset(&self, next: QueueOffset) {
        let mut state = self.lock();
        state.epoch = Epoch(state.epoch.0.wrapping_add(1));
        state.pending.clear();
        state.bytes = 0;
        state.next = next;
        drop(state);
        self.room.notify_one();
    }

    /// Whether a message of this epoch is still wanted.
    pub(crate) fn wants(&self, epoch: Epoch) -> bool {
        !self.gone.is_cancelled() && self.lock().epoch == epoch
    }

    /// A message is done with: processed, or safely handed back.
    pub(crate) fn finish(&self, epoch: Epoch, offset: QueueOffset) {
        let mut state = self.lock();
        if state.epoch != epoch {
            return;
        }
        let was_full = self.is_full(&state);
        if let Some(bytes) = state.pending.remove(&offset.get()) {
            state.bytes = state.bytes.saturating_sub(bytes);
        }
        let is_full = self.is_full(&state);
        drop(state);
        if was_full && !is_full {
            self.room.notify_one();
        }
    }

    fn is_full(&self, state: &State) -> bool {
        state.pending.len() >= self.limits.messages || state.bytes >= self.limits.bytes
    }

    /// Waits until more may be pulled.
    pub(crate) async fn has_room(&self) {
        loop {
            // A permit that is left over from an earlier wait only costs another look.
            let full = self.is_full(&self.lock());
            if !full {
                return;
            }
            self.room.notified().await;
        }
    }

    /// The next message that the group wants: the first unfinished one, never past it.
    pub(crate) fn commit_point(&self) -> QueueOffset {
        let state = self.lock();
        state.pending.keys().next().map_or(state.next, |first| QueueOffset::new(*first))
    }

    /// What the broker should be told, if it was not.
    pub(crate) fn untold(&self) -> Option<QueueOffset> {
        let point = self.commit_point();
        (self.lock().told != Some(point)).then_some(point)
    }

    /// What the broker should confirm, if it has not.
    pub(crate) fn unconfirmed(&self) -> Option<QueueOffset> {
        let point = self.commit_point();
        (self.lock().confirmed != Some(point)).then_some(point)
    }

    pub(crate) fn told(&self, offset: QueueOffset) {
        self.lock().told = Some(offset);
    }

    pub(crate) fn confirmed(&self, offset: QueueOffset) {
        let mut state = self.lock();
        state.told = Some(offset);
        state.confirmed = Some(offset);
    }

    /// The broker gave us the lock of the queue, or refused it.
    pub(crate) fn set_locked(&self, locked: bool) {
        self.lock().locked_at = locked.then(Instant::now);
    }

    /// Whether we hold the lock and may rely on it for a while.
    pub(crate) fn is_locked(&self, trust: Duration) -> bool {
        self.lock().locked_at.is_some_and(|at| at.elapsed() < trust)
    }

    /// Messages and bytes that wait, and the first and last waiting offset.
    pub(crate) fn backlog(&self) -> (usize, usize, Option<(u64, u64)>) {
        let state = self.lock();
        let ends = state.pending.keys().next().copied().zip(state.pending.keys().next_back().copied());
        (state.pending.len(), state.bytes, ends)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use gantry_proto::ids::{Millis, PhyOffset, QueueId};
    use gantry_proto::names::{BrokerName, TopicName};
    use gantry_proto::record::{RecordDraft, SysFlag, seal};

    use super::*;

    fn message(offset: u64) -> Received {
        let mut bytes = Vec::new();
        RecordDraft {
            topic: "T",
            queue_id: QueueId::ZERO,
            flag: 0,
            sys_flag: SysFlag::NONE,
            born_at: Millis::ZERO,
            born_host: "127.0.0.1:1".parse().unwrap(),
            store_host: "127.0.0.1:2".parse().unwrap(),
            reconsume_times: 0,
            prepared_offset: PhyOffset::ZERO,
            body: b"body",
            properties: b"",
            append_crc: false,
        }
        .encode_into(&mut bytes)
        .unwrap();
        seal(&mut bytes, QueueOffset::new(offset), PhyOffset::ZERO, Millis::ZERO);
        Received::take(&mut Bytes::from(bytes), &BrokerName::internal("b"), None).unwrap()
    }

    fn queue(messages: usize) -> ProcessQueue {
        let queue = MessageQueue {
            topic: TopicName::internal("T"),
            broker: BrokerName::internal("b"),
            id: QueueId::ZERO,
        };
        let limits = Limits { messages, bytes: 1 << 20 };
        ProcessQueue::new(queue, QueueOffset::new(5), None, limits, CancellationToken::new())
    }

    fn offset(raw: u64) -> QueueOffset {
        QueueOffset::new(raw)
    }

    #[test]
    fn nothing_is_committed_past_an_unfinished_message() {
        let queue = queue(10);
        assert_eq!(queue.commit_point(), offset(5));
        let epoch = queue.add(&[message(5), message(6), message(8)], offset(9));
        queue.finish(epoch, offset(6));
        queue.finish(epoch, offset(8));
        assert_eq!(queue.commit_point(), offset(5));
        queue.finish(epoch, offset(5));
        assert_eq!(queue.commit_point(), offset(9));
        assert_eq!(queue.unconfirmed(), Some(offset(9)));
        queue.told(offset(9));
        assert_eq!((queue.untold(), queue.unconfirmed()), (None, Some(offset(9))));
        queue.confirmed(offset(9));
        assert_eq!(queue.unconfirmed(), None);
    }

    #[test]
    fn a_reset_forgets_what_was_pending() {
        let queue = queue(10);
        let epoch = queue.add(&[message(5), message(6)], offset(7));
        queue.reset(offset(2));
        assert!(!queue.wants(epoch));
        let again = queue.add(&[message(2), message(5)], offset(6));
        queue.finish(epoch, offset(5));
        queue.finish(again, offset(2));
        assert_eq!(queue.commit_point(), offset(5));
        assert_eq!(queue.backlog().0, 1);
    }

    #[tokio::test]
    async fn a_full_queue_waits_for_a_message_to_be_finished() {
        let queue = queue(2);
        let epoch = queue.add(&[message(5), message(6)], offset(7));
        let mut room = std::pin::pin!(queue.has_room());
        assert!(futures_poll(room.as_mut()).await.is_pending());
        queue.finish(epoch, offset(6));
        room.await;
    }

    async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> std::task::Poll<F::Output> {
        std::future::poll_fn(|context| std::task::Poll::Ready(future.as_mut().poll(context))).await
    }
}
