//! See `gantry_fuzz::json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gantry_fuzz::json::check(input));
