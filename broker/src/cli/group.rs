//! `gantry group`: create, change, move, list, describe, delete consumer groups.

mod broadcasters;
mod offsets;
mod tier;

use std::collections::BTreeMap;

use clap::{ArgGroup, Args, Subcommand};
use gantry_client::MessageQueue;
use gantry_proto::ids::Millis;
use gantry_proto::names::GroupName;
use gantry_proto::remoting::body::connection::ConsumerConnection;
use gantry_proto::remoting::body::group::{GroupRetryPolicy, SubscriptionGroupConfig};
use gantry_proto::remoting::body::stats::ConsumeStats;
use serde_json::{Value, json};

use super::args::{Consent, Format, Printing, Target, pair};
use super::output::{Failure, Output, done, time};
use super::retry;
use broadcasters::{Broadcaster, broadcasters_text, offsets_of};
use tier::Tier;

/// What to do with consumer groups.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// Create a consumer group on every broker.
    Create(Create),
    /// Change a group: only what is named.
    Set(Set),
    /// List consumer groups.
    List(List),
    /// Show a group's members, offsets and lag.
    Describe(Describe),
    /// Delete a group and its offsets.
    Delete(Delete),
    /// Have a group go on elsewhere in a topic: back or forward, all queues or one.
    Reset(offsets::Reset),
    /// Have a group go on where another one stands.
    CloneOffset(offsets::CloneOffset),
}

/// `gantry group create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Name of the group.
    group: String,
    /// How often a refused message is delivered again before it becomes a dead letter.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(i32).range(0..=1_000_000))]
    retries: i32,
    /// When refused messages come again: delays, the last one for all that follow (`1s,10s,1m`), delays that double or grow by
    /// a factor up to the longest (`5s..2h`, `5s..2h*3`), or `levels`, the broker's own.
    #[arg(long, value_name = "DELAYS", value_parser = retry::policy)]
    retry: Option<GroupRetryPolicy>,
    /// Refuse members that consume in broadcast mode.
    #[arg(long)]
    no_broadcast: bool,
    /// An attribute, like `gantry.start=last`; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    attribute: Vec<(String, String)>,
    /// Change the group if it exists.
    #[arg(long)]
    update: bool,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// `gantry group set`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true))]
