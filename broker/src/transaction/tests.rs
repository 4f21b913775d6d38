//! Transactions over a real store: whole lives, crashes at every step, Apache's sample store.

use std::io::{Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::time::Duration;

use gantry_proto::names::GroupName;
use gantry_proto::record::{OffsetMsgId, RecordDraft};
use gantry_proto::remoting::codes::Language;
use tokio::sync::mpsc;

use super::check::NextRound;
use super::*;
use crate::clock::{Clock, ManualClock};
use crate::config::TransactionConfig;
use crate::fixture;
use crate::groups::members::{CheckRequest, Notice, Peer};
use crate::store::disk::RealDisk;
use crate::store::{Batch, FlushPolicy, StoreOptions};

mod bounds;
mod checks;
mod reuse;
mod sample_store;

const START: Millis = Millis::new(1_700_000_000_000);

struct Broker {
    store: Arc<Store>,
    transactions: Arc<Transactions>,
    clock: Arc<ManualClock>,
    members: Arc<Members>,
    peer: Arc<Peer>,
    inbox: Mutex<mpsc::Receiver<Notice>>,
    progress: Arc<Mutex<Progress>>,
}

fn rules() -> Rules {
    let checks = TransactionConfig {
        timeout: Duration::from_secs(6),
        check_interval: Duration::from_secs(30),
        check_interval_max: Duration::from_secs(600),
        max_checks: 2,
    };
    Rules { checks, ..Rules::default() }
}

fn options() -> StoreOptions {
    StoreOptions {
        policy: FlushPolicy::Memory,
        segment_bytes: 64 * 1024,
        reserve_bytes: 0,
        ..StoreOptions::default()
    }
}

fn open_with(dir: &Path, rules: Rules, options: &StoreOptions, now: Millis) -> Broker {
    let clock = Arc::new(ManualClock::new(now));
    let (projection, unstarted) =
        load(&dir.join("config"), rules, Arc::default()).expect("the snapshot is readable");
    let store = Store::open(
        dir,
        options,
        Arc::new(RealDisk),
        Arc::clone(&clock) as Arc<dyn Clock>,
        vec![Box::new(projection)],
    )
    .expect("the store opens");
    let store = Arc::new(store);
    let members = Members::new(Arc::clone(&clock) as _, Arc::default(), Duration::from_secs(120), 100);
    let members = Arc::new(members);
    let (outbox, inbox) = Peer::outbox();
    let address = SocketAddr::from(([127, 0, 0, 1], 5));
    let peer = Arc::new(Peer::new(1, address, "client", (Language::Java, 513), outbox));
    let progress = Arc::new(Mutex::new(Progress::default()));
    let to_progress = Arc::clone(&progress);
    let transactions = unstarted
        .start(Neighbours {
            store: Arc::clone(&store),
            levels: Levels::default(),
            members: Arc::clone(&members),
            note_progress: Box::new(move |progress| *to_progress.lock().expect("no panic") = progress),
            done_below: None,
        })
        .expect("the transactions start");
    let broker = Broker { store, transactions, clock, members, peer, inbox: Mutex::new(inbox), progress };
    broker.come();
    broker
}

fn open(dir: &Path) -> Broker {
    open_with(dir, rules(), &options(), START)
}

/// A half as publishing stores it.
struct Sent {
    at: PhyOffset,
    size: u32,
    request: EndRequest,
}

impl Broker {
    async fn half(&self, key: &str, extra: &[(&str, &str)]) -> Sent {
        self.half_with_body(key, key, extra).await
    }

    async fn half_with_body(&self, key: &str, body: &str, extra: &[(&str, &str)]) -> Sent {
        let mut properties = PropertiesBuf::new();
        properties.push(keys::UNIQ_KEY, key);
        properties.push(keys::TRAN_MSG, "true");
        properties.push(keys::PGROUP, "producers");
        properties.push(keys::TAGS, "TagA");
        for (name, value) in extra {
            properties.push(name, value);
        }
        let flags = SysFlag::NONE.with_transaction(TransactionFlag::Prepared);
        let half =
            self.transactions.begin("orders", QueueId::new(2), flags, properties.view()).expect("admitted");
        let host = SocketAddr::from(([127, 0, 0, 1], 10911));
        let draft = RecordDraft {
            topic: half.queue.topic().as_str(),
            queue_id: half.queue.id(),
            flag: 7,
            sys_flag: half.sys_flag,
            born_at: self.clock.now(),
            born_host: host,
            store_host: host,
            reconsume_times: 0,
            prepared_offset: PhyOffset::ZERO,
            body: body.as_bytes(),
            properties: half.properties.as_bytes(),
            append_crc: true,
        };
        let mut batch = Batch::new();
        batch.push(&half.queue, &draft).expect("encodable");
        self.store.append_settled(&mut batch).await.expect("appended");
        let placed = batch.placed()[0];
        let request = EndRequest {
            group: GroupName::internal("producers"),
            half_queue_offset: placed.queue_offset,
            half_phy: placed.phy,
            resolution: Resolution::Commit,
            source: EndSource::Producer,
        };
        Sent { at: placed.phy, size: placed.size, request }
    }

    /// A member of the producer group is there.
    fn come(&self) {
        self.members.register_producer(&GroupName::internal("producers"), &self.peer).expect("registered");
    }

    fn leave(&self) {
        self.members.connection_closed(1);
    }

    /// What the member was asked since the last call.
    fn asked(&self) -> Vec<CheckRequest> {
        let mut inbox = self.inbox.lock().expect("no panic");
        std::iter::from_fn(|| inbox.try_recv().ok())
            .filter_map(|notice| match notice {
                Notice::CheckTransaction(request) => Some(*request),
                _ => None,
            })
            .collect()
    }

    fn entries(&self, topic: &str, queue: u32) -> Vec<(PhyOffset, u32)> {
        let Some(queue) = self.store.find_queue(topic, QueueId::new(queue)) else { return Vec::new() };
        let mut entries = Vec::new();
        queue.entries(queue.min(), 10_000, &mut entries);
        entries.iter().filter(|entry| !entry.is_blank()).map(|entry| (entry.phy, entry.size)).collect()
    }

    fn bodies(&self, topic: &str, queue: u32) -> Vec<String> {
        self.entries(topic, queue)
            .into_iter()
            .map(|(at, size)| {
                let record = self.store.read(at, size).expect("readable");
                let view = RecordView::parse(&record).expect("a record");
                String::from_utf8_lossy(view.body()).into_owned()
            })
            .collect()
    }

    fn visible(&self) -> Vec<String> {
        self.bodies("orders", 2)
    }

    fn ops(&self) -> Vec<String> {
        self.bodies("RMQ_SYS_TRANS_OP_HALF_TOPIC", 0)
    }

    fn open_keys(&self) -> Vec<String> {
        self.transactions.list(None, 1000).into_iter().map(|listed| listed.half.key.to_string()).collect()
    }

    async fn dispatched(&self) {
        self.store.dispatched(self.store.max_offset()).await.expect("dispatched");
    }
}

fn rolled_back(request: &EndRequest) -> EndRequest {
    EndRequest { resolution: Resolution::Rollback, ..request.clone() }
}

/// Makes everything in the log from `at` on zero, as if it had never been written.
fn cut_log(dir: &Path, at: PhyOffset) {
    let path = dir.join("commitlog/00000000000000000000");
    let mut file = std::fs::OpenOptions::new().write(true).open(path).expect("the log file");
    let len = file.metadata().expect("its length").len();
    file.seek(SeekFrom::Start(at.get())).expect("inside the file");
    let zeroes = vec![0; usize::try_from(len - at.get()).expect("small")];
    file.write_all(&zeroes).expect("written");
}

#[tokio::test]
async fn a_committed_half_becomes_visible_once_and_a_rolled_back_one_never() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let (one, two) = (broker.half("one", &[]).await, broker.half("two", &[]).await);
    assert_eq!((broker.visible().len(), broker.open_keys().len()), (0, 2));

    let ended = broker.transactions.end(&one.request).await.expect("ended");
    assert_eq!(ended, Ended::Now(Outcome::Committed));
    let ended = broker.transactions.end(&rolled_back(&two.request)).await.expect("ended");
    assert_eq!(ended, Ended::Now(Outcome::RolledBack));
    broker.dispatched().await;

    // Late, contradicting and second requests change nothing.
    let contradicting = broker.transactions.end(&rolled_back(&one.request)).await.expect("answered");
    assert_eq!(contradicting, Ended::Before(Some(Outcome::Committed)));
    let second = broker.transactions.end(&two.request).await.expect("answered");
    assert_eq!(second, Ended::Before(Some(Outcome::RolledBack)));
    broker.dispatched().await;
    assert_eq!(broker.visible(), ["one"]);
    assert_eq!(broker.ops(), ["0,", "1,"]);
    assert!(broker.open_keys().is_empty());

    let (at, size) = broker.entries("orders", 2)[0];
    let record = broker.store.read(at, size).expect("readable");
    let view = RecordView::parse(&record).expect("a record");
    assert_eq!(view.sys_flag().transaction(), TransactionFlag::Commit);
    assert_eq!((view.prepared_offset(), view.flag()), (one.at, 7));
    let properties = view.properties();
    assert!(
        properties.is_half() && properties.real_topic().is_none() && properties.real_queue_id().is_none()
    );
    assert_eq!(properties.transaction_id(), Some("one"));

    broker.transactions.note_progress();
    let expected = Progress { half: QueueOffset::new(2), op: QueueOffset::new(2) };
    assert_eq!(*broker.progress.lock().expect("no panic"), expected);
}

