//! Ranges of a disk in, objects out: what is there, and how much of it.
//!
//! [`tally()`] shares a set of bytes out among the objects of a map; [`damage()`] says which files
//! it hits, and where inside them. What is at a single offset, [`Map::at`](crate::Map::at) tells.

mod damage;
mod size;
mod tally;

pub use damage::hit;
pub use damage::{Damage, FileHit, HitRange, damage};
pub use size::{DiskSize, disk_size};
pub use tally::{MapHit, Share, Tally, tally};
