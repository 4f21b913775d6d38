//! Timers that cannot be delivered now because a file cannot be read or opened: the others do not wait for them.

use std::collections::VecDeque;

use gantry_proto::ids::Millis;

use super::index::Place;

/// After so long it is tried again, in milliseconds.
const AGAIN_MS: u64 = 5_000;
/// Timers aside at the most; with more of them all wait.
const ASIDE_MAX: usize = 4096;

/// Timers that were taken, and when each is tried again.
#[derive(Debug, Default)]
pub(super) struct Aside(VecDeque<(Millis, Place)>);

impl Aside {
    /// Sets one aside; `false` when there are too many.
    pub(super) fn put(&mut self, place: Place, now: Millis) -> bool {
        let has_room = self.0.len() < ASIDE_MAX;
        if has_room {
            self.0.push_back((now.plus(AGAIN_MS), place));
        }
        has_room
    }

    /// Those whose time has come.
    pub(super) fn take(&mut self, now: Millis) -> Vec<Place> {
        // Later than it was put aside for: the clock was set back since.
        let is_over = |at: Millis| at <= now || at > now.plus(AGAIN_MS);
        let count = self.0.iter().take_while(|(at, _)| is_over(*at)).count();
        self.0.drain(..count).map(|(_, place)| place).collect()
    }

    /// When the first one is tried again.
    pub(super) fn first(&self) -> Option<Millis> {
        self.0.front().map(|(at, _)| *at)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use gantry_proto::ids::PhyOffset;

    use super::*;

    const NOW: Millis = Millis::new(1_700_000_000_000);

    #[test]
    fn what_is_aside_comes_back_and_is_bounded() {
        let mut aside = Aside::default();
        let place = |number| Place { due: NOW, phy: PhyOffset::new(number) };
        assert!((0..4096).all(|number| aside.put(place(number), NOW)));
        assert!(!aside.put(place(4096), NOW), "there is a bound");
        assert!(aside.take(NOW.plus(AGAIN_MS - 1)).is_empty());
        assert_eq!(aside.first(), Some(NOW.plus(AGAIN_MS)));
        assert_eq!(aside.take(NOW.plus(AGAIN_MS)).len(), 4096);
        assert!(aside.is_empty() && aside.put(place(0), NOW));
        assert_eq!(aside.take(NOW.minus(1)).len(), 1, "the clock was set back");
    }
}
