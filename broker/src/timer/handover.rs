//! Timers in the form in which Apache's broker finds them: so that it goes on where a broker that was stopped has ended, and
//! delivers each once.
//!
//! ```text
//! config/timercheck                 what was read and delivered: see TimerCheckpoint
//! timerlog/00000000000000000000     one entry for each timer that waits, and a last one that waits for nothing
//! timerwheel                        for each second of a week, twice: first and last entry of it
//!
//! entry:  size i32 = 52 | previous of its second i64 | magic i32 | written i64 | delay i32 | phy i64 | size i32 |
//!         hash of the topic i32 | 0 i64
//! slot:   second i64 | first i64 | last i64 | count i32 | 0 i32; a second is slot `second % 1_209_600`
//! ```
//!
//! Gantry never reads them. They are written when the store is closed; until that is done, and after a crash, `timercheck`
//! names a place in the timers' queue that is early enough: then Apache delivers again what was delivered since, and loses
//! nothing. It does so as well where more timers wait than one file of its log holds.
//!
//! Apache finds the end of the queue by the last entry of its log, so that is one for the queue's last record, in a second
//! that is over. What is due later than two days from now it stores anew when these are over, as it does with its own.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::topics;
use gantry_proto::record::RecordView;
use gantry_proto::remoting::body::Body as _;
use gantry_proto::remoting::body::timer::{TimerCheckpoint, TimerMetric, TimerMetrics};
use gantry_proto::remoting::body::topic::DataVersion;

use super::fire::Wheel;
use super::index::Place;
use crate::store::disk::{Disk, DiskFile, RealDisk, offset_path};
use crate::store::{Queue, QueueEntry, ReadError};

/// Bytes of an entry.
const ENTRY_BYTES: u64 = 52;
/// Bytes at the end of a file of the log that no entry takes.
const BLANK_BYTES: u64 = 16;
/// Bytes of a file of Apache's timer log, unless one is there that says otherwise.
const LOG_BYTES: u64 = 100 * 1024 * 1024;
/// Slots of the wheel, and bytes of one.
const SLOTS: i64 = 2 * 7 * 24 * 3600;
const SLOT_BYTES: u64 = 32;
/// Bytes of the file `timercheck`.
const CHECK_BYTES: usize = 4096;
/// Marks an entry, and one that is to be stored anew.
const MAGIC: i32 = 1;
const MAGIC_ROLL: i32 = 3;
/// What is due later is stored anew in the second day of these, in seconds.
const DAY_SECS: i64 = 24 * 3600;
/// Entries are written so many at once.
const WRITE_BYTES: usize = 52 * 4096;
/// Timers whose topics are counted at the most.
const COUNTED_MAX: u64 = 4_000_000;

/// Too many timers wait for them to be counted.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "{pending} timer messages wait, up to {COUNTED_MAX} are counted by topic: see the broker's runtime info for all"
)]
pub struct TooManyTimers {
    /// How many wait.
    pending: u64,
}

impl Wheel {
    /// Leaves the timers for Apache's broker. The store is closed; its log is only read. Does nothing where there never was
    /// a timer.
    pub fn hand_over(&self) -> io::Result<()> {
        let Some(queue) = self.store.find_queue(topics::TIMER, QueueId::ZERO) else { return Ok(()) };
        if queue.max() == QueueOffset::new(0) {
            return Ok(());
        }
        let peer = Peer::of(self.store.dir())?;
        let second = self.store.clock().now().get().div_euclid(1000);
        // Until the rest is there.
        peer.save_check(self, second, 0, self.first_needed(&queue))?;
        peer.remove()?;
        let pending = self.pending();
        let last = queue.entry(QueueOffset::new(queue.max().get().saturating_sub(1)));
        let fits = (pending + 2) * ENTRY_BYTES + BLANK_BYTES <= peer.log_bytes;
        let flushed = match last {
            _ if pending == 0 => 0,
            Some(last) if fits => peer.write(self, &last, second)?,
            _ => return Ok(()),
        };
        peer.save_check(self, second, flushed, queue.max())?;
        RealDisk.replace(&peer.metrics, &self.count_by_topic().map_err(io::Error::other)?.to_json())
    }

    /// How Apache's broker would stand here: everything is in the wheel.
    pub fn checkpoint(&self) -> TimerCheckpoint {
        let queue = self.store.find_queue(topics::TIMER, QueueId::ZERO);
        let queue_offset = queue.map_or(0, |queue| i64::try_from(queue.max().get()).unwrap_or(i64::MAX));
        let now = self.store.clock().now();
        let overdue = self.first_due().filter(|due| *due < now).unwrap_or(now);
        TimerCheckpoint {
            read_time: Millis::new(overdue.get().div_euclid(1000) * 1000),
            flushed: 0,
            queue_offset,
            master_queue_offset: queue_offset,
            version: [0, now.get(), i64::try_from(self.shared.position().get()).unwrap_or(i64::MAX)],
        }
    }

