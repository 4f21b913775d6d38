//! Stores that cannot be opened at all: a sentence and an exit code, and nothing is touched.

use std::fs;
use std::path::Path;

use gantry_tests::harness::{Gantry, serve_refusing};

use crate::normal::Normal;

/// Expects exit code 1 and a sentence on standard error that holds all `words`, and no `ready`.
#[track_caller]
pub fn expect_refused(store: &Path, words: &[&str]) {
    let ended = serve_refusing(store, &[]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert_eq!(ended.stdout, "", "it must not say that it is ready");
    let error = ended.stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    for word in words {
        assert!(error.contains(word), "expected {word:?} in the error, found\n{}", ended.stderr);
    }
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

#[test]
fn a_store_in_use_is_refused_and_its_user_goes_on() {
    let gantry = Gantry::start(&[]);
    let mut normal = Normal::new(&gantry);
    normal.works();
    expect_refused(gantry.store(), &["in use by another process", &gantry.store().display().to_string()]);
    normal.works();
    normal.keeps();
}

#[test]
fn an_unwritable_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"a file").unwrap();
    // Permissions do not bind root; these paths nobody can write.
    for store in [file.join("store"), file.clone(), "/proc/gantry-store".into(), "/sys/gantry-store".into()] {
        expect_refused(&store, &[&store.display().to_string(), "cannot", "os error"]);
    }
    assert_eq!(fs::read(&file).unwrap(), b"a file");
}

#[test]
fn a_store_of_a_newer_version_is_refused_untouched() {
    let mut gantry = Gantry::start(&[]);
    let mut normal = Normal::new(&gantry);
    normal.works();
    gantry.terminate();
    let checkpoint = gantry.store().join("gantry.checkpoint");
    let ours = fs::read_to_string(&checkpoint).unwrap();
    assert!(ours.contains("\"format\": 1"), "{ours}");
    let newer = ours.replace("\"format\": 1", "\"format\": 2");
    fs::write(&checkpoint, &newer).unwrap();
    let log = gantry.store().join("commitlog/00000000000000000000");
    let before = fs::read(&log).unwrap();
    expect_refused(gantry.store(), &["format 2", "newer version"]);
    assert_eq!(fs::read_to_string(&checkpoint).unwrap(), newer);
    assert!(fs::read(&log).unwrap() == before, "the log must not be touched");
    fs::write(&checkpoint, ours).unwrap();
    gantry.restart();
    normal.works();
    normal.keeps();
}

#[test]
fn a_log_of_other_file_sizes_is_refused_with_the_right_size() {
    let mut gantry = Gantry::start(&["--segment-bytes", "1MiB", "--max-message-size", "256KiB"]);
    let mut normal = Normal::new(&gantry);
    normal.works();
    gantry.terminate();
    expect_refused(gantry.store(), &["1048576 bytes long", "segment-bytes"]);
    gantry.restart();
    normal.works();
    normal.keeps();
}

/// Small enough that a few hundred messages fill some.
const SMALL: [&str; 4] = ["--segment-bytes", "256KiB", "--max-message-size", "64KiB"];

#[test]
fn a_missing_log_file_is_refused_by_name() {
    let mut gantry = Gantry::start(&SMALL);
    let mut normal = Normal::new(&gantry);
    let log = gantry.store().join("commitlog");
    while fs::read_dir(&log).map_or(0, Iterator::count) < 4 {
        normal.send();
    }
    gantry.kill9();
    let second = log.join("00000000000000262144");
    let aside = gantry.store().join("aside");
    fs::rename(&second, &aside).unwrap();
    let ended = serve_refusing(gantry.store(), &SMALL);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("no file that starts at 262144"), "{}", ended.stderr);
    fs::rename(&aside, &second).unwrap();
    gantry.restart();
    normal.works();
    normal.keeps();
}

#[test]
fn damaged_configuration_falls_back_or_is_refused_by_name() {
    let mut gantry = Gantry::start(&[]);
    let mut normal = Normal::new(&gantry);
    normal.works();
    gantry.terminate();
    let topics = gantry.store().join("config/topics.json");
    let backup = gantry.store().join("config/topics.json.bak");
    let content = fs::read(&topics).unwrap();
    fs::write(&topics, &content[..content.len() / 2]).unwrap();
    fs::write(&backup, b"").unwrap();
    expect_refused(gantry.store(), &["topics.json", "restore it"]);
    // One of the two whole is enough, and the operator is told.
    fs::write(&backup, &content).unwrap();
    gantry.restart();
    assert!(gantry.log().contains("its backup is used"), "{}", gantry.log());
    normal.works();
    normal.keeps();
}
