//! The broker.

pub mod clock;
pub mod config;
pub mod shutdown;
pub mod state;
pub mod store;
