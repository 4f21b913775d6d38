//! Stores whose files were damaged while nobody looked: what the damage did not hit is served, what it hit is
//! never served wrong, and the log tells of it.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use gantry_proto::record::RecordView;
use gantry_proto::remoting::codes::RequestCode;
use gantry_proto::remoting::request::pull::{PullMessageHeader, sys_flag};
use gantry_proto::remoting::request::send::SendMessageHeader;
use gantry_tests::harness::{Gantry, serve_refusing};

use crate::normal::Normal;
use crate::wire::Wire;

/// Messages in the store before it is damaged.
const MESSAGES: usize = 300;
/// Files of a size that these messages fill several of, the log's as well as the queue's.
const SMALL: [&str; 10] = [
    "--segment-bytes",
    "256KiB",
    "--max-message-size",
    "64KiB",
    "--queue-file-bytes",
    "2000",
    "--index-slots",
    "100",
    "--index-entries",
    "200",
];

/// A stopped broker on a store with messages.
struct Victim {
    gantry: Gantry,
    bodies: Vec<String>,
    /// Where each message's record starts in the log.
    places: Vec<u64>,
}

impl Victim {
    fn new(policy: &str, stop: fn(&mut Gantry)) -> Self {
        let mut flags = vec!["--policy", policy];
        flags.extend(SMALL);
        let mut gantry = Gantry::start(&flags);
        let mut wire = Wire::to(gantry.broker());
        let header = SendMessageHeader {
            producer_group: "raw",
            topic: "Victim",
            default_topic: "TBW102",
            default_topic_queue_nums: 1,
            ..SendMessageHeader::default()
        };
        let (mut bodies, mut places) = (Vec::new(), Vec::new());
        for number in 0..MESSAGES {
            if number == MESSAGES - 1 {
                // All others lie behind a checkpoint: not every start looks at their files.
                gantry.terminate();
                gantry.restart();
                wire = Wire::to(gantry.broker());
            }
            let body = format!("message {number} {}", "x".repeat(3_000));
            let reply = wire.request(RequestCode::SendMessage, &header, body.as_bytes());
            assert_eq!(reply.code, 0, "{reply:?}");
            // The last 16 digits of an offset message id are the place in the log.
            let id = reply.ext.get("msgId").expect("an id");
            places.push(u64::from_str_radix(&id[id.len() - 16..], 16).expect("a place"));
            bodies.push(body);
        }
        stop(&mut gantry);
        Self { gantry, bodies, places }
    }

    fn files(&self, dir: &str) -> Vec<PathBuf> {
        files(&self.gantry.store().join(dir))
    }

    /// Changes the bytes of a message's record in the log from its byte `from` on.
    fn damage_log(&self, number: usize, from: u64, change: fn(&mut [u8; 64])) {
        let at = self.places[number] + from;
        let path = self.files("commitlog").into_iter().rfind(|path| start_of(path) <= at).unwrap();
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let mut bytes = [0; 64];
        file.read_exact_at(&mut bytes, at - start_of(&path)).unwrap();
        change(&mut bytes);
        file.write_all_at(&bytes, at - start_of(&path)).unwrap();
    }

    /// Starts the broker and expects all messages but those of `lost`, each once and unchanged, in order; and
    /// that it goes on.
    #[track_caller]
    fn serves_all_but(&mut self, lost: &[usize]) {
        self.gantry.restart();
        let head = |body: &str| body.get(..12).unwrap_or(body).to_owned();
        let kept = self.bodies.iter().enumerate().filter(|(number, _)| !lost.contains(number));
        let expected: Vec<String> = kept.map(|(_, body)| body.clone()).collect();
        let found = pull_all(&self.gantry);
        let differ = expected.iter().zip(&found).position(|(expected, found)| expected != found);
        assert!(
            expected == found,
            "expected {} messages, found {}; the first that differs: {differ:?}, {:?} instead of {:?}",
            expected.len(),
            found.len(),
            differ.map(|at| head(&found[at])),
            differ.map(|at| head(&expected[at])),
        );
        Normal::new(&self.gantry).works();
        assert!(!self.gantry.log().contains("panicked"), "{}", self.gantry.log());
    }

