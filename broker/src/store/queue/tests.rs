//! Tests of one consume queue on real files.

use std::sync::Arc;

use super::super::disk::{Disk as _, RealDisk};
use super::*;

fn open(dir: &std::path::Path) -> Queue {
    let topic = TopicName::parse("T").expect("a valid name");
    Queue::open(&shared(100), dir.join("T/0"), topic, QueueId::ZERO).expect("a queue")
}

fn shared(open_max: usize) -> Shared {
    Shared { disk: Arc::new(RealDisk), volume: None, file_bytes: 320, open: Arc::default(), open_max }
}

fn entry(at: u64, phy: u64) -> QueueEntry {
    QueueEntry { at: QueueOffset::new(at), phy: PhyOffset::new(phy), size: 100, tags_code: -7 }
}

fn all(queue: &Queue) -> Vec<QueueEntry> {
    let mut out = Vec::new();
    queue.entries(queue.min(), 1000, &mut out);
    out
}

#[test]
fn entries_are_read_from_memory_and_over_file_ends() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let queue = open(dir.path());
    for n in 0..40 {
        queue.push(entry(n, n * 100)).expect("push");
        if n == 20 {
            queue.flush().expect("flush");
        }
    }
    assert_eq!(all(&queue).len(), 40);
    assert_eq!(queue.entry(QueueOffset::new(33)), Some(entry(33, 3300)));
    queue.push(entry(12, 1)).expect("an entry that is there already is skipped");
    queue.flush().expect("flush");
    let again = open(dir.path());
    assert_eq!(all(&again), all(&queue));
    assert_eq!(again.assign(), QueueOffset::new(40));
}

#[test]
fn truncation_forgets_what_lies_behind_the_log() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let queue = open(dir.path());
    for n in 0..40 {
        queue.push(entry(n, n * 100)).expect("push");
    }
    queue.truncate(PhyOffset::new(1750)).expect("truncate");
    assert_eq!(queue.max(), QueueOffset::new(17));
    assert_eq!(open(dir.path()).max(), QueueOffset::new(17));
    queue.push(entry(17, 1700)).expect("push");
    assert_eq!(all(&queue).len(), 18);
}

/// A cut that was killed halfway left files without those before them.
#[test]
fn a_queue_without_its_first_files_is_built_again_from_its_first_entry() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let queue = open(dir.path());
    for n in 0..40 {
        queue.push(entry(n, n * 100)).expect("push");
    }
    queue.flush().expect("flush");
    RealDisk.remove(&dir.path().join("T/0/00000000000000000000")).expect("removed");
    let again = open(dir.path());
    again.truncate(PhyOffset::ZERO).expect("truncate");
    for n in 0..40 {
        again.push(entry(n, n * 100)).expect("push");
    }
    assert_eq!((again.min(), again.max()), (QueueOffset::ZERO, QueueOffset::new(40)));
    assert_eq!(all(&again), all(&queue));
}

#[test]
fn files_beyond_the_bound_are_opened_when_they_are_needed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let shared = shared(2);
    let topic = TopicName::parse("T").expect("a valid name");
    let queue = Queue::open(&shared, dir.path().join("T/0"), topic, QueueId::ZERO).expect("a queue");
    for n in 0..80 {
        queue.push(entry(n, n * 100)).expect("push");
        if n % 7 == 0 {
            queue.flush().expect("flush");
        }
    }
    assert_eq!(all(&queue).len(), 80);
    assert_eq!(shared.open.load(Ordering::Relaxed), 2);
    queue.write().expect("written");
    assert_eq!(shared.open.load(Ordering::Relaxed), 0, "more than three quarters of what may be");
    assert_eq!(all(&open(dir.path())).len(), 80);
}

#[test]
fn the_end_of_a_large_file_is_found_from_behind() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let shared = Shared { file_bytes: 100_000, ..shared(100) };
    let open = || {
        let topic = TopicName::parse("T").expect("a valid name");
        Queue::open(&shared, dir.path().join("T/0"), topic, QueueId::ZERO).expect("a queue")
    };
    let queue = open();
    for n in 0..12_000 {
        queue.push(entry(n, n * 100)).expect("push");
        if n % 613 == 0 || n == 4999 || n == 5000 || n == 11_999 {
            queue.flush().expect("flush");
            let again = open();
            assert_eq!(again.max(), QueueOffset::new(n + 1));
            assert_eq!(again.entry(QueueOffset::new(n)), Some(entry(n, n * 100)));
        }
    }
    drop(queue);
    for keep in [11_000, 10_001, 10_000, 9_999, 7, 1, 0] {
        let queue = open();
        queue.truncate(PhyOffset::new(keep * 100)).expect("cut");
        assert_eq!((queue.max().get(), open().max().get()), (keep, keep));
        queue.truncate(PhyOffset::new(keep * 100)).expect("nothing to cut");
        assert_eq!(queue.max().get(), keep);
    }
}

