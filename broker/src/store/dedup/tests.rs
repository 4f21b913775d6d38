//! Tests of the dedup window on its own; the store's tests show it surviving stops.

use super::super::disk::RealDisk;
use super::super::fault_disk::{EIO, FaultDisk, Op};
use super::*;

#[test]
fn topic_and_id_both_count() {
    assert_eq!(DedupKey::new("T", "u"), DedupKey::new("T", "u"));
    assert_ne!(DedupKey::new("T", "u"), DedupKey::new("U", "u"));
    assert_ne!(DedupKey::new("T", "u"), DedupKey::new("T", "v"));
}

#[test]
fn an_admitted_id_is_known_until_two_turns_later() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = DedupOptions { window_ms: 1000, entries: 100 };
    let window = DedupWindow::open(Arc::new(RealDisk), dir.path().join("dedup"), options).expect("a window");
    let key = DedupKey::new("T", "u");
    assert_eq!(window.earlier(key), None);
    window.admit().stored(key, PhyOffset::new(77));
    assert_eq!(window.earlier(key), Some(PhyOffset::new(77)));
    {
        let mut inner = window.lock();
        inner.current.began = Some(Millis::new(0));
    }
    window.expire(Millis::new(499));
    assert_eq!(window.lock().previous.ids(), 0);
    window.expire(Millis::new(500));
    assert_eq!(window.earlier(key), Some(PhyOffset::new(77)), "the previous generation still counts");
    window.lock().current.began = Some(Millis::new(500));
    window.expire(Millis::new(1000));
    assert_eq!(window.earlier(key), None);
}

#[test]
fn a_full_generation_makes_room() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = DedupOptions { window_ms: u64::MAX / 4, entries: 10 };
    let window = DedupWindow::open(Arc::new(RealDisk), dir.path().join("dedup"), options).expect("a window");
    for n in 0..35u64 {
        window.admit().stored(DedupKey::new("T", &n.to_string()), PhyOffset::new(n));
        let mut inner = window.lock();
        inner.current.began.get_or_insert(Millis::ZERO);
        inner.turn_if_due(Millis::ZERO, options);
    }
    assert_eq!(window.len(), 15);
    assert!(window.earlier(DedupKey::new("T", "34")).is_some());
    assert!(window.earlier(DedupKey::new("T", "3")).is_none());
}

#[test]
fn ids_that_could_not_be_written_are_written_next_time() {
    for (op, number) in [(Op::Write { after: 5 }, 1), (Op::Sync, 2)] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = FaultDisk::default();
        let open = || {
            let disk = Arc::new(disk.clone());
            DedupWindow::open(disk, dir.path().join("dedup"), DedupOptions::default()).expect("a window")
        };
        let key = |n: u64| DedupKey::new("T", &n.to_string());
        let window = open();
        let add = |n| window.lock().current.put(key(n), PhyOffset::new(n));
        add(number);
        window.write().expect("the disk is well");
        add(10);
        disk.fail(op, "dedup", EIO);
        window.write().expect_err("the disk fails");
        disk.heal();
        add(11);
        window.write().expect("the disk is well again");
        drop(window);
        let window = open();
        let found = [number, 10, 11].map(|n| window.earlier(key(n)));
        assert_eq!(found, [number, 10, 11].map(|n| Some(PhyOffset::new(n))), "after {op:?} failed");
    }
}

/// Regression: entries of records that a crash had taken stayed in the file. At the next start they stood before
/// newer records of the same id, which dispatch then did not add: a resend of one was stored again.
#[test]
fn an_id_whose_record_was_lost_does_not_hide_the_one_stored_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for lost in [vec![50], vec![5, 50]] {
        let files = dir.path().join(format!("dedup-{}", lost.len()));
        let open = || {
            DedupWindow::open(Arc::new(RealDisk), files.clone(), DedupOptions::default()).expect("a window")
        };
        let key = DedupKey::new("T", "u");
        let window = open();
        for phy in &lost {
            window.admit().stored(key, PhyOffset::new(*phy));
        }
        window.write().expect("written");
        let window = open();
        window.truncate(PhyOffset::new(20)).expect("cut");
        window.admit().stored(key, PhyOffset::new(30));
        // Killed before it is written; the log has it, and grew beyond where the lost one was.
        let window = open();
        window.dispatched(PhyOffset::new(30), Millis::ZERO, || Some(key));
        window.truncate(PhyOffset::new(100)).expect("cut");
        assert_eq!(window.earlier(key), Some(PhyOffset::new(30)), "lost: {lost:?}");
    }
}

