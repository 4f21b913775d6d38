//! Pulls that wait for a message.
//!
//! A connection parks a pull here under its queue and goes on; dispatch wakes it when a record arrives
//! that its filter wants. Being woken means "look again", nothing more: the pull is run again by its
//! connection. There is no polling, and no timer here: each connection keeps the deadlines of its own.

use std::sync::{Arc, Mutex, PoisonError};

use dashmap::DashMap;
use gantry_proto::ids::{PhyOffset, QueueId};
use gantry_proto::names::TopicName;
use gantry_proto::record::RecordView;
use tokio::sync::Notify;

use super::filter::{Filter, Verdict};
use crate::store::{ApplyError, Dispatched, Projection, Queue, Save};
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Stands for all queues of a topic: whoever waits there is woken by a message of any of them.
pub const ANY_QUEUE: QueueId = QueueId::new(u32::MAX);

/// Where a connection is told which of its parked pulls to look at again.
#[derive(Debug, Default)]
pub struct Mailbox {
    /// Tokens of the pulls that were woken.
    ready: Mutex<Vec<u32>>,
    notify: Notify,
}

impl Mailbox {
    /// Tells the connection to look at a parked pull again.
    pub fn wake(&self, token: u32) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push(token);
        self.notify.notify_one();
    }

    /// Puts back tokens that were taken, to be looked at later.
    pub fn put_back(&self, tokens: &[u32]) {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(tokens);
        self.notify.notify_one();
    }

    /// Rings the bell without waking a pull.
    pub fn ring(&self) {
        self.notify.notify_one();
    }

    /// Waits until something was woken.
    pub async fn woken(&self) {
        self.notify.notified().await;
    }

    /// Tokens of the pulls that were woken since the last call.
    pub fn take(&self) -> Vec<u32> {
        std::mem::take(&mut *self.ready.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Steps that the filters of waiting pulls may take in one batch of records: terms times bytes of properties. After
/// that whoever would have to look is woken, and looks on the lane of its own connection.
const BATCH_STEPS_MAX: usize = 1 << 20;

#[derive(Debug)]
struct Waiter {
    mailbox: Arc<Mailbox>,
    token: u32,
    filter: Filter,
}

type Key = (TopicName, QueueId);

/// As many pulls wait as may.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{max} pulls wait already, which is the limit: pull again later, or raise limits.waiting-polls")]
pub struct PollsFull {
    /// The bound.
    pub max: usize,
}

/// All parked pulls.
#[derive(Debug)]
pub struct Polls {
    table: DashMap<Key, Vec<Waiter>>,
    waiting: AtomicUsize,
    /// Those of them whose filter looks at properties.
    choosy: AtomicUsize,
    max: usize,
}

/// A place among the waiting; leave it with [`Polls::leave`].
#[derive(Debug)]
pub struct Place {
    key: Key,
    token: u32,
}

impl Polls {
    /// Room for `max` waiting pulls.
    pub fn new(max: usize) -> Self {
        Self { table: DashMap::new(), waiting: AtomicUsize::new(0), choosy: AtomicUsize::new(0), max }
    }

    /// Pulls that wait.
    pub fn len(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether no pull waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Parks a pull. The caller must look at the queue once more afterwards: a message that came in
    /// between woke nobody.
    pub fn park(
        &self,
        queue: &Queue,
        filter: &Filter,
        mailbox: &Arc<Mailbox>,
        token: u32,
    ) -> Result<Place, PollsFull> {
        self.park_at((queue.topic().clone(), queue.id()), filter, mailbox, token)
    }

    /// The same at a queue that need not be there yet, or at [`ANY_QUEUE`].
    pub fn park_at(
        &self,
        key: (TopicName, QueueId),
        filter: &Filter,
        mailbox: &Arc<Mailbox>,
        token: u32,
    ) -> Result<Place, PollsFull> {
        if self.waiting.fetch_add(1, Ordering::SeqCst) >= self.max {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            return Err(PollsFull { max: self.max });
        }
        if filter.looks_at_properties() {
            self.choosy.fetch_add(1, Ordering::SeqCst);
        }
        let waiter = Waiter { mailbox: Arc::clone(mailbox), token, filter: filter.clone() };
        self.table.entry(key.clone()).or_default().push(waiter);
        Ok(Place { key, token })
    }

    /// Gives a place up; it may have been woken meanwhile.
    pub fn leave(&self, place: &Place, mailbox: &Arc<Mailbox>) {
        self.drop_waiters(&place.key, |waiter| {
            waiter.token == place.token && Arc::ptr_eq(&waiter.mailbox, mailbox)
        });
    }

    /// Wakes whoever waits at a queue for a message with this tags code, whatever its properties are.
    fn wake(&self, key: &Key, tags_code: i64) {
        let mut wake = |waiter: &Waiter| {
            let wanted = waiter.filter.by_entry(tags_code) == Verdict::Wanted;
            if wanted {
                waiter.mailbox.wake(waiter.token);
            }
            wanted
        };
        self.drop_waiters(key, &mut wake);
        self.drop_waiters(&(key.0.clone(), ANY_QUEUE), &mut wake);
    }

    /// Takes out whoever waits at a queue for a message with these properties, and puts down whom to wake. Without
    /// `steps` left everybody whose filter would have to look at them is woken.
    fn choose(
        &self,
        key: &Key,
        (tags_code, view): (i64, &RecordView<'_>),
        steps: &mut usize,
        woken: &mut Vec<(Arc<Mailbox>, u32)>,
    ) {
        let properties = view.properties();
        self.drop_waiters(key, |waiter| {
            if !waiter.filter.looks_at_properties() || waiter.filter.by_entry(tags_code) != Verdict::Open {
                return false;
            }
            let cost = waiter.filter.terms().saturating_mul(properties.raw().len() + 1);
            *steps = steps.saturating_sub(cost);
            let wanted = *steps == 0 || waiter.filter.by_properties(properties);
            if wanted {
                woken.push((Arc::clone(&waiter.mailbox), waiter.token));
            }
            wanted
        });
    }

    /// Wakes everybody who waits at a queue: something other than a message changed.
    pub fn wake_all(&self, queue: &(TopicName, QueueId)) {
        let mut wake = |waiter: &Waiter| {
            waiter.mailbox.wake(waiter.token);
            true
        };
        self.drop_waiters(queue, &mut wake);
        self.drop_waiters(&(queue.0.clone(), ANY_QUEUE), &mut wake);
    }

    /// Requests that wait at a queue, or at [`ANY_QUEUE`].
    pub fn waiting_at(&self, key: &(TopicName, QueueId)) -> usize {
        self.table.get(key).map_or(0, |waiters| waiters.len())
    }

    /// Wakes everybody who waits at one of the first queues of a topic.
    pub fn wake_topic(&self, topic: &TopicName, queues: u32) {
        if !self.is_empty() {
            (0..queues).for_each(|id| self.wake_all(&(topic.clone(), QueueId::new(id))));
        }
    }

    fn drop_waiters(&self, key: &Key, mut gone: impl FnMut(&Waiter) -> bool) {
        let Some(mut waiters) = self.table.get_mut(key) else { return };
        let before = waiters.len();
        let mut choosy = 0;
        waiters.retain(|waiter| {
            let gone = gone(waiter);
            choosy += usize::from(gone && waiter.filter.looks_at_properties());
            !gone
        });
        let left = waiters.len();
        drop(waiters);
        self.waiting.fetch_sub(before - left, Ordering::SeqCst);
        if choosy > 0 {
            self.choosy.fetch_sub(choosy, Ordering::SeqCst);
        }
        if left == 0 {
            self.table.remove_if(key, |_, waiters| waiters.is_empty());
        }
    }

    /// The projection that wakes them.
    pub fn projection(self: &Arc<Self>) -> Box<dyn Projection> {
        Box::new(PollsProjection {
            polls: Arc::clone(self),
            arrived: Vec::new(),
            chosen: Vec::new(),
            steps: BATCH_STEPS_MAX,
        })
    }
}

struct PollsProjection {
    polls: Arc<Polls>,
    /// Queue and tags code of what came since the last wake-up, without repetitions in a row.
    arrived: Vec<(Arc<Queue>, i64)>,
    /// Whom properties of what came since then wake.
    chosen: Vec<(Arc<Mailbox>, u32)>,
    /// Steps that filters may still take before the next wake-up.
    steps: usize,
}

impl Projection for PollsProjection {
    fn name(&self) -> &'static str {
        "polls"
    }

    fn position(&self) -> PhyOffset {
        PhyOffset::ZERO
    }

    fn apply(&mut self, record: &Dispatched<'_>) -> Result<(), ApplyError> {
        // Whoever parks after this load looks at the queue again and finds the entry: the two loads and the two
        // stores before them have one order.
        if self.polls.waiting.load(Ordering::SeqCst) == 0 {
            return Ok(());
        }
        let Some(queue) = record.queue else { return Ok(()) };
        let code = record.hot.tags_code();
        // Here, where the properties are at hand. The same order of loads and stores holds for these pulls.
        if self.polls.choosy.load(Ordering::SeqCst) > 0 {
            for id in [queue.id(), ANY_QUEUE] {
                let key = (queue.topic().clone(), id);
                self.polls.choose(&key, (code, &record.view), &mut self.steps, &mut self.chosen);
            }
        }
        let repeated =
            self.arrived.last().is_some_and(|(last, tags)| Arc::ptr_eq(last, queue) && *tags == code);
        if !repeated {
            self.arrived.push((Arc::clone(queue), code));
        }
        Ok(())
    }

    fn save(&mut self) -> Option<Save> {
        None
    }

    fn truncate(&mut self, _: PhyOffset) -> std::io::Result<()> {
        Ok(())
    }

    fn finish_batch(&mut self) {
        self.steps = BATCH_STEPS_MAX;
        for (mailbox, token) in self.chosen.drain(..) {
            mailbox.wake(token);
        }
        for (queue, tags_code) in self.arrived.drain(..) {
            self.polls.wake(&(queue.topic().clone(), queue.id()), tags_code);
        }
    }
}
