//! Request code → handler, in one match.

use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::frame::Frame;
use gantry_proto::remoting::header::{Command, OwnedCommand};

use super::connection::Connection;
use super::context::{Handled, Reply};
use super::{
    ack, assignment, consumer, drain, group, lock, member, offset, pop, progress, pull, query, rates, reply,
    route, send, status, timer, topic, transaction, upkeep,
};
use crate::groups::members::CallAnswer;

/// Handles one command. The hot ones are answered on the spot.
pub(super) fn dispatch(connection: &mut Connection, command: &Command<'_>, frame: &Frame<'_>) {
    if command.is_reply() {
        let answer = || CallAnswer {
            code: command.code,
            remark: command.remark.as_deref().map(str::to_owned),
            body: frame.body.to_vec(),
        };
        if !connection.caller.outbox.answer(command.opaque, answer) {
            tracing::debug!(opaque = command.opaque, code = command.code, "a reply to nothing, or too late");
        }
        return;
    }
    match RequestCode::from(command.code) {
        code @ (RequestCode::SendMessage | RequestCode::SendMessageV2 | RequestCode::SendBatchMessage) => {
            send::handle(connection, code, command, frame);
        }
        RequestCode::PullMessage | RequestCode::LitePullMessage => pull::handle(connection, command, frame),
        RequestCode::PopMessage => pop::handle(connection, command, frame),
        RequestCode::AckMessage => ack::handle_ack(connection, command, frame),
        RequestCode::BatchAckMessage => ack::handle_batch(connection, command, frame),
        RequestCode::ChangeMessageInvisibletime => ack::handle_change(connection, command, frame),
        RequestCode::Notification => pop::handle_notification(connection, command, frame),
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
            let handled = other(connection, code, &owned);
            connection.respond(command, frame.serialize, handled);
        }
    }
}

