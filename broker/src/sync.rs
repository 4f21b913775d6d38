//! The types with which the store's threads and the waiting pulls meet: `std`'s. `tests/interleavings` compiles the
//! same files with a checker's types in this place. Locks that nobody holds while using one of these may be `std`'s
//! without coming from here.

pub use std::sync::{Condvar, Mutex, MutexGuard, atomic};
pub use std::thread;
