//! The guests of the table: their disks, what is on the disks, and how the guests are made.
//!
//! One appliance makes each guest once, from the guest's script. The guest is kept under
//! `target/fixtures`.

use crate::arbiter::{Copies, Plain, Rules};
use crate::population::{self, Abilities, Blob, TestFile};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, copy};
use std::path::{Path, PathBuf};
use virt_bmap_testutil::{cache, guestfish, mastering, tools};

/// One row of the table: a filesystem, or a layer with a filesystem on it.
pub(crate) struct Row {
    /// Its name in the table.
    pub(crate) name: &'static str,
    /// The files. A filesystem and its snapshot may hold different versions of them.
    pub(crate) files: Vec<TestFile>,
    /// The rules by which the files are judged.
    pub(crate) rules: Rules,
    /// On how many devices the map must have each path: 2 if there is a snapshot.
    pub(crate) instances: usize,
    /// Where the filesystem lies, if it lies in one piece and no layer changes its bytes.
    pub(crate) place: Option<Place>,
    /// The options and the device with which the appliance mounts it, and those of its snapshots.
    /// None if it has no free space.
    pub(crate) mounts: Vec<String>,
    /// Why `statfs` counts other bytes as free than the map.
    pub(crate) free_differs: Option<&'static str>,
}

impl Row {
    /// The name of the directory that holds its files.
    pub(crate) fn slug(&self) -> &str {
        self.files[0].names[0].split('/').nth(1).unwrap()
    }
}

/// Where a filesystem lies that is in one piece.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The number of the disk, counted from 1.
    pub(crate) disk: u32,
    /// The offset of the first byte on the disk.
    pub(crate) start: u64,
    /// Number of bytes.
    pub(crate) length: u64,
    /// The name of the driver that mounts it.
    pub(crate) kind: &'static str,
}

/// A guest that is to be made.
pub(crate) struct Guest {
    /// The name of its directory.
    pub(crate) name: &'static str,
    /// Its disks: `disk1.raw` and so on.
    disks: Vec<Disk>,
    /// The script that the appliance runs.
    script: String,
    /// The commands that open its layers in an appliance that did not make them.
    open: String,
    blob: Blob,
    /// The programs on this machine that make it.
    pub(crate) tools: Vec<&'static str>,
    /// The number of its disk that is [`peers::RECORDED`](crate::peers::RECORDED).
    pub(crate) recorded: Option<u32>,
    /// Whether it may lack its programs, also where everything must be installed.
    pub(crate) is_optional: bool,
    /// Its rows in the table.
    pub(crate) rows: Vec<Row>,
    /// The options with which the program maps it.
    pub(crate) options: Vec<&'static str>,
    /// The encrypted areas on its disks.
    pub(crate) plain: Vec<Plain>,
    /// Whether it is small enough for a probe that needs a third of a second for each object.
    pub(crate) is_small: bool,
}

struct Disk {
    /// In MiB.
    size: u64,
    /// Sizes of its partitions in MiB. The partitions lie one after the other.
    parts: Vec<u64>,
    /// The partition table as input for `sfdisk`. Empty if the disk has none.
    table: String,
    /// Images that this machine makes, each with its offset on the disk in bytes.
    images: Vec<(Image, u64)>,
    /// The format of the image that the program maps.
    format: &'static str,
    /// Bytes of a sector.
    sector: u64,
}

impl Disk {
    /// The command of guestfish that attaches its raw image.
    fn attach(&self, number: usize) -> String {
        let size = if self.sector == 512 { String::new() } else { format!(" blocksize:{}", self.sector) };
        format!("add-drive disk{number}.raw format:raw cachemode:unsafe{size}\n")
    }
}

/// The beginning of the script of [`Guest::examination`].
const EXAMINE: &str = include_str!("examine.sh");

/// Makes an image in a directory, and returns the path of the image.
pub(crate) type Image = Box<dyn Fn(&Path) -> PathBuf>;

pub(crate) const MIB: u64 = 1 << 20;

