//! Load that goes on whatever happens to the broker, and tells a [`Checker`] everything it knows.
//!
//! Producers send in every way there is, consumers pull, look and commit. An error is a reason to try again,
//! never to stop. What is sent and decided follows from the seed; when it happens does not.

mod groups;

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use gantry_client::proto::ids::QueueOffset;
use gantry_client::proto::remoting::codes::ResponseCode;
use gantry_client::{
    Client, Message, MessageQueue, Producer, PullConsumer, Received, Result, SeekTo, SendTicket,
    TransactionProducer,
};
use tokio::task::JoinSet;

use crate::checker::{Attempt, Checker, Fate, Ident, Kind, Recall};

/// Sends that a pipelining producer has under way.
const WINDOW: usize = 16;
/// The first of the actors that each have a transaction under way.
const TRANSACTIONS: u16 = 100;
/// The first of the actors that have many sends under way.
const PIPELINES: u16 = 10;
/// After this many messages the serial producer goes on in a new topic.
const SERIAL_TOPIC: u64 = 400;
/// What an actor waits after an error.
const ERROR_PAUSE: Duration = Duration::from_millis(20);
/// What an actor waits now and then, so that one core is enough for load, broker and checker.
const BREATH: Duration = Duration::from_millis(1);
/// What an actor waits before each message once there are enough.
const ENOUGH_PAUSE: Duration = Duration::from_millis(50);
/// The property that holds a message's id; a resend carries the id of the first send.
const UNIQ_KEY: &str = "UNIQ_KEY";

const PIPELINED: &str = "crash-pipelined";
const BATCHED: &str = "crash-batched";
const ONE_WAY: &str = "crash-one-way";
const DELAYED: &str = "crash-delayed";
const TIMED: &str = "crash-timed";
const TRANSACTED: &str = "crash-transacted";

/// How much of what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Producers with many sends under way, at most 80.
    pub pipelines: u16,
    /// Producers with one transaction under way, at most 1,000.
    pub transactions: u16,
    /// Whether there are one-at-a-time, batched, one-way, delayed and timed sends too.
    pub others: bool,
    /// Messages after which the producers only trickle.
    pub messages_max: u64,
}

impl Default for Mix {
    /// Everything, without a bound.
    fn default() -> Self {
        Self { pipelines: 2, transactions: 4, others: true, messages_max: u64::MAX }
    }
}

/// The running load. Drop it to break it off.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    producers: JoinSet<()>,
    consumers: JoinSet<()>,
    /// Stays in its group, to be asked about what was left open.
    _transactions: TransactionProducer,
}

#[derive(Debug)]
struct Shared {
    checker: Arc<Checker>,
    /// How many messages may have been sent before the producers only trickle.
    enough: u64,
    /// Producers and consumers have connections of their own.
    sending: Client,
    receiving: Client,
    /// Where members of groups that pop connect.
    broker: SocketAddr,
    producers_stop: AtomicBool,
    consumers_stop: AtomicBool,
}

impl Load {
    /// Starts the actors of a mix. They go on where an earlier load of the same checker ended. Producers and consumers
    /// get a client each; members of groups that pop connect to `broker` themselves.
    pub async fn start(
        checker: Arc<Checker>,
        [sending, receiving]: [Client; 2],
        broker: SocketAddr,
        mix: Mix,
    ) -> Self {
        let enough = checker.counts().sent.saturating_add(mix.messages_max);
        let shared = Arc::new(Shared {
            checker,
            enough,
            sending,
            receiving,
            broker,
            producers_stop: AtomicBool::new(false),
            consumers_stop: AtomicBool::new(false),
        });
        let mut producers = JoinSet::new();
        for number in 0..mix.pipelines {
            producers.spawn(finish(Arc::clone(&shared).pipeline(PIPELINES + number)));
        }
        if mix.others {
            producers.spawn(finish(Arc::clone(&shared).serial(3)));
            producers.spawn(finish(Arc::clone(&shared).batches(4)));
            producers.spawn(finish(Arc::clone(&shared).one_way(5)));
            producers.spawn(finish(Arc::clone(&shared).delayed(6)));
            producers.spawn(finish(Arc::clone(&shared).timed(7)));
        }
        producers.spawn(finish(Arc::clone(&shared).handed_out(8)));
        let transactions = shared.transaction_producer().await.expect("a producer of a valid group starts");
        for number in 0..mix.transactions {
            producers.spawn(Arc::clone(&shared).transact(transactions.clone(), TRANSACTIONS + number));
        }
        let mut consumers = JoinSet::new();
        for topic in [PIPELINED, BATCHED, DELAYED, TIMED, TRANSACTED] {
            consumers.spawn(Arc::clone(&shared).consume(topic));
        }
        groups::start(&shared, &mut consumers);
        Self { shared, producers, consumers, _transactions: transactions }
    }