pub struct Set {
    /// Name of the group.
    group: String,
    /// How often a refused message is delivered again before it becomes a dead letter.
    #[arg(long, value_name = "N", group = "change", value_parser = clap::value_parser!(i32).range(0..=1_000_000))]
    retries: Option<i32>,
    /// When refused messages come again: delays, the last one for all that follow (`1s,10s,1m`), delays that double or grow by
    /// a factor up to the longest (`5s..2h`, `5s..2h*3`), or `levels`, the broker's own.
    #[arg(long, value_name = "DELAYS", group = "change", value_parser = retry::policy)]
    retry: Option<GroupRetryPolicy>,
    /// An attribute, like `gantry.start=last`; may be given several times.
    #[arg(long, value_name = "NAME=VALUE", group = "change", value_parser = pair)]
    attribute: Vec<(String, String)>,
    /// An attribute that the group is not to have any more; may be given several times.
    #[arg(long, value_name = "NAME", group = "change")]
    remove_attribute: Vec<String>,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// `gantry group list`.
#[derive(Debug, Args)]
pub struct List {
    /// Show the system's own groups too.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// `gantry group describe`.
#[derive(Debug, Args)]
pub struct Describe {
    /// Name of the group.
    group: String,
    /// Only this topic.
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// `gantry group delete`.
#[derive(Debug, Args)]
pub struct Delete {
    /// Name of the group.
    group: String,
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// Runs `gantry group`.
pub async fn run(command: GroupCommand) -> Result<(), Failure> {
    match command {
        GroupCommand::Create(args) => create(args).await,
        GroupCommand::Set(args) => set(args).await,
        GroupCommand::List(args) => list(&args).await,
        GroupCommand::Describe(args) => describe(&args).await,
        GroupCommand::Delete(args) => delete(&args).await,
        GroupCommand::Reset(args) => offsets::reset(&args).await,
        GroupCommand::CloneOffset(args) => offsets::clone(&args).await,
    }
}

async fn create(args: Create) -> Result<(), Failure> {
    let client = args.target.connect().await?;
    let admin = client.admin();
    let existing = admin.groups().await?.remove(&args.group);
    let mut wanted = SubscriptionGroupConfig {
        group_name: args.group,
        retry_max_times: args.retries,
        consume_broadcast_enable: !args.no_broadcast,
        ..existing.clone().unwrap_or_default()
    };
    wanted.attributes.extend(args.attribute);
    wanted.group_retry_policy = args.retry.unwrap_or(wanted.group_retry_policy);
    let outcome = match &existing {
        None => "created",
        Some(there) if *there == wanted => "unchanged",
        Some(_) if args.update => "changed",
        Some(there) => {
            return Err(Failure::Refused(format!(
                "group {} exists with {} retries, broadcast {}; add --update to change it",
                there.group_name,
                there.retry_max_times,
                if there.consume_broadcast_enable { "allowed" } else { "refused" }
            )));
        }
    };
    if outcome != "unchanged" {
        admin.create_group(&wanted).await?;
    }
    done(args.printing, "group", &wanted.group_name, outcome)?;
    client.shutdown().await;
    Ok(())
}

async fn set(args: Set) -> Result<(), Failure> {
    let client = args.target.connect().await?;
    let admin = client.admin();
    let there = admin.groups().await?.remove(&args.group).ok_or_else(|| missing(&args.group))?;
    let mut wanted = there.clone();
    wanted.retry_max_times = args.retries.unwrap_or(wanted.retry_max_times);
    wanted.group_retry_policy = args.retry.unwrap_or(wanted.group_retry_policy);
    wanted.attributes.extend(args.attribute);
    for name in &args.remove_attribute {
        wanted.attributes.remove(name);
    }
    let outcome = if wanted == there { "unchanged" } else { "changed" };
    if wanted != there {
        let removed = args.remove_attribute.iter().map(|name| (format!("-{name}"), String::new()));
        wanted.attributes.extend(removed);
        admin.create_group(&wanted).await?;
    }
    done(args.printing, "group", &args.group, outcome)?;
    client.shutdown().await;
    Ok(())
}

async fn list(args: &List) -> Result<(), Failure> {
    let client = args.target.connect().await?;
    let groups: Vec<SubscriptionGroupConfig> = client
        .admin()
        .groups()
        .await?
        .into_values()
        .filter(|group| args.all || !GroupName::internal(&group.group_name).is_system())
        .collect();
    let mut output = Output::new(args.printing.output);
    match output.format() {
        Format::Json => output.json(&groups.iter().map(config_json).collect::<Vec<_>>())?,
        Format::Text => {
            let rows: Vec<Vec<String>> = groups
                .iter()
                .map(|group| vec![group.group_name.clone(), group.retry_max_times.to_string()])
                .collect();
            output.table(&["GROUP", "RETRIES"], &rows)?;
        }
    }
    output.flush()?;
    client.shutdown().await;
    Ok(())
}

fn config_json(group: &SubscriptionGroupConfig) -> Value {
    json!({
        "group": group.group_name, "retries": group.retry_max_times,
        "retry": retry::text(&group.group_retry_policy),
        "broadcast": group.consume_broadcast_enable, "attributes": group.attributes,
    })
}

struct Line {
    queue: MessageQueue,
    max: i64,
    committed: i64,
    last: Millis,
    /// Messages that are popped and not acknowledged; `None` where the group does not pop.
    in_flight: Option<i64>,
    /// Messages that a pop has left for other members, or behind others of their key.
    left: i64,
    /// When the oldest of those in flight was popped.
    oldest: Option<Millis>,
}

impl Line {
    /// Messages that are not committed yet; all of them where nothing is.
    fn lag(&self) -> i64 {
        (self.max - self.committed.max(0)).max(0)
    }
}

fn lines(stats: ConsumeStats) -> Vec<Line> {
    let mut lines: Vec<Line> = stats
        .offset_table
        .into_iter()
        .filter_map(|(queue, offsets)| {
            Some(Line {
                queue: super::queue(&queue)?,
                max: offsets.broker_offset,
                committed: offsets.consumer_offset,
                last: Millis::new(offsets.last_timestamp),
                in_flight: offsets.in_flight,
                left: offsets.left.unwrap_or_default(),
                oldest: offsets.oldest_popped.map(Millis::new),
            })
        })
        .collect();
    lines.sort_by(|a, b| a.queue.cmp(&b.queue));
    lines
}

fn missing(group: &str) -> Failure {
    Failure::Refused(format!("no consumer group is called {group}; see `gantry group list`"))
}

async fn describe(args: &Describe) -> Result<(), Failure> {
    let client = args.target.connect().await?;
    let admin = client.admin();
    let config = admin.groups().await?.remove(&args.group).ok_or_else(|| missing(&args.group))?;
    let members = admin.group_members(&args.group).await?.unwrap_or_default();
    // A topic that the group has not touched is not there for it: that is no lag.
    let mut stats = admin.group_stats(&args.group, args.topic.as_deref()).await?;
    let tier = Tier::of(&client, &config).await?;
    if tier.is_some() && args.topic.is_none() {
        // It may wait where it has consumed nothing yet.
        for topic in members.subscription_table.keys() {
            stats.offset_table.extend(admin.group_stats(&args.group, Some(topic)).await?.offset_table);
        }
    }
    let lines = lines(stats);
    let mut broadcasters = Vec::new();
    for (name, seen) in admin.broadcast_members(&args.group).await? {
        let stats = admin.group_stats(offsets_of(&args.group, &name)?, args.topic.as_deref()).await?;
        broadcasters.push(Broadcaster { name, seen, lines: self::lines(stats) });
    }
    let mut output = Output::new(args.printing.output);
    match output.format() {
        Format::Json => {
            output.json(&description((&config, tier.as_ref()), &members, &lines, &broadcasters))?;
        }
        Format::Text => {
            describe_text(&mut output, (&config, tier.as_ref()), &members, &lines)?;
            broadcasters_text(&mut output, &broadcasters)?;
        }
    }
    output.flush()?;
    client.shutdown().await;
    Ok(())
}

fn queue_json(line: &Line, tier: Option<&Tier>) -> Value {
    json!({
        "topic": line.queue.topic.as_str(), "broker": line.queue.broker.as_str(),
        "queue": line.queue.id.get(), "max": line.max, "committed": line.committed,
        "lag": line.lag(), "last_consumed_ms": line.last.get(), "in_flight": line.in_flight,
        "left": line.left, "oldest_popped_ms": line.oldest.map(Millis::get),
        "waits_for": tier.map(|tier| tier.waits_for_json(&line.queue, line.max)),
    })
}

fn description(
    (config, tier): (&SubscriptionGroupConfig, Option<&Tier>),
    members: &ConsumerConnection,
    lines: &[Line],
    broadcasters: &[Broadcaster],
) -> Value {
    let conflicts = members.subscription_conflicts.clone().unwrap_or_default();
    let members: Vec<Value> = members
        .connection_set
        .iter()
        .map(|member| {
            json!({
                "client_id": member.client_id, "address": member.client_addr,
                "language": member.language.to_string(),
            })
        })
        .collect();
    let queues: Vec<Value> = lines.iter().map(|line| queue_json(line, tier)).collect();
    let broadcasters: Vec<Value> = broadcasters.iter().map(Broadcaster::json).collect();
    let mut all = config_json(config);
    if let Value::Object(fields) = &mut all {
        fields.insert("members".to_owned(), members.into());
        fields.insert("queues".to_owned(), queues.into());
        fields.insert("broadcast_members".to_owned(), broadcasters.into());
        fields.insert("conflicts".to_owned(), json!(conflicts));
        fields.insert("lag".to_owned(), lines.iter().map(Line::lag).sum::<i64>().into());
        fields.insert("in_flight".to_owned(), in_flight(lines).into());
    }
    all
}

/// Messages in flight; `None` for a group that does not pop.
fn in_flight(lines: &[Line]) -> Option<i64> {
    let counts = lines.iter().filter_map(|line| line.in_flight);
    counts.fold(None, |sum, count| Some(sum.unwrap_or(0) + count))
}

fn describe_text(
    output: &mut Output,
    (config, tier): (&SubscriptionGroupConfig, Option<&Tier>),
    members: &ConsumerConnection,
    lines: &[Line],
) -> Result<(), Failure> {
    let subscriptions: Vec<String> = members
        .subscription_table
        .iter()
        .map(|(topic, subscription)| format!("{topic}:{}", subscription.sub_string))
        .collect();
    let attributes: Vec<String> =
        config.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    output.fields(&[
        ("group", config.group_name.clone()),
        ("retries", config.retry_max_times.to_string()),
        ("retry", retry::text(&config.group_retry_policy)),
        ("attributes", attributes.join(" ")),
        ("members", members.connection_set.len().to_string()),
        ("subscriptions", subscriptions.join(" ")),
        ("lag", lines.iter().map(Line::lag).sum::<i64>().to_string()),
    ])?;
    if let Some(tier) = tier {
        output.fields(&[("after", tier.summary())])?;
    }
    if let Some(conflicts) = members.subscription_conflicts.as_ref().filter(|all| !all.is_empty()) {
        conflicts_text(output, conflicts)?;
    }
    if !members.connection_set.is_empty() {
        let rows: Vec<Vec<String>> = members
            .connection_set
            .iter()
            .map(|member| {
                vec![member.client_id.clone(), member.client_addr.clone(), member.language.to_string()]
            })
            .collect();
        output.table(&["MEMBER", "ADDRESS", "LANGUAGE"], &rows)?;
    }
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            vec![
                line.queue.topic.as_str().to_owned(),
                line.queue.broker.as_str().to_owned(),
                line.queue.id.to_string(),
                line.committed.to_string(),
                line.max.to_string(),
                line.lag().to_string(),
                time(line.last),
            ]
            .into_iter()
            .chain(tier.map(|tier| tier.waits_for(&line.queue, line.max)))
            .collect()
        })
        .collect();
    let mut headings = vec!["TOPIC", "BROKER", "QUEUE", "COMMITTED", "MAX", "LAG", "LAST CONSUMED"];
    headings.extend(tier.map(|_| "WAITS FOR"));
    output.table(&headings, &rows)?;
    if in_flight(lines).is_some() { in_flight_text(output, lines) } else { Ok(()) }
}

/// What a group has popped and not acknowledged, and what it has left, queue by queue.
fn in_flight_text(output: &mut Output, lines: &[Line]) -> Result<(), Failure> {
    let row = |line: &Line| {
        Some(vec![
            line.queue.topic.as_str().to_owned(),
            line.queue.broker.as_str().to_owned(),
            line.queue.id.to_string(),
            line.in_flight?.to_string(),
            line.oldest.map_or_else(|| "-".to_owned(), time),
            line.left.to_string(),
        ])
    };
    let rows: Vec<Vec<String>> = lines.iter().filter_map(row).collect();
    output.table(&["POPPED FROM", "BROKER", "QUEUE", "IN FLIGHT", "OLDEST POPPED", "LEFT"], &rows)
}

/// Members that do not subscribe alike: nothing is lost, but each gets what others asked for.
fn conflicts_text(
    output: &mut Output,
    conflicts: &BTreeMap<String, BTreeMap<String, String>>,
) -> Result<(), Failure> {
    let topics: Vec<&str> = conflicts.keys().map(String::as_str).collect();
    let advice = "make the members' topics and expressions equal";
    output.fields(&[("conflicts", format!("{}: {advice}", topics.join(" ")))])?;
    let rows: Vec<Vec<String>> = conflicts
        .iter()
        .flat_map(|(topic, wishes)| wishes.iter().map(move |(id, wish)| (topic, id, wish)))
        .map(|(topic, id, wish)| {
            let wish = if wish.is_empty() { "nothing" } else { wish };
            vec![topic.clone(), id.clone(), wish.to_owned()]
        })
        .collect();
    output.table(&["CONFLICT", "MEMBER", "SUBSCRIBES TO"], &rows)
}

async fn delete(args: &Delete) -> Result<(), Failure> {
    args.consent.require(&format!("this deletes group {} with its offsets", args.group))?;
    let client = args.target.connect().await?;
    if !client.admin().delete_group(&args.group).await? {
        return Err(missing(&args.group));
    }
    done(args.printing, "group", &args.group, "deleted")?;
    client.shutdown().await;
    Ok(())
}