impl Guest {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            disks: Vec::new(),
            script: population::PRELUDE.to_owned(),
            open: String::new(),
            blob: Blob::default(),
            tools: vec!["guestfish", "sfdisk"],
            recorded: None,
            is_optional: false,
            rows: Vec::new(),
            options: Vec::new(),
            plain: Vec::new(),
            is_small: false,
        }
    }

    /// Adds a disk of `size` MiB without partitions.
    fn disk(&mut self, size: u64) {
        let parts = Vec::new();
        self.disks.push(Disk {
            size,
            parts,
            table: String::new(),
            images: Vec::new(),
            format: "raw",
            sector: 512,
        });
    }

    /// Adds a disk with a GPT and partitions of these sizes in MiB. The first partition begins at 1
    /// MiB.
    pub(crate) fn gpt(&mut self, parts: &[u64]) {
        let line = |_, at, size| format!("start={}, size={}\n", at * MIB / 512, size * MIB / 512);
        self.parted(parts, 512, "label: gpt\n", line, "");
    }

    /// The same on a disk with sectors of 4096 bytes.
    pub(crate) fn gpt_of_large_sectors(&mut self, parts: &[u64]) {
        let line = |number, at, size| {
            let (first, last) = (at * MIB / 4096, (at + size) * MIB / 4096 - 1);
            format!("n\n{number}\n{first}\n{last}\n")
        };
        self.parted(parts, 4096, "g\n", line, "w\n");
    }

    /// Adds a disk with partitions. `line` gives the commands for a partition by its number, its
    /// beginning and its size.
    fn parted(
        &mut self,
        parts: &[u64],
        sector: u64,
        first: &str,
        line: impl Fn(usize, u64, u64) -> String,
        last: &str,
    ) {
        let (mut table, mut at) = (first.to_owned(), 1);
        for (number, size) in (1..).zip(parts) {
            table += &line(number, at, *size);
            at += size;
        }
        table += last;
        let parts = parts.to_vec();
        self.disks.push(Disk { size: at + 1, parts, table, images: Vec::new(), format: "raw", sector });
    }

    /// Puts an image that this machine makes on the last disk, at `at` MiB.
    pub(crate) fn image(&mut self, image: Image, at: u64) {
        self.disks.last_mut().unwrap().images.push((image, at * MIB));
    }

    /// Where partition `part` of a disk lies that [`Guest::gpt`] made. Partition 0 is the whole
    /// disk.
    pub(crate) fn place(&self, disk: u32, part: usize, kind: &'static str) -> Option<Place> {
        let on = &self.disks[disk as usize - 1];
        let (start, length) = match part.checked_sub(1) {
            None => (0, on.size),
            Some(before) => (1 + on.parts[..before].iter().sum::<u64>(), on.parts[before]),
        };
        Some(Place { disk, start: start * MIB, length: length * MIB, kind })
    }

    /// Adds commands to the script.
    pub(crate) fn run(&mut self, commands: &str) {
        writeln!(self.script, "{commands}").unwrap();
    }

    /// Adds a row of files, and the commands that mount a filesystem and write the files there.
    /// `mount` has the options and the device.
    pub(crate) fn fill(
        &mut self,
        name: &'static str,
        slug: &str,
        mount: &str,
        can: Abilities,
        block: u64,
    ) -> &mut Row {
        let mut files = population::files(slug, self.next_id(), can);
        if self.is_small {
            files.retain(population::is_one_of_few);
        }
        let commands = population::script(&files, can, &mut self.blob);
        self.run(&format!("mkdir -p /mnt/{slug}\nmount {mount} /mnt/{slug}\ncd /mnt/{slug}"));
        self.run(&commands);
        self.run(&format!("cd /\numount /mnt/{slug}"));
        let row = self.row(name, files, can, block);
        row.mounts.push(mount.to_owned());
        row
    }

    fn row(&mut self, name: &'static str, files: Vec<TestFile>, can: Abilities, block: u64) -> &mut Row {
        let rules = Rules {
            block,
            large: None,
            copies: Copies::All,
            compressible: can.compressible,
            packed: false,
            has_tails: false,
            metadata: false,
        };
        self.rows.push(Row {
            name,
            files,
            rules,
            instances: 1,
            place: None,
            mounts: Vec::new(),
            free_differs: None,
        });
        self.rows.last_mut().unwrap()
    }

    fn next_id(&self) -> u32 {
        (self.rows.len() as u32 + 1) * 1000
    }

    /// Adds a row of files. This machine makes the image with the files. It goes to the last disk,
    /// at `at` MiB.
    pub(crate) fn made_here(
        &mut self,
        name: &'static str,
        slug: &'static str,
        at: u64,
        can: Abilities,
        block: u64,
        make: impl Fn(&Path, &Path) + 'static,
    ) -> &mut Row {
        let files = population::files(slug, self.next_id(), can);
        let tree = files.clone();
        let image: Image = Box::new(move |staging| {
            let (root, image) = (staging.join(slug), staging.join(format!("{slug}.image")));
            population::write_tree(&root, &tree, can);
            make(&root, &image);
            image
        });
        self.disks.last_mut().unwrap().images.push((image, at * MIB));
        self.row(name, files, can, block)
    }

    /// Whether the programs that make it are installed. If not, says so, and fails unless it is
    /// optional.
    pub(crate) fn can_be_made(&self) -> bool {
        let missing = |tool: &&&str| tools::find(tool).is_none();
        match self.tools.iter().find(missing) {
            Some(tool) if self.is_optional => {
                eprintln!("{}: {tool} is not installed", self.name);
                false
            }
            _ => tools::installed(&self.tools),
        }
    }

    /// The raw images of its disks. They are made if they do not exist.
    pub(crate) fn images(&self) -> Vec<PathBuf> {
        let sources = (
            [include_str!("guests.rs"), include_str!("uncommon.rs"), include_str!("population.rs")],
            (mastering::SOURCE, mastering::MAKERS),
        );
        let recipe: Vec<_> = self.disks.iter().map(|d| (d.size, &d.table, d.images.len())).collect();
        // The script does not show how this machine makes images, so the key includes the source
        // code.
        let here = self.disks.iter().any(|disk| !disk.images.is_empty()).then_some(sources);
        let key = cache::key((&self.script, recipe, here, self.examination()));
        let dir = cache::directory(&format!("accuracy-{}", self.name), &key, |dir| self.make(dir));
        (1..=self.disks.len()).map(|number| dir.join(format!("disk{number}.raw"))).collect()
    }

    /// What the script of [`Guest::examination`] printed when the guest had been made.
    pub(crate) fn state(&self) -> String {
        fs::read_to_string(self.images()[0].with_file_name("state")).unwrap()
    }

    /// The script that prints what the filesystems' checkers say, and the hashes of all files.
    pub(crate) fn examination(&self) -> String {
        let rows = self.rows.iter().flat_map(|row| row.mounts.iter().map(|mount| (row.slug(), mount)));
        let calls = rows.map(|(slug, mount)| format!("examine {slug} {mount}\n"));
        format!("{EXAMINE}{}\n{}close_all\n", self.open, calls.collect::<String>())
    }

    fn make(&self, dir: &Path) {
        let staging = tempfile::tempdir().unwrap();
        let mut script = String::new();
        for (number, disk) in (1..).zip(&self.disks) {
            let path = dir.join(format!("disk{number}.raw"));
            File::create(&path).unwrap().set_len(disk.size * MIB).unwrap();
            if !disk.table.is_empty() {
                let table = staging.path().join("table");
                fs::write(&table, &disk.table).unwrap();
                let input = File::open(&table).unwrap();
                // Only fdisk makes a table for large sectors in a file.
                let sector = disk.sector.to_string();
                let (program, options) = match disk.sector {
                    512 => ("sfdisk", &["-q"][..]),
                    _ => ("fdisk", &["-b", &sector][..]),
                };
                tools::output(tools::command(program).args(options).arg(&path).stdin(input));
            }
            for (image, at) in &disk.images {
                let mut image = File::open(image(staging.path())).unwrap();
                let mut out = File::options().write(true).open(&path).unwrap();
                out.seek(SeekFrom::Start(*at)).unwrap();
                copy(&mut image, &mut out).unwrap();
                assert!(out.metadata().unwrap().len() == disk.size * MIB, "an image is larger than its disk");
            }
            script.push_str(&disk.attach(number));
        }
        let [blob, commands, examine] =
            ["blob", "make.sh", "examine.sh"].map(|name| staging.path().join(name));
        self.blob.write(&blob);
        fs::write(&commands, guestfish::by_label(&self.script)).unwrap();
        fs::write(&examine, guestfish::by_label(&self.examination())).unwrap();
        write!(
            script,
            "add-drive {} readonly:true format:raw label:src\nrun\ndebug-upload {} /tmp/make.sh 0700\n\
             debug sh 'bash /tmp/make.sh >&2 || {{ dmesg | tail -5 >&2; exit 1; }}'\n\
             debug-upload {} /tmp/examine.sh 0700\ndebug sh 'bash /tmp/examine.sh'\nshutdown\n",
            blob.display(),
            commands.display(),
            examine.display(),
        )
        .unwrap();
        fs::write(dir.join("state"), guestfish::run(dir, &script)).unwrap();
    }

    /// Copies the content of the open encrypted device `name` to the last disk. `copies` says on
    /// which disks the encrypted data lie, and at how many MiB they begin. `size` is their largest
    /// possible length in MiB.
    fn in_clear(&mut self, name: &str, copies: &[(u32, u64)], size: u64) {
        let at = self.plain.iter().map(|plain| plain.length).sum::<u64>();
        let disk = self.disks.len() as u32;
        let device = char::from(b'a' + disk as u8 - 1);
        self.run(&format!(
            "sync\ndd status=none if=/dev/mapper/{name} of=/dev/sd{device} bs=1M seek={}",
            at / MIB
        ));
        let copies = copies.iter().map(|(disk, at)| (*disk, at * MIB)).collect();
        self.plain.push(Plain { at: (disk, at), length: size * MIB, copies });
    }

    /// The commands of guestfish that attach the disks that the program maps.
    pub(crate) fn attach(&self) -> String {
        (1..=self.formats().len()).map(|number| self.disks[number - 1].attach(number)).collect()
    }

    /// The formats of the disks that the program maps.
    pub(crate) fn formats(&self) -> Vec<&'static str> {
        let given = self.disks.len() - usize::from(!self.plain.is_empty());
        self.disks[..given].iter().map(|disk| disk.format).collect()
    }
}

