//! How messages reach consumers.

pub mod backlog;
pub mod expressions;
pub mod filter;
pub mod fleeting;
pub mod polls;
#[cfg(test)]
mod polls_tests;
pub mod pop;
pub mod pull;
pub mod retry;
pub mod scaling;
