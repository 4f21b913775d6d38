//! Subscriptions made into filters. An expression is read once and kept: clients send it with each pull.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use gantry_proto::record::TagExpressionError;
use gantry_proto::remoting::body::heartbeat::{HeartbeatData, SubscriptionData};
use gantry_proto::sql::{Sql, SqlError};

use super::filter::Filter;
use crate::groups::members::Wanted;

/// Bytes of text of the expressions in each of the two generations that are kept.
const GENERATION_BYTES_MAX: usize = 512 * 1024;
/// What an expression takes beside its text, at the least.
const EXPRESSION_BYTES: usize = 256;

/// Why a subscription cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The tags are none.
    #[error(transparent)]
    Tags(#[from] TagExpressionError),
    /// The expression is none.
    #[error(transparent)]
    Sql(#[from] SqlError),
    /// There is no such kind of filter.
    #[error("there are no filters of type {0}: subscribe with TAG or SQL92")]
    Type(String),
}

/// Why what a group told by heartbeat cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WantedError {
    /// No member's subscription can be.
    #[error("the group's subscription cannot be served: {0}")]
    None(FilterError),
    /// Another member's can be, that of the one who asks cannot.
    #[error(
        "this member's subscription cannot be served, other than those of the group's other members: {0}"
    )]
    NotThis(FilterError),
}

/// Kinds of filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tags,
    Sql,
}

impl Kind {
    fn of(name: &str) -> Result<Self, FilterError> {
        if name.is_empty() || name.eq_ignore_ascii_case("TAG") {
            Ok(Self::Tags)
        } else if name.eq_ignore_ascii_case("SQL92") {
            Ok(Self::Sql)
        } else {
            Err(FilterError::Type(name.chars().take(64).collect()))
        }
    }
}

/// The expressions in use. What was not asked for while many others were is forgotten, and read anew when needed.
#[derive(Debug, Default)]
pub struct Expressions {
    /// Guards both generations; held for a look or an insertion.
    kept: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Box<str>, Arc<Sql>>,
    young_bytes: usize,
    old: HashMap<Box<str>, Arc<Sql>>,
}

impl Generations {
    fn get(&mut self, text: &str) -> Option<Arc<Sql>> {
        if let Some(found) = self.young.get(text) {
            return Some(Arc::clone(found));
        }
        let (text, found) = self.old.remove_entry(text)?;
        self.put(text, Arc::clone(&found));
        Some(found)
    }

    fn put(&mut self, text: Box<str>, sql: Arc<Sql>) {
        let bytes = text.len() + EXPRESSION_BYTES;
        if self.young_bytes + bytes > GENERATION_BYTES_MAX {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += bytes;
        self.young.insert(text, sql);
    }
}

impl Expressions {
    /// The filter of a subscription: `kind` is `TAG` (also when empty) or `SQL92`.
    pub fn filter(&self, kind: &str, text: &str) -> Result<Filter, FilterError> {
        match Kind::of(kind)? {
            Kind::Tags => Ok(Filter::tags(text)?),
            Kind::Sql => Ok(Filter::Sql(self.sql(text)?)),
        }
    }

    /// The expression of a text.
    pub fn sql(&self, text: &str) -> Result<Arc<Sql>, SqlError> {
        if let Some(found) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(text) {
            return Ok(found);
        }
        let sql = Arc::new(Sql::parse(text)?);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Two connections may have read it at the same time.
        if kept.get(text).is_none() {
            kept.put(text.into(), Arc::clone(&sql));
        }
        Ok(sql)
    }

    /// What a group gets: all that one of its members wants. A member whose own subscription, told by its version,
    /// cannot be served is refused, and takes nothing from the others.
    pub fn of_group(&self, wanted: &Wanted, version: i64) -> Result<Filter, WantedError> {
        if wanted.others.is_empty() {
            return self.of_member(&wanted.data).map_err(WantedError::None);
        }
        let mut filters = Vec::with_capacity(1 + wanted.others.len());
        let mut failed = None;
        for data in std::iter::once(&wanted.data).chain(&wanted.others) {
            match self.of_member(data) {
                Ok(filter) => filters.push(filter),
                Err(error) if data.sub_version == version => failed = Some((true, error)),
                Err(error) => failed = failed.or(Some((false, error))),
            }
        }
        match failed {
            Some((_, error)) if filters.is_empty() => Err(WantedError::None(error)),
            Some((true, error)) => Err(WantedError::NotThis(error)),
            _ => Ok(Filter::any(filters)),
        }
    }

    /// The filter of one member's subscription.
    pub fn of_member(&self, data: &SubscriptionData) -> Result<Filter, FilterError> {
        match Kind::of(&data.expression_type)? {
            Kind::Tags => Ok(Filter::of(&data.tags_set)),
            Kind::Sql => Ok(Filter::Sql(self.sql(&data.sub_string)?)),
        }
    }

