//! Tests of the whole store on real files.

use std::net::SocketAddr;

use gantry_proto::ids::QueueOffset;
use gantry_proto::record::{PropertiesBuf, RecordDraft, RecordView, SysFlag, keys};

use super::disk::RealDisk;
use super::index::IndexOptions;
use super::*;
use crate::clock::ManualClock;

const HOST: ([u8; 4], u16) = ([127, 0, 0, 1], 10911);

pub(super) fn options(policy: FlushPolicy) -> StoreOptions {
    StoreOptions {
        policy,
        segment_bytes: 4096,
        queue_file_bytes: 320,
        index: IndexOptions { slots: 100, entries: 40 },
        reserve_bytes: 0,
        // How full the machine's disk is decides no test.
        retention: Retention { disk_high_ratio: 2.0, disk_refuse_ratio: 2.0, ..Retention::default() },
        ..StoreOptions::default()
    }
}

pub(super) fn open_as(dir: &Path, options: &StoreOptions) -> Result<Store, OpenError> {
    let clock = Arc::new(ManualClock::new(Millis::new(1_700_000_000_000)));
    Store::open(dir, options, Arc::new(RealDisk), clock, Vec::new())
}

fn open(dir: &Path) -> Store {
    open_as(dir, &options(FlushPolicy::Memory)).expect("the store opens")
}

pub(super) fn push(store: &Store, batch: &mut Batch, topic: &str, queue: u32, body: &[u8], uniq_key: &str) {
    let topic = TopicName::parse(topic).expect("a valid topic");
    let queue = store.queue(&topic, QueueId::new(queue)).expect("a queue");
    let mut properties = PropertiesBuf::new();
    properties.push(keys::UNIQ_KEY, uniq_key);
    properties.push(keys::TAGS, "TagA");
    let host = SocketAddr::from(HOST);
    let draft = RecordDraft {
        topic: topic.as_str(),
        queue_id: queue.id(),
        flag: 0,
        sys_flag: SysFlag::default(),
        born_at: Millis::new(1),
        born_host: host,
        store_host: host,
        reconsume_times: 0,
        prepared_offset: PhyOffset::ZERO,
        body,
        properties: properties.as_bytes(),
        append_crc: true,
    };
    batch.push(&queue, &draft).expect("an encodable record");
}

pub(super) async fn send(store: &Store, topic: &str, queue: u32, body: &[u8], uniq_key: &str) -> Placed {
    let mut batch = Batch::new();
    push(store, &mut batch, topic, queue, body, uniq_key);
    let appended = store.append_settled(&mut batch).await.expect("appended");
    store.dispatched(appended.end).await.expect("dispatched");
    batch.placed()[0]
}

pub(super) fn bodies(store: &Store, topic: &str, queue: u32) -> Vec<String> {
    let Some(queue) = store.find_queue(topic, QueueId::new(queue)) else { return Vec::new() };
    let mut entries = Vec::new();
    queue.entries(queue.min(), 1000, &mut entries);
    let body = |entry: &QueueEntry| {
        let slice = store.read(entry.phy, entry.size).expect("readable");
        let view = RecordView::parse(&slice).expect("a record");
        assert_eq!(view.queue_offset(), entry.at);
        String::from_utf8_lossy(view.body()).into_owned()
    };
    entries.iter().filter(|entry| !entry.is_blank()).map(body).collect()
}

#[tokio::test]
async fn messages_are_kept_over_clean_and_unclean_stops() {
    for policy in [FlushPolicy::Memory, FlushPolicy::Disk] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut expected = Vec::new();
        for round in 0..6 {
            let store = open_as(dir.path(), &options(policy)).expect("the store opens");
            assert_eq!(bodies(&store, "T", 1), expected, "{policy:?} round {round}");
            assert_eq!(store.recovered().clean, round % 2 == 0);
            for n in 0..20 {
                let body = format!("round {round} message {n}");
                let placed = send(&store, "T", 1, body.as_bytes(), &format!("u{round}.{n}")).await;
                assert_eq!(placed.queue_offset.get(), expected.len() as u64);
                expected.push(body);
            }
            if round % 2 == 1 {
                store.close().expect("closed");
            } // else: dropped, as a crash leaves it
        }
        let store = open_as(dir.path(), &options(policy)).expect("the store opens");
        let found = store.index().find("T", "u3.7", Millis::ZERO, Millis::MAX, 10).expect("found");
        let record = store.record_at(found[0]).expect("readable");
        assert_eq!(RecordView::parse(&record).expect("a record").body(), b"round 3 message 7");
        assert_eq!(store.dedup().len(), 120);
    }
}

