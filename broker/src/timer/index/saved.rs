//! The index on disk: writing facts, the file `slots`, and reading it at the start.

use std::collections::{HashMap, HashSet};
use std::io;

use gantry_proto::ids::PhyOffset;
use serde::{Deserialize, Serialize};

use super::slot::{FACT_BYTES, Slot, SlotKey, Width};
use super::{State, TimeIndex};
use crate::store::disk::parse_offset_name;

/// More files than this are made durable by one sync of their file system.
const SYNC_FILES_MAX: usize = 32;

/// The file `slots`.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    /// The log position up to which all this holds.
    position: u64,
    /// The last serial number.
    serial: u64,
    slots: Vec<SavedSlot>,
}

/// One slot in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedSlot {
    start: i64,
    width_ms: i64,
    serial: u64,
    facts: u64,
    pending: u64,
    oldest: u64,
    crc: u32,
}

/// The index as it was at a log position, on its way to the disk.
#[derive(Debug)]
pub(in crate::timer) struct Capture {
    saved: Saved,
    /// Slots whose files lack something, by serial number.
    unsynced: Vec<(SlotKey, u64, u64)>,
    /// Files of slots that were done by then.
    gone: Vec<u64>,
    /// How many facts it takes along.
    facts: usize,
}

impl TimeIndex {
    /// Reads `slots`. `None` when there is none, or one that cannot be used.
    pub(super) fn read_saved(&self) -> io::Result<Option<PhyOffset>> {
        let bytes = match std::fs::read(self.slots_path()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let files = self.disk.list(&self.dir)?;
        let lengths: HashMap<_, _> =
            files.into_iter().filter_map(|(name, len)| Some((parse_offset_name(&name)?, len))).collect();
        let has_all = |slot: &SavedSlot| {
            let wanted = slot.facts.checked_mul(FACT_BYTES as u64);
            lengths.get(&slot.serial).zip(wanted).is_some_and(|(len, wanted)| *len >= wanted)
        };
        let saved = serde_json::from_slice::<Saved>(&bytes).ok();
        let Some(saved) = saved.filter(|saved| saved.slots.iter().all(has_all)) else {
            tracing::error!(path = %self.dir.display(), "the time index is damaged; it is made again from the log");
            return Ok(None);
        };
        let state = &mut *self.lock();
        state.next_serial = saved.serial;
        for row in &saved.slots {
            let Some(width) = Width::from_ms(row.width_ms) else { return Ok(None) };
            let slot = Slot {
                serial: row.serial,
                facts: row.facts,
                written: row.facts,
                synced: row.facts,
                pending: row.pending,
                oldest: PhyOffset::new(row.oldest),
                crc: row.crc,
                ..Slot::default()
            };
            state.pending += slot.pending;
            state.slots.insert(SlotKey { start: row.start, width }, slot);
        }
        self.remove_others(&saved.slots.iter().map(|row| row.serial).collect())?;
        Ok(Some(PhyOffset::new(saved.position)))
    }

    /// Removes files of slots that nobody knows.
    pub(super) fn remove_others(&self, known: &HashSet<u64>) -> io::Result<()> {
        for (name, _) in self.disk.list(&self.dir)? {
            if let Some(serial) = parse_offset_name(&name)
                && !known.contains(&serial)
            {
                self.disk.remove(&self.path(serial))?;
            }
        }
        Ok(())
    }

    /// Facts that a save would make durable.
    pub(in crate::timer) fn unsaved(&self) -> usize {
        self.lock().unsaved
    }

    /// Takes what [`save`](Self::save) needs to make the index durable as it is now, with everything below `position`
    /// applied.
    pub(in crate::timer) fn capture(&self, position: PhyOffset) -> Capture {
        let state = &mut *self.lock();
        state.keyed.clear();
        let State { slots, gone, .. } = state;
        let before = slots.len();
        slots.retain(|_, slot| {
            if slot.pending == 0 {
                state.buffered = state.buffered.saturating_sub(slot.buffer.len() / FACT_BYTES);
                gone.push(slot.serial);
            }
            slot.pending > 0
        });
        if slots.len() < before
            && let Some(loading) = &mut state.loading
        {
            // Numbers of a slot that comes again begin anew; what was noted may mean the one that went.
            loading.is_void = true;
        }
        let rows = slots.iter().map(|(at, slot)| SavedSlot {
            start: at.start,
            width_ms: at.width.ms(),
            serial: slot.serial,
            facts: slot.facts,
            pending: slot.pending,
            oldest: slot.oldest.get(),
            crc: slot.crc,
        });
        let saved = Saved { position: position.get(), serial: state.next_serial, slots: rows.collect() };
        let unsynced = slots.iter().filter(|(_, slot)| slot.synced < slot.facts);
        Capture {
            saved,
            unsynced: unsynced.map(|(at, slot)| (*at, slot.serial, slot.facts)).collect(),
            gone: gone.clone(),
            facts: state.unsaved,
        }
    }

    /// Makes what was captured durable.
    pub(in crate::timer) fn save(&self, capture: &Capture) -> io::Result<()> {
        if self.is_damaged() {
            // At the next start it is made again.
            return self.disk.remove(&self.slots_path());
        }
        if !capture.unsynced.is_empty() {
            self.write_slots(capture.unsynced.iter().map(|(at, ..)| *at))?;
            self.sync(capture)?;
        }
        self.disk
            .replace(&self.slots_path(), &serde_json::to_vec(&capture.saved).map_err(io::Error::other)?)?;
        for serial in &capture.gone {
            self.disk.remove(&self.path(*serial))?;
        }
        let state = &mut *self.lock();
        state.gone.retain(|serial| !capture.gone.contains(serial));
        state.unsaved = state.unsaved.saturating_sub(capture.facts);
        for (at, serial, facts) in &capture.unsynced {
            if let Some(slot) = state.slots.get_mut(at).filter(|slot| slot.serial == *serial) {
                slot.synced = slot.synced.max(*facts);
            }
        }
        Ok(())
    }

    fn sync(&self, capture: &Capture) -> io::Result<()> {
        let volume = self.lock().volume.clone();
        if let Some(volume) = volume
            && capture.unsynced.len() > SYNC_FILES_MAX
        {
            return volume.sync();
        }
        for (_, serial, _) in &capture.unsynced {
            self.disk.open_unsynced(&self.path(*serial), 0)?.sync()?;
        }
        self.disk.sync_names(&self.dir)
    }

    /// Writes the facts that wait in memory; durable with the next save.
    pub(super) fn write_buffers(&self) -> io::Result<()> {
        let all: Vec<_> = self.lock().slots.keys().copied().collect();
        self.write_slots(all.into_iter())
    }

    fn write_slots(&self, slots: impl Iterator<Item = SlotKey>) -> io::Result<()> {
        self.open_volume()?;
        for at in slots {
            let (serial, written, bytes) = {
                let state = self.lock();
                match state.slots.get(&at).filter(|slot| !slot.buffer.is_empty()) {
                    Some(slot) => (slot.serial, slot.written, slot.buffer.clone()),
                    None => continue,
                }
            };
            // Another thread may write the same facts to the same place.
            let file = self.disk.open_unsynced(&self.path(serial), 0)?;
            file.write_at(written * FACT_BYTES as u64, &bytes)?;
            let state = &mut *self.lock();
            if let Some(slot) = state.slots.get_mut(&at).filter(|slot| slot.serial == serial) {
                let before = slot.written;
                slot.wrote(written + (bytes.len() / FACT_BYTES) as u64);
                let more = usize::try_from(slot.written - before).unwrap_or(usize::MAX);
                state.buffered = state.buffered.saturating_sub(more);
            }
        }
        Ok(())
    }

    fn open_volume(&self) -> io::Result<()> {
        if self.lock().volume.is_some() {
            return Ok(());
        }
        let volume = self.disk.volume(&self.dir)?;
        self.lock().volume = volume;
        Ok(())
    }
}
