//! Gaps: places of the log where no record checks out, with whole records behind them.
//!
//! A start passes over them (but see [`Judge::is_end`]), and they stay for as long as the log has them. What they mean
//! can be told only once, by the start that meets them first, from what the checkpoint before it says was on the disk:
//!
//! ```text
//!   ── records ──┬─ gap ─┬── records ──┬─────── gap ───────┬── records ──▶ end
//!                 damaged               unflushed
//!   ────────────────── flushed ───────▶
//! ```
//!
//! Below *flushed* something was kept there and is lost, also where it was Apache's broker that has flushed so far since
//! ours ([`checkpoint::flushed`](super::checkpoint::flushed)). From *flushed* on, after a stop that was not clean, it is what
//! a power failure leaves of writes that were under way, in whatever order the disk did them; unless the machine has
//! run on since ([`Positions::boot`]): then its memory had all that was written, and the gap is damage there too. So the
//! checkpoints from then on list what was found, see [`Positions::gaps`], and later starts and `gantry store verify`
//! know one from the other.

use gantry_proto::ids::{Millis, PhyOffset};
use serde::{Deserialize, Serialize};

use super::FlushPolicy;
use super::checkpoint::{PeerCheckpoint, Positions, flushed};
use super::disk::Disk;

/// Gaps that a checkpoint lists at most. The oldest are forgotten first: whoever meets one of those again takes it
/// for damage, which is the safe side.
pub const GAPS_MAX: usize = 256;

/// What a gap means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GapKind {
    /// Some of it had been on the disk: what was kept there is lost.
    Damaged,
    /// Nothing of it was known to be on the disk when the broker ended without a clean stop.
    Unflushed,
}

/// A place of the log that a start passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Its first byte.
    pub from: u64,
    /// The first byte behind it: a record starts there.
    pub to: u64,
    /// What it means.
    pub kind: GapKind,
    /// When the start that found it began, in milliseconds since the epoch.
    pub since: i64,
}

impl Gap {
    /// The known gap that all bytes from `from` up to `to` lie in.
    pub fn around(known: &[Self], from: u64, to: u64) -> Option<Self> {
        known.iter().find(|gap| gap.from <= from && to <= gap.to).copied()
    }
}

/// Tells what the gaps mean that a start meets.
#[derive(Clone, Copy, Debug)]
pub struct Judge<'a> {
    positions: Option<&'a Positions>,
    clean: bool,
    policy: FlushPolicy,
    now: Millis,
    /// See [`unflushed_from`].
    unflushed_from: u64,
}

/// From where on a gap that nobody has met before is what a power failure leaves, by the checkpoints, ours and the
/// peer's, and how the broker before ended; `u64::MAX` where none can be. What nobody vouches for may have been kept, and
/// while the machine runs on since the checkpoint its power has not failed.
pub fn unflushed_from(
    positions: Option<&Positions>,
    peer: Option<&PeerCheckpoint>,
    clean: bool,
    disk: &dyn Disk,
) -> u64 {
    match positions {
        Some(known) if !clean && !known.is_of_this_boot(disk) => flushed(known, peer),
        _ => u64::MAX,
    }
}

impl<'a> Judge<'a> {
    /// For a start at `now` of a store on `disk`, by the checkpoints that it begins with, ours and the peer's, and how
    /// the broker before it ended.
    pub fn new(
        (positions, peer): (Option<&'a Positions>, Option<&'a PeerCheckpoint>),
        clean: bool,
        policy: FlushPolicy,
        now: Millis,
        disk: &dyn Disk,
    ) -> Self {
        let unflushed_from = unflushed_from(positions, peer, clean, disk);
        Self { positions, clean, policy, now, unflushed_from }
    }

    /// Whether the log ends where the gap from `from` up to `to` begins, though whole records follow. Under the policy
    /// `disk` nothing behind was acknowledged when the power failed, and must not count without what it follows from: a
    /// transaction's op record would end the half whose commit the gap has swallowed.
    pub fn is_end(&self, from: PhyOffset, to: PhyOffset) -> bool {
        let known = Gap::around(self.known(), from.get(), to.get()).is_some();
        let ends = self.policy == FlushPolicy::Disk && !known && self.kind(from) == GapKind::Unflushed;
        if ends {
            tracing::warn!(%from, %to, "the commit log has a gap where it was not known to be on the disk when the broker ended: a power failure leaves this of writes that were under way. It ends there: under the policy disk nothing behind was acknowledged, unless the disk itself failed");
        }
        ends
    }

    /// What a gap means that nobody has met before.
    fn kind(&self, from: PhyOffset) -> GapKind {
        if from.get() >= self.unflushed_from { GapKind::Unflushed } else { GapKind::Damaged }
    }

    /// Where the log ends, if the broker before has stopped cleanly.
    pub fn clean_end(&self) -> Option<PhyOffset> {
        self.positions.filter(|_| self.clean).map(|known| PhyOffset::new(known.flushed))
    }

