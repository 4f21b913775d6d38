//! What no decent client or disk does: bytes that are no frames, requests that make no sense, stores that are
//! damaged, locked, full or from the future. Each gets a clear answer, costs nothing that was acknowledged, and
//! the broker serves the next client as if nothing had been.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod damaged;
mod filters;
mod frames;
mod full;
mod fuzz;
mod limits;
mod normal;
mod offsets;
mod requests;
mod stores;
mod wire;
