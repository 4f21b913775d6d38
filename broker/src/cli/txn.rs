//! `gantry txn`: list transactions, end them, put expired ones back.

use clap::{Args, Subcommand, ValueEnum};
use gantry_client::{EndedTransaction, Resolution, TransactionKind};
use gantry_proto::ids::Millis;
use gantry_proto::remoting::body::transaction::TransactionInfo;
use serde_json::{Value, json};

use super::args::{Consent, Format, Printing, Target};
use super::output::{Failure, Output, time};

/// What to do with transactions.
#[derive(Debug, Subcommand)]
pub enum TxnCommand {
    /// List transactions that wait for their end, or those that nobody ended.
    List(List),
    /// Make the message of an open or expired transaction visible.
    Commit(One),
    /// Drop the message of an open or expired transaction.
    Rollback(Rollback),
    /// Open an expired transaction again: its producer group is asked anew.
    Redrive(One),
}

/// `gantry txn list`.
#[derive(Debug, Args)]
pub struct List {
    /// The transactions that nobody ended, newest first, instead of the open ones, oldest first.
    #[arg(long)]
    expired: bool,
    /// Only those of this producer group.
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Most transactions to list of each broker.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max: u32,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// `gantry txn commit` and `gantry txn redrive`.
#[derive(Debug, Args)]
pub struct One {
    /// The transaction: its id, or the offset message id of its half or parked message.
    id: String,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// `gantry txn rollback`.
#[derive(Debug, Args)]
pub struct Rollback {
    #[command(flatten)]
    one: One,
    #[command(flatten)]
    consent: Consent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Ending {
    Commit,
    Rollback,
}

/// Runs `gantry txn`.
pub async fn run(command: TxnCommand) -> Result<(), Failure> {
    match command {
        TxnCommand::List(args) => list(&args).await,
        TxnCommand::Commit(one) => end(&one, Ending::Commit).await,
        TxnCommand::Rollback(Rollback { one, consent }) => {
            consent.require(&format!("this drops the message of transaction {}", one.id))?;
            end(&one, Ending::Rollback).await
        }
        TxnCommand::Redrive(one) => redrive(&one).await,
    }
}

async fn list(args: &List) -> Result<(), Failure> {
    let client = args.target.connect().await?;
    let kind = if args.expired { TransactionKind::Expired } else { TransactionKind::Open };
    let transactions = client.admin().transactions(kind, args.group.as_deref(), args.max).await?;
    let mut output = Output::new(args.printing.output);
    match output.format() {
        Format::Json => output.json(&transactions.iter().map(info_json).collect::<Vec<_>>())?,
        Format::Text => {
            let rows: Vec<Vec<String>> = transactions.iter().map(info_row).collect();
            let headings = ["TRANSACTION", "STATE", "GROUP", "TOPIC", "BORN", "CHECKS", "NEXT CHECK"];
            output.table(&headings, &rows)?;
        }
    }
    output.flush()?;
    client.shutdown().await;
    Ok(())
}

fn info_json(info: &TransactionInfo) -> Value {
    json!({
        "id": info.transaction_id, "offset_id": info.offset_msg_id,
        "state": info.state.as_str().to_ascii_lowercase(), "group": info.producer_group, "topic": info.topic,
        "born_ms": info.born_timestamp, "stored_ms": info.store_timestamp, "checks": info.checks,
        "next_check_ms": info.next_check_timestamp,
    })
}

fn info_row(info: &TransactionInfo) -> Vec<String> {
    vec![
        info.transaction_id.clone(),
        info.state.as_str().to_ascii_lowercase(),
        info.producer_group.clone(),
        info.topic.clone(),
        time(Millis::new(info.born_timestamp)),
        info.checks.to_string(),
        info.next_check_timestamp.map_or_else(|| "-".to_owned(), |at| time(Millis::new(at))),
    ]
}

/// What a transaction's end is called; `None` when it is not known.
const fn outcome(how: Resolution) -> Option<&'static str> {
    match how {
        Resolution::Commit => Some("committed"),
        Resolution::Rollback => Some("rolled back"),
        Resolution::Unknown => None,
    }
}

async fn end(one: &One, ending: Ending) -> Result<(), Failure> {
    let client = one.target.connect().await?;
    let wanted = match ending {
        Ending::Commit => Resolution::Commit,
        Ending::Rollback => Resolution::Rollback,
    };
    let ended = client.admin().end_transaction(&*one.id, wanted).await?;
    verdict(&one.id, wanted, ended)?;
    let outcome = outcome(wanted).unwrap_or_default();
    done(one, outcome, ended.changed)?;
    client.shutdown().await;
    Ok(())
}

/// Fails unless the transaction stands as it was to be.
fn verdict(id: &str, wanted: Resolution, ended: EndedTransaction) -> Result<(), Failure> {
    if ended.how == wanted {
        return Ok(());
    }
    Err(Failure::Refused(match outcome(ended.how) {
        Some(outcome) => {
            format!("transaction {id} is {outcome} already and stays so; see `gantry consume` on its topic")
        }
        None => format!("transaction {id} had ended before; see `gantry txn list --expired` and its topic"),
    }))
}

async fn redrive(one: &One) -> Result<(), Failure> {
    let client = one.target.connect().await?;
    client.admin().redrive_transaction(&*one.id).await?;
    done(one, "open", true)?;
    client.shutdown().await;
    Ok(())
}

fn done(one: &One, outcome: &str, changed: bool) -> Result<(), Failure> {
    match one.printing.output {
        Format::Text => {
            let before = if changed { "" } else { "; it was before" };
            eprintln!("transaction {} is {outcome}{before}", one.id);
        }
        Format::Json => {
            let mut output = Output::new(one.printing.output);
            output.json(&json!({"id": one.id, "outcome": outcome, "changed": changed}))?;
            output.flush()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_that_stands_otherwise_is_a_refusal() {
        let ended = |how, changed| EndedTransaction { how, changed };
        assert!(verdict("x", Resolution::Commit, ended(Resolution::Commit, true)).is_ok());
        assert!(verdict("x", Resolution::Commit, ended(Resolution::Commit, false)).is_ok());
        for how in [Resolution::Rollback, Resolution::Unknown] {
            let refused = verdict("x", Resolution::Commit, ended(how, false));
            assert!(matches!(refused, Err(Failure::Refused(text)) if text.contains("see `gantry")));
        }
    }
}