    /// What the gap from `from` up to `to` means; says so in the broker's log.
    pub fn meet(&self, from: PhyOffset, to: PhyOffset, what: &str) -> Gap {
        if let Some(gap) = Gap::around(self.known(), from.get(), to.get()) {
            tracing::info!(%from, %to, since = %Millis::new(gap.since), kind = ?gap.kind, "a gap of the commit log is passed over again");
            return Gap { from: from.get(), to: to.get(), ..gap };
        }
        let kind = self.kind(from);
        match kind {
            GapKind::Damaged => {
                tracing::error!(%from, %to, what, "the commit log is damaged; the records behind are kept, those within are lost");
            }
            GapKind::Unflushed => {
                tracing::warn!(%from, %to, what, "the commit log has a gap where it was not known to be on the disk when the broker ended: a power failure leaves this of writes that were under way; the records behind are kept; the policy memory promises nothing about power");
            }
        }
        Gap { from: from.get(), to: to.get(), kind, since: self.now.get() }
    }

    /// The gaps that the log has after a start that read it from `from` to `end` and met `met`. Of what it has read
    /// only these are left: others were filled from a backup, or cut off.
    pub fn after(&self, from: PhyOffset, end: PhyOffset, met: &[Gap]) -> Vec<Gap> {
        let unread = |gap: &&Gap| gap.from < from.get() && gap.to <= end.get();
        let mut gaps: Vec<Gap> = self.known().iter().filter(unread).copied().collect();
        let new = met.iter().filter(|gap| Gap::around(&gaps, gap.from, gap.to).is_none());
        let new: Vec<Gap> = new.copied().collect();
        gaps.extend(new);
        gaps.drain(..gaps.len().saturating_sub(GAPS_MAX));
        gaps
    }

    fn known(&self) -> &'a [Gap] {
        self.positions.map_or(&[], |known| &known.gaps)
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::RealDisk;
    use super::*;

    const NOW: Millis = Millis::new(5000);

    fn gap(from: u64, to: u64) -> Gap {
        Gap { from, to, kind: GapKind::Unflushed, since: 1 }
    }

    fn met(positions: Option<&Positions>, clean: bool, from: u64) -> Gap {
        Judge::new((positions, None), clean, FlushPolicy::Memory, NOW, &RealDisk).meet(
            PhyOffset::new(from),
            PhyOffset::new(from + 50),
            "blank",
        )
    }

    #[test]
    fn what_was_on_the_disk_is_damaged_and_what_came_later_is_unflushed() {
        let positions = Positions { flushed: 100, ..Positions::default() };
        assert_eq!(met(Some(&positions), false, 99).kind, GapKind::Damaged);
        assert_eq!(
            met(Some(&positions), false, 100),
            Gap { from: 100, to: 150, kind: GapKind::Unflushed, since: 5000 }
        );
        // After a clean stop nothing was under way, and without a checkpoint nobody knows.
        assert_eq!(met(Some(&positions), true, 100).kind, GapKind::Damaged);
        assert_eq!(met(None, false, 100).kind, GapKind::Damaged);
    }

    #[test]
    fn while_the_machine_runs_no_gap_comes_from_its_power() {
        let kind = |boot: Option<&str>| {
            let positions = Positions { flushed: 100, boot: boot.map(str::to_owned), ..Positions::default() };
            let judge = Judge::new((Some(&positions), None), false, FlushPolicy::Disk, NOW, &RealDisk);
            let (from, to) = (PhyOffset::new(100), PhyOffset::new(150));
            (judge.meet(from, to, "blank").kind, judge.is_end(from, to))
        };
        let now = RealDisk.boot().expect("the system tells");
        assert_eq!(kind(Some(&now)), (GapKind::Damaged, false));
        assert_eq!(kind(Some("another")), (GapKind::Unflushed, true));
        assert_eq!(kind(None), (GapKind::Unflushed, true));
    }

    #[test]
    fn a_gap_keeps_its_meaning() {
        let positions = Positions { flushed: 1000, gaps: vec![gap(100, 150)], ..Positions::default() };
        assert_eq!(met(Some(&positions), true, 100), gap(100, 150));
        // One that grew is not the same any more.
        assert_eq!(met(Some(&positions), true, 101).kind, GapKind::Damaged);
    }

    #[test]
    fn gaps_that_were_read_and_not_met_are_gone_and_their_number_is_bounded() {
        let positions =
            Positions { gaps: vec![gap(10, 20), gap(90, 110), gap(200, 210)], ..Positions::default() };
        let judge = Judge::new((Some(&positions), None), false, FlushPolicy::Memory, NOW, &RealDisk);
        let after = judge.after(PhyOffset::new(100), PhyOffset::new(500), &[gap(100, 110), gap(300, 310)]);
        assert_eq!(after, [gap(10, 20), gap(90, 110), gap(300, 310)]);
        assert_eq!(judge.after(PhyOffset::new(100), PhyOffset::new(15), &[]), []);
        let many: Vec<Gap> = (0..300).map(|n| gap(1000 + n * 10, 1005 + n * 10)).collect();
        let after = judge.after(PhyOffset::new(100), PhyOffset::new(9000), &many);
        assert_eq!((after.len(), after.first(), after.last()), (GAPS_MAX, many.get(44), many.last()));
    }
}
