//! Members that come, go, fall silent and disagree.

use std::net::SocketAddr;

use gantry_proto::ids::{PhyOffset, QueueOffset};
use gantry_proto::remoting::codes::Language;
use tokio::sync::mpsc;

use super::*;
use crate::clock::ManualClock;
use crate::fixture;

struct Client {
    peer: Arc<Peer>,
    inbox: mpsc::Receiver<Notice>,
}

impl Client {
    fn new(connection: u64, id: &str) -> Self {
        let (outbox, inbox) = Peer::outbox();
        let address = SocketAddr::from(([192, 0, 2, 1], 4000));
        Self { peer: Arc::new(Peer::new(connection, address, id, (Language::Java, 513), outbox)), inbox }
    }

    /// How many notices came since the last call.
    fn notices(&mut self) -> usize {
        std::iter::from_fn(|| self.inbox.try_recv().ok()).count()
    }
}

fn members() -> (Arc<ManualClock>, Members) {
    let clock = fixture::clock();
    let members = Members::new(clock.clone(), Arc::default(), Duration::from_secs(120), 10);
    (clock, members)
}

fn group() -> GroupName {
    GroupName::internal("g")
}

fn tags(topic: &str, tags: &[&str]) -> SubscriptionData {
    let sub_string = if tags.is_empty() { "*".to_owned() } else { tags.join(" || ") };
    SubscriptionData {
        topic: topic.to_owned(),
        sub_string,
        tags_set: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        code_set: tags.iter().map(|tag| i32::try_from(tag.len()).unwrap()).collect(),
        sub_version: 1,
        ..SubscriptionData::default()
    }
}

fn consuming(subscriptions: Vec<SubscriptionData>) -> ConsumerData {
    ConsumerData {
        group_name: "g".to_owned(),
        subscription_data_set: subscriptions,
        ..ConsumerData::default()
    }
}

fn join(members: &Members, client: &Client, subscriptions: Vec<SubscriptionData>) -> Change {
    let data = consuming(subscriptions);
    members.register_consumer(&group(), &client.peer, &data, Subscriptions::Listed, true).unwrap()
}

#[test]
fn all_members_hear_of_changes_and_of_nothing_else() {
    let (_, members) = members();
    let (mut a, mut b) = (Client::new(1, "a"), Client::new(2, "b"));
    assert_eq!(join(&members, &a, vec![tags("T", &[])]), Change::Yes);
    assert_eq!(join(&members, &b, vec![tags("T", &[])]), Change::Yes);
    assert_eq!((a.notices(), b.notices()), (2, 1));
    assert_eq!(join(&members, &b, vec![tags("T", &[])]), Change::No);
    assert_eq!((a.notices(), b.notices()), (0, 0));
    assert_eq!(members.consumers_of("g").len(), 2);
    assert_eq!(join(&members, &b, vec![tags("T", &[]), tags("U", &[])]), Change::Yes);
    assert_eq!((a.notices(), b.notices()), (1, 1));
    members.unregister("a", None, Some("g"));
    assert_eq!((a.notices(), b.notices()), (0, 1));
    members.connection_closed(2);
    assert!(!members.is_online("g"));
    assert_eq!(members.metrics.members.get(), 0);
}

#[test]
fn broadcasting_groups_and_groups_that_are_told_nothing_hear_nothing() {
    let (_, members) = members();
    let mut a = Client::new(1, "a");
    let mut data = consuming(vec![tags("T", &[])]);
    data.message_model = MessageModel::Broadcasting;
    members.register_consumer(&group(), &a.peer, &data, Subscriptions::Listed, true).unwrap();
    data.message_model = MessageModel::Clustering;
    let b = Client::new(2, "b");
    members.register_consumer(&group(), &b.peer, &data, Subscriptions::Listed, false).unwrap();
    assert_eq!(a.notices(), 0);
    assert_eq!(members.model_of("g"), Some(MessageModel::Clustering));
}

