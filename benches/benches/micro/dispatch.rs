//! From written records to queue entries, keys of the index and ids of the dedup window.

use criterion::{Criterion, Throughput};

use super::scratch::Scratch;

/// Measures runs of different lengths.
pub fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dispatch");
    let body = [b'x'; 128];
    for count in [1, 32] {
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("{count} records"), |bencher| {
            let mut scratch = Scratch::new();
            bencher.iter_custom(|iterations| {
                let written = |scratch: &mut Scratch| {
                    scratch.stage(count, &body);
                    scratch.store.write_through();
                };
                // Nothing is left to be written: it becomes visible and is dispatched.
                scratch.time(iterations, written, |scratch| scratch.store.drive())
            });
        });
    }
    group.finish();
}
