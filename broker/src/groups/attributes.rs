//! Attributes of a consumer group: what `mqadmin updateSubGroup --attributes` and `gantry group set` change.
//!
//! A change is a map. Its key `+name` sets an attribute, `-name` removes one, and a name without a sign sets it too, so that a
//! configuration that was read can be written back. Attributes that are not mentioned stay.
//!
//! Names that begin with `gantry.` are this broker's: `KNOWN` has a line for each, and others are refused. All other names are
//! Apache's (`priority.factor`, `lite.bind.topic` …) or somebody else's: they are kept and shown, and mean nothing here.

use std::collections::BTreeMap;
use std::time::Duration;

use gantry_proto::ids::Millis;
use gantry_proto::names::GroupName;

use crate::config::units;
use crate::flow::OwnRates;

/// What this broker's own attributes begin with.
const OWN: &str = "gantry.";
/// The attribute that names the group before this one.
pub(super) const AFTER: &str = "gantry.after";
/// Attributes that one group may have.
const ATTRIBUTES_MAX: usize = 64;
/// Bytes of a name and of a value.
const NAME_BYTES_MAX: usize = 127;
const VALUE_BYTES_MAX: usize = 1023;

/// An attribute of this broker. To add one: a line in `KNOWN` and a field of [`Settings`].
struct Known {
    name: &'static str,
    /// What it may be, to follow the words "it takes".
    takes: &'static str,
    /// Puts what the value means into the settings; `None`: it means nothing.
    read: fn(&str, &mut Settings) -> Option<()>,
}

/// All attributes of this broker, in the order of their names.
const KNOWN: &[Known] = &[
    Known {
        name: AFTER,
        takes: "the name of another group",
        read: |value, settings| {
            settings.after = Some(GroupName::parse(value).ok()?);
            Some(())
        },
    },
    Known {
        name: "gantry.broadcast.expire",
        takes: "a time from 1h to 365d",
        read: |value, settings| {
            settings.broadcast_expiry = span(value, 3600, 365 * DAY_SECS)?;
            Some(())
        },
    },
    Known {
        name: "gantry.broadcast.offsets",
        takes: "local or broker",
        read: |value, settings| {
            settings.broadcast = match value {
                "local" => BroadcastOffsets::Local,
                "broker" => BroadcastOffsets::AtBroker,
                _ => return None,
            };
            Some(())
        },
    },
    Known {
        name: "gantry.durable",
        takes: "true or false",
        read: |value, settings| {
            settings.durability = match value {
                "true" => Durability::Durable,
                "false" => Durability::WhileOnline,
                _ => return None,
            };
            Some(())
        },
    },
    Known {
        name: "gantry.grace",
        takes: "a time from 0s to 30d",
        read: |value, settings| {
            settings.grace = span(value, 0, 30 * DAY_SECS)?;
            Some(())
        },
    },
    Known {
        name: "gantry.order",
        takes: "queue or key",
        read: |value, settings| {
            settings.order = Order::parse(value)?;
            Some(())
        },
    },
    Known {
        name: "gantry.produce.rate",
        takes: RATE,
        read: |value, settings| settings.produce.set_messages(value),
    },
    Known {
        name: "gantry.produce.rate.burst",
        takes: BURST,
        read: |value, settings| settings.produce.set_burst(value),
    },
    Known {
        name: "gantry.produce.rate.bytes",
        takes: BYTES,
        read: |value, settings| settings.produce.set_bytes(value),
    },
    Known { name: "gantry.rate", takes: RATE, read: |value, settings| settings.consume.set_messages(value) },
    Known {
        name: "gantry.rate.burst",
        takes: BURST,
        read: |value, settings| settings.consume.set_burst(value),
    },
    Known {
        name: "gantry.rate.bytes",
        takes: BYTES,
        read: |value, settings| settings.consume.set_bytes(value),
    },
    Known {
        name: "gantry.start",
        takes: "first, last, or a time in milliseconds since 1970",
        read: |value, settings| {
            settings.start = Some(Start::parse(value)?);
            Some(())
        },
    },
];

