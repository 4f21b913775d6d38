//! What clients say of messages they popped: done (200051, 200151), or invisible for another time (200053).
//!
//! A handle that cannot be read is refused with SYSTEM_ERROR, one that does not fit its request or another broker's
//! with MESSAGE_ILLEGAL, and one that no longer counts, or never did, with NO_MESSAGE. Acks that were repeated are a
//! success.

use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset, QueueId, QueueOffset};
use gantry_proto::names::{GroupName, TopicKind, TopicName};
use gantry_proto::receipt::{PoppedFrom, ReceiptHandle, acked_offsets};
use gantry_proto::remoting::body::Body as _;
use gantry_proto::remoting::body::queues::{BatchAck, BatchAckMessageBody};
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::frame::Frame;
use gantry_proto::remoting::header::{Command, Head, OwnedCommand};
use gantry_proto::remoting::request::Header as _;
use gantry_proto::remoting::request::pop::{
    AckMessageHeader, ChangeInvisibleTimeHeader, ChangeInvisibleTimeResponse, REVIVE_ORDERLY,
};

use super::connection::Connection;
use super::context::{Handled, Reply, Services, short};
use crate::deliver::pop::record::{Counted, Lease};
use crate::deliver::pop::{Ack, Acked, INVISIBLE_MS_MAX, PopError, Pops, Refused, Renewal, Renewed};
use crate::groups::offsets::Key;

/// Messages that one batch may acknowledge.
const BATCH_MAX: usize = 10_000;

/// A reply, and up to where the log must be safe before it is given.
type Settled = (Reply, PhyOffset);

/// What is to be done, as often as it takes.
#[derive(Debug)]
enum Work {
    Acks(Vec<Ack>),
    Renewal(Renewal, i32),
}

/// Handles an ack, a batch of acks, or a change of the invisible time.
pub(super) fn handle_ack(connection: &mut Connection, command: &Command<'_>, frame: &Frame<'_>) {
    let work = AckMessageHeader::decode(&command.ext).map_err(Reply::from).and_then(|header| {
        let subject = (header.consumer_group, header.topic, header.queue_id, header.offset);
        let (ack, _) = ack_of(&connection.services, subject, header.extra_info)?;
        Ok(Work::Acks(vec![ack]))
    });
    work_on(connection, command, frame, work);
}

pub(super) fn handle_batch(connection: &mut Connection, command: &Command<'_>, frame: &Frame<'_>) {
    let work = OwnedCommand::decode(frame)
        .map_err(|error| Reply::refused(ResponseCode::SystemError, error.to_string()))
        .and_then(|request| batch_of(&connection.services, &request));
    work_on(connection, command, frame, work);
}

pub(super) fn handle_change(connection: &mut Connection, command: &Command<'_>, frame: &Frame<'_>) {
    let work = ChangeInvisibleTimeHeader::decode(&command.ext)
        .map_err(Reply::from)
        .and_then(|header| change_of(&connection.services, &header));
    work_on(connection, command, frame, work);
}

fn change_of(services: &Services, header: &ChangeInvisibleTimeHeader<'_>) -> Result<Work, Reply> {
    let subject = (header.consumer_group, header.topic, header.queue_id, header.offset);
    let (ack, handle) = ack_of(services, subject, header.extra_info)?;
    let invisible_ms = u32::try_from(header.invisible_time).ok().filter(|ms| *ms <= INVISIBLE_MS_MAX);
    let invisible_ms = invisible_ms.ok_or_else(|| {
        let why =
            format!("invisibleTime is {} ms, it must be 0 to {INVISIBLE_MS_MAX}", header.invisible_time);
        Reply::refused(ResponseCode::InvalidParameter, why)
    })?;
    let counted = if header.suspend == Some(true) { Counted::No } else { Counted::Yes };
    let renewal = Renewal { key: ack.key, lease: ack.lease, offset: handle.offset, invisible_ms, counted };
    let revive = if handle.revive_queue == REVIVE_ORDERLY { REVIVE_ORDERLY } else { 0 };
    Ok(Work::Renewal(renewal, revive))
}