    /// Stops the producers and waits until each has settled what it had under way.
    pub async fn stop_producers(&mut self) {
        self.shared.producers_stop.store(true, Ordering::Release);
        while let Some(ended) = self.producers.join_next().await {
            ended.expect("a producer does not panic");
        }
    }

    /// Stops the consumers. Checks of transactions are still answered.
    pub async fn stop_consumers(&mut self) {
        self.shared.consumers_stop.store(true, Ordering::Release);
        while let Some(ended) = self.consumers.join_next().await {
            ended.expect("a consumer does not panic");
        }
    }
}

/// A producer that cannot be started is a wrong workload.
async fn finish(actor: impl Future<Output = Result<()>>) {
    actor.await.expect("a producer of a valid group starts");
}

impl Shared {
    /// Whether an actor shall send another message. When there are enough it takes its time.
    async fn sends_on(&self) -> bool {
        if self.checker.counts().sent >= self.enough {
            tokio::time::sleep(ENOUGH_PAUSE).await;
        }
        !self.producers_stop.load(Ordering::Acquire)
    }

    fn message(&self, topic: &str, ident: Ident) -> Message {
        Message::new(topic, ident.body(self.checker.seed()))
    }

    async fn transaction_producer(&self) -> Result<TransactionProducer> {
        let checker = Arc::clone(&self.checker);
        let check = move |message: Received| std::future::ready(checker.check(&message));
        self.sending.transaction_producer("crash-transactions", check).start().await
    }

    /// Many sends in flight; those without an answer are sent again to a queue named here.
    async fn pipeline(self: Arc<Self>, actor: u16) -> Result<()> {
        let producer = self.sending.producer("crash-pipeline").start().await?;
        let mut window = VecDeque::with_capacity(WINDOW);
        let mut seq = self.checker.next_seq(actor);
        while self.sends_on().await {
            if window.len() == WINDOW
                && let Some((ident, ticket)) = window.pop_front()
            {
                self.settle(&producer, ident, ticket).await;
            }
            let ident = Ident { actor, seq };
            seq += 1;
            self.checker.sending(ident, PIPELINED, Kind::Pipelined);
            match producer.send_nowait(self.message(PIPELINED, ident)).await {
                Ok(ticket) => window.push_back((ident, ticket)),
                Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
            }
            if seq.is_multiple_of(8) {
                tokio::time::sleep(BREATH).await;
            }
        }
        for (ident, ticket) in window {
            self.settle(&producer, ident, ticket).await;
        }
        Ok(())
    }

    async fn settle(&self, producer: &Producer, ident: Ident, ticket: SendTicket) {
        let id = ticket.message_id().to_owned();
        if let Ok(receipt) = ticket.await {
            self.checker.acknowledged(ident, &receipt, Attempt::First);
            return;
        }
        let Ok(queues) = producer.queues(PIPELINED).await else { return };
        let Some(queue) = ident.rng(self.checker.seed()).choice(&queues) else { return };
        self.checker.resending();
        let message = self.message(PIPELINED, ident).property(UNIQ_KEY, &id);
        if let Ok(receipt) = producer.send_to(queue, message).await {
            self.checker.acknowledged(ident, &receipt, Attempt::Again(queue));
        }
    }

    /// One send after the other to the queue of one key; the client itself sends again. New topics all the time.
    async fn serial(self: Arc<Self>, actor: u16) -> Result<()> {
        let producer = self.sending.producer("crash-serial").start().await?;
        let mut seq = self.checker.next_seq(actor);
        while self.sends_on().await {
            let ident = Ident { actor, seq };
            let topic = format!("crash-serial-{}", seq / SERIAL_TOPIC);
            seq += 1;
            self.checker.sending(ident, &topic, Kind::Serial);
            match producer.send(self.message(&topic, ident).sharding_key("serial")).await {
                Ok(receipt) => self.checker.acknowledged(ident, &receipt, Attempt::First),
                Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
            }
        }
        Ok(())
    }

