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
        self.pull_of_group(from, sql(expression), None)
    }

    /// A pull of a member of a group that wants other messages than it.
    fn pull_of_group(&self, from: u64, filter: Filter, own: Option<Filter>) -> Pulled {
        let request = PullRequest {
            queue: Arc::clone(&self.queue),
            from: QueueOffset::new(from),
            end: None,
            messages_max: 32,
            bytes_max: BYTES_MAX,
            filter,
            below: None,
            own,
        };
        pull(&self.store, &request, &mut Scratch::default())
    }
}

fn sql(expression: &str) -> Filter {
    Filter::Sql(Arc::new(Sql::parse(expression).expect("a valid expression")))
}

/// Asks for everything, to be looked at with a filter.
fn request(queue: &Arc<Queue>, filter: Filter) -> PullRequest {
    let (from, own) = (QueueOffset::ZERO, None);
    PullRequest {
        queue: Arc::clone(queue),
        from,
        end: None,
        messages_max: 32,
        bytes_max: BYTES_MAX,
        filter,
        below: None,
        own,
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
async fn a_group_that_comes_after_another_sees_no_more_than_that_is_done_with() {
    let world = World::new();
    world.send("", 5).await;
    let look = |from: u64, end: u64| {
        let asked = request(&world.queue, Filter::All);
        let asked = PullRequest { from: QueueOffset::new(from), end: Some(QueueOffset::new(end)), ..asked };
        let pulled = pull(&world.store, &asked, &mut Scratch::default());
        (pulled.status, offsets(&pulled), pulled.next.get(), pulled.end.get(), pulled.max.get())
    };
    assert_eq!(look(0, 0), (PullStatus::AtEnd, vec![], 0, 0, 5));
    assert_eq!(look(0, 3), (PullStatus::Found, vec![0, 1, 2], 3, 3, 5));
    // The other group was reset: what was given stays given.
    assert_eq!(look(3, 1), (PullStatus::AtEnd, vec![], 3, 1, 5));
    assert_eq!(look(3, 9), (PullStatus::Found, vec![3, 4], 5, 5, 5));
    assert_eq!(look(6, 3).0, PullStatus::Beyond);
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
    let request = request(&world.queue, Filter::All);
    let mut looks = Looks::new(&request.filter, request.own.as_ref());
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
    let request = request(&World::new().queue, sql("a IS NULL"));
    assert!(!Looks::new(&request.filter, request.own.as_ref()).at(b"no record"));
    let item = BatchItem { flag: 0, body: b"x", properties: gantry_proto::record::Properties::new(b"") };
    let mut bytes = Vec::new();
    item.encode_into(&mut bytes).expect("an item");
    assert!(!Looks::new(&request.filter, request.own.as_ref()).at(&bytes));
}

#[tokio::test]
async fn what_only_others_of_the_group_want_is_named_and_not_given() {
    let world = World::new();
    // 0 to 2 are ours, 3 and 4 theirs, 5 nobody's, 6 theirs, 7 ours.
    for tag in ["A", "A", "A", "B", "B", "C", "B", "A"] {
        world.send(&format!("TAGS\u{1}{tag}\u{2}"), 1).await;
    }
    let tags = |text| Filter::tags(text).expect("a valid expression");
    let pull = |from| world.pull_of_group(from, tags("A || B"), Some(tags("A")));
    let ours = pull(0);
    assert_eq!((offsets(&ours), ours.next.get(), ours.strangers.len()), (vec![0, 1, 2], 3, 0));
    let theirs = pull(3);
    assert_eq!((theirs.messages.messages(), theirs.next.get(), theirs.strangers.len()), (0, 7, 3));
    let named: Vec<_> = theirs
        .strangers
        .iter()
        .map(|at| {
            let record = world.store.record_at(*at).expect("a record");
            RecordView::parse(&record).expect("a record").queue_offset().get()
        })
        .collect();
    assert_eq!(named, [3, 4, 6]);
    assert_eq!(offsets(&pull(7)), [7]);
    // A tag that only shares its hash with ours is theirs.
    world.send("TAGS\u{1}BBBB\u{2}", 1).await;
    let pulled = world.pull_of_group(8, tags("AaAa || BBBB"), Some(tags("AaAa")));
    assert_eq!((pulled.strangers.len(), pulled.next.get()), (1, 9));
    world.send("a\u{1}1\u{2}", 40).await;
    let pulled = world.pull_of_group(9, Filter::any(vec![sql("a = 1"), tags("A")]), Some(tags("A")));
    assert_eq!((pulled.strangers.len(), pulled.next.get()), (STRANGERS_MAX, 9 + 32));
}
