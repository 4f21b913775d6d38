//! Measures Gantry and Apache RocketMQ side by side: the figures of `benches/README.md`.
//!
//! ```text
//! main ─▶ shapes ─▶ broker: both, in turn      load: `gantry bench`, a process of its own ─▶ report
//!      └▶ alone  ─▶ broker: one at a time      process: what the kernel says of it        ─┘
//! ```
//!
//! Everything it starts ends with its handle, on errors and Ctrl-C too.

mod alone;
mod broker;
mod failure;
mod load;
mod machine;
mod options;
mod process;
mod report;
mod shapes;
mod stats;
mod stop;

use std::process::ExitCode;

use clap::Parser as _;

use failure::Failure;
use machine::Machine;
use options::{Format, Options};
use report::Report;

fn main() -> ExitCode {
    let options = Options::parse();
    let mut report = Report {
        machine: Machine::look(),
        scale: options.scale(),
        smoke: options.quick,
        apache_jvm: options.apache_jvm.clone(),
        runs: Vec::new(),
        figures: Vec::new(),
    };
    let outcome = measure(&options, &mut report);
    // What was measured before something failed was still measured.
    let outcome = if report.is_empty() { outcome } else { print(&report, options.output).and(outcome) };
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
    shapes::run(options, &mut |run| {
        let (kind, measured) = (run.broker.name(), &run.measured);
        eprintln!(
            "{} {} round {} {kind}: {:.0} messages/s, p50 {:.3} ms, p99 {:.3} ms, {:.2} CPU s per million, {} errors",
            run.policy.gantry(),
            run.part.name(),
            run.round,
            measured.messages_per_second,
            measured.latency_ms.p50,
            measured.latency_ms.p99,
            measured.broker.cpu_seconds_per_million.unwrap_or(f64::NAN),
            measured.errors
        );
        if let Some(why) = &measured.first_error {
            eprintln!("  the first error: {why}");
        }
        report.runs.push(run);
    })?;
    report.figures.extend(report.memory_peak());
    alone::run(options, &mut |figure| {
        eprintln!("{}: {:.2} {}", figure.name, figure.gantry, figure.unit);
        report.figures.push(figure);
    })
}

fn print(report: &Report, format: Format) -> Result<(), Failure> {
    match format {
        Format::Markdown => println!("{}", report.markdown()),
        Format::Json => {
            let text = serde_json::to_string_pretty(report);
            println!("{}", text.map_err(|error| Failure::system("writing JSON")(error.into()))?);
        }
    }
    Ok(())
}
