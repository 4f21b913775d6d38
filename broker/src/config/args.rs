//! The flags of `gantry serve`: one for each setting, plus the file to read.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::settings::SETTINGS;

/// What stood on the command line.
#[derive(Clone, Debug, Default)]
pub struct ServeArgs {
    /// The TOML file named by `--config`.
    pub config: Option<PathBuf>,
    /// Flag and value, in the order of [`SETTINGS`].
    pub(super) flags: Vec<(&'static str, String)>,
}

impl FromArgMatches for ServeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.config = matches.get_one::<PathBuf>("config").cloned();
        self.flags = SETTINGS
            .iter()
            .filter_map(|setting| Some((setting.flag, matches.get_one::<String>(setting.flag)?.clone())))
            .collect();
        Ok(())
    }
}

impl Args for ServeArgs {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("TOML file to read; flags and environment win over it [env: GANTRY_CONFIG]");
        let flags = SETTINGS.iter().map(|setting| {
            Arg::new(setting.flag)
                .long(setting.flag)
                .value_name(setting.value)
                // Negative numbers reach the setting's own check, which says what is wrong.
                .allow_hyphen_values(true)
                .help(format!("{} [env: {}] [file: {}]", setting.help, setting.env, setting.key))
        });
        command.arg(file).args(flags)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
