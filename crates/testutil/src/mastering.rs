//! Filesystems that this machine makes from a directory in one step, as optical media are mastered,
//! and what otherwise only Windows makes: dynamic disks and BitLocker.

use super::ranges::Range;
use super::{python, tools};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Makes an ISO 9660 filesystem with Rock Ridge names.
pub fn iso(root: &Path, image: &Path) {
    xorriso(&["-R"], root, image);
}

/// Makes an HFS+ filesystem of `size` bytes. xorriso makes a hybrid image, and the filesystem is
/// copied from it.
pub fn hfsplus(root: &Path, image: &Path, size: u64) {
    let hybrid = image.with_extension("hybrid");
    xorriso(&["-hfsplus"], root, &hybrid);
    let bytes = fs::read(&hybrid).unwrap();
    // The volume header begins 1 KiB behind the start of the filesystem, with signature and
    // version.
    let at = (0..bytes.len() - 1024)
        .step_by(512)
        .find(|at| bytes[at + 1024..].starts_with(b"H+\x00\x04"))
        .expect("no HFS+ filesystem in the hybrid image");
    let field = |from: usize| u32::from_be_bytes(bytes[at + 1024 + from..][..4].try_into().unwrap());
    let block = field(40) as usize;
    let length = block * field(44) as usize;
    // xorriso counts the block behind the extents overflow file as used, but nothing has it, and the
    // last blocks as free, but they are not.
    let unused = field(208) as usize + field(212) as usize;
    let bitmap = field(128) as usize * block;
    let mut filesystem = bytes[at..(at + length).min(bytes.len())].to_vec();
    assert!(filesystem.len() as u64 + 1024 <= size, "the files do not fit");
    for number in 0..field(44) as usize {
        filesystem[bitmap + number / 8] |= 0x80 >> (number % 8);
    }
    filesystem[bitmap + unused / 8] &= !(0x80 >> (unused % 8));
    filesystem[1024 + 48..][..4].copy_from_slice(&1u32.to_be_bytes());
    let header = filesystem[1024..1536].to_vec();
    // Programs look for the second header at the end of the partition.
    filesystem.resize(size as usize, 0);
    let end = filesystem.len() - 1024;
    filesystem[end..end + 512].copy_from_slice(&header);
    fs::write(image, &filesystem).unwrap();
}

/// Makes a writable HFS+ filesystem of `size` bytes that is mostly free. xorriso makes a filesystem
/// that is locked and full. This function unlocks it and adds free blocks to its bitmap.
pub fn hfsplus_with_room(root: &Path, image: &Path, size: u64) {
    hfsplus(root, image, size);
    let mut bytes = fs::read(image).unwrap();
    let (header, end) = (1024, bytes.len() - 1024);
    let field = |at: usize| u32::from_be_bytes(bytes[header + at..][..4].try_into().unwrap());
    let (attributes, block, old, bitmap) = (field(4), field(40), field(44), field(128));
    let unused = field(208) + field(212);
    let blocks = (size / u64::from(block)) as u32;
    assert!(
        blocks <= block * 8 && field(124) == 1 && field(52) < old,
        "the bitmap must stay in its one block"
    );
    let set = |bytes: &mut Vec<u8>, at: usize, value: u32| {
        bytes[header + at..][..4].copy_from_slice(&value.to_be_bytes());
    };
    // Clear the software lock, extend the bitmap, and let the catalog grow in few pieces.
    set(&mut bytes, 4, attributes & !0x8000);
    set(&mut bytes, 44, blocks);
    set(&mut bytes, 116, blocks.div_ceil(8));
    set(&mut bytes, 280, 64 << 10);
    let bits = bitmap as usize * block as usize;
    bytes[bits..][..block as usize].fill(0);
    // All old blocks but the last and an unused one are in use, and so is the new last block. The
    // old last block held the second header.
    let used = (0..old - 1).filter(|n| *n != unused).chain([blocks - 1]).inspect(|n| assert!(*n < blocks));
    let used = used.fold(0, |count, n| {
        bytes[bits + n as usize / 8] |= 0x80 >> (n % 8);
        count + 1
    });
    set(&mut bytes, 48, blocks - used);
    let copy = bytes[header..header + 512].to_vec();
    bytes[end..end + 512].copy_from_slice(&copy);
    fs::write(image, &bytes).unwrap();
}

