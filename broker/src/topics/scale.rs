//! More queues or fewer: what a change of the two numbers does to a topic that is in use.
//!
//! Queues from the write number up to the read number are **sealed** while `gantry.scaling` stands among the topic's
//! attributes: they take nothing new and are read until everybody has what is in them; then the read number follows
//! (`deliver/scaling.rs`). The attribute is `from@since`: the write number before, and when it was changed, in
//! milliseconds. It is in `topics.json`, so a kill changes nothing.
//!
//! | `gantry.scale` | |
//! | --- | --- |
//! | `drain` (default) | sealed queues are drained; messages without an order of their own are taken elsewhere at once |
//! | `ordered` | also, messages in queues that keys moved to wait for those before them; the number is multiplied or divided |
//! | `manual` | the numbers are what the operator says, as with Apache's broker |

use std::time::Duration;

use gantry_proto::ids::{Millis, QueueId};
use gantry_proto::names::TopicKind;
use gantry_proto::remoting::body::topic::TopicConfig;

use super::{Topic, TopicError, attributes};

/// How the number of a topic's queues changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScaleMode {
    /// Sealed queues are drained before they go.
    #[default]
    Drain,
    /// The same, and messages of one key keep their order.
    Ordered,
    /// As the operator says, at once.
    Manual,
}

impl ScaleMode {
    pub(super) fn of(config: &TopicConfig) -> Self {
        match config.attributes.get(attributes::SCALE).map(String::as_str) {
            Some("ordered") => Self::Ordered,
            Some("manual") => Self::Manual,
            _ => Self::Drain,
        }
    }
}

/// A change of the number of queues that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Queues that producers wrote before.
    pub from: u32,
    /// Since when they write others.
    pub since: Millis,
}

impl Change {
    pub(super) fn of(config: &TopicConfig) -> Option<Self> {
        let (from, since) = config.attributes.get(attributes::SCALING)?.split_once('@')?;
        Some(Self { from: from.parse().ok()?, since: Millis::new(since.parse().ok()?) })
    }

    fn to_text(self) -> String {
        format!("{}@{}", self.from, self.since.get())
    }

    /// Whether producers may still go by the route from before.
    pub fn is_fresh(&self, now: Millis, grace: Duration) -> bool {
        u128::from(now.since(self.since)) < grace.as_millis()
    }
}

/// Whether a change waits for the consumers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// Sealed queues stay until they are drained.
    Wait,
    /// The numbers are as asked at once: what nobody has read is given up.
    Force,
}

/// Where a message for a queue goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The queue takes messages.
    Open,
    /// It is sealed, or gone: this one goes on for it.
    Sealed(QueueId),
    /// It is none of the topic's.
    Unknown,
}

impl Topic {
    /// Whether the queue is sealed: read, but not written any more.
    pub fn is_sealed(&self, id: QueueId) -> bool {
        self.change.is_some() && (self.write_queues()..self.read_queues()).contains(&id.get())
    }

    /// Where a message goes that was meant for this queue.
    pub fn place(&self, id: QueueId) -> Place {
        let (write, read) = (self.write_queues(), self.read_queues());
        if id.get() < write || id.get() < read && !self.is_sealed(id) {
            return Place::Open;
        }
        match id.get().checked_rem(write) {
            Some(next) if id.get() < read => Place::Sealed(QueueId::new(next)),
            _ => Place::Unknown,
        }
    }

    /// The queue that a message waits for, or the one that goes on for it when it is no longer written.
    pub fn target(&self, id: QueueId) -> QueueId {
        match self.place(id) {
            Place::Open => id,
            Place::Sealed(next) => next,
            Place::Unknown => QueueId::new(id.get().checked_rem(self.write_queues()).unwrap_or(id.get())),
        }
    }

    /// Queues whose older messages come before those of this one, while the topic is scaled in order.
    pub fn leaders(&self, id: QueueId) -> Vec<QueueId> {
        let (Some(change), ScaleMode::Ordered) = (self.change, self.scale) else { return Vec::new() };
        let (write, read) = (self.write_queues(), self.read_queues());
        if write < change.from {
            let sealed = (1..).map_while(|n| id.get().checked_add(write.checked_mul(n)?));
            let sealed = sealed.take_while(|leader| *leader < read);
            return if id.get() < write { sealed.map(QueueId::new).collect() } else { Vec::new() };
        }
        let leader = id.get().checked_rem(change.from).filter(|_| id.get() >= change.from);
        leader.map(QueueId::new).into_iter().collect()
    }
}

