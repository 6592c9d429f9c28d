//! Runs that are ended by a signal.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test signals signals::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod signals;

virt_bmap_testutil::program!(harness);
