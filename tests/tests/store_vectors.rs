//! Stores that the real Java broker wrote are opened and show exactly what they hold.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use gantry_broker::clock::SystemClock;
use gantry_broker::store::disk::RealDisk;
use gantry_broker::store::gaps::GapKind;
use gantry_broker::store::index::IndexOptions;
use gantry_broker::store::retain::Retention;
use gantry_broker::store::{Queue, QueueEntry, Store, StoreOptions};
use gantry_broker::timer::Levels;
use gantry_proto::ids::{Millis, PhyOffset, QueueId};
use gantry_proto::record::RecordView;
use gantry_tests::vectors::{load, make_store, unhex};
use serde_json::Value;

/// Vector records are old: nothing may be cleaned away.
const KEEP: Retention =
    Retention { keep_ms: u64::MAX, keep_bytes: 0, disk_high_ratio: 2.0, disk_refuse_ratio: 2.0 };

fn open(dir: &Path, options: &StoreOptions) -> Store {
    let options = StoreOptions {
        retention: KEEP,
        reserve_bytes: 0,
        delay_levels: Levels::default().delays_ms(),
        ..options.clone()
    };
    Store::open(dir, &options, Arc::new(RealDisk), Arc::new(SystemClock), Vec::new())
        .expect("the store opens")
}

fn small() -> StoreOptions {
    StoreOptions {
        segment_bytes: 4096,
        queue_file_bytes: 320,
        index: IndexOptions { slots: 100, entries: 40 },
        ..StoreOptions::default()
    }
}

/// An entry of a queue: its place there, its record's place and size in the log, the code of its tags.
type Listed = (u64, u64, u64, i64);

/// Compares every record, every queue entry and the index with what the Java broker's own reader listed.
fn check(store: &Store, expected: &Value) {
    let records = expected["records"].as_array().expect("records").iter();
    let end = records
        .filter_map(|record| Some(record["physicalOffset"].as_u64()? + record["size"].as_u64()?))
        .max();
    assert_eq!(Some(store.max_offset().get()), end);
    for wanted in expected["records"].as_array().expect("records") {
        if wanted["topic"].is_string() {
            check_record(store, wanted);
        } // else: the blank end of a file
    }
    let mut queues: BTreeMap<(String, u32), Vec<Listed>> = BTreeMap::new();
    for (file, entries) in expected["consumequeue"].as_object().expect("queues") {
        let mut parts = file.split('/').skip(1);
        let topic = parts.next().expect("a topic").to_owned();
        let id = parts.next().and_then(|id| id.parse().ok()).expect("a queue number");
        let list = queues.entry((topic, id)).or_default();
        for entry in entries.as_array().expect("entries") {
            let number = |name: &str| entry[name].as_u64().unwrap_or_else(|| panic!("{name} in {entry}"));
            let tags = entry["tagsCode"].as_i64().expect("a tags code");
            list.push((number("cqOffset"), number("physicalOffset"), number("size"), tags));
        }
    }
    for ((topic, id), wanted) in queues {
        let queue = store.find_queue(&topic, QueueId::new(id)).unwrap_or_else(|| panic!("no {topic}@{id}"));
        let found: Vec<_> = entries(&queue)
            .iter()
            .map(|entry| (entry.at.get(), entry.phy.get(), u64::from(entry.size), entry.tags_code))
            .collect();
        assert_eq!(found, wanted, "{topic}@{id}");
    }
}

fn entries(queue: &Queue) -> Vec<QueueEntry> {
    let mut found = Vec::new();
    queue.entries(queue.min(), 100_000, &mut found);
    found
}

fn check_record(store: &Store, wanted: &Value) {
    let at = PhyOffset::new(wanted["physicalOffset"].as_u64().expect("an offset"));
    let slice = store.record_at(at).unwrap_or_else(|error| panic!("{error}"));
    let view = RecordView::parse(&slice).expect("a record");
    let number = |name: &str| wanted[name].as_i64().unwrap_or_else(|| panic!("{name} in {wanted}"));
    assert_eq!(i64::from(view.total_size()), number("size"), "{wanted}");
    assert_eq!(view.topic(), wanted["topic"]);
    assert_eq!(i64::from(view.queue_id().get()), number("queueId"));
    assert_eq!(view.queue_offset().to_wire(), number("queueOffset"));
    assert_eq!(i64::from(view.flag()), number("flag"));
    // The Java reader inflates bodies, and then takes the flag for "compressed" away.
    let flag = view.sys_flag();
    assert_eq!(i64::from(flag.with_compression(None).get() | flag.get() & 0x300), number("sysFlag"));
    assert_eq!(view.born_at(), Millis::new(number("bornTimestamp")));
    assert_eq!(view.store_at(), Millis::new(number("storeTimestamp")));
    assert_eq!(i64::from(view.reconsume_times()), number("reconsumeTimes"));
    assert_eq!(view.prepared_offset().to_wire(), number("preparedTransactionOffset"));
    let properties: BTreeMap<&str, &str> = view.properties().iter().collect();
    let wanted_properties: BTreeMap<&str, &str> = wanted["properties"]
        .as_object()
        .expect("properties")
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str().expect("text")))
        .collect();
    assert_eq!(properties, wanted_properties, "{wanted}");
    let body = if flag.is_compressed() { inflate(view.body()) } else { view.body().to_vec() };
    assert_eq!(i64::try_from(body.len()).expect("small"), number("bodyLen"));
    if let Some(text) = wanted["body"].as_str() {
        // Long texts are listed with their beginning only.
        let (text, shortened) = text.strip_suffix("...").map_or((text, false), |text| (text, true));
        let found = String::from_utf8_lossy(&body);
        assert!(if shortened { found.starts_with(text) } else { found == text }, "{found} is not {text}");
    }
}

