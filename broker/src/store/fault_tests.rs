//! The store on a disk that fails: nothing acknowledged is lost, nothing half-written is seen, and it says why.

use gantry_proto::ids::QueueOffset;

use super::disk::Space;
use super::fault_disk::{EIO, ENOSPC, FaultDisk, Op};
use super::tests::{bodies, options, push, send};
use super::*;
use crate::clock::ManualClock;

const POLICIES: [FlushPolicy; 2] = [FlushPolicy::Disk, FlushPolicy::Memory];

fn open(dir: &Path, policy: FlushPolicy, disk: &FaultDisk) -> Store {
    let clock = Arc::new(ManualClock::new(Millis::new(1_700_000_000_000)));
    Store::open(dir, &options(policy), Arc::new(disk.clone()), clock, Vec::new()).expect("the store opens")
}

/// A store with the messages `kept 0`, `kept 1`, …
async fn with_messages(dir: &Path, policy: FlushPolicy, disk: &FaultDisk, count: usize) -> Store {
    let store = open(dir, policy, disk);
    for n in 0..count {
        send(&store, "T", 0, format!("kept {n}").as_bytes(), &format!("u{n}")).await;
    }
    store
}

fn kept(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("kept {n}")).collect()
}

/// A send that must fail; gives the error.
async fn refused(store: &Store, body: &str) -> AppendError {
    let mut batch = Batch::new();
    push(store, &mut batch, "T", 0, body.as_bytes(), body);
    store.append_settled(&mut batch).await.expect_err("the disk fails")
}

/// Expects `count` acknowledged messages, then only such as were sent without an answer, whole; and that the
/// store goes on without a gap.
async fn expect_kept(dir: &Path, count: usize, unanswered: &[&str]) {
    let store = open(dir, FlushPolicy::Disk, &FaultDisk::default());
    let found = bodies(&store, "T", 0);
    assert_eq!(found[..count], kept(count));
    assert!(found[count..].iter().all(|body| unanswered.contains(&body.as_str())), "{found:?}");
    let placed = send(&store, "T", 0, b"next", "next").await;
    assert_eq!(placed.queue_offset.get(), found.len() as u64);
}

#[tokio::test]
async fn a_failed_flush_stops_the_log_and_is_never_tried_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = FaultDisk::default();
    let store = with_messages(dir.path(), FlushPolicy::Disk, &disk, 3).await;
    disk.fail(Op::Sync, "commitlog", EIO);
    let error = refused(&store, "unanswered").await;
    for words in ["stopped after a failed write or flush", "os error 5", "restart the broker"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    // The disk seems well again: what it said before still holds.
    disk.heal();
    let syncs = disk.syncs("commitlog");
    assert!(matches!(refused(&store, "more").await, AppendError::Poisoned(_)));
    assert!(store.keep_house().is_err(), "no checkpoint can say that these bytes are on the disk");
    assert!(store.close().is_err());
    assert_eq!(disk.syncs("commitlog"), syncs, "a flush that failed must not be tried again");
    assert_eq!(bodies(&store, "T", 0), kept(3), "what was not flushed is not shown");
    drop(store);
    expect_kept(dir.path(), 3, &["unanswered"]).await;
}

#[tokio::test]
async fn a_failed_flush_under_memory_stops_the_log_too() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = FaultDisk::default();
    let store = with_messages(dir.path(), FlushPolicy::Memory, &disk, 3).await;
    disk.fail(Op::Sync, "commitlog", EIO);
    assert!(store.keep_house().is_err());
    disk.heal();
    assert!(matches!(refused(&store, "more").await, AppendError::Poisoned(_)));
    assert_eq!(bodies(&store, "T", 0), kept(3));
    drop(store);
    expect_kept(dir.path(), 3, &[]).await;
}

#[tokio::test]
async fn a_write_that_ends_anywhere_shows_and_loses_nothing() {
    for policy in POLICIES {
        for after in [0, 1, 4, 30, 90, 150, 200, 320, 100_000] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let disk = FaultDisk::default();
            let store = with_messages(dir.path(), policy, &disk, 3).await;
            disk.fail(Op::Write { after }, "commitlog", ENOSPC);
            let mut batch = Batch::new();
            for body in ["first", "second"] {
                push(&store, &mut batch, "T", 0, body.as_bytes(), body);
            }
            let error = store.append_settled(&mut batch).await.expect_err("the write fails");
            assert!(error.to_string().contains("os error 28"), "{error}");
            disk.heal();
            assert!(matches!(refused(&store, "more").await, AppendError::Poisoned(_)));
            assert_eq!(bodies(&store, "T", 0), kept(3), "{policy:?}, {after} bytes written");
            drop(store);
            expect_kept(dir.path(), 3, &["first", "second"]).await;
        }
    }
}

