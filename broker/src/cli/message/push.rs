//! `gantry message push`: has one consumer process a stored message now.

use clap::Args;
use gantry_proto::record::OffsetMsgId;
use gantry_proto::remoting::body::consume::ConsumeResult;
use serde_json::json;

use crate::cli::args::{Format, Printing, Target};
use crate::cli::output::{Failure, Output};

/// `gantry message push`.
#[derive(Debug, Args)]
pub struct Push {
    /// The message's offset message id: `offset_id` in what `gantry message query --output json` prints.
    id: OffsetMsgId,
    /// The consumer group.
    #[arg(long, value_name = "GROUP")]
    group: String,
    /// The member that is to process it, as `gantry group describe` lists it.
    #[arg(long, value_name = "CLIENT")]
    client: String,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// Runs it.
pub async fn run(args: &Push) -> Result<(), Failure> {
    let client = args.target.connect().await?;
    let result = client.admin().consume_directly(&args.group, &args.client, args.id).await;
    client.shutdown().await;
    let result = result?;
    let outcome = result.consume_result.as_ref().map_or_else(|| "unknown".to_owned(), ToString::to_string);
    let remark = result.remark.clone().unwrap_or_default();
    match args.printing.output {
        Format::Text => {
            eprintln!("message {} processed in {} ms: {outcome} {remark}", args.id, result.spent_time_mills);
        }
        Format::Json => {
            let mut output = Output::new(args.printing.output);
            output.json(&json!({
                "message": args.id.to_string(), "client": args.client, "outcome": outcome,
                "cost_ms": result.spent_time_mills, "remark": result.remark,
            }))?;
            output.flush()?;
        }
    }
    match result.consume_result {
        Some(ConsumeResult::Success | ConsumeResult::Commit) => Ok(()),
        _ => Err(Failure::Refused(format!(
            "member {} did not accept the message: {outcome} {remark}; see its log",
            args.client
        ))),
    }
}
