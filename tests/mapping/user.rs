//! An ordinary user needs no more than a readable image, and for the commands of docs/fleet.md a
//! libvirt of the user's own.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;
use virt_bmap_testutil::fixture;
use virt_bmap_testutil::formats;
use virt_bmap_testutil::mapping;
use virt_bmap_testutil::sandbox::{NOBODY, Sandbox, kill};
use virt_bmap_testutil::textmap::body;
use virt_bmap_testutil::tools::{self, needs};

/// As `nobody`, in a network namespace without a network, in two formats.
#[test]
fn images_that_may_only_be_read() {
    needs!("guestfish", "sfdisk", "qemu-img", "setpriv", "unshare");
    if !tools::is_root("become another user") {
        return;
    }
    let sandbox = Sandbox::new().wrapper(["unshare", "--net"]).run_as_nobody();
    let raws = [fixture::small(), fixture::plain()];
    let images = ["raw", "vmdk"].map(|format| sandbox.cwd().join(format!("guest.{format}")));
    for ((raw, image), format) in raws.iter().zip(&images).zip(["raw", "vmdk"]) {
        formats::convert(&raw.image, image, format, "");
        // The user may read the image, but not write it.
        fs::set_permissions(image, fs::Permissions::from_mode(0o444)).unwrap();
    }
    let before = images.each_ref().map(|image| tools::sha256(image));
    let run = sandbox.run(["guest.raw", "guest.vmdk"]);
    run.assert_code(0);
    assert_eq!(images.each_ref().map(|image| tools::sha256(image)), before);
    assert!(body(&run.read("guest.bmap")) == body(&mapping::of(&raws, &[]).text));
}

/// The libvirt of the user `nobody`: a daemon that `virsh` starts when it needs one, and the images
/// of one domain.
struct Session {
    dir: tempfile::TempDir,
}

impl Session {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("vblv").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let session = Self { dir };
        let owner = Some(NOBODY.parse().unwrap());
        for name in ["home", "run"] {
            fs::create_dir(session.at(name)).unwrap();
            fs::set_permissions(session.at(name), fs::Permissions::from_mode(0o700)).unwrap();
            chown(session.at(name), owner, owner).unwrap();
        }
        session
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Defines a domain with these disks in libvirt: their images and formats.
    fn define(&self, name: &str, disks: &[(PathBuf, &str)]) {
        let disks = disks.iter().zip('a'..).map(|((image, format), letter)| {
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'/>\
                 <target dev='vd{letter}' bus='virtio'/></disk>",
                image.display()
            )
        });
        let domain = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>\
             <os><type arch='x86_64'>hvm</type></os><devices>{}</devices></domain>",
            disks.collect::<String>()
        );
        fs::write(self.at("domain.xml"), domain).unwrap();
        tools::output(self.virsh("define").arg(self.at("domain.xml")));
    }

    fn virsh(&self, command: &str) -> Command {
        let mut virsh = tools::command("setpriv");
        virsh.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".into()]);
        virsh.args(["virsh", "-c", "qemu:///session", command]).current_dir(self.at("home"));
        virsh
            .env("HOME", self.at("home"))
            .env("XDG_RUNTIME_DIR", self.at("run"))
            .env_remove("XDG_CACHE_HOME")
            .env_remove("XDG_CONFIG_HOME");
        virsh
    }

    /// A sandbox in which programs use this session's libvirt.
    fn sandbox(&self) -> Sandbox {
        let sandbox = Sandbox::new().run_as_nobody();
        sandbox.env("HOME", self.at("home")).env("XDG_RUNTIME_DIR", self.at("run"))
    }

    /// Ends the daemon. The next program that needs a daemon starts another.
    fn end_daemon(&self) {
        let Ok(pid) = fs::read_to_string(self.at("run/libvirt/libvirtd.pid")) else { return };
        let pid: i32 = pid.trim().parse().unwrap();
        kill(pid, rustix::process::Signal::TERM);
        let begun = std::time::Instant::now();
        // A process that has ended, and that nobody has waited for, has no command line.
        let runs = || fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
        while runs() && begun.elapsed().as_secs() < 20 {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end_daemon();
    }
}

#[test]
fn domains_of_the_users_own_libvirt() {
    needs!("guestfish", "sfdisk", "qemu-img", "setpriv", "virsh", "libvirtd");
    if !tools::is_root("become another user") {
        return;
    }
    let session = Session::new();
    let images = [(session.at("system.qcow2"), "qcow2"), (session.at("data.img"), "raw")];
    for ((image, format), raw) in images.iter().zip([fixture::small(), fixture::lv_only()]) {
        formats::convert(&raw.image, image, format, "");
        fs::set_permissions(image, fs::Permissions::from_mode(0o444)).unwrap();
    }
    session.define("two disks", &images);
    let alone = mapping::of(&[fixture::small(), fixture::lv_only()], &[]);

    // The first program that asks starts the daemon, which stays.
    session.end_daemon();
    let plan = session.sandbox().run(["fleet", "plan", "-c", "qemu:///session"]);
    plan.assert_code(0);
    let disk = |(image, format): &(PathBuf, &str)| {
        format!("{{\"path\":\"{}\",\"format\":\"{format}\"}}", image.display())
    };
    let disks = images.iter().map(disk).collect::<Vec<_>>().join(",");
    let manifest = format!("{{\"id\":\"two%20disks\",\"disks\":[{disks}]}}\n");
    assert_eq!(String::from_utf8(plan.stdout).unwrap(), manifest);

    let run = session.sandbox().run(["-d", "two disks", "-c", "qemu:///session"]);
    run.assert_code(0);
    assert!(body(&run.read("two%20disks.bmap")) == body(&alone.text));
    let fleet = session.sandbox();
    fs::write(fleet.cwd().join("guests.jsonl"), manifest).unwrap();
    let fleet = fleet.run(["fleet", "run", "--manifest", "guests.jsonl"]);
    fleet.assert_code(0);
    assert!(body(&fleet.read("maps/two%20disks.bmap")) == body(&alone.text));
}
