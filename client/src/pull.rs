//! Consuming at the application's own pace: it chooses the queues, the offsets, and when to commit.
//!
//! Each assigned queue has at most one pull in flight, kept between polls: giving up a poll loses nothing.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::ops::Bound;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use gantry_proto::ids::{Millis, QueueOffset};
use gantry_proto::names::{GroupName, TopicName};

use crate::client::{Client, Core};
use crate::connection::{PullAnswer, Reply};
use crate::error::{Error, Result};
use crate::filter::{Expression, Selector};
use crate::message::{MessageQueue, Received};
use crate::queues::{PullRequest, PullStatus, Pulled, Subscribed, Unset, pulled};

/// A queue that failed is left alone for so long.
const FAILED_PAUSE: Duration = Duration::from_millis(500);

/// Where to go on in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTo {
    /// The first message there is.
    Begin,
    /// Behind the last message there is.
    End,
    /// This offset.
    Offset(QueueOffset),
    /// The first message stored at or after this time.
    Time(Millis),
    /// Where the group has committed; the first message when it has not.
    Committed,
}

/// How a pull consumer behaves; made by [`Client::pull_consumer`].
#[derive(Clone, Debug)]
pub struct PullConsumerBuilder {
    client: Client,
    group: String,
    filter: Expression,
    batch: u32,
    wait: Duration,
    member: Option<String>,
}

impl Client {
    /// A pull consumer of `group`, to be configured and started.
    ///
    /// ```no_run
    /// # async fn example(client: gantry_client::Client) -> gantry_client::Result<()> {
    /// use std::time::Duration;
    ///
    /// let consumer = client.pull_consumer("audit").start().await?;
    /// consumer.assign(consumer.queues("orders").await?);
    /// for message in consumer.poll(Duration::from_secs(1)).await? {
    ///     println!("{message:?}");
    /// }
    /// consumer.commit().await?;
    /// # Ok(()) }
    /// ```
    pub fn pull_consumer(&self, group: impl AsRef<str>) -> PullConsumerBuilder {
        PullConsumerBuilder {
            client: self.clone(),
            group: group.as_ref().to_owned(),
            filter: Expression::Tags("*".to_owned()),
            batch: 32,
            wait: Duration::from_secs(15),
            member: None,
        }
    }
}

impl PullConsumerBuilder {
    /// Only messages with one of these tags: `A || B`; `*`, the default, for all.
    #[must_use]
    pub fn filter(mut self, expression: impl Into<String>) -> Self {
        self.filter = Expression::Tags(expression.into());
        self
    }

    /// Only messages with properties that match an SQL92 expression: `color = 'red' AND weight > 5`. Brokers
    /// refuse the first poll or pull when it is wrong; Apache's need `enablePropertyFilter`.
    #[must_use]
    pub fn sql(mut self, expression: impl Into<String>) -> Self {
        self.filter = Expression::Sql(expression.into());
        self
    }

    /// Most messages of one pull; 32 by default, which is also the most that Apache's brokers give.
    #[must_use]
    pub const fn batch(mut self, messages: u32) -> Self {
        self.batch = messages;
        self
    }

    /// How long brokers may hold a pull that finds nothing; 15 s by default.
    #[must_use]
    pub const fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// This consumer is one of several that each read everything: what it commits is its own, kept by Gantry brokers under this
    /// name. The group needs the attribute `gantry.broadcast.offsets=broker`.
    #[must_use]
    pub fn broadcasting_as(mut self, member: impl Into<String>) -> Self {
        self.member = Some(member.into());
        self
    }

