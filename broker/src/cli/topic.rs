//! `gantry topic`: create, change, scale, list, describe, delete.

use clap::{ArgGroup, Args, Subcommand};
use gantry_client::{Admin, MessageQueue};
use gantry_proto::ids::Millis;
use gantry_proto::names::TopicKind;
use gantry_proto::remoting::body::topic::TopicConfig;
use serde_json::json;

use super::args::{Consent, Format, Printing, Target, pair};
use super::output::{Failure, Output, done, time};
use super::scale::{self, Scale};
use crate::topics::attributes::MESSAGE_TYPE;

const MESSAGE_TYPES: [&str; 7] =
    ["NORMAL", "FIFO", "DELAY", "TRANSACTION", "PRIORITY", "MIXED", "UNSPECIFIED"];
const READ: i32 = 4;
const WRITE: i32 = 2;

/// What to do with topics.
#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// Create a topic on every broker.
    Create(Create),
    /// Change the number of a topic's queues while it is in use.
    Scale(Scale),
    /// Change a topic: only what is named.
    Set(Set),
    /// List topics.
    List(List),
    /// Show a topic's configuration and queues.
    Describe(Describe),
    /// Delete a topic and its messages.
    Delete(Delete),
}

/// `gantry topic create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Name of the topic.
    topic: String,
    /// Number of queues on each broker.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(i32).range(1..=65536))]
    queues: i32,
    /// What clients may do: `rw`, `r` or `w`.
    #[arg(long, value_name = "PERM", default_value = "rw", value_parser = perm)]
    perm: i32,
    /// What is sent to it, like NORMAL, FIFO, DELAY, TRANSACTION, PRIORITY or MIXED.
    #[arg(long, value_name = "TYPE", ignore_case = true, value_parser = MESSAGE_TYPES)]
    message_type: Option<String>,
    /// An attribute, like `gantry.scale=ordered`; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    attribute: Vec<(String, String)>,
    /// Change the topic if it exists.
    #[arg(long)]
    update: bool,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// `gantry topic set`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true))]
