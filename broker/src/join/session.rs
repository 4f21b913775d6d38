//! One connection to a name server, from the first question to the farewell.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use gantry_proto::error::DecodeError;
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::cluster::ClusterInfo;
use gantry_proto::remoting::body::route::MASTER_ID;
use gantry_proto::remoting::body::topic::DataVersion;
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::header::{ExtWrite, OwnedCommand};
use gantry_proto::remoting::request::HeaderError;
use gantry_proto::remoting::request::nameserver::{
    BrokerHeader, QueryDataVersionResponse, RegisterBrokerHeader,
};
use tokio_util::sync::CancellationToken;

use super::link::{Link, LinkError, WITHIN};
use super::{Join, State, TOPICS_PER_PART};

/// How often the name server is asked whether it still knows the broker.
const TURN: Duration = Duration::from_secs(30);
/// How many times as long as registering took nothing is registered again: topics may change all the time.
const REST: u32 = 5;
/// How long saying goodbye may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a broker is not registered with a name server.
#[derive(Debug, thiserror::Error)]
pub(super) enum JoinError {
    #[error("its name cannot be looked up: check the name and the resolver")]
    Resolve(#[source] io::Error),
    #[error("its name has no address: check the name")]
    NoAddress,
    #[error("its name stands for other addresses now")]
    Moved,
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("it refused the request {code} with code {answer}, {remark}")]
    Refused { code: RequestCode, answer: i32, remark: String },
    #[error("its answer to the request {code} cannot be read: is this a name server?")]
    Body {
        code: RequestCode,
        #[source]
        source: DecodeError,
    },
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error(
        "it knows another broker called {name}, at {theirs} (cluster {cluster}), and this one is at {ours}: give this one \
         another --broker-name, or stop the other"
    )]
    Taken { name: String, theirs: String, cluster: String, ours: String },
    #[error(
        "this broker listens on {bind} only, where clients of a name server on another machine do not reach it: set \
         --bind, or --advertise"
    )]
    OnlyHere { bind: std::net::IpAddr },
    #[error(
        "this broker listens on all addresses, and it is not known which of them clients reach: set --advertise to that \
         address, or to a name for it"
    )]
    Unknown,
    #[error("it is this broker's own name service")]
    Itself,
}

pub(super) struct Session<'a> {
    join: &'a Join,
    server: &'a str,
    link: Link,
    peer: SocketAddr,
    /// Where clients are told to find the broker.
    address: String,
    /// The version that the name server has of this connection.
    registered: Option<DataVersion>,
    /// Whether it may know the broker: it was asked to.
    may_know: bool,
    was_registered: bool,
}

impl<'a> Session<'a> {
    /// Looks the name up and connects.
    pub(super) async fn open(join: &'a Join, server: &'a str) -> Result<Self, JoinError> {
        let link = Link::open(&resolve(server).await?).await?;
        let (local, peer) = link.ends()?;
        let own = join.name_service;
        let is_here = own.ip() == peer.ip() || own.ip().is_unspecified() && local.ip() == peer.ip();
        if is_here && own.port() == peer.port() {
            return Err(JoinError::Itself);
        }
        let address = address(join, local, peer)?;
        Ok(Self {
            join,
            server,
            link,
            peer,
            address,
            registered: None,
            may_know: false,
            was_registered: false,
        })
    }

    /// Whether the name server ever knew the broker by this connection.
    pub(super) fn was_registered(&self) -> bool {
        self.was_registered
    }

