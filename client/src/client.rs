//! A client: its connections, its routes, and the groups it is in.
//!
//! Two tasks serve it: one sends heartbeats, asks for routes again and reconnects; one hands on what brokers
//! ask. Both end with the last handle, or with [`Client::shutdown`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_proto::names::{GroupName, TopicName, topics};
use gantry_proto::record::UniqKeys;
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::route::RouteData;
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::header::{ExtWrite, OwnedCommand};
use gantry_proto::remoting::request::member::UnregisterClientHeader;
use gantry_proto::remoting::request::nameserver::GetRouteInfoHeader;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::connection::Connection;
use crate::dispatch;
use crate::error::{Error, ErrorKind, Result};
use crate::link::{Link, Made, Wiring};
use crate::members::Members;
use crate::message::now;
use crate::options::{ClientOptions, local_ip};
use crate::producer::ProducerBuilder;
use crate::request::Requests;
use crate::routes::{Origin, Route, Routes};
use crate::trace::{self, Tracer};

/// Requests of brokers that wait to be handed on.
const INBOX_MAX: usize = 1024;
/// Transaction checks that run at once; the broker asks again about others.
const CHECKS_MAX: usize = 256;
/// After a connection broke the keeper lets the server breathe before it comes back.
const RECONNECT_AFTER: Duration = Duration::from_millis(200);
/// When a broker could not be told of our groups, it is tried again after this time.
const BEAT_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long tasks may take to end at shutdown.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// The way to a RocketMQ cluster: shared by producers, consumers and tools. Clones are the same client.
///
/// ```no_run
/// # async fn example() -> gantry_client::Result<()> {
/// use gantry_client::{Client, ClientOptions};
///
/// let client = Client::connect(ClientOptions::new("127.0.0.1:9876")).await?;
/// println!("{} topics", client.admin().topics().await?.len());
/// client.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    core: Arc<Core>,
    /// Ends the tasks when the last handle goes.
    _guard: Arc<DropGuard>,
}

/// What handles and tasks share.
pub(crate) struct Core {
    pub options: ClientOptions,
    pub client_id: String,
    pub uniq_keys: UniqKeys,
    pub members: Members,
    pub routes: Routes,
    /// Requests that wait for their replies.
    pub requests: Requests,
    name_servers: Vec<Arc<Link>>,
    /// The name server in use: an index that grows when one fails.
    name_server: AtomicUsize,
    links: Mutex<HashMap<Arc<str>, Arc<Link>>>,
    wiring: Wiring,
    /// The groups changed: brokers should hear of it now.
    pub beat: Notify,
    /// Writes traces, if that is wanted.
    pub tracer: Option<Tracer>,
    /// Bounds the transaction checks that run at once.
    pub checks: Arc<Semaphore>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("client_id", &self.core.client_id).finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client and connects to a name server. Fails when none can be reached.
    pub async fn connect(options: ClientOptions) -> Result<Self> {
        let addresses = options.name_server_list()?;
        let tracer = options.trace_topic.as_deref().map(TopicName::parse).transpose();
        let tracer = tracer.map_err(|error| Error::from(error).during("trace topic"))?.map(Tracer::new);
        let (tracer, traces) = tracer.unzip();
        let stop = CancellationToken::new();
        let (inbox, requests) = mpsc::channel(INBOX_MAX);
        let (lost, losses) = mpsc::channel(64);
        let wiring = Wiring {
            serialize: options.serialize,
            busy_wait: options.busy_wait,
            connect_timeout: options.connect_timeout,
            inbox,
            stop: stop.clone(),
            tasks: TaskTracker::new(),
            lost,
        };
        let ip = local_ip(addresses.first().map_or("", String::as_str));
        let pid = std::process::id();
        let process = fastrand::u32(..);
        let instance = options.instance_name.clone().unwrap_or_else(|| format!("{pid}#{process:08x}"));
        let core = Arc::new(Core {
            client_id: format!("{ip}@{instance}"),
            uniq_keys: UniqKeys::new(ip, pid, process),
            members: Members::default(),
            routes: Routes::default(),
            requests: Requests::default(),
            name_servers: addresses
                .into_iter()
                .map(|address| Arc::new(Link::new(address.into(), wiring.clone())))
                .collect(),
            name_server: AtomicUsize::new(0),
            links: Mutex::default(),
            wiring,
            beat: Notify::new(),
            tracer,
            checks: Arc::new(Semaphore::new(CHECKS_MAX)),
            options,
        });
        core.name_server().await?;
        core.wiring.tasks.spawn(dispatch::run(Arc::downgrade(&core), requests, stop.clone()));
        core.wiring.tasks.spawn(keep(Arc::clone(&core), losses, stop.clone()));
        if let Some(traces) = traces {
            core.wiring.tasks.spawn(trace::run(Arc::clone(&core), traces, stop.clone()));
        }
        Ok(Self { core, _guard: Arc::new(stop.drop_guard()) })
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// A handle that does not keep the client's tasks from ending.
    pub(crate) fn borrowed(core: Arc<Core>) -> Self {
        Self { core, _guard: Arc::new(CancellationToken::new().drop_guard()) }
    }

    /// The name by which brokers know this client.
    pub fn id(&self) -> &str {
        &self.core.client_id
    }

    /// A producer of `group`, to be configured and started.
    pub fn producer(&self, group: impl AsRef<str>) -> ProducerBuilder {
        ProducerBuilder::new(self.clone(), group.as_ref())
    }

    /// Operations for operators and tools.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// Says goodbye to the brokers and closes every connection. Shut producers and consumers down first:
    /// they have work to finish. Later calls fail with [`ErrorKind::Closed`].
    pub async fn shutdown(&self) {
        if let Some(tracer) = &self.core.tracer {
            // What is not sent by then is given up.
            let _ = tokio::time::timeout(DRAIN_MAX, tracer.flush()).await;
        }
        let (producers, consumers) = self.core.members.names();
        for group in producers {
            self.core.unregister(Some(&group), None).await;
        }
        for group in consumers {
            self.core.unregister(None, Some(&group)).await;
        }
        self.core.wiring.stop.cancel();
        self.core.wiring.tasks.close();
        // Whoever is still not done then hangs on a socket; the runtime ends it.
        let _ = tokio::time::timeout(DRAIN_MAX, self.core.wiring.tasks.wait()).await;
    }
}

impl Core {
    pub(crate) fn timeout(&self) -> Duration {
        self.options.timeout
    }

    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.wiring.stop
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.wiring.tasks
    }

