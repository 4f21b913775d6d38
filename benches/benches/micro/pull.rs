//! A pull that finds 32 messages: queue entries, slices of the mapped log, and the copy into the answer.

use criterion::{Criterion, Throughput};
use gantry_broker::deliver::filter::Filter;
use gantry_broker::deliver::pull::{self, BYTES_MAX, PullRequest, PullStatus, pull};
use gantry_proto::ids::QueueOffset;

use super::SIZES;
use super::scratch::Scratch;

/// Messages of one pull.
const MESSAGES: usize = 32;
/// Messages of the queue.
const STORED: u64 = 8192;

/// Measures pulls of every size, with and without the copy.
pub fn run(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pull");
    group.throughput(Throughput::Elements(MESSAGES as u64));
    for (name, size) in SIZES {
        let mut scratch = Scratch::new();
        for _ in 0..STORED / 32 {
            scratch.stage(32, &vec![b'x'; size]);
            scratch.store.drive();
        }
        let mut request = PullRequest {
            queue: scratch.queue.clone(),
            from: QueueOffset::ZERO,
            end: None,
            messages_max: MESSAGES,
            bytes_max: BYTES_MAX,
            filter: Filter::All,
            below: None,
            own: None,
        };
        for copies in [false, true] {
            let copied = if copies { ", copied" } else { "" };
            group.bench_function(format!("{MESSAGES} of {name}{copied}"), |bencher| {
                let (mut memory, mut answer) = (pull::Scratch::default(), Vec::new());
                bencher.iter(|| {
                    let mut pulled = pull(&scratch.store, &request, &mut memory);
                    assert_eq!((pulled.status, pulled.messages.messages()), (PullStatus::Found, MESSAGES));
                    request.from = QueueOffset::new(pulled.next.get() % STORED);
                    answer.clear();
                    if copies {
                        pulled.messages.iter().for_each(|run| answer.extend_from_slice(run));
                    }
                    pulled.messages.clear();
                    memory.messages = pulled.messages;
                    answer.len()
                });
            });
        }
    }
    group.finish();
}
