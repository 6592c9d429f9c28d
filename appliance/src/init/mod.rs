//! Process 1 of virt-bmap-rs's own appliance.
//!
//! The kernel starts the agent as `/init` of the initial RAM filesystem. It does what libguestfs's
//! own init script does for the calls that virt-bmap-rs makes, without udev: it loads the modules
//! that reach the root disk, enters that disk, makes the links in `/dev` that udev would make, has
//! arrays and volumes assembled where the disks have signatures of them, and runs guestfsd. When
//! guestfsd ends, the appliance ends.

mod boot;
mod links;
mod saved;
pub(crate) mod scan;
mod signatures;

use crate::Fatal;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::mount::mount_bind;
use rustix::process::Pid;
use rustix::system::{RebootCommand, reboot};
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Runs guestfsd in the appliance, and ends the appliance. Never returns.
pub(crate) fn run() -> ! {
    if let Err(error) = serve() {
        // The console is the only place that is left. The host shows its last lines.
        eprintln!("virt-bmap-agent: the appliance cannot start: {error}");
    }
    // qemu has the option -no-reboot, so it exits. Nothing has to be written: the root disk is a
    // snapshot, and the guest's disks are not to be changed.
    let error = reboot(RebootCommand::Restart).err();
    // Process 1 must not end: the kernel would panic.
    eprintln!("virt-bmap-agent: cannot end the appliance: {error:?}");
    loop {
        std::thread::park();
    }
}

fn serve() -> Result<(), Fatal> {
    let begun = Instant::now();
    let stages = Stages { begun };
    let options = boot::enter_root()?;
    stages.end("root");
    prepare()?;
    let channel = links::make(&options.channel)?;
    stages.end("links");
    crate::kernel_log::quieten()?;
    // Of this process's file in the initial RAM filesystem nothing but this is left.
    fs::copy("/proc/self/exe", AGENT)?;
    let daemon = if options.is_saved {
        saved::load();
        let channel = fs::File::options().read(true).write(true).open(&channel)?;
        let daemon = start_daemon(Channel::Open(&channel), options.is_verbose)?;
        saved::wait_for_disks()?;
        crate::attach::attach()?;
        saved::tell_ready(&channel)?;
        daemon
    } else {
        scan::run();
        stages.end("scans");
        crate::disable_readahead::run()?;
        start_daemon(Channel::Port(&channel), options.is_verbose)?
    };
    stages.end("guestfsd");
    wait_for(daemon.id())
}

/// guestfsd's connection to libguestfs.
#[derive(Clone, Copy)]
enum Channel<'a> {
    /// The virtio port, which can be opened once.
    Port(&'a Path),
    /// The port, open.
    Open(&'a fs::File),
}

fn start_daemon(channel: Channel<'_>, is_verbose: bool) -> Result<Child, Fatal> {
    let mut command = Command::new("guestfsd");
    command.arg("--channel").stdin(Stdio::null()).envs(ENVIRONMENT).envs(copying());
    match channel {
        Channel::Port(port) => command.arg(port),
        Channel::Open(port) => command.arg(format!("fd:{}", port.as_raw_fd())),
    };
    if is_verbose {
        command.arg("--verbose");
    }
    let pass_on = |flags| match channel {
        Channel::Port(_) => Ok(()),
        Channel::Open(port) => fcntl_setfd(port, flags),
    };
    pass_on(FdFlags::empty())?;
    let daemon = command.spawn().map_err(|error| format!("guestfsd: {error}"))?;
    pass_on(FdFlags::CLOEXEC)?;
    Ok(daemon)
}

/// Where the host finds the agent.
const AGENT: &str = "/run/virt-bmap-agent";

/// The environment of guestfsd and of the programs that it runs.
const ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", PATH),
    ("LVM_SYSTEM_DIR", "/tmp/lvm"),
    // Without these, LVM, cryptsetup and mdadm would wait for udev.
    ("DM_DISABLE_UDEV", "1"),
    ("MDADM_NO_UDEV", "1"),
    // guestfsd's connection may be open in the programs that it runs.
    ("LVM_SUPPRESS_FD_WARNINGS", "1"),
];

const PATH: &str = "/sbin:/usr/sbin:/bin:/usr/bin";

/// Has the C library copy without `rep movsb`, if the kernel was told not to use it either: qemu
/// emulates it byte by byte, and the library looks at the processor, not at the kernel's options
/// (`ld.so(8)`, "Tunables").
fn copying() -> Option<(&'static str, &'static str)> {
    let processors = fs::read_to_string("/proc/cpuinfo").ok()?;
    let flags = processors.lines().find_map(|line| line.strip_prefix("flags"))?;
    let is_fast = flags.split_whitespace().any(|flag| flag == "erms");
    (!is_fast).then_some(("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-ERMS"))
}

/// Prints on the console when each stage ended, for `--verbose`.
struct Stages {
    begun: Instant,
}

impl Stages {
    fn end(&self, stage: &str) {
        println!("virt-bmap-agent: {stage} after {:.2} s", self.begun.elapsed().as_secs_f64());
    }
}

/// Makes the directories, links and settings that guestfsd and the programs that it runs rely on.
/// What they need on a root disk that is read-only was put there when the appliance was built.
fn prepare() -> Result<(), Fatal> {
    for directory in ["/tmp/lvm", "/var/tmp", "/run/lock"] {
        fs::create_dir_all(directory).map_err(|error| format!("{directory}: {error}"))?;
    }
    // What is there already serves as well.
    let _ = symlink("/proc/self/fd", "/dev/fd");
    // guestfsd runs `udevadm settle` before each call that concerns a device.
    let places = ["/bin/udevadm", "/sbin/udevadm", "/usr/bin/udevadm", "/usr/sbin/udevadm"];
    let udevadm: BTreeSet<_> = places.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
    for path in udevadm {
        mount_bind("/bin/true", &path).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let has_devices_file =
        ["/sbin/lvmdevices", "/usr/sbin/lvmdevices"].iter().any(|it| Path::new(it).exists());
    let devices_file = if has_devices_file { "\tuse_devicesfile = 0\n" } else { "" };
    let config = format!(
        "devices {{\n\tobtain_device_list_from_udev = 0\n{devices_file}}}\n\
         activation {{\n\tudev_sync = 0\n\tudev_rules = 0\n}}\n"
    );
    fs::write("/tmp/lvm/lvm.conf", config)?;
    Ok(())
}

/// Waits for the end of a child. Process 1 inherits the children of others, whose ends it takes.
fn wait_for(child: u32) -> Result<(), Fatal> {
    let child = i32::try_from(child).ok().and_then(Pid::from_raw).ok_or("no process")?;
    loop {
        match rustix::process::wait(rustix::process::WaitOptions::empty()) {
            Ok(Some((ended, _))) if ended == child => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Calls `look` until it finds something, for at most a minute.
fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, Fatal> {
    const MOST: Duration = Duration::from_secs(60);
    const PAUSE: Duration = Duration::from_millis(5);
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if begun.elapsed() > MOST {
            return Err(format!("{what} did not appear within a minute").into());
        }
        std::thread::sleep(PAUSE);
    }
}
