//! `--live`: domains of libvirt.

use super::host::Host;
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use virt_bmap_testutil::textmap::body;
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{fixture, mapping};

#[test]
fn a_domain_is_mapped_as_it_was() {
    needs!("guestfish", "sfdisk", "qemu-img", "libvirtd", "virsh", "setpriv", "debugfs", "e2fsck");
    if !tools::is_root("become another user") {
        return;
    }
    let host = Host::session();
    let (small, plain) = (fixture::small(), fixture::plain());
    let (raw, qcow2) = (host.image(&small.image, "raw"), host.image(&plain.image, "qcow2"));
    let description = host.describe(&[(&raw, "raw"), (&qcow2, "qcow2")]);
    let description = description.to_str().unwrap();
    host.virsh(&["define", description]).unwrap();
    host.map(&["--live"]).finish().assert_fails(&["not running", "without --live"]);
    host.virsh(&["start", "guest"]).unwrap();

    // The backup of another program is left alone.
    host.virsh(&["backup-begin", "guest", &backup(&host)]).unwrap();
    let theirs = host.backup();
    host.map(&["--live"]).finish().assert_fails(&["guest: another job runs (Backup)"]);
    assert_eq!(host.backup(), theirs);
    host.virsh(&["domjobabort", "guest"]).unwrap();

    let run = host.begin(&[]);
    let socket = host.backup().unwrap();
    assert!(Path::new(&socket).file_name().unwrap().to_str().unwrap().starts_with("virt-bmap-"));
    host.map(&["--live"]).finish().assert_fails(&["maps this guest already"]);
    run.kill();
    host.assert_clean(&socket);

    // What the guest makes of its first disk. The other disk is wiped.
    let later = host.path("later.raw");
    fs::copy(&small.image, &later).unwrap();
    let start = small.partitions[0].segments[0].disk;
    let at = |image: &Path| format!("{}?offset={start}", image.display());
    tools::run("debugfs", ["-w", "-R", &format!("write {description} news"), &at(&later)]);
    let run = host.begin(&[]);
    let size = fs::metadata(&later).unwrap().len();
    host.write(0, &format!("-s {} 0 {size}", later.display()));
    host.write(1, "-P 0x55 0 32M");
    let run = run.finish();
    run.assert_code(0).assert_says(&["hda is left out"]);
    let text = run.read("guest.bmap");
    assert!(body(&text) == body(&mapping::of(&[small, plain], &[]).text));
    let header = String::from_utf8_lossy(&text).into_owned();
    for (format, file) in [("raw", &raw), ("qcow2", &qcow2)] {
        assert!(header.contains(&format!(" format={format} name={}\n", file.display())), "{header}");
    }
    host.assert_clean(&socket);
    host.virsh(&["destroy", "guest", "--graceful"]).unwrap();
    assert!(fs::read(&raw).unwrap() == fs::read(&later).unwrap());
    tools::run("e2fsck", ["-fn", &at(&raw)]);
    tools::run("qemu-io", ["-r", "-f", "qcow2", "-c", "read -P 0x55 0 32M", qcow2.to_str().unwrap()]);
}

/// A description of a backup that is not ours.
fn backup(host: &Host) -> String {
    let path = host.path("backup.xml");
    let xml = format!(
        "<domainbackup mode='pull'><server transport='unix' socket='{}'/><disks><disk name='vda' backup='yes' type='file'>\
         <scratch file='{}'/></disk></disks></domainbackup>",
        host.path("theirs.sock").display(),
        host.path("theirs.scratch").display()
    );
    fs::write(&path, xml).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_domain_of_the_system_is_left_as_it_was() {
    needs!("guestfish", "sfdisk", "qemu-img", "libvirtd", "virsh", "unshare", "nsenter");
    if !tools::is_root("mount filesystems") {
        return;
    }
    let host = Host::system();
    let image = host.image(&fixture::small().image, "qcow2");
    host.virsh(&["create", host.describe(&[(&image, "qcow2")]).to_str().unwrap()]).unwrap();
    for signal in [Signal::KILL, Signal::TERM] {
        let mut run = host.begin(&[]);
        run.wait_until_said("starting the appliance");
        let socket = host.backup().unwrap();
        assert!(socket.starts_with("/var/lib/libvirt/qemu/domain-1-guest/virt-bmap-"), "{socket}");
        host.write(0, "-P 0x55 1M 8M");
        if signal == Signal::KILL {
            run.kill();
        } else {
            run.signal(signal);
            run.finish().assert_code(128 + signal.as_raw());
        }
        host.assert_clean(&socket);
    }
}
