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
