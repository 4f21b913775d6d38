//! What an open half may cost, and for how long.

use super::*;

#[tokio::test]
async fn a_half_that_excuses_itself_from_checks_is_parked_at_its_greatest_age() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let rules = Rules { age_ms_max: 3_600_000, ..rules() };
    let broker = open_with(dir.path(), rules, &options(), START);
    broker.half("one", &[(keys::CHECK_IMMUNITY_TIME_IN_SECONDS, "999999999999")]).await;
    broker.dispatched().await;
    assert_eq!(broker.transactions.round(), NextRound::At(START.plus(3_600_001)));
    broker.clock.advance(3_600_001);
    broker.transactions.round();
    broker.dispatched().await;
    assert!(broker.open_keys().is_empty());
    assert_eq!(broker.transactions.list_parked(None, 9).len(), 1);
}

#[tokio::test]
async fn long_messages_committed_by_one_read_are_stored_in_several_runs() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = StoreOptions { segment_bytes: 4 << 20, ..options() };
    let broker = open_with(dir.path(), rules(), &options, START);
    let body = "x".repeat(700_000);
    let mut requests = Vec::new();
    // Together more than a file of the log takes.
    for key in ["one", "two", "three", "four", "five", "six", "seven"] {
        requests.push(broker.half_with_body(key, &body, &[]).await.request);
    }
    broker.dispatched().await;
    let staged = broker.transactions.stage_ends(&requests);
    assert!(staged.answers.iter().all(|answer| matches!(answer, Ok(Ended::Now(Outcome::Committed)))));
    broker.store.drive();
    broker.store.settled(staged.end.expect("something was stored")).await.expect("settled");
    broker.dispatched().await;
    assert_eq!((broker.visible().len(), broker.ops().len()), (7, 7));
}

/// Regression: the task slept forever while no half was open, and its hold kept the log from the start on.
#[tokio::test(start_paused = true)]
async fn log_files_go_while_no_half_is_open() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let broker = open(dir.path());
    let stop = tokio_util::sync::CancellationToken::new();
    let task = tokio::spawn(Arc::clone(&broker.transactions).run(stop.clone()));
    tokio::task::yield_now().await;
    for _ in 0..20 {
        fixture::send_with(&broker.store, "fill", 0, (b"", &[b'x'; 10_000]), 1).await;
    }
    broker.clock.advance(100 * 3_600_000);
    tokio::time::sleep(Duration::from_secs(30)).await;
    broker.store.keep_house().expect("kept");
    assert!(broker.store.min_offset() > PhyOffset::ZERO, "the first file is gone");
    stop.cancel();
    task.await.expect("it ends");
}
