//! Pulls: codes 11 and 361, answered at once or when a message arrives.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::ids::{PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicKind, TopicName};
use gantry_proto::remoting::body::heartbeat::MessageModel;
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::frame::{Frame, Serialize};
use gantry_proto::remoting::header::{Command, ExtWriter, Head};
use gantry_proto::remoting::request::Header as _;
use gantry_proto::remoting::request::pull::{PullMessageHeader, PullMessageResponse, sys_flag};
use tokio::time::Instant;

use super::beside::Beside;
use super::connection::Connection;
use super::context::{Reply, Services, chain};
use super::refusal;
use crate::deliver::expressions::WantedError;
use crate::deliver::filter::Filter;
use crate::deliver::polls::{Awaits, Mailbox, Party, Place, Polls, PollsFull};
use crate::deliver::pull::{BYTES_MAX, PullRequest, PullStatus, Pulled, pull};
use crate::deliver::scaling::Scaling;
use crate::flow::{Limited, Limiter, Subject};
use crate::groups::members::{Accord, Wanted};
use crate::groups::offsets::Key;
use crate::groups::{Group, Reading, tiers};
use crate::store::LogRuns;

/// The longest time a pull is held, whatever the client asks for.
const SUSPEND_MAX: Duration = Duration::from_secs(60);
/// The longest time until a pull that waits for its group's rate is looked at again.
const HOLD_MAX: Duration = Duration::from_secs(2);

/// A pull that waits for a message.
#[derive(Debug)]
pub(super) struct Parked {
    request: PullRequest,
    /// Whose pull it is, and where.
    key: Key,
    opaque: i32,
    serialize: Serialize,
    deadline: Instant,
    topic_sys_flag: i32,
    /// What its filter was made of, unless the request brought it.
    heard: Option<Heard>,
    /// What limits the rate at which its group gets messages.
    limiter: Option<Arc<Limiter>>,
    /// When to look again, while the rate is used up.
    held_until: Option<Instant>,
}

impl Parked {
    /// When it must be looked at whatever happens.
    fn due(&self) -> Instant {
        self.held_until.unwrap_or(self.deadline)
    }

    /// Gives its place up. One without waits for its group's rate no more.
    fn leave(&mut self, place: Option<&Place>, polls: &Polls, mailbox: &Arc<Mailbox>) {
        if let Some(place) = place {
            polls.leave(place, mailbox);
        } else if self.held_until.take().is_some() {
            polls.let_go();
            if let Some(limiter) = &self.limiter {
                limiter.leave();
            }
        }
    }
}

/// The subscriptions that a filter was made of.
#[derive(Clone, Copy, Debug)]
struct Heard {
    /// The version of the member that asks.
    version: i64,
    /// [`Members::changes`](crate::groups::members::Members::changes) before they were looked at.
    changes: u64,
}

/// The parked pulls of one connection.
#[derive(Debug, Default)]
pub(super) struct ParkedPulls {
    /// Without a place: those that only time wakes.
    pulls: HashMap<u32, (Option<Place>, Parked)>,
    deadlines: BTreeSet<(Instant, u32)>,
    next_token: u32,
}

impl ParkedPulls {
    /// Parks a pull, or gives it back when the broker has no room for more.
    pub(super) fn park(
        &mut self,
        polls: &Polls,
        mailbox: &Arc<Mailbox>,
        parked: Parked,
    ) -> Result<u32, Box<(Parked, PollsFull)>> {
        self.next_token = self.next_token.wrapping_add(1) & !super::pop::TOKEN_BIT;
        let token = self.next_token;
        let queue = &parked.request.queue;
        // Whoever comes after another group gets nothing new before that has moved.
        let awaits = if parked.request.end.is_some() { Awaits::Tier } else { Awaits::Message };
        let (key, filter) = ((queue.topic().clone(), queue.id()), &parked.request.filter);
        let place = match polls.park_for(awaits, key, filter, Party::Alone, (mailbox, token)) {
            Ok(place) => place,
            Err(full) => return Err(Box::new((parked, full))),
        };
        self.deadlines.insert((parked.deadline, token));
        self.pulls.insert(token, (Some(place), parked));
        Ok(token)
    }

