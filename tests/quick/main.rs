//! Tests that need no appliance: formats, images, the NBD server, and the commands that read maps
//! and logs.
//!
//! `cargo test --test quick trace::` runs the tests of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod bmap_formats;
mod bmap_text;
mod documentation;
mod examples;
mod fleet;
mod fleet_parallel;
mod fleet_slurm;
mod image;
mod nbd_kernel;
mod nbd_server;
mod packages;
mod plugin;
mod programs;
mod questions;
mod report;
mod trace;
mod trace_top;
mod update;
mod warnings;

virt_bmap_testutil::program!(harness);
