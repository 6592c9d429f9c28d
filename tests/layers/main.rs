//! Volumes, arrays, copies and parity, and extents that are verified at their ends.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test layers dynamic_disks::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod dynamic_disks;
mod extents;
mod layers;
mod nested;
mod redundancy;
mod unlock;

virt_bmap_testutil::program!(harness);
