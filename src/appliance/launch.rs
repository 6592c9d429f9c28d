//! Launches an appliance: our own or libguestfs's, under KVM or emulated.

use super::accel::{self, Acceleration, Decision};
use super::handle::{CallError, Console, Handle};
use super::machine::{Disks, Machine, Settings, Start, configure, configure_machine};
use super::own::saved::{SavedState, Shape};
use super::own::{self, Own, Selected};
use super::qemu::Qemu;
use super::save::SaveError;
use super::{Appliance, CONTROL_LABEL, KillSwitch};
use crate::hangup;
use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use virt_bmap_ranges::error_chain;

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
    /// Our own appliance is started once to save its state.
    Saving,
    /// Our own appliance boots, although it should have gone on from a saved state.
    Boot {
        /// Why it does not.
        because: String,
    },
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
            Self::Saving => f.write_str("saving the state of the appliance, once: later runs go on from it"),
            Self::Boot { because } => {
                write!(f, "the appliance boots in each run, because no saved state can be used: {because}")
            }
            Self::Stock { because } => write!(
                f,
                "using libguestfs's appliance, which takes longer to start: {because} (`virt-bmap-rs appliance \
                 build` tries again)"
            ),
        }
    }
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
        let (qemu, path, settings) = {
            let handle = Handle::create(Arc::default(), kill.clone(), true).map_err(configure("create"))?;
            let qemu = Qemu::find(&handle).map_err(configure("get_backend"))?;
            let path = handle.call(|g| g.get_path().map(str::to_owned)).map_err(configure("get_path"))?;
            (qemu, path, Settings::of(&handle, options)?)
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
        let names = disks.iter().map(String::as_str).chain([control]).collect();
        let disks = Disks { socket: Some(socket), names };
        let machine = Machine { qemu: &qemu, settings: &settings, disks };
        let launcher = Launcher { options, kill, decision: &decision, machine: &machine };
        match launcher.launch(own.clone(), &mut announce) {
            Err(LaunchError::Launch { source, .. })
                if decision == Decision::Kvm
                    && options.acceleration == Acceleration::Auto
                    && !kill.is_being_thrown() =>
            {
                let because = format!("the appliance died under KVM ({source})");
                let decision = Decision::Tcg { because };
                Launcher { decision: &decision, ..launcher }.launch(own, &mut announce)
            }
            result => result,
        }
    }
}

/// Launches a virtual machine in one way: under KVM or emulated.
#[derive(Clone, Copy)]
pub(super) struct Launcher<'a> {
    pub(super) options: &'a LaunchOptions,
    pub(super) kill: &'a KillSwitch,
    pub(super) decision: &'a Decision,
    pub(super) machine: &'a Machine<'a>,
}