    /// Parks a pull whose group has used up its rate, to be looked at again after so many milliseconds; gives it back when
    /// the broker has no room for more.
    pub(super) fn hold(
        &mut self,
        polls: &Polls,
        mut parked: Parked,
        ms: u64,
    ) -> Result<(), Box<(Parked, PollsFull)>> {
        if let Err(full) = polls.hold() {
            return Err(Box::new((parked, full)));
        }
        self.next_token = self.next_token.wrapping_add(1) & !super::pop::TOKEN_BIT;
        let token = self.next_token;
        // The limit may be raised meanwhile, and nobody tells.
        let again = Instant::now() + Duration::from_millis(ms).min(HOLD_MAX);
        parked.held_until = Some(again.min(parked.deadline));
        if let Some(limiter) = &parked.limiter {
            limiter.wait();
        }
        self.deadlines.insert((parked.due(), token));
        self.pulls.insert(token, (None, parked));
        Ok(())
    }

    /// Takes a pull that was woken. Its place is gone already, or will be with the next message.
    pub(super) fn take(&mut self, token: u32) -> Option<(Option<Place>, Parked)> {
        let (place, parked) = self.pulls.remove(&token)?;
        self.deadlines.remove(&(parked.due(), token));
        Some((place, parked))
    }

    /// When the next pull must be answered whatever happens.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Takes a pull whose time is over.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<(Option<Place>, Parked)> {
        let (deadline, token) = *self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        self.take(token)
    }

    /// Gives up all places.
    pub(super) fn clear(&mut self, polls: &Polls, mailbox: &Arc<Mailbox>) {
        self.deadlines.clear();
        for (_, (place, mut parked)) in self.pulls.drain() {
            parked.leave(place.as_ref(), polls, mailbox);
        }
    }
}

/// Handles a pull.
pub(super) fn handle(connection: &mut Connection, command: &Command<'_>, frame: &Frame<'_>) {
    let prepared = PullMessageHeader::decode(&command.ext)
        .map_err(|error| (ResponseCode::SystemError, error.to_string()))
        .and_then(|header| prepare(connection, &header).map(|prepared| (header, prepared)));
    let (header, prepared) = match prepared {
        Ok(prepared) => prepared,
        Err((code, why)) => {
            let head = Head::reply(code.code(), command.opaque).remark(&why);
            // A Java consumer reads the response header of a refusal too.
            connection.answer(frame.serialize, &head, &PullMessageResponse::default(), &[]);
            return;
        }
    };
    let services = Arc::clone(&connection.services);
    let key = Key { group: prepared.group, topic: prepared.topic, queue: prepared.request.queue.id() };
    if header.sys_flag & sys_flag::COMMIT_OFFSET != 0
        && let Some(offset) = QueueOffset::from_wire(header.commit_offset)
        && let Err(error) = services.offsets.note(key.clone(), offset)
    {
        tracing::warn!(%error, group = %key.group, topic = %key.topic, "an offset that came with a pull was not kept");
    }
    let mut parked = Parked {
        request: prepared.request,
        key,
        opaque: command.opaque,
        serialize: frame.serialize,
        deadline: Instant::now() + suspend_of(&header),
        topic_sys_flag: prepared.topic_sys_flag,
        heard: prepared.heard,
        limiter: prepared.limiter,
        held_until: None,
    };
    if tell_reset(connection, &parked) {
        return;
    }
    let may_wait = !suspend_of(&header).is_zero();
    match look(connection, &mut parked) {
        Err(limited) if may_wait => hold(connection, parked, &limited),
        Err(limited) => refuse_limited(connection, &parked, &limited),
        Ok(pulled) if may_wait => give_or_park(connection, parked, pulled),
        Ok(pulled) => give_or_hand_over(connection, &parked, pulled),
    }
}

