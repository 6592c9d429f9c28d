//! Guests in images of every format, on servers, and in files that hold disks in other ways.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test images formats::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod formats;
mod sources;

virt_bmap_testutil::program!(harness);
