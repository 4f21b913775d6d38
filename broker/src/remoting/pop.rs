//! Popping: code 200050, answered at once or when a message arrives, and what is asked about it: 200052, 200054, 200055.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use gantry_proto::ids::{Millis, QueueId};
use gantry_proto::names::{GroupName, TopicKind};
use gantry_proto::receipt::PopInfo;
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::frame::{Frame, Serialize};
use gantry_proto::remoting::header::{Command, Head, OwnedCommand};
use gantry_proto::remoting::request::Header as _;
use gantry_proto::remoting::request::pop::{
    NotificationHeader, NotificationResponse, POP_MESSAGES_MAX, PeekMessageHeader, PollingInfoHeader,
    PollingInfoResponse, PopMessageHeader, PopMessageResponse, REVIVE_ORDERLY, init_mode,
};
use tokio::time::Instant;

use super::connection::Connection;
use super::context::{Reply, Services, settle, short};
use super::pull::limiter_of;
use super::refusal;
use crate::deliver::filter::Filter;
use crate::deliver::polls::{ANY_QUEUE, Awaits, Mailbox, Party, Place, Polls, PollsFull, Share};
use crate::deliver::pop::record::{ATTEMPT_BYTES_MAX, Delivery};
use crate::deliver::pop::{Found, INVISIBLE_MS_MAX, Outcome, PopRequest, Seen, Start, Wanted};
use crate::flow::{Limited, Limiter};
use crate::groups::attributes::Order;
use crate::groups::members::Accord;
use crate::groups::start::{self, Beginning, Wish};
use crate::groups::{Group, Reading, attributes};
use crate::topics::Topic;
use crate::topics::kinds::MessageType;

/// The longest time a pop is held, whatever the client asks for.
const POLL_MAX: Duration = Duration::from_secs(60);
/// The longest time until a pop that waits for its group's rate is looked at again.
const HOLD_MAX: Duration = Duration::from_secs(2);
/// A request that comes so long after its time to wait was over is not worked on: its client has gone on.
const LATE_MS: i64 = 500;
/// Tells the tokens of pops from those of pulls, which share a mailbox.
pub(super) const TOKEN_BIT: u32 = 1 << 31;

/// What a request that waits wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    /// The messages.
    Messages,
    /// Whether there are some.
    Whether,
}

/// Type and text of the expression that a request came with.
type Expression = (String, String);

/// A pop that waits for a message.
#[derive(Debug)]
pub(super) struct Parked {
    request: PopRequest,
    /// None where everything is wanted.
    expression: Option<Expression>,
    /// What counted the changes of subscriptions when it was asked what others want.
    changes: u64,
    asks: Asks,
    opaque: i32,
    serialize: Serialize,
    deadline: Instant,
    /// What limits the rate at which its group gets messages.
    limiter: Option<Arc<Limiter>>,
    /// When to look again, while the rate is used up; and whether that was so before.
    held_until: Option<Instant>,
    was_held: bool,
}

impl Parked {
    /// When it must be looked at whatever happens.
    fn due(&self) -> Instant {
        self.held_until.unwrap_or(self.deadline)
    }

    /// Notes that it waits for its group's rate no more; returns whether it did.
    fn let_go(&mut self, polls: &Polls) -> bool {
        let held = self.held_until.take().is_some();
        if held {
            polls.let_go();
            if let Some(limiter) = &self.limiter {
                limiter.leave();
            }
        }
        held
    }
}

/// The parked pops of one connection.
#[derive(Debug, Default)]
pub(super) struct ParkedPops {
    pops: HashMap<u32, (Vec<Place>, Parked)>,
    deadlines: BTreeSet<(Instant, u32)>,
    next_token: u32,
}

