//! Who is alive: the clients that said by heartbeat that they belong to a group, and what they subscribe to.
//!
//! Nothing here is stored; after a restart clients register again with their next heartbeat. When a
//! consumer group's members or subscriptions change, all of its members are told at once.
//!
//! Members of one group must subscribe alike, because each takes whole queues. When they do not, what the
//! broker gives out for a topic is all that one of them wants, so that it withholds nothing, and the
//! group is counted and named once in the log.

mod announce;
mod calls;
mod conflicts;
mod peer;
#[cfg(test)]
mod tests;
mod unite;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gantry_proto::ids::Millis;
use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::remoting::body::heartbeat::{
    ConsumeFromWhere, ConsumeType, ConsumerData, MessageModel, SubscriptionData,
};

use crate::clock::Clock;
use crate::metrics::Metrics;

pub use calls::{ANSWER_WITHIN, Call, CallAnswer, CallError};
pub use peer::{CheckRequest, Notice, OffsetReset, Outbox, Peer};
pub use unite::{Accord, Wanted};

/// Subscriptions that one member may have in one group.
const SUBSCRIPTIONS_MAX: usize = 4096;

/// What a member said of its consumer group in its last heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumption {
    /// Where members start that find no offset.
    pub from_where: ConsumeFromWhere,
    /// Push, pull or pop.
    pub consume_type: ConsumeType,
    /// Whether one member or all get a message.
    pub model: MessageModel,
}

/// A member as an operator sees it.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its connection.
    pub peer: Arc<Peer>,
    /// Its last heartbeat.
    pub seen: Millis,
}

/// A consumer group as an operator sees it.
#[derive(Clone, Debug)]
pub struct Consumers {
    /// Its members, ordered by client id.
    pub members: Vec<Member>,
    /// What the last heartbeat said.
    pub consumption: Consumption,
    /// What the group gets of each topic.
    pub subscriptions: BTreeMap<TopicName, Arc<SubscriptionData>>,
    /// Topics to which the members do not subscribe alike.
    pub conflicts: BTreeSet<TopicName>,
}

/// Why a client was not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The table of members is full.
    #[error("{max} clients are registered, which is the limit: stop some or raise groups.max_members")]
    Full {
        /// The bound.
        max: usize,
    },
    /// One member subscribes to too many topics.
    #[error("{count} subscriptions in one group, the limit is {SUBSCRIPTIONS_MAX}: use several groups")]
    TooManySubscriptions {
        /// How many there were.
        count: usize,
    },
}

#[derive(Debug)]
struct Consumer {
    peer: Arc<Peer>,
    seen: Millis,
    subscriptions: BTreeMap<TopicName, Arc<SubscriptionData>>,
}

#[derive(Debug)]
struct ConsumerGroup {
    consumption: Consumption,
    /// Whether changes are told to the members.
    tell: bool,
    members: BTreeMap<Arc<str>, Consumer>,
    /// What one of the members wants.
    effective: BTreeMap<TopicName, Wanted>,
    conflicts: BTreeSet<TopicName>,
}

#[derive(Debug, Default)]
struct ProducerGroup {
    members: BTreeMap<Arc<str>, Member>,
    /// The client that was asked last.
    asked: Option<Arc<str>>,
}

#[derive(Debug, Default)]
struct Table {
    consumers: HashMap<GroupName, ConsumerGroup>,
    producers: HashMap<GroupName, ProducerGroup>,
    /// The groups in which a connection has members.
    by_connection: HashMap<u64, HashSet<GroupName>>,
    /// The producer groups of each client.
    produces_in: HashMap<Arc<str>, BTreeSet<GroupName>>,
    len: usize,
}

/// All members of all groups.
#[derive(Debug)]
pub struct Members {
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    expiry_ms: u64,
    max: usize,
    /// Counts what may have changed the subscriptions of a group.
    changes: AtomicU64,
    /// Guards all members. Held for map operations only; notices are sent afterwards.
    table: Mutex<Table>,
}

impl Members {
    /// No members; each will count as gone `expiry` after its last heartbeat. At most `max` clients are
    /// registered, one counted for each of its groups.
    pub fn new(clock: Arc<dyn Clock>, metrics: Arc<Metrics>, expiry: Duration, max: usize) -> Self {
        let expiry_ms = u64::try_from(expiry.as_millis()).unwrap_or(u64::MAX);
        Self { clock, metrics, expiry_ms, max, changes: AtomicU64::new(0), table: Mutex::default() }
    }

