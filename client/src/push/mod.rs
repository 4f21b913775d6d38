//! Consuming as messages come: the group's members share the queues, a handler gets each message.
//!
//! ```text
//!  group ──rebalance──▶ fetch (one task a queue) ──▶ backlog ──▶ work (N tasks) ──▶ handler
//!    │ commits every 5 s        ▲ room                                 │ refused
//!    └──────────── process queue: what is pulled and not finished ◀────┴──▶ back to the broker
//! ```
//!
//! Delivery is at least once. An offset is committed only when every message before it was processed or safely
//! handed back.

mod answer;
mod fetch;
mod group;
mod process_queue;
mod work;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gantry_proto::ids::Millis;
use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::record::TagExpression;
use gantry_proto::remoting::body::heartbeat::{ConsumeFromWhere, ConsumeType, ConsumerData, MessageModel};
use tokio::sync::mpsc;
use tokio_util::sync::DropGuard;
use tokio_util::task::TaskTracker;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::filter::{Expression, Selector};
use crate::message::{MessageQueue, Received, now};
use crate::offsets::LocalOffsets;
use group::{Group, Keeps, Order, Settings, Subscription, check, may_keep, subscription};
use process_queue::Limits;
use work::Backlog;

/// Requests of brokers that wait for a consumer.
const INBOX_MAX: usize = 64;
/// The group as which consumers send to their retry topics, by custom.
const INNER_PRODUCER: &str = "CLIENT_INNER_PRODUCER";

pub(crate) type Handler =
    Arc<dyn Fn(Received) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + Sync>;

/// What a handler says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It is done.
    Success,
    /// It shall come again; each time later than before, and at last to the dead-letter topic.
    Later,
    /// It shall come again after the delay of this level, 1 to 18.
    LaterAtLevel(u8),
    /// It shall go to the dead-letter topic at once.
    DeadLetter,
}

/// Where a group starts in a queue in which it has never committed. A queue of which nothing was deleted
/// yet may be started at 0 in any case: the broker decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsumeFrom {
    /// Behind the last message.
    #[default]
    Last,
    /// At the first message.
    First,
    /// At the first message stored at or after this time.
    Time(Millis),
}

/// How a push consumer behaves; made by [`Client::push_consumer`].
#[derive(Clone, Debug)]
#[must_use = "a consumer does nothing until it is started"]
pub struct PushConsumerBuilder {
    client: Client,
    group: String,
    topics: BTreeMap<String, Expression>,
    settings: Settings,
    offsets_file: Option<PathBuf>,
    /// The name under which brokers keep the offsets of a member that broadcasts.
    member: Option<String>,
}

impl Client {
    /// A push consumer of `group`, to be configured and started.
    ///
    /// ```no_run
    /// # async fn example(client: gantry_client::Client) -> gantry_client::Result<()> {
    /// use gantry_client::Outcome;
    ///
    /// let consumer = client
    ///     .push_consumer("kitchen")
    ///     .subscribe("orders", "drinks || food")
    ///     .concurrency(8)
    ///     .start(|message| async move {
    ///         println!("{message:?}");
    ///         Outcome::Success
    ///     })
    ///     .await?;
    /// // ... until the program ends:
    /// consumer.shutdown().await;
    /// # Ok(()) }
    /// ```
    pub fn push_consumer(&self, group: impl AsRef<str>) -> PushConsumerBuilder {
        PushConsumerBuilder {
            client: self.clone(),
            group: group.as_ref().to_owned(),
            topics: BTreeMap::new(),
            settings: Settings {
                model: MessageModel::Clustering,
                order: Order::Concurrent,
                from: ConsumeFrom::Last,
                concurrency: 20,
                batch: 32,
                wait: Duration::from_secs(15),
                limits: Limits { messages: 1024, bytes: 16 * 1024 * 1024 },
                max_reconsume_times: None,
                drain: Duration::from_secs(30),
            },
            offsets_file: None,
            member: None,
        }
    }
}

