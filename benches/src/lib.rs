//! What a comparison of brokers is made of: the brokers, the load that all of them get, and what the kernel says
//! of their processes. The program that compares is `bin/compare`.
//!
//! ```text
//! bin/compare ─▶ peer: Gantry, Apache RocketMQ, …     start, run a load, kill
//!                  └▶ load: what is asked of a load generator, and what it reports
//!                process: /proc          store: bytes on the disk          stop: Ctrl-C
//! ```
//!
//! **A new peer** is a file in `peer/` that implements [`peer::Peer`] and [`peer::Server`], and a variant of
//! [`peer::Kind`]. Its load generator is a process of its own that prints what [`load::Measured`] describes.

pub mod failure;
pub mod load;
pub mod peer;
pub mod process;
pub mod stop;
pub mod store;