    /// The link to a broker's address.
    pub(crate) fn link(&self, address: &str) -> Arc<Link> {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = links.get(address) {
            return Arc::clone(link);
        }
        let address: Arc<str> = address.into();
        let link = Arc::new(Link::new(Arc::clone(&address), self.wiring.clone()));
        links.insert(address, Arc::clone(&link));
        link
    }

    /// A connection to a broker. A new one starts with a heartbeat: the broker must know whose it is.
    pub(crate) async fn broker(&self, link: &Link) -> Result<Connection> {
        let (connection, made) = link.open().await?;
        if made == Made::Now
            && let Err(error) = self.heartbeat_on(&connection).await
        {
            tracing::info!(broker = %connection.address(), "first heartbeat failed: {error}");
        }
        Ok(connection)
    }

    /// A connection to a name server: the one in use, or the next that can be reached.
    pub(crate) async fn name_server(&self) -> Result<Connection> {
        let mut last = None;
        for _ in 0..self.name_servers.len() {
            let at = self.name_server.load(Ordering::Relaxed);
            let Some(link) = self.name_servers.get(at % self.name_servers.len()) else { break };
            match link.open().await {
                Ok((connection, _)) => return Ok(connection),
                Err(error) => {
                    last = Some(error);
                    self.leave_name_server(at);
                }
            }
        }
        let what = "no name server can be reached";
        Err(last.map_or_else(|| Error::new(ErrorKind::Connect, what), |error| error.during(what)))
    }