    /// Batches, one after the other.
    async fn batches(self: Arc<Self>, actor: u16) -> Result<()> {
        let producer = self.sending.producer("crash-batches").start().await?;
        let mut seq = self.checker.next_seq(actor);
        while self.sends_on().await {
            let count = Ident { actor, seq }.rng(self.checker.seed()).u64(2..20);
            let idents: Vec<_> = (seq..seq + count).map(|seq| Ident { actor, seq }).collect();
            seq += count;
            for ident in &idents {
                let first = idents.first() == Some(ident);
                self.checker.sending(*ident, BATCHED, Kind::Batched { first });
            }
            let messages = idents.iter().map(|ident| self.message(BATCHED, *ident));
            let (sent, failed) = match producer.send_batch(messages).await {
                Ok(sent) => (sent, false),
                Err(error) => (error.sent, true),
            };
            for (ident, receipt) in idents.iter().zip(&sent) {
                self.checker.acknowledged(*ident, receipt, Attempt::First);
            }
            tokio::time::sleep(if failed { ERROR_PAUSE } else { BREATH * 4 }).await;
        }
        Ok(())
    }

    /// Sends that nobody answers: they may be lost, but not changed or doubled.
    async fn one_way(self: Arc<Self>, actor: u16) -> Result<()> {
        let producer = self.sending.producer("crash-one-way").start().await?;
        let mut seq = self.checker.next_seq(actor);
        while self.sends_on().await {
            let ident = Ident { actor, seq };
            seq += 1;
            self.checker.sending(ident, ONE_WAY, Kind::OneWay);
            // Lost ones are part of it.
            let _ = producer.send_one_way(self.message(ONE_WAY, ident)).await;
            tokio::time::sleep(BREATH * 4).await;
        }
        Ok(())
    }

    /// Messages of the first delay level.
    async fn delayed(self: Arc<Self>, actor: u16) -> Result<()> {
        let producer = self.sending.producer("crash-delayed").start().await?;
        let mut seq = self.checker.next_seq(actor);
        while self.sends_on().await {
            let ident = Ident { actor, seq };
            seq += 1;
            self.checker.sending(ident, DELAYED, Kind::Delayed);
            match producer.send(self.message(DELAYED, ident).delay_level(1)).await {
                Ok(receipt) => {
                    self.checker.acknowledged(ident, &receipt, Attempt::First);
                    tokio::time::sleep(BREATH * 4).await;
                }
                Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
            }
        }
        Ok(())
    }

    /// Messages with a time of their own, some seconds ahead at the most; some are taken back.
    async fn timed(self: Arc<Self>, actor: u16) -> Result<()> {
        let producer = self.sending.producer("crash-timed").start().await?;
        let mut seq = self.checker.next_seq(actor);
        let mut open = VecDeque::new();
        while self.sends_on().await {
            let ident = Ident { actor, seq };
            seq += 1;
            let mut rng = ident.rng(self.checker.seed() ^ 0x71);
            let delay = Duration::from_millis(if rng.bool() { rng.u64(0..300) } else { rng.u64(0..4000) });
            self.checker.sending(ident, TIMED, Kind::Timer);
            match producer.send(self.message(TIMED, ident).delay(delay)).await {
                Ok(receipt) => {
                    self.checker.acknowledged(ident, &receipt, Attempt::First);
                    let handle = receipt.recall_handle.filter(|_| rng.u8(..) < 64);
                    open.extend(handle.map(|handle| (ident, handle)));
                    tokio::time::sleep(BREATH * 4).await;
                }
                Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
            }
            // Some are due by then.
            if open.len() > 30
                && let Some((ident, handle)) = open.pop_front()
            {
                self.take_back(&producer, ident, &handle).await;
            }
        }
        Ok(())
    }

