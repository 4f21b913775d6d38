//! Clients that ask for more than they take.

use std::fs;
use std::time::Duration;

use gantry_proto::remoting::codes::RequestCode;
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::pull::{PullMessageHeader, sys_flag};
use gantry_proto::remoting::request::send::SendMessageHeader;
use gantry_tests::harness::Gantry;

use crate::normal::Normal;
use crate::wire::{Heard, Wire};

/// Pulls that nobody waits for.
const PULLS: usize = 2000;

/// Anonymous memory of a process that lies in RAM: what it really needs, without its mapped files.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line RssAnon");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib * 1024
}

/// Thousands of pulls of large answers in one packet, none of them read: the broker keeps what one client may
/// owe it, and serves the others.
#[test]
fn a_client_that_does_not_read_costs_a_bounded_amount_of_memory() {
    let gantry = Gantry::start(&["--max-outbound", "1MiB"]);
    let mut normal = Normal::new(&gantry);
    let mut wire = Wire::to(gantry.broker());
    let send = SendMessageHeader {
        producer_group: "raw",
        topic: "Large",
        default_topic: "TBW102",
        default_topic_queue_nums: 1,
        ..SendMessageHeader::default()
    };
    assert_eq!(wire.request(RequestCode::SendMessage, &send, &vec![b'x'; 200_000]).code, 0);
    let before = resident_bytes(gantry.pid());
    let pull = PullMessageHeader {
        consumer_group: "raw",
        topic: "Large",
        max_msg_nums: 1,
        sys_flag: sys_flag::SUBSCRIPTION,
        subscription: Some("*"),
        ..PullMessageHeader::default()
    };
    let pull = OwnedCommand::request(RequestCode::PullMessage, &pull);
    let mut greedy = Wire::to(gantry.broker());
    for _ in 0..PULLS {
        greedy.post(&pull);
    }
    for _ in 0..5 {
        normal.works();
        let grown = resident_bytes(gantry.pid()).saturating_sub(before);
        assert!(grown < 32 << 20, "expected at most a few times --max-outbound, found {grown} bytes more");
    }
    // It changes its mind: every answer is still there.
    for number in 0..PULLS {
        match greedy.hear_within(Duration::from_secs(60)) {
            Heard::Command(reply) => assert_eq!((reply.code, reply.body.len() > 200_000), (0, true)),
            heard => panic!("expected answer {number} of {PULLS}, found {heard:?}"),
        }
    }
    normal.keeps();
}
