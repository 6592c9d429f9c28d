//! The command `virt-bmap-rs`.
fn main() {}
