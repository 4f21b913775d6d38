//! JSON as these protocols speak it: standard JSON and the dialects of two generations of fastjson.
//!
//! | dialect | example | read | written |
//! |---|---|---|---|
//! | integer keys without quotes | `{0:"127.0.0.1:10911"}` | yes | on request |
//! | objects as keys | `{{"queueId":0,"topic":"T"}:5}` | yes | yes |
//! | references | `{"$ref":"$.statsDay"}` | resolved | never |
//! | single quotes, bare names, a trailing comma | `{'a':1,}` | yes | never |
//! | numbers and truth values as text | `{"perm":"6"}` | yes | never |
//! | null for "nothing" | `{"tagsSet":null}` | as if missing | never |
//!
//! Nulls are left out on writing: a missing field is its default on every side.

use serde::de::DeserializeOwned;

use crate::error::DecodeError;

mod de;
mod parse;
mod ser;

pub use parse::parse;
pub use ser::{IntKeys, to_vec, write_string};

/// Reads one document into `T`: strictly where that works, which is quick, or through the tolerant
/// reader. Fields of `T` should have defaults, and `T`'s maps may have numbers or structs as keys.
pub fn from_slice<T: DeserializeOwned>(input: &[u8]) -> Result<T, DecodeError> {
    // A reference is a valid object to a strict reader, which would ignore what it refers to.
    let refers = input.windows(6).any(|window| window == b"\"$ref\"");
    if !refers && let Ok(value) = serde_json::from_slice(input) {
        return Ok(value);
    }
    let value = parse(input)?;
    T::deserialize(de::Lenient(value)).map_err(|error| DecodeError::new(0, error.to_string()))
}

#[cfg(test)]
mod tests;
