//! Records against the vectors of the Java classes, and against themselves.

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Vector {
    name: String,
    by: Option<String>,
    length: Option<usize>,
    decoded: Option<Decoded>,
    hex: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Decoded {
    physical_offset: u64,
    size: u32,
    topic: String,
    queue_id: i32,
    queue_offset: u64,
    flag: i32,
    sys_flag: i32,
    #[serde(rename = "bodyCRC")]
    body_crc: u32,
    born_timestamp: i64,
    store_timestamp: i64,
    born_host: String,
    store_host: String,
    reconsume_times: i32,
    prepared_transaction_offset: u64,
    properties: std::collections::BTreeMap<String, String>,
    body_len: usize,
    body: String,
}

pub(super) fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn vectors() -> Vec<Vector> {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/messages.json"));
    serde_json::from_str(text).unwrap()
}

pub(super) fn assert_is(record: &RecordView<'_>, expected: &Decoded, name: &str) {
    assert_eq!(record.total_size(), expected.size, "{name}");
    assert_eq!(record.topic(), expected.topic, "{name}");
    assert_eq!(record.queue_id().to_wire(), expected.queue_id, "{name}");
    assert_eq!(record.queue_offset().get(), expected.queue_offset, "{name}");
    assert_eq!(record.phy_offset().get(), expected.physical_offset, "{name}");
    assert_eq!(record.flag(), expected.flag, "{name}");
    // The vectors show the flag after decompression.
    let shown = if record.sys_flag().is_compressed() { expected.sys_flag | 1 } else { expected.sys_flag };
    assert_eq!(record.sys_flag().get(), shown, "{name}");
    assert_eq!(record.body_crc(), expected.body_crc, "{name}");
    assert_eq!(record.born_at().get(), expected.born_timestamp, "{name}");
    assert_eq!(record.store_at().get(), expected.store_timestamp, "{name}");
    assert_eq!(record.born_host().ip(), expected.born_host.parse::<IpAddr>().unwrap(), "{name}");
    let store_host = expected.store_host.trim_start_matches('/').parse::<SocketAddr>().unwrap();
    assert_eq!(record.store_host(), store_host, "{name}");
    assert_eq!(record.reconsume_times(), expected.reconsume_times, "{name}");
    assert_eq!(record.prepared_offset().get(), expected.prepared_transaction_offset, "{name}");
    let properties = record.properties().iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    assert_eq!(expected.properties, properties, "{name}");
    if !record.sys_flag().is_compressed() {
        assert_eq!(record.body().len(), expected.body_len, "{name}");
    }
    record.check_body_crc().unwrap();
}

#[test]
fn records_of_the_java_encoders_are_read() {
    let mut read = 0;
    for vector in vectors() {
        let (Some(hex), Some(decoded)) = (vector.hex, vector.decoded) else { continue };
        let mut bytes = unhex(&hex);
        let size = bytes.len();
        assert_eq!(Some(size), vector.length, "{}", vector.name);
        bytes.extend_from_slice(b"the next record");
        let record = RecordView::parse(&bytes).unwrap();
        assert_eq!(record.as_bytes().len(), size, "{}", vector.name);
        assert_is(&record, &decoded, &vector.name);
        // The room that the encoder leaves for a checksum is filled when the record is appended.
        let unfinished = vector.name.contains("reserved CRC");
        assert_eq!(record.check_record_crc().is_err(), unfinished, "{}", vector.name);
        if !record.sys_flag().is_compressed() && !decoded.body.is_empty() {
            assert_eq!(record.body(), decoded.body.as_bytes(), "{}", vector.name);
        }
        read += 1;
    }
    assert!(read >= 17, "{read} vectors read");
}

#[test]
fn records_are_written_as_the_java_encoders_write_them() {
    for vector in vectors() {
        let (Some(hex), Some(by)) = (vector.hex, vector.by) else { continue };
        let expected = unhex(&hex);
        let view = RecordView::parse(&expected).unwrap();
        let mut properties = view.properties().raw();
        let mut draft = RecordDraft::from_view(&view, properties);
        let reserved = vector.name.contains("reserved CRC");
        if reserved {
            properties = &properties[..properties.len() - 20];
            draft = RecordDraft { properties, append_crc: true, ..draft };
        }
        let mut bytes = Vec::new();
        assert_eq!(draft.encode_into(&mut bytes), Ok(draft.encoded_len()), "{}", vector.name);
        seal(&mut bytes, view.queue_offset(), view.phy_offset(), view.store_at());
        let compared = if reserved { bytes.len() - 20 } else { bytes.len() };
        assert_eq!(bytes[..compared], expected[..compared], "{} by {by}", vector.name);
        assert_eq!(bytes.len(), expected.len(), "{}", vector.name);
        let again = RecordView::parse(&bytes).unwrap();
        let crc = if reserved { RecordCrc::Matches } else { RecordCrc::Absent };
        assert_eq!(again.check_record_crc(), Ok(crc), "{}", vector.name);
    }
}

#[test]
fn the_log_of_a_java_broker_is_read_to_its_end() {
    let store: serde_json::Value = serde_json::from_str(include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/vectors/small_store/clean.json"
    )))
    .unwrap();
    let expected: serde_json::Value = serde_json::from_str(include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/vectors/small_store/clean.expected.json"
    )))
    .unwrap();
    let listed = expected["records"].as_array().unwrap().iter();
    let mut records = listed
        .filter(|record| record.get("topic").is_some())
        .map(|record| serde_json::from_value::<Decoded>(record.clone()).unwrap());
    let (mut blanks, mut ends) = (0, 0);
    for (path, file) in store["files"].as_object().unwrap() {
        if !path.starts_with("commitlog/") {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(file["length"].as_u64().unwrap()).unwrap()];
        for segment in file["segments"].as_array().unwrap() {
            let at = usize::try_from(segment[0].as_u64().unwrap()).unwrap();
            let data = unhex(segment[1].as_str().unwrap());
            bytes[at..at + data.len()].copy_from_slice(&data);
        }
        let mut at = 0;
        loop {
            match Slot::read(&bytes[at..]).unwrap() {
                Slot::Record(record) => {
                    assert_is(&record, &records.next().unwrap(), path);
                    at += record.as_bytes().len();
                }
                Slot::Blank { len } => {
                    assert_eq!(at + len as usize, bytes.len(), "{path}");
                    blanks += 1;
                    break;
                }
                Slot::End => {
                    ends += 1;
                    break;
                }
            }
        }
    }
    assert_eq!((records.count(), blanks, ends), (0, 1, 1));
}