#[test]
fn old_entries_go_with_the_log() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let queue = open(dir.path());
    for n in 0..40 {
        queue.push(entry(n, n * 100)).expect("push");
    }
    queue.raise_min(PhyOffset::new(2050)).expect("raise");
    assert_eq!(queue.min(), QueueOffset::new(21));
    assert!(queue.entry(QueueOffset::new(20)).is_none());
    let again = open(dir.path());
    again.raise_min(PhyOffset::new(2050)).expect("raise");
    assert_eq!((again.min(), again.max()), (QueueOffset::new(21), QueueOffset::new(40)));
}

#[test]
fn a_restarted_queue_begins_with_blanks() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let queue = open(dir.path());
    queue.push(entry(21, 5000)).expect("push");
    queue.push(entry(24, 6000)).expect("push");
    assert_eq!(queue.min(), QueueOffset::new(21));
    let seen: Vec<_> = all(&queue).iter().map(QueueEntry::is_blank).collect();
    assert_eq!(seen, [false, true, true, false]);
    queue.flush().expect("flush");
    let files = RealDisk.list(&dir.path().join("T/0")).expect("listed");
    assert_eq!(files, [("00000000000000000320".to_owned(), 320)]);
}

/// A changed bit in a record that no checksum protects as a whole.
#[test]
fn a_number_beyond_belief_adds_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let queue = open(dir.path());
    assert!(matches!(queue.push(entry(u64::MAX / 2, 0)), Err(PushError::Beyond { .. })));
    for n in 0..3 {
        queue.push(entry(n, n * 100)).expect("push");
    }
    for at in [1 << 40, 9] {
        let refused = queue.push(entry(at, 300));
        assert!(matches!(refused, Err(PushError::Beyond { highest: 8, .. })), "{refused:?}");
    }
    assert_eq!((queue.max(), queue.assign()), (QueueOffset::new(3), QueueOffset::new(3)));
    // What is lost in between may have been a batch of small messages.
    queue.push(entry(8, 300)).expect("push");
    assert_eq!(all(&queue).iter().filter(|entry| entry.is_blank()).count(), 5);
}

/// Zeroes in the middle, as damage leaves them, are no reason to cut off what lies behind them.
#[test]
fn a_cut_looks_past_damaged_entries() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let queue = open(dir.path());
    for n in 0..40 {
        queue.push(entry(n, n * 100)).expect("push");
    }
    queue.flush().expect("flush");
    drop(queue);
    let path = dir.path().join("T/0/00000000000000000320");
    let mut bytes = std::fs::read(&path).expect("entries 16 to 31");
    bytes[20..240].fill(0);
    std::fs::write(&path, bytes).expect("damaged");
    let queue = open(dir.path());
    queue.truncate(PhyOffset::new(3950)).expect("truncate");
    assert_eq!(queue.max(), QueueOffset::new(39));
    queue.truncate(PhyOffset::new(1650)).expect("truncate");
    assert_eq!(queue.max(), QueueOffset::new(16));
}

/// Of what was not synced when the power failed a sector is lost, and with it the place that the entry in its end and
/// the next one's beginning names: it seems to be older than all others.
#[test]
fn a_cut_is_not_led_astray_by_an_entry_that_lost_its_beginning() {
    for entries in [103, 151] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let open = || {
            let topic = TopicName::parse("T").expect("a valid name");
            let shared = Shared { file_bytes: 8200, ..shared(100) };
            Queue::open(&shared, dir.path().join("T/0"), topic, QueueId::ZERO).expect("a queue")
        };
        let queue = open();
        for n in 0..entries {
            queue.push(entry(n, n * 100)).expect("push");
        }
        queue.flush().expect("flush");
        drop(queue);
        let path = dir.path().join("T/0/00000000000000000000");
        let mut bytes = std::fs::read(&path).expect("all entries");
        // Of entry 102, which begins at byte 2040, size and tags code are left.
        bytes[1536..2048].fill(0);
        std::fs::write(&path, bytes).expect("torn");
        let queue = open();
        queue.truncate(PhyOffset::new(7600)).expect("truncate");
        assert_eq!(queue.max(), QueueOffset::new(76), "of {entries}");
    }
}
