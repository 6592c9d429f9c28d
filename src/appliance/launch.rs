//! Launches an appliance: our own or libguestfs's, under KVM or emulated.

use super::accel::{self, Acceleration, Decision};
use super::handle::{CallError, Console, Handle};
use super::own::{self, Own, Selected};
use super::qemu::Qemu;
use super::{Appliance, CONTROL_LABEL, KillSwitch, processors};
use crate::hangup;
use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// How to launch.
#[derive(Clone, Debug, Default)]
pub struct LaunchOptions {
    /// KVM or emulation.
    pub acceleration: Acceleration,
    /// Our own appliance, or libguestfs's.
    pub appliance: own::Choice,
    /// Memory in MiB; `None`: libguestfs's default.
    pub memsize: Option<u32>,
    /// Number of virtual processors; `None`: two, or one if the host has one.
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
    /// There is no qemu.
    #[error(
        "no qemu was found to run the appliance: there is no program {name}; install it, or set LIBGUESTFS_HV to \
         the path of a qemu"
    )]
    NoQemu {
        /// What libguestfs would run: a path or a name.
        name: String,
    },
    /// The appliance did not come up.
    #[error("the libguestfs appliance did not start{}", hint.as_deref().map(|hint| format!("; {hint}")).unwrap_or_default())]
    Launch {
        /// Advice.
        hint: Option<String>,
        /// The last lines of its console.
        console: Vec<String>,
        /// The message of its kernel's panic.
        panic: Option<String>,
        /// libguestfs's error.
        #[source]
        source: CallError,
    },
}

/// What is about to be launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Launching {
    /// Our own appliance is built first.
    Building {
        /// Why it is built for this run alone; `None`: it is kept.
        because: Option<String>,
    },
    /// An appliance that runs in this way.
    Under(Decision),
    /// libguestfs's appliance, although ours was wanted.
    Stock {
        /// Why not ours.
        because: String,
    },
}

impl fmt::Display for Launching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Building { because: None } => write!(f, "building the appliance, once, in a few seconds"),
            Self::Building { because: Some(why) } => {
                write!(f, "building the appliance for this run alone, because it cannot be kept: {why}")
            }
            Self::Under(decision) => write!(f, "starting the appliance under {decision}"),
            Self::Stock { because } => write!(
                f,
                "using libguestfs's appliance, which takes longer to start: {because} (`virt-bmap-rs appliance \
                 build` tries again)"
            ),
        }
    }
}

/// What each try to launch an appliance has in common.
struct Machine<'a> {
    qemu: Qemu,
    /// The NBD server's socket. The drives are exports there.
    socket: &'a Path,
    /// The guest's disks, in order.
    disks: &'a [String],
    control: &'a str,
}

/// libguestfs's search path for appliances (`guestfs_get_path`).
///
/// # Errors
/// libguestfs's error.
pub fn search_path() -> Result<String, CallError> {
    let handle = Handle::create(Arc::default(), KillSwitch::default(), true)?;
    handle.call(|g| g.get_path().map(str::to_owned))
}

impl Appliance {
    /// Launches an appliance whose disks are exports of the NBD server at `socket`: `disks`, in
    /// order, and `control`.
    ///
    /// If our own appliance cannot be built or does not come up, libguestfs's is launched. An
    /// appliance that dies under KVM while it boots is launched once more under emulation. Nothing
    /// is launched again after `kill` has ended it.
    ///
    /// Calls `announce` before each try.
    ///
    /// # Errors
    /// [`LaunchError`], with the last lines of the console.
    pub fn launch(
        options: &LaunchOptions,
        kill: &KillSwitch,
        socket: &Path,
        disks: &[String],
        control: &str,
        mut announce: impl FnMut(Launching),
    ) -> Result<Self, LaunchError> {
        let (qemu, path) = {
            let handle = Handle::create(Arc::default(), kill.clone(), true).map_err(configure("create"))?;
            let qemu = Qemu::find(&handle).map_err(configure("get_backend"))?;
            let path = handle.call(|g| g.get_path().map(str::to_owned)).map_err(configure("get_path"))?;
            (qemu, path)
        };
        if let Some(name) = qemu.missing() {
            return Err(LaunchError::NoQemu { name: name.to_owned() });
        }
        let decision = accel::decide(options.acceleration, qemu.path());
        // supermin is a child of this thread, and may have to be killed.
        kill.arm();
        let mut building = |because| announce(Launching::Building { because });
        let selected = own::select(options.appliance, &path, &|| kill.is_thrown(), &mut building);
        let own = match selected {
            Selected::Own(own) => Some(own),
            Selected::Stock { because } => {
                if let Some(because) = because.filter(|_| !kill.is_thrown()) {
                    announce(Launching::Stock { because });
                }
                None
            }
        };
        let machine = Machine { qemu, socket, disks, control };
        match Self::launch_under(options, kill, &decision, &machine, own.clone(), &mut announce) {
            Err(LaunchError::Launch { source, .. })
                if decision == Decision::Kvm
                    && options.acceleration == Acceleration::Auto
                    && !kill.is_being_thrown() =>
            {
                let because = format!("the appliance died under KVM ({source})");
                let decision = Decision::Tcg { because };
                Self::launch_under(options, kill, &decision, &machine, own, &mut announce)
            }
            result => result,
        }
    }

