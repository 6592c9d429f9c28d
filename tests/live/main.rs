//! Guests that run while they are mapped: a qemu with a monitor, and domains of libvirt.
//!
//! Some of these tests need an appliance, see docs/testing.md. `cargo test --test live monitor::`
//! runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod domains;
mod host;
mod machine;
mod monitor;

virt_bmap_testutil::program!(harness);
