//! Maps with `--metadata`: what is in use has a name, and what is free is free.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test metadata metadata_more::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod directories;
mod metadata;
mod metadata_free;
mod metadata_more;
mod with_metadata;

virt_bmap_testutil::program!(harness);
