//! Groups that pop, and others that refuse or filter: several of them on one topic.
//!
//! Members pop and acknowledge, one by one or many at once; they put messages off, forget them, or hang up with what
//! they have. Once the producers have stopped they only do what they must, but for messages that all of them refuse.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gantry_client::proto::ids::Millis;
use gantry_client::proto::names::{GroupName, TopicName};
use gantry_client::proto::receipt::{PoppedFrom, ReceiptHandle};
use gantry_client::proto::record::RecordView;
use gantry_client::proto::remoting::body::Body as _;
use gantry_client::proto::remoting::body::group::{
    CustomizedRetryPolicy, GroupRetryPolicy, SubscriptionGroupConfig,
};
use gantry_client::proto::remoting::body::queues::{BatchAck, BatchAckMessageBody};
use gantry_client::proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_client::proto::remoting::header::OwnedCommand;
use gantry_client::proto::remoting::request::pop::{
    AckMessageHeader, ChangeInvisibleTimeHeader, ChangeInvisibleTimeResponse, PopMessageHeader,
    PopMessageResponse,
};
use gantry_client::{ConsumeFrom, Outcome, Received, Result, SeekTo};
use tokio::task::JoinSet;

use super::{BREATH, ERROR_PAUSE, Shared};
use crate::checker::groups::{Group, Pop, Popped, Way};
use crate::checker::{Attempt, Ident, Kind};
use crate::wire::Wire;

/// The topic of all of them.
const TOPIC: &str = "crash-handed-out";
/// The broker's name.
const BROKER: &str = "broker-a";
/// How long a member waits for an answer, beside what it lets the broker wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

static POPPERS: Group = Group {
    name: "crash-poppers",
    topic: TOPIC,
    way: Way::Pop,
    sql: None,
    wants: |_| true,
    refuses: |ident| ident.seq % 61 == 7,
    retries_max: 4,
};

static SQL_POPPERS: Group = Group {
    name: "crash-sql-poppers",
    sql: Some("n > 3 AND TAGS = 'a'"),
    wants: is_large_a,
    refuses: |_| false,
    retries_max: 100,
    ..POPPERS_LIKE
};

static ORDERLY_POPPERS: Group = Group {
    name: "crash-orderly-poppers",
    way: Way::PopInOrder,
    refuses: |_| false,
    retries_max: 1000,
    ..POPPERS_LIKE
};

static KEYED_POPPERS: Group = Group { name: "crash-keyed-poppers", way: Way::PopByKey, ..ORDERLY_LIKE };

const ORDERLY_LIKE: Group = Group { refuses: |_| false, retries_max: 1000, ..POPPERS_LIKE };

static PUSHED: Group = Group {
    name: "crash-pushed",
    way: Way::Push,
    refuses: |ident| ident.seq % 53 == 5,
    retries_max: 2,
    ..POPPERS_LIKE
};

static SQL_PULLERS: Group = Group {
    name: "crash-sql-pullers",
    way: Way::Pull,
    sql: Some("n > 3 AND TAGS = 'a'"),
    wants: is_large_a,
    ..POPPERS_LIKE
};

const POPPERS_LIKE: Group = Group {
    name: "",
    topic: TOPIC,
    way: Way::Pop,
    sql: None,
    wants: |_| true,
    refuses: |_| false,
    retries_max: 16,
};

const fn tag(ident: Ident) -> &'static str {
    if ident.seq.is_multiple_of(3) { "b" } else { "a" }
}

const fn number(ident: Ident) -> u64 {
    ident.seq % 10
}

fn is_large_a(ident: Ident) -> bool {
    number(ident) > 3 && tag(ident) == "a"
}

/// Starts all members.
pub(super) fn start(shared: &Arc<Shared>, tasks: &mut JoinSet<()>) {
    for (group, members) in [(&POPPERS, 3), (&SQL_POPPERS, 2), (&ORDERLY_POPPERS, 2), (&KEYED_POPPERS, 3)] {
        shared.checker.consumes(group);
        for number in 0..members {
            tasks.spawn(Arc::clone(shared).pop_on(group, number));
        }
    }
    shared.checker.consumes(&PUSHED);
    tasks.spawn(Arc::clone(shared).push(&PUSHED));
    shared.checker.consumes(&SQL_PULLERS);
    tasks.spawn(Arc::clone(shared).pull(&SQL_PULLERS));
    for group in [&POPPERS, &PUSHED] {
        tasks.spawn(Arc::clone(shared).bury(group));
    }
}