impl ParkedPops {
    /// Parks a pop at the topic's queues and at its retry topic; gives it back when the broker has no room for more.
    fn park(
        &mut self,
        polls: &Polls,
        mailbox: &Arc<Mailbox>,
        (parked, awaits): (Parked, Awaits),
    ) -> Result<u32, Box<(Parked, PollsFull)>> {
        self.next_token = self.next_token.wrapping_add(1);
        let token = self.next_token | TOKEN_BIT;
        let request = &parked.request;
        let id = match request.wanted {
            Wanted::Queue(id) => id,
            Wanted::All(_) | Wanted::ByPriority(_) => ANY_QUEUE,
        };
        let party = match parked.asks {
            Asks::Messages => Party::Group(Share {
                group: request.group.clone(),
                messages: request.messages_max,
                mixed: request.others.is_some(),
            }),
            Asks::Whether => Party::Asker(request.group.clone()),
        };
        let retry = request.retry_topic().ok().flatten().map(|retry| ((retry, ANY_QUEUE), Awaits::Message));
        let mut places = Vec::with_capacity(2);
        for (key, awaits) in std::iter::once(((request.topic.clone(), id), awaits)).chain(retry) {
            match polls.park_for(awaits, key, &request.filter, party.clone(), (mailbox, token)) {
                Ok(place) => places.push(place),
                Err(full) => {
                    leave(&places, polls, mailbox);
                    return Err(Box::new((parked, full)));
                }
            }
        }
        self.deadlines.insert((parked.deadline, token));
        self.pops.insert(token, (places, parked));
        Ok(token)
    }

    /// Parks a pop whose group has used up its rate, to be looked at again after so many milliseconds; gives it back when
    /// the broker has no room for more.
    fn hold(&mut self, polls: &Polls, mut parked: Parked, ms: u64) -> Result<(), Box<(Parked, PollsFull)>> {
        if let Err(full) = polls.hold() {
            return Err(Box::new((parked, full)));
        }
        self.next_token = self.next_token.wrapping_add(1);
        let token = self.next_token | TOKEN_BIT;
        let again = Instant::now() + Duration::from_millis(ms).min(HOLD_MAX);
        parked.held_until = Some(again.min(parked.deadline));
        parked.was_held = true;
        if let Some(limiter) = &parked.limiter {
            limiter.wait();
        }
        self.deadlines.insert((parked.due(), token));
        self.pops.insert(token, (Vec::new(), parked));
        Ok(())
    }

    /// Takes a pop that was woken, or whose time is over.
    pub(super) fn take(&mut self, polls: &Polls, mailbox: &Arc<Mailbox>, token: u32) -> Option<Parked> {
        let (places, mut parked) = self.pops.remove(&token)?;
        self.deadlines.remove(&(parked.due(), token));
        parked.let_go(polls);
        leave(&places, polls, mailbox);
        Some(parked)
    }

    /// When the next pop must be answered whatever happens.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Takes a pop whose time is over.
    pub(super) fn take_due(&mut self, polls: &Polls, mailbox: &Arc<Mailbox>, now: Instant) -> Option<Parked> {
        let (deadline, token) = *self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        self.take(polls, mailbox, token)
    }

    /// Gives up all places.
    pub(super) fn clear(&mut self, services: &Services, mailbox: &Arc<Mailbox>) {
        self.deadlines.clear();
        for (_, (places, mut parked)) in self.pops.drain() {
            // What it would have taken as soon as it may is the next one's.
            if leave(&places, &services.polls, mailbox) | parked.let_go(&services.polls) {
                services.pops.pass_on(&parked.request);
            }
        }
    }

    /// The connection is about to write, which may take long: what its pops were woken for is passed on.
    pub(super) fn is_busy(&self, services: &Services, mailbox: &Mailbox) {
        if self.pops.is_empty() {
            return;
        }
        mailbox.set_busy(true);
        for token in mailbox.waiting() {
            if let Some((_, parked)) = self.pops.get(&token) {
                services.pops.pass_on(&parked.request);
            }
        }
    }
}

/// Gives places up; returns whether the request was woken at one of them.
fn leave(places: &[Place], polls: &Polls, mailbox: &Arc<Mailbox>) -> bool {
    places.iter().fold(false, |woken, place| woken | polls.leave(place, mailbox))
}

type Refusal = (ResponseCode, String);

