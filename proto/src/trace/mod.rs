//! Message traces: what clients write down about their messages, in the bodies of messages of a trace topic.
//!
//! A body is text: records, each ended by the byte 2, of fields with the byte 1 between them. The first field is the kind:
//!
//! ```text
//! Pub            time region group topic id tags keys store-host body-bytes cost type [[offset-id] success [client-host]]
//! SubBefore      time region group request id retries keys
//! SubAfter       request id cost success keys [code [time group]]
//! EndTransaction time region group topic id tags keys store-host type transaction-id state from-check
//! Recall         time region group topic id success
//! ```
//!
//! Times are milliseconds since the epoch, costs milliseconds. A text that is not there is written `null`: readers in
//! Java lose empty fields at the end of a record. What stands in brackets older clients do not write, nor does the last
//! pair a client of Alibaba's cloud. Fields behind those that are known are passed over.
//!
//! The keys of the message that carries them are the ids and keys of all its records: the key index finds them.

#[cfg(test)]
mod tests;

use std::fmt::{self, Write as _};

use crate::ids::Millis;

/// Ends a record.
const RECORD_END: u8 = 2;
/// Stands between two fields.
const BETWEEN: char = '\u{1}';
/// Stands for a text that is not there.
const NOTHING: &str = "null";
/// Bytes of a wrong field that an error shows.
const SHOWN_MAX: usize = 40;

/// One thing that happened to a message, as a client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The message's id, as its producer made it.
    pub message_id: String,
    /// The message's keys, with blanks between them; empty in a recall.
    pub keys: String,
    /// The group of the client; empty where an old client has not written it behind consuming.
    pub group: String,
    /// The region that the broker named; not written behind consuming.
    pub region: String,
    /// When it happened; `None` where an old client has not written it behind consuming.
    pub at: Option<Millis>,
    /// What happened.
    pub event: Event,
}

/// What happened to a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was sent.
    Pub(Pub),
    /// A consumer is about to process it.
    SubBefore {
        /// Names this delivery: the same stands in the `SubAfter`.
        request_id: String,
        /// How often the group had refused it.
        retries: i32,
    },
    /// A consumer has processed it.
    SubAfter {
        /// Names the delivery.
        request_id: String,
        /// Milliseconds that the processing took.
        cost_ms: i32,
        /// Whether the consumer accepted it.
        success: bool,
        /// How the processing ended.
        code: ConsumeCode,
    },
    /// Its producer ended its transaction.
    EndTransaction(EndTransaction),
    /// It was taken back.
    Recall {
        /// The topic.
        topic: String,
        /// Whether the broker agreed.
        success: bool,
    },
}

/// A message was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pub {
    /// The topic.
    pub topic: String,
    /// Its tag.
    pub tags: String,
    /// The broker that it was sent to.
    pub store_host: String,
    /// Bytes of its body.
    pub body_bytes: i32,
    /// Milliseconds until it was answered.
    pub cost_ms: i32,
    /// What kind of message it is.
    pub kind: MessageKind,
    /// Where it is stored.
    pub offset_id: String,
    /// Whether the broker has it.
    pub success: bool,
    /// The producer's host; only old clients write it.
    pub client_host: Option<String>,
}

/// A transaction was ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndTransaction {
    /// The topic.
    pub topic: String,
    /// Its tag.
    pub tags: String,
    /// The broker that has the half message.
    pub store_host: String,
    /// What kind of message it is.
    pub kind: MessageKind,
    /// The transaction's id.
    pub transaction_id: String,
    /// How it was ended.
    pub state: EndState,
    /// Whether the broker had asked.
    pub from_check: bool,
}

/// Kinds of messages that traces know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MessageKind {
    /// An ordinary one.
    #[default]
    Normal,
    /// A half message.
    Half,
    /// One whose transaction was ended.
    Commit,
    /// One for later.
    Delay,
    /// One of an orderly topic.
    Order,
}

/// How a producer ended a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndState {
    /// Commit.
    Commit,
    /// Rollback.
    Rollback,
    /// The producer does not know.
    #[default]
    Unknown,
}

