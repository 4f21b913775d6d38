//! Message traces: this client writes down what it did with its messages, in messages of a trace topic, as Apache's
//! clients do. Operators read them with `gantry message trace` or `mqadmin queryMsgTraceById`.
//!
//! Whoever sends or consumes never waits for it: records go to one task through a bounded channel, and are dropped and
//! counted when that is full. The task sends up to 20 at a time, at the latest a second after the first of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gantry_proto::ids::Millis;
use gantry_proto::names::{GroupName, TopicKind, TopicName};
use gantry_proto::record::{BatchItems, Properties, SysFlag, TransactionFlag, keys};
use gantry_proto::trace::{ConsumeCode, EndState, EndTransaction, Event, MessageKind, Pub, Trace};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Core};
use crate::error::Result;
use crate::message::{Message, Received, now};
use crate::producer::{Outgoing, Producer, SendReceipt, SendStatus, Shape};
use crate::push::Outcome;
use crate::transaction::Resolution;

/// Records that wait to be sent, at the most.
const WAITING_MAX: usize = 2048;
/// Records of one message, at the most: what one message of Apache's clients holds.
const BATCH_MAX: usize = 20;
/// Bytes of one message's body after which the next one is begun, and the same for its keys.
const BODY_MAX: usize = 100 * 1024;
const KEYS_MAX: usize = 12 * 1024;
/// How long a record waits for others to share its message.
const GATHER: Duration = Duration::from_secs(1);
/// How long sending one message of traces may take.
const SEND_WITHIN: Duration = Duration::from_secs(5);
/// The group that sends traces, as Apache's clients name it.
const GROUP: &str = "_INNER_TRACE_PRODUCER-gantry";
/// The region of all messages. What a broker may say of another one is not read.
const REGION: &str = "DefaultRegion";

/// Where the parts of a client leave what they did.
pub(crate) struct Tracer {
    topic: TopicName,
    orders: mpsc::Sender<Order>,
    dropped: AtomicU64,
}

/// What the task is told.
pub(crate) enum Order {
    Write(Box<Trace>),
    /// Send everything now, and say so.
    Flush(oneshot::Sender<()>),
}

impl Tracer {
    /// A tracer for a trace topic; the rest is for [`run`].
    pub(crate) fn new(topic: TopicName) -> (Self, mpsc::Receiver<Order>) {
        let (orders, receiver) = mpsc::channel(WAITING_MAX);
        (Self { topic, orders, dropped: AtomicU64::new(0) }, receiver)
    }

    /// Whether what happens to messages of a topic is written down: not what traces do themselves, nor what consumers
    /// send to their retry topics.
    pub(crate) fn concerns(&self, topic: &TopicName) -> bool {
        *topic != self.topic && !matches!(topic.kind(), TopicKind::Retry | TopicKind::Trace)
    }