#[test]
fn different_subscriptions_are_united_counted_once_and_heal() {
    let (_, members) = members();
    let (a, b) = (Client::new(1, "a"), Client::new(2, "b"));
    join(&members, &a, vec![tags("T", &["x"])]);
    join(&members, &b, vec![tags("T", &["yy"])]);
    let united = members.subscription("g", "T").unwrap();
    assert_eq!(united.sub_string, "x || yy");
    assert_eq!(united.code_set, BTreeSet::from([1, 2]));
    join(&members, &b, vec![tags("T", &["zzz"])]);
    assert_eq!(members.metrics.subscription_conflicts.get(), 1);
    assert_eq!(members.consumer_group("g").unwrap().conflicts.len(), 1);
    join(&members, &b, vec![tags("T", &["x"])]);
    assert!(members.consumer_group("g").unwrap().conflicts.is_empty());
    join(&members, &b, vec![tags("T", &[])]);
    assert_eq!(members.subscription("g", "T").unwrap().sub_string, "*");
    assert!(members.subscription("g", "T").unwrap().tags_set.is_empty());
    assert_eq!(members.metrics.subscription_conflicts.get(), 2);
    members.connection_closed(2);
    assert_eq!(members.subscription("g", "T").unwrap().sub_string, "x");
}

#[test]
fn a_topic_that_only_some_subscribe_to_is_a_conflict() {
    let (_, members) = members();
    let (a, b) = (Client::new(1, "a"), Client::new(2, "b"));
    join(&members, &a, vec![tags("T", &[]), tags("U", &[])]);
    join(&members, &b, vec![tags("T", &[])]);
    assert_eq!(members.consumer_group("g").unwrap().conflicts, BTreeSet::from([TopicName::internal("U")]));
}

fn sql(text: &str, sub_version: i64) -> SubscriptionData {
    SubscriptionData {
        expression_type: "SQL92".to_owned(),
        sub_string: text.to_owned(),
        sub_version,
        ..tags("T", &[])
    }
}

/// What is wanted of T, the newest first.
fn wanted(members: &Members) -> Vec<String> {
    let wanted = members.wanted("g", "T").unwrap();
    let mut others: Vec<_> = wanted.others.iter().map(|data| data.sub_string.clone()).collect();
    others.sort_unstable();
    others.insert(0, wanted.data.sub_string.clone());
    others
}

#[test]
fn expressions_that_cannot_be_united_are_kept_beside_the_newest_one() {
    let (_, members) = members();
    let clients: Vec<_> = (1..5).map(|number| Client::new(number, &format!("c{number}"))).collect();
    assert_eq!(join(&members, &clients[0], vec![sql("a > 1", 9)]), Change::Yes);
    assert_eq!(join(&members, &clients[1], vec![sql("a > 2", 7)]), Change::Yes);
    assert_eq!(wanted(&members), ["a > 1", "a > 2"]);
    assert_eq!(members.metrics.subscription_conflicts.get(), 1);
    assert_eq!(members.consumer_group("g").unwrap().conflicts.len(), 1);
    join(&members, &clients[2], vec![sql("a > 2", 11)]);
    join(&members, &clients[3], vec![tags("T", &["x"])]);
    assert_eq!(wanted(&members), ["a > 2", "a > 1", "x"]);
    assert_eq!(members.wanted("g", "T").unwrap().data.sub_version, 11);
    assert_eq!(join(&members, &clients[0], vec![sql("a > 1", 9)]), Change::No);
    members.unregister("c4", None, Some("g"));
    members.unregister("c1", None, Some("g"));
    assert_eq!(wanted(&members), ["a > 2"]);
    assert!(members.consumer_group("g").unwrap().conflicts.is_empty());
}