impl PushConsumerBuilder {
    /// Consumes `topic`: messages with one of the tags in `A || B`, or `*` for all. May be called for
    /// several topics; every member of a group must subscribe to the same.
    pub fn subscribe(mut self, topic: impl Into<String>, expression: impl Into<String>) -> Self {
        self.topics.insert(topic.into(), Expression::Tags(expression.into()));
        self
    }

    /// Consumes messages of `topic` with properties that match an SQL92 expression:
    /// `color = 'red' AND weight > 5`. The start fails when a broker finds it wrong; Apache's need
    /// `enablePropertyFilter`.
    pub fn subscribe_sql(mut self, topic: impl Into<String>, expression: impl Into<String>) -> Self {
        self.topics.insert(topic.into(), Expression::Sql(expression.into()));
        self
    }

    /// How many messages are processed at once; 20 by default.
    pub const fn concurrency(mut self, handlers: usize) -> Self {
        self.settings.concurrency = if handlers == 0 { 1 } else { handlers };
        self
    }

    /// Where a new group starts; [`ConsumeFrom::Last`] by default.
    pub const fn from(mut self, from: ConsumeFrom) -> Self {
        self.settings.from = from;
        self
    }

    /// How often a refused message comes again before it goes to the dead-letter topic; 16 by default (in an
    /// orderly consumer: as often as it takes).
    pub const fn max_reconsume_times(mut self, times: u32) -> Self {
        self.settings.max_reconsume_times = Some(times);
        self
    }

    /// Every member gets every message; refused ones do not come again. Offsets are kept in `file`, or in
    /// memory only.
    pub fn broadcasting(mut self, file: Option<PathBuf>) -> Self {
        self.settings.model = MessageModel::Broadcasting;
        self.offsets_file = file;
        self.member = None;
        self
    }

    /// Every member gets every message; refused ones do not come again. Offsets are kept by Gantry brokers under the name of
    /// this member, so that it goes on where it was, on whatever machine it starts next. No two members may have the
    /// same name at once. The group needs the attribute `gantry.broadcast.offsets=broker`.
    pub fn broadcasting_as(mut self, member: impl Into<String>) -> Self {
        self.settings.model = MessageModel::Broadcasting;
        self.offsets_file = None;
        self.member = Some(member.into());
        self
    }

    /// The messages of a queue are processed one after the other; a refused one holds up those behind it and is
    /// processed again after a second.
    pub const fn orderly(mut self) -> Self {
        self.settings.order = Order::Orderly;
        self
    }

    /// Most messages of one pull; 32 by default, which is also the most that Apache's brokers give.
    pub const fn batch(mut self, messages: u32) -> Self {
        self.settings.batch = if messages == 0 { 1 } else { messages };
        self
    }

    /// How many messages and bytes of one queue may wait to be processed before pulling pauses; 1024 and 16 MiB
    /// by default.
    pub const fn cache(mut self, messages: usize, bytes: usize) -> Self {
        let messages = if messages == 0 { 1 } else { messages };
        let bytes = if bytes == 0 { 1 } else { bytes };
        self.settings.limits = Limits { messages, bytes };
        self
    }

