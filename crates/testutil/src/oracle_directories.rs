//! Other programs as oracles for directories: `istat` of The Sleuth Kit, `debugfs`, `xfs_db`. Each
//! gives the blocks of every directory of a filesystem that an image file holds.

use super::ranges::{Range, normalise};
use super::tools;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;

/// The bytes of directories in the image, by path.
pub type Directories = BTreeMap<String, Vec<Range>>;

/// A filesystem as The Sleuth Kit knows it: the name of its type, the bytes of the units in which
/// `istat` counts, and the number of the root directory.
#[derive(Clone, Copy, Debug)]
pub struct Sleuthkit {
    kind: &'static str,
    unit: u64,
    root: &'static str,
}

impl Sleuthkit {
    /// FAT of all sizes.
    pub const FAT: Self = Self { kind: "fat", unit: 512, root: "2" };
    /// exFAT.
    pub const EXFAT: Self = Self { kind: "exfat", unit: 512, root: "2" };
    /// ISO 9660. The names are those of ISO 9660, not those of Rock Ridge.
    pub const ISO: Self = Self { kind: "iso9660", unit: 2048, root: "0" };

    /// NTFS with clusters of this size.
    pub fn ntfs(cluster: u64) -> Self {
        Self { kind: "ntfs", unit: cluster, root: "5" }
    }

    /// UFS with fragments of this size.
    pub fn ufs(fragment: u64) -> Self {
        Self { kind: "ufs", unit: fragment, root: "2" }
    }

    /// All directories, without those of NTFS in which the filesystem keeps its own files.
    pub fn directories(self, image: &Path) -> Directories {
        let mut found = Directories::new();
        let mut waiting = vec![("/".to_owned(), self.root.to_owned())];
        while let Some((path, number)) = waiting.pop() {
            for line in self.ask("fls", &["-u", "-D"], image, &number).lines() {
                let Some((number, name)) = line.strip_prefix("d/d ").and_then(|rest| rest.split_once(":\t"))
                else {
                    continue;
                };
                if !name.starts_with('$') {
                    waiting.push((format!("{}/{name}", path.trim_end_matches('/')), number.to_owned()));
                }
            }
            let about = self.ask("istat", &[], image, &number);
            let units = if self.kind == "ntfs" { index_clusters(&about) } else { sectors(&about) };
            found.insert(path, normalise(units.into_iter().map(|n| n * self.unit..(n + 1) * self.unit)));
        }
        found
    }

    fn ask(self, program: &str, options: &[&str], image: &Path, number: &str) -> String {
        let words = [&["-f", self.kind], options].concat();
        let words = words.into_iter().map(OsStr::new).chain([image.as_os_str(), OsStr::new(number)]);
        String::from_utf8_lossy(&tools::run(program, words)).into_owned()
    }
}

/// The numbers at the end of the output of `istat`.
fn sectors(about: &str) -> Vec<u64> {
    let sectors = about.split_once("Sectors:").or_else(|| about.split_once("Direct Blocks:"));
    let sectors = sectors.map_or("", |(_, sectors)| sectors);
    let sectors = sectors.split_whitespace().map_while(|word| word.parse::<u64>().ok());
    // Beyond the end of a directory of exFAT, istat prints zeroes.
    sectors.filter(|sector| *sector > 0).collect()
}

/// The clusters of the attribute `$INDEX_ALLOCATION` in the output of `istat` for a record of NTFS.
fn index_clusters(about: &str) -> Vec<u64> {
    let mut is_index = false;
    let mut clusters = Vec::new();
    for line in about.lines().skip_while(|line| !line.starts_with("Type: ")) {
        if line.starts_with("Type: ") {
            is_index = line.starts_with("Type: $INDEX_ALLOCATION");
        } else if is_index {
            clusters.extend(line.split_whitespace().filter_map(|word| word.parse::<u64>().ok()));
        }
    }
    clusters
}

