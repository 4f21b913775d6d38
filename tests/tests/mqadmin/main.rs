//! What Apache's operators ask: each command of `mqadmin` 5.5.0 by the real tool, each request code by itself, and what the dashboard asks. The tables
//! of `docs/compatibility.md` are held against what is seen here.
//!
//! With `GANTRY_WRITE_TABLES=1` in the environment the tables are written instead: run the tests one after the other
//! (`--test-threads=1`), for that of the requests names the commands that send them.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod commands;
mod requests;
mod screens;
mod table;