/// How long a pull may be held.
fn suspend_of(header: &PullMessageHeader<'_>) -> Duration {
    let ms = u64::try_from(header.suspend_timeout_millis).unwrap_or(0);
    if header.sys_flag & sys_flag::SUSPEND == 0 {
        Duration::ZERO
    } else {
        Duration::from_millis(ms).min(SUSPEND_MAX)
    }
}

/// Answers a pull that may be held, or parks it when there is nothing for it.
fn give_or_park(connection: &mut Connection, mut parked: Parked, pulled: Pulled) {
    if !pulled.strangers.is_empty() || !waits(&pulled, &parked.request) {
        return give_or_hand_over(connection, &parked, pulled);
    }
    parked.request.from = pulled.next;
    park(connection, parked);
}

fn give_or_hand_over(connection: &mut Connection, parked: &Parked, pulled: Pulled) {
    if pulled.strangers.is_empty() {
        give(connection, parked, pulled);
    } else {
        hand_over(connection, parked, pulled);
    }
}

/// Lets a pull wait until its group's rate allows it more.
fn hold(connection: &mut Connection, parked: Parked, limited: &Limited) {
    connection.services.metrics.pulls_limited.bump();
    let services = Arc::clone(&connection.services);
    if let Err(refused) = connection.parked.hold(&services.polls, parked, limited.retry_ms) {
        refuse_to_wait(connection, &refused.0, refused.1);
    }
}

/// Official consumers pull again a little later on FLOW_CONTROL.
fn refuse_limited(connection: &mut Connection, parked: &Parked, limited: &Limited) {
    connection.services.metrics.pulls_limited.bump();
    let why = limited.to_string();
    let head = Head::reply(ResponseCode::FlowControl.code(), parked.opaque).remark(&why);
    let told = i64::try_from(limited.retry_ms).unwrap_or(i64::MAX);
    let retry = |out: &mut ExtWriter<'_>| out.number("retryAfterMs", told);
    connection.answer(parked.serialize, &head, &(PullMessageResponse::default(), retry), &[]);
}

/// Has a pull wait.
fn park(connection: &mut Connection, parked: Parked) {
    let (key, queue, from) = (parked.key.clone(), Arc::clone(&parked.request.queue), parked.request.from);
    let below = parked.request.below;
    match connection.park(parked) {
        Ok(token) => {
            // What came before the place was taken woke nobody.
            let end = tier_end(connection, &key).map_or(queue.max(), |end| end.min(queue.max()));
            if end > from && is_let_go(&connection.services.scaling, &key, below) {
                connection.inbox.mailbox.wake(token);
            }
        }
        Err(refused) => refuse_to_wait(connection, &refused.0, refused.1),
    }
}

/// Whether a pull that was kept back from `below` on would get more now. If not it is looked at again soon; it would not be
/// if it was let go for the last time before it waited.
fn is_let_go(scaling: &Scaling, key: &Key, below: Option<PhyOffset>) -> bool {
    below.is_none_or(|below| scaling.limit(key).is_none_or(|limit| limit > below))
}

/// Where the messages of a queue end for a group that comes after another one.
fn tier_end(connection: &Connection, key: &Key) -> Option<QueueOffset> {
    let services = &*connection.services;
    let group = services.groups.get(key.group.as_str())?;
    tiers::end(&group, &services.offsets, &key.topic, key.queue)
}

/// A client that is told that there is no message pulls again at once; one that is refused waits a little.
fn refuse_to_wait(connection: &mut Connection, parked: &Parked, full: PollsFull) {
    let why = full.to_string();
    let head = Head::reply(ResponseCode::SystemBusy.code(), parked.opaque).remark(&why);
    connection.answer(parked.serialize, &head, &PullMessageResponse::default(), &[]);
}

