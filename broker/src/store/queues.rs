//! All consume queues: `consumequeue/TOPIC/QUEUE-ID/`.
//!
//! A queue is made when it is first asked for; its files are made when its first entry is written, and
//! opened when they are first read.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use gantry_proto::ids::{PhyOffset, QueueId};
use gantry_proto::names::TopicName;

use super::disk::{Disk, Volume};
use super::queue::{PushError, Queue, QueueEntry, SYNCS_MAX, Shared};

/// Queues of one topic, by number.
type TopicQueues = Vec<Option<Arc<Queue>>>;

/// Queue numbers a record may name; beyond it the record is taken for damaged.
pub const QUEUE_ID_MAX: u32 = 65_535;

/// Queue files that may stay open: half of what the process may have, for connections need theirs.
fn open_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit / 2).unwrap_or(usize::MAX))
}

/// Every queue of the store.
#[derive(Debug)]
pub struct Queues {
    dir: PathBuf,
    shared: Shared,
    topics: RwLock<HashMap<TopicName, TopicQueues>>,
    /// Queues with entries that are not on the disk yet, each once.
    dirty: Mutex<Vec<Arc<Queue>>>,
}

impl Queues {
    /// Opens all queues of the directory.
    pub(super) fn open(disk: Arc<dyn Disk>, store: &Path, file_bytes: u64) -> io::Result<Self> {
        let dir = store.join("consumequeue");
        let shared = Shared {
            volume: disk.volume(&dir)?,
            disk,
            file_bytes,
            open: Arc::default(),
            open_max: open_max(),
        };
        let queues = Self { dir, shared, topics: RwLock::new(HashMap::new()), dirty: Mutex::new(Vec::new()) };
        for name in queues.shared.disk.dirs(&queues.dir)? {
            let Ok(topic) = TopicName::storable(&name) else {
                tracing::warn!(name, "a directory of the consume queues is no topic name; it is left alone");
                continue;
            };
            for id in queues.shared.disk.dirs(&queues.dir.join(&name))? {
                if let Some(id) = id.parse().ok().filter(|id| *id <= QUEUE_ID_MAX) {
                    queues.get_or_open(&topic, QueueId::new(id))?;
                }
            }
        }
        Ok(queues)
    }

    /// The queue, if it was ever asked for or has files.
    pub fn find(&self, topic: &str, id: QueueId) -> Option<Arc<Queue>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.get(topic)?.get(id.get() as usize)?.clone()
    }

    /// The queue, made when it is not there yet.
    pub fn get_or_open(&self, topic: &TopicName, id: QueueId) -> io::Result<Arc<Queue>> {
        if let Some(queue) = self.find(topic.as_ref(), id) {
            return Ok(queue);
        }
        if id.get() > QUEUE_ID_MAX {
            return Err(io::Error::other(format!("queue {id} of {topic}: numbers end at {QUEUE_ID_MAX}")));
        }
        let mut topics = self.topics.write().unwrap_or_else(PoisonError::into_inner);
        let queues = topics.entry(topic.clone()).or_default();
        let slot = id.get() as usize;
        if queues.len() <= slot {
            queues.resize(slot + 1, None);
        }
        let Some(place) = queues.get_mut(slot) else {
            return Err(io::Error::other("the list of queues was just made long enough"));
        };
        if let Some(queue) = place {
            return Ok(Arc::clone(queue));
        }
        let dir = self.dir.join(topic.as_ref() as &str).join(id.to_string());
        let queue = Arc::new(Queue::open(&self.shared, dir, topic.clone(), id)?);
        *place = Some(Arc::clone(&queue));
        Ok(queue)
    }

    /// All queues of a topic, by number.
    pub fn of_topic(&self, topic: &str) -> Vec<Arc<Queue>> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.get(topic).map(|queues| queues.iter().flatten().cloned().collect()).unwrap_or_default()
    }

    /// Topics that have queues, sorted.
    pub fn topics(&self) -> Vec<TopicName> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        let mut names: Vec<_> = topics.keys().cloned().collect();
        names.sort_by(|left, right| (left.as_ref() as &str).cmp(right.as_ref()));
        names
    }

    /// Forgets a topic and removes its files. Its messages stay in the log until that is cleaned.
    pub(super) fn remove_topic(&self, topic: &str) -> io::Result<()> {
        let removed = self.topics.write().unwrap_or_else(PoisonError::into_inner).remove(topic);
        for queue in removed.into_iter().flatten().flatten() {
            queue.remove()?;
        }
        Ok(())
    }

    /// Adds one entry, remembering its queue for the next flush.
    pub(super) fn push(&self, queue: &Arc<Queue>, entry: QueueEntry) -> Result<(), PushError> {
        let pushed = queue.push(entry);
        // Behind the push: a flush that forgets the queue in between would leave the entry out, and the
        // checkpoint after that would count it in.
        if queue.mark_dirty() {
            self.dirty.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(queue));
        }
        pushed
    }

    /// Writes and syncs every entry that is not on the disk yet.
    pub(super) fn flush(&self) -> io::Result<()> {
        let dirty = std::mem::take(&mut *self.dirty.lock().unwrap_or_else(PoisonError::into_inner));
        let many = dirty.len() > SYNCS_MAX || dirty.iter().any(|queue| queue.is_unnamed());
        match &self.shared.volume {
            Some(volume) if many => self.flush_volume(volume.as_ref(), dirty),
            _ => self.flush_each(dirty, Queue::flush).1,
        }
    }

    /// Flushes queues by `flush`; those that fail are dirty again. Returns the others.
    fn flush_each(
        &self,
        mut queues: Vec<Arc<Queue>>,
        flush: impl Fn(&Queue) -> io::Result<()>,
    ) -> (Vec<Arc<Queue>>, io::Result<()>) {
        let mut result = Ok(());
        queues.retain(|queue| {
            let Err(error) = flush(queue) else { return true };
            result = Err(error);
            if queue.mark_dirty() {
                self.dirty.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(queue));
            }
            false
        });
        (queues, result)
    }

    /// Writes all, then makes them durable together: with thousands of queues one sync each takes most of the time
    /// of a checkpoint.
    fn flush_volume(&self, volume: &dyn Volume, dirty: Vec<Arc<Queue>>) -> io::Result<()> {
        let (written, result) = self.flush_each(dirty, Queue::write);
        if let Err(error) = volume.sync() {
            for queue in written {
                queue.note_failed_sync();
                if queue.mark_dirty() {
                    self.dirty.lock().unwrap_or_else(PoisonError::into_inner).push(queue);
                }
            }
            return Err(error);
        }
        result
    }

    /// Applies `change` to every queue.
    pub(super) fn each(&self, mut change: impl FnMut(&Queue) -> io::Result<()>) -> io::Result<()> {
        let all: Vec<Arc<Queue>> = {
            let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
            topics.values().flatten().flatten().cloned().collect()
        };
        all.iter().try_for_each(|queue| change(queue))
    }

    /// How many entries all queues ever had.
    pub(super) fn entries_ever(&self) -> u64 {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.values().flatten().flatten().map(|queue| queue.max().get()).sum()
    }

    /// The end of the last record any queue points to: how far a cleanly stopped peer had dispatched.
    pub(super) fn max_phy(&self) -> PhyOffset {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics
            .values()
            .flatten()
            .flatten()
            .filter_map(|queue| queue.entry(queue.max().back(1)))
            .map(|entry| entry.phy + u64::from(entry.size))
            .max()
            .unwrap_or_default()
    }
}
