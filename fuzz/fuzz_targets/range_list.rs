//! Fuzzes all lists of ranges: `cargo +nightly fuzz run range_list`.
//!
//! The first byte chooses the format, or that it is recognised. The rest is the list, and for an
//! index of a backup also the earlier one.
#![no_main]

use virt_bmap_map::rangelist::{Kind, RangeListOptions, read};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&choice, list)) = data.split_first() else { return };
    let kind = Kind::ALL.get(usize::from(choice)).copied();
    let mut options = RangeListOptions { kind, ..RangeListOptions::default() };
    match kind {
        Some(Kind::ZfsEvents) => options.block_size = Some(8192),
        Some(Kind::ProxmoxIndex) => options.older = Some(list.iter().rev().chain(list).copied().collect()),
        _ => {}
    }
    if let Ok(list) = read(list, &options) {
        assert!(list.spans.end() <= list.end && list.counted <= list.entries);
    }
});
