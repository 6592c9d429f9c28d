//! Guests in images of every format, as root and as an ordinary user, and what the maps say.
//!
//! These tests need an appliance, see docs/testing.md.
//! `cargo test --test mapping documentation::` runs those of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

mod documentation;
mod formats;
mod guest;
mod guestfsd;
mod oracles;
mod outputs;
mod sources;
mod terminal;
mod user;

virt_bmap_testutil::program!(harness);