/// One member of a group that pops.
struct Member {
    shared: Arc<Shared>,
    group: &'static Group,
    wire: Wire,
    rng: fastrand::Rng,
    /// Id of a request for messages in order whose answer was lost.
    attempt: Option<Arc<str>>,
    attempts: u64,
    name: String,
}

impl Shared {
    fn is_draining(&self) -> bool {
        self.producers_stop.load(Ordering::Acquire)
    }

    fn is_over(&self) -> bool {
        self.consumers_stop.load(Ordering::Acquire)
    }

    /// Messages for the groups, one after the other.
    pub(super) async fn handed_out(self: Arc<Self>, actor: u16) -> Result<()> {
        let producer = self.sending.producer("crash-hand-out").start().await?;
        let mut seq = self.checker.next_seq(actor);
        while self.sends_on().await {
            let ident = Ident { actor, seq };
            seq += 1;
            self.checker.sending(ident, TOPIC, Kind::Serial);
            let key = ident.sharding_key(self.checker.seed()).to_string();
            let message = self.message(TOPIC, ident).tag(tag(ident)).sharding_key(key);
            match producer.send(message.property("n", number(ident).to_string())).await {
                Ok(receipt) => self.checker.acknowledged(ident, &receipt, Attempt::First),
                Err(_) => tokio::time::sleep(ERROR_PAUSE).await,
            }
            tokio::time::sleep(BREATH * 2).await;
        }
        Ok(())
    }

    /// Makes a group as it is wanted, as often as it takes.
    async fn make(&self, group: &Group) {
        let order = (group.way == Way::PopByKey).then(|| ("gantry.order".to_owned(), "key".to_owned()));
        let config = SubscriptionGroupConfig {
            group_name: group.name.to_owned(),
            retry_max_times: i32::from(group.retries_max),
            // For what is pushed; popped messages come when their invisible time is over.
            group_retry_policy: GroupRetryPolicy {
                customized_retry_policy: Some(CustomizedRetryPolicy { next: vec![100, 400] }),
                ..GroupRetryPolicy::default()
            },
            attributes: order.into_iter().collect(),
            ..SubscriptionGroupConfig::default()
        };
        while !self.is_over() && self.receiving.admin().create_group(&config).await.is_err() {
            tokio::time::sleep(ERROR_PAUSE * 5).await;
        }
    }

    async fn pop_on(self: Arc<Self>, group: &'static Group, number: u64) {
        self.make(group).await;
        let seed =
            self.checker.seed() ^ self.checker.counts().sent ^ (number << 32) ^ group.name.len() as u64;
        let wire = Wire::to(self.broker, ANSWER_WITHIN);
        let name = format!("{}-{number}", group.name);
        let mut member = Member {
            shared: self,
            group,
            wire,
            rng: fastrand::Rng::with_seed(seed),
            attempt: None,
            attempts: 0,
            name,
        };
        while !member.shared.is_over() {
            match member.pop().await {
                Some(popped) if !popped.is_empty() => member.settle(popped).await,
                Some(_) => tokio::time::sleep(BREATH * 5).await,
                None => tokio::time::sleep(ERROR_PAUSE * 2).await,
            }
        }
    }

    /// A member that messages are pushed to.
    async fn push(self: Arc<Self>, group: &'static Group) {
        self.make(group).await;
        let hears = Arc::clone(&self);
        let handler = move |message: Received| {
            let checker = &hears.checker;
            checker.delivered(group, &message);
            let ident = Ident::of(message.body());
            let is_refused = ident.is_some_and(|ident| {
                let moody = ident.seq.is_multiple_of(17) && message.reconsume_times() == 0;
                (group.refuses)(ident) || moody && !hears.is_draining()
            });
            std::future::ready(if is_refused { Outcome::Later } else { Outcome::Success })
        };
        let consumer = self
            .receiving
            .push_consumer(group.name)
            .subscribe(group.topic, "*")
            .from(ConsumeFrom::First)
            .max_reconsume_times(u32::from(group.retries_max))
            .concurrency(4);
        let consumer = consumer.start(handler).await.expect("a consumer of a valid group starts");
        while !self.is_over() {
            tokio::time::sleep(ERROR_PAUSE).await;
        }
        consumer.shutdown().await;
    }