#[tokio::test]
async fn blocks_are_prepared_behind_the_end_and_never_over_records() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = StoreOptions { segment_bytes: 1024 * 1024, ..options(FlushPolicy::Disk) };
    let mut expected = Vec::new();
    for round in 0..3 {
        let store = open_as(dir.path(), &options).expect("the store opens");
        for n in 0..40 {
            expected.push(format!("{round}.{n} {}", "x".repeat(20_000)));
            send(&store, "T", 0, expected[expected.len() - 1].as_bytes(), &format!("u{round}.{n}")).await;
        }
        assert!(bodies(&store, "T", 0) == expected, "round {round}");
        let end = store.max_offset();
        let segment = store.log().segments().find(end).expect("the last file");
        let at = end.since(segment.start());
        let data = segment.file().next_data(at).expect("asked");
        assert!(data.is_some_and(|data| data.start == at), "prepared");
        let map = segment.map().expect("mapped");
        assert!(map.iter().skip(usize::try_from(at).expect("small")).all(|byte| *byte == 0));
        if round % 2 == 1 {
            store.close().expect("closed");
        } // else: dropped, as a crash leaves it
    }
    let store = open_as(dir.path(), &options).expect("the store opens");
    assert!(bodies(&store, "T", 0) == expected);
}

#[tokio::test]
async fn a_caller_may_flush_itself() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open_as(dir.path(), &options(FlushPolicy::Disk)).expect("the store opens");
    let mut batch = Batch::new();
    push(&store, &mut batch, "T", 0, b"flushed here", "u1");
    let end = store.append(&mut batch).expect("appended").end;
    assert!(!store.is_settled(end));
    store.drive_here();
    assert!(store.is_settled(end) && store.log().marks().flushed.get() >= end);
    assert_eq!(bodies(&store, "T", 0), ["flushed here"]);
}

/// A checkpoint holds the projections while it writes them; a send that comes then must not wait for the next.
#[tokio::test]
async fn what_became_visible_during_a_checkpoint_is_dispatched_behind_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let mut batch = Batch::new();
    push(&store, &mut batch, "T", 0, b"meanwhile", "K");
    let appended = store.dispatcher.with(&store.log, |_| {
        let appended = store.append(&mut batch).expect("appended");
        store.drive();
        assert!(store.log.marks().dispatched.get() < appended.end, "the projections are in use");
        appended
    });
    assert_eq!(store.log.marks().dispatched.get(), appended.end);
    assert_eq!(bodies(&store, "T", 0), ["meanwhile"]);
}

#[tokio::test]
async fn recovery_starts_at_the_checkpoint() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    for n in 0..50 {
        send(&store, "T", 0, b"before", &format!("a{n}")).await;
    }
    store.keep_house().expect("a checkpoint");
    for n in 0..3 {
        send(&store, "T", 0, b"after", &format!("b{n}")).await;
    }
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.recovered().records, 3);
    assert_eq!(bodies(&store, "T", 0).len(), 53);
}

#[tokio::test]
async fn an_unfinished_record_at_the_end_is_cut() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    send(&store, "T", 0, b"one", "1").await;
    let last = send(&store, "T", 0, b"two", "2").await;
    drop(store);
    let path = dir.path().join("commitlog/00000000000000000000");
    let mut bytes = std::fs::read(&path).expect("read");
    let from = usize::try_from(last.phy.get()).expect("small") + 60;
    bytes[from..].fill(0);
    std::fs::write(&path, &bytes).expect("written");
    let store = open(dir.path());
    assert_eq!(bodies(&store, "T", 0), ["one"]);
    assert_eq!(store.max_offset(), last.phy);
    let placed = send(&store, "T", 0, b"three", "3").await;
    assert_eq!((placed.phy, placed.queue_offset.get()), (last.phy, 1));
}

#[tokio::test]
async fn damage_inside_the_log_costs_only_what_it_hit() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let mut placed = Vec::new();
    for n in 0..30 {
        placed.push(send(&store, "T", 0, format!("message {n}").as_bytes(), &format!("u{n}")).await);
    }
    drop(store);
    let hit = placed[5];
    let path = dir.path().join("commitlog/00000000000000000000");
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[usize::try_from(hit.phy.get()).expect("small") + 90] ^= 1;
    std::fs::write(&path, &bytes).expect("written");
    let store = open(dir.path());
    let [gap] = store.recovered().gaps[..] else { panic!("{:?}", store.recovered()) };
    assert_eq!((gap.from, gap.to), (hit.phy.get(), placed[6].phy.get()));
    let left = bodies(&store, "T", 0);
    assert_eq!(left.len(), 29);
    assert!(!left.contains(&"message 5".to_owned()));
    assert!(matches!(store.record_at(hit.phy), Err(ReadError::Nothing { .. } | ReadError::Damaged { .. })));
    let queue = store.find_queue("T", QueueId::ZERO).expect("the queue");
    assert_eq!(queue.max(), QueueOffset::new(30));
}

