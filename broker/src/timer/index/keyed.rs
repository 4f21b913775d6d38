//! Timers by key, for records that name a timer by its topic and id alone, as Apache's do.
//!
//! A log that Apache wrote has such a record for each timer that was delivered, and those of one time lie side by side:
//! reading the whole slot for each would take a day for a million. So the keys of the slots that were asked for last are
//! kept, until the next save.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use gantry_proto::ids::Millis;

use super::load::Plan;
use super::slot::{FACT_BYTES, Fact, Slot, SlotKey, Width, facts};
use super::{Place, State, TimeIndex, damaged, read_fact};
use crate::store::disk::DiskFile;

/// How far a record's due time may be off: Apache cuts it to seconds.
const TOLERANCE_MS: u64 = 1000;
/// Keys that are kept, of about 20 bytes each. A slot with more is read each time.
const KEYS_MAX: u64 = 1024 * 1024;
/// Bytes of a file that are read at once.
const READ_BYTES: usize = 64 * 1024;

/// The keys of one slot.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// Which slot of this time it is.
    serial: u64,
    /// Facts that were looked at.
    facts: u64,
    /// Key and number of each timer.
    numbers: BTreeSet<(u32, u64)>,
}

impl Keys {
    /// Takes in what the slot has had since.
    fn catch_up(&mut self, file: Option<&Arc<dyn DiskFile>>, slot: &Slot, start: i64) -> io::Result<()> {
        if self.serial != slot.serial {
            *self = Self { serial: slot.serial, ..Self::default() };
        }
        let Self { facts: known, numbers, .. } = self;
        let mut take = |bytes: &[u8], first| {
            for (number, fact) in facts(bytes, start, first) {
                if let Fact::Timer { key, .. } = fact.ok_or_else(damaged)? {
                    numbers.insert((key, number));
                }
            }
            Ok::<_, io::Error>(())
        };
        let mut bytes = vec![0; READ_BYTES];
        while let Some(file) = file
            && *known < slot.written
        {
            let left = (slot.written - *known).saturating_mul(FACT_BYTES as u64);
            let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(READ_BYTES);
            let part = bytes.get_mut(..wanted).ok_or_else(damaged)?;
            if file.read_at(*known * FACT_BYTES as u64, part)? < wanted {
                return Err(damaged());
            }
            take(part, *known)?;
            *known += (wanted / FACT_BYTES) as u64;
        }
        let from = usize::try_from(known.saturating_sub(slot.written)).unwrap_or(usize::MAX);
        take(slot.buffer.get(from.saturating_mul(FACT_BYTES)..).unwrap_or_default(), *known)?;
        *known = slot.facts;
        Ok(())
    }
}

impl TimeIndex {
    /// Pending timers with this key that are due at about `due`.
    pub(in crate::timer) fn find_by_key(&self, due: Millis, key: u32) -> io::Result<Vec<Place>> {
        let (from, to) = (due.minus(TOLERANCE_MS), due.plus(TOLERANCE_MS));
        let mut slots: Vec<_> =
            Width::ALL.into_iter().flat_map(|width| [from, to].map(|at| SlotKey::of(at, width))).collect();
        slots.dedup();
        let mut found = Vec::new();
        for at in &slots {
            self.find_in_slot(*at, &slots, (from, to), key, &mut found)?;
        }
        Ok(found)
    }

    fn find_in_slot(
        &self,
        at: SlotKey,
        wanted: &[SlotKey],
        (from, to): (Millis, Millis),
        key: u32,
        found: &mut Vec<Place>,
    ) -> io::Result<()> {
        let state = &mut *self.lock();
        let State { slots, keyed, .. } = state;
        let Some(slot) = slots.get_mut(&at).filter(|slot| slot.pending > 0) else { return Ok(()) };
        if slot.facts > KEYS_MAX {
            let plan = Plan::of(at, slot);
            return self.each_pending_locked(&plan, |place, other| {
                if other == key && (from..=to).contains(&place.due) {
                    found.push(place);
                }
            });
        }
        let file = if slot.written > 0 { Some(self.disk.open(&self.path(slot.serial), 0)?) } else { None };
        make_room(keyed, wanted, slot.facts);
        let keys = keyed.entry(at).or_default();
        keys.catch_up(file.as_ref(), slot, at.start)?;
        if slot.done.is_none() {
            slot.done = Some(self.read_done(&Plan::of(at, slot))?);
        }
        for (_, number) in keys.numbers.range((key, 0)..=(key, u64::MAX)) {
            if slot.done.as_ref().is_some_and(|done| done.contains(*number)) {
                continue;
            }
            if let Fact::Timer { place, .. } = read_fact(file.as_ref(), slot, *number, at.start)?
                && (from..=to).contains(&place.due)
            {
                found.push(place);
            }
        }
        Ok(())
    }
}

/// Lets go of keys that are not wanted now, if there would be too many.
fn make_room(keyed: &mut BTreeMap<SlotKey, Keys>, wanted: &[SlotKey], more: u64) {
    let kept: u64 = keyed.values().map(|keys| keys.facts).sum();
    if kept + more > KEYS_MAX {
        keyed.retain(|at, _| wanted.contains(at));
    }
}
