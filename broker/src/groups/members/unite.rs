//! One subscription out of those of several members.

use std::sync::Arc;

use gantry_proto::remoting::body::heartbeat::SubscriptionData;

/// Different subscriptions of one group to one topic that are kept apart; with more of them it gets everything.
const OTHERS_MAX: usize = 32;

/// Whether the members of a group want the same of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accord {
    /// They do, as far as they want anything.
    Alike,
    /// They do not.
    Mixed,
}

/// What a group wants of a topic: all that one of its members subscribes to.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The subscription; of several that cannot be united the newest.
    pub data: Arc<SubscriptionData>,
    /// Those that cannot be united with it.
    pub others: Vec<Arc<SubscriptionData>>,
    /// Whether members want different things.
    pub accord: Accord,
}

impl Wanted {
    /// What one member subscribes to.
    pub(super) fn by(data: &Arc<SubscriptionData>) -> Self {
        Self { data: Arc::clone(data), others: Vec::new(), accord: Accord::Alike }
    }

    /// Adds what another member subscribes to.
    pub(super) fn add(&mut self, new: &Arc<SubscriptionData>) {
        if !self.unite(new) {
            self.accord = Accord::Mixed;
        }
    }

    /// `false` when it is something else.
    fn unite(&mut self, new: &Arc<SubscriptionData>) -> bool {
        if self.others.is_empty() && is_tags(&self.data) && is_tags(new) {
            let same = alike(&self.data, new);
            if *self.data != **new {
                self.data = Arc::new(united(&self.data, new));
            }
            return same;
        }
        let mut all = std::mem::take(&mut self.others);
        let same = all.is_empty() && alike(&self.data, new);
        all.push(Arc::clone(&self.data));
        match all.iter_mut().find(|known| alike(known, new)) {
            Some(known) if new.sub_version > known.sub_version => *known = Arc::clone(new),
            Some(_) => {}
            None => all.push(Arc::clone(new)),
        }
        let newest = all.iter().enumerate().max_by_key(|(_, data)| data.sub_version);
        if let Some(newest) = newest.map(|(place, _)| place) {
            self.data = all.swap_remove(newest);
        }
        if all.len() > OTHERS_MAX {
            let everything = SubscriptionData { topic: new.topic.clone(), ..SubscriptionData::default() };
            all = vec![Arc::new(SubscriptionData { sub_string: "*".to_owned(), ..everything })];
        }
        self.others = all;
        same
    }

    /// Whether the same messages are wanted.
    pub(super) fn is_alike(&self, other: &Self) -> bool {
        let has = |wanted: &Self, data: &SubscriptionData| {
            alike(&wanted.data, data) || wanted.others.iter().any(|known| alike(known, data))
        };
        let within = |left: &Self, right: &Self| {
            has(right, &left.data) && left.others.iter().all(|data| has(right, data))
        };
        within(self, other) && within(other, self)
    }
}

/// Whether two subscriptions select the same messages, by all that can be told from their text.
fn alike(left: &SubscriptionData, right: &SubscriptionData) -> bool {
    left.expression_type == right.expression_type
        && left.class_filter_mode == right.class_filter_mode
        && (left.sub_string == right.sub_string
            || (is_tags(left) && left.tags_set == right.tags_set && is_all(left) == is_all(right)))
}

/// A subscription to tags that selects what either selects.
fn united(left: &SubscriptionData, right: &SubscriptionData) -> SubscriptionData {
    let newer = if right.sub_version > left.sub_version { right } else { left };
    let mut united = newer.clone();
    if is_all(left) || is_all(right) {
        united.sub_string = String::from("*");
        united.tags_set.clear();
        united.code_set.clear();
    } else if !alike(left, right) {
        united.tags_set.extend(left.tags_set.iter().chain(&right.tags_set).cloned());
        united.code_set.extend(left.code_set.iter().chain(&right.code_set));
        united.sub_string = united.tags_set.iter().map(String::as_str).collect::<Vec<_>>().join(" || ");
    }
    united
}

fn is_tags(subscription: &SubscriptionData) -> bool {
    matches!(subscription.expression_type.as_str(), "" | "TAG")
}

fn is_all(subscription: &SubscriptionData) -> bool {
    matches!(subscription.sub_string.trim(), "" | "*")
}
