//! Random frames on a live broker: it answers or closes, and lives on. The seed is fixed; `GANTRY_SEED` tries
//! another one, `GANTRY_FRAMES` more of them.

use std::time::Duration;

use fastrand::Rng;
use gantry_proto::remoting::codes::RequestCode;
use gantry_proto::remoting::frame::Serialize;
use gantry_proto::remoting::header::{ExtFields, OwnedCommand};
use gantry_tests::harness::Gantry;

use crate::normal::Normal;
use crate::wire::{Heard, Wire, encode};

const SEED: u64 = 20_240_607;
const FRAMES: u64 = 400;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn random_frames_are_answered_or_end_their_connection() {
    let (seed, frames) = (setting("GANTRY_SEED", SEED), setting("GANTRY_FRAMES", FRAMES));
    println!("GANTRY_SEED={seed} GANTRY_FRAMES={frames}");
    let gantry = Gantry::start(&["--transaction-timeout", "200ms"]);
    let mut normal = Normal::new(&gantry);
    let mut rng = Rng::with_seed(seed);
    let (mut answered, mut closed, mut silent) = (0_u64, 0_u64, 0_u64);
    for number in 0..frames {
        let address = if rng.u8(..) < 200 { gantry.broker() } else { gantry.name_server() };
        let mut wire = Wire::to(address);
        for _ in 0..rng.usize(1..4) {
            wire.write(&bytes(&mut rng));
        }
        wire.end_of_input();
        loop {
            match wire.hear_within(Duration::from_secs(20)) {
                Heard::Command(_) => answered += 1,
                Heard::Closed => break closed += 1,
                // Something waits, as it may: a pull for its message.
                Heard::Silence => break silent += 1,
            }
        }
        if number % 50 == 0 {
            normal.works();
        }
    }
    println!("{answered} answers, {closed} connections ended by the broker, {silent} left waiting");
    assert!(answered > frames / 10, "expected that many are understood, found {answered}");
    assert_eq!(silent, 0, "a client that has said its last word is not waited for");
    normal.works();
    normal.keeps();
    assert!(!gantry.log().contains("panicked"), "{}", gantry.log());
}

/// A few bytes for the broker: a valid command, one that was damaged, or noise.
fn bytes(rng: &mut Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    if rng.u8(..) < 20 {
        return (0..rng.usize(1..200)).map(|_| rng.u8(..)).collect();
    }
    let form = if rng.bool() { Serialize::Json } else { Serialize::RocketMq };
    encode(&command(rng), &mut bytes, form);
    match rng.u8(..8) {
        0 => flip(rng, &mut bytes, 8),
        // Behind the prefix: still a frame, but with an odd header or body.
        1 | 2 => {
            for _ in 0..rng.usize(1..6) {
                flip(rng, bytes.get_mut(8..).unwrap_or_default(), usize::MAX);
            }
        }
        3 => bytes.truncate(rng.usize(..bytes.len())),
        _ => {}
    }
    bytes
}

fn flip(rng: &mut Rng, bytes: &mut [u8], within: usize) {
    let end = bytes.len().min(within);
    if end > 0 {
        bytes[rng.usize(..end)] ^= 1 << rng.u8(..8);
    }
}

/// A command of a known code with fields of any kind.
fn command(rng: &mut Rng) -> OwnedCommand {
    const NAMES: &[&str] = &[
        "topic",
        "group",
        "consumerGroup",
        "producerGroup",
        "defaultTopic",
        "defaultTopicQueueNums",
        "queueId",
        "queueOffset",
        "maxMsgNums",
        "sysFlag",
        "commitOffset",
        "suspendTimeoutMillis",
        "subscription",
        "subVersion",
        "expressionType",
        "bornTimestamp",
        "flag",
        "properties",
        "reconsumeTimes",
        "batch",
        "offset",
        "timestamp",
        "key",
        "maxNum",
        "beginTimestamp",
        "endTimestamp",
        "commitOrRollback",
        "commitLogOffset",
        "tranStateTableOffset",
        "msgId",
        "transactionId",
        "clientID",
        "readQueueNums",
        "writeQueueNums",
        "perm",
        "topicFilterType",
        "order",
        "namespace",
        "value",
        "brokerName",
        "brokerAddr",
        "clusterName",
        "brokerId",
        "delayLevel",
        "a",
        "b",
        "c",
        "d",
        "e",
        "f",
        "g",
        "h",
        "i",
        "j",
        "k",
        "l",
        "m",
    ];
    const VALUES: &[&str] = &[
        "",
        "0",
        "1",
        "-1",
        "2147483648",
        "9223372036854775807",
        "-9223372036854775808",
        "true",
        "nonsense",
        "*",
        "Normal",
        "normal",
        "%RETRY%normal",
        "%DLQ%normal",
        "RMQ_SYS_TRANS_HALF_TOPIC",
        "a||b",
        "TAG",
        "TRAN_MSG\u{1}true\u{2}",
        "DELAY\u{1}99\u{2}",
        "UNIQ_KEY\u{1}\u{2}",
        "\u{0}",
        "../x",
        "1700000000000",
        "KEYS\u{1}k\u{2}UNIQ_KEY\u{1}same\u{2}",
    ];
    let mut ext = ExtFields::new();
    for _ in 0..rng.usize(..20) {
        ext.push(NAMES[rng.usize(..NAMES.len())], VALUES[rng.usize(..VALUES.len())]);
    }
    if rng.u8(..) < 128 {
        // So that some get further than the first check.
        for (name, value) in [("topic", "Fuzz"), ("b", "Fuzz"), ("consumerGroup", "fuzz"), ("group", "fuzz")]
        {
            ext.set(name, value);
        }
    }
    // The normal client's topic and group are an operator's to delete.
    let deletes = |code: RequestCode| {
        matches!(code, RequestCode::DeleteTopicInBroker | RequestCode::DeleteSubscriptiongroup)
    };
    let code = RequestCode::ALL[rng.usize(..RequestCode::ALL.len())];
    let code = if deletes(code) { RequestCode::SendMessage } else { code };
    let body: Vec<u8> = match rng.u8(..4) {
        0 => Vec::new(),
        1 => (0..rng.usize(..300)).map(|_| rng.u8(..)).collect(),
        2 => br#"{"clientID":"x","consumerDataSet":[{"groupName":"fuzz"}],"producerDataSet":[{}]}"#.to_vec(),
        _ => b"text".to_vec(),
    };
    let flag = if rng.u8(..) < 16 { rng.i32(..4) } else { 0 };
    OwnedCommand { ext, flag, opaque: rng.i32(..), ..OwnedCommand::request(code, &()) }.body(body)
}