pub struct Set {
    /// Name of the topic.
    topic: String,
    /// What clients may do: `rw`, `r` or `w`.
    #[arg(long, value_name = "PERM", group = "change", value_parser = perm)]
    perm: Option<i32>,
    /// An attribute, like `gantry.rate=100`; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", group = "change", value_parser = pair)]
    attribute: Vec<(String, String)>,
    /// An attribute that the topic is not to have any more; may be given several times.
    #[arg(long, value_name = "NAME", group = "change")]
    remove_attribute: Vec<String>,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// `gantry topic list`.
#[derive(Debug, Args)]
pub struct List {
    /// Show the topics of the system, of retries and of dead letters too.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// `gantry topic describe`.
#[derive(Debug, Args)]
pub struct Describe {
    /// Name of the topic.
    topic: String,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// `gantry topic delete`.
#[derive(Debug, Args)]
pub struct Delete {
    /// Name of the topic.
    topic: String,
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

fn perm(text: &str) -> Result<i32, String> {
    match text {
        "rw" => Ok(READ | WRITE),
        "r" => Ok(READ),
        "w" => Ok(WRITE),
        _ => Err("write rw, r or w".to_owned()),
    }
}

fn perm_text(perm: i32) -> String {
    let mut text = String::new();
    for (bit, letter) in [(READ, 'r'), (WRITE, 'w')] {
        if perm & bit != 0 {
            text.push(letter);
        }
    }
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Runs `gantry topic`.
pub async fn run(command: TopicCommand) -> Result<(), Failure> {
    match command {
        TopicCommand::Create(args) => create(args).await,
        TopicCommand::Scale(args) => scale::run(args).await,
        TopicCommand::Set(args) => set(args).await,
        TopicCommand::List(args) => list(&args).await,
        TopicCommand::Describe(args) => describe(&args).await,
        TopicCommand::Delete(args) => delete(&args).await,
    }
}

async fn create(args: Create) -> Result<(), Failure> {
    let client = args.target.connect().await?;
    let admin = client.admin();
    let message_type = args.message_type.map(|kind| (MESSAGE_TYPE.to_owned(), kind.to_uppercase()));
    let wanted = TopicConfig {
        topic_name: args.topic,
        read_queue_nums: args.queues,
        write_queue_nums: args.queues,
        perm: args.perm,
        attributes: args.attribute.into_iter().chain(message_type).collect(),
        ..TopicConfig::default()
    };
    let existing = admin.topic_config(&wanted.topic_name).await?;
    let outcome = match &existing {
        None => "created",
        Some(there) if same(there, &wanted) => "unchanged",
        Some(_) if args.update => "changed",
        Some(there) => {
            return Err(Failure::Refused(format!(
                "topic {} exists with {} queues and permission {}; add --update to change it",
                there.topic_name,
                there.write_queue_nums,
                perm_text(there.perm)
            )));
        }
    };
    if outcome != "unchanged" {
        admin.create_topic(&wanted).await?;
    }
    done(args.printing, "topic", &wanted.topic_name, outcome)?;
    client.shutdown().await;
    Ok(())
}

async fn set(args: Set) -> Result<(), Failure> {
    let client = args.target.connect().await?;
    let admin = client.admin();
    let there = admin.topic_config(&args.topic).await?.ok_or_else(|| missing(&args.topic))?;
    let mut wanted = TopicConfig { perm: args.perm.unwrap_or(there.perm), ..there.clone() };
    wanted.attributes.extend(args.attribute);
    for name in &args.remove_attribute {
        wanted.attributes.remove(name);
    }
    let outcome = if wanted == there { "unchanged" } else { "changed" };
    if wanted != there {
        let removed = args.remove_attribute.iter().map(|name| (format!("-{name}"), String::new()));
        wanted.attributes.extend(removed);
        admin.create_topic(&wanted).await?;
    }
    done(args.printing, "topic", &args.topic, outcome)?;
    client.shutdown().await;
    Ok(())
}

fn same(there: &TopicConfig, wanted: &TopicConfig) -> bool {
    (there.read_queue_nums, there.write_queue_nums, there.perm)
        == (wanted.read_queue_nums, wanted.write_queue_nums, wanted.perm)
        && wanted.attributes.iter().all(|(name, value)| there.attributes.get(name) == Some(value))
}

const fn kind_text(kind: TopicKind) -> &'static str {
    match kind {
        TopicKind::User => "user",
        TopicKind::Retry => "retry",
        TopicKind::DeadLetter => "dlq",
        _ => "system",
    }
}

async fn list(args: &List) -> Result<(), Failure> {
    let client = args.target.connect().await?;
    // A broker and a cluster own topics of their names, and a cluster one for replies.
    let cluster = client.admin().cluster().await?;
    let owned = |name: &str| {
        cluster.broker_addr_table.contains_key(name)
            || cluster.cluster_addr_table.contains_key(name.strip_suffix("_REPLY_TOPIC").unwrap_or(name))
    };
    let kind = |name: &str| match TopicKind::of(name) {
        TopicKind::User if owned(name) => "system",
        kind => kind_text(kind),
    };
    let topics: Vec<(String, &str)> = client
        .admin()
        .topics()
        .await?
        .into_iter()
        .map(|name| {
            let kind = kind(&name);
            (name, kind)
        })
        .filter(|(_, kind)| args.all || *kind == "user")
        .collect();
    let mut output = Output::new(args.printing.output);
    match output.format() {
        Format::Json => {
            let topics: Vec<_> =
                topics.iter().map(|(name, kind)| json!({"topic": name, "kind": kind})).collect();
            output.json(&topics)?;
        }
        Format::Text => {
            let rows: Vec<_> = topics.into_iter().map(|(name, kind)| vec![name, kind.to_owned()]).collect();
            output.table(&["TOPIC", "KIND"], &rows)?;
        }
    }
    output.flush()?;
    client.shutdown().await;
    Ok(())
}

struct QueueLine {
    queue: MessageQueue,
    min: i64,
    max: i64,
    last: Millis,
}

async fn queue_lines(admin: &Admin, topic: &str) -> Result<Vec<QueueLine>, Failure> {
    let stats = admin.topic_stats(topic).await?;
    let mut lines: Vec<QueueLine> = stats
        .offset_table
        .into_iter()
        .filter_map(|(queue, offsets)| {
            Some(QueueLine {
                queue: super::queue(&queue)?,
                min: offsets.min_offset,
                max: offsets.max_offset,
                last: Millis::new(offsets.last_update_timestamp),
            })
        })
        .collect();
    lines.sort_by(|a, b| a.queue.cmp(&b.queue));
    Ok(lines)
}

pub(super) fn missing(topic: &str) -> Failure {
    Failure::Refused(format!("no topic is called {topic}; see `gantry topic list --all`"))
}

async fn describe(args: &Describe) -> Result<(), Failure> {
    let client = args.target.connect().await?;
    let admin = client.admin();
    let config = admin.topic_config(&args.topic).await?.ok_or_else(|| missing(&args.topic))?;
    let lines = queue_lines(&admin, &args.topic).await?;
    let sealed = scale::sealed(&admin, &config).await?;
    let messages: i64 = lines.iter().map(|line| line.max - line.min).sum();
    let mut output = Output::new(args.printing.output);
    match output.format() {
        Format::Json => {
            let queues: Vec<_> = lines
                .iter()
                .map(|line| {
                    json!({
                        "broker": line.queue.broker.as_str(), "queue": line.queue.id.get(), "min": line.min,
                        "max": line.max, "messages": line.max - line.min, "last_stored_ms": line.last.get(),
                        "state": scale::state(&config, line.queue.id),
                    })
                })
                .collect();
            output.json(&json!({
                "topic": config.topic_name, "read_queues": config.read_queue_nums,
                "write_queues": config.write_queue_nums, "perm": perm_text(config.perm),
                "attributes": config.attributes, "messages": messages, "queues": queues,
                "left_in_sealed": sealed.iter().map(scale::Left::json).collect::<Vec<_>>(),
            }))?;
        }
        Format::Text => {
            let attributes: Vec<String> =
                config.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
            output.fields(&[
                ("topic", config.topic_name.clone()),
                ("queues", format!("{} read, {} write", config.read_queue_nums, config.write_queue_nums)),
                ("perm", perm_text(config.perm)),
                ("attributes", attributes.join(" ")),
                ("messages", messages.to_string()),
            ])?;
            let rows: Vec<Vec<String>> = lines
                .iter()
                .map(|line| {
                    vec![
                        line.queue.broker.as_str().to_owned(),
                        line.queue.id.to_string(),
                        line.min.to_string(),
                        line.max.to_string(),
                        (line.max - line.min).to_string(),
                        time(line.last),
                        scale::state(&config, line.queue.id).to_owned(),
                    ]
                })
                .collect();
            output.table(&["BROKER", "QUEUE", "MIN", "MAX", "MESSAGES", "LAST STORED", "STATE"], &rows)?;
            scale::print(&mut output, &sealed)?;
        }
    }
    output.flush()?;
    client.shutdown().await;
    Ok(())
}

async fn delete(args: &Delete) -> Result<(), Failure> {
    args.consent.require(&format!("this deletes topic {} with its messages", args.topic))?;
    let client = args.target.connect().await?;
    if !client.admin().delete_topic(&args.topic).await? {
        return Err(missing(&args.topic));
    }
    done(args.printing, "topic", &args.topic, "deleted")?;
    client.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_letters() {
        assert_eq!(perm("rw"), Ok(6));
        assert_eq!(perm("w"), Ok(2));
        assert!(perm("x").is_err());
        assert_eq!((perm_text(6), perm_text(4), perm_text(0)), ("rw".into(), "r".into(), "-".into()));
    }

    #[test]
    fn a_topic_that_is_as_wanted_is_left_alone() {
        let there =
            TopicConfig { attributes: [("a".to_owned(), "1".to_owned())].into(), ..TopicConfig::default() };
        assert!(same(&there, &TopicConfig::default()));
        assert!(!same(&TopicConfig::default(), &there));
        assert!(!same(&there, &TopicConfig { perm: 4, ..TopicConfig::default() }));
    }
}