#[tokio::test]
async fn a_log_without_room_refuses_and_goes_on_when_there_is_some() {
    for policy in POLICIES {
        for op in [Op::Allocate, Op::Open] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let disk = FaultDisk::default();
            let store = with_messages(dir.path(), policy, &disk, 3).await;
            disk.fail(op, "commitlog", ENOSPC);
            let mut count = 3;
            let error = loop {
                let mut batch = Batch::new();
                push(&store, &mut batch, "T", 0, format!("kept {count}").as_bytes(), &format!("u{count}"));
                match store.append_settled(&mut batch).await {
                    Ok(_) => count += 1,
                    Err(error) => break error,
                }
            };
            assert!(
                matches!(&error, AppendError::NoRoom { source, .. } if source.raw_os_error() == Some(28))
            );
            assert!(error.to_string().contains("free space"), "{error}");
            assert!(matches!(refused(&store, "refused").await, AppendError::NoRoom { .. }));
            assert!(store.failure().is_none(), "nothing was written, so nothing is in doubt");
            disk.heal();
            let placed = send(&store, "T", 0, format!("kept {count}").as_bytes(), "again").await;
            assert_eq!(placed.queue_offset.get(), count as u64);
            assert_eq!(bodies(&store, "T", 0), kept(count + 1));
            drop(store);
            expect_kept(dir.path(), count + 1, &[]).await;
        }
    }
}

/// Regression: a queue whose entries could not be written forgot that it had taken them, and gave their numbers
/// to blanks.
#[tokio::test]
async fn queue_entries_without_room_stay_in_memory_in_order() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = FaultDisk::default();
    let store = open(dir.path(), FlushPolicy::Memory, &disk);
    disk.fail(Op::Write { after: 0 }, "consumequeue", ENOSPC);
    let mut batch = Batch::new();
    for n in 0..1000 {
        batch.clear();
        push(&store, &mut batch, "T", 0, format!("kept {n}").as_bytes(), &format!("u{n}"));
        store.append_settled(&mut batch).await.expect("the log has room");
    }
    store.dispatched(store.max_offset()).await.expect("dispatched");
    let queue = store.find_queue("T", QueueId::ZERO).expect("the queue");
    assert_eq!(queue.max().get(), 1000);
    assert!(store.keep_house().is_err(), "no checkpoint without them");
    assert_eq!(bodies(&store, "T", 0), kept(1000));
    disk.heal();
    store.keep_house().expect("there is room again");
    drop(store);
    let store = open(dir.path(), FlushPolicy::Memory, &disk);
    assert_eq!(store.recovered().records, 0, "the checkpoint holds them all");
    assert_eq!(bodies(&store, "T", 0), kept(1000));
}

/// Regression: the next flush passed over queue files whose sync had failed, and the checkpoint counted them in.
#[tokio::test]
async fn a_failed_flush_of_a_queue_ends_the_checkpoints() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = FaultDisk::default();
    let store = with_messages(dir.path(), FlushPolicy::Disk, &disk, 10).await;
    disk.fail(Op::Sync, "consumequeue", EIO);
    assert!(store.keep_house().is_err());
    disk.heal();
    assert!(store.keep_house().is_err(), "the system may have dropped what it could not write");
    send(&store, "T", 0, b"kept 10", "u10").await;
    drop(store);
    // As after a power loss: the entries never reached the disk.
    for path in std::fs::read_dir(dir.path().join("consumequeue/T/0")).expect("files") {
        let path = path.expect("a file").path();
        let len = std::fs::metadata(&path).expect("a file").len();
        std::fs::write(&path, vec![0; usize::try_from(len).expect("small")]).expect("written");
    }
    expect_kept(dir.path(), 11, &[]).await;
}

