//! Saved states of the program's own appliance.
//!
//! These tests need an appliance, see docs/testing.md.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod saved;

virt_bmap_testutil::program!(harness);
