//! How much came in and went out lately: code 315, under the names that Apache's tools know.

use gantry_proto::ids::QueueOffset;
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::stats::{BrokerStatsData, BrokerStatsItem};
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::header::OwnedCommand;
use gantry_proto::remoting::request::topic::ViewBrokerStatsDataHeader;

use super::context::{Reply, Services, settle, short};
use crate::groups::offsets::Offsets;
use crate::metrics::rates::{Growing, Growth, KEYS_MAX};
use crate::store::Store;

/// Looks at everything that grows. To be called every ten seconds or so.
pub fn sample(services: &Services) {
    let topics = services.topics.all().into_iter().map(|topic| {
        let name = topic.name.as_str();
        (Growing::Topic(name.to_owned()), stored_in(&services.store, name))
    });
    let groups = services.offsets.sums(KEYS_MAX).into_iter();
    let groups = groups.map(|(group, topic, sum)| (Growing::Group(format!("{topic}@{group}")), sum));
    let metrics = &services.metrics;
    let broker = [(Growing::Stored, metrics.messages_in.get()), (Growing::Given, metrics.messages_out.get())];
    metrics.rates.sample(services.clock.now(), broker.into_iter().chain(topics).chain(groups));
}

/// Messages that were ever stored in a topic.
fn stored_in(store: &Store, topic: &str) -> u64 {
    store.topic_queues(topic).iter().map(|queue| queue.max().get()).sum()
}

/// Messages of a topic that a group has consumed.
fn consumed_by(offsets: &Offsets, store: &Store, topic: &str, group: &str) -> u64 {
    let queues = store.topic_queues(topic).into_iter();
    queues.filter_map(|queue| offsets.get(group, topic, queue.id())).map(QueueOffset::get).sum()
}

/// Code 315. Sizes and calls are not counted: what is asked of them is refused.
pub fn view(services: &Services, request: &OwnedCommand) -> Reply {
    settle(|| {
        let header: ViewBrokerStatsDataHeader = request.header()?;
        let (name, key) = (header.stats_name.as_str(), header.stats_key);
        let refused = |why: String| Reply::refused(ResponseCode::SystemError, why);
        let unknown =
            || refused(format!("nothing is known of {} of {}: check both", short(name), short(&key)));
        let metrics = &services.metrics;
        let (growing, current) = match name {
            "TOPIC_PUT_NUMS" => (Growing::Topic(key.clone()), stored_in(&services.store, &key)),
            "GROUP_GET_NUMS" => {
                let (topic, group) = key.rsplit_once('@').ok_or_else(unknown)?;
                let sum = consumed_by(&services.offsets, &services.store, topic, group);
                (Growing::Group(key.clone()), sum)
            }
            "BROKER_PUT_NUMS" => (Growing::Stored, metrics.messages_in.get()),
            "BROKER_GET_NUMS" => (Growing::Given, metrics.messages_out.get()),
            other => {
                let known = "TOPIC_PUT_NUMS, GROUP_GET_NUMS, BROKER_PUT_NUMS and BROKER_GET_NUMS";
                return Err(refused(format!("{} is not counted: ask for {known}", short(other))));
            }
        };
        let recent = metrics.rates.recent(services.clock.now(), &growing, current).ok_or_else(unknown)?;
        let item = |growth: Growth| BrokerStatsItem {
            sum: i64::try_from(growth.sum).unwrap_or(i64::MAX),
            tps: growth.per_second,
            ..BrokerStatsItem::default()
        };
        let body = BrokerStatsData {
            stats_day: item(recent.day),
            stats_hour: item(recent.hour),
            stats_minute: item(recent.minute),
        };
        Ok(Reply::body(body.to_json()))
    })
}

#[cfg(test)]
mod tests {
    use gantry_proto::ids::QueueId;
    use gantry_proto::names::{GroupName, TopicName};
    use tempfile::TempDir;

    use super::super::edge_tests::start;
    use super::*;
    use crate::fixture;
    use crate::groups::offsets::Key;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_stored_and_consumed_lately_is_told() {
        let dir = TempDir::new().unwrap();
        let broker = start(&dir).await;
        let services = broker.services();
        let ask = |name: &str, key: &str| {
            let header = ViewBrokerStatsDataHeader { stats_name: name.to_owned(), stats_key: key.to_owned() };
            view(services, &OwnedCommand::request(315, &header))
        };
        assert_eq!(ask("TOPIC_PUT_NUMS", "T").code, 1);
        sample(services);
        let topic = TopicName::internal("T");
        services.topics.ensure_internal(&topic, 1, 6).unwrap();
        fixture::send(&services.store, "T", 0, 10).await;
        let key = Key { group: GroupName::internal("g"), topic, queue: QueueId::ZERO };
        for at in [4, 7] {
            services.offsets.commit(key.clone(), QueueOffset::new(at)).await.unwrap();
            sample(services);
        }
        for (name, key, sum) in [
            ("TOPIC_PUT_NUMS", "T", 10),
            ("GROUP_GET_NUMS", "T@g", 3),
            ("BROKER_PUT_NUMS", "DefaultCluster", 0),
            ("BROKER_GET_NUMS", "DefaultCluster", 0),
        ] {
            let reply = ask(name, key);
            assert_eq!(reply.code, 0, "{name}: {:?}", reply.remark);
            let stats = BrokerStatsData::from_json(&reply.body).unwrap();
            assert_eq!((stats.stats_minute.sum, stats.stats_day.sum), (sum, sum), "{name}");
        }
        for (name, key) in [("GROUP_GET_NUMS", "T"), ("TOPIC_PUT_SIZE", "T"), ("", "")] {
            assert_eq!(ask(name, key).code, 1, "{name}");
        }
        broker.stop().await.unwrap();
    }
}
