//! The time index: which timers wait, in the order in which they are due. A fold over the log, on disk.
//!
//! ```text
//! timers/
//!   slots                    JSON: the log position up to which all this holds, and a line for each slot
//!   NNNNNNNNNNNNNNNNNNNN     the facts of one slot, named by the slot's serial number
//! ```
//!
//! A slot holds what is due within one minute or one hour ([`slot`]); its file only grows, and goes when everything in
//! it is done. A pending timer costs 16 bytes of it, and 16 more when it is done. In memory is what is due next (*near*:
//! everything up to the *horizon*, at most [`NEAR_MAX`] timers of about 60 bytes), what was taken to be delivered, and the
//! facts since the last save. So memory does not grow with the number of timers.
//!
//! What a crash can leave behind: facts in the files that `slots` does not count. They come again from the log and are
//! written over. A missing or damaged `slots`, or a file shorter than it says: the index is made again from the whole
//! log. Each slot has a checksum; what it does not vouch for is reported, and made again at the next start. Nothing is
//! delivered on the word of the index alone: the record it names must be the timer that it says.

mod keyed;
mod load;
mod saved;
mod slot;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_proto::ids::{Millis, PhyOffset};

use crate::store::disk::{Disk, DiskFile, Volume, offset_path};
use slot::{FACT_BYTES, Fact, Slot, SlotKey, Width};

pub use slot::Place;

/// Timers that a load brings into memory.
const LOAD: usize = 48 * 1024;
/// Fewer than this near, and more are loaded.
const NEAR_LOW: usize = 16 * 1024;
/// More than this near, and the latest are left to the files.
const NEAR_MAX: usize = 96 * 1024;
/// How far ahead of their time timers are loaded at the most, in milliseconds.
const AHEAD_MS: u64 = 120_000;
/// Facts that wait in memory; beyond it they are written, if not durably.
const BUFFERED_MAX: usize = 64 * 1024;

/// Sizes of what is kept in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Timers that a load brings.
    pub load: usize,
    /// Fewer near, and more are loaded.
    pub near_low: usize,
    /// More near, and the latest are left to the files.
    pub near_max: usize,
    /// Facts that wait to be written.
    pub buffered_max: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { load: LOAD, near_low: NEAR_LOW, near_max: NEAR_MAX, buffered_max: BUFFERED_MAX }
    }
}

/// Which fact tells of a timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Where {
    slot: SlotKey,
    number: u64,
}

/// How a timer stands that somebody wants to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It waited, and is taken now.
    Taken,
    /// It was taken before, and what became of that is not in the log yet.
    Busy,
    /// It is done, or the index never knew it.
    Gone,
}

/// The index.
#[derive(Debug)]
pub(super) struct TimeIndex {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    bounds: Bounds,
    /// Everything in memory. Files are read under it only where few bytes are needed.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slots: BTreeMap<SlotKey, Slot>,
    next_serial: u64,
    /// Every pending timer up to `horizon` that is not taken.
    near: BTreeMap<Place, Where>,
    /// `None`: nothing was loaded yet.
    horizon: Option<Place>,
    /// Taken to be delivered, recalled or rolled. Bounded by who takes.
    taken: HashMap<PhyOffset, (Place, Where)>,
    /// What happens while slots are read.
    loading: Option<Loading>,
    /// Keys of slots that were asked for. See [`keyed`].
    keyed: BTreeMap<SlotKey, keyed::Keys>,
    /// The slot that was looked at last for old timers.
    looked_at: Option<SlotKey>,
    pending: u64,
    /// Facts since the last save, and those not yet in a file.
    unsaved: usize,
    buffered: usize,
    /// Files of slots that are done, to be removed with the next save.
    gone: Vec<u64>,
    /// Some of it cannot be believed: it is to be made again from the log.
    is_damaged: bool,
    /// The file system, once something was written.
    volume: Option<Arc<dyn Volume>>,
}

/// What happened while slots were read.
#[derive(Debug, Default)]
struct Loading {
    late: Vec<(Place, Where)>,
    done: HashSet<Where>,
    /// Too much happened, or the horizon moved back: the load is to be forgotten.
    is_void: bool,
}

