//! Brokers that go off line: code 60003, which Apache's brokers do not have.

use super::header;

/// What a [`DrainBrokerHeader`] can ask for.
pub mod action {
    /// To go: no messages are taken once the grace is over.
    pub const BEGIN: &str = "begin";
    /// To leave the routes.
    pub const LEAVE: &str = "leave";
    /// To serve again.
    pub const RESUME: &str = "resume";
}

header! {
    /// Code 60003, Gantry's own: takes a broker off line step by step, or only tells how far it is. The body of the answer is a
    /// [`DrainState`](super::super::body::drain::DrainState).
    DrainBrokerHeader {
        /// See [`action`]; none only tells.
        action: Option<String> = "action",
        /// How long messages are still taken after routes say otherwise, in milliseconds; without it, as the broker thinks.
        grace_millis: Option<i64> = "graceMillis",
    }
}
