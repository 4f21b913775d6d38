//! Reading slots: what comes near, what is to be rolled.
//!
//! Slots are read without the lock; what happens meanwhile is noted and taken into account.

use std::collections::BinaryHeap;
use std::io;

use gantry_proto::ids::{Millis, PhyOffset};

use super::slot::{DoneSet, FACT_BYTES, Fact, Slot, SlotKey, Width, facts};
use super::{AHEAD_MS, Loading, Place, State, TimeIndex, Where, damaged, is_damage};

/// Bytes of a file that are read at once.
const READ_BYTES: usize = 256 * 1024;
/// Later than every position.
const NOWHERE: PhyOffset = PhyOffset::new(u64::MAX);

/// A slot as it was when somebody began to read it.
#[derive(Debug)]
pub(super) struct Plan {
    pub at: SlotKey,
    serial: u64,
    written: u64,
    tail: Vec<u8>,
    crc: u32,
}

impl Plan {
    pub(super) fn of(at: SlotKey, slot: &Slot) -> Self {
        Self { at, serial: slot.serial, written: slot.written, tail: slot.buffer.clone(), crc: slot.crc }
    }
}

/// Pending timers that a roll is for.
#[derive(Debug, Default)]
pub(in crate::timer) struct Old {
    /// Their places, in the order of the log.
    pub places: Vec<Place>,
    /// Whether there may be more.
    pub more: bool,
    /// Whether the next call begins with the first slot again.
    pub is_last: bool,
}

impl TimeIndex {
    /// Hands every fact of the slot as planned to `visit`, in order. An error of the kind `InvalidData` comes at the end,
    /// when what was read is not what was written.
    fn each_fact(&self, plan: &Plan, mut visit: impl FnMut(u64, &Fact)) -> io::Result<()> {
        let mut crc = crc32fast::Hasher::new();
        let mut is_whole = true;
        let mut take = |bytes: &[u8], first| {
            crc.update(bytes);
            for (number, fact) in facts(bytes, plan.at.start, first) {
                match fact {
                    Some(fact) => visit(number, &fact),
                    None => is_whole = false,
                }
            }
        };
        if plan.written > 0 {
            let file = self.disk.open(&self.path(plan.serial), 0)?;
            let mut bytes = vec![0; READ_BYTES];
            let mut number = 0;
            while number < plan.written {
                let left = (plan.written - number).saturating_mul(FACT_BYTES as u64);
                let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(READ_BYTES);
                let Some(part) = bytes.get_mut(..wanted) else { break };
                let read = file.read_at(number * FACT_BYTES as u64, part)?;
                if read < wanted {
                    return Err(damaged());
                }
                take(part, number);
                number += (wanted / FACT_BYTES) as u64;
            }
        }
        take(&plan.tail, plan.written);
        if is_whole && crc.finalize() == plan.crc { Ok(()) } else { Err(damaged()) }
    }

    /// Which timers of the slot are done.
    pub(super) fn read_done(&self, plan: &Plan) -> io::Result<DoneSet> {
        let mut done = DoneSet::default();
        self.each_fact(plan, |_, fact| {
            if let Fact::Done { number, .. } = fact {
                done.insert(*number);
            }
        })?;
        Ok(done)
    }

    /// Hands the pending timers of the slot as planned to `visit`, in the order of the log. Of a damaged slot, those
    /// that can be made out.
    fn each_pending(&self, plan: &Plan, mut visit: impl FnMut(Where, Place, u32)) -> io::Result<()> {
        let mut done = DoneSet::default();
        let first = self.each_fact(plan, |_, fact| {
            if let Fact::Done { number, .. } = fact {
                done.insert(*number);
            }
        });
        self.tolerate(first, plan)?;
        let second = self.each_fact(plan, |number, fact| {
            if let Fact::Timer { place, key } = fact
                && !done.contains(number)
            {
                visit(Where { slot: plan.at, number }, *place, *key);
            }
        });
        self.tolerate(second, plan)
    }

    /// The pending timers of the slot and their keys, for who holds the lock. Damage is an error.
    pub(super) fn each_pending_locked(
        &self,
        plan: &Plan,
        mut visit: impl FnMut(Place, u32),
    ) -> io::Result<()> {
        let done = self.read_done(plan)?;
        self.each_fact(plan, |number, fact| {
            if let Fact::Timer { place, key } = fact
                && !done.contains(number)
            {
                visit(*place, *key);
            }
        })
    }

    /// Reports damage once, and goes on.
    fn tolerate(&self, read: io::Result<()>, plan: &Plan) -> io::Result<()> {
        match read {
            Err(error) if is_damage(&error) => {
                let mut state = self.lock();
                // Its file may have gone meanwhile, with everything in it.
                let is_current = state.slots.get(&plan.at).is_some_and(|slot| slot.serial == plan.serial);
                if is_current && !std::mem::replace(&mut state.is_damaged, true) {
                    tracing::error!(path = %self.path(plan.serial).display(), "a file of the time index is damaged: timers may be late until a restart makes it again from the log");
                }
                Ok(())
            }
            read => read,
        }
    }

