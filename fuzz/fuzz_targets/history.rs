//! Fuzzes the log of a recorded history: `cargo +nightly fuzz run history`.
#![no_main]

#[path = "../history.rs"]
mod history;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    history::log(data);
});
