//! SQL92 filters: any text is an expression or an error with a place in it, and an expression has a value for any
//! properties, the same each time.
//!
//! The input is an expression, a zero byte, and a property string.

use std::collections::BTreeMap;

use gantry_proto::record::Properties;
use gantry_proto::sql::{Sql, SqlError, TERMS_MAX};

/// Reads the expression and holds it against the properties.
pub fn check(input: &[u8]) {
    let end = input.iter().position(|byte| *byte == 0).unwrap_or(input.len());
    let (text, properties) = input.split_at(end);
    let text = String::from_utf8_lossy(text);
    let sql = match Sql::parse(&text) {
        Ok(sql) => sql,
        Err(error @ SqlError::Wrong { at, .. }) => {
            assert!((1..=text.chars().count() + 1).contains(&at), "{error}");
            return;
        }
        Err(SqlError::TooLong { bytes }) => return assert_eq!(bytes, text.len()),
    };
    assert!(sql.terms() <= TERMS_MAX);
    assert!(sql.ignored_from().is_none_or(|at| (1..=text.chars().count()).contains(&at)));
    let properties = Properties::new(properties.get(1..).unwrap_or_default());
    let value = sql.evaluate(properties.iter());
    assert_eq!(sql.matches(properties), value == Ok(Some(true)));
    // Order does not count, but that of properties with one name.
    let last: BTreeMap<&str, &str> = properties.iter().collect();
    assert_eq!(sql.evaluate(last.into_iter().rev()), value);
}
