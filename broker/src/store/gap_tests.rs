//! Gaps of the log over starts, checkpoints, retention and inspections.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use super::disk::RealDisk;
use super::gaps::GapKind;
use super::inspect::finding::{Area, Severity};
use super::inspect::{Report, VerifyOptions, verify};
use super::tests::{bodies, open_as, options, send};
use super::*;

const SEGMENT_BYTES: u64 = 4096;

fn open(dir: &Path) -> Store {
    open_as(dir, &options(FlushPolicy::Memory)).expect("the store opens")
}

fn look_at(dir: &Path) -> Report {
    let small = options(FlushPolicy::Memory);
    let options = VerifyOptions { index: small.index, delay_levels: small.delay_levels, findings_max: 9 };
    verify(dir, &options, &mut |_, _| {}).expect("a store that can be read")
}

/// What is found in the log: damage, mended, gaps. Queues and index name what is lost there as well.
fn in_log(report: &Report) -> (usize, usize, usize) {
    let count = |severity| {
        let of_log = report.findings.iter().filter(|finding| finding.area == Area::Log);
        of_log.filter(|finding| finding.severity == severity).count()
    };
    (count(Severity::Damage), count(Severity::Mended), count(Severity::Gap))
}

/// As [`in_log`], where nothing else is wrong.
fn counts(report: &Report) -> (usize, usize, usize) {
    let all = report.findings.damage() + report.findings.mended() + report.findings.gaps();
    let (damage, mended, gaps) = in_log(report);
    assert_eq!(all, (damage + mended + gaps) as u64, "{:#?}", report.findings);
    (damage, mended, gaps)
}

/// Sends so many messages; gives the place of each.
async fn send_some(store: &Store, count: usize) -> Vec<PhyOffset> {
    let mut places = Vec::new();
    for n in 0..count {
        let key = format!("{}.{n}", store.max_offset());
        places.push(send(store, "T", 0, format!("body {n}").as_bytes(), &key).await.phy);
    }
    places
}

/// Sends four messages, takes a checkpoint and sends six more; gives the places of these.
async fn killed_behind_a_checkpoint(store: Store) -> Vec<PhyOffset> {
    send_some(&store, 4).await;
    store.keep_house().expect("a checkpoint");
    send_some(&store, 6).await
}

/// Makes the record at `at` none: its first bytes are lost.
fn tear(dir: &Path, at: PhyOffset) {
    let start = at.get() - at.get() % SEGMENT_BYTES;
    let path = disk::offset_path(&dir.join("commitlog"), start);
    let file = File::options().write(true).open(path).expect("a file of the log");
    file.write_all_at(&[0; 60], at.get() - start).expect("written");
}

/// Since the checkpoint the machine has started anew.
fn fail_power(dir: &Path) {
    let layout = Layout::new(dir);
    let positions = checkpoint::load(&layout).expect("readable").expect("a checkpoint");
    let positions = Positions { boot: Some("before".to_owned()), ..positions };
    checkpoint::save_positions(&RealDisk, &layout, &positions).expect("written");
}

fn recorded(dir: &Path) -> Vec<Gap> {
    let positions = checkpoint::load(&Layout::new(dir)).expect("readable").expect("a checkpoint");
    positions.gaps
}

#[tokio::test]
async fn what_power_tore_behind_the_checkpoint_is_no_damage() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let places = killed_behind_a_checkpoint(open(dir.path())).await;
    tear(dir.path(), places[2]);
    assert_eq!(in_log(&look_at(dir.path())).0, 1, "while the machine runs on, what was written is there");
    fail_power(dir.path());
    let report = look_at(dir.path());
    assert_eq!(counts(&report), (0, 1, 0), "the next start passes over it");
    // Killed before a checkpoint, a start leaves it to the next one.
    for _ in 0..3 {
        let store = open(dir.path());
        let [gap] = store.recovered().gaps[..] else { panic!("{:?}", store.recovered()) };
        assert_eq!((gap.from, gap.to), (places[2].get(), places[3].get()));
        assert_eq!((gap.kind, gap.since), (GapKind::Unflushed, 1_700_000_000_000));
        assert_eq!(bodies(&store, "T", 0).len(), 9);
        assert_eq!(recorded(dir.path()), []);
    }
    let store = open(dir.path());
    let met = store.recovered().gaps.clone();
    send_some(&store, 3).await;
    store.keep_house().expect("a checkpoint");
    assert_eq!(recorded(dir.path()), met);
    drop(store);
    // From now on it is below what is on the disk, and known.
    assert_eq!(counts(&look_at(dir.path())), (0, 0, 1));
    fs::remove_dir_all(dir.path().join("consumequeue")).expect("removed");
    let store = open(dir.path());
    assert_eq!((store.recovered().from, &store.recovered().gaps), (PhyOffset::ZERO, &met));
    store.close().expect("closed");
    assert_eq!(recorded(dir.path()), met);
    let report = look_at(dir.path());
    assert_eq!(counts(&report), (0, 0, 1));
    assert_eq!((report.counts.damaged_stretches, report.counts.gaps), (0, 1));
    let finding = report.findings.iter().next().expect("a finding");
    assert_eq!((finding.severity, finding.area, finding.byte), (Severity::Gap, Area::Log, places[2].get()));
    assert!(finding.to_string().starts_with("gap: commitlog/"), "{finding}");
    assert!(finding.what.contains("passed over since the start at 1700000000000 ms"), "{finding}");
}