    /// How long a shutdown waits for running handlers; 30 s by default.
    pub const fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.settings.drain = timeout;
        self
    }

    /// Joins the group and starts consuming.
    pub async fn start<H, F>(self, handler: H) -> Result<PushConsumer>
    where
        H: Fn(Received) -> F + Send + Sync + 'static,
        F: Future<Output = Outcome> + Send + 'static,
    {
        let name =
            GroupName::parse(&self.group).map_err(|error| Error::from(error).during("consumer group"))?;
        let offsets_of = match &self.member {
            Some(member) => GroupName::broadcaster(&name, member)
                .map_err(|error| Error::from(error).during("member of a broadcasting group"))?,
            None => name.clone(),
        };
        let subscriptions = self.subscriptions(&name)?;
        let local = LocalOffsets::open(self.offsets_file.clone())?;
        let core = Arc::clone(self.client.core());
        let (inbox, requests) = mpsc::channel(INBOX_MAX);
        for subscription in subscriptions.values().filter(|wanted| matches!(wanted.filter, Selector::Sql(_)))
        {
            check(&core, &name, subscription).await?;
        }
        if self.member.is_some() {
            for topic in subscriptions.keys() {
                may_keep(&core, &offsets_of, topic).await?;
            }
        }
        core.members.add_consumer(self.data(&name, &subscriptions), inbox)?;
        let stop = core.stop().child_token();
        let group = Arc::new(Group {
            inner_producer: self.client.producer(INNER_PRODUCER).start_with(None)?,
            core: Arc::clone(&core),
            name,
            keeps: match (&self.settings.model, &self.member) {
                (MessageModel::Broadcasting, None) => Keeps::Itself,
                _ => Keeps::Brokers(offsets_of),
            },
            settings: self.settings,
            subscriptions,
            handler: Arc::new(move |message| Box::pin(handler(message))),
            backlog: Backlog::new(),
            stop: stop.clone(),
            started_at: now(),
            queues: Mutex::default(),
            local: Mutex::new(local),
            fetchers: TaskTracker::new(),
        });
        // Brokers must know the group before it asks for its members. A topic may come into being later.
        for topic in group.subscriptions.keys() {
            if let Err(error) = core.route(topic).await {
                tracing::debug!(%topic, "no route yet: {error}");
            }
        }
        core.heartbeat().await;
        let running = TaskTracker::new();
        running.spawn(Arc::clone(&group).run(requests));
        running.close();
        Ok(PushConsumer { group, running, _guard: stop.drop_guard(), client: self.client })
    }

    fn subscriptions(&self, group: &GroupName) -> Result<BTreeMap<TopicName, Arc<Subscription>>> {
        if self.topics.is_empty() {
            return Err(Error::invalid("the consumer subscribes to no topic"));
        }
        let mut all = BTreeMap::new();
        for (topic, expression) in &self.topics {
            let topic =
                TopicName::parse(topic).map_err(|error| Error::from(error).during("subscribed topic"))?;
            let wanted = subscription(&topic, expression.read()?);
            all.insert(topic, Arc::new(wanted));
        }
        if self.settings.model == MessageModel::Clustering {
            let retry = TopicName::retry(group);
            let wanted = subscription(&retry, Selector::Tags(TagExpression::All));
            all.insert(retry, Arc::new(wanted));
        }
        Ok(all)
    }

    fn data(&self, group: &GroupName, wanted: &BTreeMap<TopicName, Arc<Subscription>>) -> ConsumerData {
        ConsumerData {
            consume_from_where: match self.settings.from {
                ConsumeFrom::Last => ConsumeFromWhere::LastOffset,
                ConsumeFrom::First => ConsumeFromWhere::FirstOffset,
                ConsumeFrom::Time(_) => ConsumeFromWhere::Timestamp,
            },
            consume_type: ConsumeType::Passively,
            group_name: group.as_str().to_owned(),
            message_model: self.settings.model.clone(),
            subscription_data_set: wanted.values().map(|wanted| wanted.data.clone()).collect(),
            unit_mode: false,
        }
    }
}

/// A running push consumer. Dropping it ends it in the background.
pub struct PushConsumer {
    group: Arc<Group>,
    running: TaskTracker,
    _guard: DropGuard,
    client: Client,
}

impl std::fmt::Debug for PushConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PushConsumer")
            .field("client", &self.client)
            .field("group", &self.group.name)
            .finish_non_exhaustive()
    }
}

impl PushConsumer {
    /// The group.
    pub fn group(&self) -> &GroupName {
        &self.group.name
    }

    /// The queues that this member has at the moment, sorted.
    pub fn assigned(&self) -> Vec<MessageQueue> {
        self.group.lock_queues().keys().cloned().collect()
    }

    /// Stops pulling, waits for running handlers, commits, and leaves the group. Messages that were
    /// pulled and not begun are left to the other members.
    pub async fn shutdown(&self) {
        self.group.stop.cancel();
        self.running.wait().await;
    }
}
