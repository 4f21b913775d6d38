use super::*;

fn key(group: &str, topic: &str, queue: u32) -> Key {
    Key { group: GroupName::internal(group), topic: TopicName::internal(topic), queue: QueueId::new(queue) }
}

fn at(offset: u64) -> QueueOffset {
    QueueOffset::new(offset)
}

fn advance(queue: u32, offset: u64) -> Change {
    Change::Advance(key("g", "T", queue), at(offset))
}

#[test]
fn apaches_file_is_read_and_written_back() {
    let bytes = include_bytes!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/vectors/store/config/consumerOffset.json"
    ));
    let (mut table, position) = Table::decode(bytes).unwrap();
    assert_eq!(position, None);
    assert_eq!(table.get("cg_order", "VecBatch", QueueId::new(1)), Some(at(3)));
    assert_eq!(table.get("cg_order", "VecBatch", QueueId::new(0)), None);
    assert_eq!(table.get("CID_RMQ_SYS_TRANS", "RMQ_SYS_TRANS_HALF_TOPIC", QueueId::ZERO), Some(at(13)));
    assert_eq!(table.len(), 13);
    let written = table.encode(None, Millis::new(9));
    let (ours, theirs) = (json::parse(&written).unwrap(), json::parse(bytes).unwrap());
    assert_eq!(ours["offsetTable"], theirs["offsetTable"]);
    let groups = |file: &Value| {
        let map = file["groupTopicMap"].as_object().unwrap().clone();
        let sorted = |topics: &Value| {
            topics.as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
        };
        map.iter().map(|(group, topics)| (group.clone(), sorted(topics))).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(groups(&ours), groups(&theirs));
    let text = String::from_utf8(written).unwrap();
    assert!(text.contains("\n\t\t\"VecBatch@cg_order\":{\n\t\t\t1:3\n\t\t}"), "{text}");
}

#[test]
fn our_own_file_keeps_position_and_resets() {
    let mut table = Table::default();
    table.apply(&advance(0, 5));
    table.apply(&Change::Reset(key("g", "T", 1), at(2)));
    let file = table.encode(Some(PhyOffset::new(77)), Millis::ZERO);
    let (mut read, position) = Table::decode(&file).unwrap();
    assert_eq!(position, Some(PhyOffset::new(77)));
    assert_eq!((read.len(), read.resets()), (2, 1));
    assert_eq!(read.take_reset(&key("g", "T", 1), at(5)), Some(at(2)));
    assert_eq!(read.take_reset(&key("g", "T", 0), at(5)), None);
    assert_eq!(Table::decode(b"{\"offsetTable\":").map(|_| ()), None);
}

#[test]
fn an_empty_table_is_a_valid_file() {
    let file = Table::default().encode(Some(PhyOffset::ZERO), Millis::ZERO);
    let value: Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(value["offsetTable"], serde_json::json!({}));
}

#[test]
fn offsets_do_not_move_back_unless_reset() {
    let mut table = Table::default();
    table.apply(&advance(0, 5));
    table.apply(&advance(0, 3));
    assert_eq!(table.get("g", "T", QueueId::ZERO), Some(at(5)));
    assert_eq!(table.to_note(&key("g", "T", 0), at(5), 9), Standing::Settled);
    assert_eq!(table.to_note(&key("g", "T", 0), at(6), 9), Standing::Ahead);
    table.apply(&Change::Reset(key("g", "T", 0), at(1)));
    assert_eq!(table.get("g", "T", QueueId::ZERO), Some(at(1)));
    // Until a consumer follows it still counts from where it was, also for a while after it was told.
    assert_eq!(table.to_note(&key("g", "T", 0), at(6), 9), Standing::Settled);
    assert_eq!(table.take_reset(&key("g", "T", 0), at(5)), Some(at(1)));
    assert_eq!(table.to_note(&key("g", "T", 0), at(6), 9), Standing::Settled);
    assert_eq!(table.take_reset(&key("g", "T", 0), at(1)), None);
    assert_eq!(table.to_note(&key("g", "T", 0), at(6), 9), Standing::Ahead);
}

#[test]
fn who_starts_at_a_reset_anyway_is_not_told_of_it() {
    let mut table = Table::default();
    table.apply(&Change::Reset(key("g", "T", 0), at(1)));
    assert_eq!(table.take_reset(&key("g", "T", 0), at(1)), None);
    assert_eq!(table.resets(), 0);
    assert_eq!(table.take_waiting(), vec![Change::Followed(key("g", "T", 0))]);
}

#[test]
fn noted_offsets_are_seen_at_once_and_logged_together() {
    let mut table = Table::default();
    assert!(table.note(key("g", "T", 0), at(4)));
    assert!(!table.note(key("g", "T", 0), at(7)));
    assert!(!table.note(key("g", "T", 1), at(1)));
    assert_eq!(table.get("g", "T", QueueId::ZERO), Some(at(7)));
    assert_eq!(table.to_commit(&key("g", "T", 0), at(4), 9), Standing::Ahead);
    assert!(!table.is_dirty());
    let waiting = table.take_waiting();
    assert_eq!(waiting, vec![advance(0, 7), advance(1, 1)]);
    table.keep_waiting(&waiting);
    assert_eq!(table.take_waiting(), waiting);
    for change in &waiting {
        table.apply(change);
    }
    assert_eq!(table.to_commit(&key("g", "T", 0), at(7), 9), Standing::Settled);
    assert!(table.is_dirty());
    assert_eq!(table.take_waiting(), vec![]);
}

