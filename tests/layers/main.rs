//! Volumes and arrays in layers, complete and in a bad state.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test layers layers::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod layers;

virt_bmap_testutil::program!(harness);
