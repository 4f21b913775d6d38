//! `gantry group reset` and `gantry group clone-offset`: operators move groups.

use clap::Args;
use gantry_client::{Client, MessageQueue, SeekTo};
use gantry_proto::ids::QueueOffset;
use serde_json::{Value, json};

use super::broadcasters::offsets_of;
use crate::cli::args::{Consent, Format, From, Printing, Target, from};
use crate::cli::output::{Failure, Output, done};

/// `gantry group reset`.
#[derive(Debug, Args)]
pub struct Reset {
    /// Name of the group.
    group: String,
    /// Topic in which it is to go on elsewhere.
    #[arg(long, value_name = "TOPIC")]
    topic: String,
    /// Where it goes on: `first`, `last`, milliseconds since 1970, or a time like 2026-01-31T23:59:59Z.
    #[arg(long, value_name = "PLACE", value_parser = from, required_unless_present = "offset")]
    to: Option<From>,
    /// The same as an offset.
    #[arg(long, value_name = "N", conflicts_with = "to")]
    offset: Option<u64>,
    /// Only queues with this number.
    #[arg(long, value_name = "N")]
    queue: Option<u32>,
    /// Only queues of this broker.
    #[arg(long, value_name = "BROKER")]
    broker: Option<String>,
    /// Only this member, if the group broadcasts and keeps its members' offsets with the broker. It goes there when it starts next.
    #[arg(long, value_name = "NAME")]
    member: Option<String>,
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// `gantry group clone-offset`.
#[derive(Debug, Args)]
pub struct CloneOffset {
    /// The group that stands where the other one is to go on.
    source: String,
    /// The group that is moved; it is made if there is none.
    group: String,
    /// Only this topic.
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Clone offsets of topics, too, that the online members of the source do not subscribe to any more.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// Runs `gantry group reset`.
pub async fn reset(args: &Reset) -> Result<(), Failure> {
    let what = format!("this moves group {} in topic {}", args.group, args.topic);
    args.consent.require(&what)?;
    let client = args.target.connect().await?;
    let moved = move_queues(args, &client).await;
    client.shutdown().await;
    let moved = moved?;
    if moved.is_empty() {
        let topic = &args.topic;
        return Err(Failure::Refused(format!(
            "topic {topic} has no such queue; see `gantry topic describe {topic}`"
        )));
    }
    let mut output = Output::new(args.printing.output);
    match output.format() {
        Format::Json => {
            let queue = |(queue, offset): &(MessageQueue, QueueOffset)| -> Value {
                json!({
                    "topic": queue.topic.as_str(), "broker": queue.broker.as_str(), "queue": queue.id.get(),
                    "offset": offset.get(),
                })
            };
            output.json(&moved.iter().map(queue).collect::<Vec<_>>())?;
        }
        Format::Text => {
            let row = |(queue, offset): &(MessageQueue, QueueOffset)| {
                vec![
                    queue.topic.to_string(),
                    queue.broker.to_string(),
                    queue.id.to_string(),
                    offset.to_string(),
                ]
            };
            let rows: Vec<Vec<String>> = moved.iter().map(row).collect();
            output.table(&["TOPIC", "BROKER", "QUEUE", "OFFSET"], &rows)?;
        }
    }
    output.flush()
}

async fn move_queues(args: &Reset, client: &Client) -> Result<Vec<(MessageQueue, QueueOffset)>, Failure> {
    let to = match (args.offset, args.to) {
        (Some(offset), _) => SeekTo::Offset(QueueOffset::new(offset)),
        (None, Some(From::First)) => SeekTo::Begin,
        (None, Some(From::Time(time))) => SeekTo::Time(time),
        (None, Some(From::Last) | None) => SeekTo::End,
    };
    let group = match &args.member {
        Some(member) => offsets_of(&args.group, member)?,
        None => args.group.clone(),
    };
    let admin = client.admin();
    let mut moved = Vec::new();
    for queue in admin.read_queues(&args.topic).await? {
        let is_meant = args.queue.is_none_or(|id| queue.id.get() == id)
            && args.broker.as_deref().is_none_or(|broker| queue.broker.as_str() == broker);
        if is_meant {
            let offset = admin.reset_queue(&group, &queue, to).await?;
            moved.push((queue, offset));
        }
    }
    Ok(moved)
}

/// Runs `gantry group clone-offset`.
pub async fn clone(args: &CloneOffset) -> Result<(), Failure> {
    let CloneOffset { source, group, .. } = args;
    args.consent.require(&format!("this moves group {group} to where {source} stands"))?;
    let client = args.target.connect().await?;
    let cloned = client.admin().clone_offsets(source, group, args.topic.as_deref(), args.all).await;
    client.shutdown().await;
    cloned?;
    done(args.printing, "group", group, "moved")
}
