//! Guests that benchmarks map, and the time that it takes.

#![allow(dead_code)] // no benchmark uses all of it

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use virt_bmap::mapper::{Cancel, GuestDisk, MapEvent, Mapped, MapperOptions, map_guest};
use virt_bmap::probe::Phase;
use virt_bmap_image::{ImageFormat, Location};

/// A guest that is mapped: a disk with one ext4 filesystem and no partitions.
pub(crate) struct Guest {
    pub(crate) name: &'static str,
    pub(crate) directories: usize,
    pub(crate) files: usize,
    /// The mean size of a file. If it is one block, every second file has one block, and the others
    /// are empty.
    pub(crate) mean: u64,
    pub(crate) image_mib: u64,
    /// How often it is mapped with each probe.
    pub(crate) runs: usize,
}

pub(crate) const MEDIUM: Guest =
    Guest { name: "medium", directories: 100, files: 900, mean: 44_444, image_mib: 128, runs: 3 };
pub(crate) const LARGE: Guest =
    Guest { name: "large", directories: 1_000, files: 9_000, mean: 44_444, image_mib: 700, runs: 3 };
pub(crate) const MANY: Guest =
    Guest { name: "many", directories: 5_000, files: 95_000, mean: 6_000, image_mib: 1_600, runs: 3 };
pub(crate) const MILLION: Guest =
    Guest { name: "million", directories: 20_000, files: 980_000, mean: 4_096, image_mib: 4_096, runs: 1 };

/// Copies an image and keeps its holes.
pub(crate) fn copy(image: &Path, to: &Path) {
    let status = Command::new("cp").arg("--sparse=always").args([image, to]).status();
    assert!(status.expect("cp runs").success());
}

/// The result of mapping an image once.
pub(crate) struct Run {
    pub(crate) mapped: Mapped,
    /// The time from the first filesystem to the appliance's shutdown.
    pub(crate) reading: Duration,
}

/// Maps a raw image once.
pub(crate) fn map(image: &Path, options: &MapperOptions) -> Run {
    map_at(image.to_owned().into(), options)
}

/// Maps once what is raw at a location.
pub(crate) fn map_at(location: Location, options: &MapperOptions) -> Run {
    let disks = [GuestDisk::new(location, Some(ImageFormat::Raw))];
    let (mut began, mut ended) = (None, None);
    let mapped = map_guest(&disks, options, &Cancel::default(), &mut |event| {
        if let MapEvent::Progress(phase, _) = event {
            match phase {
                Phase::Filesystem { .. } => {
                    began.get_or_insert_with(Instant::now);
                }
                Phase::Closing => {
                    ended.get_or_insert_with(Instant::now);
                }
                _ => {}
            }
        }
    })
    .expect("the guest is mapped");
    assert!(mapped.map.header().warnings.is_empty());
    let ended = ended.unwrap_or_else(Instant::now);
    Run { mapped, reading: ended - began.unwrap_or(ended) }
}

impl Guest {
    /// Makes the directories and files.
    pub(crate) fn tree(&self, directory: &Path) -> PathBuf {
        let tree = directory.join(self.name);
        let mut random = Random(1);
        let mut content = vec![0; 8 << 20];
        for chunk in content.chunks_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
        }
        let mut folder = tree.clone();
        for number in 0..self.files {
            if number.is_multiple_of((self.files / self.directories).max(1)) {
                folder = tree.join(format!("d{}", number % 17)).join(format!("directory{number}"));
                fs::create_dir_all(&folder).expect("a directory is made");
            }
            // Sizes as in real guests: most files are small, a few are large, and the mean is
            // `mean`.
            let mean = self.mean;
            let size = if mean == 4096 {
                number as u64 % 2 * mean
            } else if random.next().is_multiple_of(10) {
                random.next() % (mean * 14)
            } else {
                random.next() % (mean * 2 / 3)
            };
            let from = (random.next() % 1024) as usize;
            let size = (size as usize).min(content.len() - from);
            fs::write(folder.join(format!("file{number}")), &content[from..from + size])
                .expect("a file is written");
        }
        tree
    }

    /// Makes the image, if no earlier run has left it.
    pub(crate) fn image(&self, directory: &Path) -> PathBuf {
        let image = directory.join(format!("{}.img", self.name));
        if image.exists() {
            return image;
        }
        let tree = self.tree(directory);
        let partial = image.with_extension("partial");
        let file = fs::File::create(&partial).expect("an image is made");
        file.set_len(self.image_mib << 20).expect("an image gets its size");
        let status = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-N"])
            // The parents of the directories, and the inodes that every ext4 has, are counted too.
            .arg((self.files + self.directories * 2 + 64).to_string())
            .arg("-d")
            .arg(&tree)
            .arg(&partial)
            .status();
        assert!(status.expect("mke2fs runs").success());
        fs::rename(&partial, &image).expect("the image gets its name");
        fs::remove_dir_all(&tree).expect("the tree is removed");
        image
    }
}

/// Numbers that are the same on every run (a linear congruential generator).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 20
    }
}
