//! Fuzzes the parser of the inventory of devices: `cargo +nightly fuzz run device_inventory`.
#![no_main]

#[path = "../protocol.rs"]
mod protocol;

libfuzzer_sys::fuzz_target!(|data: &[u8]| protocol::device_inventory(data));
