//! How to map.

use crate::appliance::LaunchOptions;
use crate::probe::baseline::Baseline;
use crate::probe::key::Key;
use crate::probe::{Legs, Probe};
use std::sync::Arc;
use std::time::Duration;

/// How to map.
#[derive(Clone, Debug)]
pub struct MapperOptions {
    /// Read images although another program may be writing to them.
    pub force_share: bool,
    /// How to launch the appliance.
    pub launch: LaunchOptions,
    /// Which way to read the guest's files.
    pub probe: Probe,
    /// An earlier map of this guest: what is as it was is taken over, and not read again. The map
    /// comes out the same. [`Probe::Guestfsd`] takes no notice of it.
    pub baseline: Option<Arc<Baseline>>,
    /// Keys of encrypted devices.
    pub keys: Vec<Key>,
    /// Map what belongs to no file, too: metadata, symbolic links, free space. [`Probe::Guestfsd`]
    /// cannot.
    pub metadata: bool,
    /// Which copies of mirrored data are in the map.
    pub legs: Legs,
    /// Give up when nothing has happened for so long.
    pub timeout: Duration,
    /// Most bytes that the guest's filesystems may write to the private layer, for each disk.
    pub overlay_limit: u64,
}

impl Default for MapperOptions {
    fn default() -> Self {
        Self {
            force_share: false,
            launch: LaunchOptions::default(),
            probe: Probe::default(),
            baseline: None,
            keys: Vec::new(),
            metadata: false,
            legs: Legs::default(),
            timeout: Duration::from_secs(300),
            overlay_limit: 1 << 30,
        }
    }
}
