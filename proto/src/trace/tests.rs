use proptest::prelude::*;

use super::*;

fn one(body: &str) -> Result<Trace, TraceError> {
    let mut all = decode(body.as_bytes());
    let first = all.next().expect("a record");
    assert!(all.next().is_none(), "one record only");
    first
}

/// A record with `|` for the byte between fields.
fn record(text: &str) -> String {
    text.replace('|', "\u{1}") + "\u{2}"
}

fn encoded(trace: &Trace) -> String {
    let mut out = String::new();
    trace.encode_into(&mut out);
    out
}

#[test]
fn records_of_each_kind_are_read_and_written_alike() {
    for text in [
        "Pub|1700000000000|DefaultRegion|pg|T|ID1|TagA|k1 k2|127.0.0.1:10911|12|3|0|OFF|true",
        "Pub|1|r|pg|T|ID1|null|null|h|0|0|4|null|false|10.0.0.1",
        "SubBefore|1700000000001|DefaultRegion|cg|REQ|ID1|2|k1",
        "SubAfter|REQ|ID1|7|false|k1|4|1700000000008|cg",
        "SubAfter|REQ|ID1|7|true|null|0",
        "EndTransaction|5|r|pg|T|ID1|TagA|k1|h|2|TX|COMMIT_MESSAGE|false",
        "EndTransaction|5|r|pg|T|ID1|null|null|h|2|TX|UNKNOW|true",
        "Recall|6|r|pg|T|ID1|true",
    ] {
        let text = record(text);
        assert_eq!(encoded(&one(&text).unwrap()), text);
    }
}

#[test]
fn fields_go_where_they_belong() {
    let trace = one(&record("Pub|17|eu|pg|T|ID|tag|a b|h:1|12|3|3|OFF|true")).unwrap();
    assert_eq!((trace.message_id.as_str(), trace.keys.as_str(), trace.group.as_str()), ("ID", "a b", "pg"));
    assert_eq!((trace.region.as_str(), trace.at), ("eu", Some(Millis::new(17))));
    let expected = Pub {
        topic: "T".to_owned(),
        tags: "tag".to_owned(),
        store_host: "h:1".to_owned(),
        body_bytes: 12,
        cost_ms: 3,
        kind: MessageKind::Delay,
        offset_id: "OFF".to_owned(),
        success: true,
        client_host: None,
    };
    assert_eq!(trace.event, Event::Pub(expected));
}

#[test]
fn what_older_clients_leave_out_is_not_missed() {
    let Event::Pub(sent) = one(&record("Pub|1|r|pg|T|ID|t|k|h|1|2|0")).unwrap().event else {
        panic!("a Pub")
    };
    assert!(sent.success && sent.offset_id.is_empty());
    let Event::Pub(sent) = one(&record("Pub|1|r|pg|T|ID|t|k|h|1|2|0|false")).unwrap().event else {
        panic!("a Pub")
    };
    assert!(!sent.success);
    let trace = one(&record("SubAfter|REQ|ID|7|false|k")).unwrap();
    assert_eq!((trace.at, trace.group.as_str()), (None, ""));
    assert!(matches!(trace.event, Event::SubAfter { code: ConsumeCode::Failed, .. }));
    // What a client of the cloud writes: nothing behind the last separator.
    let trace = one(&record("SubAfter|REQ|ID|7|true|k|0|")).unwrap();
    assert_eq!((trace.at, trace.group.as_str()), (None, ""));
}

#[test]
fn a_wrong_record_is_named_and_the_next_one_read() {
    let wrong = |field, text: &str| TraceError::Wrong { kind: "Pub", field, text: text.to_owned() };
    for (text, error) in [
        ("", TraceError::UnknownKind(String::new())),
        ("Launch|1", TraceError::UnknownKind("Launch".to_owned())),
        ("Pub", TraceError::Missing { kind: "Pub", field: "time" }),
        ("Pub|now|r|g", wrong("time", "now")),
        ("Pub|1|r|g|T|I|t|k|h|1|2|9", wrong("message type", "9")),
        ("Pub|1|r|g|T|I|t|k|h|1|99999999999|0", wrong("cost", "99999999999")),
        ("Recall|1|r|g|T|I", TraceError::Missing { kind: "Recall", field: "success" }),
    ] {
        let body = format!("\u{1}{}{}", record(text), record("Recall|6|r|pg|T|ID1|true"));
        let body = body.strip_prefix('\u{1}').filter(|_| !text.is_empty()).unwrap_or(&body);
        let read: Vec<_> = decode(body.as_bytes()).collect();
        assert_eq!((read.len(), &read[0]), (2, &Err(error)), "{text}");
        assert!(read[1].is_ok());
    }
    assert_eq!(decode(b"\xff\x02").collect::<Vec<_>>(), [Err(TraceError::NoText)]);
    assert_eq!(decode(b"").count() + decode(b"\x02\x02").count(), 0);
}

