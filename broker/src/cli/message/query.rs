//! `gantry message query`: stored messages by id, by key, by place, or by when they were stored.

use clap::Args;
use gantry_client::{Client, MessageQueue, PullConsumer, PullStatus, Received};
use gantry_proto::ids::Millis;
use gantry_proto::record::OffsetMsgId;

use crate::cli::args::{Printing, Target, instant};
use crate::cli::consume::{LOOKER, print};
use crate::cli::output::{Failure, Output};

/// Messages of one pull.
const PULL: u32 = 32;

/// `gantry message query`.
#[derive(Debug, Args)]
pub struct Query {
    /// Topic to look in.
    topic: String,
    /// The message with this id, as its producer got it, and its copies.
    #[arg(long, value_name = "ID", conflicts_with_all = ["key", "offset_id", "from", "to", "max"])]
    id: Option<String>,
    /// Messages with this key; with `--from` and `--to` only those of that time.
    #[arg(long, value_name = "KEY", conflicts_with = "offset_id")]
    key: Option<String>,
    /// The message at the place that an offset message id names.
    #[arg(long, value_name = "ID", conflicts_with_all = ["from", "to", "max"])]
    offset_id: Option<OffsetMsgId>,
    /// Messages stored at or after this time: milliseconds since 1970, or like 2026-01-31T23:59:59Z.
    #[arg(long, value_name = "TIME", value_parser = instant)]
    from: Option<Millis>,
    /// Messages stored at or before this time.
    #[arg(long, value_name = "TIME", value_parser = instant)]
    to: Option<Millis>,
    /// Most messages to print; of each broker where a key is asked for.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    max: u32,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// Runs it.
pub async fn run(args: &Query) -> Result<(), Failure> {
    let client = args.target.connect().await?;
    let found = find(args, &client).await;
    client.shutdown().await;
    let found = found?;
    if found.is_empty() {
        let topic = &args.topic;
        return Err(Failure::Refused(format!(
            "topic {topic} has no such message; see `gantry topic describe {topic}`, and check id, key and times"
        )));
    }
    let mut output = Output::new(args.printing.output);
    for message in &found {
        print(&mut output, message)?;
    }
    output.flush()?;
    eprintln!("{} messages of {}", found.len(), args.topic);
    Ok(())
}

async fn find(args: &Query, client: &Client) -> Result<Vec<Received>, Failure> {
    let admin = client.admin();
    let span = (args.from.unwrap_or(Millis::ZERO), args.to.unwrap_or(Millis::MAX));
    if let Some(id) = &args.id {
        return Ok(admin.find_by_message_id(&args.topic, id).await?);
    }
    if let Some(key) = &args.key {
        return Ok(admin.find_by_key(&args.topic, key, span, args.max).await?);
    }
    if let Some(id) = args.offset_id {
        return Ok(vec![admin.view_message(&args.topic, id).await?]);
    }
    if args.from.is_none() && args.to.is_none() {
        let what = "say what to look for: --id, --key, --offset-id, or a time with --from and --to";
        return Err(Failure::Usage(what.to_owned()));
    }
    by_time(args, client, span).await
}

/// Reads every queue from the first message of that time on; what is found is sorted by when it was stored.
async fn by_time(
    args: &Query,
    client: &Client,
    (from, to): (Millis, Millis),
) -> Result<Vec<Received>, Failure> {
    let consumer = client.pull_consumer(LOOKER).start().await?;
    let mut found = Vec::new();
    for queue in consumer.queues(&args.topic).await? {
        // The first ones of each queue: which of them are the first of all is known at the end.
        found.extend(of_queue(&consumer, &queue, (from, to), args.max as usize).await?);
    }
    found.sort_by_key(Received::store_at);
    found.truncate(args.max as usize);
    Ok(found)
}

async fn of_queue(
    consumer: &PullConsumer,
    queue: &MessageQueue,
    (from, to): (Millis, Millis),
    max: usize,
) -> Result<Vec<Received>, Failure> {
    let mut at = match from {
        Millis::ZERO => consumer.min_offset(queue).await?,
        from => consumer.offset_at(queue, from).await?,
    };
    let mut found = Vec::new();
    loop {
        let pulled = consumer.pull(queue, at, PULL).await?;
        for message in pulled.messages {
            if message.store_at() > to || found.len() == max {
                return Ok(found);
            }
            // Of messages stored together the time may be found a little before.
            if message.store_at() >= from {
                found.push(message);
            }
        }
        if pulled.next <= at || matches!(pulled.status, PullStatus::NoNewMessage) {
            return Ok(found);
        }
        at = pulled.next;
    }
}
