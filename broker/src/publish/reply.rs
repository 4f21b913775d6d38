//! Replies to request messages: handed to the producer that waits for them, and kept.
//!
//! A request is an ordinary message that names its sender (`REPLY_TO_CLIENT`) and itself (`CORRELATION_ID`). Whoever
//! consumes it sends a reply with both to the topic `<cluster>_REPLY_TOPIC`. The broker stores it there and at the same
//! time pushes it to the requester's connection: the reply is acknowledged once the requester has taken it. One that
//! reaches nobody is refused, and lies in the topic for people to find.

use gantry_proto::remoting::codes::ResponseCode;

use super::{Incoming, Publisher, Scratch, SendError, Sent};
use crate::groups::members::{ANSWER_WITHIN, Call, CallError, Members};
use crate::store::Poisoned;

/// Whether replies are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// In the topic that they are sent to.
    Stored,
    /// Nowhere: they are pushed only.
    PushedOnly,
}

/// A reply as it came in.
#[derive(Debug)]
pub struct Reply<'a> {
    /// The message.
    pub message: Incoming<'a>,
    /// The same as the requester is to get it.
    pub push: Call,
    /// Whether it is stored.
    pub keep: Keep,
}

/// Why a reply was not acknowledged. It may be stored.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// It says not for whom it is.
    #[error("the reply has no property REPLY_TO_CLIENT: make it from the request that it answers")]
    NoRequester,
    /// Whoever asked is not here.
    #[error(
        "no producer called {client} is connected to this broker: the requester has gone, or sends no heartbeats \
         here; it gets no reply"
    )]
    NotOnline {
        /// The requester's client id.
        client: String,
    },
    /// The requester gave no answer to the push.
    #[error("the reply was not taken by the requester {client}")]
    NotTaken {
        /// The requester's client id.
        client: String,
        /// What went wrong.
        #[source]
        why: CallError,
    },
    /// The requester refused the reply.
    #[error("the requester {client} refused the reply with code {code}: {remark}")]
    Refused {
        /// The requester's client id.
        client: String,
        /// Its code.
        code: i32,
        /// Its words.
        remark: String,
    },
    /// The message itself cannot be taken.
    #[error(transparent)]
    Send(#[from] SendError),
    /// It was pushed, but the log stopped before it was as safe as the policy says.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

impl Publisher {
    /// Stores a reply and pushes it to its requester, who has ten seconds to take it. `None`: it was taken, but is not
    /// stored, because it need not be or because the log has no room at the moment.
    pub async fn reply(
        &self,
        members: &Members,
        reply: Reply<'_>,
        scratch: &mut Scratch,
    ) -> Result<Option<Sent>, ReplyError> {
        self.check_size(reply.message.body.len())?;
        let requester = reply.message.properties.reply_to_client().ok_or(ReplyError::NoRequester)?;
        let kept = match reply.keep {
            Keep::Stored => self.keep(&reply.message, scratch)?,
            Keep::PushedOnly => None,
        };
        let pushed = push(members, requester, reply.push).await;
        if let Some(sent) = kept.filter(|sent| sent.waits) {
            self.store.settled(sent.end).await?;
        }
        pushed.map(|()| kept)
    }

    /// Stores a reply. A log that takes nothing at the moment, or a broker that goes off line, keeps no requester waiting.
    fn keep(&self, message: &Incoming<'_>, scratch: &mut Scratch) -> Result<Option<Sent>, SendError> {
        match self.send(message, scratch) {
            Ok(sent) => {
                self.store.drive();
                Ok(Some(sent))
            }
            Err(SendError::Append(error)) => {
                tracing::warn!(topic = message.topic, %error, "a reply is pushed to its requester, but not stored");
                Ok(None)
            }
            Err(SendError::Leaving(_)) => Ok(None),
            Err(other) => Err(other),
        }
    }
}

async fn push(members: &Members, requester: &str, call: Call) -> Result<(), ReplyError> {
    let client = || requester.to_owned();
    let peer = members.producer(requester).ok_or_else(|| ReplyError::NotOnline { client: client() })?;
    match peer.call(call, ANSWER_WITHIN).await {
        Ok(answer) if answer.code == ResponseCode::Success.code() => Ok(()),
        Ok(answer) => Err(ReplyError::Refused {
            client: client(),
            code: answer.code,
            remark: answer.remark.unwrap_or_else(|| "no reason given".to_owned()),
        }),
        Err(why) => Err(ReplyError::NotTaken { client: client(), why }),
    }
}
