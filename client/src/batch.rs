//! Many messages of one topic in few requests.

use gantry_proto::ids::QueueOffset;
use gantry_proto::names::TopicName;
use gantry_proto::record::{BatchItem, PropertiesBuf, SysFlag, keys};

use crate::error::{Error, ErrorKind};
use crate::message::{Message, now};
use crate::producer::{Outgoing, Producer, SendReceipt, Shape};

/// A batch that was not sent as a whole. Its first messages may have been: see [`sent`](Self::sent).
#[derive(Debug, thiserror::Error)]
#[error("{} messages of the batch were sent, then: {error}", sent.len())]
pub struct BatchError {
    /// Receipts of the messages that brokers have, from the first on.
    pub sent: Vec<SendReceipt>,
    /// Why the next ones are not there.
    #[source]
    pub error: Error,
}

/// Messages on their way into one request.
struct Part {
    body: Vec<u8>,
    ids: Vec<String>,
}

impl Producer {
    /// Sends messages of one topic, in order, as many in one request as fit. Requests are answered one
    /// after the other; all messages of one request are stored together. Delays, sharding keys and transactions
    /// are for single messages.
    ///
    /// The receipts count on from the place of a request's first message. A crash of the broker can tear a
    /// request apart; the resend, which a Gantry recognises message by message, then stores the rest elsewhere.
    pub async fn send_batch(
        &self,
        messages: impl IntoIterator<Item = Message>,
    ) -> Result<Vec<SendReceipt>, BatchError> {
        let mut sent = Vec::new();
        match self.send_parts(messages, &mut sent).await {
            Ok(()) => Ok(sent),
            Err(error) => Err(BatchError { sent, error }),
        }
    }

    async fn send_parts(
        &self,
        messages: impl IntoIterator<Item = Message>,
        sent: &mut Vec<SendReceipt>,
    ) -> Result<(), Error> {
        let settings = *self.settings();
        let mut parts = Vec::new();
        let mut topic: Option<TopicName> = None;
        for message in messages {
            let topic = topic.get_or_insert_with(|| message.topic.clone());
            let (body, id) = self.item(topic, message, settings.body_bytes_max)?;
            match parts.last_mut() {
                Some(Part { body: last, ids }) if last.len() + body.len() <= settings.batch_bytes_max => {
                    last.extend_from_slice(&body);
                    ids.push(id);
                }
                _ => parts.push(Part { body, ids: vec![id] }),
            }
        }
        let Some(topic) = topic else { return Ok(()) };
        for part in parts {
            self.send_part(&topic, part, sent).await?;
        }
        Ok(())
    }

    /// One message as it lies in a batch, and its id.
    fn item(&self, topic: &TopicName, message: Message, max: usize) -> Result<(Vec<u8>, String), Error> {
        let Message { topic: own, body, mut properties, flag, sharding_key } = message;
        if own != *topic {
            return Err(Error::invalid(format!("a batch for {topic} cannot hold a message for {own}")));
        }
        if sharding_key.is_some() || properties.view().delay_level().is_some() {
            return Err(Error::invalid("a message with a delay or a sharding key cannot be in a batch"));
        }
        if body.len() > max {
            let what = format!("the body has {} bytes, the limit is {max}", body.len());
            return Err(Error::new(ErrorKind::TooLarge, what));
        }
        let id = self.give_id(&mut properties);
        let mut bytes = Vec::with_capacity(body.len() + properties.as_bytes().len() + 24);
        BatchItem { flag, body: &body, properties: properties.view() }.encode_into(&mut bytes).map_err(
            |error| Error::new(ErrorKind::TooLarge, "the message does not fit a batch").because(error),
        )?;
        Ok((bytes, id))
    }

    async fn send_part(
        &self,
        topic: &TopicName,
        part: Part,
        sent: &mut Vec<SendReceipt>,
    ) -> Result<(), Error> {
        let mut properties = PropertiesBuf::new();
        properties.push(keys::WAIT, "true");
        let outgoing = Outgoing {
            topic: topic.clone(),
            body: part.body.into(),
            properties,
            sys_flag: SysFlag::NONE,
            flag: 0,
            born_at: now().get(),
            id: String::new(),
            sharding_key: None,
            shape: Shape::Batch,
            reconsume_times: 0,
            max_reconsume_times: None,
        };
        let first = self.deliver(&outgoing, None).await?;
        let mut offset_ids = first.offset_message_id.split(',');
        let mut offset = first.queue_offset;
        for id in part.ids {
            sent.push(SendReceipt {
                status: first.status,
                message_id: id,
                offset_message_id: offset_ids.next().unwrap_or_default().to_owned(),
                queue: first.queue.clone(),
                queue_offset: offset,
                recall_handle: None,
                transaction_id: None,
            });
            offset = QueueOffset::new(offset.get().saturating_add(1));
        }
        Ok(())
    }
}