/// Handles a pop.
pub(super) fn handle(connection: &mut Connection, command: &Command<'_>, frame: &Frame<'_>) {
    let prepared = PopMessageHeader::decode(&command.ext)
        .map_err(|error| (ResponseCode::SystemError, error.to_string()))
        .and_then(|header| prepare(&connection.services, &header).map(|request| (header, request)));
    let (header, request) = match prepared {
        Ok(prepared) => prepared,
        Err((code, why)) => {
            let head = Head::reply(code.code(), command.opaque).remark(&why);
            connection.answer(frame.serialize, &head, &PopMessageResponse::default(), &[]);
            return;
        }
    };
    let now = connection.services.clock.now();
    let group = connection.services.groups.get(request.group.as_str());
    let parked = Parked {
        limiter: group.and_then(|group| limiter_of(&connection.services, &group)),
        held_until: None,
        was_held: false,
        expression: expression_of(&request.filter, header.exp_type, header.exp),
        changes: 0,
        request,
        asks: Asks::Messages,
        opaque: command.opaque,
        serialize: frame.serialize,
        deadline: deadline(header.poll_time),
    };
    if is_late(header.born_time, header.poll_time, now) {
        answer_nothing(connection, &parked, 0, ResponseCode::PollingTimeout, "the request came too late");
        return;
    }
    let parked = parked.with_others(&connection.services);
    work_on(connection, parked);
}

/// Handles a question whether there is something to pop.
pub(super) fn handle_notification(connection: &mut Connection, command: &Command<'_>, frame: &Frame<'_>) {
    let prepared = NotificationHeader::decode(&command.ext)
        .map_err(|error| (ResponseCode::SystemError, error.to_string()))
        .and_then(|header| {
            let (kind, expression) = (header.exp_type, header.exp);
            let subject = (header.consumer_group, header.topic, header.queue_id);
            let request = subject_of(&connection.services, subject)?;
            let filter = filter_of(&connection.services, kind, expression)?;
            let delivery = delivery_of(&connection.services, &request.group, header.order);
            let attempt = attempt_of(header.attempt_id, delivery)?;
            let expression = expression_of(&filter, kind, expression);
            Ok((header.poll_time, expression, PopRequest { filter, delivery, attempt, ..request }))
        });
    match prepared {
        Ok((poll_time, expression, request)) => {
            let parked = Parked {
                limiter: None,
                held_until: None,
                was_held: false,
                request,
                expression,
                changes: 0,
                asks: Asks::Whether,
                opaque: command.opaque,
                serialize: frame.serialize,
                deadline: deadline(poll_time),
            };
            work_on(connection, parked.with_others(&connection.services));
        }
        Err((code, why)) => {
            let head = Head::reply(code.code(), command.opaque).remark(&why);
            connection.answer(frame.serialize, &head, &NotificationResponse::default(), &[]);
        }
    }
}

fn deadline(poll_ms: i64) -> Instant {
    Instant::now() + Duration::from_millis(u64::try_from(poll_ms).unwrap_or(0)).min(POLL_MAX)
}

/// Whether the client has stopped waiting. One that does not say when it sent the request is not judged.
fn is_late(born_ms: i64, poll_ms: i64, now: Millis) -> bool {
    born_ms > 0 && now.get().saturating_sub(born_ms).saturating_sub(poll_ms) > LATE_MS
}

/// Checks a pop, in the order that clients expect.
fn prepare(services: &Services, header: &PopMessageHeader<'_>) -> Result<PopRequest, Refusal> {
    let wrong = |why: String| (ResponseCode::InvalidParameter, why);
    if !(1..=POP_MESSAGES_MAX).contains(&header.max_msg_nums) {
        let why = format!("maxMsgNums is {}, a pop takes 1 to {POP_MESSAGES_MAX}", header.max_msg_nums);
        return Err(wrong(why));
    }
    let invisible_ms = u32::try_from(header.invisible_time).ok();
    let invisible_ms = invisible_ms.filter(|ms| (1..=INVISIBLE_MS_MAX).contains(ms)).ok_or_else(|| {
        wrong(format!("invisibleTime is {} ms, it must be 1 to {INVISIBLE_MS_MAX}", header.invisible_time))
    })?;
    let subject = (header.consumer_group, header.topic, header.queue_id);
    let request = subject_of(services, subject)?;
    let delivery = delivery_of(services, &request.group, header.order);
    Ok(PopRequest {
        messages_max: usize::try_from(header.max_msg_nums).unwrap_or(1),
        invisible_ms,
        start: match request.start {
            Start::First if header.init_mode == init_mode::MAX => Start::Last,
            start => start,
        },
        filter: filter_of(services, header.exp_type, header.exp)?,
        delivery,
        attempt: attempt_of(header.attempt_id, delivery)?,
        wanted: by_priority(services, &request, delivery),
        ..request
    })
}

