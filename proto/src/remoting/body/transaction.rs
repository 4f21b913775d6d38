//! Transactions as operators see them: code 60001, Gantry's own.

use super::{body, texts};

texts! {
    /// Where a transaction stands.
    TransactionState {
        Open = "OPEN",
        /// Its end is being stored.
        Ending = "ENDING",
        /// Nobody ended it: it is parked.
        Expired = "EXPIRED",
        /// It was parked and is open again, as another half message.
        Redriven = "REDRIVEN",
    }
}

body! {
    /// Answer to code 60001.
    #[derive(Eq, Default)]
    TransactionList {
        transactions: Vec<TransactionInfo>,
    }
}

body! {
    /// One transaction.
    #[derive(Eq, Default)]
    TransactionInfo {
        /// The message id that its producer knows.
        transaction_id: String,
        /// Where its half or parked message is stored.
        offset_msg_id: String,
        state: TransactionState,
        producer_group: String,
        /// Where the message is to go.
        topic: String,
        /// When its producer made it; milliseconds since the epoch.
        born_timestamp: i64,
        /// When the half or parked message was stored; milliseconds since the epoch.
        store_timestamp: i64,
        /// How often its producer group was asked; 0 for a parked one.
        checks: i64,
        /// When the group is asked next; milliseconds since the epoch. None while it is being asked, and for a
        /// parked one.
        next_check_timestamp: Option<i64>,
    }
}
