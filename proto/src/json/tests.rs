use std::collections::BTreeMap;

use super::*;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
struct Place {
    queue: i32,
    topic: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Sample {
    by_number: BTreeMap<i64, String>,
    by_place: BTreeMap<Place, i64>,
    flag: bool,
    list: Vec<String>,
    nothing: Option<String>,
    rate: f64,
}

fn read(text: &str) -> Value {
    parse(text.as_bytes()).unwrap()
}

fn refused(text: &str) -> DecodeError {
    parse(text.as_bytes()).unwrap_err()
}

#[test]
fn the_dialects_are_read() {
    assert_eq!(read("{0:\"a\",-1:'b',name:1,}"), json!({"0": "a", "-1": "b", "name": 1}));
    assert_eq!(read("{{\"topic\":\"T\",\"queue\":0}:5}"), json!({"{\"queue\":0,\"topic\":\"T\"}": 5}));
    assert_eq!(
        read("[1,2.5,-3e2,18446744073709551615,true,null,NaN,]"),
        json!([1, 2.5, -300.0, u64::MAX, true, null, null])
    );
    assert_eq!(read(r#""\u4e2d\ud83d\ude80\ud83d\x41\/\n\'""#), json!("\u{4e2d}\u{1f680}\u{fffd}A/\n'"));
}

#[test]
fn references_are_resolved() {
    let text = r#"{"a":{"x":[1,{"y":2}]},"b":{"$ref":"$.a"},"c":{"$ref":"$.a.x[1].y"},"d":{"$ref":"$.b"},"e":{"$ref":"$.q"}}"#;
    let a = json!({"x": [1, {"y": 2}]});
    assert_eq!(read(text), json!({"a": a, "b": a, "c": 2, "d": a, "e": null}));
}

#[test]
fn references_that_never_end_or_multiply_are_refused() {
    assert!(parse(br#"{"a":{"$ref":"$.a"}}"#).is_err());
    let mut text = String::from(r#"{"a0":[1,1,1,1,1,1,1,1]"#);
    for level in 1..30 {
        let below = format!(r#"{{"$ref":"$.a{}"}}"#, level - 1);
        let many = [below.as_str(); 8].join(",");
        text.extend([",\"a", &level.to_string(), "\":[", &many, "]"]);
    }
    text.push('}');
    assert!(parse(text.as_bytes()).is_err());
    // Long names multiply as long texts do.
    let copies = vec![r#"{"$ref":"$.a"}"#; 10_000].join(",");
    let text = format!(r#"{{"a":{{"{}":1}},"b":[{copies}]}}"#, "x".repeat(100_000));
    assert!(parse(text.as_bytes()).is_err());
}

#[test]
fn errors_say_where_and_what() {
    assert_eq!(refused("{\"a\" 1}"), DecodeError::new(5, "`:` after a key"));
    assert_eq!(refused("[1 2]"), DecodeError::new(3, "`,` or `]`"));
    assert_eq!(refused("\"open"), DecodeError::new(0, "a string that is closed"));
    assert_eq!(refused("1 2"), DecodeError::new(2, "the end of the JSON text"));
    assert_eq!(parse(b"\"\xff\"").unwrap_err(), DecodeError::new(1, "JSON in UTF-8"));
    assert!(refused(&"[".repeat(100)).expected.contains("64 nested"));
    assert!(refused("{{{\"a\":1}:1}:1}").expected.contains("inside a key"));
}

#[test]
fn types_are_read_leniently() {
    let text = r#"{by_number:{1:"x",'2':3},"by_place":{{"queue":"4","topic":"T"}:"5","{\"queue\":6}":7},
        "flag":"true","list":null,"nothing":null,"rate":"1.5","unknown":{"deep":[1]}}"#;
    let sample: Sample = from_slice(text.as_bytes()).unwrap();
    let place = |queue, topic: &str| Place { queue, topic: topic.to_owned() };
    let expected = Sample {
        by_number: BTreeMap::from([(1, "x".to_owned()), (2, "3".to_owned())]),
        by_place: BTreeMap::from([(place(4, "T"), 5), (place(6, ""), 7)]),
        flag: true,
        rate: 1.5,
        ..Sample::default()
    };
    assert_eq!(sample, expected);
    assert!(from_slice::<Sample>(br#"{"rate":"fast"}"#).is_err());
    assert!(from_slice::<Sample>(br#"{"list":7}"#).is_err());
}

#[test]
fn both_written_forms() {
    let sample = Sample {
        by_number: BTreeMap::from([(-1, "a\"\u{1}".to_owned()), (0, "\u{4e2d}".to_owned())]),
        by_place: BTreeMap::from([(Place { queue: 3, topic: "T".to_owned() }, 9)]),
        ..Sample::default()
    };
    let bare = r#"{"by_number":{-1:"a\"\u0001",0:"中"},"by_place":{{"queue":3,"topic":"T"}:9},"flag":false,"list":[],"rate":0.0}"#;
    assert_eq!(String::from_utf8(to_vec(&sample, IntKeys::Bare)).unwrap(), bare);
    let quoted = bare.replace("-1:", "\"-1\":").replace("0:\"", "\"0\":\"");
    assert_eq!(String::from_utf8(to_vec(&sample, IntKeys::Quoted)).unwrap(), quoted);
}

prop_compose! {
    fn sample()(
        by_number in proptest::collection::btree_map(any::<i64>(), ".*", 0..4),
        by_place in proptest::collection::btree_map((any::<i32>(), ".*"), any::<i64>(), 0..4),
        flag: bool,
        list in proptest::collection::vec(".*", 0..4),
        nothing in proptest::option::of(".*"),
        rate in -1e300..1e300,
    ) -> Sample {
        let by_place = by_place.into_iter().map(|((queue, topic), value)| (Place { queue, topic }, value));
        Sample { by_number, by_place: by_place.collect(), flag, list, nothing, rate }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(sample in sample()) {
        for keys in [IntKeys::Bare, IntKeys::Quoted] {
            let text = to_vec(&sample, keys);
            let again: Sample = from_slice(&text).unwrap();
            prop_assert!((again.rate - sample.rate).abs() <= sample.rate.abs() * 1e-12);
            prop_assert_eq!(Sample { rate: 0.0, ..again }, Sample { rate: 0.0, ..sample.clone() });
        }
    }

    #[test]
    fn any_bytes_return(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = from_slice::<Sample>(&bytes);
    }

    #[test]
    fn any_text_like_json_returns(text in r#"([\[\]{},:'"\\$.0-9a-fux-]|true|null|"\$ref"|"list"|by_place){0,40}"#) {
        let _ = parse(text.as_bytes());
        let _ = from_slice::<Sample>(text.as_bytes());
    }

    #[test]
    fn standard_json_reads_as_a_strict_reader_reads_it(sample in sample()) {
        let mut value = serde_json::to_value(&sample.by_number).unwrap();
        value["list"] = json!(sample.list);
        prop_assert_eq!(parse(value.to_string().as_bytes()).unwrap(), value);
    }
}
