//! Tests that need no appliance, but other programs that take their time: images of every format,
//! traced programs and full logs, a browser, a terminal, a batch system, a Linux guest.
//!
//! `cargo test --test system trace::` runs the tests of one module.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod fleet_parallel;
mod fleet_slurm;
mod flushes;
mod history;
mod image;
mod nbd_kernel;
mod report;
mod sources;
mod trace;
mod trace_top;

virt_bmap_testutil::program!(harness);
