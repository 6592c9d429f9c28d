//! Inputs that the fuzzer found worth keeping.

#[path = "../../../fuzz/entry.rs"]
mod entry;

use virt_bmap_testutil::corpus::replay;

#[test]
fn negotiation() {
    replay("negotiation", entry::negotiation);
}

#[test]
fn transmission() {
    replay("transmission", entry::transmission);
}
