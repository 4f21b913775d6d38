//! Tests of the key index.

use super::super::disk::RealDisk;
use super::super::fault_disk::{FaultDisk, Op};
use super::*;

const SMALL: IndexOptions = IndexOptions { slots: 7, entries: 20 };

fn open(dir: &std::path::Path) -> KeyIndex {
    KeyIndex::open(Arc::new(RealDisk), dir.join("index"), SMALL).expect("an index")
}

fn add(index: &KeyIndex, topic: &str, key: &str, phy: u64) {
    let hash = index_hash(JavaHash::new().push(topic).push("#").push(key).finish());
    let key = Key { hash, phy: PhyOffset::new(phy), store_at: Millis::new(1_000_000).plus(phy) };
    index.pending().keys.push(key);
}

fn find(index: &KeyIndex, key: &str) -> Vec<u64> {
    let found = index.find("T", key, Millis::ZERO, Millis::MAX, 100).expect("found");
    found.into_iter().map(PhyOffset::get).collect()
}

#[test]
fn keys_are_found_before_and_after_writing_and_in_older_files() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let index = open(dir.path());
    for n in 0..50 {
        add(&index, "T", &format!("k{}", n % 10), n * 100);
    }
    assert_eq!(find(&index, "k3"), [4300, 3300, 2300, 1300, 300]);
    index.write().expect("written");
    assert_eq!(find(&index, "k3"), [4300, 3300, 2300, 1300, 300]);
    assert_eq!(find(&index, "nothing"), [0u64; 0]);
    let again = open(dir.path());
    assert_eq!(find(&again, "k3"), [4300, 3300, 2300, 1300, 300]);
    assert_eq!(again.newest().1, PhyOffset::new(4900));
    again.raise_min(PhyOffset::new(2500)).expect("raised");
    assert_eq!(find(&again, "k3"), [4300, 3300, 2300]);
}

#[test]
fn a_file_that_was_only_just_made_goes_at_the_next_start() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let index = open(dir.path());
    add(&index, "T", "k", 100);
    index.write().expect("written");
    let unborn = dir.path().join("index/20261122052314469");
    let foreign = dir.path().join("index/notes");
    std::fs::write(&unborn, b"").expect("made");
    std::fs::write(&foreign, b"").expect("made");
    let again = open(dir.path());
    assert!(!unborn.exists() && foreign.exists());
    assert_eq!(find(&again, "k"), [100]);
}

#[test]
fn a_failure_in_a_later_file_writes_nothing_twice() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let disk = FaultDisk::default();
    let index = KeyIndex::open(Arc::new(disk.clone()), dir.path().join("index"), SMALL).expect("an index");
    for n in 0..30 {
        // The second file begins with number 19, at 03:03:20.
        add(&index, "T", &format!("k{n}"), if n < 19 { n } else { 10_000_000 + n - 19 });
    }
    disk.fail(Op::Write { after: 0 }, "19700101030320000", 5);
    index.write().expect_err("the second file cannot be written");
    disk.heal();
    index.write().expect("written");
    let files = index.files.lock().expect("not poisoned");
    let entries: Vec<u32> = files.iter().map(|file| file.header.next - 1).collect();
    assert_eq!(entries, [19, 11]);
}

#[test]
fn time_bounds_and_limits_hold() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let index = open(dir.path());
    for n in 0..10 {
        add(&index, "T", "k", n * 10_000);
    }
    for written in [false, true] {
        if written {
            index.write().expect("written");
        }
        let from = Millis::new(1_000_000).plus(20_000);
        let found = index.find("T", "k", from, from.plus(20_000), 100).expect("found");
        assert_eq!(found.len(), 3, "written: {written}");
        assert_eq!(index.find("T", "k", Millis::ZERO, Millis::MAX, 2).expect("found").len(), 2);
    }
}

