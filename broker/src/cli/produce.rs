//! `gantry produce`: sends lines, one message each.
//!
//! Lines are read on a thread of their own; up to [`IN_FLIGHT`] sends are under way at once. They go out in the order
//! of the lines (only one that must be tried again falls behind); so do their receipts.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use gantry_client::{Message, Producer, SendReceipt};
use gantry_proto::ids::Millis;
use gantry_proto::names::TopicName;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::args::{Format, Printing, Target, instant, pair, rate, span};
use super::output::{Failure, Output};

/// Sends under way at once.
const IN_FLIGHT: usize = 64;
/// Lines that are read ahead.
const AHEAD: usize = 256;
/// Longest line, in bytes: what brokers take by default.
const LINE_MAX: usize = 4 * 1024 * 1024;

/// `gantry produce`.
#[derive(Debug, Args)]
pub struct Produce {
    /// Topic to send to.
    topic: String,
    /// File to read, one message a line; `-` is standard input. Empty lines are left out.
    #[arg(long, value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Key of every message; may be given several times.
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
    /// Tag of every message.
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// A property of every message; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    property: Vec<(String, String)>,
    /// Priority of every message: higher ones are popped first.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=i64::from(i32::MAX)))]
    priority: Option<u32>,
    /// Deliver later: delay level 1 to 18, by default 1s 5s 10s 30s 1m 2m … 10m 20m 30m 1h 2h.
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(1..=18))]
    delay: Option<u8>,
    /// Deliver so much later, like `30m` or `40d`.
    #[arg(long, value_name = "TIME", value_parser = span, conflicts_with_all = ["delay", "deliver_at"])]
    deliver_in: Option<Duration>,
    /// Deliver then: milliseconds since 1970, or a time like 2026-01-31T23:59:59Z.
    #[arg(long, value_name = "TIME", value_parser = instant, conflicts_with = "delay")]
    deliver_at: Option<Millis>,
    /// Messages per second at most, like `100/s`.
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<f64>,
    /// Producer group.
    #[arg(long, value_name = "GROUP", default_value = "gantry-cli")]
    group: String,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// Runs `gantry produce`.
pub async fn run(args: Produce) -> Result<(), Failure> {
    TopicName::parse(&args.topic).map_err(|error| Failure::Usage(error.to_string()))?;
    let lines = open(&args)?;
    let client = args.target.connect().await?;
    let producer = client.producer(&args.group).start().await?;
    let mut sending = Sending {
        output: Output::new(args.printing.output),
        under_way: VecDeque::with_capacity(IN_FLIGHT),
        sent: 0,
    };
    let result = send_all(&args, &producer, lines, &mut sending).await;
    eprintln!("{} messages sent to {}", sending.sent, args.topic);
    producer.shutdown().await;
    client.shutdown().await;
    result
}

/// Starts to read; lines come with their number, from 1.
fn open(args: &Produce) -> Result<mpsc::Receiver<Result<Vec<u8>, String>>, Failure> {
    let (sender, lines) = mpsc::channel(AHEAD);
    if args.file.as_os_str() == "-" {
        std::thread::spawn(move || read(io::stdin().lock(), &sender));
    } else {
        let name = args.file.display();
        let file = File::open(&args.file).map_err(|error| {
            Failure::Refused(format!("cannot open {name}: {error}; name a readable file"))
        })?;
        std::thread::spawn(move || read(BufReader::new(file), &sender));
    }
    Ok(lines)
}

/// Reads until the end, an error, or until nobody takes lines any more.
fn read(mut from: impl BufRead, to: &mpsc::Sender<Result<Vec<u8>, String>>) {
    loop {
        let line = next_line(&mut from).transpose();
        let Some(line) = line else { return };
        let last = line.is_err();
        if to.blocking_send(line).is_err() || last {
            return;
        }
    }
}

/// The next line without its end; `None` behind the last one.
fn next_line(from: &mut impl BufRead) -> Result<Option<Vec<u8>>, String> {
    let mut line = Vec::new();
    let limit = LINE_MAX as u64 + 2;
    let got = from.take(limit).read_until(b'\n', &mut line);
    got.map_err(|error| format!("reading failed: {error}; check where the lines come from"))?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    }
    if line.len() > LINE_MAX {
        return Err(format!("a line has more than {LINE_MAX} bytes; send less in one message"));
    }
    Ok(Some(line))
}

