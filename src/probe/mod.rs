//! Decides what is read in the appliance and in which order, and gives names to what was read.
//!
//! ```text
//! survey ─┬─► unlock                            guestfsd (without the agent)
//!         ├─► devices ─► layout                     │
//!         ├─► filesystems ─► mount ◄────────────────┘
//!         ├─► walk ─► channel ─┬─► baseline ─► expected ─► layout
//!         │                    └─► found, warnings
//!         └─► metadata ─► channel (the inputs that a walk has gathered)
//!
//! survey, unlock, devices, filesystems, mount, walk, metadata, guestfsd
//!         └─► context ─► channel, baseline, key
//! ```
//!
//! * [`survey`] is the order of work with the agent, [`guestfsd`] the same work with the calls that
//!   every libguestfs has, a hundred times more slowly;
//! * [`context`] is what both work with;
//! * `devices` makes the objects of disks, partitions and volumes, and proves their layouts;
//!   `degraded` warns of missing members, `signatures` of what nothing uses, [`unlock`] opens
//!   encrypted devices with a [`key`];
//! * `tasks` has the agent do its work: one that is started for it, or one that stays;
//! * `filesystems` chooses what is mounted, `mount` mounts it, `walk` has the agent walk it;
//! * [`channel`] is the host's end of the agent's control disk;
//! * [`layout`] computes where a device's bytes lie on the disks;
//! * [`baseline`] is the earlier map of an update, and the digests of inodes;
//! * [`metadata`] makes the objects of what belongs to no file;
//! * [`found`] holds the objects on their way into the map, [`warnings`] what could not be
//!   examined.

pub mod baseline;
mod blank;
pub mod channel;
pub mod context;
mod degraded;
mod device;
mod devices;
mod expected;
mod filesystems;
pub mod found;
pub mod guestfsd;
mod kernel_log;
pub mod key;
pub mod layout;
pub mod metadata;
mod mount;
mod mount_failure;
mod mount_options;
mod orphans;
mod signatures;
mod superblock;
pub mod survey;
mod tasks;
pub mod unlock;
mod walk;
pub mod warnings;

use crate::appliance::{AgentError, CallError};
use channel::ChannelError;
use found::FoundError;
use std::hash::{BuildHasher as _, RandomState};
use std::num::NonZeroU32;
use virt_bmap_agent_protocol::Sample;

/// How the guest's files are read.
///
/// The default is [`Extents`](Self::Extents) with the default [`Proof`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The agent, a program that is uploaded into the appliance, reads only the ends of a file's
    /// extents if these are plain, and the whole file otherwise.
    Extents(Proof),
    /// The agent reads each file in full.
    Agent,
    /// libguestfs's own daemon reads each file in full.
    Guestfsd,
}

impl Default for Probe {
    fn default() -> Self {
        Self::Extents(Proof::default())
    }
}

/// Which files are verified: the kernel is asked about each of them, and the ends of its extents
/// are read.
///
/// The map is the same. See `docs/decisions/0025-inode-tables.md` for what either can miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Every file.
    Every,
    /// A sample, and every file that is unusual. The others are taken from the tables of inodes
    /// where the filesystem has some that the agent can read.
    Sample {
        /// One file in so many.
        one_in: NonZeroU32,
        /// What the choice depends on; `None`: a number that is drawn for each run.
        seed: Option<u64>,
    },
}

impl Proof {
    /// One file in so many, unless something else is asked for.
    pub const ONE_IN: NonZeroU32 = NonZeroU32::new(32).expect("32 is not 0");
}

impl Default for Proof {
    fn default() -> Self {
        Self::Sample { one_in: Self::ONE_IN, seed: None }
    }
}

impl Probe {
    /// Which files get a spot check; `None` if files are read in full. A seed is drawn at each
    /// call.
    pub fn sample(self) -> Option<Sample> {
        match self {
            Self::Extents(Proof::Every) => Some(Sample::ALL),
            Self::Extents(Proof::Sample { one_in, seed }) => {
                // The hasher's keys are random numbers of the system.
                let seed = seed.unwrap_or_else(|| RandomState::new().hash_one(0));
                tracing::debug!("verifying one file in {one_in}: --proof-seed {seed}");
                Some(Sample { one_in, seed })
            }
            Self::Agent | Self::Guestfsd => None,
        }
    }
}

/// Which copies of mirrored data are in the map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Legs {
    /// All copies, and the parity that protects them.
    #[default]
    All,
    /// Only the copy that was read.
    One,
}

/// Why a probe failed. A failure of one device or filesystem is a [warning](virt_bmap_map::Warning)
/// instead.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The inventory failed.
    #[error("cannot list the guest's devices")]
    Inventory(#[source] CallError),
    /// The agent failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The conversation with the agent failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// An object that no map can hold.
    #[error("the guest's objects do not fit into a map")]
    Found(#[from] FoundError),
    /// The appliance died.
    #[error("the appliance (qemu) died while {during}")]
    Died {
        /// The work that was interrupted.
        during: String,
        /// The last lines of its console.
        console: Vec<String>,
    },
    /// The appliance's kernel crashed.
    #[error("the appliance's kernel crashed while {during}: {panic}")]
    Crashed {
        /// The work that was interrupted.
        during: String,
        /// The kernel's message.
        panic: String,
    },
}

/// The current work, for progress output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// The appliance is booting.
    #[default]
    Launching,
    /// Disks, partitions and volumes are being examined.
    Devices,
    /// An encrypted device is being unlocked.
    Unlocking {
        /// Its name.
        device: String,
    },
    /// A filesystem is being walked.
    Filesystem {
        /// Its name.
        name: String,
        /// Its type.
        kind: String,
        /// Its number, from 1.
        number: usize,
        /// How many there are.
        of: usize,
    },
    /// The appliance is being shut down.
    Closing,
}
