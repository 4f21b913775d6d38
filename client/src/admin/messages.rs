//! Stored messages: by place, by key, by id.

use gantry_proto::ids::Millis;
use gantry_proto::names::{BrokerName, TopicName};
use gantry_proto::record::{OffsetMsgId, RecallHandle};
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::consume::ConsumeMessageDirectlyResult;
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::request::callback::ConsumeMessageDirectlyHeader;
use gantry_proto::remoting::request::query::{QueryMessageHeader, ViewMessageHeader};

use super::Admin;
use crate::error::{Error, Result};
use crate::message::Received;

impl Admin {
    /// The message at the place that an offset message id names.
    pub async fn view_message(&self, topic: impl AsRef<str>, id: OffsetMsgId) -> Result<Received> {
        let link = self.client.core().link(&id.store_host.to_string());
        let header = ViewMessageHeader {
            offset: Some(id.offset.to_wire()),
            topic: Some(topic.as_ref().to_owned()),
            broker_name: None,
        };
        let answer = self.call(&link, RequestCode::ViewMessageById, &header, &[]).await?;
        let broker = BrokerName::internal("");
        let mut bytes = answer.body;
        Received::take(&mut bytes, &broker, None)
    }

    /// Has one member of a group process the message at the place that an offset message id names, and tells how that
    /// went. The group's offset stays where it is.
    pub async fn consume_directly(
        &self,
        group: impl AsRef<str>,
        client_id: impl AsRef<str>,
        id: OffsetMsgId,
    ) -> Result<ConsumeMessageDirectlyResult> {
        let link = self.client.core().link(&id.store_host.to_string());
        let header = ConsumeMessageDirectlyHeader {
            consumer_group: group.as_ref().to_owned(),
            client_id: Some(client_id.as_ref().to_owned()),
            msg_id: Some(id.to_string()),
            broker_name: None,
            topic: None,
            topic_sys_flag: None,
            group_sys_flag: None,
        };
        let answer = self.call(&link, RequestCode::ConsumeMessageDirectly, &header, &[]).await?;
        Ok(ConsumeMessageDirectlyResult::from_json(&answer.body)?)
    }

    /// Takes a message back that waits for a time of its own: as
    /// [`Producer::recall`](crate::Producer::recall), with the topic that the handle names.
    pub async fn recall(&self, handle: impl AsRef<str>) -> Result<String> {
        let handle = handle.as_ref();
        let named = RecallHandle::decode(handle).ok_or_else(|| {
            Error::invalid("this is no recall handle: pass on the one of the send's receipt")
        })?;
        self.client.core().recall(None, &named.topic, handle).await
    }

    /// Messages of a topic that have `key`, stored between `from` and `to`; at most `max` per broker.
    pub async fn find_by_key(
        &self,
        topic: impl AsRef<str>,
        key: impl AsRef<str>,
        (from, to): (Millis, Millis),
        max: u32,
    ) -> Result<Vec<Received>> {
        let topic = TopicName::storable(topic.as_ref())?;
        let key = key.as_ref();
        let mut found = self.find(&topic, key, (from, to), max, false).await?;
        // The index finds by hash.
        found.retain(|message| message.keys().any(|own| own == key));
        Ok(found)
    }

    /// Messages of a topic to which producers gave the id `id`: one, or its copies.
    pub async fn find_by_message_id(
        &self,
        topic: impl AsRef<str>,
        id: impl AsRef<str>,
    ) -> Result<Vec<Received>> {
        let topic = TopicName::storable(topic.as_ref())?;
        let id = id.as_ref();
        let mut found = self.find(&topic, id, (Millis::ZERO, Millis::MAX), 32, true).await?;
        found.retain(|message| message.properties().uniq_key() == Some(id));
        Ok(found)
    }

    async fn find(
        &self,
        topic: &TopicName,
        key: &str,
        (from, to): (Millis, Millis),
        max: u32,
        unique: bool,
    ) -> Result<Vec<Received>> {
        let header = QueryMessageHeader {
            topic: topic.as_str().to_owned(),
            key: key.to_owned(),
            max_num: i32::try_from(max).unwrap_or(i32::MAX),
            begin_timestamp: from.get(),
            end_timestamp: to.get(),
            index_type: None,
            last_key: None,
            unique_key_query: unique.then_some(true),
            broker_name: None,
        };
        let mut found = Vec::new();
        for (broker, link) in self.masters_of(topic).await? {
            match self.call(&link, RequestCode::QueryMessage, &header, &[]).await {
                Ok(answer) => found.extend(Received::all(answer.body, &broker, Some(topic))?),
                Err(error) if error.code() == Some(ResponseCode::QueryNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}
