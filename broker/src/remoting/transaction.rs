//! Ends of transactions: code 37; and what operators ask: 323, checking a parked half again, 60001 and 60002,
//! listing and ending.

use std::net::SocketAddr;
use std::sync::Arc;

use gantry_proto::ids::{Millis, PhyOffset, QueueOffset};
use gantry_proto::names::GroupName;
use gantry_proto::record::OffsetMsgId;
use gantry_proto::remoting::body::Body as _;
use gantry_proto::remoting::body::transaction::{TransactionInfo, TransactionList, TransactionState};
use gantry_proto::remoting::codes::ResponseCode;
use gantry_proto::remoting::frame::Serialize;
use gantry_proto::remoting::header::{Command, Head, OwnedCommand};
use gantry_proto::remoting::request::Header as _;
use gantry_proto::remoting::request::transaction::{
    EndTransactionByOperatorHeader, EndTransactionByOperatorResponse, EndTransactionHeader,
    ListTransactionsHeader, ResumeCheckHalfMessageHeader, outcome,
};

use super::connection::Connection;
use super::context::{Caller, Handled, Reply, Services, chain};
use super::refusal;
use crate::transaction::{
    EndError, EndRequest, EndSource, Ended, Listed, Outcome, Parked, Resolution, State, Transactions,
};

/// Most transactions of one list.
const LIST_MAX: usize = 10_000;

/// The end of one transaction, as it came; ends of one read are stored together.
#[derive(Debug)]
pub(super) struct PendingEnd {
    request: EndRequest,
    opaque: i32,
    oneway: bool,
    serialize: Serialize,
}

/// Takes an end. It is stored with the others of the same read; one whose half is not taken in yet runs
/// beside the connection.
pub(super) fn handle_end(connection: &mut Connection, command: &Command<'_>, serialize: Serialize) {
    match decode(command) {
        Ok(Some(request)) => {
            connection.ends.push(PendingEnd {
                request,
                opaque: command.opaque,
                oneway: command.is_oneway(),
                serialize,
            });
        }
        // "Unknown": the check will ask.
        Ok(None) => connection.respond(command, serialize, Reply::ok().into()),
        Err(why) => {
            tracing::warn!(remote = %connection.caller.remote, why, "an end of a transaction was refused");
            connection.respond(command, serialize, Reply::refused(ResponseCode::SystemError, why).into());
        }
    }
}

fn decode(command: &Command<'_>) -> Result<Option<EndRequest>, String> {
    let header = EndTransactionHeader::decode(&command.ext).map_err(|error| error.to_string())?;
    let resolution = match header.commit_or_rollback {
        outcome::COMMIT => Resolution::Commit,
        outcome::ROLLBACK => Resolution::Rollback,
        outcome::UNKNOWN => return Ok(None),
        other => {
            return Err(format!(
                "commitOrRollback is {other}, expected 8 (commit), 12 (rollback) or 0 (unknown)"
            ));
        }
    };
    let group = GroupName::parse(header.producer_group).map_err(|error| error.to_string())?;
    let half_queue_offset = header.tran_state_table_offset.and_then(QueueOffset::from_wire);
    let half_phy = header.commit_log_offset.and_then(PhyOffset::from_wire);
    let (Some(half_queue_offset), Some(half_phy)) = (half_queue_offset, half_phy) else {
        return Err("tranStateTableOffset and commitLogOffset must name the half message: pass on what its send returned".to_owned());
    };
    let source =
        if header.from_transaction_check == Some(true) { EndSource::Check } else { EndSource::Producer };
    Ok(Some(EndRequest { group, half_queue_offset, half_phy, resolution, source }))
}

/// Stores the ends gathered so far if a message may need to know of them: one that is sent again after its
/// rollback is a new one.
pub(super) fn stage_rollbacks(connection: &mut Connection) {
    if connection.ends.iter().any(|end| end.request.resolution == Resolution::Rollback) {
        stage(connection);
    }
}

