//! Second oracles: other programs that read a filesystem themselves. They are asked about each
//! filesystem that lies on one partition, and the table counts how often they agree with the map.
//! The patterns alone decide whether a map is right.

use crate::flat::Flat;
use crate::guests::{Place, Row};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use virt_bmap_testutil::fixture::Filesystem;
use virt_bmap_testutil::layout::Segment;
use virt_bmap_testutil::ranges::{Range, difference, normalise, round_out};
use virt_bmap_testutil::{oracle_directories, oracle_fiemap, oracle_fiwalk, tools};

/// The answer of one oracle: for each path, ranges of the guest's disk.
type Files = BTreeMap<String, Vec<Range>>;

/// The answers of all oracles for a row.
pub(crate) struct Second {
    disk: u32,
    block: u64,
    answers: Vec<(&'static str, Files)>,
    /// For each oracle, the number of files for which it agrees with the map, and the number of
    /// files that were compared.
    agreed: Vec<(usize, usize)>,
}

impl Second {
    /// Asks all oracles that know this kind of filesystem and can run on this machine.
    pub(crate) fn of(row: &Row, flat: &Flat) -> Self {
        let place = &flat.place;
        let filesystem = Filesystem {
            volume: flat.volume.clone(),
            kind: place.kind,
            block: row.rules.block,
            flat: flat.image.clone(),
            specials: None,
        };
        let names: Vec<&str> = row.files.iter().flat_map(|file| &file.names).map(String::as_str).collect();
        let asked: [(&'static str, Option<Files>); 4] = [
            ("fiwalk", fiwalk(&filesystem)),
            ("FIEMAP", fiemap(&filesystem, place)),
            ("debugfs", debugfs(&filesystem, &names)),
            ("ntfscluster", ntfscluster(&filesystem, &names)),
        ];
        let answers: Vec<_> = asked.into_iter().filter_map(|(name, files)| Some((name, files?))).collect();
        let agreed = vec![(0, 0); answers.len()];
        Self { disk: place.disk, block: row.rules.block, answers, agreed }
    }

    /// Resets the counts for another map.
    pub(crate) fn begin(&mut self) {
        self.agreed.fill((0, 0));
    }

    /// Compares the ranges that a map gives to a file. Returns the answers that differ.
    pub(crate) fn compare(&mut self, name: &str, mapped: &crate::arbiter::Ranges) -> Vec<String> {
        let mut others = Vec::new();
        let mapped = mapped.get(&self.disk).map_or(&[][..], Vec::as_slice);
        for ((oracle, files), (right, asked)) in self.answers.iter().zip(&mut self.agreed) {
            let Some(said) = files.get(name) else { continue };
            *asked += 1;
            // The map may name the whole last block of the file.
            let slack = normalise(said.iter().map(|range| range.start..range.end + self.block - 1));
            if difference(&round_out(said, 512), mapped).is_empty() && difference(mapped, &slack).is_empty() {
                *right += 1;
            } else {
                others.push(format!("{oracle} says {said:x?}, the map {mapped:x?}"));
            }
        }
        others
    }

    /// For the table: each oracle, and for how many files it agrees with the map.
    pub(crate) fn summary(&self) -> String {
        let each = self.answers.iter().zip(&self.agreed);
        each.filter(|(_, (_, asked))| *asked > 0)
            .map(|((name, _), (right, asked))| format!(", {name} {right}/{asked}"))
            .collect()
    }
}

/// The Sleuth Kit. Files with unwritten blocks are left out, since it counts these blocks as
/// theirs.
fn fiwalk(filesystem: &Filesystem) -> Option<Files> {
    const KNOWN: [&str; 6] = ["ext4", "ntfs", "vfat", "exfat", "iso9660", "hfsplus"];
    let can = KNOWN.contains(&filesystem.kind) && tools::find("fiwalk").is_some();
    can.then(|| written(oracle_fiwalk::files(filesystem)))
}

/// The kernel of this machine, through a loop device.
fn fiemap(filesystem: &Filesystem, place: &Place) -> Option<Files> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let can = ["ext4", "xfs", "btrfs"].contains(&filesystem.kind)
        && known.split_whitespace().any(|kind| kind == filesystem.kind)
        && rustix::process::geteuid().is_root();
    // The kernel may lack a feature, such as casefold.
    if !can || !oracle_fiemap::can_mount(filesystem) {
        return None;
    }
    let mut filesystem = filesystem.clone();
    if filesystem.kind == "btrfs" {
        filesystem.volume.segments = chunks(&filesystem.flat, place.start)?;
    }
    let files = oracle_fiemap::tree(&filesystem).files.into_iter();
    Some(files.filter_map(|(name, file)| Some((String::from_utf8(name).ok()?, file.on_disk))).collect())
}

/// The segments of the address space of a btrfs on one device, as `btrfs inspect-internal` prints
/// them.
fn chunks(flat: &Path, start: u64) -> Option<Vec<Segment>> {
    tools::find("btrfs")?;
    let args = ["inspect-internal", "dump-tree", "-t", "chunk"].map(OsStr::new);
    let text = tools::run("btrfs", args.into_iter().chain([flat.as_os_str()]));
    let text = String::from_utf8(text).unwrap();
    let (mut segments, mut volume, mut length) = (Vec::new(), 0, 0);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // item 1 key (FIRST_CHUNK_TREE CHUNK_ITEM 22020096) itemoff ...
            ["item", _, "key", "(FIRST_CHUNK_TREE", "CHUNK_ITEM", at, ..] => {
                volume = at.trim_end_matches(')').parse().ok()?;
            }
            ["length", bytes, "owner", ..] => length = bytes.parse().ok()?,
            ["stripe", _, "devid", _, "offset", at] => {
                segments.push(Segment { volume, disk: start + at.parse::<u64>().ok()?, length });
            }
            _ => {}
        }
    }
    Some(segments)
}

