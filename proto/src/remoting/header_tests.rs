use super::super::codes::{RequestCode, ResponseCode};
use super::super::frame::FRAME_LIMIT;
use super::super::vectors;
use super::*;
use proptest::prelude::*;

fn sorted(mut command: OwnedCommand) -> OwnedCommand {
    let mut fields: Vec<_> =
        command.ext.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    fields.sort();
    command.ext = ExtFields::new();
    for (name, value) in fields {
        command.ext.push(name, value);
    }
    command
}

fn decode(bytes: &[u8]) -> OwnedCommand {
    let frame = Frame::cut(bytes, FRAME_LIMIT).unwrap().unwrap();
    assert_eq!(frame.len, bytes.len());
    OwnedCommand::decode(&frame).unwrap()
}

#[test]
fn commands_of_the_java_implementation() {
    for version in ["5.5.0", "5.3.3"] {
        for sample in vectors::commands(version) {
            let expected = sample.command();
            assert_eq!(sorted(decode(&sample.bytes)), expected, "decode {version} {}", sample.name);
            let mut written = Vec::new();
            expected.encode(&mut written, sample.serialize).unwrap();
            assert_eq!(decode(&written), expected, "encode {version} {}", sample.name);
            if sample.serialize == Serialize::RocketMq {
                assert_eq!(written.len(), sample.bytes.len(), "length {version} {}", sample.name);
            }
        }
    }
}

#[test]
fn the_quick_reader_takes_every_sampled_json_header() {
    for sample in vectors::commands("5.5.0").iter().filter(|sample| sample.serialize == Serialize::Json) {
        let frame = Frame::cut(&sample.bytes, FRAME_LIMIT).unwrap().unwrap();
        let text = std::str::from_utf8(frame.header).unwrap();
        assert!(Scanner { text, at: 0 }.command(&mut Command::default()).is_some(), "{}", sample.name);
    }
}

#[test]
fn unusual_json_headers_are_read_as_java_reads_them() {
    let text = r"{'code':'310','language':9,'opaque':-2,'stray':[1,{}],'extFields':{'a':1,'b':true,'c':null,'d':'x'}}";
    let command = Command::decode(Serialize::Json, text.as_bytes()).unwrap();
    assert_eq!((command.code, command.language, command.opaque), (310, Language::Go, -2));
    let fields: Vec<_> = command.ext.iter().collect();
    assert_eq!(fields, [("a", "1"), ("b", "true"), ("d", "x")]);
    let empty = Command::decode(Serialize::Json, b"{}").unwrap();
    assert_eq!(empty, Command::default());
    let go = br#"{"code":0,"language":"GO","version":317,"opaque":1,"flag":1,"remark":"","extFields":null}"#;
    assert_eq!(Command::decode(Serialize::Json, go).unwrap().remark.as_deref(), Some(""));
    let pair = br#"{"remark":"\ud83d\ude80 \u4e2d"}"#;
    assert_eq!(Command::decode(Serialize::Json, pair).unwrap().remark.as_deref(), Some("\u{1f680} \u{4e2d}"));
}

#[test]
fn replies_always_carry_an_ext_fields_object() {
    let mut out = b"before".to_vec();
    let head = Head::reply(ResponseCode::TopicNotExist, -7).remark("no \"such\" topic\n");
    encode_frame(&mut out, Serialize::Json, &head, &(), 0).unwrap();
    let expected = br#"{"code":17,"extFields":{},"flag":1,"language":"JAVA","opaque":-7,"remark":"no \"such\" topic\n","version":513}"#;
    assert_eq!(&out[14..], expected);
    let command = decode(&out[6..]);
    assert!(command.flag & FLAG_REPLY != 0 && command.ext.is_empty());
}

