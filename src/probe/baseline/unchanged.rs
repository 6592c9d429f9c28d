//! The files and directories of the baseline that an update reuses without opening them.

use super::{Baseline, Directories};
use std::collections::HashMap;
use std::sync::Arc;
use virt_bmap_map::ObjectId;

/// The objects of one filesystem whose inodes have not changed since the baseline was made.
pub struct UnchangedObjects {
    /// The earlier map.
    pub baseline: Arc<Baseline>,
    /// The files and symbolic links, as objects of that map, by inode.
    pub files: HashMap<u64, ObjectId>,
    /// The directories.
    pub directories: Directories,
}