/// How processing a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsumeCode {
    /// The consumer accepted it.
    Success,
    /// It took longer than allowed.
    TimeOut,
    /// The consumer threw an exception.
    Exception,
    /// The consumer said nothing.
    Nothing,
    /// The consumer refused it.
    Failed,
    /// A number that is not known here.
    Other(i32),
}

/// A record that cannot be read. Those behind it can.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// It is no text.
    #[error("a trace record is not UTF-8")]
    NoText,
    /// Its kind is not known.
    #[error("a trace record of the unknown kind {0:?}")]
    UnknownKind(String),
    /// A field is missing.
    #[error("a {kind} record ends before its {field}")]
    Missing {
        /// The record's kind.
        kind: &'static str,
        /// The field.
        field: &'static str,
    },
    /// A field cannot be read.
    #[error("the {field} of a {kind} record cannot be {text:?}")]
    Wrong {
        /// The record's kind.
        kind: &'static str,
        /// The field.
        field: &'static str,
        /// What stands there, cut.
        text: String,
    },
}

/// The records of a body, in order.
pub fn decode(body: &[u8]) -> impl Iterator<Item = Result<Trace, TraceError>> + '_ {
    let records = body.split(|byte| *byte == RECORD_END).filter(|record| !record.is_empty());
    records.map(|record| {
        let text = std::str::from_utf8(record).map_err(|_| TraceError::NoText)?;
        Trace::read(text)
    })
}

impl Trace {
    /// Appends the record. The separators cannot be in a field: there they become blanks.
    pub fn encode_into(&self, out: &mut String) {
        let mut fields = Writer { out, is_first: true };
        fields.word(self.event.name());
        match &self.event {
            Event::Pub(sent) => {
                self.write_head(&mut fields);
                fields.text(&sent.topic);
                fields.texts(&[&self.message_id, &sent.tags, &self.keys, &sent.store_host]);
                fields.word(sent.body_bytes);
                fields.word(sent.cost_ms);
                fields.word(sent.kind.ordinal());
                fields.text(&sent.offset_id);
                fields.word(sent.success);
                if let Some(host) = &sent.client_host {
                    fields.text(host);
                }
            }
            Event::SubBefore { request_id, retries } => {
                self.write_head(&mut fields);
                fields.texts(&[request_id, &self.message_id]);
                fields.word(retries);
                fields.text(&self.keys);
            }
            Event::SubAfter { request_id, cost_ms, success, code } => {
                fields.texts(&[request_id, &self.message_id]);
                fields.word(cost_ms);
                fields.word(success);
                fields.text(&self.keys);
                fields.word(code.to_wire());
                if let Some(at) = self.at {
                    fields.word(at);
                    fields.text(&self.group);
                }
            }
            Event::EndTransaction(end) => {
                self.write_head(&mut fields);
                fields.text(&end.topic);
                fields.texts(&[&self.message_id, &end.tags, &self.keys, &end.store_host]);
                fields.word(end.kind.ordinal());
                fields.text(&end.transaction_id);
                fields.word(end.state);
                fields.word(end.from_check);
            }
            Event::Recall { topic, success } => {
                self.write_head(&mut fields);
                fields.texts(&[topic, &self.message_id]);
                fields.word(success);
            }
        }
        out.push(char::from(RECORD_END));
    }

    fn write_head(&self, fields: &mut Writer<'_>) {
        fields.word(self.at.unwrap_or(Millis::ZERO));
        fields.texts(&[&self.region, &self.group]);
    }

    fn read(record: &str) -> Result<Self, TraceError> {
        let mut rest = record.split(BETWEEN);
        let name = rest.next().unwrap_or_default();
        let known = |kind| Fields { kind, rest: rest.clone() };
        match name {
            "Pub" => Self::read_pub(&mut known("Pub")),
            "SubBefore" => Self::read_before(&mut known("SubBefore")),
            "SubAfter" => Self::read_after(&mut known("SubAfter")),
            "EndTransaction" => Self::read_end(&mut known("EndTransaction")),
            "Recall" => Self::read_recall(&mut known("Recall")),
            _ => Err(TraceError::UnknownKind(shown(name))),
        }
    }

