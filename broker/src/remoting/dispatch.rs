//! Request code → handler, in one match.

use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::frame::Frame;
use gantry_proto::remoting::header::{Command, OwnedCommand};

use super::connection::Connection;
use super::context::{Handled, Reply};
use super::{pull, send, transaction};

/// Handles one command. The hot ones are answered on the spot.
pub(super) fn dispatch(connection: &mut Connection, command: &Command<'_>, frame: &Frame<'_>) {
    if command.is_reply() {
        // Nothing was asked of this client that it could answer.
        tracing::debug!(opaque = command.opaque, code = command.code, "a reply to nothing");
        return;
    }
    match RequestCode::from(command.code) {
        code @ (RequestCode::SendMessage | RequestCode::SendMessageV2 | RequestCode::SendBatchMessage) => {
            send::handle(connection, code, command, frame);
        }
        RequestCode::PullMessage | RequestCode::LitePullMessage => pull::handle(connection, command, frame),
        RequestCode::EndTransaction => transaction::handle_end(connection, command, frame.serialize),
        code => {
            let owned = match OwnedCommand::decode(frame) {
                Ok(owned) => owned,
                Err(error) => {
                    let reply = Reply::refused(ResponseCode::SystemError, error.to_string());
                    connection.respond(command, frame.serialize, reply.into());
                    return;
                }
            };
            let handled = route(connection, code, &owned);
            connection.respond(command, frame.serialize, handled);
        }
    }
}

/// Everything that is not hot.
fn route(connection: &Connection, code: RequestCode, request: &OwnedCommand) -> Handled {
    let (services, caller) = (&connection.services, &connection.caller);
    match code {
        RequestCode::ConsumerSendMsgBack => send::handle_back(services, request, caller),
        other => unsupported(other),
    }
}

fn unsupported(code: RequestCode) -> Handled {
    let why = format!("request type {} is not supported by this version", code.code());
    Reply::refused(ResponseCode::RequestCodeNotSupported, why).into()
}
