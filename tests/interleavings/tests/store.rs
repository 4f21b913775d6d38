//! Threads that meet in the store, in many orders: senders, the flusher, housekeeping, dispatch, waiting pulls.
//!
//! Each check runs under two schedulers: any order at random, and few forced changes of the thread at random
//! places (which finds rarer orders). The orders are the same in every run; `GANTRY_INTERLEAVINGS` asks for more
//! of them. A failing order is printed for `shuttle::replay`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Waker;

use gantry_interleavings::clock::ManualClock;
use gantry_interleavings::deliver::filter::Filter;
use gantry_interleavings::deliver::polls::{Mailbox, Polls};
use gantry_interleavings::store::index::IndexOptions;
use gantry_interleavings::store::retain::Retention;
use gantry_interleavings::store::watermark::Marks;
use gantry_interleavings::store::{AppendError, Batch, FlushPolicy, Projection, Store, StoreOptions, disk};
use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::TopicName;
use gantry_proto::record::{RecordDraft, RecordView, SysFlag};
use gantry_proto::sql::Sql;
use shuttle::future::block_on;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, thread};

#[path = "../../../broker/src/store/fault_disk.rs"]
#[allow(dead_code, reason = "the broker's tests use more of it")]
mod fault_disk;
use fault_disk::{EIO, FaultDisk, Op};

const POLICIES: [FlushPolicy; 2] = [FlushPolicy::Disk, FlushPolicy::Memory];
/// Orders that are tried of each check, by each scheduler.
const ORDERS: usize = 150;
const SEED: u64 = 20_240_607;

/// Runs `check` in many orders; none may end in a panic or with everybody waiting.
fn explore(check: impl Fn() + Send + Sync + 'static) {
    let orders = std::env::var("GANTRY_INTERLEAVINGS").ok();
    let orders = orders.map_or(ORDERS, |text| text.parse().expect("GANTRY_INTERLEAVINGS is a number"));
    let check = Arc::new(check);
    let mut config = Config::new();
    config.stack_size = 1 << 20; // the store reads and writes files
    let random = Arc::clone(&check);
    Runner::new(RandomScheduler::new_from_seed(SEED, orders), config.clone()).run(move || random());
    Runner::new(PctScheduler::new_from_seed(SEED, 3, orders), config).run(move || check());
}

/// A store in a directory of its own, in memory where the machine has such a place.
struct World {
    store: Arc<Store>,
    disk: FaultDisk,
    _dir: tempfile::TempDir,
}

fn open(policy: FlushPolicy, projections: Vec<Box<dyn Projection>>) -> World {
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let dir = dir.expect("a temporary directory");
    let options = StoreOptions {
        policy,
        segment_bytes: 4096,
        queue_file_bytes: 320,
        index: IndexOptions { slots: 10, entries: 40 },
        reserve_bytes: 0,
        retention: Retention { disk_high_ratio: 2.0, disk_refuse_ratio: 2.0, ..Retention::default() },
        ..StoreOptions::default()
    };
    let disk = FaultDisk::default();
    let clock = Arc::new(ManualClock::new(Millis::new(1_700_000_000_000)));
    let store = Store::open(dir.path(), &options, Arc::new(disk.clone()), clock, projections);
    World { store: Arc::new(store.expect("the store opens")), disk, _dir: dir }
}

/// Appends a message and waits as a sender does; then it must be listed and readable.
fn send(store: &Store, topic: &str, body: &str) -> Result<QueueOffset, AppendError> {
    let host = SocketAddr::from(([127, 0, 0, 1], 10911));
    let queue = store.queue(&TopicName::internal(topic), QueueId::ZERO).expect("a queue");
    let draft = RecordDraft {
        topic,
        queue_id: queue.id(),
        flag: 0,
        sys_flag: SysFlag::NONE,
        born_at: Millis::new(1),
        born_host: host,
        store_host: host,
        reconsume_times: 0,
        prepared_offset: PhyOffset::ZERO,
        body: body.as_bytes(),
        properties: b"KEYS\x01k\x02",
        append_crc: true,
    };
    let mut batch = Batch::new();
    batch.push(&queue, &draft).expect("an encodable record");
    let appended = store.append(&mut batch)?;
    store.drive();
    block_on(store.settled(appended.end))?;
    // In this order: both move on meanwhile.
    let visible = store.visible_offset();
    assert!(visible >= appended.end && store.max_offset() >= visible);
    block_on(store.dispatched(appended.end))?;
    let at = batch.placed().first().expect("one record was appended").queue_offset;
    if let Some(entry) = queue.entry(at) {
        let slice = store.message(&queue, &entry).expect("readable").expect("there");
        assert_eq!(RecordView::parse(&slice).expect("a record").body(), body.as_bytes());
    } else {
        assert_eq!(topic, "Deleted", "a dispatched message is listed");
    }
    Ok(at)
}

fn bodies(store: &Store, topic: &str) -> Vec<String> {
    let queue = store.find_queue(topic, QueueId::ZERO).expect("the queue");
    let mut entries = Vec::new();
    store.entries(&queue, queue.min(), 100, &mut entries);
    let body = |entry| {
        let slice = store.message(&queue, entry).expect("readable").expect("there");
        String::from_utf8_lossy(RecordView::parse(&slice).expect("a record").body()).into_owned()
    };
    entries.iter().map(body).collect()
}