/// What becomes of a topic that an operator declares as `asked`.
pub(super) fn plan(
    current: Option<&Topic>,
    mut asked: TopicConfig,
    haste: Haste,
    now: Millis,
) -> Result<TopicConfig, TopicError> {
    asked.attributes.remove(attributes::SCALING);
    let Some(current) = current else { return Ok(asked) };
    let mode = ScaleMode::of(&asked);
    let (read, write) = (asked.read_queue_nums, asked.write_queue_nums);
    if current.kind != TopicKind::User || mode == ScaleMode::Manual || haste == Haste::Force || read < write {
        return Ok(asked);
    }
    let (had_read, had_write) = (current.config.read_queue_nums, current.config.write_queue_nums);
    // A topic without a queue to write has nowhere to go on.
    if write == 0 || had_write == 0 {
        return Ok(asked);
    }
    if let Some(change) = current.change.filter(|_| write == had_write && read <= had_read) {
        asked.read_queue_nums = had_read;
        asked.attributes.insert(attributes::SCALING.to_owned(), change.to_text());
        return Ok(asked);
    }
    if mode == ScaleMode::Ordered {
        check_ordered(current, write)?;
    }
    let before = u32::try_from(had_write).unwrap_or(0);
    let kept = read.max(had_read);
    let is_shrunk = kept > write && (write < had_write || read < had_read || current.change.is_some());
    let is_grown = write > had_write && mode == ScaleMode::Ordered;
    if is_shrunk {
        asked.read_queue_nums = kept;
    }
    if is_shrunk || is_grown {
        let change = Change { from: before, since: now };
        asked.attributes.insert(attributes::SCALING.to_owned(), change.to_text());
    }
    Ok(asked)
}

/// In order, one change comes after the other, and each queue's keys move to or come from known ones.
fn check_ordered(current: &Topic, write: i32) -> Result<(), TopicError> {
    let had = current.config.write_queue_nums;
    if current.change.is_some() {
        return Err(TopicError::UnderWay { topic: current.name.to_string() });
    }
    if write % had != 0 && had % write != 0 {
        return Err(TopicError::NoMultiple { topic: current.name.to_string(), has: had, asked: write });
    }
    Ok(())
}

