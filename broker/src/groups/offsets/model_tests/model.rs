//! What the offsets should be: the records that the log was given, and what is only in memory, as plain lists.

use std::collections::{BTreeMap, BTreeSet};

/// Entries that the table may hold: fewer than there are places.
pub const MAX: usize = 6;

/// The numbers of a group, a topic and a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    pub group: usize,
    pub topic: usize,
    pub queue: u32,
}

/// What the log says of a group in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stand {
    pub offset: u64,
    /// Whether an operator set it, and no consumer follows.
    pub owed: bool,
}

pub type Stands = BTreeMap<At, Stand>;

#[derive(Clone, Copy, Debug)]
enum Event {
    Advance(At, u64),
    Reset(At, u64),
    Followed(At),
    ForgetGroup(usize),
    ForgetTopic(usize),
}

impl Event {
    fn fold(self, stands: &mut Stands) {
        match self {
            Self::Advance(at, offset) => {
                let stand = stands.entry(at).or_insert(Stand { offset, owed: false });
                stand.offset = stand.offset.max(offset);
            }
            Self::Reset(at, offset) => drop(stands.insert(at, Stand { offset, owed: true })),
            Self::Followed(at) => {
                if let Some(stand) = stands.get_mut(&at) {
                    stand.owed = false;
                }
            }
            Self::ForgetGroup(group) => stands.retain(|at, _| at.group != group),
            Self::ForgetTopic(topic) => stands.retain(|at, _| at.topic != topic),
        }
    }
}

/// How a call ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    BeyondEnd,
    Full,
    /// The log did not take it.
    Refused,
}

#[derive(Debug, Default)]
pub struct Model {
    /// What the offsets were before `records`, and are for good.
    base: Stands,
    /// What the log was given, in order.
    records: Vec<Vec<Event>>,
    /// How many of them are applied: the rest is on its way to the disk.
    applied: usize,
    /// What those make.
    stands: Stands,
    /// How many of them survive a power loss.
    pub kept: usize,
    /// Offsets that were noted and are more than what is applied.
    noted: BTreeMap<At, u64>,
    /// Those of them that no record has.
    waiting: BTreeSet<At>,
    /// Resets that consumers follow, and those of them that no record has.
    followed: BTreeSet<At>,
    followed_waiting: BTreeSet<At>,
    /// Resets that a consumer was told of.
    told: BTreeSet<At>,
    /// Whether records wait for the disk, and what is reset or forgotten in those.
    pub is_held: bool,
    resetting: BTreeSet<At>,
    forgetting: BTreeSet<At>,
    /// Whether the log takes nothing.
    pub refuses: bool,
    /// What was acknowledged: no offset is less. Those of calls that are under way follow.
    promised: BTreeMap<At, u64>,
    promising: Vec<(At, u64)>,
}

impl Model {
    /// Records that the log was given.
    pub fn given(&self) -> usize {
        self.records.len()
    }

    /// What a consumer that asks must be told.
    pub fn get(&self, at: At) -> Option<u64> {
        self.noted.get(&at).copied().or_else(|| self.stands.get(&at).map(|stand| stand.offset))
    }

    pub fn is_only_noted(&self, at: At) -> bool {
        self.noted.contains_key(&at)
    }

    /// What must not be lost.
    pub fn promised(&self) -> impl Iterator<Item = (At, u64)> {
        self.promised.iter().map(|(at, offset)| (*at, *offset))
    }

    /// Places with an offset.
    pub fn known(&self) -> BTreeSet<At> {
        self.stands.keys().chain(self.noted.keys()).copied().collect()
    }

    /// What the file must say.
    pub fn stands(&self) -> Stands {
        let follow = |(at, stand): (&At, &Stand)| {
            (*at, Stand { owed: stand.owed && !self.followed.contains(at), ..*stand })
        };
        self.stands.iter().map(follow).collect()
    }

    fn is_owed(&self, at: At) -> bool {
        self.stands.get(&at).is_some_and(|stand| stand.owed) && !self.followed.contains(&at)
    }