    #[track_caller]
    fn said(&self, words: &str) {
        let log = self.gantry.log();
        assert!(log.contains(words), "expected {words:?} in the log, found\n{log}");
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn start_of(path: &Path) -> u64 {
    path.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

fn cut_file(path: &Path, len: u64) {
    fs::File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

/// Every message of the queue, as a consumer gets them from its first offset on.
fn pull_all(gantry: &Gantry) -> Vec<String> {
    let mut wire = Wire::to(gantry.broker());
    let mut bodies = Vec::new();
    let (mut next, mut max) = (0_i64, 1_i64);
    while next < max {
        let header = PullMessageHeader {
            consumer_group: "raw",
            topic: "Victim",
            queue_offset: next,
            max_msg_nums: 32,
            sys_flag: sys_flag::SUBSCRIPTION,
            subscription: Some("*"),
            ..PullMessageHeader::default()
        };
        let reply = wire.request(RequestCode::PullMessage, &header, b"");
        let mut rest = &reply.body[..];
        while !rest.is_empty() {
            let view = RecordView::parse(rest).expect("a whole record");
            view.check_body_crc().expect("an undamaged body");
            bodies.push(String::from_utf8_lossy(view.body()).into_owned());
            rest = &rest[view.total_size() as usize..];
        }
        let number = |field: &str| reply.ext.get(field).unwrap().parse::<i64>().unwrap();
        assert!(number("nextBeginOffset") > next, "a consumer is stuck at {next}: {:?}", reply.remark);
        (next, max) = (number("nextBeginOffset"), number("maxOffset"));
    }
    bodies
}

#[test]
fn a_flipped_bit_in_a_message_costs_this_message() {
    for (policy, stop) in [
        ("disk", Gantry::terminate as fn(&mut Gantry)),
        ("disk", Gantry::kill9),
        ("memory", Gantry::terminate),
        ("memory", Gantry::kill9),
    ] {
        let mut victim = Victim::new(policy, stop);
        victim.damage_log(100, 90, |bytes| bytes[50] ^= 0x10); // its body
        victim.damage_log(200, 4, |bytes| bytes[2] ^= 1); // its magic code
        victim.damage_log(201, 0, |bytes| bytes[1] ^= 0x40); // its length
        victim.damage_log(250, 0, |bytes| bytes[27] ^= 4); // its number in the queue
        victim.serves_all_but(&[100, 200, 201, 250]);
        victim.said("damaged");
    }
}

#[test]
fn a_torn_end_costs_only_what_was_torn() {
    let mut victim = Victim::new("disk", Gantry::kill9);
    victim.damage_log(MESSAGES - 1, 100, |bytes| bytes.fill(0));
    victim.serves_all_but(&[MESSAGES - 1]);
    victim.said("the log ends in an unfinished record");
}

/// The last file of the log is shorter than it was: the broker starts, and says what is gone.
#[test]
fn a_truncated_log_file_costs_what_was_cut_off() {
    for stop in [Gantry::terminate as fn(&mut Gantry), Gantry::kill9] {
        let mut victim = Victim::new("disk", stop);
        let last = victim.files("commitlog").pop().unwrap();
        let number = MESSAGES - 5;
        cut_file(&last, victim.places[number] - start_of(&last) + 1_000);
        let lost: Vec<usize> = (number..MESSAGES).collect();
        victim.serves_all_but(&lost);
        victim.said("is cut short");
    }
}

/// An earlier file that is shorter is no crash's doing: the operator decides.
#[test]
fn a_truncated_earlier_log_file_is_refused_by_name() {
    let mut victim = Victim::new("disk", Gantry::terminate);
    let second = victim.files("commitlog").swap_remove(1);
    let whole = fs::read(&second).unwrap();
    cut_file(&second, 100_000);
    let ended = serve_refusing(victim.gantry.store(), &SMALL);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    for words in ["00000000000000262144 is 100000 bytes long", "restore"] {
        assert!(ended.stderr.contains(words), "expected {words:?}, found {}", ended.stderr);
    }
    fs::write(&second, whole).unwrap();
    victim.serves_all_but(&[]);
}

#[test]
fn damaged_consume_queues_cost_nothing() {
    for stop in [Gantry::terminate as fn(&mut Gantry), Gantry::kill9] {
        let mut victim = Victim::new("disk", stop);
        let queue = victim.files("consumequeue/Victim/0");
        assert!(queue.len() >= 3, "{queue:?}");
        // A flipped bit in a position, one in a length, and zeroes.
        let mut bytes = fs::read(&queue[0]).unwrap();
        bytes[10 * 20 + 6] ^= 1;
        bytes[20 * 20 + 10] ^= 1;
        bytes[30 * 20..40 * 20].fill(0);
        fs::write(&queue[0], bytes).unwrap();
        // And a file that is cut short.
        cut_file(&queue[1], 333);
        victim.serves_all_but(&[]);
        victim.said("consume queue");
    }
}

#[test]
fn lost_derived_files_are_built_again() {
    let overwrite = |store: &Path, dirs: &[&str], change: fn(&mut Vec<u8>)| {
        for path in dirs.iter().flat_map(|dir| files(&store.join(dir))) {
            let mut bytes = fs::read(&path).unwrap();
            change(&mut bytes);
            fs::write(path, bytes).unwrap();
        }
    };
    let half = |bytes: &mut Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle..].fill(0xff);
    };
    let losses: [&dyn Fn(&Path); 5] = [
        &|store| fs::remove_dir_all(store.join("consumequeue")).unwrap(),
        &|store| overwrite(store, &["index", "dedup"], |bytes| bytes.truncate(7)),
        &|store| overwrite(store, &["index", "dedup"], |bytes| bytes.fill(0xff)),
        &|store| {
            fs::write(store.join("gantry.checkpoint"), b"{\"format\":").unwrap();
            fs::write(store.join("checkpoint"), b"short").unwrap();
        },
        &|store| overwrite(store, &["index", "dedup", "consumequeue/Victim/0"], half),
    ];
    for (number, lose) in losses.into_iter().enumerate() {
        for stop in [Gantry::terminate as fn(&mut Gantry), Gantry::kill9] {
            println!("loss {number}");
            let mut victim = Victim::new("disk", stop);
            lose(victim.gantry.store());
            victim.serves_all_but(&[]);
        }
    }
}
