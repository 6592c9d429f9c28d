//! Tests that need no appliance and take seconds: formats, the NBD server, and the commands that
//! read maps.
//!
//! `cargo test --test quick questions::` runs the tests of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod bmap_formats;
mod bmap_text;
mod container;
mod documentation;
mod examples;
mod ext;
mod first_steps;
mod fleet;
mod inode_tables;
mod libguestfs;
mod nbd_server;
mod packages;
mod plugin;
mod programs;
mod questions;
mod setup;
mod thin;
mod update;
mod warnings;

virt_bmap_testutil::program!(harness);
