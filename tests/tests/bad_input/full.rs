//! A disk without room: a small file system in a mount namespace of its own. Where the system does not allow
//! that, the tests say so in one visible line.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::offset::GetMaxOffsetHeader;
use gantry_proto::remoting::request::pull::{PullMessageHeader, sys_flag};
use gantry_proto::remoting::request::send::SendMessageHeader;
use gantry_tests::harness::{Gantry, wait_for};
use tempfile::TempDir;

use crate::wire::{Wire, expect_refused};

const WITHIN: Duration = Duration::from_secs(30);
/// Bytes of a message's body.
const BODY: usize = 100_000;
const FLAGS: [&str; 6] = ["--max-message-size", "256KiB", "--index-slots", "500", "--index-entries", "2000"];

/// A small disk that only processes started on it see. Half of it is taken by a file of somebody else.
struct SmallDisk {
    /// Keeps the mount namespace.
    holder: Child,
    dir: TempDir,
}

impl SmallDisk {
    /// `None`, with a visible line, where the system allows none.
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().display();
        let script = format!(
            "PATH=$PATH:/sbin:/usr/sbin; cd {path} && mkdir disk && truncate -s 64M image && \
             mkfs.ext4 -q -F -m 0 image && mount -o loop image disk && fallocate -l 25M disk/ballast && \
             echo mounted && exec sleep 3600"
        );
        let mut holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut line = String::new();
        let output = holder.stdout.take().expect("standard output is piped");
        let _ = BufReader::new(output).read_line(&mut line); // an error is the end of the output
        let disk = Self { holder, dir };
        if line.trim() == "mounted" {
            return Some(disk);
        }
        println!("SKIPPED: no small disk can be mounted here (needs root, mkfs.ext4 and loop devices)");
        None
    }

    fn start(&self, flags: &[&str]) -> Gantry {
        let holder = self.holder.id().to_string();
        let flags: Vec<&str> = FLAGS.iter().chain(flags).copied().collect();
        let store = self.dir.path().join("disk/store");
        Gantry::start_through(&["nsenter", "--mount", "--target", &holder, "--"], &store, &flags)
    }

    /// The other takes all that is left.
    fn fill(&self) {
        let mut file = fs::File::options().append(true).open(self.ballast()).expect("the other's file");
        for bytes in [1 << 16, 1 << 12] {
            while file.write_all(&vec![1; bytes]).is_ok() {}
        }
    }

    /// The other's file, as this process sees it.
    fn ballast(&self) -> PathBuf {
        let path = self.dir.path().strip_prefix("/").expect("an absolute path").join("disk/ballast");
        Path::new(&format!("/proc/{}/root", self.holder.id())).join(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill(); // it may be gone already
        let _ = self.holder.wait();
    }
}

fn body(number: usize) -> String {
    format!("{number:08}").repeat(BODY / 8)
}

fn send(wire: &mut Wire, number: usize) -> OwnedCommand {
    let header = SendMessageHeader {
        producer_group: "raw",
        topic: "Full",
        default_topic: "TBW102",
        default_topic_queue_nums: 1,
        ..SendMessageHeader::default()
    };
    wire.request(RequestCode::SendMessage, &header, body(number).as_bytes())
}

/// Sends until it is refused; gives how many were acknowledged, and the refusal.
fn send_until_refused(gantry: &Gantry) -> (usize, OwnedCommand) {
    let mut wire = Wire::to(gantry.broker());
    let mut all = (0..1000).map(|number| (number, send(&mut wire, number)));
    all.find(|(_, reply)| reply.code != 0).expect("a small disk does not take 100 MB")
}

/// Expects that there are `count` messages, each the one that was sent.
#[track_caller]
fn expect_all(gantry: &Gantry, count: usize) {
    let mut wire = Wire::to(gantry.broker());
    let header = GetMaxOffsetHeader { topic: "Full".to_owned(), ..GetMaxOffsetHeader::default() };
    // The last ones are listed a moment after they were acknowledged.
    wait_for("every acknowledged message in its queue", WITHIN, || {
        let reply = wire.request(RequestCode::GetMaxOffset, &header, b"");
        let found = reply.ext.get("offset").unwrap_or_default();
        if found == count.to_string() { Ok(()) } else { Err(format!("{found} of {count}")) }
    });
    for number in 0..count {
        let header = PullMessageHeader {
            consumer_group: "raw",
            topic: "Full",
            queue_offset: i64::try_from(number).unwrap(),
            max_msg_nums: 1,
            sys_flag: sys_flag::SUBSCRIPTION,
            subscription: Some("*"),
            ..PullMessageHeader::default()
        };
        let reply = wire.request(RequestCode::PullMessage, &header, b"");
        let text = body(number);
        let found = reply.body.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(
            reply.code == 0 && found,
            "expected message {number}, found {} {:?}",
            reply.code,
            reply.remark
        );
    }
}