    /// Says in the log what is wrong or strange about the expressions of a heartbeat.
    pub fn warn_of(&self, data: &HeartbeatData) {
        for consumer in &data.consumer_data_set {
            let group = &consumer.group_name;
            for data in &consumer.subscription_data_set {
                let topic = &data.topic;
                match self.remark(&data.expression_type, &data.sub_string) {
                    Ok(None) => {}
                    Ok(Some(remark)) => {
                        tracing::warn!(group, topic, "{remark}");
                    }
                    Err(error) => {
                        tracing::warn!(
                            group,
                            topic,
                            "a consumer subscribes to what cannot be served: {error}"
                        );
                    }
                }
            }
        }
    }

    /// What is strange about a subscription, as a sentence.
    ///
    /// Fails when it cannot be served.
    pub fn remark(&self, kind: &str, text: &str) -> Result<Option<String>, FilterError> {
        let Filter::Sql(sql) = self.filter(kind, text)? else { return Ok(None) };
        Ok(sql.ignored_from().map(|at| {
            format!("the SQL92 expression ends before character {at}: what follows is ignored; correct or remove it")
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::members::Accord;

    fn data(kind: &str, text: &str, sub_version: i64) -> Arc<SubscriptionData> {
        Arc::new(SubscriptionData {
            expression_type: kind.to_owned(),
            sub_string: text.to_owned(),
            sub_version,
            ..SubscriptionData::default()
        })
    }

    fn wanted(data: &Arc<SubscriptionData>, others: &[&Arc<SubscriptionData>]) -> Wanted {
        let others = others.iter().map(|data| Arc::clone(data)).collect();
        Wanted { data: Arc::clone(data), others, accord: Accord::Mixed }
    }

    #[test]
    fn subscriptions_become_filters_of_their_kind() {
        let expressions = Expressions::default();
        for kind in ["", "TAG", "tag"] {
            assert!(matches!(expressions.filter(kind, "A || B"), Ok(Filter::Tags(_))));
        }
        assert!(matches!(expressions.filter("SQL92", "a > 5"), Ok(Filter::Sql(_))));
        assert!(matches!(expressions.filter("SQL92", ""), Err(FilterError::Sql(_))));
        assert!(matches!(expressions.filter("TAG", "||"), Err(FilterError::Tags(_))));
        let error = expressions.filter("CLASS", "x").unwrap_err();
        assert_eq!(error.to_string(), "there are no filters of type CLASS: subscribe with TAG or SQL92");
        assert_eq!(expressions.remark("SQL92", "a > 5"), Ok(None));
        assert!(expressions.remark("SQL92", "a LIKE 'x'").unwrap().unwrap().contains("before character 3"));
    }

    #[test]
    fn an_expression_in_use_is_read_once_and_memory_is_bounded() {
        let expressions = Expressions::default();
        let used = expressions.sql("used = 1").unwrap();
        let long = |number: usize| format!("a = '{}{number}'", "x".repeat(8_000));
        for number in 0..200 {
            expressions.sql(&long(number)).unwrap();
            assert!(Arc::ptr_eq(&used, &expressions.sql("used = 1").unwrap()), "after {number}");
        }
        let kept = expressions.kept.lock().unwrap();
        let bytes: usize = kept.young.keys().chain(kept.old.keys()).map(|text| text.len()).sum();
        assert!(bytes <= 2 * GENERATION_BYTES_MAX && !kept.old.contains_key(&*long(0)), "{bytes}");
    }

    #[test]
    fn a_group_gets_what_one_of_its_members_wants() {
        let expressions = Expressions::default();
        let good = data("SQL92", "a > 5", 1);
        assert!(matches!(expressions.of_group(&wanted(&good, &[]), 1), Ok(Filter::Sql(_))));
        let other = data("SQL92", "a < 2", 2);
        let Ok(Filter::Any(both)) = expressions.of_group(&wanted(&other, &[&good]), 1) else {
            panic!("both are wanted");
        };
        assert_eq!(both.len(), 2);
        let all = data("TAG", "*", 3);
        assert!(matches!(expressions.of_group(&wanted(&all, &[&good]), 1), Ok(Filter::All)));
    }

    #[test]
    fn a_member_that_cannot_be_served_takes_nothing_from_the_others() {
        let expressions = Expressions::default();
        let (good, bad) = (data("SQL92", "a > 5", 1), data("SQL92", "a >", 2));
        let alone = wanted(&bad, &[]);
        assert!(matches!(expressions.of_group(&alone, 2), Err(WantedError::None(_))));
        let both = wanted(&bad, &[&good]);
        assert!(matches!(expressions.of_group(&both, 1), Ok(Filter::Sql(_))));
        let error = expressions.of_group(&both, 2).unwrap_err();
        assert!(
            matches!(error, WantedError::NotThis(_)) && error.to_string().contains("character 4"),
            "{error}"
        );
    }
}
