//! Operations of a guest on volumes: btrfs on two disks, md RAID 1, a thin and a plain logical
//! volume; on a partition that the guest adds; and on a filesystem that cannot be mounted for a
//! while.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use virt_bmap_testutil::cache;
use virt_bmap_testutil::reported::{differences, on_device, operations};
use virt_bmap_testutil::sandbox::{Sandbox, sealed};
use virt_bmap_testutil::script::{ALL, Round, Writer};
use virt_bmap_testutil::tools::needs;
use virt_bmap_testutil::usermode::{self, needs_guest};

/// The sizes of the disks in MiB: two of btrfs, two of RAID 1, one of LVM, one with a partition and
/// room for another, one without partitions.
const DISKS: [u64; 7] = [128, 128, 64, 64, 256, 160, 64];

/// Without udev, the volumes' device files are made by LVM itself. The guest must not write to
/// this machine's configuration.
const LVM: &str = "
    set -e
    mount -t tmpfs lvm /etc/lvm
    echo 'activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }' >/etc/lvm/lvm.conf
    echo 'backup { backup = 0 archive = 0 }' >>/etc/lvm/lvm.conf
";

const MAKE: &str = "
    mkfs.btrfs -q -f -d raid1 -m raid1 /dev/vda /dev/vdb
    mdadm --create /dev/md0 --run --quiet --level=1 --metadata=1.2 --raid-devices=2 --assume-clean /dev/vdc /dev/vdd
    mke2fs -q -t ext4 /dev/md0
    mdadm --quiet --stop /dev/md0
    vgcreate -q vg /dev/vde
    lvcreate -q -y -L 64M -T vg/pool -V 100M -n thin
    lvcreate -q -y -L 64M -n plain vg
    mke2fs -q -t ext4 /dev/vg/thin
    mke2fs -q -t ext4 /dev/vg/plain
    sync
    vgchange -q -an vg
    printf 'label: gpt\\n,64M,L\\n' | sfdisk -q /dev/vdf
    mke2fs -q -t ext4 /dev/vdf1
    mke2fs -q -t ext4 -b 4096 /dev/vdg
    sync
";

fn disks() -> Vec<PathBuf> {
    let dir = cache::directory("volumes", &cache::key((DISKS, LVM, MAKE)), |dir| {
        let images = images(dir);
        for (image, size) in images.iter().zip(DISKS) {
            fs::File::create(image).unwrap().set_len(size << 20).unwrap();
        }
        usermode::run(&images, &format!("{LVM}{MAKE}"));
    });
    images(&dir)
}

fn images(dir: &Path) -> Vec<PathBuf> {
    (0..DISKS.len()).map(|number| dir.join(format!("disk{number}"))).collect()
}

/// Whether each state is looked at, which takes minutes, and not only the last.
fn is_long() -> bool {
    std::env::var_os("VIRT_BMAP_OPERATIONS").is_some()
}

/// The steps on one filesystem: the lines for the guest, and what must be reported.
struct Part {
    /// The device in the guest, its type and mount options.
    device: &'static str,
    mount: usermode::Mount,
    /// The device in the map.
    name: &'static str,
    rounds: Vec<Round>,
}

impl Part {
    fn new(number: usize, device: &'static str, mount: usermode::Mount, name: &'static str) -> Self {
        let each = if is_long() { 1 } else { 10 };
        Self { device, mount, name, rounds: Writer::new(7, number, ALL).rounds(10, each) }
    }

    /// The lines that perform it.
    fn lines(&self, sandbox: &Sandbox) -> String {
        let steps: Vec<&Value> = self.rounds.iter().flat_map(|round| &round.steps).collect();
        let every = self.rounds[0].steps.len();
        let list = json!({"sync": "sync", "every": every, "operations": steps});
        let name = format!("{}.json", self.name.replace('/', "-"));
        fs::write(sandbox.cwd().join(&name), list.to_string()).unwrap();
        usermode::perform(self.device, self.mount, &name)
    }
}