/// Regression: the second note was neither logged nor did any later one wait.
#[test]
fn what_is_noted_while_a_note_is_logged_waits_as_well() {
    let mut table = Table::default();
    table.note(key("g", "T", 0), at(4));
    let waiting = table.take_waiting();
    assert!(table.note(key("g", "T", 0), at(7)));
    for change in &waiting {
        table.apply(change);
    }
    assert_eq!(table.get("g", "T", QueueId::ZERO), Some(at(7)));
    assert_eq!(table.take_waiting(), vec![advance(0, 7)]);
    table.note(key("g", "T", 0), at(8));
    assert_eq!(table.take_waiting(), vec![advance(0, 8)]);
}

#[test]
fn a_reset_wins_over_what_was_noted_before_it() {
    let mut table = Table::default();
    table.note(key("g", "T", 0), at(9));
    table.note(key("g", "T", 1), at(3));
    let _ = table.begin_reset([key("g", "T", 0)].iter());
    assert_eq!(table.get("g", "T", QueueId::ZERO), Some(at(9)));
    assert_eq!(table.take_waiting(), vec![advance(1, 3)]);
    table.apply(&Change::Reset(key("g", "T", 0), at(2)));
    assert_eq!(table.get("g", "T", QueueId::ZERO), Some(at(2)));
}

#[test]
fn what_comes_while_a_reset_is_logged_is_ignored() {
    let mut table = Table::default();
    let reset = key("g", "T", 0);
    table.apply(&Change::Reset(reset.clone(), at(5)));
    assert_eq!(table.take_reset(&reset, at(9)), Some(at(5)));
    let _ = table.begin_reset([reset.clone()].iter());
    assert_eq!(table.to_note(&reset, at(9), 9), Standing::Overruled);
    assert_eq!(table.to_commit(&reset, at(9), 9), Standing::Overruled);
    // That consumer follows the first reset, not this one.
    assert_eq!(table.take_reset(&reset, at(5)), None);
    table.apply(&Change::Reset(reset.clone(), at(2)));
    assert_eq!(table.take_waiting(), vec![]);
    assert_eq!(table.take_reset(&reset, at(5)), Some(at(2)));
}

#[test]
fn what_waited_waits_again_when_a_reset_is_refused() {
    let mut table = Table::default();
    let reset = key("g", "T", 0);
    table.apply(&Change::Reset(reset.clone(), at(5)));
    assert_eq!(table.take_reset(&reset, at(5)), None);
    table.note(reset.clone(), at(6));
    let waiting = table.begin_reset([reset.clone()].iter());
    table.cancel_reset([reset.clone()].iter(), waiting);
    assert_eq!(table.to_note(&reset, at(7), 9), Standing::Ahead);
    assert_eq!(table.take_waiting(), vec![Change::Followed(reset), advance(0, 6)]);
}

/// Regression: it made an entry without an offset, which counted and was listed.
#[test]
fn a_reset_that_is_followed_after_its_topic_was_deleted_is_nothing() {
    let mut table = Table::default();
    table.apply(&Change::Reset(key("g", "T", 0), at(5)));
    table.apply(&Change::ForgetTopic(TopicName::internal("T")));
    table.apply(&Change::Followed(key("g", "T", 0)));
    assert_eq!((table.len(), table.resets()), (0, 0));
    assert!(table.groups_of_topic("T").is_empty());
}

#[test]
fn the_table_is_bounded() {
    let mut table = Table::default();
    table.apply(&advance(0, 1));
    assert_eq!(table.to_note(&key("g", "T", 1), at(1), 1), Standing::Full);
    assert_eq!(table.to_note(&key("g", "T", 0), at(2), 1), Standing::Ahead);
    table.apply(&Change::ForgetTopic(TopicName::internal("T")));
    assert_eq!(table.to_note(&key("g", "T", 1), at(1), 1), Standing::Ahead);
}

#[test]
fn topics_and_groups_are_forgotten() {
    let mut table = Table::default();
    for (group, topic) in [("a", "T"), ("a", "U"), ("b", "T")] {
        table.apply(&Change::Reset(key(group, topic, 0), at(1)));
    }
    assert_eq!(table.groups_of_topic("T").len(), 2);
    table.apply(&Change::ForgetTopic(TopicName::internal("T")));
    assert_eq!((table.len(), table.resets()), (1, 1));
    assert_eq!(table.of_group("a"), vec![(TopicName::internal("U"), QueueId::ZERO, at(1))]);
    table.apply(&Change::ForgetGroup(GroupName::internal("a")));
    assert_eq!((table.len(), table.resets()), (0, 0));
    assert!(table.topics_of_group("a").is_empty());
}

#[test]
fn offsets_beyond_the_end_of_a_cut_queue_are_set_back() {
    let mut table = Table::default();
    table.apply(&advance(0, 5));
    table.apply(&advance(1, 2));
    let clamped = table.clamp(|_, _| at(3));
    assert_eq!(clamped, vec![(key("g", "T", 0), at(5))]);
    assert_eq!(table.get("g", "T", QueueId::ZERO), Some(at(3)));
    assert_eq!(table.get("g", "T", QueueId::new(1)), Some(at(2)));
}
