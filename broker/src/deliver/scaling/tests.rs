use gantry_proto::remoting::body::topic::TopicConfig;

use super::*;
use crate::deliver::filter::Filter;
use crate::deliver::pop::record::Delivery;
use crate::deliver::pop::{Outcome, PopRequest, Start, Wanted};
use crate::deliver::pull::{BYTES_MAX, PullRequest, PullStatus, Scratch, pull};
use crate::fixture::World;
use crate::store::LogRuns;
use crate::topics::attributes;

/// The grace and the margin.
const GRACE: u64 = 62_000;

fn config(queues: i32, mode: &str) -> TopicConfig {
    TopicConfig {
        topic_name: "T".to_owned(),
        read_queue_nums: queues,
        write_queue_nums: queues,
        attributes: BTreeMap::from([(attributes::SCALE.to_owned(), mode.to_owned())]),
        ..TopicConfig::default()
    }
}

async fn world(queues: i32, mode: &str) -> World {
    let world = World::new();
    world.scaling.declare(config(queues, mode), Haste::Wait).await.unwrap();
    world
}

fn key(queue: u32) -> Key {
    Key { group: GroupName::internal("g"), topic: TopicName::internal("T"), queue: QueueId::new(queue) }
}

async fn commit(world: &World, queue: u32, offset: u64) {
    world.offsets.commit(key(queue), QueueOffset::new(offset)).await.unwrap();
}

fn at(world: &World, group: &str, queue: u32) -> Option<u64> {
    world.offsets.get(group, "T", QueueId::new(queue)).map(QueueOffset::get)
}

/// Read and write queues after a look.
fn looked(world: &World) -> (u32, u32) {
    let topic = TopicName::internal("T");
    world.scaling.look_after(&topic);
    numbers(&world.topics.get("T").unwrap())
}

/// Messages that the group is given of a queue from an offset on, and how the pull ended.
fn pulled(world: &World, queue: u32, from: u64) -> (usize, PullStatus) {
    let request = PullRequest {
        queue: world.store.queue(&TopicName::internal("T"), QueueId::new(queue)).unwrap(),
        from: QueueOffset::new(from),
        end: None,
        messages_max: 32,
        bytes_max: BYTES_MAX,
        filter: Filter::All,
        below: world.scaling.limit(&key(queue)),
        own: None,
    };
    let pulled = pull(&world.store, &request, &mut Scratch::default());
    (pulled.messages.messages(), pulled.status)
}

#[tokio::test]
async fn the_read_number_follows_when_all_groups_have_what_is_sealed() {
    let world = world(4, "drain").await;
    world.send("T", 3, 5).await;
    commit(&world, 3, 2).await;
    commit(&world, 0, 0).await;
    world.scaling.declare(config(2, "drain"), Haste::Wait).await.unwrap();
    assert_eq!(looked(&world), (4, 2));
    commit(&world, 3, 5).await;
    // Producers may not know yet.
    assert_eq!(looked(&world), (4, 2));
    world.clock.advance(GRACE);
    assert_eq!(looked(&world), (2, 2));
    assert!(world.topics.get("T").unwrap().change.is_none());
    // Asked again, or looked at again, nothing happens.
    world.scaling.declare(config(2, "drain"), Haste::Wait).await.unwrap();
    assert_eq!(looked(&world), (2, 2));
}

#[tokio::test]
async fn what_is_left_keeps_the_sealed_queues() {
    let world = world(4, "drain").await;
    world.send("T", 3, 5).await;
    world.scaling.declare(config(2, "drain"), Haste::Wait).await.unwrap();
    world.clock.advance(GRACE * 20);
    // No group has ever read the topic.
    assert_eq!(looked(&world), (4, 2));
    commit(&world, 3, 2).await;
    assert_eq!(looked(&world), (4, 2));
    // A group that has nothing to do there keeps nothing.
    world.offsets.commit(Key { group: GroupName::internal("h"), ..key(0) }, QueueOffset::ZERO).await.unwrap();
    commit(&world, 3, 5).await;
    assert_eq!(looked(&world), (2, 2));
}

#[tokio::test]
async fn an_operator_may_give_up_what_is_left() {
    let world = world(4, "drain").await;
    world.send("T", 3, 5).await;
    commit(&world, 3, 2).await;
    world.scaling.declare(config(2, "drain"), Haste::Wait).await.unwrap();
    world.scaling.declare(config(2, "drain"), Haste::Force).await.unwrap();
    assert_eq!(numbers(&world.topics.get("T").unwrap()), (2, 2));
    // It is there again when the queue is.
    world.scaling.declare(config(4, "drain"), Haste::Wait).await.unwrap();
    assert_eq!((looked(&world), at(&world, "g", 3)), ((4, 4), Some(2)));
}