    /// A member that pulls what its filter wants, and never goes back.
    async fn pull(self: Arc<Self>, group: &'static Group) {
        let consumer = self.receiving.pull_consumer(group.name).wait(Duration::from_millis(500));
        let consumer = consumer.sql(group.sql.unwrap_or("TRUE")).start().await;
        let consumer = consumer.expect("a consumer of a valid group starts");
        while !self.is_over() {
            if consumer.assigned().is_empty() {
                match consumer.queues(group.topic).await {
                    Ok(queues) => consumer.assign(queues),
                    Err(_) => tokio::time::sleep(ERROR_PAUSE * 5).await,
                }
                continue;
            }
            let Ok(messages) = consumer.poll(Duration::from_millis(200)).await else { continue };
            for message in &messages {
                self.checker.delivered(group, message);
            }
            // One that is lost is one that comes later.
            let _ = consumer.commit().await;
        }
    }

    /// Looks at the dead letters of a group, each time from the first.
    async fn bury(self: Arc<Self>, group: &'static Group) {
        let name = GroupName::parse(group.name).expect("a valid name");
        let topic = TopicName::dead_letter(&name);
        let consumer = self.receiving.pull_consumer("crash-undertakers").wait(Duration::from_millis(500));
        let consumer = consumer.start().await.expect("a consumer of a valid group starts");
        while !self.is_over() {
            if consumer.assigned().is_empty() {
                let queues = consumer.queues(topic.as_str()).await.unwrap_or_default();
                let mut is_set = !queues.is_empty();
                consumer.assign(queues.clone());
                for queue in &queues {
                    is_set &= consumer.seek(queue, SeekTo::Begin).await.is_ok();
                }
                if !is_set {
                    consumer.assign([]);
                    tokio::time::sleep(ERROR_PAUSE * 5).await;
                }
                continue;
            }
            let Ok(messages) = consumer.poll(Duration::from_millis(200)).await else { continue };
            for message in &messages {
                self.checker.died(group, message);
            }
        }
    }
}

impl Member {
    /// Pops. `None` when there was no answer, or a refusal.
    async fn pop(&mut self) -> Option<Vec<Popped>> {
        let is_orderly = matches!(self.group.way, Way::PopInOrder | Way::PopByKey);
        let attempt = is_orderly.then(|| self.next_attempt());
        let longest = if is_orderly { 1000 } else { 3000 };
        let header = PopMessageHeader {
            consumer_group: self.group.name,
            topic: self.group.topic,
            queue_id: -1,
            max_msg_nums: self.rng.i32(1..=32),
            invisible_time: self.rng.i64(300..longest),
            poll_time: if self.rng.bool() { 0 } else { self.rng.i64(1..1000) },
            exp_type: Some(if self.group.sql.is_some() { "SQL92" } else { "TAG" }),
            exp: Some(self.group.sql.unwrap_or("*")),
            order: Some(is_orderly),
            attempt_id: attempt.as_deref(),
            ..PopMessageHeader::default()
        };
        let pop = Pop { asked_at: Instant::now(), attempt: attempt.clone() };
        let request = OwnedCommand::request(RequestCode::PopMessage, &header);
        let Ok(reply) = self.wire.ask(request).await else {
            self.shared.checker.pop_lost(self.group);
            self.attempt = attempt;
            return None;
        };
        match ResponseCode::from(reply.code) {
            ResponseCode::Success => {
                let messages = messages(&reply).unwrap_or_else(|| {
                    self.shared
                        .checker
                        .violation(format!("{} pops what nobody understands: {reply:?}", self.name));
                    Vec::new()
                });
                Some(self.shared.checker.popped(self.group, &pop, messages))
            }
            ResponseCode::PollingTimeout => Some(Vec::new()),
            // A log that fails leaves open what has got there.
            _ => {
                self.shared.checker.pop_lost(self.group);
                None
            }
        }
    }