/// The blocks of directories of ext2, ext3 or ext4 according to `debugfs`, without those of their
/// extent trees. `inodes` has the inode number of each.
pub fn debugfs(image: &Path, inodes: &BTreeMap<String, u64>) -> Directories {
    let block = ext_block_size(image);
    let of = |inode: &u64| {
        let text = said("debugfs", &["-R", &format!("stat <{inode}>")], image);
        let list = text.split_once("\nEXTENTS:\n").or_else(|| text.split_once("\nBLOCKS:\n"));
        let parts = list.map_or("", |(_, list)| list).split('(').skip(1);
        // `(0-11):8234-8245`, and `(IND):8246` or `(ETB0):33`.
        let blocks = parts.filter(|part| part.starts_with(|c: char| c.is_ascii_digit())).map(|part| {
            let place = part.split_once("):").unwrap().1;
            let end = place.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(place.len());
            let (first, last) = place[..end].split_once('-').unwrap_or((&place[..end], &place[..end]));
            first.parse::<u64>().unwrap() * block..(last.parse::<u64>().unwrap() + 1) * block
        });
        normalise(blocks)
    };
    inodes.iter().map(|(path, inode)| (path.clone(), of(inode))).collect()
}

/// Bytes in a block of an ext filesystem. The superblock has it as a power of two.
pub fn ext_block_size(image: &Path) -> u64 {
    use std::os::unix::fs::FileExt as _;
    let mut bytes = [0; 4];
    std::fs::File::open(image).unwrap().read_exact_at(&mut bytes, 1024 + 24).unwrap();
    1024 << u32::from_le_bytes(bytes)
}

/// The blocks of directories of XFS according to `xfs_db`, with their indexes. `inodes` has the
/// inode number of each.
pub fn xfs_db(image: &Path, inodes: &BTreeMap<String, u64>) -> Directories {
    let superblock = said("xfs_db", &["-r", "-c", "sb 0", "-c", "p blocksize agblocks"], image);
    let number = |name: &str| -> u64 {
        superblock.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
    };
    let (block, group) = (number("blocksize = "), number("agblocks = "));
    let of = |inode: &u64| {
        let text = said("xfs_db", &["-r", "-c", &format!("inode {inode}"), "-c", "bmap"], image);
        // `data offset 0 startblock 13 (0/13) count 1 flag 0`
        let extents = text.lines().filter_map(|line| {
            let (_, place) = line.strip_prefix("data ")?.split_once(" (")?;
            let (place, rest) = place.split_once(") count ")?;
            let (allocation_group, at) = place.split_once('/')?;
            let number = |text: &str| text.parse::<u64>().ok();
            let first = number(allocation_group)? * group + number(at)?;
            let count = number(rest.split(' ').next()?)?;
            Some(first * block..(first + count) * block)
        });
        normalise(extents)
    };
    inodes.iter().map(|(path, inode)| (path.clone(), of(inode))).collect()
}

fn said(program: &str, words: &[&str], image: &Path) -> String {
    let words = words.iter().map(OsStr::new).chain([image.as_os_str()]);
    String::from_utf8_lossy(&tools::run(program, words)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_index_of_a_directory_of_ntfs_counts() {
        let about = "Attributes:\nType: $STANDARD_INFORMATION (16-0)   Name: N/A   Resident   size: 48\n\
                     Type: $INDEX_ALLOCATION (160-4)   Name: $I30   Non-Resident   size: 8192  init_size: 8192\n\
                     70 71 \n75 \nType: $DATA (128-7)   Name: onDir   Non-Resident   size: 9   init_size: 9\n90 \n";
        assert_eq!(index_clusters(about), [70, 71, 75]);
    }

    #[test]
    fn zeroes_are_no_sectors() {
        assert_eq!(sectors("Size: 9\n\nSectors:\n40 41 42 0 \n0 0\n"), [40, 41, 42]);
    }
}
