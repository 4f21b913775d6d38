//! Offsets on a real store, over restarts and crashes.

use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::fixture;
use crate::store::FlushPolicy;
use crate::store::fault_disk::FaultDisk;

fn key(group: &str, topic: &str, queue: u32) -> Key {
    Key { group: GroupName::internal(group), topic: TopicName::internal(topic), queue: QueueId::new(queue) }
}

fn at(offset: u64) -> QueueOffset {
    QueueOffset::new(offset)
}

fn open(dir: &Path) -> Arc<Offsets> {
    let clock = fixture::clock();
    let table = OffsetTable::open(&dir.join("config"), clock.clone()).unwrap();
    let store = fixture::store(dir, clock, vec![table.projection()]);
    Arc::new(Offsets::new(&table, store, Arc::default(), 100))
}

/// The same under the policy `disk`, on a disk of the test's own.
fn open_on(dir: &Path, disk: &FaultDisk) -> Arc<Offsets> {
    let clock = fixture::clock();
    let table = OffsetTable::open(&dir.join("config"), clock.clone()).unwrap();
    let (options, disk) = (fixture::options(FlushPolicy::Disk), Arc::new(disk.clone()));
    let store = Store::open(dir, &options, disk, clock, vec![table.projection()]).unwrap();
    Arc::new(Offsets::new(&table, Arc::new(store), Arc::default(), 100))
}

/// A store with ten messages in queue 0 and 1 of `T`.
async fn filled() -> (TempDir, Arc<Offsets>) {
    let dir = TempDir::new().unwrap();
    let offsets = open(dir.path());
    fixture::send(&offsets.store, "T", 0, 10).await;
    fixture::send(&offsets.store, "T", 1, 10).await;
    (dir, offsets)
}

/// The next broker on the same directory after this one was killed.
fn killed(dir: &TempDir, offsets: Arc<Offsets>) -> Arc<Offsets> {
    drop(offsets);
    open(dir.path())
}

#[tokio::test]
async fn a_commit_survives_a_kill() {
    let (dir, offsets) = filled().await;
    offsets.commit(key("g", "T", 0), at(7)).await.unwrap();
    offsets.commit(key("g", "T", 0), at(4)).await.unwrap();
    assert_eq!(offsets.metrics.offsets_committed.get(), 1);
    let offsets = killed(&dir, offsets);
    assert_eq!(offsets.get("g", "T", QueueId::ZERO), Some(at(7)));
    assert_eq!(offsets.get("g", "T", QueueId::new(1)), None);
}

#[tokio::test]
async fn notes_are_seen_at_once_and_kept_when_logged() {
    let (dir, offsets) = filled().await;
    let records = || offsets.store.queue(&TopicName::state(), QueueId::ZERO).unwrap().max();
    offsets.note(key("g", "T", 0), at(3)).unwrap();
    offsets.note(key("g", "T", 0), at(5)).unwrap();
    offsets.note(key("g", "T", 1), at(2)).unwrap();
    assert_eq!(offsets.get("g", "T", QueueId::ZERO), Some(at(5)));
    assert_eq!(records(), QueueOffset::ZERO);
    offsets.log_waiting().unwrap();
    assert_eq!(records(), at(1));
    offsets.log_waiting().unwrap();
    assert_eq!(records(), at(1));
    let offsets = killed(&dir, offsets);
    assert_eq!(offsets.get("g", "T", QueueId::ZERO), Some(at(5)));
    assert_eq!(offsets.get("g", "T", QueueId::new(1)), Some(at(2)));
}

#[tokio::test]
async fn offsets_beyond_the_end_of_a_queue_are_refused() {
    let (_dir, offsets) = filled().await;
    let error = offsets.commit(key("g", "T", 0), at(11)).await.unwrap_err();
    assert!(error.to_string().contains("lies beyond its end 10"), "{error}");
    assert!(offsets.note(key("g", "nowhere", 0), at(1)).is_err());
    assert_eq!(offsets.metrics.offsets_beyond_end.get(), 2);
    offsets.note(key("g", "T", 0), at(10)).unwrap();
}

