//! Process 1 of virt-bmap-rs's own appliance.
//!
//! The kernel starts the agent as `/init` of the initial RAM filesystem. It does what libguestfs's
//! own init script does for the calls that virt-bmap-rs makes, without udev: it loads the modules
//! that reach the root disk, enters that disk, makes the links in `/dev` that udev would make, has
//! arrays and volumes assembled where the disks have signatures of them, and runs guestfsd. When
//! guestfsd ends, the appliance ends.

mod boot;
mod links;
pub(crate) mod scan;
mod signatures;

use crate::Fatal;
use rustix::process::Pid;
use rustix::system::{RebootCommand, reboot};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
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
    boot::enter_root()?;
    stages.end("root");
    let options = boot::Options::of_kernel()?;
    prepare()?;
    let channel = links::make(&options.channel)?;
    stages.end("links");
    crate::kernel_log::quieten()?;
    scan::run();
    stages.end("scans");
    // Of this process's file in the initial RAM filesystem nothing but this is left.
    fs::copy("/proc/self/exe", AGENT)?;
    crate::disable_readahead::run()?;
    let mut daemon = Command::new("guestfsd");
    daemon.arg("--channel").arg(channel).stdin(Stdio::null());
    if options.is_verbose {
        daemon.arg("--verbose");
    }
    let daemon = daemon.envs(ENVIRONMENT).spawn().map_err(|error| format!("guestfsd: {error}"))?;
    stages.end("guestfsd");
    wait_for(daemon.id())
}

/// Where the host finds the agent.
const AGENT: &str = "/run/virt-bmap-agent";

/// The environment of guestfsd and of the programs that it runs.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", PATH),
    ("LVM_SYSTEM_DIR", "/tmp/lvm"),
    // Without these, LVM, cryptsetup and mdadm would wait for udev.
    ("DM_DISABLE_UDEV", "1"),
    ("MDADM_NO_UDEV", "1"),
];

const PATH: &str = "/sbin:/usr/sbin:/bin:/usr/bin";

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
fn prepare() -> Result<(), Fatal> {
    for directory in ["/tmp", "/var/tmp", "/sysroot", "/tmp/lvm", "/run/lock"] {
        if !Path::new(directory).is_dir() {
            let _ = fs::remove_file(directory);
            fs::create_dir_all(directory).map_err(|error| format!("{directory}: {error}"))?;
        }
    }
    for (link, to) in
        [("/dev/fd", "/proc/self/fd"), ("/etc/mtab", "/proc/mounts"), ("/var/lock", "../run/lock")]
    {
        // What is there already serves as well.
        let _ = symlink(to, link);
    }
    // guestfsd runs `udevadm settle` before each call that concerns a device.
    for udevadm in ["/bin/udevadm", "/sbin/udevadm", "/usr/bin/udevadm", "/usr/sbin/udevadm"] {
        if fs::remove_file(udevadm).is_ok() {
            symlink("/bin/true", udevadm)?;
        }
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
