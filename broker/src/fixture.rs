//! What several modules' tests need: a small store on real files, and messages in it.

use std::collections::HashMap;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::ids::{Millis, PhyOffset, QueueId};
use gantry_proto::names::TopicName;
use gantry_proto::record::{RecordDraft, SysFlag};
use proptest::test_runner::{Config as ProptestConfig, RngSeed};
use serde::Deserialize;
use tempfile::TempDir;

use crate::clock::ManualClock;
use crate::config::GroupsConfig;
use crate::deliver::polls::Polls;
use crate::deliver::pop::{self, Pops};
use crate::deliver::scaling::{self, Scaling};
use crate::groups::Groups;
use crate::groups::locks::Locks;
use crate::groups::members::Members;
use crate::groups::offsets::{OffsetTable, Offsets};
use crate::metrics::Metrics;
use crate::remoting::context::{Handled, Reply};
use crate::store::disk::RealDisk;
use crate::store::index::IndexOptions;
use crate::store::retain::Retention;
use crate::store::{Batch, FlushPolicy, Projection, Store, StoreOptions};
use crate::topics::{TopicDefaults, Topics};

/// When the tests' clocks start.
pub const NOW: Millis = Millis::new(1_700_000_000_000);

/// A clock that stands at [`NOW`].
pub fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(NOW))
}

/// A store with small files under the policy `memory`.
pub fn store(dir: &Path, clock: Arc<ManualClock>, projections: Vec<Box<dyn Projection>>) -> Arc<Store> {
    delaying_store(dir, clock, Arc::from([]), projections)
}

/// The same with delay levels, in milliseconds.
pub fn delaying_store(
    dir: &Path,
    clock: Arc<ManualClock>,
    delay_levels: Arc<[u64]>,
    projections: Vec<Box<dyn Projection>>,
) -> Arc<Store> {
    let options = StoreOptions { delay_levels, ..options(FlushPolicy::Memory) };
    Arc::new(Store::open(dir, &options, Arc::new(RealDisk), clock, projections).expect("the store opens"))
}

/// The same that keeps messages as `retention` says; how full the machine's disk is decides no test.
pub fn keeping_store(
    dir: &Path,
    clock: Arc<ManualClock>,
    retention: Retention,
    projections: Vec<Box<dyn Projection>>,
) -> Arc<Store> {
    let retention = Retention { disk_high_ratio: 2.0, disk_refuse_ratio: 2.0, ..retention };
    let options = StoreOptions { retention, ..options(FlushPolicy::Memory) };
    Arc::new(Store::open(dir, &options, Arc::new(RealDisk), clock, projections).expect("the store opens"))
}

/// Small files under this policy.
pub fn options(policy: FlushPolicy) -> StoreOptions {
    StoreOptions {
        policy,
        segment_bytes: 1 << 20,
        queue_file_bytes: 2000,
        index: IndexOptions { slots: 100, entries: 400 },
        reserve_bytes: 0,
        // How full the machine's disk is decides no test.
        retention: Retention { disk_high_ratio: 2.0, disk_refuse_ratio: 2.0, ..Retention::default() },
        ..StoreOptions::default()
    }
}

#[derive(Deserialize)]
struct Files {
    files: HashMap<String, File>,
}

#[derive(Deserialize)]
struct File {
    length: u64,
    segments: Vec<(u64, String)>,
}

/// Lays out the store that Apache's broker wrote.
pub fn apache_store(dir: &Path) {
    let vectors = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/store/files.json"));
    let files: Files =
        serde_json::from_slice(&std::fs::read(vectors).expect("the sample store")).expect("its form");
    for (name, file) in files.files {
        if !name.starts_with("commitlog/") && !name.starts_with("consumequeue/") && name != "checkpoint" {
            continue;
        }
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().expect("inside the store")).expect("created");
        let mut out = std::fs::File::create(path).expect("created");
        out.set_len(file.length).expect("sparse");
        for (at, hex) in file.segments {
            let bytes: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
                .collect();
            out.seek(SeekFrom::Start(at)).expect("inside the file");
            out.write_all(&bytes).expect("written");
        }
    }
}

/// Property tests over the same `default` cases in every run. `PROPTEST_CASES` asks for more, and then
/// `PROPTEST_RNG_SEED` for others.
pub fn cases(default: u32) -> ProptestConfig {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { config.cases } else { default };
    let rng_seed = match config.rng_seed {
        RngSeed::Random => RngSeed::Fixed(0),
        fixed @ RngSeed::Fixed(_) => fixed,
    };
    ProptestConfig { cases, rng_seed, ..config }
}

/// Stores `count` messages in one queue.
pub async fn send(store: &Store, topic: &str, queue: u32, count: usize) {
    send_with(store, topic, queue, (b"KEYS\x01k\x02", b"body"), count).await;
}

