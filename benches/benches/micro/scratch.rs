//! A store in a temporary directory that starts anew before it grows large: what is measured is the step, not the
//! disk.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gantry_broker::clock::SystemClock;
use gantry_broker::store::disk::RealDisk;
use gantry_broker::store::index::IndexOptions;
use gantry_broker::store::retain::Retention;
use gantry_broker::store::{Batch, FlushPolicy, Queue, Store, StoreOptions};
use gantry_proto::ids::{Millis, PhyOffset, QueueId};
use gantry_proto::names::TopicName;
use gantry_proto::record::{RecordDraft, SysFlag};
use tempfile::TempDir;

/// The topic of all messages.
pub const TOPIC: &str = "bench";
/// Bytes of the log after which a store is given up.
const BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Messages after which it is: fewer than the key index keeps in memory.
const MESSAGES_MAX: u64 = 100_000;

/// Properties of a message, with an id that is never used twice.
#[derive(Debug)]
pub struct Messages {
    properties: Vec<u8>,
    next: u64,
}

impl Messages {
    /// The first message.
    pub fn new() -> Self {
        let properties =
            b"UNIQ_KEY\x017F0000010B7218B4AAC20000000000000000\x02KEYS\x01k1\x02TAGS\x01TagA\x02".to_vec();
        Self { properties, next: 0 }
    }

    /// How many there have been.
    pub fn count(&self) -> u64 {
        self.next
    }

    /// The id of the message before.
    pub fn id(&self) -> &str {
        std::str::from_utf8(&self.properties[9..45]).expect("the id is digits")
    }

    /// The next message.
    pub fn draft<'a>(&'a mut self, body: &'a [u8]) -> RecordDraft<'a> {
        self.next += 1;
        let mut rest = self.next;
        for digit in self.properties[29..45].iter_mut().rev() {
            *digit = b"0123456789ABCDEF"[usize::from((rest & 15) as u8)];
            rest >>= 4;
        }
        let host = SocketAddr::from(([127, 0, 0, 1], 10911));
        RecordDraft {
            topic: TOPIC,
            queue_id: QueueId::ZERO,
            flag: 0,
            sys_flag: SysFlag::NONE,
            born_at: Millis::new(1_700_000_000_000),
            born_host: host,
            store_host: host,
            reconsume_times: 0,
            prepared_offset: PhyOffset::ZERO,
            body,
            properties: &self.properties,
            append_crc: true,
        }
    }
}

/// The store.
#[derive(Debug)]
pub struct Scratch {
    /// Under the policy `memory`.
    pub store: Store,
    /// Queue 0 of [`TOPIC`].
    pub queue: Arc<Queue>,
    messages: Messages,
    batch: Batch,
    _dir: TempDir,
}

impl Scratch {
    /// An empty one.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = StoreOptions {
            policy: FlushPolicy::Memory,
            segment_bytes: 2 * BYTES_MAX,
            index: IndexOptions { slots: 100_000, entries: 400_000 },
            reserve_bytes: 0,
            // How full the disk is decides nothing here.
            retention: Retention { disk_high_ratio: 2.0, disk_refuse_ratio: 2.0, ..Retention::default() },
            ..StoreOptions::default()
        };
        let store = Store::open(dir.path(), &options, Arc::new(RealDisk), Arc::new(SystemClock), Vec::new())
            .expect("a new store opens");
        let topic = TopicName::parse(TOPIC).expect("a valid name");
        let queue = store.queue(&topic, QueueId::ZERO).expect("a queue");
        Self { store, queue, messages: Messages::new(), batch: Batch::new(), _dir: dir }
    }

    /// A new store when this one has grown large.
    pub fn renew(&mut self) {
        if self.store.max_offset().get() > BYTES_MAX || self.messages.count() > MESSAGES_MAX {
            *self = Self::new();
        }
    }

    /// Encodes messages and gives them their places; they wait to be written.
    pub fn stage(&mut self, count: usize, body: &[u8]) {
        self.batch.clear();
        for _ in 0..count {
            self.batch.push(&self.queue, &self.messages.draft(body)).expect("an encodable record");
        }
        self.store.append(&mut self.batch).expect("the store takes it");
    }

    /// What `step` costs; `before` is not measured.
    pub fn time(
        &mut self,
        iterations: u64,
        before: impl Fn(&mut Self),
        step: impl Fn(&mut Self),
    ) -> Duration {
        let mut spent = Duration::ZERO;
        for _ in 0..iterations {
            self.renew();
            before(self);
            let start = Instant::now();
            step(self);
            spent += start.elapsed();
        }
        spent
    }
}
