//! Which queues a member works on, decided here (400), and whether groups pull or pop (401, 402).

use gantry_proto::remoting::body::Body as _;
use gantry_proto::remoting::body::heartbeat::MessageModel;
use gantry_proto::remoting::body::queues::{
    MessageQueue, MessageQueueAssignment, MessageRequestMode, QueryAssignmentRequestBody,
    QueryAssignmentResponseBody, SetMessageRequestModeBody,
};
use gantry_proto::remoting::header::OwnedCommand;

use super::context::{Caller, Reply, Services, settle};
use super::member::body_of;
use crate::groups::allocate::{Strategy, assign};
use crate::groups::modes::Modes;
use crate::routes::Registry as _;
use crate::topics::perm;

/// Code 400. An answer without assignments tells the client to keep what it has.
pub fn query(services: &Services, request: &OwnedCommand, caller: &Caller) -> Reply {
    settle(|| {
        let body: QueryAssignmentRequestBody = body_of(request)?;
        let (mode, share) = services.modes.get(&body.topic, &body.consumer_group);
        let assigned = assigned(services, &body, (&mode, share), caller);
        let assignment =
            |message_queue| MessageQueueAssignment { attachments: None, message_queue, mode: mode.clone() };
        let message_queue_assignments = assigned.map(|queues| queues.into_iter().map(assignment).collect());
        Ok(Reply::body(QueryAssignmentResponseBody { message_queue_assignments }.to_json()))
    })
}

/// `None` when it cannot be said: the topic or the member is not known, or the strategy is not.
fn assigned(
    services: &Services,
    body: &QueryAssignmentRequestBody,
    mode: (&MessageRequestMode, i32),
    caller: &Caller,
) -> Option<Vec<MessageQueue>> {
    let queues = readable_queues(services, &body.topic, caller)?;
    if body.message_model == MessageModel::Broadcasting {
        return Some(queues);
    }
    let strategy = Strategy::parse(&body.strategy_name)?;
    let members = services.members.consumers_of(&body.consumer_group);
    let mut members: Vec<String> = members.iter().map(ToString::to_string).collect();
    members.sort();
    // Its heartbeat comes soon; until then somebody else's view must not take its queues away.
    let is_known = members.contains(&body.client_id);
    (is_known || *mode.0 == MessageRequestMode::Pop && mode.1 <= 0)
        .then(|| assign(strategy, mode, &queues, &members, &body.client_id))
}

/// The queues of a topic that can be read, on all brokers, in the clients' order.
fn readable_queues(services: &Services, topic: &str, caller: &Caller) -> Option<Vec<MessageQueue>> {
    let route = services.routes.route(topic, caller.local)?;
    let mut queues = Vec::new();
    for data in route.queue_datas.iter().filter(|data| data.perm & perm::READ != 0) {
        queues.extend((0..data.read_queue_nums).map(|queue_id| MessageQueue {
            broker_name: data.broker_name.clone(),
            queue_id,
            topic: topic.to_owned(),
        }));
    }
    queues.sort();
    (!queues.is_empty()).then_some(queues)
}

/// Code 401.
pub fn set_mode(modes: &Modes, request: &OwnedCommand) -> Reply {
    settle(|| {
        let body: SetMessageRequestModeBody = body_of(request)?;
        modes.set(body)?;
        Ok(Reply::ok())
    })
}

/// Code 402: all modes, as their file has them.
pub fn all_modes(modes: &Modes) -> Reply {
    Reply::body(modes.to_json())
}