/// All guests, in the order of the table.
pub(crate) fn all() -> Vec<Guest> {
    vec![
        ext(),
        xfs(),
        btrfs(),
        foreign(),
        optical(),
        tables(),
        lvm(),
        md(),
        luks(),
        bitlocker(),
        dynamic(),
        crate::uncommon::uncommon(),
        crate::uncommon::rare(),
        small(),
    ]
}

/// What ext4 can do.
pub(crate) const UNIX: Abilities = Abilities::UNIX;

/// The ext family.
pub(crate) fn ext() -> Guest {
    let mut g = Guest::new("ext");
    g.gpt(&[32; 7]);
    for (part, name, slug, mkfs, block) in [
        (1, "ext2, 1 KiB blocks", "ext2", "mkfs.ext2 -b 1024", 1024),
        (2, "ext3, 2 KiB blocks", "ext3", "mkfs.ext3 -b 2048", 2048),
        (3, "ext4, 1 KiB blocks", "ext4-1k", "mkfs.ext4 -b 1024", 1024),
        (4, "ext4, 4 KiB blocks", "ext4-4k", "mkfs.ext4 -b 4096", 4096),
        (5, "ext4, inline_data", "ext4-inline", "mkfs.ext4 -b 4096 -O inline_data", 4096),
        (6, "ext4, bigalloc", "ext4-bigalloc", "mkfs.ext4 -b 4096 -O bigalloc -C 16384", 4096),
        (7, "ext4, data=journal", "ext4-journal", "mkfs.ext4 -b 4096", 4096),
    ] {
        g.run(&format!("{mkfs} -q /dev/sda{part}"));
        let can = if part < 3 { UNIX.no_unwritten() } else { UNIX };
        let options = if part == 7 { "-o data=journal " } else { "" };
        let place = g.place(1, part, "ext4");
        let row = g.fill(name, slug, &format!("{options}/dev/sda{part}"), can, block);
        row.place = place;
        if part == 7 {
            // The data that went through the journal are still in it.
            row.rules.copies = Copies::Any;
        }
    }
    g.disk(12);
    g.recorded = Some(2);
    let ntfs: Image = Box::new(|staging| {
        let image = staging.join("ntfs.image");
        fs::write(&image, zstd::decode_all(crate::peers::RECORDED).unwrap()).unwrap();
        image
    });
    g.image(ntfs, 0);
    g
}

