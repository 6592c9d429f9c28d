//! Shared code of the test programs: tools, fixtures, oracles, and a sandbox that runs the program.
//!
//! A test calls [`needs!`] with the programs that it needs and takes an image from [`fixture`] or
//! [`layered`]. It runs the program in a [`sandbox`], or takes a map from [`mapping`] or
//! [`mapped`]. Then it compares the result with that of an oracle. `docs/testing.md` explains how
//! these fit together.
//!
//! The crate does not depend on the program's own libraries, since the code under test must not
//! compute what a map should contain. It finds the program by the path of the test's own
//! executable. [`program!`] compares the result with the path that the compiler knows.
//!
//! Every function panics if it cannot do what it is asked for, since that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

pub mod bootable;
pub mod cache;
pub mod client;
pub mod corpus;
pub mod filesystems;
pub mod fixture;
pub mod fleet;
pub mod formats;
pub mod guestfish;
pub mod layered;
pub mod layout;
pub mod mapped;
pub mod mapping;
pub mod mastering;
pub mod mounted;
pub mod oracle_directories;
pub mod oracle_ext4;
pub mod oracle_fiemap;
pub mod oracle_fiwalk;
pub mod oracle_pattern;
pub mod own_appliance;
pub mod pages;
pub mod picture;
pub mod places;
pub mod python;
pub mod random;
pub mod ranges;
pub mod reported;
pub mod sandbox;
pub mod screen;
pub mod script;
pub mod servers;
pub mod special;
pub mod textmap;
pub mod tools;
pub mod traced;
pub mod usermode;
