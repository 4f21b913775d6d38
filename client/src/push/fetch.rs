//! Pulling one queue, as long as it is ours.

use std::sync::Arc;
use std::time::Duration;

use gantry_proto::remoting::body::heartbeat::MessageModel;
use gantry_proto::remoting::codes::ResponseCode;

use super::Outcome;
use super::group::{Group, LOCK_TRUST, Order, Subscription};
use super::process_queue::ProcessQueue;
use crate::error::{Error, Result};
use crate::message::Received;
use crate::queues::{PullRequest, PullStatus, Pulled, Subscribed, pulled};

/// After an error the queue is left alone for so long.
const FAILED_PAUSE: Duration = Duration::from_secs(1);
/// The broker does not know our subscription yet: soon it will.
const UNKNOWN_PAUSE: Duration = Duration::from_millis(200);
/// A refused message of an orderly queue is processed again after this time.
const ORDERLY_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Pulls until the queue is no longer ours.
pub(crate) async fn fetch(group: Arc<Group>, queue: Arc<ProcessQueue>, subscription: Arc<Subscription>) {
    let gone = queue.gone.clone();
    loop {
        let step = async {
            queue.has_room().await;
            if group.settings.order == Order::Orderly && !queue.is_locked(LOCK_TRUST) {
                group.lock_queue(&queue).await?;
            }
            pull(&group, &queue, &subscription).await
        };
        let got = tokio::select! {
            biased;
            () = gone.cancelled() => return,
            got = step => got,
        };
        let pause = match got {
            Ok(got) => {
                take(&group, &queue, got).await;
                continue;
            }
            Err(error) => after(&group, &queue, &error),
        };
        tokio::select! {
            () = gone.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// How long to wait after an error.
fn after(group: &Group, queue: &ProcessQueue, error: &Error) -> Duration {
    let unknown = [ResponseCode::SubscriptionNotExist, ResponseCode::SubscriptionNotLatest];
    if error.code().is_some_and(|code| unknown.contains(&code)) {
        group.core.beat.notify_one();
        return UNKNOWN_PAUSE;
    }
    tracing::info!(group = %group.name, queue = %queue.queue, "pulling failed: {error}");
    FAILED_PAUSE
}

async fn pull(group: &Group, queue: &ProcessQueue, subscription: &Subscription) -> Result<Pulled> {
    let connection = group.core.queue_connection(&queue.queue).await?;
    let commit = match group.settings.model {
        MessageModel::Broadcasting => None,
        _ => Some(queue.commit_point()).filter(|offset| offset.get() > 0),
    };
    let request = PullRequest {
        group: &group.name,
        queue: &queue.queue,
        offset: queue.next(),
        max: group.settings.batch,
        wait: Some(group.settings.wait),
        commit,
        subscription: Subscribed::ByHeartbeat(subscription.data.sub_version),
        filter: &subscription.filter,
    };
    let answer = request.send(&connection, group.core.timeout())?.await?;
    pulled(answer, &queue.queue, &subscription.filter)
}

async fn take(group: &Arc<Group>, queue: &Arc<ProcessQueue>, got: Pulled) {
    match got.status {
        PullStatus::OffsetMoved => {
            tracing::warn!(
                group = %group.name, queue = %queue.queue,
                "offset {} was moved to {} by the broker", queue.next(), got.next
            );
            queue.reset(got.next);
        }
        PullStatus::NoNewMessage => {}
        PullStatus::Found | PullStatus::NoMatch => {
            let epoch = queue.add(&got.messages, got.next);
            match group.settings.order {
                Order::Concurrent => group.backlog.add(queue, epoch, got.messages),
                Order::Orderly => {
                    for message in got.messages {
                        let offset = message.queue_offset();
                        if !in_order(group, queue, message).await {
                            return;
                        }
                        queue.finish(epoch, offset);
                    }
                }
            }
        }
    }
}

/// Processes one message of an orderly queue until it is done with. `false` when the queue is no longer ours.
async fn in_order(group: &Group, queue: &ProcessQueue, message: Received) -> bool {
    let mut attempts = message.reconsume_times();
    loop {
        if queue.gone.is_cancelled() || group.stop.is_cancelled() {
            return false;
        }
        if !queue.is_locked(LOCK_TRUST)
            && let Err(error) = group.lock_queue(queue).await
        {
            tracing::info!(queue = %queue.queue, "the queue's lock was not renewed: {error}");
            tokio::time::sleep(FAILED_PAUSE).await;
            continue;
        }
        let outcome = group.process(&message).await;
        if outcome == Outcome::Success {
            return true;
        }
        attempts = attempts.saturating_add(1);
        let dead = outcome == Outcome::DeadLetter
            || group.settings.max_reconsume_times.is_some_and(|max| attempts > max);
        if dead {
            return group.settle(queue, &message, Outcome::DeadLetter).await;
        }
        // Whatever follows must wait: that is what order means.
        tokio::select! {
            () = queue.gone.cancelled() => return false,
            () = tokio::time::sleep(ORDERLY_AGAIN_AFTER) => {}
        }
    }
}