/// XFS.
pub(crate) fn xfs() -> Guest {
    let mut g = Guest::new("xfs");
    g.gpt(&[320, 320, 320, 320]);
    for (part, name, slug, options, block) in [
        (1, "xfs, without reflinks", "xfs-plain", "-m reflink=0", 4096),
        (2, "xfs, reflinks", "xfs-reflink", "-m reflink=1", 4096),
        (3, "xfs, 1 KiB blocks", "xfs-1k", "-b size=1024 -m reflink=0", 1024),
        (4, "xfs, reflinks and reverse mapping", "xfs-rmap", "-m rmapbt=1,reflink=1", 4096),
    ] {
        g.run(&format!("mkfs.xfs -q -f {options} /dev/sda{part}"));
        let can = if part % 2 == 0 { UNIX.with_reflinks() } else { UNIX };
        let place = g.place(1, part, "xfs");
        let row = g.fill(name, slug, &format!("/dev/sda{part}"), can, block);
        row.place = place;
        row.free_differs = Some(XFS_FREE);
    }
    g
}

/// `xfs_fs_statfs` of the kernel subtracts `m_alloc_set_aside` from the free blocks.
pub(crate) const XFS_FREE: &str = "less what it sets aside";

/// `btrfs_statfs` of the kernel counts what can still be written, in the profile of the data.
const BTRFS_FREE: &str = "an estimate";

/// btrfs.
pub(crate) fn btrfs() -> Guest {
    let mut g = Guest::new("btrfs");
    let can = UNIX.with_reflinks();
    g.gpt(&[260; 16]);
    g.gpt(&[260; 16]);
    g.run("mkfs.btrfs -q -f -d single -m dup /dev/sda1");
    let place = g.place(1, 1, "btrfs");
    g.fill("btrfs, single", "btrfs-single", "/dev/sda1", can, 4096).place = place;

    g.run("mkfs.btrfs -q -f -d single -m single /dev/sda2\nmkdir /mnt/sv\nmount /dev/sda2 /mnt/sv");
    g.run("btrfs -q subvolume create /mnt/sv/home");
    let row =
        g.fill("btrfs, subvolume and snapshot", "btrfs-subvolume", "-o subvol=home /dev/sda2", can, 4096);
    row.instances = 2;
    row.mounts.push("-o subvol=snapshot /dev/sda2".into());
    g.run("btrfs -q subvolume snapshot -r /mnt/sv/home /mnt/sv/snapshot\numount /mnt/sv");

    g.run("mkfs.btrfs -q -f -d single -m single /dev/sda3");
    let zstd = UNIX.compressible();
    g.fill("btrfs, compressed (zstd)", "btrfs-zstd", "-o compress-force=zstd /dev/sda3", zstd, 4096);

    for (part, name, slug, data) in [
        (4, "btrfs, two devices, single", "btrfs-two", "single"),
        (5, "btrfs, two devices, raid0", "btrfs-raid0", "raid0"),
        (6, "btrfs, two devices, raid1", "btrfs-raid1", "raid1"),
    ] {
        g.run(&format!("mkfs.btrfs -q -f -d {data} -m raid1 /dev/sda{part} /dev/sdb{part}"));
        g.fill(name, slug, &format!("/dev/sda{part}"), can, 4096);
    }
    g.run("mkfs.btrfs -q -f -d dup -m dup /dev/sda7");
    let place = g.place(1, 7, "btrfs");
    g.fill("btrfs, dup", "btrfs-dup", "/dev/sda7", can, 4096).place = place;
    for (part, name, slug, profile, devices) in [
        (9, "btrfs, three devices, raid1c3", "btrfs-raid1c3", "raid1c3", "/dev/sda9 /dev/sdb9 /dev/sda10"),
        (
            11,
            "btrfs, four devices, raid1c4",
            "btrfs-raid1c4",
            "raid1c4",
            "/dev/sda11 /dev/sdb11 /dev/sda12 /dev/sdb12",
        ),
        (13, "btrfs, three devices, raid5", "btrfs-raid5", "raid5", "/dev/sda13 /dev/sdb13 /dev/sda14"),
        (
            15,
            "btrfs, four devices, raid6",
            "btrfs-raid6",
            "raid6",
            "/dev/sda15 /dev/sdb15 /dev/sda16 /dev/sdb16",
        ),
    ] {
        if part >= 13 {
            for device in devices.split(' ') {
                g.run(&noise(device));
            }
        }
        // `-K` prevents a trim, which would turn the noise into zeroes.
        g.run(&format!("mkfs.btrfs -q -f -K -d {profile} -m raid1 {devices}"));
        let row = g.fill(name, slug, &format!("/dev/sda{part}"), can, 4096);
        if part >= 13 {
            row.rules.copies = Copies::Any;
        }
    }
    g.run("mkfs.btrfs -q -f -d raid10 -m raid10 /dev/sda8 /dev/sdb7 /dev/sdb8 /dev/sdb1");
    g.fill("btrfs, four devices, raid10", "btrfs-raid10", "/dev/sda8", can, 4096);
    g.open = "btrfs device scan >/dev/null".into();
    for row in &mut g.rows {
        row.free_differs = Some(BTRFS_FREE);
        // Small files lie in the nodes of trees.
        row.rules.has_tails = true;
    }
    g
}

