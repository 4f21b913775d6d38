//! Transactions for operators: list, end, put back. Listing and ending are requests of Gantry's own; Apache's
//! brokers refuse them.

use gantry_proto::remoting::body::Body;
use gantry_proto::remoting::body::transaction::{TransactionInfo, TransactionList};
use gantry_proto::remoting::codes::{RequestCode, ResponseCode};
use gantry_proto::remoting::header::{ExtWrite, OwnedCommand};
use gantry_proto::remoting::request::transaction::{
    EndTransactionByOperatorHeader, EndTransactionByOperatorResponse, ListTransactionsHeader,
    ResumeCheckHalfMessageHeader, outcome,
};

use super::Admin;
use crate::error::{Error, ErrorKind, Result};
use crate::transaction::Resolution;

/// Which transactions to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransactionKind {
    /// Those that wait for their end, oldest first.
    Open,
    /// Those that nobody ended: parked, newest first.
    Expired,
}

/// How a transaction stands after an operator asked to end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedTransaction {
    /// How it ended; [`Resolution::Unknown`] when it expired or the broker has forgotten.
    pub how: Resolution,
    /// Whether it was this request that ended it.
    pub changed: bool,
}

impl Admin {
    /// Transactions of all brokers, at most `max` of each, of one producer group if given.
    pub async fn transactions(
        &self,
        kind: TransactionKind,
        group: Option<&str>,
        max: u32,
    ) -> Result<Vec<TransactionInfo>> {
        let header = ListTransactionsHeader {
            producer_group: group.map(str::to_owned),
            expired: Some(kind == TransactionKind::Expired),
            max_num: Some(i32::try_from(max).unwrap_or(i32::MAX)),
        };
        let mut all = Vec::new();
        for (broker, link) in self.masters().await? {
            let answer = self.call(&link, RequestCode::ListTransactions, &header, &[]).await;
            let answer =
                answer.map_err(|error| error.during(format_args!("listing transactions of {broker}")))?;
            all.extend(TransactionList::from_json(&answer.body)?.transactions);
        }
        Ok(all)
    }

    /// Ends an open or expired transaction. `id` is the id its producer knows, or the offset message id of its half
    /// or parked message.
    pub async fn end_transaction(
        &self,
        id: impl Into<String>,
        resolution: Resolution,
    ) -> Result<EndedTransaction> {
        let commit_or_rollback = match resolution {
            Resolution::Commit => outcome::COMMIT,
            Resolution::Rollback => outcome::ROLLBACK,
            Resolution::Unknown => {
                return Err(Error::invalid("a transaction can be ended by commit or rollback only"));
            }
        };
        let header = EndTransactionByOperatorHeader { msg_id: id.into(), commit_or_rollback };
        let answer = self.ask_holder(RequestCode::EndTransactionByOperator, &header).await;
        let answer = answer.map_err(|error| error.during("ending a transaction"))?;
        let response: EndTransactionByOperatorResponse = answer.header()?;
        let how = match response.commit_or_rollback {
            outcome::COMMIT => Resolution::Commit,
            outcome::ROLLBACK => Resolution::Rollback,
            _ => Resolution::Unknown,
        };
        Ok(EndedTransaction { how, changed: response.changed == Some(true) })
    }

    /// Puts an expired transaction back: it is open again and its producer group is asked anew. `id` is the id its
    /// producer knows, or the offset message id of its parked message.
    pub async fn redrive_transaction(&self, id: impl Into<String>) -> Result<()> {
        let header = ResumeCheckHalfMessageHeader { topic: None, msg_id: Some(id.into()) };
        let answer = self.ask_holder(RequestCode::ResumeCheckHalfMessage, &header).await;
        answer.map(drop).map_err(|error| error.during("putting a transaction back"))
    }

    /// Asks the brokers one after the other until one knows what is meant.
    async fn ask_holder(
        &self,
        code: RequestCode,
        header: &(impl ExtWrite + ?Sized + Sync),
    ) -> Result<OwnedCommand> {
        let mut unknown = Error::new(ErrorKind::NoRoute, "no broker is registered with the name server");
        for (_, link) in self.masters().await? {
            match self.call(&link, code, header, &[]).await {
                Err(error) if error.code() == Some(ResponseCode::QueryNotFound) => unknown = error,
                other => return other,
            }
        }
        Err(unknown)
    }
}