fn draft<'a>(topic: &'a str, body: &'a [u8], properties: &'a [u8]) -> RecordDraft<'a> {
    RecordDraft {
        topic,
        queue_id: QueueId::new(3),
        flag: 5,
        sys_flag: SysFlag::NONE,
        born_at: Millis::new(1_700_000_000_123),
        born_host: "192.0.2.7:51234".parse().unwrap(),
        store_host: "192.0.2.10:10911".parse().unwrap(),
        reconsume_times: 1,
        prepared_offset: PhyOffset::ZERO,
        body,
        properties,
        append_crc: true,
    }
}

fn sealed(draft: &RecordDraft<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    draft.encode_into(&mut bytes).unwrap();
    seal(&mut bytes, QueueOffset::new(9), PhyOffset::new(4096), Millis::new(77));
    bytes
}

#[test]
fn the_checksum_is_the_last_property_with_its_least_digit_first() {
    let bytes = sealed(&draft("TopicTest", b"hello", b"TAGS\x01TagA"));
    let record = RecordView::parse(&bytes).unwrap();
    let crc = crc32fast::hash(&bytes[..bytes.len() - 20]) & 0x7fff_ffff;
    let digits: String = format!("{crc:010}").chars().rev().collect();
    assert_eq!(record.properties().get(keys::RECORD_CRC), Some(digits.as_str()));
    assert_eq!(record.properties().tags(), Some("TagA"));
    assert_eq!(record.properties().without_crc().raw(), b"TAGS\x01TagA\x02");
    assert_eq!(record.check_record_crc(), Ok(RecordCrc::Matches));
}

#[test]
fn every_flipped_bit_is_noticed() {
    // Regression: with properties before the checksum, a changed separator between them made it pass for a property
    // of a record without one.
    for properties in [&b""[..], b"TAGS\x01TagA\x02"] {
        let bytes = sealed(&draft("T", b"body", properties));
        assert_eq!(RecordView::parse(&bytes).unwrap().check_record_crc(), Ok(RecordCrc::Matches));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let passes = RecordView::parse(&damaged).is_ok_and(|record| record.check_record_crc().is_ok());
            assert!(!passes, "bit {bit}");
        }
    }
}

