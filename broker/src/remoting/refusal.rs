//! What the services refuse, in the protocol's codes. The one place where errors become codes.

use gantry_proto::remoting::codes::ResponseCode;

use super::context::{Reply, chain};
use crate::deliver::expressions::{FilterError, WantedError};
use crate::deliver::pop::PopError;
use crate::deliver::retry::SendBackError;
use crate::deliver::scaling::ScaleError;
use crate::groups::members::CallError;
use crate::groups::modes::ModeError;
use crate::groups::offsets::CommitError;
use crate::groups::start::StartError;
use crate::groups::{GroupError, HeartbeatError};
use crate::publish::SendError;
use crate::publish::reply::ReplyError;
use crate::routes::drain::DrainError;
use crate::store::AppendError;
use crate::timer::RecallError;
use crate::topics::TopicError;
use crate::transaction::{BeginError, EndError, OperatorError, RedriveError};

/// When to come back while the disk is behind: it writes megabytes in this time.
const BEHIND_RETRY_MS: u64 = 50;

/// Codes on which official clients back off and try again are given for what passes by itself.
pub(super) fn append(error: &AppendError) -> ResponseCode {
    match error {
        AppendError::TooLarge { .. } => ResponseCode::MessageIllegal,
        AppendError::DiskFull { .. }
        | AppendError::Crowded { .. }
        | AppendError::NoRoom { .. }
        | AppendError::Poisoned(_) => ResponseCode::ServiceNotAvailable,
        AppendError::Behind { .. } => ResponseCode::SystemBusy,
    }
}

/// Why a send was refused.
pub(super) fn send(error: &SendError) -> ResponseCode {
    match error {
        SendError::Topic(error) => topic(error),
        SendError::NotWritable { .. } | SendError::Sealed { .. } | SendError::Leaving(_) => {
            ResponseCode::NoPermission
        }
        SendError::NoSuchQueue { .. } => ResponseCode::InvalidParameter,
        SendError::BodyTooLarge { .. }
        | SendError::BatchNotAllowed { .. }
        | SendError::BadBatch(_)
        | SendError::EmptyBatch
        | SendError::Encode(_)
        | SendError::Timer(_)
        | SendError::Type { .. }
        | SendError::Begin(BeginError::NoKey) => ResponseCode::MessageIllegal,
        SendError::Begin(BeginError::TooManyOpen { .. }) | SendError::Limited(_) => ResponseCode::SystemBusy,
        SendError::Retry(error) => retry(error),
        SendError::Append(error) => append(error),
        SendError::Queue(_) | SendError::Earlier(_) => ResponseCode::SystemError,
    }
}

/// After how many milliseconds a refused send may be tried again, where that helps.
pub(super) fn retry_ms(error: &SendError) -> Option<u64> {
    match error {
        SendError::Limited(limited) => Some(limited.retry_ms),
        SendError::Append(AppendError::Behind { .. }) => Some(BEHIND_RETRY_MS),
        _ => None,
    }
}

/// Why a timer message was not taken back.
fn recall(error: &RecallError) -> ResponseCode {
    match error {
        RecallError::BadHandle
        | RecallError::OtherBroker { .. }
        | RecallError::OtherTopic { .. }
        | RecallError::TimeOver { .. }
        | RecallError::TooFar { .. }
        | RecallError::Unknown { .. } => ResponseCode::IllegalOperation,
        RecallError::Busy | RecallError::TooMany { .. } => ResponseCode::SystemBusy,
        RecallError::Append(error) => append(error),
        RecallError::Poisoned(_) => ResponseCode::ServiceNotAvailable,
        RecallError::LookUp(_) => ResponseCode::SystemError,
    }
}

