//! Applications that send one message object several times: the id stays, the message does not.

use super::*;

#[tokio::test]
async fn halves_with_one_id_and_different_bodies_are_different_transactions() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let first = broker.half_with_body("one", "first", &[]).await;
    let second = broker.half_with_body("one", "second", &[]).await;
    let third = broker.half_with_body("one", "third", &[]).await;
    assert_eq!(broker.open_keys(), ["one", "one", "one"]);
    for sent in [&second, &first, &third] {
        let ended = broker.transactions.end(&sent.request).await.expect("ended");
        assert_eq!(ended, Ended::Now(Outcome::Committed));
    }
    broker.dispatched().await;
    assert_eq!(broker.visible(), ["second", "first", "third"]);
    assert!(broker.open_keys().is_empty());
    let again = broker.transactions.end(&first.request).await.expect("answered");
    assert_eq!(again, Ended::Before(Some(Outcome::Committed)));
}

#[tokio::test]
async fn a_crash_before_the_op_record_closes_the_right_one_of_two_with_one_id() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let first = broker.half_with_body("one", "first", &[]).await;
    broker.half_with_body("one", "second", &[]).await;
    broker.dispatched().await;
    let before = broker.store.max_offset();
    broker.transactions.end(&first.request).await.expect("ended");
    broker.dispatched().await;
    let copy = broker.entries("orders", 2)[0];
    assert_eq!(copy.0, before);
    drop(broker);
    cut_log(dir.path(), copy.0 + u64::from(copy.1));
    let broker = open(dir.path());
    assert_eq!(broker.open_keys(), ["one"]);
    assert_ne!(broker.transactions.list(None, 9)[0].half.at, first.at);
    let again = broker.transactions.end(&first.request).await.expect("answered");
    assert!(matches!(again, Ended::Before(_)), "{again:?}");
    assert_eq!(broker.visible(), ["first"]);
}