/// Where the topic's queues stand for priorities, the highest come first: as often as the group's `priority.factor`
/// says, in percent, and always by default.
fn by_priority(services: &Services, request: &PopRequest, delivery: Delivery) -> Wanted {
    let Wanted::All(queues) = request.wanted else { return request.wanted };
    let topic = services.topics.get(request.topic.as_str());
    if delivery.is_ordered() || topic.is_none_or(|topic| topic.message_type != MessageType::Priority) {
        return request.wanted;
    }
    let group = services.groups.get(request.group.as_str());
    let factor = group.and_then(|group| group.config.attributes.get("priority.factor")?.parse::<u32>().ok());
    if factor.is_none_or(|percent| fastrand::u32(..100) < percent) {
        Wanted::ByPriority(queues)
    } else {
        request.wanted
    }
}

/// Checks group, topic and queue. The rest of the request asks for one message of any kind.
fn subject_of(services: &Services, (group, name, queue): (&str, &str, i32)) -> Result<PopRequest, Refusal> {
    let group = services
        .groups
        .get_or_create(group)
        .map_err(|error| (ResponseCode::SubscriptionGroupNotExist, error.to_string()))?;
    if !group.config.consume_enable {
        let why = format!("group {} may not consume: enable it first", group.name);
        return Err((ResponseCode::NoPermission, why));
    }
    let topic = services.topics.get(name).ok_or_else(|| {
        let why = format!("topic {} does not exist: create it or send to it first", short(name));
        (ResponseCode::TopicNotExist, why)
    })?;
    if !topic.is_readable() {
        let why = format!("topic {} is not readable: change its permission", topic.name);
        return Err((ResponseCode::NoPermission, why));
    }
    if group.reading(topic.name.as_str()) == Reading::Forbidden {
        let why = format!("group {} is forbidden to read topic {}: allow it first", group.name, topic.name);
        return Err((ResponseCode::NoPermission, why));
    }
    let queues = topic.read_queues();
    let wanted = match QueueId::from_wire(queue) {
        None if queue == -1 => Wanted::All(queues),
        Some(id) if id.get() < queues => Wanted::Queue(id),
        _ => {
            let why = format!("topic {} has {queues} queues to read, there is no queue {queue}", topic.name);
            return Err((ResponseCode::InvalidParameter, why));
        }
    };
    let (start, retry_start) = starts_of(services, &group, &topic);
    let request = PopRequest {
        group: group.name.clone(),
        topic: topic.name.clone(),
        wanted,
        messages_max: 1,
        invisible_ms: 1,
        start,
        retry_start,
        filter: Filter::All,
        others: None,
        delivery: Delivery::Concurrent,
        attempt: None,
    };
    request.retry_topic().map_err(|error| (refusal::pop(&error), error.to_string()))?;
    Ok(request)
}

/// Where the broker has a group begin in a topic and in its retry topic; `First` where it is for the request to say.
fn starts_of(services: &Services, group: &Group, topic: &Topic) -> (Start, Start) {
    let asked = services.members.from_where(group.name.as_str());
    let start = |kind| {
        let wish = Wish::of(&group.settings, kind, asked.as_ref());
        match start::beginning(&services.offsets, &group.name, wish, topic) {
            Beginning::Due(start) => Start::Told(start),
            Beginning::Begun => Start::Told(attributes::Start::First),
            Beginning::AsAsked | Beginning::AsAskedAlone => Start::First,
        }
    };
    (start(TopicKind::User), start(TopicKind::Retry))
}

