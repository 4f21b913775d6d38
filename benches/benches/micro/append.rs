//! A send behind the edge: encoding, the place in the log, the write, and dispatch, under the policy `memory`.

use criterion::{Criterion, Throughput};

use super::SIZES;
use super::scratch::Scratch;

/// Measures single messages and batches.
pub fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append");
    for (name, size) in SIZES {
        let body = vec![b'x'; size];
        for count in [1, 32] {
            group.throughput(Throughput::Elements(count as u64));
            group.bench_function(format!("{count} of {name}"), |bencher| {
                let mut scratch = Scratch::new();
                bencher.iter_custom(|iterations| {
                    scratch.time(
                        iterations,
                        |_| (),
                        |scratch| {
                            scratch.stage(count, &body);
                            scratch.store.drive();
                        },
                    )
                });
            });
        }
    }
    group.finish();
}
