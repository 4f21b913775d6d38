//! Questions about one queue: its ends, its messages, and where groups stand in it.

use std::sync::Arc;
use std::time::Duration;

use gantry_proto::ids::{Millis, QueueOffset};
use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::header::{ExtWrite, OwnedCommand};
use gantry_proto::remoting::request::offset::{
    GetMaxOffsetHeader, GetMinOffsetHeader, OffsetResponse, QueryConsumerOffsetHeader, SearchOffsetHeader,
    UpdateConsumerOffsetHeader,
};
use gantry_proto::remoting::request::pull::{PullMessageHeader, sys_flag};

use crate::client::Core;
use crate::connection::{Connection, PullAnswer, Reply};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::Selector;
use crate::link::Link;
use crate::message::{MessageQueue, Received};

/// One pull to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PullRequest<'a> {
    pub group: &'a GroupName,
    pub queue: &'a MessageQueue,
    pub offset: QueueOffset,
    pub max: u32,
    /// How long the broker may wait for a message.
    pub wait: Option<Duration>,
    pub commit: Option<QueueOffset>,
    pub subscription: Subscribed<'a>,
    pub filter: &'a Selector,
}

/// What the broker filters by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Subscribed<'a> {
    /// The expression in this request.
    Here(&'a str),
    /// What the group's heartbeats say, of this version or later.
    ByHeartbeat(i64),
}

impl PullRequest<'_> {
    /// Sends it; never waits.
    pub(crate) fn send(&self, connection: &Connection, timeout: Duration) -> Result<Reply<PullAnswer>> {
        let mut flag = 0;
        if self.wait.is_some() {
            flag |= sys_flag::SUSPEND;
        }
        if self.commit.is_some() {
            flag |= sys_flag::COMMIT_OFFSET;
        }
        let (subscription, sub_version) = match self.subscription {
            Subscribed::Here(expression) => {
                flag |= sys_flag::SUBSCRIPTION;
                (Some(expression), 0)
            }
            Subscribed::ByHeartbeat(version) => (None, version),
        };
        let wait = self.wait.unwrap_or_default();
        let header = PullMessageHeader {
            consumer_group: self.group.as_str(),
            topic: self.queue.topic.as_str(),
            queue_id: self.queue.id.to_wire(),
            queue_offset: self.offset.to_wire(),
            max_msg_nums: i32::try_from(self.max).unwrap_or(i32::MAX),
            sys_flag: flag,
            commit_offset: self.commit.map_or(0, QueueOffset::to_wire),
            suspend_timeout_millis: i64::try_from(wait.as_millis()).unwrap_or(i64::MAX),
            subscription,
            sub_version,
            expression_type: Some(self.filter.kind()),
            max_msg_bytes: None,
            request_source: None,
            proxy_forward_client_id: None,
            lite_topic: None,
            broker_name: Some(self.queue.broker.as_str()),
        };
        connection.ask_now(RequestCode::PullMessage, &header, &[], wait + timeout)
    }
}

/// What a group has committed in a queue where it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unset {
    /// Nothing.
    None,
    /// 0, if the broker has the queue from its first message on; otherwise nothing.
    ZeroIfComplete,
}

/// How a pull ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PullStatus {
    /// There are messages.
    Found,
    /// There is none yet.
    NoNewMessage,
    /// There are messages, but none that the filter lets through: go on at the next offset.
    NoMatch,
    /// The offset is outside the queue: go on at the next offset, which is inside.
    OffsetMoved,
}

/// What a pull gave.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// How it ended.
    pub status: PullStatus,
    /// The messages, in order.
    pub messages: Vec<Received>,
    /// Where to pull next.
    pub next: QueueOffset,
    /// First offset of the queue.
    pub min: QueueOffset,
    /// One past the last offset of the queue.
    pub max: QueueOffset,
}

/// Reads the answer to a pull. Messages that the broker could not tell from wanted ones are left out.
pub(crate) fn pulled(answer: PullAnswer, queue: &MessageQueue, filter: &Selector) -> Result<Pulled> {
    let PullAnswer { code, remark, header, body } = answer;
    let status = match ResponseCode::from(code) {
        ResponseCode::Success => PullStatus::Found,
        ResponseCode::PullNotFound => PullStatus::NoNewMessage,
        ResponseCode::PullRetryImmediately => PullStatus::NoMatch,
        ResponseCode::PullOffsetMoved => PullStatus::OffsetMoved,
        _ => return Err(Error::refused(code, remark.as_deref()).during(format_args!("pulling from {queue}"))),
    };
    let mut messages = match status {
        PullStatus::Found => Received::all(body, &queue.broker, Some(&queue.topic))
            .map_err(|error| error.during(format_args!("pulling from {queue}")))?,
        _ => Vec::new(),
    };
    filter.retain(&mut messages);
    let offset = |raw: i64| QueueOffset::from_wire(raw).unwrap_or_default();
    Ok(Pulled {
        status,
        messages,
        next: offset(header.next_begin_offset),
        min: offset(header.min_offset),
        max: offset(header.max_offset),
    })
}

impl Core {
    /// The queues of a topic that can be read.
    pub(crate) async fn read_queues(&self, topic: &TopicName) -> Result<Vec<MessageQueue>> {
        let route = self.route(topic).await?;
        Ok(route.read.iter().map(|queue| queue.queue.clone()).collect())
    }

