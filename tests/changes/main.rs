//! What changed in a guest, questions about it, updates of maps, and fleets.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test changes changed::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod changed;
mod fleet;
mod questions;
mod update;

virt_bmap_testutil::program!(harness);
