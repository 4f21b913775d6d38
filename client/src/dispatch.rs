//! What brokers ask of clients, handed to whom it concerns.

use std::sync::{Arc, Weak};

use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::request::Header;
use gantry_proto::remoting::request::member::ConsumerGroupHeader;
use gantry_proto::remoting::request::offset::ResetOffsetHeader;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::client::Core;
use crate::connection::FromServer;
use crate::request;
use crate::transaction;

/// Hands on requests until `stop`.
pub(crate) async fn run(core: Weak<Core>, mut requests: mpsc::Receiver<FromServer>, stop: CancellationToken) {
    loop {
        let request = tokio::select! {
            () = stop.cancelled() => return,
            request = requests.recv() => request,
        };
        let (Some(request), Some(core)) = (request, core.upgrade()) else { return };
        hand_on(&core, request);
    }
}

fn hand_on(core: &Arc<Core>, request: FromServer) {
    let command = &request.command;
    let group = match RequestCode::from(command.code) {
        RequestCode::CheckTransactionState => {
            transaction::answer_check(core, request);
            return;
        }
        RequestCode::PushReplyMessageToClient => return request::take_reply(core, &request),
        RequestCode::NotifyConsumerIdsChanged
        | RequestCode::GetConsumerRunningInfo
        | RequestCode::ConsumeMessageDirectly => {
            ConsumerGroupHeader::decode(&command.ext).map(|header| header.consumer_group)
        }
        RequestCode::ResetConsumerClientOffset | RequestCode::GetConsumerStatusFromClient => {
            ResetOffsetHeader::decode(&command.ext).map(|header| header.group)
        }
        code => {
            let remark = format!("this client does not know request {code}");
            refuse(&request, ResponseCode::RequestCodeNotSupported, &remark);
            return;
        }
    };
    let group = match group {
        Ok(group) => group,
        Err(error) => return refuse(&request, ResponseCode::InvalidParameter, &error.to_string()),
    };
    let Some(inbox) = core.members.consumer_inbox(&group) else {
        let remark = format!("this client has no consumer in group {group}");
        return refuse(&request, ResponseCode::SystemError, &remark);
    };
    // A consumer that is this far behind rebalances by its own clock; a person can ask again.
    if let Err(error) = inbox.try_send(request) {
        tracing::warn!(%group, "dropped a broker's request: {error}");
    }
}

/// Answers with an error, if an answer is wanted.
pub(crate) fn refuse(request: &FromServer, code: ResponseCode, remark: &str) {
    tracing::info!(server = %request.connection.address(), "refused request {}: {remark}", request.command.code);
    if request.command.flag & gantry_proto::remoting::header::FLAG_ONEWAY == 0 {
        // Nobody waits any more on a closed connection.
        let _ = request.connection.answer(code, request.command.opaque, Some(remark), &[]);
    }
}