    fn lacks_room(&self, new: impl Iterator<Item = At>) -> bool {
        let known = self.known();
        let new = new.filter(|at| !known.contains(at)).count();
        new > 0 && known.len() + new > MAX
    }

    fn append(&mut self, record: Vec<Event>) -> Result<(), Outcome> {
        if self.refuses {
            return Err(Outcome::Refused);
        }
        self.records.push(record);
        if !self.is_held {
            self.apply();
        }
        Ok(())
    }

    /// Everything that is on its way arrives.
    pub fn apply(&mut self) {
        for event in self.records[self.applied..].iter().flatten() {
            event.fold(&mut self.stands);
            let gone = |at: &At| match *event {
                Event::Reset(reset, _) => *at == reset,
                Event::ForgetGroup(group) => at.group == group,
                Event::ForgetTopic(topic) => at.topic == topic,
                Event::Advance(..) | Event::Followed(_) => false,
            };
            let stands = &self.stands;
            self.noted
                .retain(|at, noted| !gone(at) && stands.get(at).is_none_or(|stand| stand.offset < *noted));
            self.told.retain(|at| !gone(at));
            self.followed.retain(|at| !gone(at) && stands.get(at).is_some_and(|stand| stand.owed));
        }
        self.waiting.retain(|at| self.noted.contains_key(at));
        self.applied = self.records.len();
        self.resetting.clear();
        self.forgetting.clear();
        for (at, offset) in std::mem::take(&mut self.promising) {
            let promised = self.promised.entry(at).or_default();
            *promised = offset.max(*promised);
        }
    }

    /// The file says everything that was given. If it was written just now, it also says what is followed without a
    /// record that does.
    pub fn saved(&mut self, is_written: bool) {
        if is_written {
            self.records.push(self.followed.iter().map(|at| Event::Followed(*at)).collect());
            self.apply();
        }
        self.kept = self.given();
    }

    /// From now on the offset may be anything, until something is promised again.
    fn breaks(&mut self, of: impl Fn(&At) -> bool) {
        self.promised.retain(|at, _| !of(at));
        self.promising.retain(|(at, _)| !of(at));
    }

    fn promise(&mut self, at: At, offset: u64) {
        if self.forgetting.contains(&at) || self.resetting.contains(&at) {
            return;
        }
        self.promising.push((at, offset));
        if !self.is_held {
            self.apply();
        }
    }

    pub fn commit(&mut self, at: At, offset: u64, end: u64) -> Outcome {
        if self.resetting.contains(&at) {
            return Outcome::Done;
        }
        if self.lacks_room([at].into_iter()) {
            return Outcome::Full;
        }
        if self.is_owed(at) {
            return Outcome::Done;
        }
        if self.stands.get(&at).is_none_or(|stand| stand.offset < offset) {
            if offset > end {
                return Outcome::BeyondEnd;
            }
            if let Err(refused) = self.append(vec![Event::Advance(at, offset)]) {
                return refused;
            }
        }
        self.promise(at, offset);
        Outcome::Done
    }

    pub fn note(&mut self, at: At, offset: u64, end: u64) -> Outcome {
        if self.resetting.contains(&at) {
            return Outcome::Done;
        }
        if self.lacks_room([at].into_iter()) {
            return Outcome::Full;
        }
        if self.is_owed(at) || self.get(at).is_some_and(|known| known >= offset) {
            return Outcome::Done;
        }
        if offset > end {
            return Outcome::BeyondEnd;
        }
        self.noted.insert(at, offset);
        self.waiting.insert(at);
        Outcome::Done
    }

    pub fn log_waiting(&mut self) -> Outcome {
        let followed = self.followed_waiting.iter().map(|at| Event::Followed(*at));
        let noted = self.waiting.iter().map(|at| Event::Advance(*at, self.noted[at]));
        let record: Vec<_> = followed.chain(noted).collect();
        if record.is_empty() {
            return Outcome::Done;
        }
        if let Err(refused) = self.append(record) {
            return refused;
        }
        self.followed_waiting.clear();
        self.waiting.clear();
        Outcome::Done
    }

