//! Fuzzes the sections, tables and chunks of an EnCase image: `cargo +nightly fuzz run ewf`.
#![no_main]

#[path = "../archives.rs"]
mod archives;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    archives::ewf(data);
});
