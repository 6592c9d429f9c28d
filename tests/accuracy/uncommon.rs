//! The guest with filesystems that few people have, and with a disk of large sectors.

use crate::guests::{Guest, Image, MIB, UNIX, XFS_FREE};
use crate::population::Abilities;
use std::fs::File;
use virt_bmap_testutil::{mastering, tools};

/// EROFS, UFS1, minix, ext4 whose names differ in more than case, and sectors of 4096 bytes.
pub(crate) fn uncommon() -> Guest {
    let mut g = Guest::new("uncommon");
    g.tools.extend(["fdisk", "mkfs.erofs", "makefs", "mkfs.minix"]);
    // These programs store a hole as zeroes.
    let can = Abilities { unwritten: false, holes: false, ..UNIX };
    g.gpt(&[24, 24, 48, 24, 32]);
    let place = g.place(1, 1, "erofs");
    g.made_here("erofs", "erofs", 1, can, 4096, |root, image| mastering::erofs(root, image, &[])).place =
        place;
    let place = g.place(1, 2, "erofs");
    g.made_here("erofs, lz4", "erofs-lz4", 25, can.compressible(), 4096, |root, image| {
        mastering::erofs(root, image, &["-zlz4"]);
    })
    .place = place;
    g.rows.iter_mut().for_each(|row| row.rules.has_tails = true);
    let ufs1 =
        g.made_here("ufs1", "ufs1", 49, can, 4096, |root, image| mastering::ufs1(root, image, 48 * MIB));
    // Only files that need no indirect block end with fragments: `ffs_blksize` of FreeBSD's
    // sys/ufs/ffs/fs.h, and twelve blocks of 32 KiB.
    ufs1.rules.large = Some((12 * (32 << 10), 32 << 10));
    g.image(blank("minix", 24, "mkfs.minix", &["-3"]), 97);
    g.fill("minix", "minix", "-t minix /dev/sda4", UNIX.no_unwritten(), 1024);

    let place = g.place(1, 5, "ext4");
    g.run("mkfs.ext4 -q -b 4096 -O casefold /dev/sda5\nmkdir /mnt/folded\nmount /dev/sda5 /mnt/folded");
    g.run("mkdir /mnt/folded/ext4-casefold\nchattr +F /mnt/folded/ext4-casefold\numount /mnt/folded");
    g.fill("ext4, casefold", "ext4-casefold", "/dev/sda5", UNIX, 4096).place = place;

    g.gpt_of_large_sectors(&[32, 320, 48]);
    for (part, name, slug, mkfs, can, kind) in [
        (1, "ext4, sectors of 4096 bytes", "large-ext4", "mkfs.ext4 -q -b 4096", UNIX, Some("ext4")),
        (2, "xfs, sectors of 4096 bytes", "large-xfs", "mkfs.xfs -q -f", UNIX.with_reflinks(), Some("xfs")),
        // istat takes 512 bytes for a sector.
        (3, "vfat, sectors of 4096 bytes", "large-fat", "mkfs.vfat -F 16 -s 1", Abilities::FAT, None),
    ] {
        g.run(&format!("{mkfs} /dev/sdb{part} > /dev/null"));
        let place = kind.and_then(|kind| g.place(2, part, kind));
        let row = g.fill(name, slug, &format!("/dev/sdb{part}"), can, 4096);
        row.place = place;
        row.free_differs = (part == 2).then_some(XFS_FREE);
    }
    g
}

/// ReiserFS, HFS and GFS2. Their programs are not in every release of Debian.
pub(crate) fn rare() -> Guest {
    let mut g = Guest::new("rare");
    g.is_optional = true;
    g.tools.extend(["mkreiserfs", "hformat", "mkfs.gfs2"]);
    g.gpt(&[48, 48, 80]);
    let can = UNIX.no_unwritten();
    // HFS has no links, and names of up to 31 characters.
    let hfs = Abilities { short_names: true, ..Abilities::FAT };
    let gfs2 = &["-q", "-O", "-p", "lock_nolock", "-j", "1", "-J", "8"];
    g.image(blank("reiserfs", 48, "mkreiserfs", &["-f", "-f", "-q"]), 1);
    g.image(blank("hfs", 48, "hformat", &["-l", "accuracy"]), 49);
    g.image(blank("gfs2", 80, "mkfs.gfs2", gfs2), 97);
    for (part, name, can) in [(1, "reiserfs", can), (2, "hfs", hfs), (3, "gfs2", can)] {
        let row = g.fill(name, name, &format!("-t {name} /dev/sda{part}"), can, 4096);
        row.rules.has_tails = name == "reiserfs";
    }
    g
}

/// An empty filesystem of `size` MiB that `maker` makes.
fn blank(name: &'static str, size: u64, maker: &'static str, options: &'static [&str]) -> Image {
    Box::new(move |staging| {
        let image = staging.join(name);
        File::create(&image).unwrap().set_len(size * MIB).unwrap();
        // hformat writes down in the home directory which volume it made.
        let mut command = tools::command(maker);
        tools::output(command.args(options).arg(&image).env("HOME", staging));
        image
    })
}