/// What messages that are popped in order wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// For those before them in their queue.
    #[default]
    Queue,
    /// For those before them in their queue that have the same sharding key.
    Key,
}

impl Order {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "queue" => Some(Self::Queue),
            "key" => Some(Self::Key),
            _ => None,
        }
    }
}

const DAY_SECS: u64 = 24 * 3600;

/// A time between these limits in seconds.
fn span(text: &str, min_secs: u64, max_secs: u64) -> Option<Duration> {
    let limits = Duration::from_secs(min_secs)..=Duration::from_secs(max_secs);
    units::duration(text).ok().filter(|span| limits.contains(span))
}

/// Who keeps the offsets of members that broadcast.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BroadcastOffsets {
    /// They themselves.
    #[default]
    Local,
    /// The broker, for those that ask it to.
    AtBroker,
}

/// How long a group's offsets are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Until it is deleted.
    #[default]
    Durable,
    /// While it has members.
    WhileOnline,
}

/// What rates take.
const RATE: &str = "messages a second, like 100, or 0 for no limit";
const BYTES: &str = "bytes a second, like 10MiB, or 0 for no limit";
const BURST: &str = "the time whose messages may come at once, 1ms to 1h";

/// Where a group begins in a topic from which it has never consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the first message that is there.
    First,
    /// With what comes.
    Last,
    /// With the first message stored at or after this time.
    Time(Millis),
}

impl Start {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "first" => Some(Self::First),
            "last" => Some(Self::Last),
            _ => text.parse().ok().filter(|ms| *ms >= 0).map(|ms| Self::Time(Millis::new(ms))),
        }
    }
}

/// What the attributes of a group ask of this broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `gantry.after`: the group that must be done with a message before this one sees it.
    pub after: Option<GroupName>,
    /// `gantry.broadcast.offsets`.
    pub broadcast: BroadcastOffsets,
    /// `gantry.broadcast.expire`: how long the broker keeps the offsets of a member that broadcasts after it was heard of last.
    pub broadcast_expiry: Duration,
    /// `gantry.durable`.
    pub durability: Durability,
    /// `gantry.grace`: how long the offsets of a group that is not durable are kept after its last member left.
    pub grace: Duration,
    /// `gantry.order`: what messages that are popped in order wait for.
    pub order: Order,
    /// `gantry.start`: where the group begins, whatever its members ask for. `None`: as they ask.
    pub start: Option<Start>,
    /// `gantry.rate…`: what its consumers get in a second.
    pub consume: OwnRates,
    /// `gantry.produce.rate…`: what producers send that name this group as theirs.
    pub produce: OwnRates,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            after: None,
            broadcast: BroadcastOffsets::default(),
            broadcast_expiry: Duration::from_secs(7 * DAY_SECS),
            durability: Durability::default(),
            grace: Duration::from_secs(60),
            order: Order::default(),
            start: None,
            consume: OwnRates::default(),
            produce: OwnRates::default(),
        }
    }
}

impl Settings {
    /// What these attributes say. What cannot be read, because a newer broker wrote it, is passed over and told.
    pub fn of(attributes: &BTreeMap<String, String>) -> (Self, Vec<AttributeError>) {
        let mut settings = Self::default();
        let read = attributes.iter().map(|(name, value)| settings.read(name, value));
        let wrong = read.filter_map(Result::err).collect();
        (settings, wrong)
    }

    /// Why these cannot be together; `None` when they can.
    fn conflict(&self) -> Option<AttributeError> {
        let is_fleeting = self.durability == Durability::WhileOnline;
        (is_fleeting && self.broadcast == BroadcastOffsets::AtBroker)
            .then_some(AttributeError::Conflict("gantry.durable=false", "gantry.broadcast.offsets=broker"))
    }

