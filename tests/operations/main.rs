//! The operations of guests that boot from a traced disk, in their order: compared with scripts,
//! and with the files themselves.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test operations scripted::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod random_writer;
mod scripted;
mod volumes;

virt_bmap_testutil::program!(harness);