fn inflate(body: &[u8]) -> Vec<u8> {
    let mut inflated = Vec::new();
    flate2::read::ZlibDecoder::new(body).read_to_end(&mut inflated).expect("zlib");
    inflated
}

/// Looks up the keys of every record that has some.
fn check_index(store: &Store, expected: &Value) {
    let mut looked = 0;
    for wanted in expected["records"].as_array().expect("records") {
        let at = PhyOffset::new(wanted["physicalOffset"].as_u64().expect("an offset"));
        let Some(topic) = wanted["topic"].as_str() else { continue };
        let properties = &wanted["properties"];
        let keys = properties["KEYS"].as_str().unwrap_or_default().split(' ');
        for key in keys.chain(properties["UNIQ_KEY"].as_str()).filter(|key| !key.is_empty()) {
            let found = store.index().find(topic, key, Millis::ZERO, Millis::MAX, 64).expect("readable");
            assert!(found.contains(&at), "{topic}#{key} at {at}: found {found:?}");
            looked += 1;
        }
    }
    assert!(looked > 50, "the vectors have keys; looked up {looked}");
}

#[test]
fn the_sample_store_shows_exactly_what_it_holds() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    make_store("store/files.json", dir.path());
    let expected = load("store_expected.json");
    let options = StoreOptions::default();
    let store = open(dir.path(), &options);
    check(&store, &expected);
    check_index(&store, &expected);
    store.close().expect("closed");
    drop(store);
    let store = open(dir.path(), &options);
    check(&store, &expected);
    check_index(&store, &expected);
}

#[test]
fn the_small_stores_show_exactly_what_they_hold() {
    for name in ["clean", "live"] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        make_store(&format!("small_store/{name}.json"), dir.path());
        let store = open(dir.path(), &small());
        check(&store, &load(&format!("small_store/{name}.expected.json")));
    }
}

/// A crash's leftovers in a copy of the live store.
fn patch(dir: &Path, patch: &Value) {
    use std::os::unix::fs::FileExt as _;
    if let Some(what) = patch["delete"].as_str() {
        let path = dir.join(what.split(' ').next().expect("a path"));
        if path.is_dir() {
            std::fs::remove_dir_all(path).expect("removed");
        } else {
            std::fs::remove_file(path).expect("removed");
        }
        return;
    }
    let path = dir.join(patch["file"].as_str().unwrap_or_else(|| panic!("a patch this test knows: {patch}")));
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("the file is there");
    let at = patch["offset"].as_u64().expect("an offset");
    let bytes = match patch["zero_bytes"].as_u64() {
        Some(count) => vec![0; usize::try_from(count).expect("small")],
        None => unhex(patch["hex"].as_str().unwrap_or_else(|| panic!("a patch this test knows: {patch}"))),
    };
    file.write_all_at(&bytes, at).expect("written");
}

#[test]
fn crashed_stores_recover_as_the_java_broker_recovers_them() {
    let cases = load("small_store/recovery_cases.json");
    for case in cases["cases"].as_array().expect("cases") {
        let dir = tempfile::tempdir().expect("a temporary directory");
        make_store("small_store/live.json", dir.path());
        for one in case["patches"].as_array().expect("patches") {
            patch(dir.path(), one);
        }
        let store = open(dir.path(), &small());
        let wanted = &case["after_java_recovery"];
        let name = case["case"].as_str().expect("a name");
        if name.starts_with("first half of the last commit log file zeroed") {
            // The Java broker gives up everything behind the zeroes. Here what is whole is kept.
            assert_eq!(store.max_offset(), PhyOffset::new(7455), "{name}");
            let [gap] = store.recovered().gaps[..] else { panic!("{name}: {:?}", store.recovered()) };
            // No checkpoint of ours says that it was not on the disk.
            assert_eq!(gap.kind, GapKind::Damaged, "{name}");
            continue;
        }
        assert_eq!(Some(store.max_offset().get()), wanted["maxPhyOffset"].as_u64(), "{name}");
        assert_eq!(Some(store.min_offset().get()), wanted["minPhyOffset"].as_u64(), "{name}");
        for (queue, bounds) in wanted["queues"].as_object().expect("queues") {
            let (topic, id) = queue.rsplit_once('@').expect("topic@queue");
            let queue = store.find_queue(topic, QueueId::new(id.parse().expect("a number")));
            let found = queue.map_or((0, 0), |queue| (queue.min().get(), queue.max().get()));
            let bound = |name: &str| bounds[name].as_u64().expect("a bound");
            assert_eq!(found, (bound("min"), bound("max")), "{name}: {topic}@{id}");
        }
    }
}