/// BitLocker. Its metadata lie in the last 4 MiB of the volume.
pub(crate) fn bitlocker() -> Guest {
    let mut g = Guest::new("bitlocker");
    g.tools.push("python3");
    g.options.extend(["--key", "all:key:secret"]);
    g.gpt(&[44]);
    let image: Image = Box::new(|staging| {
        let image = staging.join("bitlocker");
        mastering::bitlocker(&image, 44 * MIB, "secret");
        image
    });
    g.disks[0].images.push((image, MIB));
    g.disk(44);
    g.open = "printf secret | cryptsetup open --type bitlk --key-file - /dev/sda1 bitlocker".into();
    g.run(&g.open.clone());
    g.run("mkfs.ext4 -q -b 4096 -E nodiscard /dev/mapper/bitlocker 40M");
    g.fill("BitLocker", "bitlocker", "/dev/mapper/bitlocker", UNIX, 4096);
    g.in_clear("bitlocker", &[(1, 1)], 40);
    g.run("cryptsetup close bitlocker");
    g
}

/// Windows dynamic disks. The appliance has assembled the volumes before the script begins.
pub(crate) fn dynamic() -> Guest {
    const DISKS: usize = 3;
    let mut g = Guest::new("dynamic");
    g.tools.extend(["python3", "ldmtool"]);
    for disk in 0..DISKS {
        g.disk(116);
        let image: Image = Box::new(move |staging| {
            let images: Vec<PathBuf> = (0..DISKS).map(|n| staging.join(format!("dynamic{n}"))).collect();
            mastering::dynamic_disks("mbr", &images, 116);
            images[disk].clone()
        });
        g.disks[disk].images.push((image, 0));
    }
    for (name, slug, volume) in [
        ("dynamic disk, simple", "ldm-simple", "Simple"),
        ("dynamic disks, spanned", "ldm-spanned", "Spanned"),
        ("dynamic disks, striped", "ldm-striped", "Striped"),
        ("dynamic disks, mirrored", "ldm-mirrored", "Mirrored"),
        ("dynamic disks, raid5", "ldm-raid5", "Raid5"),
    ] {
        let device = format!("/dev/mapper/ldm_vol_group_{volume}");
        let is_raid5 = volume == "Raid5";
        if is_raid5 {
            g.run(&noise(&device));
        }
        g.run(&format!("mkfs.ext4 -q -b 4096 -E nodiscard {device}"));
        let row = g.fill(name, slug, &device, UNIX, 4096);
        if is_raid5 {
            row.rules.copies = Copies::Any;
        }
    }
    g
}

/// Filesystems of other operating systems.
pub(crate) fn foreign() -> Guest {
    let mut g = Guest::new("foreign");
    let plain = UNIX.no_unwritten();
    let streams = plain.with_streams();
    // A stream is written as a file with a colon in its name.
    const NTFS: &str = "-o streams_interface=windows -t ntfs-3g";
    g.gpt(&[64, 24, 64, 64, 64, 192, 48, 192, 64, 16, 32]);
    for (part, name, slug, mkfs, mount, can, block) in [
        (1, "ntfs", "ntfs", "mkfs.ntfs -q -Q -F -s 512 -p 0 -H 0 -S 0", NTFS, streams, 4096),
        (2, "vfat, 12 bits", "fat12", "mkfs.vfat -F 12 -s 16", "-t vfat", Abilities::FAT, 8192),
        (3, "vfat, 16 bits", "fat16", "mkfs.vfat -F 16 -s 4", "-t vfat", Abilities::FAT, 2048),
        (4, "vfat, 32 bits", "fat32", "mkfs.vfat -F 32 -s 1", "-t vfat", Abilities::FAT, 512),
        (5, "exfat", "exfat", "mkfs.exfat -c 8192", "-t exfat", Abilities::FAT, 8192),
        (6, "f2fs", "f2fs", "mkfs.f2fs -q -f", "-t f2fs", UNIX, 4096),
        (7, "jfs", "jfs", "mkfs.jfs -q", "-t jfs", plain, 4096),
        (8, "nilfs2", "nilfs2", "mkfs.nilfs2 -q -f -B 64", "-i -t nilfs2", plain, 4096),
        (
            11,
            "ntfs, 1 KiB clusters",
            "ntfs-1k",
            "mkfs.ntfs -q -Q -F -c 1024 -s 512 -p 0 -H 0 -S 0",
            NTFS,
            streams,
            1024,
        ),
    ] {
        g.run(&format!("{mkfs} /dev/sda{part} > /dev/null"));
        let kind = mount.rsplit(' ').next().unwrap().trim_end_matches("-3g");
        let place = g.place(1, part, kind);
        let row = g.fill(name, slug, &format!("{mount} /dev/sda{part}"), can, block);
        row.place = place;
        match part {
            // `f2fs_statfs` of the kernel subtracts segments that only it may use.
            6 => row.free_differs = Some("less what it reserves"),
            // The log keeps older versions of the data.
            8 => row.rules.copies = Copies::Any,
            _ => {}
        }
    }
    g.tools.push("mkudffs");
    let image: Image = Box::new(|staging| {
        let image = staging.join("udf.image");
        mastering::udf(&image, 64 * MIB, 512);
        image
    });
    g.disks[0].images.push((image, (1 + 64 + 24 + 64 + 64 + 64 + 192 + 48 + 192) * MIB));
    g.fill("udf", "udf", "-t udf -o rw /dev/sda9", plain, 512);
    g.run("mkswap -q /dev/sda10 > /dev/null");
    g
}

