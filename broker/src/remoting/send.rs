//! Sends: codes 10, 310 and 320; and 36, a consumer's "not now".

use std::net::SocketAddr;
use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset};
use gantry_proto::record::{OffsetMsgId, Properties, RecallHandle, SysFlag};
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::frame::Frame;
use gantry_proto::remoting::header::{Command, Head, OwnedCommand};
use gantry_proto::remoting::request::send::{
    ConsumerSendMsgBackHeader, QuickSend, SendMessageHeader, SendMessageResponse, SendReplyExtras,
};

use super::connection::Connection;
use super::context::{Caller, Handled, Reply, Services, chain};
use super::refusal;
use crate::deliver::retry::SendBack;
use crate::metrics::Metrics;
use crate::publish::{Incoming, REGION, SendError, Sent};
use crate::store::{AppendError, FlushPolicy};

/// Handles a send or a batch; the answer is held until the message is safe.
pub(super) fn handle(
    connection: &mut Connection,
    code: RequestCode,
    command: &Command<'_>,
    frame: &Frame<'_>,
) {
    super::transaction::stage_rollbacks(connection);
    let result = match SendMessageHeader::read(code, &command.ext) {
        Ok(header) => take(connection, code, &header, frame.body),
        Err(error) => {
            Err(Refused { code: ResponseCode::SystemError, why: error.to_string(), retry_ms: None })
        }
    };
    conclude(connection, command, frame, result);
}

/// [`handle`] of a send whose header is read already.
pub(super) fn handle_quick(connection: &mut Connection, send: &QuickSend<'_>, frame: &Frame<'_>) {
    super::transaction::stage_rollbacks(connection);
    let result = take(connection, send.code, &send.header, frame.body);
    conclude(connection, &send.command, frame, result);
}

fn conclude(
    connection: &mut Connection,
    command: &Command<'_>,
    frame: &Frame<'_>,
    result: Result<Taken, Refused>,
) {
    if command.is_oneway() {
        // Of what is tried again later, the limit itself tells now and then.
        if let Err(refused) = result
            && refused.retry_ms.is_none()
        {
            tracing::warn!(remote = %connection.caller.remote, why = refused.why, "a one-way message was refused");
        }
        return;
    }
    match result {
        Ok(taken) => {
            answer(connection, command.opaque, frame, &taken);
            connection.msg_ids = taken.msg_ids;
        }
        Err(refused) => {
            let Refused { code, why, retry_ms } = refused;
            connection.refuse(frame.serialize, command.opaque, code, &why, retry_ms);
        }
    }
}

struct Refused {
    code: ResponseCode,
    why: String,
    /// When to try again, for what passes by itself.
    retry_ms: Option<u64>,
}

impl Refused {
    fn new(error: &SendError, metrics: &Metrics) -> Self {
        match error {
            SendError::Limited(_) => metrics.sends_limited.bump(),
            SendError::Append(AppendError::Behind { .. }) => metrics.sends_behind.bump(),
            _ => {}
        }
        Self { code: refusal::send(error), why: chain(error), retry_ms: refusal::retry_ms(error) }
    }
}

struct Taken {
    last: Sent,
    /// What the client is told; of a batch, its first message.
    first: Sent,
    msg_ids: String,
    /// What a timer message can be taken back with.
    handle: Option<String>,
}

/// The message of a request.
pub(super) fn incoming<'a>(
    header: &SendMessageHeader<'a>,
    body: &'a [u8],
    caller: &Caller,
    store_host: SocketAddr,
) -> Incoming<'a> {
    Incoming {
        producers: header.producer_group,
        topic: header.topic,
        default_topic: header.default_topic,
        default_queues: header.default_topic_queue_nums,
        queue_id: header.queue_id,
        sys_flag: SysFlag::new(header.sys_flag),
        flag: header.flag,
        born_at: Millis::new(header.born_timestamp),
        born_host: caller.remote,
        store_host,
        properties: Properties::new(header.properties.unwrap_or_default().as_bytes()),
        body,
        reconsume_times: header.reconsume_times.unwrap_or(0),
        reconsume_max: header.max_reconsume_times,
    }
}

