//! Consumer groups: create, delete, list, who is connected, where they stand, moving them.

use std::collections::BTreeMap;

use gantry_proto::ids::{Millis, QueueOffset};
use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::connection::ConsumerConnection;
use gantry_proto::remoting::body::group::{
    BroadcastMembers, SubscriptionGroupConfig, SubscriptionGroupTable,
};
use gantry_proto::remoting::body::lists::{GroupList, TopicList};
use gantry_proto::remoting::body::offsets::ResetOffsetBody;
use gantry_proto::remoting::body::stats::ConsumeStats;
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::request::group::{
    DeleteSubscriptionGroupHeader, GetAllSubscriptionGroupHeader, GetConsumeStatsHeader, GroupHeader,
};
use gantry_proto::remoting::request::member::ConsumerGroupHeader;
use gantry_proto::remoting::request::offset::{CloneGroupOffsetHeader, ResetOffsetHeader};
use gantry_proto::remoting::request::topic::TopicHeader;

use super::Admin;
use crate::error::{Error, ErrorKind, Result};
use crate::link::Link;
use crate::message::MessageQueue;
use crate::pull::SeekTo;

impl Admin {
    /// All consumer groups with their configuration; the first broker that has one tells.
    pub async fn groups(&self) -> Result<BTreeMap<String, SubscriptionGroupConfig>> {
        let mut all = BTreeMap::new();
        for (_, link) in self.masters().await? {
            let header = GetAllSubscriptionGroupHeader::default();
            let answer = self.call(&link, RequestCode::GetAllSubscriptiongroupConfig, &header, &[]).await?;
            for (name, config) in SubscriptionGroupTable::from_json(&answer.body)?.subscription_group_table {
                all.entry(name).or_insert(config);
            }
        }
        Ok(all)
    }

    /// Creates a consumer group on every broker, or changes it. `attributes` of the configuration are set; a name with `-` before
    /// it is removed, and attributes that are not mentioned stay.
    pub async fn create_group(&self, config: &SubscriptionGroupConfig) -> Result<()> {
        GroupName::parse(&config.group_name)?;
        let signed = |(name, value): (&String, &String)| {
            let name = if name.starts_with(['+', '-']) { name.clone() } else { format!("+{name}") };
            (name, value.clone())
        };
        let attributes = config.attributes.iter().map(signed).collect();
        let body = SubscriptionGroupConfig { attributes, ..config.clone() }.to_json();
        for (_, link) in self.masters().await? {
            self.call(&link, RequestCode::UpdateAndCreateSubscriptiongroup, &(), &body).await?;
        }
        Ok(())
    }