    fn read(&mut self, name: &str, value: &str) -> Result<(), AttributeError> {
        if !name.starts_with(OWN) {
            return Ok(());
        }
        let known = KNOWN.iter().find(|known| known.name == name);
        let known = known.ok_or_else(|| AttributeError::Unknown { name: name.to_owned() })?;
        (known.read)(value, self).ok_or_else(|| AttributeError::Value {
            name: known.name,
            value: value.to_owned(),
            takes: known.takes,
        })
    }
}

/// Why attributes cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttributeError {
    /// The key of a change names nothing.
    #[error(
        "{key:?} names no attribute: write +name=value to set one and -name to remove one, names of 1 to {NAME_BYTES_MAX} bytes without + and -"
    )]
    Key {
        /// The key.
        key: String,
    },
    /// The attribute is changed twice.
    #[error("attribute {name} is changed twice: say once what becomes of it")]
    Twice {
        /// Its name.
        name: String,
    },
    /// It would be this broker's, but there is none of the name.
    #[error("there is no attribute {name}: those of Gantry are {}", names())]
    Unknown {
        /// Its name.
        name: String,
    },
    /// The attribute cannot be this.
    #[error("attribute {name} cannot be {value:?}: it takes {takes}")]
    Value {
        /// Its name.
        name: &'static str,
        /// What it should be.
        value: String,
        /// What it may be.
        takes: &'static str,
    },
    /// Two attributes that exclude each other.
    #[error("the attributes {0} and {1} cannot be together: remove one of them")]
    Conflict(&'static str, &'static str),
    /// The value is too long.
    #[error("the value of attribute {name} has {bytes} bytes, the limit is {VALUE_BYTES_MAX}: shorten it")]
    TooLong {
        /// Its name.
        name: String,
        /// Bytes of the value.
        bytes: usize,
    },
    /// There would be too many.
    #[error("the group would have {count} attributes, the limit is {ATTRIBUTES_MAX}: remove some")]
    TooMany {
        /// How many.
        count: usize,
    },
}

fn names() -> String {
    KNOWN.iter().map(|known| known.name).collect::<Vec<_>>().join(", ")
}