/// Makes the data fork of the file with this content its resource fork, in an image of HFS+: no
/// program here makes one. Returns where it lies in the image.
pub fn make_fork(image: &Path, content: &[u8]) -> Range {
    let mut disk = fs::read(image).unwrap();
    let block = u32::from_be_bytes(disk[1024 + 40..][..4].try_into().unwrap()) as usize;
    let at = disk.windows(content.len()).position(|bytes| bytes == content).unwrap();
    let blocks = content.len().div_ceil(block);
    // In the catalog: its length, a clump size, its blocks, and one extent.
    let extent = [blocks, at / block, blocks].map(|number| (number as u32).to_be_bytes()).concat();
    let length = (content.len() as u64).to_be_bytes();
    let found = disk.windows(24).position(|bytes| bytes[..8] == length && bytes[12..] == extent);
    let (data, resource) = (found.unwrap(), found.unwrap() + 80);
    disk.copy_within(data..data + 80, resource);
    disk[data..data + 80].fill(0);
    fs::write(image, disk).unwrap();
    at as u64..(at + blocks * block) as u64
}

/// Makes a squashfs with `options` of `mksquashfs`.
pub fn squashfs(root: &Path, image: &Path, options: &[&str]) {
    let options = options.iter().copied().chain(["-quiet"]).map(OsStr::new);
    tools::run("mksquashfs", [root.as_os_str(), image.as_os_str()].into_iter().chain(options));
}

/// Makes an EROFS with `options` of `mkfs.erofs`.
pub fn erofs(root: &Path, image: &Path, options: &[&str]) {
    let options = options.iter().copied().chain(["--quiet"]).map(OsStr::new);
    tools::run("mkfs.erofs", options.chain([image.as_os_str(), root.as_os_str()]));
}

/// Makes a UFS1 of `size` bytes. `makefs` puts the superblock of a UFS2 where Linux does not look.
pub fn ufs1(root: &Path, image: &Path, size: u64) {
    let options = ["-t", "ffs", "-o", "version=1,bsize=32768,fsize=4096"];
    let mut makefs = tools::command("makefs");
    tools::output(makefs.args(options).args(["-s", &size.to_string()]).arg(image).arg(root));
}

/// This file, for the keys of the fixtures that it makes.
pub const SOURCE: &str = include_str!("mastering.rs");

/// The scripts that make dynamic disks and volumes of BitLocker.
pub const MAKERS: [&str; 2] = [include_str!("dynamic_disks.py"), include_str!("bitlocker.py")];

/// Makes Windows dynamic disks of `size` MiB each, and a volume of each type on them. `table` is
/// `mbr` or `gpt`.
pub fn dynamic_disks(table: &str, images: &[PathBuf], size: u64) {
    images.iter().for_each(|image| drop(File::create(image).unwrap()));
    let maker = images[0].with_extension("py");
    fs::write(&maker, MAKERS[0]).unwrap();
    let size = size.to_string();
    let words = [maker.as_os_str(), OsStr::new(table), OsStr::new(&size)];
    tools::run("python3", words.into_iter().chain(images.iter().map(|image| image.as_os_str())));
}

/// Makes an empty volume of BitLocker of `size` bytes. Its last 4 MiB must not be written.
pub fn bitlocker(image: &Path, size: u64, password: &str) {
    File::create(image).unwrap().set_len(size).unwrap();
    let maker = image.with_extension("py");
    fs::write(&maker, MAKERS[1]).unwrap();
    let python = python::python("cryptography", "cryptography");
    let mut python = python.expect("Python's cryptography is not installed");
    let size = size.to_string();
    tools::output(python.arg(&maker).arg(image).args(["0", &size, password]));
}

/// Makes an empty UDF filesystem of `size` bytes with blocks of `block` bytes. It does not look
/// like a partitioned disk.
pub fn udf(image: &Path, size: u64, block: u64) {
    File::create(image).unwrap().set_len(size).unwrap();
    let block = format!("--blocksize={block}");
    let options = ["--media-type=hd", "--bootarea=erase", &block].map(OsStr::new);
    tools::run("mkudffs", options.into_iter().chain([image.as_os_str()]));
}

fn xorriso(options: &[&str], root: &Path, image: &Path) {
    let words = ["-as", "mkisofs", "-quiet"].iter().chain(options).chain(&["-o"]).map(OsStr::new);
    tools::run("xorriso", words.chain([image.as_os_str(), root.as_os_str()]));
}
