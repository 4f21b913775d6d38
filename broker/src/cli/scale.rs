//! `gantry topic scale`: other numbers of queues while a topic is in use, and what `describe` tells of that.

use clap::Args;
use gantry_client::Admin;
use gantry_proto::ids::QueueId;
use gantry_proto::remoting::body::topic::TopicConfig;
use serde_json::{Value, json};

use super::args::{Consent, Printing, Target};
use super::output::{Failure, Output, done};
use super::topic::missing;
use crate::topics::attributes::{SCALE, SCALING};

/// `gantry topic scale`.
#[derive(Debug, Args)]
pub struct Scale {
    /// Name of the topic.
    topic: String,
    /// Queues on each broker. Of fewer than before, those beyond are sealed and stay until every group has read them.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=16_384))]
    queues: i32,
    /// How this and later changes go: `drain`, `ordered` (messages of one sharding key keep their order) or `manual`.
    #[arg(long, value_name = "MODE", value_parser = ["drain", "ordered", "manual"])]
    mode: Option<String>,
    /// Do not wait for the groups: what they have not read of queues that go is given up.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// Runs `gantry topic scale`.
pub async fn run(args: Scale) -> Result<(), Failure> {
    if args.force {
        let what =
            format!("this gives up what groups have not read of queues that topic {} loses", args.topic);
        args.consent.require(&what)?;
    }
    let client = args.target.connect().await?;
    let admin = client.admin();
    let mut config = admin.topic_config(&args.topic).await?.ok_or_else(|| missing(&args.topic))?;
    let before = config.clone();
    config.attributes.remove(SCALING);
    config.attributes.extend(args.mode.map(|mode| (SCALE.to_owned(), mode)));
    (config.read_queue_nums, config.write_queue_nums) = (args.queues, args.queues);
    if args.force {
        admin.force_topic(&config).await?;
    } else {
        admin.create_topic(&config).await?;
    }
    let after = admin.topic_config(&args.topic).await?.ok_or_else(|| missing(&args.topic))?;
    let is_waiting = after.attributes.contains_key(SCALING);
    let outcome = if is_waiting {
        "changing"
    } else if after == before {
        "unchanged"
    } else {
        "changed"
    };
    if is_waiting {
        eprintln!(
            "the change ends when every group has read what is left; see `gantry topic describe {}`",
            args.topic
        );
    }
    done(args.printing, "topic", &args.topic, outcome)?;
    client.shutdown().await;
    Ok(())
}

/// Messages that a group has not committed in a sealed queue.
#[derive(Debug)]
pub(super) struct Left {
    group: String,
    broker: String,
    queue: i32,
    messages: i64,
}

impl Left {
    /// For output in JSON.
    pub(super) fn json(&self) -> Value {
        json!({"group": self.group, "broker": self.broker, "queue": self.queue, "messages": self.messages})
    }
}

fn is_sealed(config: &TopicConfig, id: i32) -> bool {
    config.attributes.contains_key(SCALING) && (config.write_queue_nums..config.read_queue_nums).contains(&id)
}

/// What may be done with a queue.
pub(super) fn state(config: &TopicConfig, id: QueueId) -> &'static str {
    let id = id.to_wire();
    match (id < config.read_queue_nums, id < config.write_queue_nums) {
        (true, true) => "open",
        (true, false) if is_sealed(config, id) => "sealed",
        (true, false) => "read only",
        (false, true) => "write only",
        (false, false) => "gone",
    }
}

/// What groups have yet to read of sealed queues.
pub(super) async fn sealed(admin: &Admin, config: &TopicConfig) -> Result<Vec<Left>, Failure> {
    let mut left = Vec::new();
    if !config.attributes.contains_key(SCALING) {
        return Ok(left);
    }
    let topic = config.topic_name.as_str();
    for group in admin.groups_of_topic(topic).await? {
        let stats = admin.group_stats(&group, Some(topic)).await?;
        for (queue, offsets) in stats.offset_table {
            let messages = offsets.broker_offset - offsets.consumer_offset.max(0);
            if is_sealed(config, queue.queue_id) && messages > 0 {
                let (broker, queue) = (queue.broker_name, queue.queue_id);
                left.push(Left { group: group.clone(), broker, queue, messages });
            }
        }
    }
    left.sort_by(|a, b| (&a.group, &a.broker, a.queue).cmp(&(&b.group, &b.broker, b.queue)));
    Ok(left)
}

/// Prints it, if there is some.
pub(super) fn print(output: &mut Output, left: &[Left]) -> Result<(), Failure> {
    if left.is_empty() {
        return Ok(());
    }
    let row = |left: &Left| {
        vec![left.group.clone(), left.broker.clone(), left.queue.to_string(), left.messages.to_string()]
    };
    output.table(&["GROUP", "BROKER", "SEALED QUEUE", "LEFT"], &left.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_have_a_state() {
        let mut config = TopicConfig { read_queue_nums: 4, write_queue_nums: 2, ..TopicConfig::default() };
        let state = |config: &TopicConfig, id| state(config, QueueId::new(id));
        assert_eq!((state(&config, 1), state(&config, 2), state(&config, 4)), ("open", "read only", "gone"));
        config.attributes.insert(SCALING.to_owned(), "4@1".to_owned());
        assert_eq!((state(&config, 1), state(&config, 2)), ("open", "sealed"));
        config.write_queue_nums = 6;
        assert_eq!(state(&config, 5), "write only");
    }
}