#[test]
fn conflicts_tell_who_wants_what() {
    let (_, members) = members();
    let (a, b) = (Client::new(1, "a"), Client::new(2, "b"));
    join(&members, &a, vec![sql("a > 1", 1), tags("U", &[])]);
    assert_eq!(members.wanted("g", "T").unwrap().accord, Accord::Alike);
    assert!(members.conflicts("g").is_empty() && members.conflicts("h").is_empty());
    join(&members, &b, vec![tags("T", &["x"])]);
    assert_eq!(members.wanted("g", "T").unwrap().accord, Accord::Mixed);
    let conflicts = members.conflicts("g");
    let texts = |topic: &str| -> Vec<_> {
        conflicts[topic].values().map(|data| data.as_ref().map(|data| data.sub_string.clone())).collect()
    };
    assert_eq!(texts("T"), [Some("a > 1".to_owned()), Some("x".to_owned())]);
    assert_eq!(texts("U"), [Some("*".to_owned()), None]);
    assert_eq!(members.own("g", "T", 2).unwrap().sub_string, "x");
    assert!(members.own("g", "U", 2).is_none() && members.own("g", "T", 3).is_none());
    // Two clients on one connection: whose pull it is cannot be told.
    join(&members, &Client::new(2, "c"), vec![tags("T", &["x"])]);
    assert!(members.own("g", "T", 2).is_some());
    join(&members, &Client::new(2, "c"), vec![tags("T", &["y"])]);
    assert!(members.own("g", "T", 2).is_none());
}

#[test]
fn a_group_of_too_many_expressions_gets_everything() {
    let mut all = Wanted::by(&Arc::new(sql("a = 0", 1)));
    for number in 1..40 {
        all.add(&Arc::new(sql(&format!("a = {number}"), 1)));
    }
    assert_eq!(all.accord, Accord::Mixed);
    assert!(all.others.len() <= 33 && all.others.iter().any(|data| data.sub_string == "*"), "{all:?}");
}

#[test]
fn the_version_of_a_subscription_alone_is_no_change_but_is_kept() {
    let (_, members) = members();
    let a = Client::new(1, "a");
    join(&members, &a, vec![tags("T", &["x"])]);
    let newer = SubscriptionData { sub_version: 5, ..tags("T", &["x"]) };
    assert_eq!(join(&members, &a, vec![newer]), Change::No);
    assert_eq!(members.subscription("g", "T").unwrap().sub_version, 5);
}

#[test]
fn a_heartbeat_without_subscriptions_keeps_them() {
    let (_, members) = members();
    let a = Client::new(1, "a");
    join(&members, &a, vec![tags("T", &["x"])]);
    let data = consuming(Vec::new());
    let change = members.register_consumer(&group(), &a.peer, &data, Subscriptions::AsBefore, true).unwrap();
    assert_eq!(change, Change::No);
    assert!(members.subscription("g", "T").is_some());
    join(&members, &a, Vec::new());
    assert!(members.subscription("g", "T").is_none());
}

#[test]
fn silent_clients_expire() {
    let (clock, members) = members();
    let (mut a, b) = (Client::new(1, "a"), Client::new(2, "b"));
    join(&members, &a, vec![]);
    join(&members, &b, vec![]);
    members.register_producer(&GroupName::internal("p"), &b.peer).unwrap();
    clock.advance(120_000);
    join(&members, &a, vec![]);
    a.notices();
    assert_eq!(members.expire(), 0);
    clock.advance(1);
    assert_eq!(members.expire(), 2);
    assert_eq!(members.consumers_of("g"), vec![Arc::from("a")]);
    assert!(members.any_producer("p").is_none());
    assert_eq!(a.notices(), 1);
    assert_eq!(members.metrics.members_expired.get(), 2);
}

#[test]
fn a_clock_that_was_set_back_keeps_nobody_for_long() {
    let (clock, members) = members();
    let client = Client::new(1, "a");
    join(&members, &client, vec![]);
    members.register_producer(&GroupName::internal("p"), &client.peer).unwrap();
    clock.set(Millis::ZERO);
    assert_eq!(members.expire(), 0);
    clock.advance(members.expiry_ms + 1);
    assert_eq!(members.expire(), 2);
}

