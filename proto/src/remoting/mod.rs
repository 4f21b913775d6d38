//! RocketMQ's remoting protocol: one TCP connection, requests and replies in both directions.
//!
//! [`frame`] cuts the stream; [`header`] reads and writes a command; [`request`] gives the header
//! fields of each family their types; [`body`] holds the JSON bodies; [`codes`] the numbers.

pub mod body;
pub mod codes;
pub mod frame;
pub mod header;
pub mod request;

mod encode;
mod ext;
#[cfg(test)]
mod vectors;
