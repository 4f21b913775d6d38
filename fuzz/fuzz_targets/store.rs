//! See `gantry_fuzz::store`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gantry_fuzz::store::check(input));
