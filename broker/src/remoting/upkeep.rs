//! Cleaning that operators ask for: consume queues (306), files of the log (329), topics that are gone (316).
//!
//! The broker does all of it by itself; these do it now.

use std::io;
use std::sync::Arc;

use gantry_proto::names::TopicKind;
use gantry_proto::remoting::codes::ResponseCode;

use super::context::{Handled, Reply};
use crate::store::Store;
use crate::topics::Topics;

/// Codes 306 and 329: one round of housekeeping. What is past its time is deleted, of the log and with it of the
/// queues; nothing else is.
pub fn clean_expired(store: &Arc<Store>) -> Handled {
    let store = Arc::clone(store);
    blocking(move || store.keep_house().map(|()| None))
}

/// Code 316: the queues of topics that are not known any more, which a deletion may leave that was broken off.
pub fn clean_unused_topics(topics: &Arc<Topics>, store: &Arc<Store>) -> Handled {
    let (topics, store) = (Arc::clone(topics), Arc::clone(store));
    blocking(move || {
        let mut removed = 0;
        for topic in store.topics_on_disk() {
            let may_go = matches!(
                TopicKind::of(topic.as_str()),
                TopicKind::User | TopicKind::Retry | TopicKind::DeadLetter
            );
            if may_go && topics.get(topic.as_str()).is_none() {
                store.remove_topic(topic.as_str())?;
                removed += 1;
            }
        }
        Ok(Some(format!("{removed} topics were removed")))
    })
}

/// Blocks on the disk, so it runs beside the connection.
fn blocking(work: impl FnOnce() -> io::Result<Option<String>> + Send + 'static) -> Handled {
    Handled::later(async move {
        let done = tokio::task::spawn_blocking(work).await;
        match done.map_err(io::Error::other).and_then(|done| done) {
            Ok(remark) => Reply { remark, ..Reply::ok() },
            Err(error) => Reply::refused(ResponseCode::SystemError, format!("cleaning stopped: {error}")),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::fixture::World;

    #[tokio::test]
    async fn only_topics_that_are_not_known_are_removed() {
        let world = World::new();
        world.topic("Known", 1);
        for topic in ["Known", "Gone", "%RETRY%gone", "rmq_sys_gantry_state"] {
            world.send(topic, 0, 1).await;
        }
        let reply = World::settle(clean_unused_topics(&world.topics, &world.store)).await;
        assert_eq!((reply.code, reply.remark.as_deref()), (0, Some("2 topics were removed")));
        let left: Vec<_> = world.store.topics_on_disk().iter().map(ToString::to_string).collect();
        assert!(left.iter().all(|topic| topic == "Known" || topic.starts_with("rmq_sys_")), "{left:?}");
        assert!(left.iter().any(|topic| topic == "Known"));
    }

    #[tokio::test]
    async fn what_is_not_expired_stays() {
        let world = World::new();
        world.topic("T", 1);
        world.send("T", 0, 3).await;
        assert_eq!(World::settle(clean_expired(&world.store)).await.code, 0);
        let queue = world.store.topic_queues("T").remove(0);
        assert_eq!((queue.min().get(), queue.max().get()), (0, 3));
    }

    #[tokio::test]
    async fn a_failure_is_told() {
        let reply = World::settle(blocking(|| Err(ErrorKind::StorageFull.into()))).await;
        assert_eq!(reply.code, 1);
        assert!(reply.remark.unwrap().starts_with("cleaning stopped: "));
    }
}