    /// Keeps the broker registered until `stop`, or until that fails.
    pub(super) async fn serve(
        &mut self,
        stop: &CancellationToken,
        note: impl Fn(State),
    ) -> Result<(), JoinError> {
        let (mut topics, mut drain) = (self.join.topics.changes(), self.join.drain.changes());
        loop {
            topics.mark_unchanged();
            drain.mark_unchanged();
            let began = Instant::now();
            let state = tokio::select! {
                () = stop.cancelled() => None,
                state = self.turn() => Some(state?),
            };
            let Some(state) = state else { break };
            note(state);
            let rest = began.elapsed() * REST;
            let turn = tokio::time::sleep(TURN);
            tokio::pin!(turn);
            tokio::select! {
                () = stop.cancelled() => break,
                error = self.link.ended() => return Err(error.into()),
                () = &mut turn => self.look_up_again().await?,
                _ = drain.changed() => {}
                _ = topics.changed() => tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(rest) => {}
                },
            }
        }
        // Whoever does not listen sees the connection end.
        let _ = tokio::time::timeout(FAREWELL, self.leave()).await;
        Ok(())
    }

    /// Makes the name server know what there is to know.
    async fn turn(&mut self) -> Result<State, JoinError> {
        if self.join.has_left() {
            self.leave().await?;
            // So that the connection is not closed as idle.
            self.ask(RequestCode::GetBrokerClusterInfo, &(), &[]).await?;
            return Ok(State::Left);
        }
        self.check_name().await?;
        let version = self.join.version();
        if self.registered != Some(version) || self.is_changed(version).await? {
            self.register(version).await?;
        }
        Ok(State::Registered { address: self.address.clone() })
    }

    /// Refuses to take the name of another broker away, or to have it taken.
    async fn check_name(&mut self) -> Result<(), JoinError> {
        let code = RequestCode::GetBrokerClusterInfo;
        let answer = self.ask(code, &(), &[]).await?;
        let cluster =
            ClusterInfo::from_json(&answer.body).map_err(|source| JoinError::Body { code, source })?;
        let name = &self.join.node.name;
        let known = cluster.broker_addr_table.get(name);
        let Some((known, theirs)) =
            known.and_then(|known| Some((known, known.broker_addrs.get(&MASTER_ID)?)))
        else {
            return Ok(());
        };
        if *theirs == self.address {
            return Ok(());
        }
        Err(JoinError::Taken {
            name: name.clone(),
            theirs: theirs.clone(),
            cluster: known.cluster.clone(),
            ours: self.address.clone(),
        })
    }

    async fn is_changed(&mut self, version: DataVersion) -> Result<bool, JoinError> {
        let header = self.header();
        let answer = self.ask(RequestCode::QueryDataVersion, &header, &version.to_standard_json()).await?;
        Ok(answer.header::<QueryDataVersionResponse>()?.changed)
    }

    async fn register(&mut self, version: DataVersion) -> Result<(), JoinError> {
        let node = &self.join.node;
        self.may_know = true;
        for body in self.join.parts(version, TOPICS_PER_PART) {
            let header = RegisterBrokerHeader {
                broker_name: node.name.clone(),
                broker_addr: self.address.clone(),
                cluster_name: node.cluster.clone(),
                // There are no replicas.
                ha_server_addr: String::new(),
                broker_id: MASTER_ID,
                heartbeat_timeout_millis: None,
                enable_acting_master: Some(false),
                compressed: false,
                // Java keeps the checksum in a signed number, without its sign bit.
                body_crc32: (crc32fast::hash(&body) & 0x7fff_ffff).cast_signed(),
            };
            self.ask(RequestCode::RegisterBroker, &header, &body).await?;
        }
        self.registered = Some(version);
        self.was_registered = true;
        Ok(())
    }

    /// Leaves the name server, if it may know the broker: older ones forget whoever has its name.
    async fn leave(&mut self) -> Result<(), JoinError> {
        self.registered = None;
        if std::mem::take(&mut self.may_know) {
            let header = self.header();
            self.ask(RequestCode::UnregisterBroker, &header, &[]).await?;
        }
        Ok(())
    }

    /// Fails when the name stands for other addresses now. While it cannot be looked up the connection is good enough.
    async fn look_up_again(&self) -> Result<(), JoinError> {
        match resolve(self.server).await {
            Ok(addresses)
                if addresses.iter().all(|address| address.ip().to_canonical() != self.peer.ip()) =>
            {
                Err(JoinError::Moved)
            }
            _ => Ok(()),
        }
    }

    fn header(&self) -> BrokerHeader {
        BrokerHeader {
            broker_name: self.join.node.name.clone(),
            broker_addr: self.address.clone(),
            cluster_name: self.join.node.cluster.clone(),
            broker_id: MASTER_ID,
        }
    }

    /// Asks; an answer other than success is an error.
    async fn ask(
        &mut self,
        code: RequestCode,
        header: &impl ExtWrite,
        body: &[u8],
    ) -> Result<OwnedCommand, JoinError> {
        let answer = self.link.ask(code, header, body).await?;
        if answer.code == ResponseCode::Success.code() {
            return Ok(answer);
        }
        let remark = answer.remark.unwrap_or_default();
        let remark = match remark.trim() {
            "" => "without a reason".to_owned(),
            remark => remark.chars().take(255).collect(),
        };
        Err(JoinError::Refused { code, answer: answer.code, remark })
    }
}

async fn resolve(server: &str) -> Result<Vec<SocketAddr>, JoinError> {
    let found = tokio::time::timeout(WITHIN, tokio::net::lookup_host(server)).await;
    let found = found.map_err(|_| JoinError::Resolve(io::ErrorKind::TimedOut.into()))?;
    let addresses: Vec<_> = found.map_err(JoinError::Resolve)?.collect();
    if addresses.is_empty() { Err(JoinError::NoAddress) } else { Ok(addresses) }
}

/// The address under which the broker registers over a connection with these ends.
pub(super) fn address(join: &Join, local: SocketAddr, peer: SocketAddr) -> Result<String, JoinError> {
    let (bind, port) = (join.node.bind, join.broker.port());
    if let Some(host) = &join.node.advertise {
        return Ok(format!("{host}:{port}"));
    }
    if bind.is_unspecified() {
        if local.ip().is_loopback() {
            return Err(JoinError::Unknown);
        }
        return Ok(SocketAddr::new(local.ip(), port).to_string());
    }
    if bind.is_loopback() && !peer.ip().is_loopback() {
        return Err(JoinError::OnlyHere { bind });
    }
    Ok(SocketAddr::new(bind, port).to_string())
}
