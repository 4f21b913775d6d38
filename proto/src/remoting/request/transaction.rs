//! Transactions: codes 37 (end), 39 (check), 323 (check again); and Gantry's own for operators, 60001 (list) and
//! 60002 (end), which Apache's brokers do not have.

use super::header;

/// Values of [`EndTransactionHeader::commit_or_rollback`].
pub mod outcome {
    /// The producer does not know yet.
    pub const UNKNOWN: i32 = 0;
    /// Deliver the message.
    pub const COMMIT: i32 = 8;
    /// Drop it.
    pub const ROLLBACK: i32 = 12;
}

header! {
    /// Code 37: a producer ends its transaction.
    EndTransactionHeader<'a> {
        /// Go clients leave it out.
        topic: Option<&'a str> = "topic",
        producer_group: &'a str = "producerGroup",
        /// Offset of the half message in its queue.
        tran_state_table_offset: Option<i64> = "tranStateTableOffset",
        /// Offset of the half message in the commit log.
        commit_log_offset: Option<i64> = "commitLogOffset",
        /// See [`outcome`].
        commit_or_rollback: i32 = "commitOrRollback",
        /// It answers a check.
        from_transaction_check: Option<bool> = "fromTransactionCheck",
        msg_id: &'a str = "msgId",
        transaction_id: Option<&'a str> = "transactionId",
        broker_name: Option<&'a str> = "bname",
    }
}

header! {
    /// Code 39, broker to producer: what became of this transaction? The body is the half message.
    CheckTransactionStateHeader {
        tran_state_table_offset: i64 = "tranStateTableOffset",
        commit_log_offset: i64 = "commitLogOffset",
        /// The message's UNIQ_KEY.
        msg_id: Option<String> = "msgId",
        transaction_id: Option<String> = "transactionId",
        offset_msg_id: Option<String> = "offsetMsgId",
        topic: Option<String> = "topic",
        broker_name: Option<String> = "bname",
    }
}

header! {
    /// Code 323: check a message again that had run out of checks.
    ResumeCheckHalfMessageHeader {
        topic: Option<String> = "topic",
        /// Offset message id.
        msg_id: Option<String> = "msgId",
    }
}

header! {
    /// Code 60001, Gantry's own: list transactions. The body of the answer is a
    /// [`TransactionList`](super::super::body::transaction::TransactionList).
    ListTransactionsHeader {
        /// Only those of this producer group.
        producer_group: Option<String> = "producerGroup",
        /// Those that nobody ended, newest first, instead of the open ones, oldest first.
        expired: Option<bool> = "expired",
        /// Most to list; the broker has a limit of its own.
        max_num: Option<i32> = "maxNum",
    }
}

header! {
    /// Code 60002, Gantry's own: an operator ends an open or expired transaction.
    EndTransactionByOperatorHeader {
        /// The id its producer knows, or the offset message id of its half or parked message.
        msg_id: String = "msgId",
        /// See [`outcome`]; commit or rollback.
        commit_or_rollback: i32 = "commitOrRollback",
    }
}

header! {
    /// Answer to code 60002: how the transaction stands.
    EndTransactionByOperatorResponse {
        /// See [`outcome`]; unknown when the broker has forgotten it or the transaction expired.
        commit_or_rollback: i32 = "commitOrRollback",
        /// Whether it was this request that ended it.
        changed: Option<bool> = "changed",
    }
}