    /// Registers a producer, or renews it. Returns whether it joined the group with this.
    pub fn register_producer(&self, group: &GroupName, peer: &Arc<Peer>) -> Result<Change, RegisterError> {
        let member = Member { peer: Arc::clone(peer), seen: self.clock.now() };
        let mut table = self.lock();
        let known =
            table.producers.get(group).is_some_and(|group| group.members.contains_key(&peer.client_id));
        if !known && table.len >= self.max {
            return Err(RegisterError::Full { max: self.max });
        }
        let members = &mut table.producers.entry(group.clone()).or_default().members;
        let before = members.insert(Arc::clone(&peer.client_id), member);
        if !known {
            table.produces_in.entry(Arc::clone(&peer.client_id)).or_default().insert(group.clone());
        }
        table.unlink_replaced(group, before.map(|member| member.peer), peer);
        table.by_connection.entry(peer.connection).or_default().insert(group.clone());
        table.len += usize::from(!known);
        self.metrics.members.set(table.len as u64);
        Ok(if known { Change::No } else { Change::Yes })
    }

    /// Registers a consumer, or renews it. `data` without subscriptions keeps those of the heartbeat before
    /// when `keep` says so. `tell` is the group's configuration: whether its members hear of changes.
    /// Returns whether anything changed for the group.
    pub fn register_consumer(
        &self,
        group: &GroupName,
        peer: &Arc<Peer>,
        data: &ConsumerData,
        keep: Subscriptions,
        tell: bool,
    ) -> Result<Change, RegisterError> {
        let count = data.subscription_data_set.len();
        if count > SUBSCRIPTIONS_MAX {
            return Err(RegisterError::TooManySubscriptions { count });
        }
        let now = self.clock.now();
        let mut table = self.lock();
        let known = table.consumers.get(group).and_then(|group| group.members.get(&peer.client_id));
        if known.is_none() && table.len >= self.max {
            return Err(RegisterError::Full { max: self.max });
        }
        let joined = known.is_none_or(|member| member.peer.connection != peer.connection);
        let old = known.map(|member| &member.subscriptions);
        let subscriptions = match (keep, old) {
            (Subscriptions::AsBefore, Some(old)) => old.clone(),
            _ => subscriptions_of(data, old),
        };
        table.len += usize::from(known.is_none());
        let state = table.consumers.entry(group.clone()).or_insert_with(|| ConsumerGroup::new(data));
        state.tell = tell;
        state.consumption = consumption_of(data);
        let member = Consumer { peer: Arc::clone(peer), seen: now, subscriptions };
        let before = state.members.insert(Arc::clone(&peer.client_id), member);
        let change = if state.recompute(group, &self.metrics) || joined { Change::Yes } else { Change::No };
        let told = if change == Change::Yes { state.to_tell() } else { Vec::new() };
        if change == Change::Yes {
            self.changes.fetch_add(1, Ordering::SeqCst);
        }
        table.unlink_replaced(group, before.map(|member| member.peer), peer);
        table.by_connection.entry(peer.connection).or_default().insert(group.clone());
        self.metrics.members.set(table.len as u64);
        drop(table);
        self.tell(group, &told);
        Ok(change)
    }

    /// A client leaves its groups, as it says itself.
    pub fn unregister(&self, client_id: &str, producer: Option<&str>, consumer: Option<&str>) {
        let mut table = self.lock();
        if let Some(group) = producer {
            table.remove_producer(group, |id, _| id == client_id);
        }
        let told =
            consumer.and_then(|group| table.remove_consumer(group, &self.metrics, |id, _| id == client_id));
        self.metrics.members.set(table.len as u64);
        drop(table);
        self.tell_all(told);
    }

    /// A connection is closed: whoever was registered through it is gone.
    pub fn connection_closed(&self, connection: u64) {
        let mut table = self.lock();
        let Some(groups) = table.by_connection.remove(&connection) else { return };
        let mut told = Vec::new();
        for group in &groups {
            table.remove_producer(group.as_str(), |_, member| member.peer.connection == connection);
            let gone = |_: &str, member: &Consumer| member.peer.connection == connection;
            told.extend(table.remove_consumer(group.as_str(), &self.metrics, gone));
        }
        self.metrics.members.set(table.len as u64);
        drop(table);
        self.tell_all(told);
    }

