//! What the services refuse, in the protocol's codes. The one place where errors become codes.

use std::error::Error;

use gantry_proto::remoting::codes::ResponseCode;

use crate::deliver::retry::RetryError;
use crate::publish::SendError;
use crate::store::AppendError;
use crate::topics::TopicError;
use crate::transaction::{BeginError, EndError};

/// The error and its causes as one sentence.
pub(super) fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// Codes on which official clients back off and try again are given for what passes by itself.
pub(super) fn append(error: &AppendError) -> ResponseCode {
    match error {
        AppendError::TooLarge { .. } => ResponseCode::MessageIllegal,
        AppendError::DiskFull { .. } | AppendError::Poisoned(_) => ResponseCode::ServiceNotAvailable,
        AppendError::Behind { .. } => ResponseCode::SystemBusy,
    }
}

/// Why a send was refused.
pub(super) fn send(error: &SendError) -> ResponseCode {
    match error {
        SendError::Topic(error) => topic(error),
        SendError::NotWritable { .. } => ResponseCode::NoPermission,
        SendError::NoSuchQueue { .. } => ResponseCode::InvalidParameter,
        SendError::BodyTooLarge { .. }
        | SendError::BatchNotAllowed { .. }
        | SendError::BadBatch(_)
        | SendError::EmptyBatch
        | SendError::Encode(_) => ResponseCode::MessageIllegal,
        SendError::Begin(BeginError::TooManyOpen { .. }) => ResponseCode::SystemBusy,
        SendError::Begin(BeginError::NoKey) => ResponseCode::MessageIllegal,
        SendError::Retry(error) => retry(error),
        SendError::Append(error) => append(error),
        SendError::Queue(_) | SendError::Earlier(_) => ResponseCode::SystemError,
    }
}

/// Why an end of a transaction was refused.
pub(super) fn end(error: &EndError) -> ResponseCode {
    match error {
        EndError::TooLate { .. } => ResponseCode::IllegalOperation,
        EndError::NotYet { .. } => ResponseCode::SystemBusy,
        EndError::Poisoned(_) => ResponseCode::ServiceNotAvailable,
        EndError::NoSuchHalf { .. }
        | EndError::WrongGroup { .. }
        | EndError::WrongOffset { .. }
        | EndError::Store(_) => ResponseCode::SystemError,
    }
}