    fn leave_name_server(&self, at: usize) {
        // Only the first who sees it fail moves on.
        let _ =
            self.name_server.compare_exchange(at, at.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Asks a name server; another one when the first does not answer.
    pub(crate) async fn ask_name_server(
        &self,
        code: RequestCode,
        header: &(impl ExtWrite + ?Sized + Sync),
    ) -> Result<OwnedCommand> {
        let mut tries = 0;
        loop {
            let at = self.name_server.load(Ordering::Relaxed);
            let connection = self.name_server().await?;
            match connection.call(code, header, &[], self.timeout()).await {
                Err(error)
                    if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::ConnectionLost)
                        && tries < self.name_servers.len() =>
                {
                    tries += 1;
                    self.leave_name_server(at);
                }
                other => return other,
            }
        }
    }

    /// The route of a topic that exists, from memory or from a name server.
    pub(crate) async fn route(&self, topic: &TopicName) -> Result<Arc<Route>> {
        match self.routes.get(topic.as_str()) {
            Some(route) if !route.is_borrowed() => Ok(route),
            _ => self.refresh(topic).await,
        }
    }

    /// The route to send by: for an unknown topic that of the template, whose brokers may create it.
    pub(crate) async fn route_to_send(&self, topic: &TopicName) -> Result<Arc<Route>> {
        if let Some(route) = self.routes.get(topic.as_str()) {
            return Ok(route);
        }
        TopicName::parse(topic.as_str()).map_err(|error| Error::from(error).during(topic))?;
        match self.refresh(topic).await {
            Err(error) if error.kind() == ErrorKind::NoRoute => {
                let Ok(data) = self.ask_route(topics::DEFAULT).await else { return Err(error) };
                let route = Route::new(topic, data, Origin::Borrowed, |address| self.link(address));
                Ok(self.routes.put(topic, route))
            }
            other => other,
        }
    }

    /// Asks for the route of a topic.
    pub(crate) async fn refresh(&self, topic: &TopicName) -> Result<Arc<Route>> {
        let data = self.ask_route(topic.as_str()).await?;
        let route = Route::new(topic, data, Origin::Own, |address| self.link(address));
        Ok(self.routes.put(topic, route))
    }

    async fn ask_route(&self, topic: &str) -> Result<RouteData> {
        let header = GetRouteInfoHeader { topic, accept_standard_json_only: Some(true) };
        match self.ask_name_server(RequestCode::GetRouteinfoByTopic, &header).await {
            Ok(answer) => Ok(RouteData::from_json(&answer.body)?),
            Err(error) if error.code() == Some(ResponseCode::TopicNotExist) => {
                Err(Error::new(ErrorKind::NoRoute, format!("no broker has topic {topic}")).because(error))
            }
            Err(error) => Err(error.during(format_args!("asking for the route of {topic}"))),
        }
    }

    async fn heartbeat_on(&self, connection: &Connection) -> Result<()> {
        let Some(data) = self.members.heartbeat(&self.client_id) else { return Ok(()) };
        connection.call(RequestCode::HeartBeat, &(), &data.to_json(), self.timeout()).await?;
        Ok(())
    }

    /// Lets every broker in use know the groups of this client; whether all heard it.
    pub(crate) async fn heartbeat(&self) -> bool {
        let mut heard = true;
        if self.members.heartbeat(&self.client_id).is_none() {
            return heard;
        }
        for link in self.routes.links() {
            let connected = link.connected();
            let beat = async {
                match &connected {
                    Some(connection) => self.heartbeat_on(connection).await,
                    // Connecting beats by itself.
                    None => self.broker(&link).await.map(drop),
                }
            };
            if let Err(error) = beat.await {
                tracing::info!(broker = %link.address(), "heartbeat failed: {error}");
                heard = false;
            }
        }
        heard
    }

    /// Tells the connected brokers that a group of this client is gone.
    pub(crate) async fn unregister(&self, producer: Option<&GroupName>, consumer: Option<&GroupName>) {
        let header = UnregisterClientHeader {
            client_id: self.client_id.clone(),
            producer_group: producer.map(|group| group.as_str().to_owned()),
            consumer_group: consumer.map(|group| group.as_str().to_owned()),
        };
        for link in self.routes.links() {
            let Some(connection) = link.connected() else { continue };
            if let Err(error) =
                connection.call(RequestCode::UnregisterClient, &header, &[], self.timeout()).await
            {
                // The broker forgets us by itself when heartbeats stay out.
                tracing::info!(broker = %link.address(), "saying goodbye failed: {error}");
            }
        }
    }

    async fn refresh_routes(&self) {
        for topic in self.routes.topics() {
            match self.refresh(&topic).await {
                Ok(_) => {}
                // Nobody has it: whoever uses it next finds out by himself.
                Err(error) if error.kind() == ErrorKind::NoRoute => self.routes.remove(&topic),
                // The old route is better than none.
                Err(error) => tracing::info!(%topic, "asking for the route again failed: {error}"),
            }
        }
    }

    /// A new message id.
    pub(crate) fn next_id(&self) -> String {
        let mut id = String::with_capacity(32);
        self.uniq_keys.next_into(now(), &mut id);
        id
    }
}

/// Keeps brokers informed and routes fresh.
async fn keep(core: Arc<Core>, mut losses: mpsc::Receiver<Arc<str>>, stop: CancellationToken) {
    let every = |period: Duration| {
        let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        interval
    };
    let mut beats = every(core.options.heartbeat_interval.max(Duration::from_millis(10)));
    let mut routes = every(core.options.route_interval.max(Duration::from_millis(10)));
    let mut unheard = false;
    loop {
        let work = async {
            tokio::select! {
                _ = beats.tick() => core.heartbeat().await,
                () = core.beat.notified() => core.heartbeat().await,
                () = tokio::time::sleep(BEAT_AGAIN_AFTER), if unheard => core.heartbeat().await,
                _ = routes.tick() => {
                    core.refresh_routes().await;
                    !unheard
                }
                Some(address) = losses.recv() => {
                    tracing::info!(server = %address, "connection ended");
                    tokio::time::sleep(RECONNECT_AFTER).await;
                    while losses.try_recv().is_ok() {}
                    core.heartbeat().await
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            heard = work => unheard = !heard,
        }
    }
}