#[tokio::test]
async fn a_search_by_time_is_not_led_past_messages_by_a_lost_one() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let mut placed = Vec::new();
    for n in 0..30 {
        placed.push(send(&store, "T", 0, b"body", &format!("u{n}")).await);
    }
    drop(store);
    let path = dir.path().join("commitlog/00000000000000000000");
    let mut bytes = std::fs::read(&path).expect("read");
    // The search looks here first.
    bytes[usize::try_from(placed[15].phy.get()).expect("small") + 90] ^= 1;
    std::fs::write(&path, &bytes).expect("written");
    let store = open(dir.path());
    let queue = store.find_queue("T", QueueId::ZERO).expect("the queue");
    assert_eq!(store.find_by_time(&queue, Millis::ZERO).expect("readable"), QueueOffset::ZERO);
    assert_eq!(store.find_by_time(&queue, Millis::MAX).expect("readable"), queue.max());
}

#[tokio::test]
async fn records_behind_a_hole_are_found() {
    use std::os::unix::fs::FileExt as _;

    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = StoreOptions { segment_bytes: 64 * 1024, ..options(FlushPolicy::Memory) };
    let store = open_as(dir.path(), &options).expect("the store opens");
    for n in 0..100 {
        send(&store, "T", 0, format!("message {n}").as_bytes(), &format!("u{n}")).await;
    }
    drop(store);
    // The second and third page were never written.
    let path = dir.path().join("commitlog/00000000000000000000");
    let bytes = std::fs::read(&path).expect("read");
    let file = std::fs::File::create(&path).expect("made anew");
    file.set_len(64 * 1024).expect("its length");
    file.write_all_at(&bytes[..4096], 0).expect("the first page");
    file.write_all_at(&bytes[3 * 4096..], 3 * 4096).expect("the others");
    drop(file);
    let store = open_as(dir.path(), &options).expect("the store opens again");
    let [gap] = store.recovered().gaps[..] else { panic!("{:?}", store.recovered()) };
    assert!(gap.from < 4096 && gap.to >= 3 * 4096 && gap.to < 3 * 4096 + 300, "{gap:?}");
    let left = bodies(&store, "T", 0);
    assert_eq!(
        (left.first().map(String::as_str), left.last().map(String::as_str)),
        (Some("message 0"), Some("message 99"))
    );
}

#[tokio::test]
async fn neighbours_in_the_log_are_one_run() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = StoreOptions { segment_bytes: 64 * 1024, ..options(FlushPolicy::Memory) };
    for again in [false, true] {
        let store = open_as(dir.path(), &options).expect("the store opens");
        for n in 0..if again { 0 } else { 12 } {
            // Two and two in one queue.
            send(&store, "T", n / 2 % 2, format!("message {n}").as_bytes(), &format!("u{n}")).await;
        }
        let queue = store.find_queue("T", QueueId::ZERO).expect("the queue");
        let mut entries = Vec::new();
        queue.entries(QueueOffset::ZERO, 100, &mut entries);
        let mut messages = store.messages(&queue, LogRuns::default());
        for entry in &entries {
            assert!(messages.add(entry).expect("readable"));
        }
        let runs = messages.runs;
        assert_eq!((runs.messages(), runs.iter().count()), (6, 3));
        assert_eq!(runs.bytes(), runs.iter().map(<[u8]>::len).sum::<usize>());
        let joined: Vec<u8> = runs.iter().flatten().copied().collect();
        let single: Vec<u8> = entries
            .iter()
            .flat_map(|entry| store.read(entry.phy, entry.size).expect("readable").to_vec())
            .collect();
        assert_eq!(joined, single);
    }
}

#[tokio::test]
async fn a_run_has_no_damaged_message() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let mut placed = Vec::new();
    for n in 0..5 {
        placed.push(send(&store, "T", 0, format!("message {n}").as_bytes(), &format!("u{n}")).await);
    }
    store.close().expect("closed");
    drop(store);
    let store = open(dir.path());
    // Behind the back of a store that is open: recovery has not seen it.
    let path = dir.path().join("commitlog/00000000000000000000");
    let file = std::fs::File::options().write(true).open(&path).expect("the log");
    std::os::unix::fs::FileExt::write_all_at(&file, b"?", placed[2].phy.get() + 95).expect("written");
    let queue = store.find_queue("T", QueueId::ZERO).expect("the queue");
    let mut entries = Vec::new();
    queue.entries(QueueOffset::ZERO, 100, &mut entries);
    let mut messages = store.messages(&queue, LogRuns::default());
    let found: Vec<bool> = entries.iter().map(|entry| messages.add(entry).expect("readable")).collect();
    assert_eq!(found, [true, true, false, true, true]);
    assert_eq!((messages.runs.messages(), messages.runs.iter().count()), (4, 2));
}