/// With many queues the file system is synced once for all of them.
#[tokio::test]
async fn many_queues_are_durable_together_or_no_checkpoint_counts_them() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = FaultDisk::default();
    let store = open(dir.path(), FlushPolicy::Memory, &disk);
    let mut batch = Batch::new();
    let mut round = async |store: &Store, name: &str| {
        for queue in 0..100 {
            batch.clear();
            push(store, &mut batch, "T", queue, name.as_bytes(), &format!("{name} {queue}"));
            store.append_settled(&mut batch).await.expect("appended");
        }
        store.dispatched(store.max_offset()).await.expect("dispatched");
    };
    round(&store, "first").await;
    let synced = disk.syncs("consumequeue");
    store.keep_house().expect("a checkpoint");
    assert_eq!(disk.syncs("consumequeue"), synced, "not one by one");
    let checkpointed = store.max_offset();
    round(&store, "second").await;
    disk.fail(Op::Sync, "consumequeue", EIO);
    assert!(store.keep_house().is_err());
    disk.heal();
    assert!(store.keep_house().is_err(), "what was not synced may be gone");
    drop(store);
    let store = open(dir.path(), FlushPolicy::Memory, &disk);
    assert_eq!(store.recovered().from, checkpointed);
    for queue in 0..100 {
        assert_eq!(bodies(&store, "T", queue), ["first", "second"]);
    }
}

#[tokio::test]
async fn without_a_checkpoint_nothing_but_time_is_lost() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = FaultDisk::default();
    let store = with_messages(dir.path(), FlushPolicy::Disk, &disk, 5).await;
    for (op, path) in
        [(Op::Write { after: 7 }, "index"), (Op::Write { after: 7 }, "dedup"), (Op::Replace, "checkpoint")]
    {
        disk.fail(op, path, ENOSPC);
        assert!(store.keep_house().is_err(), "{path}");
        disk.heal();
    }
    send(&store, "T", 0, b"kept 5", "u5").await;
    disk.fail(Op::Replace, "", ENOSPC);
    assert!(store.close().is_err());
    drop(store);
    disk.heal();
    let store = open(dir.path(), FlushPolicy::Disk, &disk);
    assert_eq!(store.dedup().len(), 6);
    let found = store.index().find("T", "u5", Millis::ZERO, Millis::MAX, 10).expect("found");
    assert_eq!(found.len(), 1);
    drop(store);
    expect_kept(dir.path(), 6, &[]).await;
}

#[tokio::test]
async fn messages_are_refused_above_the_configured_share_until_there_is_room() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = FaultDisk::default();
    let share = |available: u64| disk.set_space(Space { total: 1 << 40, available: available << 30 });
    share(200);
    let retention = Retention { disk_high_ratio: 2.0, disk_refuse_ratio: 0.9, ..Retention::default() };
    let options = StoreOptions { retention, ..options(FlushPolicy::Disk) };
    let clock = Arc::new(ManualClock::new(Millis::new(1_700_000_000_000)));
    let store =
        Store::open(dir.path(), &options, Arc::new(disk.clone()), clock, Vec::new()).expect("it opens");
    send(&store, "T", 0, b"kept 0", "u0").await;
    share(50);
    assert!(store.check_room().is_ok(), "it is looked at now and then, not for every message");
    store.keep_house().expect("kept");
    let error = store.check_room().expect_err("the disk is too full");
    assert!(matches!(error, AppendError::Crowded { .. }));
    assert!(error.to_string().contains("is 95.1 % full, messages are refused from 90 % on"), "{error}");
    // What goes with messages that were taken goes on.
    send(&store, "T", 0, b"kept 1", "u1").await;
    share(200);
    store.check_room().expect("there is room again, at once");
    assert_eq!(bodies(&store, "T", 0), kept(2));
}

struct Panics;

impl Projection for Panics {
    fn name(&self) -> &'static str {
        "panics"
    }
    fn position(&self) -> PhyOffset {
        PhyOffset::ZERO
    }
    fn apply(&mut self, _: &Dispatched<'_>) -> Result<(), ApplyError> {
        panic!("on purpose")
    }
    fn save(&mut self) -> Option<Save> {
        None
    }
    fn truncate(&mut self, _: PhyOffset) -> std::io::Result<()> {
        Ok(())
    }
    fn finish_batch(&mut self) {}
}

