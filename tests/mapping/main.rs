//! What maps say of guests, whoever makes them, compared with what other programs say.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test mapping guest::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod guest;
mod oracles;
mod outputs;
mod user;

virt_bmap_testutil::program!(harness);
