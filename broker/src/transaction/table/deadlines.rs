//! When each open half is to be checked.

use std::cmp::Reverse;

use gantry_proto::ids::{Millis, PhyOffset};

use super::{OpenHalf, State, Table};
use crate::clock::CORRECTION_MAX_MS;

impl Table {
    /// The clock stands at `now`. When it was set back by more than a correction, what halves know of the time that
    /// never came does not count: they were stored now, or checked, and nobody waits until it comes to ask about them.
    pub fn look_at_clock(&mut self, now: Millis) {
        if self.latest.since(now) <= CORRECTION_MAX_MS {
            self.latest = self.latest.max(now);
            return;
        }
        self.latest = now;
        let ahead = |time: Millis| time.since(now) > CORRECTION_MAX_MS;
        let waiting: Vec<_> =
            self.entries().filter(|entry| entry.due.is_some()).map(|entry| entry.half.at).collect();
        for at in waiting {
            if let Some(entry) = self.entry_mut(at) {
                let half = &mut entry.half;
                half.stored = if ahead(half.stored) { now } else { half.stored };
                half.checked = if ahead(half.checked) { now } else { half.checked };
            }
            // Also one that found nobody to ask: it may have been put off from that time.
            self.schedule_next(at);
        }
    }

    /// When the next check is due.
    pub fn next_due(&mut self) -> Option<Millis> {
        self.drop_stale();
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// Halves due at `now`, at most `limit`. They have no deadline until one of
    /// [`Table::checked`], [`Table::nobody_asked`] and [`Table::put_back`] gives them one.
    pub fn take_due(&mut self, now: Millis, limit: usize) -> Vec<OpenHalf> {
        let mut due = Vec::new();
        while due.len() < limit {
            self.drop_stale();
            let Some(Reverse((when, at))) = self.due.peek().copied() else { break };
            if when > now {
                break;
            }
            self.due.pop();
            if let Some(entry) = self.entry_mut(at) {
                entry.due = None;
                if entry.state == State::Open {
                    due.push(entry.half.clone());
                }
            }
        }
        due
    }

    /// A check was sent at `now`.
    pub fn checked(&mut self, at: PhyOffset, now: Millis) -> u32 {
        let Some(entry) = self.entry_mut(at) else { return 0 };
        entry.half.checks = entry.half.checks.saturating_add(1);
        entry.half.checked = now;
        let checks = entry.half.checks;
        self.schedule_next(at);
        checks
    }

    /// No member of its group was there to ask: not a check. Tried again when one registers.
    pub fn nobody_asked(&mut self, at: PhyOffset, now: Millis) {
        let Some(entry) = self.entry_mut(at) else { return };
        let group = entry.half.group.clone();
        let due = now.plus(self.rules.retry_ms());
        self.silent.insert(group);
        self.set_due(at, due);
    }

    /// The group has a member: its halves that found nobody are due at once. Says whether there are any.
    pub fn producer_came(&mut self, group: &str, now: Millis) -> bool {
        if !self.silent.remove(group) {
            return false;
        }
        let overdue: Vec<_> = self
            .entries()
            .filter(|entry| entry.half.group == *group && entry.state == State::Open)
            .filter(|entry| self.rules.next_due(&entry.half) <= now && entry.due.is_some_and(|due| due > now))
            .map(|entry| entry.half.at)
            .collect();
        for at in &overdue {
            self.set_due(*at, now);
        }
        !overdue.is_empty()
    }

    pub(super) fn schedule_next(&mut self, at: PhyOffset) {
        let rules = self.rules;
        if let Some(due) = self.entry_mut(at).map(|entry| rules.next_due(&entry.half)) {
            self.set_due(at, due);
        }
    }

    pub(super) fn set_due(&mut self, at: PhyOffset, due: Millis) {
        if let Some(entry) = self.entry_mut(at) {
            entry.due = Some(due);
            self.due.push(Reverse((due, at)));
        }
    }

    /// Drops deadlines at the front that no longer count, and all such when they are the most.
    fn drop_stale(&mut self) {
        while let Some(Reverse((due, at))) = self.due.peek().copied() {
            let counts = self
                .index_of(at)
                .and_then(|index| self.slots[index].entry.as_ref())
                .is_some_and(|entry| entry.due == Some(due));
            if counts {
                break;
            }
            self.due.pop();
        }
    }
}
