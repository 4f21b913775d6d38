//! `gantry consume`: prints messages, one a line, and acknowledges what was printed.
//!
//! It takes every queue of the topic: it does not share them with other members of the group.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use gantry_client::{Client, ErrorKind, MessageQueue, PullConsumer, Received, SeekTo};
use gantry_proto::ids::QueueOffset;
use serde_json::{Value, json};

use super::args::{Format, From, Printing, Target, from, span};
use super::output::{Failure, Output};

/// How long one poll waits before it looks at the clock again.
const POLL: Duration = Duration::from_secs(1);
/// The group that reads without acknowledging.
pub(super) const LOOKER: &str = "gantry-cli";

/// `gantry consume`.
#[derive(Debug, Args)]
pub struct Consume {
    /// Topic to read.
    topic: String,
    /// Consumer group: what is printed is acknowledged for it, and reading goes on where it stopped. Without a
    /// group nothing is acknowledged.
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Where to start in queues in which the group has not acknowledged anything: `first`, `last`, milliseconds
    /// since 1970, or a time like 2026-01-31T23:59:59Z.
    #[arg(long, value_name = "START", default_value = "first", value_parser = from)]
    from: From,
    /// Only messages with one of these tags, like `A || B`.
    #[arg(long, value_name = "TAGS", default_value = "*")]
    filter: String,
    /// Only messages with properties that match an SQL92 expression, like `color = 'red' AND weight > 5`.
    #[arg(long, value_name = "EXPRESSION", conflicts_with = "filter")]
    sql: Option<String>,
    /// Stop after so many messages; without it reading goes on until Ctrl-C.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,
    /// Stop when nothing came for so long, like `5s`.
    #[arg(long, value_name = "TIME", value_parser = span)]
    idle: Option<Duration>,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// Runs `gantry consume`.
pub async fn run(args: Consume) -> Result<(), Failure> {
    let client = args.target.connect().await?;
    let mut printed = 0;
    let result = consume(&args, &client, &mut printed).await;
    let how = if args.group.is_some() { "read and acknowledged" } else { "read" };
    eprintln!("{printed} messages of {} {how}", args.topic);
    client.shutdown().await;
    result
}

async fn consume(args: &Consume, client: &Client, printed: &mut u64) -> Result<(), Failure> {
    let consumer = start(args, client).await?;
    let mut output = Output::new(args.printing.output);
    let mut interrupted = std::pin::pin!(super::interrupted());
    let mut heard = Instant::now();
    loop {
        let left = args.max.map(|max| max.saturating_sub(*printed));
        if left == Some(0) {
            return Ok(());
        }
        let messages = tokio::select! {
            biased;
            () = &mut interrupted => return Ok(()),
            messages = consumer.poll(args.idle.map_or(POLL, |idle| idle.min(POLL))) => messages,
        };
        let mut messages = match messages {
            Ok(messages) => messages,
            // The broker may come back; whoever waits for that has set no limit.
            Err(error) if args.idle.is_none() && is_lost(error.kind()) => {
                eprintln!("waiting for the broker: {error}");
                tokio::time::sleep(POLL).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if messages.is_empty() {
            if args.idle.is_some_and(|idle| heard.elapsed() >= idle) {
                return Ok(());
            }
            continue;
        }
        heard = Instant::now();
        let cut = left.and_then(|left| usize::try_from(left).ok()).is_some_and(|left| {
            let cut = messages.len() > left;
            messages.truncate(left);
            cut
        });
        for message in &messages {
            print(&mut output, message)?;
        }
        output.flush()?;
        *printed += messages.len() as u64;
        if args.group.is_some() {
            acknowledge(&consumer, &messages, cut).await?;
        }
    }
}

const fn is_lost(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Connect | ErrorKind::ConnectionLost | ErrorKind::Timeout)
}

/// A consumer with all queues assigned, each at its start.
async fn start(args: &Consume, client: &Client) -> Result<PullConsumer, Failure> {
    let group = args.group.as_deref().unwrap_or(LOOKER);
    // A long poll that goes on behind a stop would only hold the broker.
    let builder = client.pull_consumer(group).wait(POLL * 5);
    let builder = match &args.sql {
        Some(expression) => builder.sql(expression),
        None => builder.filter(&*args.filter),
    };
    let consumer = builder.start().await?;
    let queues = consumer.queues(&args.topic).await?;
    if queues.is_empty() {
        let topic = &args.topic;
        return Err(Failure::Refused(format!(
            "topic {topic} cannot be read; see `gantry topic describe {topic}`"
        )));
    }
    consumer.assign(queues.iter().cloned());
    for queue in &queues {
        let committed = match args.group {
            Some(_) => consumer.committed(queue).await?,
            None => None,
        };
        let to = match (committed, args.from) {
            (Some(offset), _) => SeekTo::Offset(offset),
            (None, From::First) => SeekTo::Begin,
            (None, From::Last) => SeekTo::End,
            (None, From::Time(time)) => SeekTo::Time(time),
        };
        consumer.seek(queue, to).await?;
    }
    Ok(consumer)
}

/// Commits behind what was printed. Where all of a poll was, what the filter left out is passed too.
async fn acknowledge(consumer: &PullConsumer, messages: &[Received], cut: bool) -> Result<(), Failure> {
    let mut next: BTreeMap<&MessageQueue, QueueOffset> = BTreeMap::new();
    for message in messages {
        next.insert(message.queue(), message.queue_offset() + 1);
    }
    for (queue, behind) in next {
        let offset = if cut { behind } else { consumer.position(queue).unwrap_or(behind) };
        consumer.commit_to(queue, offset).await?;
    }
    Ok(())
}

/// Prints one message on one line.
pub(super) fn print(output: &mut Output, message: &Received) -> Result<(), Failure> {
    match output.format() {
        Format::Text => output.line(message.body()),
        Format::Json => output.json(&message_json(message)),
    }
}

/// A message as JSON. A body that is not UTF-8 stands in `body_hex`.
fn message_json(message: &Received) -> Value {
    let properties: serde_json::Map<String, Value> =
        message.properties().iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    let mut all = json!({
        "topic": message.topic().as_str(), "broker": message.queue().broker.as_str(),
        "queue": message.queue().id.get(), "offset": message.queue_offset().get(),
        "id": message.message_id(), "offset_id": message.offset_message_id().to_string(),
        "tag": message.tag(), "keys": message.keys().collect::<Vec<_>>(), "properties": properties,
        "born_ms": message.born_at().get(), "stored_ms": message.store_at().get(),
        "reconsume_times": message.reconsume_times(),
    });
    let (name, body) = match std::str::from_utf8(message.body()) {
        Ok(text) => ("body", text.to_owned()),
        Err(_) => ("body_hex", hex(message.body())),
    };
    if let Value::Object(fields) = &mut all {
        fields.insert(name.to_owned(), body.into());
    }
    all
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_in_hexadecimal() {
        assert_eq!(hex(&[0, 0xff, 0x1a]), "00ff1a");
    }
}