impl TimeIndex {
    /// The index in `dir`, and the log position up to which it holds: `None` when there is nothing usable.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        bounds: Bounds,
    ) -> io::Result<(Self, Option<PhyOffset>)> {
        let index = Self { disk, dir: dir.to_path_buf(), bounds, state: Mutex::default() };
        let position = index.read_saved()?;
        if position.is_none() {
            index.reset()?;
        }
        Ok((index, position))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything and removes the files.
    pub(super) fn reset(&self) -> io::Result<()> {
        let mut state = self.lock();
        // Serial numbers go on: a save that is under way may still remove files.
        *state = State { next_serial: state.next_serial, ..State::default() };
        if self.slots_path().exists() {
            self.disk.remove(&self.slots_path())?;
        }
        self.remove_others(&HashSet::new())
    }

    fn slots_path(&self) -> PathBuf {
        self.dir.join("slots")
    }

    fn path(&self, serial: u64) -> PathBuf {
        offset_path(&self.dir, serial)
    }

    /// A timer waits at `place`; its record came `wait_ms` before it is due. `key`: see [`Self::find_by_key`].
    pub(super) fn add(&self, place: Place, key: u32, wait_ms: u64) {
        let spill = {
            let state = &mut *self.lock();
            let at = SlotKey::of(place.due, Width::for_wait(wait_ms));
            let slot = state.slots.entry(at).or_insert_with(|| {
                state.next_serial += 1;
                Slot::new(state.next_serial)
            });
            let number = slot.push(&Fact::Timer { place, key }, at.start);
            slot.pending += 1;
            slot.oldest = slot.oldest.min(place.phy);
            state.pending += 1;
            let found = Where { slot: at, number };
            if state.horizon.is_some_and(|horizon| place <= horizon) {
                state.near.insert(place, found);
                state.evict(self.bounds);
            } else if let Some(loading) = &mut state.loading {
                loading.late.push((place, found));
                loading.is_void |= loading.late.len() > self.bounds.near_max;
            }
            state.note_fact(self.bounds)
        };
        if spill {
            self.spill();
        }
    }

    /// Writes what waits in memory. When that fails it waits on, and the next save tells why.
    fn spill(&self) {
        if let Err(error) = self.write_buffers() {
            tracing::warn!(%error, "the time index cannot be written; its facts wait in memory");
        }
    }

    /// The record at `at` says that the timer at `place` is done. `false`: it was already, or is not known.
    pub(super) fn close(&self, place: Place, at: PhyOffset) -> io::Result<bool> {
        let spill = {
            let state = &mut *self.lock();
            let known = state.taken.remove(&place.phy).map(|(_, found)| found);
            let known = known.or_else(|| state.near.remove(&place));
            let Some(found) =
                known.map_or_else(|| self.find_pending(state, place), |found| Ok(Some(found)))?
            else {
                return Ok(false);
            };
            let Some(slot) = state.slots.get_mut(&found.slot) else { return Ok(false) };
            if let Some(done) = &mut slot.done
                && !done.insert(found.number)
            {
                return Ok(false);
            }
            slot.push(&Fact::Done { number: found.number, at }, found.slot.start);
            slot.pending = slot.pending.saturating_sub(1);
            state.pending = state.pending.saturating_sub(1);
            if let Some(loading) = &mut state.loading {
                loading.done.insert(found);
                loading.is_void |= loading.done.len() > self.bounds.near_max;
            }
            state.note_fact(self.bounds)
        };
        if spill {
            self.spill();
        }
        Ok(true)
    }

    /// Looks a timer up in the slots; `None` when it is done or was never there.
    fn find_pending(&self, state: &mut State, place: Place) -> io::Result<Option<Where>> {
        for width in Width::ALL {
            let at = SlotKey::of(place.due, width);
            let Some(slot) = state.slots.get_mut(&at) else { continue };
            let Some(number) = self.number_of(at, slot, place)? else { continue };
            if slot.done.is_none() {
                let plan = load::Plan::of(at, slot);
                slot.done = Some(self.read_done(&plan)?);
            }
            let is_done = slot.done.as_ref().is_some_and(|done| done.contains(number));
            return Ok((!is_done).then_some(Where { slot: at, number }));
        }
        Ok(None)
    }

    /// The number of the fact that tells of the timer.
    fn number_of(&self, at: SlotKey, slot: &Slot, place: Place) -> io::Result<Option<u64>> {
        let file = if slot.written > 0 { Some(self.disk.open(&self.path(slot.serial), 0)?) } else { None };
        let fact = |number| read_fact(file.as_ref(), slot, number, at.start);
        let (mut low, mut high) = (0, slot.facts);
        while low < high {
            let middle = low + (high - low) / 2;
            if fact(middle)?.at() < place.phy {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        // A rolled timer and those it takes the place of come from one record.
        for number in low..slot.facts {
            match fact(number)? {
                Fact::Timer { place: found, .. } if found == place => return Ok(Some(number)),
                other if other.at() > place.phy => break,
                _ => {}
            }
        }
        Ok(None)
    }

    /// Takes at most `limit` timers that are due at `now`, earliest first, as far as they are near.
    pub(super) fn take_due(&self, now: Millis, limit: usize) -> Vec<Place> {
        let state = &mut *self.lock();
        let mut due = Vec::new();
        while due.len() < limit
            && let Some(first) = state.near.first_entry()
            && first.key().due <= now
        {
            let (place, found) = first.remove_entry();
            state.taken.insert(place.phy, (place, found));
            due.push(place);
        }
        due
    }

    /// Takes one timer, due or not, for somebody who is to end its wait.
    pub(super) fn take(&self, place: Place) -> io::Result<Standing> {
        let state = &mut *self.lock();
        if state.taken.contains_key(&place.phy) {
            return Ok(Standing::Busy);
        }
        let near = state.near.remove(&place);
        let Some(found) = near.map_or_else(|| self.find_pending(state, place), |found| Ok(Some(found)))?
        else {
            return Ok(Standing::Gone);
        };
        state.taken.insert(place.phy, (place, found));
        Ok(Standing::Taken)
    }

    /// What was taken waits again: the log did not take its end.
    pub(super) fn give_back(&self, places: &[Place]) {
        let state = &mut *self.lock();
        for place in places {
            if let Some((place, found)) = state.taken.remove(&place.phy)
                && state.horizon.is_some_and(|horizon| place <= horizon)
            {
                state.near.insert(place, found);
            }
        }
        state.evict(self.bounds);
    }

    /// Timers taken, and not yet seen to be done.
    pub(super) fn taken(&self) -> usize {
        self.lock().taken.len()
    }

    /// Timers that wait, those that were taken among them.
    pub(super) fn pending(&self) -> u64 {
        self.lock().pending
    }

    /// When the first of the timers in memory is due.
    pub(super) fn first_due(&self) -> Option<Millis> {
        self.lock().near.first_key_value().map(|(place, _)| place.due)
    }

    /// No pending timer lies before; `None` when none is pending.
    pub(super) fn oldest(&self) -> Option<PhyOffset> {
        let state = self.lock();
        state.slots.values().filter(|slot| slot.pending > 0).map(|slot| slot.oldest).min()
    }

    /// Whether something cannot be believed.
    pub(super) fn is_damaged(&self) -> bool {
        self.lock().is_damaged
    }

    /// Notes that the index cannot be believed: it is made again at the next start.
    pub(super) fn note_damage(&self) {
        self.lock().is_damaged = true;
    }
}

impl State {
    /// One fact more; whether the buffers are to be written.
    fn note_fact(&mut self, bounds: Bounds) -> bool {
        self.unsaved += 1;
        self.buffered += 1;
        // Not for each fact while the disk is full.
        self.buffered.is_multiple_of(bounds.buffered_max)
    }

    /// Leaves the latest of too many near timers to the files.
    fn evict(&mut self, bounds: Bounds) {
        if self.near.len() <= bounds.near_max {
            return;
        }
        while self.near.len() > bounds.load {
            self.near.pop_last();
        }
        self.horizon = self.near.last_key_value().map(|(place, _)| *place);
        if let Some(loading) = &mut self.loading {
            loading.is_void = true;
        }
    }
}

fn read_fact(file: Option<&Arc<dyn DiskFile>>, slot: &Slot, number: u64, start: i64) -> io::Result<Fact> {
    let mut bytes = [0; FACT_BYTES];
    if number < slot.written {
        if let Some(file) = file {
            file.read_at(number * FACT_BYTES as u64, &mut bytes)?;
        }
    } else {
        let from = usize::try_from(number - slot.written).unwrap_or(usize::MAX).saturating_mul(FACT_BYTES);
        let buffered = slot.buffer.get(from..).and_then(|rest| rest.first_chunk());
        bytes = *buffered.ok_or_else(damaged)?;
    }
    Fact::decode(bytes, start).ok_or_else(damaged)
}

/// What a slot's file holds is no fact.
fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a file of the time index is damaged")
}

/// Whether an error says so, rather than that reading failed.
pub(super) fn is_damage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
