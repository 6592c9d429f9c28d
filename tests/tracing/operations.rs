//! The operations of a guest on several filesystems, on several disks. In place of a guest, this
//! machine's kernel changes copies of the disks. A client then writes the blocks that differ to the
//! traced disks. docs/trace.md describes the command.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use virt_bmap_testutil::client;
use virt_bmap_testutil::sandbox::{Sandbox, sealed};
use virt_bmap_testutil::tools::{self, needs};
use virt_bmap_testutil::{cache, formats};

const DISKS: [(&str, &str, &str); 3] = [
    ("ext4", "64M", "mke2fs -q -t ext4 -b 4096"),
    ("xfs", "320M", "mkfs.xfs -q"),
    ("btrfs", "128M", "mkfs.btrfs -q"),
];

/// Mounts a filesystem and runs a shell script in it.
fn in_mounted(image: &Path, script: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mount = format!(
        "set -eu; mount -o loop {} {}; (cd {}; {script}); umount {}",
        image.display(),
        dir.path().display(),
        dir.path().display(),
        dir.path().display()
    );
    tools::run("unshare", ["--mount", "bash", "-c", &mount]);
}

const BEFORE: &str = "
    mkdir d d/below
    for f in over grown cut old mode d/below/leaf doomed; do yes $f | head -c 50000 >$f; done
    : >empty; ln mode other";

const DOING: &str = "
    mkdir made; echo 'as well' >made/'a -> b'
    yes new | dd of=over bs=4096 seek=3 count=2 iflag=fullblock conv=notrunc status=none
    yes more | head -c 20000 >>grown
    truncate -s 1000 cut
    mv old $'new\\nname'; mv d made/moved; rm doomed other; chmod 600 mode; ln grown hard
    yes later | head -c 9000 >empty";

/// The operations that `DOING` amounts to.
const DONE: [&str; 12] = [
    "delete f DEVICE /doomed",
    "unlink f DEVICE /other",
    "truncate f DEVICE /cut",
    "append f DEVICE /empty",
    "append f DEVICE /grown",
    "link f DEVICE /grown -> /hard",
    "mkdir d DEVICE /made",
    "create f DEVICE /made/a -> b",
    "rename d DEVICE /d -> /made/moved",
    "chmod f DEVICE /mode",
    "rename f DEVICE /old -> /new\\012name",
    "write f DEVICE /over",
];

/// Writes the blocks that differ to the named disks. It flushes all disks but the first.
const CLIENT: &str = r#"
import nbd, os, sys
from differences import write_differences
for number, name in enumerate(["ext4", "xfs", "btrfs"], 1):
    if name not in sys.argv[2:]:
        continue
    h = nbd.NBD()
    h.connect_uri(os.environ["uri" if number == 1 else "uri%d" % number])
    write_differences(h, sys.argv[1] + "/" + name, name)
    if number > 1:
        h.flush()
    h.shutdown()
"#;

fn disks() -> PathBuf {
    cache::directory("operations", &cache::key((DISKS, BEFORE)), |dir| {
        for (name, size, mkfs) in DISKS {
            let image = dir.join(name);
            tools::run("truncate", ["-s", size, image.to_str().unwrap()]);
            tools::run("bash", ["-c", &format!("{mkfs} {}", image.display())]);
            in_mounted(&image, BEFORE);
        }
    })
}

#[test]
fn what_was_done_to_files_of_several_file_systems() {
    needs!("mke2fs", "mkfs.xfs", "mkfs.btrfs", "mount", "unshare");
    if !tools::is_root("mount a filesystem") {
        return;
    }
    let dir = disks();
    let images = DISKS.map(|(name, ..)| dir.join(name));
    let _sealed = sealed(&images);
    let sandbox = Sandbox::new();
    for (name, ..) in DISKS {
        let copy = sandbox.cwd().join(name);
        formats::copy(&dir.join(name), &copy);
        in_mounted(&copy, DOING);
    }
    // The client writes blocks as they lie on the disks, so no state between is a filesystem. The
    // first look is that of the signal, and the second one that of the end.
    let client = format!("{} '{}'", client::put(&sandbox, CLIENT), dir.display());
    let client = format!(
        "{client} ext4; kill -USR1 $PPID; until grep -q sda done; do sleep 0.1; done; {client} xfs btrfs"
    );
    let images = images.each_ref().map(|image| image.to_str().unwrap());
    let options = ["--image-format", "raw", "-o", "log", "--operations", "done"];
    let options = options.into_iter().chain(["--operations-every", "3600", "--run", &client]);
    let run = sandbox.run(["trace"].into_iter().chain(images).chain(options));
    run.assert_code(0);
    let said = String::from_utf8(run.read("done")).unwrap();
    let done: BTreeSet<&str> = said.lines().filter(|line| !line.starts_with('#')).collect();
    let devices = ["/dev/sda", "/dev/sdb", "/dev/sdc"];
    let expected: BTreeSet<String> =
        devices.iter().flat_map(|device| DONE.map(|line| line.replace("DEVICE", device))).collect();
    assert_eq!(done, expected.iter().map(String::as_str).collect());
}
