//! `gantry broker`: how a broker stands, and taking it off line and back.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use gantry_client::Admin;
use gantry_proto::ids::Millis;
use gantry_proto::remoting::body::cluster::ClusterInfo;
use gantry_proto::remoting::body::drain::{DrainPhase, DrainState};
use gantry_proto::remoting::body::route::MASTER_ID;
use serde_json::{Value, json};

use super::args::{Consent, Format, Printing, Target, span};
use super::output::{Failure, Output, time};

/// How often a broker that drains is asked how far it is.
const LOOK: Duration = Duration::from_secs(1);
/// How long name servers may take to hear that a broker has left.
const FAREWELL: Duration = Duration::from_secs(10);

/// What to do with a broker.
#[derive(Debug, Subcommand)]
pub enum BrokerCommand {
    /// Show whether a broker serves or drains, what holds it, and how it stands with name servers.
    Status(One),
    /// Take a broker off line: it stops taking messages, waits until consumers have those it has, and leaves the routes.
    Drain(Drain),
    /// Take a broker back that drains or has left.
    Resume(One),
}

/// `gantry broker status` and `gantry broker resume`.
#[derive(Debug, Args)]
pub struct One {
    /// The broker: its name, or its address as host:port.
    broker: String,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    target: Target,
}

/// `gantry broker drain`.
#[derive(Debug, Args)]
pub struct Drain {
    #[command(flatten)]
    one: One,
    /// How long messages are still taken, so that clients learn of it from their routes first.
    #[arg(long, value_name = "TIME", default_value = "45s", value_parser = span)]
    grace: Duration,
    /// How long to wait for consumers, timers and transactions.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = span)]
    timeout: Duration,
    /// When that time is over, leave with what is left; it stays in the broker's store.
    #[arg(long)]
    leave_behind: bool,
    #[command(flatten)]
    consent: Consent,
}

/// Runs `gantry broker`.
pub async fn run(command: BrokerCommand) -> Result<(), Failure> {
    match command {
        BrokerCommand::Status(one) => {
            let client = one.target.connect().await?;
            let state = client.admin().drain_state(&one.broker).await?;
            print(one.printing, &state)?;
            client.shutdown().await;
        }
        BrokerCommand::Resume(one) => {
            let client = one.target.connect().await?;
            let state = client.admin().resume(&one.broker).await?;
            print(one.printing, &state)?;
            client.shutdown().await;
        }
        BrokerCommand::Drain(args) => drain(&args).await?,
    }
    Ok(())
}

async fn drain(args: &Drain) -> Result<(), Failure> {
    let One { broker, printing, target } = &args.one;
    let client = target.connect().await?;
    let admin = client.admin();
    let cluster = admin.cluster().await?;
    check_others(&cluster, &admin.drain_state(broker).await?, args.consent)?;
    // Once it has left no name server knows its name.
    let known = cluster.broker_addr_table.get(broker).and_then(|known| known.broker_addrs.get(&MASTER_ID));
    let broker = known.unwrap_or(broker);
    let began = Instant::now();
    let mut state = admin.drain(broker, args.grace).await?;
    let mut said = String::new();
    while state.phase != DrainPhase::Left {
        let now = progress(&state);
        if now != said {
            eprintln!("{now}");
            said = now;
        }
        let over = began.elapsed() >= args.timeout;
        let sealed = state.phase == DrainPhase::Sealed;
        if sealed && (is_empty(&state) || over && args.leave_behind) {
            state = admin.leave(broker).await?;
            break;
        }
        if over && !args.leave_behind {
            return Err(Failure::Refused(format!(
                "{said} after {} s; it goes on: drain it again to wait on, with --leave-behind to have it leave all the same, \
                 or take it back with `gantry broker resume {broker}`",
                began.elapsed().as_secs()
            )));
        }
        tokio::time::sleep(LOOK).await;
        state = admin.drain_state(broker).await?;
    }
    let state = farewell(&admin, broker, state).await?;
    print(*printing, &state)?;
    eprintln!(
        "{} has left: it may be stopped; `gantry broker resume {broker}` takes it back",
        state.broker_name
    );
    client.shutdown().await;
    Ok(())
}

/// Producers need another broker to go to.
fn check_others(cluster: &ClusterInfo, state: &DrainState, consent: Consent) -> Result<(), Failure> {
    let name = &state.broker_name;
    let mut clusters = cluster.cluster_addr_table.iter();
    let others = clusters.any(|(_, brokers)| brokers.contains(name) && brokers.len() > 1);
    if others || state.phase != DrainPhase::Serving {
        return Ok(());
    }
    consent.require(&format!(
        "the name server knows no other broker in the cluster of {name}: nobody could send"
    ))
}