/// Why a reply was not acknowledged. What concerns its requester has Apache's code, whatever it is.
pub(super) fn reply(error: &ReplyError) -> ResponseCode {
    match error {
        ReplyError::NotTaken { why: CallError::Busy { .. }, .. } => ResponseCode::SystemBusy,
        ReplyError::NoRequester
        | ReplyError::NotOnline { .. }
        | ReplyError::NotTaken { .. }
        | ReplyError::Refused { .. } => ResponseCode::SystemError,
        ReplyError::Send(error) => send(error),
        ReplyError::Poisoned(_) => ResponseCode::ServiceNotAvailable,
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

/// Why an operator's request about a transaction was refused.
pub(super) fn operator(error: &OperatorError) -> ResponseCode {
    match error {
        OperatorError::Unknown(_) => ResponseCode::QueryNotFound,
        OperatorError::End(error) => end(error),
        OperatorError::Redrive(RedriveError::Already { .. } | RedriveError::Open { .. }) => {
            ResponseCode::IllegalOperation
        }
        OperatorError::Redrive(RedriveError::Poisoned(_)) => ResponseCode::ServiceNotAvailable,
        OperatorError::Redrive(RedriveError::Store(_)) => ResponseCode::SystemError,
    }
}

/// Why a topic cannot be used.
pub(super) fn topic(error: &TopicError) -> ResponseCode {
    match error {
        TopicError::Illegal { .. }
        | TopicError::System(_)
        | TopicError::Queues { .. }
        | TopicError::Perm { .. }
        | TopicError::Attribute { .. }
        | TopicError::NoMultiple { .. } => ResponseCode::InvalidParameter,
        TopicError::UnderWay { .. } => ResponseCode::IllegalOperation,
        TopicError::NoPermission(_) => ResponseCode::NoPermission,
        TopicError::NotExist(_) => ResponseCode::TopicNotExist,
        TopicError::Full { .. } => ResponseCode::SystemBusy,
        TopicError::Save(_) => ResponseCode::SystemError,
    }
}

/// Why the number of a topic's queues was not changed.
fn scale(error: &ScaleError) -> ResponseCode {
    match error {
        ScaleError::Topic(error) => topic(error),
        ScaleError::Offsets(error) => commit(error),
    }
}

/// Why a refused message was not taken back.
pub(super) fn retry(error: &SendBackError) -> ResponseCode {
    match error {
        SendBackError::GroupNotExist(_) => ResponseCode::SubscriptionGroupNotExist,
        SendBackError::Topic(error) => topic(error),
        SendBackError::Append(error) => append(error),
        SendBackError::Message(_)
        | SendBackError::NotDelivered { .. }
        | SendBackError::Queue(_)
        | SendBackError::Encode(_) => ResponseCode::SystemError,
    }
}

/// Why a subscription that came with a request cannot be served.
pub(super) fn filter(error: &FilterError) -> ResponseCode {
    match error {
        FilterError::Tags(_) | FilterError::Sql(_) | FilterError::Type(_) => {
            ResponseCode::SubscriptionParseFailed
        }
    }
}

/// Why what a group told by heartbeat cannot be served.
pub(super) fn wanted(error: &WantedError) -> ResponseCode {
    match error {
        WantedError::None(_) => ResponseCode::FilterDataNotExist,
        WantedError::NotThis(_) => ResponseCode::FilterDataNotLatest,
    }
}

/// Why nothing can be popped, acknowledged or put off. Official clients pop again a little later on POLLING_FULL.
pub(super) fn pop(error: &PopError) -> ResponseCode {
    match error {
        PopError::Full { .. } => ResponseCode::PollingFull,
        PopError::TooManyQueues { .. } => ResponseCode::SystemBusy,
        PopError::RetryName { .. } => ResponseCode::InvalidParameter,
        PopError::Append(error) => append(error),
        PopError::Poisoned(_) => ResponseCode::ServiceNotAvailable,
        PopError::Encode(_) | PopError::StateQueue(_) => ResponseCode::SystemError,
    }
}

/// Why an offset was not kept.
fn commit(error: &CommitError) -> ResponseCode {
    match error {
        CommitError::BeyondEnd { .. } => ResponseCode::InvalidParameter,
        CommitError::Full { .. } => ResponseCode::SystemBusy,
        CommitError::Append(error) => append(error),
        CommitError::Poisoned(_) => ResponseCode::ServiceNotAvailable,
        CommitError::Encode(_) | CommitError::StateQueue(_) => ResponseCode::SystemError,
    }
}

/// Why a client did not answer an operator's question.
pub(super) fn call(error: &CallError) -> ResponseCode {
    match error {
        CallError::Gone => ResponseCode::SystemError,
        CallError::Silent(_) => ResponseCode::ConsumeMsgTimeout,
        CallError::Busy { .. } => ResponseCode::SystemBusy,
    }
}

/// Why a group cannot be used.
fn group(error: &GroupError) -> ResponseCode {
    match error {
        GroupError::Illegal { .. }
        | GroupError::Attribute { .. }
        | GroupError::Retry { .. }
        | GroupError::Tier { .. } => ResponseCode::InvalidParameter,
        GroupError::NotExist(_) => ResponseCode::SubscriptionGroupNotExist,
        GroupError::System(_) | GroupError::WaitedFor { .. } | GroupError::NoBroadcastOffsets(_) => {
            ResponseCode::NoPermission
        }
        GroupError::Full { .. } | GroupError::Forbidden { .. } | GroupError::Broadcasters(_) => {
            ResponseCode::SystemBusy
        }
        GroupError::Save(_) => ResponseCode::SystemError,
    }
}

/// Why a group's way of taking messages was not set.
fn mode(error: &ModeError) -> ResponseCode {
    match error {
        ModeError::RetryTopic(_) => ResponseCode::NoPermission,
        ModeError::Unknown(_) | ModeError::Name { .. } => ResponseCode::InvalidParameter,
        ModeError::Full { .. } => ResponseCode::SystemBusy,
        ModeError::Save(_) => ResponseCode::SystemError,
    }
}

/// Why a broker did not go a step further off line.
fn drain(error: &DrainError) -> ResponseCode {
    match error {
        DrainError::Serves { .. } => ResponseCode::IllegalOperation,
        DrainError::TooEarly { .. } => ResponseCode::SystemBusy,
        DrainError::Save { .. } => ResponseCode::SystemError,
    }
}

/// Why a heartbeat was refused.
fn heartbeat(error: &HeartbeatError) -> ResponseCode {
    match error {
        HeartbeatError::Group(error) => group(error),
        HeartbeatError::RetryTopic(error) => topic(error),
        HeartbeatError::Register(_) => ResponseCode::SystemBusy,
        HeartbeatError::NoClientId | HeartbeatError::TooManyGroups { .. } => ResponseCode::InvalidParameter,
    }
}

/// Why a group cannot begin to consume.
fn start(error: &StartError) -> ResponseCode {
    match error {
        StartError::Read(_) => ResponseCode::SystemError,
        StartError::Commit(error) => commit(error),
    }
}

macro_rules! as_reply {
    ($($error:ty => $code:ident,)+) => {
        $(
            impl From<$error> for Reply {
                fn from(error: $error) -> Self {
                    Self::refused($code(&error), chain(&error))
                }
            }
        )+
    };
}

as_reply! {
    CommitError => commit,
    DrainError => drain,
    FilterError => filter,
    GroupError => group,
    HeartbeatError => heartbeat,
    RecallError => recall,
    ModeError => mode,
    PopError => pop,
    ScaleError => scale,
    StartError => start,
    TopicError => topic,
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;
    use crate::store::Poisoned;

    #[test]
    fn a_refused_commit_says_whether_to_try_again() {
        let code = |error: CommitError| Reply::from(error).code;
        assert_eq!(code(CommitError::Full { max: 1 }), 2);
        assert_eq!(code(CommitError::Append(AppendError::Behind { staged: 1, limit: 1 })), 2);
        assert_eq!(code(CommitError::Poisoned(Poisoned(Arc::new(io::Error::other("broken"))))), 14);
    }
}
