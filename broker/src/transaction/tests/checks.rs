//! Halves that nobody ended: checks, when they come, and what becomes of those that stay without an answer.

use super::*;

#[tokio::test]
async fn checks_ask_a_member_and_an_unanswered_half_is_parked() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let sent = broker.half("one", &[]).await;
    assert_eq!(broker.transactions.round(), NextRound::At(START.plus(6_000)));
    assert!(broker.asked().is_empty());

    broker.clock.advance(6_000);
    assert_eq!(broker.transactions.round(), NextRound::At(START.plus(36_000)));
    let request = broker.asked().pop().expect("one check");
    assert_eq!((request.half_phy, request.half_queue_offset), (sent.at, sent.request.half_queue_offset));
    assert_eq!((request.uniq_key.as_str(), request.transaction_id.as_str()), ("one", "one"));
    let message = broker.transactions.check_message(sent.at).expect("readable").expect("open");
    let view = RecordView::parse(&message).expect("a record");
    assert_eq!((view.topic(), view.queue_id(), view.body()), ("orders", QueueId::new(2), &b"one"[..]));
    assert_eq!(view.phy_offset(), sent.at);

    broker.clock.advance(30_000);
    broker.transactions.round();
    broker.clock.advance(60_000);
    assert_eq!(broker.transactions.round(), NextRound::Idle);
    broker.dispatched().await;
    assert_eq!(broker.asked().len(), 1, "two checks in all");
    assert!(broker.open_keys().is_empty() && broker.visible().is_empty());
    assert_eq!(broker.bodies("TRANS_CHECK_MAX_TIME_TOPIC", 0), ["one"]);
    let late = broker.transactions.end(&sent.request).await.expect("answered");
    assert_eq!(late, Ended::Before(Some(Outcome::Expired)));
}

#[tokio::test]
async fn a_clock_that_is_set_back_holds_up_no_check() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    broker.clock.advance(3_600_000);
    broker.half("one", &[]).await;
    assert_eq!(broker.transactions.round(), NextRound::At(START.plus(3_606_000)));
    broker.clock.set(START);
    assert_eq!(broker.transactions.round(), NextRound::At(START.plus(6_000)));
    broker.clock.advance(6_000);
    assert_eq!(broker.transactions.round(), NextRound::At(START.plus(36_000)));
    assert_eq!(broker.asked().len(), 1);
}

/// The clock is looked at now and then: it may be back before anyone saw that it was ahead.
#[tokio::test]
async fn a_clock_that_was_ahead_between_two_looks_holds_up_no_check() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    assert_eq!(broker.transactions.round(), NextRound::Idle);
    broker.clock.advance(3_600_000);
    broker.half("one", &[]).await;
    broker.clock.set(START);
    assert_eq!(broker.transactions.round(), NextRound::At(START.plus(6_000)));
}

/// A check that was made, or put off, while the clock was ahead is followed by the next in good time.
#[tokio::test]
async fn checks_from_a_time_that_never_came_hold_up_no_other() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    broker.half("one", &[]).await;
    broker.clock.advance(3_600_000);
    let NextRound::At(next) = broker.transactions.round() else { panic!("a half is open") };
    assert!(next > START.plus(3_600_000), "{next}");
    broker.clock.set(START.plus(1_000));
    let NextRound::At(next) = broker.transactions.round() else { panic!("a half is open") };
    assert!(next <= START.plus(600_000), "{next}");
}

#[tokio::test]
async fn without_a_member_nothing_counts_until_one_comes() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    broker.leave();
    broker.half("one", &[]).await;
    for _ in 0..5 {
        broker.clock.advance(30_000);
        broker.transactions.round();
    }
    assert_eq!(broker.transactions.list(None, 1)[0].half.checks, 0);
    broker.transactions.producer_came("others");
    assert!(matches!(broker.transactions.round(), NextRound::At(_)));
    assert!(broker.asked().is_empty());
    broker.come();
    broker.transactions.producer_came("producers");
    broker.transactions.round();
    assert_eq!(broker.asked().len(), 1);
    // Nobody comes for days.
    broker.leave();
    broker.clock.advance(73 * 3_600_000);
    broker.transactions.round();
    broker.dispatched().await;
    assert!(broker.open_keys().is_empty());
    assert_eq!(broker.transactions.list_parked(None, 10).len(), 1);
}