/// What lies behind may end a transaction whose message is lost in the gap.
#[tokio::test]
async fn under_the_policy_disk_the_log_ends_where_power_tore_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let open = || open_as(dir.path(), &options(FlushPolicy::Disk)).expect("the store opens");
    let places = killed_behind_a_checkpoint(open()).await;
    tear(dir.path(), places[2]);
    fail_power(dir.path());
    let store = open();
    assert_eq!((store.recovered().end, &store.recovered().gaps[..]), (places[2], &[][..]));
    assert_eq!(bodies(&store, "T", 0).len(), 6);
    assert_eq!(send_some(&store, 1).await, [places[2]]);
    store.close().expect("closed");
    assert_eq!(counts(&look_at(dir.path())), (0, 0, 0));
}

/// Our checkpoint is as old as our last run: what Apache's broker has flushed since must not be cut off for a byte.
#[tokio::test]
async fn what_the_peer_has_flushed_since_is_damaged_and_no_end() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let open = || open_as(dir.path(), &options(FlushPolicy::Disk)).expect("the store opens");
    let places = killed_behind_a_checkpoint(open()).await;
    let layout = Layout::new(dir.path());
    let peer = PeerCheckpoint { logics_phy: places[4], ..PeerCheckpoint::default() };
    fs::write(layout.checkpoint(), peer.encode(places[4])).expect("written");
    tear(dir.path(), places[2]);
    assert_eq!(in_log(&look_at(dir.path())), (1, 0, 0));
    let store = open();
    let [gap] = store.recovered().gaps[..] else { panic!("{:?}", store.recovered()) };
    assert_eq!((gap.from, gap.to, gap.kind), (places[2].get(), places[3].get(), GapKind::Damaged));
    assert_eq!(bodies(&store, "T", 0).len(), 9);
}

#[tokio::test]
async fn what_was_on_the_disk_is_damage_for_ever() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let places = send_some(&store, 6).await;
    store.keep_house().expect("a checkpoint");
    send_some(&store, 2).await;
    drop(store);
    tear(dir.path(), places[2]);
    assert_eq!(in_log(&look_at(dir.path())), (1, 0, 0));
    // All of the log is read again.
    fs::remove_dir_all(dir.path().join("consumequeue")).expect("removed");
    let store = open(dir.path());
    let [gap] = store.recovered().gaps[..] else { panic!("{:?}", store.recovered()) };
    assert_eq!((gap.from, gap.to, gap.kind), (places[2].get(), places[3].get(), GapKind::Damaged));
    store.close().expect("closed");
    assert_eq!(recorded(dir.path()), [gap]);
    let report = look_at(dir.path());
    assert_eq!((in_log(&report), report.counts.damaged_stretches), ((1, 0, 0), 1));
}

#[tokio::test]
async fn a_gap_that_no_start_has_met_is_damage_after_a_clean_stop() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let places = send_some(&store, 6).await;
    store.close().expect("closed");
    tear(dir.path(), places[2]);
    assert_eq!(in_log(&look_at(dir.path())), (1, 0, 0));
    // Nobody knows how far the disk was.
    fs::remove_file(dir.path().join("gantry.checkpoint")).expect("removed");
    fs::remove_file(dir.path().join("checkpoint")).expect("removed");
    fs::write(dir.path().join("abort"), "1").expect("written");
    assert_eq!(in_log(&look_at(dir.path())), (1, 0, 0));
    let store = open(dir.path());
    let [gap] = store.recovered().gaps[..] else { panic!("{:?}", store.recovered()) };
    assert_eq!(gap.kind, GapKind::Damaged);
}

#[tokio::test]
async fn gaps_leave_with_their_part_of_the_log() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let places = send_some(&store, 6).await;
    drop(store);
    tear(dir.path(), places[2]);
    let mut options = options(FlushPolicy::Memory);
    options.retention.keep_bytes = SEGMENT_BYTES;
    let store = open_as(dir.path(), &options).expect("the store opens");
    store.keep_house().expect("a checkpoint");
    assert_eq!(recorded(dir.path()).len(), 1);
    let mut last = 0;
    while last < 3 * SEGMENT_BYTES {
        last = send_some(&store, 1).await[0].get();
    }
    store.keep_house().expect("a checkpoint, and the first files go");
    assert!(store.min_offset().get() > places[2].get());
    store.keep_house().expect("a checkpoint");
    assert_eq!(recorded(dir.path()), []);
    store.close().expect("closed");
    assert_eq!(counts(&look_at(dir.path())), (0, 0, 0));
}