/// Everything that is not hot.
fn other(connection: &Connection, code: RequestCode, request: &OwnedCommand) -> Handled {
    use RequestCode as Code;
    let (services, caller) = (&connection.services, &connection.caller);
    let (store, topics, routes) = (&*services.store, &*services.topics, &*services.routes);
    let (groups, members, offsets) = (&*services.groups, &*services.members, &*services.offsets);
    let (locks, broker) = (&*services.locks, services.config.node.name.as_str());
    let reply = match code {
        Code::RecallMessage => return timer::recall(services, request),
        Code::GetTimerMetrics => return timer::metrics(&services.wheel),
        Code::SendReplyMessage | Code::SendReplyMessageV2 => return reply::handle(services, request, caller),
        Code::ConsumerSendMsgBack => return send::handle_back(services, request, caller),
        Code::QueryConsumerOffset => {
            let places = (&services.offsets, &services.store);
            return offset::query_offset(places, (groups, members, topics), request);
        }
        Code::UnregisterClient => return member::unregister(members, &services.offsets, request),
        Code::UpdateConsumerOffset => {
            return offset::update_offset(&services.offsets, topics, groups, request);
        }
        Code::InvokeBrokerToResetOffset => {
            return consumer::reset_offset(services, request);
        }
        Code::GetConsumerRunningInfo => return consumer::running_info(members, request),
        Code::ConsumeMessageDirectly => return consumer::consume_directly(services, request),
        Code::InvokeBrokerToGetConsumerStatus => return consumer::status(members, request),
        Code::GetBrokerConsumeStats => {
            return progress::of_broker(services, services.store_host(caller), request);
        }
        Code::CloneGroupOffset => return progress::clone_offsets(services, request),
        Code::CleanExpiredConsumequeue | Code::DeleteExpiredCommitlog => {
            return upkeep::clean_expired(&services.store);
        }
        Code::CleanUnusedTopic => {
            return upkeep::clean_unused_topics(&services.topics, &services.store);
        }
        Code::UpdateAndCreateTopic => return topic::declare(topics, &services.scaling, request),
        Code::UpdateAndCreateTopicList => return topic::declare_all(&services.scaling, request),
        Code::DeleteTopicInBroker => {
            let queues = (&services.store, &services.polls);
            let positions = (&services.offsets, &services.pops);
            return topic::delete((topics, locks), positions, queues, request);
        }
        Code::DeleteSubscriptiongroup => {
            return group::delete((groups, locks), &services.offsets, &services.pops, request);
        }
        Code::ResumeCheckHalfMessage => return transaction::handle_resume(services, request, caller),
        Code::DrainBroker => return drain::handle(services, request),
        Code::ListTransactions => return transaction::handle_list(services, request, caller),
        Code::EndTransactionByOperator => return transaction::handle_operator_end(services, request, caller),
        Code::GetRouteinfoByTopic => route::get_route(routes, request, caller),
        Code::GetBrokerClusterInfo => route::get_cluster_info(routes, caller),
        Code::GetBrokerMemberGroup => route::get_member_group(routes, request, caller),
        Code::GetAllTopicListFromNameserver => route::get_topics(routes),
        Code::GetTopicsByCluster => route::get_topics_of_cluster(routes, request),
        Code::GetSystemTopicListFromNs => route::get_system_topics(routes, caller),
        Code::GetUnitTopicList => route::get_unit_topics(routes),
        Code::GetHasUnitSubTopicList => route::get_unit_sub_topics(routes),
        Code::GetHasUnitSubUnunitTopicList => route::get_unit_sub_ununit_topics(routes),
        Code::PutKvConfig => route::put_kv(routes, request),
        Code::GetKvConfig => route::get_kv(routes, request),
        Code::DeleteKvConfig => route::delete_kv(routes, request),
        Code::GetKvlistByNamespace => route::list_kv(routes, request),
        Code::RegisterBroker => route::register_broker(routes, request, caller),
        Code::UnregisterBroker => route::unregister_broker(routes, request),
        Code::QueryDataVersion => route::query_data_version(routes, request),
        Code::BrokerHeartbeat => route::broker_heartbeat(routes, request),
        Code::WipeWritePermOfBroker => route::wipe_write_perm(routes, request),
        Code::AddWritePermOfBroker => route::add_write_perm(routes, request),
        Code::RegisterTopicInNamesrv => route::register_topic(routes, request),
        Code::DeleteTopicInNamesrv => route::forget_topic(routes, request),
        Code::UpdateNamesrvConfig => route::update_settings(),
        Code::GetNamesrvConfig => route::get_settings(routes, &services.config, caller),
        Code::QueryAssignment => assignment::query(services, request, caller),
        Code::SetMessageRequestMode => assignment::set_mode(&services.modes, request),
        Code::GetAllMessageRequestMode => assignment::all_modes(&services.modes),
        Code::PeekMessage => pop::peek(services, request),
        Code::PollingInfo => pop::polling_info(services, request),
        Code::ViewMessageById => query::view_message(store, request),
        Code::QueryMessage => {
            query::query_message(store, services.config.limits.frame_bytes as usize, request)
        }
        Code::SearchOffsetByTimestamp => query::search_offset(store, topics, request),
        Code::GetMaxOffset => query::get_max_offset(store, topics, request),
        Code::GetMinOffset => query::get_min_offset(store, topics, request),
        Code::GetEarliestMsgStoretime => query::get_earliest_store_time(store, topics, request),
        Code::QueryConsumeQueue => query::query_queue(store, members, request),
        Code::GetAllConsumerOffset => offset::all_offsets(offsets),
        Code::GetTimerCheckPoint => timer::checkpoint(&services.wheel),
        Code::GetAllDelayOffset => offset::delay_offsets(store),
        Code::HeartBeat => {
            let joined = |group: &GroupName| services.transactions.producer_came(group.as_str());
            // Pulls that wait do so with the filters of before.
            let mixed = |topic: &TopicName| {
                let queues = topics.get(topic.as_str()).map_or(0, |topic| topic.read_queues());
                services.polls.wake_topic(topic, queues);
            };
            let expressions = &*services.expressions;
            member::heartbeat((groups, topics, members), expressions, request, caller, joined, mixed)
        }
        Code::CheckClientConfig => member::check_client(&services.expressions, request),
        Code::GetConsumerListByGroup => member::consumer_ids(members, request),
        Code::GetConsumerConnectionList => member::consumer_connections(members, request),
        Code::GetProducerConnectionList => member::producer_connections(members, request),
        Code::GetAllProducerInfo => member::all_producers(members),
        Code::LockBatchMq => lock::lock(locks, broker, request),
        Code::UnlockBatchMq => lock::unlock(locks, broker, request),
        Code::GetAllTopicConfig => topic::all(topics, request),
        Code::GetTopicConfig => topic::get(topics, request),
        Code::GetSystemTopicListFromBroker => topic::system_topics(topics),
        Code::GetTopicStatsInfo => topic::stats(topics, store, broker, request),
        Code::QueryTopicConsumeByWho => topic::consumers(members, offsets, request),
        Code::UpdateAndCreateSubscriptiongroup => group::declare((groups, &services.polls), request),
        Code::UpdateAndCreateSubscriptiongroupList => group::declare_all((groups, &services.polls), request),
        Code::GetAllSubscriptiongroupConfig => group::all(groups, request),
        Code::GetSubscriptiongroupConfig => group::get(groups, request),
        Code::GetConsumeStats => {
            group::stats((topics, members, offsets), (store, &services.pops), broker, request)
        }
        Code::QuerySubscriptionByConsumer => group::subscription(members, request),
        Code::UpdateAndGetGroupForbidden => group::forbid((groups, topics), request),
        Code::QueryConsumeTimeSpan => progress::time_span((topics, offsets), store, broker, request),
        Code::QueryCorrectionOffset => progress::corrections((topics, offsets), store, request),
        Code::ViewBrokerStatsData => rates::view(services, request),
        Code::QueryTopicsByConsumer => group::topics_of(offsets, request),
        Code::ListBroadcastMembers => group::broadcast_members(groups, request),
        Code::GetBrokerConfig => {
            status::config(&services.config, topics.data_version(), services.broker_port)
        }
        Code::GetBrokerRuntimeInfo => {
            let timers =
                status::Timers { pending: services.wheel.pending(), first_due: services.wheel.first_due() };
            let mut more = status::membership(&services.join, &services.drain);
            more.extend(status::flow_info(&services.metrics, &services.flow));
            status::runtime_info(store, &services.metrics, &timers, services.started_at, more)
        }
        other => {
            let why = format!("request type {} is not supported by this version", other.code());
            Reply::refused(ResponseCode::RequestCodeNotSupported, why)
        }
    };
    reply.into()
}