    /// Brings timers into memory that are due soon, when few are there.
    pub(in crate::timer) fn load(&self, now: Millis) -> io::Result<()> {
        let limit = Place { due: now.plus(AHEAD_MS), phy: NOWHERE };
        let (horizon, plans) = {
            let state = &mut *self.lock();
            if state.near.len() >= self.bounds.near_low {
                return Ok(());
            }
            let plans: Vec<_> = state.uncovered(limit).map(|(at, slot)| Plan::of(*at, slot)).collect();
            if plans.is_empty() {
                state.horizon = state.horizon.max(Some(limit));
                return Ok(());
            }
            state.loading = Some(Loading::default());
            (state.horizon, plans)
        };
        let read = self.nearest(&plans, horizon, limit);
        let state = &mut *self.lock();
        let Some(loading) = state.loading.take() else { return Ok(()) };
        let (found, reached) = read?;
        if loading.is_void {
            return Ok(());
        }
        let late = loading.late.iter().copied().filter(|(place, _)| *place <= reached);
        for (place, at) in found.into_iter().chain(late) {
            if !loading.done.contains(&at) && !state.taken.contains_key(&place.phy) {
                state.near.insert(place, at);
            }
        }
        state.horizon = state.horizon.max(Some(reached));
        state.evict(self.bounds);
        Ok(())
    }

    /// The first pending timers behind `horizon` and up to `limit`, and how far they reach.
    fn nearest(
        &self,
        plans: &[Plan],
        horizon: Option<Place>,
        limit: Place,
    ) -> io::Result<(Vec<(Place, Where)>, Place)> {
        let mut heap: BinaryHeap<(Place, u64, SlotKey)> = BinaryHeap::new();
        let mut is_cut = false;
        for plan in plans {
            let full = heap.len() >= self.bounds.load;
            if full && heap.peek().is_some_and(|(last, ..)| last.due.get() < plan.at.start) {
                is_cut = true;
                break;
            }
            self.each_pending(plan, |found, place, _| {
                if place > limit || horizon.is_some_and(|horizon| place <= horizon) {
                    return;
                }
                heap.push((place, found.number, found.slot));
                if heap.len() > self.bounds.load {
                    heap.pop();
                    is_cut = true;
                }
            })?;
        }
        let reached = if is_cut { heap.peek().map_or(limit, |(last, ..)| *last) } else { limit };
        let found = heap.into_iter().map(|(place, number, slot)| (place, Where { slot, number }));
        Ok((found.collect(), reached))
    }

    /// Hands every pending timer to `visit`, those that were taken among them, slot by slot.
    pub(in crate::timer) fn each(&self, mut visit: impl FnMut(Place)) -> io::Result<()> {
        let all: Vec<_> = self.lock().slots.keys().copied().collect();
        for at in all {
            let plan =
                self.lock().slots.get(&at).filter(|slot| slot.pending > 0).map(|slot| Plan::of(at, slot));
            if let Some(plan) = plan {
                self.each_pending(&plan, |_, place, _| visit(place))?;
            }
        }
        Ok(())
    }

    /// When [`load`](Self::load) is wanted next, if at all. Past: at once.
    pub(in crate::timer) fn next_load(&self) -> Option<Millis> {
        let state = self.lock();
        if state.near.len() >= self.bounds.near_low {
            return None;
        }
        let everything = Place { due: Millis::MAX, phy: NOWHERE };
        let (at, _) = state.uncovered(everything).next()?;
        let horizon = state.horizon.map_or(i64::MIN, |horizon| horizon.due.get());
        Some(Millis::new(at.start.max(horizon)).minus(AHEAD_MS / 2))
    }

    /// At most `limit` pending timers whose records lie before `end`, those of one slot. Each call goes on with the next
    /// slot, so that one whose timers stay keeps no other from its turn.
    pub(in crate::timer) fn older_than(
        &self,
        end: PhyOffset,
        position: PhyOffset,
        limit: usize,
    ) -> io::Result<Old> {
        let (plan, is_last) = {
            let state = &mut *self.lock();
            let is_old = |slot: &Slot| slot.pending > 0 && slot.oldest < end;
            let before = state.looked_at;
            let is_behind = |at: &SlotKey| before.is_none_or(|before| *at > before);
            let mut slots = state.slots.iter().filter(|(_, slot)| is_old(slot));
            let found = slots.clone().find(|(at, _)| is_behind(at)).or_else(|| slots.next());
            let Some((at, slot)) = found else { return Ok(Old::default()) };
            state.looked_at = Some(*at);
            let is_last = !state.slots.range(*at..).skip(1).any(|(_, slot)| is_old(slot));
            (Plan::of(*at, slot), is_last)
        };
        let mut old = Old { places: Vec::new(), more: true, is_last };
        let mut oldest = None;
        let mut is_cut = false;
        self.each_pending(&plan, |_, place, _| {
            // Not in order: after a roll the index may have had them from the log again.
            oldest = Some(oldest.map_or(place.phy, |oldest: PhyOffset| oldest.min(place.phy)));
            if place.phy < end {
                if old.places.len() < limit {
                    old.places.push(place);
                } else {
                    is_cut = true;
                }
            }
        })?;
        if !is_cut
            && let Some(slot) = self.lock().slots.get_mut(&plan.at)
            && slot.serial == plan.serial
        {
            // Whatever came since lies at or behind `position`.
            slot.oldest = oldest.unwrap_or(position).min(position);
        }
        Ok(old)
    }
}

impl State {
    /// Slots with pending timers that may lie behind the horizon, and begin by `limit`.
    fn uncovered(&self, limit: Place) -> impl Iterator<Item = (&SlotKey, &Slot)> {
        let horizon = self.horizon;
        let reach = horizon.map_or(i64::MIN, |horizon| horizon.due.get().saturating_sub(Width::Hour.ms()));
        let to = SlotKey { start: limit.due.get(), width: Width::Hour };
        // A clock that was set back may have left the horizon far behind the limit.
        let from = SlotKey { start: reach.min(to.start), width: Width::Minute };
        self.slots.range(from..=to).filter(move |(at, slot)| {
            let last = Place { due: at.last(), phy: NOWHERE };
            slot.pending > 0 && horizon.is_none_or(|horizon| last > horizon)
        })
    }
}
