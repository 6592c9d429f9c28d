//! The appliance of libguestfs with the guest's disks, and the commands that run in it.
//!
//! libguestfs is synchronous, and its handle stays on one thread. An [`Appliance`] is therefore
//! created and used on a thread of its own; other threads can only end it, through a
//! [`KillSwitch`].

pub mod accel;
mod agent;
mod handle;
mod inventory;
mod kill;

pub use accel::{Acceleration, Decision};
pub use agent::{AgentError, SYSROOT, UNLOCKING, Unlocked};
pub use handle::{CallError, Console};
pub use inventory::{BlockDevice, Content, DeviceKind, DmTarget, Inventory};
pub use kill::KillSwitch;

use crate::hangup;
use handle::Handle;
use std::path::{Path, PathBuf};
use std::sync::Arc;
pub(crate) use virt_bmap_agent_protocol::inventory::device_number;
pub use virt_bmap_agent_protocol::inventory::{DeviceNumber, MdArray, MdMember};

/// How to launch.
#[derive(Clone, Debug, Default)]
pub struct LaunchOptions {
    /// KVM or emulation.
    pub acceleration: Acceleration,
    /// Memory in MiB; `None`: libguestfs's default.
    pub memsize: Option<u32>,
    /// Number of virtual processors; `None`: one.
    pub smp: Option<u32>,
    /// Print messages of libguestfs and of the appliance's kernel on standard error.
    pub verbose: bool,
    /// Print each call into libguestfs on standard error.
    pub trace: bool,
}

/// Why there is no running appliance.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// libguestfs did not accept an option.
    #[error("libguestfs: {what}")]
    Configure {
        /// The setting.
        what: &'static str,
        /// libguestfs's error.
        #[source]
        source: CallError,
    },
    /// The appliance did not come up.
    #[error("the libguestfs appliance did not start{}", hint.as_deref().map(|hint| format!("; {hint}")).unwrap_or_default())]
    Launch {
        /// Advice.
        hint: Option<String>,
        /// The last lines of its console.
        console: Vec<String>,
        /// libguestfs's error.
        #[source]
        source: CallError,
    },
}

/// A running appliance.
pub struct Appliance {
    handle: Handle,
    console: Arc<Console>,
    /// The control disk, as the appliance names it.
    control: String,
}

/// Serial number of the control disk; libguestfs makes it a name in `/dev/disk/guestfs`.
const CONTROL_LABEL: &str = "control";

impl Appliance {
    /// Launches an appliance whose disks are exports of the NBD server at `socket`: `disks`, in
    /// order, and `control`. An appliance that dies under KVM while it boots is started once more
    /// under emulation, unless `kill` ended it.
    ///
    /// Calls `announce` with the decision before each try.
    ///
    /// # Errors
    /// [`LaunchError`], with the last lines of the console.
    pub fn launch(
        options: &LaunchOptions,
        kill: &KillSwitch,
        socket: &Path,
        disks: &[String],
        control: &str,
        mut announce: impl FnMut(&Decision),
    ) -> Result<Self, LaunchError> {
        let qemu = {
            let handle = Handle::create(Arc::default(), kill.clone(), true).map_err(configure("create"))?;
            PathBuf::from(handle.call(guestfs::Handle::get_hv).map_err(configure("get_hv"))?)
        };
        let decision = accel::decide(options.acceleration, &qemu);
        announce(&decision);
        match Self::launch_once(options, kill, &decision, socket, disks, control) {
            Err(LaunchError::Launch { source, .. })
                if decision == Decision::Kvm
                    && options.acceleration == Acceleration::Auto
                    && !kill.is_thrown() =>
            {
                let because = format!("the appliance died under KVM ({source})");
                let decision = Decision::Tcg { because };
                announce(&decision);
                Self::launch_once(options, kill, &decision, socket, disks, control)
            }
            result => result,
        }
    }

