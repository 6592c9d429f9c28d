//! What the whole-program tests share: tools, fixtures, oracles and a sandbox to run the program in.
//!
//! Each test file takes what it needs, so parts of this are unused in some of them.
#![allow(dead_code, unreachable_pub, unused_imports, unused_macros)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::single_range_in_vec_init)]

pub mod bootable;
pub mod cache;
pub mod fixture;
pub mod fleet;
pub mod formats;
pub mod guestfish;
pub mod layered;
pub mod layout;
pub mod mapped;
pub mod mapping;
pub mod mastering;
pub mod metadata;
pub mod mounted;
pub mod oracle_ext4;
pub mod oracle_fiemap;
pub mod oracle_fiwalk;
pub mod oracle_pattern;
pub mod python;
pub mod random;
pub mod ranges;
pub mod sandbox;
pub mod special;
pub mod textmap;
pub mod tools;
pub mod traced;
