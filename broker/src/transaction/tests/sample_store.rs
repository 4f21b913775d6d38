//! The store that Apache's broker wrote.

use super::*;

#[derive(Deserialize)]
struct Files {
    files: HashMap<String, File>,
}

#[derive(Deserialize)]
struct File {
    length: u64,
    segments: Vec<(u64, String)>,
}

/// Lays out the store that Apache wrote.
fn sample_store(dir: &Path) {
    let vectors = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/store/files.json"));
    let files: Files =
        serde_json::from_slice(&std::fs::read(vectors).expect("the sample store")).expect("its form");
    for (name, file) in files.files {
        if !name.starts_with("commitlog/") && !name.starts_with("consumequeue/") && name != "checkpoint" {
            continue;
        }
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().expect("inside the store")).expect("created");
        let mut out = std::fs::File::create(path).expect("created");
        out.set_len(file.length).expect("sparse");
        for (at, hex) in file.segments {
            let bytes: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex"))
                .collect();
            out.seek(SeekFrom::Start(at)).expect("inside the file");
            out.write_all(&bytes).expect("written");
        }
    }
}

#[tokio::test]
async fn the_store_that_apache_wrote_has_one_open_half() {
    for done_below in [0, 13] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        sample_store(dir.path());
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
