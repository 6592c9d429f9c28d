//! What the test programs share: tools, fixtures, oracles, and a sandbox to run the program in.
//!
//! A test calls [`needs!`] with the programs that it cannot do without, takes an image from
//! [`fixture`] or [`layered`], runs the program by [`sandbox`] or takes a map from [`mapping`] or
//! [`mapped`], and compares it with what an oracle says. `docs/testing.md` explains how these fit
//! together.
//!
//! The crate has no dependency on the program's own libraries: what a map should contain must not
//! be computed by the code under test. It knows where the program is from the place of the test's
//! own executable; [`program!`] has the compiler's word for that place compared with it.
//!
//! Every function panics where it cannot do what it is asked for, since that is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::single_range_in_vec_init, reason = "lists of ranges that happen to have one")]

pub mod bootable;
pub mod cache;
pub mod corpus;
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
pub mod oracle_ext4;
pub mod oracle_fiemap;
pub mod oracle_fiwalk;
pub mod oracle_pattern;
pub mod pages;
pub mod places;
pub mod python;
pub mod random;
pub mod ranges;
pub mod sandbox;
pub mod special;
pub mod textmap;
pub mod tools;
pub mod traced;
