//! The report: the command as a user runs it, and its pages in a real browser.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod browser;
mod command;
#[path = "../common/mod.rs"]
mod common;
mod page;
