//! Fills the configuration: flag over environment over TOML file over `broker.conf` over default.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::apache::{self, Ignored};
use super::settings::{SETTINGS, Setting};
use super::{Config, ServeArgs};

/// Names the TOML file when no flag does.
const FILE_ENV: &str = "GANTRY_CONFIG";

/// Names the `broker.conf` when no flag does.
const BROKER_CONF_ENV: &str = "GANTRY_BROKER_CONF";

/// Bytes of a file that are read at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A flag on the command line, with its dashes.
    Flag(String),
    /// An environment variable.
    Env(String),
    /// A dotted key in this file.
    File(PathBuf, String),
    /// This line and key of an Apache broker's file.
    BrokerConf(PathBuf, usize, String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::File(path, key) => write!(f, "key {key} in {}", path.display()),
            Self::BrokerConf(path, line, key) => write!(f, "{}, line {line}, key {key}", path.display()),
        }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value that is wrong by itself.
    #[error("{from}: {wrong}")]
    Value {
        /// The key and its source.
        from: Source,
        /// What is wrong with it and what to write.
        wrong: String,
    },
    /// A key that means nothing.
    #[error("{}: unknown key {key}: check its spelling and section{}", path.display(), suggestion(key))]
    UnknownKey {
        /// The file it stands in.
        path: PathBuf,
        /// The key with its section.
        key: String,
    },
    /// The file cannot be read.
    #[error("{}: cannot read the configuration file", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The file is not TOML.
    #[error("{}: not a TOML file: {wrong}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Line, column and what was expected.
        wrong: String,
    },
    /// The file is no properties file.
    #[error("{}, line {line}: {wrong}", path.display())]
    BadProperties {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what to write.
        wrong: &'static str,
    },
    /// Two values that cannot hold together.
    #[error("{0}")]
    Contradiction(String),
}

/// The configuration, and what was found on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Keys of the `broker.conf` that have no effect, which people should be told.
    pub ignored: Vec<Ignored>,
}

/// The configuration that flags, environment (`env` looks a variable up) and files give together.
pub fn load(args: &ServeArgs, env: impl Fn(&str) -> Option<OsString>) -> Result<Loaded, ConfigError> {
    let mut config = Config::default();
    let mut ignored = Vec::new();
    if let Some(path) = args.broker_conf.clone().or_else(|| env(BROKER_CONF_ENV).map(PathBuf::from)) {
        let conf = apache::read(&path)?;
        for given in conf.given {
            apply(&mut config, given.setting, &given.text, given.from)?;
        }
        ignored = conf.ignored;
    }
    let file = args.config.clone().or_else(|| env(FILE_ENV).map(PathBuf::from));
    if let Some(path) = file {
        apply_file(&mut config, &path)?;
    }
    for setting in SETTINGS {
        if let Some(value) = env(setting.env) {
            let from = Source::Env(setting.env.to_owned());
            match value.to_str() {
                Some(text) => apply(&mut config, setting, text, from)?,
                None => return Err(ConfigError::Value { from, wrong: "it is not UTF-8".to_owned() }),
            }
        }
    }
    for (flag, text) in &args.flags {
        if let Some(setting) = SETTINGS.iter().find(|setting| setting.flag == *flag) {
            apply(&mut config, setting, text, Source::Flag(format!("--{flag}")))?;
        }
    }
    check(&config)?;
    Ok(Loaded { config, ignored })
}

fn apply(config: &mut Config, setting: &Setting, text: &str, from: Source) -> Result<(), ConfigError> {
    (setting.set)(config, text).map_err(|wrong| ConfigError::Value { from, wrong })
}

fn apply_file(config: &mut Config, path: &Path) -> Result<(), ConfigError> {
    let table: toml::Table = read(path)?.parse().map_err(|error: toml::de::Error| {
        ConfigError::Malformed { path: path.to_owned(), wrong: error.to_string() }
    })?;
    for (section, value) in table {
        let toml::Value::Table(keys) = value else {
            return Err(ConfigError::UnknownKey { path: path.to_owned(), key: section });
        };
        for (name, value) in keys {
            let key = format!("{section}.{name}");
            let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) else {
                return Err(ConfigError::UnknownKey { path: path.to_owned(), key });
            };
            let from = Source::File(path.to_owned(), key);
            let Some(text) = text_of(&value) else {
                let wrong = format!("a {} cannot stand here: write {}", value.type_str(), setting.value);
                return Err(ConfigError::Value { from, wrong });
            };
            apply(config, setting, &text, from)?;
        }
    }
    Ok(())
}

