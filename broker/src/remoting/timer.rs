//! Timer messages: taking one back (370), how they stand (60), how many wait (61).

use std::sync::Arc;

use gantry_proto::remoting::body::Body as _;
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::send::{RecallMessageHeader, RecallMessageResponse};

use super::context::{Handled, Reply, Services, short};
use crate::timer::{self, Recall, Wheel};

/// Code 60.
pub(super) fn checkpoint(wheel: &Wheel) -> Reply {
    Reply::body(wheel.checkpoint().encode())
}

/// Code 61. Reads every timer that waits, so it runs beside the connection.
pub(super) fn metrics(wheel: &Arc<Wheel>) -> Handled {
    let wheel = Arc::clone(wheel);
    Handled::later(async move {
        match tokio::task::spawn_blocking(move || wheel.count_by_topic()).await {
            Ok(Ok(metrics)) => Reply::body(metrics.to_json()),
            Ok(Err(error)) => Reply::refused(ResponseCode::SystemError, error.to_string()),
            Err(error) => Reply::refused(ResponseCode::SystemError, format!("counting stopped: {error}")),
        }
    })
}

/// Code 370. The answer says which message was taken back.
pub(super) fn recall(services: &Arc<Services>, request: &OwnedCommand) -> Handled {
    let header: RecallMessageHeader = match request.header() {
        Ok(header) => header,
        Err(error) => return Reply::refused(ResponseCode::SystemError, error.to_string()).into(),
    };
    if services.topics.get(&header.topic).is_none() {
        let why = format!("topic {} does not exist: name the one that was sent to", short(&header.topic));
        return Reply::refused(ResponseCode::TopicNotExist, why).into();
    }
    let services = Arc::clone(services);
    Handled::later(async move {
        let asked = Recall {
            topic: &header.topic,
            handle: &header.recall_handle,
            broker: &services.config.node.name,
        };
        match timer::recall::recall(&services.wheel, &services.timer, &asked).await {
            Ok(msg_id) => Reply::header(&RecallMessageResponse { msg_id }),
            Err(error) => error.into(),
        }
    })
}