/// Nothing is lost between senders that come while others write, flush, dispatch or take a checkpoint.
#[test]
fn senders_the_flusher_and_checkpoints_meet() {
    for policy in POLICIES {
        explore(move || {
            let world = open(policy, Vec::new());
            let senders: Vec<_> = (0..2)
                .map(|sender| {
                    let store = Arc::clone(&world.store);
                    thread::spawn(move || {
                        (0..2)
                            .map(|n| send(&store, "T", &format!("{sender}.{n}")).expect("the disk is well"))
                            .collect()
                    })
                })
                .collect();
            let store = Arc::clone(&world.store);
            let keeper = thread::spawn(move || store.keep_house().expect("the disk is well"));
            let mut numbers: Vec<QueueOffset> = Vec::new();
            for sender in senders {
                let own: Vec<QueueOffset> = sender.join().expect("no panic");
                assert!(own.is_sorted());
                numbers.extend(own);
            }
            keeper.join().expect("no panic");
            numbers.sort_unstable();
            assert_eq!(numbers, (0..4).map(QueueOffset::new).collect::<Vec<_>>());
            let mut found = bodies(&world.store, "T");
            found.sort_unstable();
            assert_eq!(found, ["0.0", "0.1", "1.0", "1.1"]);
            world.store.close().expect("the disk is well");
        });
    }
}

/// When the disk fails, everybody hears of it, and what was acknowledged is there.
#[test]
fn a_failing_disk_is_told_to_everybody_who_waits() {
    for (policy, op) in [(FlushPolicy::Disk, Op::Sync), (FlushPolicy::Memory, Op::Write { after: 10 })] {
        explore(move || {
            let world = open(policy, Vec::new());
            let senders: Vec<_> = (0..2)
                .map(|sender| {
                    let store = Arc::clone(&world.store);
                    thread::spawn(move || {
                        let body = sender.to_string();
                        send(&store, "T", &body).is_ok().then_some(body)
                    })
                })
                .collect();
            thread::yield_now();
            world.disk.fail(op, "commitlog", EIO);
            let mut kept: Vec<_> =
                senders.into_iter().filter_map(|sender| sender.join().expect("no panic")).collect();
            assert!(send(&world.store, "T", "late").is_err(), "the disk has failed");
            assert!(world.store.failure().is_some());
            assert!(send(&world.store, "T", "later").is_err(), "the log has stopped");
            kept.sort_unstable();
            let mut found = bodies(&world.store, "T");
            found.sort_unstable();
            assert!(
                kept.iter().all(|body| found.contains(body)),
                "{kept:?} were acknowledged, {found:?} are there"
            );
        });
    }
}

/// A topic is deleted while it is sent to: what comes afterwards is listed.
#[test]
fn a_topic_is_deleted_while_it_is_sent_to() {
    explore(|| {
        let world = open(FlushPolicy::Memory, Vec::new());
        let store = Arc::clone(&world.store);
        let sender = thread::spawn(move || {
            send(&store, "Deleted", "a").expect("the disk is well");
            send(&store, "Deleted", "b").expect("the disk is well");
        });
        world.store.remove_topic("Deleted").expect("the disk is well");
        sender.join().expect("no panic");
        send(&world.store, "Deleted", "c").expect("the disk is well");
        assert_eq!(bodies(&world.store, "Deleted").last().map(String::as_str), Some("c"));
    });
}

/// A pull that finds nothing and waits is woken by the message that comes meanwhile.
#[test]
fn a_waiting_pull_is_woken_by_the_message_that_comes() {
    let choosy = Sql::parse("KEYS IS NULL OR KEYS <> 'x'").expect("an expression");
    for (policy, filter) in POLICIES
        .into_iter()
        .flat_map(|policy| [(policy, Filter::All), (policy, Filter::Sql(Arc::new(choosy.clone())))])
    {
        explore(move || {
            let filter = filter.clone();
            let polls = Arc::new(Polls::new(10));
            let world = open(policy, vec![polls.projection()]);
            let queue = world.store.queue(&TopicName::internal("T"), QueueId::ZERO).expect("a queue");
            let store = Arc::clone(&world.store);
            let sender = thread::spawn(move || send(&store, "T", "a").expect("the disk is well"));
            let waiting = Arc::clone(&polls);
            let pull = thread::spawn(move || {
                let mailbox = Arc::new(Mailbox::default());
                while queue.max() == QueueOffset::ZERO {
                    let place = waiting.park(&queue, &filter, &mailbox, 7).expect("there is room");
                    thread::yield_now();
                    if queue.max() > QueueOffset::ZERO {
                        waiting.leave(&place, &mailbox);
                        break;
                    }
                    block_on(mailbox.woken());
                    assert_eq!(mailbox.take(), [7]);
                    assert!(queue.max() > QueueOffset::ZERO, "it was woken for a message");
                }
            });
            sender.join().expect("no panic");
            pull.join().expect("no panic");
            assert!(polls.is_empty(), "nobody waits any more");
        });
    }
}

/// Waits end: by the mark, or by the failure that keeps it from coming.
#[test]
fn a_wait_ends_by_the_mark_or_by_the_failure() {
    explore(|| {
        let marks = Arc::new(Marks::default());
        let waiters: Vec<_> = [1, 2, 3]
            .into_iter()
            .map(|target| {
                let marks = Arc::clone(&marks);
                thread::spawn(move || block_on(marks.wait(&marks.visible, PhyOffset::new(target))).is_ok())
            })
            .collect();
        let movers: Vec<_> = [1, 2]
            .into_iter()
            .map(|to| {
                let marks = Arc::clone(&marks);
                thread::spawn(move || marks.visible.advance(PhyOffset::new(to)))
            })
            .collect();
        marks.poison(std::io::Error::other("a failure"));
        for mover in movers {
            mover.join().expect("no panic");
        }
        let ended: Vec<_> = waiters.into_iter().map(|waiter| waiter.join().expect("no panic")).collect();
        assert!(!ended[2], "the mark never came so far");
        assert!(marks.visible.reached_or_wake(PhyOffset::new(2), Waker::noop()));
    });
}
