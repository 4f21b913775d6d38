//! RocketMQ's wire and record formats: bytes in, values out.
//!
//! No I/O, no async, no clock. Decoders take untrusted bytes: any input gives a value or a
//! [`error::DecodeError`], never a panic.

#![forbid(unsafe_code)]

pub mod error;
pub mod ids;
pub mod json;
pub mod names;
pub mod reader;
pub mod receipt;
pub mod record;
pub mod remoting;
pub mod sql;
pub mod trace;
