//! The groups this client is in: what its heartbeats say, and who answers a broker's requests.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_proto::names::GroupName;
use gantry_proto::remoting::body::heartbeat::{ConsumerData, HeartbeatData, ProducerData};
use tokio::sync::mpsc;

use crate::connection::FromServer;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Received;
use crate::transaction::Resolution;

/// Answers checks of open transactions.
pub(crate) type Checker =
    Arc<dyn Fn(Received) -> Pin<Box<dyn Future<Output = Resolution> + Send>> + Send + Sync>;

#[derive(Default)]
struct Groups {
    producers: BTreeMap<GroupName, ProducerSeat>,
    consumers: BTreeMap<GroupName, ConsumerSeat>,
}

#[derive(Default)]
struct ProducerSeat {
    holders: usize,
    checker: Option<Checker>,
}

struct ConsumerSeat {
    data: ConsumerData,
    inbox: mpsc::Sender<FromServer>,
}

/// All groups of one client.
#[derive(Default)]
pub(crate) struct Members {
    groups: Mutex<Groups>,
}

impl Members {
    fn lock(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more producer of `group`; the last checker that came counts.
    pub(crate) fn add_producer(&self, group: &GroupName, checker: Option<Checker>) {
        let mut groups = self.lock();
        let seat = groups.producers.entry(group.clone()).or_default();
        seat.holders += 1;
        seat.checker = checker.or(seat.checker.take());
    }

    /// One producer of `group` less; whether it was the last.
    pub(crate) fn remove_producer(&self, group: &GroupName) -> bool {
        let mut groups = self.lock();
        let Some(seat) = groups.producers.get_mut(group) else { return false };
        seat.holders -= 1;
        let last = seat.holders == 0;
        if last {
            groups.producers.remove(group);
        }
        last
    }

    /// The consumer of a group; `inbox` gets what brokers ask of it.
    pub(crate) fn add_consumer(
        &self,
        data: ConsumerData,
        inbox: mpsc::Sender<FromServer>,
    ) -> Result<GroupName> {
        let group = GroupName::parse(&data.group_name)?;
        let mut groups = self.lock();
        if groups.consumers.contains_key(&group) {
            let what = format!("this client already has a consumer in group {group}");
            return Err(Error::new(ErrorKind::GroupInUse, what));
        }
        groups.consumers.insert(group.clone(), ConsumerSeat { data, inbox });
        Ok(group)
    }

    pub(crate) fn remove_consumer(&self, group: &GroupName) -> bool {
        self.lock().consumers.remove(group).is_some()
    }

    pub(crate) fn checker(&self, group: &str) -> Option<Checker> {
        self.lock().producers.get(group)?.checker.clone()
    }

    pub(crate) fn consumer_inbox(&self, group: &str) -> Option<mpsc::Sender<FromServer>> {
        Some(self.lock().consumers.get(group)?.inbox.clone())
    }

    /// Every group, producers' first; to say goodbye.
    pub(crate) fn names(&self) -> (Vec<GroupName>, Vec<GroupName>) {
        let groups = self.lock();
        (groups.producers.keys().cloned().collect(), groups.consumers.keys().cloned().collect())
    }

    /// What brokers are to know; `None` when there is nothing.
    pub(crate) fn heartbeat(&self, client_id: &str) -> Option<HeartbeatData> {
        let groups = self.lock();
        if groups.producers.is_empty() && groups.consumers.is_empty() {
            return None;
        }
        Some(HeartbeatData {
            client_id: client_id.to_owned(),
            consumer_data_set: groups.consumers.values().map(|seat| seat.data.clone()).collect(),
            producer_data_set: groups
                .producers
                .keys()
                .map(|group| ProducerData { group_name: group.as_str().to_owned() })
                .collect(),
            ..HeartbeatData::default()
        })
    }
}