#[test]
fn a_client_that_comes_back_on_another_connection_replaces_itself() {
    let (_, members) = members();
    let (old, new) = (Client::new(1, "a"), Client::new(2, "a"));
    join(&members, &old, vec![]);
    assert_eq!(join(&members, &new, vec![]), Change::Yes);
    assert_eq!(members.lock().by_connection.keys().collect::<Vec<_>>(), [&2]);
    members.connection_closed(1);
    assert_eq!(members.consumers_of("g").len(), 1);
    assert_eq!(members.consumer_group("g").unwrap().members[0].peer.connection, 2);
}

#[test]
fn producers_are_asked_in_turn() {
    let (_, members) = members();
    let group = GroupName::internal("p");
    let clients = [Client::new(1, "a"), Client::new(2, "b")];
    for client in &clients {
        members.register_producer(&group, &client.peer).unwrap();
    }
    let asked: Vec<_> = (0..3).map(|_| members.any_producer("p").unwrap().connection).collect();
    assert_eq!(asked, [1, 2, 1]);
    members.unregister("b", Some("p"), None);
    assert_eq!(members.any_producer("p").unwrap().connection, 1);
    assert_eq!(members.lock().by_connection.len(), 1);
    members.connection_closed(1);
    assert!(members.any_producer("p").is_none() && members.all_producers().is_empty());
}

#[test]
fn a_producer_is_found_by_its_id_where_it_was_heard_last() {
    let (clock, members) = members();
    let (old, new) = (Client::new(1, "a"), Client::new(2, "a"));
    let (p, q) = (GroupName::internal("p"), GroupName::internal("q"));
    members.register_producer(&p, &old.peer).unwrap();
    clock.advance(1);
    members.register_producer(&q, &new.peer).unwrap();
    let connection = || members.producer("a").map(|peer| peer.connection);
    assert_eq!(connection(), Some(2));
    members.connection_closed(2);
    assert_eq!(connection(), Some(1));
    members.unregister("a", Some("p"), None);
    assert_eq!(connection(), None);
    assert!(members.lock().produces_in.is_empty());
}

#[test]
fn a_check_goes_to_a_member_that_can_take_it() {
    let (_, members) = members();
    let group = GroupName::internal("p");
    let (gone, mut alive) = (Client::new(1, "a"), Client::new(2, "b"));
    let request = CheckRequest {
        half_queue_offset: QueueOffset::ZERO,
        half_phy: PhyOffset::ZERO,
        uniq_key: String::new(),
        transaction_id: String::new(),
        offset_msg_id: String::new(),
        real_topic: TopicName::internal("T"),
    };
    members.register_producer(&group, &gone.peer).unwrap();
    drop(gone.inbox);
    assert!(!members.ask_producer("p", request.clone()));
    members.register_producer(&group, &alive.peer).unwrap();
    assert!(members.ask_producer("p", request.clone()));
    assert!(members.ask_producer("p", request));
    assert_eq!(alive.notices(), 2);
}

#[test]
fn the_table_is_bounded() {
    let (_, members) = members();
    for n in 0..10 {
        members.register_producer(&group(), &Client::new(n, &format!("c{n}")).peer).unwrap();
    }
    let late = Client::new(99, "late");
    assert_eq!(members.register_producer(&group(), &late.peer), Err(RegisterError::Full { max: 10 }));
    let data = consuming(Vec::new());
    let refused = members.register_consumer(&group(), &late.peer, &data, Subscriptions::Listed, true);
    assert_eq!(refused, Err(RegisterError::Full { max: 10 }));
    members.register_producer(&group(), &Client::new(3, "c3").peer).unwrap();
    let data = consuming(vec![tags("T", &[]); SUBSCRIPTIONS_MAX + 1]);
    let refused = members.register_consumer(&group(), &late.peer, &data, Subscriptions::Listed, true);
    assert!(matches!(refused, Err(RegisterError::TooManySubscriptions { .. })));
}
