//! Java's string hash, and what RocketMQ builds on it: the tags code of a queue entry and the
//! subscription to tags.
//!
//! The hash is over UTF-16 code units: `h = 31 * h + unit`, wrapping in 32 bits.

use std::fmt;

use super::properties::Text;

/// Java's `String.hashCode`, fed with the parts of the string in turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JavaHash(i32);

impl JavaHash {
    /// The hash of the empty string.
    pub const fn new() -> Self {
        Self(0)
    }

    /// The hash of the string so far with `part` behind it.
    #[must_use]
    pub fn push<'a>(self, part: impl Into<Text<'a>>) -> Self {
        let part: Text<'_> = part.into();
        let step = |hash: i32, unit: u16| hash.wrapping_mul(31).wrapping_add(i32::from(unit));
        if !part.as_bytes().is_ascii() {
            return Self(part.as_str().encode_utf16().fold(self.0, step));
        }
        // Four at a time: one multiplication waits for the last result instead of four.
        let (words, rest) = part.as_bytes().as_chunks::<4>();
        let hash = words.iter().fold(self.0, |hash, [a, b, c, d]| {
            let word = 29_791 * i32::from(*a) + 961 * i32::from(*b) + 31 * i32::from(*c) + i32::from(*d);
            hash.wrapping_mul(923_521).wrapping_add(word)
        });
        Self(rest.iter().fold(hash, |hash, byte| step(hash, u16::from(*byte))))
    }

    /// The hash.
    pub const fn finish(self) -> i32 {
        self.0
    }

    /// The hash without its sign, as the key index uses it; 0 for the one that has no positive.
    pub const fn finish_positive(self) -> i32 {
        if self.0 == i32::MIN { 0 } else { self.0.abs() }
    }
}

/// Java's `String.hashCode` of `text`.
pub fn java_hash(text: &str) -> i32 {
    JavaHash::new().push(text).finish()
}

/// The tags code of a queue entry: the hash of the tag, sign-extended; 0 without a tag.
pub fn tags_code(tags: Option<&str>) -> i64 {
    tags.map_or(0, |tags| i64::from(java_hash(tags)))
}

/// Why a text subscribes to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the subscription {0:?} names no tag: write `A || B`, or `*` for all")]
pub struct TagExpressionError(String);

/// Which tags a consumer wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagExpression {
    /// Every message, tagged or not.
    All,
    /// Messages that have one of these tags.
    Tags {
        /// The tags, sorted, each once.
        tags: Vec<String>,
        /// Their codes, sorted, each once; two tags may share one.
        codes: Vec<i64>,
    },
}

impl TagExpression {
    /// Reads `A || B`; `*` and the empty text mean all.
    pub fn parse(text: &str) -> Result<Self, TagExpressionError> {
        let trim = |text: &str| text.trim_matches(|c| c <= ' ').to_owned();
        if text.is_empty() || trim(text) == "*" {
            return Ok(Self::All);
        }
        let tags = text.split("||").map(trim).filter(|tag| !tag.is_empty());
        Self::of(tags).ok_or_else(|| TagExpressionError(text.to_owned()))
    }

    /// The subscription to these tags; `None` when there are none.
    pub fn of(tags: impl IntoIterator<Item = String>) -> Option<Self> {
        let mut tags: Vec<String> = tags.into_iter().collect();
        tags.sort_unstable();
        tags.dedup();
        let mut codes: Vec<i64> = tags.iter().map(|tag| tags_code(Some(tag))).collect();
        codes.sort_unstable();
        codes.dedup();
        (!tags.is_empty()).then_some(Self::Tags { tags, codes })
    }

    /// Whether a queue entry with this tags code may be wanted: the consumer compares the text.
    pub fn matches_code(&self, code: i64) -> bool {
        match self {
            Self::All => true,
            Self::Tags { codes, .. } => codes.binary_search(&code).is_ok(),
        }
    }