/// A value as a flag would spell it; a list of texts is one text with spaces.
fn text_of(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(on) => Some(on.to_string()),
        toml::Value::Array(items) => {
            let items = items.iter().map(|item| item.as_str().map(str::to_owned));
            Some(items.collect::<Option<Vec<_>>>()?.join(" "))
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    String::from_utf8(read_bytes(path)?).map_err(|error| ConfigError::Unreadable {
        path: path.to_owned(),
        cause: io::Error::new(io::ErrorKind::InvalidData, error),
    })
}

/// All of a file, if it is not too long to be one.
pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let unreadable = |cause| ConfigError::Unreadable { path: path.to_owned(), cause };
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > FILE_BYTES_MAX {
        let what = format!("it has {bytes} bytes, the limit is {FILE_BYTES_MAX}");
        return Err(unreadable(io::Error::other(what)));
    }
    std::fs::read(path).map_err(unreadable)
}

/// What only the whole can tell.
fn check(config: &Config) -> Result<(), ConfigError> {
    let (name, broker) = (config.ports.name, config.ports.broker);
    if name != 0 && (name == broker || (broker != 0 && name == broker - 2)) {
        return Err(ConfigError::Contradiction(format!(
            "the name port {name} is taken by the broker port {broker} or its VIP port: choose another one"
        )));
    }
    let (force, refuse) = (config.retention.force_percent, config.retention.refuse_percent);
    if force > refuse {
        return Err(ConfigError::Contradiction(format!(
            "writes would be refused at {refuse} % disk use before old messages go at {force} %: \
             raise retention.refuse_percent or lower retention.force_percent"
        )));
    }
    let (message, frame) = (config.limits.message_bytes, config.limits.frame_bytes);
    if message > frame {
        return Err(ConfigError::Contradiction(format!(
            "a message of {message} bytes does not fit into a frame of {frame}: \
             raise limits.frame_bytes or lower limits.message_bytes"
        )));
    }
    if u64::from(message) + (64 << 10) > config.store.segment_bytes {
        return Err(ConfigError::Contradiction(format!(
            "a message of {message} bytes does not fit into a log file of {} bytes: \
             raise store.segment_bytes or lower limits.message_bytes",
            config.store.segment_bytes
        )));
    }
    Ok(())
}