    /// How many timers of each topic wait. Reads all of them.
    pub fn count_by_topic(&self) -> Result<TimerMetrics, TooManyTimers> {
        let pending = self.pending();
        if pending > COUNTED_MAX {
            return Err(TooManyTimers { pending });
        }
        let now = self.store.clock().now().get();
        let mut counts = BTreeMap::<String, TimerMetric>::new();
        let read = self.each_waiting(|_, view| {
            let topic = view.properties().real_topic().unwrap_or_default();
            match counts.get_mut(topic) {
                Some(metric) => metric.count += 1,
                None => {
                    counts.insert(topic.to_owned(), TimerMetric { count: 1, time_stamp: now });
                }
            }
            Ok(())
        });
        if let Err(error) = read {
            tracing::warn!(%error, "not all timers could be counted");
        }
        let counter = i64::try_from(self.shared.position().get()).unwrap_or(i64::MAX);
        let data_version = DataVersion { counter, state_version: 0, timestamp: now };
        Ok(TimerMetrics { data_version, timing_count: counts })
    }

    /// Hands every timer that waits to `visit`, with its record. One whose record is gone or damaged is left out.
    fn each_waiting(
        &self,
        mut visit: impl FnMut(Place, &RecordView<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = Ok(());
        self.shared.index.each(|place| {
            if done.is_err() {
                return;
            }
            match self.store.record_at(place.phy) {
                Ok(record) => {
                    if let Ok(view) = RecordView::parse(&record) {
                        done = visit(place, &view);
                    }
                }
                Err(ReadError::Io { source, .. }) => done = Err(source),
                Err(ReadError::Gone { .. } | ReadError::Nothing { .. } | ReadError::Damaged { .. }) => {}
            }
        })?;
        done
    }

    /// No timer before this offset of the queue waits.
    fn first_needed(&self, queue: &Queue) -> QueueOffset {
        let Some(oldest) = self.shared.index.oldest() else { return queue.max() };
        let record = self.store.record_at(oldest).ok();
        let view = record.as_deref().and_then(|record| RecordView::parse(record).ok());
        view.filter(|view| view.topic() == topics::TIMER).map_or(queue.min(), |view| view.queue_offset())
    }
}

/// Apache's files of a store.
#[derive(Debug)]
struct Peer {
    root: PathBuf,
    check: PathBuf,
    metrics: PathBuf,
    wheel: PathBuf,
    log_dir: PathBuf,
    /// Bytes of a file of the log.
    log_bytes: u64,
}

impl Peer {
    fn of(store: &Path) -> io::Result<Self> {
        let log_dir = store.join("timerlog");
        let known = RealDisk.list(&log_dir)?.into_iter().map(|(_, len)| len).find(|len| *len > 0);
        Ok(Self {
            root: store.to_path_buf(),
            check: store.join("config/timercheck"),
            metrics: store.join("config/timermetrics"),
            wheel: store.join("timerwheel"),
            log_dir,
            log_bytes: known.unwrap_or(LOG_BYTES),
        })
    }

    /// Says that everything that was due before `second` was delivered, and that what waits before `queue` is in the wheel.
    fn save_check(&self, timers: &Wheel, second: i64, flushed: u64, queue: QueueOffset) -> io::Result<()> {
        let before = std::fs::read(&self.check).ok();
        let before = before.and_then(|bytes| TimerCheckpoint::decode(&bytes).ok()).unwrap_or_default();
        let queue_offset = i64::try_from(queue.get()).unwrap_or(i64::MAX);
        let check = TimerCheckpoint {
            read_time: Millis::new(second * 1000),
            flushed: i64::try_from(flushed).unwrap_or(i64::MAX),
            queue_offset,
            master_queue_offset: queue_offset,
            version: [
                before.version[0],
                timers.store.clock().now().get(),
                before.version[2].saturating_add(1),
            ],
        };
        let mut bytes = check.encode();
        bytes.resize(CHECK_BYTES, 0);
        RealDisk.replace(&self.check, &bytes)
    }

    /// Removes wheel and log, snapshots of the wheel among them.
    fn remove(&self) -> io::Result<()> {
        for (name, _) in RealDisk.list(&self.root)? {
            if name.starts_with("timerwheel") {
                RealDisk.remove(&self.root.join(name))?;
            }
        }
        for (name, _) in RealDisk.list(&self.log_dir)? {
            RealDisk.remove(&self.log_dir.join(name))?;
        }
        RealDisk.sync_names(&self.root)?;
        RealDisk.sync_names(&self.log_dir)
    }