/// The topic when its change is done: it has the queues that are written.
pub(super) fn settled(topic: &Topic) -> TopicConfig {
    let mut config = topic.config.clone();
    config.attributes.remove(attributes::SCALING);
    config.read_queue_nums = config.read_queue_nums.min(config.write_queue_nums);
    config
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gantry_proto::names::TopicName;

    use super::*;
    use crate::fixture;

    const NOW: Millis = Millis::new(5000);

    fn config(read: i32, write: i32, mode: &str) -> TopicConfig {
        TopicConfig {
            topic_name: "T".to_owned(),
            read_queue_nums: read,
            write_queue_nums: write,
            attributes: BTreeMap::from([(attributes::SCALE.to_owned(), mode.to_owned())]),
            ..TopicConfig::default()
        }
    }

    fn topic(config: TopicConfig) -> Topic {
        Topic::new(TopicName::internal("T"), config, &fixture::topic_defaults())
    }

    /// Numbers to read and to write, and the change under way.
    fn told(config: &TopicConfig) -> (i32, i32, Option<Change>) {
        (config.read_queue_nums, config.write_queue_nums, Change::of(config))
    }

    fn asked(current: &Topic, read: i32, write: i32, mode: &str) -> TopicConfig {
        plan(Some(current), config(read, write, mode), Haste::Wait, NOW).unwrap()
    }

    const CHANGE: Option<Change> = Some(Change { from: 8, since: NOW });

    #[test]
    fn queues_beyond_are_sealed_and_stay_to_be_read() {
        let eight = topic(config(8, 8, "drain"));
        for read in [4, 8] {
            assert_eq!(told(&asked(&eight, read, 4, "drain")), (8, 4, CHANGE));
        }
        let four = topic(asked(&eight, 4, 4, "drain"));
        assert!(four.is_sealed(QueueId::new(4)) && !four.is_sealed(QueueId::new(3)));
        assert_eq!(four.place(QueueId::new(7)), Place::Sealed(QueueId::new(3)));
        assert_eq!(four.place(QueueId::new(8)), Place::Unknown);
        // Once more is the same.
        let later = Millis::new(9000);
        for read in [4, 8] {
            let again = plan(Some(&four), config(read, 4, "drain"), Haste::Wait, later).unwrap();
            assert_eq!(again, four.config);
        }
        let done = topic(settled(&four));
        assert_eq!(told(&done.config), (4, 4, None));
        assert_eq!(done.place(QueueId::new(6)), Place::Unknown);
        assert_eq!(done.target(QueueId::new(6)), QueueId::new(2));
    }

    #[test]
    fn an_operator_may_have_it_at_once() {
        let eight = topic(config(8, 8, "drain"));
        let forced = plan(Some(&eight), config(4, 4, "drain"), Haste::Force, NOW).unwrap();
        assert_eq!(told(&forced), (4, 4, None));
        assert_eq!(told(&asked(&eight, 4, 4, "manual")), (4, 4, None));
        // More to write than to read is what the operator says.
        assert_eq!(told(&asked(&eight, 4, 8, "drain")), (4, 8, None));
        assert_eq!(told(&asked(&eight, 8, 0, "drain")), (8, 0, None));
    }

    #[test]
    fn queues_come_back() {
        let four = topic(asked(&topic(config(8, 8, "drain")), 4, 4, "drain"));
        assert_eq!(told(&asked(&four, 8, 8, "drain")), (8, 8, None));
        // Some of them: the others stay sealed.
        let six = asked(&four, 6, 6, "drain");
        assert_eq!(told(&six), (8, 6, Some(Change { from: 4, since: NOW })));
        assert_eq!(told(&asked(&topic(config(4, 4, "drain")), 8, 8, "drain")), (8, 8, None));
    }

    #[test]
    fn a_topic_of_apaches_stays_as_it_is() {
        let theirs = topic(config(8, 4, "drain"));
        assert_eq!(theirs.place(QueueId::new(7)), Place::Open);
        assert_eq!(told(&asked(&theirs, 8, 4, "drain")), (8, 4, None));
        assert!(asked(&theirs, 4, 4, "drain").attributes.contains_key(attributes::SCALING));
    }

    #[test]
    fn in_order_each_queue_knows_who_comes_before() {
        let leaders = |topic: &Topic, id| -> Vec<u32> {
            topic.leaders(QueueId::new(id)).into_iter().map(QueueId::get).collect()
        };
        let eight = topic(config(8, 8, "ordered"));
        let two = topic(asked(&eight, 8, 2, "ordered"));
        assert_eq!(
            (leaders(&two, 0), leaders(&two, 1), leaders(&two, 5)),
            (vec![2, 4, 6], vec![3, 5, 7], vec![])
        );
        let grown = topic(asked(&topic(settled(&two)), 4, 4, "ordered"));
        assert_eq!(told(&grown.config), (4, 4, Some(Change { from: 2, since: NOW })));
        assert_eq!((leaders(&grown, 1), leaders(&grown, 2), leaders(&grown, 3)), (vec![], vec![0], vec![1]));
        assert_eq!(grown.place(QueueId::new(3)), Place::Open);
        assert_eq!(told(&settled(&grown)), (4, 4, None));
        assert!(leaders(&topic(config(8, 4, "ordered")), 0).is_empty());
    }

    #[test]
    fn in_order_one_change_follows_the_other() {
        let eight = topic(config(8, 8, "ordered"));
        let refused = |topic: &Topic, queues| {
            plan(Some(topic), config(queues, queues, "ordered"), Haste::Wait, NOW).unwrap_err()
        };
        assert!(matches!(refused(&eight, 6), TopicError::NoMultiple { has: 8, asked: 6, .. }));
        let four = topic(asked(&eight, 4, 4, "ordered"));
        assert!(matches!(refused(&four, 8), TopicError::UnderWay { .. }));
    }

    #[test]
    fn changes_are_fresh_for_a_while() {
        let change = Change { from: 8, since: NOW };
        let grace = Duration::from_secs(1);
        assert!(change.is_fresh(Millis::new(5999), grace) && !change.is_fresh(Millis::new(6000), grace));
        for wrong in ["", "8", "x@1", "8@", "-1@2"] {
            let mut config = config(8, 4, "drain");
            config.attributes.insert(attributes::SCALING.to_owned(), wrong.to_owned());
            assert_eq!(Change::of(&config), None, "{wrong}");
        }
    }
}
