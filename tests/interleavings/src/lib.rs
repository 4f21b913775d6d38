//! The broker's store and its waiting pulls once more, from the same files, with `crate::sync` being shuttle's:
//! every use of a lock, an atomic, a condition variable or a thread through it is a place where the checker may
//! let another thread go on. `tests/` holds what is checked.
//!
//! Everything there is sequentially consistent: what a processor reorders is not found here.

#![allow(dead_code, unreachable_pub, reason = "the files say what the broker needs of them")]

#[path = "../../../broker/src/clock.rs"]
pub mod clock;
#[path = "../../../broker/src/store/mod.rs"]
pub mod store;

/// The parts of `deliver` that meet dispatch.
#[path = "../../../broker/src/deliver"]
pub mod deliver {
    pub mod filter;
    pub mod polls;
}

/// The checker's types in the place of `std`'s.
pub mod sync {
    pub use shuttle::sync::{Condvar, Mutex, MutexGuard, atomic};
    pub use shuttle::thread;
}

/// What the store's own tests, which are not run from here, need to compile.
#[cfg(test)]
mod fixture {
    pub fn cases(cases: u32) -> proptest::test_runner::Config {
        proptest::test_runner::Config { cases, ..Default::default() }
    }
}
