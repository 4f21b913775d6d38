//! `gantry bench produce`: sends messages.

use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use gantry_client::{Message, Producer, SendStatus};
use gantry_proto::names::TopicName;

use super::super::args::{Delays, delays};
use super::super::output::Failure;
use super::load::{Plan, Schedule, Tally, Turn, Worker, in_turn, lane, phase};
use super::report::Setup;
use super::{Common, Load};

/// `gantry bench produce`.
#[derive(Debug, Args)]
pub struct Produce {
    #[command(flatten)]
    load: Load,
    /// Messages of one request.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    batch: u64,
    /// Make them timer messages, due so much later: a time like `10s`, or two like `10m..40d` over which they are
    /// spread.
    #[arg(long, value_name = "TIME", value_parser = delays, conflicts_with = "batch")]
    delay: Option<Delays>,
    #[command(flatten)]
    common: Common,
}

/// Runs `gantry bench produce`.
pub fn run(args: &Produce) -> Result<(), Failure> {
    let Produce { load, batch, delay, common } = args;
    let (topic, body) = (common.topic()?, load.body());
    let workers = common.workers(1, async |client| {
        common.provide_topic(client, load.queues).await?;
        // What is measured is the broker, not the compression.
        Ok(client.producer(&load.group).compress_above(usize::MAX).start().await?)
    })?;
    let setup = Setup {
        bench: "produce",
        size: Some(load.size),
        batch: *batch,
        rate: load.rate,
        rollback_percent: None,
        groups: None,
    };
    let result = common.measure(load, &setup, |plan| send(&workers, plan, *delay, &topic, &body));
    for worker in workers {
        worker.end(async |producer| producer.shutdown().await);
    }
    result
}

fn send(
    workers: &[Worker<Producer>],
    plan: Plan,
    delay: Option<Delays>,
    topic: &TopicName,
    body: &Bytes,
) -> (Tally, std::time::Duration) {
    let schedule = Arc::new(Schedule::start(plan));
    let bytes_each = body.len() as u64;
    phase(workers, Some(&schedule), |producers, record| {
        let (schedule, producers) = (Arc::clone(&schedule), Arc::clone(producers));
        let message = Message::to(topic.clone(), body.clone());
        async move {
            let operation = async |turn: Turn| {
                let producer = in_turn(&producers, turn.number);
                match (delay, plan.batch) {
                    (Some(delay), _) => {
                        send_one(producer, message.clone().delay(delay.of(turn.number))).await
                    }
                    (None, 1) => send_one(producer, message.clone()).await,
                    (None, _) => send_batch(producer, &message, turn.messages).await,
                }
            };
            lane(schedule, record, bytes_each, operation).await;
        }
    })
}

/// One attempt: what a retry would hide is an error.
pub(super) async fn send_one(producer: &Producer, message: Message) -> Result<(), String> {
    let ticket = producer.send_nowait(message).await.map_err(|error| error.to_string())?;
    let receipt = ticket.await.map_err(|error| error.to_string())?;
    kept(receipt.status)
}

async fn send_batch(producer: &Producer, message: &Message, messages: u64) -> Result<(), String> {
    let batch = (0..messages).map(|_| message.clone());
    let receipts = producer.send_batch(batch).await.map_err(|error| error.to_string())?;
    receipts.iter().try_for_each(|receipt| kept(receipt.status))
}

/// A message that is not kept as the broker's policy asks is an error.
fn kept(status: SendStatus) -> Result<(), String> {
    match status {
        SendStatus::Ok => Ok(()),
        other => {
            Err(format!("a message was stored, but not as safely as asked ({other:?}); see the broker's log"))
        }
    }
}
