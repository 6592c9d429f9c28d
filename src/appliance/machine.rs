//! The virtual machine of an appliance: its processors, memory, kernel options and disks.

use super::accel::Decision;
use super::handle::{CallError, Handle};
use super::launch::{LaunchError, LaunchOptions};
use super::processors;
use super::qemu::Qemu;
use std::path::{Path, PathBuf};

/// What each try to launch an appliance has in common.
pub(super) struct Machine<'a> {
    pub(super) qemu: &'a Qemu,
    pub(super) disks: Disks<'a>,
}

/// The disks of an appliance.
pub(super) enum Disks<'a> {
    /// Exports of an NBD server.
    Exports {
        /// The server's socket.
        socket: &'a Path,
        /// The guest's disks, in order.
        guest: &'a [String],
        control: &'a str,
    },
    /// Files, the last of which is the control disk.
    Files(&'a [PathBuf]),
}

impl Disks<'_> {
    /// How many they are, with the control disk.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Exports { guest, .. } => guest.len() + 1,
            Self::Files(files) => files.len(),
        }
    }
}

/// How an appliance starts.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// It boots.
    Boot,
    /// It boots, and its state will be saved.
    ToSave {
        /// The socket of qemu's monitor.
        monitor: &'a Path,
    },
    /// It goes on from a saved state.
    From(&'a Path),
}

/// The kernel option of an appliance whose state will be saved: see `init/saved.rs` of the agent.
pub(super) const SAVE_APPEND: &str = "virt_bmap.save=1";

/// Sets what the virtual machine is like, apart from its disks.
pub(super) fn configure_machine(
    handle: &Handle,
    options: &LaunchOptions,
    decision: &Decision,
) -> Result<(), LaunchError> {
    let set = |what, call: &dyn Fn(&guestfs::Handle) -> Result<(), guestfs::Error>| {
        handle.call(call).map_err(configure(what))
    };
    let smp = smp(options);
    let mut append = vec![ALL_APPEND.to_owned()];
    if let Decision::Tcg { .. } = decision {
        set("set_backend_setting", &|g| g.set_backend_setting("force_tcg", "1"))?;
        append.push(tcg_append(smp));
    }
    // From LIBGUESTFS_APPEND. The last setting wins.
    append.push(get_append(handle)?);
    set("set_append", &|g| g.set_append(Some(append.join(" ").trim())))?;
    if let Some(memsize) = options.memsize {
        let memsize = i32::try_from(memsize).unwrap_or(i32::MAX);
        set("set_memsize", &|g| g.set_memsize(memsize))?;
    }
    set("set_smp", &|g| g.set_smp(i32::try_from(smp).unwrap_or(i32::MAX)))
}

/// The kernel's options.
pub(super) fn get_append(handle: &Handle) -> Result<String, LaunchError> {
    let append = handle.call(|g| Ok(g.get_append()?.unwrap_or_default().to_owned()));
    append.map_err(configure("get_append"))
}

/// Kernel options of each appliance.
///
/// After a driver has crashed, the kernel is not reliable and may hang, so it panics. It starts on
/// one processor, and the agent starts the others when it has found many files: each takes time to
/// start, and most guests are read before another one would help.
const ALL_APPEND: &str = "oops=panic maxcpus=1";

/// Processors of an appliance: two by default, if the host has as many.
pub(super) fn smp(options: &LaunchOptions) -> u32 {
    options.smp.unwrap_or(if processors() > 1 { 2 } else { 1 })
}

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
    let always = "clearcpuid=erms,fsrm mitigations=off init_on_alloc=0 lsm=";
    if processors() > smp as usize { format!("{always} idle=poll") } else { always.to_owned() }
}

pub(super) fn configure(what: &'static str) -> impl Fn(CallError) -> LaunchError {
    move |source| LaunchError::Configure { what, source }
}
