//! Tests that need an appliance. They make guests, map them, and compare the maps with what other
//! programs report.
//!
//! Each test starts one or more emulated machines. `cargo test --test appliance update::` runs the
//! tests of one module, and `make check-appliance` all, two at a time.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod bad_input;
mod boot;
mod changed;
mod documentation;
mod dynamic_disks;
mod encrypted;
mod extents;
mod fleet;
mod formats;
mod guest;
mod guestfsd;
mod layers;
mod metadata;
mod metadata_free;
mod metadata_more;
mod operations;
mod oracles;
mod outputs;
mod own;
mod questions;
mod redundancy;
mod signals;
mod update;
mod user;
mod with_metadata;

virt_bmap_testutil::program!(harness);
