//! The broker.

pub mod clock;
pub mod shutdown;
