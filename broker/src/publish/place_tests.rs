use std::collections::BTreeMap;

use gantry_proto::record::{PropertiesBuf, keys};
use gantry_proto::remoting::body::topic::TopicConfig;

use super::super::Scratch;
use super::super::tests::{Edge, incoming};
use super::*;
use crate::publish::Incoming;
use crate::topics::attributes;

fn declare(edge: &Edge, queues: i32, attributes: &[(&str, &str)]) {
    let attributes = attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let config = TopicConfig {
        topic_name: "T".to_owned(),
        read_queue_nums: queues,
        write_queue_nums: queues,
        attributes: attributes.collect::<BTreeMap<_, _>>(),
        ..TopicConfig::default()
    };
    edge.topics.declare(config).unwrap();
}

/// The queue that a message for `queue_id` gets.
fn send(edge: &Edge, queue_id: i32, properties: &[(&str, &str)]) -> Result<u32, SendError> {
    let mut buf = PropertiesBuf::new();
    buf.push(keys::PGROUP, "producers");
    for (key, value) in properties {
        buf.push(key, value);
    }
    let incoming = Incoming { queue_id, ..incoming(buf.view(), b"body") };
    edge.publisher.send(&incoming, &mut Scratch::default()).map(|sent| sent.queue_id.get())
}

#[test]
fn priorities_are_queues() {
    let edge = Edge::new();
    declare(&edge, 4, &[(attributes::MESSAGE_TYPE, "PRIORITY")]);
    let priority = |value| send(&edge, 1, &[(keys::PRIORITY, value)]).unwrap();
    assert_eq!((priority("0"), priority("3"), priority("4"), priority("2147483647")), (0, 3, 3, 3));
    // None of these is a priority: the sender's queue counts.
    for none in ["-1", "x", "99999999999", " 3"] {
        assert_eq!(priority(none), 1, "{none:?}");
    }
    assert_eq!(send(&edge, 2, &[]).unwrap(), 2);
    assert_eq!(send(&edge, 2, &[(keys::PRIORITY, "3"), (keys::DELAY, "1")]).unwrap(), 3);
}

#[test]
fn elsewhere_only_a_message_of_no_other_type_has_a_priority() {
    let edge = Edge::new();
    declare(&edge, 4, &[]);
    assert_eq!(send(&edge, 1, &[(keys::PRIORITY, "3")]).unwrap(), 3);
    assert_eq!(send(&edge, 1, &[(keys::PRIORITY, "3"), (keys::SHARDING_KEY, "k")]).unwrap(), 1);
    assert_eq!(send(&edge, 1, &[(keys::PRIORITY, "3"), (keys::DELAY, "1")]).unwrap(), 1);
}

#[test]
fn a_topic_that_looks_takes_its_own_type_only() {
    let edge = Edge::new();
    declare(&edge, 4, &[(attributes::MESSAGE_TYPE, "FIFO"), (attributes::CHECK_TYPE, "true")]);
    assert_eq!(send(&edge, 1, &[(keys::SHARDING_KEY, "k")]).unwrap(), 1);
    let refused = send(&edge, 1, &[]).unwrap_err();
    assert!(matches!(refused, SendError::Type { takes: MessageType::Fifo, found: MessageType::Normal, .. }));
    declare(&edge, 4, &[(attributes::MESSAGE_TYPE, "FIFO")]);
    assert_eq!(send(&edge, 1, &[]).unwrap(), 1);
}

#[test]
fn a_message_for_a_sealed_queue_goes_where_the_queue_goes_on() {
    let edge = Edge::new();
    declare(&edge, 8, &[]);
    send(&edge, 6, &[]).unwrap();
    declare(&edge, 4, &[]);
    assert_eq!((send(&edge, 6, &[]).unwrap(), send(&edge, 3, &[]).unwrap()), (2, 3));
    // An order is kept as long as its producer may not know of the change.
    let key = [(keys::SHARDING_KEY, "k")];
    assert_eq!(send(&edge, 6, &key).unwrap(), 6);
    edge.clock.advance(60_000);
    assert!(matches!(send(&edge, 6, &key), Err(SendError::Sealed { queues: 4, .. })));
    assert_eq!(send(&edge, 6, &[]).unwrap(), 2);
    // Also when it is gone; one that never was there is unknown.
    let change = edge.topics.get("T").unwrap().change.unwrap();
    edge.topics.settle(&edge.topics.get("T").unwrap().name, change).unwrap();
    assert_eq!(send(&edge, 6, &[]).unwrap(), 2);
    assert!(matches!(send(&edge, 6, &key), Err(SendError::Sealed { .. })));
    assert!(matches!(send(&edge, 8, &[]), Err(SendError::NoSuchQueue { queues: 4, .. })));
}

#[test]
fn in_order_nothing_is_taken_elsewhere() {
    let edge = Edge::new();
    let ordered = [(attributes::SCALE, "ordered")];
    declare(&edge, 8, &[]);
    declare(&edge, 4, &ordered);
    assert_eq!(send(&edge, 6, &[]).unwrap(), 6);
    edge.clock.advance(60_000);
    assert!(matches!(send(&edge, 6, &[]), Err(SendError::Sealed { .. })));
}

#[tokio::test]
async fn a_transaction_for_a_sealed_queue_is_committed_to_another() {
    let edge = Edge::new();
    declare(&edge, 8, &[]);
    let half = edge.send_to(6, "one", true).await;
    declare(&edge, 4, &[]);
    edge.end(&half, crate::transaction::Resolution::Commit).await;
    let stored = |queue| edge.store.find_queue("T", QueueId::new(queue)).map_or(0, |queue| queue.max().get());
    assert_eq!((stored(6), stored(2)), (0, 1));
}
