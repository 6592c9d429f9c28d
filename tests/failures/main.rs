//! What becomes of a run that cannot succeed: bad inputs, helpers that die.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test failures bad_input::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod bad_input;
mod mounts;
mod signatures;

virt_bmap_testutil::program!(harness);