#[test]
fn separators_and_missing_texts_do_not_break_a_record() {
    let event = Event::Recall { topic: "a\u{1}b\u{2}c".to_owned(), success: true };
    let trace = Trace {
        message_id: String::new(),
        keys: String::new(),
        group: "g".to_owned(),
        region: String::new(),
        at: None,
        event,
    };
    assert_eq!(encoded(&trace), record("Recall|0|null|g|a b c|null|true"));
}

fn text() -> impl Strategy<Value = String> {
    // `null` stands for nothing.
    "[a-zA-Z0-9:. äß%_-]{0,12}".prop_filter("a text", |text| text != NOTHING)
}

fn kind() -> impl Strategy<Value = MessageKind> {
    prop::sample::select(MessageKind::ALL.to_vec())
}

fn sent() -> impl Strategy<Value = Event> {
    let texts = (text(), text(), text(), text(), prop::option::of(text()));
    (texts, any::<(i32, i32, bool)>(), kind()).prop_map(|(texts, numbers, kind)| {
        let (topic, tags, store_host, offset_id, client_host) = texts;
        let (body_bytes, cost_ms, success) = numbers;
        Event::Pub(Pub {
            topic,
            tags,
            store_host,
            body_bytes,
            cost_ms,
            kind,
            offset_id,
            success,
            client_host,
        })
    })
}

fn end() -> impl Strategy<Value = Event> {
    let state = prop::sample::select(vec![EndState::Commit, EndState::Rollback, EndState::Unknown]);
    (text(), text(), text(), text(), kind(), state, any::<bool>()).prop_map(
        |(topic, tags, store_host, transaction_id, kind, state, from_check)| {
            Event::EndTransaction(EndTransaction {
                topic,
                tags,
                store_host,
                kind,
                transaction_id,
                state,
                from_check,
            })
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let after = |(request_id, cost_ms, success, code)| Event::SubAfter {
        request_id,
        cost_ms,
        success,
        code: ConsumeCode::from_wire(code),
    };
    prop_oneof![
        sent(),
        end(),
        (text(), any::<i32>()).prop_map(|(request_id, retries)| Event::SubBefore { request_id, retries }),
        (text(), any::<i32>(), any::<bool>(), -2..8).prop_map(after),
        (text(), any::<bool>()).prop_map(|(topic, success)| Event::Recall { topic, success }),
    ]
}

fn trace() -> impl Strategy<Value = Trace> {
    (event(), text(), text(), text(), text(), prop::option::of(any::<i64>())).prop_map(
        |(event, message_id, keys, group, region, at)| {
            let at = at.map(Millis::new);
            let mut trace = Trace { message_id, keys, group, region, at, event };
            match trace.event {
                Event::SubAfter { .. } => {
                    trace.region.clear();
                    if trace.at.is_none() {
                        trace.group.clear();
                    }
                }
                Event::Recall { .. } => trace.keys.clear(),
                _ => {}
            }
            if !matches!(trace.event, Event::SubAfter { .. }) {
                trace.at = Some(trace.at.unwrap_or(Millis::ZERO));
            }
            trace
        },
    )
}

proptest! {
    #[test]
    fn records_survive(traces in prop::collection::vec(trace(), 0..4)) {
        let mut body = String::new();
        for trace in &traces {
            trace.encode_into(&mut body);
        }
        let read: Result<Vec<_>, _> = decode(body.as_bytes()).collect();
        prop_assert_eq!(read.unwrap(), traces);
    }

    #[test]
    fn any_bytes_are_read(body in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode(&body).count() <= body.len());
    }

    #[test]
    fn any_fields_are_read(
        kind in prop::sample::select(vec!["Pub", "SubBefore", "SubAfter", "EndTransaction", "Recall"]),
        fields in prop::collection::vec("[0-9a-zäT]{0,10}|-?[0-9]{1,20}|true", 0..18),
    ) {
        let text = record(&format!("{kind}|{}", fields.join("|")));
        for trace in decode(text.as_bytes()).flatten() {
            let again: Vec<_> = decode(encoded(&trace).as_bytes()).collect();
            prop_assert_eq!(again, vec![Ok(trace)]);
        }
    }
}
