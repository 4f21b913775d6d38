//! Measures Gantry and other brokers in turn: the figures of `benches/README.md`.
//!
//! ```text
//! main ─▶ limits: the bare machine
//!      ├▶ rounds, stored ─▶ seat: a broker on its store; all of them, in turn   (plan: which load, how often)
//!      └▶ alone          ─▶ seat: one at a time                                 ─▶ report: Markdown, JSON, HTML
//! ```
//!
//! Brokers, load generators and what the kernel says of them are the library of this crate. Everything it starts
//! ends with its handle, on errors and Ctrl-C too.

mod alone;
mod limits;
mod machine;
mod options;
mod plan;
mod report;
mod rounds;
mod seat;
mod stats;
mod stored;
mod timers;

use std::fs;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser as _;
use gantry_benches::failure::Failure;
use gantry_benches::load::Load;
use gantry_benches::peer::{Kind, Peer};
use gantry_benches::stop;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use options::{Options, Part};
use report::Report;

/// The brokers that can be measured here.
pub struct Brokers(Vec<(Kind, Box<dyn Peer>)>);

impl Brokers {
    /// Installs what is asked for; what cannot be is a line of the report.
    fn provide(options: &Options, report: &mut Report) -> Result<Self, Failure> {
        let mut brokers = Vec::new();
        for kind in options.kinds() {
            let peer = kind.peer(&options.settings());
            eprintln!("providing {}", kind.name());
            match peer.provide() {
                Ok(()) => {
                    report.broker(kind, peer.settings());
                    brokers.push((kind, peer));
                }
                Err(failure) => report.failed(kind, "installation", &failure)?,
            }
        }
        Ok(Self(brokers))
    }

    /// Those of which any of these parts is to be measured.
    fn of<'a>(&'a self, parts: &[Part], options: &Options) -> impl Iterator<Item = (Kind, &'a dyn Peer)> {
        let wanted: Vec<_> = self
            .0
            .iter()
            .filter(|(kind, _)| parts.iter().any(|part| options.wants_of(*part, *kind)))
            .map(|(kind, peer)| (*kind, peer.as_ref()))
            .collect();
        wanted.into_iter()
    }

    /// Whether a broker has what a load asks for.
    fn can(&self, kind: Kind, load: &Load) -> bool {
        self.0.iter().any(|(found, peer)| *found == kind && peer.can(load))
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut report = Report::new(&options);
    let outcome = measure(&options, &mut report);
    // What was measured before something failed was still measured.
    let outcome = if report.is_empty() { outcome } else { publish(&report, &options).and(outcome) };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options, report: &mut Report) -> Result<(), Failure> {
    if cfg!(debug_assertions) {
        return Err(Failure::DebugBuild);
    }
    stop::listen().map_err(Failure::system("catching signals"))?;
    allow_many_files();
    let since = Instant::now();
    let brokers = Brokers::provide(options, report)?;
    if options.wants(Part::Limits) {
        limits::measure(options, &mut report.limits)?;
    }
    let measured =
        rounds::run(&brokers, options, report).and_then(|()| alone::run(&brokers, options, report));
    report.minutes = since.elapsed().as_secs_f64() / 60.0;
    measured?;
    if options.wants(Part::Limits) {
        limits::measure(options, &mut report.limits)?;
    }
    report.minutes = since.elapsed().as_secs_f64() / 60.0;
    Ok(())
}

/// Thousands of connections are files, of the brokers and of the load generator, which inherit this limit.
fn allow_many_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Without it the shapes with many connections say what is missing.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

fn publish(report: &Report, options: &Options) -> Result<(), Failure> {
    println!("{}", report.markdown());
    if let Some(path) = &options.json {
        let text = serde_json::to_string(report).map_err(std::io::Error::from);
        let text = text.map_err(Failure::system("making JSON"))?;
        fs::write(path, text).map_err(Failure::system("writing the file of --json"))?;
    }
    if let Some(path) = &options.html {
        fs::write(path, report.html()).map_err(Failure::system("writing the file of --html"))?;
    }
    Ok(())
}
