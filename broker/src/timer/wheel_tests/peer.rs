//! What an Apache broker finds of the timers, in its files and over the wire.

use gantry_proto::ids::QueueOffset;
use gantry_proto::names::topics;
use gantry_proto::remoting::body::timer::TimerCheckpoint;

use super::*;

const ENTRY: usize = 52;

fn number(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn small(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn check(dir: &Path) -> TimerCheckpoint {
    TimerCheckpoint::decode(&std::fs::read(dir.join("config/timercheck")).expect("a file")).expect("its form")
}

#[tokio::test]
async fn a_broker_without_timers_leaves_no_files() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    broker.store.close().expect("closed");
    broker.wheel.hand_over().expect("nothing to do");
    for name in ["config/timercheck", "config/timermetrics", "timerwheel", "timerlog"] {
        assert!(!dir.path().join(name).exists(), "{name}");
    }
}

#[tokio::test]
async fn what_waits_is_in_the_wheel_and_what_is_done_is_not() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    broker.delayed("done", 100).await;
    let near = broker.delayed("near", 5_000).await;
    let twin = broker.delayed("twin", 5_001).await;
    let far = broker.delayed("far", 3 * DAY_MS).await;
    let overdue = broker.delayed("overdue", 1_000).await;
    broker.delayed("recalled", 5_000).await;
    broker.recall(&broker.handle("recalled", 5_000)).await.expect("it waits");
    broker.clock.advance(100);
    broker.round().await;
    broker.clock.advance(1_900);
    let stale = dir.path().join("timerwheel.7");
    std::fs::write(&stale, b"a snapshot of before").expect("written");
    broker.store.close().expect("closed");
    broker.wheel.hand_over().expect("written");
    assert!(!stale.exists());

    let queue = broker.store.find_queue(topics::TIMER, QueueId::ZERO).expect("a queue");
    let (second, found) = (fixture::NOW.get().div_euclid(1000) + 2, check(dir.path()));
    assert_eq!((found.read_time.get(), found.flushed), (second * 1000, 5 * 52));
    let end = i64::try_from(queue.max().get()).expect("small");
    assert_eq!((found.queue_offset, found.master_queue_offset), (end, end));
    let log = std::fs::read(dir.path().join("timerlog/00000000000000000000")).expect("a log");
    let wheel = std::fs::read(dir.path().join("timerwheel")).expect("a wheel");
    assert_eq!((log.len(), wheel.len()), (104_857_600, 38_707_200));
    let slot = |second: i64| {
        let at = usize::try_from(second.rem_euclid(1_209_600)).expect("small") * 32;
        (number(&wheel, at) == second)
            .then(|| (number(&wheel, at + 8), number(&wheel, at + 16), small(&wheel, at + 24)))
    };
    let entry = |at: i64| {
        let bytes = &log[usize::try_from(at).expect("inside")..][..ENTRY];
        assert_eq!(small(bytes, 0), 52);
        let due = number(bytes, 16) + i64::from(small(bytes, 24));
        (number(bytes, 4), small(bytes, 12), due / 1000, number(bytes, 28).unsigned_abs())
    };
    // Two of one second hang together, the last one first.
    let due = fixture::NOW.plus(5_000).get().div_euclid(1000);
    let (first, last, count) = slot(due).expect("a slot");
    assert_eq!((count, entry(last)), (2, (first, 1, due, twin.get())));
    assert_eq!(entry(first), (-1, 1, due, near.get()));
    assert_eq!(slot(second).map(|(at, _, _)| entry(at)), Some((-1, 1, second, overdue.get())));
    // What is further off than two days is stored anew on the way.
    let (at, ..) = (second..second + 2 * 86_400)
        .find_map(|at| slot(at).filter(|_| entry_of(&log, at, far)))
        .expect("far");
    assert_eq!(entry(at).1, 3);
    // The last one names the end of the queue.
    let newest = queue.entry(QueueOffset::new(queue.max().get() - 1)).expect("an entry");
    let (.., time, phy) = entry(4 * 52);
    assert!(phy == newest.phy.get() && time < second && slot(time).is_none());

    let metrics = std::fs::read_to_string(dir.path().join("config/timermetrics")).expect("a file");
    assert!(metrics.contains(r#""orders":{"count":4,"#), "{metrics}");
    let told = broker.wheel.checkpoint();
    assert_eq!((told.read_time.get(), told.queue_offset), ((second - 1) * 1000, end));
    drop(broker);
    let broker = open_at(dir.path(), fixture::NOW.plus(2_000));
    assert_eq!(broker.wheel.pending(), 4, "nothing of it is read back");
}

/// Whether the log's entry for `phy` is due at `second`.
fn entry_of(log: &[u8], second: i64, phy: PhyOffset) -> bool {
    log.chunks_exact(ENTRY).take(5).any(|bytes| {
        let due = number(bytes, 16) + i64::from(small(bytes, 24));
        number(bytes, 28).unsigned_abs() == phy.get() && due / 1000 == second
    })
}

/// More timers than the file holds, or no room for them: Apache reads its queue again from the first that waits.
#[tokio::test]
async fn where_the_wheel_cannot_be_written_the_queue_is_read_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    for body in ["one", "two", "three"] {
        broker.delayed(body, if body == "one" { 100 } else { 200_000 }).await;
    }
    broker.clock.advance(100);
    broker.round().await;
    std::fs::create_dir_all(dir.path().join("timerlog")).expect("made");
    std::fs::write(dir.path().join("timerlog/00000000000000000000"), [0; 100]).expect("written");
    broker.store.close().expect("closed");
    broker.wheel.hand_over().expect("written");
    assert_eq!((check(dir.path()).queue_offset, check(dir.path()).flushed), (1, 0));
    assert!(!dir.path().join("timerwheel").exists());
}
