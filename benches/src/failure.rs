//! Why there are no figures.

use std::io;

/// Why a run ended without its figures.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Ctrl-C or SIGTERM.
    #[error("interrupted: everything that was started is stopped")]
    Interrupted,
    /// A debug build was started.
    #[error("this is a debug build, which measures nothing of use: add --release")]
    DebugBuild,
    /// A broker cannot be used here, or failed.
    #[error("{0}; to leave a broker out: --peers")]
    Peer(String),
    /// A load generator gave no report.
    #[error("`{command}` gave no report ({status}): see what it said above")]
    Load {
        /// The command.
        command: String,
        /// How it ended.
        status: String,
    },
    /// The disk has no room for the store of the recovery figure.
    #[error(
        "{free_gib:.0} GiB are free and {needed_gib:.0} are needed: name another --dir or --skip-recovery"
    )]
    NoRoom {
        /// Free bytes, in GiB.
        free_gib: f64,
        /// Needed bytes, in GiB.
        needed_gib: f64,
    },
    /// The kernel's files about a process cannot be read.
    #[error("the kernel does not say what process {0} uses: is it gone? See its log")]
    Process(u32),
    /// Something else of the system.
    #[error("{doing}: {error}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What came of it.
        error: io::Error,
    },
}

impl Failure {
    /// For `map_err`: names what was tried.
    pub fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::System { doing, error }
    }
}