    pub fn settle(&mut self) -> Outcome {
        let noted = self.noted.clone();
        let outcome = self.log_waiting();
        if outcome == Outcome::Done {
            for (at, offset) in noted {
                self.promise(at, offset);
            }
        }
        outcome
    }

    pub fn reset(&mut self, offsets: &BTreeMap<At, u64>) -> Outcome {
        if self.lacks_room(offsets.keys().copied()) {
            return Outcome::Full;
        }
        if self.refuses {
            return Outcome::Refused;
        }
        self.waiting.retain(|at| !offsets.contains_key(at));
        self.followed_waiting.retain(|at| !offsets.contains_key(at));
        self.breaks(|at| offsets.contains_key(at));
        self.resetting.extend(offsets.keys());
        let record = offsets.iter().map(|(at, offset)| Event::Reset(*at, *offset)).collect();
        self.append(record).map_or_else(|refused| refused, |()| Outcome::Done)
    }

    /// A pull from `from`: what it is told.
    pub fn pull(&mut self, at: At, from: u64) -> Option<u64> {
        if self.resetting.contains(&at) || !self.is_owed(at) {
            return None;
        }
        let offset = self.stands[&at].offset;
        if from != offset && self.told.insert(at) {
            return Some(offset);
        }
        self.told.remove(&at);
        self.followed.insert(at);
        self.followed_waiting.insert(at);
        None
    }

    pub fn remove_group(&mut self, group: usize) -> Outcome {
        self.forget(|at| at.group == group, Event::ForgetGroup(group))
    }

    pub fn remove_topic(&mut self, topic: usize) -> Outcome {
        self.forget(|at| at.topic == topic, Event::ForgetTopic(topic))
    }

    fn forget(&mut self, of: impl Fn(&At) -> bool, event: Event) -> Outcome {
        let gone: Vec<_> = self.known().into_iter().filter(|at| of(at)).collect();
        if gone.is_empty() {
            return Outcome::Done;
        }
        if self.log_waiting() == Outcome::Refused || self.refuses {
            return Outcome::Refused;
        }
        self.breaks(of);
        self.forgetting.extend(gone);
        self.append(vec![event]).map_or_else(|refused| refused, |()| Outcome::Done)
    }

    /// Nothing is promised any more: what was written may be gone.
    pub fn forgive(&mut self) {
        self.promised.clear();
    }

    /// The broker starts again and finds `found`: that must be what the first so many records make, but at least
    /// `least` of them, and no offset beyond the `end` of its queue.
    pub fn restart(&mut self, least: usize, found: &Stands, end: impl Fn(At) -> u64) -> Result<(), String> {
        let mut states = vec![self.base.clone()];
        for record in &self.records {
            let mut stands = states[states.len() - 1].clone();
            for event in record {
                event.fold(&mut stands);
            }
            states.push(stands);
        }
        let clamped = |stands: &Stands| {
            let clamp =
                |(at, stand): (&At, &Stand)| (*at, Stand { offset: stand.offset.min(end(*at)), ..*stand });
            stands.iter().map(clamp).collect::<Stands>()
        };
        let candidates = || (least..states.len()).rev();
        // What was set back to an end is kept as it is now; if nothing need have been, more may still get lost.
        if let Some(records) = candidates().find(|records| states[*records] == *found) {
            self.records.truncate(records);
            self.kept = self.kept.min(records);
        } else if candidates().any(|records| clamped(&states[records]) == *found) {
            self.base = found.clone();
            self.records.clear();
            self.kept = 0;
        } else {
            let wanted: Vec<_> = candidates().map(|records| clamped(&states[records])).collect();
            return Err(format!("found {found:?}, not one of {wanted:?}"));
        }
        *self = Self {
            base: std::mem::take(&mut self.base),
            applied: self.records.len(),
            records: std::mem::take(&mut self.records),
            stands: found.clone(),
            kept: self.kept,
            promised: std::mem::take(&mut self.promised),
            ..Self::default()
        };
        Ok(())
    }
}
