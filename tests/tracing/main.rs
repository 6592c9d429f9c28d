//! Guests that boot from a traced disk, and what a trace's log and list of operations say of them.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test tracing boot::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod after_the_fact;
mod boot;
mod durable;
mod looks;
mod operations;

virt_bmap_testutil::program!(harness);
