//! The flags of `gantry serve`: one for each setting, plus the files to read. And those of them that commands on a
//! store without a broker take.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::settings::{SETTINGS, Setting};

/// What stood on the command line.
#[derive(Clone, Debug, Default)]
pub struct ServeArgs {
    /// The TOML file named by `--config`.
    pub config: Option<PathBuf>,
    /// The file of Apache's broker named by `--broker-conf`.
    pub broker_conf: Option<PathBuf>,
    /// Flag and value, in the order of [`SETTINGS`].
    pub(super) flags: Vec<(&'static str, String)>,
}

impl ServeArgs {
    fn read(matches: &ArgMatches, settings: impl Iterator<Item = &'static Setting>) -> Self {
        let flag = |setting: &Setting| Some((setting.flag, matches.get_one::<String>(setting.flag)?.clone()));
        Self {
            config: matches.get_one::<PathBuf>("config").cloned(),
            broker_conf: matches.get_one::<PathBuf>("broker-conf").cloned(),
            flags: settings.filter_map(flag).collect(),
        }
    }
}

impl FromArgMatches for ServeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self::read(matches, SETTINGS.iter()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::read(matches, SETTINGS.iter());
        Ok(())
    }
}

impl Args for ServeArgs {
    fn augment_args(command: Command) -> Command {
        augment(command, SETTINGS.iter())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// Which store, and what it was made with: the settings of `gantry serve` that shape its files.
#[derive(Clone, Debug, Default)]
pub struct StoreArgs(pub ServeArgs);

impl StoreArgs {
    fn settings() -> impl Iterator<Item = &'static Setting> {
        const KEYS: [&str; 4] =
            ["store.dir", "store.index_slots", "store.index_entries", "timer.delay_levels"];
        SETTINGS.iter().filter(|setting| KEYS.contains(&setting.key))
    }
}

impl FromArgMatches for StoreArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(ServeArgs::read(matches, Self::settings())))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0 = ServeArgs::read(matches, Self::settings());
        Ok(())
    }
}

impl Args for StoreArgs {
    fn augment_args(command: Command) -> Command {
        augment(command, Self::settings())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn augment(command: Command, settings: impl Iterator<Item = &'static Setting>) -> Command {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help("TOML file to read; flags and environment win over it [env: GANTRY_CONFIG]");
    let apache = Arg::new("broker-conf")
        .long("broker-conf")
        .value_name("FILE")
        .value_parser(clap::value_parser!(PathBuf))
        .help("broker.conf of an Apache broker to read; all else wins over it [env: GANTRY_BROKER_CONF]");
    let flags = settings.map(|setting| {
        Arg::new(setting.flag)
            .long(setting.flag)
            .value_name(setting.value)
            // Negative numbers reach the setting's own check, which says what is wrong.
            .allow_hyphen_values(true)
            .help(format!("{} [env: {}] [file: {}]", setting.help, setting.env, setting.key))
    });
    command.arg(file).arg(apache).args(flags)
}