    fn write(&self, trace: Trace) {
        if self.orders.try_send(Order::Write(Box::new(trace))).is_err() {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::warn!(dropped, "message traces are dropped: they come faster than they are sent");
            }
        }
    }

    /// Waits until what was written before is sent.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.orders.send(Order::Flush(done)).await.is_ok() {
            // Without an answer the task has ended, and nothing waits any more.
            let _ = flushed.await;
        }
    }

    /// Writes down one attempted send; of a batch each message.
    pub(crate) fn sent(
        &self,
        core: &Core,
        group: &GroupName,
        outgoing: &Outgoing,
        begun: Millis,
        result: &Result<SendReceipt>,
    ) {
        let cost_ms = cost(now().since(begun));
        let sent = |properties: Properties<'_>, bytes: usize, offset_id: &str| Pub {
            topic: outgoing.topic.to_string(),
            tags: properties.tags().unwrap_or_default().to_owned(),
            store_host: result.as_ref().map(|receipt| store_host(core, receipt)).unwrap_or_default(),
            body_bytes: i32::try_from(bytes).unwrap_or(i32::MAX),
            cost_ms,
            kind: kind_of(outgoing.sys_flag, properties),
            offset_id: offset_id.to_owned(),
            success: result.as_ref().is_ok_and(|receipt| receipt.status == SendStatus::Ok),
            client_host: None,
        };
        let offset_ids = result.as_ref().map_or("", |receipt| receipt.offset_message_id.as_str());
        let write = |properties: Properties<'_>, id: &str, bytes, offset_id| {
            let event = Event::Pub(sent(properties, bytes, offset_id));
            self.write(trace(id, properties, group, Some(begun), event));
        };
        if outgoing.shape == Shape::Batch {
            let mut offset_ids = offset_ids.split(',');
            for item in BatchItems::new(&outgoing.body).flatten() {
                let id = item.properties.uniq_key().unwrap_or_default();
                write(item.properties, id, item.body.len(), offset_ids.next().unwrap_or_default());
            }
        } else {
            write(outgoing.properties.view(), &outgoing.id, outgoing.body.len(), offset_ids);
        }
    }

    /// Runs a handler, and writes down when it began and how it ended.
    pub(crate) async fn consumed(
        &self,
        request_id: String,
        group: &GroupName,
        message: &Received,
        handler: impl Future<Output = Outcome>,
    ) -> Outcome {
        if message.property(keys::TRACE_ON) == Some("false") {
            return handler.await;
        }
        let id = message.message_id();
        let retries = i32::try_from(message.reconsume_times()).unwrap_or(i32::MAX);
        let event = Event::SubBefore { request_id: request_id.clone(), retries };
        self.write(trace(&id, message.properties(), group, Some(now()), event));
        let begun = Instant::now();
        let outcome = handler.await;
        let success = outcome == Outcome::Success;
        let event = Event::SubAfter {
            request_id,
            cost_ms: i32::try_from(begun.elapsed().as_millis()).unwrap_or(i32::MAX),
            success,
            code: if success { ConsumeCode::Success } else { ConsumeCode::Failed },
        };
        let after = trace(&id, message.properties(), group, Some(now()), event);
        self.write(Trace { region: String::new(), ..after });
        outcome
    }

    /// Writes down that a transaction was ended.
    pub(crate) fn ended(&self, group: &GroupName, properties: Properties<'_>, end: &Ended<'_>) {
        let event = Event::EndTransaction(EndTransaction {
            topic: end.topic.to_string(),
            tags: properties.tags().unwrap_or_default().to_owned(),
            store_host: end.store_host.to_owned(),
            kind: MessageKind::Commit,
            transaction_id: end.transaction_id.to_owned(),
            state: match end.resolution {
                Resolution::Commit => EndState::Commit,
                Resolution::Rollback => EndState::Rollback,
                Resolution::Unknown => EndState::Unknown,
            },
            from_check: end.from_check,
        });
        self.write(trace(end.message_id, properties, group, Some(now()), event));
    }

    /// Writes down that a message was taken back, or could not be.
    pub(crate) fn recalled(&self, group: Option<&GroupName>, topic: &str, id: &str, success: bool) {
        self.write(Trace {
            message_id: id.to_owned(),
            keys: String::new(),
            group: group.map(ToString::to_string).unwrap_or_default(),
            region: REGION.to_owned(),
            at: Some(now()),
            event: Event::Recall { topic: topic.to_owned(), success },
        });
    }
}

/// The end of a transaction.
pub(crate) struct Ended<'a> {
    pub topic: &'a TopicName,
    pub message_id: &'a str,
    pub transaction_id: &'a str,
    pub store_host: &'a str,
    pub resolution: Resolution,
    pub from_check: bool,
}

fn trace(id: &str, properties: Properties<'_>, group: &GroupName, at: Option<Millis>, event: Event) -> Trace {
    Trace {
        message_id: id.to_owned(),
        keys: properties.get(keys::KEYS).unwrap_or_default().to_owned(),
        group: group.to_string(),
        region: REGION.to_owned(),
        at,
        event,
    }
}

fn cost(ms: u64) -> i32 {
    i32::try_from(ms).unwrap_or(i32::MAX)
}

fn store_host(core: &Core, receipt: &SendReceipt) -> String {
    let route = core.routes.get(receipt.queue.topic.as_str());
    let broker = route.as_ref().and_then(|route| route.broker(&receipt.queue.broker));
    let master = broker.and_then(|broker| broker.master.as_ref());
    master.map(|link| link.address().to_string()).unwrap_or_default()
}

fn kind_of(flag: SysFlag, properties: Properties<'_>) -> MessageKind {
    const LATER: [&str; 4] =
        [keys::DELAY, keys::TIMER_DELAY_SEC, keys::TIMER_DELAY_MS, keys::TIMER_DELIVER_MS];
    match flag.transaction() {
        TransactionFlag::Prepared => MessageKind::Half,
        _ if LATER.iter().any(|key| properties.get(key).is_some()) => MessageKind::Delay,
        _ => MessageKind::Normal,
    }
}

/// Sends what is written down, until `stop`.
pub(crate) async fn run(core: Arc<Core>, mut orders: mpsc::Receiver<Order>, stop: CancellationToken) {
    let Some(topic) = core.tracer.as_ref().map(|tracer| tracer.topic.clone()) else { return };
    // A client of its own over the same connections: that of the program ends with the program's handles.
    let producer = Client::borrowed(core).producer(GROUP).send_timeout(SEND_WITHIN).start().await;
    let producer = match producer {
        Ok(producer) => producer,
        Err(error) => return tracing::warn!("message traces cannot be sent: {error}"),
    };
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        let gathered = gather(&mut orders, &mut batch);
        let flushed = tokio::select! {
            () = stop.cancelled() => return,
            flushed = gathered => flushed,
        };
        let Ok(flushed) = flushed else { return };
        tokio::select! {
            () = stop.cancelled() => return,
            () = send(&producer, &topic, &batch) => batch.clear(),
        }
        if let Some(flushed) = flushed {
            // Whoever asked may have stopped waiting.
            let _ = flushed.send(());
        }
    }
}