    fn read_pub(fields: &mut Fields<'_>) -> Result<Self, TraceError> {
        let mut trace = Self::read_head(fields)?;
        let mut sent = Pub { topic: fields.text("topic")?, ..Pub::default() };
        trace.message_id = fields.text("message id")?;
        sent.tags = fields.text("tags")?;
        trace.keys = fields.text("keys")?;
        sent.store_host = fields.text("store host")?;
        sent.body_bytes = fields.number("body length")?;
        sent.cost_ms = fields.number("cost")?;
        sent.kind = fields.kind_of_message()?;
        // An older client writes nothing more, or the success alone.
        sent.success = true;
        match fields.rest.clone().count() {
            0 => {}
            1 => sent.success = fields.flag("success")?,
            _ => {
                sent.offset_id = fields.text("offset id")?;
                sent.success = fields.flag("success")?;
                sent.client_host = fields.rest.next().map(own);
            }
        }
        trace.event = Event::Pub(sent);
        Ok(trace)
    }

    fn read_before(fields: &mut Fields<'_>) -> Result<Self, TraceError> {
        let mut trace = Self::read_head(fields)?;
        let request_id = fields.text("request id")?;
        trace.message_id = fields.text("message id")?;
        let retries = fields.number("retries")?;
        trace.keys = fields.text("keys")?;
        trace.event = Event::SubBefore { request_id, retries };
        Ok(trace)
    }

    fn read_after(fields: &mut Fields<'_>) -> Result<Self, TraceError> {
        let request_id = fields.text("request id")?;
        let message_id = fields.text("message id")?;
        let cost_ms = fields.number("cost")?;
        let success = fields.flag("success")?;
        let keys = fields.text("keys")?;
        let code = match fields.optional() {
            Some(text) => ConsumeCode::from_wire(fields.parse("code", text)?),
            None if success => ConsumeCode::Success,
            None => ConsumeCode::Failed,
        };
        let at = match fields.optional() {
            Some(text) => Some(Millis::new(fields.parse("time", text)?)),
            None => None,
        };
        let group = at.and(fields.optional()).map(own).unwrap_or_default();
        let event = Event::SubAfter { request_id, cost_ms, success, code };
        Ok(Self { message_id, keys, group, region: String::new(), at, event })
    }

    fn read_end(fields: &mut Fields<'_>) -> Result<Self, TraceError> {
        let mut trace = Self::read_head(fields)?;
        let mut end = EndTransaction { topic: fields.text("topic")?, ..EndTransaction::default() };
        trace.message_id = fields.text("message id")?;
        end.tags = fields.text("tags")?;
        trace.keys = fields.text("keys")?;
        end.store_host = fields.text("store host")?;
        end.kind = fields.kind_of_message()?;
        end.transaction_id = fields.text("transaction id")?;
        let state = fields.required("state")?;
        end.state = EndState::named(state).ok_or_else(|| fields.wrong("state", state))?;
        end.from_check = fields.flag("origin")?;
        trace.event = Event::EndTransaction(end);
        Ok(trace)
    }

    fn read_recall(fields: &mut Fields<'_>) -> Result<Self, TraceError> {
        let mut trace = Self::read_head(fields)?;
        let topic = fields.text("topic")?;
        trace.message_id = fields.text("message id")?;
        trace.event = Event::Recall { topic, success: fields.flag("success")? };
        Ok(trace)
    }

    /// Time, region and group; everything else is still to come.
    fn read_head(fields: &mut Fields<'_>) -> Result<Self, TraceError> {
        Ok(Self {
            at: Some(Millis::new(fields.number("time")?)),
            region: fields.text("region")?,
            group: fields.text("group")?,
            message_id: String::new(),
            keys: String::new(),
            event: Event::Recall { topic: String::new(), success: false },
        })
    }
}

impl Event {
    /// The kind, as records name it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Pub(_) => "Pub",
            Self::SubBefore { .. } => "SubBefore",
            Self::SubAfter { .. } => "SubAfter",
            Self::EndTransaction(_) => "EndTransaction",
            Self::Recall { .. } => "Recall",
        }
    }
}

impl MessageKind {
    const ALL: [Self; 5] = [Self::Normal, Self::Half, Self::Commit, Self::Delay, Self::Order];

    fn ordinal(self) -> usize {
        Self::ALL.iter().position(|kind| *kind == self).unwrap_or_default()
    }
}