#[tokio::test]
async fn checks_are_limited_per_second() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open_with(dir.path(), Rules { checks_per_second: 20, ..rules() }, &options(), START);
    for number in 0..5 {
        broker.half(&format!("k{number}"), &[]).await;
    }
    broker.clock.advance(6_000);
    assert_eq!(broker.transactions.round(), NextRound::Soon);
    assert_eq!(broker.asked().len(), 2);
}

#[tokio::test]
async fn parked_halves_are_listed_put_back_once_and_ended() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    broker.half("one", &[]).await;
    broker.half("two", &[]).await;
    broker.clock.advance(73 * 3_600_000);
    broker.transactions.round();
    broker.dispatched().await;
    let parked = broker.transactions.list_parked(None, 10);
    assert_eq!(parked.iter().map(|parked| parked.key.as_str()).collect::<Vec<_>>(), ["two", "one"]);
    assert_eq!((parked[1].topic.as_str(), parked[1].group.as_str()), ("orders", "producers"));

    let half = broker.transactions.redrive(&parked[1].msg_id).await.expect("put back");
    assert_eq!((&*half.key, half.checks), ("one", 0));
    let again = broker.transactions.redrive("one").await;
    assert!(matches!(again, Err(OperatorError::Redrive(RedriveError::Already { .. }))));
    drop(broker);

    let broker = open(dir.path());
    let again = broker.transactions.redrive("one").await;
    assert!(
        matches!(again, Err(OperatorError::Redrive(RedriveError::Already { .. }))),
        "also after a restart"
    );
    assert_eq!(broker.open_keys(), ["one"]);
    let ended = broker.transactions.decide("one", Resolution::Commit).await.expect("ended");
    assert_eq!(ended, Ended::Now(Outcome::Committed));
    let ended = broker.transactions.decide("two", Resolution::Rollback).await.expect("ended");
    assert_eq!(ended, Ended::Now(Outcome::RolledBack));
    broker.dispatched().await;
    assert_eq!(broker.visible(), ["one"]);
    assert!(broker.open_keys().is_empty());
    let unknown = broker.transactions.decide("three", Resolution::Commit).await;
    assert!(matches!(unknown, Err(OperatorError::Unknown(_))));
}

#[tokio::test]
async fn a_crash_between_parked_copy_and_op_record_parks_once() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    broker.half("one", &[]).await;
    broker.clock.advance(73 * 3_600_000);
    broker.transactions.round();
    broker.dispatched().await;
    let op = broker.entries("RMQ_SYS_TRANS_OP_HALF_TOPIC", 0)[0];
    drop(broker);
    cut_log(dir.path(), op.0);
    let broker = open_with(dir.path(), rules(), &options(), START.plus(74 * 3_600_000));
    assert_eq!(broker.transactions.round(), NextRound::Idle);
    broker.dispatched().await;
    assert!(broker.open_keys().is_empty());
    assert_eq!(
        (broker.bodies("TRANS_CHECK_MAX_TIME_TOPIC", 0).len(), broker.ops()),
        (1, vec!["0,".to_owned()])
    );
}

#[tokio::test]
async fn the_check_task_sleeps_until_it_is_needed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let stop = tokio_util::sync::CancellationToken::new();
    let task = tokio::spawn(Arc::clone(&broker.transactions).run(stop.clone()));
    let sent = broker.half("one", &[]).await;
    broker.transactions.end(&sent.request).await.expect("ended");
    broker.dispatched().await;
    stop.cancel();
    task.await.expect("it ends");
    assert_eq!(
        *broker.progress.lock().expect("no panic"),
        Progress { half: QueueOffset::new(1), op: QueueOffset::new(1) }
    );
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_is_noticed_by_the_sleeping_task() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let stop = tokio_util::sync::CancellationToken::new();
    let task = tokio::spawn(Arc::clone(&broker.transactions).run(stop.clone()));
    broker.clock.advance(3_600_000);
    broker.half("one", &[]).await;
    let pause = || tokio::time::sleep(std::time::Duration::from_secs(2));
    pause().await;
    broker.clock.set(START);
    pause().await;
    broker.clock.advance(6_000);
    pause().await;
    assert_eq!(broker.asked().len(), 1);
    stop.cancel();
    task.await.expect("it ends");
}