/// Regression: with the checksum among the bytes that a torn write left zero, the record passed for one that a
/// broker without checksums wrote.
#[test]
fn every_torn_write_is_noticed() {
    let bytes = sealed(&draft("T", b"body", b"TAGS\x01TagA\x02"));
    for torn in 1..bytes.len() {
        let (mut front, mut back) = (bytes.clone(), bytes.clone());
        front[..torn].fill(0);
        back[torn..].fill(0);
        for damaged in [front, back] {
            let passes = RecordView::parse(&damaged).is_ok_and(|record| record.check_record_crc().is_ok());
            assert!(!passes || damaged == bytes, "torn at byte {torn}");
        }
    }
}

#[test]
fn a_property_that_only_looks_like_the_checksum_is_left_alone() {
    let properties = b"x__CRC32#\x010123456789\x02";
    let draft = RecordDraft { append_crc: false, ..draft("T", b"", properties) };
    let bytes = sealed(&draft);
    let record = RecordView::parse(&bytes).unwrap();
    assert_eq!(record.properties().raw(), properties);
    assert_eq!(record.check_record_crc(), Ok(RecordCrc::Absent));
}

#[test]
fn a_checksum_that_a_client_sends_is_made_right() {
    let draft = RecordDraft { append_crc: false, ..draft("T", b"", b"a\x01b\x02__CRC32#\x010123456789\x02") };
    let bytes = sealed(&draft);
    assert_eq!(RecordView::parse(&bytes).unwrap().check_record_crc(), Ok(RecordCrc::Matches));
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let long = vec![b'x'; 32_768];
    let topic = "t".repeat(32_768);
    let mut out = vec![1];
    assert_eq!(
        draft("T", b"", &long).encode_into(&mut out),
        Err(EncodeError::Properties { len: 32_789, max: 32_767 })
    );
    assert_eq!(
        draft(&topic, b"", b"").encode_into(&mut out),
        Err(EncodeError::Topic { len: 32_768, max: 32_767 })
    );
    assert_eq!(draft("", b"", b"").encode_into(&mut out), Err(EncodeError::Topic { len: 0, max: 32_767 }));
    assert_eq!(out, [1]);
    // The vectors have the same refusal.
    assert!(vectors().iter().any(|v| v.error.as_deref() == Some("PROPERTIES_SIZE_EXCEEDED")));
}

#[test]
fn slots_tell_records_from_blanks_and_from_the_end() {
    let mut bytes = Vec::new();
    blank(20, &mut bytes);
    assert_eq!(bytes.len(), 20);
    assert!(matches!(Slot::read(&bytes), Ok(Slot::Blank { len: 20 })));
    assert!(matches!(Slot::read(&[0; 9]), Ok(Slot::End)));
    assert!(matches!(Slot::read(&[0; 3]), Ok(Slot::End)));
    assert!(matches!(Slot::read(&[]), Ok(Slot::End)));
    assert!(Slot::read(&[0, 0, 1]).is_err());
    let record = sealed(&draft("T", b"", b""));
    assert!(matches!(Slot::read(&record), Ok(Slot::Record(_))));
    for end in 1..record.len() {
        // Fewer than four bytes of the size are zeroes, as nothing would be.
        assert_eq!(matches!(Slot::read(&record[..end]), Ok(Slot::End)), end < 4, "cut at {end}");
    }
    let negative = [0xff, 0xff, 0xff, 0xff, 0xcb, 0xd4, 0x31, 0x94];
    assert!(Slot::read(&negative).is_err());
}

#[test]
fn negative_offsets_are_no_record() {
    for at in [QUEUE_ID_AT, QUEUE_OFFSET_AT, PHY_OFFSET_AT] {
        let mut bytes = sealed(&draft("T", b"", b""));
        bytes[at] = 0xff;
        assert_eq!(RecordView::parse(&bytes).unwrap_err().at, QUEUE_ID_AT);
    }
}

prop_compose! {
    fn hosts()(v6 in any::<bool>(), low in any::<u32>(), high in any::<u128>(), port in any::<u16>()) -> SocketAddr {
        let ip = if v6 { IpAddr::V6(high.into()) } else { IpAddr::V4(low.into()) };
        SocketAddr::new(ip, port)
    }
}

