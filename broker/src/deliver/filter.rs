//! Which messages of a topic a subscription wants: by what a queue entry tells, or by the message's properties.

use std::collections::BTreeSet;
use std::sync::Arc;

use gantry_proto::record::{Properties, TagExpression, TagExpressionError};
use gantry_proto::sql::Sql;

/// A subscription's filter.
#[derive(Clone, Debug)]
pub enum Filter {
    /// Everything.
    All,
    /// Messages with one of these tags. Entries carry only a hash of the tag: a match means "perhaps", and the
    /// consumer compares the tag itself.
    Tags(Arc<TagExpression>),
    /// Messages with properties that match an expression.
    Sql(Arc<Sql>),
    /// What one of several wants.
    Any(Arc<Vec<Filter>>),
}

/// What a queue entry tells of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is wanted, as far as the broker decides.
    Wanted,
    /// It is not.
    Unwanted,
    /// Its properties decide.
    Open,
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

    /// What one of these wants.
    pub fn any(mut filters: Vec<Self>) -> Self {
        if filters.iter().any(|filter| matches!(filter, Self::All)) {
            return Self::All;
        }
        match filters.pop() {
            Some(only) if filters.is_empty() => only,
            last => Self::Any(Arc::new(filters.into_iter().chain(last).collect())),
        }
    }

    /// What the entry of a message with this tags code tells.
    #[inline]
    pub fn by_entry(&self, tags_code: i64) -> Verdict {
        match self {
            Self::All => Verdict::Wanted,
            Self::Tags(expression) if expression.matches_code(tags_code) => Verdict::Wanted,
            Self::Tags(_) => Verdict::Unwanted,
            Self::Sql(_) => Verdict::Open,
            Self::Any(filters) => {
                let mut verdict = Verdict::Unwanted;
                for filter in filters.iter() {
                    match filter.by_entry(tags_code) {
                        Verdict::Wanted => return Verdict::Wanted,
                        Verdict::Open => verdict = Verdict::Open,
                        Verdict::Unwanted => {}
                    }
                }
                verdict
            }
        }
    }

    /// Whether a message with these properties, of whose entry the [verdict](Self::by_entry) was open, is wanted.
    pub fn by_properties(&self, properties: Properties<'_>) -> bool {
        match self {
            Self::All | Self::Tags(_) => false,
            Self::Sql(sql) => sql.matches(properties),
            Self::Any(filters) => filters.iter().any(|filter| filter.by_properties(properties)),
        }
    }

    /// Whether a consumer with this filter takes a message with these properties: of tags the text counts.
    pub fn takes(&self, properties: Properties<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Tags(tags) => tags.matches_tag(properties.tags()),
            Self::Sql(sql) => sql.matches(properties),
            Self::Any(filters) => filters.iter().any(|filter| filter.takes(properties)),
        }
    }

    /// Whether there are messages of which properties decide.
    pub fn looks_at_properties(&self) -> bool {
        self.terms() > 0
    }

    /// Operations that one look at a message's properties takes at the most.
    pub fn terms(&self) -> usize {
        match self {
            Self::All | Self::Tags(_) => 0,
            Self::Sql(sql) => sql.terms().max(1),
            Self::Any(filters) => filters.iter().map(Self::terms).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use gantry_proto::record::{PropertiesBuf, tags_code};

    use super::*;

    fn sql(expression: &str) -> Filter {
        Filter::Sql(Arc::new(Sql::parse(expression).expect("a valid expression")))
    }

    fn tags(expression: &str) -> Filter {
        Filter::tags(expression).expect("a valid expression")
    }

    #[test]
    fn tags_are_matched_by_their_hash() {
        let filter = tags("TagA || TagB");
        assert_eq!(filter.by_entry(tags_code(Some("TagB"))), Verdict::Wanted);
        assert_eq!(filter.by_entry(tags_code(Some("TagC"))), Verdict::Unwanted);
        assert_eq!(filter.by_entry(tags_code(None)), Verdict::Unwanted);
        assert_eq!(tags("*").by_entry(tags_code(None)), Verdict::Wanted);
        assert!(!filter.looks_at_properties());
    }

    #[test]
    fn expressions_are_held_against_properties() {
        let mut properties = PropertiesBuf::new();
        properties.push("a", "5");
        let filter = sql("a > 4");
        assert_eq!(filter.by_entry(tags_code(Some("TagB"))), Verdict::Open);
        assert!(filter.by_properties(properties.view()) && !sql("a > 5").by_properties(properties.view()));
    }

    #[test]
    fn several_want_what_one_of_them_wants() {
        let mut properties = PropertiesBuf::new();
        properties.push("a", "5");
        let any = Filter::any(vec![sql("a = 'x'"), tags("TagA"), sql("a > 4")]);
        assert_eq!(any.by_entry(tags_code(Some("TagA"))), Verdict::Wanted);
        assert_eq!(any.by_entry(tags_code(Some("TagB"))), Verdict::Open);
        assert_eq!(Filter::any(vec![tags("A"), tags("B")]).by_entry(tags_code(Some("C"))), Verdict::Unwanted);
        assert!(any.by_properties(properties.view()));
        assert!(!any.by_properties(PropertiesBuf::new().view()));
        assert!(any.takes(properties.view()) && !tags("TagA").takes(properties.view()));
        assert!(Filter::All.takes(properties.view()) && sql("a = 5").takes(properties.view()));
        assert_eq!(any.terms(), 2);
        assert!(matches!(Filter::any(vec![any, Filter::All]), Filter::All));
        assert!(matches!(Filter::any(vec![tags("A")]), Filter::Tags(_)));
    }
}
