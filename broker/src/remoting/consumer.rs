//! Operators reach consumers through the broker: how one is doing (307), one message processed by it (309), where all
//! stand (223), and where they go on (222, for those that keep their offsets themselves).

use std::sync::Arc;

use gantry_proto::ids::{Millis, QueueOffset};
use gantry_proto::names::{GroupName, TopicKind, TopicName};
use gantry_proto::record::{OffsetMsgId, RecordView};
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::heartbeat::MessageModel;
use gantry_proto::remoting::body::offsets::GetConsumerStatusBody;
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::callback::{ConsumeMessageDirectlyHeader, GetConsumerRunningInfoHeader};
use gantry_proto::remoting::request::offset::{GetConsumerStatusHeader, ResetOffsetHeader};
use tokio::task::JoinSet;

use super::context::{Handled, Reply, Services, chain, short};
use super::offset::{self, known_group, reset_body, targets};
use super::query::visible_record;
use super::refusal;
use crate::groups::members::{
    ANSWER_WITHIN, Call, CallAnswer, Consumers, Members, Notice, OffsetReset, Peer,
};
use crate::groups::offsets::Key;
use crate::store::LogSlice;

/// Code 307.
pub fn running_info(members: &Members, request: &OwnedCommand) -> Handled {
    let asked = || {
        let header: GetConsumerRunningInfoHeader = request.header()?;
        let peer = online(members, &header.consumer_group, &header.client_id)?;
        Ok((peer, Call::new(RequestCode::GetConsumerRunningInfo, &header, Vec::new())))
    };
    relay(asked())
}

/// Code 309.
pub fn consume_directly(services: &Services, request: &OwnedCommand) -> Handled {
    let asked = || {
        let header: ConsumeMessageDirectlyHeader = request.header()?;
        let group = known_group(&services.groups, &header.consumer_group)?;
        let client = header.client_id.as_deref().unwrap_or_default();
        let peer = online(&services.members, group.as_str(), client)?;
        let message = message_for(services, &group, &header)?;
        let view = RecordView::parse(&message).map_err(|error| {
            let why = format!("the message cannot be read: {error}");
            Reply::refused(ResponseCode::SystemError, why)
        })?;
        let stored = view.topic();
        let group_sys_flag = services.groups.get(group.as_str()).map(|group| group.config.group_sys_flag);
        let filled = ConsumeMessageDirectlyHeader {
            broker_name: Some(services.config.node.name.clone()),
            topic: header.topic.filter(|topic| !topic.is_empty()).or_else(|| Some(stored.to_owned())),
            topic_sys_flag: services.topics.get(stored).map(|topic| topic.config.topic_sys_flag),
            group_sys_flag,
            ..header
        };
        Ok((peer, Call::new(RequestCode::ConsumeMessageDirectly, &filled, message.to_vec())))
    };
    relay(asked())
}

/// The message that an operator names, if it is one that the group may see.
fn message_for(
    services: &Services,
    group: &GroupName,
    header: &ConsumeMessageDirectlyHeader,
) -> Result<LogSlice, Reply> {
    let refused = |why: String| Reply::refused(ResponseCode::SystemError, why);
    let msg_id = header.msg_id.as_deref().unwrap_or_default();
    let id: OffsetMsgId = msg_id.parse().map_err(|error| {
        refused(format!(
            "{} is no offset message id: {error}: name the id that the broker gave",
            short(msg_id)
        ))
    })?;
    let record = visible_record(&services.store, id.offset)
        .map_err(|error| refused(format!("{}: check the message id", chain(&error))))?;
    let view = RecordView::parse(&record)
        .map_err(|error| refused(format!("the record at {} cannot be read: {error}", id.offset)))?;
    let stored = view.topic();
    let asked = header.topic.as_deref().filter(|topic| !topic.is_empty());
    let is_shown = match TopicKind::of(stored) {
        TopicKind::User | TopicKind::DeadLetter | TopicKind::Trace => {
            asked.is_none_or(|topic| topic == stored)
        }
        TopicKind::Retry => stored == TopicName::retry(group).as_str(),
        _ => false,
    };
    if !is_shown {
        let asked = short(asked.unwrap_or("one of consumers"));
        return Err(refused(format!("message {msg_id} is in topic {stored}, not {asked}: check the id")));
    }
    Ok(record)
}

/// Code 223: where the members of a group say that they stand, or one of them.
pub fn status(members: &Members, request: &OwnedCommand) -> Handled {
    let asked = || {
        let header: GetConsumerStatusHeader = request.header()?;
        let peers = match header.client_addr.as_deref().filter(|client| !client.is_empty()) {
            Some(client) => vec![online(members, &header.group, client)?],
            None => peers_of(all_online(members, &header.group, ResponseCode::SystemError)?),
        };
        let header = GetConsumerStatusHeader { client_addr: None, ..header };
        Ok((peers, Call::new(RequestCode::GetConsumerStatusFromClient, &header, Vec::new())))
    };
    match asked() {
        Ok((peers, call)) => Handled::later(async move {
            collect(peers, call).await.map_or_else(|refused| refused, |body| Reply::body(body.to_json()))
        }),
        Err::<_, Reply>(refused) => refused.into(),
    }
}

