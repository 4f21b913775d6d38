//! See `gantry_fuzz::sql`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gantry_fuzz::sql::check(input));