impl Launcher<'_> {
    /// Launches our own appliance, if there is one, and libguestfs's otherwise or if that fails.
    fn launch(
        &self,
        own: Option<Own>,
        announce: &mut impl FnMut(Launching),
    ) -> Result<Appliance, LaunchError> {
        announce(Launching::Under(self.decision.clone()));
        let stock = || self.launch_once(None, Start::Boot);
        let Some(own) = own else { return stock() };
        let begun = Instant::now();
        let limit = own.launch_limit(self.decision.is_emulated());
        let because = match self.launch_own(&own, limit, announce) {
            (Ok(appliance), _) => {
                own.launched(begun.elapsed());
                return Ok(appliance);
            }
            (Err(LaunchError::Launch { .. }), true) => {
                format!("our own did not start within {} s", limit.as_secs())
            }
            (Err(error @ LaunchError::Launch { .. }), false) if !self.kill.is_being_thrown() => {
                format!("our own did not start ({})", what_happened(error))
            }
            (Err(error), _) => return Err(error),
        };
        announce(Launching::Stock { because: because.clone() });
        let stock = stock()?;
        // Where neither starts, ours is not to blame.
        own.failed(&because);
        Ok(stock)
    }

    /// Launches our own appliance: it goes on from a saved state where that is possible, and boots
    /// otherwise. Also returns whether it took longer than `limit`.
    fn launch_own(
        &self,
        own: &Own,
        limit: Duration,
        announce: &mut impl FnMut(Launching),
    ) -> (Result<Appliance, LaunchError>, bool) {
        let kill = self.kill;
        let launch = |start: Start<'_>| kill.limited(limit, || self.launch_once(Some(own.clone()), start));
        let Some(state) = self.saved_state(own) else { return launch(Start::Boot) };
        let mut save = || self.save(own, &state, &mut *announce);
        let because = match kill.limited(limit, || state.find().map_or_else(&mut save, Ok)) {
            (Ok(state), _) => match launch(Start::From(&state)) {
                (Err(error @ LaunchError::Launch { .. }), is_over) if is_over || !kill.is_being_thrown() => {
                    what_happened(error)
                }
                launched => return launched,
            },
            (Err(SaveError::Launch(error)), is_over) => return (Err(error), is_over),
            (Err(error), _) => error_chain(&error),
        };
        if !kill.is_thrown() {
            state.failed_because(&because);
            announce(Launching::Boot { because });
        }
        launch(Start::Boot)
    }

    /// Launches `own`, or else libguestfs's, without another try.
    pub(super) fn launch_once(&self, own: Option<Own>, start: Start<'_>) -> Result<Appliance, LaunchError> {
        let Self { options, kill, decision, machine } = *self;
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
        configure_machine(&handle, machine.settings, decision, start)?;
        let Disks { socket, names } = &machine.disks;
        let server = socket.map(|socket| format!("unix:{}", socket.display()));
        let server = server.as_deref().map(|server| [server]);
        let drive = |label| guestfs::AddDriveOptArgs {
            // Never "readonly": that would put an overlay of qemu's between the appliance and our
            // server, and reads of blocks that were written there would not reach us.
            readonly: Some(false),
            format: Some("raw"),
            iface: None,
            name: None,
            label,
            protocol: Some(if server.is_some() { "nbd" } else { "file" }),
            server: server.as_ref().map(<[_; 1]>::as_slice),
            username: None,
            secret: None,
            cachemode: None,
            discard: None,
            copyonread: None,
        };
        for (number, name) in (1..).zip(names) {
            let label = (number == names.len()).then_some(CONTROL_LABEL);
            set("add_drive", &|g| g.add_drive(name, drive(label)))?;
        }
        handle.call(guestfs::Handle::launch).map_err(|source| LaunchError::Launch {
            hint: launch_hint(),
            console: console.tail(),
            panic: console.panic(),
            source: source.without_advice(),
        })?;
        Ok(Appliance {
            handle,
            console,
            control: format!("/dev/disk/guestfs/{CONTROL_LABEL}"),
            own,
            renamed_groups: RefCell::default(),
        })
    }

    /// Where the state of the appliance in this virtual machine is saved. `None`: it has to boot.
    fn saved_state(&self, own: &Own) -> Option<SavedState> {
        let Self { options, decision, machine, .. } = *self;
        // The state has guestfsd in it, which was told at its start whether to print messages.
        let is_wanted = options.appliance == own::Choice::Own && decision.is_emulated() && !options.verbose;
        let qemu = machine.qemu.path().filter(|_| is_wanted && machine.qemu.is_direct())?;
        let Settings { memsize, smp, .. } = *machine.settings;
        let (append, disks) = (&*machine.settings.append(decision), machine.disks.names.len());
        own.saved_state(&Shape { qemu, memsize, smp, append, disks })
    }
}

/// Why an appliance did not start. libguestfs's message is a page of advice; the console says what
/// happened.
fn what_happened(error: LaunchError) -> String {
    match error {
        LaunchError::Launch { panic: Some(panic), .. } => format!("kernel panic: {panic}"),
        LaunchError::Launch { console, source, .. } => console.last().cloned().unwrap_or(source.message),
        error => error_chain(&error),
    }
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
