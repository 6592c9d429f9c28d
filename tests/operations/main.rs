//! The operations of guests that boot from a traced disk, in their order: compared with scripts,
//! with the files themselves, and with maps by fresh appliances.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test operations scripted::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod durable;
mod looks;
mod random_writer;
mod script;
mod scripted;
mod volumes;

virt_bmap_testutil::program!(harness);
