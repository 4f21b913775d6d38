//! The life of one push consumer: its queues are shared out, its offsets committed, its brokers answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gantry_proto::ids::{Millis, QueueOffset};
use gantry_proto::names::{GroupName, TopicKind, TopicName};
use gantry_proto::record::TagExpression;
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::connection::ConsumerIdList;
use gantry_proto::remoting::body::heartbeat::{CheckClientRequestBody, MessageModel, SubscriptionData};
use gantry_proto::remoting::body::queues::{LockBatchBody, LockBatchResponseBody};
use gantry_proto::remoting::codes::RequestCode;
use gantry_proto::remoting::request::member::ConsumerGroupHeader;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fetch::fetch;
use super::process_queue::{Limits, ProcessQueue};
use super::work::{Backlog, work};
use super::{ConsumeFrom, Handler};
use crate::client::Core;
use crate::connection::FromServer;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Selector;
use crate::message::{MessageQueue, now};
use crate::offsets::{self, LocalOffsets};
use crate::producer::Producer;
use crate::queues::Unset;
use crate::rebalance::allocate;

const REBALANCE_EVERY: Duration = Duration::from_secs(20);
/// A topic without a route, or a broker that did not answer, is tried again sooner.
const REBALANCE_AGAIN_AFTER: Duration = Duration::from_secs(1);
const COMMIT_EVERY: Duration = Duration::from_secs(5);
/// Brokers keep what silent members committed for an hour at least.
const SHOW_EVERY: Duration = Duration::from_secs(600);
const LOCK_EVERY: Duration = Duration::from_secs(20);
/// Brokers keep a lock for 60 s; we rely on it for half of that.
pub(crate) const LOCK_TRUST: Duration = Duration::from_secs(30);

/// What a builder was told.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub model: MessageModel,
    pub order: Order,
    pub from: ConsumeFrom,
    pub concurrency: usize,
    pub batch: u32,
    pub wait: Duration,
    pub limits: Limits,
    pub max_reconsume_times: Option<u32>,
    pub drain: Duration,
}

/// How the messages of a queue relate to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Concurrent,
    Orderly,
}

/// Who keeps the offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// The consumer itself.
    Itself,
    /// Brokers, under this name.
    Brokers(GroupName),
}

/// What is wanted of one topic.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    pub filter: Selector,
    pub data: SubscriptionData,
}

/// What the tasks of one push consumer share.
pub(crate) struct Group {
    pub core: Arc<Core>,
    pub name: GroupName,
    pub keeps: Keeps,
    pub settings: Settings,
    pub subscriptions: BTreeMap<TopicName, Arc<Subscription>>,
    pub handler: Handler,
    pub backlog: Backlog,
    pub stop: CancellationToken,
    pub inner_producer: Producer,
    pub started_at: Millis,
    /// Guards the queues that are ours.
    pub queues: Mutex<BTreeMap<MessageQueue, Arc<ProcessQueue>>>,
    /// Guards the offsets of a broadcasting consumer.
    pub local: Mutex<LocalOffsets>,
    /// Tasks that pull; they end with their queue.
    pub fetchers: TaskTracker,
}

/// Whether all topics were shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shared {
    All,
    Some,
}

impl Group {
    pub(crate) fn lock_queues(&self) -> MutexGuard<'_, BTreeMap<MessageQueue, Arc<ProcessQueue>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_local(&self) -> MutexGuard<'_, LocalOffsets> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn max_reconsume_times(&self) -> i32 {
        self.settings.max_reconsume_times.and_then(|max| i32::try_from(max).ok()).unwrap_or(16)
    }

    fn is_broadcasting(&self) -> bool {
        self.settings.model == MessageModel::Broadcasting
    }