#[tokio::test]
async fn refused_stores_say_why() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    send(&store, "T", 0, b"x", "1").await;
    store.close().expect("closed");
    drop(store);
    let checkpoint = dir.path().join("gantry.checkpoint");
    let text = std::fs::read_to_string(&checkpoint).expect("read");
    std::fs::write(&checkpoint, text.replace("\"format\": 1", "\"format\": 9")).expect("written");
    let error = open_as(dir.path(), &options(FlushPolicy::Disk)).unwrap_err();
    assert!(error.to_string().contains("format 9"), "{error}");
    std::fs::write(&checkpoint, text).expect("written");
    let other = StoreOptions { segment_bytes: 8192, ..options(FlushPolicy::Disk) };
    let error = open_as(dir.path(), &other).unwrap_err();
    assert!(error.to_string().contains("4096 bytes long"), "{error}");
    let error = open_as(Path::new("/proc/nowhere"), &options(FlushPolicy::Disk)).unwrap_err();
    assert!(error.to_string().contains("/proc/nowhere"), "{error}");
    assert_eq!(bodies(&open(dir.path()), "T", 0), ["x"]);
}

#[tokio::test]
async fn a_batch_never_spans_files_and_a_large_one_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let mut batch = Batch::new();
    for n in 0..8 {
        push(&store, &mut batch, "T", n % 2, &[b'x'; 100], &format!("u{n}"));
    }
    for _ in 0..5 {
        store.append_settled(&mut batch).await.expect("appended");
        let first = batch.placed()[0].phy.get() / 4096;
        assert!(batch.placed().iter().all(|placed| placed.phy.get() / 4096 == first));
    }
    assert_eq!(bodies(&store, "T", 0).len(), 20);
    batch.clear();
    push(&store, &mut batch, "T", 0, &[b'x'; 5000], "large");
    assert!(matches!(store.append(&mut batch), Err(AppendError::TooLarge { limit: 4088, .. })));
}

#[tokio::test]
async fn a_full_disk_refuses_and_keeps_what_is_there() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    send(&store, "T", 0, b"kept", "1").await;
    drop(store);
    let full = StoreOptions { reserve_bytes: u64::MAX / 2, ..options(FlushPolicy::Memory) };
    let store = open_as(dir.path(), &full).expect("the store opens");
    let mut batch = Batch::new();
    push(&store, &mut batch, "T", 0, b"more", "2");
    let error = store.append(&mut batch).unwrap_err();
    assert!(matches!(error, AppendError::DiskFull { .. }), "{error}");
    assert_eq!(bodies(&store, "T", 0), ["kept"]);
}

#[tokio::test]
async fn retention_removes_old_files_but_not_held_ones() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let clock = Arc::new(ManualClock::new(Millis::new(1_700_000_000_000)));
    let retention = Retention { keep_ms: 1000, keep_bytes: 0, disk_high_ratio: 2.0, disk_refuse_ratio: 2.0 };
    let options = StoreOptions { retention, ..options(FlushPolicy::Memory) };
    let store = Store::open(dir.path(), &options, Arc::new(RealDisk), Arc::clone(&clock) as _, Vec::new())
        .expect("the store opens");
    for n in 0..60 {
        send(&store, "T", 0, b"old", &format!("u{n}")).await;
    }
    let hold = store.hold(PhyOffset::new(5000));
    clock.advance(5000);
    store.keep_house().expect("kept");
    assert_eq!(store.min_offset(), PhyOffset::new(4096), "the first file goes, the held one stays");
    let queue = store.find_queue("T", QueueId::ZERO).expect("the queue");
    assert!(queue.min() > QueueOffset::ZERO);
    assert_eq!(queue.max(), QueueOffset::new(60));
    drop(hold);
    store.keep_house().expect("kept");
    assert!(store.min_offset() > PhyOffset::new(4096));
    assert!(!bodies(&store, "T", 0).is_empty(), "the file being written stays");
    assert!(matches!(store.record_at(PhyOffset::ZERO), Err(ReadError::Gone { .. })));
}

