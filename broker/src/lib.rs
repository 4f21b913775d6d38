//! The broker.

pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod deliver;
#[cfg(test)]
mod fixture;
pub mod flow;
pub mod groups;
pub mod hash;
pub mod join;
pub mod metrics;
pub mod publish;
pub mod remoting;
pub mod routes;
pub mod saved;
pub mod shutdown;
pub mod state;
pub mod store;
pub mod sync;
pub mod timer;
pub mod topics;
pub mod transaction;