/// Reads a handle and compares it with its request.
fn ack_of(
    services: &Services,
    (group, name, queue, offset): (&str, &str, i32, i64),
    handle: &str,
) -> Result<(Ack, ReceiptHandle), Reply> {
    let handle = ReceiptHandle::parse(handle)
        .map_err(|error| Reply::refused(ResponseCode::SystemError, error.to_string()))?;
    let foreign = |why: String| Reply::refused(ResponseCode::MessageIllegal, why);
    let broker = services.config.node.name.as_str();
    if handle.broker != broker {
        let why = format!("the receipt handle is of broker {}, this is {broker}", short(&handle.broker));
        return Err(foreign(why));
    }
    let key = key_of(services, group, name, queue)?;
    let from_retry = handle.from != PoppedFrom::Topic;
    let fits = handle.queue == key.queue
        && QueueOffset::from_wire(offset) == Some(handle.offset)
        && from_retry == (key.topic.kind() == TopicKind::Retry);
    if !fits {
        let why = format!(
            "the receipt handle is of message {} of queue {}, the request of message {offset} of queue {queue} of {}",
            handle.offset,
            handle.queue,
            short(name)
        );
        return Err(foreign(why));
    }
    let lease = lease_of(handle.popped_at, i64::try_from(handle.invisible_ms).unwrap_or(i64::MAX))?;
    check_offset(services, &key, handle.offset)?;
    Ok((Ack { key, lease, offsets: vec![handle.offset] }, handle))
}

fn key_of(services: &Services, group: &str, name: &str, queue: i32) -> Result<Key, Reply> {
    let group = GroupName::storable(group)
        .map_err(|error| Reply::refused(ResponseCode::InvalidParameter, format!("consumerGroup: {error}")))?;
    let topic = services.topics.get(name).ok_or_else(|| {
        Reply::refused(ResponseCode::TopicNotExist, format!("topic {} does not exist", short(name)))
    })?;
    let queues = topic.read_queues().max(topic.write_queues());
    let queue = QueueId::from_wire(queue).filter(|id| id.get() < queues).ok_or_else(|| {
        let why = format!("topic {} has {queues} queues, there is no queue {queue}", topic.name);
        Reply::refused(ResponseCode::MessageIllegal, why)
    })?;
    Ok(Key { group, topic: topic.name.clone(), queue })
}

fn lease_of(popped_at: Millis, invisible_ms: i64) -> Result<Lease, Reply> {
    let forged = || Reply::refused(ResponseCode::NoMessage, Refused::NotPopped.to_string());
    Ok(Lease { popped_at, invisible_ms: u32::try_from(invisible_ms).map_err(|_| forged())? })
}

fn check_offset(services: &Services, key: &Key, offset: QueueOffset) -> Result<(), Reply> {
    let queue = services.store.find_queue(key.topic.as_str(), key.queue);
    let end = queue.map_or(QueueOffset::ZERO, |queue| queue.max());
    if offset < end {
        return Ok(());
    }
    let why = format!("queue {} of {} ends at {end}, there is no message {offset}", key.queue, key.topic);
    Err(Reply::refused(ResponseCode::NoMessage, why))
}

/// The acks of a batch.
fn batch_of(services: &Services, request: &OwnedCommand) -> Result<Work, Reply> {
    let wrong = |why: String| Reply::refused(ResponseCode::InvalidParameter, why);
    let body = BatchAckMessageBody::from_json(&request.body)
        .map_err(|error| Reply::refused(ResponseCode::SystemError, error.to_string()))?;
    let mut acks = Vec::with_capacity(body.acks.len().min(BATCH_MAX));
    let mut count = 0;
    for batch in &body.acks {
        let ack = batch_ack(services, batch)?;
        count += ack.offsets.len();
        if count > BATCH_MAX {
            return Err(wrong(format!("more than {BATCH_MAX} messages in a batch of acks: send several")));
        }
        acks.push(ack);
    }
    Ok(Work::Acks(acks))
}

