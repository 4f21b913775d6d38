//! A sound store is clean; whatever bit is changed in it is found.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_proto::ids::Millis;

use super::super::disk::RealDisk;
use super::super::tests::{options, push, send};
use super::super::{Batch, FlushPolicy, Store};
use super::finding::{Area, Severity};
use super::*;
use crate::clock::ManualClock;

const SMALL: IndexOptions = IndexOptions { slots: 100, entries: 40 };

fn look_at(dir: &Path) -> Report {
    let options = VerifyOptions { index: SMALL, delay_levels: Arc::from([]), findings_max: 3 };
    verify(dir, &options, &mut |_, _| {}).expect("a store that can be read")
}

fn assert_clean(dir: &Path) -> Counts {
    let report = look_at(dir);
    let findings: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "{findings:#?}");
    report.counts
}

fn open(dir: &Path) -> Store {
    let clock = Arc::new(ManualClock::new(Millis::new(1_700_000_000_000)));
    Store::open(dir, &options(FlushPolicy::Memory), Arc::new(RealDisk), clock, Vec::new())
        .expect("the store opens")
}

/// Two log files, two queues, one and a half index files.
async fn write(dir: &Path, messages: usize) {
    let store = open(dir);
    for n in 0..messages {
        send(&store, "T", u32::from(n % 3 == 0), format!("body {n}").as_bytes(), &format!("u{n}")).await;
    }
    store.close().expect("closed");
}

/// Every file below `dir` with its content.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.append(&mut files(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).expect("readable"));
        }
    }
    found
}

#[tokio::test]
async fn a_sound_store_is_clean_and_stays_as_it_is() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write(dir.path(), 30).await;
    let before = files(dir.path());
    let counts = assert_clean(dir.path());
    assert_eq!((counts.records, counts.entries, counts.queues), (30, 30, 2));
    assert_eq!((counts.keys, counts.index_files), (60, 2));
    assert!(counts.log_files > 1);
    assert_eq!(files(dir.path()), before);
}

/// What nothing reads: behind a blank record, and entries of the index behind the last one.
fn is_free(name: &str, bytes: &[u8], at: usize) -> bool {
    if name.contains("/commitlog/") {
        let blank = bytes.windows(4).position(|four| four == [0xCB, 0xD4, 0x31, 0x94]);
        return blank.is_some_and(|magic| at >= magic + 4);
    }
    let next = u32::from_be_bytes(bytes[36..40].try_into().expect("four bytes"));
    name.contains("/index/") && at as u64 >= SMALL.entry_at(next)
        || name.contains("/index/") && (SMALL.entry_at(0)..SMALL.entry_at(1)).contains(&(at as u64))
}

#[tokio::test]
async fn every_changed_bit_of_log_queues_and_index_is_found() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write(dir.path(), 22).await;
    assert_clean(dir.path());
    let mut unnoticed = Vec::new();
    let mut flips = 0;
    for (path, bytes) in files(dir.path()) {
        let name = path.strip_prefix(dir.path()).expect("below it").display().to_string();
        let name = format!("/{name}");
        let area = match name.split('/').nth(1) {
            Some("commitlog") => Area::Log,
            Some("consumequeue") => Area::Queue,
            Some("index") => Area::Index,
            _ => continue,
        };
        let file = fs::File::options().write(true).open(&path).expect("writable");
        for at in 0..bytes.len() {
            // Of the long stretches of zeroes some bytes will do.
            let around = bytes.get(at.saturating_sub(24)..bytes.len().min(at + 24)).unwrap_or_default();
            let zeroes = around.iter().all(|byte| *byte == 0) && at % 16 != 0;
            if is_free(&name, &bytes, at) || zeroes {
                continue;
            }
            let changed = bytes[at] ^ (1 << (at % 8));
            file.write_all_at(&[changed], at as u64).expect("written");
            let report = look_at(dir.path());
            file.write_all_at(&[bytes[at]], at as u64).expect("written");
            flips += 1;
            let found = report.findings.iter().any(|finding| finding.area == area);
            if !found || report.findings.damage() == 0 {
                unnoticed.push(format!("{name} byte {at} bit {}", at % 8));
            }
        }
    }
    assert!(flips > 3000, "{flips}");
    assert!(unnoticed.is_empty(), "{} of {flips}: {unnoticed:#?}", unnoticed.len());
    assert_clean(dir.path());
}

