//! Going off line: code 60003, Gantry's own.

use std::sync::Arc;
use std::time::Duration;

use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::drain::{DrainGroup, DrainPhase, DrainState, NameServerState};
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::drain::{DrainBrokerHeader, action};

use super::context::{Handled, Reply, Services, short};
use crate::deliver::backlog::{self, Backlog, Sources};
use crate::routes::drain::{GRACE, Phase};

/// Code 60003: goes a step, or only tells how far the broker is.
pub fn handle(services: &Arc<Services>, request: &OwnedCommand) -> Handled {
    if let Err(refused) = step(services, request) {
        return refused.into();
    }
    let services = Arc::clone(services);
    Handled::later(async move {
        // There may be many groups.
        match tokio::task::spawn_blocking(move || state(&services)).await {
            Ok(state) => Reply::body(state.to_json()),
            Err(error) => Reply::refused(ResponseCode::SystemError, format!("looking stopped: {error}")),
        }
    })
}

fn step(services: &Services, request: &OwnedCommand) -> Result<(), Reply> {
    let header: DrainBrokerHeader = request.header()?;
    let drain = &services.drain;
    match header.action.as_deref() {
        None | Some("") => return Ok(()),
        Some(action::BEGIN) => {
            let grace = match header.grace_millis.map(u64::try_from) {
                None => GRACE,
                Some(Ok(ms)) => Duration::from_millis(ms),
                Some(Err(_)) => {
                    let why = "graceMillis is below 0: give the time in which clients learn the new routes";
                    return Err(Reply::refused(ResponseCode::InvalidParameter, why));
                }
            };
            drain.begin(grace)?;
        }
        Some(action::LEAVE) => {
            drain.leave()?;
        }
        Some(action::RESUME) => {
            drain.resume()?;
        }
        Some(other) => {
            let why = format!("action is {}: ask for begin, leave or resume, or for nothing", short(other));
            return Err(Reply::refused(ResponseCode::InvalidParameter, why));
        }
    }
    Ok(())
}

fn state(services: &Services) -> DrainState {
    let phase = services.drain.phase();
    let Backlog { groups, more } = backlog::measure(&Sources {
        store: &services.store,
        topics: &services.topics,
        groups: &services.groups,
        members: &services.members,
        offsets: &services.offsets,
    });
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let groups = groups.into_iter().map(|behind| DrainGroup {
        group: behind.group.to_string(),
        topic: behind.topic.to_string(),
        behind: number(behind.messages),
        members: number(behind.members as u64),
    });
    let servers = services.join.standings().into_iter().map(|standing| NameServerState {
        address: standing.server,
        state: standing.state.to_string(),
        since: standing.since.get(),
    });
    DrainState {
        broker_name: services.config.node.name.clone(),
        phase: match phase {
            Phase::Serving => DrainPhase::Serving,
            Phase::Announced { .. } => DrainPhase::Announced,
            Phase::Sealed => DrainPhase::Sealed,
            Phase::Left => DrainPhase::Left,
        },
        since: services.drain.since().get(),
        sealed_at: services.drain.sealed_at().map(gantry_proto::ids::Millis::get),
        groups: groups.collect(),
        more_groups: number(more as u64),
        waiting: number(services.timer.waiting() + services.wheel.pending()),
        transactions: number(services.transactions.open_count() as u64),
        name_servers: servers.collect(),
    }
}