    fn launch_once(
        options: &LaunchOptions,
        kill: &KillSwitch,
        decision: &Decision,
        socket: &Path,
        disks: &[String],
        control: &str,
    ) -> Result<Self, LaunchError> {
        let console: Arc<Console> = Arc::default();
        let handle =
            Handle::create(console.clone(), kill.clone(), options.verbose).map_err(configure("create"))?;
        let set = |what, call: &dyn Fn(&guestfs::Handle) -> Result<(), guestfs::Error>| {
            handle.call(call).map_err(configure(what))
        };
        set("set_verbose", &|g| g.set_verbose(options.verbose))?;
        set("set_trace", &|g| g.set_trace(options.trace))?;
        if std::env::var_os("LIBGUESTFS_BACKEND").is_none() {
            // The default may be libvirt, whose SELinux or AppArmor rules deny qemu our socket.
            set("set_backend", &|g| g.set_backend("direct"))?;
        }
        if hangup::is_ignored() {
            // Otherwise a terminal that hangs up would end qemu.
            set("set_pgroup", &|g| g.set_pgroup(true))?;
        }
        // Writes are not kept.
        set("set_autosync", &|g| g.set_autosync(false))?;
        let mut append = vec![ALL_APPEND.to_owned()];
        if let Decision::Tcg { .. } = decision {
            set("set_backend_setting", &|g| g.set_backend_setting("force_tcg", "1"))?;
            append.push(tcg_append(options.smp.unwrap_or(1)));
        }
        // From LIBGUESTFS_APPEND. The last setting wins.
        let asked = handle
            .call(|g| Ok(g.get_append()?.map(str::to_owned)))
            .map_err(configure("get_append"))?
            .unwrap_or_default();
        append.push(asked);
        set("set_append", &|g| g.set_append(Some(append.join(" ").trim())))?;
        if let Some(memsize) = options.memsize {
            let memsize = i32::try_from(memsize).unwrap_or(i32::MAX);
            set("set_memsize", &|g| g.set_memsize(memsize))?;
        }
        if let Some(smp) = options.smp {
            let smp = i32::try_from(smp).unwrap_or(i32::MAX);
            set("set_smp", &|g| g.set_smp(smp))?;
        }
        let server = format!("unix:{}", socket.display());
        let server = [server.as_str()];
        let drive = |label| guestfs::AddDriveOptArgs {
            // Never "readonly": that would put an overlay of qemu's between the appliance and our
            // server, and reads of blocks that were written there would not reach us.
            readonly: Some(false),
            format: Some("raw"),
            iface: None,
            name: None,
            label,
            protocol: Some("nbd"),
            server: Some(&server),
            username: None,
            secret: None,
            cachemode: None,
            discard: None,
            copyonread: None,
        };
        for disk in disks {
            set("add_drive", &|g| g.add_drive(disk, drive(None)))?;
        }
        set("add_drive", &|g| g.add_drive(control, drive(Some(CONTROL_LABEL))))?;
        handle.call(guestfs::Handle::launch).map_err(|source| LaunchError::Launch {
            hint: launch_hint(),
            console: console.tail(),
            source,
        })?;
        Ok(Self { handle, console, control: format!("/dev/disk/guestfs/{CONTROL_LABEL}") })
    }

    /// The last lines of the appliance's console.
    pub fn console(&self) -> &Console {
        &self.console
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

/// Kernel options of each appliance: after a driver has crashed, the kernel is not reliable and may
/// hang, so it panics.
const ALL_APPEND: &str = "oops=panic";

/// Further kernel options of an emulated appliance.
///
/// Mitigations of processor vulnerabilities are off: one program runs in the appliance, and
/// emulation has no such processor. Memory is not cleared on allocation. Both cost more than they
/// protect. Security modules are off: they would be called for each file that is opened, without a
/// policy (a tenth of the time for looking up files). qemu emulates `rep movsb` byte by byte, so a
/// kernel that uses fast strings copies at less than half the speed. A virtual processor that waits
/// for a disk sleeps, and the host's scheduler wakes it for each request, which takes longer than
/// the request. If the host has a processor to spare, the appliance's processors poll instead.
fn tcg_append(smp: u32) -> String {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let always = "clearcpuid=erms,fsrm mitigations=off init_on_alloc=0 lsm=";
    if processors > smp as usize { format!("{always} idle=poll") } else { always.to_owned() }
}

fn configure(what: &'static str) -> impl Fn(CallError) -> LaunchError {
    move |source| LaunchError::Configure { what, source }
}

/// The most frequent reason for an appliance that cannot be built.
fn launch_hint() -> Option<String> {
    if std::env::var_os("SUPERMIN_KERNEL").is_some() {
        return None;
    }
    let kernels: Vec<PathBuf> = std::fs::read_dir("/boot")
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
        .collect();
    if kernels.is_empty() {
        return Some("there is no kernel in /boot: install one (Debian: linux-image-amd64)".into());
    }
    if kernels.iter().any(|kernel| std::fs::File::open(kernel).is_ok()) {
        return None;
    }
    Some(format!(
        "this user cannot read the kernels in /boot: run `sudo chmod 0644 {}`, or set SUPERMIN_KERNEL",
        kernels[0].display()
    ))
}