fn take(
    connection: &mut Connection,
    code: RequestCode,
    header: &SendMessageHeader<'_>,
    body: &[u8],
) -> Result<Taken, Refused> {
    let Connection { services, caller, scratch, msg_ids, appended, .. } = connection;
    let store_host = services.store_host(caller);
    let incoming = incoming(header, body, caller, store_host);
    let is_batch = code == RequestCode::SendBatchMessage || header.batch == Some(true);
    let mut msg_ids = std::mem::take(msg_ids);
    msg_ids.clear();
    let refuse = |error: SendError| Refused::new(&error, &services.metrics);
    let (first, last) = if is_batch {
        services.publisher.send_batch(&incoming, scratch).map_err(refuse)?;
        let sent = &scratch.sent;
        OffsetMsgId::push_all(store_host, sent.iter().map(|one| one.phy), &mut msg_ids);
        let last = sent.iter().max_by_key(|one| one.end).copied();
        let (Some(first), Some(last)) = (sent.first().copied(), last) else {
            return Err(refuse(SendError::EmptyBatch));
        };
        services.metrics.messages_in.add(sent.len() as u64);
        services.metrics.bytes_in.add(body.len() as u64);
        (first, last)
    } else {
        let sent = services.publisher.send(&incoming, scratch).map_err(refuse)?;
        OffsetMsgId { store_host, offset: sent.phy }.push_to(&mut msg_ids);
        services.metrics.messages_in.bump();
        services.metrics.bytes_in.add(body.len() as u64);
        (sent, sent)
    };
    *appended = true;
    let handle = first
        .due
        .map(|due| RecallHandle::encode(header.topic, &services.config.node.name, due, &scratch.uniq_key));
    Ok(Taken { last, first, msg_ids, handle })
}

fn answer(connection: &mut Connection, opaque: i32, frame: &Frame<'_>, taken: &Taken) {
    let uniq_key = std::mem::take(&mut connection.scratch.uniq_key);
    let recall_handle = taken.handle.as_deref();
    let header = SendMessageResponse {
        msg_id: &taken.msg_ids,
        queue_id: taken.first.queue_id.to_wire(),
        queue_offset: taken.first.queue_offset.to_wire(),
        transaction_id: Some(&uniq_key),
        batch_uniq_id: None,
        recall_handle,
    };
    let extras = SendReplyExtras { msg_region: REGION, trace_on: true };
    let head = Head::reply(ResponseCode::Success.code(), opaque);
    if taken.last.waits || connection.services.store.policy() == FlushPolicy::Memory {
        connection.hold(taken.last.end, frame.serialize, &head, &(header, extras), &[]);
    } else {
        // The client does not wait for the disk. That the process may end at any time is another matter.
        connection.services.store.write_through();
        match connection.services.store.failure().map(ToString::to_string) {
            None => connection.answer(frame.serialize, &head, &(header, extras), &[]),
            Some(why) => {
                let head = Head::reply(ResponseCode::ServiceNotAvailable.code(), opaque).remark(&why);
                connection.answer(frame.serialize, &head, &(), &[]);
            }
        }
    }
    connection.scratch.uniq_key = uniq_key;
}

/// Code 36: a consumer could not process a message.
pub(super) fn handle_back(services: &Arc<Services>, request: &OwnedCommand, _: &Caller) -> Handled {
    let header: ConsumerSendMsgBackHeader = match request.header() {
        Ok(header) => header,
        Err(error) => return Reply::refused(ResponseCode::SystemError, error.to_string()).into(),
    };
    let Some(at) = PhyOffset::from_wire(header.offset) else {
        let why = format!("offset {} is no log position: pass on the message's own", header.offset);
        return Reply::refused(ResponseCode::SystemError, why).into();
    };
    let services = Arc::clone(services);
    Handled::later(async move {
        let back = SendBack {
            group: &header.group,
            at,
            delay_level: header.delay_level,
            max_reconsume_times: header.max_reconsume_times,
        };
        match services.retries.send_back(&back).await {
            Ok(_) => Reply::ok(),
            Err(error) => Reply::refused(refusal::retry(&error), chain(&error)),
        }
    })
}
