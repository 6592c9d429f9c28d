//! Finds the objects that ranges of a disk belong to, and counts their bytes.
//!
//! [`tally()`] divides a set of bytes among the objects of a map. [`damage()`] lists the files that
//! a set of bad bytes hits, with the file offsets. For a single offset there is
//! [`Map::at`](crate::Map::at).

mod damage;
mod place;
mod size;
mod tally;

pub use damage::hit;
pub use damage::{Damage, FileHit, HitRange, damage};
pub use place::{PlaceError, on_device};
pub use size::{DiskSize, disk_size};
pub use tally::{MapHit, Share, Tally, tally};