/// Stores `count` messages with these properties and this body in one queue.
pub async fn send_with(
    store: &Store,
    topic: &str,
    queue: u32,
    (properties, body): (&[u8], &[u8]),
    count: usize,
) {
    let queue = store.queue(&TopicName::internal(topic), QueueId::new(queue)).expect("a queue");
    let host = SocketAddr::from(([127, 0, 0, 1], 10911));
    let mut batch = Batch::new();
    for _ in 0..count {
        let draft = RecordDraft {
            topic,
            queue_id: queue.id(),
            flag: 0,
            sys_flag: SysFlag::NONE,
            born_at: store.clock().now(),
            born_host: host,
            store_host: host,
            reconsume_times: 0,
            prepared_offset: PhyOffset::ZERO,
            body,
            properties,
            append_crc: true,
        };
        batch.push(&queue, &draft).expect("an encodable record");
    }
    let appended = store.append_settled(&mut batch).await.expect("appended");
    store.dispatched(appended.end).await.expect("dispatched");
}

/// Topics as by default, for a broker named `broker-a`.
pub fn topic_defaults() -> TopicDefaults {
    TopicDefaults {
        broker: "broker-a".to_owned(),
        cluster: "DefaultCluster".to_owned(),
        auto_create: true,
        queues: 4,
        template_queues: 8,
        delay_levels: 18,
        dedup: true,
        max: 1000,
    }
}

/// Changes of the number of queues, with a grace of a minute.
pub fn scaling(
    (store, topics): (&Arc<Store>, &Arc<Topics>),
    offsets: &Arc<Offsets>,
    polls: &Arc<Polls>,
    members: &Arc<Members>,
) -> Arc<Scaling> {
    Arc::new(Scaling::new(scaling::Neighbours {
        store: Arc::clone(store),
        topics: Arc::clone(topics),
        offsets: Arc::clone(offsets),
        members: Arc::clone(members),
        polls: Arc::clone(polls),
        grace: Duration::from_secs(60),
    }))
}

/// The services over one store, for tests of what calls them.
#[derive(Debug)]
pub struct World {
    /// The tests' time.
    pub clock: Arc<ManualClock>,
    /// The store.
    pub store: Arc<Store>,
    /// Topics.
    pub topics: Arc<Topics>,
    /// Groups.
    pub groups: Arc<Groups>,
    /// Members.
    pub members: Arc<Members>,
    /// Offsets.
    pub offsets: Arc<Offsets>,
    /// Locks.
    pub locks: Arc<Locks>,
    /// Popped messages.
    pub pops: Arc<Pops>,
    /// Changes of the number of queues.
    pub scaling: Arc<Scaling>,
    /// Waiting pulls.
    pub polls: Arc<Polls>,
    _dir: TempDir,
}

impl World {
    /// Everything as on a new broker.
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let config_dir = dir.path().join("config");
        let clock = clock();
        let metrics = Arc::new(Metrics::default());
        let table = OffsetTable::open(&config_dir, clock.clone()).expect("no offsets");
        let polls = Arc::new(Polls::new(100));
        let (popped, pops) =
            pop::load(&config_dir, Arc::clone(&polls), Arc::clone(&metrics)).expect("nothing popped");
        let store = store(dir.path(), clock.clone(), vec![table.projection(), Box::new(popped)]);
        let topics = Topics::open(&config_dir, topic_defaults(), clock.clone()).expect("no topics");
        let topics = Arc::new(topics);
        let config = GroupsConfig::default();
        let groups = Arc::new(Groups::open(&config_dir, config, clock.clone()).expect("no groups"));
        let members =
            Members::new(clock.clone(), Arc::clone(&metrics), config.member_expiry, config.max_members);
        let offsets = Offsets::new(&table, Arc::clone(&store), Arc::clone(&metrics), config.max_offsets);
        let offsets = Arc::new(offsets);
        let members = Arc::new(members);
        store.set_targets(Arc::clone(&topics) as _);
        let scaling = scaling((&store, &topics), &offsets, &polls, &members);
        let pops = pops.start(pop::Neighbours {
            store: Arc::clone(&store),
            topics: Arc::clone(&topics),
            groups: Arc::clone(&groups),
            offsets: Arc::clone(&offsets),
            scaling: Arc::clone(&scaling),
            polls: Arc::clone(&polls),
            metrics,
            in_flight_max: 1000,
            queues_max: 1000,
        });
        Self {
            locks: Arc::new(Locks::new(clock.clone(), config.lock_lease)),
            clock,
            store,
            topics,
            groups,
            members,
            offsets,
            pops,
            scaling,
            polls,
            _dir: dir,
        }
    }

    /// Declares a topic.
    pub fn topic(&self, name: &str, queues: u32) {
        self.topics.ensure_internal(&TopicName::internal(name), queues, 6).expect("a topic");
    }

    /// Stores messages in one queue.
    pub async fn send(&self, topic: &str, queue: u32, count: usize) {
        send(&self.store, topic, queue, count).await;
    }

    /// The reply of a handler.
    pub async fn settle(handled: Handled) -> Reply {
        match handled {
            Handled::Now(reply) => reply,
            Handled::Later(work) => work.await,
        }
    }
}
