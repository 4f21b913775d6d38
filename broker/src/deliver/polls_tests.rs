//! Who wakes for which message.

use std::sync::Arc;

use gantry_proto::ids::{PhyOffset, QueueId};
use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::sql::Sql;
use tempfile::TempDir;

use super::filter::Filter;
use super::polls::{ANY_QUEUE, Mailbox, Party, Place, Polls, Share};
use crate::fixture;
use crate::store::{ApplyError, Dispatched, Projection, Queue, Save, Store};

struct World {
    polls: Arc<Polls>,
    store: Arc<Store>,
    mailbox: Arc<Mailbox>,
    queue: Arc<Queue>,
    _dir: TempDir,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let polls = Arc::new(Polls::new(10_000));
        let store = fixture::store(dir.path(), fixture::clock(), vec![polls.projection()]);
        let queue = store.queue(&TopicName::internal("T"), QueueId::ZERO).expect("a queue");
        Self { polls, store, mailbox: Arc::default(), queue, _dir: dir }
    }

    fn park(&self, token: u32, filter: &Filter) -> Place {
        self.polls.park(&self.queue, filter, &self.mailbox, token).expect("there is room")
    }

    /// A pop of a group for so many messages, at any queue.
    fn share(&self, token: u32, group: &str, filter: &Filter, messages: usize) -> Place {
        let party = Party::Group(Share { group: GroupName::internal(group), messages, mixed: false });
        let key = (TopicName::internal("T"), ANY_QUEUE);
        self.polls.park_at(key, filter, party, (&self.mailbox, token)).expect("there is room")
    }

    /// Stores a message, and gives the tokens of whom it woke.
    async fn woken_by(&self, properties: &str) -> Vec<u32> {
        self.woken_by_many(properties, 1).await
    }

    async fn woken_by_many(&self, properties: &str, count: usize) -> Vec<u32> {
        fixture::send_with(&self.store, "T", 0, (properties.as_bytes(), b"body"), count).await;
        let mut woken = self.mailbox.take();
        woken.sort_unstable();
        woken
    }
}

fn sql(expression: &str) -> Filter {
    Filter::Sql(Arc::new(Sql::parse(expression).expect("a valid expression")))
}

fn tags(expression: &str) -> Filter {
    Filter::tags(expression).expect("a valid expression")
}

#[tokio::test]
async fn a_waiting_pull_wakes_for_what_its_filter_wants_and_for_nothing_else() {
    let world = World::new();
    world.park(1, &sql("a > 5"));
    world.park(2, &sql("a > 5 OR b = 'x'"));
    world.park(3, &tags("A"));
    world.park(4, &Filter::any(vec![tags("B"), sql("a = 7")]));
    assert_eq!(world.woken_by("a\u{1}5\u{2}").await, Vec::<u32>::new());
    assert_eq!(world.woken_by("a\u{1}six\u{2}").await, Vec::<u32>::new());
    assert_eq!(world.woken_by("TAGS\u{1}A\u{2}b\u{1}x\u{2}").await, [2, 3]);
    assert_eq!(world.polls.len(), 2);
    assert_eq!(world.woken_by("TAGS\u{1}B\u{2}").await, [4]);
    assert_eq!(world.woken_by("a\u{1}7\u{2}").await, [1]);
    assert!(world.polls.is_empty());
    world.park(5, &Filter::All);
    assert_eq!(world.woken_by("").await, [5]);
}

#[tokio::test]
async fn pulls_of_other_queues_sleep_on_and_those_that_left_are_not_woken() {
    let world = World::new();
    let other = world.store.queue(&TopicName::internal("T"), QueueId::new(1)).expect("a queue");
    world.polls.park(&other, &sql("a = 1"), &world.mailbox, 1).expect("there is room");
    let place = world.park(2, &sql("a = 1"));
    world.polls.leave(&place, &world.mailbox);
    assert_eq!(world.woken_by("a\u{1}1\u{2}").await, Vec::<u32>::new());
    assert_eq!(world.polls.len(), 1);
    world.polls.wake_all(&(TopicName::internal("T"), QueueId::new(1)));
    assert_eq!((world.mailbox.take(), world.polls.len()), (vec![1], 0));
}

#[tokio::test]
async fn filters_that_cost_too_much_for_one_batch_are_looked_at_by_their_own_connections() {
    let world = World::new();
    let costly = (0..500).map(|n| format!("a CONTAINS 'x{n}'")).collect::<Vec<_>>().join(" OR ");
    let costly = sql(&costly);
    for token in 0..10 {
        world.park(token, &costly);
    }
    let long = format!("a\u{1}{}\u{2}", "y".repeat(1000));
    let woken = world.woken_by(&long).await;
    assert!(!woken.is_empty() && woken.len() < 10, "{woken:?}");
    assert_eq!(world.woken_by("a\u{1}y\u{2}").await, Vec::<u32>::new(), "the next batch has its own steps");
}

#[tokio::test]
async fn of_a_group_as_many_wake_as_there_is_work_for_and_in_their_turn() {
    let world = World::new();
    for token in 0..1000 {
        world.share(token, if token % 2 == 0 { "even" } else { "odd" }, &Filter::All, 2);
    }
    // One of each group for one message, and the next ones for the next.
    assert_eq!(world.woken_by("").await, [0, 1]);
    assert_eq!(world.woken_by("").await, [2, 3]);
    let mut woken = Vec::new();
    for _ in 0..100 {
        woken.extend(world.woken_by("").await);
    }
    assert_eq!(woken, (4..204).collect::<Vec<_>>());
    assert_eq!(world.polls.len(), 1000 - 204);
}

