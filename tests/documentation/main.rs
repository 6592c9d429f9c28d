//! The commands and pictures of the documentation that need an appliance.
//!
//! `cargo test --test documentation pages::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod pages;
mod terminal;

virt_bmap_testutil::program!(harness);
