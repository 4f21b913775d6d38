//! Replies to request messages: codes 324 and 325, pushed on as 326.

use std::sync::Arc;

use gantry_proto::ids::Millis;
use gantry_proto::record::{OffsetMsgId, PropertiesBuf, keys};
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::callback::PushReplyMessageHeader;
use gantry_proto::remoting::request::send::{SendMessageHeader, SendMessageResponse, SendReplyExtras};

use super::context::{Caller, Handled, Reply, Services, chain};
use super::refusal;
use crate::publish::reply::{Keep, Reply as Replied};
use crate::publish::{Incoming, REGION, Scratch, Sent};

/// The message id of a reply that is not stored: clients want one that they can read.
const NOT_STORED: &str = "0";
/// Bytes of properties that are added to what is pushed.
const ADDED_PROPERTIES: usize = 48;

/// Codes 324 and 325: answered when the requester has taken the reply.
pub(super) fn handle(services: &Arc<Services>, request: &OwnedCommand, caller: &Caller) -> Handled {
    let (services, request, caller) = (Arc::clone(services), request.clone(), caller.clone());
    Handled::later(async move { reply(&services, &request, &caller).await })
}

pub(super) async fn reply(services: &Services, request: &OwnedCommand, caller: &Caller) -> Reply {
    let header = match SendMessageHeader::read(RequestCode::from(request.code), &request.ext) {
        Ok(header) => header,
        Err(error) => return error.into(),
    };
    let store_host = services.store_host(caller);
    let message = super::send::incoming(&header, &request.body, caller, store_host);
    let push = crate::groups::members::Call::new(
        RequestCode::PushReplyMessageToClient,
        &pushed(&header, &message, services.clock.now()),
        request.body.to_vec(),
    );
    let keep = if services.config.topics.store_replies { Keep::Stored } else { Keep::PushedOnly };
    let mut scratch = Scratch::default();
    match services.publisher.reply(&services.members, Replied { message, push, keep }, &mut scratch).await {
        Ok(kept) => {
            if kept.is_some() {
                services.metrics.messages_in.bump();
                services.metrics.bytes_in.add(request.body.len() as u64);
            }
            answer(kept, header.queue_id, store_host, &scratch.uniq_key)
        }
        Err(error) => Reply::refused(refusal::reply(&error), chain(&error)),
    }
}

/// The reply as its requester gets it.
fn pushed(header: &SendMessageHeader<'_>, message: &Incoming<'_>, now: Millis) -> PushReplyMessageHeader {
    let mut properties = PropertiesBuf::copy_of(message.properties, ADDED_PROPERTIES);
    properties.set(keys::PUSH_REPLY_TIME, &now.to_string());
    PushReplyMessageHeader {
        producer_group: header.producer_group.to_owned(),
        topic: header.topic.to_owned(),
        default_topic: header.default_topic.to_owned(),
        default_topic_queue_nums: header.default_topic_queue_nums,
        queue_id: header.queue_id,
        sys_flag: header.sys_flag,
        born_timestamp: header.born_timestamp,
        flag: header.flag,
        properties: Some(String::from_utf8_lossy(properties.as_bytes()).into_owned()),
        reconsume_times: header.reconsume_times,
        unit_mode: header.unit_mode,
        born_host: message.born_host.to_string(),
        store_host: message.store_host.to_string(),
        store_timestamp: now.get(),
    }
}

fn answer(kept: Option<Sent>, asked: i32, store_host: std::net::SocketAddr, uniq_key: &str) -> Reply {
    let msg_id = kept.map(|sent| OffsetMsgId { store_host, offset: sent.phy }.to_string());
    let header = SendMessageResponse {
        msg_id: msg_id.as_deref().unwrap_or(NOT_STORED),
        queue_id: kept.map_or_else(|| asked.max(0), |sent| sent.queue_id.to_wire()),
        queue_offset: kept.map_or(0, |sent| sent.queue_offset.to_wire()),
        transaction_id: Some(uniq_key).filter(|key| !key.is_empty()),
        batch_uniq_id: None,
        recall_handle: None,
    };
    let extras = SendReplyExtras { msg_region: REGION, trace_on: true };
    Reply { code: ResponseCode::Success.into(), ..Reply::header(&(header, extras)) }
}
