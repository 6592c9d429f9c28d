//! Changes a mounted filesystem at random, in the ways in which programs change files.

use rustix::fs::{FallocateFlags, fallocate, ioctl_ficlone};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use virt_bmap_testutil::random::Random;
use virt_bmap_testutil::tools;

/// Makes the tree `work`, which is changed later, and the tree `still`, which is never changed.
pub(crate) fn begin(root: &Path, random: &mut Random) {
    for tree in ["still", "work"] {
        for directory in 0..6 {
            let directory = root.join(tree).join(format!("directory{directory}"));
            fs::create_dir_all(&directory).unwrap();
            for file in 0..12 {
                fs::write(directory.join(format!("file{file}")), content(random, 40_000)).unwrap();
            }
        }
    }
}

/// Makes `count` changes in the tree `work`. Some may fail: the filesystem may be full, or not
/// support the change.
pub(crate) fn change(root: &Path, kind: &str, count: usize, random: &mut Random) {
    let tree = root.join("work");
    for number in 0..count {
        let (files, directories) = all(&tree);
        let (Some(file), Some(directory)) = (one(&files, random), one(&directories, random)) else { return };
        let new = directory.join(format!("new{}", random.draw() % 100_000));
        let _ = match random.below(20) {
            0 | 1 => fs::write(&new, content(random, 200_000)),
            2 => write_at(&file, random),
            3 => write_keeping_its_time(&file, random),
            4 => OpenOptions::new()
                .append(true)
                .open(&file)
                .and_then(|mut file| std::io::Write::write_all(&mut file, &content(random, 60_000))),
            5 => set_length(&file, random),
            6 => allocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, random),
            7 => allocate(&file, FallocateFlags::KEEP_SIZE, random),
            8 | 9 => fs::rename(&file, &new),
            10 => fs::remove_file(&file),
            11 => fs::hard_link(&file, &new),
            12 | 13 => reflink(&file, &new),
            14 => defragment(&file, kind),
            15 => fs::create_dir(&new),
            // This fails if `new` is inside `directory`.
            16 => fs::rename(&directory, &new),
            17 if directory != tree => fs::remove_dir_all(&directory),
            18 => upgrade(&directory, random),
            19 if kind == "btrfs" && number % 8 == 0 => snapshot(root, &tree, random),
            _ => File::options().append(true).open(&file).and_then(|file| {
                file.set_modified(
                    std::time::UNIX_EPOCH + std::time::Duration::from_secs(random.below(1 << 30)),
                )
            }),
        };
    }
}

/// All files and directories of a tree, in a fixed order.
fn all(tree: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut files, mut directories, mut next) = (Vec::new(), vec![tree.to_owned()], 0);
    while let Some(directory) = directories.get(next) {
        let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(Result::unwrap).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        next += 1;
        for entry in entries {
            let is_directory = entry.file_type().unwrap().is_dir();
            if is_directory { &mut directories } else { &mut files }.push(entry.path());
        }
    }
    (files, directories)
}

fn one(these: &[PathBuf], random: &mut Random) -> Option<PathBuf> {
    let count = these.len().max(1) as u64;
    these.get(random.below(count) as usize).cloned()
}

/// Random content of less than `most` bytes. It is often small and sometimes empty.
fn content(random: &mut Random, most: u64) -> Vec<u8> {
    let most = if random.below(3) == 0 { most } else { 5000 };
    let length = random.below(most).saturating_sub(200);
    let mut bytes = vec![0; length as usize];
    bytes.fill_with(|| random.draw() as u8);
    bytes
}

/// A random offset in a file, or a little behind its end.
fn place(file: &File, random: &mut Random) -> std::io::Result<u64> {
    Ok(random.below(file.metadata()?.len() + 10_000))
}

fn write_at(file: &Path, random: &mut Random) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).open(file)?;
    let at = place(&file, random)?;
    file.write_all_at(&content(random, 30_000), at)
}

fn write_keeping_its_time(path: &Path, random: &mut Random) -> std::io::Result<()> {
    let modified = path.metadata()?.modified()?;
    write_at(path, random)?;
    File::options().append(true).open(path)?.set_modified(modified)
}

fn set_length(file: &Path, random: &mut Random) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).open(file)?;
    let length = place(&file, random)?;
    file.set_len(length)
}

fn allocate(file: &Path, how: FallocateFlags, random: &mut Random) -> std::io::Result<()> {
    let file = OpenOptions::new().write(true).open(file)?;
    let at = place(&file, random)?;
    Ok(fallocate(&file, how, at, 1 + random.below(50_000))?)
}

fn reflink(file: &Path, new: &Path) -> std::io::Result<()> {
    Ok(ioctl_ficlone(File::create(new)?, File::open(file)?)?)
}

/// Moves the blocks of a file. Its times do not change.
fn defragment(file: &Path, kind: &str) -> std::io::Result<()> {
    let file = file.to_str().unwrap();
    let command: &[&str] = match kind {
        "ext4" => &["e4defrag", file],
        "xfs" => &["xfs_fsr", file],
        "btrfs" => &["btrfs", "filesystem", "defragment", "-f", file],
        _ => return Ok(()),
    };
    tools::command(command[0]).args(&command[1..]).output().map(drop)
}

/// Replaces the files of a directory as package managers do: each new file is written beside the
/// old one, and then renamed.
fn upgrade(directory: &Path, random: &mut Random) -> std::io::Result<()> {
    for file in all(directory).0 {
        let new = file.with_extension("dpkg-new");
        fs::write(&new, content(random, 60_000))?;
        fs::rename(new, file)?;
    }
    Ok(())
}

fn snapshot(root: &Path, tree: &Path, random: &mut Random) -> std::io::Result<()> {
    let name = root.join(format!("snapshot{}", random.below(4)));
    let command: [&std::ffi::OsStr; 4] =
        ["subvolume".as_ref(), "snapshot".as_ref(), tree.as_ref(), name.as_ref()];
    tools::command("btrfs").args(command).output().map(drop)
}