/// Stores the ends gathered from one read.
pub(super) fn stage(connection: &mut Connection) {
    let pending = std::mem::take(&mut connection.ends);
    let requests: Vec<EndRequest> = pending.iter().map(|end| end.request.clone()).collect();
    let staged = connection.services.transactions.stage_ends(&requests);
    connection.appended |= staged.end.is_some();
    for (end, answer) in pending.into_iter().zip(staged.answers) {
        match answer {
            // Stored or on its way, but not taken in yet: wait for it beside the connection.
            Err(EndError::NotYet { .. } | EndError::NoSuchHalf { .. }) => later(connection, end),
            answer => give(connection, &end, answer, staged.end),
        }
    }
}

fn later(connection: &mut Connection, end: PendingEnd) {
    let services = Arc::clone(&connection.services);
    let command = Command {
        opaque: end.opaque,
        flag: if end.oneway { gantry_proto::remoting::header::FLAG_ONEWAY } else { 0 },
        ..Command::default()
    };
    let remote = connection.caller.remote;
    let work = async move {
        let answer = services.transactions.end(&end.request).await;
        let reply = reply(&answer);
        if reply.code != 0 {
            tracing::warn!(%remote, why = reply.remark, "an end of a transaction was refused");
        }
        reply
    };
    connection.respond(&command, end.serialize, Handled::later(work));
}

fn give(
    connection: &mut Connection,
    end: &PendingEnd,
    answer: Result<Ended, EndError>,
    settled: Option<PhyOffset>,
) {
    let reply = reply(&answer);
    if reply.code != 0 {
        tracing::warn!(remote = %connection.caller.remote, why = reply.remark, "an end of a transaction was refused");
    }
    if end.oneway {
        return;
    }
    let head = Head { remark: reply.remark.as_deref(), ..Head::reply(reply.code, end.opaque) };
    match (answer, settled) {
        (Ok(Ended::Now(_)), Some(settled)) => connection.hold(settled, end.serialize, &head, &(), &[]),
        _ => connection.answer(end.serialize, &head, &(), &[]),
    }
}

fn reply(answer: &Result<Ended, EndError>) -> Reply {
    let told = |outcome: Outcome, how: &str| Reply {
        remark: Some(format!("the transaction {how} {outcome:?}")),
        ..Reply::ok()
    };
    match answer {
        Ok(Ended::Now(_)) => Reply::ok(),
        Ok(Ended::Before(Some(outcome))) => told(*outcome, "was ended before:"),
        Ok(Ended::Before(None)) => {
            Reply { remark: Some("the transaction was ended before".to_owned()), ..Reply::ok() }
        }
        Ok(Ended::Underway(outcome)) => told(*outcome, "is just being ended:"),
        Err(error) => Reply::refused(refusal::end(error), chain(error)),
    }
}

/// Code 323: checks a half again that had run out of checks.
pub(super) fn handle_resume(services: &Arc<Services>, request: &OwnedCommand, _: &Caller) -> Handled {
    let header: ResumeCheckHalfMessageHeader = match request.header() {
        Ok(header) => header,
        Err(error) => return Reply::refused(ResponseCode::SystemError, error.to_string()).into(),
    };
    let Some(msg_id) = header.msg_id else {
        return Reply::refused(ResponseCode::SystemError, "msgId is missing: name the parked message").into();
    };
    let services = Arc::clone(services);
    Handled::later(async move {
        match services.transactions.redrive(&msg_id).await {
            Ok(_) => Reply::ok(),
            Err(error) => Reply::refused(refusal::operator(&error), chain(&error)),
        }
    })
}

