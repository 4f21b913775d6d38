//! Registering with name servers of a cluster, beside being one: `--name-servers`.
//!
//! Each name server has a task and a connection of its own, so that one that is down or slow keeps nobody waiting: not
//! the broker, not the others. A task asks every 30 s whether the server still knows the broker as it is, registers what
//! the server lacks, and does so at once when topics change or an operator takes the broker off line. The connection
//! stays open in between: name servers forget a broker whose connection ends. When it does, or anything else fails, the
//! task begins anew, with a pause that grows from one try to the next, and looks the name up again.

mod link;
mod session;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_proto::ids::Millis;
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::cluster::RegisterBrokerBody;
use gantry_proto::remoting::body::topic::{DataVersion, TopicConfig, TopicConfigTable};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::NodeConfig;
use crate::routes::{Drain, Phase};
use crate::shutdown::Shutdown;
use crate::topics::Topics;
use session::{JoinError, Session};

/// Pause before the second try; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Topics of one request. With more of them the rest comes in further ones: a name server takes 16 MiB at once.
const TOPICS_PER_PART: usize = 30_000;

/// How this broker stands with a name server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It was not reached yet.
    Connecting,
    /// It knows the broker.
    Registered {
        /// The address to which it sends clients.
        address: String,
    },
    /// It does not, or may not; the sentence says why and what to do. It is tried again.
    Failing(String),
    /// The broker has left, as an operator wants.
    Left,
    /// It is this broker's own name service, where there is nothing to register. It is looked at again.
    Itself,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connecting => f.write_str("connecting"),
            Self::Registered { address } => write!(f, "registered as {address}"),
            Self::Failing(why) => write!(f, "not registered: {why}"),
            Self::Left => f.write_str("left"),
            Self::Itself => f.write_str("this broker's own name service"),
        }
    }
}

/// A name server, and how this broker stands with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The name server, as the operator named it.
    pub server: String,
    /// How the broker stands.
    pub state: State,
    /// Since when.
    pub since: Millis,
}

/// The registrations of this broker.
#[derive(Debug)]
pub struct Join {
    node: NodeConfig,
    name_service: SocketAddr,
    broker: SocketAddr,
    topics: Arc<Topics>,
    drain: Arc<Drain>,
    clock: Arc<dyn Clock>,
    standings: Mutex<Vec<Standing>>,
    version: Mutex<Versioned>,
}

/// The version under which the broker registers what it has, and what that was made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Versioned {
    /// Changes of topics and of the drain.
    changes: Option<(u64, u64)>,
    version: DataVersion,
}

impl Join {
    /// The registrations of the broker that `node` describes, which listens on these addresses. Nothing happens before
    /// [`start`](Self::start).
    pub fn new(
        node: &NodeConfig,
        (name_service, broker): (SocketAddr, SocketAddr),
        topics: Arc<Topics>,
        drain: Arc<Drain>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let since = clock.now();
        let standing = |server: &String| Standing { server: server.clone(), state: State::Connecting, since };
        Self {
            standings: Mutex::new(node.name_servers.iter().map(standing).collect()),
            node: node.clone(),
            name_service,
            broker,
            topics,
            drain,
            clock,
            version: Mutex::default(),
        }
    }

    /// Registers with each name server until `tasks` are told to stop; then the broker leaves them.
    pub fn start(self: &Arc<Self>, tasks: &Shutdown) {
        for number in 0..self.node.name_servers.len() {
            tasks.spawn("registration", Arc::clone(self).keep(number, tasks.token().clone()));
        }
    }

    /// How the broker stands with each name server, in the order in which they were named.
    pub fn standings(&self) -> Vec<Standing> {
        self.lock().clone()
    }