#[tokio::test]
async fn groups_have_a_place_in_new_queues_before_they_are_written() {
    let world = world(2, "drain").await;
    world.send("T", 0, 3).await;
    commit(&world, 0, 3).await;
    world.scaling.declare(config(4, "drain"), Haste::Wait).await.unwrap();
    assert_eq!((at(&world, "g", 1), at(&world, "g", 2), at(&world, "g", 3)), (None, Some(0), Some(0)));
    // A queue that comes back begins at its end for groups that came after it went.
    world.send("T", 3, 4).await;
    commit(&world, 3, 4).await;
    world.scaling.declare(config(2, "drain"), Haste::Wait).await.unwrap();
    world.clock.advance(GRACE);
    assert_eq!(looked(&world), (2, 2));
    world
        .offsets
        .commit(Key { group: GroupName::internal("new"), ..key(0) }, QueueOffset::ZERO)
        .await
        .unwrap();
    world.scaling.declare(config(4, "drain"), Haste::Wait).await.unwrap();
    assert_eq!((at(&world, "new", 3), at(&world, "g", 3)), (Some(4), Some(4)));
}

#[tokio::test]
async fn in_order_a_key_s_new_queue_waits_for_its_sealed_one() {
    let world = world(4, "ordered").await;
    world.send("T", 3, 2).await;
    world.send("T", 1, 1).await;
    commit(&world, 3, 1).await;
    commit(&world, 1, 0).await;
    assert_eq!(world.scaling.limit(&key(1)), None);
    world.scaling.declare(config(2, "ordered"), Haste::Wait).await.unwrap();
    world.send("T", 1, 1).await;
    world.send("T", 0, 1).await;
    // What is older than what is left in queue 3 may be had already, and queues without a leader that has some left.
    assert_eq!(pulled(&world, 1, 0), (0, PullStatus::AtEnd));
    assert_eq!(pulled(&world, 0, 0), (1, PullStatus::Found));
    assert_eq!(pulled(&world, 3, 1), (1, PullStatus::Found));
    commit(&world, 3, 2).await;
    assert_eq!(pulled(&world, 1, 0), (2, PullStatus::Found));
    // A producer that has not heard of it sends to the sealed queue once more.
    world.send("T", 3, 1).await;
    world.send("T", 1, 1).await;
    assert_eq!(pulled(&world, 1, 0), (2, PullStatus::Found));
    assert_eq!(pulled(&world, 1, 2), (0, PullStatus::AtEnd));
    commit(&world, 3, 3).await;
    world.clock.advance(GRACE);
    assert_eq!(looked(&world), (2, 2));
    assert_eq!(world.scaling.limit(&key(1)), None);
    assert_eq!(pulled(&world, 1, 2), (1, PullStatus::Found));
}

#[tokio::test]
async fn in_order_a_new_queue_waits_for_the_one_that_its_keys_had() {
    let world = world(2, "ordered").await;
    world.send("T", 1, 1).await;
    commit(&world, 1, 0).await;
    world.scaling.declare(config(4, "ordered"), Haste::Wait).await.unwrap();
    world.send("T", 3, 1).await;
    world.send("T", 2, 1).await;
    assert_eq!((pulled(&world, 3, 0).0, pulled(&world, 2, 0).0, pulled(&world, 1, 0).0), (0, 1, 1));
    world.send("T", 1, 1).await;
    commit(&world, 1, 1).await;
    // Only what is older than the rest of queue 1.
    world.send("T", 3, 1).await;
    assert_eq!(pulled(&world, 3, 0).0, 1);
    // It ends when all have what was there when the grace was over.
    world.clock.advance(GRACE);
    assert_eq!((looked(&world), world.topics.get("T").unwrap().change.is_some()), ((4, 4), true));
    commit(&world, 1, 2).await;
    assert_eq!((looked(&world), world.topics.get("T").unwrap().change.is_some()), ((4, 4), false));
    assert_eq!(pulled(&world, 3, 0).0, 2);
}