/// The blocks of each file on ext2, ext3 or ext4, from `debugfs`.
fn debugfs(filesystem: &Filesystem, names: &[&str]) -> Option<Files> {
    if filesystem.kind != "ext4" || tools::find("debugfs").is_none() {
        return None;
    }
    let block = oracle_directories::ext_block_size(&filesystem.flat);
    let script = tempfile::NamedTempFile::new().unwrap();
    let lines: String = names.iter().map(|name| format!("stat \"{name}\"\n")).collect();
    std::fs::write(script.path(), lines).unwrap();
    let args = [OsStr::new("-f"), script.path().as_os_str(), filesystem.flat.as_os_str()];
    let text = String::from_utf8_lossy(&tools::run("debugfs", args)).into_owned();
    // debugfs prints each request, then its answer.
    let mut files = Files::new();
    for said in text.split("debugfs: ").skip(1) {
        let Some((asked, said)) = said.split_once('\n') else { continue };
        let name = asked.trim_start_matches("stat ").trim().trim_matches('"');
        let blocks = data_blocks(said).into_iter().map(|b| b.start * block..b.end * block);
        files.insert(name.to_owned(), filesystem.volume.to_disk(&normalise(blocks)));
    }
    Some(files)
}

/// The data blocks in the output of `debugfs` for an inode: `(ETB0):10326, (0-3):9348-9351,
/// (4-7[u]):9352-9355`.
fn data_blocks(said: &str) -> Vec<Range> {
    let words = said.split([' ', ',', '\n']).filter_map(|word| word.strip_prefix('('));
    let pairs = words.filter_map(|word| word.split_once("):"));
    // Blocks of pointers and of extents have letters in parentheses. Unwritten blocks have a mark.
    let data = pairs.filter(|(logical, _)| logical.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'));
    let ranges = data.filter_map(|(_, physical)| {
        let (first, last) = physical.split_once('-').unwrap_or((physical, physical));
        Some(first.parse::<u64>().ok()?..last.parse::<u64>().ok()? + 1)
    });
    ranges.collect()
}

/// The clusters of each file that has clusters, from `ntfscluster` of ntfsprogs.
fn ntfscluster(filesystem: &Filesystem, names: &[&str]) -> Option<Files> {
    if filesystem.kind != "ntfs" || tools::find("ntfscluster").is_none() {
        return None;
    }
    let mut files = Files::new();
    // It does not know the names of streams, and lists their clusters with those of the file.
    let has_streams = |name: &str| names.iter().any(|other| other.starts_with(&format!("{name}:")));
    for name in names.iter().filter(|name| !name.contains(':') && !has_streams(name)) {
        let args = ["-f", "-F", name].map(OsStr::new);
        let text = tools::run("ntfscluster", args.into_iter().chain([filesystem.flat.as_os_str()]));
        let text = String::from_utf8_lossy(&text).into_owned();
        let clusters = data_runs(&text, filesystem.block);
        if !clusters.is_empty() {
            files.insert((*name).to_owned(), filesystem.volume.to_disk(&clusters));
        }
    }
    Some(files)
}

/// The runs of the attribute `$DATA`, which is 0x80, in the output of `ntfscluster` for an inode. A
/// line has the VCN, the LCN and the length in clusters.
fn data_runs(text: &str, cluster: u64) -> Vec<Range> {
    let (mut is_data, mut runs) = (false, Vec::new());
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [kind, "-", _] => is_data = kind == "0x80",
            [_, place, length] if is_data => {
                // The line above the numbers is a heading.
                let (Ok(place), Ok(length)) = (place.parse::<u64>(), length.parse::<u64>()) else { continue };
                runs.push(place * cluster..(place + length) * cluster);
            }
            _ => {}
        }
    }
    normalise(runs)
}

/// `files` without those that have unwritten blocks.
fn written(mut files: Files) -> Files {
    files.retain(|name, _| !name.contains("/unwritten/"));
    files
}
