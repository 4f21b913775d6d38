//! The remoting edge: frames of RocketMQ's own protocol on TCP.
//!
//! A handler is a function `(services, request, caller) -> Handled` in the file of its family; it
//! decodes, calls one service function and encodes.

pub mod context;
pub mod query;
pub mod route;
