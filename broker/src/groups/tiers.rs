//! Tiered subscription (`gantry.after`): a group sees a message only once another one, its *first* group, is done with it.
//!
//! The first group's committed offset in a queue is where the other's messages end there, as far as that is kept: nothing else is
//! stored, so a restart changes nothing. What the first group filters out, has in flight no more, or has handed back (it gets that
//! again from its retry topic) counts as done. Where it has no offset yet it is done with nothing; a reset of it takes nothing
//! back that was given already, and later messages wait until it has passed them again.
//!
//! Only topics of users have tiers: what a group gets back from its own retry topic was its own already. Groups may stand in a
//! row; a circle is refused, and so is the deletion of a group that another one waits for.

use std::collections::BTreeSet;

use gantry_proto::ids::{QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicKind, TopicName};

use super::offsets::Offsets;
use super::{Group, Groups};

/// Why a group cannot come after another one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TierError {
    /// There is no such group.
    #[error("there is no group {0} that it could come after: create that first")]
    Unknown(GroupName),
    /// It would wait for itself.
    #[error("it would wait for itself ({}): break the circle", chain(.0))]
    Circle(Vec<GroupName>),
}

fn chain(groups: &[GroupName]) -> String {
    groups.iter().map(GroupName::as_str).collect::<Vec<_>>().join(" after ")
}

/// Where the messages of a queue end for a group that comes after another one; `None` when it sees all there are.
pub fn end(group: &Group, offsets: &Offsets, topic: &TopicName, queue: QueueId) -> Option<QueueOffset> {
    let first = group.settings.after.as_ref()?;
    if topic.kind() != TopicKind::User {
        return None;
    }
    Some(offsets.kept(first.as_str(), topic.as_str(), queue).unwrap_or_default())
}

/// Whether `name` may come after `first`.
pub(super) fn check(groups: &Groups, name: &GroupName, first: &GroupName) -> Result<(), TierError> {
    if groups.get(first.as_str()).is_none() && first != name {
        return Err(TierError::Unknown(first.clone()));
    }
    let mut chain = vec![name.clone()];
    let mut seen = BTreeSet::new();
    let mut next = Some(first.clone());
    while let Some(group) = next {
        chain.push(group.clone());
        if group == *name {
            return Err(TierError::Circle(chain));
        }
        next = groups.get(group.as_str()).and_then(|group| group.settings.after.clone());
        // A circle that others are in, out of a file, is not this group's.
        if !seen.insert(group) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use gantry_proto::remoting::body::group::SubscriptionGroupConfig;

    use super::*;
    use crate::clock::Clock;
    use crate::config::GroupsConfig;
    use crate::fixture::clock;
    use crate::groups::GroupError;

    fn declare(groups: &Groups, name: &str, change: &[(&str, &str)]) -> Result<(), GroupError> {
        let attributes = change.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let config = SubscriptionGroupConfig {
            group_name: name.to_owned(),
            attributes,
            ..SubscriptionGroupConfig::default()
        };
        groups.declare(config).map(drop)
    }

    fn after(first: &str) -> [(&'static str, &str); 1] {
        [("+gantry.after", first)]
    }

    #[test]
    fn rows_are_taken_and_circles_refused() {
        let dir = tempfile::tempdir().unwrap();
        let clock = clock();
        let open = || {
            let clock = std::sync::Arc::clone(&clock) as std::sync::Arc<dyn Clock>;
            Groups::open(dir.path(), GroupsConfig::default(), clock).unwrap()
        };
        let groups = open();
        for name in ["A", "B", "C"] {
            declare(&groups, name, &[]).unwrap();
        }
        let text = |result: Result<(), GroupError>| result.unwrap_err().to_string();
        assert_eq!(
            text(declare(&groups, "B", &after("Nobody"))),
            "group B: there is no group Nobody that it could come after: create that first"
        );
        assert!(text(declare(&groups, "B", &after("a b"))).contains("gantry.after cannot be"));
        assert!(text(declare(&groups, "New", &after("New"))).contains("(New after New)"));
        declare(&groups, "B", &after("A")).unwrap();
        declare(&groups, "C", &after("B")).unwrap();
        assert_eq!(
            text(declare(&groups, "A", &after("C"))),
            "group A: it would wait for itself (A after C after B after A): break the circle"
        );
        assert!(groups.is_waited_for("A") && groups.is_waited_for("B") && !groups.is_waited_for("C"));
        let refused = groups.delete("B").unwrap_err().to_string();
        assert!(refused.contains("group C waits for group B"), "{refused}");

        let groups = open();
        assert!(groups.is_waited_for("A") && groups.delete("A").is_err());
        declare(&groups, "C", &[("-gantry.after", "")]).unwrap();
        assert!(!groups.is_waited_for("B"));
        groups.delete("B").unwrap();
        assert!(!groups.is_waited_for("A"));
        groups.delete("A").unwrap();
    }
}