struct Prepared {
    request: PullRequest,
    heard: Option<Heard>,
    group: GroupName,
    topic: TopicName,
    topic_sys_flag: i32,
    limiter: Option<Arc<Limiter>>,
}

/// Checks group, topic, queue and subscription, in the order that clients expect.
fn prepare(
    connection: &Connection,
    header: &PullMessageHeader<'_>,
) -> Result<Prepared, (ResponseCode, String)> {
    let services = &*connection.services;
    let group = services
        .groups
        .get_or_create(header.consumer_group)
        .map_err(|error| (ResponseCode::SubscriptionGroupNotExist, error.to_string()))?;
    if !group.config.consume_enable {
        return Err((
            ResponseCode::NoPermission,
            format!("group {} may not consume: enable it first", group.name),
        ));
    }
    let topic = services.topics.get(header.topic).ok_or_else(|| {
        (
            ResponseCode::TopicNotExist,
            format!("topic {} does not exist: create it or send to it first", header.topic),
        )
    })?;
    if !topic.is_readable() {
        return Err((
            ResponseCode::NoPermission,
            format!("topic {} is not readable: change its permission", topic.name),
        ));
    }
    let queues = topic.read_queues();
    // A queue that the topic no longer has is read by whoever has not heard of that.
    let is_there =
        |id: &QueueId| id.get() < queues || services.store.find_queue(topic.name.as_str(), *id).is_some();
    let id = QueueId::from_wire(header.queue_id).filter(is_there).ok_or_else(|| {
        let why = format!(
            "topic {} has {queues} queues to read, there is no queue {}",
            topic.name, header.queue_id
        );
        (ResponseCode::InvalidParameter, why)
    })?;
    if group.reading(topic.name.as_str()) == Reading::Forbidden {
        let why = format!("group {} is forbidden to read topic {}: allow it first", group.name, topic.name);
        return Err((ResponseCode::NoPermission, why));
    }
    let (heard, selected) = subscription(connection, &group, header)?;
    let queue = services
        .store
        .queue(&topic.name, id)
        .map_err(|error| (ResponseCode::SystemError, format!("cannot open the queue's files: {error}")))?;
    let request = PullRequest {
        queue,
        from: QueueOffset::from_wire(header.queue_offset).unwrap_or_default(),
        end: tiers::end(&group, &services.offsets, &topic.name, id),
        messages_max: usize::try_from(header.max_msg_nums).unwrap_or(1),
        bytes_max: BYTES_MAX,
        filter: selected.filter,
        below: None,
        own: selected.own,
    };
    Ok(Prepared {
        request,
        heard,
        group: group.name.clone(),
        topic: topic.name.clone(),
        topic_sys_flag: topic.config.topic_sys_flag,
        limiter: limiter_of(services, &group),
    })
}

/// What limits the rate at which a group gets messages. The system's own groups have no limit: tools are among them.
pub(super) fn limiter_of(services: &Services, group: &Group) -> Option<Arc<Limiter>> {
    let limiter = services.flow.limiter(Subject::Consumers, group.name.as_str(), &group.settings.consume);
    limiter.filter(|_| !group.name.is_system())
}

/// Which messages a pull gets.
struct Selected {
    filter: Filter,
    /// As [`PullRequest::own`].
    own: Option<Filter>,
}

impl From<Filter> for Selected {
    fn from(filter: Filter) -> Self {
        Self { filter, own: None }
    }
}

