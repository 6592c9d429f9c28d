//! A small disk with a made-up map, for tests of the log of its clients.

use super::sandbox::Sandbox;
use std::fs;
use std::os::unix::fs::FileExt as _;

/// The size of the image.
pub const SIZE: u64 = 8 << 20;

/// The map of the disk. The first MiB is in no partition. Then follows a partition with a directory
/// and two files. The second file is in two pieces.
pub const MAP: &str = "\
1 0 100000 v /dev/sda
1 100000 101000 d /dev/sda1 /
1 100000 101000 p /dev/sda1
1 100000 101000 v /dev/sda
1 101000 201000 f /dev/sda1 /first
1 101000 201000 p /dev/sda1
1 101000 201000 v /dev/sda
1 201000 203000 f /dev/sda1 /a \"second\"
1 201000 203000 p /dev/sda1
1 201000 203000 v /dev/sda
1 203000 400000 p /dev/sda1
1 203000 400000 v /dev/sda
1 400000 402000 f /dev/sda1 /a \"second\"
1 400000 402000 p /dev/sda1
1 400000 402000 v /dev/sda
1 402000 800000 p /dev/sda1
1 402000 800000 v /dev/sda
";

/// A sandbox with `disk.raw` and its map `disk.bmap`. Every 4 KiB of the disk begin with their
/// number.
pub fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    let image = fs::File::create(sandbox.cwd().join("disk.raw")).unwrap();
    for block in 0..SIZE / 4096 {
        let mut bytes = [0x5a; 4096];
        bytes[..8].copy_from_slice(&block.to_le_bytes());
        image.write_all_at(&bytes, block * 4096).unwrap();
    }
    fs::write(sandbox.cwd().join("disk.bmap"), MAP).unwrap();
    sandbox
}

/// `nbdsh` with the Python for which Debian packages libnbd. The first Python in `PATH` may be
/// another.
pub const NBDSH: &str = "/usr/bin/python3 -m nbd";

/// Writes a script for nbdsh beside the image, and returns the shell command that runs it.
pub fn nbdsh(sandbox: &Sandbox, script: &str) -> String {
    fs::write(sandbox.cwd().join("client.py"), script).unwrap();
    format!("{NBDSH} --base-allocation -u \"$uri\" -c - <client.py")
}
