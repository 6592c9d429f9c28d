//! How to map.

use crate::appliance::LaunchOptions;
use crate::probe::baseline::Baseline;
use crate::probe::key::Key;
use crate::probe::unlock::Derivation;
use crate::probe::{Legs, Probe};
use std::sync::Arc;
use std::time::Duration;
use virt_bmap_image::Access;

/// How to map.
#[derive(Clone, Debug)]
pub struct MapperOptions {
    /// What may be opened, and with which key.
    pub access: Access,
    /// How to launch the appliance.
    pub launch: LaunchOptions,
    /// How to read the guest's files.
    pub probe: Probe,
    /// An earlier map of this guest, whose unchanged files are reused. The map is the same as
    /// without it. [`Probe::Guestfsd`] ignores it.
    pub baseline: Option<Arc<Baseline>>,
    /// Keys of encrypted devices.
    pub keys: Vec<Key>,
    /// Where keys are derived from passphrases.
    pub derivation: Derivation,
    /// Map metadata, symbolic links and free space, too. [`Probe::Guestfsd`] cannot.
    pub metadata: bool,
    /// Which copies of mirrored data are in the map.
    pub legs: Legs,
    /// How long to wait without any sign of life before giving up.
    pub timeout: Duration,
    /// Most bytes that the guest's filesystems may write to the overlay of each disk.
    pub overlay_limit: u64,
}

impl Default for MapperOptions {
    fn default() -> Self {
        Self {
            access: Access::default(),
            launch: LaunchOptions::default(),
            probe: Probe::default(),
            baseline: None,
            keys: Vec::new(),
            derivation: Derivation::default(),
            metadata: false,
            legs: Legs::default(),
            timeout: Duration::from_secs(300),
            overlay_limit: 1 << 30,
        }
    }
}
