//! Property strings against the vectors of the Java classes, and against themselves.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Vectors {
    parse: Vec<Parse>,
    write: Vec<Write>,
    delete: Vec<Delete>,
}

#[derive(Deserialize)]
struct Parse {
    text: String,
    parsed: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Write {
    map: BTreeMap<String, String>,
    text: String,
}

#[derive(Deserialize)]
struct Delete {
    text: String,
    #[serde(rename = "delete")]
    name: String,
    result: String,
}

fn vectors() -> Vectors {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/properties.json"));
    serde_json::from_str(text).unwrap()
}

fn map(properties: Properties<'_>) -> BTreeMap<String, String> {
    properties.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn strings_are_read_as_the_java_reader_reads_them() {
    for vector in vectors().parse {
        let properties = Properties::new(vector.text.as_bytes());
        assert_eq!(map(properties), vector.parsed, "{:?}", vector.text);
        for (name, value) in &vector.parsed {
            assert_eq!(properties.get(name), Some(value.as_str()), "{name} in {:?}", vector.text);
        }
    }
}

#[test]
fn deleting_leaves_the_rest_as_the_java_writer_does() {
    for vector in vectors().delete {
        let mut properties = PropertiesBuf::from(Properties::new(vector.text.as_bytes()));
        properties.remove(&vector.name);
        assert_eq!(properties.as_bytes(), vector.result.as_bytes(), "{:?}", vector.text);
    }
}

#[test]
fn empty_values_are_not_written_because_nobody_reads_them() {
    for vector in vectors().write {
        let mut properties = PropertiesBuf::new();
        vector.map.iter().for_each(|(name, value)| properties.push(name, value));
        assert_eq!(map(properties.view()), map(Properties::new(vector.text.as_bytes())));
    }
}

#[test]
fn typed_getters_and_the_scan_agree() {
    let raw =
        b"UNIQ_KEY\x01U\x02KEYS\x01k1  k2\x02TAGS\x01A\x02TAGS\x01B\x02DELAY\x01x\x02TRAN_MSG\x01TRUE\x02\
        WAIT\x01false\x02REAL_QID\x013\x02TIMER_DELAY_SEC\x0110\x02CHECK_IMMUNITY_TIME_IN_SECONDS\x01-1";
    let properties = Properties::new(raw);
    let hot = properties.scan();
    assert_eq!((properties.uniq_key(), properties.tags()), (Some("U"), Some("B")));
    assert_eq!((hot.uniq_key, hot.tags), (Some("U".into()), Some("B".into())));
    assert!(properties.keys().eq(["k1", "k2"]) && hot.split_keys().eq(["k1", "k2"]));
    assert_eq!((properties.delay_level(), hot.delay_level), (None, None));
    assert!(properties.is_half() && hot.is_half() && hot.is_timer());
    assert!(!properties.waits_for_store() && !hot.waits_for_store());
    assert_eq!((properties.real_queue_id(), hot.real_queue_id), (Some(3), Some(3)));
    assert_eq!(properties.check_immunity_secs(), None);
    assert!(Properties::default().waits_for_store());
}

#[test]
fn a_property_that_is_not_text_is_skipped() {
    let properties = Properties::new(b"a\x01\xff\xfe\x02b\x01ok\x02\xff\x01c\x02");
    assert_eq!((properties.get("a"), properties.get("b")), (None, Some("ok")));
    assert_eq!(properties.iter().count(), 1);
}

#[test]
fn separators_in_a_value_cannot_forge_a_property() {
    let mut properties = PropertiesBuf::new();
    properties.push("a", "x\x02TRAN_MSG\x01true");
    assert!(!properties.view().is_half());
    assert_eq!(properties.view().get("a"), Some("x TRAN_MSG true"));
}

#[test]
fn only_a_checksum_at_the_end_is_taken_off() {
    let off = |raw: &'static [u8]| Properties::new(raw).without_crc().raw();
    assert_eq!(off(b"a\x01b\x02__CRC32#\x010123456789\x02"), b"a\x01b\x02");
    assert_eq!(off(b"__CRC32#\x010123456789\x02"), b"");
    assert_eq!(off(b"x__CRC32#\x010123456789\x02"), b"x__CRC32#\x010123456789\x02");
    assert_eq!(off(b"a\x01b\x02"), b"a\x01b\x02");
}

proptest! {
    #[test]
    fn any_bytes_are_readable(raw in prop::collection::vec(0_u8..5, 0..60), name in "[\x01-\x04]{0,3}") {
        let properties = Properties::new(&raw);
        let last = properties.iter().filter(|(n, _)| *n == name).last().map(|(_, value)| value);
        prop_assert!(name.contains('\x01') || properties.get(&name) == last);
        let mut copy = PropertiesBuf::from(properties.without_crc());
        copy.remove(&name);
        prop_assert_eq!(copy.view().get(&name).filter(|_| !name.contains('\x01')), None);
    }

    #[test]
    fn the_scan_finds_what_the_getters_find(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                &b"UNIQ_KEY"[..], b"TAGS", b"KEYS", b"WAIT", b"TRAN_MSG", b"REAL_TOPIC", b"DELAY", b"CLUSTER",
                b"true", b"3", b"\xc3\xa4", b"\xff", b"\x01", b"\x01", b"\x02", b"\x02",
            ]),
            0..30,
        ),
    ) {
        let raw = parts.concat();
        let properties = Properties::new(&raw);
        let hot = properties.scan();
        prop_assert_eq!(hot.uniq_key.map(Text::as_str), properties.uniq_key());
        prop_assert_eq!(hot.tags.map(Text::as_str), properties.tags());
        prop_assert_eq!(hot.keys.map(Text::as_str), properties.get(keys::KEYS));
        prop_assert_eq!(hot.is_half(), properties.is_half());
        prop_assert_eq!(hot.waits_for_store(), properties.waits_for_store());
        prop_assert_eq!(hot.real_topic, properties.real_topic());
        prop_assert_eq!(hot.delay_level, properties.delay_level());
        prop_assert_eq!(hot.has_cluster, properties.get(keys::CLUSTER).is_some());
    }

    #[test]
    fn what_was_set_is_read(
        pairs in prop::collection::vec(("[a-c]{1,2}", "[^\x01\x02]{1,12}"), 0..8),
        name in "[a-c]{1,2}",
        value in "[^\x01\x02]{1,12}",
    ) {
        let mut properties = PropertiesBuf::new();
        let mut expected = BTreeMap::new();
        for (name, value) in &pairs {
            properties.push(name, value);
            expected.insert(name.clone(), value.clone());
        }
        properties.set(&name, &value);
        expected.insert(name.clone(), value);
        prop_assert_eq!(map(properties.view()), expected);
        prop_assert_eq!(properties.view().iter().filter(|(n, _)| *n == name).count(), 1);
    }

    #[test]
    fn the_first_match_is_found(bytes in prop::collection::vec(any::<u8>(), 0..40), needle in any::<u8>()) {
        prop_assert_eq!(find(&bytes, needle), bytes.iter().position(|byte| *byte == needle));
    }
}