    async fn take_back(&self, producer: &Producer, ident: Ident, handle: &str) {
        self.checker.recall(ident, Recall::Asked);
        match producer.recall(TIMED, handle).await {
            Ok(_) => self.checker.recall(ident, Recall::Done),
            Err(error) if error.code() == Some(ResponseCode::IllegalOperation) => {
                self.checker.recall(ident, Recall::NotAsked);
            }
            Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
        }
    }

    /// Transactions: ended by the producer, or left to the checker.
    async fn transact(self: Arc<Self>, producer: TransactionProducer, actor: u16) {
        let mut seq = self.checker.next_seq(actor);
        while self.sends_on().await {
            let ident = Ident { actor, seq };
            seq += 1;
            let mut rng = ident.rng(self.checker.seed() ^ 0x7A);
            let fate = if rng.u8(..) < 170 { Fate::Commit } else { Fate::Rollback };
            self.checker.sending(ident, TRANSACTED, Kind::Half(fate));
            let Ok(open) = producer.begin(self.message(TRANSACTED, ident)).await else {
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            };
            self.checker.acknowledged(ident, open.receipt(), Attempt::First);
            tokio::time::sleep(BREATH * rng.u32(0..12)).await;
            if rng.u8(..) < 70 {
                drop(open);
                continue;
            }
            self.checker.ending(ident);
            let ended = match fate {
                Fate::Commit => open.commit().await,
                Fate::Rollback => open.rollback().await,
            };
            if ended.is_ok() {
                self.checker.ended(ident);
            }
        }
    }

    /// Pulls a topic, looks at everything, commits; now and then goes on where the group has committed.
    /// What comes a second time is counted.
    async fn consume(self: Arc<Self>, topic: &'static str) {
        let group = format!("{topic}-readers");
        let consumer = self.receiving.pull_consumer(&group).wait(Duration::from_millis(500)).start().await;
        let consumer = consumer.expect("a consumer of a valid group starts");
        let mut rng = fastrand::Rng::with_seed(self.checker.seed() ^ topic.len() as u64);
        let (mut due, mut seen) = (BTreeMap::new(), BTreeMap::new());
        while !self.consumers_stop.load(Ordering::Acquire) {
            if consumer.assigned().is_empty() {
                match consumer.queues(topic).await {
                    Ok(queues) => consumer.assign(queues),
                    Err(_) => tokio::time::sleep(ERROR_PAUSE * 5).await,
                }
                continue;
            }
            let Ok(messages) = consumer.poll(Duration::from_millis(200)).await else { continue };
            let Some(queue) = messages.first().map(|message| message.queue().clone()) else { continue };
            let next = self.look(&messages, due.get(&queue).copied());
            due.insert(queue.clone(), next);
            let seen: &mut u64 = seen.entry(queue.clone()).or_default();
            for _ in messages.iter().filter(|message| message.queue_offset().get() < *seen) {
                self.checker.redelivered();
            }
            *seen = next.max(*seen);
            self.commit(&consumer, &queue, QueueOffset::new(next)).await;
            if rng.u8(..) < 16 && self.seek(&consumer, &queue).await.is_ok() {
                due.remove(&queue);
            }
        }
    }

    /// Looks at messages of one queue; gives the offset behind them.
    fn look(&self, messages: &[Received], due: Option<u64>) -> u64 {
        let mut next = due;
        for message in messages {
            let offset = message.queue_offset().get();
            if let Some(due) = next.filter(|due| *due != offset) {
                let queue = message.queue();
                self.checker.violation(format!("a consumer of {queue} gets {offset} where {due} is due"));
            }
            next = Some(offset + 1);
            self.checker.saw(message);
        }
        next.unwrap_or_default()
    }

    async fn commit(&self, consumer: &PullConsumer, queue: &MessageQueue, offset: QueueOffset) {
        let group = consumer.group().as_str();
        self.checker.committing(group, queue, offset);
        if consumer.commit_to(queue, offset).await.is_ok() {
            self.checker.committed(group, queue, offset);
        }
    }

    /// Forgets the position, as a member that takes the queue over.
    async fn seek(&self, consumer: &PullConsumer, queue: &MessageQueue) -> Result<()> {
        self.checker.check_offset(consumer, queue).await?;
        consumer.seek(queue, SeekTo::Committed).await.map(drop)
    }
}