/// Code 60001: the open transactions, or the expired ones.
pub(super) fn handle_list(services: &Arc<Services>, request: &OwnedCommand, caller: &Caller) -> Handled {
    let header: ListTransactionsHeader = match request.header() {
        Ok(header) => header,
        Err(error) => return Reply::from(error).into(),
    };
    let limit = header.max_num.and_then(|max| usize::try_from(max).ok()).unwrap_or(LIST_MAX).min(LIST_MAX);
    let (services, host) = (Arc::clone(services), caller.local);
    Handled::later(async move {
        let group = header.producer_group;
        // Parked ones are read from the log, which may mean from the disk.
        let listing = tokio::task::spawn_blocking(move || {
            list(&services.transactions, group.as_deref(), header.expired == Some(true), limit, host)
        });
        match listing.await {
            Ok(transactions) => Reply::body(TransactionList { transactions }.to_json()),
            Err(error) => {
                Reply::refused(ResponseCode::SystemError, format!("listing was cut off, try again: {error}"))
            }
        }
    })
}

fn list(
    transactions: &Transactions,
    group: Option<&str>,
    expired: bool,
    limit: usize,
    host: SocketAddr,
) -> Vec<TransactionInfo> {
    if expired {
        transactions.list_parked(group, limit).into_iter().map(parked_info).collect()
    } else {
        transactions.list(group, limit).into_iter().map(|listed| open_info(listed, host)).collect()
    }
}

fn open_info(Listed { half, state, next_check }: Listed, host: SocketAddr) -> TransactionInfo {
    TransactionInfo {
        transaction_id: half.key.to_string(),
        offset_msg_id: OffsetMsgId::new(host, half.at).to_string(),
        state: match state {
            State::Open => TransactionState::Open,
            State::Ending(_) => TransactionState::Ending,
        },
        producer_group: half.group.as_str().to_owned(),
        topic: half.topic.as_str().to_owned(),
        born_timestamp: half.born.get(),
        store_timestamp: half.stored.get(),
        checks: i64::from(half.checks),
        next_check_timestamp: next_check.map(Millis::get),
    }
}

fn parked_info(parked: Parked) -> TransactionInfo {
    TransactionInfo {
        transaction_id: parked.key,
        offset_msg_id: parked.msg_id,
        state: match parked.redriven {
            None => TransactionState::Expired,
            Some(_) => TransactionState::Redriven,
        },
        producer_group: parked.group.as_str().to_owned(),
        topic: parked.topic,
        born_timestamp: parked.born.get(),
        store_timestamp: parked.parked.get(),
        checks: 0,
        next_check_timestamp: None,
    }
}

/// Code 60002: an operator ends a transaction.
pub(super) fn handle_operator_end(services: &Arc<Services>, request: &OwnedCommand, _: &Caller) -> Handled {
    let header: EndTransactionByOperatorHeader = match request.header() {
        Ok(header) => header,
        Err(error) => return Reply::from(error).into(),
    };
    let resolution = match header.commit_or_rollback {
        outcome::COMMIT => Resolution::Commit,
        outcome::ROLLBACK => Resolution::Rollback,
        other => {
            let why = format!("commitOrRollback is {other}, expected 8 (commit) or 12 (rollback)");
            return Reply::refused(ResponseCode::InvalidParameter, why).into();
        }
    };
    let services = Arc::clone(services);
    Handled::later(async move {
        match services.transactions.decide(&header.msg_id, resolution).await {
            Ok(ended) => {
                tracing::info!(id = header.msg_id, ?resolution, ?ended, "an operator ended a transaction");
                Reply::header(&stands(ended))
            }
            Err(error) => Reply::refused(refusal::operator(&error), chain(&error)),
        }
    })
}

fn stands(ended: Ended) -> EndTransactionByOperatorResponse {
    let (how, changed) = match ended {
        Ended::Now(outcome) => (Some(outcome), true),
        Ended::Before(outcome) => (outcome, false),
        Ended::Underway(outcome) => (Some(outcome), false),
    };
    let commit_or_rollback = match how {
        Some(Outcome::Committed) => outcome::COMMIT,
        Some(Outcome::RolledBack) => outcome::ROLLBACK,
        Some(Outcome::Expired) | None => outcome::UNKNOWN,
    };
    EndTransactionByOperatorResponse { commit_or_rollback, changed: Some(changed) }
}