/// What a pull selects: as the request itself says, or the group's heartbeats.
fn subscription(
    connection: &Connection,
    group: &Group,
    header: &PullMessageHeader<'_>,
) -> Result<(Option<Heard>, Selected), (ResponseCode, String)> {
    let services = &*connection.services;
    if header.sys_flag & sys_flag::SUBSCRIPTION != 0 {
        let (kind, text) =
            (header.expression_type.unwrap_or_default(), header.subscription.unwrap_or_default());
        let filter = services.expressions.filter(kind, text);
        let filter = filter.map_err(|error| (refusal::filter(&error), error.to_string()))?;
        return Ok((None, filter.into()));
    }
    let heard = Heard { version: header.sub_version, changes: services.members.changes() };
    let wanted = services.members.wanted(header.consumer_group, header.topic).ok_or_else(|| {
        let why = format!(
            "group {} has not told that it subscribes to {}: send a heartbeat first",
            header.consumer_group, header.topic
        );
        (ResponseCode::SubscriptionNotExist, why)
    })?;
    if wanted.data.sub_version < header.sub_version {
        let why = format!(
            "the broker knows version {} of the subscription, the request has {}: send a heartbeat first",
            wanted.data.sub_version, header.sub_version
        );
        return Err((ResponseCode::SubscriptionNotLatest, why));
    }
    if TopicKind::of(header.topic) == TopicKind::Retry {
        // What is retried was wanted once; the tags of the retry topic's subscription are `*`.
        return Ok((None, Filter::All.into()));
    }
    let selected = by_heartbeat(connection, group, (header.topic, header.sub_version), &wanted)
        .map_err(|error| (refusal::wanted(&error), error.to_string()))?;
    Ok((Some(heard), selected))
}

/// What a member gets of a topic: all that one of its group wants. What it does not want itself goes to the others
/// by way of the retry topic; each member of a broadcasting group gets its own.
fn by_heartbeat(
    connection: &Connection,
    group: &Group,
    (topic, version): (&str, i64),
    wanted: &Wanted,
) -> Result<Selected, WantedError> {
    let services = &*connection.services;
    let filter = services.expressions.of_group(wanted, version)?;
    if wanted.accord == Accord::Alike {
        return Ok(filter.into());
    }
    let name = group.name.as_str();
    let own = services.members.own(name, topic, connection.caller.connection);
    let Some(Ok(own)) = own.map(|own| services.expressions.of_member(&own)) else { return Ok(filter.into()) };
    if services.members.model_of(name) == Some(MessageModel::Broadcasting) {
        return Ok(own.into());
    }
    Ok(Selected { filter, own: Some(own).filter(|_| group.retry_queues() > 0) })
}

/// Members may have come and gone while a pull waited, and the group before may have moved: what it gets is what they want
/// now, as far as they may see it.
fn refresh(connection: &Connection, parked: &mut Parked) {
    parked.request.end = tier_end(connection, &parked.key);
    let services = &*connection.services;
    let Some(heard) = parked.heard.filter(|heard| heard.changes != services.members.changes()) else {
        return;
    };
    parked.heard = Some(Heard { changes: services.members.changes(), ..heard });
    let (name, topic) = (parked.key.group.as_str(), parked.key.topic.as_str());
    if let (Some(group), Some(wanted)) = (services.groups.get(name), services.members.wanted(name, topic))
        && let Ok(selected) = by_heartbeat(connection, &group, (topic, heard.version), &wanted)
    {
        (parked.request.filter, parked.request.own) = (selected.filter, selected.own);
    }
}

/// Stores messages that other members want for the retry topic, and then tells the client to go on behind them.
fn hand_over(connection: &Connection, parked: &Parked, pulled: Pulled) {
    let services = Arc::clone(&connection.services);
    let beside = Beside::awaited(&connection.inbox, parked.serialize, parked.opaque);
    let header = response(parked, (pulled.next, pulled.min, pulled.max));
    let group = parked.key.group.clone();
    let work = async move {
        let code = ResponseCode::PullRetryImmediately;
        match services.retries.hand_over(group.as_str(), &pulled.strangers).await {
            Ok(()) => {
                services.metrics.handed_over.add(pulled.strangers.len() as u64);
                Reply { code: code.code(), remark: Some(remark(code).to_owned()), ..Reply::header(&header) }
            }
            Err(error) => Reply {
                code: refusal::retry(&error).code(),
                remark: Some(chain(&error)),
                ..Reply::header(&PullMessageResponse::default())
            },
        }
    };
    connection.services.shutdown.spawn("request", beside.run(work));
}

