//! Topics: create, delete, list, describe.

use gantry_proto::names::{TopicName, topics as names};
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::lists::TopicList;
use gantry_proto::remoting::body::route::RouteData;
use gantry_proto::remoting::body::stats::TopicStatsTable;
use gantry_proto::remoting::body::topic::{TopicConfig, TopicConfigTable};
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::request::nameserver::GetTopicsByClusterHeader;
use gantry_proto::remoting::request::topic::{
    CreateTopicHeader, DeleteTopicInNamesrvHeader, GetAllTopicConfigHeader, TopicHeader,
};

use super::Admin;
use crate::error::{Error, Result};
use crate::message::MessageQueue;

impl Admin {
    /// The queues of a topic that can be read, on all brokers.
    pub async fn read_queues(&self, topic: impl AsRef<str>) -> Result<Vec<MessageQueue>> {
        self.client.core().read_queues(&TopicName::storable(topic.as_ref())?).await
    }

    /// Names of all topics that a name server knows, sorted.
    pub async fn topics(&self) -> Result<Vec<String>> {
        let core = self.client.core();
        let answer = core.ask_name_server(RequestCode::GetAllTopicListFromNameserver, &()).await?;
        let mut topics = TopicList::from_json(&answer.body)?.topic_list;
        topics.sort_unstable();
        Ok(topics)
    }

    /// Names of the topics of one cluster, sorted.
    pub async fn topics_of_cluster(&self, cluster: impl Into<String>) -> Result<Vec<String>> {
        let header = GetTopicsByClusterHeader { cluster: cluster.into() };
        let answer = self.client.core().ask_name_server(RequestCode::GetTopicsByCluster, &header).await?;
        let mut topics = TopicList::from_json(&answer.body)?.topic_list;
        topics.sort_unstable();
        Ok(topics)
    }

    /// Creates a topic on every broker, or changes it. `attributes` of the configuration are set; one whose name begins
    /// with `-` is removed.
    pub async fn create_topic(&self, config: &TopicConfig) -> Result<()> {
        self.declare_topic(config, None).await
    }

    /// Changes a topic at once, also where messages in queues that it no longer has were not read by every group: those
    /// are given up.
    pub async fn force_topic(&self, config: &TopicConfig) -> Result<()> {
        self.declare_topic(config, Some(true)).await
    }

    async fn declare_topic(&self, config: &TopicConfig, force: Option<bool>) -> Result<()> {
        TopicName::parse(&config.topic_name)?;
        let change = |(key, value): (&String, &String)| {
            if key.starts_with('-') { key.clone() } else { format!("+{key}={value}") }
        };
        let attributes: Vec<String> = config.attributes.iter().map(change).collect();
        let header = CreateTopicHeader {
            topic: config.topic_name.clone(),
            default_topic: names::DEFAULT.to_owned(),
            read_queue_nums: Some(config.read_queue_nums),
            write_queue_nums: Some(config.write_queue_nums),
            perm: Some(config.perm),
            topic_filter_type: Some(config.topic_filter_type.clone()),
            topic_sys_flag: Some(config.topic_sys_flag),
            order: config.order,
            attributes: (!attributes.is_empty()).then(|| attributes.join(",")),
            force,
            broker_name: None,
        };
        for (broker, link) in self.masters().await? {
            let answer = self.call(&link, RequestCode::UpdateAndCreateTopic, &header, &[]).await;
            answer.map_err(|error| during(error, "creating", &config.topic_name, broker.as_str()))?;
        }
        Ok(())
    }

    /// Deletes a topic everywhere, with its messages. Whether any broker had it.
    pub async fn delete_topic(&self, topic: impl AsRef<str>) -> Result<bool> {
        let topic = TopicName::parse(topic.as_ref())?;
        let existed = self.topics().await?.iter().any(|name| topic == **name);
        let header = TopicHeader { topic: topic.as_str().to_owned(), broker_name: None };
        for (broker, link) in self.masters().await? {
            match self.call(&link, RequestCode::DeleteTopicInBroker, &header, &[]).await {
                Err(error) if error.code() == Some(ResponseCode::TopicNotExist) => {}
                Err(error) => return Err(during(error, "deleting", topic.as_str(), broker.as_str())),
                Ok(_) => {}
            }
        }
        let core = self.client.core();
        let header = DeleteTopicInNamesrvHeader { topic: topic.as_str().to_owned(), cluster_name: None };
        core.ask_name_server(RequestCode::DeleteTopicInNamesrv, &header).await?;
        core.routes.remove(&topic);
        Ok(existed)
    }

    /// Where a topic is.
    pub async fn topic_route(&self, topic: impl AsRef<str>) -> Result<RouteData> {
        let topic = TopicName::storable(topic.as_ref())?;
        Ok(self.client.core().refresh(&topic).await?.data.clone())
    }

    /// How full the queues of a topic are, on all its brokers.
    pub async fn topic_stats(&self, topic: impl AsRef<str>) -> Result<TopicStatsTable> {
        let topic = TopicName::storable(topic.as_ref())?;
        let header = TopicHeader { topic: topic.as_str().to_owned(), broker_name: None };
        let mut all = TopicStatsTable::default();
        for (_, link) in self.masters_of(&topic).await? {
            let answer = self.call(&link, RequestCode::GetTopicStatsInfo, &header, &[]).await?;
            let stats = TopicStatsTable::from_json(&answer.body)?;
            all.offset_table.extend(stats.offset_table);
            all.topic_put_tps += stats.topic_put_tps;
        }
        Ok(all)
    }

    /// The configuration of a topic as its first broker has it; `None` when none has it.
    pub async fn topic_config(&self, topic: impl AsRef<str>) -> Result<Option<TopicConfig>> {
        for (_, link) in self.masters().await? {
            let header = GetAllTopicConfigHeader::default();
            let answer = self.call(&link, RequestCode::GetAllTopicConfig, &header, &[]).await?;
            let mut table = TopicConfigTable::from_json(&answer.body)?.topic_config_table;
            if let Some(config) = table.remove(topic.as_ref()) {
                return Ok(Some(config));
            }
        }
        Ok(None)
    }
}

fn during(error: Error, verb: &str, topic: &str, broker: &str) -> Error {
    error.during(format_args!("{verb} topic {topic} on {broker}"))
}