    /// Starts the consumer.
    #[expect(clippy::unused_async, reason = "every part of a client is started with await")]
    pub async fn start(self) -> Result<PullConsumer> {
        let group =
            GroupName::parse(&self.group).map_err(|error| Error::from(error).during("consumer group"))?;
        let offsets_of = match &self.member {
            Some(member) => GroupName::broadcaster(&group, member)
                .map_err(|error| Error::from(error).during("member of a broadcasting group"))?,
            None => group.clone(),
        };
        let filter = self.filter.read()?;
        Ok(PullConsumer {
            client: self.client,
            group,
            offsets_of,
            expression: filter.text(),
            filter,
            batch: self.batch.max(1),
            wait: self.wait,
            assigned: Mutex::default(),
            polling: tokio::sync::Mutex::new(()),
        })
    }
}

/// Pulls messages of the queues it is told to.
pub struct PullConsumer {
    client: Client,
    group: GroupName,
    /// The name under which brokers keep what is committed.
    offsets_of: GroupName,
    filter: Selector,
    expression: String,
    batch: u32,
    wait: Duration,
    /// Guards the queues and their pulls; held while looking at them, never while waiting.
    assigned: Mutex<Table>,
    /// Held by the one poll that goes on.
    polling: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Table {
    queues: BTreeMap<MessageQueue, Assigned>,
    /// The queue whose answer was taken last: the next one is looked for behind it, so that all get their turn.
    last: Option<MessageQueue>,
}

/// A queue and how far it is.
#[derive(Default)]
struct Assigned {
    /// The next offset to give out; not known before the first poll.
    position: Option<QueueOffset>,
    committed: Option<QueueOffset>,
    flight: Option<Reply<PullAnswer>>,
    rest_until: Option<Instant>,
}

impl std::fmt::Debug for PullConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullConsumer").field("group", &self.group).finish_non_exhaustive()
    }
}

