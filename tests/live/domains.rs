//! `--live`: domains of libvirt, with the commands of docs/live.md.

use super::host::Host;
use rustix::process::Signal;
use std::fs;
use std::path::Path;
use virt_bmap_testutil::sandbox::Sandbox;
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
    host.map(&[]).finish().assert_fails(&["not running", "without --live"]);
    host.virsh(&["start", "guest"]).unwrap();

    // Before anything starts.
    let refused = ["vda", "raw"];
    host.map(&["--checkpoint", "first"]).finish().assert_fails(&refused);

    // The backup of another program is left alone.
    host.virsh(&["backup-begin", "guest", &backup(&host)]).unwrap();
    let theirs = host.backup();
    host.map(&[]).finish().assert_fails(&["guest: another job runs (Backup)"]);
    assert_eq!(host.backup(), theirs);
    host.virsh(&["domjobabort", "guest"]).unwrap();
    // The command does not wait for the end of the job.
    host.wait_until_no_backup();

    let run = host.begin(&[]);
    let socket = host.backup().unwrap();
    assert!(Path::new(&socket).file_name().unwrap().to_str().unwrap().starts_with("virt-bmap-"));
    host.map(&[]).finish().assert_fails(&["maps this guest already"]);
    run.kill();
    host.assert_clean(&socket);

    // What the guest makes of its first disk. The other disk is wiped.
    let later = host.path("later.raw");
    fs::copy(&small.image, &later).unwrap();
    let start = small.partitions[0].segments[0].disk;
    let at = |image: &Path| format!("{}?offset={start}", image.display());
    write_news(&host, &later);
    let run = host.begin(&["--quiesce"]);
    let size = fs::metadata(&later).unwrap().len();
    host.write(0, &format!("-s {} 0 {size}", later.display()));
    host.write(1, "-P 0x55 0 32M");
    let run = run.finish();
    run.assert_code(0).assert_says(&["hda is left out", "so the map is crash-consistent: "]);
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

/// Adds a file to the filesystem of `small`.
fn write_news(host: &Host, image: &Path) {
    let news = host.path("news");
    fs::write(&news, vec![b'n'; 1 << 20]).unwrap();
    let start = fixture::small().partitions[0].segments[0].disk;
    let filesystem = format!("{}?offset={start}", image.display());
    tools::run("debugfs", ["-w", "-R", &format!("write {} news", news.display()), &filesystem]);
}

/// Bytes in a bit of libvirt's bitmaps.
const GRAIN: usize = 64 << 10;