    /// Writes wheel and log; where the log ends.
    fn write(&self, timers: &Wheel, last: &QueueEntry, second: i64) -> io::Result<u64> {
        let mut log = TimerLog {
            file: RealDisk.open(&offset_path(&self.log_dir, 0), self.log_bytes)?,
            written: 0,
            buffer: Vec::with_capacity(WRITE_BYTES),
            second,
            slots: BTreeMap::new(),
            rolled: 0,
        };
        timers
            .each_waiting(|place, view| log.add(place, view.total_size(), view.properties().real_topic()))?;
        let end = log.finish(last.phy, last.size)?;
        let wheel = RealDisk.open(&self.wheel, SLOTS.unsigned_abs() * SLOT_BYTES)?;
        log.write_wheel(wheel.as_ref())?;
        Ok(end)
    }
}

/// One second of the wheel.
#[derive(Clone, Copy, Debug)]
struct Slot {
    first: u64,
    last: u64,
    count: u32,
}

/// The log while it is written.
#[derive(Debug)]
struct TimerLog {
    file: Arc<dyn DiskFile>,
    /// Bytes in the file.
    written: u64,
    /// Entries that follow them.
    buffer: Vec<u8>,
    /// Now.
    second: i64,
    slots: BTreeMap<i64, Slot>,
    /// How many are to be stored anew.
    rolled: u32,
}

impl TimerLog {
    fn add(&mut self, place: Place, size: u32, topic: Option<&str>) -> io::Result<()> {
        // What is overdue is due now: Apache looks no further back.
        let mut due = place.due.get().div_euclid(1000).max(self.second);
        let mut magic = MAGIC;
        if due - self.second > 2 * DAY_SECS {
            // Spread over a day.
            due = self.second + DAY_SECS + i64::from(self.rolled.wrapping_mul(0x9E37_79B9)) % DAY_SECS;
            self.rolled = self.rolled.wrapping_add(1);
            magic = MAGIC_ROLL;
        }
        let at = self.end();
        let slot = self.slots.entry(due).or_insert(Slot { first: at, last: u64::MAX, count: 0 });
        let previous = std::mem::replace(&mut slot.last, at);
        slot.count += 1;
        let delay_ms = i32::try_from((due - self.second) * 1000).unwrap_or(i32::MAX);
        self.push(previous, magic, delay_ms, place.phy, size, topic.map_or(0, java_hash))
    }

    /// The last entry: where the queue ends. Where the log ends.
    fn finish(&mut self, phy: PhyOffset, size: u32) -> io::Result<u64> {
        self.push(u64::MAX, MAGIC, -60_000, phy, size, 0)?;
        self.write()?;
        self.file.sync()?;
        Ok(self.written)
    }

    /// `previous` is `u64::MAX` for none, which is -1 there.
    fn push(
        &mut self,
        previous: u64,
        magic: i32,
        delay_ms: i32,
        phy: PhyOffset,
        size: u32,
        topic: i32,
    ) -> io::Result<()> {
        let Self { buffer, second, .. } = self;
        buffer.extend_from_slice(&52_i32.to_be_bytes());
        buffer.extend_from_slice(&previous.to_be_bytes());
        buffer.extend_from_slice(&magic.to_be_bytes());
        buffer.extend_from_slice(&(*second * 1000).to_be_bytes());
        buffer.extend_from_slice(&delay_ms.to_be_bytes());
        buffer.extend_from_slice(&phy.get().to_be_bytes());
        buffer.extend_from_slice(&size.to_be_bytes());
        buffer.extend_from_slice(&topic.to_be_bytes());
        buffer.extend_from_slice(&[0; 8]);
        if self.buffer.len() >= WRITE_BYTES { self.write() } else { Ok(()) }
    }

    fn end(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_at(self.written, &self.buffer)?;
        self.written = self.end();
        self.buffer.clear();
        Ok(())
    }

    fn write_wheel(&self, file: &dyn DiskFile) -> io::Result<()> {
        // Neighbours go in one write.
        let mut run: (u64, Vec<u8>) = (0, Vec::new());
        for (second, slot) in &self.slots {
            let at = second.rem_euclid(SLOTS).unsigned_abs() * SLOT_BYTES;
            if run.0 + run.1.len() as u64 != at {
                file.write_at(run.0, &run.1)?;
                run = (at, Vec::new());
            }
            run.1.extend_from_slice(&second.to_be_bytes());
            run.1.extend_from_slice(&slot.first.to_be_bytes());
            run.1.extend_from_slice(&slot.last.to_be_bytes());
            run.1.extend_from_slice(&slot.count.to_be_bytes());
            run.1.extend_from_slice(&[0; 4]);
        }
        file.write_at(run.0, &run.1)?;
        file.sync()
    }
}

/// Java's hash of a text.
fn java_hash(text: &str) -> i32 {
    text.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_hash_as_in_java() {
        assert_eq!(java_hash("hello"), 99_162_322);
        assert_eq!((java_hash(""), java_hash("a")), (0, 97));
    }
}