/// Filesystems that a program makes from a directory: on partitions, and directly on a disk.
pub(crate) fn optical() -> Guest {
    let mut g = Guest::new("optical");
    g.tools.extend(["mksquashfs", "xorriso"]);
    let can = Abilities { unwritten: false, ..UNIX };
    // iso9660 stores a hole as blocks of zeroes.
    let iso_can = Abilities { holes: false, ..can };
    g.gpt(&[24, 24, 24]);
    let place = g.place(1, 1, "iso9660");
    g.made_here("iso9660 on a partition", "iso-part", 1, iso_can, 2048, mastering::iso).place = place;
    g.made_here("squashfs, uncompressed", "squashfs", 25, can, 131_072, |root, image| {
        mastering::squashfs(root, image, &["-noI", "-noD", "-noF"]);
    });
    g.made_here("squashfs, gzip", "squashfs-gzip", 49, can.compressible(), 131_072, |root, image| {
        mastering::squashfs(root, image, &[]);
    });
    // In squashfs small files and the ends of large files share blocks.
    for row in &mut g.rows[1..] {
        row.rules.packed = true;
    }
    g.disk(24);
    let place = g.place(2, 0, "iso9660");
    g.made_here("iso9660 on a whole disk", "iso-disk", 0, iso_can, 2048, mastering::iso).place = place;
    g.gpt(&[32]);
    let place = g.place(3, 1, "hfsplus");
    // xorriso makes files that claim the same blocks in place of names of one file.
    let hfsplus_can = Abilities { holes: false, links: false, forks: true, ..can };
    let row = g.made_here("hfsplus", "hfsplus", 1, hfsplus_can, 4096, |root, image| {
        mastering::hfsplus(root, image, 32 * MIB);
        let content = fs::read(root.join("hfsplus/streams/forked")).unwrap();
        mastering::make_fork(image, &content);
    });
    row.place = place;
    row.mounts.push("-t hfsplus /dev/sdc1".into());
    g
}

/// Partition tables, disks without a table, and image formats.
pub(crate) fn tables() -> Guest {
    let mut g = Guest::new("tables");
    let start = |mib: u64| mib * 2048;
    let table = format!(
        "label: dos\nstart={}, size={}, type=83\nstart={}, size={}, type=5\nstart={}, size={}, type=83\nstart={}, size={}, type=83\n",
        start(1),
        start(24),
        start(25),
        start(60),
        start(26),
        start(24),
        start(51),
        start(24)
    );
    g.disks.push(Disk { size: 90, parts: Vec::new(), table, images: Vec::new(), format: "raw", sector: 512 });
    g.gpt(&[24]);
    g.disk(24);
    for (device, name, slug) in [
        ("sda1", "MBR, primary partition", "mbr-primary"),
        ("sda5", "MBR, logical partition", "mbr-logical"),
        ("sda6", "MBR, second logical partition", "mbr-logical2"),
        ("sdb1", "GPT, second disk (qcow2)", "gpt-second"),
        ("sdc", "no partitions, third disk (vmdk)", "whole-third"),
    ] {
        g.run(&format!("mkfs.ext4 -q -F -b 4096 /dev/{device}"));
        g.fill(name, slug, &format!("/dev/{device}"), UNIX, 4096);
    }
    g.disks[1].format = "qcow2";
    g.disks[2].format = "vmdk";
    g
}

