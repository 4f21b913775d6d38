//! What clients wrote down about a message.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;

use gantry_proto::ids::Millis;
use gantry_proto::names::topics;
use gantry_proto::trace::{Event, Trace, decode};

use super::Admin;
use crate::error::Result;
use crate::message::Received;

/// Trace messages of one answer.
const PAGE: u32 = 64;
/// Trace messages that are read for one message.
const MESSAGES_MAX: usize = 2048;

/// One thing that happened to a message, and who wrote it down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// What happened, and when.
    pub trace: Trace,
    /// The address of the client that wrote it, as its broker saw it.
    pub client: SocketAddr,
}

impl Admin {
    /// What clients with traces wrote down about the message with this id, by time. `topic` is the trace topic;
    /// `None` is `RMQ_SYS_TRACE_TOPIC`. Clients write some seconds later; records that cannot be read are passed over.
    ///
    /// Where an old client has not written when it was done with a message and in which group, what it wrote before is
    /// taken for that.
    pub async fn message_traces(&self, id: impl AsRef<str>, topic: Option<&str>) -> Result<Vec<Traced>> {
        let id = id.as_ref();
        let mut found = Vec::new();
        for message in self.trace_messages(id, topic.unwrap_or(topics::TRACE)).await? {
            for trace in decode(message.body()) {
                match trace {
                    Ok(trace) if trace.message_id == id => {
                        found.push(Traced { trace, client: message.born_host() });
                    }
                    Ok(_) => {}
                    Err(error) => tracing::info!(place = %message.offset_message_id(), "{error}"),
                }
            }
        }
        complete(&mut found);
        found.sort_by_key(|traced| traced.trace.at);
        Ok(found)
    }

    /// The trace messages that name an id. Brokers give the newest: what is older is asked for until nothing new comes.
    async fn trace_messages(&self, id: &str, topic: &str) -> Result<Vec<Received>> {
        let mut seen = BTreeSet::new();
        let mut all: Vec<Received> = Vec::new();
        let mut until = Millis::MAX;
        loop {
            let page = self.find_by_key(topic, id, (Millis::ZERO, until), PAGE).await?;
            let is_full = page.len() >= PAGE as usize;
            let before = all.len();
            for message in page {
                if seen.insert(message.offset_message_id().to_string()) {
                    until = until.min(message.store_at());
                    all.push(message);
                }
            }
            if !is_full || all.len() == before || all.len() >= MESSAGES_MAX {
                return Ok(all);
            }
        }
    }
}

/// Fills in time and group of consuming where they are missing: from the record before it.
fn complete(found: &mut [Traced]) {
    let begun: HashMap<String, (Option<Millis>, String)> = found
        .iter()
        .filter_map(|Traced { trace, .. }| match &trace.event {
            Event::SubBefore { request_id, .. } => {
                Some((request_id.clone(), (trace.at, trace.group.clone())))
            }
            _ => None,
        })
        .collect();
    for Traced { trace, .. } in found {
        if let Event::SubAfter { request_id, cost_ms, .. } = &trace.event
            && trace.at.is_none()
            && let Some((at, group)) = begun.get(request_id)
        {
            let took = u64::try_from(*cost_ms).unwrap_or(0);
            trace.at = at.map(|at| at.plus(took));
            trace.group.clone_from(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use gantry_proto::trace::ConsumeCode;

    use super::*;

    fn traced(group: &str, at: Option<i64>, event: Event) -> Traced {
        let trace = Trace {
            message_id: "ID".to_owned(),
            keys: String::new(),
            group: group.to_owned(),
            region: String::new(),
            at: at.map(Millis::new),
            event,
        };
        Traced { trace, client: "127.0.0.1:1".parse().unwrap() }
    }

    #[test]
    fn what_old_clients_leave_out_is_taken_from_the_record_before() {
        let before = Event::SubBefore { request_id: "r".to_owned(), retries: 0 };
        let after = |request_id: &str| Event::SubAfter {
            request_id: request_id.to_owned(),
            cost_ms: 7,
            success: true,
            code: ConsumeCode::Success,
        };
        let mut found =
            [traced("", None, after("r")), traced("g", Some(10), before), traced("", None, after("other"))];
        complete(&mut found);
        assert_eq!((found[0].trace.at, found[0].trace.group.as_str()), (Some(Millis::new(17)), "g"));
        assert_eq!(found[2].trace.at, None);
    }
}