#[tokio::test]
async fn a_changed_tag_hash_names_its_message() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write(dir.path(), 6).await;
    let path = dir.path().join("consumequeue/T/0/00000000000000000000");
    let mut bytes = fs::read(&path).expect("read");
    bytes[20 + 19] ^= 1;
    fs::write(&path, bytes).expect("written");
    let report = look_at(dir.path());
    let finding = report.findings.iter().next().expect("a finding").clone();
    let message = finding.message.clone().expect("a message");
    assert_eq!((message.queue_offset, message.id.as_deref()), (1, Some("u2")));
    assert_eq!((finding.byte, finding.severity, finding.area), (20, Severity::Damage, Area::Queue));
    assert!(finding.what.contains("tags code"), "{finding}");
    assert_eq!(report.findings.damage(), 1);
}

#[tokio::test]
async fn what_a_crash_leaves_is_no_damage() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    for n in 0..10 {
        send(&store, "T", 0, b"before", &format!("a{n}")).await;
    }
    store.keep_house().expect("a checkpoint");
    let mut last = None;
    for n in 0..10 {
        last = Some(send(&store, "T", 0, b"after", &format!("b{n}")).await);
    }
    drop(store);
    let report = look_at(dir.path());
    assert_eq!(report.closed, Closed::Crashed);
    assert_eq!((report.findings.damage(), report.findings.mended()), (0, 0));
    assert_eq!((report.counts.entries, report.counts.entries_to_come), (10, 10));
    assert_eq!((report.counts.keys, report.counts.keys_to_come), (20, 10));
    // The last record torn: the next start cuts it.
    let last = last.expect("sent").phy.get();
    let path = dir.path().join("commitlog/00000000000000000000");
    let file = fs::File::options().write(true).open(&path).expect("writable");
    assert!(last < 4096, "in the first file");
    file.write_all_at(&[0xFF], last + 30).expect("written");
    let report = look_at(dir.path());
    assert_eq!((report.findings.damage(), report.counts.records), (0, 19));
    assert!(report.findings.mended() > 0);
    // Started again and stopped, it is sound, the last key before the crash twice in the index.
    open(dir.path()).close().expect("closed");
    let counts = assert_clean(dir.path());
    assert_eq!((counts.records, counts.entries), (19, 19));
    assert!(counts.keys >= 38, "{}", counts.keys);
}

/// A power loss under the policy `memory`: the log ends before what queues and index name.
#[tokio::test]
async fn a_log_that_lost_its_end_is_sound_after_the_next_start() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let mut places = Vec::new();
    let checkpoint = dir.path().join("gantry.checkpoint");
    let mut early = Vec::new();
    for n in 0..15 {
        places.push(send(&store, "T", 0, b"kept", &format!("u{n}")).await.phy.get());
        if n == 4 {
            store.keep_house().expect("a checkpoint");
            early = fs::read(&checkpoint).expect("read");
        }
    }
    store.keep_house().expect("a checkpoint");
    drop(store);
    fs::write(&checkpoint, early).expect("written");
    let file = fs::File::options()
        .write(true)
        .open(dir.path().join("commitlog/00000000000000000000"))
        .expect("writable");
    file.write_all_at(&vec![0; usize::try_from(4096 - places[10]).expect("small")], places[10])
        .expect("written");
    let report = look_at(dir.path());
    assert_eq!((report.findings.damage(), report.counts.records), (0, 10));
    assert!(report.findings.mended() > 0);
    let store = open(dir.path());
    for (n, place) in (10..).zip(&places[10..13]) {
        assert_eq!(send(&store, "T", 0, b"kept", &format!("v{n}")).await.phy.get(), *place);
    }
    store.close().expect("closed");
    let counts = assert_clean(dir.path());
    assert_eq!((counts.records, counts.entries, counts.keys), (13, 13, 26));
}