#[tokio::test]
async fn wrong_requests_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let sent = broker.half("one", &[]).await;
    let group = EndRequest { group: GroupName::internal("others"), ..sent.request.clone() };
    assert!(matches!(broker.transactions.end(&group).await, Err(EndError::WrongGroup { .. })));
    let offset = EndRequest { half_queue_offset: QueueOffset::new(5), ..sent.request.clone() };
    assert!(matches!(broker.transactions.end(&offset).await, Err(EndError::WrongOffset { .. })));
    let beyond = EndRequest { half_phy: sent.at + 100_000, ..sent.request.clone() };
    assert!(matches!(broker.transactions.end(&beyond).await, Err(EndError::NoSuchHalf { .. })));
    let inside = EndRequest { half_phy: sent.at + 3, ..sent.request.clone() };
    assert!(matches!(broker.transactions.end(&inside).await, Err(EndError::NoSuchHalf { .. })));
    assert_eq!(broker.open_keys(), ["one"]);
    assert!(broker.visible().is_empty() && broker.ops().is_empty());
}

#[tokio::test]
async fn an_end_after_the_messages_own_time_has_to_wait_for_the_check() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let sent = broker.half("one", &[(keys::CHECK_IMMUNITY_TIME_IN_SECONDS, "10")]).await;
    broker.clock.advance(10_001);
    assert!(matches!(broker.transactions.end(&sent.request).await, Err(EndError::TooLate { .. })));
    let from_check = EndRequest { source: EndSource::Check, ..sent.request.clone() };
    assert_eq!(broker.transactions.end(&from_check).await.expect("ended"), Ended::Now(Outcome::Committed));
}

