//! Queue locks of orderly consumers: codes 41 and 42.

use std::collections::BTreeSet;

use gantry_proto::ids::QueueId;
use gantry_proto::names::{GroupName, TopicName};
use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::queues::{LockBatchBody, LockBatchResponseBody, MessageQueue};
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::header::OwnedCommand;

use super::context::{Reply, settle};
use super::member::body_of;
use crate::groups::locks::{Locks, QueueKey};

/// Queues that one request may lock.
const QUEUES_MAX: usize = 16_384;

/// Code 41: answers with the queues that the client holds now. `broker` is this broker's name: queues of
/// others are not locked here.
pub fn lock(locks: &Locks, broker: &str, request: &OwnedCommand) -> Reply {
    settle(|| {
        let (group, body) = read(request)?;
        let asked = keys(broker, &body.mq_set);
        let held: BTreeSet<_> = locks.lock_batch(&group, &body.client_id, asked).into_iter().collect();
        let is_held = |queue: &&MessageQueue| key(broker, queue).is_some_and(|key| held.contains(&key));
        let lock_ok_mq_set = body.mq_set.iter().filter(is_held).cloned().collect();
        Ok(Reply::body(LockBatchResponseBody { lock_ok_mq_set }.to_json()))
    })
}

/// Code 42.
pub fn unlock(locks: &Locks, broker: &str, request: &OwnedCommand) -> Reply {
    settle(|| {
        let (group, body) = read(request)?;
        locks.unlock_batch(&group, &body.client_id, &keys(broker, &body.mq_set));
        Ok(Reply::ok())
    })
}

fn read(request: &OwnedCommand) -> Result<(GroupName, LockBatchBody), Reply> {
    let body: LockBatchBody = body_of(request)?;
    let wrong = |why: String| Reply::refused(ResponseCode::InvalidParameter, why);
    if body.client_id.is_empty() {
        return Err(wrong("the request has no clientId: a lock needs a holder".to_owned()));
    }
    if body.mq_set.len() > QUEUES_MAX {
        return Err(wrong(format!(
            "{} queues at once, the limit is {QUEUES_MAX}: lock fewer",
            body.mq_set.len()
        )));
    }
    let group = GroupName::storable(&body.consumer_group)
        .map_err(|error| wrong(format!("consumerGroup: {error}")))?;
    Ok((group, body))
}

fn keys(broker: &str, queues: &BTreeSet<MessageQueue>) -> Vec<QueueKey> {
    queues.iter().filter_map(|queue| key(broker, queue)).collect()
}

fn key(broker: &str, queue: &MessageQueue) -> Option<QueueKey> {
    if queue.broker_name != broker {
        return None;
    }
    Some(QueueKey {
        topic: TopicName::storable(&queue.topic).ok()?,
        queue: QueueId::from_wire(queue.queue_id)?,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::fixture::clock;

    fn queue(broker: &str, queue_id: i32) -> MessageQueue {
        MessageQueue { broker_name: broker.to_owned(), queue_id, topic: "T".to_owned() }
    }

    fn request(client: &str, queues: &[MessageQueue]) -> OwnedCommand {
        let body = LockBatchBody {
            client_id: client.to_owned(),
            consumer_group: "g".to_owned(),
            mq_set: queues.iter().cloned().collect(),
            only_this_broker: false,
        };
        OwnedCommand::request(41, &()).body(body.to_json())
    }

    fn held(reply: &Reply) -> BTreeSet<MessageQueue> {
        assert_eq!(reply.code, 0, "{reply:?}");
        LockBatchResponseBody::from_json(&reply.body).unwrap().lock_ok_mq_set
    }

    #[test]
    fn the_answer_lists_what_the_client_holds() {
        let locks = Locks::new(clock(), Duration::from_secs(60));
        let ours = [queue("broker-a", 0), queue("broker-a", 1)];
        let all = [&ours[..], &[queue("broker-b", 0), queue("broker-a", -1)]].concat();
        assert_eq!(held(&lock(&locks, "broker-a", &request("c", &all))), ours.clone().into());
        assert_eq!(held(&lock(&locks, "broker-a", &request("d", &ours))), BTreeSet::new());
        assert_eq!(unlock(&locks, "broker-a", &request("c", &ours[..1])).code, 0);
        assert_eq!(held(&lock(&locks, "broker-a", &request("d", &ours))), [ours[0].clone()].into());
    }

    #[test]
    fn what_cannot_be_locked_is_refused() {
        let locks = Arc::new(Locks::new(clock(), Duration::from_secs(60)));
        assert_eq!(lock(&locks, "broker-a", &request("", &[])).code, 29);
        assert_eq!(lock(&locks, "broker-a", &OwnedCommand::request(41, &()).body("{")).code, 1);
        let many: Vec<_> = (0..=16_384).map(|n| queue("broker-a", n)).collect();
        assert_eq!(lock(&locks, "broker-a", &request("c", &many)).code, 29);
        let nameless = OwnedCommand::request(41, &()).body(r#"{"clientId":"c","consumerGroup":"../x"}"#);
        assert_eq!(unlock(&locks, "broker-a", &nameless).code, 29);
    }
}