    /// Drops clients that were silent too long. To be called every ten seconds or so. Returns how many.
    pub fn expire(&self) -> usize {
        let now = self.clock.now();
        let silent = |seen: Millis| now.since(seen) > self.expiry_ms;
        let mut table = self.lock();
        table.correct(now);
        let before = table.len;
        let stale: Vec<_> = table
            .consumers
            .iter()
            .filter(|(_, group)| group.members.values().any(|member| silent(member.seen)))
            .map(|(group, _)| group.clone())
            .collect();
        let producers: Vec<_> = table.producers.keys().cloned().collect();
        for group in producers {
            table.remove_producer(group.as_str(), |_, member| silent(member.seen));
        }
        let mut told = Vec::new();
        for group in stale {
            told.extend(
                table.remove_consumer(group.as_str(), &self.metrics, |_, member| silent(member.seen)),
            );
        }
        let dropped = before - table.len;
        self.metrics.members.set(table.len as u64);
        drop(table);
        self.metrics.members_expired.add(dropped as u64);
        self.tell_all(told);
        dropped
    }

    /// Client ids of a consumer group, in order.
    pub fn consumers_of(&self, group: &str) -> Vec<Arc<str>> {
        let table = self.lock();
        table.consumers.get(group).map(|group| group.members.keys().cloned().collect()).unwrap_or_default()
    }

    /// A consumer group with its members; `None` when nobody is online.
    pub fn consumer_group(&self, group: &str) -> Option<Consumers> {
        let table = self.lock();
        let group = table.consumers.get(group)?;
        let members = group.members.values();
        Some(Consumers {
            members: members
                .map(|member| Member { peer: Arc::clone(&member.peer), seen: member.seen })
                .collect(),
            consumption: group.consumption.clone(),
            subscriptions: group
                .effective
                .iter()
                .map(|(topic, wanted)| (topic.clone(), Arc::clone(&wanted.data)))
                .collect(),
            conflicts: group.conflicts.clone(),
        })
    }

    /// The connection of one member of a consumer group.
    pub fn consumer(&self, group: &str, client_id: &str) -> Option<Arc<Peer>> {
        let table = self.lock();
        Some(Arc::clone(&table.consumers.get(group)?.members.get(client_id)?.peer))
    }

    /// A consumer group's message model; `None` when nobody is online.
    pub fn model_of(&self, group: &str) -> Option<MessageModel> {
        self.lock().consumers.get(group).map(|group| group.consumption.model.clone())
    }

    /// Where the members of a consumer group say that it begins; `None` when nobody is online.
    pub fn from_where(&self, group: &str) -> Option<ConsumeFromWhere> {
        self.lock().consumers.get(group).map(|group| group.consumption.from_where.clone())
    }

    /// A number that is another one when the subscriptions of some group may have changed.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// What a consumer group gets of a topic.
    pub fn wanted(&self, group: &str, topic: &str) -> Option<Wanted> {
        self.lock().consumers.get(group)?.effective.get(topic).cloned()
    }

    /// What a consumer group gets of a topic, as tools see it: the newest of the members' subscriptions that cannot
    /// be told as one.
    pub fn subscription(&self, group: &str, topic: &str) -> Option<Arc<SubscriptionData>> {
        self.wanted(group, topic).map(|wanted| wanted.data)
    }

    /// Whether anybody of the consumer group is online.
    pub fn is_online(&self, group: &str) -> bool {
        self.lock().consumers.contains_key(group)
    }

    /// Consumer groups with members that subscribe to the topic, in order.
    pub fn groups_subscribing(&self, topic: &str) -> BTreeSet<GroupName> {
        let table = self.lock();
        let subscribing = table.consumers.iter().filter(|(_, group)| group.effective.contains_key(topic));
        subscribing.map(|(group, _)| group.clone()).collect()
    }

    /// The next live member of a producer group, each in its turn.
    pub fn any_producer(&self, group: &str) -> Option<Arc<Peer>> {
        use std::ops::Bound;
        let mut table = self.lock();
        let group = table.producers.get_mut(group)?;
        let after = group.asked.take().map_or(Bound::Unbounded, Bound::Excluded);
        let next = group.members.range::<Arc<str>, _>((after, Bound::Unbounded)).next();
        let (id, member) = next.or_else(|| group.members.iter().next())?;
        let peer = Arc::clone(&member.peer);
        group.asked = Some(Arc::clone(id));
        Some(peer)
    }

