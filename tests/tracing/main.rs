//! Guests that boot from a traced disk, and their operations on files.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test tracing boot::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod after_the_fact;
mod boot;
mod client;
mod durable;
mod looks;
mod operations;
mod random_writer;
mod script;
mod scripted;
mod volumes;

virt_bmap_testutil::program!(harness);
