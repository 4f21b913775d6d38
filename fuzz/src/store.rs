//! A store directory made of anything: a broker over it opens or says why not, serves no record that does not
//! check out, takes new messages, and after the next start serves the same and what came since.
//!
//! ```text
//! input: flags u8 | { path length u8 | path | file length u16 | data length u16 | data } …
//! ```
//!
//! A file is its data and zeroes up to its length. Flag 1 gives the log's records their places and checksums
//! first: otherwise hardly any damage would get further than these. Flag 2 is the policy `disk`.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use gantry_broker::broker::Broker;
use gantry_broker::config::{Config, Policy};
use gantry_broker::store::{Batch, Store};
use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::TopicName;
use gantry_proto::record::{RecordDraft, RecordView, SysFlag, seal};

use crate::cursor::Cursor;

const RESEAL: u8 = 1;
const DISK: u8 = 2;
/// Length of a log file.
pub const SEGMENT_BYTES: u64 = 4096;
/// Length of a consume queue file.
pub const QUEUE_FILE_BYTES: u64 = 320;
/// Most files of one input.
const FILES_MAX: usize = 64;
/// Messages of one queue that are looked at.
const ENTRIES_MAX: usize = 512;

/// What a store serves: topic, queue, number; the record.
type Served = BTreeMap<(String, u32, u64), Vec<u8>>;

/// Opens the directory twice.
pub fn check(input: &[u8]) {
    let mut cursor = Cursor::new(input);
    let flags = cursor.byte();
    let dir = crate::fresh_dir();
    unpack(cursor, dir.path());
    if flags & RESEAL != 0 {
        reseal(&dir.path().join("commitlog"));
    }
    let policy = if flags & DISK == 0 { Policy::Memory } else { Policy::Disk };
    let Some(first) = visit(dir.path(), policy) else { return };
    let second = visit(dir.path(), policy).expect("a store that was opened and closed opens again");
    for (place, record) in first {
        assert_eq!(second.get(&place), Some(&record), "{place:?} was served, and is not served now");
    }
}

/// A broker on free ports over a store with small files.
pub fn config(dir: &Path, policy: Policy, segment_bytes: u64) -> Config {
    let mut config = Config::default();
    config.store.dir = dir.to_path_buf();
    config.store.policy = policy;
    config.store.segment_bytes = segment_bytes;
    config.store.queue_file_bytes = QUEUE_FILE_BYTES;
    (config.store.index_slots, config.store.index_entries) = (100, 40);
    (config.ports.name, config.ports.broker) = (0, 0);
    // Neither age nor the machine's disk makes anything go.
    (config.retention.force_percent, config.retention.refuse_percent) = (100, 100);
    config.retention.reserve_bytes = 0;
    config.retention.time = std::time::Duration::from_secs(100 * 365 * 86400);
    config
}

/// Writes the files of a directory as an input, without trailing zeroes.
pub fn pack(dir: &Path, flags: u8) -> Vec<u8> {
    let mut input = vec![flags];
    let mut paths = Vec::new();
    list(dir, &mut paths);
    paths.sort();
    for path in paths {
        let name = path.strip_prefix(dir).expect("below").to_string_lossy().into_owned();
        let bytes = std::fs::read(&path).expect("readable");
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let (Ok(name_len), Ok(len), Ok(end)) =
            (u8::try_from(name.len()), u16::try_from(bytes.len()), u16::try_from(end))
        else {
            continue;
        };
        input.push(name_len);
        input.extend_from_slice(name.as_bytes());
        input.extend_from_slice(&len.to_be_bytes());
        input.extend_from_slice(&end.to_be_bytes());
        input.extend_from_slice(&bytes[..usize::from(end)]);
    }
    input
}

fn list(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("readable") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { list(&path, found) } else { found.push(path) }
    }
}

fn unpack(mut cursor: Cursor<'_>, dir: &Path) {
    for _ in 0..FILES_MAX {
        if cursor.is_empty() {
            return;
        }
        let len = usize::from(cursor.byte());
        let name = String::from_utf8_lossy(cursor.bytes(len)).replace('\0', "0");
        let file_len = cursor.word();
        let data_len = cursor.word();
        let mut bytes = cursor.bytes(data_len).to_vec();
        bytes.resize(bytes.len().max(file_len), 0);
        let inside = Path::new(&name).components().filter(|part| matches!(part, Component::Normal(_)));
        let path = dir.join(inside.take(8).collect::<PathBuf>());
        // What is no possible file is none.
        if path.parent().is_some_and(|parent| std::fs::create_dir_all(parent).is_ok()) {
            let _ = std::fs::write(&path, bytes);
        }
    }
}