#[tokio::test]
async fn a_reset_outlives_a_kill_until_a_consumer_follows_it() {
    let (dir, offsets) = filled().await;
    offsets.commit(key("g", "T", 0), at(9)).await.unwrap();
    offsets.note(key("g", "T", 0), at(10)).unwrap();
    offsets.reset(vec![(key("g", "T", 0), at(2))]).await.unwrap();
    assert_eq!(offsets.get("g", "T", QueueId::ZERO), Some(at(2)));
    // The consumer does not know yet: what it commits is from before.
    offsets.commit(key("g", "T", 0), at(10)).await.unwrap();
    offsets.note(key("g", "T", 0), at(10)).unwrap();
    let offsets = killed(&dir, offsets);
    assert_eq!(offsets.get("g", "T", QueueId::ZERO), Some(at(2)));
    assert_eq!(offsets.take_reset(&key("g", "T", 1), at(9)), None);
    assert_eq!(offsets.take_reset(&key("g", "T", 0), at(9)), Some(at(2)));
    // It was told, but goes on committing for a while.
    offsets.commit(key("g", "T", 0), at(10)).await.unwrap();
    let offsets = killed(&dir, offsets);
    assert_eq!(offsets.take_reset(&key("g", "T", 0), at(9)), Some(at(2)));
    assert_eq!(offsets.take_reset(&key("g", "T", 0), at(2)), None);
    offsets.commit(key("g", "T", 0), at(4)).await.unwrap();
    offsets.log_waiting().unwrap();
    let offsets = killed(&dir, offsets);
    assert_eq!(offsets.take_reset(&key("g", "T", 0), at(9)), None);
    assert_eq!(offsets.get("g", "T", QueueId::ZERO), Some(at(4)));
}

#[tokio::test]
async fn a_noted_offset_outlives_a_kill_once_it_is_settled() {
    let (dir, offsets) = filled().await;
    offsets.note(key("g", "T", 0), at(7)).unwrap();
    assert!(offsets.is_only_noted("g", "T", QueueId::ZERO));
    offsets.settle().await.unwrap();
    assert!(!offsets.is_only_noted("g", "T", QueueId::ZERO));
    let offsets = killed(&dir, offsets);
    assert_eq!(offsets.get("g", "T", QueueId::ZERO), Some(at(7)));
}

#[tokio::test]
async fn deleted_topics_and_groups_stay_deleted() {
    let (dir, offsets) = filled().await;
    offsets.commit(key("g", "T", 0), at(9)).await.unwrap();
    offsets.note(key("h", "T", 1), at(9)).unwrap();
    assert_eq!(offsets.groups_of_topic("T").len(), 2);
    offsets.remove_group(&GroupName::internal("g")).await.unwrap();
    offsets.remove_group(&GroupName::internal("unknown")).await.unwrap();
    assert_eq!(offsets.of_group("h"), vec![(TopicName::internal("T"), QueueId::new(1), at(9))]);
    offsets.remove_topic(&TopicName::internal("T")).await.unwrap();
    let offsets = killed(&dir, offsets);
    assert!(offsets.of_group("g").is_empty() && offsets.topics_of_group("h").is_empty());
}

/// Regression: the offsets lag behind the checkpoint's queues, and what a deleted topic had between the two was
/// listed again.
#[tokio::test]
async fn a_deleted_topics_messages_stay_away_after_a_kill() {
    let dir = TempDir::new().unwrap();
    let mut offsets = open(dir.path());
    fixture::send(&offsets.store, "U", 0, 10).await;
    offsets.commit(key("g", "U", 0), at(7)).await.unwrap();
    offsets.store.keep_house().unwrap();
    fixture::send(&offsets.store, "T", 0, 10).await;
    offsets.remove_topic(&TopicName::internal("T")).await.unwrap();
    offsets.store.remove_topic("T").unwrap();
    for _ in 0..2 {
        offsets = killed(&dir, offsets);
        let listed =
            |topic| offsets.store.topic_queues(topic).iter().map(|queue| queue.max().get()).sum::<u64>();
        assert_eq!((listed("T"), listed("U")), (0, 10));
        assert_eq!(offsets.get("g", "U", QueueId::ZERO), Some(at(7)));
    }
    let queue = offsets.store.queue(&TopicName::internal("T"), QueueId::ZERO).unwrap();
    fixture::send(&offsets.store, "T", 0, 3).await;
    assert_eq!((queue.min(), queue.max()), (at(0), at(3)));
}

