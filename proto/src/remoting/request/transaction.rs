//! Transactions: codes 37 (end), 39 (check), 323 (check again).

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
