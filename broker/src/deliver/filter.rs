//! Which messages of a topic a subscription wants, as far as a queue entry tells.

use std::collections::BTreeSet;
use std::sync::Arc;

use gantry_proto::record::{TagExpression, TagExpressionError};

/// A subscription's filter. Entries carry only a hash of the tag: a match means "perhaps", and the
/// consumer compares the tag itself.
#[derive(Clone, Debug)]
pub enum Filter {
    /// Everything.
    All,
    /// Messages with one of these tags.
    Tags(Arc<TagExpression>),
}

impl Filter {
    /// The filter of a tag expression such as `TagA || TagB`; `*` and the empty text mean everything.
    pub fn tags(expression: &str) -> Result<Self, TagExpressionError> {
        Ok(match TagExpression::parse(expression)? {
            TagExpression::All => Self::All,
            tags @ TagExpression::Tags { .. } => Self::Tags(Arc::new(tags)),
        })
    }

    /// The filter of these tags; none means everything.
    pub fn of(tags: &BTreeSet<String>) -> Self {
        TagExpression::of(tags.iter().cloned())
            .map_or(Self::All, |expression| Self::Tags(Arc::new(expression)))
    }

    /// Whether a message with this tags code may be wanted.
    pub fn matches(&self, tags_code: i64) -> bool {
        match self {
            Self::All => true,
            Self::Tags(expression) => expression.matches_code(tags_code),
        }
    }
}

#[cfg(test)]
mod tests {
    use gantry_proto::record::tags_code;

    use super::*;

    #[test]
    fn tags_are_matched_by_their_hash() {
        let filter = Filter::tags("TagA || TagB").expect("a valid expression");
        assert!(filter.matches(tags_code(Some("TagB"))));
        assert!(!filter.matches(tags_code(Some("TagC"))));
        assert!(!filter.matches(tags_code(None)));
        assert!(Filter::tags("*").expect("a valid expression").matches(tags_code(None)));
    }
}
