//! What operators ask of a push consumer by way of a broker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use gantry_proto::ids::QueueOffset;
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::consume::{
    ConsumeMessageDirectlyResult, ConsumeResult, ConsumerRunningInfo, ProcessQueueInfo, property,
};
use gantry_proto::remoting::body::heartbeat::ConsumeType;
use gantry_proto::remoting::body::offsets::{GetConsumerStatusBody, ResetOffsetBody};
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::request::callback::ConsumeMessageDirectlyHeader;

use super::Outcome;
use super::group::{Group, LOCK_TRUST, Order};
use super::work::handle;
use crate::connection::FromServer;
use crate::dispatch::refuse;
use crate::message::{MessageQueue, Received};

impl Group {
    /// Carries out one request.
    pub(crate) async fn answer(self: &Arc<Self>, request: FromServer) {
        match RequestCode::from(request.command.code) {
            RequestCode::ResetConsumerClientOffset => match ResetOffsetBody::from_json(&request.command.body)
            {
                Ok(body) => {
                    let offset = |(queue, offset): (_, i64)| {
                        Some((MessageQueue::from_wire(&queue)?, QueueOffset::from_wire(offset)?))
                    };
                    self.move_to(body.offset_table.into_iter().filter_map(offset).collect()).await;
                }
                Err(error) => refuse(&request, ResponseCode::SystemError, &error.to_string()),
            },
            RequestCode::GetConsumerStatusFromClient => reply(&request, &self.status().to_json()),
            RequestCode::GetConsumerRunningInfo => reply(&request, &self.running_info().to_json()),
            RequestCode::ConsumeMessageDirectly => {
                // In a task of its own: a handler may take its time.
                let group = Arc::clone(self);
                self.fetchers.spawn(async move { group.consume_directly(&request).await });
            }
            code => {
                let remark = format!("this consumer does not know request {code}");
                refuse(&request, ResponseCode::RequestCodeNotSupported, &remark);
            }
        }
    }

    fn status(&self) -> GetConsumerStatusBody {
        let offset = |queue: &Arc<super::process_queue::ProcessQueue>| {
            (queue.queue.to_wire(), queue.commit_point().to_wire())
        };
        GetConsumerStatusBody {
            consumer_table: BTreeMap::new(),
            message_queue_table: self.lock_queues().values().map(offset).collect(),
        }
    }

    fn running_info(&self) -> ConsumerRunningInfo {
        let entry = |(key, value): (&str, String)| (key.to_owned(), value);
        let properties = [
            (property::NAMESERVER_ADDR, self.core.options.name_servers.clone()),
            (property::CONSUME_TYPE, ConsumeType::Passively.to_string()),
            (property::CONSUME_ORDERLY, (self.settings.order == Order::Orderly).to_string()),
            (property::THREADPOOL_CORE_SIZE, self.settings.concurrency.to_string()),
            (property::CLIENT_VERSION, "V5_5_0".to_owned()),
            (property::CONSUMER_START_TIMESTAMP, self.started_at.to_string()),
        ];
        let queue = |queue: &Arc<super::process_queue::ProcessQueue>| {
            let (messages, bytes, ends) = queue.backlog();
            let (min, max) = ends.unwrap_or_default();
            let info = ProcessQueueInfo {
                cached_msg_count: i32::try_from(messages).unwrap_or(i32::MAX),
                cached_msg_min_offset: min.cast_signed(),
                cached_msg_max_offset: max.cast_signed(),
                cached_msg_size_in_mib: i32::try_from(bytes >> 20).unwrap_or(i32::MAX),
                commit_offset: queue.commit_point().to_wire(),
                droped: queue.gone.is_cancelled(),
                locked: queue.is_locked(LOCK_TRUST),
                ..ProcessQueueInfo::default()
            };
            (queue.queue.to_wire(), info)
        };
        ConsumerRunningInfo {
            mq_table: self.lock_queues().values().map(queue).collect(),
            properties: properties.into_iter().map(entry).collect(),
            subscription_set: self.subscriptions.values().map(|wanted| wanted.data.clone()).collect(),
            ..ConsumerRunningInfo::default()
        }
    }

    async fn consume_directly(&self, request: &FromServer) {
        let header = request.command.header::<ConsumeMessageDirectlyHeader>();
        let broker = header.ok().and_then(|header| header.broker_name).unwrap_or_default();
        let broker = gantry_proto::names::BrokerName::internal(&broker);
        let message = match Received::take(&mut request.command.body.clone(), &broker, None) {
            Ok(message) => message,
            Err(error) => return refuse(request, ResponseCode::SystemError, &error.to_string()),
        };
        let start = Instant::now();
        let outcome = handle(&self.handler, message).await;
        let result = ConsumeMessageDirectlyResult {
            auto_commit: true,
            consume_result: Some(match outcome {
                Outcome::Success => ConsumeResult::Success,
                Outcome::Later | Outcome::LaterAtLevel(_) | Outcome::DeadLetter => ConsumeResult::Later,
            }),
            order: self.settings.order == Order::Orderly,
            remark: None,
            spent_time_mills: i64::try_from(start.elapsed().as_millis()).unwrap_or(i64::MAX),
        };
        reply(request, &result.to_json());
    }
}

fn reply(request: &FromServer, body: &[u8]) {
    if let Err(error) = request.connection.answer(ResponseCode::Success, request.command.opaque, None, body) {
        tracing::info!("a broker's request was not answered: {error}");
    }
}