/// Gives every record of the log the place where it lies, and the checksums of its content.
fn reseal(dir: &Path) {
    let Ok(files) = std::fs::read_dir(dir) else { return };
    for path in files.filter_map(Result::ok).map(|entry| entry.path()) {
        let start = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u64>().ok());
        let (Some(start), Ok(mut bytes)) = (start, std::fs::read(&path)) else { continue };
        let mut at = 0;
        while let Some(view) = bytes.get(at..).and_then(|rest| RecordView::parse(rest).ok()) {
            let end = at + view.total_size() as usize;
            let phy = PhyOffset::new(start.saturating_add(at as u64));
            let draft = RecordDraft::from_view(&view, view.properties().without_crc().raw());
            let mut sealed = Vec::new();
            if draft.encode_into(&mut sealed).is_ok() {
                seal(&mut sealed, view.queue_offset(), phy, view.store_at());
            }
            if sealed.len() == end - at {
                bytes[at..end].copy_from_slice(&sealed);
            }
            at = end;
        }
        let _ = std::fs::write(&path, bytes);
    }
}

/// Starts a broker, reads everything, adds a message and stops it; what was served. `None` when it does not start.
fn visit(dir: &Path, policy: Policy) -> Option<Served> {
    crate::run(async {
        let broker = Broker::start(config(dir, policy, SEGMENT_BYTES)).await.ok()?;
        let store = &broker.services().store;
        let mut served = Served::new();
        read_all(store, &mut served);
        for at in [i64::MIN, 0, 1_700_000_000_000, i64::MAX] {
            for topic in store.topics_on_disk() {
                for queue in store.topic_queues(topic.as_str()) {
                    let _ = store.find_by_time(&queue, Millis::new(at));
                }
            }
        }
        let _ = store.index().find("T", "key", Millis::ZERO, Millis::MAX, 100);
        let added = append(store).await;
        if let Some((place, record)) = added {
            served.insert(place, record);
        }
        let _ = store.keep_house();
        let stopped = broker.stop().await;
        assert!(stopped.is_ok(), "it does not close: {stopped:?}");
        Some(served)
    })
}

/// Reads all messages and all records.
pub fn read_all(store: &Store, served: &mut Served) {
    for topic in store.topics_on_disk() {
        for queue in store.topic_queues(topic.as_str()) {
            let mut entries = Vec::new();
            let mut from = queue.min();
            while from < queue.max() && entries.len() < ENTRIES_MAX {
                let before = entries.len();
                store.entries(&queue, from, 32, &mut entries);
                let Some(last) = entries.get(before..).and_then(<[_]>::last) else { break };
                assert!(last.at >= from, "entries come in order");
                from = last.at + 1;
            }
            for entry in entries {
                let Ok(Some(slice)) = store.message(&queue, &entry) else { continue };
                let view = RecordView::parse(&slice).expect("what is served is a record");
                view.check().expect("what is served is whole");
                assert_eq!((view.topic(), view.queue_id()), (topic.as_str(), queue.id()));
                let place = (topic.as_str().to_owned(), queue.id().get(), entry.at.get());
                served.insert(place, slice.to_vec());
            }
        }
    }
    let mut at = store.min_offset();
    while let Ok(slice) = store.record_at(at) {
        RecordView::parse(&slice).expect("what is served is a record").check().expect("it is whole");
        at = at + slice.len() as u64;
    }
}

/// Adds a message; `None` when the store refuses it.
async fn append(store: &Store) -> Option<((String, u32, u64), Vec<u8>)> {
    let topic = TopicName::internal("Added");
    let queue = store.queue(&topic, QueueId::ZERO).ok()?;
    let host = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let draft = RecordDraft {
        topic: topic.as_str(),
        queue_id: queue.id(),
        flag: 0,
        sys_flag: SysFlag::NONE,
        born_at: Millis::new(1),
        born_host: host,
        store_host: host,
        reconsume_times: 0,
        prepared_offset: PhyOffset::ZERO,
        body: b"added",
        properties: b"KEYS\x01key\x02",
        append_crc: true,
    };
    let mut batch = Batch::new();
    batch.push(&queue, &draft).expect("an encodable record");
    let appended = store.append_settled(&mut batch).await.ok()?;
    store.dispatched(appended.end).await.ok()?;
    let placed = batch.placed().first().expect("one record was appended");
    let entry = queue.entry(placed.queue_offset).expect("a dispatched message is listed");
    let slice = store.message(&queue, &entry).expect("it is readable").expect("it is there");
    let number: QueueOffset = placed.queue_offset;
    Some((("Added".to_owned(), 0, number.get()), slice.to_vec()))
}
