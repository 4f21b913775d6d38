//! The `gantry` binary: everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    gantry_broker::cli::run()
}