#[test]
fn a_code_beyond_16_bits_is_refused_in_binary_and_leaves_no_trace() {
    let mut out = vec![1, 2, 3];
    let head = Head::request(RequestCode::PopMessage, 1);
    let error = encode_frame(&mut out, Serialize::RocketMq, &head, &(), 0).unwrap_err();
    assert_eq!(error, EncodeError::CodeTooLarge { code: 200_050 });
    assert_eq!(out, [1, 2, 3]);
    let long = "k".repeat(40_000);
    let fields = |out: &mut ExtWriter<'_>| out.text(&long, "v");
    let head = Head::request(10, 1);
    assert_eq!(
        encode_frame(&mut out, Serialize::RocketMq, &head, &fields, 0),
        Err(EncodeError::FieldTooLong)
    );
    let huge = encode_frame(&mut out, Serialize::Json, &head, &(), usize::MAX);
    assert!(matches!(huge, Err(EncodeError::TooLarge { .. })));
    let wide = Head { version: 40_000, ..head };
    assert_eq!(
        encode_frame(&mut out, Serialize::RocketMq, &wide, &(), 0),
        Err(EncodeError::VersionTooLarge { version: 40_000 })
    );
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn the_number_of_fields_is_bounded() {
    let mut ext = ExtFields::new();
    for number in 0..=EXT_FIELDS_MAX {
        ext.push(format!("f{number}"), "v");
    }
    for serialize in [Serialize::Json, Serialize::RocketMq] {
        let mut out = Vec::new();
        encode_frame(&mut out, serialize, &Head::request(1, 1), &ext, 0).unwrap();
        let frame = Frame::cut(&out, FRAME_LIMIT).unwrap().unwrap();
        assert!(Command::decode(serialize, frame.header).is_err());
    }
}

#[test]
fn recycled_storage_starts_empty() {
    let first = Command::decode(Serialize::Json, br#"{"extFields":{"a":"b"}}"#).unwrap();
    let storage = first.ext.recycle();
    let second = Command::decode_reusing(Serialize::Json, br#"{"extFields":{"c":"d"}}"#, storage).unwrap();
    assert_eq!(second.ext.iter().collect::<Vec<_>>(), [("c", "d")]);
}

prop_compose! {
    fn command()(
        code in i32::from(i16::MIN)..=i32::from(i16::MAX),
        language in 0u8..14,
        version in 0..=i32::from(i16::MAX),
        opaque: i32,
        flag in 0..4,
        remark in proptest::option::of(".+"),
        fields in proptest::collection::btree_map(".+", ".*", 0..8),
        body in proptest::collection::vec(any::<u8>(), 0..32),
    ) -> OwnedCommand {
        let mut ext = ExtFields::new();
        for (name, value) in fields {
            ext.push(name, value);
        }
        let body = Bytes::from(body);
        OwnedCommand { code, language: Language::from_code(language), version, opaque, flag, remark, ext, body }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(command in command()) {
        for serialize in [Serialize::Json, Serialize::RocketMq] {
            let mut bytes = Vec::new();
            command.encode(&mut bytes, serialize).unwrap();
            prop_assert_eq!(&decode(&bytes), &command);
        }
    }

    #[test]
    fn any_bytes_return(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
        let _ = Command::decode(Serialize::Json, &bytes);
        let _ = Command::decode(Serialize::RocketMq, &bytes);
    }

    #[test]
    fn any_text_like_a_header_returns(text in r#"\{("(code|remark|extFields)":("[a\\u"0]*"|[0-9-]*|null|\{\}|\[),?)*\}?"#) {
        let _ = Command::decode(Serialize::Json, text.as_bytes());
    }

    #[test]
    fn damaged_commands_return(command in command(), at: proptest::sample::Index, byte: u8) {
        for serialize in [Serialize::Json, Serialize::RocketMq] {
            let mut bytes = Vec::new();
            command.encode(&mut bytes, serialize).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(Some(frame)) = Frame::cut(&bytes, FRAME_LIMIT) {
                let _ = OwnedCommand::decode(&frame);
            }
        }
    }
}