fn batch_ack(services: &Services, batch: &BatchAck) -> Result<Ack, Reply> {
    let wrong = |why: String| Reply::refused(ResponseCode::InvalidParameter, why);
    let group = GroupName::storable(&batch.consumer_group).map_err(|error| wrong(error.to_string()))?;
    let topic = TopicName::storable(&batch.topic).map_err(|error| wrong(error.to_string()))?;
    // The topic is the one that was popped from; its retry topic is told by a flag.
    let topic = if batch.retry == PoppedFrom::Retry.as_str() && topic.kind() != TopicKind::Retry {
        TopicName::pop_retry(&group, &topic).map_err(|error| wrong(error.to_string()))?
    } else {
        topic
    };
    let key = key_of(services, group.as_str(), topic.as_str(), batch.queue_id)?;
    let start = QueueOffset::from_wire(batch.start_offset)
        .ok_or_else(|| wrong("startOffset is below 0: pass on what the pop told".to_owned()))?;
    let offsets = acked_offsets(start, &batch.bit_set).map_err(|error| wrong(error.to_string()))?;
    let lease = lease_of(Millis::new(batch.pop_time), batch.invisible_time)?;
    Ok(Ack { key, lease, offsets })
}

/// Does it and answers, or has it done beside the connection when the log is not applied far enough.
fn work_on(connection: &mut Connection, command: &Command<'_>, frame: &Frame<'_>, work: Result<Work, Reply>) {
    let work = match work {
        Ok(work) => work,
        Err(refused) => return connection.respond(command, frame.serialize, refused.into()),
    };
    match attempt(&connection.services.pops, &work) {
        Ok(Attempt::Settled((reply, end))) => {
            connection.appended = true;
            if command.is_oneway() {
                return;
            }
            let head = Head { remark: reply.remark.as_deref(), ..Head::reply(reply.code, command.opaque) };
            connection.hold(end, frame.serialize, &head, &reply.ext, &reply.body);
        }
        Ok(Attempt::Later(end)) => {
            let pops = Arc::clone(&connection.services.pops);
            let work =
                Handled::later(async move { later(&pops, &work, end).await.unwrap_or_else(Reply::from) });
            connection.respond(command, frame.serialize, work);
        }
        Err(error) => connection.respond(command, frame.serialize, Reply::from(error).into()),
    }
}

async fn later(pops: &Pops, work: &Work, mut end: PhyOffset) -> Result<Reply, PopError> {
    loop {
        pops.caught_up(end).await?;
        match attempt(pops, work)? {
            Attempt::Settled((reply, end)) => {
                pops.settled(end).await?;
                return Ok(reply);
            }
            Attempt::Later(again) => end = again,
        }
    }
}

enum Attempt {
    Settled(Settled),
    Later(PhyOffset),
}

fn attempt(pops: &Pops, work: &Work) -> Result<Attempt, PopError> {
    Ok(match work {
        Work::Acks(acks) => match pops.ack(acks)? {
            Acked::Later(end) => Attempt::Later(end),
            Acked::Taken { end, count, refused } => Attempt::Settled((acked(count, &refused), end)),
        },
        Work::Renewal(renewal, revive_qid) => match pops.renew(renewal)? {
            Renewed::Later(end) => Attempt::Later(end),
            Renewed::Refused(why) => {
                Attempt::Settled((Reply::refused(ResponseCode::NoMessage, why.to_string()), PhyOffset::ZERO))
            }
            Renewed::Taken { end, lease } => {
                let header = ChangeInvisibleTimeResponse {
                    pop_time: lease.popped_at.get(),
                    invisible_time: i64::from(lease.invisible_ms),
                    revive_qid: *revive_qid,
                };
                Attempt::Settled((Reply::header(&header), end))
            }
        },
    })
}

fn acked(count: usize, refused: &[(QueueOffset, Refused)]) -> Reply {
    let Some((offset, why)) = refused.first() else { return Reply::ok() };
    let why = if refused.len() == 1 && count == 0 {
        format!("message {offset}: {why}")
    } else {
        format!("{count} messages are acknowledged, {} are not; message {offset}: {why}", refused.len())
    };
    Reply::refused(ResponseCode::NoMessage, why)
}
