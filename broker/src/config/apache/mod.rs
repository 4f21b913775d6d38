//! Apache's `broker.conf` as a source of settings: for those who change the broker and keep the file.
//!
//! Each key has a fate (`keys`): it sets one of Gantry's settings, it is ignored and said to be, or it is refused
//! because what it asks for would be done otherwise. A slip of the pen, which Apache's broker would ignore, is refused.

mod keys;
mod properties;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::load::{ConfigError, Source, read_bytes};
use super::settings::{SETTINGS, Setting};
use keys::Fate;
use properties::Pair;

/// A key of a `broker.conf` that has no effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The key.
    pub key: String,
    /// Why it has none.
    pub why: &'static str,
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, key, why } = self;
        write!(f, "{}, line {line}: {key} is ignored: {why}", path.display())
    }
}

/// A value of a `broker.conf` for one of Gantry's settings.
pub(super) struct Given {
    pub setting: &'static Setting,
    /// As Gantry writes it.
    pub text: String,
    pub from: Source,
}

/// What a `broker.conf` says.
#[derive(Default)]
pub(super) struct BrokerConf {
    pub given: Vec<Given>,
    pub ignored: Vec<Ignored>,
}

/// Reads a `broker.conf`.
pub(super) fn read(path: &Path) -> Result<BrokerConf, ConfigError> {
    let pairs = properties::parse(&read_bytes(path)?).map_err(|wrong| ConfigError::BadProperties {
        path: path.to_owned(),
        line: wrong.line,
        wrong: wrong.what,
    })?;
    // Of a key that comes twice the last counts, as in Java.
    let mut last: BTreeMap<String, Pair> = BTreeMap::new();
    for pair in pairs {
        last.insert(pair.key.clone(), pair);
    }
    let mut pairs: Vec<Pair> = last.into_values().collect();
    pairs.sort_by_key(|pair| pair.line);
    let root = pairs.iter().find(|pair| pair.key == "storePathRootDir").map(|pair| pair.value.clone());
    let mut conf = BrokerConf::default();
    for pair in pairs {
        conf.take(path, &pair, root.as_deref())?;
    }
    Ok(conf)
}

impl BrokerConf {
    fn take(&mut self, path: &Path, pair: &Pair, root: Option<&str>) -> Result<(), ConfigError> {
        let Pair { line, key, value } = pair;
        let from = Source::BrokerConf(path.to_owned(), *line, key.clone());
        let refuse = |wrong: String| Err(ConfigError::Value { from: from.clone(), wrong });
        match keys::fate(key) {
            Err(meant) => refuse(format!("there is no such key; did you mean {meant}?")),
            Ok(Fate::Ignored(why)) => {
                self.ignored.push(Ignored { path: path.to_owned(), line: *line, key: key.clone(), why });
                Ok(())
            }
            Ok(Fate::Only(values, why)) => {
                if values.iter().any(|allowed| allowed.eq_ignore_ascii_case(value)) {
                    return Ok(());
                }
                refuse(format!("{value:?} cannot be had: {why}"))
            }
            Ok(Fate::Below(name)) => match root {
                Some(root) if Path::new(value) == Path::new(root).join(name) => Ok(()),
                Some(root) => refuse(format!(
                    "the store is one directory: remove the key, or make it {}",
                    Path::new(root).join(name).display()
                )),
                None => refuse(format!(
                    "the store is one directory: name it with storePathRootDir, and let this be {name} in it"
                )),
            },
            Ok(Fate::Sets(setting, convert)) => match convert(value) {
                Ok(text) => self.set(setting, text, from),
                Err(wrong) => refuse(wrong),
            },
        }
    }

    fn set(&mut self, key: &str, text: String, from: Source) -> Result<(), ConfigError> {
        let setting = SETTINGS.iter().find(|setting| setting.key == key);
        let setting = setting.expect("keys name settings that there are, which a test looks at");
        if let Some(other) = self.given.iter().find(|given| given.setting.key == key && given.text != text) {
            let wrong = format!("it contradicts {}: keep one of them", other.from);
            return Err(ConfigError::Value { from, wrong });
        }
        self.given.push(Given { setting, text, from });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
