//! `gantry message trace`: what clients wrote down about a message, as a timeline.

use clap::Args;
use gantry_client::Traced;
use gantry_proto::ids::Millis;
use gantry_proto::trace::Event;
use serde_json::{Value, json};

use crate::cli::args::{Format, Printing, Target};
use crate::cli::output::{Failure, Output, time};

/// `gantry message trace`.
#[derive(Debug, Args)]
pub struct Trace {
    /// The message's id, as its producer got it.
    #[arg(long, value_name = "ID")]
    id: String,
    /// The topic that clients write their traces to.
    #[arg(long, value_name = "TOPIC", default_value = "RMQ_SYS_TRACE_TOPIC")]
    topic: String,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// Runs it.
pub async fn run(args: &Trace) -> Result<(), Failure> {
    let client = args.target.connect().await?;
    let traces = client.admin().message_traces(&args.id, Some(&args.topic)).await?;
    client.shutdown().await;
    if traces.is_empty() {
        return Err(Failure::Refused(format!(
            "no client has written a trace of {} to {}; check the id, let producers and consumers write traces, and \
             wait some seconds",
            args.id, args.topic
        )));
    }
    let mut output = Output::new(args.printing.output);
    match output.format() {
        Format::Json => output.json(&traces.iter().map(trace_json).collect::<Vec<_>>())?,
        Format::Text => {
            let rows: Vec<Vec<String>> = traces.iter().map(row).collect();
            output.table(&["TIME", "EVENT", "GROUP", "CLIENT", "COST", "RESULT", "DETAILS"], &rows)?;
        }
    }
    output.flush()
}

fn row(traced: &Traced) -> Vec<String> {
    let Traced { trace, client } = traced;
    let done = |success: bool| if success { "success" } else { "failed" }.to_owned();
    let (cost, result, details) = match &trace.event {
        Event::Pub(sent) => (
            format!("{} ms", sent.cost_ms),
            done(sent.success),
            format!("{} {} of {} bytes to {}", sent.kind, sent.topic, sent.body_bytes, sent.store_host),
        ),
        Event::SubBefore { retries, .. } => (String::new(), String::new(), format!("retry {retries}")),
        Event::SubAfter { cost_ms, code, .. } => (format!("{cost_ms} ms"), code.to_string(), String::new()),
        Event::EndTransaction(end) => {
            let origin = if end.from_check { "asked by the broker" } else { "by itself" };
            (String::new(), end.state.to_string(), format!("{} {origin}", end.transaction_id))
        }
        Event::Recall { topic, success } => (String::new(), done(*success), topic.clone()),
    };
    let at = time(trace.at.unwrap_or(Millis::ZERO));
    vec![at, trace.event.name().to_owned(), trace.group.clone(), client.to_string(), cost, result, details]
}

fn trace_json(traced: &Traced) -> Value {
    let Traced { trace, client } = traced;
    let mut all = json!({
        "event": trace.event.name(), "at_ms": trace.at.map(Millis::get), "group": trace.group,
        "client": client.to_string(), "region": trace.region, "id": trace.message_id,
        "keys": trace.keys.split_whitespace().collect::<Vec<_>>(),
    });
    let more = match &trace.event {
        Event::Pub(sent) => json!({
            "topic": sent.topic, "tag": sent.tags, "store_host": sent.store_host, "body_bytes": sent.body_bytes,
            "cost_ms": sent.cost_ms, "kind": sent.kind.to_string(), "offset_id": sent.offset_id,
            "success": sent.success,
        }),
        Event::SubBefore { request_id, retries } => json!({"request_id": request_id, "retries": retries}),
        Event::SubAfter { request_id, cost_ms, success, code } => json!({
            "request_id": request_id, "cost_ms": cost_ms, "success": success, "result": code.to_string(),
        }),
        Event::EndTransaction(end) => json!({
            "topic": end.topic, "tag": end.tags, "store_host": end.store_host, "kind": end.kind.to_string(),
            "transaction_id": end.transaction_id, "state": end.state.to_string(), "from_check": end.from_check,
        }),
        Event::Recall { topic, success } => json!({"topic": topic, "success": success}),
    };
    if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
        all.extend(more);
    }
    all
}
