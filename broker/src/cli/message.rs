//! `gantry message`: single messages.

mod push;
mod query;
mod trace;

use clap::{Args, Subcommand};

use super::args::{Printing, Target};
use super::output::{Failure, done};

/// What to do with a message.
#[derive(Debug, Subcommand)]
pub enum MessageCommand {
    /// Take a message back that waits for its time.
    Recall(Recall),
    /// Print stored messages by id, by key, by place or by time.
    Query(query::Query),
    /// Show what happened to a message, as its clients wrote it down.
    Trace(trace::Trace),
    /// Have one consumer process a stored message now.
    Push(push::Push),
}

/// `gantry message recall`.
#[derive(Debug, Args)]
pub struct Recall {
    /// The recall handle, as `gantry produce --deliver-in` prints it.
    handle: String,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// Runs `gantry message`.
pub async fn run(command: MessageCommand) -> Result<(), Failure> {
    match command {
        MessageCommand::Recall(args) => recall(&args).await,
        MessageCommand::Query(args) => query::run(&args).await,
        MessageCommand::Trace(args) => trace::run(&args).await,
        MessageCommand::Push(args) => push::run(&args).await,
    }
}

async fn recall(args: &Recall) -> Result<(), Failure> {
    let client = args.target.connect().await?;
    let id = client.admin().recall(&args.handle).await?;
    client.shutdown().await;
    done(args.printing, "message", &id, "recalled")
}
