//! Attributes of a topic or a group: changes as tools write them (`+key=value,-key`), and which of a topic's keys mean
//! something to this broker.

use std::collections::BTreeMap;

use crate::config::rates;

/// What a topic is for, as Apache's tools set it.
pub const MESSAGE_TYPE: &str = "message.type";
/// Whether sends must be of the topic's type.
pub const CHECK_TYPE: &str = "gantry.check.type";
/// Whether resends are looked for.
pub const DEDUP: &str = "gantry.dedup";
/// How the number of queues changes.
pub const SCALE: &str = "gantry.scale";
/// A change of the number of queues that is under way; the broker writes it.
pub const SCALING: &str = "gantry.scaling";

const OURS: &str = "gantry.";
const SWITCH: &[&str] = &["true", "false", "on", "off"];

/// Keys of this broker's that take a rate, and what reads it.
const RATES: &[(&str, ReadRate)] = &[
    ("gantry.rate", |text| rates::messages(text).map(drop)),
    ("gantry.rate.bytes", |text| rates::bytes(text).map(drop)),
    ("gantry.rate.burst", |text| rates::burst(text).map(drop)),
];

/// Says what is wrong with a rate, and what to write.
type ReadRate = fn(&str) -> Result<(), String>;

/// Keys whose values are looked at, with the values that they may have. Others of Apache's are kept as they come.
const KNOWN: &[(&str, &[&str])] = &[
    (MESSAGE_TYPE, &["UNSPECIFIED", "NORMAL", "FIFO", "DELAY", "TRANSACTION", "PRIORITY", "LITE", "MIXED"]),
    (CHECK_TYPE, SWITCH),
    (DEDUP, SWITCH),
    (SCALE, &["drain", "ordered", "manual"]),
];

/// An attribute that cannot be set or removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttributeError {
    /// A text that cannot be read.
    #[error(
        "{text:?} changes no attribute: write +key=value to set one, -key to remove one, with commas between"
    )]
    Text {
        /// The part that is wrong.
        text: String,
    },
    /// A key of this broker's that it does not know.
    #[error("there is no attribute {key:?}: choose one of {}", ours())]
    Unknown {
        /// The key.
        key: String,
    },
    /// A value that the key cannot have.
    #[error("attribute {key} cannot be {value:?}: choose one of {}", allowed.join(", "))]
    Value {
        /// The key.
        key: &'static str,
        /// What it should be.
        value: String,
        /// What it can be.
        allowed: &'static [&'static str],
    },
    /// A rate that is none.
    #[error("attribute {key}: {wrong}")]
    Rate {
        /// The key.
        key: &'static str,
        /// What is wrong, and what to write.
        wrong: String,
    },
    /// Only the broker changes it.
    #[error("attribute {SCALING} tells of a change under way: change the numbers of queues instead")]
    OwnState,
}

fn ours() -> String {
    let rates = RATES.iter().map(|(key, _)| *key);
    let keys = KNOWN.iter().map(|(key, _)| *key).filter(|key| key.starts_with(OURS)).chain(rates);
    keys.collect::<Vec<_>>().join(", ")
}

/// Whether a switch is on; `None` where it is not set.
pub fn switch(attributes: &BTreeMap<String, String>, key: &str) -> Option<bool> {
    match attributes.get(key).map(String::as_str) {
        Some("true" | "on") => Some(true),
        Some("false" | "off") => Some(false),
        _ => None,
    }
}

/// Looks at the attributes that a topic shall have, as far as they are not as `before`.
pub fn check(
    before: Option<&BTreeMap<String, String>>,
    wanted: &BTreeMap<String, String>,
) -> Result<(), AttributeError> {
    for (key, value) in wanted {
        if key == SCALING || before.is_some_and(|before| before.get(key) == Some(value)) {
            continue;
        }
        if let Some((key, read)) = RATES.iter().find(|(known, _)| known == key) {
            read(value).map_err(|wrong| AttributeError::Rate { key, wrong })?;
            continue;
        }
        match KNOWN.iter().find(|(known, _)| known == key) {
            Some((_, allowed)) if allowed.contains(&value.as_str()) => {}
            Some((key, allowed)) => return Err(AttributeError::Value { key, value: value.clone(), allowed }),
            None if key.starts_with(OURS) => return Err(AttributeError::Unknown { key: key.clone() }),
            None => {}
        }
    }
    Ok(())
}

/// Applies `text` to `attributes`; on an error nothing is changed.
pub fn change(attributes: &mut BTreeMap<String, String>, text: &str) -> Result<(), AttributeError> {
    let mut changed = attributes.clone();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let wrong = || AttributeError::Text { text: part.to_owned() };
        if let Some(rest) = part.strip_prefix('+') {
            let (key, value) = rest.split_once('=').ok_or_else(wrong)?;
            if key.trim().is_empty() {
                return Err(wrong());
            }
            changed.insert(key.trim().to_owned(), value.trim().to_owned());
        } else {
            let key = part.strip_prefix('-').filter(|key| !key.trim().is_empty()).ok_or_else(wrong)?;
            changed.remove(key.trim());
        }
    }
    if changed.get(SCALING) != attributes.get(SCALING) {
        return Err(AttributeError::OwnState);
    }
    *attributes = changed;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn attributes_are_set_and_removed() {
        let mut attributes = map(&[("old", "1")]);
        change(&mut attributes, "+message.type=FIFO, +x=a=b,-old,-unknown").unwrap();
        assert_eq!(attributes, map(&[("message.type", "FIFO"), ("x", "a=b")]));
        change(&mut attributes, "").unwrap();
        assert_eq!(attributes.len(), 2);
    }

    #[test]
    fn a_wrong_part_changes_nothing() {
        for wrong in ["+a", "a=b", "-", "+=v", "+ok=1,bad", "+gantry.scaling=4@1"] {
            let mut attributes = BTreeMap::new();
            assert!(change(&mut attributes, wrong).is_err(), "{wrong}");
            assert!(attributes.is_empty(), "{wrong}");
        }
        let mut under_way = map(&[(SCALING, "8@1")]);
        assert_eq!(change(&mut under_way, "-gantry.scaling"), Err(AttributeError::OwnState));
    }

    #[test]
    fn what_this_broker_does_not_know_is_refused() {
        let check = |key, value| check(None, &map(&[(key, value)])).map_err(|error| error.to_string());
        assert_eq!(check("gantry.scale", "ordered"), Ok(()));
        assert_eq!(check("queue.type", "BatchCQ"), Ok(()));
        assert!(check("gantry.skale", "drain").unwrap_err().contains("gantry.scale"));
        assert!(check("gantry.dedup", "perhaps").unwrap_err().contains("true, false"));
        assert_eq!(check("gantry.rate", "100/s"), Ok(()));
        assert!(check("gantry.rate.bytes", "5MB").unwrap_err().contains("like 10MiB"));
        assert!(check("gantry.rate.burst", "1").unwrap_err().starts_with("attribute gantry.rate.burst: "));
        assert!(check("message.type", "fifo").unwrap_err().contains("FIFO"));
    }

    #[test]
    fn what_a_topic_has_already_may_stay() {
        let before = map(&[("gantry.later", "1"), ("message.type", "NEW")]);
        assert_eq!(check(Some(&before), &before), Ok(()));
        assert!(check(Some(&before), &map(&[("gantry.later", "2")])).is_err());
    }
}