#[test]
fn operations_on_volumes_and_on_a_new_partition() {
    needs_guest!();
    needs!("mdadm", "lvcreate", "sfdisk", "partx");
    let parts = vec![
        Part::new(0, "/dev/vda", ("btrfs", ",device=/dev/vda,device=/dev/vdb"), "/dev/sda"),
        Part::new(1, "/dev/md0", ("ext4", ""), "/dev/md0"),
        Part::new(2, "/dev/vg/thin", ("ext4", ""), "/dev/vg/thin"),
        Part::new(3, "/dev/vg/plain", ("ext4", ""), "/dev/vg/plain"),
        Part::new(4, "/dev/vdf1", ("ext4", ""), "/dev/sdf1"),
        Part::new(5, "/dev/vdf2", ("ext4", ""), "/dev/sdf2"),
    ];
    // `make operations-torture` has all of them. The new partition is the last.
    let is_wanted = |part: &Part| is_long() || ["/dev/vg/thin", "/dev/sdf2"].contains(&part.name);
    let parts: Vec<Part> = parts.into_iter().filter(is_wanted).collect();
    let disks = disks();
    let _sealed = sealed(&disks);
    let sandbox = Sandbox::new().deadline(Duration::from_secs(3000));
    let lines: Vec<String> = parts.iter().map(|part| part.lines(&sandbox)).collect();
    let (last, others) = lines.split_last().unwrap();
    let begin = "mdadm --quiet --assemble /dev/md0 /dev/vdc /dev/vdd\nvgchange -q -ay vg\n";
    let add = "
        echo ,,L | sfdisk -q --append --no-reread /dev/vdf
        [ -b /dev/vdf2 ] || partx --add --nr 2 /dev/vdf
        mke2fs -q -t ext4 /dev/vdf2
        sync
    ";
    let script = [LVM, begin, &others.concat(), add, last].concat();
    let command = usermode::command(&sandbox.cwd(), disks.len(), &script);
    let every = if is_long() { "flush" } else { "3600" };
    let options = ["--image-format", "raw", "-o", "log", "--operations", "done.jsonl"];
    let options = options.into_iter().chain(["--operations-every", every, "--run", &command]);
    let run =
        sandbox.run(["trace"].into_iter().chain(disks.iter().map(|d| d.to_str().unwrap())).chain(options));
    assert_eq!(run.code(), 0, "{}\n{}", run.stderr, String::from_utf8_lossy(&run.read("console")));
    let operations = operations(&run.read("done.jsonl"));
    let mut wrong = String::new();
    for part in &parts {
        let mut these = on_device(&operations, part.name);
        // The new filesystem has a directory of its own.
        these.retain(|operation| operation["path"] != "/lost+found");
        let found = differences(&these, &part.rounds);
        if !found.is_empty() {
            wrong += &format!("{}:\n{found}\n", part.name);
        }
    }
    assert!(wrong.is_empty(), "{wrong}\n{}", run.stderr);
}

#[test]
fn a_filesystem_that_cannot_be_mounted_for_a_while_or_at_the_end() {
    needs_guest!();
    let disks = [disks().remove(6)];
    let _sealed = sealed(&disks);
    let sandbox = Sandbox::new();
    let mut writer = Writer::new(8, 0, ALL);
    let mount = ("ext4", "");
    let before = Part { device: "/dev/vda", mount, name: "/dev/sda", rounds: writer.rounds(4, 1) };
    let after = Part { device: "/dev/vda", mount, name: "/dev/sda-2", rounds: writer.rounds(4, 1) };
    let other =
        Part { device: "/dev/vdb", mount, name: "/dev/sdb", rounds: Writer::new(9, 0, ALL).rounds(2, 1) };
    let break_and_mend = "
        dd if=/dev/vda of=/run/superblock bs=4096 count=1 status=none
        dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync status=none
        sleep 1
        dd if=/run/superblock of=/dev/vda bs=4096 count=1 conv=fsync status=none
    ";
    let break_other = "dd if=/dev/zero of=/dev/vdb bs=4096 count=1 conv=fsync status=none\n";
    let lines = [&before, &after, &other].map(|part| part.lines(&sandbox));
    let [before_lines, after_lines, other_lines] = &lines;
    let script = [before_lines, break_and_mend, after_lines, other_lines, break_other].concat();
    let command = usermode::command(&sandbox.cwd(), 2, &script);
    let image = disks[0].to_str().unwrap();
    let options = ["--image-format", "raw", "-o", "log", "--operations", "done.jsonl", "--run", &command];
    let run = sandbox.run(["trace", image, image].into_iter().chain(options));
    // What was mended is complete. What stays broken may hide something.
    assert_eq!(run.code(), 3, "{}\n{}", run.stderr, String::from_utf8_lossy(&run.read("console")));
    run.assert_says(&["operations are missing", "/dev/sdb"]);
    assert!(!run.stderr.contains("missing: /dev/sda"), "{}", run.stderr);
    let operations = operations(&run.read("done.jsonl"));
    for (device, rounds) in [("/dev/sda", [before.rounds, after.rounds].concat()), ("/dev/sdb", other.rounds)]
    {
        let found = differences(&on_device(&operations, device), &rounds);
        assert!(found.is_empty(), "{device}:\n{found}\n{}", run.stderr);
    }
}
