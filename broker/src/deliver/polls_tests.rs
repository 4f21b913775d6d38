//! Who wakes for which message.

use std::sync::Arc;

use gantry_proto::ids::QueueId;
use gantry_proto::names::TopicName;
use gantry_proto::sql::Sql;
use tempfile::TempDir;

use super::filter::Filter;
use super::polls::{Mailbox, Place, Polls};
use crate::fixture;
use crate::store::{Queue, Store};

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

    /// Stores a message, and gives the tokens of whom it woke.
    async fn woken_by(&self, properties: &str) -> Vec<u32> {
        fixture::send_with(&self.store, "T", 0, (properties.as_bytes(), b"body"), 1).await;
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