/// Sends the consumer to the offset that an operator set. Returns whether there was one.
fn tell_reset(connection: &mut Connection, parked: &Parked) -> bool {
    let Some(reset) = connection.services.offsets.take_reset(&parked.key, parked.request.from) else {
        return false;
    };
    let (min, max) = (parked.request.queue.min(), parked.request.queue.max());
    write(connection, parked, ResponseCode::PullOffsetMoved, reset, min, max, &LogRuns::default());
    true
}

/// Looks for what the group's rate allows.
fn look(connection: &mut Connection, parked: &mut Parked) -> Result<Pulled, Limited> {
    let services = &connection.services;
    parked.request.below = services.scaling.limit(&parked.key);
    let Some(limiter) = &parked.limiter else {
        return Ok(pull(&services.store, &parked.request, &mut connection.pulls));
    };
    let room = limiter.admit(services.clock.now())?;
    let request = PullRequest {
        messages_max: parked.request.messages_max.min(room.messages),
        bytes_max: parked.request.bytes_max.min(room.bytes),
        ..parked.request.clone()
    };
    Ok(pull(&services.store, &request, &mut connection.pulls))
}

/// Whether a pull may be parked: it found nothing, and its offset is the queue's end.
fn waits(pulled: &Pulled, request: &PullRequest) -> bool {
    match pulled.status {
        PullStatus::AtEnd => true,
        PullStatus::EmptyQueue => request.from == QueueOffset::ZERO,
        PullStatus::NoneMatched => pulled.next >= pulled.end,
        PullStatus::Found | PullStatus::TooSmall | PullStatus::Beyond => false,
    }
}

/// A parked pull was woken: looks again, and parks again if there is still nothing.
pub(super) fn resume(connection: &mut Connection, (place, mut parked): (Option<Place>, Parked)) {
    parked.leave(place.as_ref(), &connection.services.polls, &connection.inbox.mailbox);
    if tell_reset(connection, &parked) {
        return;
    }
    refresh(connection, &mut parked);
    let may_wait = Instant::now() < parked.deadline;
    match look(connection, &mut parked) {
        Err(limited) if may_wait => hold(connection, parked, &limited),
        Err(_) => give_nothing(connection, &parked),
        Ok(pulled) if may_wait && is_current(connection, &parked) => give_or_park(connection, parked, pulled),
        Ok(pulled) => give_or_hand_over(connection, &parked, pulled),
    }
}

/// Whether the queue of a parked pull is still the one that its topic has: the topic may have been deleted.
fn is_current(connection: &Connection, parked: &Parked) -> bool {
    let queue = &parked.request.queue;
    let current = connection.services.store.find_queue(queue.topic().as_str(), queue.id());
    current.is_some_and(|current| Arc::ptr_eq(&current, queue))
}

/// A parked pull's time is over: says what there is. One that waited for its group's rate may go on waiting.
pub(super) fn run_due(connection: &mut Connection, (place, mut parked): (Option<Place>, Parked)) {
    if parked.held_until.is_some() {
        return resume(connection, (place, parked));
    }
    parked.leave(place.as_ref(), &connection.services.polls, &connection.inbox.mailbox);
    if tell_reset(connection, &parked) {
        return;
    }
    refresh(connection, &mut parked);
    match look(connection, &mut parked) {
        Ok(pulled) => give_or_hand_over(connection, &parked, pulled),
        Err(_) => give_nothing(connection, &parked),
    }
}

/// Says that there is nothing for now: the client asks again from the same place.
fn give_nothing(connection: &mut Connection, parked: &Parked) {
    let (from, min, max) = (parked.request.from, parked.request.queue.min(), parked.request.queue.max());
    write(connection, parked, ResponseCode::PullNotFound, from, min, max, &LogRuns::default());
}

