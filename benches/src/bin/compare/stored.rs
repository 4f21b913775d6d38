//! Bytes that a message has on the disk beside its body.

use std::time::Duration;

use gantry_benches::failure::Failure;
use gantry_benches::load::{Extent, Load};
use gantry_benches::peer::{pause, resume};
use gantry_benches::stop;

use crate::alone::names;
use crate::plan::{BATCH, Scale};
use crate::report::Report;
use crate::seat::Seat;

/// Brokers write some files late, once in some seconds; all of them have this time together.
const WRITTEN: Duration = Duration::from_secs(7);

/// Measures brokers that are paused: looks at their stores before and after some messages.
pub fn measure(seats: &[Seat], scale: &Scale, report: &mut Report) -> Result<(), Failure> {
    let single = Load { extent: Extent::Messages(scale.stored), ..Load::produce("store") };
    let batch = Load { batch: BATCH, in_flight: 8, ..single.clone() };
    // Files that every topic has, whatever is in it, are there from the first message on.
    let first = Load { extent: Extent::Messages(1_000), ..batch.clone() };
    let mut before = contents(seats, &first, report)?;
    for (name, load) in [(names::STORED, single), (names::STORED_BATCH, batch)] {
        let after = contents(seats, &load, report)?;
        for ((seat, before), after) in seats.iter().zip(&before).zip(&after) {
            if let (Some((before, _)), Some((after, messages))) = (before, after) {
                let each = float(after.saturating_sub(*before)) / float((*messages).max(1));
                report.figure(name, "B", None, seat.kind, each - f64::from(load.size));
            }
        }
        before = after;
    }
    Ok(())
}

/// Gives all brokers a load, one after the other, and time to write; then the bytes of their stores, and how many
/// messages the load had.
fn contents(seats: &[Seat], load: &Load, report: &mut Report) -> Result<Vec<Option<(u64, u64)>>, Failure> {
    let loads: Vec<_> = seats.iter().map(|seat| seat.awake(|seat| seat.server.run(load))).collect();
    // What cannot be resumed has failed in its load, which is said below.
    let awake: Vec<_> = seats.iter().filter(|seat| resume(seat.server.as_ref()).is_ok()).collect();
    stop::sleep(WRITTEN)?;
    awake.iter().try_for_each(|seat| pause(seat.server.as_ref()))?;
    let mut contents = Vec::new();
    for (seat, measured) in seats.iter().zip(loads) {
        let content = measured.and_then(|measured| {
            let bytes =
                seat.server.store_bytes().map_err(Failure::system("looking at the size of a store"))?;
            Ok((bytes, measured.messages))
        });
        contents.push(match content {
            Ok(content) => Some(content),
            Err(failure) => {
                report.failed(seat.kind, "bytes on the disk", &failure)?;
                None
            }
        });
    }
    Ok(contents)
}

#[expect(clippy::cast_precision_loss, reason = "sizes and counts are far below 2^52")]
fn float(number: u64) -> f64 {
    number as f64
}