fn message(args: &Produce, topic: &TopicName, body: Vec<u8>) -> Message {
    let mut message = Message::to(topic.clone(), body);
    for key in &args.key {
        message = message.key(key);
    }
    if let Some(tag) = &args.tag {
        message = message.tag(tag);
    }
    if let Some(priority) = args.priority {
        message = message.priority(priority);
    }
    for (name, value) in &args.property {
        message = message.property(name, value);
    }
    match (args.delay, args.deliver_in, args.deliver_at) {
        (Some(level), ..) => message.delay_level(level),
        (_, Some(delay), _) => message.delay(delay),
        (_, _, Some(at)) => {
            let since = Duration::from_millis(at.get().max(0).unsigned_abs());
            message.deliver_at(UNIX_EPOCH + since)
        }
        _ => message,
    }
}

async fn send_all(
    args: &Produce,
    producer: &Producer,
    mut lines: mpsc::Receiver<Result<Vec<u8>, String>>,
    sending: &mut Sending,
) -> Result<(), Failure> {
    let topic = TopicName::internal(&args.topic);
    let mut pace = args.rate.map(|rate| tokio::time::interval(Duration::from_secs_f64(1.0 / rate)));
    let mut interrupted = std::pin::pin!(super::interrupted());
    let mut read_error = None;
    loop {
        let line = tokio::select! {
            biased;
            () = &mut interrupted => break,
            settled = sending.settle_oldest(), if !sending.under_way.is_empty() => {
                settled?;
                continue;
            }
            line = lines.recv() => line,
        };
        let body = match line {
            Some(Ok(body)) if body.is_empty() => continue,
            Some(Ok(body)) => body,
            Some(Err(error)) => {
                read_error = Some(Failure::Refused(error));
                break;
            }
            None => break,
        };
        if let Some(pace) = &mut pace {
            tokio::select! {
                biased;
                () = &mut interrupted => break,
                _ = pace.tick() => {}
            }
        }
        // The first one goes alone: it finds the route and connects, and those that waited for that with it would go
        // on in any order.
        if sending.sent == 0 || sending.under_way.len() >= IN_FLIGHT {
            sending.settle_oldest().await?;
        }
        let (producer, message) = (producer.clone(), message(args, &topic, body));
        sending.under_way.push_back(tokio::spawn(async move { producer.send(message).await }));
    }
    while !sending.under_way.is_empty() {
        sending.settle_oldest().await?;
    }
    read_error.map_or(Ok(()), Err)
}

/// Sends under way, oldest first.
struct Sending {
    output: Output,
    under_way: VecDeque<JoinHandle<gantry_client::Result<SendReceipt>>>,
    sent: u64,
}

impl Sending {
    /// Waits until the oldest one is done and prints its receipt. Giving up that wait loses nothing.
    async fn settle_oldest(&mut self) -> Result<(), Failure> {
        let Some(oldest) = self.under_way.front_mut() else { return Ok(()) };
        let done = oldest.await;
        // Only now: whoever gives up waiting must find it again.
        self.under_way.pop_front();
        let receipt = done.map_err(|error| {
            Failure::Refused(format!("a send was cut off: {error}; send the rest again"))
        })??;
        self.sent += 1;
        if self.output.format() == Format::Json {
            self.output.json(&json!({
                "id": receipt.message_id, "offset_id": receipt.offset_message_id,
                "topic": receipt.queue.topic.as_str(), "broker": receipt.queue.broker.as_str(),
                "queue": receipt.queue.id.get(), "offset": receipt.queue_offset.get(),
                "recall_handle": receipt.recall_handle,
            }))?;
        } else if let Some(handle) = &receipt.recall_handle {
            // Nothing else takes the message back.
            self.output.line(handle.as_bytes())?;
        }
        if self.under_way.is_empty() { self.output.flush() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_in_any_way() {
        let mut from = &b"one\ntwo\r\n\nlast"[..];
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut from).unwrap() {
            lines.push(line);
        }
        assert_eq!(lines, [&b"one"[..], b"two", b"", b"last"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_refused() {
        let long = vec![b'x'; LINE_MAX];
        assert_eq!(next_line(&mut &long[..]).unwrap().map(|line| line.len()), Some(LINE_MAX));
        let longer = vec![b'x'; LINE_MAX + 1];
        assert!(next_line(&mut &longer[..]).unwrap_err().contains("send less"));
    }
}