#[tokio::test]
async fn several_ends_share_one_op_record() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let mut requests = Vec::new();
    for key in ["a", "b", "c"] {
        requests.push(broker.half(key, &[]).await.request);
    }
    requests[1].resolution = Resolution::Rollback;
    requests.push(requests[0].clone());
    let staged = broker.transactions.stage_ends(&requests);
    broker.store.drive();
    broker.store.settled(staged.end.expect("something was appended")).await.expect("settled");
    broker.dispatched().await;
    let answers: Vec<_> = staged.answers.into_iter().map(|answer| answer.expect("ended")).collect();
    assert_eq!(answers[3], Ended::Underway(Outcome::Committed));
    assert_eq!(broker.visible(), ["a", "c"]);
    assert_eq!(broker.ops(), ["0,1,2,"]);
}

#[tokio::test]
async fn a_delayed_half_waits_after_its_commit() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let sent = broker.half("one", &[(keys::DELAY, "3")]).await;
    broker.transactions.end(&sent.request).await.expect("ended");
    broker.dispatched().await;
    assert!(broker.visible().is_empty() && broker.open_keys().is_empty());
    assert_eq!(broker.bodies("SCHEDULE_TOPIC_XXXX", 2), ["one"]);
}

#[tokio::test]
async fn a_half_sent_again_is_the_same_transaction() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let first = broker.half("one", &[]).await;
    let again = broker.half("one", &[]).await;
    assert_eq!(broker.open_keys(), ["one"]);
    // The producer ends it with what the first send returned.
    let ended = broker.transactions.end(&first.request).await.expect("ended");
    assert_eq!(ended, Ended::Now(Outcome::Committed));
    broker.dispatched().await;
    let second = broker.transactions.end(&again.request).await.expect("answered");
    assert_eq!(second, Ended::Before(Some(Outcome::Committed)));
    assert_eq!(broker.visible(), ["one"]);
    // For Apache the older half needs an op record too.
    broker.transactions.round();
    broker.transactions.round();
    broker.dispatched().await;
    assert_eq!(broker.ops(), ["1,", "0,"]);
}

#[tokio::test]
async fn beyond_the_bound_halves_are_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open_with(dir.path(), Rules { open_max: 1, ..rules() }, &options(), START);
    broker.half("one", &[]).await;
    let mut properties = PropertiesBuf::new();
    properties.push(keys::UNIQ_KEY, "two");
    let refused = broker.transactions.begin("orders", QueueId::ZERO, SysFlag::NONE, properties.view());
    assert!(matches!(refused, Err(BeginError::TooManyOpen { open: 1, limit: 1 })));
}