    /// Launches our own appliance, if there is one, and libguestfs's otherwise or if that fails.
    fn launch_under(
        options: &LaunchOptions,
        kill: &KillSwitch,
        decision: &Decision,
        machine: &Machine<'_>,
        own: Option<Own>,
        announce: &mut impl FnMut(Launching),
    ) -> Result<Self, LaunchError> {
        announce(Launching::Under(decision.clone()));
        let Some(own) = own else { return Self::launch_once(options, kill, decision, machine, None) };
        let begun = Instant::now();
        let limit = own.launch_limit(decision.is_emulated());
        let launch = || Self::launch_once(options, kill, decision, machine, Some(own.clone()));
        let because = match kill.limited(limit, launch) {
            (Ok(appliance), _) => {
                own.launched(begun.elapsed());
                return Ok(appliance);
            }
            (Err(LaunchError::Launch { .. }), true) => {
                format!("our own did not start within {} s", limit.as_secs())
            }
            (Err(LaunchError::Launch { console, panic, source, .. }), false) if !kill.is_being_thrown() => {
                // libguestfs's message is a page of advice; the console says what happened.
                let what = match panic {
                    Some(panic) => format!("kernel panic: {panic}"),
                    None => console.last().cloned().unwrap_or(source.message),
                };
                format!("our own did not start ({what})")
            }
            (Err(error), _) => return Err(error),
        };
        announce(Launching::Stock { because: because.clone() });
        let stock = Self::launch_once(options, kill, decision, machine, None)?;
        // Where neither starts, ours is not to blame.
        own.failed(&because);
        Ok(stock)
    }

    fn launch_once(
        options: &LaunchOptions,
        kill: &KillSwitch,
        decision: &Decision,
        machine: &Machine<'_>,
        own: Option<Own>,
    ) -> Result<Self, LaunchError> {
        let console: Arc<Console> = Arc::default();
        let handle =
            Handle::create(console.clone(), kill.clone(), options.verbose).map_err(configure("create"))?;
        let set = |what, call: &dyn Fn(&guestfs::Handle) -> Result<(), guestfs::Error>| {
            handle.call(call).map_err(configure(what))
        };
        set("set_verbose", &|g| g.set_verbose(options.verbose))?;
        set("set_trace", &|g| g.set_trace(options.trace))?;
        if let Some(directory) = own.as_ref().map(|own| own.directory().to_string_lossy()) {
            set("set_path", &|g| g.set_path(Some(&directory)))?;
        }
        if let Some(qemu) = machine.qemu.to_set() {
            set("set_hv", &|g| g.set_hv(qemu))?;
        }
        if hangup::is_ignored() {
            // Otherwise a terminal that hangs up would end qemu.
            set("set_pgroup", &|g| g.set_pgroup(true))?;
        }
        // Writes are not kept.
        set("set_autosync", &|g| g.set_autosync(false))?;
        let smp = options.smp.unwrap_or_else(default_smp);
        let mut append = vec![ALL_APPEND.to_owned()];
        if let Decision::Tcg { .. } = decision {
            set("set_backend_setting", &|g| g.set_backend_setting("force_tcg", "1"))?;
            append.push(tcg_append(smp));
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
        set("set_smp", &|g| g.set_smp(i32::try_from(smp).unwrap_or(i32::MAX)))?;
        let server = format!("unix:{}", machine.socket.display());
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
        for disk in machine.disks {
            set("add_drive", &|g| g.add_drive(disk, drive(None)))?;
        }
        set("add_drive", &|g| g.add_drive(machine.control, drive(Some(CONTROL_LABEL))))?;
        handle.call(guestfs::Handle::launch).map_err(|source| LaunchError::Launch {
            hint: launch_hint(),
            console: console.tail(),
            panic: console.panic(),
            source: source.without_advice(),
        })?;
        Ok(Self {
            handle,
            console,
            control: format!("/dev/disk/guestfs/{CONTROL_LABEL}"),
            own,
            renamed_groups: RefCell::default(),
        })
    }
}

/// Kernel options of each appliance.
///
/// After a driver has crashed, the kernel is not reliable and may hang, so it panics. It starts on
/// one processor, and the agent starts the others when it has found many files: each takes time to
/// start, and most guests are read before another one would help.
const ALL_APPEND: &str = "oops=panic maxcpus=1";

/// Processors of an appliance: two, if the host has as many.
fn default_smp() -> u32 {
    if processors() > 1 { 2 } else { 1 }
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

fn configure(what: &'static str) -> impl Fn(CallError) -> LaunchError {
    move |source| LaunchError::Configure { what, source }
}

/// The most frequent reason for an appliance that cannot be built.
fn launch_hint() -> Option<String> {
    if std::env::var_os("SUPERMIN_KERNEL").is_some() {
        return None;
    }
    let entries = |directory| std::fs::read_dir(directory).into_iter().flatten().flatten();
    let is_kernel =
        |path: &PathBuf| path.file_name().is_some_and(|it| it.as_encoded_bytes().starts_with(b"vmlinuz"));
    // supermin takes one from either place (`format_ext2_kernel.ml`).
    let in_boot = entries("/boot").map(|entry| entry.path()).filter(is_kernel);
    let with_modules =
        entries("/lib/modules").map(|entry| entry.path().join("vmlinuz")).filter(|path| path.exists());
    let kernels: Vec<PathBuf> = in_boot.chain(with_modules).collect();
    let Some(first) = kernels.first() else {
        return Some(
            "there is no kernel in /boot or /lib/modules: install one (Debian: linux-image-amd64)".into(),
        );
    };
    if kernels.iter().any(|kernel| std::fs::File::open(kernel).is_ok()) {
        return None;
    }
    Some(format!(
        "this user cannot read the kernels in /boot: run `sudo chmod 0644 {}`, or set SUPERMIN_KERNEL",
        first.display()
    ))
}
