//! See `gantry_fuzz::frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gantry_fuzz::frames::check(input));
