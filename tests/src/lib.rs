//! What the system tests share.

pub mod apache;
pub mod vectors;
