//! The appliance of libguestfs with the guest's disks, and the commands that run in it.
//!
//! libguestfs is synchronous, and its handle stays on one thread. An [`Appliance`] is therefore
//! created and used on a thread of its own; other threads can only end it, through a
//! [`KillSwitch`].

pub mod accel;
mod agent;
mod ffi;
mod handle;
mod inventory;
mod kill;
mod launch;
mod machine;
pub mod own;
mod qemu;
mod save;

pub use accel::{Acceleration, Decision};
pub use agent::{AgentError, SYSROOT};
pub use handle::{CallError, Console};
pub use inventory::{BlockDevice, Content, DeviceKind, DmTarget, Inventory};
pub use kill::KillSwitch;
pub use launch::{LaunchError, LaunchOptions, Launching, search_path};

pub(crate) use agent::quote;
use handle::Handle;
pub(crate) use handle::printable;
use own::Own;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
pub(crate) use virt_bmap_agent_protocol::inventory::device_number;
pub use virt_bmap_agent_protocol::inventory::{DeviceNumber, MdArray, MdMember};

/// A running appliance.
pub struct Appliance {
    handle: Handle,
    console: Arc<Console>,
    /// The control disk, as the appliance names it.
    control: String,
    /// The appliance's files, if they are our own.
    own: Option<Own>,
    /// The groups of volumes that were given other names, and the names on the disks.
    renamed_groups: RefCell<BTreeMap<String, String>>,
}

/// Serial number of the control disk; libguestfs makes it a name in `/dev/disk/guestfs`.
const CONTROL_LABEL: &str = "control";

/// Processors of the host that this program may use.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl Appliance {
    /// The last lines of the appliance's console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Whether it is being ended from another thread.
    pub fn is_ending(&self) -> bool {
        self.handle.is_ending()
    }

    /// Calls into libguestfs.
    ///
    /// # Errors
    /// libguestfs's error.
    pub fn call<T>(
        &self,
        call: impl FnOnce(&guestfs::Handle) -> Result<T, guestfs::Error>,
    ) -> Result<T, CallError> {
        self.handle.call(call)
    }

    /// Runs a shell command in the appliance and returns its standard output.
    ///
    /// # Errors
    /// A command that fails, with its standard error.
    pub fn shell(&self, command: &str) -> Result<String, CallError> {
        self.call(|g| g.debug("sh", &[command]))
    }
}
