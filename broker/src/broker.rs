//! Wires everything together: store, services, listeners; and stops it in the opposite order.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use gantry_proto::ids::QueueId;
use gantry_proto::names::{GroupName, TopicName, topics as topic_names};
use tokio::net::TcpListener;

use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Policy, PortsConfig};
use crate::deliver::fleeting::Fleeting;
use crate::deliver::polls::Polls;
use crate::deliver::pop;
use crate::deliver::retry::Retries;
use crate::deliver::scaling::{self, Scaling};
use crate::flow::Flow;
use crate::groups::Groups;
use crate::groups::locks::Locks;
use crate::groups::members::Members;
use crate::groups::modes::Modes;
use crate::groups::offsets::{Key, OffsetTable, Offsets};
use crate::join::Join;
use crate::metrics::Metrics;
use crate::publish::Publisher;
use crate::remoting::{self, context::Services, lanes::Lanes, pace::Alone};
use crate::routes::{Drain, Embedded};
use crate::shutdown::{Drained, Shutdown};
use crate::store::dedup::DedupOptions;
use crate::store::disk::RealDisk;
use crate::store::index::IndexOptions;
use crate::store::retain::Retention;
use crate::store::{FlushPolicy, OpenError, Store, StoreOptions};
use crate::timer::{self, Levels};
use crate::topics::{TopicDefaults, Topics};
use crate::transaction::{self, Transactions};

/// How often the house is kept at the most: a checkpoint when something is new, retention.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// How often the housekeeper looks whether it is wanted sooner.
const HOUSEKEEPER_NAP: Duration = Duration::from_millis(100);
/// How often silent clients and expired locks are looked for.
const SWEEP: Duration = Duration::from_secs(10);
/// How long each stage of a stop may take.
const DRAIN: Duration = Duration::from_secs(10);

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is taken or not allowed.
    #[error("cannot listen on {address}: choose another port or address, or stop who uses it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// A file of the store's configuration cannot be read.
    #[error("cannot read the files in {path}")]
    Config {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: io::Error,
    },
    /// The system gives no event loops for the connections.
    #[error("cannot start the threads that serve connections: raise the limits of open files and of threads")]
    Threads(#[source] io::Error),
    /// Open transactions cannot be read back.
    #[error("cannot read the open transactions")]
    Transactions(#[from] transaction::StoreError),
}

/// A running broker. Dropping it without [`stop`](Self::stop) ends everything at once and leaves the store as a crash
/// would.
#[derive(Debug)]
pub struct Broker {
    services: Arc<Services>,
    name_server: SocketAddr,
    address: SocketAddr,
    /// In the order in which they stop.
    stages: [Stage; 5],
    housekeeper: Housekeeper,
    lanes: Lanes,
}

impl Broker {
    /// Opens the store and listens. When it returns, clients can connect.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let bind = config.node.bind;
        let name = bind_to(bind, config.ports.name).await?;
        let broker = bind_to(bind, config.ports.broker).await?;
        let (name_address, broker_address) = (local(&name)?, local(&broker)?);
        let vip = vip_listener(bind, config.ports.broker, broker_address.port()).await?;
        let background = Stage(Shutdown::new());
        let services = Arc::new(open(config, (name_address, broker_address), &background.0)?);
        let [listeners, connections, requests] =
            [&services.listeners, &services.connections, &services.shutdown]
                .map(|group| Stage(group.clone()));
        let lanes = Lanes::start().map_err(StartError::Threads)?;
        for listener in [Some(name), Some(broker), vip].into_iter().flatten() {
            services
                .listeners
                .spawn("listener", remoting::listen(Arc::clone(&services), listener, lanes.seats()));
        }
        let registrations = Stage(Shutdown::new());
        services.join.start(&registrations.0);
        background.0.spawn("sweep", sweep(Arc::clone(&services), background.0.clone()));
        let housekeeper = Housekeeper::start(Arc::clone(&services.store))
            .map_err(|source| StartError::Config { path: services.config.store.dir.clone(), source })?;
        Ok(Self {
            services,
            name_server: name_address,
            address: broker_address,
            stages: [registrations, listeners, connections, requests, background],
            housekeeper,
            lanes,
        })
    }

    /// Where the name service listens.
    pub fn name_address(&self) -> SocketAddr {
        self.name_server
    }

    /// Where the broker listens.
    pub fn broker_address(&self) -> SocketAddr {
        self.address
    }

    /// What the edges call.
    pub fn services(&self) -> &Arc<Services> {
        &self.services
    }

    /// Stops taking connections, answers what is under way, flushes and closes the store.
    pub async fn stop(self) -> io::Result<()> {
        for Stage(group) in &self.stages {
            if let Drained::Running(left) = group.drain(DRAIN).await {
                tracing::warn!(left, "tasks did not end in time");
            }
        }
        let Self { services, housekeeper, lanes, .. } = self;
        drop(lanes);
        let closed = tokio::task::spawn_blocking(move || {
            housekeeper.stop();
            services.store.close()?;
            if let Err(error) = services.wheel.hand_over() {
                tracing::warn!(%error, "an Apache broker that takes the store over will deliver timer messages again");
            }
            Ok(())
        });
        closed.await.map_err(io::Error::other)?
    }
}