    async fn keep(self: Arc<Self>, number: usize, stop: CancellationToken) {
        let Some(server) = self.node.name_servers.get(number) else { return };
        let mut pause = PAUSE_MIN;
        loop {
            let opened = tokio::select! {
                () = stop.cancelled() => return,
                opened = Session::open(&self, server) => opened,
            };
            let failed = match opened {
                Ok(mut session) => {
                    let ended = session.serve(&stop, |state| self.note(number, state)).await;
                    if session.was_registered() {
                        pause = PAUSE_MIN;
                    }
                    ended
                }
                Err(error) => Err(error),
            };
            match failed {
                Ok(()) => return,
                // The name may come to mean another.
                Err(JoinError::Itself) => {
                    self.note(number, State::Itself);
                    pause = PAUSE_MAX;
                }
                Err(error) => self.note(number, State::Failing(sentence(&error))),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Notes how the broker stands with a name server, and tells when that is news.
    fn note(&self, number: usize, state: State) {
        let mut standings = self.lock();
        let Some(standing) = standings.get_mut(number).filter(|standing| standing.state != state) else {
            return;
        };
        let server = standing.server.as_str();
        match &state {
            State::Connecting => {}
            State::Registered { address } => {
                tracing::info!(server, address, "registered with a name server");
                if self.node.advertise.is_none() && self.node.bind.is_unspecified() {
                    tracing::warn!(
                        server,
                        "the name server sends clients to {address}, the address from which this machine reaches it: \
                         if clients do not reach that, set --advertise"
                    );
                }
            }
            State::Failing(why) => {
                tracing::warn!(
                    server,
                    "this broker is not registered with a name server: {why}; it is tried again"
                );
            }
            State::Left => tracing::info!(server, "left a name server"),
            State::Itself => {
                tracing::warn!(
                    server,
                    "a name server is this broker's own name service, where there is nothing to register: leave it out of \
                     --name-servers"
                );
            }
        }
        standing.state = state;
        standing.since = self.clock.now();
    }

    /// The version of what the broker has to register. What [`parts`](Self::parts) then gives is that, or newer.
    fn version(&self) -> DataVersion {
        let changes = (*self.topics.changes().borrow(), *self.drain.changes().borrow());
        let mut known = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        if known.changes != Some(changes) {
            // The time tells it from what the process before has registered.
            let counter = known.version.counter + 1;
            let version = DataVersion { counter, timestamp: self.clock.now().get(), state_version: 0 };
            *known = Versioned { changes: Some(changes), version };
        }
        known.version
    }

    /// The bodies that register all topics under `version`.
    fn parts(&self, version: DataVersion, topics_per_part: usize) -> impl Iterator<Item = Vec<u8>> {
        let topics = self.topics.all();
        let parts = topics.len().div_ceil(topics_per_part);
        (0..parts).map(move |part| {
            let topics = topics.iter().skip(part * topics_per_part).take(topics_per_part);
            let config = |topic: &Arc<crate::topics::Topic>| TopicConfig {
                // Routes have no place for attributes.
                attributes: std::collections::BTreeMap::new(),
                perm: self.drain.perm(topic.config.perm),
                ..topic.config.clone()
            };
            // Name servers pass over what comes under a version that they know.
            let unfinished = i64::try_from(parts - 1 - part).unwrap_or(0);
            let table = TopicConfigTable {
                data_version: DataVersion { timestamp: version.timestamp - unfinished, ..version },
                topic_config_table: topics.map(|topic| (topic.name.to_string(), config(topic))).collect(),
                mapping_data_version: Some(version),
                topic_queue_mapping_detail_map: Some(std::collections::BTreeMap::new()),
                topic_queue_mapping_info_map: Some(std::collections::BTreeMap::new()),
                ..TopicConfigTable::default()
            };
            RegisterBrokerBody { filter_server_list: Vec::new(), topic_config_serialize_wrapper: table }
                .to_standard_json()
        })
    }

    fn has_left(&self) -> bool {
        self.drain.phase() == Phase::Left
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Standing>> {
        self.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error and its causes as one sentence.
fn sentence(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |sentence, cause| format!("{sentence} ({cause})"))
}
