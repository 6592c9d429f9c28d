//! What is read in the appliance, in which order, and what it is called.
//!
//! * [`survey`] goes through the devices and file systems, with the agent that is uploaded into the
//!   appliance;
//! * [`guestfsd`] does the same with the calls that every libguestfs has, a hundred times more slowly;
//! * [`channel`] is the host's end of the agent's control disk;
//! * [`metadata`] is about what belongs to no file;
//! * [`baseline`] is what an earlier map knows, so that it need not be read again, `inodes` which files need not even be
//!   looked at;
//! * [`layout`] says where a device's bytes lie on the disks, as far as the kernel's tables tell;
//! * [`found`] is the objects on their way into the map, [`warnings`] what could not be examined;
//! * [`unlock`] is about encrypted devices.

pub mod baseline;
pub mod channel;
mod device;
mod expected;
pub mod found;
pub mod guestfsd;
mod inodes;
pub mod layout;
pub mod metadata;
mod superblock;
pub mod survey;
pub mod unlock;
pub mod warnings;

use crate::appliance::{AgentError, CallError};
use channel::ChannelError;
use found::FoundError;
use std::num::NonZeroU32;
use virt_bmap_agent_protocol::Sample;

/// Which way the guest's files are read.
///
/// The default is [`Extents`](Self::Extents), each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// By a program that is uploaded into the appliance, which reads the ends of each file's extents where the kernel
    /// says where they lie, and all of the others.
    Extents {
        /// Every so-many-th extent is read; 1: each of them.
        every: NonZeroU32,
    },
    /// By the same program, all of each file.
    Agent,
    /// By libguestfs's own daemon.
    Guestfsd,
}

impl Default for Probe {
    fn default() -> Self {
        Self::Extents { every: NonZeroU32::MIN }
    }
}

impl Probe {
    /// Which extents are read at their ends, if that is how files are read.
    pub fn sample(self) -> Option<Sample> {
        match self {
            Self::Extents { every } => Some(Sample { every }),
            Self::Agent | Self::Guestfsd => None,
        }
    }
}

/// Which copies of what is kept several times are in the map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Legs {
    /// All of them, and the parity that protects them.
    #[default]
    All,
    /// The one that was read.
    One,
}

/// Why a probe did not come to its end. What concerns one device or filesystem alone is a
/// [warning](virt_bmap_map::Warning) instead.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The appliance does not answer.
    #[error("cannot take stock of the guest's devices")]
    Inventory(#[source] CallError),
    /// The agent could not do its work.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The agent said what makes no sense.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// An object that no map can hold.
    #[error("the guest's objects do not fit into a map")]
    Found(#[from] FoundError),
    /// The appliance died.
    #[error("the appliance (qemu) died while {during}")]
    Died {
        /// What was being done.
        during: String,
        /// The last lines of its console.
        console: Vec<String>,
    },
    /// The appliance's kernel crashed.
    #[error("the appliance's kernel crashed while {during}: {panic}")]
    Crashed {
        /// What was being done.
        during: String,
        /// What the kernel said.
        panic: String,
    },
}

/// What is being done, for progress bars.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// The appliance comes up.
    #[default]
    Launching,
    /// Disks, partitions and volumes are being looked at.
    Devices,
    /// A file system is being walked.
    Filesystem {
        /// Its name.
        name: String,
        /// Its type.
        kind: String,
        /// Its place in the order, from 1.
        number: usize,
        /// How many there are.
        of: usize,
    },
    /// The appliance is being shut down.
    Closing,
}
