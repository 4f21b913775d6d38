//! Members of broadcasting groups that keep their offsets with the broker: who they are, and when each was heard of last.
//!
//! Such a member has a name of its own choice. Its offsets are those of a group called `%BROADCAST%group%member`, so they are
//! kept, bounded, measured and reset like all others. What is here only tells how long to keep them:
//!
//! ```json
//! {"members":{"%BROADCAST%prices%till-1":1700000000000}}
//! ```
//!
//! The file `config/gantryBroadcast.json` is written every ten minutes. A crash costs what came since, which keeps offsets longer; without the
//! file all members count as heard of at the start.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gantry_proto::ids::Millis;
use gantry_proto::names::GroupName;
use serde::{Deserialize, Serialize};

use crate::store::layout::{load_json, replace_json};

/// Members that one group may have.
pub const MEMBERS_MAX: usize = 1024;
/// The file is written when it lacks something and was written so long ago, in milliseconds.
const SAVE_EVERY_MS: u64 = 600_000;

#[derive(Debug, Default, Deserialize, Serialize)]
struct File {
    members: BTreeMap<String, i64>,
}

#[derive(Debug)]
struct Seen {
    /// By the names of their offsets, which has the members of a group side by side.
    members: BTreeMap<GroupName, Millis>,
    is_changed: bool,
    saved_at: Millis,
}

/// All such members of all groups.
#[derive(Debug)]
pub struct Broadcasts {
    path: PathBuf,
    /// Held for map operations only.
    seen: Mutex<Seen>,
}

/// The group has as many members as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

impl Broadcasts {
    /// Reads the file in `config_dir`.
    pub(super) fn open(config_dir: &Path, now: Millis) -> io::Result<Self> {
        let path = config_dir.join("gantryBroadcast.json");
        let file = load_json(&path, |bytes| serde_json::from_slice::<File>(bytes).ok())?.unwrap_or_default();
        let known = file.members.into_iter().filter_map(|(name, seen)| {
            let name = GroupName::storable(&name).ok().filter(|name| name.broadcast_member().is_some())?;
            // A clock that was ahead must not keep anything for ever.
            Some((name, Millis::new(seen).min(now)))
        });
        let seen = Seen { members: known.collect(), is_changed: false, saved_at: now };
        Ok(Self { path, seen: Mutex::new(seen) })
    }

    /// A member was heard of.
    pub(super) fn note(&self, name: &GroupName, now: Millis) -> Result<(), TooMany> {
        let mut seen = self.seen();
        if let Some(at) = seen.members.get_mut(name) {
            *at = now;
        } else {
            let Some((group, _)) = name.broadcast_member() else { return Ok(()) };
            if of_group(&seen.members, group.as_str()).count() >= MEMBERS_MAX {
                return Err(TooMany);
            }
            seen.members.insert(name.clone(), now);
        }
        seen.is_changed = true;
        Ok(())
    }

    /// Members that have offsets, found at the start.
    pub fn add_all(&self, names: impl IntoIterator<Item = GroupName>, now: Millis) {
        let mut seen = self.seen();
        for name in names {
            seen.members.entry(name).or_insert(now);
        }
    }

    /// The members of a group by the names of their offsets, and when each was heard of last.
    pub fn of_group(&self, group: &str) -> Vec<(GroupName, Millis)> {
        of_group(&self.seen().members, group).map(|(name, seen)| (name.clone(), *seen)).collect()
    }

    /// All members that `is_over` says to be gone.
    pub fn gone(&self, is_over: impl Fn(&GroupName, Millis) -> bool) -> Vec<GroupName> {
        let seen = self.seen();
        seen.members.iter().filter(|(name, at)| is_over(name, **at)).map(|(name, _)| name.clone()).collect()
    }

    /// Forgets a member whose offsets were removed.
    pub fn remove(&self, name: &GroupName) {
        let mut seen = self.seen();
        seen.is_changed |= seen.members.remove(name).is_some();
    }

    /// Writes the file, if that is due.
    pub fn save(&self, now: Millis) -> io::Result<()> {
        let file = {
            let mut seen = self.seen();
            if !seen.is_changed || now.since(seen.saved_at) < SAVE_EVERY_MS {
                return Ok(());
            }
            (seen.is_changed, seen.saved_at) = (false, now);
            let members = seen.members.iter().map(|(name, at)| (name.to_string(), at.get()));
            File { members: members.collect() }
        };
        replace_json(&self.path, &serde_json::to_vec(&file).map_err(io::Error::other)?)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of_group<'a>(
    members: &'a BTreeMap<GroupName, Millis>,
    group: &'a str,
) -> impl Iterator<Item = (&'a GroupName, &'a Millis)> {
    let prefix = GroupName::broadcaster_prefix(group);
    // Between them may be members of groups whose names go on with a `%`.
    members
        .range(GroupName::internal(&prefix)..)
        .take_while(move |(name, _)| name.as_str().starts_with(&prefix))
        .filter(move |(name, _)| name.broadcast_member().is_some_and(|(owner, _)| owner == *group))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(group: &str, member: &str) -> GroupName {
        GroupName::broadcaster(&GroupName::internal(group), member).unwrap()
    }

    #[test]
    fn members_are_known_by_their_group_and_over_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let at = |ms| Millis::new(1_000_000 + ms);
        let known = Broadcasts::open(dir.path(), at(0)).unwrap();
        // Names that begin alike.
        for (group, member) in [("g", "b"), ("g", "a"), ("g%x", "c"), ("gg", "d")] {
            known.note(&name(group, member), at(5)).unwrap();
        }
        known.note(&name("g", "a"), at(9)).unwrap();
        assert_eq!(known.of_group("g"), [(name("g", "a"), at(9)), (name("g", "b"), at(5))]);
        assert_eq!(known.of_group("g%x"), [(name("g%x", "c"), at(5))]);
        known.save(at(SAVE_EVERY_MS.cast_signed() - 1)).unwrap();
        assert!(!dir.path().join("gantryBroadcast.json").exists(), "not yet");
        known.save(at(SAVE_EVERY_MS.cast_signed())).unwrap();
        // A clock that went back.
        let again = Broadcasts::open(dir.path(), at(7)).unwrap();
        assert_eq!(again.of_group("g"), [(name("g", "a"), at(7)), (name("g", "b"), at(5))]);
        again.add_all([name("g", "b"), name("h", "e")], at(8));
        assert_eq!(again.gone(|_, seen| seen < at(7)), [name("g", "b"), name("g%x", "c"), name("gg", "d")]);
        again.remove(&name("g", "b"));
        assert_eq!((again.of_group("g").len(), again.of_group("h").len()), (1, 1));
    }

    #[test]
    fn a_group_has_so_many_members_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let known = Broadcasts::open(dir.path(), Millis::new(0)).unwrap();
        for number in 0..MEMBERS_MAX {
            known.note(&name("g", &number.to_string()), Millis::new(0)).unwrap();
        }
        assert_eq!(known.note(&name("g", "more"), Millis::new(0)), Err(TooMany));
        assert_eq!(known.note(&name("g", "1"), Millis::new(0)), Ok(()));
        assert_eq!(known.note(&name("h", "more"), Millis::new(0)), Ok(()));
    }
}