/// `; did you mean x?` when a key with the same last part exists.
fn suggestion(key: &str) -> String {
    let last = |key: &str| key.rsplit('.').next().map(str::to_owned);
    let near = SETTINGS
        .iter()
        .find(|setting| last(setting.key) == last(key) || setting.flag.replace('-', "_") == key);
    near.map_or_else(String::new, |setting| format!("; did you mean {}?", setting.key))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::{Args, Command, FromArgMatches};
    use tempfile::TempDir;

    use super::*;
    use crate::config::Policy;

    fn args(words: &[&str]) -> ServeArgs {
        let command = ServeArgs::augment_args(Command::new("serve"));
        let matches = command.try_get_matches_from([&["serve"], words].concat()).expect("the flags exist");
        ServeArgs::from_arg_matches(&matches).expect("reading flags cannot fail")
    }

    fn no_env(_: &str) -> Option<OsString> {
        None
    }

    fn with_file(text: &str, words: &[&str], env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let dir = TempDir::new().expect("a temporary directory");
        let path = dir.path().join("gantry.toml");
        std::fs::write(&path, text).expect("writing the file");
        let mut args = args(words);
        args.config = Some(path);
        let env: Vec<(String, OsString)> = env.iter().map(|(k, v)| ((*k).to_owned(), v.into())).collect();
        let loaded = load(&args, |name| env.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()));
        loaded.map(|loaded| loaded.config)
    }

    #[test]
    fn without_anything_the_defaults_hold() {
        assert_eq!(load(&ServeArgs::default(), no_env).expect("defaults are valid"), Loaded::default());
    }

    #[test]
    fn flag_wins_over_environment_over_file() {
        let file = "[store]\ndir = \"f\"\npolicy = \"memory\"\n[ports]\nname = 1\nbroker = 1000\n";
        let env = [("GANTRY_STORE", "e"), ("GANTRY_NAME_PORT", "2")];
        let config = with_file(file, &["--store", "flag"], &env).expect("all are valid");
        assert_eq!(config.store.dir, PathBuf::from("flag"));
        assert_eq!((config.ports.name, config.ports.broker), (2, 1000));
        assert_eq!(config.store.policy, Policy::Memory);
    }

    #[test]
    fn the_environment_can_name_the_file() {
        let dir = TempDir::new().expect("a temporary directory");
        let path = dir.path().join("g.toml");
        std::fs::write(&path, "[timer]\ndelay_levels = [\"1s\", \"2s\"]\n").expect("writing the file");
        let env = |name: &str| (name == FILE_ENV).then(|| path.clone().into_os_string());
        let config = load(&ServeArgs::default(), env).expect("the file is valid").config;
        assert_eq!(config.timer.delay_levels, [1, 2].map(Duration::from_secs));
    }

    /// Every setting can be given in the file and in the environment, with the value that its help names.
    #[test]
    fn every_setting_has_all_sources() {
        for setting in SETTINGS {
            let value = match setting.key {
                "node.advertise" => "broker.example",
                "node.ready_file" => "ready",
                "node.name_servers" => "ns1:9876",
                _ => setting.help.split_once("[default: ").expect("it has a default").1,
            };
            let value = value.split([';', ']']).next().expect("split gives at least one part");
            let (section, name) = setting.key.split_once('.').expect("keys have sections");
            with_file(&format!("[{section}]\n{name} = \"{value}\"\n"), &[], &[]).expect(setting.key);
            with_file("", &[], &[(setting.env, value)]).expect(setting.env);
            with_file("", &[&format!("--{}={value}", setting.flag)], &[]).expect(setting.flag);
        }
    }

    #[test]
    fn errors_name_key_and_source() {
        let error = |file: &str, words: &[&str], env: &[(&str, &str)]| {
            with_file(file, words, env).expect_err("it is wrong").to_string()
        };
        let text = error("[ports]\nname = 70000\n", &[], &[]);
        assert!(text.contains("key ports.name in ") && text.contains("gantry.toml"), "{text}");
        let text = error("", &[], &[("GANTRY_POLICY", "replicas")]);
        assert!(text.starts_with("environment variable GANTRY_POLICY: the policy replicas"), "{text}");
        let text = error("", &["--name-port", "-1"], &[]);
        assert!(text.starts_with("flag --name-port: \"-1\" is not a number"), "{text}");
        let text = error("[store]\ndir = 1.5\n", &[], &[]);
        assert!(text.contains("a float cannot stand here: write DIR"), "{text}");
    }

    #[test]
    fn unknown_keys_are_errors_with_a_suggestion() {
        let text = with_file("[node]\npolicy = \"disk\"\n", &[], &[]).expect_err("unknown").to_string();
        assert!(
            text.contains("unknown key node.policy") && text.ends_with("did you mean store.policy?"),
            "{text}"
        );
        assert!(
            matches!(with_file("bind = \"::1\"\n", &[], &[]), Err(ConfigError::UnknownKey { key, .. }) if key == "bind")
        );
        assert!(matches!(with_file("[store\n", &[], &[]), Err(ConfigError::Malformed { .. })));
        let missing =
            ServeArgs { config: Some(PathBuf::from("/nonexistent/gantry.toml")), ..ServeArgs::default() };
        assert!(matches!(load(&missing, no_env), Err(ConfigError::Unreadable { .. })));
    }

    #[test]
    fn contradictions_are_refused() {
        for words in [
            ["--name-port", "5", "--broker-port", "5"],
            ["--name-port", "5", "--broker-port", "7"],
            ["--retention-force-percent", "95", "--retention-refuse-percent", "90"],
            ["--max-message-size", "8MiB", "--max-frame-size", "4MiB"],
            ["--max-message-size", "4MiB", "--segment-bytes", "4MiB"],
        ] {
            assert!(matches!(load(&args(&words), no_env), Err(ConfigError::Contradiction(_))), "{words:?}");
        }
        assert!(load(&args(&["--name-port", "0", "--broker-port", "0"]), no_env).is_ok());
    }
}
