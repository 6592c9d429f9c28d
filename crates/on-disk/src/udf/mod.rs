//! UDF (ECMA-167, 3rd edition; "Universal Disk Format Specification", OSTA). Numbers such as
//! "4/14.9" are part and section of ECMA-167.

mod file;
mod volume;

pub use file::Place;
pub use volume::{ANCHOR, ANCHOR_BLOCK, Volume, descriptor, tag};