/// Waits until sends are taken again, without a restart.
#[track_caller]
fn goes_on(gantry: &Gantry, number: usize) {
    wait_for("that sends are taken again", WITHIN, || {
        let reply = send(&mut Wire::to(gantry.broker()), number);
        if reply.code == 0 { Ok(()) } else { Err(format!("{:?}", reply.remark)) }
    });
}

/// The broker leaves its reserve alone: it refuses, serves, survives a crash, and goes on when there is room.
#[test]
fn a_full_disk_refuses_sends_and_loses_nothing() {
    for policy in ["disk", "memory"] {
        let Some(disk) = SmallDisk::new() else { return };
        let mut gantry =
            disk.start(&["--policy", policy, "--segment-bytes", "4MiB", "--retention-reserve-bytes", "4MiB"]);
        let (count, refusal) = send_until_refused(&gantry);
        println!("{policy}: {count} messages, then {:?}", refusal.remark);
        assert!(count > 50, "expected that the disk takes some, found {count}");
        expect_refused(&refusal, ResponseCode::ServiceNotAvailable, "kept in reserve");
        expect_all(&gantry, count);
        gantry.kill9();
        gantry.restart();
        expect_all(&gantry, count);
        let refusal = send(&mut Wire::to(gantry.broker()), count);
        expect_refused(&refusal, ResponseCode::ServiceNotAvailable, "kept in reserve");
        fs::remove_file(disk.ballast()).expect("the other's file goes");
        goes_on(&gantry, count);
        gantry.terminate();
        gantry.restart();
        expect_all(&gantry, count + 1);
    }
}

/// Without a reserve others can take the last byte: then nothing beside the log can be written either.
#[test]
fn a_disk_without_a_byte_left_loses_nothing() {
    for policy in ["disk", "memory"] {
        let Some(disk) = SmallDisk::new() else { return };
        let flags = ["--policy", policy, "--segment-bytes", "4MiB", "--retention-reserve-bytes", "0"];
        let mut gantry = disk.start(&flags);
        let (count, refusal) = send_until_refused(&gantry);
        println!("{policy}: {count} messages, then {:?}", refusal.remark);
        expect_refused(&refusal, ResponseCode::ServiceNotAvailable, "kept in reserve");
        expect_all(&gantry, count);
        disk.fill();
        let refusal = send(&mut Wire::to(gantry.broker()), count);
        expect_refused(&refusal, ResponseCode::ServiceNotAvailable, "kept in reserve");
        wait_for("a checkpoint that cannot be written", WITHIN, || match gantry.log() {
            log if log.contains("housekeeping failed") && log.contains("No space left") => Ok(()),
            log => Err(log),
        });
        expect_all(&gantry, count);
        fs::remove_file(disk.ballast()).expect("the other's file goes");
        goes_on(&gantry, count);
        gantry.kill9();
        gantry.restart();
        expect_all(&gantry, count + 1);
    }
}

/// From the configured share on sends are refused, until there is room again.
#[test]
fn sends_are_refused_above_the_configured_share() {
    let Some(disk) = SmallDisk::new() else { return };
    // One log file that is never removed: most of what is free.
    let size = ["--segment-bytes", "24MiB", "--retention-reserve-bytes", "0"];
    let shares = ["--retention-force-percent", "60", "--retention-refuse-percent", "60"];
    let gantry = disk.start(&[size, shares].concat());
    let mut wire = Wire::to(gantry.broker());
    let mut count = 0;
    let refusal = wait_for("a refusal", WITHIN, || match send(&mut wire, count) {
        reply if reply.code == 0 => {
            count += 1;
            Err(format!("{count} messages taken"))
        }
        reply => Ok(reply),
    });
    println!("{count} messages, then {:?}", refusal.remark);
    expect_refused(&refusal, ResponseCode::ServiceNotAvailable, "messages are refused from 60 % on");
    expect_all(&gantry, count);
    fs::remove_file(disk.ballast()).expect("the other's file goes");
    goes_on(&gantry, count);
    expect_all(&gantry, count + 1);
    for words in ["no new messages are taken until there is room", "the disk has room again"] {
        assert!(gantry.log().contains(words), "expected {words:?} in\n{}", gantry.log());
    }
}
