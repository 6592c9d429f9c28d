//! Fuzzes records and run lists of NTFS: `cargo +nightly fuzz run ntfs`.
#![no_main]

#[path = "../ntfs.rs"]
mod ntfs;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    ntfs::volume(data);
});
