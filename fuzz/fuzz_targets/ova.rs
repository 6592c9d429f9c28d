//! Fuzzes the archive and the description of an appliance: `cargo +nightly fuzz run ova`.
#![no_main]

#[path = "../archives.rs"]
mod archives;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    archives::ova(data);
});
