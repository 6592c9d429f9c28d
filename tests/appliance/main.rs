//! The program's own appliance: when it is built, when it is used, and when it is not. And which
//! qemu runs an appliance.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test appliance own::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod own;
mod qemu;

virt_bmap_testutil::program!(harness);
