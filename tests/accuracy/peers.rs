//! Peers: programs of other people that list where the files of a filesystem lie. Each of their
//! answers is looked up in the map by its name. What they find and the map does not have must have
//! an explanation.
//!
//! `fiwalk` of The Sleuth Kit, which asks for each file what `fls` and `istat` print, and
//! `map_extents` of dfImageTools, which knows streams, forks and compressed system files. The latter
//! is not in Debian. What it says of one NTFS is recorded beside the image
//! (`tests/accuracy/peers/renew.sh`), so that it need not be installed.

use crate::arbiter::{Ranges, subtract, total};
use crate::books::ranges_of;
use crate::flat::Flat;
use std::collections::BTreeMap;
use std::process::Command;
use virt_bmap_map::{Kind, Map, ObjectName, PieceFlags};
use virt_bmap_testutil::fixture::Filesystem;
use virt_bmap_testutil::ranges::{Range, normalise};
use virt_bmap_testutil::{oracle_fiwalk, places, tools};

/// What a peer says: for each path, ranges of the image.
type Files = BTreeMap<String, Vec<Range>>;

/// How many names of a peer are in the map where it says.
#[derive(Default)]
pub(crate) struct Agreement {
    /// For the table: each peer, and its numbers.
    pub(crate) summary: String,
    /// What a peer finds and the map does not have, without an explanation.
    pub(crate) unexplained: Vec<String>,
}

/// Asks the peers that are installed about a filesystem, which is on `device`.
pub(crate) fn ask(flat: &Flat, block: u64, map: &Map, device: &[u8]) -> Agreement {
    let mut agreement = Agreement::default();
    for (peer, said) in [("fiwalk", fiwalk(flat, block)), ("map_extents", map_extents(flat))] {
        let said: Files = said.unwrap_or_default();
        let (mut same, mut explained) = (0, BTreeMap::<_, usize>::new());
        for (path, ranges) in &said {
            let said = flat.to_disk(ranges);
            match look_up(map, device, path, &said) {
                // Its names are those of ISO 9660, the map's those of Rock Ridge.
                Found::No(_) if flat.place.kind == "iso9660" && is_of_a_file(map, device, &said) => {
                    *explained.entry("under another name").or_default() += 1;
                }
                Found::Here => same += 1,
                Found::Explained(how) => *explained.entry(how).or_default() += 1,
                Found::No(what) => agreement.unexplained.push(format!("{peer}: {path}: {what}")),
            }
        }
        if !said.is_empty() {
            let all = said.len();
            let separator = if agreement.summary.is_empty() { "" } else { ", " };
            agreement.summary += &format!("{separator}{peer} {same}/{all}");
            for (how, count) in explained {
                agreement.summary += &format!(", {count} {how}");
            }
        }
    }
    agreement
}

/// An NTFS whose files `map_extents` has listed.
pub(crate) const RECORDED: &[u8] = include_bytes!("peers/ntfs.img.zst");

/// What it has listed. The first line says with which version.
const ANSWER: &str = include_str!("peers/map_extents.txt");

/// What the map of [`RECORDED`], which is disk `disk`, lacks of what is recorded.
pub(crate) fn recorded(map: &Map, disk: u32) -> Vec<String> {
    let device = format!("/dev/sd{}", char::from(b'a' + disk as u8 - 1));
    let said = parse(ANSWER);
    assert!(said.len() > 30, "{}", said.len());
    let found = said.iter().map(|(path, ranges)| {
        (path, look_up(map, device.as_bytes(), path, &Ranges::from([(disk, ranges.clone())])))
    });
    let missing = found.filter_map(|(path, found)| match found {
        Found::No(what) => Some(format!("{path}: {what}")),
        Found::Here | Found::Explained(_) => None,
    });
    missing.collect()
}

/// Whether the map has what a peer says.
enum Found {
    Here,
    /// It is there in another way, for this reason.
    Explained(&'static str),
    No(String),
}

fn look_up(map: &Map, device: &[u8], path: &str, said: &Ranges) -> Found {
    let of = |path: &str| -> Ranges {
        let kinds = [Kind::File, Kind::Directory, Kind::Metadata];
        let names = kinds.map(|kind| ObjectName::path(kind, device, path.as_bytes()));
        let object = names.into_iter().find_map(|name| map.find(name));
        object.map(|object| ranges_of(object, PieceFlags::empty())).unwrap_or_default()
    };
    let ours = of(path);
    let missing = subtract(said, &ours);
    let is_in = |other: &str| total(&subtract(&missing, &of(other))) == 0;
    if total(&missing) == 0 {
        Found::Here
    } else if is_in(&format!("{path}:WofCompressedData")) {
        // To map_extents the data that CompactOS has compressed are the file's own.
        Found::Explained("under the name of their stream")
    } else if is_in("[cluster slack]") {
        // Of the last cluster of a file, the map names what the file needs.
        Found::Explained("with [cluster slack]")
    } else {
        Found::No(format!("{} bytes of {said:x?} are not in the map's {ours:x?}", total(&missing)))
    }
}

/// Whether a file has these ranges.
fn is_of_a_file(map: &Map, device: &[u8], said: &Ranges) -> bool {
    let mut files = map.objects().filter(|o| o.kind() == Kind::File && o.name().device == device);
    files.any(|file| total(&subtract(said, &ranges_of(file, PieceFlags::empty()))) == 0)
}

/// The Sleuth Kit.
fn fiwalk(flat: &Flat, block: u64) -> Option<Files> {
    const KNOWN: [&str; 6] = ["ext4", "ntfs", "vfat", "exfat", "iso9660", "hfsplus"];
    if !KNOWN.contains(&flat.place.kind) || tools::find("fiwalk").is_none() {
        return None;
    }
    let mut volume = flat.volume.clone();
    // Its places are those in the image.
    volume.segments[0].disk = 0;
    let (kind, flat) = (flat.place.kind, flat.image.clone());
    Some(oracle_fiwalk::files(&Filesystem { volume, kind, block, flat, specials: None }))
}

/// dfImageTools.
fn map_extents(flat: &Flat) -> Option<Files> {
    // Not XFS: its places beyond the first allocation group are right only where the size of a
    // group is a power of two.
    const KNOWN: [&str; 4] = ["ext4", "ntfs", "vfat", "hfsplus"];
    // The benchmark "rivals" installs it.
    let of_bench = places::target_tmpdir().join("rivals/venv/bin/map_extents");
    let program = tools::find("map_extents").or_else(|| of_bench.exists().then_some(of_bench))?;
    if !KNOWN.contains(&flat.place.kind) {
        return None;
    }
    // It may end with an error after it has printed what it found.
    let output = Command::new(program).arg(&flat.image).output().unwrap();
    Some(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// The lines of `map_extents`: start, end, type and path, between tabs.
fn parse(text: &str) -> Files {
    let mut files = Files::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.splitn(4, '\t').collect();
        let [start, end, "FILE_CONTENT" | "DATA_STREAM", path] = fields[..] else { continue };
        let hex = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).unwrap();
        files.entry(path.to_owned()).or_default().push(hex(start)..hex(end));
    }
    files.values_mut().for_each(|ranges| *ranges = normalise(std::mem::take(ranges)));
    files
}