    /// Runs until `stop`, then finishes what is at hand and says goodbye.
    pub(crate) async fn run(self: Arc<Self>, mut inbox: mpsc::Receiver<FromServer>) {
        let workers = TaskTracker::new();
        if self.settings.order == Order::Concurrent {
            for _ in 0..self.settings.concurrency {
                workers.spawn(work(Arc::clone(&self)));
            }
        }
        self.live(&mut inbox).await;
        // Running handlers finish; what was not begun is left to the other members.
        workers.close();
        self.stop.cancel();
        for queue in self.lock_queues().values() {
            queue.gone.cancel();
        }
        self.fetchers.close();
        let drained = async {
            workers.wait().await;
            self.fetchers.wait().await;
        };
        if tokio::time::timeout(self.settings.drain, drained).await.is_err() {
            tracing::warn!(group = %self.name, "handlers still run after {:?}", self.settings.drain);
        }
        self.leave().await;
    }

    async fn live(self: &Arc<Self>, inbox: &mut mpsc::Receiver<FromServer>) {
        let mut rebalance_at = Instant::now();
        let mut commit_at = Instant::now() + COMMIT_EVERY;
        let mut lock_at = Instant::now() + LOCK_EVERY;
        let mut show_at = Instant::now() + SHOW_EVERY;
        loop {
            let due = rebalance_at.min(commit_at).min(lock_at).min(show_at);
            let request = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                request = inbox.recv() => request,
                () = tokio::time::sleep_until(due.into()) => None,
            };
            if let Some(request) = request {
                if RequestCode::from(request.command.code) == RequestCode::NotifyConsumerIdsChanged {
                    rebalance_at = Instant::now();
                } else {
                    self.answer(request).await;
                }
                continue;
            }
            if rebalance_at <= Instant::now() {
                let again = match self.stop.run_until_cancelled(self.rebalance()).await {
                    Some(Shared::Some) => REBALANCE_AGAIN_AFTER,
                    Some(Shared::All) => REBALANCE_EVERY,
                    None => return,
                };
                rebalance_at = Instant::now() + again;
            }
            if commit_at <= Instant::now() {
                self.tell_offsets().await;
                commit_at = Instant::now() + COMMIT_EVERY;
            }
            if lock_at <= Instant::now() {
                if self.settings.order == Order::Orderly {
                    self.lock_all().await;
                }
                lock_at = Instant::now() + LOCK_EVERY;
            }
            if show_at <= Instant::now() {
                self.show().await;
                show_at = Instant::now() + SHOW_EVERY;
            }
        }
    }

    /// Lets brokers hear of a member that broadcasts, also while there is nothing to commit: they forget who is silent for long.
    async fn show(&self) {
        let Keeps::Brokers(name) = self.keeps.clone() else { return };
        if !self.is_broadcasting() {
            return;
        }
        let queues: Vec<_> = self.lock_queues().keys().cloned().collect();
        for queue in queues {
            if let Err(error) = self.core.committed(&name, &queue, Unset::None).await {
                tracing::info!(%queue, "a broker was not told of this member: {error}");
            }
        }
    }

    /// Shares out the queues of every topic.
    async fn rebalance(self: &Arc<Self>) -> Shared {
        let mut shared = Shared::All;
        for (topic, subscription) in &self.subscriptions {
            match self.share(topic).await {
                Ok(mine) => {
                    if let Err(error) = self.take_over(topic, subscription, mine).await {
                        tracing::info!(group = %self.name, %topic, "taking over queues failed: {error}");
                        shared = Shared::Some;
                    }
                }
                Err(error) => {
                    if error.kind() != ErrorKind::NoRoute {
                        tracing::info!(group = %self.name, %topic, "sharing out queues failed: {error}");
                    }
                    shared = Shared::Some;
                }
            }
        }
        shared
    }

    /// Our queues of a topic.
    async fn share(&self, topic: &TopicName) -> Result<BTreeSet<MessageQueue>> {
        let mut queues = self.core.read_queues(topic).await?;
        if self.is_broadcasting() {
            return Ok(queues.into_iter().collect());
        }
        // Java sorts by broker, then by number: all members must sort alike.
        queues.sort_unstable_by(|a, b| (&a.broker, a.id).cmp(&(&b.broker, b.id)));
        let members = self.members(topic).await?;
        Ok(allocate(&queues, &members, &self.core.client_id).iter().cloned().collect())
    }

    /// Client ids of the group, sorted, as a broker of the topic knows them.
    async fn members(&self, topic: &TopicName) -> Result<Vec<String>> {
        let route = self.core.route(topic).await?;
        let mut last = Error::new(ErrorKind::NoRoute, format!("topic {topic} has no broker"));
        let header = ConsumerGroupHeader { consumer_group: self.name.as_str().to_owned(), broker_name: None };
        for link in route.brokers.iter().filter_map(|broker| broker.master.as_ref()) {
            let asked = async {
                let connection = self.core.broker(link).await?;
                let code = RequestCode::GetConsumerListByGroup;
                let answer = connection.call(code, &header, &[], self.core.timeout()).await?;
                Ok::<_, Error>(ConsumerIdList::from_json(&answer.body)?.consumer_id_list)
            };
            match asked.await {
                Ok(mut members) => {
                    members.sort_unstable();
                    members.dedup();
                    if !members.contains(&self.core.client_id) {
                        // The broker lost us: it must hear of us before we get a share.
                        self.core.beat.notify_one();
                        return Err(Error::new(
                            ErrorKind::NoRoute,
                            "the broker does not know this member yet",
                        ));
                    }
                    return Ok(members);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Gives up the queues that are not ours any more and starts those that now are.
    async fn take_over(
        self: &Arc<Self>,
        topic: &TopicName,
        subscription: &Arc<Subscription>,
        mine: BTreeSet<MessageQueue>,
    ) -> Result<()> {
        let (lost, new): (Vec<_>, Vec<_>) = {
            let queues = self.lock_queues();
            let lost =
                queues.values().filter(|held| held.queue.topic == *topic && !mine.contains(&held.queue));
            let new = mine.iter().filter(|queue| !queues.contains_key(queue));
            (lost.cloned().collect(), new.cloned().collect())
        };
        for queue in lost {
            self.give_up(&queue).await;
        }
        for queue in new {
            let (start, confirmed) = self.start_offset(&queue).await?;
            self.begin(queue, start, confirmed, subscription);
        }
        Ok(())
    }

    fn begin(
        self: &Arc<Self>,
        queue: MessageQueue,
        start: QueueOffset,
        confirmed: Option<QueueOffset>,
        subscription: &Arc<Subscription>,
    ) {
        tracing::info!(group = %self.name, %queue, %start, "consuming a queue");
        let held = Arc::new(ProcessQueue::new(
            queue.clone(),
            start,
            confirmed,
            self.settings.limits,
            self.stop.child_token(),
        ));
        self.lock_queues().insert(queue, Arc::clone(&held));
        self.fetchers.spawn(fetch(Arc::clone(self), held, Arc::clone(subscription)));
    }

    async fn give_up(&self, queue: &ProcessQueue) {
        tracing::info!(group = %self.name, queue = %queue.queue, "giving up a queue");
        queue.gone.cancel();
        self.lock_queues().remove(&queue.queue);
        self.confirm(queue).await;
        if self.settings.order == Order::Orderly {
            self.unlock(queue).await;
        }
    }

    /// Where a queue starts, and what the broker has committed of it.
    async fn start_offset(&self, queue: &MessageQueue) -> Result<(QueueOffset, Option<QueueOffset>)> {
        let committed = match &self.keeps {
            Keeps::Itself => self.lock_local().get(queue),
            // As Java asks: a queue that is still complete starts at 0, whatever the consumer's wish, so
            // that nothing is missed of a queue that came into being while the group was running.
            Keeps::Brokers(name) => self.core.committed(name, queue, Unset::ZeroIfComplete).await?,
        };
        if let Some(offset) = committed {
            return Ok((offset, committed));
        }
        let start = match self.settings.from {
            _ if queue.topic.kind() == TopicKind::Retry => QueueOffset::ZERO,
            ConsumeFrom::Last => self.core.max_offset(queue).await?,
            ConsumeFrom::First => self.core.min_offset(queue).await?,
            ConsumeFrom::Time(time) => self.core.offset_at(queue, time).await?,
        };
        Ok((start, None))
    }

    /// Lets brokers know the offsets; nobody waits for it.
    async fn tell_offsets(&self) {
        let queues: Vec<_> = self.lock_queues().values().cloned().collect();
        for queue in queues {
            let Some(offset) = queue.untold() else { continue };
            let Keeps::Brokers(name) = &self.keeps else {
                self.lock_local().set(&queue.queue, offset);
                queue.told(offset);
                continue;
            };
            match self.core.commit_one_way(name, &queue.queue, offset).await {
                Ok(()) => queue.told(offset),
                Err(error) => tracing::info!(queue = %queue.queue, "committing {offset} failed: {error}"),
            }
        }
        self.save_local().await;
    }

    /// Commits one queue and waits for it.
    async fn confirm(&self, queue: &ProcessQueue) {
        let Some(offset) = queue.unconfirmed() else { return };
        let Keeps::Brokers(name) = &self.keeps else {
            self.lock_local().set(&queue.queue, offset);
            queue.confirmed(offset);
            return;
        };
        match self.core.commit(name, &queue.queue, offset).await {
            Ok(()) => queue.confirmed(offset),
            // The messages since the last commit will come again.
            Err(error) => tracing::warn!(queue = %queue.queue, "{error}"),
        }
    }

    async fn save_local(&self) {
        let Some((path, bytes)) = self.lock_local().take_changes() else { return };
        let shown = path.display().to_string();
        let saved = tokio::task::spawn_blocking(move || offsets::replace(&path, &bytes)).await;
        if let Err(error) = saved.map_err(std::io::Error::other).and_then(|saved| saved) {
            tracing::error!(file = shown, "offsets were not saved: {error}");
        }
    }

    async fn leave(&self) {
        let queues: Vec<_> = self.lock_queues().values().cloned().collect();
        for queue in &queues {
            self.confirm(queue).await;
            if self.settings.order == Order::Orderly {
                self.unlock(queue).await;
            }
        }
        self.save_local().await;
        self.lock_queues().clear();
        self.core.members.remove_consumer(&self.name);
        self.core.unregister(None, Some(&self.name)).await;
        self.inner_producer.shutdown().await;
    }

    fn lock_body(&self, queue: &MessageQueue) -> Vec<u8> {
        LockBatchBody {
            client_id: self.core.client_id.clone(),
            consumer_group: self.name.as_str().to_owned(),
            mq_set: BTreeSet::from([queue.to_wire()]),
            only_this_broker: false,
        }
        .to_json()
    }

    /// Locks one queue for this member, or renews the lock.
    pub(crate) async fn lock_queue(&self, queue: &ProcessQueue) -> Result<()> {
        if self.is_broadcasting() {
            queue.set_locked(true);
            return Ok(());
        }
        let connection = self.core.queue_connection(&queue.queue).await?;
        let body = self.lock_body(&queue.queue);
        let answer = connection.call(RequestCode::LockBatchMq, &(), &body, self.core.timeout()).await?;
        let locked = LockBatchResponseBody::from_json(&answer.body)?;
        let is_ours = locked.lock_ok_mq_set.contains(&queue.queue.to_wire());
        queue.set_locked(is_ours);
        if is_ours {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NoRoute, format!("another member still holds the lock of {}", queue.queue)))
    }

    async fn lock_all(&self) {
        let queues: Vec<_> = self.lock_queues().values().cloned().collect();
        for queue in queues {
            if let Err(error) = self.lock_queue(&queue).await {
                tracing::info!(queue = %queue.queue, "the queue's lock was not renewed: {error}");
            }
        }
    }

    async fn unlock(&self, queue: &ProcessQueue) {
        let body = self.lock_body(&queue.queue);
        let unlocked = async {
            let connection = self.core.queue_connection(&queue.queue).await?;
            connection.call(RequestCode::UnlockBatchMq, &(), &body, self.core.timeout()).await
        };
        if let Err(error) = unlocked.await {
            tracing::info!(queue = %queue.queue, "unlocking failed, the lock will expire: {error}");
        }
    }

    /// Goes on at other offsets, because an operator said so.
    pub(crate) async fn move_to(self: &Arc<Self>, offsets: Vec<(MessageQueue, QueueOffset)>) {
        for (queue, offset) in offsets {
            let Some(held) = self.lock_queues().get(&queue).cloned() else { continue };
            tracing::warn!(group = %self.name, %queue, "moved to offset {offset} by an operator");
            // A new life of the queue: its pulls in flight end with the old one.
            held.gone.cancel();
            if let Keeps::Brokers(name) = &self.keeps {
                let moved = if self.is_broadcasting() {
                    // The broker has moved our offset already: what is committed counts again once we have asked.
                    self.core.committed(name, &queue, Unset::None).await.map(drop)
                } else {
                    self.core.commit(name, &queue, offset).await
                };
                if let Err(error) = moved {
                    tracing::warn!(%queue, "{error}");
                }
            }
            let Some(subscription) = self.subscriptions.get(queue.topic.as_str()).cloned() else { continue };
            self.begin(queue, offset, None, &subscription);
        }
    }
}

/// A subscription as heartbeats carry it.
pub(crate) fn subscription(topic: &TopicName, filter: Selector) -> Subscription {
    let mut data = SubscriptionData {
        expression_type: filter.kind().to_owned(),
        sub_string: filter.text(),
        sub_version: now().get(),
        topic: topic.as_str().to_owned(),
        ..SubscriptionData::default()
    };
    if let Selector::Tags(TagExpression::Tags { tags, .. }) = &filter {
        data.code_set = tags.iter().map(|tag| gantry_proto::record::java_hash(tag)).collect();
        data.tags_set = tags.iter().cloned().collect();
    }
    Subscription { filter, data }
}

/// Asks the brokers of a topic whether they keep offsets under the name of a member that broadcasts. One that cannot be reached is
/// not asked.
pub(crate) async fn may_keep(core: &Core, name: &GroupName, topic: &TopicName) -> Result<()> {
    let Ok(queues) = core.read_queues(topic).await else { return Ok(()) };
    let mut asked = BTreeSet::new();
    for queue in queues.iter().filter(|queue| asked.insert(queue.broker.clone())) {
        match core.committed(name, queue, Unset::None).await {
            Err(error) if error.code().is_some() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Asks the brokers of a topic whether they can filter by a subscription. One that cannot be reached is not asked:
/// it answers the pulls.
pub(crate) async fn check(core: &Core, group: &GroupName, wanted: &Subscription) -> Result<()> {
    let topic = &wanted.data.topic;
    let Ok(route) = core.route(&TopicName::parse(topic)?).await else { return Ok(()) };
    let body = CheckClientRequestBody {
        client_id: core.client_id.clone(),
        group: group.as_str().to_owned(),
        subscription_data: wanted.data.clone(),
        ..CheckClientRequestBody::default()
    };
    for link in route.brokers.iter().filter_map(|broker| broker.master.as_ref()) {
        let asked = async {
            let connection = core.broker(link).await?;
            connection.call(RequestCode::CheckClientConfig, &(), &body.to_json(), core.timeout()).await
        };
        match asked.await {
            Ok(_) => {}
            Err(error) if error.code().is_some() => {
                return Err(error.during(format_args!("subscribing to {topic}")));
            }
            Err(error) => tracing::info!(topic, "a subscription was not checked: {error}"),
        }
    }
    Ok(())
}
