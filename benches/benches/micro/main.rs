//! Micro-benchmarks: what one step of a broker costs, without the network and without waiting for a disk.
//!
//! One program, so that it is linked once; `cargo bench -p gantry-benches --bench micro -- NAME` runs those whose
//! names hold NAME.

mod append;
mod codec;
mod dedup;
mod dispatch;
mod filter;
mod pull;
mod scratch;

use std::time::Duration;

use criterion::Criterion;

/// Bodies that are measured, in bytes.
const SIZES: [(&str, usize); 2] = [("128 B", 128), ("1 KiB", 1024)];

fn main() {
    // All of them within two minutes.
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1200))
        .configure_from_args();
    codec::run(&mut criterion);
    append::run(&mut criterion);
    dispatch::run(&mut criterion);
    pull::run(&mut criterion);
    filter::run(&mut criterion);
    dedup::run(&mut criterion);
    criterion.final_summary();
}
