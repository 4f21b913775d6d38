//! Who is in a group: heartbeats (34), leaving (35), subscriptions that can be served (46), and lists of
//! members (38, 203, 204, 328).

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::connection::{
    Connection, ConsumerConnection, ConsumerIdList, ProducerConnection, ProducerInfo, ProducerTableInfo,
};
use gantry_proto::remoting::body::heartbeat::{CheckClientRequestBody, HeartbeatData, SubscriptionData};
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::member::{
    ConsumerGroupHeader, HeartbeatResponse, ProducerGroupHeader, UnregisterClientHeader,
};

use super::context::{Caller, Handled, Reply, settle, short};
use crate::deliver::expressions::Expressions;
use crate::groups::Groups;
use crate::groups::members::{Change, Member, Members, Peer};
use crate::groups::offsets::Offsets;
use crate::topics::Topics;

/// The JSON body of a request.
pub(super) fn body_of<B: Body>(request: &OwnedCommand) -> Result<B, Reply> {
    B::from_json(&request.body).map_err(|error| {
        Reply::refused(ResponseCode::SystemError, format!("the body cannot be read: {error}"))
    })
}

/// Code 34. `joined` hears of each producer group that the client joined with this, `mixed` of each topic to which the
/// members of one of its consumer groups do not subscribe alike, when something has changed.
pub fn heartbeat(
    (groups, topics, members): (&Groups, &Topics, &Members),
    expressions: &Expressions,
    request: &OwnedCommand,
    caller: &Caller,
    joined: impl Fn(&GroupName),
    mixed: impl Fn(&TopicName),
) -> Reply {
    settle(|| {
        let data: HeartbeatData = body_of(request)?;
        let speaks = (caller.language, caller.version);
        let peer =
            Peer::new(caller.connection, caller.remote, &data.client_id, speaks, caller.outbox.clone());
        let beat = groups.heartbeat(topics, members, &data, &Arc::new(peer))?;
        beat.producers_joined.iter().for_each(joined);
        if beat.change == Change::Yes {
            // Refusing the beat would cut off the client's other groups: pulls are told what is wrong.
            expressions.warn_of(&data);
            let conflicts =
                data.consumer_data_set.iter().map(|consumer| members.conflicts(&consumer.group_name));
            conflicts.for_each(|topics| topics.keys().for_each(&mixed));
        }
        // A beat without subscriptions that changes something comes from a client that is not known here
        // (any more): it shall say everything.
        let is_sub_change = Some(data.without_sub && beat.change == Change::Yes);
        Ok(Reply::header(&HeartbeatResponse { is_support_heart_beat_v2: true, is_sub_change }))
    })
}

/// Code 35. What a consumer said one-way before it left is kept on the answer.
pub fn unregister(members: &Members, offsets: &Arc<Offsets>, request: &OwnedCommand) -> Handled {
    let header: UnregisterClientHeader = match request.header() {
        Ok(header) => header,
        Err(error) => return Reply::from(error).into(),
    };
    let named = |group: &Option<String>| group.clone().filter(|group| !group.is_empty());
    let (producer, consumer) = (named(&header.producer_group), named(&header.consumer_group));
    members.unregister(&header.client_id, producer.as_deref(), consumer.as_deref());
    if consumer.is_none() {
        return Reply::ok().into();
    }
    let offsets = Arc::clone(offsets);
    Handled::later(async move { offsets.settle().await.map_or_else(Reply::from, |()| Reply::ok()) })
}

/// Code 46: can the broker evaluate this subscription? The answer's remark says what is strange about one that it
/// can.
pub fn check_client(expressions: &Expressions, request: &OwnedCommand) -> Reply {
    settle(|| {
        let body: CheckClientRequestBody = body_of(request)?;
        let data = body.subscription_data;
        let remark = expressions.remark(&data.expression_type, &data.sub_string)?;
        Ok(Reply { remark, ..Reply::ok() })
    })
}

/// Code 38.
pub fn consumer_ids(members: &Members, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: ConsumerGroupHeader = request.header()?;
        let ids = members.consumers_of(&header.consumer_group);
        if ids.is_empty() {
            let why = format!("no consumer of group {} is online", short(&header.consumer_group));
            return Err(Reply::refused(ResponseCode::SystemError, why));
        }
        let consumer_id_list = ids.iter().map(ToString::to_string).collect();
        Ok(Reply::body(ConsumerIdList { consumer_id_list }.to_json()))
    })
}

/// Code 203.
pub fn consumer_connections(members: &Members, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: ConsumerGroupHeader = request.header()?;
        let group = members.consumer_group(&header.consumer_group).ok_or_else(|| {
            let why = format!("no consumer of group {} is online", short(&header.consumer_group));
            Reply::refused(ResponseCode::ConsumerNotOnline, why)
        })?;
        let subscription_table =
            group.subscriptions.iter().map(|(topic, data)| (topic.to_string(), (**data).clone())).collect();
        let conflicts = members.conflicts(&header.consumer_group);
        let conflicts = conflicts
            .iter()
            .map(|(topic, wishes)| (topic.to_string(), wishes.iter().map(wish).collect()))
            .collect();
        let body = ConsumerConnection {
            subscription_conflicts: Some(conflicts)
                .filter(|conflicts: &BTreeMap<_, _>| !conflicts.is_empty()),
            connection_set: group.members.iter().map(connection).collect(),
            consume_from_where: Some(group.consumption.from_where),
            consume_type: Some(group.consumption.consume_type),
            message_model: Some(group.consumption.model),
            subscription_table,
        };
        Ok(Reply::body(body.to_json()))
    })
}

/// Code 204.
pub fn producer_connections(members: &Members, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: ProducerGroupHeader = request.header()?;
        let producers = members.producers_of(&header.producer_group);
        if producers.is_empty() {
            let why = format!("no producer of group {} is online", short(&header.producer_group));
            return Err(Reply::refused(ResponseCode::SystemError, why));
        }
        let connection_set = producers.iter().map(connection).collect();
        Ok(Reply::body(ProducerConnection { connection_set }.to_json()))
    })
}

/// Code 328.
pub fn all_producers(members: &Members) -> Reply {
    let info = |member: Member| ProducerInfo {
        client_id: member.peer.client_id.to_string(),
        language: member.peer.language,
        last_update_timestamp: member.seen.get(),
        remote_ip: member.peer.address.to_string(),
        version: member.peer.version,
    };
    let all = members.all_producers().into_iter();
    let data =
        all.map(|(group, members)| (group.to_string(), members.into_iter().map(info).collect())).collect();
    Reply::body(ProducerTableInfo { data }.to_json())
}

/// A member and what it wants, as people read it.
fn wish((id, data): (&Arc<str>, &Option<Arc<SubscriptionData>>)) -> (String, String) {
    let text = data.as_ref().map_or_else(String::new, |data| match data.expression_type.as_str() {
        "" | "TAG" => short(&data.sub_string).to_owned(),
        kind => format!("{}: {}", short(kind), short(&data.sub_string)),
    });
    (id.to_string(), text)
}

fn connection(member: &Member) -> Connection {
    Connection {
        client_addr: member.peer.address.to_string(),
        client_id: member.peer.client_id.to_string(),
        language: member.peer.language,
        version: member.peer.version,
    }
}

#[cfg(test)]
#[path = "member_tests.rs"]
mod tests;