/// The attributes after a change.
pub fn changed(
    current: &BTreeMap<String, String>,
    change: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, AttributeError> {
    let mut attributes = current.clone();
    let mut seen = std::collections::BTreeSet::new();
    for (key, value) in change {
        let removed = key.strip_prefix('-');
        let name = removed.or_else(|| key.strip_prefix('+')).unwrap_or(key).trim();
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(['+', '-']) {
            return Err(AttributeError::Key { key: key.chars().take(NAME_BYTES_MAX).collect() });
        }
        if !seen.insert(name) {
            return Err(AttributeError::Twice { name: name.to_owned() });
        }
        if removed.is_some() {
            attributes.remove(name);
            continue;
        }
        let value = value.trim();
        if value.len() > VALUE_BYTES_MAX {
            return Err(AttributeError::TooLong { name: name.to_owned(), bytes: value.len() });
        }
        // What is only written back need not be known: a newer broker may have set it.
        if attributes.get(name).map(String::as_str) != Some(value) {
            Settings::default().read(name, value)?;
            attributes.insert(name.to_owned(), value.to_owned());
        }
    }
    if attributes.len() > ATTRIBUTES_MAX {
        return Err(AttributeError::TooMany { count: attributes.len() });
    }
    let (settings, _) = Settings::of(&attributes);
    settings.conflict().map_or(Ok(attributes), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<const N: usize>(all: [(&str, &str); N]) -> BTreeMap<String, String> {
        all.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn attributes_are_set_removed_and_kept() {
        let current = map([("old", "1"), ("kept", "2")]);
        let change =
            map([("+gantry.start", " last "), ("priority.factor", "50"), ("-old", ""), ("-none", "")]);
        let expected = map([("gantry.start", "last"), ("kept", "2"), ("priority.factor", "50")]);
        assert_eq!(changed(&current, &change), Ok(expected));
        assert_eq!(changed(&current, &map([])), Ok(current));
    }

    #[test]
    fn what_is_wrong_is_told_and_changes_nothing() {
        let text = |change: BTreeMap<_, _>| changed(&map([]), &change).unwrap_err().to_string();
        assert!(text(map([("+", "v")])).contains("names no attribute"));
        assert!(text(map([("+a-b", "v")])).contains("names no attribute"));
        assert!(text(map([("+a", "1"), ("-a", "")])).contains("twice"));
        assert!(
            text(map([("+gantry.strat", "1")]))
                .contains("there is no attribute gantry.strat: those of Gantry are gantry.")
        );
        let wrong = text(map([("+gantry.start", "-3")]));
        assert_eq!(
            wrong,
            r#"attribute gantry.start cannot be "-3": it takes first, last, or a time in milliseconds since 1970"#
        );
        assert!(text(map([("+a", "x".repeat(1024).as_str())])).contains("1024 bytes"));
        let many: BTreeMap<_, _> = (0..=ATTRIBUTES_MAX).map(|n| (format!("+a{n}"), String::new())).collect();
        assert!(text(many).contains("65 attributes"));
    }

    #[test]
    fn each_attribute_says_what_it_says() {
        let of = |name: &str, value: &str| {
            changed(&map([]), &map([(name, value)])).map(|all| Settings::of(&all).0)
        };
        let default = Settings::default();
        let broadcast = BroadcastOffsets::AtBroker;
        assert_eq!(of("gantry.broadcast.offsets", "broker"), Ok(Settings { broadcast, ..default.clone() }));
        let durability = Durability::WhileOnline;
        assert_eq!(of("gantry.durable", "false"), Ok(Settings { durability, ..default.clone() }));
        let grace = Duration::ZERO;
        assert_eq!(of("gantry.grace", "0s"), Ok(Settings { grace, ..default.clone() }));
        let broadcast_expiry = Duration::from_secs(3600);
        assert_eq!(
            of("gantry.broadcast.expire", "60m"),
            Ok(Settings { broadcast_expiry, ..default.clone() })
        );
        for (name, value) in [
            ("gantry.broadcast.offsets", "here"),
            ("gantry.broadcast.expire", "59m"),
            ("gantry.durable", "no"),
            ("gantry.grace", "31d"),
            ("gantry.grace", "5"),
        ] {
            assert!(matches!(of(name, value), Err(AttributeError::Value { .. })), "{name}={value}");
        }
    }

    #[test]
    fn what_excludes_each_other_is_told() {
        let durable = map([("gantry.broadcast.offsets", "broker")]);
        let error = changed(&durable, &map([("+gantry.durable", "false")])).unwrap_err();
        assert!(error.to_string().contains("cannot be together"));
        assert!(
            changed(&durable, &map([("+gantry.durable", "false"), ("-gantry.broadcast.offsets", "")]))
                .is_ok()
        );
    }

    #[test]
    fn what_a_newer_broker_set_is_kept_and_means_nothing() {
        let newer = map([("gantry.start", "5"), ("gantry.newer", "1"), ("other", "2")]);
        let (settings, wrong) = Settings::of(&newer);
        assert_eq!(settings.start, Some(Start::Time(Millis::new(5))));
        assert_eq!(wrong, [AttributeError::Unknown { name: "gantry.newer".to_owned() }]);
        assert_eq!(changed(&newer, &newer), Ok(newer.clone()));
        assert!(changed(&newer, &map([("gantry.newer", "2")])).is_err());
    }

    #[test]
    fn the_known_ones_are_in_order_and_named_once() {
        assert!(KNOWN.is_sorted_by(|a, b| a.name < b.name));
        assert!(KNOWN.iter().all(|known| known.name.starts_with(OWN)));
    }
}
