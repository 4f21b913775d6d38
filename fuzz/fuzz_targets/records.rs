//! See `gantry_fuzz::records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gantry_fuzz::records::check(input));