/// Regression: a file that could not be written stayed behind when its generation was forgotten before the next
/// attempt, and the next start took it for the generation's predecessor.
#[test]
fn a_file_that_could_not_be_written_goes_with_its_generation() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (disk, options) = (FaultDisk::default(), DedupOptions { window_ms: u64::MAX / 4, entries: 2 });
    let open =
        || DedupWindow::open(Arc::new(disk.clone()), dir.path().join("dedup"), options).expect("a window");
    let key = |n: u64| DedupKey::new("T", &n.to_string());
    let window = open();
    window.admit().stored(key(1), PhyOffset::new(1));
    disk.fail(Op::Sync, "dedup", EIO);
    window.write().expect_err("the disk fails");
    disk.heal();
    for n in 2..6 {
        window.admit().stored(key(n), PhyOffset::new(n));
    }
    assert_eq!(window.earlier(key(1)), None);
    window.write().expect("the disk is well again");
    drop(window);
    let window = open();
    assert_eq!((window.earlier(key(1)), window.earlier(key(5))), (None, Some(PhyOffset::new(5))));
}

/// Regression: a file that was made and not written was taken for a generation at the next start. It got entries
/// from before its name, and then the generation that began there wrote its own over them.
#[test]
fn a_file_without_entries_is_no_generation() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = DedupOptions { window_ms: u64::MAX / 4, entries: 2 };
    let files = dir.path().join("dedup");
    RealDisk.open(&offset_path(&files, 30), 2 * ENTRY_BYTES).expect("made");
    let open = || DedupWindow::open(Arc::new(RealDisk), files.clone(), options).expect("a window");
    let key = |n: u64| DedupKey::new("T", &n.to_string());
    let window = open();
    for n in 1..4 {
        window.admit().stored(key(n), PhyOffset::new(n * 10));
    }
    window.write().expect("written");
    let window = open();
    for n in 1..4 {
        assert_eq!(window.earlier(key(n)), Some(PhyOffset::new(n * 10)), "{n}");
    }
}

/// Regression: recovery came to records from before everything in the files and added them to the newest
/// generation, behind entries that are newer.
#[test]
fn what_is_older_than_the_files_stays_forgotten() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let open = || {
        let (disk, files) = (Arc::new(RealDisk), dir.path().join("dedup"));
        DedupWindow::open(disk, files, DedupOptions::default()).expect("a window")
    };
    let key = |n: u64| DedupKey::new("T", &n.to_string());
    let window = open();
    window.admit().stored(key(7), PhyOffset::new(70));
    window.write().expect("written");
    let window = open();
    window.dispatched(PhyOffset::new(60), Millis::ZERO, || Some(key(6)));
    window.dispatched(PhyOffset::new(80), Millis::ZERO, || Some(key(8)));
    window.truncate(PhyOffset::new(90)).expect("cut");
    assert_eq!(
        [6, 7, 8].map(|n| window.earlier(key(n))),
        [None, Some(PhyOffset::new(70)), Some(PhyOffset::new(80))]
    );
}

/// Regression: records that dispatch or recovery came to late set the beginning of a generation that had begun
/// after them; so what was in the one before was forgotten too early.
#[test]
fn a_generation_begins_with_its_own_first_entry() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = DedupOptions { window_ms: 1000, entries: 2 };
    let window = DedupWindow::open(Arc::new(RealDisk), dir.path().join("dedup"), options).expect("a window");
    let key = |n: u64| DedupKey::new("T", &n.to_string());
    for n in 1..4 {
        window.admit().stored(key(n), PhyOffset::new(n));
    }
    for (n, store_at) in [(1, 0), (2, 400), (3, 400)] {
        window.dispatched(PhyOffset::new(n), Millis::new(store_at), || Some(key(n)));
    }
    window.expire(Millis::new(899));
    assert_eq!(window.earlier(key(2)), Some(PhyOffset::new(2)));
    window.expire(Millis::new(900));
    assert_eq!(window.earlier(key(2)), None);
}