#[tokio::test]
async fn a_pop_that_was_woken_has_room_for_several() {
    let world = World::new();
    for token in 0..10 {
        world.share(token, "g", &Filter::All, 2);
    }
    // In one batch or in several: five messages need three of them at the least.
    let woken = world.woken_by_many("", 5).await;
    assert!((3..=5).contains(&woken.len()), "{woken:?}");
    assert_eq!(woken, (0..).take(woken.len()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_group_is_woken_where_its_filters_match() {
    let world = World::new();
    world.share(1, "g", &tags("A"), 32);
    world.share(2, "g", &tags("B"), 32);
    world.share(3, "g", &tags("B"), 32);
    world.share(4, "g", &sql("a > 5"), 32);
    world.share(5, "g", &sql("a > 5"), 32);
    assert_eq!(world.woken_by("TAGS\u{1}C\u{2}").await, Vec::<u32>::new());
    assert_eq!(world.woken_by("TAGS\u{1}B\u{2}").await, [2]);
    assert_eq!(world.woken_by("a\u{1}7\u{2}").await, [4]);
    assert_eq!(world.woken_by("TAGS\u{1}B\u{2}a\u{1}7\u{2}").await, [3, 5]);
    assert_eq!(world.polls.len(), 1);
}

#[tokio::test]
async fn what_a_connection_that_writes_was_woken_for_counts_for_nothing() {
    let world = World::new();
    let slow = Arc::new(Mailbox::default());
    let share = Share { group: GroupName::internal("g"), messages: 32, mixed: false };
    let key = (TopicName::internal("T"), ANY_QUEUE);
    world.polls.park_at(key, &Filter::All, Party::Group(share), (&slow, 1)).expect("there is room");
    world.share(2, "g", &Filter::All, 32);
    world.share(3, "g", &Filter::All, 32);
    slow.set_busy(true);
    assert_eq!(world.woken_by("").await, [2]);
    assert_eq!((slow.waiting(), slow.take()), (vec![1], vec![1]));
}

#[test]
fn work_is_passed_on_to_the_next_one_or_to_all_who_want_something_else() {
    let world = World::new();
    let group = GroupName::internal("g");
    let key = (TopicName::internal("T"), ANY_QUEUE);
    let mixed = |token| {
        let share = Share { group: group.clone(), messages: 1, mixed: true };
        let party = Party::Group(share);
        world
            .polls
            .park_at(key.clone(), &Filter::All, party, (&world.mailbox, token))
            .expect("there is room");
    };
    let asker = Party::Asker(group.clone());
    let place = world.share(1, "g", &Filter::All, 1);
    world.share(2, "g", &Filter::All, 1);
    world.share(3, "other", &Filter::All, 1);
    world.polls.park_at(key.clone(), &Filter::All, asker, (&world.mailbox, 4)).expect("there is room");
    world.polls.pass_on(&key, &group);
    assert_eq!(world.mailbox.take(), [4, 1], "who asks takes nothing");
    assert!(world.polls.leave(&place, &world.mailbox), "it was woken");
    mixed(5);
    mixed(6);
    world.polls.pass_on(&key, &group);
    assert_eq!(world.mailbox.take(), [2, 5, 6]);
    world.polls.pass_on(&key, &group);
    assert_eq!((world.mailbox.take(), world.polls.len()), (vec![], 1));
    assert_eq!(
        (world.polls.waiting_at(&key, &group), world.polls.waiting_at(&key, &GroupName::internal("other"))),
        (0, 1)
    );
    let place = world.share(7, "g", &Filter::All, 1);
    assert!(!world.polls.leave(&place, &world.mailbox), "nobody woke it");
}

/// A connection that begins to write while a batch of records is applied.
struct BeginsToWrite(Arc<Mailbox>);

impl Projection for BeginsToWrite {
    fn name(&self) -> &'static str {
        "begins to write"
    }

    fn position(&self) -> PhyOffset {
        PhyOffset::ZERO
    }

    fn apply(&mut self, _: &Dispatched<'_>) -> Result<(), ApplyError> {
        self.0.set_busy(true);
        Ok(())
    }

    fn save(&mut self) -> Option<Save> {
        None
    }

    fn truncate(&mut self, _: PhyOffset) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_a_connection_was_chosen_for_before_it_began_to_write_is_passed_on() {
    let dir = TempDir::new().expect("a temporary directory");
    let polls = Arc::new(Polls::new(10));
    let (slow, quick) = (Arc::new(Mailbox::default()), Arc::new(Mailbox::default()));
    let projections: Vec<Box<dyn Projection>> =
        vec![polls.projection(), Box::new(BeginsToWrite(Arc::clone(&slow)))];
    let store = fixture::store(dir.path(), fixture::clock(), projections);
    for (mailbox, token) in [(&slow, 1), (&quick, 2), (&quick, 3)] {
        let share = Share { group: GroupName::internal("g"), messages: 1, mixed: false };
        let key = (TopicName::internal("T"), ANY_QUEUE);
        polls.park_at(key, &sql("a = 1"), Party::Group(share), (mailbox, token)).expect("there is room");
    }
    fixture::send_with(&store, "T", 0, (b"a\x011\x02", b"body"), 1).await;
    assert_eq!((slow.take(), quick.take()), (vec![1], vec![2]));
}
