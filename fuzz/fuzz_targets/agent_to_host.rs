//! Fuzzes what the agent sends to the host: `cargo +nightly fuzz run agent_to_host`.
#![no_main]

#[path = "../protocol.rs"]
mod protocol;

libfuzzer_sys::fuzz_target!(|data: &[u8]| protocol::agent_to_host(data));