    /// The id of a request whose answer was lost, mostly; or another.
    fn next_attempt(&mut self) -> Arc<str> {
        let lost = self.attempt.take();
        if let Some(lost) = lost
            && self.rng.u8(..) < 200
        {
            return lost;
        }
        self.attempts += 1;
        format!("{}-{}-{}", self.name, self.rng.u64(..), self.attempts).into()
    }

    /// Does something about what it has got.
    async fn settle(&mut self, mut popped: Vec<Popped>) {
        let draining = self.shared.is_draining();
        let group = self.group;
        popped.retain(|popped| !(group.refuses)(popped.ident));
        if draining {
            return self.ack_at_once(&popped).await;
        }
        match self.rng.u8(..100) {
            0..50 => self.ack_each(&popped).await,
            50..75 => self.ack_at_once(&popped).await,
            75..87 => self.put_off(popped).await,
            87..92 => {
                // Some of them in time, the others not.
                tokio::time::sleep(Duration::from_millis(self.rng.u64(100..2500))).await;
                self.ack_each(&popped).await;
            }
            92..96 => {
                let some = self.rng.usize(..=popped.len());
                self.ack_each(popped.get(..some).unwrap_or_default()).await;
                self.wire.hang_up();
            }
            _ => {} // forgotten
        }
    }

    async fn ack_each(&mut self, popped: &[Popped]) {
        for popped in popped {
            let handle = &popped.handle;
            let extra_info = handle.to_string();
            let header = AckMessageHeader {
                consumer_group: self.group.name,
                topic: &popped.topic,
                queue_id: handle.queue.to_wire(),
                extra_info: &extra_info,
                offset: handle.offset.to_wire(),
            };
            let request = OwnedCommand::request(RequestCode::AckMessage, &header);
            if !self.ack(std::slice::from_ref(popped), request).await {
                return;
            }
        }
    }

    /// All that was popped, in one request.
    async fn ack_at_once(&mut self, popped: &[Popped]) {
        if popped.is_empty() {
            return;
        }
        let mut batches: BTreeMap<(&str, u32, u64, Millis), Vec<&Popped>> = BTreeMap::new();
        for popped in popped {
            let handle = &popped.handle;
            let together = (handle.from.as_str(), handle.queue.get(), handle.start.get(), handle.popped_at);
            batches.entry(together).or_default().push(popped);
        }
        let acks = batches.into_values().map(|together| batch(self.group, &together)).collect();
        let body = BatchAckMessageBody { acks, broker_name: BROKER.to_owned() };
        let request = OwnedCommand::request(RequestCode::BatchAckMessage, &()).body(body.to_json());
        self.ack(popped, request).await;
    }

    /// Sends an ack of all these; gives whether there was an answer.
    async fn ack(&mut self, popped: &[Popped], request: OwnedCommand) -> bool {
        let checker = Arc::clone(&self.shared.checker);
        checker.acking(self.group, popped);
        let Ok(reply) = self.wire.ask(request).await else { return false };
        match (ResponseCode::from(reply.code), popped) {
            (ResponseCode::Success, _) => checker.popped_done(self.group, popped),
            (ResponseCode::NoMessage, [one]) => {
                checker.ack_refused(self.group, one, reply.remark.as_deref().unwrap_or_default());
            }
            // Of many, some count; of a log that fails nobody knows.
            _ => {}
        }
        true
    }

    /// Makes some invisible for another time, and acknowledges all but those that it leaves.
    async fn put_off(&mut self, popped: Vec<Popped>) {
        let mut left = Vec::with_capacity(popped.len());
        for popped in popped {
            if self.rng.bool() {
                left.push(popped);
                continue;
            }
            let invisible = if self.rng.u8(..) < 60 { 0 } else { self.rng.i64(1..2000) };
            let Some(renewed) = self.renew(&popped, invisible).await else { continue };
            if invisible > 500 && self.rng.u8(..) < 170 {
                left.push(renewed);
            }
        }
        if self.rng.bool() {
            self.ack_each(&left).await;
        } else {
            self.ack_at_once(&left).await;
        }
    }