fn give(connection: &mut Connection, parked: &Parked, pulled: Pulled) {
    let code = match pulled.status {
        PullStatus::Found => ResponseCode::Success,
        PullStatus::NoneMatched => ResponseCode::PullRetryImmediately,
        PullStatus::AtEnd => ResponseCode::PullNotFound,
        PullStatus::EmptyQueue if parked.request.from == QueueOffset::ZERO => ResponseCode::PullNotFound,
        PullStatus::EmptyQueue | PullStatus::TooSmall | PullStatus::Beyond => ResponseCode::PullOffsetMoved,
    };
    write(connection, parked, code, pulled.next, pulled.min, pulled.max, &pulled.messages);
    connection.pulls.messages = pulled.messages;
    // The files of the log are not held between pulls.
    connection.pulls.messages.clear();
}

fn write(
    connection: &mut Connection,
    parked: &Parked,
    code: ResponseCode,
    next: QueueOffset,
    min: QueueOffset,
    max: QueueOffset,
    messages: &LogRuns,
) {
    let header = response(parked, (next, min, max));
    let head = Head::reply(code.code(), parked.opaque).remark(remark(code));
    connection.answer_runs(parked.serialize, &head, &header, messages);
    let metrics = &connection.services.metrics;
    if messages.is_empty() {
        metrics.pulls_missed.bump();
    } else {
        if let Some(limiter) = &parked.limiter {
            let now = connection.services.clock.now();
            limiter.pay(messages.messages() as u64, messages.bytes() as u64, now);
        }
        metrics.pulls_found.bump();
        metrics.messages_out.add(messages.messages() as u64);
        metrics.bytes_out.add(messages.bytes() as u64);
    }
}

fn response(
    parked: &Parked,
    (next, min, max): (QueueOffset, QueueOffset, QueueOffset),
) -> PullMessageResponse {
    PullMessageResponse {
        suggest_which_broker_id: 0,
        next_begin_offset: next.to_wire(),
        min_offset: min.to_wire(),
        max_offset: max.to_wire(),
        topic_sys_flag: Some(parked.topic_sys_flag),
        group_sys_flag: Some(0),
        ..PullMessageResponse::default()
    }
}

fn remark(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::Success => "FOUND",
        ResponseCode::PullRetryImmediately => "NO_MATCHED_MESSAGE",
        ResponseCode::PullOffsetMoved => "OFFSET_MOVED",
        _ => "NO_NEW_MESSAGE",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gantry_proto::names::TopicName;
    use gantry_proto::remoting::body::topic::TopicConfig;

    use super::*;
    use crate::fixture::World;
    use crate::topics::attributes;
    use crate::topics::scale::Haste;

    /// Regression: a pull that was held back came to wait after the last wake-up, and slept to its deadline.
    #[tokio::test]
    async fn a_pull_that_is_free_by_now_looks_again() {
        let world = World::new();
        let topic = TopicName::internal("T");
        let declare = async |queues| {
            let config = TopicConfig {
                topic_name: "T".to_owned(),
                read_queue_nums: queues,
                write_queue_nums: queues,
                attributes: BTreeMap::from([(attributes::SCALE.to_owned(), "ordered".to_owned())]),
                ..TopicConfig::default()
            };
            world.scaling.declare(config, Haste::Wait).await.unwrap();
        };
        declare(2).await;
        world.send("T", 1, 1).await;
        let group = GroupName::internal("g");
        let leader = Key { group: group.clone(), topic: topic.clone(), queue: QueueId::new(1) };
        world.offsets.commit(leader.clone(), QueueOffset::ZERO).await.unwrap();
        declare(1).await;
        world.send("T", 0, 1).await;
        let key = Key { group, topic, queue: QueueId::ZERO };
        let below = world.scaling.limit(&key);
        assert!(below.is_some());
        assert!(!is_let_go(&world.scaling, &key, below));
        world.offsets.commit(leader, QueueOffset::new(1)).await.unwrap();
        assert!(is_let_go(&world.scaling, &key, below) && is_let_go(&world.scaling, &key, None));
    }
}
