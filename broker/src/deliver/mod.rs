//! How messages reach consumers.

pub mod filter;
pub mod polls;
pub mod pull;
pub mod retry;