/// Logical volumes.
pub(crate) fn lvm() -> Guest {
    let mut g = Guest::new("lvm");
    g.gpt(&[400, 60]);
    g.gpt(&[400]);
    g.disk(400);
    g.run("pvcreate -q /dev/sda1 /dev/sda2 /dev/sdb1 /dev/sdc >/dev/null\nvgcreate -q -s 1M vg /dev/sda1 /dev/sda2 /dev/sdb1 /dev/sdc");
    // The appliance lacks the programs that check thin pools and caches.
    const UNCHECKED: &str = "--config 'global/thin_check_executable=\"\" global/cache_check_executable=\"\"'";
    g.run(&format!("lv() {{ lvcreate -q -q -y {UNCHECKED} \"$@\" > /dev/null; }}"));
    g.run("synced() { for i in $(seq 300); do [ \"$(lvs --noheadings -o sync_percent $1 | tr -d ' ')\" = 100.00 ] && return; sleep 0.2; done; false; }");
    for (name, slug, create) in [
        (
            "LVM linear, segments on three disks",
            "lvm-linear",
            "lv -L 10M -n v-linear vg /dev/sda1\nlvextend -q -L +12M vg/v-linear /dev/sdc\nlvextend -q -L +10M vg/v-linear /dev/sda2",
        ),
        ("LVM striped", "lvm-striped", "lv -L 32M -i 3 -I 16k -n v-striped vg /dev/sda1 /dev/sdb1 /dev/sdc"),
        ("LVM thin", "lvm-thin", "lv -L 40M -T vg/pool -c 64k\nlv -V 32M -T vg/pool -n v-thin"),
        ("LVM snapshot and its origin", "lvm-snapshot", "lv -L 32M -n v-snapshot vg"),
        (
            "LVM raid1",
            "lvm-raid1",
            "lv --type raid1 -m 1 -L 32M -n v-raid1 vg /dev/sda1 /dev/sdb1\nsynced vg/v-raid1",
        ),
        (
            "LVM mirror",
            "lvm-mirror",
            "lv --type mirror -m 1 --mirrorlog core -L 32M -n v-mirror vg /dev/sda1 /dev/sdb1\nsynced vg/v-mirror",
        ),
        (
            "LVM raid5",
            "lvm-raid5",
            "lv --type raid5 -i 2 -L 32M -n v-raid5 vg /dev/sda1 /dev/sdb1 /dev/sdc\nsynced vg/v-raid5",
        ),
        (
            "LVM cache",
            "lvm-cache",
            "lv -L 32M -n v-cache vg /dev/sda1\nlv --type cache-pool -L 16M -n fast vg /dev/sdc\nlvconvert -q -y --type cache --cachemode writethrough --cachepool vg/fast vg/v-cache",
        ),
    ] {
        g.run(create);
        let device = format!("/dev/vg/v-{}", slug.trim_start_matches("lvm-"));
        if slug == "lvm-raid5" {
            g.run(&noise(&device));
        }
        g.run(&format!("mkfs.ext4 -q -b 4096 -E nodiscard {device}"));
        let row = g.fill(name, slug, &device, UNIX, 4096);
        match slug {
            "lvm-cache" | "lvm-raid5" => row.rules.copies = Copies::Any,
            "lvm-snapshot" => {
                row.instances = 2;
                row.mounts.push("/dev/vg/later".into());
                g.run("lv -L 16M -s -n later vg/v-snapshot");
            }
            "lvm-thin" => {
                row.instances = 2;
                row.free_differs = Some("also what the pool has no block for");
                row.mounts.push("/dev/vg/thinner".into());
                g.run("lv -s -kn -n thinner vg/v-thin");
            }
            _ => {}
        }
    }
    g.run("vgchange -q -an vg");
    g.open = format!("vgchange -q -ay {UNCHECKED} vg >/dev/null");
    g
}

/// Fills a device with noise. Free space is zeroes. If all blocks of a row but one are zeroes, the
/// parity equals that one block, and the oracle takes the parity for a copy. (Zeroes remain after
/// the ends of files.)
fn noise(device: &str) -> String {
    format!("dd status=none if=/dev/urandom of={device} bs=1M 2>/dev/null || true")
}

/// Assembles all md arrays under the names with which they were made.
const ASSEMBLE: &str = "vgchange -q -an >/dev/null\nmdadm --stop --scan --quiet\n\
    mdadm --assemble --scan --quiet --homehost=any\n";

/// md arrays.
pub(crate) fn md() -> Guest {
    let mut g = Guest::new("md");
    for _ in 0..4 {
        g.gpt(&[28; 10]);
    }
    for _ in 0..4 {
        g.disk(32);
    }
    g.run("md() { local name=$1; shift; mdadm --create /dev/md/$name --run --quiet --metadata=1.2 --homehost=any --assume-clean \"$@\"; }");
    for (name, slug, number, create) in [
        ("md linear", "md-linear", 1, "--level=linear --raid-devices=2 /dev/sd[ab]1"),
        ("md raid0", "md-raid0", 2, "--level=0 --chunk=16 --raid-devices=2 /dev/sd[ab]2"),
        ("md raid1", "md-raid1", 3, "--bitmap=none --level=1 --raid-devices=2 /dev/sd[ab]3"),
        (
            "md raid10, near",
            "md-raid10",
            4,
            "--bitmap=none --level=10 --chunk=64 --raid-devices=4 /dev/sd[abcd]4",
        ),
        (
            "md raid10, far",
            "md-far",
            11,
            "--bitmap=none --level=10 --layout=f2 --chunk=64 --raid-devices=3 /dev/sd[abc]9",
        ),
        (
            "md raid10, offset",
            "md-offset",
            12,
            "--bitmap=none --level=10 --layout=o2 --chunk=64 --raid-devices=3 /dev/sd[bcd]10",
        ),
        ("md raid4", "md-raid4", 5, "--bitmap=none --level=4 --chunk=64 --raid-devices=3 /dev/sd[abc]5"),
        ("md raid5", "md-raid5", 6, "--bitmap=none --level=5 --chunk=64 --raid-devices=3 /dev/sd[abc]6"),
        ("md raid6", "md-raid6", 7, "--bitmap=none --level=6 --chunk=64 --raid-devices=4 /dev/sd[abcd]7"),
        ("md raid1 on whole disks", "md-disks", 9, "--bitmap=none --level=1 --raid-devices=2 /dev/sd[ef]"),
        ("md raid0 on whole disks", "md-disks0", 10, "--level=0 --chunk=64 --raid-devices=2 /dev/sd[gh]"),
    ] {
        g.run(&format!("md {number} {create}"));
        if (5..=7).contains(&number) {
            g.run(&noise(&format!("/dev/md/{number}")));
        }
        g.run(&format!("mkfs.ext4 -q -b 4096 -E nodiscard /dev/md/{number}"));
        let row = g.fill(name, slug, &format!("/dev/md/{number}"), UNIX, 4096);
        if (5..=7).contains(&number) {
            row.rules.copies = Copies::Any;
        }
        g.run(&format!("mdadm --stop --quiet /dev/md/{number}"));
    }
    g.run("md 8 --bitmap=none --level=1 --raid-devices=2 /dev/sd[ab]8\npvcreate -q /dev/md/8\nvgcreate -q -s 1M mdvg /dev/md/8\nlvcreate -q -y -L 20M -n lv mdvg\nmkfs.ext4 -q -b 4096 /dev/mdvg/lv");
    g.fill("LVM over md raid1", "md-lvm", "/dev/mdvg/lv", UNIX, 4096);
    g.run("vgchange -q -an mdvg\nmdadm --stop --quiet /dev/md/8");
    g.open = ASSEMBLE.to_owned();
    g.open.push_str("vgchange -q -ay mdvg >/dev/null");
    g
}

