//! Fuzzes the NBD server's transmission phase: `cargo +nightly fuzz run transmission`.
#![no_main]

#[path = "../entry.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| entry::transmission(data));
