//! Messages that wait: where they wait, and that they are delivered when they are due.
//!
//! A message with a delay level is stored in `SCHEDULE_TOPIC_XXXX`, in the queue of its level, with
//! its real topic and queue as properties. All messages of a level wait equally long, so each queue is in the
//! order of their due times: [`deliver`] keeps one cursor for each level.
//!
//! A message with a time of its own ([`due`]) is stored in `rmq_sys_wheel_timer`. [`wheel`] folds that topic into the time
//! index (`index`), [`fire`] delivers what is due, [`recall`] takes back what is not.

mod aside;
mod copy;
mod cursors;
pub mod deliver;
pub mod due;
pub mod fire;
mod handover;
mod index;
pub mod levels;
pub mod recall;
mod task;
#[cfg(test)]
mod tests;
pub mod wheel;
#[cfg(test)]
mod wheel_tests;

use gantry_proto::ids::QueueId;
use gantry_proto::names::TopicName;
use gantry_proto::record::{PropertiesBuf, keys};

pub use cursors::TimerProjection;
pub use deliver::{Timer, Unstarted, load};
pub use due::{TimerError, asked, check_room, due_if_waiting, forget_asked, forget_timer, retarget_timer};
pub use fire::{UnstartedWheel, Wheel, load_wheel};
pub use handover::TooManyTimers;
pub use levels::{Level, Levels};
pub use recall::{Recall, RecallError};
pub use wheel::WheelProjection;

/// Makes a message for `topic` and `queue` one that waits at `level`: notes the real target in its
/// properties and says where it is to be stored instead.
pub fn retarget(
    properties: &mut PropertiesBuf,
    level: Level,
    topic: &str,
    queue: QueueId,
) -> (TopicName, QueueId) {
    properties.set(keys::DELAY, &level.number().to_string());
    properties.set(keys::REAL_TOPIC, topic);
    properties.set(keys::REAL_QID, &queue.get().to_string());
    (TopicName::schedule(), level.queue())
}

#[cfg(test)]
mod retarget_tests {
    use super::*;

    #[test]
    fn a_waiting_message_knows_its_target() {
        let mut properties = PropertiesBuf::new();
        properties.push(keys::DELAY, "99");
        properties.push(keys::REAL_TOPIC, "forged");
        let level = Levels::default().level(99).expect("there are levels");
        let (topic, queue) = retarget(&mut properties, level, "orders", QueueId::new(3));
        assert_eq!((topic, queue), (TopicName::schedule(), QueueId::new(17)));
        let view = properties.view();
        assert_eq!((view.real_topic(), view.real_queue_id()), (Some("orders"), Some(3)));
        assert_eq!(view.delay_level(), Some(18));
        assert_eq!(view.iter().count(), 3);
    }
}
