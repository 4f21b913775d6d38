//! Apache's official clients, 5.5.0 and 4.9.8, against Gantry: every scenario of the Java suite, with a restart
//! of the broker in the middle.
//!
//! Run one suite alone: `cargo test -p gantry-tests --test java_clients suite5`; with `SUITE_ONLY=NAME,NAME` in
//! the environment these scenarios alone.

use std::time::Duration;

use gantry_tests::harness::Gantry;
use gantry_tests::java::{self, Answer, Module, Output};

/// A suite takes about a minute; more on a busy machine.
const WITHIN: Duration = Duration::from_secs(300);
/// The scenarios wait for back-checks: early ones, twice at the same distance.
const TRANSACTIONS: [&str; 4] = ["--transaction-timeout", "2s", "--transaction-check-interval", "2s"];

/// Their producers hear of other queues at once.
const SCALING: [&str; 2] = ["--scale-grace", "4s"];

/// How the broker goes down in the middle.
#[derive(Clone, Copy, Debug)]
enum Restart {
    /// As an operator stops it.
    Terminate,
    /// As a crash does.
    Kill,
}

#[test]
fn suite5_on_disk_restarted_by_an_operator() {
    suite(Module::Suite5, "disk", Restart::Terminate);
}

#[test]
fn suite4_in_memory_restarted_by_a_crash() {
    suite(Module::Suite4, "memory", Restart::Kill);
}

fn suite(module: Module, policy: &str, how: Restart) {
    let dir = match java::module(module) {
        Ok(dir) => dir,
        Err(why) => return java::skip(&why),
    };
    let mut flags = vec!["--policy", policy];
    flags.extend(TRANSACTIONS.iter().chain(&SCALING));
    let mut gantry = Gantry::start(&flags);
    let name_server = gantry.name_server().to_string();
    let mut arguments = vec!["--namesrv", name_server.as_str()];
    let only = std::env::var("SUITE_ONLY").ok();
    if let Some(only) = &only {
        arguments.extend(["--only", only]);
    }
    let mut restarts = 0;
    let output = java::run(&dir, "gantry.suite.Main", &arguments, WITHIN, |line| {
        if line != "RESTART-PLEASE" {
            return Answer::Nothing;
        }
        match how {
            Restart::Terminate => gantry.terminate(),
            Restart::Kill => gantry.kill9(),
        }
        gantry.restart();
        restarts += 1;
        Answer::Line("restarted")
    });
    let output = output.expect("java runs");
    assert_passed(&output);
    assert!(restarts == 1 || only.is_some(), "expected one request for a restart, found {restarts}");
}

fn assert_passed(output: &Output) {
    let failures: Vec<_> = output.lines.iter().filter(|line| !line.starts_with("ok ")).collect();
    let summary = output.lines.last().map(String::as_str).unwrap_or_default();
    assert!(
        output.code == Some(0) && summary.ends_with(" passed, 0 failed"),
        "expected exit code 0 and no failure, found {:?} and\n{failures:#?}\nstandard error:\n{}",
        output.code,
        output.stderr
    );
}