proptest! {
    #[test]
    fn what_was_written_is_read(
        topic in "[a-z%]{1,200}",
        body in prop::collection::vec(any::<u8>(), 0..200),
        properties in "([A-Z]{1,5}\x01[a-z]{1,5}\x02){0,6}",
        numbers in any::<(u16, i32, i32, i64, i32, u32)>(),
        born_host in hosts(),
        store_host in hosts(),
        append_crc in any::<bool>(),
    ) {
        let (queue, flag, sys_flag, born_at, reconsume_times, prepared) = numbers;
        let draft = RecordDraft {
            topic: &topic,
            queue_id: QueueId::new(queue.into()),
            flag,
            sys_flag: SysFlag::new(sys_flag),
            born_at: Millis::new(born_at),
            born_host,
            store_host,
            reconsume_times,
            prepared_offset: PhyOffset::new(prepared.into()),
            body: &body,
            properties: properties.as_bytes(),
            append_crc,
        };
        let bytes = sealed(&draft);
        prop_assert_eq!(bytes.len(), draft.encoded_len());
        let record = RecordView::parse(&bytes).unwrap();
        prop_assert_eq!(record.topic(), &topic);
        prop_assert_eq!(record.body(), &body[..]);
        prop_assert_eq!(record.properties().without_crc().raw(), properties.as_bytes());
        prop_assert_eq!((record.queue_id(), record.flag()), (draft.queue_id, flag));
        prop_assert_eq!(record.sys_flag(), draft.sys_flag.with_hosts(born_host.is_ipv6(), store_host.is_ipv6()));
        prop_assert_eq!((record.born_host(), record.store_host()), (born_host, store_host));
        prop_assert_eq!((record.born_at(), record.store_at()), (draft.born_at, Millis::new(77)));
        prop_assert_eq!((record.queue_offset().get(), record.phy_offset().get()), (9, 4096));
        prop_assert_eq!(record.reconsume_times(), reconsume_times);
        prop_assert_eq!(record.prepared_offset(), draft.prepared_offset);
        record.check_body_crc().unwrap();
        let crc = if append_crc { RecordCrc::Matches } else { RecordCrc::Absent };
        prop_assert_eq!(record.check_record_crc(), Ok(crc));
    }

    #[test]
    fn any_bytes_are_judged(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        edits in prop::collection::vec((0_usize..160, any::<u8>()), 0..6),
    ) {
        let _ = Slot::read(&bytes).map(|slot| format!("{slot:?}"));
        let mut damaged = sealed(&draft("TopicTest", b"hello", b"TAGS\x01TagA\x02"));
        for (at, byte) in edits {
            let len = damaged.len();
            damaged[at % len] = byte;
        }
        if let Ok(record) = RecordView::parse(&damaged) {
            let _ = (record.check_body_crc(), record.check_record_crc(), format!("{record:?}"));
            let _ = (record.born_host(), record.store_host(), record.store_at());
        }
    }
}

#[test]
fn a_sealed_record_is_told_from_every_other() {
    let draft = RecordDraft { queue_id: QueueId::ZERO, ..draft("T", b"a body", b"") };
    let mut bytes = Vec::new();
    draft.encode_into(&mut bytes).expect("encodable");
    let at = PhyOffset::new(4711);
    seal(&mut bytes, QueueOffset::new(3), at, Millis::new(2));
    assert!(is_sealed(&bytes, at));
    assert!(!is_sealed(&bytes, PhyOffset::new(4712)));
    let of =
        |topic, queue, offset| is_message_of(&bytes, topic, QueueId::new(queue), QueueOffset::new(offset));
    assert!(of("T", 0, 3));
    assert!(!of("T", 1, 3) && !of("T", 0, 4) && !of("TT", 0, 3) && !of("", 0, 3));
    assert!(!is_sealed(&bytes[..bytes.len() - 1], at));
    for place in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1;
        assert!(!is_sealed(&damaged, at), "byte {place}");
    }
    for crc in [0, 7, 10, 99, 100, 1_234_567_890, 0x7fff_ffff] {
        let digits: String = format!("{crc:010}").chars().rev().collect();
        assert!(crc_property(crc)[CRC_HEAD.len()..].starts_with(digits.as_bytes()), "{crc}");
    }
}
