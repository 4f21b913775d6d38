//! The dedup window: is this id known, and remembering it.

use std::hint::black_box;

use criterion::Criterion;
use gantry_broker::store::dedup::DedupKey;
use gantry_proto::ids::PhyOffset;

use super::scratch::{Messages, Scratch, TOPIC};

/// Ids in the window.
const KNOWN: u64 = 100_000;

/// Measures look-ups that hit and miss, and inserts.
pub fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dedup");
    let scratch = Scratch::new();
    let window = scratch.store.dedup();
    let mut ids = Vec::new();
    let mut messages = Messages::new();
    for phy in 0..KNOWN {
        let _ = messages.draft(b"");
        window.admit().stored(DedupKey::new(TOPIC, messages.id()), PhyOffset::new(phy));
        ids.push(messages.id().to_owned());
    }
    let mut known = ids.iter().cycle();
    group.bench_function("hit", |bencher| {
        bencher.iter(|| {
            let id = known.next().expect("a cycle does not end");
            let found = window.admit().earlier(DedupKey::new(TOPIC, id.as_str()));
            assert!(found.is_some());
        });
    });
    let mut known = ids.iter().cycle();
    group.bench_function("miss", |bencher| {
        bencher.iter(|| {
            let id = known.next().expect("a cycle does not end");
            let found = window.admit().earlier(DedupKey::new("other", black_box(id).as_str()));
            assert!(found.is_none());
        });
    });
    group.bench_function("insert", |bencher| {
        let mut scratch = Scratch::new();
        let mut messages = Messages::new();
        bencher.iter_custom(|iterations| {
            let mut spent = std::time::Duration::ZERO;
            for _ in 0..iterations {
                if scratch.store.dedup().len() as u64 > KNOWN {
                    scratch = Scratch::new();
                }
                let _ = messages.draft(b"");
                let start = std::time::Instant::now();
                let mut admission = scratch.store.dedup().admit();
                admission.stored(DedupKey::new(TOPIC, messages.id()), PhyOffset::new(1));
                drop(admission);
                spent += start.elapsed();
            }
            spent
        });
    });
    group.finish();
}
