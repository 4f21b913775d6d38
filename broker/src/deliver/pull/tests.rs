//! Pulls with filters that look at properties: what they give, pass over, and cost.

use gantry_proto::ids::QueueId;
use gantry_proto::names::TopicName;
use gantry_proto::record::BatchItem;
use gantry_proto::sql::Sql;
use tempfile::TempDir;

use super::*;
use crate::fixture;

struct World {
    store: Arc<Store>,
    queue: Arc<Queue>,
    _dir: TempDir,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let store = fixture::store(dir.path(), fixture::clock(), Vec::new());
        let queue = store.queue(&TopicName::internal("T"), QueueId::ZERO).expect("a queue");
        Self { store, queue, _dir: dir }
    }

    async fn send(&self, properties: &str, count: usize) {
        fixture::send_with(&self.store, "T", 0, (properties.as_bytes(), b"body"), count).await;
    }

    fn pull(&self, from: u64, expression: &str) -> Pulled {
        let request = PullRequest {
            queue: Arc::clone(&self.queue),
            from: QueueOffset::new(from),
            messages_max: 32,
            bytes_max: BYTES_MAX,
            filter: Filter::Sql(Arc::new(Sql::parse(expression).expect("a valid expression"))),
        };
        pull(&self.store, &request, &mut Scratch::default())
    }
}

/// Queue offsets of the messages.
fn offsets(pulled: &Pulled) -> Vec<u64> {
    let mut found = Vec::new();
    for mut run in pulled.messages.iter() {
        while !run.is_empty() {
            let view = RecordView::parse(run).expect("a record");
            found.push(view.queue_offset().get());
            run = &run[view.total_size() as usize..];
        }
    }
    found
}

#[tokio::test]
async fn what_does_not_match_is_passed_over() {
    let world = World::new();
    for number in 0..100 {
        world.send(&format!("a\u{1}{number}\u{2}"), 1).await;
    }
    let pulled = world.pull(0, "a BETWEEN 10 AND 12 OR a = 98");
    assert_eq!(
        (pulled.status, offsets(&pulled), pulled.next.get()),
        (PullStatus::Found, vec![10, 11, 12, 98], 100)
    );
    let pulled = world.pull(0, "a >= 50");
    assert_eq!((offsets(&pulled).len(), pulled.next.get()), (32, 82));
    let pulled = world.pull(82, "a >= 50");
    assert_eq!((offsets(&pulled).len(), pulled.next.get()), (18, 100));
    let pulled = world.pull(0, "b = 1");
    assert_eq!(
        (pulled.status, pulled.next, pulled.messages.messages()),
        (PullStatus::NoneMatched, pulled.max, 0)
    );
    assert_eq!(world.pull(100, "b = 1").status, PullStatus::AtEnd);
}

#[tokio::test]
async fn a_long_stretch_without_a_match_is_passed_over_in_steps() {
    let world = World::new();
    world.send("a\u{1}1\u{2}", 2 * LOOKS_MAX + 10).await;
    world.send("a\u{1}2\u{2}", 1).await;
    let (mut next, mut steps) = (0, 0);
    let found = loop {
        let pulled = world.pull(next, "a = 2");
        if pulled.status == PullStatus::Found {
            break pulled;
        }
        assert_eq!(pulled.status, PullStatus::NoneMatched);
        assert!(pulled.next.get() > next && pulled.next.get() - next <= LOOKS_MAX as u64);
        (next, steps) = (pulled.next.get(), steps + 1);
    };
    assert!(steps >= 2, "{steps}");
    assert_eq!(offsets(&found), [2 * LOOKS_MAX as u64 + 10]);
}

#[tokio::test]
async fn bytes_and_steps_of_one_pull_are_bounded() {
    let world = World::new();
    let properties = "a\u{1}1\u{2}".as_bytes();
    let large = vec![0; 100_000];
    fixture::send_with(&world.store, "T", 0, (properties, &large), 8).await;
    let mut looks = Looks::new(&Filter::All);
    looks.bytes = LOOKED_BYTES_MAX - 1;
    assert!(!looks.are_enough());
    looks.bytes += 1;
    assert!(looks.are_enough());
    let many = format!("b\u{1}{}\u{2}", "x".repeat(30_000));
    world.send(&many, 8).await;
    let costly = (0..700).map(|n| format!("b CONTAINS '{n}'")).collect::<Vec<_>>().join(" OR ");
    let pulled = world.pull(8, &costly);
    assert_eq!((pulled.status, pulled.next.get()), (PullStatus::NoneMatched, 9));
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_not_wanted() {
    let filter = Filter::Sql(Arc::new(Sql::parse("a IS NULL").expect("a valid expression")));
    assert!(!Looks::new(&filter).at(b"no record"));
    let item = BatchItem { flag: 0, body: b"x", properties: gantry_proto::record::Properties::new(b"") };
    let mut bytes = Vec::new();
    item.encode_into(&mut bytes).expect("an item");
    assert!(!Looks::new(&filter).at(&bytes));
}