#[tokio::test]
async fn the_table_does_not_outgrow_its_bound() {
    let (_dir, offsets) = filled().await;
    for n in 0..100 {
        offsets.note(key(&format!("g{n}"), "T", 0), at(1)).unwrap();
    }
    let error = offsets.note(key("one more", "T", 0), at(1)).unwrap_err();
    assert!(error.to_string().contains("100 offsets are kept"), "{error}");
    assert!(offsets.commit(key("one more", "T", 0), at(1)).await.is_err());
    offsets.note(key("g1", "T", 0), at(2)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_task_logs_notes_and_writes_the_file_then_sleeps() {
    let (dir, offsets) = filled().await;
    let stop = CancellationToken::new();
    let task = tokio::spawn(Arc::clone(&offsets).run(stop.clone()));
    offsets.note(key("g", "T", 0), at(6)).unwrap();
    let path = dir.path().join("config/consumerOffset.json");
    while !std::fs::read_to_string(&path).is_ok_and(|file| file.contains("0:6")) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    offsets.note(key("g", "T", 0), at(8)).unwrap();
    stop.cancel();
    task.await.unwrap();
    assert!(std::fs::read_to_string(&path).unwrap().contains("0:8"));
}

/// Apache read our store, moved the group on and wrote the file: its word counts, not our old records.
#[tokio::test]
async fn a_file_that_apache_wrote_wins_over_older_records() {
    let (dir, offsets) = filled().await;
    offsets.commit(key("g", "T", 0), at(9)).await.unwrap();
    offsets.commit(key("g", "T", 1), at(9)).await.unwrap();
    drop(offsets);
    let file = br#"{"dataVersion":{"counter":3},"offsetTable":{"T@g":{0:4}}}"#;
    std::fs::create_dir_all(dir.path().join("config")).unwrap();
    std::fs::write(dir.path().join("config/consumerOffset.json"), file).unwrap();
    let offsets = open(dir.path());
    assert_eq!(offsets.get("g", "T", QueueId::ZERO), Some(at(4)));
    assert_eq!(offsets.get("g", "T", QueueId::new(1)), None);
    offsets.commit(key("g", "T", 0), at(6)).await.unwrap();
    let offsets = killed(&dir, offsets);
    assert_eq!(offsets.get("g", "T", QueueId::ZERO), Some(at(6)));
    assert_eq!(offsets.get("g", "T", QueueId::new(1)), None);
}

#[tokio::test]
async fn offsets_of_messages_that_were_lost_are_set_back_to_the_end() {
    let (dir, offsets) = filled().await;
    drop(offsets);
    let file = br#"{"offsetTable":{"T@g":{0:40,1:3}}}"#;
    std::fs::create_dir_all(dir.path().join("config")).unwrap();
    std::fs::write(dir.path().join("config/consumerOffset.json"), file).unwrap();
    let offsets = open(dir.path());
    assert_eq!(offsets.get("g", "T", QueueId::ZERO), Some(at(10)));
    assert_eq!(offsets.get("g", "T", QueueId::new(1)), Some(at(3)));
    let json = String::from_utf8(offsets.to_json()).unwrap();
    assert!(json.contains("\"T@g\":{") && !json.contains("gantryPosition"), "{json}");
    // When there are as many messages again, the old offset would look right.
    fixture::send(&offsets.store, "T", 0, 40).await;
    let offsets = killed(&dir, offsets);
    assert_eq!(offsets.get("g", "T", QueueId::ZERO), Some(at(10)));
}

#[tokio::test]
async fn a_reset_that_is_refused_changes_nothing() {
    let (dir, offsets) = filled().await;
    offsets.note(key("g", "T", 0), at(5)).unwrap();
    let in_the_way = dir.path().join("consumequeue").join(topics::STATE);
    std::fs::write(&in_the_way, "").unwrap();
    let refused = offsets.reset(vec![(key("g", "T", 0), at(2))]).await;
    assert!(matches!(refused, Err(CommitError::StateQueue(_))), "{refused:?}");
    assert_eq!(offsets.get("g", "T", QueueId::ZERO), Some(at(5)));
    std::fs::remove_file(&in_the_way).unwrap();
    offsets.settle().await.unwrap();
    let offsets = killed(&dir, offsets);
    assert_eq!(offsets.get("g", "T", QueueId::ZERO), Some(at(5)));
}

/// Without offsets there is no file, and the table asks for the whole log.
#[tokio::test]
async fn the_first_record_is_kept_when_a_broker_without_offsets_is_killed() {
    let (dir, offsets) = filled().await;
    offsets.store.save_checkpoint().unwrap();
    let offsets = killed(&dir, offsets);
    assert_eq!(offsets.store.recovered().gaps, []);
    let queue = offsets.store.find_queue("T", QueueId::ZERO).unwrap();
    assert!(queue.entry(QueueOffset::ZERO).is_some(), "the message at the start of the log is lost");
}

#[tokio::test]
async fn an_offset_in_the_first_record_of_the_log_survives_a_kill() {
    let dir = TempDir::new().unwrap();
    let offsets = open(dir.path());
    offsets.reset(vec![(key("g", "T", 0), at(0))]).await.unwrap();
    let offsets = killed(&dir, offsets);
    assert_eq!(offsets.get("g", "T", QueueId::ZERO), Some(at(0)));
}

/// Regression: what was noted while an earlier note was on its way to the disk was never logged.
#[tokio::test]
async fn an_offset_that_is_noted_while_another_is_flushed_is_kept() {
    let (dir, disk) = (TempDir::new().unwrap(), FaultDisk::default());
    let offsets = open_on(dir.path(), &disk);
    fixture::send(&offsets.store, "T", 0, 10).await;
    offsets.note(key("g", "T", 0), at(5)).unwrap();
    let held = disk.hold_syncs("commitlog");
    offsets.log_waiting().unwrap();
    offsets.note(key("g", "T", 0), at(7)).unwrap();
    drop(held);
    offsets.settle().await.unwrap();
    assert!(!offsets.is_only_noted("g", "T", QueueId::ZERO));
    let offsets = killed(&dir, offsets);
    assert_eq!(offsets.get("g", "T", QueueId::ZERO), Some(at(7)));
}

/// Regression: what consumers that did not know of a reset committed or pulled while it was on its way to the disk was
/// behind it in the log, and undid it.
#[tokio::test]
async fn a_reset_on_its_way_to_the_disk_is_undone_by_nothing() {
    let (dir, disk) = (TempDir::new().unwrap(), FaultDisk::default());
    let offsets = open_on(dir.path(), &disk);
    fixture::send(&offsets.store, "T", 0, 10).await;
    offsets.commit(key("g", "T", 0), at(6)).await.unwrap();
    offsets.reset(vec![(key("g", "T", 0), at(4))]).await.unwrap();
    assert_eq!(offsets.take_reset(&key("g", "T", 0), at(6)), Some(at(4)));
    for group in ["noting", "committing"] {
        offsets.commit(key(group, "T", 0), at(6)).await.unwrap();
    }

    let held = disk.hold_syncs("commitlog");
    let resets = ["g", "noting", "committing"].map(|group| (key(group, "T", 0), at(2)));
    let reset = tokio::spawn({
        let offsets = Arc::clone(&offsets);
        async move { offsets.reset(resets.to_vec()).await }
    });
    tokio::task::yield_now().await;
    let commit = tokio::spawn({
        let offsets = Arc::clone(&offsets);
        async move { offsets.commit(key("committing", "T", 0), at(9)).await }
    });
    tokio::task::yield_now().await;
    offsets.note(key("noting", "T", 0), at(9)).unwrap();
    assert_eq!(offsets.take_reset(&key("g", "T", 0), at(4)), None);
    offsets.log_waiting().unwrap();
    assert_eq!(offsets.get("noting", "T", QueueId::ZERO), Some(at(6)), "it is not kept yet");
    drop(held);
    reset.await.unwrap().unwrap();
    commit.await.unwrap().unwrap();

    let offsets = killed(&dir, offsets);
    for group in ["g", "noting", "committing"] {
        assert_eq!(offsets.get(group, "T", QueueId::ZERO), Some(at(2)), "{group}");
        assert_eq!(offsets.take_reset(&key(group, "T", 0), at(9)), Some(at(2)), "{group}");
    }
}
