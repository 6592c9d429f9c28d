//! Blocks whose owner a driver does not say, with `--metadata`, and files that their filesystem
//! encrypts.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test owners ntfs::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

#[path = "../metadata/with_metadata.rs"]
mod with_metadata;

mod disks;
mod encrypted;
mod ntfs;
mod orphans;
mod owners;
mod packed;
mod windows;

virt_bmap_testutil::program!(harness);
