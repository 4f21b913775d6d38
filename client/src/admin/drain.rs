//! Taking brokers off line: requests of Gantry's own, which Apache's brokers refuse.

use std::time::Duration;

use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::drain::DrainState;
use gantry_proto::remoting::codes::RequestCode;
use gantry_proto::remoting::request::drain::{DrainBrokerHeader, action};

use super::Admin;
use crate::error::Result;

impl Admin {
    /// How far a broker is between serving and gone, and what still holds it. `broker` is its name or, where name servers
    /// do not know it any more, its address (`host:port`).
    pub async fn drain_state(&self, broker: &str) -> Result<DrainState> {
        self.ask_to_drain(broker, DrainBrokerHeader::default()).await
    }

    /// Begins to take a broker off line: routes say at once that it takes no messages, and `grace` later it takes none.
    /// Clients ask for routes every 30 s.
    pub async fn drain(&self, broker: &str, grace: Duration) -> Result<DrainState> {
        let grace = i64::try_from(grace.as_millis()).unwrap_or(i64::MAX);
        let header = DrainBrokerHeader { action: Some(action::BEGIN.to_owned()), grace_millis: Some(grace) };
        self.ask_to_drain(broker, header).await
    }

    /// Has a broker that drains leave the routes, whatever still holds it.
    pub async fn leave(&self, broker: &str) -> Result<DrainState> {
        let header = DrainBrokerHeader { action: Some(action::LEAVE.to_owned()), grace_millis: None };
        self.ask_to_drain(broker, header).await
    }

    /// Takes a broker back that drains or has left.
    pub async fn resume(&self, broker: &str) -> Result<DrainState> {
        let header = DrainBrokerHeader { action: Some(action::RESUME.to_owned()), grace_millis: None };
        self.ask_to_drain(broker, header).await
    }

    async fn ask_to_drain(&self, broker: &str, header: DrainBrokerHeader) -> Result<DrainState> {
        let link =
            if broker.contains(':') { self.client.core().link(broker) } else { self.master(broker).await? };
        let answer = self.call(&link, RequestCode::DrainBroker, &header, &[]).await;
        let answer = answer.map_err(|error| error.during(format_args!("draining {broker}")))?;
        Ok(DrainState::from_json(&answer.body)?)
    }
}