/// The filter of a pop; without an expression all messages are wanted.
fn filter_of(services: &Services, kind: Option<&str>, expression: Option<&str>) -> Result<Filter, Refusal> {
    let (kind, text) = (kind.unwrap_or_default(), expression.unwrap_or_default());
    if text.is_empty() {
        return Ok(Filter::All);
    }
    services.expressions.filter(kind, text).map_err(|error| (refusal::filter(&error), error.to_string()))
}

/// What a filter was made of; nothing where it takes everything.
fn expression_of(filter: &Filter, kind: Option<&str>, text: Option<&str>) -> Option<Expression> {
    let expression = || (kind.unwrap_or_default().to_owned(), text.unwrap_or_default().to_owned());
    (!matches!(filter, Filter::All)).then(expression)
}

impl Parked {
    /// With what others of the group want by now, as far as the request does not: messages for them must stay.
    fn with_others(mut self, services: &Services) -> Self {
        let changes = services.members.changes();
        if let Some((kind, text)) = &self.expression
            && self.changes != changes.wrapping_add(1)
        {
            let (group, topic) = (self.request.group.as_str(), self.request.topic.as_str());
            let wanted = services.members.wanted(group, topic).filter(|wanted| {
                let is_same = wanted.data.expression_type == *kind && wanted.data.sub_string == *text;
                wanted.accord == Accord::Mixed || !is_same
            });
            // Who subscribes to what cannot be served gets nothing.
            self.request.others =
                wanted.and_then(|wanted| services.expressions.of_group(&wanted, i64::MIN).ok());
            // One more than was counted: 0 is for a request that has not asked yet.
            self.changes = changes.wrapping_add(1);
        }
        self
    }
}

/// What a request that asks for order gets is the group's to say.
fn delivery_of(services: &Services, group: &GroupName, order: Option<bool>) -> Delivery {
    if order != Some(true) {
        return Delivery::Concurrent;
    }
    match services.groups.get(group.as_str()).map(|group| group.settings.order) {
        Some(Order::Key) => Delivery::ByKey,
        Some(Order::Queue) | None => Delivery::Orderly,
    }
}

fn attempt_of(id: Option<&str>, delivery: Delivery) -> Result<Option<Arc<str>>, Refusal> {
    let id = id.filter(|id| !id.is_empty() && delivery.is_ordered());
    if id.is_some_and(|id| id.len() > ATTEMPT_BYTES_MAX) {
        let why = format!("attemptId is longer than {ATTEMPT_BYTES_MAX} bytes: use a shorter one");
        return Err((ResponseCode::InvalidParameter, why));
    }
    Ok(id.map(Arc::from))
}

/// Answers a pop, or parks it.
fn work_on(connection: &mut Connection, parked: Parked) {
    let seen = connection.services.pops.seen(&parked.request);
    match parked.asks {
        Asks::Messages => pop(connection, parked, seen),
        Asks::Whether => {
            // Whoever pops is told what is wrong.
            if connection.services.pops.has_some(&parked.request).unwrap_or(true) {
                answer_whether(connection, &parked, true, None);
            } else {
                wait(connection, parked, 0, seen);
            }
        }
    }
}

fn pop(connection: &mut Connection, parked: Parked, seen: Seen) {
    let mut messages_max = parked.request.messages_max;
    if let Some(limiter) = &parked.limiter {
        match limiter.admit(connection.services.clock.now()) {
            Ok(room) => messages_max = messages_max.min(room.messages),
            Err(limited) => return hold(connection, parked, &limited),
        }
    }
    let memory = std::mem::take(&mut connection.pulls.messages);
    let popped = if messages_max == parked.request.messages_max {
        connection.services.pops.pop(&parked.request, memory)
    } else {
        connection.services.pops.pop(&PopRequest { messages_max, ..parked.request.clone() }, memory)
    };
    // A pop that finds nothing may have logged how far it looked.
    connection.appended = true;
    match popped {
        Ok(Outcome::Found(found)) => {
            let more = found.more;
            give(connection, &parked, found);
            if more {
                connection.services.pops.pass_on(&parked.request);
            }
        }
        Ok(Outcome::Nothing { rest }) => {
            wait(connection, parked, rest, seen);
        }
        Ok(Outcome::Again) => {
            if let Some(token) = wait(connection, parked, 0, seen) {
                connection.inbox.mailbox.wake(token);
            }
        }
        Err(error) => {
            // Each that waits is told.
            connection.services.pops.pass_on(&parked.request);
            let head = Head::reply(refusal::pop(&error).code(), parked.opaque);
            let why = super::context::chain(&error);
            connection.answer(parked.serialize, &head.remark(&why), &PopMessageResponse::default(), &[]);
        }
    }
}