#[tokio::test]
async fn crashes_between_half_end_and_visible_leave_one_copy() {
    // What of (copy, op record) reached the disk before the crash, and what must be true afterwards.
    for (kept, visible_at_once) in [(0, false), (1, true), (2, true)] {
        for flushed_before_end in [false, true] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let broker = open(dir.path());
            let sent = broker.half("one", &[]).await;
            let other = broker.half("other", &[]).await;
            if flushed_before_end {
                broker.store.save_checkpoint().expect("a checkpoint");
            }
            broker.transactions.end(&sent.request).await.expect("ended");
            broker.dispatched().await;
            let copy = broker.entries("orders", 2)[0];
            let op = broker.entries("RMQ_SYS_TRANS_OP_HALF_TOPIC", 0)[0];
            drop(broker);
            match kept {
                0 => cut_log(dir.path(), copy.0),
                1 => cut_log(dir.path(), op.0),
                _ => {}
            }

            let broker = open(dir.path());
            let case = format!("kept {kept}, flushed {flushed_before_end}");
            assert_eq!(broker.visible().len(), usize::from(visible_at_once), "{case}");
            let open = if visible_at_once { vec!["other"] } else { vec!["one", "other"] };
            assert_eq!(broker.open_keys(), open, "{case}");
            broker.dispatched().await;
            assert_eq!(broker.ops().len(), usize::from(visible_at_once), "the op record is there: {case}");
            // The producer asks again, since nobody answered.
            broker.transactions.end(&sent.request).await.expect("answered");
            broker.transactions.end(&rolled_back(&other.request)).await.expect("answered");
            broker.dispatched().await;
            assert_eq!(broker.visible(), ["one"], "{case}");
            assert!(broker.open_keys().is_empty(), "{case}");
            assert_eq!(broker.ops(), ["0,", "1,"], "{case}");
        }
    }
}

#[tokio::test]
async fn a_log_cut_below_the_snapshot_opens_its_halves_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let sent = broker.half("one", &[]).await;
    let end = sent.at + u64::from(sent.size);
    broker.store.save_checkpoint().expect("a checkpoint");
    let checkpoint = dir.path().join("gantry.checkpoint");
    let before = std::fs::read(&checkpoint).expect("the checkpoint");
    broker.transactions.end(&sent.request).await.expect("ended");
    broker.dispatched().await;
    broker.store.close().expect("closed");
    drop(broker);
    // The snapshot got to the disk, the end of the log and the checkpoint did not.
    std::fs::write(&checkpoint, before).expect("written");
    cut_log(dir.path(), end);
    let broker = open(dir.path());
    assert_eq!(broker.open_keys(), ["one"]);
    assert!(broker.visible().is_empty());
}

/// Power that fails can leave a hole in what was not flushed yet, and whole records behind it.
#[tokio::test]
async fn a_hole_in_the_log_hides_nothing_behind_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let sent = broker.half("one", &[]).await;
    let hole = broker.half("hole", &[]).await;
    broker.transactions.end(&sent.request).await.expect("ended");
    broker.half("two", &[]).await;
    broker.dispatched().await;
    drop(broker);
    let path = dir.path().join("commitlog/00000000000000000000");
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("the log file");
    file.write_all_at(&vec![0; hole.size as usize], hole.at.get()).expect("written");
    let broker = open(dir.path());
    assert_eq!(broker.open_keys(), ["two"]);
    assert_eq!(broker.visible().len(), 1);
}

#[tokio::test]
async fn open_halves_and_their_counts_survive_restarts() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    broker.half("gone", &[]).await;
    let sent = broker.half("one", &[]).await;
    broker.clock.advance(6_000);
    broker.transactions.round();
    broker.dispatched().await;
    assert_eq!(broker.transactions.list(None, 10)[1].half.checks, 1);
    for clean in [true, false, true] {
        let broker = open(dir.path());
        let listed = broker.transactions.list(Some("producers"), 10);
        assert_eq!(listed.iter().map(|listed| listed.half.checks).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(listed[1].next_check, Some(START.plus(36_000)));
        assert_eq!(broker.store.min_offset(), PhyOffset::ZERO);
        if clean {
            broker.store.close().expect("closed");
        }
    }
    let broker = open(dir.path());
    broker.transactions.end(&sent.request).await.expect("ended");
    broker.dispatched().await;
    assert_eq!(broker.open_keys(), ["gone"]);
}