    /// The broker of a queue: its master, or a replica when there is no master.
    pub(crate) async fn queue_link(&self, queue: &MessageQueue) -> Result<Arc<Link>> {
        let route = self.route(&queue.topic).await?;
        let link = route
            .broker(&queue.broker)
            .and_then(|broker| broker.master.as_ref().or_else(|| broker.links.values().next()).cloned());
        link.ok_or_else(|| {
            let what = format!("no broker called {} has topic {}", queue.broker, queue.topic);
            Error::new(ErrorKind::NoRoute, what)
        })
    }

    pub(crate) async fn queue_connection(&self, queue: &MessageQueue) -> Result<Connection> {
        let link = self.queue_link(queue).await?;
        self.broker(&link).await
    }

    async fn ask_queue(
        &self,
        queue: &MessageQueue,
        code: RequestCode,
        header: &(impl ExtWrite + ?Sized + Sync),
    ) -> Result<OwnedCommand> {
        let connection = self.queue_connection(queue).await?;
        connection.call(code, header, &[], self.timeout()).await
    }

    async fn ask_offset(
        &self,
        queue: &MessageQueue,
        code: RequestCode,
        header: &(impl ExtWrite + ?Sized + Sync),
    ) -> Result<QueueOffset> {
        let answer = self.ask_queue(queue, code, header).await?;
        let OffsetResponse { offset } = answer.header()?;
        QueueOffset::from_wire(offset)
            .ok_or_else(|| Error::new(ErrorKind::Protocol, format!("{queue} answered with offset {offset}")))
    }

    pub(crate) async fn min_offset(&self, queue: &MessageQueue) -> Result<QueueOffset> {
        let header = GetMinOffsetHeader {
            topic: queue.topic.as_str().to_owned(),
            queue_id: queue.id.to_wire(),
            broker_name: Some(queue.broker.as_str().to_owned()),
        };
        self.ask_offset(queue, RequestCode::GetMinOffset, &header).await
    }

    pub(crate) async fn max_offset(&self, queue: &MessageQueue) -> Result<QueueOffset> {
        let header = GetMaxOffsetHeader {
            topic: queue.topic.as_str().to_owned(),
            queue_id: queue.id.to_wire(),
            committed: None,
            broker_name: Some(queue.broker.as_str().to_owned()),
        };
        self.ask_offset(queue, RequestCode::GetMaxOffset, &header).await
    }

    /// The first message stored at or after `time`.
    pub(crate) async fn offset_at(&self, queue: &MessageQueue, time: Millis) -> Result<QueueOffset> {
        let header = SearchOffsetHeader {
            topic: queue.topic.as_str().to_owned(),
            queue_id: queue.id.to_wire(),
            timestamp: time.get(),
            boundary_type: None,
            lite_topic: None,
            broker_name: Some(queue.broker.as_str().to_owned()),
        };
        self.ask_offset(queue, RequestCode::SearchOffsetByTimestamp, &header).await
    }

    /// Where the group stands; `None` when it has not committed yet.
    pub(crate) async fn committed(
        &self,
        group: &GroupName,
        queue: &MessageQueue,
        unset: Unset,
    ) -> Result<Option<QueueOffset>> {
        let header = QueryConsumerOffsetHeader {
            consumer_group: group.as_str(),
            topic: queue.topic.as_str(),
            queue_id: queue.id.to_wire(),
            set_zero_if_not_found: (unset == Unset::None).then_some(false),
            broker_name: Some(queue.broker.as_str()),
        };
        match self.ask_offset(queue, RequestCode::QueryConsumerOffset, &header).await {
            Ok(offset) => Ok(Some(offset)),
            Err(error) if error.code() == Some(ResponseCode::QueryNotFound) => Ok(None),
            Err(error) => Err(error.during(format_args!("asking where {group} stands in {queue}"))),
        }
    }

    /// Commits and waits until the broker has it.
    pub(crate) async fn commit(
        &self,
        group: &GroupName,
        queue: &MessageQueue,
        offset: QueueOffset,
    ) -> Result<()> {
        let header = commit_header(group, queue, offset);
        let done = self.ask_queue(queue, RequestCode::UpdateConsumerOffset, &header).await;
        done.map(drop).map_err(|error| error.during(format_args!("committing {offset} of {queue}")))
    }

    /// Commits without an answer, if there is a connection.
    pub(crate) async fn commit_one_way(
        &self,
        group: &GroupName,
        queue: &MessageQueue,
        offset: QueueOffset,
    ) -> Result<()> {
        let connection = self.queue_connection(queue).await?;
        connection.tell_now(RequestCode::UpdateConsumerOffset, &commit_header(group, queue, offset), &[])
    }
}

fn commit_header<'a>(
    group: &'a GroupName,
    queue: &'a MessageQueue,
    offset: QueueOffset,
) -> UpdateConsumerOffsetHeader<'a> {
    UpdateConsumerOffsetHeader {
        consumer_group: group.as_str(),
        topic: queue.topic.as_str(),
        queue_id: queue.id.to_wire(),
        commit_offset: Some(offset.to_wire()),
        broker_name: Some(queue.broker.as_str()),
    }
}
