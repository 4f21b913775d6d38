//! What can go wrong in a call, and whether trying again can help.

use std::error::Error as StdError;
use std::fmt;

use gantry_proto::error::DecodeError;
use gantry_proto::names::NameError;
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::header::EncodeError;
use gantry_proto::remoting::request::HeaderError;

/// What a call gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed: match on [`ErrorKind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller gave something that can never work: a name, a message, an option.
    Invalid,
    /// A message or batch is larger than the limit.
    TooLarge,
    /// No broker serves the topic, or none of its queues can be written or read.
    NoRoute,
    /// No connection could be made.
    Connect,
    /// The connection broke before the answer came. The request may or may not have been carried out.
    ConnectionLost,
    /// No answer in time. The request may or may not have been carried out.
    Timeout,
    /// The peer refused, with this code.
    Refused(ResponseCode),
    /// The peer sent something that cannot be understood, or that is damaged.
    Protocol,
    /// This client, producer or consumer was shut down.
    Closed,
    /// This client already has a consumer in that group.
    GroupInUse,
}

impl ErrorKind {
    /// Whether the same call may succeed later without anyone changing anything.
    pub const fn is_retryable(self) -> bool {
        match self {
            Self::NoRoute | Self::Connect | Self::ConnectionLost | Self::Timeout => true,
            Self::Refused(code) => matches!(
                code,
                ResponseCode::SystemBusy
                    | ResponseCode::SystemError
                    | ResponseCode::ServiceNotAvailable
                    | ResponseCode::FlowControl
                    | ResponseCode::SlaveNotAvailable
                    | ResponseCode::GoAway
            ),
            Self::Invalid | Self::TooLarge | Self::Protocol | Self::Closed | Self::GroupInUse => false,
        }
    }

    /// What to do about it, as the end of a sentence.
    const fn advice(self) -> &'static str {
        match self {
            Self::Invalid => "correct the call",
            Self::TooLarge => "send less at once or raise the limit on client and broker",
            Self::NoRoute => "create the topic, or check that its broker is registered with the name server",
            Self::Connect => "check the address and that the server runs",
            Self::ConnectionLost => "try again; the request may have been carried out",
            Self::Timeout => "try again or allow more time; the request may have been carried out",
            Self::Refused(code) => match code {
                ResponseCode::SystemBusy | ResponseCode::FlowControl => "send more slowly and try again",
                ResponseCode::TopicNotExist => "create the topic",
                ResponseCode::SubscriptionGroupNotExist => "create the group",
                ResponseCode::NoPermission => "check the permissions of broker, topic and group",
                ResponseCode::ServiceNotAvailable => "check the broker's disk and log, then try again",
                ResponseCode::RequestCodeNotSupported => "use a server that knows this request",
                _ => "see the server's reason",
            },
            Self::Protocol => "check that the address is that of a RocketMQ server, and its store",
            Self::Closed => "make a new one",
            Self::GroupInUse => "use the one you have, or another Client",
        }
    }
}

/// A failed call: a [`kind`](Self::kind) to match on, a sentence, and the cause where there is one.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    what: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, what: what.into(), source: None }))
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, what)
    }

    pub(crate) fn closed(who: &str) -> Self {
        Self::new(ErrorKind::Closed, format!("the {who} was shut down"))
    }

    /// The server's refusal, with its reason.
    pub(crate) fn refused(code: i32, remark: Option<&str>) -> Self {
        let code = ResponseCode::from(code);
        Self::new(
            ErrorKind::Refused(code),
            format!("the server refused with {code}: {}", remark.unwrap_or("no reason given")),
        )
    }

    pub(crate) fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Puts what was being done in front of the sentence.
    pub(crate) fn during(mut self, what: impl fmt::Display) -> Self {
        self.0.what = format!("{what}: {}", self.0.what);
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The code with which a server refused, if one did.
    pub fn code(&self) -> Option<ResponseCode> {
        match self.0.kind {
            ErrorKind::Refused(code) => Some(code),
            _ => None,
        }
    }

    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retryable(&self) -> bool {
        self.0.kind.is_retryable()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.0.what, self.0.kind.advice())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("what", &self.0.what)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        Self::new(ErrorKind::Protocol, "the server's answer cannot be read").because(error)
    }
}

impl From<HeaderError> for Error {
    fn from(error: HeaderError) -> Self {
        Self::new(ErrorKind::Protocol, "a header field of the server cannot be read").because(error)
    }
}

impl From<EncodeError> for Error {
    fn from(error: EncodeError) -> Self {
        Self::new(ErrorKind::TooLarge, "the request cannot be written").because(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_happened_and_what_to_do() {
        let error = Error::refused(2, Some("too many")).during("sending to T");
        assert_eq!(
            error.to_string(),
            "sending to T: the server refused with SYSTEM_BUSY(2): too many; send more slowly and try again"
        );
        assert!(error.is_retryable());
        assert_eq!(error.code(), Some(ResponseCode::SystemBusy));
        assert!(!Error::invalid("no").is_retryable());
    }
}
