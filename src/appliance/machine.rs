//! The virtual machine of an appliance: its processors, memory, kernel options and disks.

use super::accel::Decision;
use super::handle::{CallError, Handle};
use super::launch::{LaunchError, LaunchOptions};
use super::qemu::Qemu;
use super::{processors, quote};
use std::path::Path;

/// What each try to launch an appliance has in common.
pub(super) struct Machine<'a> {
    pub(super) qemu: &'a Qemu,
    pub(super) settings: &'a Settings,
    pub(super) disks: Disks<'a>,
}

/// The disks of an appliance.
pub(super) struct Disks<'a> {
    /// The socket of the NBD server whose exports they are; `None`: they are files.
    pub(super) socket: Option<&'a Path>,
    /// Their names, in order. The last is the control disk.
    pub(super) names: Vec<&'a str>,
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

/// Processors, memory and kernel options.
pub(super) struct Settings {
    pub(super) smp: u32,
    /// In MiB.
    pub(super) memsize: i32,
    /// Kernel options that the user asks for: `LIBGUESTFS_APPEND`.
    asked: String,
}

/// The kernel option of an appliance whose state will be saved: see `init/saved.rs` of the agent.
const SAVE_APPEND: &str = "virt_bmap.save=1";

impl Settings {
    /// What the options say, and what `handle` has by default.
    pub(super) fn of(handle: &Handle, options: &LaunchOptions) -> Result<Self, LaunchError> {
        let memsize = match options.memsize {
            Some(memsize) => i32::try_from(memsize).unwrap_or(i32::MAX),
            None => handle.call(guestfs::Handle::get_memsize).map_err(configure("get_memsize"))?,
        };
        let asked = handle.call(|g| Ok(g.get_append()?.unwrap_or_default().to_owned()));
        let asked = asked.map_err(configure("get_append"))?;
        // Two processors, if the host has as many.
        let smp = options.smp.unwrap_or(if processors() > 1 { 2 } else { 1 });
        Ok(Self { smp, memsize, asked })
    }

    /// The kernel's options. The last setting of one wins.
    pub(super) fn append(&self, decision: &Decision) -> String {
        let emulated = decision.is_emulated().then(|| tcg_append(self.smp));
        let parts = [Some(ALL_APPEND), emulated.as_deref(), Some(&*self.asked)];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ").trim().to_owned()
    }
}

/// Sets what the virtual machine is like, apart from its disks.
pub(super) fn configure_machine(
    handle: &Handle,
    settings: &Settings,
    decision: &Decision,
    start: Start<'_>,
) -> Result<(), LaunchError> {
    let set = |what, call: &dyn Fn(&guestfs::Handle) -> Result<(), guestfs::Error>| {
        handle.call(call).map_err(configure(what))
    };
    if decision.is_emulated() {
        set("set_backend_setting", &|g| g.set_backend_setting("force_tcg", "1"))?;
    }
    let mut append = settings.append(decision);
    match start {
        Start::Boot => {}
        Start::ToSave { monitor } => {
            append = format!("{append} {SAVE_APPEND}");
            let monitor = format!("unix:{},server=on,wait=off", monitor.display());
            set("config", &|g| g.config("-qmp", Some(&monitor)))?;
        }
        Start::From(state) => {
            let read = format!("exec:exec cat {}", quote(&state.to_string_lossy()));
            set("config", &|g| g.config("-incoming", Some(&read)))?;
        }
    }
    set("set_append", &|g| g.set_append(Some(&append)))?;
    set("set_memsize", &|g| g.set_memsize(settings.memsize))?;
    set("set_smp", &|g| g.set_smp(i32::try_from(settings.smp).unwrap_or(i32::MAX)))
}

/// Kernel options of each appliance.
///
/// After a driver has crashed, the kernel is not reliable and may hang, so it panics. It starts on
/// one processor, and the agent starts the others when it has found many files: each takes time to
/// start, and most guests are read before another one would help.
const ALL_APPEND: &str = "oops=panic maxcpus=1";

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