    /// Deletes a consumer group and its offsets on every broker. Whether any had it.
    pub async fn delete_group(&self, group: impl AsRef<str>) -> Result<bool> {
        let group = GroupName::parse(group.as_ref())?;
        let existed = self.groups().await?.contains_key(group.as_str());
        let header =
            DeleteSubscriptionGroupHeader { group_name: group.as_str().to_owned(), clean_offset: true };
        for (_, link) in self.masters().await? {
            match self.call(&link, RequestCode::DeleteSubscriptiongroup, &header, &[]).await {
                Err(error) if error.code() == Some(ResponseCode::SubscriptionGroupNotExist) => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Ok(existed)
    }

    /// Members of a broadcasting group whose offsets brokers keep, by name. Their offsets are those of the group
    /// [`GroupName::broadcaster`] names. Gantry brokers only: others are taken to have none.
    pub async fn broadcast_members(&self, group: impl AsRef<str>) -> Result<BTreeMap<String, Millis>> {
        let header = GroupHeader { group: group.as_ref().to_owned() };
        let mut all: BTreeMap<String, Millis> = BTreeMap::new();
        for (_, link) in self.masters().await? {
            let answer = match self.call(&link, RequestCode::ListBroadcastMembers, &header, &[]).await {
                Err(error) if error.code() == Some(ResponseCode::RequestCodeNotSupported) => continue,
                answer => answer?,
            };
            for member in BroadcastMembers::from_json(&answer.body)?.members {
                let seen = all.entry(member.name).or_insert(Millis::new(member.last_seen));
                *seen = (*seen).max(Millis::new(member.last_seen));
            }
        }
        Ok(all)
    }

    /// Who is connected; `None` when nobody is.
    pub async fn group_members(&self, group: impl AsRef<str>) -> Result<Option<ConsumerConnection>> {
        let header = ConsumerGroupHeader { consumer_group: group.as_ref().to_owned(), broker_name: None };
        for (_, link) in self.masters().await? {
            match self.call(&link, RequestCode::GetConsumerConnectionList, &header, &[]).await {
                Err(error) if error.code() == Some(ResponseCode::ConsumerNotOnline) => {}
                Err(error) => return Err(error),
                Ok(answer) => return Ok(Some(ConsumerConnection::from_json(&answer.body)?)),
            }
        }
        Ok(None)
    }

    /// How far a group is in each queue, in one topic or in all of them.
    pub async fn group_stats(&self, group: impl AsRef<str>, topic: Option<&str>) -> Result<ConsumeStats> {
        let header = GetConsumeStatsHeader {
            consumer_group: group.as_ref().to_owned(),
            topic: topic.map(str::to_owned),
            topic_list: None,
        };
        let mut all = ConsumeStats::default();
        for (_, link) in self.masters().await? {
            let answer = self.call(&link, RequestCode::GetConsumeStats, &header, &[]).await?;
            let stats = ConsumeStats::from_json(&answer.body)?;
            all.consume_tps += stats.consume_tps;
            all.offset_table.extend(stats.offset_table);
        }
        Ok(all)
    }

    /// Groups that are connected for a topic or have offsets in it, sorted.
    pub async fn groups_of_topic(&self, topic: impl AsRef<str>) -> Result<Vec<String>> {
        let topic = TopicName::storable(topic.as_ref())?;
        let header = TopicHeader { topic: topic.as_str().to_owned(), broker_name: None };
        let mut groups = Vec::new();
        for (_, link) in self.masters_of(&topic).await? {
            let answer = self.call(&link, RequestCode::QueryTopicConsumeByWho, &header, &[]).await?;
            groups.extend(GroupList::from_json(&answer.body)?.group_list);
        }
        groups.sort_unstable();
        groups.dedup();
        Ok(groups)
    }

    /// Topics in which a group has offsets, sorted.
    pub async fn topics_of_group(&self, group: impl AsRef<str>) -> Result<Vec<String>> {
        let header = GroupHeader { group: group.as_ref().to_owned() };
        let mut topics = Vec::new();
        for (_, link) in self.masters().await? {
            let answer = self.call(&link, RequestCode::QueryTopicsByConsumer, &header, &[]).await?;
            topics.extend(TopicList::from_json(&answer.body)?.topic_list);
        }
        topics.sort_unstable();
        topics.dedup();
        Ok(topics)
    }

    /// Moves a group to the first message at or after `time`; `None` is the end of each queue. Gives the new offsets.
    pub async fn reset_offsets(
        &self,
        group: impl AsRef<str>,
        topic: impl AsRef<str>,
        time: Option<Millis>,
    ) -> Result<BTreeMap<MessageQueue, i64>> {
        let topic = TopicName::storable(topic.as_ref())?;
        let header = ResetOffsetHeader {
            topic: topic.as_str().to_owned(),
            group: group.as_ref().to_owned(),
            timestamp: time.map_or(-1, Millis::get),
            is_force: true,
            queue_id: Some(-1),
            offset: None,
        };
        let mut offsets = BTreeMap::new();
        for (_, link) in self.masters_of(&topic).await? {
            offsets.extend(self.reset(&link, &header).await?);
        }
        Ok(offsets)
    }

    /// Moves a group in one queue. Gives the new offset: places outside the queue are moved to its nearer end.
    pub async fn reset_queue(
        &self,
        group: impl AsRef<str>,
        queue: &MessageQueue,
        to: SeekTo,
    ) -> Result<QueueOffset> {
        let (time, offset) = match to {
            SeekTo::Begin => (Millis::ZERO, Some(QueueOffset::ZERO)),
            SeekTo::End => (Millis::new(-1), None),
            SeekTo::Offset(offset) => (Millis::ZERO, Some(offset)),
            SeekTo::Time(time) => (time.max(Millis::ZERO), None),
            SeekTo::Committed => {
                return Err(Error::invalid("a group cannot be reset to where it stands: name another place"));
            }
        };
        let header = ResetOffsetHeader {
            topic: queue.topic.as_str().to_owned(),
            group: group.as_ref().to_owned(),
            timestamp: time.get(),
            is_force: true,
            queue_id: Some(queue.id.to_wire()),
            offset: offset.map(QueueOffset::to_wire),
        };
        let link = self.master(queue.broker.as_str()).await?;
        let offsets = self.reset(&link, &header).await?;
        let offset = offsets.get(queue).copied().and_then(QueueOffset::from_wire);
        offset.ok_or_else(|| {
            Error::new(ErrorKind::Protocol, format!("the broker does not say where {queue} was reset to"))
        })
    }

    async fn reset(&self, link: &Link, header: &ResetOffsetHeader) -> Result<BTreeMap<MessageQueue, i64>> {
        let answer = self.call(link, RequestCode::InvokeBrokerToResetOffset, header, &[]).await?;
        let mut offsets = BTreeMap::new();
        for (queue, offset) in ResetOffsetBody::from_json(&answer.body)?.offset_table {
            let queue = MessageQueue::from_wire(&queue).ok_or_else(|| {
                Error::new(ErrorKind::Protocol, format!("a broker named the impossible queue {queue:?}"))
            })?;
            offsets.insert(queue, offset);
        }
        Ok(offsets)
    }

    /// Has `group` go on where `source` stands, in one topic or in all; it is made if there is none. With `all` also in
    /// topics that the online members of `source` have left.
    pub async fn clone_offsets(
        &self,
        source: impl AsRef<str>,
        group: impl AsRef<str>,
        topic: Option<&str>,
        all: bool,
    ) -> Result<()> {
        let header = CloneGroupOffsetHeader {
            src_group: source.as_ref().to_owned(),
            dest_group: GroupName::parse(group.as_ref())?.as_str().to_owned(),
            topic: topic.map(str::to_owned),
            offline: all,
        };
        let masters = match topic {
            Some(topic) => self.masters_of(&TopicName::storable(topic)?).await?,
            None => self.masters().await?,
        };
        for (_, link) in masters {
            self.call(&link, RequestCode::CloneGroupOffset, &header, &[]).await?;
        }
        Ok(())
    }
}
