//! Fuzzes the NBD server's negotiation phase: `cargo +nightly fuzz run negotiation`.
#![no_main]

#[path = "../entry.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| entry::negotiation(data));
