//! Maps with `--metadata`, and files that their filesystem encrypts.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test metadata encrypted::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod directories;
mod encrypted;
mod metadata;
mod metadata_free;
mod metadata_more;
mod ntfs;
mod orphans;
mod owners;
mod packed;
mod windows;
mod with_metadata;

virt_bmap_testutil::program!(harness);
