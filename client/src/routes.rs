//! Where the queues of a topic are: asked of a name server, kept, and asked again every so often.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gantry_proto::ids::QueueId;
use gantry_proto::names::{BrokerName, TopicName};
use gantry_proto::remoting::body::route::{MASTER_ID, RouteData};

use crate::link::Link;
use crate::message::MessageQueue;

const PERM_READ: i32 = 4;
const PERM_WRITE: i32 = 2;
/// Queues that a send may use of a topic that does not exist yet.
pub(crate) const NEW_TOPIC_QUEUES: i32 = 4;
/// Most queues of one topic that a route answer may name.
const QUEUES_MAX: usize = 65_536;
/// A borrowed route is asked for again after this time: the first send will have made a real one.
const BORROWED_FOR: Duration = Duration::from_secs(1);

/// A broker of a route.
#[derive(Debug)]
pub(crate) struct RouteBroker {
    pub name: BrokerName,
    pub master: Option<Arc<Link>>,
    /// All its addresses by broker id; the master's is 0.
    pub links: BTreeMap<i64, Arc<Link>>,
}

/// A queue and its broker.
#[derive(Clone, Debug)]
pub(crate) struct RouteQueue {
    pub queue: MessageQueue,
    pub broker: Arc<RouteBroker>,
}

/// Where a topic is.
#[derive(Debug)]
pub(crate) struct Route {
    pub data: RouteData,
    pub write: Vec<RouteQueue>,
    pub read: Vec<RouteQueue>,
    pub brokers: Vec<Arc<RouteBroker>>,
    /// Counts sends, so that they take the queues in turn.
    next: AtomicUsize,
    /// When it must be asked for again before use: it was borrowed from the template topic.
    stale_at: Option<Instant>,
}

/// Where a route came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The topic exists.
    Own,
    /// The topic does not exist; this is the template's route, for the first sends.
    Borrowed,
}

impl Route {
    pub(crate) fn new(
        topic: &TopicName,
        data: RouteData,
        origin: Origin,
        mut link: impl FnMut(&str) -> Arc<Link>,
    ) -> Self {
        let mut brokers: Vec<Arc<RouteBroker>> = Vec::with_capacity(data.broker_datas.len());
        for broker in &data.broker_datas {
            let Ok(name) = BrokerName::storable(&broker.broker_name) else { continue };
            let links: BTreeMap<i64, Arc<Link>> =
                broker.broker_addrs.iter().map(|(id, address)| (*id, link(address))).collect();
            brokers.push(Arc::new(RouteBroker { name, master: links.get(&MASTER_ID).cloned(), links }));
        }
        let (mut write, mut read) = (Vec::new(), Vec::new());
        let mut queues: Vec<_> = data.queue_datas.iter().collect();
        queues.sort_by(|a, b| a.broker_name.cmp(&b.broker_name));
        for queue in queues {
            let Some(broker) = brokers.iter().find(|broker| broker.name == *queue.broker_name) else {
                continue;
            };
            let put = |list: &mut Vec<RouteQueue>, count: i32| {
                for id in 0..u32::try_from(count).unwrap_or_default() {
                    if list.len() >= QUEUES_MAX {
                        break;
                    }
                    let (topic, id) = (topic.clone(), QueueId::new(id));
                    let queue = MessageQueue { topic, broker: broker.name.clone(), id };
                    list.push(RouteQueue { queue, broker: Arc::clone(broker) });
                }
            };
            if queue.perm & PERM_WRITE != 0 && broker.master.is_some() {
                let count = match origin {
                    Origin::Own => queue.write_queue_nums,
                    Origin::Borrowed => queue.write_queue_nums.min(NEW_TOPIC_QUEUES),
                };
                put(&mut write, count);
            }
            if queue.perm & PERM_READ != 0 && origin == Origin::Own {
                put(&mut read, queue.read_queue_nums);
            }
        }
        let stale_at = (origin == Origin::Borrowed).then(|| Instant::now() + BORROWED_FOR);
        Self { data, write, read, brokers, next: AtomicUsize::new(fastrand::usize(..1 << 16)), stale_at }
    }

    fn is_stale(&self) -> bool {
        self.stale_at.is_some_and(|at| at <= Instant::now())
    }

    pub(crate) fn is_borrowed(&self) -> bool {
        self.stale_at.is_some()
    }

    /// The next queue to send to: in turn, but not on `avoid` nor on a broker that cannot be reached as
    /// long as there are others.
    pub(crate) fn pick(&self, avoid: Option<&BrokerName>) -> Option<&RouteQueue> {
        let count = self.write.len();
        if count == 0 {
            return None;
        }
        if self.brokers.len() == 1 {
            // A remainder is always an index.
            return self.write.get(self.next.fetch_add(1, Ordering::Relaxed) % count);
        }
        let mut fallback = None;
        for _ in 0..count {
            let queue = self.write.get(self.next.fetch_add(1, Ordering::Relaxed) % count)?;
            let resting = queue.broker.master.as_ref().is_none_or(|link| link.is_resting());
            if avoid != Some(&queue.broker.name) && !resting {
                return Some(queue);
            }
            fallback = Some(queue);
        }
        fallback
    }

    /// The queue for all messages of one sharding key, by the hash that Java clients use.
    pub(crate) fn pick_for_key(&self, key: &str) -> Option<&RouteQueue> {
        let count = i64::try_from(self.write.len()).ok().filter(|count| *count > 0)?;
        let hash = i64::from(gantry_proto::record::java_hash(key));
        self.write.get(usize::try_from((hash % count).abs()).ok()?)
    }

    pub(crate) fn broker(&self, name: &BrokerName) -> Option<&Arc<RouteBroker>> {
        self.brokers.iter().find(|broker| broker.name == *name)
    }
}

/// The routes in use.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    table: Mutex<HashMap<TopicName, Arc<Route>>>,
}

impl Routes {
    pub(crate) fn get(&self, topic: &str) -> Option<Arc<Route>> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.get(topic).filter(|route| !route.is_stale()).cloned()
    }

    /// Keeps a route; an unchanged one stays, with its turn.
    pub(crate) fn put(&self, topic: &TopicName, route: Route) -> Arc<Route> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = table.get(topic)
            && old.stale_at.is_none()
            && route.stale_at.is_none()
            && old.data == route.data
        {
            return Arc::clone(old);
        }
        let route = Arc::new(route);
        table.insert(topic.clone(), Arc::clone(&route));
        route
    }

    pub(crate) fn remove(&self, topic: &TopicName) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).remove(topic);
    }

    pub(crate) fn topics(&self) -> Vec<TopicName> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Every broker of every route in use, each address once.
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut links: Vec<Arc<Link>> = table
            .values()
            .flat_map(|route| route.brokers.iter())
            .flat_map(|broker| broker.links.values().cloned())
            .collect();
        links.sort_by(|a, b| a.address().cmp(b.address()));
        links.dedup_by(|a, b| a.address() == b.address());
        links
    }
}