    /// Whether a message with this tag is wanted.
    pub fn matches_tag(&self, tag: Option<&str>) -> bool {
        match self {
            Self::All => true,
            Self::Tags { tags, .. } => {
                tag.is_some_and(|tag| tags.binary_search_by(|wanted| wanted.as_str().cmp(tag)).is_ok())
            }
        }
    }
}

impl fmt::Display for TagExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Tags { tags, .. } => f.write_str(&tags.join(" || ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Vectors {
        tags: Vec<Tag>,
        subscriptions: Vec<Subscription>,
    }

    #[derive(Deserialize)]
    struct Tag {
        #[serde(rename = "tag")]
        text: String,
        #[serde(rename = "tagsCode")]
        code: i64,
        java_hash: i32,
        index_key_hash_abs: i32,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Subscription {
        expression: String,
        #[serde(default)]
        tags_set: Vec<String>,
        #[serde(default)]
        code_set: Vec<i64>,
        error: Option<String>,
    }

    fn vectors() -> Vectors {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/tag_hash.json"));
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn hashes_are_those_of_java() {
        for vector in vectors().tags {
            assert_eq!(java_hash(&vector.text), vector.java_hash, "{:?}", vector.text);
            assert_eq!(tags_code(Some(&vector.text)), vector.code, "{:?}", vector.text);
            let positive = JavaHash::new().push(vector.text.as_str()).finish_positive();
            assert_eq!(positive, vector.index_key_hash_abs, "{:?}", vector.text);
        }
        assert_eq!(tags_code(None), 0);
    }

    #[test]
    fn subscriptions_are_read_as_java_reads_them() {
        for vector in vectors().subscriptions {
            let parsed = TagExpression::parse(&vector.expression);
            if vector.error.is_some() {
                assert_eq!(parsed, Err(TagExpressionError(vector.expression)));
                continue;
            }
            match parsed.unwrap() {
                TagExpression::All => assert_eq!(vector.tags_set, [""; 0], "{:?}", vector.expression),
                TagExpression::Tags { mut tags, mut codes } => {
                    let mut expected = (vector.tags_set, vector.code_set);
                    tags.sort();
                    codes.sort_unstable();
                    expected.0.sort();
                    expected.1.sort_unstable();
                    assert_eq!((tags, codes), expected, "{:?}", vector.expression);
                }
            }
        }
    }

    #[test]
    fn tags_that_share_a_code_are_told_apart_by_text_only() {
        let wanted = TagExpression::parse("AaAa || x || AaAa").unwrap();
        assert!(wanted.matches_code(tags_code(Some("BBBB"))));
        assert!(!wanted.matches_tag(Some("BBBB")) && wanted.matches_tag(Some("x")));
        assert!(!wanted.matches_code(0) && !wanted.matches_tag(None));
        assert!(TagExpression::All.matches_code(0) && TagExpression::All.matches_tag(None));
        assert_eq!(wanted.to_string(), "AaAa || x");
        assert_eq!(
            TagExpression::parse(" ").unwrap_err().to_string(),
            "the subscription \" \" names no tag: write `A || B`, or `*` for all"
        );
    }

    proptest! {
        #[test]
        fn parts_hash_as_the_whole(parts in prop::collection::vec("\\PC{0,9}|[a-z#]{0,20}", 0..4)) {
            let whole = parts.concat();
            let slow = whole.encode_utf16().fold(0_i32, |h, unit| h.wrapping_mul(31).wrapping_add(unit.into()));
            let hash = parts.iter().fold(JavaHash::new(), |hash, part| hash.push(part.as_str()));
            prop_assert_eq!(hash.finish(), slow);
            prop_assert_eq!(java_hash(&whole), slow);
        }

        #[test]
        fn an_expression_reads_back(text in "[ab |]{0,12}") {
            if let Ok(parsed) = TagExpression::parse(&text) {
                prop_assert_eq!(TagExpression::parse(&parsed.to_string()), Ok(parsed));
            }
        }
    }
}