    /// Hands a back-check to a live member of the producer group; members whose outbox is full are passed
    /// over. `false`: nobody took it.
    pub fn ask_producer(&self, group: &str, request: CheckRequest) -> bool {
        let tries = self.producers_of(group).len();
        let notice = Notice::CheckTransaction(Box::new(request));
        (0..tries).any(|_| self.any_producer(group).is_some_and(|peer| peer.notify(notice.clone())))
    }

    /// Members of a producer group, ordered by client id.
    pub fn producers_of(&self, group: &str) -> Vec<Member> {
        self.lock()
            .producers
            .get(group)
            .map(|group| group.members.values().cloned().collect())
            .unwrap_or_default()
    }

    /// The producer with this client id, of whatever group, as its last heartbeat came.
    pub fn producer(&self, client_id: &str) -> Option<Arc<Peer>> {
        let table = self.lock();
        let groups = table.produces_in.get(client_id)?.iter();
        let members = groups.filter_map(|group| table.producers.get(group)?.members.get(client_id));
        members.max_by_key(|member| member.seen).map(|member| Arc::clone(&member.peer))
    }

    /// All producer groups with their members.
    pub fn all_producers(&self) -> BTreeMap<GroupName, Vec<Member>> {
        let table = self.lock();
        let all = table.producers.iter();
        all.map(|(name, group)| (name.clone(), group.members.values().cloned().collect())).collect()
    }

    /// All consumer groups that have members, in order.
    pub fn consumer_groups(&self) -> BTreeSet<GroupName> {
        self.lock().consumers.keys().cloned().collect()
    }