/// A few files on some filesystems, for the slow probe.
pub(crate) fn small() -> Guest {
    let mut g = Guest::new("small");
    g.is_small = true;
    g.gpt(&[16, 320, 260, 16, 16, 16, 64]);
    for (part, name, slug, mkfs, mount, can, block) in [
        (1, "ext4, few files", "few-ext4", "mkfs.ext4 -q -b 4096", "-t ext4", UNIX, 4096),
        (2, "xfs, few files", "few-xfs", "mkfs.xfs -q -f", "-t xfs", UNIX.with_reflinks(), 4096),
        (
            3,
            "btrfs, few files",
            "few-btrfs",
            "mkfs.btrfs -q -f -m single",
            "-t btrfs",
            UNIX.with_reflinks(),
            4096,
        ),
        (
            4,
            "ntfs, few files",
            "few-ntfs",
            "mkfs.ntfs -q -Q -F -s 512 -p 0 -H 0 -S 0",
            "-t ntfs-3g",
            UNIX.no_unwritten(),
            4096,
        ),
        (5, "vfat, few files", "few-vfat", "mkfs.vfat -F 16 -s 4", "-t vfat", Abilities::FAT, 2048),
        (6, "exfat, few files", "few-exfat", "mkfs.exfat -c 4096", "-t exfat", Abilities::FAT, 4096),
    ] {
        g.run(&format!("{mkfs} /dev/sda{part} > /dev/null"));
        let place = g.place(1, part, mount["-t ".len()..].trim_end_matches("-3g"));
        let row = g.fill(name, slug, &format!("{mount} /dev/sda{part}"), can, block);
        row.place = place;
        row.free_differs = match part {
            2 => Some(XFS_FREE),
            3 => Some(BTRFS_FREE),
            _ => None,
        };
    }
    g.run("pvcreate -q /dev/sda7 >/dev/null\nvgcreate -q -s 1M fewvg /dev/sda7");
    g.run("lvcreate -q -y -i 1 -L 24M -n lv fewvg >/dev/null\nmkfs.ext4 -q -b 4096 /dev/fewvg/lv");
    g.fill("LVM linear, few files", "few-lvm", "/dev/fewvg/lv", UNIX, 4096);
    g.run("vgchange -q -an fewvg");
    g.open = "vgchange -q -ay fewvg >/dev/null".into();
    g
}

/// Encrypted devices. Their decrypted content is copied to a third disk. Only the oracle reads that
/// disk. The program does not map it.
pub(crate) fn luks() -> Guest {
    let mut g = Guest::new("luks");
    g.gpt(&[40, 48, 60]);
    g.gpt(&[60]);
    g.disk(200);
    g.options.extend(["--key", "all:key:secret"]);
    g.run(
        "luks() { printf secret | cryptsetup -q luksFormat --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \"$@\" -; }",
    );
    const OPEN: &str = "open() { printf secret | cryptsetup open $1 $2 -d -; }";
    g.run(OPEN);
    // `--offset` is where the data begin, in sectors.
    for (part, name, slug, kind) in [
        (1, "LUKS1", "luks1", "--type luks1 --offset 4096"),
        (2, "LUKS2", "luks2", "--type luks2 --offset 32768"),
    ] {
        g.run(&format!("luks {kind} /dev/sda{part}\nopen /dev/sda{part} {slug}"));
        g.run(&format!("mkfs.ext4 -q -b 4096 /dev/mapper/{slug}"));
        g.fill(name, slug, &format!("/dev/mapper/{slug}"), UNIX, 4096);
        let data = if part == 1 { 1 + 2 } else { 41 + 16 };
        g.in_clear(slug, &[(1, data)], 40);
        g.run(&format!("cryptsetup close {slug}"));
    }
    g.run(
        "mdadm --create /dev/md/0 --run --quiet --metadata=1.2 --homehost=any --assume-clean --bitmap=none --data-offset=1024 --level=1 --raid-devices=2 /dev/sda3 /dev/sdb1",
    );
    g.run("luks --type luks2 --offset 32768 /dev/md/0\nopen /dev/md/0 crypt");
    g.run("pvcreate -q /dev/mapper/crypt\nvgcreate -q -s 1M cvg /dev/mapper/crypt\nlvcreate -q -y -L 24M -n lv cvg");
    g.run("mkfs.ext4 -q -b 4096 /dev/cvg/lv");
    g.fill("LVM over LUKS over md raid1", "luks-stack", "/dev/cvg/lv", UNIX, 4096);
    g.run("vgchange -q -an cvg");
    g.in_clear("crypt", &[(1, 89 + 1 + 16), (2, 1 + 1 + 16)], 48);
    g.run("cryptsetup close crypt\nmdadm --stop --quiet /dev/md/0");
    g.open = format!(
        "{OPEN}\n{ASSEMBLE}open /dev/sda1 luks1\nopen /dev/sda2 luks2\nopen /dev/md/0 crypt\n\
         vgchange -q -ay cvg >/dev/null"
    );
    g
}