/// Waits until the name servers that can be reached know that the broker has left.
async fn farewell(admin: &Admin, broker: &str, mut state: DrainState) -> Result<DrainState, Failure> {
    let began = Instant::now();
    while state.name_servers.iter().any(|server| server.state.starts_with("registered"))
        && began.elapsed() < FAREWELL
    {
        tokio::time::sleep(LOOK / 10).await;
        state = admin.drain_state(broker).await?;
    }
    Ok(state)
}

fn is_empty(state: &DrainState) -> bool {
    state.groups.is_empty() && state.waiting == 0 && state.transactions == 0
}

/// How far it is, in one line.
fn progress(state: &DrainState) -> String {
    let mut text = format!("{}: {}", state.broker_name, phase(state));
    // Writing to a string does not fail.
    for behind in state.groups.iter().take(3) {
        let (group, topic, messages, members) = (&behind.group, &behind.topic, behind.behind, behind.members);
        let _ = write!(text, "; group {group} has {messages} of {topic} to consume ({members} members)");
    }
    let more = state.groups.len().saturating_sub(3) as u64 + u64::try_from(state.more_groups).unwrap_or(0);
    if more > 0 {
        let _ = write!(text, "; and {more} more");
    }
    if state.waiting > 0 {
        let _ = write!(text, "; {} messages wait for their time", state.waiting);
    }
    if state.transactions > 0 {
        let _ = write!(text, "; {} transactions have no end", state.transactions);
    }
    text
}

fn phase(state: &DrainState) -> String {
    match (&state.phase, state.sealed_at) {
        (DrainPhase::Serving, _) => "serves".to_owned(),
        (DrainPhase::Announced, Some(at)) => {
            format!("routes say it takes no messages; it does until {}", time(Millis::new(at)))
        }
        (DrainPhase::Announced, None) => "routes say it takes no messages; it does for a while".to_owned(),
        (DrainPhase::Sealed, _) => "takes no messages".to_owned(),
        (DrainPhase::Left, _) => "has left".to_owned(),
        (DrainPhase::Other(text), _) => text.to_ascii_lowercase(),
    }
}

fn print(printing: Printing, state: &DrainState) -> Result<(), Failure> {
    let mut output = Output::new(printing.output);
    match output.format() {
        Format::Json => output.json(&as_json(state))?,
        Format::Text => {
            let mut fields = vec![
                ("broker", state.broker_name.clone()),
                ("phase", state.phase.as_str().to_ascii_lowercase()),
                ("since", if state.since == 0 { "-".to_owned() } else { time(Millis::new(state.since)) }),
            ];
            for server in &state.name_servers {
                let since = time(Millis::new(server.since));
                fields.push(("name server", format!("{} {} (since {since})", server.address, server.state)));
            }
            for behind in &state.groups {
                let (group, topic) = (&behind.group, &behind.topic);
                fields.push((
                    "behind",
                    format!("{group} {} of {topic}, {} members", behind.behind, behind.members),
                ));
            }
            if state.more_groups > 0 {
                fields.push(("behind", format!("{} more groups and topics", state.more_groups)));
            }
            fields.push(("waiting", state.waiting.to_string()));
            fields.push(("open transactions", state.transactions.to_string()));
            output.fields(&fields)?;
        }
    }
    output.flush()
}

fn as_json(state: &DrainState) -> Value {
    let behind = state.groups.iter().map(|behind| {
        json!({ "group": behind.group, "topic": behind.topic, "messages": behind.behind, "members": behind.members })
    });
    let servers = state
        .name_servers
        .iter()
        .map(|server| json!({ "address": server.address, "state": server.state, "since_ms": server.since }));
    json!({
        "broker": state.broker_name, "phase": state.phase.as_str().to_ascii_lowercase(), "since_ms": state.since,
        "sealed_at_ms": state.sealed_at, "behind": behind.collect::<Vec<_>>(), "more_behind": state.more_groups,
        "waiting": state.waiting, "open_transactions": state.transactions,
        "name_servers": servers.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use gantry_proto::remoting::body::drain::DrainGroup;

    use super::*;

    #[test]
    fn progress_names_what_holds_the_broker() {
        let group =
            |name: &str| DrainGroup { group: name.to_owned(), topic: "T".to_owned(), behind: 7, members: 2 };
        let mut state = DrainState {
            broker_name: "broker-a".to_owned(),
            phase: DrainPhase::Sealed,
            groups: ["a", "b", "c", "d"].map(group).to_vec(),
            more_groups: 1,
            waiting: 3,
            ..DrainState::default()
        };
        let text = progress(&state);
        assert!(text.starts_with("broker-a: takes no messages; group a has 7 of T to consume (2 members); "));
        assert!(text.ends_with("; and 2 more; 3 messages wait for their time"), "{text}");
        assert!(!is_empty(&state));
        state = DrainState { broker_name: state.broker_name, phase: state.phase, ..DrainState::default() };
        assert!(is_empty(&state) && progress(&state) == "broker-a: takes no messages");
    }
}