#[test]
fn a_checkpoint_tells_what_the_guest_has_written_since() {
    needs!("guestfish", "sfdisk", "qemu-img", "libvirtd", "virsh", "setpriv", "debugfs", "nbdinfo");
    if !tools::is_root("become another user") {
        return;
    }
    let host = Host::session();
    let small = fixture::small();
    let image = host.image(&small.image, "qcow2");
    host.virsh(&["create", host.describe(&[(&image, "qcow2")]).to_str().unwrap()]).unwrap();
    let checkpoints = || host.virsh(&["checkpoint-list", "guest", "--name"]).unwrap();
    let run = host.map(&["-o", "guest.jsonl", "--checkpoint", "first"]).finish();
    run.assert_code(0);
    assert_eq!(checkpoints().trim(), "first");
    host.map(&["--checkpoint", "first"]).finish().assert_fails(&["checkpoint first exists"]);
    // Without a map there is no checkpoint.
    let interrupted = host.begin(&["--checkpoint", "second"]);
    interrupted.kill();
    assert_eq!(checkpoints().trim(), "first");

    let update = ["update", "guest.jsonl", "--since", "checkpoint:first"];
    let run = host.start(run.sandbox, &update).finish();
    run.assert_code(0);
    assert_eq!(run.stdout, b"unchanged\n");
    let wrong = ["update", "guest.jsonl", "--since", "checkpoint:other"];
    let run = host.start(run.sandbox, &wrong).finish();
    run.assert_fails(&["no checkpoint other"]);

    let later = host.path("later.raw");
    fs::copy(&small.image, &later).unwrap();
    write_news(&host, &later);
    let (old, new) = (fs::read(&small.image).unwrap(), fs::read(&later).unwrap());
    for (number, (old, new)) in old.chunks(GRAIN).zip(new.chunks(GRAIN)).enumerate() {
        if old != new {
            let chunk = host.path("chunk");
            fs::write(&chunk, new).unwrap();
            host.write(0, &format!("-s {} {} {}", chunk.display(), number * GRAIN, new.len()));
        }
    }
    // By the older map alone, and by a newer one.
    let changed = ["changed", "--since", "first", "--map", "guest.jsonl"];
    let run = host.ask(run.sandbox, &[&changed[..], &["--no-boot"]].concat()).finish();
    run.assert_code(3).assert_says(&["new files have no name"]);
    let run = host.ask(run.sandbox, &changed).finish();
    run.assert_code(0);
    let answer = String::from_utf8(run.stdout.clone()).unwrap();
    assert!(answer.starts_with("guest holds ") && answer.contains(" over checkpoint first: "), "{answer}");
    assert!(answer.lines().any(|line| line.contains("added") && line.contains("/news")), "{answer}");
    let run = host.start(run.sandbox, &[&update[..], &["--checkpoint", "second", "--csv"]].concat()).finish();
    run.assert_code(0);
    let answer = String::from_utf8(run.stdout.clone()).unwrap();
    assert!(answer.lines().any(|line| line.contains("added") && line.contains("/news")), "{answer}");
    run.assert_says(&["were written since the map was made"]);
    assert!(run.taken_over().unwrap() > 50, "{}", run.stderr);
    assert_eq!(checkpoints().split_whitespace().collect::<Vec<_>>(), ["first", "second"]);
    // The map is that of a copy.
    let copy = Sandbox::new().run([later.to_str().unwrap(), "-o", "copy.jsonl"]);
    let objects = |map: &[u8]| map.split(|byte| *byte == b'\n').skip(1).collect::<Vec<_>>().concat();
    assert!(objects(&run.read("guest.jsonl")) == objects(&copy.read("copy.jsonl")));
    assert_eq!(host.backup(), None);
}

/// An agent that answers, in place of one in the guest: what virsh says to it is written down.
const VIRSH: &str = r#"#!/bin/bash
case "$*" in
*domfsfreeze*) echo freeze >>"$0.log"; echo 'Froze 1 filesystem(s)' ;;
*domfsthaw*) echo thaw >>"$0.log" ;;
*backup-begin*)
    echo begin >>"$0.log"
    [ ! -e "$0.hang" ] || exec sleep 1000
    exec /usr/bin/virsh "$@"
    ;;
*) exec /usr/bin/virsh "$@" ;;
esac
"#;

#[test]
fn a_frozen_guest_is_thawed_at_once_and_always() {
    needs!("guestfish", "sfdisk", "qemu-img", "libvirtd", "virsh", "setpriv");
    if !tools::is_root("become another user") {
        return;
    }
    let host = Host::session();
    let image = host.image(&fixture::small().image, "qcow2");
    host.virsh(&["create", host.describe(&[(&image, "qcow2")]).to_str().unwrap()]).unwrap();
    let virsh = host.path("virsh");
    let (log, hang) = (host.path("virsh.log"), host.path("virsh.hang"));
    fs::write(&virsh, VIRSH).unwrap();
    tools::run("chmod", ["+x", virsh.to_str().unwrap()]);
    let path = format!("{}:{}", virsh.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let begin = || host.start(host.sandbox().env("PATH", &path), &["--quiesce"]);
    let said = || fs::read_to_string(&log).unwrap_or_default();

    let mut run = begin();
    run.wait_until_said("the guest agent froze the filesystems");
    assert_eq!(said(), "freeze\nbegin\nthaw\n");
    run.kill();
    assert_eq!(said(), "freeze\nbegin\nthaw\n");

    // Killed while the guest is frozen.
    fs::write(&hang, "").unwrap();
    fs::remove_file(&log).unwrap();
    let mut run = begin();
    run.wait_until("the backup is to begin", |_| said().contains("begin"));
    run.kill();
    assert_eq!(said(), "freeze\nbegin\nthaw\n");
}
