//! What the system tests share.

pub mod apache;
pub mod checker;
pub mod faults;
pub mod harness;
pub mod java;
pub mod lab;
pub mod ports;
pub mod vectors;
pub mod wire;
pub mod workload;
