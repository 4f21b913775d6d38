//! Answers as the reading task makes them: those of the hot path without their header fields.

use bytes::Bytes;
use gantry_proto::remoting::header::{Command, OwnedCommand};
use gantry_proto::remoting::request::pull::PullMessageResponse;
use gantry_proto::remoting::request::send::SendMessageResponse;
use gantry_proto::remoting::request::{Header, HeaderError};

use super::Waiting;

/// An answer, in the form that the asker wants; the kind of it is part of the request's number.
pub(crate) trait Answer: Sized + Send {
    const KIND: i32;
    fn take(answer: AnyAnswer) -> Option<Self>;
}

/// Answers as the reading task makes them.
#[derive(Debug)]
pub(crate) enum AnyAnswer {
    Whole(OwnedCommand),
    Send(SendAnswer),
    Pull(PullAnswer),
}

/// Answer to a send.
#[derive(Debug)]
pub(crate) struct SendAnswer {
    pub code: i32,
    pub remark: Option<String>,
    pub offset_msg_id: String,
    pub transaction_id: Option<String>,
    pub recall_handle: Option<String>,
    pub queue_id: i32,
    pub queue_offset: i64,
}

/// Answer to a pull.
#[derive(Debug)]
pub(crate) struct PullAnswer {
    pub code: i32,
    pub remark: Option<String>,
    pub header: PullMessageResponse,
    pub body: Bytes,
}

impl Answer for OwnedCommand {
    const KIND: i32 = 0;
    fn take(answer: AnyAnswer) -> Option<Self> {
        if let AnyAnswer::Whole(answer) = answer { Some(answer) } else { None }
    }
}

impl Answer for SendAnswer {
    const KIND: i32 = 1;
    fn take(answer: AnyAnswer) -> Option<Self> {
        if let AnyAnswer::Send(answer) = answer { Some(answer) } else { None }
    }
}

impl Answer for PullAnswer {
    const KIND: i32 = 2;
    fn take(answer: AnyAnswer) -> Option<Self> {
        if let AnyAnswer::Pull(answer) = answer { Some(answer) } else { None }
    }
}

pub(super) fn send_answer(command: &Command<'_>) -> Waiting {
    match SendMessageResponse::decode(&command.ext) {
        Ok(header) => Waiting::Answered(AnyAnswer::Send(SendAnswer {
            code: command.code,
            remark: command.remark.as_deref().map(str::to_owned),
            offset_msg_id: header.msg_id.to_owned(),
            transaction_id: header.transaction_id.map(str::to_owned),
            recall_handle: header.recall_handle.map(str::to_owned),
            queue_id: header.queue_id,
            queue_offset: header.queue_offset,
        })),
        Err(error) => Waiting::Unreadable(error.into()),
    }
}

pub(super) fn pull_answer(
    code: i32,
    remark: Option<String>,
    header: Result<PullMessageResponse, HeaderError>,
    body: Bytes,
) -> Waiting {
    match header {
        Ok(header) => Waiting::Answered(AnyAnswer::Pull(PullAnswer { code, remark, header, body })),
        Err(error) => Waiting::Unreadable(error.into()),
    }
}
