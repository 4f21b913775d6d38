//! The store that Apache's broker wrote.

use super::*;

#[tokio::test]
async fn the_store_that_apache_wrote_has_one_open_half() {
    for done_below in [0, 13] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        crate::fixture::apache_store(dir.path());
        let (projection, unstarted) =
            load(&dir.path().join("config"), rules(), Arc::default()).expect("no snapshot yet");
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Millis::new(1_795_252_500_000)));
        let options =
            StoreOptions { reserve_bytes: 0, policy: FlushPolicy::Memory, ..StoreOptions::default() };
        let store = Store::open(dir.path(), &options, Arc::new(RealDisk), clock, vec![Box::new(projection)]);
        let store = Arc::new(store.expect("the store opens"));
        let members = Arc::new(Members::new(fixture::clock(), Arc::default(), Duration::from_secs(120), 1));
        let transactions = unstarted
            .start(Neighbours {
                store: Arc::clone(&store),
                levels: Levels::default(),
                members: Arc::clone(&members),
                note_progress: Box::new(|_| ()),
                done_below: Some(QueueOffset::new(done_below)),
            })
            .expect("the transactions start");
        store.dispatched(store.max_offset()).await.expect("dispatched");
        let open = transactions.list(None, 100);
        assert_eq!(open.len(), 1, "{open:?}");
        let half = &open[0].half;
        assert_eq!((half.queue_offset.get(), half.at.get(), half.checks), (13, 23_884, 0));
        assert_eq!((half.group.as_str(), half.topic.as_str()), ("pg_tx", "VecTrans"));
        assert_eq!(&*half.key, "FD0000000000000000000000000000021A4030946E0968FADE380001");
        let parked: Vec<_> =
            transactions.list_parked(None, 10).iter().map(|parked| parked.at.get()).collect();
        assert_eq!(parked, [22_760, 20_984, 18_063]);
        let id = OffsetMsgId::new(SocketAddr::from(([127, 0, 0, 1], 21_911)), half.at).to_string();
        let ended = transactions.decide(&id, Resolution::Commit).await.expect("ended");
        assert_eq!(ended, Ended::Now(Outcome::Committed));
    }
}