/// All of them are asked at once; the first refusal is that of all.
async fn collect(peers: Vec<Arc<Peer>>, call: Call) -> Result<GetConsumerStatusBody, Reply> {
    let mut asked = JoinSet::new();
    for peer in peers {
        let call = call.clone();
        asked.spawn(async move { (Arc::clone(&peer.client_id), ask(&peer, call).await) });
    }
    let mut body = GetConsumerStatusBody::default();
    while let Some(answered) = asked.join_next().await {
        let (client, answer) = answered
            .map_err(|error| Reply::refused(ResponseCode::SystemError, format!("asking stopped: {error}")))?;
        let answer = answer?;
        if answer.code != ResponseCode::Success.code() {
            return Err(answer.into());
        }
        let offsets = GetConsumerStatusBody::from_json(&answer.body).map_err(|error| {
            let why = format!("client {client} answered what cannot be read: {error}");
            Reply::refused(ResponseCode::SystemError, why)
        })?;
        body.consumer_table.insert(client.to_string(), offsets.message_queue_table);
    }
    Ok(body)
}

/// Code 222. Members of a broadcasting group keep their offsets themselves: those that are online are told. All others
/// find theirs with the broker, and so do members that broadcast and keep them here.
pub fn reset_offset(services: &Arc<Services>, request: &OwnedCommand) -> Handled {
    let broker = services.config.node.name.as_str();
    let header: ResetOffsetHeader = match request.header() {
        Ok(header) => header,
        Err(error) => return Reply::from(error).into(),
    };
    let settings = (&*services.topics, &*services.groups);
    let broadcasters = services.groups.broadcasts().of_group(&header.group);
    if !broadcasters.is_empty() {
        return reset_broadcasters(
            services,
            broadcasters.into_iter().map(|(name, _)| name),
            &header,
            request,
        );
    }
    if services.members.model_of(&header.group) != Some(MessageModel::Broadcasting) {
        let owners = (&services.offsets, &*services.store, &services.polls);
        return offset::reset_offset(owners, settings, broker, request);
    }
    let told = || {
        let resets = targets(&services.store, settings, &header)?;
        let group = all_online(&services.members, &header.group, ResponseCode::ConsumerNotOnline)?;
        tell_reset(group, &header, &resets)?;
        Ok(Reply::body(reset_body(broker, &resets, request.language)))
    };
    told().unwrap_or_else(|refused| refused).into()
}

/// Resets the offsets of all members that keep them here, and tells those members that are online: they ask for theirs then.
fn reset_broadcasters(
    services: &Arc<Services>,
    names: impl Iterator<Item = GroupName>,
    header: &ResetOffsetHeader,
    request: &OwnedCommand,
) -> Handled {
    let places = match targets(&services.store, (&services.topics, &services.groups), header) {
        Ok(places) => places,
        Err(refused) => return refused.into(),
    };
    let mut resets = Vec::new();
    for name in names {
        let of_member = places.iter().map(|(key, to)| (Key { group: name.clone(), ..key.clone() }, *to));
        resets.extend(of_member.filter(|(key, to)| {
            let at = services.offsets.get(key.group.as_str(), key.topic.as_str(), key.queue);
            header.is_force || at.is_some_and(|at| at > *to)
        }));
    }
    let body = reset_body(services.config.node.name.as_str(), &places, request.language);
    let (services, header) = (Arc::clone(services), header.clone());
    Handled::later(async move {
        if let Err(error) = services.offsets.reset(resets).await {
            return error.into();
        }
        let told = services.members.consumer_group(&header.group);
        match told.map_or(Ok(()), |group| tell_reset(group, &header, &places)) {
            Ok(()) => Reply::body(body),
            Err(refused) => refused,
        }
    })
}

/// Tells members where they go on.
fn tell_reset(
    group: Consumers,
    header: &ResetOffsetHeader,
    resets: &[(Key, QueueOffset)],
) -> Result<(), Reply> {
    let reset = Arc::new(OffsetReset {
        group: GroupName::internal(&header.group),
        topic: TopicName::internal(&header.topic),
        timestamp: Millis::new(header.timestamp),
        offsets: resets.iter().map(|(key, offset)| (key.queue, *offset)).collect(),
    });
    for peer in peers_of(group) {
        if !peer.notify(Notice::ResetOffsets(Arc::clone(&reset))) {
            let why = format!("client {} takes no notice: reset again when it has caught up", peer.client_id);
            return Err(Reply::refused(ResponseCode::SystemBusy, why));
        }
    }
    Ok(())
}

fn online(members: &Members, group: &str, client: &str) -> Result<Arc<Peer>, Reply> {
    members.consumer(group, client).ok_or_else(|| {
        let why = format!("client {} of group {} is not online: see who is", short(client), short(group));
        Reply::refused(ResponseCode::SystemError, why)
    })
}

fn all_online(members: &Members, group: &str, otherwise: ResponseCode) -> Result<Consumers, Reply> {
    members
        .consumer_group(group)
        .ok_or_else(|| Reply::refused(otherwise, format!("no consumer of group {} is online", short(group))))
}

fn peers_of(group: Consumers) -> Vec<Arc<Peer>> {
    group.members.into_iter().map(|member| member.peer).collect()
}

/// The client's answer as the broker's.
fn relay(asked: Result<(Arc<Peer>, Call), Reply>) -> Handled {
    match asked {
        Ok((peer, call)) => {
            Handled::later(async move { ask(&peer, call).await.map_or_else(|refused| refused, Reply::from) })
        }
        Err(refused) => refused.into(),
    }
}

async fn ask(peer: &Peer, call: Call) -> Result<CallAnswer, Reply> {
    peer.call(call, ANSWER_WITHIN).await.map_err(|error| {
        Reply::refused(refusal::call(&error), format!("client {} was asked: {error}", peer.client_id))
    })
}

impl From<CallAnswer> for Reply {
    fn from(answer: CallAnswer) -> Self {
        Self { code: answer.code, remark: answer.remark, body: answer.body, ..Self::default() }
    }
}

#[cfg(test)]
#[path = "consumer_tests.rs"]
mod tests;
