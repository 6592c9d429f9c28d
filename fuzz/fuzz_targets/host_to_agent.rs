//! Fuzzes what the host sends to the agent: `cargo +nightly fuzz run host_to_agent`.
#![no_main]

#[path = "../protocol.rs"]
mod protocol;

libfuzzer_sys::fuzz_target!(|data: &[u8]| protocol::host_to_agent(data));