/// There will be no more orders.
struct NoMore;

/// Takes records until there are enough, or somebody wants them sent.
async fn gather(
    orders: &mut mpsc::Receiver<Order>,
    batch: &mut Vec<Trace>,
) -> Result<Option<oneshot::Sender<()>>, NoMore> {
    match orders.recv().await.ok_or(NoMore)? {
        Order::Flush(done) => return Ok(Some(done)),
        Order::Write(trace) => batch.push(*trace),
    }
    let late = tokio::time::sleep(GATHER);
    tokio::pin!(late);
    while batch.len() < BATCH_MAX {
        let order = tokio::select! {
            () = &mut late => return Ok(None),
            order = orders.recv() => order,
        };
        match order.ok_or(NoMore)? {
            Order::Flush(done) => return Ok(Some(done)),
            Order::Write(trace) => batch.push(*trace),
        }
    }
    Ok(None)
}

async fn send(producer: &Producer, topic: &TopicName, batch: &[Trace]) {
    for message in messages(topic, batch) {
        if let Err(error) = producer.send(message).await {
            tracing::warn!(%topic, "message traces are lost: {error}");
        }
    }
}

/// The messages that hold these records: one, unless they are long.
fn messages(topic: &TopicName, batch: &[Trace]) -> Vec<Message> {
    let mut all = Vec::new();
    let (mut body, mut found_by) = (String::new(), BTreeSet::new());
    let mut finish = |body: &mut String, found_by: &mut BTreeSet<&str>| {
        let keys = std::mem::take(found_by).into_iter().collect::<Vec<_>>().join(" ");
        all.push(Message::to(topic.clone(), std::mem::take(body)).property(keys::KEYS, keys));
    };
    for trace in batch {
        let mut own: BTreeSet<&str> = trace.keys.split_whitespace().collect();
        if bytes(&own) > KEYS_MAX {
            // Its id finds it.
            own.clear();
        }
        own.insert(&trace.message_id);
        if !body.is_empty() && (body.len() > BODY_MAX || bytes(&found_by) + bytes(&own) > KEYS_MAX) {
            finish(&mut body, &mut found_by);
        }
        found_by.extend(own);
        trace.encode_into(&mut body);
    }
    if !body.is_empty() {
        finish(&mut body, &mut found_by);
    }
    all
}

/// Bytes of these keys with their blanks.
fn bytes(keys: &BTreeSet<&str>) -> usize {
    keys.iter().map(|key| key.len() + 1).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recall(id: &str, keys: &str) -> Trace {
        Trace {
            message_id: id.to_owned(),
            keys: keys.to_owned(),
            group: "g".to_owned(),
            region: REGION.to_owned(),
            at: Some(Millis::new(1)),
            event: Event::SubBefore { request_id: "r".to_owned(), retries: 0 },
        }
    }

    #[test]
    fn records_share_a_message_that_all_their_keys_find() {
        let topic = TopicName::trace();
        let all = messages(&topic, &[recall("A", "k1 k2"), recall("B", ""), recall("A", "k2")]);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].properties().keys().collect::<Vec<_>>(), ["A", "B", "k1", "k2"]);
        assert_eq!(gantry_proto::trace::decode(all[0].body()).flatten().count(), 3);
        assert!(messages(&topic, &[]).is_empty());
    }

    #[test]
    fn long_keys_take_a_message_of_their_own_or_are_left_out() {
        let topic = TopicName::trace();
        let (long, longer) = ("k".repeat(KEYS_MAX - 100), "k".repeat(KEYS_MAX + 1));
        let all = messages(&topic, &[recall("A", &long), recall("B", &long), recall("C", &longer)]);
        let first = |key: &str| key.chars().take(1).collect::<String>();
        let found_by = all.iter().map(|message| message.properties().keys().map(first).collect::<String>());
        assert_eq!(found_by.collect::<Vec<_>>(), ["Ak", "BCk"]);
    }

    #[tokio::test]
    async fn what_nobody_takes_is_dropped_and_counted() {
        let (tracer, mut orders) = Tracer::new(TopicName::trace());
        for _ in 0..WAITING_MAX + 3 {
            tracer.recalled(None, "T", "ID", true);
        }
        assert_eq!(tracer.dropped.load(Ordering::Relaxed), 3);
        let mut batch = Vec::new();
        assert!(gather(&mut orders, &mut batch).await.is_ok_and(|flushed| flushed.is_none()));
        assert_eq!(batch.len(), BATCH_MAX);
        orders.close();
        while orders.recv().await.is_some() {}
        tracer.flush().await;
        assert!(!tracer.concerns(&TopicName::trace()) && tracer.concerns(&TopicName::internal("T")));
    }
}