/// Lets a pop wait until its group's rate allows it more. One that may not wait is refused with the code on which official
/// clients pop again a little later.
fn hold(connection: &mut Connection, parked: Parked, limited: &Limited) {
    let services = Arc::clone(&connection.services);
    services.metrics.pulls_limited.bump();
    if Instant::now() >= parked.deadline {
        // It may have been woken for messages that it leaves.
        services.pops.pass_on(&parked.request);
        // Who has waited already may ask again at once, and waits again.
        let code = if parked.was_held { ResponseCode::PollingTimeout } else { ResponseCode::PollingFull };
        answer_nothing(connection, &parked, 0, code, &limited.to_string());
    } else if let Err(refused) = connection.parked_pops.hold(&services.polls, parked, limited.retry_ms) {
        let (parked, full) = *refused;
        services.pops.pass_on(&parked.request);
        answer_nothing(connection, &parked, 0, ResponseCode::PollingFull, &full.to_string());
    }
}

/// Parks a pop whose time is not over; otherwise says that there is nothing. Returns its token.
fn wait(connection: &mut Connection, parked: Parked, rest: u64, seen: Seen) -> Option<u32> {
    if Instant::now() >= parked.deadline {
        finish(connection, &parked, rest);
        return None;
    }
    let request = parked.request.clone();
    let services = Arc::clone(&connection.services);
    let mailbox = Arc::clone(&connection.inbox.mailbox);
    // Whoever comes after another group gets nothing new of the topic before that has moved.
    let group = services.groups.get(request.group.as_str());
    let is_tiered =
        request.topic.kind() == TopicKind::User && group.is_some_and(|group| group.settings.after.is_some());
    let awaits = if is_tiered { Awaits::Tier } else { Awaits::Message };
    match connection.parked_pops.park(&services.polls, &mailbox, (parked, awaits)) {
        Ok(token) => {
            // What came before the place was taken woke nobody.
            if services.pops.seen(&request) != seen {
                mailbox.wake(token);
            }
            Some(token)
        }
        Err(refused) => {
            let (parked, full) = *refused;
            // It may have been woken at one of its places already.
            services.pops.pass_on(&parked.request);
            match parked.asks {
                Asks::Messages => {
                    let why = full.to_string();
                    answer_nothing(connection, &parked, rest, ResponseCode::PollingFull, &why);
                }
                Asks::Whether => answer_whether(connection, &parked, false, Some(true)),
            }
            None
        }
    }
}

/// A parked pop was woken, or its time is over: looks again.
pub(super) fn resume(connection: &mut Connection, parked: Parked) {
    let was_alike = parked.request.others.is_none();
    let parked = parked.with_others(&connection.services);
    if was_alike && parked.request.others.is_some() {
        // It may have been woken for what is another's.
        connection.services.pops.wake_group(&parked.request);
    }
    work_on(connection, parked);
    connection.services.store.drive();
}

fn finish(connection: &mut Connection, parked: &Parked, rest: u64) {
    match parked.asks {
        Asks::Messages => {
            answer_nothing(connection, parked, rest, ResponseCode::PollingTimeout, "NO_MESSAGE_IN_QUEUE");
        }
        Asks::Whether => answer_whether(connection, parked, false, None),
    }
}

fn answer_nothing(connection: &mut Connection, parked: &Parked, rest: u64, code: ResponseCode, remark: &str) {
    let header = PopMessageResponse {
        invisible_time: i64::from(parked.request.invisible_ms),
        rest_num: i64::try_from(rest).unwrap_or(i64::MAX),
        ..PopMessageResponse::default()
    };
    let head = Head::reply(code.code(), parked.opaque).remark(remark);
    connection.answer(parked.serialize, &head, &header, &[]);
    connection.services.metrics.pulls_missed.bump();
}

