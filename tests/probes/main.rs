//! One guest by each probe: the agent with and without spot checks, and the stock calls.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test probes extents::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod births;
mod extents;
mod guestfsd;
mod wrong_tables;

virt_bmap_testutil::program!(harness);
