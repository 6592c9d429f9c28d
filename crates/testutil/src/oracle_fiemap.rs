//! The kernel as oracle. It mounts a copy of a filesystem on this machine through a loop device,
//! and FIEMAP reports where each file lies. Needs root.

use super::fixture::Filesystem;
use super::ranges::{Range, normalise};
use super::tools;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, openat, statat};
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode};
use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, c_void};
use std::path::Path;

/// The content of a filesystem.
#[derive(Default)]
pub struct Tree {
    /// Regular files, by each of their names as absolute paths in the filesystem.
    pub files: BTreeMap<Vec<u8>, File>,
    /// Directories by name, with their own blocks if the filesystem reports them.
    pub directories: BTreeMap<Vec<u8>, Option<Vec<Range>>>,
    /// Everything else: symbolic links, fifos, devices.
    pub others: Vec<Vec<u8>>,
}

/// A regular file.
#[derive(Clone, Debug)]
pub struct File {
    /// Its inode number.
    pub inode: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The number of its names.
    pub links: u64,
    /// The number of extents that hold data.
    pub extents: usize,
    /// The places of its data on the *guest disk*, in whole blocks, without holes and unwritten
    /// extents.
    pub on_disk: Vec<Range>,
    /// Whether its data lie in its inode.
    pub inline: bool,
}

/// Whether the kernel can mount `filesystem`.
pub fn can_mount(filesystem: &Filesystem) -> bool {
    Mount::new(filesystem).is_some()
}

/// The files of `filesystem` according to the kernel.
pub fn tree(filesystem: &Filesystem) -> Tree {
    let mount = Mount::new(filesystem).expect("the kernel mounts it");
    let root =
        rustix::fs::open(mount.dir.path(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let mut tree = Tree::default();
    walk(&root, b"/", filesystem, &mut tree);
    tree
}

/// A read-only loop mount that is unmounted when the value is dropped.
struct Mount {
    dir: tempfile::TempDir,
}

impl Mount {
    /// `None` if the kernel refuses.
    fn new(filesystem: &Filesystem) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        // The filesystem was unmounted cleanly, so no journal must be replayed into the copy.
        let options = match filesystem.kind {
            "ext4" => "loop,ro,noload",
            "xfs" => "loop,ro,norecovery,nouuid",
            _ => "loop,ro",
        };
        let output = tools::command("mount")
            .args(["-t", filesystem.kind, "-o", options])
            .args([&filesystem.flat, dir.path()])
            .output();
        output.unwrap().status.success().then(|| Self { dir })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily, since the child of another test may hold a file descriptor of ours until it calls
        // exec.
        tools::command("umount").arg("--lazy").arg(self.dir.path()).status().ok();
    }
}

/// Adds everything below the directory `dir`, whose name is `path`. Opens each directory relative
/// to the one above, since a path may be longer than a system call accepts.
fn walk(dir: &OwnedFd, path: &[u8], filesystem: &Filesystem, tree: &mut Tree) {
    let own = (filesystem.kind == "ext4").then(|| {
        let extents = fiemap(dir.as_fd());
        filesystem.volume.to_disk(&extents.iter().map(|e| e.physical.clone()).collect::<Vec<_>>())
    });
    tree.directories.insert(path.to_vec(), own);
    let mut names = Vec::new();
    let mut buffer = Vec::with_capacity(1 << 16);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry.unwrap();
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    for name in names {
        let full = [if path == b"/" { b"" } else { path }, b"/", name.to_bytes()].concat();
        let stat = statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => walk(&open(dir, &name), &full, filesystem, tree),
            FileType::RegularFile => {
                let extents = fiemap(open(dir, &name).as_fd());
                let data: Vec<_> = extents.iter().filter(|e| e.flags & (UNWRITTEN | INLINE) == 0).collect();
                let file = File {
                    inode: stat.st_ino,
                    size: stat.st_size as u64,
                    links: stat.st_nlink as u64,
                    extents: data.len(),
                    on_disk: filesystem
                        .volume
                        .to_disk(&data.iter().map(|e| e.physical.clone()).collect::<Vec<_>>()),
                    inline: extents.iter().any(|e| e.flags & INLINE != 0),
                };
                tree.files.insert(full, file);
            }
            _ => tree.others.push(full),
        }
    }
}

fn open(dir: &OwnedFd, name: &CStr) -> OwnedFd {
    openat(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// `FIEMAP_EXTENT_UNWRITTEN` and `FIEMAP_EXTENT_DATA_INLINE` of `linux/fiemap.h`.
const UNWRITTEN: u32 = 0x800;
const INLINE: u32 = 0x200;
/// `FIEMAP_EXTENT_LAST`.
const LAST: u32 = 1;
/// How many extents are requested at a time.
const BATCH: usize = 256;

/// An extent: a range of the filesystem's device, with the flags of FIEMAP.
struct Extent {
    physical: Range,
    flags: u32,
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` with space for its extents.
#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    room: u32,
    reserved: u32,
    extents: [RawExtent; BATCH],
}

#[allow(unsafe_code)]
// SAFETY: FS_IOC_FIEMAP reads the head of `struct fiemap` and writes at most `room` extents behind
// it, and `Request` has `BATCH` of them, which is what `room` says.
unsafe impl Ioctl for &mut Request {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        // _IOWR('f', 11, struct fiemap), whose head is 32 bytes.
        ioctl::opcode::read_write::<[u8; 32]>(b'f', 11)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut::<Request>(self).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// All extents of an open file.
fn fiemap(file: BorrowedFd<'_>) -> Vec<Extent> {
    let mut found: Vec<Extent> = Vec::new();
    let mut start = 0;
    loop {
        let mut request = Request {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped: 0,
            room: BATCH as u32,
            reserved: 0,
            extents: [RawExtent::default(); BATCH],
        };
        #[allow(unsafe_code)]
        // SAFETY: see the implementation of `Ioctl` above.
        unsafe { ioctl::ioctl(file, &mut request) }.unwrap();
        let batch = &request.extents[..request.mapped as usize];
        found.extend(
            batch.iter().map(|e| Extent { physical: e.physical..e.physical + e.length, flags: e.flags }),
        );
        match batch.last() {
            Some(last) if last.flags & LAST == 0 => start = last.logical + last.length,
            _ => return found,
        }
    }
}

/// Where a file of this machine lies on its device, according to the code above and to `filefrag`.
pub fn fiemap_and_filefrag(file: &Path) -> (Vec<Range>, Vec<Range>) {
    let ours = fiemap(std::fs::File::open(file).unwrap().as_fd());
    let ours = normalise(ours.into_iter().map(|e| e.physical));
    // "   0:        0..     511:     294912..    295423:    512:             last,eof"
    let text =
        String::from_utf8(tools::run("filefrag", [OsStr::new("-v"), OsStr::new("-b512"), file.as_os_str()]))
            .unwrap();
    let theirs = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        fields.next()?.trim().parse::<u32>().ok()?;
        let (first, last) = fields.nth(1)?.split_once("..")?;
        let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        Some(first * 512..(last + 1) * 512)
    });
    (ours, normalise(theirs))
}
