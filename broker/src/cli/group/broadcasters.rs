//! Members that broadcast and keep their offsets with the broker.

use gantry_proto::ids::Millis;
use gantry_proto::names::GroupName;
use serde_json::{Value, json};

use super::{Line, queue_json};
use crate::cli::output::{Failure, Output, time};

/// The name under which a member's offsets are kept.
pub fn offsets_of(group: &str, member: &str) -> Result<String, Failure> {
    let name = GroupName::broadcaster(&GroupName::internal(group), member);
    name.map(|name| name.to_string()).map_err(|error| Failure::Usage(format!("member {member:?}: {error}")))
}

/// One of them.
pub(super) struct Broadcaster {
    /// Its own name.
    pub name: String,
    /// When it was heard of last.
    pub seen: Millis,
    /// Where it is in each queue.
    pub lines: Vec<Line>,
}

impl Broadcaster {
    fn lag(&self) -> i64 {
        self.lines.iter().map(Line::lag).sum()
    }

    pub(super) fn json(&self) -> Value {
        let queues: Vec<Value> = self.lines.iter().map(|line| queue_json(line, None)).collect();
        json!({ "name": self.name, "last_seen_ms": self.seen.get(), "lag": self.lag(), "queues": queues })
    }
}

/// A table of them, where there are some.
pub(super) fn broadcasters_text(output: &mut Output, broadcasters: &[Broadcaster]) -> Result<(), Failure> {
    if broadcasters.is_empty() {
        return Ok(());
    }
    let row = |member: &Broadcaster| vec![member.name.clone(), time(member.seen), member.lag().to_string()];
    let rows: Vec<Vec<String>> = broadcasters.iter().map(row).collect();
    output.table(&["BROADCAST MEMBER", "LAST SEEN", "LAG"], &rows)
}
