//! One subscription out of those of several members.

use gantry_proto::remoting::body::heartbeat::SubscriptionData;

/// Whether two subscriptions select the same messages, by all that can be told from their text.
pub(super) fn alike(left: &SubscriptionData, right: &SubscriptionData) -> bool {
    left.expression_type == right.expression_type
        && left.class_filter_mode == right.class_filter_mode
        && (left.sub_string == right.sub_string
            || (is_tags(left) && left.tags_set == right.tags_set && is_all(left) == is_all(right)))
}

/// A subscription that selects what either selects; of two that cannot be united the newer one.
pub(super) fn united(left: &SubscriptionData, right: &SubscriptionData) -> SubscriptionData {
    let newer = if right.sub_version > left.sub_version { right } else { left };
    let mut united = newer.clone();
    if !is_tags(left) || !is_tags(right) {
        return united;
    }
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