#[tokio::test]
async fn a_panic_of_the_flusher_stops_the_log() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let clock = Arc::new(crate::clock::ManualClock::new(Millis::new(1)));
    let disk = Arc::new(super::disk::RealDisk);
    let store = Store::open(dir.path(), &options(FlushPolicy::Disk), disk, clock, vec![Box::new(Panics)])
        .expect("the store opens");
    let mut batch = Batch::new();
    push(&store, &mut batch, "orders", 0, b"one", "one");
    let end = store.append(&mut batch).expect("appended").end;
    store.drive();
    let failure = store.dispatched(end).await.expect_err("nobody can apply it");
    assert!(failure.to_string().contains("panicked"), "{failure}");
    push(&store, &mut batch, "orders", 0, b"two", "two");
    assert!(matches!(store.append(&mut batch), Err(AppendError::Poisoned(_))));
}

/// A projection that is always behind.
pub(super) struct Behind(pub(super) PhyOffset);

impl Projection for Behind {
    fn name(&self) -> &'static str {
        "behind"
    }

    fn position(&self) -> PhyOffset {
        self.0
    }

    fn apply(&mut self, _: &Dispatched<'_>) -> Result<(), ApplyError> {
        Ok(())
    }

    fn save(&mut self) -> Option<Save> {
        None
    }

    fn truncate(&mut self, _: PhyOffset) -> io::Result<()> {
        Ok(())
    }
}

/// Regression: recovery that began before the checkpoint and was killed left queues with fewer entries than the
/// checkpoint counts; the next start took them for damaged.
#[tokio::test]
async fn recovery_that_is_broken_off_does_not_look_like_damage() {
    for end_is_lost in [false, true] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = FaultDisk::default();
        let store = with_messages(dir.path(), FlushPolicy::Disk, &disk, 10).await;
        let behind = store.find_queue("T", QueueId::ZERO).and_then(|queue| queue.entry(QueueOffset::new(4)));
        let behind = behind.expect("an entry").phy;
        store.keep_house().expect("a checkpoint");
        let checkpointed = store.checkpointed();
        drop(store);
        let log = dir.path().join("commitlog/00000000000000000000");
        if end_is_lost {
            let mut bytes = std::fs::read(&log).expect("readable");
            bytes[usize::try_from(behind.get()).expect("small")..].fill(0);
            std::fs::write(&log, bytes).expect("written");
        }
        disk.fail(Op::Zero, "commitlog", EIO);
        let clock = Arc::new(ManualClock::new(Millis::new(1_700_000_000_000)));
        let projections: Vec<Box<dyn Projection>> = vec![Box::new(Behind(behind))];
        let opened =
            Store::open(dir.path(), &options(FlushPolicy::Disk), Arc::new(disk.clone()), clock, projections);
        assert!(opened.is_err(), "recovery is broken off where it cuts the log");
        drop(opened);
        disk.heal();
        let store = open(dir.path(), FlushPolicy::Disk, &disk);
        assert_eq!(store.recovered().from, if end_is_lost { behind } else { checkpointed });
        let left = if end_is_lost { 4 } else { 10 };
        assert_eq!(bodies(&store, "T", 0), kept(left));
        drop(store);
        expect_kept(dir.path(), left, &[]).await;
    }
}

/// A kill between the removal of a topic's files and the checkpoint behind it does not look like damage.
#[tokio::test]
async fn a_deletion_that_is_broken_off_does_not_look_like_damage() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = FaultDisk::default();
    let store = with_messages(dir.path(), FlushPolicy::Disk, &disk, 10).await;
    super::tests::send(&store, "Deleted", 0, b"old", "old").await;
    store.remove_topic("Deleted").expect("removed");
    super::tests::send(&store, "Other", 0, b"other", "other").await;
    store.keep_house().expect("a checkpoint");
    // The files go, then comes the kill: the checkpoint behind it is not written.
    store.checkpoint(super::EntryCount::Unknown).expect("a checkpoint");
    store.dispatcher.remove_topic(&store.log, "Other").expect("removed");
    drop(store);
    let store = open(dir.path(), FlushPolicy::Disk, &disk);
    assert_eq!(bodies(&store, "T", 0), kept(10));
    assert!(bodies(&store, "Deleted", 0).is_empty() && bodies(&store, "Other", 0).is_empty());
}
