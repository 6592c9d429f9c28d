//! Partition tables in layers, sectors that Linux does not expect, and encrypted devices.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test nested unlock::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod tables;
mod unlock;

virt_bmap_testutil::program!(harness);
