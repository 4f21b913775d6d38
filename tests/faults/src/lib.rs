//! Faults under an unmodified broker: a library to preload (`LD_PRELOAD`) that stands between the broker and
//! the system and lets its disk and clock fail when a test says so. `gantry_tests::faults` is how tests say it.
//!
//! ```text
//! gantry ──▶ hooks ──▶ ops ──▶ rules (control), room (space), journal (world) ──▶ sys: raw system calls
//! ```
//!
//! - Without `GANTRY_FAULTS` in the environment, and for files outside of the store, everything passes.
//! - Nothing here allocates, and nothing panics: a hook may be called from anywhere, while the process is
//!   loaded as well.
//! - What the broker does through maps or system calls of its own is not seen. It writes no maps, and calls the
//!   C library for everything else; a test compares a store with its journal, byte by byte.
//!
//! Taking a function of the C library over takes `unsafe`; beside `broker/src/store/disk.rs` this is the only
//! crate with it, in `sys.rs` and `hooks.rs`. It is never linked into anything.

mod control;
pub mod format;
#[allow(unsafe_code)]
mod hooks;
mod ops;
mod paths;
mod space;
#[allow(unsafe_code)]
mod sys;
mod world;

/// Called by the loader, before `main`.
#[allow(unsafe_code)]
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = {
    extern "C" fn begin() {
        world::begin();
    }
    begin
};