    async fn renew(&mut self, popped: &Popped, invisible_time: i64) -> Option<Popped> {
        let handle = &popped.handle;
        let extra_info = handle.to_string();
        let header = ChangeInvisibleTimeHeader {
            consumer_group: self.group.name,
            topic: &popped.topic,
            queue_id: handle.queue.to_wire(),
            extra_info: &extra_info,
            offset: handle.offset.to_wire(),
            invisible_time,
            suspend: Some(self.rng.bool()),
        };
        self.shared.checker.renewing(self.group, popped);
        let request = OwnedCommand::request(RequestCode::ChangeMessageInvisibletime, &header);
        let reply = self.wire.ask(request).await.ok()?;
        if ResponseCode::from(reply.code) != ResponseCode::Success {
            return None;
        }
        let parts: ChangeInvisibleTimeResponse = reply.header().ok()?;
        let handle = ReceiptHandle {
            start: handle.offset,
            popped_at: Millis::new(parts.pop_time),
            invisible_ms: u64::try_from(parts.invisible_time).ok()?,
            revive_queue: parts.revive_qid,
            ..handle.clone()
        };
        let renewed = Popped { handle, ..popped.clone() };
        self.shared.checker.renewed(self.group, &renewed);
        Some(renewed)
    }
}

/// Acks of messages of one queue that were popped together.
fn batch(group: &Group, together: &[&Popped]) -> BatchAck {
    let handle = &together.first().expect("a batch is of something").handle;
    let start = handle.start.get();
    let mut bits: Vec<u8> = Vec::new();
    for popped in together {
        let bit =
            usize::try_from(popped.handle.offset.get() - start).expect("what is popped together is near");
        if bits.len() <= bit / 8 {
            bits.resize(bit / 8 + 1, 0);
        }
        bits[bit / 8] |= 1 << (bit % 8);
    }
    BatchAck {
        bit_set: base64(&bits),
        consumer_group: group.name.to_owned(),
        invisible_time: i64::try_from(handle.invisible_ms).unwrap_or(i64::MAX),
        pop_time: handle.popped_at.get(),
        queue_id: handle.queue.to_wire(),
        retry: handle.from.as_str().to_owned(),
        revive_queue_id: handle.revive_queue,
        start_offset: handle.start.to_wire(),
        topic: group.topic.to_owned(),
    }
}

fn base64(bytes: &[u8]) -> String {
    const SYMBOLS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let at = |byte: usize| u32::from(three.get(byte).copied().unwrap_or_default());
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for symbol in 0..4 {
            let index = (word >> (18 - 6 * symbol) & 63) as usize;
            text.push(if symbol <= three.len() { char::from(SYMBOLS[index]) } else { '=' });
        }
    }
    text
}

/// The messages of a pop's answer: body, topic, and the handle that a client makes of it. `None` when they make no sense.
fn messages(reply: &OwnedCommand) -> Option<Vec<(Vec<u8>, String, ReceiptHandle)>> {
    let header: PopMessageResponse = reply.header().ok()?;
    let (starts, offsets) = (header.start_offset_info?, header.msg_offset_info?);
    let mut rest = reply.body.as_ref();
    let mut popped = Vec::new();
    for (start, offsets) in starts.split(';').zip(offsets.split(';')) {
        let (key, start) = start.rsplit_once(' ')?;
        let (_, offsets) = offsets.rsplit_once(' ').filter(|(same, _)| *same == key)?;
        let (from, queue) = key.split_once(' ')?;
        for offset in offsets.split(',') {
            let (at, invisible, revive) = (header.pop_time, header.invisible_time, header.revive_qid);
            let text = format!("{start} {at} {invisible} {revive} {from} {BROKER} {queue} {offset}");
            let handle = ReceiptHandle::parse(&text).ok()?;
            let view = RecordView::parse(rest).ok()?;
            let is_retry = handle.from != PoppedFrom::Topic;
            if view.queue_offset() != handle.offset || is_retry != view.topic().starts_with("%RETRY%") {
                return None;
            }
            popped.push((view.body().to_vec(), view.topic().to_owned(), handle));
            rest = rest.get(view.total_size() as usize..)?;
        }
    }
    rest.is_empty().then_some(popped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_written_as_the_broker_reads_them() {
        for (bytes, text) in [(&b"\x85\x01"[..], "hQE="), (b"", ""), (b"\x05\x02", "BQI="), (b"abc", "YWJj")]
        {
            assert_eq!(base64(bytes), text);
        }
    }
}
