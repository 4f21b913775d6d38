//! The broker.

pub mod clock;
pub mod config;
#[cfg(test)]
mod fixture;
pub mod groups;
pub mod metrics;
pub mod saved;
pub mod shutdown;
pub mod state;
pub mod store;