fn answer_whether(connection: &mut Connection, parked: &Parked, has_msg: bool, polling_full: Option<bool>) {
    let header = NotificationResponse { has_msg, polling_full };
    let head = Head::reply(ResponseCode::Success.code(), parked.opaque);
    connection.answer(parked.serialize, &head, &header, &[]);
}

/// Gives what was popped, when the log shows it for good.
fn give(connection: &mut Connection, parked: &Parked, found: Found) {
    let header = header_of(&parked.request, &found);
    let head = Head::reply(ResponseCode::Success.code(), parked.opaque).remark("FOUND");
    connection.hold_runs(found.end, parked.serialize, &head, &header, &found.messages);
    let metrics = &connection.services.metrics;
    metrics.pulls_found.bump();
    metrics.messages_out.add(found.messages.messages() as u64);
    metrics.bytes_out.add(found.messages.bytes() as u64);
    if let Some(limiter) = &parked.limiter {
        let now = connection.services.clock.now();
        limiter.pay(found.messages.messages() as u64, found.messages.bytes() as u64, now);
    }
    connection.pulls.messages = found.messages;
    // The files of the log are not held between pops.
    connection.pulls.messages.clear();
}

fn header_of(request: &PopRequest, found: &Found) -> PopMessageResponse {
    let mut info = PopInfo::default();
    for queue in &found.queues {
        info.add(queue.from, queue.queue, &queue.messages);
    }
    PopMessageResponse {
        pop_time: found.popped_at.get(),
        invisible_time: i64::from(request.invisible_ms),
        revive_qid: if request.delivery.is_ordered() { REVIVE_ORDERLY } else { 0 },
        rest_num: i64::try_from(found.rest).unwrap_or(i64::MAX),
        start_offset_info: Some(info.starts),
        msg_offset_info: Some(info.offsets),
        order_count_info: Some(info.order_counts).filter(|counts| !counts.is_empty()),
    }
}

/// Code 200052: what a pop would give.
pub(super) fn peek(services: &Services, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: PeekMessageHeader<'_> = request.header()?;
        let refused = |(code, why): Refusal| Reply::refused(code, why);
        if !(1..=POP_MESSAGES_MAX).contains(&header.max_msg_nums) {
            let why = format!("maxMsgNums is {}, a peek takes 1 to {POP_MESSAGES_MAX}", header.max_msg_nums);
            return Err(refused((ResponseCode::InvalidParameter, why)));
        }
        let subject = (header.consumer_group, header.topic, header.queue_id);
        let request = subject_of(services, subject).map_err(refused)?;
        let messages_max = usize::try_from(header.max_msg_nums).unwrap_or(1);
        let request = PopRequest { messages_max, ..request };
        let found = services.pops.peek(&request, crate::store::LogRuns::default())?;
        let header = header_of(&request, &found);
        let reply = Reply::header(&header);
        if found.messages.is_empty() {
            let remark = Some("NO_MESSAGE_IN_QUEUE".to_owned());
            return Ok(Reply { code: ResponseCode::PullNotFound.into(), remark, ..reply });
        }
        let body: Vec<u8> = found.messages.iter().flatten().copied().collect();
        Ok(Reply { remark: Some("FOUND".to_owned()), ..reply.with_body(body) })
    })
}

/// Code 200055: how many pops of the group wait at a queue, or at all queues of the topic.
pub(super) fn polling_info(services: &Services, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: PollingInfoHeader<'_> = request.header()?;
        let subject = (header.consumer_group, header.topic, header.queue_id);
        let subject = subject_of(services, subject).map_err(|(code, why)| Reply::refused(code, why))?;
        let queue = QueueId::from_wire(header.queue_id).unwrap_or(ANY_QUEUE);
        let waiting = services.polls.waiting_at(&(subject.topic, queue), &subject.group);
        let polling_num = i32::try_from(waiting).unwrap_or(i32::MAX);
        Ok(Reply::header(&PollingInfoResponse { polling_num }))
    })
}