#[tokio::test]
async fn records_of_deleted_topics_lack_no_entries() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    for n in 0..8 {
        send(&store, "T", 0, b"one", &format!("a{n}")).await;
        send(&store, "Gone", 0, b"one", &format!("g{n}")).await;
    }
    store.remove_topic("T").expect("removed");
    store.remove_topic("Gone").expect("removed");
    for n in 0..3 {
        send(&store, "T", 0, b"two", &format!("b{n}")).await;
    }
    store.close().expect("closed");
    let counts = assert_clean(dir.path());
    assert_eq!((counts.records_of_deleted_topics, counts.entries), (16, 3));
    // Without the count the same would be a loss.
    fs::remove_dir_all(dir.path().join("consumequeue/T")).expect("removed");
    let report = look_at(dir.path());
    assert!(report.findings.damage() > 0);
}

#[tokio::test]
async fn missing_and_short_files_are_found() {
    let lost = [
        "commitlog/00000000000000004096",
        "consumequeue/T/0/00000000000000000000",
        "consumequeue/T/0/00000000000000000320",
    ];
    for name in lost {
        for short in [false, true] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            write(dir.path(), 60).await;
            let path = dir.path().join(name);
            if short {
                fs::File::options().write(true).open(&path).and_then(|file| file.set_len(100)).expect("cut");
            } else {
                fs::remove_file(&path).expect("removed");
            }
            assert!(look_at(dir.path()).findings.damage() > 0, "{name} short: {short}");
        }
    }
    for number in 0..3 {
        let dir = tempfile::tempdir().expect("a temporary directory");
        write(dir.path(), 60).await;
        let index = files(&dir.path().join("index"));
        fs::remove_file(index.keys().nth(number).expect("three files")).expect("removed");
        assert!(look_at(dir.path()).findings.damage() > 0, "index file {number}");
    }
}

#[tokio::test]
async fn expired_records_are_not_missed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write(dir.path(), 60).await;
    let store = open(dir.path());
    store.log().segments().drop_first().expect("dropped");
    store.raise_min().expect("raised");
    let mut batch = Batch::new();
    push(&store, &mut batch, "T", 0, b"later", "later");
    store.append_settled(&mut batch).await.expect("appended");
    store.close().expect("closed");
    let counts = assert_clean(dir.path());
    assert_eq!(counts.log_start, 4096);
    assert!(counts.expired_entries > 0 && counts.expired_keys > 0);
}

#[tokio::test]
async fn small_files_must_be_plausible() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    write(dir.path(), 6).await;
    fs::create_dir_all(dir.path().join("config")).expect("a directory");
    fs::write(dir.path().join("config/a.json"), b"{1:{\"x\":2}}").expect("written");
    assert_eq!(assert_clean(dir.path()).config_files, 1);
    fs::write(dir.path().join("config/a.json"), b"{1:{\"x\":2}").expect("written");
    let report = look_at(dir.path());
    assert!(report.findings.iter().all(|finding| finding.area == Area::Config));
    assert_eq!(report.findings.damage(), 1);
    fs::remove_file(dir.path().join("config/a.json")).expect("removed");
    let text = fs::read_to_string(dir.path().join("gantry.checkpoint")).expect("read");
    let positions: checkpoint::Positions = serde_json::from_str(&text).expect("positions");
    let moved = text.replace(&positions.flushed.to_string(), &(positions.flushed - 1).to_string());
    fs::write(dir.path().join("gantry.checkpoint"), moved).expect("written");
    assert!(look_at(dir.path()).findings.damage() > 0);
    fs::write(dir.path().join("gantry.checkpoint"), text).expect("written");
    let mut peer = fs::read(dir.path().join("checkpoint")).expect("read");
    peer[0] = 1;
    fs::write(dir.path().join("checkpoint"), peer).expect("written");
    assert_eq!(look_at(dir.path()).findings.damage(), 1);
}

#[test]
fn no_store_is_no_clean_store() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = VerifyOptions { index: SMALL, delay_levels: Arc::from([]), findings_max: 3 };
    let refused = verify(dir.path(), &options, &mut |_, _| {}).expect_err("no store");
    assert!(refused.to_string().contains("--store"), "{refused}");
    assert!(fs::read_dir(dir.path()).expect("there").next().is_none(), "nothing was made");
}
