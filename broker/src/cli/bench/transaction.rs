//! `gantry bench transaction`: half messages and the end of their transactions.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use gantry_client::{Message, Resolution, TransactionProducer};
use gantry_proto::names::TopicName;

use super::super::output::Failure;
use super::load::{Plan, Schedule, Tally, Turn, Worker, in_turn, lane, phase};
use super::report::Setup;
use super::{Common, Load};

/// `gantry bench transaction`.
#[derive(Debug, Args)]
pub struct Transaction {
    #[command(flatten)]
    load: Load,
    /// Share of transactions that are rolled back, in percent; the others are committed.
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    rollback: u8,
    #[command(flatten)]
    common: Common,
}

/// Runs `gantry bench transaction`. A transaction takes from its half message until its end is answered.
pub fn run(args: &Transaction) -> Result<(), Failure> {
    let Transaction { load, rollback, common } = args;
    let (topic, body) = (common.topic()?, load.body());
    let workers = common.workers(1, async |client| {
        common.provide_topic(client, load.queues).await?;
        // Only what failed is ever asked for: that is an error of this run, and its message is not wanted.
        let producer = client.transaction_producer(&load.group, async |_| Resolution::Rollback);
        Ok(producer.sending(|sending| sending.compress_above(usize::MAX)).start().await?)
    })?;
    let setup = Setup {
        bench: "transaction",
        size: Some(load.size),
        batch: 1,
        rate: load.rate,
        rollback_percent: Some(*rollback),
        groups: None,
    };
    let result = common.measure(load, &setup, |plan| transact(&workers, plan, *rollback, &topic, &body));
    for worker in workers {
        worker.end(async |producer| producer.shutdown().await);
    }
    result
}

fn transact(
    workers: &[Worker<TransactionProducer>],
    plan: Plan,
    rollback: u8,
    topic: &TopicName,
    body: &Bytes,
) -> (Tally, Duration) {
    let schedule = Arc::new(Schedule::start(plan));
    let bytes_each = body.len() as u64;
    phase(workers, Some(&schedule), |producers, record| {
        let (schedule, producers) = (Arc::clone(&schedule), Arc::clone(producers));
        let message = Message::to(topic.clone(), body.clone());
        async move {
            let operation = async |turn: Turn| {
                let open = in_turn(&producers, turn.number)
                    .begin(message.clone())
                    .await
                    .map_err(|error| error.to_string())?;
                let ended = if rolls_back(turn.number, rollback) {
                    open.rollback().await
                } else {
                    open.commit().await
                };
                ended.map_err(|error| error.to_string())
            };
            lane(schedule, record, bytes_each, operation).await;
        }
    })
}

/// Spreads the share evenly over the transactions.
const fn rolls_back(number: u64, percent: u8) -> bool {
    (number % 100 * percent as u64) % 100 + (percent as u64) > 99
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_rollbacks_is_kept() {
        for percent in 0..=100 {
            let count = (0..1000).filter(|number| rolls_back(*number, percent)).count();
            assert_eq!(count, usize::from(percent) * 10, "{percent} %");
        }
    }
}
