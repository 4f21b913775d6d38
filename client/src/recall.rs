//! Taking messages back that wait for a time of their own.

use gantry_proto::names::{BrokerName, GroupName, TopicName};
use gantry_proto::record::RecallHandle;
use gantry_proto::remoting::codes::RequestCode;
use gantry_proto::remoting::request::send::{RecallMessageHeader, RecallMessageResponse};

use crate::client::Core;
use crate::error::{Error, ErrorKind, Result};

impl Core {
    /// Asks the broker that the handle names to take its message back; the message's id.
    pub(crate) async fn recall(
        &self,
        group: Option<&GroupName>,
        topic: &str,
        handle: &str,
    ) -> Result<String> {
        let named = RecallHandle::decode(handle).ok_or_else(|| {
            Error::invalid("this is no recall handle: pass on the one of the send's receipt")
        })?;
        let route = self.route_to_send(&TopicName::storable(topic)?).await?;
        let broker = route.broker(&BrokerName::internal(&named.broker));
        let master = broker.and_then(|broker| broker.master.as_ref()).ok_or_else(|| {
            Error::new(ErrorKind::NoRoute, format!("no broker called {} has topic {topic}", named.broker))
        })?;
        let header = RecallMessageHeader {
            producer_group: group.map(|group| group.as_str().to_owned()),
            topic: topic.to_owned(),
            recall_handle: handle.to_owned(),
            broker_name: Some(named.broker.clone()),
        };
        let connection = self.broker(master).await?;
        let answer = connection.call(RequestCode::RecallMessage, &header, &[], self.timeout()).await;
        if let Some(tracer) = &self.tracer {
            tracer.recalled(group, topic, &named.uniq_key, answer.is_ok());
        }
        let answer = answer.map_err(|error| error.during(format_args!("recalling a message of {topic}")))?;
        Ok(answer.header::<RecallMessageResponse>()?.msg_id)
    }
}
