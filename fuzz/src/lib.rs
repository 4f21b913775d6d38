//! What the fuzz targets check, one module a target: `check` panics when a promise is broken.
//!
//! `fuzz/run` builds and runs them; `seeds/NAME` holds what target NAME starts from.

use std::alloc::System;
use std::path::PathBuf;

use cap::Cap;

pub mod connection;
pub mod cursor;
pub mod frames;
pub mod json;
pub mod records;
pub mod sql;
pub mod store;

/// Bytes that one input may have allocated at a time; more is a crash.
#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, 128 * 1024 * 1024);

/// A fresh directory in memory, where the machine has one: nothing here is about the disk's speed.
fn fresh_dir() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
    tempfile::tempdir_in(place).expect("a temporary directory")
}

/// Runs `future` on this thread; timers and sockets work.
fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}
