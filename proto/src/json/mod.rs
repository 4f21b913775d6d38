//! JSON as these protocols speak it: standard JSON and the dialects of two generations of fastjson.
//!
//! | dialect | example | read | written |
//! |---|---|---|---|
//! | integer keys without quotes | `{0:"127.0.0.1:10911"}` | yes | on request |
//! | objects as keys | `{{"queueId":0,"topic":"T"}:5}` | yes | yes |
//! | references | `{"$ref":"$.statsDay"}` | resolved | never |
//! | single quotes, bare names, a trailing comma | `{'a':1,}` | yes | never |
//!
//! Nulls are left out on writing: a missing field is its default on every side.

mod parse;

pub use parse::{parse, write_string};
