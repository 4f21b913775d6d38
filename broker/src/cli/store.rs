//! `gantry store`: looks at a store that no broker runs on.

use std::io::{IsTerminal as _, Write as _};

use clap::{Args, Subcommand};
use serde_json::json;

use super::args::{Format, Printing};
use super::output::{self, Failure, Output};
use crate::config::StoreArgs;
use crate::store::index::IndexOptions;
use crate::store::inspect::{Closed, Report, VerifyOptions, verify};
use crate::timer::Levels;

#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Check every record, queue entry and key against each other. Changes nothing.
    Verify(Verify),
}

#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    store: StoreArgs,
    /// Findings printed of each part of the store; all are counted.
    #[arg(long, default_value_t = 20, value_name = "N")]
    findings: usize,
    #[command(flatten)]
    printing: Printing,
}

/// Runs `gantry store`.
pub fn run(command: StoreCommand) -> Result<(), Failure> {
    match command {
        StoreCommand::Verify(args) => run_verify(&args),
    }
}

fn run_verify(args: &Verify) -> Result<(), Failure> {
    let config = crate::config::load(&args.store.0, |name| std::env::var_os(name))
        .map_err(|error| Failure::Usage(output::text(&error)))?
        .config;
    let options = VerifyOptions {
        index: IndexOptions { slots: config.store.index_slots, entries: config.store.index_entries },
        delay_levels: Levels::new(&config.timer).delays_ms(),
        findings_max: args.findings,
    };
    let on_terminal = std::io::stderr().is_terminal();
    let mut shown = u64::MAX;
    let mut progress = |done: u64, total: u64| {
        let percent = done.saturating_mul(100) / total.max(1);
        if on_terminal && percent != shown {
            shown = percent;
            eprint!("\r{percent:3} % of the log");
            let _ = std::io::stderr().flush(); // only a progress line would be late
        }
    };
    let looked = verify(&config.store.dir, &options, &mut progress);
    if on_terminal && shown != u64::MAX {
        eprintln!();
    }
    let report = looked.map_err(|error| Failure::Refused(output::text(&error)))?;
    let mut output = Output::new(args.printing.output);
    match output.format() {
        Format::Text => print_text(&mut output, &report)?,
        Format::Json => print_json(&mut output, &report)?,
    }
    output.flush()?;
    match report.findings.damage() {
        0 => Ok(()),
        damage => Err(Failure::Refused(format!(
            "the store is damaged, {damage} findings: each says what to try; keep a copy before you change anything"
        ))),
    }
}

fn print_text(output: &mut Output, report: &Report) -> Result<(), Failure> {
    let counts = &report.counts;
    let state = match report.closed {
        Closed::Cleanly => "cleanly",
        Closed::Crashed => "not: the next start recovers it; checked is what that would keep",
    };
    let rows = [
        ("closed", state.to_owned()),
        ("log files", counts.log_files.to_string()),
        ("log", format!("{} to {}", counts.log_start, counts.log_end)),
        ("records", counts.records.to_string()),
        ("queues", counts.queues.to_string()),
        ("queue files", counts.queue_files.to_string()),
        ("entries", counts.entries.to_string()),
        ("index files", counts.index_files.to_string()),
        ("keys", counts.keys.to_string()),
        ("config files", counts.config_files.to_string()),
        ("damage", report.findings.damage().to_string()),
        ("mended at the next start", report.findings.mended().to_string()),
    ];
    let sometimes = [
        ("damaged stretches", counts.damaged_stretches),
        ("damaged bytes", counts.damaged_bytes),
        ("gaps", counts.gaps),
        ("gap bytes", counts.gap_bytes),
        ("blank entries", counts.blank_entries),
        ("entries of expired records", counts.expired_entries),
        ("entries to come", counts.entries_to_come),
        ("records of deleted topics", counts.records_of_deleted_topics),
        ("keys of expired records", counts.expired_keys),
        ("keys to come", counts.keys_to_come),
    ];
    let sometimes = sometimes.into_iter().filter(|(_, count)| *count > 0);
    let rows: Vec<_> =
        rows.into_iter().chain(sometimes.map(|(name, count)| (name, count.to_string()))).collect();
    output.fields(&rows)?;
    for finding in report.findings.iter() {
        output.line(finding.to_string().as_bytes())?;
    }
    if report.findings.more() > 0 {
        let more = format!("… and {} more: --findings N prints more", report.findings.more());
        output.line(more.as_bytes())?;
    }
    Ok(())
}

fn print_json(output: &mut Output, report: &Report) -> Result<(), Failure> {
    let findings: Vec<_> = report.findings.iter().collect();
    output.json(&json!({
        "closed": report.closed,
        "flushed": report.flushed,
        "counts": report.counts,
        "damage": report.findings.damage(),
        "mended": report.findings.mended(),
        "gaps": report.findings.gaps(),
        "findings": findings,
        "more": report.findings.more(),
    }))
}
