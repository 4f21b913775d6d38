//! What operators and tools ask of a cluster.

mod drain;
mod groups;
mod messages;
mod topics;
mod traces;
mod transactions;

use std::collections::BTreeMap;
use std::sync::Arc;

use gantry_proto::names::{BrokerName, TopicName};
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::cluster::ClusterInfo;
use gantry_proto::remoting::body::lists::KvTable;
use gantry_proto::remoting::body::route::MASTER_ID;
use gantry_proto::remoting::codes::RequestCode;
use gantry_proto::remoting::header::{ExtWrite, OwnedCommand};

use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::link::Link;

pub use traces::Traced;
pub use transactions::{EndedTransaction, TransactionKind};

/// Operations on topics, groups, offsets and stored messages.
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client,
}

impl Admin {
    pub(crate) const fn new(client: Client) -> Self {
        Self { client }
    }

    /// Every broker and cluster.
    pub async fn cluster(&self) -> Result<ClusterInfo> {
        let answer = self.client.core().ask_name_server(RequestCode::GetBrokerClusterInfo, &()).await?;
        Ok(ClusterInfo::from_json(&answer.body)?)
    }

    /// State of the broker called `broker`: versions, rates, offsets, all as text.
    pub async fn broker_runtime_info(&self, broker: impl AsRef<str>) -> Result<BTreeMap<String, String>> {
        let link = self.master(broker.as_ref()).await?;
        let answer = self.call(&link, RequestCode::GetBrokerRuntimeInfo, &(), &[]).await?;
        Ok(KvTable::from_json(&answer.body)?.table)
    }

    /// Names and links of all masters of all clusters.
    async fn masters(&self) -> Result<Vec<(BrokerName, Arc<Link>)>> {
        let cluster = self.cluster().await?;
        let mut masters = Vec::new();
        for (name, broker) in &cluster.broker_addr_table {
            if let Some(address) = broker.broker_addrs.get(&MASTER_ID) {
                masters.push((BrokerName::storable(name)?, self.client.core().link(address)));
            }
        }
        if masters.is_empty() {
            return Err(Error::new(ErrorKind::NoRoute, "no broker is registered with the name server"));
        }
        Ok(masters)
    }

    async fn master(&self, broker: &str) -> Result<Arc<Link>> {
        let masters = self.masters().await?;
        masters
            .into_iter()
            .find_map(|(name, link)| (name == *broker).then_some(link))
            .ok_or_else(|| Error::new(ErrorKind::NoRoute, format!("no broker is called {broker}")))
    }

    /// Masters of the brokers that have the topic.
    async fn masters_of(&self, topic: &TopicName) -> Result<Vec<(BrokerName, Arc<Link>)>> {
        let route = self.client.core().refresh(topic).await?;
        let named = |broker: &Arc<crate::routes::RouteBroker>| {
            Some((broker.name.clone(), Arc::clone(broker.master.as_ref()?)))
        };
        Ok(route.brokers.iter().filter_map(named).collect())
    }

    async fn call(
        &self,
        link: &Link,
        code: RequestCode,
        header: &(impl ExtWrite + ?Sized + Sync),
        body: &[u8],
    ) -> Result<OwnedCommand> {
        let core = self.client.core();
        core.broker(link).await?.call(code, header, body, core.timeout()).await
    }
}
