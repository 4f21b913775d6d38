//! Tag filters: reading a subscription, and holding queue entries against it.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use gantry_broker::deliver::filter::{Filter, Verdict};
use gantry_proto::record::{TagExpression, tags_code};

/// Measures subscriptions of one and of eight tags against entries of sixteen.
pub fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("filter");
    let eight = (0..8).map(|n| format!("Tag{n}")).collect::<Vec<_>>().join(" || ");
    group.bench_function("parse 8 tags", |bencher| {
        bencher.iter(|| TagExpression::parse(black_box(&eight)));
    });
    group.bench_function("tags code", |bencher| bencher.iter(|| tags_code(Some(black_box("TagA")))));
    let codes: Vec<i64> = (0..1024).map(|n| tags_code(Some(&format!("Tag{}", n % 16)))).collect();
    group.throughput(Throughput::Elements(codes.len() as u64));
    for (name, expression) in [("1 tag", "Tag3"), ("8 tags", &*eight), ("all", "*")] {
        let filter = Filter::tags(expression).expect("a valid expression");
        group.bench_function(format!("1024 entries, {name}"), |bencher| {
            bencher.iter(|| {
                black_box(&codes).iter().filter(|code| filter.by_entry(**code) == Verdict::Wanted).count()
            });
        });
    }
    group.finish();
}