impl fmt::Display for MessageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "normal",
            Self::Half => "half",
            Self::Commit => "transaction",
            Self::Delay => "delayed",
            Self::Order => "ordered",
        })
    }
}

impl EndState {
    fn named(name: &str) -> Option<Self> {
        [Self::Commit, Self::Rollback, Self::Unknown].into_iter().find(|state| state.to_string() == name)
    }
}

impl fmt::Display for EndState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Commit => "COMMIT_MESSAGE",
            Self::Rollback => "ROLLBACK_MESSAGE",
            Self::Unknown => "UNKNOW",
        })
    }
}

impl ConsumeCode {
    const fn to_wire(self) -> i32 {
        match self {
            Self::Success => 0,
            Self::TimeOut => 1,
            Self::Exception => 2,
            Self::Nothing => 3,
            Self::Failed => 4,
            Self::Other(code) => code,
        }
    }

    const fn from_wire(code: i32) -> Self {
        match code {
            0 => Self::Success,
            1 => Self::TimeOut,
            2 => Self::Exception,
            3 => Self::Nothing,
            4 => Self::Failed,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for ConsumeCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("success"),
            Self::TimeOut => f.write_str("timed out"),
            Self::Exception => f.write_str("exception"),
            Self::Nothing => f.write_str("no result"),
            Self::Failed => f.write_str("refused"),
            Self::Other(code) => write!(f, "code {code}"),
        }
    }
}

/// The fields of a record that were not read yet.
struct Fields<'a> {
    kind: &'static str,
    rest: std::str::Split<'a, char>,
}

impl<'a> Fields<'a> {
    fn required(&mut self, field: &'static str) -> Result<&'a str, TraceError> {
        self.rest.next().ok_or(TraceError::Missing { kind: self.kind, field })
    }

    fn text(&mut self, field: &'static str) -> Result<String, TraceError> {
        self.required(field).map(own)
    }

    /// The next field, if it is there and not empty.
    fn optional(&mut self) -> Option<&'a str> {
        self.rest.next().filter(|text| !text.is_empty())
    }

    fn number<N: std::str::FromStr>(&mut self, field: &'static str) -> Result<N, TraceError> {
        let text = self.required(field)?;
        self.parse(field, text)
    }

    fn flag(&mut self, field: &'static str) -> Result<bool, TraceError> {
        // As clients in Java read it.
        self.required(field).map(|text| text.eq_ignore_ascii_case("true"))
    }

    fn kind_of_message(&mut self) -> Result<MessageKind, TraceError> {
        let text = self.required("message type")?;
        let ordinal: usize = self.parse("message type", text)?;
        MessageKind::ALL.get(ordinal).copied().ok_or_else(|| self.wrong("message type", text))
    }

    fn parse<N: std::str::FromStr>(&self, field: &'static str, text: &str) -> Result<N, TraceError> {
        text.parse().map_err(|_| self.wrong(field, text))
    }

    fn wrong(&self, field: &'static str, text: &str) -> TraceError {
        TraceError::Wrong { kind: self.kind, field, text: shown(text) }
    }
}

fn own(text: &str) -> String {
    if text == NOTHING { String::new() } else { text.to_owned() }
}

fn shown(text: &str) -> String {
    let end = (0..=SHOWN_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.get(..end.unwrap_or_default()).unwrap_or_default().to_owned()
}

/// Writes fields with separators between them.
struct Writer<'a> {
    out: &'a mut String,
    is_first: bool,
}

impl Writer<'_> {
    fn word(&mut self, value: impl fmt::Display) {
        if !std::mem::replace(&mut self.is_first, false) {
            self.out.push(BETWEEN);
        }
        let _ = write!(self.out, "{value}"); // writing to a string does not fail
    }

    fn text(&mut self, text: &str) {
        let is_separator = |c: char| c == BETWEEN || c == char::from(RECORD_END);
        if text.is_empty() {
            self.word(NOTHING);
        } else if text.contains(is_separator) {
            self.word(text.replace(is_separator, " "));
        } else {
            self.word(text);
        }
    }

    fn texts(&mut self, texts: &[&String]) {
        for text in texts {
            self.text(text);
        }
    }
}
