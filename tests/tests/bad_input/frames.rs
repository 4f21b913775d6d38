//! Bytes that are no frames, or not yet.

use std::time::{Duration, Instant};

use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::frame::Serialize;
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::send::SendMessageHeader;
use gantry_tests::harness::{Gantry, wait_for};

use crate::limits::resident_bytes;
use crate::normal::Normal;
use crate::wire::{Heard, WITHIN, Wire, expect_refused};

/// A frame of `header` in the given form; the length word counts `body`, which may not follow.
fn frame(form: u8, header: &[u8], body: usize) -> Vec<u8> {
    let length = u32::try_from(4 + header.len() + body).unwrap();
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&(u32::from(form) << 24 | u32::try_from(header.len()).unwrap()).to_be_bytes());
    bytes.extend_from_slice(header);
    bytes
}

/// Openings that are not this protocol, with words for each.
fn openings() -> Vec<(&'static str, Vec<u8>)> {
    let deep = "[".repeat(100_000);
    let binary = |ext_len: i32| {
        let mut header = vec![0, 10, 0, 1, 200];
        header.extend_from_slice(&[0; 8]); // opaque, flag
        header.extend_from_slice(&0_i32.to_be_bytes()); // remark
        header.extend_from_slice(&ext_len.to_be_bytes());
        header
    };
    vec![
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x5a\x5a\x5a".to_vec()),
        ("a negative length", vec![0xff; 64]),
        ("only zeroes", vec![0; 1024]),
        ("a length above the limit", (16_u32 * 1024 * 1024 + 1).to_be_bytes().to_vec()),
        ("the largest length", i32::MAX.to_be_bytes().to_vec()),
        ("a header longer than its frame", b"\0\0\0\x10\0\xff\xff\xff............".to_vec()),
        ("an unknown header form", frame(7, b"{}", 0)),
        ("text as header", frame(0, b"hello", 0)),
        ("half an object as header", frame(0, br#"{"code":10,"opaque":1"#, 0)),
        ("a list as header", frame(0, b"[1,2,3]", 0)),
        ("a deeply nested header", frame(0, deep.as_bytes(), 0)),
        ("a code that is no number", frame(0, br#"{"code":"ten"}"#, 0)),
        ("a header that is not UTF-8", frame(0, b"{\"code\":10,\"remark\":\"\xff\xfe\"}", 0)),
        ("a cut binary header", frame(1, &binary(0)[..9], 0)),
        ("a binary header of negative length", frame(1, &binary(-1), 0)),
        ("a binary header that ends too soon", frame(1, &binary(1 << 20), 0)),
        ("an empty binary header", frame(1, b"", 0)),
    ]
}

#[test]
fn garbage_closes_its_connection_and_no_other() {
    let gantry = Gantry::start(&[]);
    let mut normal = Normal::new(&gantry);
    for (what, bytes) in openings() {
        for address in [gantry.broker(), gantry.name_server()] {
            let mut wire = Wire::to(address);
            wire.write(&bytes);
            wire.expect_closed(what);
        }
    }
    normal.works();
    let log = gantry.log();
    let told = log.lines().filter(|line| line.contains("does not speak this protocol")).count();
    assert!(told >= openings().len(), "expected a warning for each, found {told} in\n{log}");
    for why in ["the limit is 16777216", "is negative", "header form 7 is unknown", "not a command header"] {
        assert!(log.contains(why), "expected {why:?} in\n{log}");
    }
    assert!(!log.contains("panicked"), "{log}");
    normal.keeps();
}

#[test]
fn what_stands_before_garbage_is_answered() {
    let gantry = Gantry::start(&[]);
    let mut wire = Wire::to(gantry.broker());
    let opaque = wire.post(&OwnedCommand::request(RequestCode::GetBrokerRuntimeInfo, &()));
    wire.write(&[0xff; 16]);
    match wire.hear() {
        Heard::Command(reply) => assert_eq!((reply.code, reply.opaque), (0, opaque)),
        heard => panic!("expected the answer to the whole request, found {heard:?}"),
    }
    wire.expect_closed("garbage");
}

/// A whole send of one message.
fn send(topic: &str, body: &[u8]) -> OwnedCommand {
    let header = SendMessageHeader {
        producer_group: "raw",
        topic,
        default_topic: "TBW102",
        default_topic_queue_nums: 1,
        queue_id: 0,
        ..SendMessageHeader::default()
    };
    OwnedCommand::request(RequestCode::SendMessage, &header).body(body.to_vec())
}

#[test]
fn a_cut_frame_stores_nothing() {
    let gantry = Gantry::start(&[]);
    let mut normal = Normal::new(&gantry);
    let mut bytes = Vec::new();
    send("Normal", b"never whole").encode(&mut bytes, Serialize::Json).unwrap();
    for cut in [1, 3, 4, 7, 8, 9, bytes.len() / 2, bytes.len() - 1] {
        let mut wire = Wire::to(gantry.broker());
        wire.write(&bytes[..cut]);
        wire.end_of_input();
        wire.expect_closed("half a frame");
        let mut wire = Wire::to(gantry.broker());
        wire.write(&bytes[..cut]);
        drop(wire);
    }
    normal.works();
    normal.keeps();
}

#[test]
fn a_frame_that_comes_byte_by_byte_is_a_frame() {
    let gantry = Gantry::start(&[]);
    for form in [Serialize::Json, Serialize::RocketMq] {
        let mut wire = Wire::in_form(gantry.broker(), form);
        let mut bytes = Vec::new();
        send("Drip", b"drop by drop").encode(&mut bytes, form).unwrap();
        for byte in bytes {
            wire.write(&[byte]);
        }
        assert!(matches!(wire.hear(), Heard::Command(reply) if reply.code == 0));
    }
}

/// Many connections that each announce the largest frame and then drip: nobody waits for them, their
/// announcements cost no memory, and they are closed when the frame is not there in time.
#[test]
fn slow_drips_hold_up_nobody_and_are_bounded() {
    const DRIPS: usize = 100;
    let gantry = Gantry::start(&["--idle-timeout", "3s"]);
    let mut normal = Normal::new(&gantry);
    normal.works();
    let before = resident_bytes(gantry.pid());
    let announced = frame(0, b"{\"code\":10,", 16 * 1024 * 1024 - 100);
    let mut drips: Vec<Wire> = (0..DRIPS).map(|_| Wire::to(gantry.broker())).collect();
    for drip in &mut drips {
        drip.write(&announced);
    }
    let started = Instant::now();
    let mut open = drips.len();
    let mut slowest = Duration::ZERO;
    while open > 0 {
        assert!(started.elapsed() < WITHIN, "expected that drips are closed, found {open} of {DRIPS} open");
        for drip in &mut drips {
            drip.write(b" ");
        }
        let sent = Instant::now();
        normal.works();
        slowest = slowest.max(sent.elapsed());
        drips.retain_mut(|drip| drip.hear_within(Duration::from_millis(1)) != Heard::Closed);
        open = drips.len();
        let grown = resident_bytes(gantry.pid()).saturating_sub(before);
        assert!(grown < 64 << 20, "expected that drips cost next to nothing, found {grown} bytes more");
    }
    println!(
        "{DRIPS} drips closed after {:.1?}; slowest message beside them {slowest:.1?}",
        started.elapsed()
    );
    let log = gantry.log();
    assert!(log.contains("did not become whole within"), "expected the reason in\n{log}");
    normal.keeps();
}

#[test]
fn silent_connections_are_closed_in_time() {
    let gantry = Gantry::start(&["--idle-timeout", "1s"]);
    let mut wires: Vec<Wire> = (0..20).map(|_| Wire::to(gantry.broker())).collect();
    for wire in &mut wires {
        wire.expect_closed("silence");
    }
    assert!(gantry.log().contains("nothing was heard for 1s"));
}

#[test]
fn more_connections_than_allowed_are_turned_away() {
    let gantry = Gantry::start(&["--max-connections", "5"]);
    let mut wires: Vec<Wire> = (0..5).map(|_| Wire::to(gantry.broker())).collect();
    let ping = OwnedCommand::request(RequestCode::GetBrokerRuntimeInfo, &());
    for wire in &mut wires {
        assert_eq!(wire.ask(&ping).code, 0);
    }
    Wire::to(gantry.broker()).expect_closed("one connection too many");
    assert!(gantry.log().contains("limits.connections"), "{}", gantry.log());
    for wire in &mut wires {
        assert_eq!(wire.ask(&ping).code, 0);
    }
    drop(wires);
    wait_for("room for a new connection", WITHIN, || {
        let mut wire = Wire::to(gantry.broker());
        wire.post(&ping);
        match wire.hear() {
            Heard::Command(reply) => Ok(reply),
            heard => Err(format!("{heard:?}")),
        }
    });
}

#[test]
fn a_body_above_the_message_limit_is_refused_and_the_connection_goes_on() {
    let gantry = Gantry::start(&["--max-message-size", "10KiB"]);
    let mut wire = Wire::to(gantry.broker());
    let reply = wire.ask(&send("Large", &[b'x'; 10 * 1024 + 1]));
    expect_refused(&reply, ResponseCode::MessageIllegal, "the limit is 10240");
    assert_eq!(wire.ask(&send("Large", &[b'x'; 10 * 1024])).code, 0);
}
