//! See `gantry_fuzz::connection`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gantry_fuzz::connection::check(input));