#[test]
fn slots_left_by_a_crashed_run_are_seen_through() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let index = open(dir.path());
    add(&index, "T", "a", 100);
    add(&index, "T", "b", 200);
    index.write().expect("written");
    let path = RealDisk.list(&dir.path().join("index")).expect("listed").remove(0).0;
    let path = dir.path().join("index").join(path);
    let header = std::fs::read(&path).expect("read")[..40].to_vec();
    add(&index, "T", "a", 300);
    index.write().expect("written");
    // The crash: entries and slots are there, the header is not.
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[..40].copy_from_slice(&header);
    std::fs::write(&path, bytes).expect("written");
    let again = open(dir.path());
    assert_eq!(find(&again, "a"), [100]);
    add(&again, "T", "a", 300);
    again.write().expect("written");
    assert_eq!(find(&again, "a"), [300, 100]);
}

/// Regression: the newest file went as a whole, and with it keys that no start adds again.
#[test]
fn a_cut_forgets_only_what_lies_behind_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut index = open(dir.path());
    for n in 0..50 {
        add(&index, "T", &format!("k{}", n % 10), n * 100);
    }
    index.write().expect("written");
    for reopened in [false, true] {
        index.truncate(PhyOffset::new(4500)).expect("cut");
        if reopened {
            index = open(dir.path());
        }
        assert_eq!(find(&index, "k3"), [4300, 3300, 2300, 1300, 300]);
        assert_eq!(find(&index, "k5"), [3500, 2500, 1500, 500]);
        assert_eq!(index.newest().1, PhyOffset::new(4400));
    }
    // Over the end of a file: the last one is empty then, and goes.
    index.truncate(PhyOffset::new(3000)).expect("cut");
    assert_eq!(find(&index, "k3"), [2300, 1300, 300]);
    add(&index, "T", "k3", 3000);
    index.write().expect("written");
    assert_eq!(find(&index, "k3"), [3000, 2300, 1300, 300]);
    assert_eq!(find(&open(dir.path()), "k3"), [3000, 2300, 1300, 300]);
}

/// Regression: a slot named an entry of a run that a crash ended; when another key got its number, the slot led
/// to that one.
#[test]
fn slots_left_by_a_crashed_run_do_not_lead_to_later_keys() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let index = open(dir.path());
    add(&index, "T", "a", 100);
    index.write().expect("written");
    let path = RealDisk.list(&dir.path().join("index")).expect("listed").remove(0).0;
    let path = dir.path().join("index").join(path);
    let header = std::fs::read(&path).expect("read")[..40].to_vec();
    add(&index, "T", "a", 200);
    index.write().expect("written");
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[..40].copy_from_slice(&header);
    std::fs::write(&path, bytes).expect("written");
    // The log lost what was indexed last: another key gets the number.
    let again = open(dir.path());
    again.truncate(PhyOffset::new(200)).expect("cut");
    add(&again, "T", "b", 200);
    again.write().expect("written");
    assert_eq!(find(&again, "a"), [100]);
    assert_eq!(find(&again, "b"), [200]);
}

/// Regression: a file without a header, made just before a crash, made keys of the one before be added again.
#[test]
fn a_file_without_a_header_forgets_no_position() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let index = open(dir.path());
    add(&index, "T", "a", 100);
    index.write().expect("written");
    let len = SMALL.file_bytes();
    RealDisk.open(&dir.path().join("index/20991231235959999"), len).expect("made");
    let again = open(dir.path());
    assert_eq!(again.pending().position, PhyOffset::new(100));
    again.truncate(PhyOffset::new(1000)).expect("cut");
    assert_eq!(RealDisk.list(&dir.path().join("index")).expect("listed").len(), 1);
    assert_eq!(find(&again, "a"), [100]);
}

#[test]
fn names_are_times() {
    assert_eq!(file_name(Millis::new(0)), "19700101000000000");
    assert_eq!(file_name(Millis::new(1_709_210_096_789)), "20240229123456789");
}