/// Tasks that stop together, and at the latest when this is dropped: nobody else would tell them.
#[derive(Debug)]
struct Stage(Shutdown);

impl Drop for Stage {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Opens the store and builds the services over it.
fn open(
    config: Config,
    (name_service, broker): (SocketAddr, SocketAddr),
    background: &Shutdown,
) -> Result<Services, StartError> {
    let config = Arc::new(config);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let metrics = Arc::new(Metrics::default());
    let dir = config.store.dir.clone();
    let files = dir.join("config");
    let in_config = |source| StartError::Config { path: files.clone(), source };
    let levels = Levels::new(&config.timer);
    let polls = Arc::new(Polls::new(config.limits.waiting_polls));
    let offset_table = OffsetTable::open(&files, Arc::clone(&clock)).map_err(in_config)?;
    let rules = transaction::Rules {
        checks: config.transaction,
        age_ms_max: millis(config.retention.time),
        open_max: config.limits.open_halves,
        ..transaction::Rules::default()
    };
    let (halves, unstarted) = transaction::load(&files, rules, Arc::clone(&metrics)).map_err(in_config)?;
    let (delays, timer) = timer::load(&files, levels.clone(), Arc::clone(&clock)).map_err(in_config)?;
    let (timers, wheel) =
        timer::load_wheel(&dir, Arc::clone(&clock), Arc::clone(&metrics)).map_err(in_config)?;
    let (popped, unstarted_pops) =
        pop::load(&files, Arc::clone(&polls), Arc::clone(&metrics)).map_err(in_config)?;
    // The polls come last: whoever they wake finds everything else done.
    let projections = vec![
        offset_table.projection(),
        Box::new(halves) as _,
        Box::new(delays) as _,
        Box::new(timers) as _,
        Box::new(popped) as _,
        polls.projection(),
    ];
    let store = Store::open(
        &dir,
        &store_options(&config, &levels),
        Arc::new(RealDisk),
        Arc::clone(&clock),
        projections,
    )?;
    let store = Arc::new(store);

    let topics =
        Topics::open(&files, topic_defaults(&config, &levels), Arc::clone(&clock)).map_err(in_config)?;
    let topics = Arc::new(topics);
    let groups = Arc::new(Groups::open(&files, config.groups, Arc::clone(&clock)).map_err(in_config)?);
    let modes = Modes::open(&files, config.groups.max, Arc::clone(&clock)).map_err(in_config)?;
    let members = Members::new(
        Arc::clone(&clock),
        Arc::clone(&metrics),
        config.groups.member_expiry,
        config.groups.max_members,
    );
    let members = Arc::new(members);
    let offsets =
        Offsets::new(&offset_table, Arc::clone(&store), Arc::clone(&metrics), config.groups.max_offsets);
    let offsets = Arc::new(offsets);
    wake_tiers(&offsets, &groups, &polls);
    groups.broadcasts().add_all(offsets.broadcasters(), clock.now());
    let transactions = start_transactions(unstarted, &store, &levels, &members, &offsets)?;
    let timer = timer.start(Arc::clone(&store));
    let wheel = wheel.start(Arc::clone(&store)).map_err(in_config)?;
    let locks = Arc::new(Locks::new(Arc::clone(&clock), config.groups.lock_lease));
    let retries = Retries {
        store: Arc::clone(&store),
        levels: levels.clone(),
        topics: Arc::clone(&topics),
        groups: Arc::clone(&groups),
        locks: Arc::clone(&locks),
    };
    let retries = Arc::new(retries);
    store.set_targets(Arc::clone(&topics) as _);
    let scaling = Scaling::new(scaling::Neighbours {
        store: Arc::clone(&store),
        topics: Arc::clone(&topics),
        offsets: Arc::clone(&offsets),
        members: Arc::clone(&members),
        polls: Arc::clone(&polls),
        grace: config.topics.scale_grace,
    });
    let scaling = Arc::new(scaling);
    let pops = unstarted_pops.start(pop::Neighbours {
        store: Arc::clone(&store),
        topics: Arc::clone(&topics),
        groups: Arc::clone(&groups),
        offsets: Arc::clone(&offsets),
        scaling: Arc::clone(&scaling),
        polls: Arc::clone(&polls),
        metrics: Arc::clone(&metrics),
        in_flight_max: config.limits.popped,
        queues_max: config.groups.max_offsets,
    });
    let drain = Drain::open(&files, &config.node.name, Arc::clone(&clock)).map_err(in_config)?;
    let drain = Arc::new(drain);
    let join = Join::new(
        &config.node,
        (name_service, broker),
        Arc::clone(&topics),
        Arc::clone(&drain),
        Arc::clone(&clock),
    );
    let flow = Arc::new(Flow::new(config.flow, Arc::clone(&clock)));
    let publisher = Publisher::new(
        Arc::clone(&store),
        Arc::clone(&clock),
        Arc::clone(&topics),
        Arc::clone(&transactions),
        Arc::clone(&retries),
        Arc::clone(&drain),
        Arc::clone(&flow),
        levels,
        config.limits.message_bytes as usize,
        (config.node.cluster.clone(), config.topics.scale_grace),
        broker.ip(),
    );
    let stop = background.token();
    background.spawn("offsets", Arc::clone(&offsets).run(stop.clone()));
    background.spawn("back-checks", Arc::clone(&transactions).run(stop.clone()));
    background.spawn("queue scaling", Arc::clone(&scaling).run(stop.clone()));
    background.spawn("pops", Arc::clone(&pops).run(stop.clone()));
    background.spawn("timer", Arc::clone(&timer).run(stop.clone()));
    background.spawn("timer wheel", Arc::clone(&wheel).run(stop.clone()));
    let routes = Embedded::open(
        &files,
        &config.node,
        broker.port(),
        Arc::clone(&topics) as _,
        Arc::clone(&drain),
        Arc::clone(&clock),
    )
    .map_err(in_config)?;
    Ok(Services {
        broker_port: broker.port(),
        started_at: clock.now(),
        locks,
        routes: Arc::new(routes),
        drain,
        join: Arc::new(join),
        config,
        clock,
        store,
        topics,
        groups,
        modes: Arc::new(modes),
        members,
        offsets,
        transactions,
        timer,
        wheel,
        retries,
        pops,
        scaling,
        publisher,
        flow,
        polls,
        expressions: Arc::default(),
        metrics,
        outbound: Arc::default(),
        alone: Alone::default(),
        listeners: Shutdown::new(),
        connections: Shutdown::new(),
        shutdown: Shutdown::new(),
    })
}

fn topic_defaults(config: &Config, levels: &Levels) -> TopicDefaults {
    TopicDefaults {
        broker: config.node.name.clone(),
        cluster: config.node.cluster.clone(),
        auto_create: config.topics.auto_create,
        queues: config.topics.default_queues,
        template_queues: config.topics.template_queues,
        delay_levels: u32::try_from(levels.count()).unwrap_or(u32::MAX),
        dedup: config.dedup.enabled,
        max: config.topics.max,
    }
}

fn store_options(config: &Config, levels: &Levels) -> StoreOptions {
    StoreOptions {
        policy: match config.store.policy {
            Policy::Memory => FlushPolicy::Memory,
            Policy::Disk => FlushPolicy::Disk,
        },
        segment_bytes: config.store.segment_bytes,
        queue_file_bytes: config.store.queue_file_bytes,
        reserve_bytes: config.retention.reserve_bytes,
        staged_bytes_max: config.limits.unwritten_bytes,
        delay_levels: levels.delays_ms(),
        index: IndexOptions { slots: config.store.index_slots, entries: config.store.index_entries },
        dedup: DedupOptions {
            window_ms: millis(config.dedup.time),
            entries: u32::try_from(config.dedup.entries / 2).unwrap_or(u32::MAX).max(1),
        },
        retention: Retention {
            keep_ms: millis(config.retention.time),
            keep_bytes: config.retention.bytes.unwrap_or(0),
            disk_high_ratio: f64::from(config.retention.force_percent) / 100.0,
            disk_refuse_ratio: f64::from(config.retention.refuse_percent) / 100.0,
        },
        ..StoreOptions::default()
    }
}

/// Pulls and pops of a group that comes after another one look again when that one has moved on.
fn wake_tiers(offsets: &Offsets, groups: &Arc<Groups>, polls: &Arc<Polls>) {
    let (groups, polls) = (Arc::clone(groups), Arc::clone(polls));
    offsets.tell_changes(move |key| {
        if groups.is_waited_for(key.group.as_str()) {
            polls.wake_tiers(&(key.topic.clone(), key.queue));
        }
    });
}

/// Starts transactions with what they need of their neighbours.
fn start_transactions(
    unstarted: transaction::Unstarted,
    store: &Arc<Store>,
    levels: &Levels,
    members: &Arc<Members>,
    offsets: &Arc<Offsets>,
) -> Result<Arc<Transactions>, StartError> {
    let half_done = offsets.get(GroupName::TRANSACTION, topic_names::HALF, QueueId::ZERO);
    let offsets = Arc::clone(offsets);
    let note_progress = Box::new(move |progress: transaction::Progress| {
        let group = GroupName::transaction();
        for (topic, offset) in [(TopicName::half(), progress.half), (TopicName::op(), progress.op)] {
            let key = Key { group: group.clone(), topic, queue: QueueId::ZERO };
            if let Err(error) = offsets.note(key, offset) {
                tracing::warn!(%error, "the transaction group's offsets are not kept; only an Apache broker would miss them");
            }
        }
    });
    let neighbours = transaction::Neighbours {
        store: Arc::clone(store),
        levels: levels.clone(),
        members: Arc::clone(members),
        note_progress,
        done_below: half_done,
    };
    Ok(unstarted.start(neighbours)?)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn bind_to(address: IpAddr, port: u16) -> Result<TcpListener, StartError> {
    let address = SocketAddr::new(address, port);
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

fn local(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    listener.local_addr().map_err(|source| StartError::Listen { address: unknown, source })
}

/// The VIP port. With a free broker port it is only a convenience: taken by somebody else, it is left out.
async fn vip_listener(bind: IpAddr, asked: u16, broker: u16) -> Result<Option<TcpListener>, StartError> {
    match bind_to(bind, PortsConfig::vip(broker)).await {
        Ok(listener) => Ok(Some(listener)),
        Err(_) if asked == 0 => Ok(None),
        Err(error) => Err(error),
    }
}

/// Samples the counters and looks for silent clients, expired locks and what is kept for a time only now and then.
async fn sweep(services: Arc<Services>, background: Shutdown) {
    let mut fleeting = Fleeting {
        groups: Arc::clone(&services.groups),
        members: Arc::clone(&services.members),
        offsets: Arc::clone(&services.offsets),
        pops: Arc::clone(&services.pops),
        locks: Arc::clone(&services.locks),
        clock: Arc::clone(&services.clock),
        gone_since: HashMap::new(),
    };
    loop {
        services.metrics.sample(services.clock.now());
        remoting::rates::sample(&services);
        tokio::select! {
            () = background.token().cancelled() => return,
            () = tokio::time::sleep(SWEEP) => {}
        }
        services.members.expire();
        services.locks.sweep();
        fleeting.sweep().await;
        services.flow.sweep();
    }
}

/// The thread that keeps the store's house; it blocks on the disk. It ends soon after this is dropped.
#[derive(Debug)]
struct Housekeeper {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Housekeeper {
    fn start(store: Arc<Store>) -> io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let watched = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("housekeeping".to_owned())
            .spawn(move || keep_house(&store, &watched))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    fn stop(mut self) {
        let thread = self.thread.take();
        drop(self);
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the housekeeping thread panicked");
        }
    }
}

impl Drop for Housekeeper {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_one();
    }
}

fn keep_house(store: &Store, (stop, bell): &(Mutex<bool>, Condvar)) {
    let mut napped = Duration::ZERO;
    let mut failed = false;
    let mut stopping = stop.lock().unwrap_or_else(PoisonError::into_inner);
    while !*stopping {
        stopping = bell.wait_timeout(stopping, HOUSEKEEPER_NAP).unwrap_or_else(PoisonError::into_inner).0;
        napped += HOUSEKEEPER_NAP;
        if *stopping || napped < HOUSEKEEPING && (failed || !store.wants_checkpoint()) {
            continue;
        }
        napped = Duration::ZERO;
        drop(stopping);
        if store.failure().is_none() {
            let kept = store.keep_house();
            failed = kept.is_err();
            if let Err(error) = kept {
                tracing::error!(%error, "housekeeping failed; it is tried again");
            }
        }
        stopping = stop.lock().unwrap_or_else(PoisonError::into_inner);
    }
}