#[tokio::test]
async fn messages_are_found_by_time() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let clock = Arc::new(ManualClock::new(Millis::new(1000)));
    let store = Store::open(
        dir.path(),
        &options(FlushPolicy::Memory),
        Arc::new(RealDisk),
        Arc::clone(&clock) as _,
        Vec::new(),
    )
    .expect("the store opens");
    for n in 0..10 {
        clock.set(Millis::new(1000 + n * 100));
        send(&store, "T", 0, b"x", &format!("u{n}")).await;
    }
    let queue = store.find_queue("T", QueueId::ZERO).expect("the queue");
    let at = |ms| store.find_by_time(&queue, Millis::new(ms)).expect("found").get();
    assert_eq!((at(0), at(1000), at(1001), at(1500), at(5000)), (0, 0, 1, 5, 10));
}

/// Regression: after the log had lost its end, new messages at the same places were not indexed.
#[tokio::test]
async fn messages_after_a_lost_end_are_found_by_key() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    for n in 0..5 {
        send(&store, "T", 0, b"lost", &format!("a{n}")).await;
    }
    store.keep_house().expect("a checkpoint");
    drop(store);
    std::fs::write(dir.path().join("commitlog/00000000000000000000"), [0; 4096]).expect("written");
    std::fs::remove_file(dir.path().join("gantry.checkpoint")).expect("removed");
    std::fs::remove_dir_all(dir.path().join("consumequeue")).expect("removed");
    let store = open(dir.path());
    assert_eq!(store.max_offset(), PhyOffset::ZERO);
    send(&store, "T", 0, b"new", "b").await;
    let find = |key| store.index().find("T", key, Millis::ZERO, Millis::MAX, 10).expect("found").len();
    assert_eq!((find("b"), find("a0")), (1, 0));
    assert_eq!(bodies(&store, "T", 0), ["new"]);
}

#[tokio::test]
async fn a_topic_made_anew_lists_its_new_messages() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    for n in 0..3 {
        send(&store, "orders", 0, b"old", &format!("old-{n}")).await;
    }
    store.remove_topic("orders").expect("removed");
    for n in 0..2 {
        let placed = send(&store, "orders", 0, b"new", &format!("new-{n}")).await;
        assert_eq!(placed.queue_offset, QueueOffset::new(n));
    }
    assert_eq!(bodies(&store, "orders", 0), ["new", "new"]);
}

#[tokio::test]
async fn queues_built_again_from_the_log_list_a_topic_made_anew() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    send(&store, "others", 0, b"other", "other").await;
    for n in 0..3 {
        send(&store, "orders", 0, b"old", &format!("old-{n}")).await;
    }
    store.remove_topic("orders").expect("removed");
    send(&store, "orders", 0, b"new", "new").await;
    store.close().expect("closed");
    drop(store);
    std::fs::remove_dir_all(dir.path().join("consumequeue")).expect("removed");
    let store = open(dir.path());
    assert_eq!(bodies(&store, "orders", 0), ["new"]);
    let placed = send(&store, "orders", 0, b"newer", "newer").await;
    assert_eq!(placed.queue_offset, QueueOffset::new(1));
    assert_eq!(bodies(&store, "orders", 0), ["new", "newer"]);
}

/// A projection whose file takes a while to be written, and that notices a second writer.
struct Slow(Arc<AtomicBool>);

impl Projection for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }
    fn position(&self) -> PhyOffset {
        PhyOffset::ZERO
    }
    fn apply(&mut self, _: &Dispatched<'_>) -> Result<(), ApplyError> {
        Ok(())
    }
    fn save(&mut self) -> Option<Save> {
        let writing = Arc::clone(&self.0);
        Some(Box::new(move || {
            let alone = !writing.swap(true, Ordering::SeqCst);
            (0..1000).for_each(|_| std::thread::yield_now());
            writing.store(false, Ordering::SeqCst);
            if alone { Ok(()) } else { Err(io::Error::other("two write the file at a time")) }
        }))
    }
    fn truncate(&mut self, _: PhyOffset) -> io::Result<()> {
        Ok(())
    }
}

/// Regression: deleting a topic took a checkpoint while the housekeeper took one; both wrote the same files, and
/// one of them failed.
#[test]
fn checkpoints_are_taken_one_at_a_time() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let clock = Arc::new(ManualClock::new(Millis::new(1_700_000_000_000)));
    let slow = Box::new(Slow(Arc::default()));
    let store = Store::open(dir.path(), &options(FlushPolicy::Memory), Arc::new(RealDisk), clock, vec![slow])
        .expect("the store opens");
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..50 {
                    store.save_checkpoint().expect("a checkpoint");
                }
            });
        }
    });
}