    fn tell_all(&self, told: impl IntoIterator<Item = (GroupName, Vec<Arc<Peer>>)>) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        for (group, peers) in told {
            self.tell(&group, &peers);
        }
    }

    fn tell(&self, group: &GroupName, peers: &[Arc<Peer>]) {
        for peer in peers {
            if !peer.notify(Notice::MembersChanged { group: group.clone() }) {
                // It learns of the change when it asks by itself, within 20 seconds.
                self.metrics.notices_dropped.bump();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether something changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Members or subscriptions are others than before.
    Yes,
    /// All is as it was.
    No,
}

/// Which subscriptions a heartbeat speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subscriptions {
    /// Those that it lists.
    Listed,
    /// Those of the member's last full heartbeat.
    AsBefore,
}

impl Table {
    /// Nobody was seen later than `now`: the clock was set back.
    fn correct(&mut self, now: Millis) {
        for member in self.producers.values_mut().flat_map(|group| group.members.values_mut()) {
            member.seen = member.seen.min(now);
        }
        for member in self.consumers.values_mut().flat_map(|group| group.members.values_mut()) {
            member.seen = member.seen.min(now);
        }
    }

    fn remove_producer(&mut self, group: &str, gone: impl Fn(&str, &Member) -> bool) {
        let Some(state) = self.producers.get_mut(group) else { return };
        let mut left = Vec::new();
        let mut clients = Vec::new();
        state.members.retain(|id, member| {
            let stays = !leaves(gone(id, member), &member.peer, &mut left);
            if !stays {
                clients.push(Arc::clone(id));
            }
            stays
        });
        self.len -= clients.len();
        if state.members.is_empty() {
            self.producers.remove(group);
        }
        for client in clients {
            self.forget_producing(&client, group);
        }
        self.unlink(group, &left);
    }

    /// A client is no producer of the group any more.
    fn forget_producing(&mut self, client: &str, group: &str) {
        if let Some(groups) = self.produces_in.get_mut(client) {
            groups.remove(group);
            if groups.is_empty() {
                self.produces_in.remove(client);
            }
        }
    }

    /// A client registered anew, perhaps on another connection.
    fn unlink_replaced(&mut self, group: &GroupName, before: Option<Arc<Peer>>, now: &Peer) {
        if let Some(before) = before.filter(|before| before.connection != now.connection) {
            self.unlink(group.as_str(), &[before.connection]);
        }
    }

    /// Forgets that these connections have members in the group, unless they have others in it.
    fn unlink(&mut self, group: &str, connections: &[u64]) {
        for connection in connections {
            let consumes = self.consumers.get(group).is_some_and(|group| {
                group.members.values().any(|member| member.peer.connection == *connection)
            });
            let produces = self.producers.get(group).is_some_and(|group| {
                group.members.values().any(|member| member.peer.connection == *connection)
            });
            if consumes || produces {
                continue;
            }
            if let Some(groups) = self.by_connection.get_mut(connection) {
                groups.remove(group);
                if groups.is_empty() {
                    self.by_connection.remove(connection);
                }
            }
        }
    }

    /// Removes members; the result is whom to tell, when there is somebody left to tell something.
    fn remove_consumer(
        &mut self,
        group: &str,
        metrics: &Metrics,
        gone: impl Fn(&str, &Consumer) -> bool,
    ) -> Option<(GroupName, Vec<Arc<Peer>>)> {
        let name = self.consumers.get_key_value(group)?.0.clone();
        let state = self.consumers.get_mut(group)?;
        let before = state.members.len();
        let mut left = Vec::new();
        state.members.retain(|id, member| !leaves(gone(id, member), &member.peer, &mut left));
        self.len -= before - state.members.len();
        let mut told = None;
        if state.members.is_empty() {
            self.consumers.remove(group);
        } else if !left.is_empty() {
            state.recompute(&name, metrics);
            told = Some(state.to_tell());
        }
        self.unlink(group, &left);
        told.map(|told| (name, told))
    }
}

/// Notes the connection of a member that is gone.
fn leaves(gone: bool, peer: &Peer, left: &mut Vec<u64>) -> bool {
    if gone {
        left.push(peer.connection);
    }
    gone
}

impl ConsumerGroup {
    fn new(data: &ConsumerData) -> Self {
        Self {
            consumption: consumption_of(data),
            tell: true,
            members: BTreeMap::new(),
            effective: BTreeMap::new(),
            conflicts: BTreeSet::new(),
        }
    }

    fn to_tell(&self) -> Vec<Arc<Peer>> {
        // In a broadcasting group every member has every queue: there is nothing to divide anew.
        if !self.tell || self.consumption.model == MessageModel::Broadcasting {
            return Vec::new();
        }
        self.members.values().map(|member| Arc::clone(&member.peer)).collect()
    }

    /// Unites the members' subscriptions anew; returns whether the result differs from before.
    fn recompute(&mut self, group: &GroupName, metrics: &Metrics) -> bool {
        let mut effective: BTreeMap<TopicName, Wanted> = BTreeMap::new();
        let mut conflicts = BTreeSet::new();
        for member in self.members.values() {
            for (topic, subscription) in &member.subscriptions {
                match effective.get_mut(topic) {
                    None => {
                        effective.insert(topic.clone(), Wanted::by(subscription));
                    }
                    Some(wanted) => {
                        wanted.add(subscription);
                        if wanted.accord == Accord::Mixed {
                            conflicts.insert(topic.clone());
                        }
                    }
                }
            }
        }
        // A topic to which only some subscribe starves in the queues of the others.
        let all = self.members.values();
        let missed = |topic: &TopicName| all.clone().any(|member| !member.subscriptions.contains_key(topic));
        conflicts.extend(effective.keys().filter(|topic| missed(topic)).cloned());
        if self.conflicts.is_empty() && !conflicts.is_empty() {
            metrics.subscription_conflicts.bump();
            let topics: Vec<_> = conflicts.iter().map(TopicName::as_str).collect();
            tracing::warn!(%group, ?topics, "members of the group do not subscribe alike: make their topics and expressions equal");
        }
        self.conflicts = conflicts;
        let changed = self.effective.len() != effective.len()
            || self
                .effective
                .iter()
                .any(|(topic, old)| effective.get(topic).is_none_or(|new| !old.is_alike(new)));
        self.effective = effective;
        changed
    }
}

fn consumption_of(data: &ConsumerData) -> Consumption {
    Consumption {
        from_where: data.consume_from_where.clone(),
        consume_type: data.consume_type.clone(),
        model: data.message_model.clone(),
    }
}

/// The subscriptions of a heartbeat by topic; equal ones share the memory of the heartbeat before.
fn subscriptions_of(
    data: &ConsumerData,
    old: Option<&BTreeMap<TopicName, Arc<SubscriptionData>>>,
) -> BTreeMap<TopicName, Arc<SubscriptionData>> {
    let mut subscriptions = BTreeMap::new();
    for subscription in &data.subscription_data_set {
        let known = old.and_then(|old| old.get_key_value(subscription.topic.as_str()));
        if let Some((topic, known)) = known.filter(|(_, known)| ***known == *subscription) {
            subscriptions.insert(topic.clone(), Arc::clone(known));
        } else if let Ok(topic) = TopicName::storable(&subscription.topic) {
            subscriptions.insert(topic, Arc::new(subscription.clone()));
        }
    }
    subscriptions
}