#[tokio::test]
async fn pops_wait_in_order_too() {
    let world = world(2, "ordered").await;
    world.send("T", 1, 1).await;
    commit(&world, 1, 0).await;
    commit(&world, 0, 0).await;
    world.scaling.declare(config(1, "ordered"), Haste::Wait).await.unwrap();
    world.send("T", 0, 1).await;
    let request = PopRequest {
        group: GroupName::internal("g"),
        topic: TopicName::internal("T"),
        wanted: Wanted::Queue(QueueId::ZERO),
        messages_max: 8,
        invisible_ms: 1000,
        start: Start::First,
        retry_start: Start::First,
        filter: Filter::All,
        others: None,
        delivery: Delivery::Concurrent,
        attempt: None,
    };
    let pop = || world.pops.pop(&request, LogRuns::default()).unwrap();
    assert!(matches!(pop(), Outcome::Nothing { .. }) && !world.pops.has_some(&request).unwrap());
    commit(&world, 1, 1).await;
    assert!(world.pops.has_some(&request).unwrap() && matches!(pop(), Outcome::Found(_)));
}

#[tokio::test]
async fn changes_under_way_are_found_again() {
    let world = world(4, "ordered").await;
    world.send("T", 3, 1).await;
    commit(&world, 3, 0).await;
    world.scaling.declare(config(2, "ordered"), Haste::Wait).await.unwrap();
    world.send("T", 1, 1).await;
    let again =
        crate::fixture::scaling((&world.store, &world.topics), &world.offsets, &world.polls, &world.members);
    assert!(again.limit(&key(1)).is_some());
    assert!(again.under_way().contains_key("T"));
}

#[tokio::test]
async fn a_group_that_has_not_committed_yet_is_waited_for_a_while() {
    let world = world(2, "ordered").await;
    world.send("T", 1, 1).await;
    world.scaling.declare(config(1, "ordered"), Haste::Wait).await.unwrap();
    world.send("T", 0, 1).await;
    assert_eq!(pulled(&world, 0, 0).0, 0);
    world.clock.advance(GRACE);
    assert_eq!(pulled(&world, 0, 0).0, 1);
}

/// Regression: a message that was in the log but could not be seen yet lay in a queue that nobody reads.
#[tokio::test]
async fn what_cannot_be_seen_yet_keeps_the_sealed_queues() {
    let world = world(2, "drain").await;
    world.send("T", 1, 1).await;
    commit(&world, 1, 1).await;
    world.scaling.declare(config(1, "drain"), Haste::Wait).await.unwrap();
    world.clock.advance(GRACE - 1);
    assert_eq!(looked(&world), (2, 1), "a send may be on its way into the log");
    world.clock.advance(1);
    let ahead = PhyOffset::new(world.store.max_offset().get() + 100);
    let topic = TopicName::internal("T");
    world.scaling.under_way().insert(topic.clone(), UnderWay { passed_at: Some(ahead) });
    assert_eq!(looked(&world), (2, 1));
    world.scaling.under_way().insert(topic, UnderWay::default());
    assert_eq!(looked(&world), (1, 1));
}

/// Regression: pops of an empty queue leave no offset, and a late message there was given up unread.
#[tokio::test]
async fn a_group_that_found_a_queue_empty_is_waited_for() {
    let world = world(2, "drain").await;
    world.send("T", 0, 1).await;
    commit(&world, 0, 1).await;
    world.offsets.commit(Key { group: GroupName::internal("h"), ..key(1) }, QueueOffset::ZERO).await.unwrap();
    world.scaling.declare(config(1, "drain"), Haste::Wait).await.unwrap();
    assert_eq!((at(&world, "g", 1), at(&world, "h", 0)), (Some(0), None));
    // By a route from before.
    world.send("T", 1, 1).await;
    world
        .offsets
        .commit(Key { group: GroupName::internal("h"), ..key(1) }, QueueOffset::new(1))
        .await
        .unwrap();
    world.clock.advance(GRACE);
    assert_eq!(looked(&world), (2, 1));
    commit(&world, 1, 1).await;
    assert_eq!(looked(&world), (1, 1));
}

/// Regression: a pop that came to wait after the last wake-up of a change slept to its deadline.
#[tokio::test]
async fn who_comes_to_wait_sees_that_a_change_is_done() {
    let world = world(2, "ordered").await;
    world.send("T", 1, 1).await;
    commit(&world, 1, 1).await;
    world.scaling.declare(config(1, "ordered"), Haste::Wait).await.unwrap();
    let before = world.scaling.settles();
    assert_eq!((looked(&world), world.scaling.settles()), ((2, 1), before));
    world.clock.advance(GRACE);
    assert_eq!((looked(&world), world.scaling.settles()), ((1, 1), before + 1));
}
