//! Brokers that go off line, as operators see them: code 60003, Gantry's own.

use super::{body, texts};

texts! {
    /// Where a broker is between serving and gone.
    DrainPhase {
        Serving = "SERVING",
        /// Routes say that it takes no messages; it still does.
        Announced = "ANNOUNCED",
        /// It takes no messages of producers.
        Sealed = "SEALED",
        /// No route names it.
        Left = "LEFT",
    }
}

body! {
    /// Answer to code 60003: how far a broker is, and what still holds it.
    #[derive(Eq, Default)]
    DrainState {
        broker_name: String,
        phase: DrainPhase,
        /// When it began to drain, left, or was taken back; milliseconds since the epoch, 0 for never.
        since: i64,
        /// When it stops to take messages, or did; milliseconds since the epoch. None while it serves.
        sealed_at: Option<i64>,
        /// Groups with messages that they have not consumed yet, the furthest behind first.
        groups: Vec<DrainGroup>,
        /// Groups that are behind beyond those that are listed.
        more_groups: i64,
        /// Messages that wait for their time.
        waiting: i64,
        /// Transactions without an end.
        transactions: i64,
        /// The name servers that it registers with.
        name_servers: Vec<NameServerState>,
    }
}

body! {
    /// A group that is behind in a topic.
    #[derive(Eq, Default)]
    DrainGroup {
        group: String,
        topic: String,
        /// Messages it has not consumed.
        behind: i64,
        /// Members that are online.
        members: i64,
    }
}

body! {
    /// How a broker stands with a name server.
    #[derive(Eq, Default)]
    NameServerState {
        /// `host:port`, as the broker was told.
        address: String,
        /// A sentence.
        state: String,
        /// Since when; milliseconds since the epoch.
        since: i64,
    }
}
