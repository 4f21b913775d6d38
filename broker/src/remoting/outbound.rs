//! What the broker asks of its clients, as frames: codes 39, 40 and 220, and whatever a service calls a peer for.

use std::sync::atomic::{AtomicI32, Ordering};

use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::offsets::{ResetOffsetBody, ResetOffsetBodyForC};
use gantry_proto::remoting::body::queues::MessageQueue;
use gantry_proto::remoting::codes::{Language, RequestCode, ResponseCode};
use gantry_proto::remoting::frame::Serialize;
use gantry_proto::remoting::header::{ExtWrite, Head, encode_frame};
use gantry_proto::remoting::request::member::ConsumerGroupHeader;
use gantry_proto::remoting::request::offset::ResetOffsetHeader;
use gantry_proto::remoting::request::transaction::CheckTransactionStateHeader;

use super::connection::Connection;
use crate::groups::members::{CallAnswer, Notice, OffsetReset};

/// Numbers of requests to clients that are not answered. Calls have their own: an answer's is looked up among them.
static OPAQUE: AtomicI32 = AtomicI32::new(1);

/// Puts a notice into the connection's output.
pub(super) fn write(connection: &mut Connection, notice: &Notice) {
    match notice {
        Notice::MembersChanged { group } => {
            let header =
                ConsumerGroupHeader { consumer_group: group.as_str().to_owned(), ..Default::default() };
            ask(connection, RequestCode::NotifyConsumerIdsChanged, &header, &[]);
        }
        Notice::CheckTransaction(check) => {
            let message = match connection.services.transactions.check_message(check.half_phy) {
                Ok(Some(message)) => message,
                Ok(None) => return, // it was answered meanwhile
                Err(error) => {
                    tracing::error!(at = %check.half_phy, %error, "a half message cannot be read for its back-check");
                    return;
                }
            };
            let header = CheckTransactionStateHeader {
                tran_state_table_offset: check.half_queue_offset.to_wire(),
                commit_log_offset: check.half_phy.to_wire(),
                msg_id: Some(check.uniq_key.clone()),
                transaction_id: Some(check.transaction_id.clone()),
                offset_msg_id: Some(check.offset_msg_id.clone()),
                topic: Some(check.real_topic.as_str().to_owned()),
                broker_name: None,
            };
            ask(connection, RequestCode::CheckTransactionState, &header, &message);
        }
        Notice::ResetOffsets(reset) => reset_offsets(connection, reset),
        Notice::Call { opaque } => call(connection, *opaque),
    }
}

/// Sends a call. What makes no frame is answered here: the client must not see half of it.
fn call(connection: &mut Connection, opaque: i32) {
    let Some(call) = connection.caller.outbox.take_call(opaque) else { return }; // nobody waits any more
    let start = connection.out.len();
    let head = Head::request(call.code.code(), opaque);
    match encode_frame(&mut connection.out, Serialize::Json, &head, &call.ext, call.body.len()) {
        Ok(()) => connection.out.extend_from_slice(&call.body),
        Err(error) => {
            connection.out.truncate(start);
            let refused = || CallAnswer {
                code: ResponseCode::SystemError.into(),
                remark: Some(error.to_string()),
                body: Vec::new(),
            };
            connection.caller.outbox.answer(opaque, refused);
        }
    }
}

fn reset_offsets(connection: &mut Connection, reset: &OffsetReset) {
    let header = ResetOffsetHeader {
        topic: reset.topic.as_str().to_owned(),
        group: reset.group.as_str().to_owned(),
        timestamp: reset.timestamp.get(),
        is_force: true,
        ..ResetOffsetHeader::default()
    };
    let broker = &connection.services.config.node.name;
    let queue = |queue_id| MessageQueue {
        broker_name: broker.clone(),
        queue_id,
        topic: reset.topic.as_str().to_owned(),
    };
    let offsets = reset.offsets.iter();
    let offset_table = offsets.map(|(id, offset)| (queue(id.to_wire()), offset.to_wire())).collect();
    let body = ResetOffsetBody { offset_table };
    let body = match connection.caller.language {
        Language::Cpp => ResetOffsetBodyForC::from(&body).to_json(),
        _ => body.to_json(),
    };
    ask(connection, RequestCode::ResetConsumerClientOffset, &header, &body);
}

fn ask(connection: &mut Connection, code: RequestCode, header: &impl ExtWrite, body: &[u8]) {
    let opaque = OPAQUE.fetch_add(1, Ordering::Relaxed);
    let head = Head::request(code.code(), opaque).oneway();
    // JSON is read by every client, whatever it writes itself.
    connection.answer(Serialize::Json, &head, header, body);
}