impl PullConsumer {
    fn core(&self) -> &Arc<Core> {
        self.client.core()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.assigned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group.
    pub const fn group(&self) -> &GroupName {
        &self.group
    }

    /// The queues of a topic that can be read.
    pub async fn queues(&self, topic: impl AsRef<str>) -> Result<Vec<MessageQueue>> {
        self.core().read_queues(&TopicName::storable(topic.as_ref())?).await
    }

    /// First offset of a queue.
    pub async fn min_offset(&self, queue: &MessageQueue) -> Result<QueueOffset> {
        self.core().min_offset(queue).await
    }

    /// One past the last offset of a queue.
    pub async fn max_offset(&self, queue: &MessageQueue) -> Result<QueueOffset> {
        self.core().max_offset(queue).await
    }

    /// Offset of the first message stored at or after `time`.
    pub async fn offset_at(&self, queue: &MessageQueue, time: Millis) -> Result<QueueOffset> {
        self.core().offset_at(queue, time).await
    }

    /// Where the group has committed.
    pub async fn committed(&self, queue: &MessageQueue) -> Result<Option<QueueOffset>> {
        self.core().committed(&self.offsets_of, queue, Unset::None).await
    }

    /// One pull, apart from what is assigned. It does not wait for messages.
    pub async fn pull(&self, queue: &MessageQueue, offset: QueueOffset, max: u32) -> Result<Pulled> {
        self.pull_once(queue, offset, max, None).await
    }

    /// One pull, apart from what is assigned. The broker waits up to `wait` for a message.
    pub async fn pull_wait(
        &self,
        queue: &MessageQueue,
        offset: QueueOffset,
        max: u32,
        wait: Duration,
    ) -> Result<Pulled> {
        self.pull_once(queue, offset, max, Some(wait)).await
    }

    async fn pull_once(
        &self,
        queue: &MessageQueue,
        offset: QueueOffset,
        max: u32,
        wait: Option<Duration>,
    ) -> Result<Pulled> {
        let connection = self.core().queue_connection(queue).await?;
        let (subscription, filter) = (Subscribed::Here(&self.expression), &self.filter);
        let request =
            PullRequest { group: &self.group, queue, offset, max, wait, commit: None, subscription, filter };
        let answer = request.send(&connection, self.core().timeout())?.await?;
        pulled(answer, queue, &self.filter)
    }

    /// The queues to poll from now on. Those that were assigned before keep their position.
    pub fn assign(&self, queues: impl IntoIterator<Item = MessageQueue>) {
        let mut table = self.lock();
        let mut before = std::mem::take(&mut table.queues);
        for queue in queues {
            let state = before.remove(&queue).unwrap_or_default();
            table.queues.insert(queue, state);
        }
    }

    /// The assigned queues, sorted.
    pub fn assigned(&self) -> Vec<MessageQueue> {
        self.lock().queues.keys().cloned().collect()
    }

    /// Goes on at another place of an assigned queue. Gives the offset of that place.
    pub async fn seek(&self, queue: &MessageQueue, to: SeekTo) -> Result<QueueOffset> {
        let offset = match to {
            SeekTo::Begin => self.core().min_offset(queue).await?,
            SeekTo::End => self.core().max_offset(queue).await?,
            SeekTo::Offset(offset) => offset,
            SeekTo::Time(time) => self.core().offset_at(queue, time).await?,
            SeekTo::Committed => match self.committed(queue).await? {
                Some(offset) => offset,
                None => self.core().min_offset(queue).await?,
            },
        };
        let mut table = self.lock();
        let state = table
            .queues
            .get_mut(queue)
            .ok_or_else(|| Error::invalid(format!("{queue} is not assigned: assign it before you seek")))?;
        state.position = Some(offset);
        state.flight = None;
        Ok(offset)
    }

    /// The next offset that a poll gives of a queue; `None` before the first poll or seek.
    pub fn position(&self, queue: &MessageQueue) -> Option<QueueOffset> {
        self.lock().queues.get(queue)?.position
    }

    /// The next messages of any assigned queue; none when there were none for `timeout`. Within a queue
    /// messages come in order. Queues without a position start where the group has committed.
    ///
    /// Fails with the last error if nothing but errors came for the whole time.
    pub async fn poll(&self, timeout: Duration) -> Result<Vec<Received>> {
        let _only = self.polling.lock().await;
        let deadline = Instant::now() + timeout;
        let mut last_error = None;
        loop {
            match self.fill().await {
                Ok(()) => {}
                Err(error) if error.is_retryable() => last_error = Some(error),
                Err(error) => return Err(error),
            }
            let pause = FAILED_PAUSE.min(deadline.saturating_duration_since(Instant::now()));
            let answer = tokio::time::timeout(pause, self.next_answer()).await;
            match answer {
                Ok((queue, answer)) => match self.take(&queue, answer) {
                    Ok(messages) if messages.is_empty() => last_error = None,
                    Ok(messages) => return Ok(messages),
                    Err(error) if error.is_retryable() => last_error = Some(error),
                    Err(error) => return Err(error),
                },
                Err(_) if Instant::now() < deadline => {}
                Err(_) => return last_error.map_or_else(|| Ok(Vec::new()), Err),
            }
        }
    }

    /// Starts a pull for every assigned queue that has none.
    async fn fill(&self) -> Result<()> {
        let now = Instant::now();
        let idle: Vec<MessageQueue> = self
            .lock()
            .queues
            .iter()
            .filter(|(_, state)| state.flight.is_none() && state.rest_until.is_none_or(|until| until <= now))
            .map(|(queue, _)| queue.clone())
            .collect();
        let mut result = Ok(());
        for queue in idle {
            if let Err(error) = self.fill_one(&queue).await {
                tracing::debug!(%queue, "pulling failed: {error}");
                self.rest(&queue);
                result = Err(error);
            }
        }
        result
    }

    async fn fill_one(&self, queue: &MessageQueue) -> Result<()> {
        if self.position(queue).is_none() {
            let start = match self.committed(queue).await? {
                Some(offset) => offset,
                None => self.core().min_offset(queue).await?,
            };
            if let Some(state) = self.lock().queues.get_mut(queue)
                && state.position.is_none()
            {
                state.position = Some(start);
                state.committed = Some(start);
            }
        }
        let connection = self.core().queue_connection(queue).await?;
        let mut table = self.lock();
        if let Some(state) = table.queues.get_mut(queue) {
            self.ask(queue, state, &connection)?;
        }
        Ok(())
    }

    fn ask(
        &self,
        queue: &MessageQueue,
        state: &mut Assigned,
        connection: &crate::connection::Connection,
    ) -> Result<()> {
        let Some(offset) = state.position else { return Ok(()) };
        let request = PullRequest {
            group: &self.group,
            queue,
            offset,
            max: self.batch,
            wait: Some(self.wait),
            commit: None,
            subscription: Subscribed::Here(&self.expression),
            filter: &self.filter,
        };
        state.flight = Some(request.send(connection, self.core().timeout())?);
        Ok(())
    }

    /// The first answer to come, of any queue.
    async fn next_answer(&self) -> (MessageQueue, Result<PullAnswer>) {
        poll_fn(|context| {
            let mut table = self.lock();
            let Table { queues, last } = &mut *table;
            let from = last.clone().map_or(Bound::Unbounded, Bound::Excluded);
            for behind in [true, false] {
                let turn = match (behind, last.clone()) {
                    (true, _) => queues.range_mut((from.clone(), Bound::Unbounded)),
                    (false, Some(last)) => queues.range_mut(..=last),
                    (false, None) => break,
                };
                for (queue, state) in turn {
                    let Some(flight) = &mut state.flight else { continue };
                    if let Poll::Ready(answer) = Pin::new(flight).poll(context) {
                        state.flight = None;
                        *last = Some(queue.clone());
                        return Poll::Ready((queue.clone(), answer));
                    }
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Takes an answer over: moves the position and sends the next pull ahead.
    fn take(&self, queue: &MessageQueue, answer: Result<PullAnswer>) -> Result<Vec<Received>> {
        let pulled = match answer.and_then(|answer| pulled(answer, queue, &self.filter)) {
            Ok(pulled) => pulled,
            Err(error) => {
                self.rest(queue);
                return Err(error);
            }
        };
        if pulled.status == PullStatus::OffsetMoved {
            tracing::warn!(%queue, "the offset is outside the queue, going on at {}", pulled.next);
        }
        let ahead = self.core().routes.get(queue.topic.as_str()).and_then(|route| {
            route.broker(&queue.broker).and_then(|broker| broker.master.as_ref()?.connected())
        });
        let mut table = self.lock();
        let Some(state) = table.queues.get_mut(queue) else { return Ok(Vec::new()) };
        state.position = Some(pulled.next);
        if let Some(connection) = ahead
            && let Err(error) = self.ask(queue, state, &connection)
        {
            // The next poll connects again.
            tracing::debug!(%queue, "pulling ahead failed: {error}");
        }
        Ok(pulled.messages)
    }

    fn rest(&self, queue: &MessageQueue) {
        if let Some(state) = self.lock().queues.get_mut(queue) {
            state.rest_until = Some(Instant::now() + FAILED_PAUSE);
        }
    }

    /// Commits everything that polls have given out, and waits until the brokers have it.
    pub async fn commit(&self) -> Result<()> {
        let due: Vec<(MessageQueue, QueueOffset)> = self
            .lock()
            .queues
            .iter()
            .filter(|(_, state)| state.position != state.committed)
            .filter_map(|(queue, state)| Some((queue.clone(), state.position?)))
            .collect();
        for (queue, offset) in due {
            self.commit_to(&queue, offset).await?;
        }
        Ok(())
    }

    /// Commits one queue: `offset` is the next message that the group wants.
    pub async fn commit_to(&self, queue: &MessageQueue, offset: QueueOffset) -> Result<()> {
        self.core().commit(&self.offsets_of, queue, offset).await?;
        if let Some(state) = self.lock().queues.get_mut(queue) {
            state.committed = Some(offset);
        }
        Ok(())
    }
}
