//! Tests of the dedup window on its own; the store's tests show it surviving stops.

use super::super::disk::RealDisk;
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
    assert_eq!(window.lock().previous.table.len(), 0);
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
        window.turn(&mut inner, Millis::ZERO);
    }
    assert_eq!(window.len(), 15);
    assert!(window.earlier(DedupKey::new("T", "34")).is_some());
    assert!(window.earlier(DedupKey::new("T", "3")).is_none());
}
