//! Which queues of a topic are a member's, by the strategies that Java's clients name.

use gantry_proto::remoting::body::queues::{MessageQueue, MessageRequestMode};

/// How queues are shared out. Queues and members must be sorted, and the same for everyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Neighbouring queues; the first members get one more where the division leaves a rest.
    Averagely,
    /// In turn.
    AveragelyByCircle,
}

impl Strategy {
    /// The strategy that a client calls `name`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "AVG" => Some(Self::Averagely),
            "AVG_BY_CIRCLE" => Some(Self::AveragelyByCircle),
            _ => None,
        }
    }

    /// Queues of the member number `index` of `members`.
    fn share(self, queues: &[MessageQueue], members: usize, index: usize) -> Vec<MessageQueue> {
        match self {
            Self::Averagely => {
                let (share, rest) = (queues.len() / members, queues.len() % members);
                let (start, len) = if index < rest {
                    (index * (share + 1), share + 1)
                } else {
                    (index * share + rest, share)
                };
                queues.get(start..start + len).unwrap_or_default().to_vec()
            }
            Self::AveragelyByCircle => queues.iter().skip(index).step_by(members).cloned().collect(),
        }
    }
}

/// The queues of the member `own`. A group that pops takes from all queues of each broker, named by the queue -1;
/// or, when `share` is positive, each member from its own queues and those of so many members behind it.
pub fn assign(
    strategy: Strategy,
    (mode, share): (&MessageRequestMode, i32),
    queues: &[MessageQueue],
    members: &[String],
    own: &str,
) -> Vec<MessageQueue> {
    let mut assigned = match (mode, usize::try_from(share).unwrap_or(0)) {
        (MessageRequestMode::Pop, 0) => {
            queues.iter().map(|queue| MessageQueue { queue_id: -1, ..queue.clone() }).collect()
        }
        (mode, share) => {
            let Some(index) = members.iter().position(|member| member == own) else { return Vec::new() };
            if *mode == MessageRequestMode::Pop && members.len() > queues.len() {
                // Everybody gets one.
                queues.get(index % queues.len().max(1)).cloned().into_iter().collect()
            } else {
                let share = if *mode == MessageRequestMode::Pop { share.min(members.len() - 1) } else { 0 };
                let workers = (index..=index + share).map(|worker| worker % members.len());
                workers.flat_map(|worker| strategy.share(queues, members.len(), worker)).collect::<Vec<_>>()
            }
        }
    };
    assigned.sort();
    assigned.dedup();
    assigned
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn queue(text: &str) -> MessageQueue {
        let (broker, id) = text.split_once(':').expect("broker:queue");
        let queue_id = id.parse().expect("a number");
        MessageQueue { broker_name: broker.to_owned(), queue_id, topic: "T".to_owned() }
    }

    fn texts(value: &Value) -> Vec<String> {
        let all = value.as_array().expect("a list").iter();
        all.map(|text| text.as_str().expect("text").to_owned()).collect()
    }

    #[test]
    fn shares_are_those_of_java() {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/allocate.json"));
        let vectors: Value = serde_json::from_str(text).expect("JSON");
        let mut compared = 0;
        for case in vectors["cases"].as_array().expect("a list") {
            let Some(strategy) = Strategy::parse(case["strategy"].as_str().expect("text")) else { continue };
            if !case["queues"].is_array() {
                continue;
            }
            let mut queues: Vec<_> = texts(&case["queues"]).iter().map(|text| queue(text)).collect();
            queues.sort();
            let mut members = texts(&case["clients"]);
            members.sort();
            let Some(result) = case["result"].as_object() else { continue };
            for (member, expected) in result {
                let mut expected: Vec<_> = texts(expected).iter().map(|text| queue(text)).collect();
                expected.sort();
                let pull = (&MessageRequestMode::Pull, 0);
                assert_eq!(assign(strategy, pull, &queues, &members, member), expected, "{case} {member}");
                compared += 1;
            }
        }
        assert!(compared > 10, "only {compared} shares in the vectors");
    }

    #[test]
    fn members_that_pop_share_queues() {
        let queues = ["a:0", "a:1", "a:2", "b:0"].map(queue);
        let members = ["x", "y"].map(str::to_owned);
        let pop = |share, members: &[String], own: &str| {
            assign(Strategy::Averagely, (&MessageRequestMode::Pop, share), &queues, members, own)
        };
        assert_eq!(pop(0, &members, "x"), ["a:-1", "b:-1"].map(queue));
        assert_eq!(pop(-1, &members, "nobody"), ["a:-1", "b:-1"].map(queue));
        assert_eq!(pop(1, &members, "y"), queues);
        assert_eq!(pop(7, &members, "y"), queues);
        let many: Vec<String> = (0..6).map(|number| number.to_string()).collect();
        assert_eq!(pop(1, &many, "5"), [queue("a:1")]);
        assert_eq!(pop(1, &many, "nobody"), []);
    }
}
